//! The loop: run after run, until enough of them are done, the host is to halt, or somebody asks to stop.

use std::fs::TryLockError;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farm_config::trust;
use farm_events::{Heartbeat, HostBooted, Identity, Outcome, Record, TaskFinished};
use farm_telemetry::Telemetry;
use jiff::Timestamp;
use nix::unistd::User;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sd_notify::NotifyState;
use sysinfo::System;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::child::{Cgroup, Supervisor, own_directory};
use crate::config::{self, BackoffSettings, Config};
use crate::exit::Exit;
use crate::fleet::{self, Fleet, SharedStatus};
use crate::history::History;
use crate::host::{Host, Surroundings, chain, create_private, millis};
use crate::journal::Journal;
use crate::recover;
use crate::run::RunEnd;
use crate::signals::{self, Stop};
use crate::state::{Phase, State, UNFINISHED};
use crate::tasks_dir::{self, Tasks};
use crate::view::View;

/// File that is locked as long as a `runner` works on a state directory.
const LOCK: &str = "runner.lock";

/// How long the lock may be held by nobody one can name: a child that a killed `runner` was about to
/// start has the file open until it becomes its program, and `status` looks whether it is held.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What was asked for on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Runs to make; `None` is for ever.
    pub runs: Option<u64>,
    /// Whether to halt the host after the last run.
    pub halt_after: bool,
}

/// Why the loop cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// Another `runner` works here.
    #[error(
        "another runner (pid {holder}) holds `{path}`: stop it, or give this one a `state_dir` of its own"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The configuration, the tasks or the state directory cannot be used; one line each.
    #[error("{}", .0.join("\n"))]
    Configuration(Vec<String>),
    /// The system refuses something every host has.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl StartFault {
    /// The exit code for it.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Locked { .. } => Exit::Locked,
            Self::Configuration(_) => Exit::Configuration,
            Self::System(_) => Exit::Failed,
        }
    }
}

/// Runs the tasks over and over. Must be called inside a [`tokio::task::LocalSet`].
///
/// # Errors
/// If it cannot begin; no task was run then.
pub async fn run(
    config: Config,
    options: Options,
    surroundings: Surroundings,
    view: View,
) -> Result<Exit, StartFault> {
    let tasks_dir = tasks_dir(&config, &surroundings);
    let tasks = tasks_dir::read(&tasks_dir, &config).map_err(|faults| lines(&faults))?;
    if tasks.order.is_empty() {
        return Err(StartFault::Configuration(vec![format!(
            "`{}` has no tasks: expected at least one executable file there",
            tasks_dir.display()
        )]));
    }
    say_once(&config, &tasks);

    let state_dir = config.runner.state_dir.clone();
    prepare(&state_dir)?;
    let _lock = lock(&state_dir).await?;
    tidy(&state_dir);
    let loaded =
        State::load(&state_dir).map_err(|error| StartFault::Configuration(vec![chain(&error)]))?;
    if let Some((path, error)) = &loaded.damaged {
        warn!(path = %path.display(), error, "the state of this host could not be understood: its counters begin anew");
    }
    let shared = Arc::new(Mutex::new(loaded.state.clone()));
    let fleet_status = SharedStatus::default();
    let (requests, wishes) = {
        let (shared, fleet) = (Arc::clone(&shared), Arc::clone(&fleet_status));
        signals::listen(move || describe(&shared, &fleet))?
    };
    let mut rng = config
        .runner
        .backoff
        .seed
        .map_or_else(rand::make_rng, StdRng::seed_from_u64);
    let around_fleet = fleet::Surroundings {
        state_dir: state_dir.clone(),
        boot_id: surroundings.boot_id.clone(),
        metadata_endpoint: surroundings.metadata_endpoint.clone(),
        clock: surroundings.clock,
        wishes,
        requests: requests.clone(),
        status: fleet_status,
        rng: StdRng::from_rng(&mut rng),
    };
    let mut fleet = Fleet::start(&config.fleet, around_fleet)
        .await
        .map_err(|fault| StartFault::Configuration(vec![fault]))?;
    fleet.has_new_instance();
    let identity = identity(&config, &fleet);
    let telemetry = Rc::new(start_telemetry(&config)?);
    let history = History::open(&state_dir)?;
    let journal = Journal::new(
        identity.clone(),
        surroundings.clock,
        history,
        Rc::clone(&telemetry),
    );
    let cgroup = own_cgroup(surroundings.nonce);
    let supervisor = Supervisor::new(cgroup)?;
    let beating = spawn_heartbeat(
        &config,
        identity.clone(),
        &telemetry,
        &shared,
        surroundings.clock,
    );
    drop(telemetry);
    let watchdog = spawn_watchdog();

    let mut host = Host {
        config,
        tasks_dir,
        state: loaded.state,
        journal,
        supervisor,
        requests,
        surroundings,
        rng,
        view,
        shared,
        user: User::from_uid(nix::unistd::geteuid()).ok().flatten(),
        state_fails: false,
        fleet,
        drained: false,
    };
    host.note_boot();
    host.end_previous_attempt();
    notify(&[NotifyState::Ready]);
    let exit = host.run_for(options, tasks, beating).await;
    notify(&[NotifyState::Stopping]);
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    Ok(exit)
}

