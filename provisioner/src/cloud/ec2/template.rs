//! Launch templates: what every instance of a pool and image has in common.
//!
//! There is one template for each (fleet, pool, image) and region, and one version for each content it
//! ever had. A version is found again by the digest of its content in its description, so a restart
//! finds what was made before, and the same request sent again names the same version. Two provisioners
//! that make the same version at the same time send the same token and get the same one; should EC2
//! have forgotten the token there are two versions with the same content, which does no harm.
//!
//! Versions are never changed nor deleted here: a request that is sent again may still name one.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use tokio::sync::Mutex;

use super::action::Action;
use super::call::Caller;
use super::fault::{self, Fault};
use super::{tags, token};
use crate::cloud::budget::Priority;
use crate::cloud::{ShortReason, UserData};
use crate::config::{PoolSettings, RegionSettings};

/// "User data is limited to 16 KB, in raw form, before it is base64-encoded" (EC2 User Guide).
const MOST_USER_DATA: usize = 16 * 1024;

/// The root volume, where a pool wants another size than its image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RootVolume {
    /// As the image calls it: `/dev/xvda`.
    pub(super) device: String,
    pub(super) gib: u32,
}

/// What a version says. Image, type and subnet are said by each launch.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub(super) struct Content<'a> {
    user_data: &'a str,
    security_groups: &'a [String],
    instance_profile: Option<&'a str>,
    key_name: Option<&'a str>,
    root_volume: Option<RootVolume>,
}

impl<'a> Content<'a> {
    pub(super) fn of(
        region: &'a RegionSettings,
        pool: &'a PoolSettings,
        root_volume: Option<RootVolume>,
        user_data: &'a UserData,
    ) -> Result<Self, Fault> {
        let length = user_data.json.len();
        if length > MOST_USER_DATA {
            return Err(Fault::refused(
                ShortReason::Settings,
                format!("user data has {length} bytes: expected at most {MOST_USER_DATA}"),
            ));
        }
        Ok(Self {
            user_data: &user_data.json,
            security_groups: &region.security_groups,
            instance_profile: pool.instance_profile.as_deref(),
            key_name: pool.key_name.as_deref(),
            root_volume,
        })
    }

    /// What stands for this content: the SHA-256 of it as JSON, and of what [`Self::request`] adds.
    fn digest(&self) -> String {
        // Counts up when `request` says something else for the same content.
        const FORM: &str = "1";
        let json = serde_json::to_string(self).expect("text and numbers serialise");
        token::digest(&[FORM, &json])
    }

    fn request(&self) -> types::RequestLaunchTemplateData {
        let metadata = types::LaunchTemplateInstanceMetadataOptionsRequest::builder()
            .http_endpoint(types::LaunchTemplateInstanceMetadataEndpointState::Enabled)
            // IMDSv2 only, and no packet leaves the host's own network namespace: a job in a
            // container does not reach the role of the host.
            .http_tokens(types::LaunchTemplateHttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .build();
        let groups = (!self.security_groups.is_empty()).then(|| self.security_groups.to_vec());
        types::RequestLaunchTemplateData::builder()
            .user_data(STANDARD.encode(self.user_data))
            .metadata_options(metadata)
            // A host that powers itself off is gone, and does not cost storage for ever.
            .instance_initiated_shutdown_behavior(types::ShutdownBehavior::Terminate)
            .set_security_group_ids(groups)
            .set_iam_instance_profile(self.instance_profile.map(profile))
            .set_key_name(self.key_name.map(str::to_owned))
            .set_block_device_mappings(self.root_volume.as_ref().map(|root| vec![volume(root)]))
            .build()
    }
}

fn profile(text: &str) -> types::LaunchTemplateIamInstanceProfileSpecificationRequest {
    let profile = types::LaunchTemplateIamInstanceProfileSpecificationRequest::builder();
    if text.starts_with("arn:") {
        profile.arn(text).build()
    } else {
        profile.name(text).build()
    }
}

fn volume(root: &RootVolume) -> types::LaunchTemplateBlockDeviceMappingRequest {
    let disk = types::LaunchTemplateEbsBlockDeviceRequest::builder()
        .volume_size(i32::try_from(root.gib).unwrap_or(i32::MAX))
        .volume_type(types::VolumeType::Gp3)
        .delete_on_termination(true)
        .build();
    types::LaunchTemplateBlockDeviceMappingRequest::builder()
        .device_name(&root.device)
        .ebs(disk)
        .build()
}

/// A version of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) template: String,
    pub(super) number: i64,
}

