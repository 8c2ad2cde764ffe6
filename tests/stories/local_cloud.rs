//! Instances of the local cloud with the real `runner`: it learns who it is, speaks with the
//! provisioner, is told of its interruption, and leaves nothing when it is ended.
//!
//! This test program is also the program that supervises the instances.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farm_tests::place::Place;
use farm_tests::{programs, wait};
use jiff::Timestamp;
use provisioner::cloud::local::{LocalCloud, Surroundings, instance, stop_all};
use provisioner::cloud::{
    Allocation, CapacityType, Choice, Cloud as _, InstanceState, LaunchRequest, Launched, Sighting,
    UserData,
};
use provisioner::config::{Config, ImageSettings, Isolation};
use provisioner::ids::{InstanceId, Region};
use provisioner::money::Money;
use serde_json::{Value, json};

/// An instance is up within a second; a busy machine is given time.
const LIMIT: Duration = Duration::from_secs(60);

/// A task that never ends by itself, and leaves a process in a session of its own.
const TASK: &str = r#"#!/bin/sh
setsid sh -c 'while :; do sleep 1000; done' LEFT &
echo up >UP
while :; do sleep 1000; done
"#;

#[expect(
    clippy::disallowed_methods,
    reason = "the cloud's clock is the real one"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

#[test]
#[ignore = "not a test: a process of an instance"]
fn instance_process() {
    let mut words = std::env::args().skip_while(|word| word != "instance_process");
    let Some(directory) = words.nth(1) else {
        return;
    };
    let part = match words.next().as_deref() {
        Some("first") => instance::Part::First,
        _ => instance::Part::Supervisor,
    };
    let directory = directory.into();
    let exit = instance::run(&instance::Args { directory, part }, now);
    assert_eq!(exit, provisioner::exit::Exit::Done);
}

/// A cloud, its image, and the provisioner's API as far as hosts need it. Nothing of it is left.
struct Farm {
    place: Place,
    cloud: LocalCloud,
    runtime: tokio::runtime::Runtime,
    api: Api,
}

impl Farm {
    fn new(isolation: Isolation) -> Self {
        let place = Place::new("farm-local-story-");
        for directory in ["image", "image/tasks.d", "shared"] {
            place.make_directory(directory);
        }
        let shared = place.path("shared");
        let task = TASK
            .replace("LEFT", &place.path("left").to_string_lossy())
            .replace("UP", &format!("{}/$(uname -n).$$", shared.display()));
        place.write_executable("image/tasks.d/10-stay", &task);
        // The shortest waits: a story is no hour.
        place.write(
            "image/runner.toml",
            "[runner]\ngrace_period = \"1s\"\n[fleet]\nask_every = \"100ms\"\nnotice_every = \"100ms\"\nleave_before_end = \"1s\"\n",
        );
        let api = Api::start();
        let mut config = Config::default();
        config.provisioner.state_dir = place.path("state");
        config.provisioner.listen = api.address;
        let image = ImageSettings {
            directory: Some(place.path("image")),
            ..ImageSettings::default()
        };
        config.images.insert(called("base"), image);
        config.local.isolation = isolation;
        config.local.runner = Some(programs::ours("runner"));
        config.local.writable = vec![shared, programs::build_dir()];
        let entry = ["--ignored", "--exact", "--nocapture", "instance_process"];
        let surroundings = Surroundings {
            program: std::env::current_exe().expect("the kernel knows this program"),
            arguments: entry.map(OsString::from).into(),
            path: OsString::new(),
            clock: now,
        };
        Self {
            cloud: LocalCloud::new(&config, surroundings),
            place,
            runtime: tokio::runtime::Runtime::new().expect("a runtime"),
            api,
        }
    }

    fn launch(&self, count: u32) -> Vec<InstanceId> {
        let request = LaunchRequest {
            intent: called("story-1-0"),
            pool: called("linux64"),
            image: called("base"),
            image_id: called("base"),
            region: region(),
            capacity_type: CapacityType::Spot,
            count,
            choices: vec![Choice {
                instance_type: called("small"),
                zone: called("local-a"),
                price: Money::from_micros(10_000),
            }],
            allocation: Allocation::LowestPrice,
        };
        let user_data = json!({
            "farmhand": 1,
            "pool": "linux64",
            "image": "base",
            "provisioner": format!("http://{}", self.api.address),
            "join_token": "join",
        });
        let user_data = UserData {
            json: user_data.to_string(),
        };
        let launching = self.cloud.launch(&request, &user_data);
        let launched: Launched = self.runtime.block_on(launching).expect("it launches");
        assert_eq!(launched.instances.len(), count as usize);
        launched
            .instances
            .into_iter()
            .map(|instance| instance.id)
            .collect()
    }

    fn seen(&self) -> Vec<Sighting> {
        let region = region();
        let listing = self.cloud.instances(&region);
        self.runtime.block_on(listing).expect("it lists")
    }

    fn seen_one(&self, id: &InstanceId) -> Sighting {
        let mut seen = self.seen().into_iter();
        seen.find(|seen| seen.id == *id)
            .expect("it is shown for an hour")
    }

    fn directory(&self, id: &InstanceId) -> PathBuf {
        self.cloud.directory().join(id.as_str())
    }