impl Host {
    async fn run_for(mut self, options: Options, mut tasks: Tasks, mut beating: Beating) -> Exit {
        let mut done = 0;
        let exit = loop {
            if options.runs.is_some_and(|runs| done >= runs) {
                break if options.halt_after {
                    self.halt_after(&tasks, done).await
                } else {
                    Exit::Done
                };
            }
            if self.requests.stop() != Stop::No || self.requests.drain() {
                break Exit::Done;
            }
            if self.requests.take_reload() {
                beating = self.reload(beating).await;
            }
            if self.fleet.has_new_instance() {
                beating = self.identify_anew(beating).await;
            }
            self.record_news();
            if self.requests.is_held() {
                self.wait_while_held().await;
                continue;
            }
            tasks = match self.fresh_tasks().await {
                Ok(fresh) => fresh,
                Err(FreshFault::Stopped) => break Exit::Done,
                Err(FreshFault::Unusable) => {
                    self.halt(&tasks, "the tasks directory cannot be used", None)
                        .await;
                    break Exit::Failed;
                }
            };
            if self.requests.is_held() {
                continue;
            }
            // Nothing is awaited between this look and the beginning of the run.
            let end = self.run_once(&tasks).await;
            match end {
                RunEnd::Halt { .. } | RunEnd::Failed { .. } => {}
                RunEnd::Done | RunEnd::Exit { .. } | RunEnd::Stopped => self.fleet.run_ended(),
            }
            match end {
                RunEnd::Done => done += 1,
                // Whether to stop for good is asked above: the provisioner or the cloud may want
                // no more than that no job be taken.
                RunEnd::Stopped => {}
                RunEnd::Exit { task } => {
                    info!(task, "a task asked to stop");
                    break Exit::Exited;
                }
                RunEnd::Halt {
                    reason, pattern, ..
                } => {
                    break self.halt(&tasks, &reason, pattern.as_deref()).await.exit();
                }
                RunEnd::Failed { task } => {
                    self.halt_after_failure(&tasks, &task).await;
                    break Exit::Failed;
                }
            }
        };
        self.fleet.stop().await;
        self.record_news();
        self.state.cgroup = None;
        self.enter(Phase::Stopped, None, 0, None);
        self.view.stop_moving();
        beating.stop().await;
        if let Some(telemetry) = self.journal.into_telemetry() {
            telemetry.finish();
        }
        exit
    }

    /// Waits until a job may be taken again, or somebody asks to stop.
    async fn wait_while_held(&mut self) {
        self.enter(Phase::Held, None, 0, None);
        self.view.doing("no job is taken: see `runner status`");
        while self.requests.is_held() && self.requests.stop() == Stop::No && !self.requests.drain()
        {
            tokio::select! {
                () = self.requests.changed() => {}
                (time, event) = self.fleet.news() => self.journal.record_at(time, event),
            }
        }
        self.view.stop_moving();
        self.enter(Phase::BetweenRuns, None, 0, None);
    }

    /// It was learnt late which instance this is: from here on events say so.
    async fn identify_anew(&mut self, beating: Beating) -> Beating {
        beating.stop().await;
        let identity = identity(&self.config, &self.fleet);
        self.journal.identify(identity.clone());
        self.beat(identity)
    }

    fn beat(&self, identity: Identity) -> Beating {
        self.journal.telemetry().map_or(Beating(None), |telemetry| {
            spawn_heartbeat(
                &self.config,
                identity,
                telemetry,
                &self.shared,
                self.surroundings.clock,
            )
        })
    }

