//! The names of things, each a type of its own so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// Longest name: a tag value of EC2 may have 256 characters, a template name 128.
const LONGEST: usize = 128;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{shown}` is no {what}: expected 1 to {LONGEST} of the characters A-Z a-z 0-9 . _ : / + -"
)]
pub struct NameFault {
    what: &'static str,
    shown: String,
}

fn checked(text: &str, what: &'static str) -> Result<SmolStr, NameFault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/+-".contains(&byte);
    if text.is_empty() || text.len() > LONGEST || !text.bytes().all(plain) {
        return Err(NameFault {
            what,
            shown: text
                .chars()
                .take(LONGEST)
                .flat_map(char::escape_debug)
                .collect(),
        });
    }
    Ok(SmolStr::new(text))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "SmolStr", into = "SmolStr")]
        pub struct $name(SmolStr);

        impl $name {
            #[doc = concat!("The ", $what, " written as `text`.")]
            ///
            /// # Errors
            /// If it is empty, too long, or has a character that no such name has.
            pub fn parse(text: &str) -> Result<Self, NameFault> {
                checked(text, $what).map(Self)
            }

            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameFault;
            fn from_str(text: &str) -> Result<Self, NameFault> {
                Self::parse(text)
            }
        }

        impl TryFrom<SmolStr> for $name {
            type Error = NameFault;
            fn try_from(text: SmolStr) -> Result<Self, NameFault> {
                Self::parse(&text)
            }
        }

        impl From<$name> for SmolStr {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.0.as_str(), f)
            }
        }
    )*};
}

names! {
    /// Hosts of one kind that share a queue.
    PoolName: "pool";
    /// An image as people call it; each region has its own [`ImageId`] for it.
    ImageName: "image";
    /// An image as the cloud calls it in one region (`ami-…`; a directory for the local cloud).
    ImageId: "image id";
    /// A machine as the cloud calls it (`i-…`).
    InstanceId: "instance id";
    /// What the cloud calls a kind of machine (`c6i.2xlarge`).
    InstanceType: "instance type";
    /// A region of the cloud.
    Region: "region";
    /// A zone of a region.
    Zone: "zone";
    /// One decision to launch; unique for ever, across stores.
    IntentId: "intent";
    /// A source of demand, as the configuration calls it.
    SourceName: "source";
}

/// One pass of the loop; they count from 1 and never repeat within a store.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PassId(pub u64);

impl fmt::Display for PassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_every_part_of_the_farm_can_write() {
        for good in [
            "linux64",
            "us-east-1a",
            "c6i.2xlarge",
            "i-0123456789abcdef0",
        ] {
            assert_eq!(
                PoolName::parse(good).map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "two words",
            "new\nline",
            "ümlaut",
            &"x".repeat(LONGEST + 1),
        ] {
            assert!(PoolName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_fault_cannot_forge_a_line() {
        let fault = PoolName::parse("a\nb").unwrap_err();
        assert_eq!(
            fault.to_string(),
            r"`a\nb` is no pool: expected 1 to 128 of the characters A-Z a-z 0-9 . _ : / + -"
        );
    }
}
