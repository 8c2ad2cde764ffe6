//! Whose processes are swept: named users, never root and never the sweeper itself.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::Uids;

/// User ids, each once, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Users(BTreeSet<u32>);

impl FromIterator<u32> for Users {
    fn from_iter<I: IntoIterator<Item = u32>>(uids: I) -> Self {
        Self(uids.into_iter().collect())
    }
}

impl Users {
    /// Whether `uid` is one of them.
    #[must_use]
    pub fn contains(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }

    /// Whether a process with these ids belongs to one of them.
    ///
    /// Any of the four ids counts: a setuid-root program that a job started still has the job's
    /// real user, and a program that lent its rights to a job's user has it as effective user.
    #[must_use]
    pub fn own(&self, uids: Uids) -> bool {
        self.owner(uids).is_some()
    }

    /// Which of them a process with these ids belongs to: by its effective user if that is one of
    /// them, else by its real, saved or file system user.
    #[must_use]
    pub fn owner(&self, uids: Uids) -> Option<u32> {
        let [real, effective, saved, filesystem] = uids.each();
        [effective, real, saved, filesystem]
            .into_iter()
            .find(|&uid| self.contains(uid))
    }

    /// Each id, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// The options that name them on the command line.
    #[must_use]
    pub fn options(&self) -> String {
        let options: Vec<String> = self.iter().map(|uid| format!("--user {uid}")).collect();
        options.join(" ")
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uids: Vec<String> = self.iter().map(|uid| uid.to_string()).collect();
        f.write_str(&uids.join(", "))
    }
}

/// A value of `--user` that is written like a user name or a user id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for UserName {
    type Err = String;

    /// Takes what `useradd` would: letters, digits, `_`, `.` and `-`, not first a `-`.
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$');
        let digits = text.chars().all(|c| c.is_ascii_digit());
        // 4294967295 is (uid_t)-1, which means "no change" to the kernel and is nobody's.
        let too_large = digits && !text.parse().is_ok_and(|uid: u32| uid < u32::MAX);
        if text.is_empty() || text.starts_with('-') || !text.chars().all(allowed) || too_large {
            return Err("expected a user name or a user id, such as `--user builder`".into());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why a user is not swept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error(
        "unknown user `{0}`, expected a name of the user database or a user id; list them with \
         `getent passwd`"
    )]
    Unknown(String),
    /// Root.
    #[error(
        "user `{0}` is root (uid 0), expected the user jobs run as; sweeping root would end the \
         system, name another with `--user`"
    )]
    Root(String),
    /// The user who runs this program.
    #[error(
        "user `{name}` (uid {uid}) is the one running cleanslate, expected the user jobs run as; \
         run it as root or name another with `--user`"
    )]
    Own {
        /// As given.
        name: String,
        /// Its id.
        uid: u32,
    },
    /// The user database could not be asked.
    #[error("cannot look up user `{name}`: {reason}; check with `getent passwd {name}`")]
    Lookup {
        /// As given.
        name: String,
        /// What the system said.
        reason: String,
    },
}

/// The users that `names` name; refuses root and `own`, the real user of this process.
///
/// `lookup` finds a name in the user database. As with `chown`, a name made of digits is looked up
/// first and taken as a user id if there is no such name.
///
/// # Errors
/// The first name that is unknown or refused.
pub fn resolve(
    names: &[UserName],
    own: u32,
    lookup: impl Fn(&str) -> Result<Option<u32>, String>,
) -> Result<Users, UserError> {
    names
        .iter()
        .map(|UserName(name)| resolve_one(name, own, &lookup))
        .collect()
}

fn resolve_one(
    name: &str,
    own: u32,
    lookup: impl Fn(&str) -> Result<Option<u32>, String>,
) -> Result<u32, UserError> {
    let known = lookup(name).map_err(|reason| UserError::Lookup {
        name: name.to_owned(),
        reason,
    })?;
    let uid = known
        .or_else(|| name.parse().ok())
        .ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    if uid == 0 {
        return Err(UserError::Root(name.to_owned()));
    }
    if uid == own {
        return Err(UserError::Own {
            name: name.to_owned(),
            uid,
        });
    }
    Ok(uid)
}

/// Finds a name in the system's user database.
///
/// # Errors
/// What the system said, if it could not be asked.
pub fn system_lookup(name: &str) -> Result<Option<u32>, String> {
    nix::unistd::User::from_name(name)
        .map(|user| user.map(|user| user.uid.as_raw()))
        .map_err(|errno| errno.desc().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Result<Option<u32>, String> {
        match name {
            "builder" => Ok(Some(1000)),
            "77" => Ok(Some(1077)),
            "toor" => Ok(Some(0)),
            "down" => Err("server gone".into()),
            _ => Ok(None),
        }
    }

    fn resolved(names: &[&str]) -> Result<Users, UserError> {
        let names: Vec<UserName> = names.iter().map(|name| name.parse().unwrap()).collect();
        resolve(&names, 500, lookup)
    }

    #[test]
    fn names_and_numbers_are_taken_and_repeats_merged() {
        let users = resolved(&["61001", "builder", "1000"]).unwrap();
        assert_eq!(users, Users::from_iter([1000, 61_001]));
    }

    #[test]
    fn a_name_made_of_digits_wins_over_the_number() {
        assert_eq!(resolved(&["77"]).unwrap(), Users::from_iter([1077]));
    }

    #[test]
    fn root_is_refused_by_number_and_under_any_name() {
        assert_eq!(resolved(&["0"]), Err(UserError::Root("0".into())));
        assert_eq!(resolved(&["toor"]), Err(UserError::Root("toor".into())));
    }

    #[test]
    fn the_own_user_is_refused() {
        assert_eq!(
            resolved(&["500"]),
            Err(UserError::Own {
                name: "500".into(),
                uid: 500
            })
        );
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert_eq!(
            resolved(&["builder", "bulider"]),
            Err(UserError::Unknown("bulider".into()))
        );
    }

    #[test]
    fn a_user_database_that_does_not_answer_is_not_an_unknown_user() {
        assert!(matches!(resolved(&["down"]), Err(UserError::Lookup { .. })));
    }

    #[test]
    fn what_cannot_be_a_user_name_is_refused() {
        for text in [
            "",
            "-1",
            "a b",
            "a/b",
            "a:b",
            "4294967295",
            "99999999999999999999",
        ] {
            assert!(text.parse::<UserName>().is_err(), "`{text}` was taken");
        }
    }

    #[test]
    fn the_highest_user_id_is_taken() {
        assert_eq!(
            resolved(&["4294967294"]).unwrap(),
            Users::from_iter([4_294_967_294])
        );
    }

    #[test]
    fn a_process_belongs_first_to_its_effective_user() {
        let users = Users::from_iter([1000, 1001]);
        let uids = Uids {
            effective: 1001,
            ..Uids::all(1000)
        };
        assert_eq!(users.owner(uids), Some(1001));
        assert_eq!(
            users.owner(Uids {
                effective: 0,
                ..uids
            }),
            Some(1000)
        );
        assert_eq!(users.owner(Uids::all(0)), None);
    }

    #[test]
    fn a_process_belongs_by_any_of_its_four_ids() {
        let users = Users::from_iter([1000]);
        let root = Uids::all(0);
        assert!(!users.own(root));
        assert!(users.own(Uids { real: 1000, ..root }));
        assert!(users.own(Uids {
            effective: 1000,
            ..root
        }));
        assert!(users.own(Uids {
            saved: 1000,
            ..root
        }));
        assert!(users.own(Uids {
            filesystem: 1000,
            ..root
        }));
    }
}