    async fn halt_after(&mut self, tasks: &Tasks, done: u64) -> Exit {
        let reason = format!("{done} runs are done");
        self.halt(tasks, &reason, None).await.exit()
    }

    /// Halts the host because a task failed for good, unless that happens too often.
    async fn halt_after_failure(&mut self, tasks: &Tasks, task: &str) {
        let budget = self.config.reboot.budget;
        let spent = self.state.reboots_within_an_hour(self.now()).len();
        if u32::try_from(spent).unwrap_or(u32::MAX) >= budget {
            self.journal.record(farm_events::RebootDecided {
                decision: "go_on".into(),
                reason: Some("budget_spent".into()),
                pattern: None,
                job: None,
                run_id: self.run_id(),
            });
            error!(
                task,
                budget,
                spent,
                "the host is not halted: it was rebooted too often within the hour; it stays up and takes no job"
            );
            return;
        }
        self.halt(
            tasks,
            &format!("task `{task}` failed at every attempt"),
            None,
        )
        .await;
    }

    /// The tasks as they are now. A directory in the middle of an update is tried again.
    async fn fresh_tasks(&mut self) -> Result<Tasks, FreshFault> {
        let mut failures = 0;
        let backoff = Backoff::new(BackoffSettings::default(), self.config.runner.backoff);
        loop {
            let faults = match tasks_dir::read(&self.tasks_dir, &self.config) {
                Ok(tasks) if !tasks.order.is_empty() => return Ok(tasks),
                Ok(_) => vec![format!(
                    "`{}` has no tasks any more",
                    self.tasks_dir.display()
                )],
                Err(faults) => faults.iter().map(ToString::to_string).collect(),
            };
            failures += 1;
            for fault in faults {
                error!(fault, "the tasks directory cannot be used");
            }
            if failures >= self.config.runner.max_attempts.get() {
                return Err(FreshFault::Unusable);
            }
            let end = tokio::time::Instant::now() + backoff.delay(failures, &mut self.rng);
            loop {
                if self.requests.stop() != Stop::No || self.requests.drain() {
                    return Err(FreshFault::Stopped);
                }
                tokio::select! {
                    () = self.requests.changed() => {}
                    () = tokio::time::sleep_until(end) => break,
                }
            }
        }
    }

    /// Takes over the configuration as it is now; one with faults is reported and left alone.
    async fn reload(&mut self, beating: Beating) -> Beating {
        let fresh = match &self.surroundings.config_path {
            Some(path) => config::load(path),
            None => config::load_default(),
        };
        let mut fresh = match fresh {
            Ok(fresh) => fresh,
            Err(faults) => {
                for fault in faults {
                    error!(%fault, "the new configuration has a fault; the old one stays");
                }
                return beating;
            }
        };
        if fresh.runner.state_dir != self.config.runner.state_dir {
            warn!("`runner.state_dir` changes only when runner starts anew");
            fresh
                .runner
                .state_dir
                .clone_from(&self.config.runner.state_dir);
        }
        if fresh.fleet != self.config.fleet {
            warn!("`[fleet]` changes only when runner starts anew");
            fresh.fleet.clone_from(&self.config.fleet);
        }
        self.tasks_dir = tasks_dir(&fresh, &self.surroundings);
        let same_sinks = fresh.table.get("telemetry") == self.config.table.get("telemetry");
        self.config = fresh;
        info!("the configuration was read again");
        if same_sinks {
            return beating;
        }
        beating.stop().await;
        let identity = identity(&self.config, &self.fleet);
        if let Err(fault) = self
            .journal
            .renew(identity.clone(), || start_telemetry(&self.config))
        {
            error!(%fault, "telemetry cannot start with the new configuration");
        }
        self.beat(identity)
    }

