//! One host at work: everything a run needs, and how one attempt of one task is made.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farm_events::{
    HookFailed, JobFinished, Outcome, RebootDecided, SweepFinished, TaskFinished, TaskStarted,
};
use jiff::Timestamp;
use nix::unistd::User;
use rand::rngs::StdRng;
use tracing::{debug, error, warn};

use crate::child::{Cut, Ending, Finished, Launch, Limits, Supervisor};
use crate::config::{CommandLine, Config};
use crate::fleet::{Fleet, taken};
use crate::hook::{HookArgument, HookResult};
use crate::journal::Journal;
use crate::reboot::JobResult;
use crate::report::Report;
use crate::signals::{Requests, Stop};
use crate::state::{Activity, Job, Phase, RunningAttempt, State};
use crate::step;
use crate::task::Task;
use crate::view::{View, describe};

/// Directories every task finds programs in, after the one `runner` is in.
const STANDARD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where tasks report that cannot do so in the state directory. The file is read through the
/// descriptor it was made with: what somebody puts in its place is never looked at.
const REPORTS_OF_OTHERS: &str = "/tmp";

/// What tells the tasks about the process they run under.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The `runner` program.
    pub program: PathBuf,
    /// The configuration as given on the command line.
    pub config_path: Option<PathBuf>,
    /// The tasks directory as given on the command line.
    pub tasks_dir: Option<PathBuf>,
    /// Kernel's id of this boot.
    pub boot_id: String,
    /// Makes the run ids of this process differ from those of any other.
    pub nonce: u32,
    /// Reads the clock.
    pub clock: fn() -> Timestamp,
    /// Address of the cloud's metadata service, if the environment has one.
    pub metadata_endpoint: Option<String>,
}

/// A host at work.
#[derive(Debug)]
pub struct Host {
    pub(crate) config: Config,
    pub(crate) tasks_dir: PathBuf,
    pub(crate) state: State,
    pub(crate) journal: Journal,
    pub(crate) supervisor: Supervisor,
    pub(crate) requests: Requests,
    pub(crate) surroundings: Surroundings,
    pub(crate) rng: StdRng,
    pub(crate) view: View,
    /// What goes on, for heartbeats and SIGUSR1.
    pub(crate) shared: Arc<Mutex<State>>,
    /// Who `runner` runs as.
    pub(crate) user: Option<User>,
    /// Whether the state could not be written the last time, which was said then.
    pub(crate) state_fails: bool,
    /// What goes on beside the runs.
    pub(crate) fleet: Fleet,
    /// Whether a task of this run was told to take no job.
    pub(crate) drained: bool,
}

/// An attempt that ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) finished: Finished,
    pub(crate) outcome: Outcome,
    pub(crate) report: Report,
}

impl Host {
    pub(crate) fn now(&self) -> Timestamp {
        (self.surroundings.clock)()
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.config.runner.state_dir
    }

    /// The id of the run in progress.
    pub(crate) fn run_id(&self) -> String {
        format!("{:06}-{:08x}", self.state.runs, self.surroundings.nonce)
    }

    /// Notes what goes on, in `state.json` and for whoever asks.
    pub(crate) fn enter(
        &mut self,
        phase: Phase,
        task: Option<&Task>,
        attempt: u32,
        wait: Option<Duration>,
    ) {
        let since = self.now();
        self.state.activity = Activity {
            phase,
            task: task.map(|task| task.name.full()),
            attempt,
            since,
            until: wait.and_then(|wait| since.checked_add(wait).ok()),
        };
        self.save();
    }

