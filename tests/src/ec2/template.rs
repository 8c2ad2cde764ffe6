//! Launch templates: a name, versions that never change, and one of them the default ("Store instance
//! launch parameters in Amazon EC2 launch templates", EC2 User Guide).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::error::ApiError;
use super::filter::Filters;
use super::ids::Ids;
use super::instance::{moment, write_tags};
use super::page::Page;
use super::params::Params;
use super::region::Scope;
use super::tags;
use super::xml::Xml;

/// "User data is limited to 16 KB, in raw form, before it is base64-encoded" ("Run commands when you
/// launch an EC2 instance", EC2 User Guide).
const USER_DATA_LIMIT: usize = 16 * 1024;

/// "Launch templates per Region" ("Amazon EC2 launch template quotas", EC2 User Guide).
const TEMPLATES_LIMIT: usize = 5_000;
/// "Versions per launch template" (same page).
const VERSIONS_LIMIT: usize = 10_000;

#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) id: String,
    pub(super) name: String,
    created_at: Timestamp,
    default: u64,
    /// By number; numbers are not used again.
    versions: BTreeMap<u64, Version>,
    tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    /// What was below `LaunchTemplateData`.
    pub(super) data: Params,
    description: Option<String>,
    created_at: Timestamp,
}

/// The templates of a region, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Templates(BTreeMap<String, Template>);

impl Templates {
    /// The one a request names, by `LaunchTemplateId` or `LaunchTemplateName`.
    pub(super) fn named(&self, params: &Params) -> Result<&Template, ApiError> {
        match (
            params.get("LaunchTemplateId"),
            params.get("LaunchTemplateName"),
        ) {
            (Some(id), None) => self.0.get(id).ok_or_else(|| unknown_id(id)),
            (None, Some(name)) => self.by_name(name).ok_or_else(|| unknown_name(name)),
            (Some(_), Some(_)) => Err(ApiError::invalid_combination(
                "You must specify either the launch template ID or the launch template name, but not both",
            )),
            (None, None) => Err(ApiError::missing_parameter("LaunchTemplateId")),
        }
    }

    fn by_name(&self, name: &str) -> Option<&Template> {
        self.0.values().find(|template| template.name == name)
    }

    fn named_mut(&mut self, params: &Params) -> Result<&mut Template, ApiError> {
        let id = self.named(params)?.id.clone();
        self.0.get_mut(&id).ok_or_else(|| unknown_id(&id))
    }

    pub(super) fn tags_mut(&mut self, id: &str) -> Option<&mut BTreeMap<String, String>> {
        Some(&mut self.0.get_mut(id)?.tags)
    }
}

impl Template {
    /// A version by `$Latest`, `$Default` or its number.
    pub(super) fn version(&self, version: &str) -> Result<(u64, &Version), ApiError> {
        let number = match version {
            "$Latest" => self.latest(),
            "$Default" => self.default,
            number => number.parse().map_err(|_| {
                let message = format!("The specified launch template version ({number}) is not valid. Expected a number, $Latest or $Default");
                ApiError::client("InvalidLaunchTemplateId.Malformed", message)
            })?,
        };
        let found = self.versions.get(&number);
        found.map(|found| (number, found)).ok_or_else(|| {
            let message = format!(
                "Could not find the specified version {number} for the launch template with ID {}.",
                self.id
            );
            ApiError::client("InvalidLaunchTemplateId.VersionNotFound", message)
        })
    }

    fn latest(&self) -> u64 {
        self.versions.keys().next_back().copied().unwrap_or(1)
    }

    fn write(&self, xml: &mut Xml, account: &str) {
        xml.text("launchTemplateId", &self.id)
            .text("launchTemplateName", &self.name)
            .text("createTime", moment(self.created_at))
            .text("createdBy", format!("arn:aws:iam::{account}:root"))
            .text("defaultVersionNumber", self.default)
            .text("latestVersionNumber", self.latest());
    }

    fn write_with_tags(&self, xml: &mut Xml, account: &str) {
        self.write(xml, account);
        write_tags(xml, Some(&self.tags));
    }

    fn write_version(&self, xml: &mut Xml, account: &str, number: u64, version: &Version) {
        xml.text("launchTemplateId", &self.id)
            .text("launchTemplateName", &self.name)
            .text("versionNumber", number)
            .optional("versionDescription", version.description.as_ref())
            .text("createTime", moment(version.created_at))
            .text("createdBy", format!("arn:aws:iam::{account}:root"))
            .text("defaultVersion", number == self.default)
            .within("launchTemplateData", |xml| write_data(xml, &version.data));
    }
}

