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
echo started >>"$host/starts"
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

/// Stands in for `runner` where it matters what an instance sees: asks, looks around, and writes down
/// what it found; then waits for the notice of its end.
#[test]
#[ignore = "not a test: what runs on an instance"]
fn asking_process() {
    let words = words_after("asking_process");
    let [configuration] = words.as_slice() else {
        return;
    };
    let host = Path::new(configuration).parent().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let facts = look_around(host).await;
        disk::write_whole(&host.join("facts"), facts.to_string().as_bytes()).unwrap();
        let notice = until("the notice", async || {
            let (status, notice) = ask("latest/meta-data/spot/instance-action", true).await;
            if status == 200 {
                Ok(notice)
            } else {
                Err(status.to_string())
            }
        });
        let notice = notice.await;
        disk::write_whole(&host.join("notice"), notice.as_bytes()).unwrap();
        std::future::pending::<()>().await;
    });
}

async fn look_around(host: &Path) -> serde_json::Value {
    let mut answers = BTreeMap::new();
    for item in [
        "user-data",
        "meta-data/instance-id",
        "meta-data/ami-id",
        "meta-data/placement/region",
        "meta-data/placement/availability-zone",
        "meta-data/instance-life-cycle",
        "meta-data/spot/instance-action",
        "meta-data/nothing",
    ] {
        answers.insert(item, ask(&format!("latest/{item}"), true).await);
    }
    let local = host.parent().unwrap().parent().unwrap();
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs_err::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    };
    let numbers = names(Path::new("/proc"));
    // Asked and not tried: without namespaces these are the machine's own.
    let is_writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    let root = local.parent().unwrap().parent().unwrap();
    let forwarded = fs_err::read_to_string(root.join("image/forwarded")).unwrap_or_default();
    serde_json::json!({
        "answers": answers,
        "without token": ask("latest/meta-data/instance-id", false).await.0,
        "hostname": nix::unistd::gethostname().unwrap().to_string_lossy(),
        "boot_id": fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap(),
        "processes": numbers.iter().filter(|name| name.parse::<u32>().is_ok()).count(),
        "instances": names(local),
        "state": names(local.parent().unwrap()),
        "image is writable": is_writable(&root.join("image")),
        "machine is writable": is_writable(Path::new("/etc")),
        "writable is writable": is_writable(&root.join("writable")),
        "temporary files": names(Path::new("/tmp")),
        "temporary is writable": is_writable(Path::new("/tmp")),
        "forwarded": fetch(&format!("http://{forwarded}/")).await,
    })
}

