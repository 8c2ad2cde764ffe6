//! Halting the host: the tasks before it, the halt task, and what if the machine stays up.

use tracing::{error, info};

use crate::child::Ending;
use crate::exit::Exit;
use crate::host::Host;
use crate::signals::Stop;
use crate::state::{Halt, Phase};
use crate::tasks_dir::Tasks;
use crate::view::describe;

/// What became of a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// `runner` was asked to stop before the halt task: the host stays up.
    Stopped,
    /// The machine is going down: it told `runner` to stop.
    GoingDown,
    /// No halt task is configured: stopping is all that is to be done.
    NoTask,
    /// The halt task failed, is missing, or the machine is still up after it ended well.
    StillUp,
}

impl Halted {
    /// The exit code for it, unless a task that failed decides it.
    pub(crate) const fn exit(self) -> Exit {
        match self {
            Self::Stopped => Exit::Done,
            Self::GoingDown | Self::NoTask | Self::StillUp => Exit::Halted,
        }
    }
}

impl Host {
    /// Halts the host. Whatever comes of it, no next job may start.
    pub(crate) async fn halt(
        &mut self,
        tasks: &Tasks,
        reason: &str,
        pattern: Option<&str>,
    ) -> Halted {
        self.fleet.halting();
        self.run_before_reboot(&tasks.before_reboot).await;
        if self.requests.stop() != Stop::No {
            return Halted::Stopped;
        }
        self.state.halt = Some(Halt {
            at: self.now(),
            boot_id: self.surroundings.boot_id.clone(),
            reason: reason.to_owned(),
        });
        if let Some(pattern) = pattern {
            *self
                .state
                .reboots_by_pattern
                .entry(pattern.to_owned())
                .or_default() += 1;
        }
        self.enter(Phase::Halt, tasks.halt.as_ref(), 0, None);
        let name = self.config.runner.halt_task.clone();
        if name.is_empty() {
            info!(
                reason,
                "the host is to halt, and no halt task is configured"
            );
            return Halted::NoTask;
        }
        let Some(task) = &tasks.halt else {
            error!(
                reason,
                "the halt task `{name}` is not in `{}`: the host stays up and takes no job; halt it by hand",
                self.tasks_dir.display()
            );
            return Halted::StillUp;
        };
        info!(reason, task = %task.name, "halting the host");
        self.view.doing(&format!("halting: {reason}"));
        let mut task = task.clone();
        // No limit would be one that a halt task that hangs never reaches.
        task.timeout.get_or_insert(self.config.runner.halt_wait);
        let Some(ended) = self.attempt(Phase::Halt, &task, 1).await else {
            self.state.halt = None;
            return Halted::Stopped;
        };
        self.conclude(&task, 1, &ended, None).await;
        if self.requests.stop() != Stop::No {
            return Halted::GoingDown;
        }
        if ended.finished.ending != Ending::Exited(0) || ended.finished.cut.is_some() {
            let ending = describe(&ended.finished.ending, ended.finished.cut);
            error!(task = %task.name, ending, "the halt task failed: the host stays up and takes no job; halt it by hand");
            return Halted::StillUp;
        }
        self.wait_for_the_end().await
    }

    async fn wait_for_the_end(&mut self) -> Halted {
        let wait = self.config.runner.halt_wait;
        self.enter(Phase::Halt, None, 0, Some(wait));
        self.view.doing("waiting for the machine to go down");
        let end = tokio::time::Instant::now() + wait;
        loop {
            if self.requests.stop() != Stop::No {
                return Halted::GoingDown;
            }
            tokio::select! {
                () = self.requests.changed() => {}
                () = tokio::time::sleep_until(end) => {
                    self.view.stop_moving();
                    error!(?wait, "the halt task ended well, but the machine is still up; no job is taken");
                    return Halted::StillUp;
                }
            }
        }
    }
}
