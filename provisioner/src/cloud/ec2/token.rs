//! What makes a call happen once: the `ClientToken`, and the names that follow from what they name.
//!
//! EC2 takes at most 64 ASCII characters as a token; a name of ours may be longer. So a token is
//! `farmhand-` and the first 48 hexadecimal digits (192 bits) of the SHA-256 of what it stands for,
//! each part preceded by its length (64 bits, big-endian) so that no two lists of parts read the same:
//!
//! | token of | parts |
//! |---|---|
//! | a launch | `launch`, intent |
//! | a template or a version of it | `template`, name, digest of its content, how often it was lost |
//!
//! A token says nothing about what it stands for, and is the same after a restart, on another machine
//! and for another provisioner of the fleet.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::ids::{ImageName, IntentId, PoolName};

/// Hexadecimal digits of the SHA-256 of `parts`.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        hash.update(length.to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

fn token(parts: &[&str]) -> String {
    format!("farmhand-{}", &digest(parts)[..48])
}

/// The token of a launch.
pub(super) fn of_launch(intent: &IntentId) -> String {
    token(&["launch", intent.as_str()])
}

/// The token that makes a template, or a version of it, with this content. `lost` counts how often a
/// template of ours was found deleted: EC2 would answer the same token with the deleted one.
pub(super) fn of_template(name: &str, content: &str, lost: u32) -> String {
    token(&["template", name, content, &lost.to_string()])
}

/// Longest readable part of a template's name; EC2 takes 128 characters in all.
const READABLE: usize = 100;

/// Name of the launch template of a pool and image of a fleet: readable, and by its last twelve digits
/// another one for each. EC2 takes letters, digits and `()./_-`.
pub(super) fn template_name(fleet: &str, pool: &PoolName, image: &ImageName) -> String {
    let parts = [fleet, pool.as_str(), image.as_str()];
    let readable: String = format!("farmhand.{}", parts.join("."))
        .chars()
        .map(|letter| match letter {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '/' | '_' | '-' => letter,
            _ => '_',
        })
        .take(READABLE)
        .collect();
    format!("{readable}.{}", &digest(&parts)[..12])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tokens_are_these() {
        // Changing the derivation launches twice what was decided before and is sent again after.
        let intent = IntentId::parse("k3f9-17-2").unwrap();
        assert_eq!(
            of_launch(&intent),
            "farmhand-ec17db03cfc2ceca3d40b03be359d27b5ec6cf272cf96bde"
        );
    }

    #[test]
    fn names_of_templates_differ_when_what_they_name_differs() {
        let name = |fleet, pool, image| {
            template_name(
                fleet,
                &PoolName::parse(pool).unwrap(),
                &ImageName::parse(image).unwrap(),
            )
        };
        assert_ne!(name("main", "a.b", "c"), name("main", "a", "b.c"));
        assert_ne!(name("main", "a+b", "c"), name("main", "a:b", "c"));
        let readable = name("main", "linux64", "base:2026-08");
        assert!(
            readable.starts_with("farmhand.main.linux64.base_2026-08."),
            "{readable}"
        );
    }

    proptest! {
        #[test]
        fn every_intent_has_a_token_ec2_takes_and_another_one(
            one in "[A-Za-z0-9._:/+-]{1,128}", other in "[A-Za-z0-9._:/+-]{1,128}"
        ) {
            let tokens = [&one, &other].map(|text| of_launch(&IntentId::parse(text).unwrap()));
            prop_assert!(tokens.iter().all(|token| token.is_ascii() && token.len() <= 64));
            prop_assert_eq!(tokens[0] == tokens[1], one == other);
        }

        #[test]
        fn every_template_has_a_name_ec2_takes(
            fleet in "[A-Za-z0-9._:/+-]{1,128}",
            pool in "[A-Za-z0-9._:/+-]{1,128}",
            image in "[A-Za-z0-9._:/+-]{1,128}"
        ) {
            let name = template_name(
                &fleet, &PoolName::parse(&pool).unwrap(), &ImageName::parse(&image).unwrap(),
            );
            let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"()./_-".contains(&byte);
            prop_assert!(name.len() <= 128 && name.bytes().all(taken), "{}", name);
        }
    }
}