/// Asks the metadata service, wherever it is.
async fn ask(path: &str, with_token: bool) -> (u16, String) {
    #[expect(
        clippy::disallowed_methods,
        reason = "what `runner` does in its `main`"
    )]
    let base = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let base = base.unwrap_or_else(|_| "http://169.254.169.254".into());
    let client = reqwest::Client::new();
    let token = client
        .put(format!("{base}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "60")
        .send();
    let token = token.await.unwrap().text().await.unwrap();
    let mut request = client.get(format!("{base}/{path}"));
    if with_token {
        request = request.header("x-aws-ec2-metadata-token", token);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn fetch(url: &str) -> Result<String, String> {
    let answer = reqwest::get(url).await.map_err(|error| error.to_string())?;
    answer.text().await.map_err(|error| error.to_string())
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
    let left = processes(&ended);
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
                let starts = farm.host(&instance.id).join("starts");
                let starts = fs_err::read_to_string(starts).unwrap();
                assert_eq!(starts, "started\n", "{step} {passes}");
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

/// A cloud whose instances look around. What they are to reach is `forwarded`.
fn curious(mut farm: Farm, forwarded: &str) -> Farm {
    let entry: Vec<String> = entry("asking_process")
        .into_iter()
        .map(|word| word.into_string().unwrap())
        .collect();
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nexec {} {} \"$3\"\n",
        program.display(),
        entry.join(" ")
    );
    write_program(&farm.path().join("runner"), &script);
    fs_err::create_dir(farm.path().join("writable")).unwrap();
    fs_err::write(farm.path().join("image/forwarded"), forwarded).unwrap();
    fs_err::write(farm.path().join("state/secret"), "of the provisioner").unwrap();
    let isolation = farm.cloud.shared.settings.isolation;
    farm.cloud = cloud(farm.path(), isolation, |config| {
        let own = program.parent().unwrap().to_owned();
        config.local.writable = vec![farm.root.path().join("writable"), own];
        config.local.forward = vec![forwarded.parse().unwrap()];
        config.provisioner.listen = "0.0.0.0:9".parse().unwrap();
    });
    farm
}

/// Something on this machine that answers `hello`.
async fn greeter() -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = axum::Router::new().route("/", axum::routing::get(async || "hello"));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, serving)
}

async fn facts(host: &Path) -> serde_json::Value {
    let facts = until("what the instance sees", async || {
        let facts = fs_err::read(host.join("facts"));
        facts.map_err(|error| {
            let log = fs_err::read_to_string(host.join("runner.log"));
            format!("{error} {}", log.unwrap_or_default())
        })
    })
    .await;
    json(&facts)
}

fn json(text: &[u8]) -> serde_json::Value {
    serde_json::from_slice(text).unwrap()
}

async fn metadata_is_that_of_the_instance(farm: &Farm) -> serde_json::Value {
    let launched = farm.launch("s-1-0", 1).await;
    let id = &launched.instances[0].id;
    let seen = facts(&farm.host(id)).await;
    assert_eq!(
        seen["answers"],
        serde_json::json!({
            "user-data": [200, r#"{"farmhand":1}"#],
            "meta-data/instance-id": [200, id],
            "meta-data/ami-id": [200, "image"],
            "meta-data/placement/region": [200, "local"],
            "meta-data/placement/availability-zone": [200, "local-a"],
            "meta-data/instance-life-cycle": [200, "spot"],
            "meta-data/spot/instance-action": [404, ""],
            "meta-data/nothing": [404, ""],
        })
    );
    assert_eq!(seen["without token"], 401);
    assert_eq!(seen["forwarded"], serde_json::json!({ "Ok": "hello" }));
    seen
}

#[tokio::test]
async fn a_plain_instance_learns_who_it_is() {
    let (address, serving) = greeter().await;
    let farm = with_state(Farm::new(Isolation::None));
    let farm = curious(farm, &address);
    metadata_is_that_of_the_instance(&farm).await;
    serving.abort();
}

fn with_state(farm: Farm) -> Farm {
    fs_err::create_dir(farm.path().join("state")).unwrap();
    farm
}

#[tokio::test]
async fn an_isolated_instance_learns_who_it_is_and_sees_nothing_else() {
    let Some(farm) = Farm::isolated() else { return };
    let (address, serving) = greeter().await;
    let farm = curious(with_state(farm), &address);
    let other = farm.launch("s-0-0", 1).await;
    facts(&farm.host(&other.instances[0].id)).await;
    let seen = metadata_is_that_of_the_instance(&farm).await;
    let own = seen["answers"]["meta-data/instance-id"][1].clone();
    assert_eq!(seen["hostname"], own);
    assert_eq!(seen["instances"], serde_json::json!([own]));
    assert_eq!(seen["state"], serde_json::json!(["local"]));
    // Its first process, and this one.
    assert_eq!(seen["processes"], 2);
    let machine = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(seen["boot_id"], machine);
    assert_eq!(seen["image is writable"], false);
    assert_eq!(seen["machine is writable"], false);
    assert_eq!(seen["writable is writable"], true);
    assert_eq!(seen["temporary is writable"], true);
    // The farm itself, if it is below that; nothing of anybody else.
    assert!(
        seen["temporary files"].as_array().unwrap().len() <= 1,
        "{seen}"
    );
    assert_eq!(
        fs_err::read(farm.path().join("state/secret")).unwrap(),
        b"of the provisioner"
    );
    serving.abort();
}

async fn an_interruption_is_said_and_happens(farm: Farm) {
    let launched = farm.launch("s-1-0", 2).await;
    let ids = ids(&launched);
    let host = farm.host(&ids[0]);
    facts(&host).await;
    facts(&farm.host(&ids[1])).await;
    fs_err::write(host.with_file_name("interrupt"), "2s\n").unwrap();
    let notice = until("the notice", async || {
        fs_err::read(host.join("notice")).map_err(|error| error.to_string())
    })
    .await;
    let notice = json(&notice);
    assert_eq!(notice["action"], "terminate");
    let time: Timestamp = notice["time"].as_str().unwrap().parse().unwrap();
    until("the end", async || {
        let seen = farm.seen().await;
        let (ended, kept): (Vec<_>, Vec<_>) = seen.into_iter().partition(|seen| seen.id == ids[0]);
        assert_eq!(kept[0].state, InstanceState::Running);
        if ended[0].state == InstanceState::Terminated {
            assert!(ended[0].interrupted, "{ended:?}");
            assert!(now() >= time);
            Ok(())
        } else {
            Err(format!("{ended:?}"))
        }
    })
    .await;
    let left = processes(&host);
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_plain_instance_is_told_of_its_interruption_before_it_is_taken() {
    let (address, serving) = greeter().await;
    let farm = curious(with_state(Farm::new(Isolation::None)), &address);
    an_interruption_is_said_and_happens(farm).await;
    serving.abort();
}

#[tokio::test]
async fn an_isolated_instance_is_told_of_its_interruption_before_it_is_taken() {
    let Some(farm) = Farm::isolated() else { return };
    let (address, serving) = greeter().await;
    an_interruption_is_said_and_happens(curious(with_state(farm), &address)).await;
    serving.abort();
}

fn market(config: &mut Config, root: &Path, text: &str) {
    let path = root.join("local.market");
    fs_err::write(&path, text).unwrap();
    config.local.market = Some(path);
}

fn reasons(launched: &Launched) -> Vec<ShortReason> {
    let shortfalls = launched.shortfalls.iter();
    shortfalls.map(|shortfall| shortfall.reason).collect()
}

#[tokio::test]
async fn capacity_and_quota_are_those_of_the_market_as_it_is_now() {
    let mut farm = Farm::new(Isolation::None);
    let offering = "[[offerings]]\nzone = \"local-a\"\ntype = \"small\"\nprice = 0.01\n";
    farm.cloud = cloud(farm.path(), Isolation::None, |config| {
        market(
            config,
            farm.root.path(),
            &format!("{offering}capacity = 2\n"),
        );
    });
    let first = farm.launch("s-1-0", 3).await;
    assert_eq!(first.instances.len(), 2);
    assert_eq!(reasons(&first), [ShortReason::NoCapacity]);
    // The same answer, though there is more now.
    let text = format!("{offering}capacity = 9\n[quota.local]\nspot = 3\n");
    fs_err::write(farm.path().join("local.market"), text).unwrap();
    assert_eq!(farm.launch("s-1-0", 3).await, first);
    let second = farm.launch("s-1-1", 3).await;
    assert_eq!(second.instances.len(), 1);
    assert_eq!(reasons(&second), [ShortReason::Quota]);
    // What has ended takes no capacity.
    farm.up(&first).await;
    farm.terminate(&ids(&first)).await;
    until("both to have ended", async || {
        let seen = farm.seen().await.into_iter();
        match seen
            .filter(|seen| seen.state == InstanceState::Terminated)
            .count()
        {
            2 => Ok(()),
            count => Err(format!("{count} have")),
        }
    })
    .await;
    let third = farm.launch("s-1-2", 2).await;
    assert_eq!((third.instances.len(), third.shortfalls.len()), (2, 0));
}

#[tokio::test]
async fn a_market_with_faults_sells_nothing_and_says_what_is_wrong() {
    let mut farm = Farm::new(Isolation::None);
    farm.cloud = cloud(farm.path(), Isolation::None, |config| {
        market(
            config,
            farm.root.path(),
            "[[offerings]]\nzone = \"a\"\nprize = 1\n",
        );
    });
    let types = BTreeSet::from([InstanceType::parse("small").unwrap()]);
    let offered = farm.cloud.offerings(&region(), &types).await;
    let Err(CloudError::Refused { message, .. }) = offered else {
        panic!("{offered:?}");
    };
    assert!(message.contains("local.market:3: "), "{message}");
    let request = request(farm.path(), "s-1-0", 1);
    let launched = farm.cloud.launch(&request, &user_data()).await;
    // It may be launched once the file is mended.
    assert!(
        matches!(launched, Err(LaunchError::Throttled { .. })),
        "{launched:?}"
    );
}

#[tokio::test]
async fn a_held_instance_is_not_ended() {
    let farm = Farm::new(Isolation::None);
    let launched = farm.launch("s-1-0", 1).await;
    farm.up(&launched).await;
    let ids = ids(&launched);
    let hold = farm.host(&ids[0]).with_file_name("hold");
    fs_err::write(&hold, "ada\n").unwrap();
    let seen = farm.seen().await;
    assert_eq!(seen[0].hold.as_deref(), Some("ada"));
    let answer = farm.terminate(&ids).await;
    assert!(
        matches!(answer[&ids[0]], Err(TerminateError::Refused(_))),
        "{answer:?}"
    );
    assert_eq!(farm.seen().await[0].state, InstanceState::Running);
    fs_err::remove_file(hold).unwrap();
    assert_eq!(farm.terminate(&ids).await[&ids[0]], Ok(()));
    farm.all(InstanceState::Terminated).await;
}

#[tokio::test]
async fn what_has_ended_is_shown_for_an_hour_and_then_forgotten() {
    fn in_an_hour() -> Timestamp {
        let hour = jiff::SignedDuration::try_from(SHOWN_AFTER_END).unwrap();
        now().checked_add(hour).unwrap()
    }
    let mut farm = Farm::new(Isolation::None);
    let launched = farm.launch("s-1-0", 2).await;
    farm.up(&launched).await;
    let ids = ids(&launched);
    farm.terminate(&ids[..1]).await;
    until("one to have ended", async || {
        let seen = farm.seen().await;
        let ended = seen
            .iter()
            .any(|seen| seen.state == InstanceState::Terminated);
        if ended {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    assert_eq!(farm.seen().await.len(), 2);
    Arc::get_mut(&mut farm.cloud.shared)
        .unwrap()
        .surroundings
        .clock = in_an_hour;
    let seen: Vec<_> = farm.seen().await.into_iter().map(|seen| seen.id).collect();
    assert_eq!(seen, ids[1..]);
    // Its launch is still answered as it was, and launches nothing.
    assert_eq!(farm.launch("s-1-0", 2).await, launched);
    assert_eq!(farm.seen().await.len(), 1);
}

#[tokio::test]
async fn stopping_all_leaves_nothing_and_no_launch_behind() {
    let farm = Farm::with(Isolation::None, impatient);
    let willing = farm.launch("s-1-0", 2).await;
    farm.up(&willing).await;
    write_program(&farm.path().join("runner"), DEAF_RUNNER);
    let deaf = farm.launch("s-1-1", 1).await;
    farm.up(&deaf).await;
    let stopped = stop_all(farm.cloud.directory(), Duration::from_secs(20), now).await;
    let wanted = Stopped {
        instances: 3,
        killed: 0,
        left: 0,
    };
    assert_eq!(stopped.unwrap(), wanted);
    gone(farm.cloud.directory()).await;
    let again = stop_all(farm.cloud.directory(), Duration::ZERO, now)
        .await
        .unwrap();
    assert_eq!(again, Stopped::default());
}

#[tokio::test]
async fn what_a_launch_needs_and_does_not_have_is_found_by_a_check() {
    let farm = Farm::with(Isolation::None, |config| {
        config.local.runner = Some("/nowhere/runner".into());
        config.provisioner.url = "farm:8080".into();
        let image = ImageSettings {
            directory: Some("/nowhere/image".into()),
            ..ImageSettings::default()
        };
        config
            .images
            .insert(ImageName::parse("gone").unwrap(), image);
    });
    fs_err::remove_file(farm.path().join("image/tasks.d/10-task")).unwrap();
    let root = farm.path().to_str().unwrap().to_owned();
    let findings: Vec<String> = farm
        .cloud
        .check()
        .await
        .into_iter()
        .map(|Finding { subject, fault }| {
            format!("{subject}: {}", fault.unwrap_or_else(|| "all right".into()))
        })
        .collect();
    insta::assert_snapshot!(findings.join("\n").replace(&root, "ROOT"));
    let refused = farm
        .cloud
        .launch(&request(farm.path(), "s-1-0", 1), &user_data())
        .await;
    assert!(
        matches!(refused, Err(LaunchError::Refused { .. })),
        "{refused:?}"
    );
}
