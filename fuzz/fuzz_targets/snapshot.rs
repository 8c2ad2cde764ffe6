//! The snapshot of `cleanslate`.
#![no_main]

use cleanslate::snapshot::Snapshot;
use farm_fuzz::assert_message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    match Snapshot::parse(text) {
        Ok(snapshot) => {
            let written = snapshot.to_text();
            assert_eq!(Snapshot::parse(&written), Ok(snapshot.clone()));
            snapshot
                .check(&snapshot.place, &snapshot.users)
                .expect("it is of its own place");
        }
        Err(error) => {
            assert_message(&error.to_string());
            assert!(!error.is_of_another_boot(), "nothing was compared yet");
        }
    }
});
