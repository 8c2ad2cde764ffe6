//! The local cloud: instances are `runner` processes on this machine.
//!
//! The cloud is not the provisioner. An instance is a directory and a supervising process of its own,
//! which lives on when the provisioner dies ([`instance`]); what was accepted is on disk before
//! anything is started (`disk`), so a launch that its caller did not survive is carried out by
//! whoever asks next. What is sold, at which price and how much of it, and what is taken back, is in
//! a file (`market`); which offerings a launch gets is decided in `allocate`.
//!
//! # How a launch happens once
//!
//! Under the cloud's lock: the answer is decided in full, ids included, and written into
//! `launches/TOKEN.open`. From then on the launch is accepted. Then each instance's directory is put
//! together beside its place and renamed into it, and its supervisor is started; a supervisor takes
//! the lock of its directory and starts only an instance that has no status, so a second one changes
//! nothing. At last the file is renamed, and the same answer is given to whoever asks again. Each of
//! these steps may be the last of a process; all of them may be done again.

mod allocate;
mod disk;
pub mod instance;
mod market;
mod stop;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use self::disk::{
    Accepted, Alive, HOLD, Home, IMAGE, INTENT, Meta, OWNER, POOL, Phase, Place, RunSettings,
    Status,
};
use self::market::MarketFile;
use super::{
    Cloud, CloudError, Finding, InstanceState, LaunchError, LaunchRequest, Launched,
    LaunchedInstance, Offering, OfferingKey, ShortReason, Sighting, TerminateError, UserData,
};
use crate::config::{Config, Isolation, LocalSettings};
use crate::ids::{ImageId, ImageName, InstanceId, InstanceType, IntentId, PoolName, Region};

pub use self::stop::{Stopped, stop_all};

/// An instance that has ended is shown for as long as EC2 shows it.
const SHOWN_AFTER_END: Duration = Duration::from_secs(60 * 60);

/// How long the answer to a launch is given again. A provisioner that was down for longer does not
/// send its launches again: demand is another by then.
const ANSWERS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A supervisor that was started has this long to take its lock before another one is started.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// When to ask again after a fault that a person, or time, may mend.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// What the local cloud must be told by `main`.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// This program.
    pub program: PathBuf,
    /// Its arguments before the directory of an instance: the hidden verb.
    pub arguments: Vec<OsString>,
    /// Directories with programs, as in the environment variable `PATH`.
    pub path: OsString,
    /// The clock.
    pub clock: fn() -> Timestamp,
}

/// Instances on this machine.
#[derive(Clone, Debug)]
pub struct LocalCloud {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    home: Home,
    state_dir: PathBuf,
    fleet: String,
    settings: LocalSettings,
    images: BTreeMap<ImageName, PathBuf>,
    /// Address of the provisioner as hosts know it.
    api: Api,
    surroundings: Surroundings,
    market: Mutex<MarketFile>,
    /// When this process started which supervisor.
    started: Mutex<BTreeMap<InstanceId, Timestamp>>,
}

#[derive(Clone, Debug)]
enum Api {
    Address(SocketAddr),
    Url(String),
}

impl LocalCloud {
    /// The cloud in the directory that `config` names. Nothing is touched before it is used.
    #[must_use]
    pub fn new(config: &Config, surroundings: Surroundings) -> Self {
        let state_dir = absolute(&config.provisioner.state_dir);
        let directory = config.local.directory.as_deref();
        let directory = directory.map_or_else(|| state_dir.join("local"), absolute);
        let images = config.images.iter().filter_map(|(name, image)| {
            Some((name.clone(), absolute(image.directory.as_deref()?)))
        });
        let api = match config.provisioner.url.as_str() {
            "" => Api::Address(config.provisioner.listen),
            url => Api::Url(url.to_owned()),
        };
        Self {
            shared: Arc::new(Shared {
                home: Home::new(directory),
                state_dir,
                fleet: config.provisioner.fleet.clone(),
                settings: config.local.clone(),
                images: images.collect(),
                api,
                surroundings,
                market: Mutex::new(MarketFile::new(config.local.market.as_deref())),
                started: Mutex::default(),
            }),
        }
    }

