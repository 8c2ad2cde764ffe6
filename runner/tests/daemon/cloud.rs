//! A cloud for one host: a metadata service that wants its token, and a provisioner that keeps to
//! the rules, each on a loopback port of its own, and each ready to fail in every way.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::host::{Host, Running};

/// What must show nowhere.
pub(crate) const JOIN_TOKEN: &str = "j0in-t0ken-of-this-launch";
pub(crate) const HOST_TOKEN: &str = "h0st-t0ken-of-this-host";

/// The instance the metadata service tells of.
pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What a server does with a request.
enum Reply {
    Answer(u16, String),
    /// Neither answers nor hangs up.
    Never,
    /// Hangs up.
    HangUp,
    /// Begins an answer that has no end.
    Endless,
    /// Something that is no answer.
    Garbage,
}

/// Serves until the test ends; returns the port.
fn serve(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || converse(stream.unwrap(), &*answer));
        }
    });
    port
}

fn converse(mut stream: TcpStream, answer: &impl Fn(&Request) -> Reply) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        while let Some((request, length)) = parse(&pending) {
            pending.drain(..length);
            let said = match answer(&request) {
                Reply::Answer(status, body) => stream.write_all(
                    format!(
                        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )
                    .as_bytes(),
                ),
                Reply::Never => continue,
                Reply::HangUp => return,
                Reply::Garbage => stream.write_all(b"\x00\x01 no HTTP\r\n\r\n"),
                Reply::Endless => {
                    let mut said =
                        stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 99999999\r\n\r\n");
                    while said.is_ok() {
                        said = stream.write_all(&[b' '; 8192]);
                    }
                    said
                }
            };
            if said.is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => pending.extend_from_slice(&chunk[..count]),
        }
    }
}

/// The first whole request, and its length.
fn parse(pending: &[u8]) -> Option<(Request, usize)> {
    let end = pending.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&pending[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let body = pending.get(end..end + length)?;
    let request = Request {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
    };
    Some((request, end + length))
}

/// What one of the servers is made to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// What it should.
    #[default]
    Well,
    Never,
    HangUp,
    Endless,
    Garbage,
    /// Answers with this status.
    Status(u16),
    /// Answers 200, and not what was asked for.
    Lies,
}

impl Mood {
    fn reply(self) -> Option<Reply> {
        match self {
            Self::Well => None,
            Self::Never => Some(Reply::Never),
            Self::HangUp => Some(Reply::HangUp),
            Self::Endless => Some(Reply::Endless),
            Self::Garbage => Some(Reply::Garbage),
            Self::Status(status) => Some(Reply::Answer(
                status,
                // As if it repeated what it was sent.
                json!({ "error": format!("no {JOIN_TOKEN} {HOST_TOKEN}\nhere") }).to_string(),
            )),
            Self::Lies => Some(Reply::Answer(200, "{\"assignment\":\"explode\"}".into())),
        }
    }
}

#[derive(Default)]
struct Metadata {
    mood: Mood,
    values: BTreeMap<String, String>,
    session: u32,
    asked: Vec<String>,
}

/// A metadata service, version 2.
pub(crate) struct Imds {
    port: u16,
    state: Arc<Mutex<Metadata>>,
}

impl Imds {
    fn start(life_cycle: &str, provisioner: u16) -> Self {
        let values = [
            ("meta-data/instance-id", INSTANCE),
            ("meta-data/ami-id", "ami-0abc"),
            ("meta-data/placement/region", "us-west-2"),
            ("meta-data/placement/availability-zone", "us-west-2a"),
            ("meta-data/instance-life-cycle", life_cycle),
        ];
        let state = Arc::new(Mutex::new(Metadata {
            values: values
                .map(|(path, value)| (path.to_owned(), value.to_owned()))
                .into(),
            ..Metadata::default()
        }));
        let shared = Arc::clone(&state);
        let port = serve(move |request| answer_metadata(&mut shared.lock().unwrap(), request));
        let imds = Self { port, state };
        imds.set(
            "user-data",
            &json!({
                "farmhand": 1, "pool": "linux64", "image": "linux64-7", "intent": "x",
                "provisioner": format!("http://127.0.0.1:{provisioner}"), "join_token": JOIN_TOKEN,
            })
            .to_string(),
        );
        imds
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, path: &str, value: &str) {
        let mut state = self.state.lock().unwrap();
        state.values.insert(path.into(), value.into());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().values.remove(path);
    }

