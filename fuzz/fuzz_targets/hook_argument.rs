//! The JSON argument of a hook, as `runner record` reads it and as `runner` writes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runner::hook::HookArgument;

fuzz_target!(|text: &str| {
    let Ok(argument) = serde_json::from_str::<HookArgument>(text) else {
        return;
    };
    let written = serde_json::to_string(&argument).expect("text and numbers are always JSON");
    // It becomes one argument of a program, and one line where a hook prints it.
    assert!(written.bytes().all(|byte| byte >= b' '), "{written:?}");
    assert_eq!(
        serde_json::from_str::<HookArgument>(&written).expect("it is our own"),
        argument
    );
});
