//! One run: the tasks in order, each tried until it ends well or has no attempts left.
//!
//! Attempts are counted per task, and the run goes on at the task that failed: what came before it
//! is not done again, what comes after it is not begun.

use std::time::Duration;

use farm_events::{RunFinished, RunResult};
use tokio::time::Instant;
use tracing::error;

use crate::config::When;
use crate::host::{Attempt, Host, millis};
use crate::signals::Stop;
use crate::state::Phase;
use crate::step::{self, Step};
use crate::task::Task;
use crate::tasks_dir::Tasks;

/// How a run ended, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// All tasks ended well.
    Done,
    /// The host is to halt.
    Halt {
        /// Task that asked for it.
        task: String,
        /// Why, in a word of the reboot decision or in a sentence.
        reason: String,
        /// Reboot pattern behind it.
        pattern: Option<String>,
    },
    /// `runner` is to stop.
    Exit {
        /// Task that asked for it.
        task: String,
    },
    /// A task failed at every attempt.
    Failed {
        /// The task.
        task: String,
    },
    /// `runner` was asked to stop.
    Stopped,
}

impl RunEnd {
    /// The result that is recorded.
    #[must_use]
    pub const fn result(&self) -> RunResult {
        match self {
            Self::Done => RunResult::Done,
            Self::Halt { .. } => RunResult::Halted,
            Self::Exit { .. } => RunResult::Exited,
            Self::Failed { .. } => RunResult::Failed,
            Self::Stopped => RunResult::Stopped,
        }
    }

    /// The task that decided the result.
    #[must_use]
    pub fn task(&self) -> Option<&str> {
        match self {
            Self::Halt { task, .. } | Self::Exit { task } | Self::Failed { task } => Some(task),
            Self::Done | Self::Stopped => None,
        }
    }
}

/// How a task ended within a run.
enum TaskEnd {
    /// Go on with the next one.
    Next,
    /// The run is over.
    Run(RunEnd),
}

impl Host {
    /// Runs all tasks once.
    pub(crate) async fn run_once(&mut self, tasks: &Tasks) -> RunEnd {
        let started = Instant::now();
        self.state.runs += 1;
        self.fleet.run_began(self.state.runs);
        self.drained = false;
        self.state.job = None;
        self.state.sweep = None;
        let mut attempts = 0;
        let end = self.run_tasks(&tasks.order, &mut attempts).await;
        // A run that was cut short has not done what a first run is for.
        if end != RunEnd::Stopped {
            self.state.runs_since_boot += 1;
        }
        let duration = started.elapsed();
        self.journal.record(RunFinished {
            result: end.result(),
            run_id: self.run_id(),
            task: end.task().map(Into::into),
            runs_since_boot: self.state.runs_since_boot,
            attempts,
            duration_ms: millis(duration),
        });
        self.view
            .run_finished(self.state.runs, end.result(), end.task(), duration);
        self.enter(Phase::BetweenRuns, None, 0, None);
        end
    }

    async fn run_tasks(&mut self, order: &[Task], attempts: &mut u32) -> RunEnd {
        for task in order {
            if task.when == When::FirstRun && self.state.runs_since_boot > 0 {
                continue;
            }
            if self.requests.ends_run() || self.drained_before_a_job() {
                return RunEnd::Stopped;
            }
            if self.requests.takes_no_job() && task.drain_signal.is_some() {
                // It would look for a second job.
                continue;
            }
            match self.run_task(task, attempts).await {
                TaskEnd::Next => {}
                TaskEnd::Run(end) => return end,
            }
        }
        RunEnd::Done
    }

    /// The tasks that run before the host is halted. None of them can keep it from halting.
    pub(crate) async fn run_before_reboot(&mut self, tasks: &[Task]) {
        let mut attempts = 0;
        for task in tasks {
            if self.requests.stop() != Stop::No {
                return;
            }
            match self.run_task(task, &mut attempts).await {
                TaskEnd::Next | TaskEnd::Run(_) => {}
            }
        }
    }

    async fn run_task(&mut self, task: &Task, attempts: &mut u32) -> TaskEnd {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Some(ended) = self.attempt(Phase::Task, task, attempt).await else {
                return TaskEnd::Run(RunEnd::Stopped);
            };
            *attempts += 1;
            let stopped = self.requests.ends_run();
            let step = if ended.finished.stuck.is_empty() {
                step::next(ended.outcome, attempt, task)
            } else {
                // What cannot be killed would run beside the next attempt.
                Step::GiveUp
            };
            let delay = (step == Step::TryAgain && !stopped)
                .then(|| task.backoff.delay(attempt, &mut self.rng));
            self.conclude(task, attempt, &ended, delay).await;
            if self.requests.ends_run() {
                return TaskEnd::Run(RunEnd::Stopped);
            }
            match step {
                Step::NextTask => return TaskEnd::Next,
                Step::NextTaskDespiteFailure => {
                    error!(task = %task.name, attempt, "task failed at every attempt; the run goes on without it");
                    return TaskEnd::Next;
                }
                Step::Halt => return TaskEnd::Run(halt(task, &ended)),
                Step::Exit => {
                    return TaskEnd::Run(RunEnd::Exit {
                        task: task.name.full(),
                    });
                }
                Step::GiveUp if ended.finished.drained && self.drained_before_a_job() => {
                    // It may have died of the signal that told it to take no job: no reason to halt.
                    return TaskEnd::Run(RunEnd::Stopped);
                }
                Step::GiveUp => {
                    error!(task = %task.name, attempt, "task failed at every attempt");
                    return TaskEnd::Run(RunEnd::Failed {
                        task: task.name.full(),
                    });
                }
                Step::TryAgain => {
                    if !self.wait(task, attempt, delay.unwrap_or_default()).await {
                        return TaskEnd::Run(RunEnd::Stopped);
                    }
                }
            }
        }
    }

    /// Waits before the next attempt. Returns whether there is to be one.
    async fn wait(&mut self, task: &Task, attempt: u32, delay: Duration) -> bool {
        self.enter(Phase::Backoff, Some(task), attempt, Some(delay));
        self.view.waiting(task, attempt, delay);
        let end = Instant::now() + delay;
        loop {
            if self.requests.ends_run() || self.drained_before_a_job() {
                self.view.stop_moving();
                return false;
            }
            tokio::select! {
                () = self.requests.changed() => {}
                () = tokio::time::sleep_until(end) => {
                    self.view.stop_moving();
                    return true;
                }
            }
        }
    }

    /// Whether no job is to be taken and there is none in this run to finish. A task that was told to
    /// take none took none, even if that is over by now: a run without a job would be taken for a
    /// host that finds none.
    fn drained_before_a_job(&self) -> bool {
        (self.requests.takes_no_job() || self.drained) && self.state.job.is_none()
    }
}

fn halt(task: &Task, ended: &Attempt) -> RunEnd {
    let reason = ended
        .report
        .value("reboot.reason")
        .map_or_else(|| format!("task `{}` asked for it", task.name), Into::into);
    RunEnd::Halt {
        task: task.name.full(),
        reason,
        pattern: ended.report.value("reboot.pattern").map(Into::into),
    }
}
