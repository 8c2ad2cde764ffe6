//! The table `[fleet]` of `runner.toml`.

use std::time::Duration;

use farm_config::KeyFault;
use serde::Deserialize;

/// Where the cloud's metadata is asked for when nobody says: link-local, the same on every instance.
pub const METADATA_URL: &str = "http://169.254.169.254";

/// Longest duration that makes sense in `[fleet]`: longer is a slip, and none overflows a clock.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether this host is an instance of a cloud, and how it speaks with the provisioner.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// Where the host learns which instance it is. `off`: nothing is asked, no network is used.
    pub metadata: Metadata,
    /// Address of the metadata service; without it that of the environment, or [`METADATA_URL`].
    pub metadata_url: Option<String>,
    /// Address of the provisioner instead of the one in the user data; empty: that one.
    pub provisioner: String,
    /// Time from one report to the next, unless the provisioner asks for another.
    #[serde(with = "humantime_serde")]
    pub ask_every: Duration,
    /// Longest wait for a connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest duration of one request, its connection and answer included.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long a drain stays in force while the provisioner cannot be asked.
    #[serde(with = "humantime_serde")]
    pub drain_lapses_after: Duration,
    /// How often the spot notice is looked for.
    #[serde(with = "humantime_serde")]
    pub notice_every: Duration,
    /// When a running job is ended, before the time of the spot notice.
    #[serde(with = "humantime_serde")]
    pub leave_before_end: Duration,
}

/// Where the host learns which instance it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metadata {
    /// Nowhere.
    #[default]
    Off,
    /// EC2's instance metadata service, version 2.
    Imds,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            metadata: Metadata::default(),
            metadata_url: None,
            provisioner: String::new(),
            ask_every: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            // Longer than a provisioner takes to come back, shorter than a farm may stand still.
            drain_lapses_after: Duration::from_secs(15 * 60),
            // As often as EC2 recommends.
            notice_every: Duration::from_secs(5),
            leave_before_end: Duration::from_secs(20),
        }
    }
}

impl FleetConfig {
    /// Whether there is anything to ask.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.metadata != Metadata::Off
    }

    /// Everything that the types of the keys do not say.
    #[must_use]
    pub fn validate(&self) -> Vec<KeyFault> {
        let durations = [
            ("ask_every", self.ask_every),
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("notice_every", self.notice_every),
            ("leave_before_end", self.leave_before_end),
        ];
        let out_of_range = durations
            .into_iter()
            .filter(|(_, duration)| duration.is_zero() || *duration > LONGEST)
            .map(|(key, duration)| {
                let duration = humantime::format_duration(duration);
                let what = format!("is `{duration}`: expected more than zero and at most a day");
                (key, what)
            });
        let addresses = [
            ("metadata_url", self.metadata_url.as_deref()),
            (
                "provisioner",
                Some(self.provisioner.as_str()).filter(|text| !text.is_empty()),
            ),
        ];
        let wrong = addresses
            .into_iter()
            .filter_map(|(key, url)| Some((key, base_url(url?).err()?)));
        out_of_range
            .chain(wrong)
            .map(|(key, what)| {
                KeyFault::new(format!("fleet.{key}"), format!("`fleet.{key}` {what}"))
            })
            .collect()
    }
}

/// `url` without a slash at its end, if requests can be made below it.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub(super) fn base_url(url: &str) -> Result<String, String> {
    let expected = "expected `http://HOST:PORT`";
    let parsed = reqwest::Url::parse(url)
        .map_err(|error| format!("is not an address ({error}): {expected}"))?;
    let is_http = matches!(parsed.scheme(), "http" | "https");
    if !is_http || !parsed.has_host() {
        return Err(format!("is `{url}`: {expected}"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // Not repeated: it would be a password in a log.
        return Err(format!("holds a user or a password: {expected}"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(format!("is `{url}`: {expected}, without `?` and `#`"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_asks_nobody() {
        let config: FleetConfig = toml::from_str("").unwrap();
        assert_eq!(config, FleetConfig::default());
        assert!(!config.is_on());
        assert_eq!(config.validate(), []);
    }

    #[test]
    fn every_fault_is_said_at_once() {
        let config: FleetConfig = toml::from_str(
            "metadata = 'imds'\nmetadata_url = 'http://u:p@x'\nprovisioner = 'farm:8080'\n\
             ask_every = '0s'\nnotice_every = '2d'",
        )
        .unwrap();
        let said: Vec<_> = config
            .validate()
            .into_iter()
            .map(|fault| fault.message)
            .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn an_address_is_one_that_requests_can_be_made_below() {
        assert_eq!(base_url("http://farm:8080/").unwrap(), "http://farm:8080");
        for wrong in [
            "",
            "farm",
            "ftp://farm",
            "http://",
            "http://farm?a=b",
            "http://farm#a",
        ] {
            assert!(base_url(wrong).is_err(), "{wrong}");
        }
    }
}
