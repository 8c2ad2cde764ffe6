//! What several fuzz targets need: a record made of any bytes, and readers of the formats we write.
//!
//! The readers are written from the specifications and share nothing with the writers: what both
//! agree on is in the specification, not in a common mistake.

pub mod line;
pub mod record;
pub mod syslog;

use std::time::Duration;

/// Time this thread spent on a processor while `work` ran: what else runs on the machine is not in it.
pub fn processor_time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            u32::try_from(time.tv_nsec).expect("less than a second"),
        )
    };
    let before = now();
    let result = work();
    (result, now() - before)
}

/// Asserts what holds for each message to a person: it says something, on one line.
pub fn assert_message(message: &str) {
    assert!(!message.trim().is_empty(), "a message that says nothing");
    assert!(
        !message.contains(['\n', '\r']),
        "a message of several lines: {message:?}"
    );
}
