//! The tags by which instances are known again.

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};

use crate::cloud::LaunchRequest;

/// Whose it is: the fleet.
pub(super) const OWNER: &str = "farmhand:owner";
/// The pool.
pub(super) const POOL: &str = "farmhand:pool";
/// The image as people call it.
pub(super) const IMAGE: &str = "farmhand:image";
/// The decision that launched it.
pub(super) const INTENT: &str = "farmhand:intent";
/// Who keeps it from being ended; set by hand.
pub(super) const HOLD: &str = "farmhand:hold";

/// A tag.
pub(super) fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// Those of a template.
pub(super) fn of_template(fleet: &str, request: &LaunchRequest) -> Vec<Tag> {
    vec![
        tag("Name", &format!("{fleet} {}", request.pool)),
        tag(OWNER, fleet),
        tag(POOL, request.pool.as_str()),
        tag(IMAGE, request.image.as_str()),
    ]
}

/// Those of a fleet, its instances and their volumes.
pub(super) fn of_launch(fleet: &str, request: &LaunchRequest) -> Vec<Tag> {
    let mut tags = of_template(fleet, request);
    tags.push(tag(INTENT, request.intent.as_str()));
    tags
}

/// `tags` for everything of a kind that a call makes.
pub(super) fn specification(kind: ResourceType, tags: &[Tag]) -> TagSpecification {
    TagSpecification::builder()
        .resource_type(kind)
        .set_tags(Some(tags.to_vec()))
        .build()
}
