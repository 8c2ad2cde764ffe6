//! The table `[jobs]` of `runner.toml`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where local jobs come from and how they run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobsConfig {
    /// Directory of the spool; without it there is none.
    pub spool: Option<PathBuf>,
    /// User that jobs run as; without it the user that runs `runner`.
    pub user: Option<String>,
    /// Longest run of a job; `0s` is none.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Time between SIGTERM and SIGKILL when a job is ended.
    #[serde(with = "humantime_serde")]
    pub grace_period: Duration,
    /// How long to wait for a job; `0s` is for ever.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            spool: None,
            user: None,
            timeout: Duration::from_secs(2 * 60 * 60),
            grace_period: Duration::from_secs(10),
            wait: Duration::ZERO,
        }
    }
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {message}")]
pub struct ConfigFault {
    /// Path of the key.
    pub key: &'static str,
    /// What was found, and what was expected.
    pub message: String,
}

impl JobsConfig {
    /// Everything that the types of the keys do not say.
    #[must_use]
    pub fn validate(&self) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        let relative = self.spool.as_ref().filter(|spool| !spool.is_absolute());
        if let Some(spool) = relative {
            faults.push(ConfigFault {
                key: "jobs.spool",
                message: format!("is `{}`: expected an absolute path", spool.display()),
            });
        }
        if self.user.as_deref() == Some("") {
            faults.push(ConfigFault {
                key: "jobs.user",
                message: "is empty: expected the name of a user, or no such key".into(),
            });
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default() {
        assert_eq!(
            toml::from_str::<JobsConfig>("").unwrap(),
            JobsConfig::default()
        );
    }

    #[test]
    fn durations_are_words() {
        let config: JobsConfig = toml::from_str("timeout = '90m'\nwait = '0s'").unwrap();
        assert_eq!(config.timeout, Duration::from_secs(90 * 60));
        assert_eq!(config.wait, Duration::ZERO);
        assert!(toml::from_str::<JobsConfig>("timeout = 90").is_err());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = toml::from_str::<JobsConfig>("timeuot = '1s'")
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `timeuot`"), "{error}");
    }

    #[test]
    fn every_fault_is_said_at_once() {
        let config: JobsConfig = toml::from_str("spool = 'jobs'\nuser = ''").unwrap();
        let said: Vec<_> = config.validate().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "`jobs.spool` is `jobs`: expected an absolute path",
                "`jobs.user` is empty: expected the name of a user, or no such key",
            ]
        );
        assert_eq!(JobsConfig::default().validate(), []);
    }
}
