//! The table `[telemetry]` of `runner.toml`: what may be written there, and what is wrong with it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use farm_config::secret;
use farm_events::Identity;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sink::syslog::Address;
use crate::syslog::Facility;

/// Where events go and who the host is. The default has no sink: nothing is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Host name without domain. Empty: `runner` fills in the name the kernel knows.
    pub host: String,
    /// Pool the host belongs to. Empty: the tag is left out; so for the next three.
    pub pool: String,
    /// Machine image the host was started from.
    pub image: String,
    /// Cloud region.
    pub region: String,
    /// Instance id given by the cloud.
    pub instance_id: String,
    /// Time from one heartbeat to the next.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Largest size of the spool on disk. Over it, the oldest records are dropped and counted.
    pub spool_limit: ByteSize,
    /// Longest wait at exit for sinks that still take records.
    #[serde(with = "humantime_serde")]
    pub flush_on_exit: Duration,
    /// InfluxDB servers, and what speaks their write protocol.
    pub influx: Vec<InfluxConfig>,
    /// Syslog receivers.
    pub syslog: Vec<SyslogConfig>,
    /// Files of JSON lines.
    pub jsonl: Vec<JsonlConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: String::new(),
            pool: String::new(),
            image: String::new(),
            region: String::new(),
            instance_id: String::new(),
            heartbeat: Duration::from_secs(60),
            // 64 MiB holds about 200,000 records: a dead database over a long weekend.
            spool_limit: ByteSize(64 << 20),
            flush_on_exit: Duration::from_secs(5),
            influx: Vec::new(),
            syslog: Vec::new(),
            jsonl: Vec::new(),
        }
    }
}

/// The write protocol of an InfluxDB server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InfluxApi {
    /// `/write?db=…` with basic authentication: InfluxDB 1.x.
    V1,
    /// `/api/v2/write?org=…&bucket=…` with a token: InfluxDB from 1.8 on, VictoriaMetrics.
    #[default]
    V2,
}

/// One `[[telemetry.influx]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InfluxConfig {
    /// `http://HOST:PORT` of the server.
    pub url: String,
    /// Write protocol: `v2` or `v1`.
    pub api: InfluxApi,
    /// Organisation (`v2`).
    pub org: String,
    /// Bucket (`v2`).
    pub bucket: String,
    /// Database (`v1`).
    pub database: String,
    /// User for basic authentication (`v1`); the password is in `token_file`.
    pub user: String,
    /// File with the token (`v2`) or the password (`v1`), readable by its owner only.
    pub token_file: Option<PathBuf>,
    /// Longest duration of one request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for InfluxConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            api: InfluxApi::default(),
            org: String::new(),
            bucket: String::new(),
            database: String::new(),
            user: String::new(),
            token_file: None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// One `[[telemetry.syslog]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyslogConfig {
    /// `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///dev/log`.
    pub address: String,
    /// Facility, by its name in syslog.conf(5).
    pub facility: Facility,
    /// Name of the program in each line.
    pub app_name: String,
}

impl Default for SyslogConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            facility: Facility::default(),
            app_name: "runner".to_owned(),
        }
    }
}

/// One `[[telemetry.jsonl]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JsonlConfig {
    /// File that records are appended to.
    pub path: PathBuf,
}

/// A number of bytes, written `64MiB`, `512KiB`, `1GiB` or plainly `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A text that is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: expected a whole number and `KiB`, `MiB` or `GiB`, as in `64MiB`")]
pub struct ByteSizeError(String);

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, unit) = UNITS
            .into_iter()
            .find_map(|(name, bytes)| Some((text.strip_suffix(name)?, bytes)))
            .unwrap_or((text, 1));
        digits
            .trim_end()
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| ByteSizeError(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = UNITS
            .into_iter()
            .find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes))
            .unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / bytes)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64MiB\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::custom(ByteSizeError(bytes.to_string())))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// One thing that is wrong in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the key below `[telemetry]`: `influx[0].bucket`.
    pub key: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "telemetry.{}: {}", self.key, self.message)
    }
}

