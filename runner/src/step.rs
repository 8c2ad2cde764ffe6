//! What follows the end of an attempt. Decisions only.

use std::num::NonZeroU32;

use farm_events::Outcome;

use crate::child::{Cut, Ending};
use crate::task::Task;

/// Exit code by which a task asks to halt the host.
const HALT: i32 = 2;
/// Exit code by which a task asks to stop without halting.
const EXIT: i32 = 3;

/// What the end of an attempt asks for.
///
/// 0 is Ok, 2 Halt for tasks that may halt, 3 Exit; every other code, every signal, a task that
/// could not be started and one that ran too long are Retry. An attempt that was ended because
/// `runner` is to stop, or because the cloud takes the instance back, is no failure of the task: it
/// is Exit.
#[must_use]
pub fn outcome(ending: &Ending, cut: Option<Cut>, may_halt: bool) -> Outcome {
    match (cut, ending) {
        (Some(Cut::TimedOut), _) => Outcome::Retry,
        (Some(Cut::Stopped | Cut::Interrupted), _) => Outcome::Exit,
        (None, Ending::Exited(0)) => Outcome::Ok,
        (None, Ending::Exited(HALT)) if may_halt => Outcome::Halt,
        (None, Ending::Exited(EXIT)) => Outcome::Exit,
        (None, Ending::Exited(_) | Ending::Signalled(_) | Ending::NotStarted(_)) => Outcome::Retry,
    }
}

/// Whether the task asked to halt although it may not: `ls`, `grep` and many others return 2 on error.
#[must_use]
pub fn asked_to_halt_in_vain(ending: &Ending, may_halt: bool) -> bool {
    !may_halt && *ending == Ending::Exited(HALT)
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on with the next task.
    NextTask,
    /// Wait, then try the same task again.
    TryAgain,
    /// Go on with the next task although this one failed.
    NextTaskDespiteFailure,
    /// End the run: the host is to halt.
    Halt,
    /// End the run: `runner` is to stop.
    Exit,
    /// End the run: no attempts are left.
    GiveUp,
}

/// The step after attempt number `attempt` (from 1) of `task`.
#[must_use]
pub fn next(outcome: Outcome, attempt: u32, task: &Task) -> Step {
    match outcome {
        Outcome::Ok => Step::NextTask,
        Outcome::Halt => Step::Halt,
        Outcome::Exit => Step::Exit,
        Outcome::Retry => after_failure(attempt, task.max_attempts, task.continue_on_failure),
    }
}

fn after_failure(attempt: u32, max_attempts: NonZeroU32, continue_on_failure: bool) -> Step {
    if attempt < max_attempts.get() {
        Step::TryAgain
    } else if continue_on_failure {
        Step::NextTaskDespiteFailure
    } else {
        Step::GiveUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_has_its_outcome() {
        for code in 0..=255 {
            let expected = match code {
                0 => Outcome::Ok,
                2 => Outcome::Halt,
                3 => Outcome::Exit,
                _ => Outcome::Retry,
            };
            assert_eq!(
                outcome(&Ending::Exited(code), None, true),
                expected,
                "{code}"
            );
        }
    }

    #[test]
    fn a_task_that_may_not_halt_fails_with_2() {
        assert_eq!(outcome(&Ending::Exited(2), None, false), Outcome::Retry);
        assert!(asked_to_halt_in_vain(&Ending::Exited(2), false));
        assert!(!asked_to_halt_in_vain(&Ending::Exited(2), true));
        assert!(!asked_to_halt_in_vain(&Ending::Exited(1), false));
    }

    #[test]
    fn signals_and_tasks_that_did_not_start_are_tried_again() {
        for signal in 1..=64 {
            assert_eq!(
                outcome(&Ending::Signalled(signal), None, true),
                Outcome::Retry
            );
        }
        assert_eq!(
            outcome(&Ending::NotStarted("why".into()), None, true),
            Outcome::Retry
        );
    }

    #[test]
    fn a_task_that_ran_too_long_failed_whatever_it_returned() {
        for code in [0, 2, 3] {
            let ended = outcome(&Ending::Exited(code), Some(Cut::TimedOut), true);
            assert_eq!(ended, Outcome::Retry);
        }
    }

    #[test]
    fn a_task_that_was_stopped_has_not_failed() {
        for ending in [Ending::Exited(0), Ending::Exited(2), Ending::Signalled(15)] {
            assert_eq!(outcome(&ending, Some(Cut::Stopped), true), Outcome::Exit);
        }
    }

    #[test]
    fn the_last_attempt_is_the_last() {
        let three = NonZeroU32::new(3).unwrap();
        assert_eq!(after_failure(2, three, false), Step::TryAgain);
        assert_eq!(after_failure(3, three, false), Step::GiveUp);
        assert_eq!(after_failure(2, three, true), Step::TryAgain);
        assert_eq!(after_failure(3, three, true), Step::NextTaskDespiteFailure);
    }
}
