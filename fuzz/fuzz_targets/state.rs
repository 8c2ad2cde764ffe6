//! `state.json`, which a power failure or a person may have damaged.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use runner::state::State;

fuzz_target!(|text: &str| {
    let Ok(state) = serde_json::from_str::<State>(text) else {
        return;
    };
    let written = serde_json::to_string(&state).expect("plain data");
    assert_eq!(
        serde_json::from_str::<State>(&written).expect("it is our own"),
        state
    );
    for now in [Timestamp::UNIX_EPOCH, Timestamp::MIN, Timestamp::MAX] {
        let counted = state.reboots_within_an_hour(now);
        assert!(counted.iter().all(|at| state.reboots.contains(at)));
    }
});