    /// The directory with its instances.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.shared.home.directory()
    }

    /// Does on a thread for it what waits for disks and locks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, String> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|error| format!("the local cloud failed: {error}"))
    }
}

impl Cloud for LocalCloud {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        let region = region.clone();
        self.blocking(move |shared| shared.instances(&region))
            .await
            .and_then(|seen| seen.map_err(|error| error.to_string()))
            .map_err(|message| CloudError::Unavailable { message })
    }

    async fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        let (region, types) = (region.clone(), types.clone());
        let offered = self
            .blocking(move |shared| shared.offerings(&region, &types))
            .await
            .map_err(|message| CloudError::Unavailable { message })?;
        offered.map_err(|message| CloudError::Refused {
            reason: ShortReason::Settings,
            message,
        })
    }

    async fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, LaunchError> {
        let (request, user_data) = (request.clone(), user_data.clone());
        self.blocking(move |shared| shared.launch(&request, &user_data))
            .await
            .unwrap_or_else(|message| Err(LaunchError::Unknown { message }))
    }

    async fn terminate(
        &self,
        _region: &Region,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        let wanted = ids.to_vec();
        let ended = self.blocking(move |shared| shared.terminate(&wanted)).await;
        ended.unwrap_or_else(|message| {
            let fault = |id: &InstanceId| {
                let error = TerminateError::Unavailable(message.clone());
                (id.clone(), Err(error))
            };
            ids.iter().map(fault).collect()
        })
    }

    async fn check(&self) -> Vec<Finding> {
        self.blocking(Shared::check)
            .await
            .unwrap_or_else(|message| {
                vec![Finding {
                    subject: "the local cloud".into(),
                    fault: Some(message),
                }]
            })
    }
}

/// Where a launch may be broken off in a test: the name of a step that was done.
#[cfg(not(test))]
fn step(_done: &str) {}
#[cfg(test)]
use tests::step;

impl Shared {
    fn now(&self) -> Timestamp {
        (self.surroundings.clock)()
    }

    // ------------------------------------------------------------------------------- launching

    fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, LaunchError> {
        let _lock = self.home.lock().map_err(|error| later(&error))?;
        let token = disk::token(&request.intent);
        if let Some(done) = self
            .home
            .done_launch(&token)
            .map_err(|error| later(&error))?
        {
            // What it launched may have ended, and been forgotten: it is not launched again.
            return done.answer(request);
        }
        let open = self
            .home
            .open_launch(&token)
            .map_err(|error| later(&error))?;
        let accepted = match open {
            Some(accepted) => accepted,
            None => {
                let accepted = self.decide(&token, request, user_data)?;
                step("decided");
                // Written or not, the same request does the same again.
                self.home
                    .accept(&token, &accepted)
                    .map_err(|error| unknown(&error))?;
                step("accepted");
                accepted
            }
        };
        let answer = accepted.answer(request)?;
        self.carry_out(&token, &accepted)
            .map_err(|error| unknown(&error))?;
        Ok(answer)
    }