    /// Waits until `runner` on each instance has registered, and its task is at work.
    fn at_work(&self, ids: &[InstanceId]) {
        for id in ids {
            self.api.asked(self, id, "/register", |_| true);
        }
        wait::until("every task to be at work", LIMIT, || {
            let up = fs_err::read_dir(self.place.path("shared"))
                .expect("it is there")
                .count();
            if up == ids.len() {
                Ok(())
            } else {
                Err(format!("{up} are; {}", self.logs()))
            }
        });
    }

    fn ended(&self, id: &InstanceId) -> Sighting {
        wait::until("the instance to have ended", LIMIT, || {
            let seen = self.seen_one(id);
            if seen.state == InstanceState::Terminated {
                Ok(seen)
            } else {
                Err(format!("{seen:?}"))
            }
        })
    }

    fn logs(&self) -> String {
        let mut logs = String::new();
        for seen in self.seen() {
            let directory = self.directory(&seen.id);
            for log in ["supervisor.log", "host/runner.log"] {
                let text = fs_err::read_to_string(directory.join(log)).unwrap_or_default();
                logs.push_str(&format!("{:?} {log}:\n{text}\n", seen.state));
            }
        }
        logs
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        let stopping = stop_all(self.cloud.directory(), Duration::from_secs(30), now);
        let stopped = self.runtime.block_on(stopping);
        if !std::thread::panicking() {
            assert_eq!(stopped.expect("it can be stopped").left, 0);
        }
    }
}

/// What is called so: a region, a pool, an image …
fn called<T: FromStr<Err: Debug>>(name: &str) -> T {
    name.parse().expect("a plain name")
}

fn region() -> Region {
    called("local")
}

/// What a host asked: path and body.
type Asked = (String, Value);

/// The provisioner's API: takes every host in, wants all to go on, and notes what they say.
struct Api {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Api {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        // Ends with the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || answer(&stream, &noted));
            }
        });
        Self { address, asked }
    }

    /// Waits until the host of `id` asked for a path that ends so with a body that fits.
    fn asked(&self, farm: &Farm, id: &InstanceId, end: &str, fits: impl Fn(&Value) -> bool) {
        let wanted = format!("/v1/hosts/{id}{end}");
        wait::until(&format!("a request for {wanted}"), LIMIT, || {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let is_there = asked
                .iter()
                .any(|(path, body)| *path == wanted && fits(body));
            if is_there {
                Ok(())
            } else {
                Err(format!("{asked:#?}\n{}", farm.logs()))
            }
        });
    }
}

/// Answers the requests of one connection until its end.
fn answer(stream: &TcpStream, noted: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while reader.read_line(&mut head).is_ok_and(|count| count > 2) {}
        let mut lines = head.lines();
        let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1)) else {
            return;
        };
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, length)| length.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push((path.to_owned(), body));
        let answer = if path.ends_with("/register") {
            json!({ "host_token": "host" })
        } else {
            json!({ "assignment": "go_on", "reason": null, "text": "", "ask_again": "1s" })
        };
        drop(noted);
        let answer = answer.to_string();
        let length = answer.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let answer = format!("{head}content-length: {length}\r\n\r\n{answer}");
        if (&*stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Command lines of processes that name `path`.
fn processes(path: &Path) -> Vec<String> {
    let wanted = path.to_string_lossy().into_owned();
    let entries = fs_err::read_dir("/proc").expect("there is /proc").flatten();
    let words = entries.filter_map(|entry| fs_err::read(entry.path().join("cmdline")).ok());
    words
        .map(|words| String::from_utf8_lossy(&words).replace('\0', " "))
        .filter(|words| words.contains(&wanted))
        .collect()
}

fn hosts_work_are_interrupted_and_end(isolation: Isolation) {
    let farm = Farm::new(isolation);
    let ids = farm.launch(2);
    farm.at_work(&ids);
    let left = farm.place.path("left");
    assert!(processes(&left).len() >= 2, "{:?}", processes(&left));

    // The cloud takes one back: the host is told, tells the provisioner, and is gone.
    fs_err::write(farm.directory(&ids[0]).join("interrupt"), "5s").expect("it is ours");
    farm.api.asked(&farm, &ids[0], "/report", |body| {
        body["spot_notice"]["action"] == "terminate"
    });
    let ended = farm.ended(&ids[0]);
    assert!(ended.interrupted, "{ended:?}");
    assert_eq!(farm.seen_one(&ids[1]).state, InstanceState::Running);

    // We end the other: `runner` ends its task and itself within its own time.
    let region = region();
    let ending = farm.cloud.terminate(&region, &ids[1..]);
    let answers = farm.runtime.block_on(ending);
    assert_eq!(answers[&ids[1]], Ok(()));
    let ended = farm.ended(&ids[1]);
    assert_eq!(ended.state_reason.as_deref(), Some("ended as asked"));
    assert!(!ended.interrupted);
    for path in [
        left,
        farm.directory(&ids[0]).join("host"),
        farm.directory(&ids[1]).join("host"),
    ] {
        let left = processes(&path);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn plain_hosts_work_are_interrupted_and_end() {
    hosts_work_are_interrupted_and_end(Isolation::None);
}

#[test]
fn isolated_hosts_work_are_interrupted_and_end() {
    if farm_tests::host::have_root() {
        hosts_work_are_interrupted_and_end(Isolation::Namespaces);
    }
}
