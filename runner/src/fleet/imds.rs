//! Which instance this is: EC2's instance metadata service, version 2.
//!
//! A session token is fetched by PUT and sent with every GET; one that is no longer taken (401) is
//! fetched anew, once. What the service says becomes tags, file content and a part of an address,
//! so every value must be a plain word.

use std::cell::RefCell;

use farm_config::secret::{self, Secret};
use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::config::{FleetConfig, base_url};
use super::http;
use super::notice::Notice;

/// How long a session token is asked to be good for, in seconds: the longest EC2 gives, six hours.
const TOKEN_TTL: &str = "21600";
/// Longest user data, in bytes: EC2's own limit.
const MAX_USER_DATA: usize = 16 << 10;
/// Longest other value, in bytes: EC2's have a few dozen, a session token has 56.
const MAX_VALUE: usize = 1024;
/// Longest word that is believed, in characters: the length of a file name.
const MAX_WORD: usize = 255;
/// The version of the user data this program knows.
const USER_DATA_VERSION: u32 = 1;

/// This host, as the cloud knows it.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    /// `spot`, `on-demand` or another word of the cloud.
    pub(crate) capacity_type: String,
    pub(crate) user_data: UserData,
}

impl Instance {
    /// Whether the cloud may take it back.
    pub(super) fn is_spot(&self) -> bool {
        self.capacity_type == "spot"
    }
}

/// What the provisioner told the instance at its launch.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserData {
    pub(crate) pool: String,
    pub(crate) image: String,
    pub(super) provisioner: String,
    pub(super) join_token: Option<Secret>,
    /// Why it is not the provisioner's, if there is any.
    pub(super) foreign: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    farmhand: u32,
    pool: String,
    image: String,
    provisioner: String,
    join_token: String,
}

impl UserData {
    /// What is in `text`. User data of somebody else is none of ours, and no fault.
    fn parse(text: &[u8]) -> Self {
        let foreign = |why: String| Self {
            foreign: Some(why),
            ..Self::default()
        };
        // Not what the parser says: it may repeat what it read, and this holds a secret.
        let object = text.trim_ascii_start().starts_with(b"{");
        let Some(document) = object
            .then(|| serde_json::from_slice::<Document>(text).ok())
            .flatten()
        else {
            return foreign("it is not the JSON object expected".into());
        };
        if document.farmhand != USER_DATA_VERSION {
            return foreign(format!(
                "its key `farmhand` is {}: expected {USER_DATA_VERSION}; use an image with a runner that knows it",
                document.farmhand
            ));
        }
        for (key, value) in [("pool", &document.pool), ("image", &document.image)] {
            if !value.is_empty() && !is_word(value) {
                return foreign(format!("its key `{key}` is no plain word"));
            }
        }
        let provisioner = match document.provisioner.as_str() {
            "" => String::new(),
            url => match base_url(url) {
                Ok(url) => url,
                Err(fault) => return foreign(format!("its key `provisioner` {fault}")),
            },
        };
        Self {
            pool: document.pool,
            image: document.image,
            provisioner,
            join_token: secret::parse(&document.join_token),
            foreign: None,
        }
    }
}

/// A word that can be a tag and a part of an address: no space, no slash, nothing invisible.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:+@".contains(c);
    !text.is_empty() && text.len() <= MAX_WORD && text.chars().all(plain) && !text.starts_with('.')
}

/// The metadata service.
#[derive(Debug)]
pub(super) struct Imds {
    http: Client,
    base: String,
    token: RefCell<Option<Secret>>,
}