    /// Writes the state. A disk that is full is said once and does not stop the host.
    pub(crate) fn save(&mut self) {
        if let Some(telemetry) = self.journal.telemetry() {
            self.state.spool_dropped = telemetry.stats().dropped_ever;
        }
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&self.state);
        match self.state.save(&self.config.runner.state_dir) {
            Ok(()) => self.state_fails = false,
            Err(error) if !self.state_fails => {
                self.state_fails = true;
                warn!(error = %chain(&error), "the state of this host cannot be written");
            }
            Err(_) => {}
        }
    }

    /// One attempt, with the hook before it; none if `runner` was asked to stop meanwhile. The hook
    /// after it is for the caller, who knows the wait.
    pub(crate) async fn attempt(
        &mut self,
        phase: Phase,
        task: &Task,
        attempt: u32,
    ) -> Option<Attempt> {
        self.run_hook(task, attempt, HookResult::Running).await;
        let is_over = match phase {
            // A host that is being halted goes down one way or the other.
            Phase::Halt => self.requests.stop() != Stop::No,
            _ => self.requests.ends_run(),
        };
        if is_over {
            return None;
        }
        self.state.attempt = Some(RunningAttempt {
            boot_id: self.surroundings.boot_id.clone(),
            run_id: self.run_id(),
            task: task.name.full(),
            attempt,
            max_attempts: task.max_attempts.get(),
            cgroup: self
                .supervisor
                .cgroup()
                .map(|cgroup| cgroup.directory().to_owned()),
        });
        self.enter(phase, Some(task), attempt, None);
        self.journal.record(TaskStarted {
            task: task.name.full(),
            run_id: self.run_id(),
            attempt,
            max_attempts: task.max_attempts.get(),
        });
        self.view.attempt_started(task, attempt);

        let (finished, report) = self.run_child(task, attempt).await;
        self.state.attempt = None;
        if step::asked_to_halt_in_vain(&finished.ending, task.may_halt) {
            warn!(
                task = %task.name,
                "task ended with code 2, which halts the host only with `may_halt = true`: taken for a failure"
            );
        }
        if finished.leftovers > 0 {
            self.view.leftovers_ended(task, finished.leftovers);
        }
        let outcome = step::outcome(&finished.ending, finished.cut, task.may_halt);
        self.note(task, &report, &finished);
        Some(Attempt {
            finished,
            outcome,
            report,
        })
    }

    /// Records the end of an attempt and runs the hook after it. `delay` is the wait before the next one.
    pub(crate) async fn conclude(
        &mut self,
        task: &Task,
        attempt: u32,
        ended: &Attempt,
        delay: Option<Duration>,
    ) {
        let Attempt {
            finished, outcome, ..
        } = ended;
        self.journal.record(TaskFinished {
            task: task.name.full(),
            outcome: *outcome,
            run_id: self.run_id(),
            attempt,
            max_attempts: task.max_attempts.get(),
            exit_code: match finished.ending {
                Ending::Exited(code) => Some(code),
                Ending::Signalled(_) | Ending::NotStarted(_) => None,
            },
            signal: match finished.ending {
                Ending::Signalled(signal) => Some(signal),
                Ending::Exited(_) | Ending::NotStarted(_) => None,
            },
            timed_out: finished.cut == Some(Cut::TimedOut),
            stopped: matches!(finished.cut, Some(Cut::Stopped | Cut::Interrupted)),
            duration_ms: millis(finished.duration),
            delay_ms: delay.map(millis),
            output_bytes: finished.output.total,
            leftovers: finished.leftovers,
            error: match &finished.ending {
                Ending::NotStarted(error) => Some(error.clone()),
                Ending::Exited(_) | Ending::Signalled(_) => None,
            },
        });
        self.view
            .attempt_finished(task, attempt, finished, *outcome, delay);
        self.keep_output(task, finished);
        self.run_hook(task, attempt, (*outcome).into()).await;
    }

    async fn run_child(&mut self, task: &Task, attempt: u32) -> (Finished, Report) {
        let report_file = match self.report_file(task) {
            Ok(file) => file,
            Err(error) => {
                return (
                    not_started(format!("its report file cannot be made: {error}")),
                    Report::default(),
                );
            }
        };
        let launch = match self.launch(task, attempt, report_file.path()) {
            Ok(launch) => launch,
            Err(error) => return (not_started(error), Report::default()),
        };
        let limits = Limits {
            timeout: task.timeout,
            grace_period: task.grace_period,
            ended_by: Stop::Gracefully,
            drain_signal: task.drain_signal.map(|signal| signal.0),
        };
        let watching = self.fleet.is_on().then(|| {
            let trusted = task.user.is_none();
            self.fleet.watch_report(report_file.as_file(), trusted)
        });
        let finished = self
            .supervisor
            .run(&launch, limits, &mut self.requests)
            .await;
        drop(watching);
        self.drained |= finished.drained;
        let report =
            Report::read(report_file.as_file(), task.user.is_none()).unwrap_or_else(|error| {
                warn!(task = %task.name, %error, "the report of a task cannot be read");
                Report::default()
            });
        for refused in &report.refused {
            warn!(task = %task.name, refused, "a line of the task's report counts for nothing");
        }
        (finished, report)
    }

    /// An empty file the task reports through; only its user can open it.
    ///
    /// The state directory is closed to other users, so theirs is where they can reach it; so is
    /// every one if the disk of the state directory is full or read-only.
    fn report_file(&self, task: &Task) -> std::io::Result<tempfile::NamedTempFile> {
        let file_in = |directory: &Path| {
            tempfile::Builder::new()
                .prefix("runner-report-")
                .tempfile_in(directory)
        };
        let Some(user) = &task.user else {
            let own = self.state_dir().join("reports");
            return create_private(&own)
                .and_then(|()| file_in(&own))
                .or_else(|_| file_in(Path::new(REPORTS_OF_OTHERS)));
        };
        let file = file_in(Path::new(REPORTS_OF_OTHERS))?;
        if let Some(user) = User::from_name(user)? {
            nix::unistd::fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        Ok(file)
    }

    fn launch(&self, task: &Task, attempt: u32, report_file: &Path) -> Result<Launch, String> {
        let other = match &task.user {
            Some(name) => Some(
                User::from_name(name)
                    .map_err(|error| error.to_string())?
                    .ok_or_else(|| format!("this host has no user `{name}`"))?,
            ),
            None => None,
        };
        let mut env = self.base_environment(other.as_ref().or(self.user.as_ref()));
        env.extend(self.task_environment(task, attempt, report_file));
        let file: OsString = task.path.clone().into();
        let (program, arguments) = match &task.interpreter {
            None => (file, Vec::new()),
            Some(CommandLine { program, arguments }) => {
                let arguments = arguments.iter().map(OsString::from).chain([file]).collect();
                (program.into(), arguments)
            }
        };
        Ok(Launch {
            program,
            arguments,
            env,
            directory: "/".into(),
            user: other.map(|user| (user.name, user.gid.as_raw())),
        })
    }

    /// The environment of every child, the same whatever started `runner`.
    fn base_environment(&self, user: Option<&User>) -> Vec<(OsString, OsString)> {
        let beside = self
            .surroundings
            .program
            .parent()
            .unwrap_or(Path::new("/usr/bin"));
        let mut env: Vec<(OsString, OsString)> = vec![
            (
                "PATH".into(),
                format!("{}:{STANDARD_PATH}", beside.display()).into(),
            ),
            ("LANG".into(), "C.UTF-8".into()),
        ];
        if let Some(user) = user {
            env.push(("HOME".into(), user.dir.clone().into()));
            env.push(("USER".into(), user.name.clone().into()));
            env.push(("LOGNAME".into(), user.name.clone().into()));
            env.push(("SHELL".into(), "/bin/sh".into()));
        }
        env
    }

    fn task_environment(
        &self,
        task: &Task,
        attempt: u32,
        report_file: &Path,
    ) -> Vec<(OsString, OsString)> {
        let own = task
            .env
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        own.chain([
            ("RUNNER_CONFIG_CMD".into(), self.config_command().into()),
            ("RUNNER_OUTPUT".into(), report_file.into()),
            ("RUNNER_TASK".into(), task.name.file().to_owned()),
            ("RUNNER_TASKS_DIR".into(), self.tasks_dir.clone().into()),
            ("RUNNER_RUN_ID".into(), self.run_id().into()),
            ("RUNNER_ATTEMPT".into(), attempt.to_string().into()),
            (
                "RUNNER_MAX_ATTEMPTS".into(),
                task.max_attempts.to_string().into(),
            ),
            (
                "RUNNER_RUNS_SINCE_BOOT".into(),
                self.state.runs_since_boot.to_string().into(),
            ),
            ("RUNNER_STATE_DIR".into(), self.state_dir().into()),
        ])
        .collect()
    }

    /// What a task types, with `-g section.key` behind it, to read the configuration.
    fn config_command(&self) -> String {
        let program = self.surroundings.program.display();
        match &self.surroundings.config_path {
            Some(path) => format!("{program} --config {}", path.display()),
            None => program.to_string(),
        }
    }

    /// Takes in what a task reported.
    fn note(&mut self, task: &Task, report: &Report, finished: &Finished) {
        let run_id = self.run_id();
        self.record_news();
        self.note_job(task, report, finished);
        if let Some(verdict) = report.value("sweep.verdict") {
            self.state.sweep = Some(verdict.into());
            self.journal.record(SweepFinished {
                verdict: verdict.into(),
                leftovers: report.number("sweep.leftovers"),
                terminated: report.number("sweep.terminated"),
                killed: report.number("sweep.killed"),
                survived: report.number("sweep.survived"),
                duration_ms: report.number("sweep.duration_ms"),
                run_id: run_id.clone(),
            });
        }
        if let Some(decision) = report.value("reboot.decision") {
            self.view
                .reboot_decided(decision, report.value("reboot.reason"));
            self.journal.record(RebootDecided {
                decision: decision.into(),
                reason: report.value("reboot.reason").map(Into::into),
                pattern: report.value("reboot.pattern").map(Into::into),
                job: report.value("reboot.job").map(Into::into),
                run_id,
            });
        }
    }

    /// Takes in what a task reported of its job.
    ///
    /// A job that was ended because the cloud takes the instance back is lost, whether its task still
    /// said so or not; one that the task says ended otherwise ended in time.
    fn note_job(&mut self, task: &Task, report: &Report, finished: &Finished) {
        let interruption = (finished.cut == Some(Cut::Interrupted))
            .then(|| self.fleet.notice())
            .flatten();
        let said = report.value("job.result");
        let is_lost = interruption.is_some()
            && said.is_none_or(|result| result == JobResult::Interrupted.as_str());
        let ended = report.value("job.name").is_some();
        let Some(job) = taken(report).filter(|_| ended || is_lost) else {
            if is_lost && task.drain_signal.is_some() {
                warn!(task = %task.name, "a job may be lost: the task did not say which one it had taken");
            }
            return;
        };
        let result = match said {
            Some(result) => result,
            None if is_lost => JobResult::Interrupted.as_str(),
            None => "unknown",
        };
        self.state.jobs += 1;
        self.view.job_finished(&job.name, result);
        self.state.job = Some(Job {
            name: job.name.clone(),
            result: result.to_owned(),
            run_id: self.run_id(),
        });
        self.journal.record(JobFinished {
            job: job.name.clone(),
            result: result.to_owned(),
            task: task.name.full(),
            id: Some(job.id.clone()).filter(|id| !id.is_empty()),
            url: report.value("job.url").map(Into::into),
            run_id: self.run_id(),
            duration_ms: millis(finished.duration),
            interruption: interruption.filter(|_| is_lost),
        });
        if is_lost {
            error!(
                job = job.name,
                id = job.id,
                "the job is lost: the cloud takes the instance back"
            );
            self.fleet.job_lost(job);
        } else {
            self.fleet.job_taken(job);
        }
    }

    /// Records what the fleet learnt meanwhile.
    pub(crate) fn record_news(&mut self) {
        while let Some((time, event)) = self.fleet.next_news() {
            self.journal.record_at(time, event);
        }
    }

    /// Keeps the end of what a task wrote last, for `runner history --output`.
    fn keep_output(&self, task: &Task, finished: &Finished) {
        if finished.output.total == 0 {
            return;
        }
        let directory = self.state_dir().join("output");
        let kept = create_private(&directory)
            .and_then(|()| fs_err::write(directory.join(task.name.file()), &finished.output.tail));
        if let Err(error) = kept {
            debug!(%error, "the output of a task cannot be kept");
        }
    }

    /// Runs the external hook, if there is one. Whatever it does changes nothing.
    async fn run_hook(&mut self, task: &Task, attempt: u32, result: HookResult) {
        let Some(hook) = self.config.runner.task_hook.clone() else {
            return;
        };
        self.enter(Phase::Hook, Some(task), attempt, None);
        let argument = HookArgument {
            task: task.name.full(),
            try_num: attempt,
            max_retries: task.max_attempts.get(),
            result,
        };
        let argument = serde_json::to_string(&argument).expect("text and numbers are always JSON");
        let mut env = self.base_environment(self.user.as_ref());
        env.extend([
            ("RUNNER_CONFIG_CMD".into(), self.config_command().into()),
            ("RUNNER_RUN_ID".into(), self.run_id().into()),
            ("RUNNER_STATE_DIR".into(), self.state_dir().into()),
        ]);
        let launch = Launch {
            program: hook.program.into(),
            arguments: hook
                .arguments
                .into_iter()
                .chain([argument])
                .map(Into::into)
                .collect(),
            env,
            directory: "/".into(),
            user: None,
        };
        let limits = Limits {
            timeout: Some(self.config.runner.hook_timeout),
            grace_period: self.config.runner.grace_period,
            ended_by: Stop::AtOnce,
            drain_signal: None,
        };
        let finished = self
            .supervisor
            .run(&launch, limits, &mut self.requests)
            .await;
        if finished.ending != Ending::Exited(0) && finished.cut != Some(Cut::Stopped) {
            let error = describe(&finished.ending, finished.cut);
            warn!(task = %task.name, error, "the hook failed, which changes nothing");
            self.journal.record(HookFailed {
                task: task.name.full(),
                error,
                run_id: self.run_id(),
            });
        }
    }
}

/// Makes a directory that only its owner can look into, if it is not there.
pub(crate) fn create_private(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn not_started(error: String) -> Finished {
    Finished {
        ending: Ending::NotStarted(error),
        cut: None,
        duration: Duration::ZERO,
        output: crate::child::Output::default(),
        leftovers: 0,
        stuck: Vec::new(),
        drained: false,
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error and all that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