    pub(crate) fn feel(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// Takes no session token that was given so far.
    pub(crate) fn expire(&self) {
        self.state.lock().unwrap().session += 1;
    }

    /// What was asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Announces that the instance is taken back in so many seconds.
    pub(crate) fn notice(&self, seconds: i64) -> jiff::Timestamp {
        let time = now() + jiff::SignedDuration::from_secs(seconds);
        self.set(
            NOTICE,
            &json!({ "action": "terminate", "time": time.to_string() }).to_string(),
        );
        time
    }
}

/// Where the notice is.
pub(crate) const NOTICE: &str = "meta-data/spot/instance-action";

fn answer_metadata(state: &mut Metadata, request: &Request) -> Reply {
    state.asked.push(request.path.clone());
    if let Some(reply) = state.mood.reply() {
        return reply;
    }
    let token = format!("session-{}", state.session);
    if request.path == "/latest/api/token" {
        let ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds");
        return if request.method == "PUT" && ttl.is_some() {
            Reply::Answer(200, token)
        } else {
            Reply::Answer(400, String::new())
        };
    }
    if request.headers.get("x-aws-ec2-metadata-token") != Some(&token) {
        return Reply::Answer(401, String::new());
    }
    match request
        .path
        .strip_prefix("/latest/")
        .and_then(|path| state.values.get(path))
    {
        Some(value) => Reply::Answer(200, value.clone()),
        None => Reply::Answer(404, String::new()),
    }
}

struct Centre {
    mood: Mood,
    assignment: Value,
    /// How many answers to a registration get lost.
    lost_answers: u32,
    registrations: Vec<Value>,
    key: Option<String>,
    /// Changed when the provisioner forgets the hosts it knew.
    host_token: String,
    reports: Vec<Value>,
    requests: u32,
}

/// A provisioner.
pub(crate) struct Provisioner {
    port: u16,
    state: Arc<Mutex<Centre>>,
}

impl Provisioner {
    fn start() -> Self {
        let state = Arc::new(Mutex::new(Centre {
            mood: Mood::Well,
            assignment: json!({ "assignment": "go_on", "reason": null, "text": "", "ask_again": "50ms" }),
            lost_answers: 0,
            registrations: Vec::new(),
            key: None,
            host_token: HOST_TOKEN.into(),
            reports: Vec::new(),
            requests: 0,
        }));
        let shared = Arc::clone(&state);
        let port = serve(move |request| answer_host(&mut shared.lock().unwrap(), request));
        Self { port, state }
    }

