//! The services of the stories: Buildbot, two time-series databases, a syslog daemon,
//! PostgreSQL, and moto as another opinion about EC2.
//!
//! Each has `start` (a private directory and ports), and the databases and the syslog daemon also
//! `stop` and `start_again`, which keeps ports and data: a service that was down for a while.

mod buildbot;
mod influxdb;
mod moto;
mod postgres;
mod rsyslog;
mod victoria_metrics;

pub use buildbot::{Build, Buildbot, Pools, Settings};
pub use influxdb::InfluxDb;
pub use moto::Moto;
pub use postgres::Postgres;
pub use rsyslog::Rsyslog;
pub use victoria_metrics::{Series, VictoriaMetrics};

use std::time::Duration;

use reqwest::blocking::Response;

/// How long a service may take until it answers. All of them need less than two seconds on an idle
/// machine; the rest is for machines that compile beside the test.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The answer to a GET, or why there is none; an error status counts as none.
fn get(url: &str, query: &[(&str, &str)]) -> reqwest::Result<Response> {
    client().get(url).query(query).send()?.error_for_status()
}

fn client() -> reqwest::blocking::Client {
    reqwest::blocking::Client::builder()
        .timeout(Duration::from_secs(10))
        // The services are on loopback, whatever the environment says of proxies.
        .no_proxy()
        .build()
        .expect("the settings are constant and valid")
}
