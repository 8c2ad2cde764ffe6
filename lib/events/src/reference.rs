//! The page `docs/events.md`, made from the declarations.

use crate::{Role, SCHEMA};

/// The reference of all events in Markdown. A test keeps `docs/events.md` equal to it.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Events\n\n\
         Generated from `lib/events`; `UPDATE_DOCS=1 cargo test -p farm-events` writes it anew.\n\n\
         Each event is one measurement of a time series and one JSON object. Besides its own columns it\n\
         has the tags `host`, `pool`, `image`, `region` and `instance_id` as far as they are known, and its\n\
         time (JSON: `time`, RFC 3339 in UTC). The JSON key `event` holds the name. A column whose value is\n\
         not known is left out.\n",
    );
    for event in SCHEMA {
        let doc = sentence(event.doc);
        page.push_str(&format!("\n## `{}`\n\n{doc}\n\n", event.name));
        page.push_str("| column | kind | type | meaning |\n|---|---|---|---|\n");
        for field in event.fields {
            let role = match field.role {
                Role::Tag => "tag",
                Role::Field => "field",
            };
            page.push_str(&format!(
                "| `{}` | {role} | {} | {} |\n",
                field.name,
                field.value_type,
                sentence(field.doc)
            ));
        }
    }
    page
}

fn sentence(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ")
}