    /// Begins the counters of a new boot, if this is one.
    fn note_boot(&mut self) {
        let boot_id = self.surroundings.boot_id.clone();
        if self.state.boot_id == boot_id {
            return;
        }
        let previous = std::mem::replace(&mut self.state.boot_id, boot_id.clone());
        let now = self.now();
        let halt = self
            .state
            .halt
            .take()
            .filter(|halt| halt.boot_id == previous);
        if let Some(halt) = &halt {
            self.state.reboots.push(halt.at);
            self.state.reboots = self.state.reboots_within_an_hour(now);
        }
        self.state.runs_since_boot = 0;
        self.state.job = None;
        self.state.sweep = None;
        self.state.attempt = None;
        self.journal.record(HostBooted {
            boot_id,
            previous_boot_id: (!previous.is_empty()).then_some(previous),
            gap_ms: halt.as_ref().map(|halt| {
                u64::try_from(now.duration_since(halt.at).as_millis()).unwrap_or_default()
            }),
            halt_reason: halt.map(|halt| halt.reason),
        });
        self.save();
    }

    /// Ends the attempt that a `runner` before this one was killed in, and removes its cgroup.
    fn end_previous_attempt(&mut self) {
        let own = self.supervisor.cgroup();
        let own = own.map(|cgroup| cgroup.directory().to_owned());
        if let Some(previous) = std::mem::replace(&mut self.state.cgroup, own)
            && self.state.attempt.is_none()
        {
            // Gone already unless it was killed.
            fs_err::remove_dir(previous).ok();
        }
        let Some(attempt) = self.state.attempt.take() else {
            return;
        };
        let recovered = recover::end_attempt(&attempt);
        warn!(
            task = attempt.task,
            attempt = attempt.attempt,
            run_id = attempt.run_id,
            killed = recovered.killed,
            left = recovered.left,
            "the runner before this one was killed in the middle of a task; what it left was ended"
        );
        self.journal.record(TaskFinished {
            task: attempt.task,
            outcome: Outcome::Retry,
            run_id: attempt.run_id,
            attempt: attempt.attempt,
            max_attempts: attempt.max_attempts,
            exit_code: None,
            signal: None,
            timed_out: false,
            stopped: false,
            duration_ms: 0,
            delay_ms: None,
            output_bytes: 0,
            leftovers: u32::try_from(recovered.killed).unwrap_or(u32::MAX),
            error: Some("runner was killed in the middle of this attempt".into()),
        });
        self.save();
    }
}

fn tasks_dir(config: &Config, surroundings: &Surroundings) -> PathBuf {
    let directory = surroundings
        .tasks_dir
        .as_ref()
        .unwrap_or(&config.runner.tasks_dir);
    std::path::absolute(directory).unwrap_or_else(|_| directory.clone())
}

enum FreshFault {
    Stopped,
    Unusable,
}

fn lines(faults: &[impl ToString]) -> StartFault {
    StartFault::Configuration(faults.iter().map(ToString::to_string).collect())
}

fn say_once(config: &Config, tasks: &Tasks) {
    for (file, reason) in &tasks.skipped {
        info!(file, reason, "not a task");
    }
    for (table, meant) in config.likely_typos() {
        warn!("table `[{table}]` is left to the tasks; was `[{meant}]` meant?");
    }
}

fn prepare(state_dir: &Path) -> Result<(), StartFault> {
    let unusable = |message: String| StartFault::Configuration(vec![message]);
    create_private(state_dir).map_err(|error| {
        unusable(format!(
            "the state directory `{}` cannot be made: {error}",
            state_dir.display()
        ))
    })?;
    trust::check(state_dir).map_err(|distrust| unusable(distrust.to_string()))?;
    Ok(())
}

/// Takes the lock. It is held as long as the file is open, and no child inherits it.
async fn lock(state_dir: &Path) -> Result<fs_err::File, StartFault> {
    let path = state_dir.join(LOCK);
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| StartFault::Configuration(vec![error.to_string()]))?;
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.file().try_lock() {
            Ok(()) => {
                // Who holds it is only to help the reader: on a full disk it is held all the same.
                file.set_len(0).ok();
                file.write_all(format!("{}\n", std::process::id()).as_bytes())
                    .ok();
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {
                let holder = fs_err::read_to_string(&path).unwrap_or_default();
                let holder = holder.trim();
                let alive = !holder.is_empty() && Path::new("/proc").join(holder).exists();
                if alive || tokio::time::Instant::now() >= deadline {
                    return Err(StartFault::Locked {
                        path,
                        holder: holder.to_owned(),
                    });
                }
                tokio::time::sleep(LOCK_PATIENCE / 100).await;
            }
            Err(TryLockError::Error(error)) => return Err(StartFault::System(error)),
        }
    }
}

