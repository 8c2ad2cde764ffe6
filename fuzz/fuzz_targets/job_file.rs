//! Job files of the local spool, and what the spool remembers beside them.
#![no_main]

use farm_fuzz::assert_message;
use libfuzzer_sys::fuzz_target;
use runner::spool::{Job, Outcome, Started};

fuzz_target!(|bytes: &[u8]| {
    match Job::parse(bytes) {
        Ok(job) => {
            check(&job);
            let written = serde_json::to_vec(&job).expect("plain data");
            assert_eq!(Job::parse(&written).expect("it was accepted before"), job);
        }
        Err(rejection) => assert_message(&rejection.to_string()),
    }
    if let Ok(started) = serde_json::from_slice::<Started>(bytes) {
        let written = serde_json::to_vec(&started).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<Started>(&written).expect("it is our own"),
            started
        );
    }
    if let Ok(outcome) = serde_json::from_slice::<Outcome>(bytes) {
        let written = serde_json::to_vec(&outcome).expect("plain data");
        assert_eq!(
            serde_json::from_slice::<Outcome>(&written).expect("it is our own"),
            outcome
        );
    }
});

/// What the kernel, a shell and a report demand of a job that is run.
fn check(job: &Job) {
    assert!(!job.name.trim().is_empty() && job.name.len() <= 1024);
    assert!(!job.name.contains(char::is_control));
    assert!(
        job.command
            .first()
            .is_some_and(|program| !program.is_empty() && !program.starts_with('-'))
    );
    assert!(
        job.command
            .iter()
            .chain(job.env.values())
            .all(|text| !text.contains('\0'))
    );
    for name in job.env.keys() {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !name.starts_with("FARMHAND_"));
    }
}