/// What is known of one template.
#[derive(Debug, Default)]
struct Slot {
    /// The version used last, and the digest of its content.
    known: Option<(String, Version)>,
    /// How often it was found deleted.
    lost: u32,
}

/// The templates of one region.
#[derive(Debug, Default)]
pub(super) struct Templates(Mutex<BTreeMap<String, Arc<Mutex<Slot>>>>);

impl Templates {
    /// The version of template `name` with this content; made if there is none. `tags` are those of
    /// the template.
    pub(super) async fn version(
        &self,
        caller: &Caller,
        name: &str,
        content: &Content<'_>,
        tags: &[types::Tag],
    ) -> Result<Version, Fault> {
        let digest = content.digest();
        let slot = self.slot(name).await;
        let mut slot = slot.lock().await;
        if let Some((known, version)) = &slot.known
            && *known == digest
        {
            return Ok(version.clone());
        }
        let making = Making {
            caller,
            name,
            content,
            description: format!("farmhand sha256:{digest}"),
            token: token::of_template(name, &digest, slot.lost),
            tags,
        };
        let version = making.find_or_make().await?;
        slot.known = Some((digest, version.clone()));
        Ok(version)
    }

    /// EC2 does not know the version any more: somebody deleted it. The next launch makes another.
    pub(super) async fn lost(&self, name: &str) {
        let slot = self.slot(name).await;
        let mut slot = slot.lock().await;
        slot.known = None;
        slot.lost += 1;
    }

    async fn slot(&self, name: &str) -> Arc<Mutex<Slot>> {
        let mut slots = self.0.lock().await;
        Arc::clone(slots.entry(name.to_owned()).or_default())
    }
}

/// Codes of a template that is not there begin so.
pub(super) const MISSING: &str = "InvalidLaunchTemplate";

struct Making<'a> {
    caller: &'a Caller,
    name: &'a str,
    content: &'a Content<'a>,
    description: String,
    token: String,
    tags: &'a [types::Tag],
}

impl Making<'_> {
    async fn find_or_make(&self) -> Result<Version, Fault> {
        match self.find().await {
            Ok(Some(version)) => Ok(version),
            Ok(None) => self.make_version().await,
            Err(fault) if fault.is_missing(MISSING) => match self.make_template().await {
                // Another provisioner made it meanwhile.
                Err(fault)
                    if fault.code() == "InvalidLaunchTemplateName.AlreadyExistsException" =>
                {
                    match self.find().await? {
                        Some(version) => Ok(version),
                        None => self.make_version().await,
                    }
                }
                made => made,
            },
            Err(fault) => Err(fault),
        }
    }

    /// The oldest version with our description: the one that everybody finds.
    async fn find(&self) -> Result<Option<Version>, Fault> {
        let mut found: Option<i64> = None;
        let mut next: Option<String> = None;
        loop {
            let page = self
                .call(Action::DescribeLaunchTemplateVersions, |client| {
                    client
                        .describe_launch_template_versions()
                        .launch_template_name(self.name)
                        // The most that EC2 allows.
                        .max_results(200)
                        .set_next_token(next.clone())
                        .send()
                })
                .await?;
            let numbers = page
                .launch_template_versions()
                .iter()
                .filter(|version| version.version_description() == Some(&self.description))
                .filter_map(types::LaunchTemplateVersion::version_number);
            found = found.into_iter().chain(numbers).min();
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found.map(|number| self.version(number)));
            }
        }
    }

    async fn make_template(&self) -> Result<Version, Fault> {
        let tags = tags::specification(types::ResourceType::LaunchTemplate, self.tags);
        let made = self
            .call(Action::CreateLaunchTemplate, |client| {
                client
                    .create_launch_template()
                    .launch_template_name(self.name)
                    .version_description(&self.description)
                    .launch_template_data(self.content.request())
                    .client_token(&self.token)
                    .tag_specifications(tags.clone())
                    .send()
            })
            .await?;
        let template = made.launch_template();
        let number = template.and_then(types::LaunchTemplate::latest_version_number);
        Ok(self.version(number.unwrap_or(1)))
    }

    async fn make_version(&self) -> Result<Version, Fault> {
        let made = self
            .call(Action::CreateLaunchTemplateVersion, |client| {
                client
                    .create_launch_template_version()
                    .launch_template_name(self.name)
                    .version_description(&self.description)
                    .launch_template_data(self.content.request())
                    .client_token(&self.token)
                    .send()
            })
            .await?;
        made.launch_template_version()
            .and_then(types::LaunchTemplateVersion::version_number)
            .map(|number| self.version(number))
            .ok_or_else(|| Fault::Lost {
                message: format!("EC2 made a version of {} and did not say which", self.name),
            })
    }

    async fn call<O, E, F>(&self, action: Action, send: impl Fn(Client) -> F) -> Result<O, Fault>
    where
        E: std::error::Error + aws_sdk_ec2::error::ProvideErrorMetadata + 'static,
        F: Future<Output = Result<O, aws_sdk_ec2::error::SdkError<E>>>,
    {
        self.caller.call(action, Priority::Launch, 0, send).await
    }

    fn version(&self, number: i64) -> Version {
        Version {
            template: self.name.to_owned(),
            number,
        }
    }
}