/// Smallest spool: below it a segment would hold only a handful of records.
const SMALLEST_SPOOL: ByteSize = ByteSize(256 << 10);

impl Config {
    /// The host, as far as the table says.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            host: self.host.clone(),
            pool: self.pool.clone(),
            image: self.image.clone(),
            region: self.region.clone(),
            instance_id: self.instance_id.clone(),
        }
    }

    /// Whether any sink is configured.
    #[must_use]
    pub const fn has_sinks(&self) -> bool {
        !(self.influx.is_empty() && self.syslog.is_empty() && self.jsonl.is_empty())
    }

    /// Everything that is wrong, all at once; reads the token files, and touches nothing else.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        if self.spool_limit < SMALLEST_SPOOL {
            faults.add(
                "spool_limit",
                format!(
                    "`{}` is too small: expected at least `{SMALLEST_SPOOL}`",
                    self.spool_limit
                ),
            );
        }
        if self.heartbeat < Duration::from_secs(1) {
            faults.add(
                "heartbeat",
                format!(
                    "`{}` is too short: expected at least `1s`",
                    humantime_serde::re::humantime::format_duration(self.heartbeat)
                ),
            );
        }
        for (index, influx) in self.influx.iter().enumerate() {
            influx.validate(&format!("influx[{index}]"), &mut faults);
        }
        for (index, syslog) in self.syslog.iter().enumerate() {
            syslog.validate(&format!("syslog[{index}]"), &mut faults);
        }
        for (index, jsonl) in self.jsonl.iter().enumerate() {
            jsonl.validate(&format!("jsonl[{index}]"), &mut faults);
        }
        self.find_doubles(&mut faults);
        faults.0
    }

    /// Two sinks of one target would share a place in the spool, and write each record twice.
    fn find_doubles(&self, faults: &mut Faults) {
        let mut seen = BTreeSet::new();
        let targets = (self.influx.iter().enumerate())
            .map(|(index, influx)| (format!("influx[{index}]"), influx.target()))
            .chain(
                (self.syslog.iter().enumerate())
                    .map(|(index, syslog)| (format!("syslog[{index}]"), syslog.target())),
            )
            .chain(
                (self.jsonl.iter().enumerate())
                    .map(|(index, jsonl)| (format!("jsonl[{index}]"), jsonl.target())),
            );
        for (key, target) in targets {
            if !seen.insert(target.clone()) {
                faults.add(
                    &key,
                    format!("`{target}` is configured twice: remove one of the two"),
                );
            }
        }
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, key: &str, message: impl Into<String>) {
        self.0.push(Fault {
            key: key.to_owned(),
            message: message.into(),
        });
    }
}

impl InfluxConfig {
    /// What tells this sink from others, and names it in logs: no secret is in it.
    pub(crate) fn target(&self) -> String {
        let url = self.url.trim_end_matches('/');
        match self.api {
            InfluxApi::V1 => format!("influx {url} {}", self.database),
            InfluxApi::V2 => format!("influx {url} {}/{}", self.org, self.bucket),
        }
    }