/// Removes the unfinished files of a `runner` that was killed.
fn tidy(state_dir: &Path) {
    let entries = |directory: &Path| {
        let entries = fs_err::read_dir(directory).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path()))
    };
    let unfinished = entries(state_dir).filter(|path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
    });
    for path in unfinished.chain(entries(&state_dir.join("reports"))) {
        // What cannot be removed does no harm.
        fs_err::remove_file(path).ok();
    }
}

/// The pid of the `runner` that works on this state directory, if there is one.
#[must_use]
pub fn lock_holder(state_dir: &Path) -> Option<u32> {
    let mut file = fs_err::File::open(state_dir.join(LOCK)).ok()?;
    match file.file().try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok()?;
            holder.trim().parse().ok()
        }
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn own_cgroup(nonce: u32) -> Option<Cgroup> {
    let parent = own_directory()?;
    // Not by the pid: two runners in pid namespaces of their own may have the same one.
    match Cgroup::create(&parent, &format!("runner-task-{nonce:08x}")) {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            info!(%error, "tasks have no cgroup of their own: they are ended as descendants instead");
            None
        }
    }
}

fn identity(config: &Config, fleet: &Fleet) -> Identity {
    let mut identity = config.telemetry.identity();
    fleet.identify(&mut identity);
    if identity.host.is_empty() {
        identity.host = host_name();
    }
    identity
}

/// The name of this host, without its domain.
#[must_use]
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn start_telemetry(config: &Config) -> Result<Telemetry, StartFault> {
    let spool = config.runner.state_dir.join("spool");
    Telemetry::start(&config.telemetry, &spool)
        .map_err(|error| StartFault::Configuration(vec![chain(&error)]))
}

fn describe(shared: &Mutex<State>, fleet: &SharedStatus) -> String {
    let text = |value: serde_json::Result<String>| value.unwrap_or_else(|error| error.to_string());
    let state = text(serde_json::to_string(
        &*shared.lock().unwrap_or_else(PoisonError::into_inner),
    ));
    let fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
    match &*fleet {
        None => state,
        Some(fleet) => format!("{state} fleet: {}", text(serde_json::to_string(fleet))),
    }
}

/// The heartbeat, if there is one.
struct Beating(Option<tokio::task::JoinHandle<()>>);

impl Beating {
    async fn stop(self) {
        if let Some(task) = self.0 {
            task.abort();
            // Ended by us: that is its only end.
            task.await.ok();
        }
    }
}

fn spawn_heartbeat(
    config: &Config,
    identity: Identity,
    telemetry: &Rc<Telemetry>,
    shared: &Arc<Mutex<State>>,
    clock: fn() -> Timestamp,
) -> Beating {
    let interval = config.telemetry.heartbeat;
    if !config.telemetry.has_sinks() || interval.is_zero() {
        return Beating(None);
    }
    let (telemetry, shared) = (Rc::clone(telemetry), Arc::clone(shared));
    Beating(Some(tokio::task::spawn_local(async move {
        let mut system = System::new().ok();
        loop {
            tokio::time::sleep(interval).await;
            let event = heartbeat(system.as_mut(), &shared, telemetry.stats().dropped).into();
            telemetry.record(&Record {
                time: clock(),
                identity: identity.clone(),
                event,
            });
        }
    })))
}

/// What the system does not tell is left at zero: a heartbeat is worth sending without it.
fn heartbeat(system: Option<&mut System>, shared: &Mutex<State>, spool_dropped: u64) -> Heartbeat {
    let memory_used_bytes = system.map_or(0, |system| {
        system.refresh_memory();
        system.used_memory()
    });
    let state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    Heartbeat {
        phase: state.activity.phase.as_str().into(),
        task: state.activity.task.clone(),
        runs_since_boot: state.runs_since_boot,
        uptime_ms: millis(Duration::from_secs(System::uptime().unwrap_or_default())),
        load_1m: System::load_average().map_or(0.0, |load| load.one),
        memory_used_bytes,
        spool_dropped,
    }
}

/// Tells systemd that the loop is alive, twice as often as it wants to know.
fn spawn_watchdog() -> Option<tokio::task::JoinHandle<()>> {
    let interval = sd_notify::watchdog_enabled()? / 2;
    Some(tokio::task::spawn_local(async move {
        loop {
            notify(&[NotifyState::Watchdog]);
            tokio::time::sleep(interval).await;
        }
    }))
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "systemd could not be told");
    }
}