/// What a launch whose template vanished is told.
pub(super) fn vanished(fault: &Fault) -> Fault {
    Fault::Throttled {
        retry_after: fault::LATER,
        message: format!(
            "{}; it will be made again by the next attempt",
            fault::shown(fault.message())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(change: impl FnOnce(&mut RegionSettings, &mut PoolSettings, &mut String)) -> String {
        let (mut region, mut pool) = (RegionSettings::default(), PoolSettings::default());
        let mut json = r#"{"farmhand":1}"#.to_owned();
        change(&mut region, &mut pool, &mut json);
        let root = pool.root_volume_gib.map(|gib| RootVolume {
            device: "/dev/xvda".into(),
            gib,
        });
        let user_data = UserData { json };
        Content::of(&region, &pool, root, &user_data)
            .unwrap()
            .digest()
    }

    #[test]
    fn content_has_another_digest_if_and_only_if_an_instance_would_differ() {
        let same = digest(|_, _, _| {});
        let unrelated = digest(|region, pool, _| {
            region.max_instances = Some(7);
            pool.max = 99;
        });
        assert_eq!(unrelated, same);
        let different = [
            digest(|_, _, json| json.push(' ')),
            digest(|region, _, _| region.security_groups.push("sg-1".into())),
            digest(|_, pool, _| pool.instance_profile = Some("host".into())),
            digest(|_, pool, _| pool.key_name = Some("host".into())),
            digest(|_, pool, _| pool.root_volume_gib = Some(100)),
        ];
        let mut all: Vec<_> = different.into_iter().chain([same]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn a_digest_does_not_change_from_release_to_release() {
        assert_eq!(&digest(|_, _, _| {})[..16], "5ec9518fff9e19ec");
    }

    #[test]
    fn hosts_have_imds_v2_only_and_end_when_they_power_off() {
        let (region, pool) = (RegionSettings::default(), PoolSettings::default());
        let user_data = UserData { json: "{}".into() };
        let content = Content::of(&region, &pool, None, &user_data).unwrap();
        let data = content.request();
        let metadata = data.metadata_options().unwrap();
        assert_eq!(
            metadata.http_tokens(),
            Some(&types::LaunchTemplateHttpTokensState::Required)
        );
        assert_eq!(metadata.http_put_response_hop_limit(), Some(1));
        assert_eq!(
            data.instance_initiated_shutdown_behavior(),
            Some(&types::ShutdownBehavior::Terminate)
        );
        assert_eq!(data.user_data(), Some("e30="));
        // The image is said by each launch: a template without it serves every region's image.
        assert_eq!(data.image_id(), None);
    }

    #[test]
    fn user_data_over_the_limit_is_refused_before_ec2_is_asked() {
        let (region, pool) = (RegionSettings::default(), PoolSettings::default());
        let of = |length| {
            let user_data = UserData {
                json: "x".repeat(length),
            };
            Content::of(&region, &pool, None, &user_data).map(|_| ())
        };
        assert_eq!(of(MOST_USER_DATA), Ok(()));
        let fault = of(MOST_USER_DATA + 1).unwrap_err();
        assert_eq!(
            fault.message(),
            "user data has 16385 bytes: expected at most 16384"
        );
    }
}