    fn validate(&self, key: &str, faults: &mut Faults) {
        self.validate_url(&format!("{key}.url"), faults);
        match self.api {
            InfluxApi::V1 => {
                required(
                    &self.database,
                    &format!("{key}.database"),
                    "api = \"v1\"",
                    faults,
                );
                contradicts(&self.org, &format!("{key}.org"), "v2", faults);
                contradicts(&self.bucket, &format!("{key}.bucket"), "v2", faults);
                if self.user.is_empty() != self.token_file.is_none() {
                    faults.add(
                        &format!("{key}.user"),
                        "`user` and `token_file` (its password) need each other with `api = \"v1\"`: \
                         write both or none",
                    );
                }
            }
            InfluxApi::V2 => {
                required(
                    &self.bucket,
                    &format!("{key}.bucket"),
                    "api = \"v2\"",
                    faults,
                );
                contradicts(&self.database, &format!("{key}.database"), "v1", faults);
                contradicts(&self.user, &format!("{key}.user"), "v1", faults);
            }
        }
        if self.timeout.is_zero() {
            faults.add(
                &format!("{key}.timeout"),
                "`0s` would refuse every answer: expected a duration such as `10s`",
            );
        }
        if let Some(path) = &self.token_file
            && let Err(error) = secret::read(path)
        {
            faults.add(&format!("{key}.token_file"), error.to_string());
        }
    }

    fn validate_url(&self, key: &str, faults: &mut Faults) {
        let url = match reqwest::Url::parse(&self.url) {
            Ok(url) if url.has_host() && matches!(url.scheme(), "http" | "https") => url,
            _ => {
                return faults.add(
                    key,
                    format!(
                        "`{}` is not a server: expected `http://HOST:PORT`",
                        without_userinfo(&self.url)
                    ),
                );
            }
        };
        if url.scheme() == "https" && !cfg!(feature = "tls") {
            faults.add(
                key,
                "built without TLS: build with `--features tls`, or use `http://`",
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            faults.add(
                key,
                "a secret does not belong into a URL: use `token_file` (and `user` with `api = \"v1\"`)",
            );
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            faults.add(
                key,
                format!(
                    "`{}` goes on after the port: expected `http://HOST:PORT` only",
                    url.path()
                ),
            );
        }
    }
}

/// The text without what may be a password in front of an `@`.
fn without_userinfo(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        (None, Some(at)) => format!("…{}", &url[at..]),
        _ => url.to_owned(),
    }
}

fn required(value: &str, key: &str, reason: &str, faults: &mut Faults) {
    if value.is_empty() {
        faults.add(key, format!("missing: `{reason}` needs it"));
    }
}

fn contradicts(value: &str, key: &str, api: &str, faults: &mut Faults) {
    if !value.is_empty() {
        faults.add(
            key,
            format!("`{value}` has no meaning here: remove it, or write `api = \"{api}\"`"),
        );
    }
}

impl SyslogConfig {
    pub(crate) fn target(&self) -> String {
        format!("syslog {}", self.address)
    }

    fn validate(&self, key: &str, faults: &mut Faults) {
        if let Err(error) = self.address.parse::<Address>() {
            faults.add(&format!("{key}.address"), error.to_string());
        }
        let printable = self.app_name.bytes().all(|byte| byte.is_ascii_graphic());
        // RFC 5424, section 6: APP-NAME has 1 to 48 printable ASCII characters.
        if !printable || self.app_name.is_empty() || self.app_name.len() > 48 {
            faults.add(
                &format!("{key}.app_name"),
                format!(
                    "`{}` cannot name a program in syslog: expected 1 to 48 printable ASCII \
                     characters without space",
                    self.app_name.escape_debug()
                ),
            );
        }
    }
}

impl JsonlConfig {
    pub(crate) fn target(&self) -> String {
        format!("jsonl {}", self.path.display())
    }

    fn validate(&self, key: &str, faults: &mut Faults) {
        let key = format!("{key}.path");
        if !self.path.is_absolute() {
            faults.add(
                &key,
                format!(
                    "`{}` depends on the working directory: expected an absolute path",
                    self.path.display()
                ),
            );
        } else if self.path.is_dir() {
            faults.add(
                &key,
                format!(
                    "`{}` is a directory: expected the path of a file",
                    self.path.display()
                ),
            );
        } else if self.path.parent().is_some_and(|parent| !parent.is_dir()) {
            faults.add(
                &key,
                format!(
                    "the directory of `{}` does not exist: create it with `mkdir -p`",
                    self.path.display()
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests;