/// `CreateLaunchTemplate`.
pub(super) fn create(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let name = params.required("LaunchTemplateName")?;
    let is_valid =
        |character: char| character.is_ascii_alphanumeric() || "()./_-".contains(character);
    if !(3..=128).contains(&name.len()) || !name.chars().all(is_valid) {
        let message = "Launch template names must be between 3 and 128 characters of letters, numbers and ()./-_";
        return Err(ApiError::client(
            "InvalidLaunchTemplateName.MalformedException",
            message,
        ));
    }
    let data = checked_data(params.under("LaunchTemplateData"))?;
    let tags = tags::specified(params, "TagSpecification", &["launch-template"])?;
    scope.once("CreateLaunchTemplate", params, |scope| {
        let Scope {
            region,
            ids,
            now,
            account,
            ..
        } = scope;
        let templates = &mut region.templates;
        if templates.by_name(name).is_some() {
            let message = "Launch template name already in use.";
            return Err(ApiError::client(
                "InvalidLaunchTemplateName.AlreadyExistsException",
                message,
            ));
        }
        if templates.0.len() >= TEMPLATES_LIMIT {
            let message = "You have reached your limit of launch templates.";
            return Err(ApiError::client("LaunchTemplateLimitExceeded", message));
        }
        let template = first_version(ids, *now, params, data, tags.get("launch-template"));
        let mut xml = Xml::default();
        xml.within("launchTemplate", |xml| {
            template.write_with_tags(xml, account)
        });
        templates.0.insert(template.id.clone(), template);
        Ok((xml, Vec::new()))
    })
}

fn first_version(
    ids: &mut Ids,
    now: Timestamp,
    params: &Params,
    data: Params,
    tags: Option<&BTreeMap<String, String>>,
) -> Template {
    let version = Version {
        data,
        description: params.get("VersionDescription").map(str::to_owned),
        created_at: now,
    };
    Template {
        id: ids.next("lt"),
        name: params
            .get("LaunchTemplateName")
            .unwrap_or_default()
            .to_owned(),
        created_at: now,
        default: 1,
        versions: BTreeMap::from([(1, version)]),
        tags: tags.cloned().unwrap_or_default(),
    }
}

/// `CreateLaunchTemplateVersion`: with `SourceVersion` the new version "inherits the same launch
/// parameters as the source version, except for parameters that you specify" (EC2 API Reference).
pub(super) fn create_version(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let given = checked_data(params.under("LaunchTemplateData"))?;
    scope.once("CreateLaunchTemplateVersion", params, |scope| {
        let (now, account) = (scope.now, scope.account);
        let template = scope.region.templates.named_mut(params)?;
        if template.versions.len() >= VERSIONS_LIMIT {
            let message = "You have reached your limit of versions of this launch template.";
            return Err(ApiError::client("VersionLimitExceeded", message));
        }
        let data = match params.get("SourceVersion") {
            None => given,
            Some(source) => inherited(&template.version(source)?.1.data, &given),
        };
        let version = Version {
            data,
            description: params.get("VersionDescription").map(str::to_owned),
            created_at: now,
        };
        let number = template.latest() + 1;
        template.versions.insert(number, version);
        let mut xml = Xml::default();
        xml.within("launchTemplateVersion", |xml| {
            template.write_version(xml, account, number, &template.versions[&number]);
        });
        Ok((xml, Vec::new()))
    })
}

/// What a source has, but for the parameters (whole structures and lists) that are given.
fn inherited(source: &Params, given: &Params) -> Params {
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let kept = source.iter().filter(|(name, _)| !given.has(&top(name)));
    kept.chain(given.iter()).collect()
}

/// `ModifyLaunchTemplate`: chooses the default version.
pub(super) fn modify(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    scope.once("ModifyLaunchTemplate", params, |scope| {
        let account = scope.account;
        let template = scope.region.templates.named_mut(params)?;
        let wanted = params.required("SetDefaultVersion")?;
        template.default = template.version(wanted)?.0;
        let mut xml = Xml::default();
        xml.within("launchTemplate", |xml| {
            template.write_with_tags(xml, account)
        });
        Ok((xml, Vec::new()))
    })
}

/// `DeleteLaunchTemplate`.
pub(super) fn delete(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let id = scope.region.templates.named(params)?.id.clone();
    let mut xml = Xml::default();
    if let Some(template) = scope.region.templates.0.remove(&id) {
        xml.within("launchTemplate", |xml| template.write(xml, scope.account));
    }
    Ok(xml)
}

