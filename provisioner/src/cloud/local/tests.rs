//! The local cloud with real processes. This test program is also the program its supervisors and
//! first processes are: they run [`instance_process`] alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::*;
use crate::cloud::{Allocation, CapacityType, Choice};
use crate::config::ImageSettings;
use crate::ids::{ImageId, Zone};
use crate::money::Money;

/// A busy machine is given time; a quiet one needs some tens of milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Stands in for `runner`: starts a process that leaves its session, group and parent, and ends when
/// it is asked to.
const RUNNER: &str = r#"#!/bin/sh
host=${3%/runner.toml}
trap 'echo stopped >"$host/stopped"; exit 0' TERM
(setsid sh -c 'trap "" TERM HUP; while :; do sleep 1000; done' "$host" &)
echo "$AWS_EC2_METADATA_SERVICE_ENDPOINT" >"$host/up"
while :; do sleep 1000 & wait; done
"#;

/// One that does not end when it is asked to.
const DEAF_RUNNER: &str = r#"#!/bin/sh
trap '' TERM
echo >"${3%/runner.toml}/up"
while :; do sleep 1000; done
"#;

/// One that ends by itself.
const FAILING_RUNNER: &str = "#!/bin/sh\nexit 7\n";

/// Where this process is to be killed: a step, and how often it was passed before.
static FAULT: OnceLock<(String, AtomicUsize)> = OnceLock::new();