impl Imds {
    /// The service at `base`.
    ///
    /// # Errors
    /// If there can be no client.
    pub(super) fn new(config: &FleetConfig, base: &str) -> Result<Self, String> {
        Ok(Self {
            http: http::client(config).map_err(|error| error.to_string())?,
            base: base_url(base)?,
            token: RefCell::default(),
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.base
    }

    /// This host, as the cloud knows it.
    ///
    /// # Errors
    /// What the service did not say, and why.
    pub(super) async fn instance(&self) -> Result<Instance, String> {
        let id = self
            .word("meta-data/instance-id")
            .await?
            .ok_or("`meta-data/instance-id`: there is none")?;
        let word = async |path| Ok::<_, String>(self.word(path).await?.unwrap_or_default());
        let user_data = self.get("user-data", MAX_USER_DATA).await?;
        Ok(Instance {
            id,
            image: word("meta-data/ami-id").await?,
            region: word("meta-data/placement/region").await?,
            zone: word("meta-data/placement/availability-zone").await?,
            capacity_type: word("meta-data/instance-life-cycle").await?,
            user_data: user_data.map_or_else(UserData::default, |text| UserData::parse(&text)),
        })
    }

    /// The spot notice, if there is one.
    ///
    /// # Errors
    /// Why it is not known whether there is one.
    pub(super) async fn notice(&self) -> Result<Option<Notice>, String> {
        let path = "meta-data/spot/instance-action";
        let Some(text) = self.get(path, MAX_VALUE).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text);
        Notice::parse(&text)
            .map(Some)
            .map_err(|error| format!("`{path}`: no spot notice: {error}"))
    }

    async fn word(&self, path: &str) -> Result<Option<String>, String> {
        let Some(value) = self.get(path, MAX_VALUE).await? else {
            return Ok(None);
        };
        let value = String::from_utf8_lossy(&value).trim().to_owned();
        if is_word(&value) {
            Ok(Some(value))
        } else {
            Err(format!("`{path}`: not a plain word"))
        }
    }

    /// The value at `path`; none if the service knows of none.
    async fn get(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, String> {
        let failed = |why: String| format!("`{path}`: {why}");
        for is_last in [false, true] {
            let token = self.session_token().await?;
            let request = self
                .http
                .get(format!("{}/latest/{path}", self.base))
                .header("X-aws-ec2-metadata-token", http::sensitive(token.expose()));
            let answer = http::send(request, limit).await.map_err(failed)?;
            match answer.status {
                StatusCode::OK => return Ok(Some(answer.body)),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !is_last => {
                    self.token.replace(None);
                }
                status => return Err(failed(format!("answered {status}"))),
            }
        }
        unreachable!("the second answer returns")
    }

    async fn session_token(&self) -> Result<Secret, String> {
        if let Some(token) = self.token.borrow().clone() {
            return Ok(token);
        }
        let failed = |why: String| format!("`api/token`: {why}");
        let request = self
            .http
            .put(format!("{}/latest/api/token", self.base))
            .header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL);
        let answer = http::send(request, MAX_VALUE).await.map_err(failed)?;
        if answer.status != StatusCode::OK {
            return Err(failed(format!("answered {}", answer.status)));
        }
        let token = secret::parse(&String::from_utf8_lossy(&answer.body))
            .ok_or_else(|| failed("answered no token".into()))?;
        self.token.replace(Some(token.clone()));
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_of_the_provisioner_is_read_and_unknown_keys_are_ignored() {
        let read = UserData::parse(
            br#"{"farmhand":1,"pool":"linux64","image":"img-7","provisioner":"http://farm:8080/",
                 "join_token":"t0k3n","intent":"i-1","later":{"a":1}}"#,
        );
        assert_eq!(read.foreign, None);
        assert_eq!(
            (read.pool.as_str(), read.image.as_str()),
            ("linux64", "img-7")
        );
        assert_eq!(read.provisioner, "http://farm:8080");
        assert_eq!(read.join_token.unwrap().expose(), "t0k3n");
    }

    #[test]
    fn user_data_of_somebody_else_is_none_of_ours() {
        let said: Vec<String> = [
            "#!/bin/sh\necho s3cr3t",
            "",
            "[1]",
            r#"{"pool":"linux64"}"#,
            r#"{"farmhand":2,"pool":"linux64","join_token":"s3cr3t"}"#,
            r#"{"farmhand":"s3cr3t"}"#,
            r#"{"farmhand":1,"pool":"a b"}"#,
            r#"{"farmhand":1,"provisioner":"http://u:s3cr3t@farm"}"#,
        ]
        .into_iter()
        .map(|text| UserData::parse(text.as_bytes()).foreign.unwrap())
        .collect();
        assert!(said.iter().all(|why| !why.contains("s3cr3t")), "{said:?}");
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn only_plain_words_become_tags_and_parts_of_an_address() {
        for word in ["i-0abc", "us-west-2a", "linux64.2026", "on-demand"] {
            assert!(is_word(word), "{word}");
        }
        for wrong in ["", "a b", "a/b", "..", "a\n", "ü", "a?b", &"x".repeat(256)] {
            assert!(!is_word(wrong), "{wrong:?}");
        }
    }
}