/// `DescribeLaunchTemplates`: a template asked for by id or name must exist.
pub(super) fn describe(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let known = ["launch-template-name", "tag:", "tag-key"];
    let filters = Filters::of(params, &known)?;
    let (ids, names) = (
        params.list("LaunchTemplateId"),
        params.list("LaunchTemplateName"),
    );
    let templates = &scope.region.templates;
    for id in &ids {
        templates.0.get(id).ok_or_else(|| unknown_id(id))?;
    }
    for name in &names {
        templates.by_name(name).ok_or_else(|| unknown_name(name))?;
    }
    let is_named = |template: &&Template| {
        (ids.is_empty() && names.is_empty())
            || ids.contains(&template.id)
            || names.contains(&template.name)
    };
    let found = templates.0.values().filter(is_named).filter(|template| {
        filters.pass(|name| match name {
            "launch-template-name" => vec![template.name.clone()],
            other => tags::filter_values(Some(&template.tags), other),
        })
    });
    let page = Page::of(params, 1..=200)?;
    let (shown, next) = page.cut(found);
    let mut xml = Xml::default();
    xml.set("launchTemplates", shown, |xml, template| {
        template.write_with_tags(xml, scope.account);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// `DescribeLaunchTemplateVersions`, the latest first.
pub(super) fn describe_versions(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let template = scope.region.templates.named(params)?;
    let mut asked = Vec::new();
    for version in params.list("LaunchTemplateVersion") {
        asked.push(template.version(&version)?.0);
    }
    let least: u64 = params.number("MinVersion")?.unwrap_or(0);
    let most: u64 = params.number("MaxVersion")?.unwrap_or(u64::MAX);
    let found = template.versions.iter().rev().filter(|(number, _)| {
        (asked.is_empty() || asked.contains(number)) && (least..=most).contains(number)
    });
    let page = Page::of(params, 1..=200)?;
    let (shown, next) = page.cut(found);
    let mut xml = Xml::default();
    xml.set(
        "launchTemplateVersionSet",
        shown,
        |xml, (number, version)| {
            template.write_version(xml, scope.account, *number, version);
        },
    );
    xml.optional("nextToken", next);
    Ok(xml)
}

fn unknown_id(id: &str) -> ApiError {
    let message = format!("The specified launch template, with template ID {id}, does not exist.");
    ApiError::client("InvalidLaunchTemplateId.NotFound", message)
}

fn unknown_name(name: &str) -> ApiError {
    let message =
        format!("The specified launch template, with template name {name}, does not exist.");
    ApiError::client("InvalidLaunchTemplateName.NotFoundException", message)
}

fn checked_data(data: Params) -> Result<Params, ApiError> {
    if data.is_empty() {
        return Err(ApiError::missing_parameter("LaunchTemplateData"));
    }
    if let Some(user_data) = data.get("UserData") {
        check_user_data(user_data)?;
    }
    tags::specified(
        &data,
        "TagSpecification",
        &[
            "instance",
            "volume",
            "network-interface",
            "spot-instances-request",
        ],
    )?;
    Ok(data)
}

/// User data is base64 of at most 16 KiB.
pub(super) fn check_user_data(user_data: &str) -> Result<(), ApiError> {
    let decoded = STANDARD.decode(user_data).map_err(|_| {
        let message = "Invalid BASE64 encoding of user data.";
        ApiError::client("InvalidUserData.Malformed", message)
    })?;
    if decoded.len() > USER_DATA_LIMIT {
        let message = format!("User data is limited to {USER_DATA_LIMIT} bytes");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    Ok(())
}

/// Names of lists in requests, and the names of list and item in answers.
const LISTS: [(&str, &str, &str); 8] = [
    ("BlockDeviceMapping", "blockDeviceMappingSet", "item"),
    ("NetworkInterface", "networkInterfaceSet", "item"),
    ("NetworkInterface.SecurityGroupId", "groupSet", "groupId"),
    ("TagSpecification", "tagSpecificationSet", "item"),
    ("TagSpecification.Tag", "tagSet", "item"),
    ("SecurityGroupId", "securityGroupIdSet", "item"),
    ("SecurityGroup", "securityGroupSet", "item"),
    ("LicenseSpecification", "licenseSet", "item"),
];

/// Template data as an answer has it: the names of the request in camel case, lists by [`LISTS`].
fn write_data(xml: &mut Xml, data: &Params) {
    write_below(xml, "", data);
}

fn write_below(xml: &mut Xml, path: &str, data: &Params) {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in data.iter() {
        let top = name.split('.').next().unwrap_or_default();
        if names.last() != Some(&top) {
            names.push(top);
        }
    }
    for name in names {
        let full = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        };
        let list = LISTS.iter().find(|(list, _, _)| *list == full);
        if let Some((_, set, item)) = list {
            xml.within(set, |xml| {
                for text in data.list(name) {
                    xml.text(item, text);
                }
                for below in data.structures(name) {
                    xml.within(item, |xml| write_below(xml, &full, &below));
                }
            });
        } else if let Some(value) = data.get(name) {
            xml.text(&camel(name), value);
        } else {
            xml.within(&camel(name), |xml| {
                write_below(xml, &full, &data.under(name))
            });
        }
    }
}

fn camel(name: &str) -> String {
    let (first, rest) = name.split_at(name.len().min(1));
    first.to_ascii_lowercase() + rest
}