pub(super) fn step(done: &str) {
    if let Some((fatal, left)) = FAULT.get()
        && fatal == done
        && left.fetch_sub(1, Ordering::SeqCst) == 0
    {
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the cloud's clock is the real one"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Words of the command line behind the name of an entry.
fn words_after(entry: &str) -> Vec<String> {
    let mut words = std::env::args().skip_while(move |word| !word.ends_with(entry));
    words.next();
    words.collect()
}

fn entry(name: &str) -> Vec<OsString> {
    let path = format!("cloud::local::tests::{name}");
    ["--ignored", "--exact", "--nocapture", &path]
        .map(OsString::from)
        .into()
}

#[test]
#[ignore = "not a test: a process of an instance"]
fn instance_process() {
    let words = words_after("instance_process");
    let [directory, part @ ..] = words.as_slice() else {
        return;
    };
    let part = if part == ["first"] {
        instance::Part::First
    } else {
        instance::Part::Supervisor
    };
    let directory = directory.into();
    let exit = instance::run(&instance::Args { directory, part }, now);
    assert_eq!(exit, crate::exit::Exit::Done);
}

#[test]
#[ignore = "not a test: a provisioner that launches and is killed at a step"]
fn launching_process() {
    let words = words_after("launching_process");
    let [root, isolation, step, passes] = words.as_slice() else {
        return;
    };
    FAULT
        .set((step.clone(), AtomicUsize::new(passes.parse().unwrap())))
        .unwrap();
    let isolation = match isolation.as_str() {
        "none" => Isolation::None,
        _ => Isolation::Namespaces,
    };
    let cloud = cloud(Path::new(root), isolation, |_| {});
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(cloud.launch(&request(Path::new(root), "crash-1-0", 3), &user_data()))
        .unwrap();
}

fn region() -> Region {
    market::default_region()
}

fn user_data() -> UserData {
    UserData {
        json: r#"{"farmhand":1}"#.into(),
    }
}

fn request(root: &Path, intent: &str, count: u32) -> LaunchRequest {
    let image = root.join("image");
    LaunchRequest {
        intent: IntentId::parse(intent).unwrap(),
        pool: PoolName::parse("linux64").unwrap(),
        image: ImageName::parse("base").unwrap(),
        image_id: ImageId::parse(image.to_str().unwrap()).unwrap(),
        region: region(),
        capacity_type: CapacityType::Spot,
        count,
        choices: vec![Choice {
            instance_type: InstanceType::parse("small").unwrap(),
            zone: Zone::parse("local-a").unwrap(),
            price: Money::from_micros(10_000),
        }],
        allocation: Allocation::LowestPrice,
    }
}

fn cloud(root: &Path, isolation: Isolation, more: impl FnOnce(&mut Config)) -> LocalCloud {
    let mut config = Config::default();
    config.provisioner.state_dir = root.join("state");
    config.local.isolation = isolation;
    config.local.runner = Some(root.join("runner"));
    let image = ImageSettings {
        directory: Some(root.join("image")),
        ..ImageSettings::default()
    };
    config
        .images
        .insert(ImageName::parse("base").unwrap(), image);
    more(&mut config);
    LocalCloud::new(
        &config,
        Surroundings {
            program: std::env::current_exe().unwrap(),
            arguments: entry("instance_process"),
            path: OsString::new(),
            clock: now,
        },
    )
}

/// A directory with an image, and a cloud in it, of which nothing is left afterwards.
struct Farm {
    root: TempDir,
    cloud: LocalCloud,
}

impl Farm {
    fn new(isolation: Isolation) -> Self {
        Self::with(isolation, |_| {})
    }

    fn with(isolation: Isolation, more: impl FnOnce(&mut Config)) -> Self {
        let root = TempDir::with_prefix("farm-local-").unwrap();
        let tasks = root.path().join("image/tasks.d");
        fs_err::create_dir_all(&tasks).unwrap();
        write_program(&tasks.join("10-task"), "#!/bin/sh\n");
        write_program(&root.path().join("runner"), RUNNER);
        let cloud = cloud(root.path(), isolation, more);
        Self { root, cloud }
    }

    /// One on which instances have namespaces; none where that is not allowed.
    fn isolated() -> Option<Self> {
        isolated(|_| {})
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    async fn launch(&self, intent: &str, count: u32) -> Launched {
        let request = request(self.path(), intent, count);
        self.cloud.launch(&request, &user_data()).await.unwrap()
    }

    async fn seen(&self) -> Vec<Sighting> {
        self.cloud.instances(&region()).await.unwrap()
    }

    fn host(&self, id: &InstanceId) -> PathBuf {
        self.cloud.shared.home.place(id).host()
    }

    /// Waits until every instance is in `state`.
    async fn all(&self, state: InstanceState) -> Vec<Sighting> {
        until(&format!("all to be {state:?}"), async || {
            let seen = self.seen().await;
            if seen.iter().all(|instance| instance.state == state) {
                Ok(seen)
            } else {
                Err(format!("{seen:#?} {}", self.logs()))
            }
        })
        .await
    }

    /// Waits until the stand-in for `runner` is at work everywhere.
    async fn up(&self, launched: &Launched) {
        self.all(InstanceState::Running).await;
        for instance in &launched.instances {
            let up = self.host(&instance.id).join("up");
            until("`runner` to be up", async || exists(&up)).await;
        }
    }

    fn logs(&self) -> String {
        let places = self.cloud.shared.home.places().unwrap();
        let logs = places
            .iter()
            .map(|place| fs_err::read_to_string(place.log()));
        logs.map(Result::unwrap_or_default).collect()
    }

    async fn terminate(
        &self,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        self.cloud.terminate(&region(), ids).await
    }
}

fn isolated(more: impl FnOnce(&mut Config)) -> Option<Farm> {
    match instance::probe() {
        Ok(()) => Some(Farm::with(Isolation::Namespaces, more)),
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the test harness captures it")]
            {
                eprintln!("skipped: namespaces are not allowed here ({error}); run as root");
            }
            None
        }
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        let directory = self.cloud.directory().to_owned();
        let stopping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(stop_all(&directory, Duration::from_secs(10), now))
        });
        let stopped = stopping.join();
        if !std::thread::panicking() {
            assert_eq!(stopped.unwrap().unwrap().left, 0);
        }
    }
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::write(path, text).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn exists(path: &Path) -> Result<(), String> {
    if path.exists() {
        Ok(())
    } else {
        Err(format!("no `{}`", path.display()))
    }
}

async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(why) if tokio::time::Instant::now() > deadline => {
                panic!("waited for {what} in vain: {why}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Command lines of the machine's processes that name `path`.
fn processes(path: &Path) -> Vec<(Pid, String)> {
    let wanted = path.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        let words = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(wanted) {
            found.push((pid, words));
        }
    }
    found
}

async fn gone(path: &Path) {
    until("every process to be gone", async || {
        let left = processes(path);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
}

fn ids(launched: &Launched) -> Vec<InstanceId> {
    launched
        .instances
        .iter()
        .map(|instance| instance.id.clone())
        .collect()
}

async fn launched_instances_are_seen_and_run(farm: Farm) {
    let launched = farm.launch("s-1-0", 5).await;
    assert_eq!(
        (launched.instances.len(), launched.shortfalls.len()),
        (5, 0)
    );
    let mut wanted = ids(&launched);
    wanted.sort();
    let seen: Vec<_> = farm.seen().await.into_iter().map(|seen| seen.id).collect();
    assert_eq!(seen, wanted);
    farm.up(&launched).await;
    let seen = farm.seen().await;
    assert!(
        seen.iter()
            .all(|seen| seen.intent == Some(IntentId::parse("s-1-0").unwrap()))
    );
    assert!(
        seen.iter()
            .all(|seen| seen.pool == Some(PoolName::parse("linux64").unwrap()))
    );
    assert!(
        farm.cloud
            .instances(&Region::parse("elsewhere").unwrap())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn plain_instances_are_seen_and_run() {
    launched_instances_are_seen_and_run(Farm::new(Isolation::None)).await;
}

#[tokio::test]
async fn isolated_instances_are_seen_and_run() {
    if let Some(farm) = Farm::isolated() {
        launched_instances_are_seen_and_run(farm).await;
    }
}

async fn ending_one_ends_all_of_it_and_nothing_else(farm: Farm) {
    let launched = farm.launch("s-1-0", 2).await;
    farm.up(&launched).await;
    let ids = ids(&launched);
    let (ended, kept) = (farm.host(&ids[0]), farm.host(&ids[1]));
    // `runner` and what it left to nobody.
    assert!(processes(&kept).len() >= 2, "{:?}", processes(&kept));
    let mut bystander = Command::new("sh")
        .args(["-c", "read word"])
        .arg(ended.with_extension("of-somebody-else"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(farm.terminate(&ids[..1]).await[&ids[0]], Ok(()));
    until("the instance to have ended", async || {
        let seen = farm.seen().await;
        let seen = seen.iter().find(|seen| seen.id == ids[0]).unwrap();
        if seen.state == InstanceState::Terminated {
            assert_eq!(seen.state_reason.as_deref(), Some("ended as asked"));
            assert!(!seen.interrupted);
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    exists(&ended.join("stopped")).expect("`runner` was asked before it was ended");
    let left = processes(ended.parent().unwrap());
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(
        left[0].0.as_raw_nonzero().get().unsigned_abs(),
        bystander.id()
    );
    assert!(processes(&kept).len() >= 2);
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    // Asked again, and of one that never was.
    let never = InstanceId::parse("i-0123").unwrap();
    let answers = farm.terminate(&[ids[0].clone(), never.clone()]).await;
    assert_eq!(answers[&ids[0]], Ok(()));
    assert_eq!(answers[&never], Err(TerminateError::Unknown));
}

#[tokio::test]
async fn the_end_of_a_plain_instance_is_the_end_of_all_it_started() {
    ending_one_ends_all_of_it_and_nothing_else(Farm::new(Isolation::None)).await;
}

#[tokio::test]
async fn the_end_of_an_isolated_instance_is_the_end_of_all_it_started() {
    if let Some(farm) = Farm::isolated() {
        ending_one_ends_all_of_it_and_nothing_else(farm).await;
    }
}

#[tokio::test]
async fn the_same_intent_launches_once_and_with_other_parameters_not_at_all() {
    let farm = Farm::new(Isolation::None);
    let first = farm.launch("s-1-0", 2).await;
    assert_eq!(farm.launch("s-1-0", 2).await, first);
    assert_eq!(farm.seen().await.len(), 2);
    let other = request(farm.path(), "s-1-0", 3);
    let refused = farm.cloud.launch(&other, &user_data()).await;
    assert!(
        matches!(refused, Err(LaunchError::Mismatch { .. })),
        "{refused:?}"
    );
    assert_eq!(farm.seen().await.len(), 2);
}

#[tokio::test]
async fn a_launch_whose_process_is_killed_at_any_step_happens_once() {
    let steps = [
        "decided", "accepted", "staged", "placed", "started", "closed",
    ];
    for step in steps {
        for passes in ["0", "2"] {
            let farm = Farm::new(Isolation::None);
            let killed = Command::new(std::env::current_exe().unwrap())
                .args(entry("launching_process"))
                .arg(farm.path())
                .args(["none", step, passes])
                .output()
                .unwrap();
            let is_per_launch = ["decided", "accepted", "closed"].contains(&step);
            if passes != "0" && is_per_launch {
                assert!(killed.status.success(), "{step} happens once: {killed:?}");
                continue;
            }
            use std::os::unix::process::ExitStatusExt as _;
            assert_eq!(killed.status.signal(), Some(9), "{step}: {killed:?}");
            // Without the caller, what was accepted happens; with it, the same.
            if step != "decided" {
                assert_eq!(farm.seen().await.len(), 3, "{step} {passes}");
            }
            let launched = farm.launch("crash-1-0", 3).await;
            assert_eq!(launched.instances.len(), 3);
            farm.up(&launched).await;
            let seen = farm.all(InstanceState::Running).await;
            assert_eq!(seen.len(), 3, "{step} {passes}");
            for instance in &launched.instances {
                let host = farm.host(&instance.id);
                let runners = processes(&host.join("runner.toml"));
                assert_eq!(runners.len(), 1, "{step} {passes}: {runners:?}");
            }
        }
    }
}

async fn a_supervisor_that_is_killed_takes_its_instance_along(farm: Farm) {
    let launched = farm.launch("s-1-0", 1).await;
    farm.up(&launched).await;
    let id = &launched.instances[0].id;
    let place = farm.cloud.shared.home.place(id);
    let Alive::Supervisor(pid) = place.alive().unwrap() else {
        panic!("the supervisor lives");
    };
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    gone(place.directory()).await;
    let seen = farm.all(InstanceState::Terminated).await;
    assert_eq!(
        seen[0].state_reason.as_deref(),
        Some("its supervisor was killed")
    );
    assert!(!seen[0].interrupted);
}

#[tokio::test]
async fn a_plain_instance_does_not_outlive_its_supervisor() {
    a_supervisor_that_is_killed_takes_its_instance_along(Farm::new(Isolation::None)).await;
}

#[tokio::test]
async fn an_isolated_instance_does_not_outlive_its_supervisor() {
    if let Some(farm) = Farm::isolated() {
        a_supervisor_that_is_killed_takes_its_instance_along(farm).await;
    }
}

async fn what_does_not_end_when_asked_is_killed(farm: Farm) {
    write_program(&farm.path().join("runner"), DEAF_RUNNER);
    let launched = farm.launch("s-1-0", 1).await;
    farm.up(&launched).await;
    let ids = ids(&launched);
    assert_eq!(farm.terminate(&ids).await[&ids[0]], Ok(()));
    farm.all(InstanceState::Terminated).await;
    let left = processes(&farm.host(&ids[0]));
    assert!(left.is_empty(), "{left:?}");
}

fn impatient(config: &mut Config) {
    config.local.grace_period = Duration::from_millis(100);
}

#[tokio::test]
async fn a_plain_instance_that_does_not_end_when_asked_is_killed() {
    what_does_not_end_when_asked_is_killed(Farm::with(Isolation::None, impatient)).await;
}

#[tokio::test]
async fn an_isolated_instance_that_does_not_end_when_asked_is_killed() {
    if let Some(farm) = isolated(impatient) {
        what_does_not_end_when_asked_is_killed(farm).await;
    }
}

#[tokio::test]
async fn an_instance_ends_with_its_runner_and_says_how() {
    let farm = Farm::new(Isolation::None);
    write_program(&farm.path().join("runner"), FAILING_RUNNER);
    farm.launch("s-1-0", 1).await;
    let seen = farm.all(InstanceState::Terminated).await;
    assert_eq!(
        seen[0].state_reason.as_deref(),
        Some("`runner` ended with exit code 7")
    );
}