    pub(crate) fn feel(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// Tells the host from now on to do this, and to ask again soon.
    pub(crate) fn assign(&self, assignment: &str) {
        self.state.lock().unwrap().assignment = json!({
            "assignment": assignment, "reason": "maintenance", "text": "the rack is moved",
            "ask_again": "50ms",
        });
    }

    pub(crate) fn lose_answers(&self, count: u32) {
        self.state.lock().unwrap().lost_answers = count;
    }

    /// Takes no token that was given so far.
    pub(crate) fn forget_tokens(&self) {
        self.state.lock().unwrap().host_token = format!("{HOST_TOKEN}-anew");
    }

    pub(crate) fn registrations(&self) -> Vec<Value> {
        self.state.lock().unwrap().registrations.clone()
    }

    pub(crate) fn reports(&self) -> Vec<Value> {
        self.state.lock().unwrap().reports.clone()
    }

    pub(crate) fn requests(&self) -> u32 {
        self.state.lock().unwrap().requests
    }

    pub(crate) fn last_report(&self) -> Value {
        self.reports().pop().unwrap_or_default()
    }

    pub(crate) fn activity(&self) -> String {
        let report = self.last_report();
        report["activity"].as_str().unwrap_or_default().to_owned()
    }
}

fn answer_host(state: &mut Centre, request: &Request) -> Reply {
    state.requests += 1;
    if let Some(reply) = state.mood.reply() {
        return reply;
    }
    let refuse = |status, why: &str| Reply::Answer(status, json!({ "error": why }).to_string());
    let bearer = request
        .headers
        .get("authorization")
        .cloned()
        .unwrap_or_default();
    let place = format!("/v1/hosts/{INSTANCE}/");
    let Some(verb) = request.path.strip_prefix(&place) else {
        return refuse(404, "no such host");
    };
    let body: Value = match serde_json::from_str(&request.body) {
        Ok(body) => body,
        Err(error) => return refuse(400, &error.to_string()),
    };
    match (request.method.as_str(), verb) {
        ("POST", "register") => {
            if bearer != format!("Bearer {JOIN_TOKEN}") {
                return refuse(401, "no join token of this launch");
            }
            let key = body["key"].as_str().unwrap_or_default().to_owned();
            if key.len() != 32 || body["boot_id"].as_str().is_none_or(str::is_empty) {
                return refuse(400, "no key");
            }
            if state.key.get_or_insert_with(|| key.clone()) != &key {
                return refuse(409, "another key was first");
            }
            state.registrations.push(body);
            if state.lost_answers > 0 {
                state.lost_answers -= 1;
                return Reply::HangUp;
            }
            Reply::Answer(200, json!({ "host_token": state.host_token }).to_string())
        }
        ("POST", "report") => {
            if bearer != format!("Bearer {}", state.host_token) {
                return refuse(401, "no token of this host");
            }
            state.reports.push(body);
            Reply::Answer(200, state.assignment.to_string())
        }
        _ => refuse(404, "no such thing"),
    }
}

/// A host that is an instance.
pub(crate) struct Farm {
    pub(crate) host: Host,
    pub(crate) imds: Imds,
    pub(crate) provisioner: Provisioner,
}

impl Farm {
    /// On a spot instance.
    pub(crate) fn new() -> Self {
        Self::with_life_cycle("spot")
    }

    pub(crate) fn with_life_cycle(life_cycle: &str) -> Self {
        let provisioner = Provisioner::start();
        let imds = Imds::start(life_cycle, provisioner.port);
        let farm = Self {
            host: Host::new(),
            imds,
            provisioner,
        };
        farm.set("");
        farm
    }

    /// Settings over those of a fleet that is asked all the time. `[fleet]` is open at their beginning.
    pub(crate) fn set(&self, toml: &str) {
        self.host.set(&format!(
            "[fleet]\nmetadata = \"imds\"\nmetadata_url = \"{}\"\nask_every = \"50ms\"\n\
             notice_every = \"20ms\"\n{toml}",
            self.imds.url()
        ));
    }

    /// A task that takes jobs: it waits for the file `job`, and takes no other when told by SIGHUP.
    /// A job ends when there is the file `end`.
    pub(crate) fn job_task(&self, extra: &str) {
        self.host.task(
            "5-job",
            "trap 'echo drained >>\"$HERE/heard\"; exit 0' HUP\necho waiting >>\"$HERE/waits\"\n\
             while ! test -e \"$HERE/job\"; do sleep 0.01; done\n\
             trap 'echo told >>\"$HERE/heard\"' HUP\n\
             echo taken.id=17 >>\"$RUNNER_OUTPUT\"; echo taken.name=linux64 >>\"$RUNNER_OUTPUT\"\n\
             echo $$ >>\"$HERE/pids\"\n\
             while ! test -e \"$HERE/end\"; do sleep 0.01; done\n\
             printf 'job.name=linux64\\njob.id=17\\njob.result=success\\n' >>\"$RUNNER_OUTPUT\"",
        );
        self.host.task("9-decide", "");
        self.set(&format!(
            "{extra}\n[tasks.5-job]\ntimeout = \"0s\"\ndrain_signal = \"HUP\"\n"
        ));
    }

    pub(crate) fn until_activity(&self, running: &mut Running<'_>, activity: &str) {
        running.until(activity, |_| self.provisioner.activity() == activity);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the notice is for a time of the clock that the program under test reads"
)]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
