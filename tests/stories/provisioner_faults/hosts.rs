//! Hosts, played by the test: they register with what their instance was handed, and say what they do.

use std::cell::Cell;
use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farm_tests::ec2::Instance;
use farm_tests::wait;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::farm::{Farm, SOON, text};

pub(crate) struct Host {
    id: String,
    /// It was told to quit and has confirmed: it never takes a job again.
    is_fenced: Cell<bool>,
    token: String,
    client: Client,
    api: String,
}

/// What a host does.
#[derive(Clone, Copy)]
pub(crate) enum Doing {
    Busy,
    Idle,
    Fenced,
}

impl Host {
    /// The host of `instance` comes up.
    fn register(farm: &Farm, instance: &Instance) -> Self {
        let client = Client::builder()
            .no_proxy()
            .build()
            .expect("constant settings");
        let data = instance.user_data.as_deref().expect("it has user data");
        let data = STANDARD.decode(data).expect("base64");
        let data: Value = serde_json::from_slice(&data).expect("JSON");
        let mut host = Self {
            id: instance.id.clone(),
            is_fenced: Cell::new(false),
            token: text(&data["join_token"]),
            client,
            api: farm.api(),
        };
        let body = json!({"key": format!("{:0>32}", host.id.replace("i-", "")), "boot_id": boot_id(), "runner": "0.1.0"});
        let answer = host.post("register", &body);
        host.token = text(&answer["host_token"]);
        host
    }

    /// Says what it does; returns what it is told.
    pub(crate) fn report(&self, doing: Doing) -> String {
        text(&self.post("report", &report(doing))["assignment"])
    }

    /// The same, of one that may be gone by now: nobody knows it then.
    fn try_report(&self, doing: Doing) -> Option<String> {
        let answer = self.try_post("report", &report(doing)).ok()?;
        Some(text(&answer["assignment"]))
    }

    fn post(&self, what: &str, body: &Value) -> Value {
        let id = &self.id;
        wait::until(&format!("host {id} to {what}"), SOON, || {
            self.try_post(what, body)
        })
    }

    fn try_post(&self, what: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}/v1/hosts/{}/{what}", self.api, self.id);
        let request = self.client.post(&url).bearer_auth(&self.token).json(body);
        let answer = request.send().map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let said = answer.text().map_err(|error| format!("{error:?}"))?;
        if !status.is_success() {
            return Err(format!("{status}: {said}"));
        }
        serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))
    }
}

fn report(doing: Doing) -> Value {
    let (activity, job) = match doing {
        Doing::Busy => ("busy", json!({"name": "build", "id": "1"})),
        Doing::Idle => ("idle", Value::Null),
        Doing::Fenced => ("fenced", Value::Null),
    };
    json!({
        "boot_id": boot_id(), "activity": activity, "since": "2026-01-01T00:00:00Z",
        "job": job, "runs": 1, "spot_notice": null, "lost_job": null,
    })
}

fn boot_id() -> &'static str {
    "6b7c5a3e-7d0f-4a51-9a55-0d1b8f0c7e11"
}

/// Hosts of all instances that run come up. The provisioner must be there.
pub(crate) fn register_all(farm: &Farm) -> Vec<Host> {
    let alive = farm.alive();
    alive
        .iter()
        .map(|instance| Host::register(farm, instance))
        .collect()
}

/// Hosts that have nothing to do are told to quit, and fence themselves. The provisioner must be
/// there, and nobody must need them.
pub(crate) fn fence_all(hosts: &[Host]) {
    wait::until("every host to be told to quit", 2 * SOON, || {
        let told: Vec<String> = hosts.iter().map(|host| host.report(Doing::Idle)).collect();
        let all = told.iter().all(|told| told == "quit");
        all.then_some(()).ok_or_else(|| told.join(" "))
    });
    for host in hosts {
        host.report(Doing::Fenced);
        host.is_fenced.set(true);
    }
}

/// Hosts among `alive` say that they have nothing to do, and fence themselves if they are told to
/// quit.
pub(crate) fn leave(hosts: &[Host], alive: &BTreeSet<String>) {
    for host in hosts.iter().filter(|host| alive.contains(&host.id)) {
        if !host.is_fenced.get() && host.try_report(Doing::Idle).as_deref() == Some("quit") {
            host.is_fenced.set(true);
        }
        if host.is_fenced.get() {
            host.try_report(Doing::Fenced);
        }
    }
}