    /// What a launch is answered. Nothing is written yet.
    fn decide(
        &self,
        token: &str,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Accepted, LaunchError> {
        let run = self.run_settings(request)?;
        let now = self.now();
        let shelf = {
            let used = self.used().map_err(|error| later(&error))?;
            let wanted = request.choices.iter();
            let wanted = wanted.map(|choice| choice.instance_type.clone()).collect();
            let mut market = self.market.lock().unwrap_or_else(PoisonError::into_inner);
            let market = market.market().map_err(|message| LaunchError::Throttled {
                retry_after: RETRY_AFTER,
                message,
            })?;
            market.shelf(&request.region, request.capacity_type, &wanted, &used, now)
        };
        let (picks, shortfalls) = allocate::choose(request, &shelf);
        let picks = picks.into_iter().enumerate();
        let instances: Vec<Meta> = picks
            .map(|(ordinal, pick)| Meta {
                id: disk::instance_id(token, ordinal),
                offering: pick.offering,
                price: pick.price,
                launched_at: now,
                image_id: request.image_id.clone(),
                tags: self.tags(request),
                run: run.clone(),
            })
            .collect();
        let launched = instances.iter().map(|instance| LaunchedInstance {
            id: instance.id.clone(),
            instance_type: instance.offering.instance_type.clone(),
            zone: instance.offering.zone.clone(),
        });
        Ok(Accepted {
            request: request.clone(),
            launched: Launched {
                instances: launched.collect(),
                shortfalls,
            },
            instances,
            user_data: user_data.json.clone(),
        })
    }

    fn tags(&self, request: &LaunchRequest) -> BTreeMap<String, String> {
        [
            (OWNER, self.fleet.as_str()),
            (INTENT, request.intent.as_str()),
            (POOL, request.pool.as_str()),
            (IMAGE, request.image.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn run_settings(&self, request: &LaunchRequest) -> Result<RunSettings, LaunchError> {
        let settings = &self.settings;
        let image = self.image(&request.image, Some(&request.image_id));
        let image = image.map_err(|message| refused(ShortReason::Image, message))?;
        let setting = |message| refused(ShortReason::Settings, message);
        let isolated = self.is_isolated().map_err(setting)?;
        let forward = if isolated {
            self.forward().map_err(setting)?
        } else {
            Vec::new()
        };
        let home = absolute(self.home.directory());
        Ok(RunSettings {
            runner: self.runner().map_err(setting)?,
            image,
            isolated,
            forward,
            writable: settings
                .writable
                .iter()
                .map(|path| absolute(path))
                .collect(),
            hidden: vec![self.state_dir.clone(), home],
            market: settings.market.as_deref().map(absolute),
            grace_period: settings.grace_period,
        })
    }

    /// Does what is still to be done of a launch that was accepted.
    fn carry_out(&self, token: &str, accepted: &Accepted) -> io::Result<()> {
        for meta in &accepted.instances {
            let place = self.home.place(&meta.id);
            if place.meta()?.is_none() {
                self.put_together(meta, &accepted.user_data)?;
                step("placed");
            }
            self.start_if_new(&place, &meta.id)?;
            step("started");
        }
        self.home.close_launch(token)?;
        step("closed");
        Ok(())
    }

    /// Makes the directory of an instance: all of it, or nothing.
    fn put_together(&self, meta: &Meta, user_data: &str) -> io::Result<()> {
        let staged = self.home.stage(&meta.id)?;
        staged.write_meta(meta)?;
        staged.write_user_data(user_data)?;
        let place = self.home.place(&meta.id);
        self.write_runner_configuration(&staged.host(), &place.host(), meta)?;
        step("staged");
        fs_err::rename(staged.directory(), place.directory())
    }

    /// Writes what `runner` reads: the image's configuration, over it the cloud's, over it that of
    /// `local.runner_config`.
    fn write_runner_configuration(
        &self,
        staged: &Path,
        host: &Path,
        meta: &Meta,
    ) -> io::Result<()> {
        let image = &meta.run.image;
        let base = match fs_err::read(image.join("runner.toml")) {
            Ok(base) => base,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        disk::write_whole(&staged.join("runner.toml"), &base)?;
        let drop_ins = staged.join("runner.d");
        disk::make_private(&drop_ins)?;
        let ours = cloud_configuration(host, meta);
        disk::write_whole(&drop_ins.join("50-cloud.toml"), ours.as_bytes())?;
        if let Some(more) = &self.settings.runner_config {
            disk::write_whole(&drop_ins.join("90-local.toml"), &fs_err::read(more)?)?;
        }
        Ok(())
    }

    /// Starts the supervisor of an instance that had none yet.
    fn start_if_new(&self, place: &Place, id: &InstanceId) -> io::Result<()> {
        if place.status()?.is_some() || place.alive()? != Alive::Nobody {
            return Ok(());
        }
        let now = self.now();
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = started
            .get(id)
            .is_none_or(|at| crate::world::elapsed(*at, now) >= START_PATIENCE);
        if is_due {
            self.start(place)?;
            started.insert(id.clone(), now);
        }
        Ok(())
    }

    fn start(&self, place: &Place) -> io::Result<()> {
        let log = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place.log())?
            .into_parts()
            .0;
        let mut command = tokio::process::Command::new(&self.surroundings.program);
        command
            .args(&self.surroundings.arguments)
            .arg(place.directory())
            .env_clear()
            .current_dir("/")
            // Not in the foreground of anybody's terminal: Ctrl-C there ends no instance.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Dropping the handle does not end it; the runtime reaps it when it has ended.
        drop(command.spawn().map_err(|error| {
            let program = self.surroundings.program.display();
            io::Error::new(error.kind(), format!("cannot start `{program}`: {error}"))
        })?);
        Ok(())
    }

    // -------------------------------------------------------------------------------- observing

    fn instances(&self, region: &Region) -> io::Result<Vec<Sighting>> {
        let _lock = self.home.lock()?;
        self.recover()?;
        let mut sightings = Vec::new();
        for place in self.home.places()? {
            let Some(meta) = place.meta()? else { continue };
            if meta.offering.region == *region && meta.tag(OWNER) == Some(&self.fleet) {
                sightings.push(sighting(&place, meta)?);
            }
        }
        sightings.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(sightings)
    }

    /// Carries out what was accepted by a process that died, notes which instances have ended without
    /// saying so, and forgets those that ended long ago.
    fn recover(&self) -> io::Result<()> {
        for token in self.home.open_launches()? {
            if let Some(accepted) = self.home.open_launch(&token)? {
                self.carry_out(&token, &accepted)?;
            }
        }
        let now = self.now();
        for place in self.home.places()? {
            self.look_after(&place, now)?;
        }
        let oldest =
            now.checked_sub(jiff::SignedDuration::try_from(ANSWERS_KEPT).unwrap_or_default());
        self.home.forget_launches(oldest.unwrap_or(Timestamp::MIN))
    }

    fn look_after(&self, place: &Place, now: Timestamp) -> io::Result<()> {
        let alive = place.alive()?;
        match place.status()? {
            None => {
                if let Some(meta) = place.meta()? {
                    self.start_if_new(place, &meta.id)?;
                }
            }
            Some(status) if status.phase == Phase::Ended => {
                let is_old = crate::world::elapsed(status.since, now) >= SHOWN_AFTER_END;
                if is_old && alive == Alive::Nobody {
                    disk::remove_all(place.directory())?;
                }
            }
            Some(_) if alive == Alive::Nobody => {
                // Read again: it may have said so between the two looks.
                let last = place.status()?;
                if last.is_some_and(|status| status.phase != Phase::Ended) {
                    place.write_status(&Status {
                        phase: Phase::Ended,
                        since: now,
                        reason: Some("its supervisor was killed".into()),
                        interrupted: false,
                    })?;
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Instances of each offering that count against its capacity.
    fn used(&self) -> io::Result<BTreeMap<OfferingKey, u32>> {
        self.recover()?;
        let mut used = BTreeMap::new();
        for place in self.home.places()? {
            let has_ended = place
                .status()?
                .is_some_and(|status| status.phase == Phase::Ended);
            if let Some(meta) = place.meta()?.filter(|_| !has_ended) {
                *used.entry(meta.offering).or_default() += 1;
            }
        }
        Ok(used)
    }

    fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, String> {
        let mut market = self.market.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(market.market()?.offerings(region, types, self.now()))
    }

    // ------------------------------------------------------------------------------- terminating

    fn terminate(&self, ids: &[InstanceId]) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        let lock = self.home.lock();
        let ended = |id: &InstanceId| match &lock {
            Ok(_) => self.terminate_one(id),
            Err(error) => Err(TerminateError::Unavailable(error.to_string())),
        };
        ids.iter().map(|id| (id.clone(), ended(id))).collect()
    }

    fn terminate_one(&self, id: &InstanceId) -> Result<(), TerminateError> {
        let unavailable = |error: io::Error| TerminateError::Unavailable(error.to_string());
        let place = self.home.place(id);
        let meta = place.meta().map_err(unavailable)?;
        let meta = meta.ok_or(TerminateError::Unknown)?;
        if let Some(owner) = hold(&place, &meta) {
            let message = format!("held by {owner}: remove `hold` from its directory first");
            return Err(TerminateError::Refused(message));
        }
        stop::end_one(&place, self.now()).map_err(unavailable)
    }

    // ---------------------------------------------------------------------------------- settings

    /// Directory of an image: the id, if it is a path; otherwise what the configuration says.
    fn image(&self, name: &ImageName, id: Option<&ImageId>) -> Result<PathBuf, String> {
        let given = id.map(ImageId::as_str).filter(|id| id.starts_with('/'));
        let configured = self.images.get(name).cloned();
        let Some(directory) = given.map(PathBuf::from).or(configured) else {
            return Err(format!(
                "image `{name}` has no directory: expected `images.{name}.directory` in the configuration"
            ));
        };
        let tasks = directory.join("tasks.d");
        if !tasks.is_dir() {
            return Err(format!(
                "image `{name}`: no directory `{}`: expected the tasks of the image there",
                tasks.display()
            ));
        }
        Ok(directory)
    }

    /// The `runner` program.
    fn runner(&self) -> Result<PathBuf, String> {
        let is_program = |path: &Path| {
            path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
        };
        if let Some(runner) = &self.settings.runner {
            let runner = absolute(runner);
            return if is_program(&runner) {
                Ok(runner)
            } else {
                Err(format!(
                    "`local.runner` is `{}`: expected a program there",
                    runner.display()
                ))
            };
        }
        let beside = self.surroundings.program.with_file_name("runner");
        let in_path = std::env::split_paths(&self.surroundings.path);
        let mut candidates = std::iter::once(beside).chain(in_path.map(|path| path.join("runner")));
        candidates.find(|path| is_program(path)).ok_or_else(|| {
            "no `runner` beside this program or in PATH: expected one; set `local.runner`".into()
        })
    }

    fn is_isolated(&self) -> Result<bool, String> {
        match self.settings.isolation {
            Isolation::None => Ok(false),
            Isolation::Auto => Ok(instance::probe().is_ok()),
            Isolation::Namespaces => instance::probe().map(|()| true).map_err(|error| {
                format!(
                    "`local.isolation` is `namespaces`, which this system refuses ({error}): run as root, or set it to `auto`"
                )
            }),
        }
    }

    /// Addresses an instance with a network of its own reaches: the provisioner's, and those that
    /// are configured.
    fn forward(&self) -> Result<Vec<SocketAddr>, String> {
        let mut forward = vec![self.api()?];
        for address in &self.settings.forward {
            if !forward.contains(address) {
                forward.push(*address);
            }
        }
        Ok(forward)
    }

    fn api(&self) -> Result<SocketAddr, String> {
        let address = match &self.api {
            Api::Address(address) => *address,
            Api::Url(url) => resolve(url)?,
        };
        let ip = match address.ip() {
            // Listening everywhere, it is reached here.
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        Ok(SocketAddr::new(ip, address.port()))
    }

    fn check(&self) -> Vec<Finding> {
        let finding = |subject: String, fault: Option<String>| Finding { subject, fault };
        let mut findings = vec![
            finding("the program `runner`".into(), self.runner().err()),
            finding("namespaces of instances".into(), self.is_isolated().err()),
            finding("addresses to forward".into(), self.forward().err()),
        ];
        if let Some(path) = &self.settings.market {
            let mut market = self.market.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = market.market().err();
            findings.push(finding(format!("the market `{}`", path.display()), fault));
        }
        for name in self.images.keys() {
            let fault = self.image(name, None).err().or_else(|| self.no_task(name));
            findings.push(finding(format!("image {name}"), fault));
        }
        findings
    }

    fn no_task(&self, image: &ImageName) -> Option<String> {
        let tasks = self.images.get(image)?.join("tasks.d");
        let is_task = |path: PathBuf| {
            path.is_file() && rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok()
        };
        let entries = fs_err::read_dir(&tasks).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        (!paths.any(is_task)).then(|| {
            format!(
                "`{}` has no executable file: expected at least one task",
                tasks.display()
            )
        })
    }
}

impl Accepted {
    /// The answer to `request`, which has the token of this launch.
    fn answer(&self, request: &LaunchRequest) -> Result<Launched, LaunchError> {
        if self.request == *request {
            return Ok(self.launched.clone());
        }
        Err(LaunchError::Mismatch {
            message: format!(
                "intent `{}` was sent before with other parameters",
                request.intent
            ),
        })
    }
}

/// Who holds an instance: a tag, or the file `hold` in its directory.
fn hold(place: &Place, meta: &Meta) -> Option<String> {
    meta.tag(HOLD).map(str::to_owned).or_else(|| place.hold())
}

fn sighting(place: &Place, meta: Meta) -> io::Result<Sighting> {
    let status = place.status()?;
    let state = status
        .as_ref()
        .map_or(InstanceState::Pending, |status| match status.phase {
            Phase::Starting => InstanceState::Pending,
            Phase::Running => InstanceState::Running,
            Phase::Stopping => InstanceState::Stopping,
            Phase::Ended => InstanceState::Terminated,
        });
    Ok(Sighting {
        state,
        state_reason: status.as_ref().and_then(|status| status.reason.clone()),
        interrupted: status.is_some_and(|status| status.interrupted),
        launched_at: meta.launched_at,
        intent: parsed(&meta, INTENT, IntentId::parse),
        pool: parsed(&meta, POOL, PoolName::parse),
        image: parsed(&meta, IMAGE, ImageName::parse),
        hold: hold(place, &meta),
        image_id: Some(meta.image_id),
        private_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        offering: meta.offering,
        id: meta.id,
    })
}

fn parsed<T, E>(meta: &Meta, tag: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
    meta.tag(tag).and_then(|value| parse(value).ok())
}

/// What the cloud says to `runner`.
fn cloud_configuration(host: &Path, meta: &Meta) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: PathBuf| quoted(&path.to_string_lossy());
    let tag = |name| quoted(meta.tag(name).unwrap_or_default());
    format!(
        "[runner]\n\
         tasks_dir = {}\n\
         state_dir = {}\n\
         # There is no machine to reboot: an instance that halts has ended.\n\
         halt_task = \"\"\n\
         \n\
         [fleet]\n\
         metadata = \"imds\"\n\
         \n\
         [telemetry]\n\
         pool = {}\n\
         image = {}\n\
         region = {}\n\
         instance_id = {}\n",
        path(meta.run.image.join("tasks.d")),
        path(host.join("state")),
        tag(POOL),
        tag(IMAGE),
        quoted(meta.offering.region.as_str()),
        quoted(meta.id.as_str()),
    )
}

fn resolve(url: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs as _;
    let expected = || format!("`provisioner.url` is `{url}`: expected `http://HOST:PORT`");
    let parsed = reqwest::Url::parse(url).map_err(|error| format!("{} ({error})", expected()))?;
    let host = parsed.host_str().ok_or_else(expected)?;
    let port = parsed.port_or_known_default().ok_or_else(expected)?;
    let host = host.trim_matches(['[', ']']);
    let found = (host, port).to_socket_addrs();
    let mut found = found.map_err(|error| format!("`{host}` of `provisioner.url`: {error}"))?;
    found
        .next()
        .ok_or_else(|| format!("`{host}` of `provisioner.url` has no address"))
}

fn absolute(path: &Path) -> PathBuf {
    // It fails for an empty path alone, which then names nothing either way.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn later(error: &io::Error) -> LaunchError {
    LaunchError::Throttled {
        retry_after: RETRY_AFTER,
        message: error.to_string(),
    }
}

fn unknown(error: &io::Error) -> LaunchError {
    LaunchError::Unknown {
        message: error.to_string(),
    }
}

fn refused(reason: ShortReason, message: String) -> LaunchError {
    LaunchError::Refused { reason, message }
}
