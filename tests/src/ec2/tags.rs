//! Tags: at creation, later, and in filters ("Tag your Amazon EC2 resources", EC2 User Guide).

use std::collections::BTreeMap;

use super::error::ApiError;
use super::ids;
use super::params::Params;
use super::region::{Scope, not_found};
use super::xml::Xml;

/// "Maximum number of tags per resource – 50" (same page). Tags EC2 adds do not count.
const TAGS_LIMIT: usize = 50;
/// "Maximum key length – 128 Unicode characters".
const KEY_LIMIT: usize = 128;
/// "Maximum value length – 256 Unicode characters".
const VALUE_LIMIT: usize = 256;
/// Resources of one `CreateTags` or `DeleteTags` (EC2 API Reference).
const RESOURCES_LIMIT: usize = 1000;

/// The tags of a resource.
pub(super) type Tags = BTreeMap<String, String>;

/// Tags of a request, by the type of resource they are for.
pub(super) fn specified(
    params: &Params,
    name: &str,
    resource_types: &[&str],
) -> Result<BTreeMap<String, Tags>, ApiError> {
    let mut specified: BTreeMap<String, Tags> = BTreeMap::new();
    for specification in params.structures(name) {
        let resource_type = specification.required("ResourceType")?;
        if !resource_types.contains(&resource_type) {
            let expected = format!("Expected one of {}.", resource_types.join(", "));
            return Err(ApiError::invalid_value(
                resource_type,
                "ResourceType",
                &expected,
            ));
        }
        let tags = specified.entry(resource_type.to_owned()).or_default();
        for (key, value) in given(&specification)? {
            if tags.insert(key.clone(), value).is_some() {
                let message = format!("Duplicate tag key '{key}' specified.");
                return Err(ApiError::client("InvalidParameterValue", message));
            }
        }
        check_count(tags)?;
    }
    Ok(specified)
}

/// `CreateTags`: adds or overwrites, on all resources or on none.
pub(super) fn create(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let tags = given(params)?;
    if tags.is_empty() {
        return Err(ApiError::missing_parameter("Tag"));
    }
    change(scope, params, |existing| {
        existing.extend(tags.iter().cloned())
    })
}

/// `DeleteTags`: a tag without value goes whatever its value; without any tag all go that are not
/// EC2's own.
pub(super) fn delete(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let tags = params.structures("Tag");
    let goes = |key: &str, value: &str| {
        tags.is_empty() && !is_reserved(key)
            || tags.iter().any(|tag| {
                tag.get("Key") == Some(key) && tag.get("Value").is_none_or(|given| given == value)
            })
    };
    change(scope, params, |existing| {
        existing.retain(|key, value| !goes(key, value))
    })
}

fn change(
    scope: &mut Scope<'_>,
    params: &Params,
    change: impl Fn(&mut Tags),
) -> Result<Xml, ApiError> {
    let resources = params.list("ResourceId");
    if resources.is_empty() {
        return Err(ApiError::missing_parameter("ResourceId"));
    }
    if resources.len() > RESOURCES_LIMIT {
        let message = format!("The maximum number of resources is {RESOURCES_LIMIT}");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let mut changed = Vec::new();
    for id in &resources {
        let mut tags = tags_of(scope, id)?.clone();
        change(&mut tags);
        check_count(&tags)?;
        changed.push(tags);
    }
    for (id, tags) in resources.iter().zip(changed) {
        *tags_of(scope, id)? = tags;
    }
    let mut xml = Xml::default();
    xml.text("return", true);
    Ok(xml)
}

fn tags_of<'a>(scope: &'a mut Scope<'_>, id: &str) -> Result<&'a mut Tags, ApiError> {
    let (now, settings) = (scope.now, scope.settings);
    let region = &mut *scope.region;
    match id.split_once('-').map_or("", |(prefix, _)| prefix) {
        "i" => {
            let (number, _) = region.find(id, now, settings)?;
            let instance = region.instances.get_mut(&number);
            instance
                .map(|instance| &mut instance.tags)
                .ok_or_else(|| not_found([id]))
        }
        "ami" => region
            .images
            .get_mut(id)
            .map(|image| &mut image.tags)
            .ok_or_else(|| super::describe::unknown_image(id)),
        "lt" => region.templates.tags_mut(id).ok_or_else(|| {
            let message = format!("The launch template ID '{id}' does not exist");
            ApiError::client("InvalidLaunchTemplateId.NotFound", message)
        }),
        prefix if ids::is_well_formed(prefix, id) => {
            Err(ApiError::not_in_the_fake(&format!("tags of `{id}`")))
        }
        _ => {
            let message = format!("The ID '{id}' is not valid");
            Err(ApiError::client("InvalidID", message))
        }
    }
}

fn given(params: &Params) -> Result<Vec<(String, String)>, ApiError> {
    let mut tags = Vec::new();
    for tag in params.structures("Tag") {
        let key = tag.required("Key")?;
        let value = tag.get("Value").unwrap_or_default();
        if is_reserved(key) {
            let message = "Tag keys starting with 'aws:' are reserved for internal use";
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        if key.is_empty() || key.chars().count() > KEY_LIMIT {
            let message =
                format!("Tag key exceeds the maximum length of {KEY_LIMIT} characters or is empty");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        if value.chars().count() > VALUE_LIMIT {
            let message =
                format!("Tag value exceeds the maximum length of {VALUE_LIMIT} characters");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        tags.push((key.to_owned(), value.to_owned()));
    }
    Ok(tags)
}

pub(super) fn check_count(tags: &Tags) -> Result<(), ApiError> {
    let own = tags.keys().filter(|key| !is_reserved(key)).count();
    if own > TAGS_LIMIT {
        let message = "You have reached the maximum number of tags for your resource.";
        return Err(ApiError::client("TagLimitExceeded", message));
    }
    Ok(())
}

fn is_reserved(key: &str) -> bool {
    key.to_ascii_lowercase().starts_with("aws:")
}

/// What the filters `tag:KEY` and `tag-key` compare with.
pub(super) fn filter_values(tags: Option<&Tags>, filter: &str) -> Vec<String> {
    let Some(tags) = tags else {
        return Vec::new();
    };
    match filter.strip_prefix("tag:") {
        Some(key) => tags.get(key).cloned().into_iter().collect(),
        None if filter == "tag-key" => tags.keys().cloned().collect(),
        None => Vec::new(),
    }
}
