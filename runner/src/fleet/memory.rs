//! What outlives the process: who this host is to the provisioner, and that it must not work again.
//!
//! Both files belong to one instance. On another one, started from an image of this host, they
//! count for nothing and are made anew.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use farm_config::secret::{self, Secret};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CurrentJob;
use super::assignment::{Activity, Order};
use super::notice::Notice;
use crate::state::{UNFINISHED, write_atomically};

/// The key and the token of this host, for its owner only.
const SECRETS: &str = "fleet.json";
/// There as long as the host was told to quit.
const FENCE: &str = "fence.json";
/// What `runner status` shows.
const STATUS: &str = "fleet-status.json";

/// Length of a key in bytes: nobody guesses it.
const KEY_BYTES: usize = 16;

/// Who this host is to the provisioner.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) instance_id: String,
    /// Made once; what registers this host, and no other, for its instance.
    pub(super) key: Secret,
    /// What the provisioner gave for it.
    pub(super) host_token: Option<Secret>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    instance_id: String,
    key: String,
    host_token: Option<String>,
}

impl Membership {
    /// A new one, with a key of `random` bytes.
    pub(super) fn new(instance_id: &str, random: [u8; KEY_BYTES]) -> Self {
        let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            instance_id: instance_id.to_owned(),
            key: secret::parse(&key).expect("hexadecimal digits fit into a header"),
            host_token: None,
        }
    }

    /// The one kept in `directory`, if it is of this instance. A damaged file is none.
    pub(super) fn load(directory: &Path, instance_id: &str) -> Option<Self> {
        let text = fs_err::read(directory.join(SECRETS)).ok()?;
        let stored: Stored = serde_json::from_slice(&text).ok()?;
        let key = secret::parse(&stored.key)?;
        (stored.instance_id == instance_id).then(|| Self {
            instance_id: stored.instance_id,
            key,
            host_token: stored.host_token.as_deref().and_then(secret::parse),
        })
    }

    /// Keeps it, so that not even a power failure loses the key after it was shown to anybody.
    ///
    /// # Errors
    /// If the directory cannot be written; the file is then as it was.
    pub(super) fn save(&self, directory: &Path) -> std::io::Result<()> {
        let stored = Stored {
            instance_id: self.instance_id.clone(),
            key: self.key.expose().to_owned(),
            host_token: self
                .host_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
        };
        let text = serde_json::to_vec(&stored).map_err(std::io::Error::other)?;
        write_durably(&directory.join(SECRETS), &text)
    }
}

/// That the host was told to quit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fence {
    pub(super) instance_id: String,
    pub(super) reason: Option<String>,
    pub(super) text: String,
    pub(super) at: Timestamp,
}

impl Fence {
    /// The fence in `directory`. One that cannot be read is one all the same.
    pub(super) fn load(directory: &Path) -> Option<Self> {
        match fs_err::read(directory.join(FENCE)) {
            Ok(text) => Some(serde_json::from_slice(&text).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => Some(Self::default()),
        }
    }

    /// Whether it is of another instance: that of the host this one's image was made from.
    pub(super) fn is_of_another(&self, instance_id: &str) -> bool {
        !self.instance_id.is_empty() && self.instance_id != instance_id
    }

    /// Puts it up.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub(super) fn save(&self, directory: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        write_durably(&directory.join(FENCE), &text)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// If it stays.
    pub(super) fn remove(directory: &Path) -> std::io::Result<()> {
        fs_err::remove_file(directory.join(FENCE))
    }
}

/// Where the fence is, for people.
pub(super) fn fence_path(directory: &Path) -> PathBuf {
    directory.join(FENCE)
}

/// What `runner status` shows of the fleet. No secret is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetStatus {
    /// Instance, once the metadata service has told it.
    pub instance_id: Option<String>,
    /// Zone it is in.
    pub zone: String,
    /// `spot` or `on-demand`.
    pub capacity_type: String,
    /// What goes wrong with the metadata service.
    pub metadata_error: Option<String>,
    /// Address of the provisioner.
    pub provisioner: Option<String>,
    /// Since when it has answered, or has not.
    pub since: Timestamp,
    /// Whether its last answer was of use; none if it was not asked yet.
    pub is_reached: Option<bool>,
    /// Why not, in a word.
    pub fault: String,
    /// Why not.
    pub error: Option<String>,
    /// What is in force.
    pub assignment: Order,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub text: String,
    /// What the provisioner said instead of a quit that it cannot take back.
    pub refused: Option<Order>,
    /// What the host says it is doing.
    pub activity: Activity,
    /// The job it has.
    pub job: Option<CurrentJob>,
    /// The spot notice.
    pub notice: Option<Notice>,
    /// The job the last notice cost.
    pub lost_job: Option<CurrentJob>,
}

impl FleetStatus {
    /// What was written last, if anything.
    #[must_use]
    pub fn load(directory: &Path) -> Option<Self> {
        let text = fs_err::read(directory.join(STATUS)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn save(&self, directory: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        write_atomically(&directory.join(STATUS), &text)
    }
}

/// As [`write_atomically`], and on the disk when it returns.
fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs_err::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_membership_is_kept_for_its_owner_and_its_instance_only() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        assert!(Membership::load(place, "i-1").is_none());
        let mut member = Membership::new("i-1", [0xab; KEY_BYTES]);
        assert_eq!(member.key.expose(), "ab".repeat(16));
        member.save(place).unwrap();
        assert!(Membership::load(place, "i-1").unwrap().host_token.is_none());
        member.host_token = secret::parse("t0k3n");
        member.save(place).unwrap();
        let loaded = Membership::load(place, "i-1").unwrap();
        assert_eq!(loaded.key, member.key);
        assert_eq!(loaded.host_token, member.host_token);
        assert!(Membership::load(place, "i-2").is_none());
        let mode = fs_err::metadata(place.join(SECRETS))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let shown = format!("{member:?}");
        assert!(
            !shown.contains("abab") && !shown.contains("t0k3n"),
            "{shown}"
        );
    }

    #[test]
    fn a_damaged_membership_is_none() {
        let directory = tempfile::tempdir().unwrap();
        for damaged in ["", "{", r#"{"instance_id":"i-1","key":""}"#] {
            fs_err::write(directory.path().join(SECRETS), damaged).unwrap();
            assert!(
                Membership::load(directory.path(), "i-1").is_none(),
                "{damaged}"
            );
        }
    }

    #[test]
    fn a_fence_that_cannot_be_read_is_one_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        assert_eq!(Fence::load(place), None);
        let fence = Fence {
            instance_id: "i-1".into(),
            reason: Some("drifted".into()),
            ..Fence::default()
        };
        fence.save(place).unwrap();
        let loaded = Fence::load(place).unwrap();
        assert_eq!(loaded, fence);
        assert!(loaded.is_of_another("i-2") && !loaded.is_of_another("i-1"));
        fs_err::write(fence_path(place), "{").unwrap();
        let damaged = Fence::load(place).unwrap();
        assert!(!damaged.is_of_another("i-2"));
        Fence::remove(place).unwrap();
        assert_eq!(Fence::load(place), None);
    }
}
