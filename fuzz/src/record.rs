//! A record made of any bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use farm_events::{
    Event, Heartbeat, HookFailed, HostBooted, Identity, JobFinished, Outcome, RebootDecided,
    Record, RunFinished, RunResult, SweepFinished, TaskFinished, TaskStarted,
};
use jiff::Timestamp;

/// Seconds of the years 0 to 9999, which RFC 3339 can write.
const SECONDS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_207_199;

/// Any record that our types can hold.
#[derive(Clone, Debug)]
pub struct AnyRecord(pub Record);

impl<'a> Arbitrary<'a> for AnyRecord {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(Record {
            time: time(u)?,
            identity: Identity {
                host: u.arbitrary()?,
                pool: u.arbitrary()?,
                image: u.arbitrary()?,
                region: u.arbitrary()?,
                instance_id: u.arbitrary()?,
            },
            event: event(u)?,
        }))
    }
}

fn time(u: &mut Unstructured<'_>) -> Result<Timestamp> {
    let seconds = u.int_in_range(SECONDS)?;
    let nanoseconds = u.int_in_range(0..=999_999_999)?;
    let since_1970 = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Ok(Timestamp::from_nanosecond(since_1970).expect("within the years 0 to 9999"))
}

fn event(u: &mut Unstructured<'_>) -> Result<Event> {
    Ok(match u.int_in_range(0..=8)? {
        0 => TaskStarted {
            task: u.arbitrary()?,
            run_id: u.arbitrary()?,
            attempt: u.arbitrary()?,
            max_attempts: u.arbitrary()?,
        }
        .into(),
        1 => TaskFinished {
            task: u.arbitrary()?,
            outcome: *u.choose(&[Outcome::Ok, Outcome::Halt, Outcome::Exit, Outcome::Retry])?,
            run_id: u.arbitrary()?,
            attempt: u.arbitrary()?,
            max_attempts: u.arbitrary()?,
            exit_code: u.arbitrary()?,
            signal: u.arbitrary()?,
            timed_out: u.arbitrary()?,
            stopped: u.arbitrary()?,
            duration_ms: u.arbitrary()?,
            delay_ms: u.arbitrary()?,
            output_bytes: u.arbitrary()?,
            leftovers: u.arbitrary()?,
            error: u.arbitrary()?,
        }
        .into(),
        2 => RunFinished {
            result: *u.choose(&[
                RunResult::Done,
                RunResult::Halted,
                RunResult::Exited,
                RunResult::Failed,
                RunResult::Stopped,
            ])?,
            run_id: u.arbitrary()?,
            task: u.arbitrary()?,
            runs_since_boot: u.arbitrary()?,
            attempts: u.arbitrary()?,
            duration_ms: u.arbitrary()?,
        }
        .into(),
        3 => JobFinished {
            job: u.arbitrary()?,
            result: u.arbitrary()?,
            task: u.arbitrary()?,
            id: u.arbitrary()?,
            url: u.arbitrary()?,
            run_id: u.arbitrary()?,
            duration_ms: u.arbitrary()?,
            interruption: u.arbitrary()?,
        }
        .into(),
        4 => HostBooted {
            boot_id: u.arbitrary()?,
            previous_boot_id: u.arbitrary()?,
            gap_ms: u.arbitrary()?,
            halt_reason: u.arbitrary()?,
        }
        .into(),
        5 => RebootDecided {
            decision: u.arbitrary()?,
            reason: u.arbitrary()?,
            pattern: u.arbitrary()?,
            job: u.arbitrary()?,
            run_id: u.arbitrary()?,
        }
        .into(),
        6 => SweepFinished {
            verdict: u.arbitrary()?,
            leftovers: u.arbitrary()?,
            terminated: u.arbitrary()?,
            killed: u.arbitrary()?,
            survived: u.arbitrary()?,
            duration_ms: u.arbitrary()?,
            run_id: u.arbitrary()?,
        }
        .into(),
        7 => HookFailed {
            task: u.arbitrary()?,
            error: u.arbitrary()?,
            run_id: u.arbitrary()?,
        }
        .into(),
        _ => Heartbeat {
            phase: u.arbitrary()?,
            task: u.arbitrary()?,
            runs_since_boot: u.arbitrary()?,
            uptime_ms: u.arbitrary()?,
            load_1m: u.arbitrary()?,
            memory_used_bytes: u.arbitrary()?,
            spool_dropped: u.arbitrary()?,
        }
        .into(),
    })
}
