//! Checking each key of a table on its own, so that one fault does not hide the next.
//!
//! The table is taken apart into tables of one key each, and each of these is read as the type.
//! That a key is missing is no fault here: another file may set it.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::{Fault, Source};

/// Every key of `table` that `T` does not take. `path` is where the table stands; `tag` is the key
/// that says which form a table has, if some of them have one.
pub(crate) fn check<T: DeserializeOwned>(
    source: &Source,
    path: &str,
    table: &DeTable<'_>,
    tag: Option<&str>,
) -> Vec<Fault> {
    let mut singles = single_keys(path, table, tag);
    // Tags first, outer ones before inner ones: without a known tag nothing can be said of the rest.
    singles.sort_by_key(|single| (!single.is_tag, single.beside.len()));
    let mut faulty_tags = BTreeSet::new();
    let mut faults = Vec::new();
    for single in singles {
        if single.beside.iter().any(|tag| faulty_tags.contains(tag)) {
            continue;
        }
        let Some(fault) = single.check::<T>(source) else {
            continue;
        };
        faults.push(fault);
        if single.is_tag {
            faulty_tags.insert(single.path);
        }
    }
    faults
}

/// One key of a table, alone in a table like the one it came from but for the tags beside it.
struct SingleKey<'i> {
    path: String,
    at: Range<usize>,
    table: DeTable<'i>,
    is_tag: bool,
    /// Paths of the tags that were left in.
    beside: Vec<String>,
}

impl SingleKey<'_> {
    fn check<T: DeserializeOwned>(&self, source: &Source) -> Option<Fault> {
        let spanned = Spanned::new(self.at.clone(), self.table.clone());
        let error = T::deserialize(toml::de::Deserializer::from(spanned)).err()?;
        let message = one_line(error.message());
        if message.starts_with("missing field") {
            return None;
        }
        let message = format!("`{}`: {}", self.path, with_example(&message));
        Some(source.fault(error.span().or(Some(self.at.clone())), message))
    }
}

/// The table taken apart into tables of one key each, down through tables and lists of tables.
fn single_keys<'i>(path: &str, table: &DeTable<'i>, tag: Option<&str>) -> Vec<SingleKey<'i>> {
    let tag_entry = table
        .iter()
        .find(|(key, _)| Some(key.get_ref().as_ref()) == tag);
    let mut singles = Vec::new();
    for (key, value) in table {
        let is_tag = tag_entry.is_some_and(|(tag, _)| tag == key);
        for (part, single) in parts(&format!("{path}.{}", key.get_ref()), key, value, tag) {
            let mut table = DeTable::new();
            let mut beside = single.beside;
            if let Some((tag, form)) = tag_entry.filter(|_| !is_tag) {
                table.insert(tag.clone(), form.clone());
                beside.push(format!("{path}.{}", tag.get_ref()));
            }
            table.insert(key.clone(), part);
            singles.push(SingleKey {
                table,
                beside,
                is_tag: single.is_tag || is_tag,
                ..single
            });
        }
    }
    singles
}

/// The value of one key in parts of one key each, with the single key each part came from.
fn parts<'i>(
    path: &str,
    key: &Spanned<toml::de::DeString<'i>>,
    value: &Spanned<DeValue<'i>>,
    tag: Option<&str>,
) -> Vec<(Spanned<DeValue<'i>>, SingleKey<'i>)> {
    match value.get_ref() {
        DeValue::Table(inner) if !inner.is_empty() => single_keys(path, inner, tag)
            .into_iter()
            .map(|single| {
                let part = DeValue::Table(single.table.clone());
                (Spanned::new(value.span(), part), single)
            })
            .collect(),
        DeValue::Array(items) if is_list_of_tables(items) => items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| Some((index, item.get_ref().as_table()?)))
            .flat_map(|(index, item)| single_keys(&format!("{path}[{index}]"), item, tag))
            .map(|single| {
                let item = Spanned::new(single.at.clone(), DeValue::Table(single.table.clone()));
                let part = DeValue::Array(std::iter::once(item).collect());
                (Spanned::new(value.span(), part), single)
            })
            .collect(),
        _ => {
            let single = SingleKey {
                path: path.to_owned(),
                at: key.span(),
                table: DeTable::new(),
                is_tag: false,
                beside: Vec::new(),
            };
            vec![(value.clone(), single)]
        }
    }
}

pub(crate) fn is_list_of_tables(items: &DeArray<'_>) -> bool {
    !items.is_empty()
        && items.iter().all(|item| {
            item.get_ref()
                .as_table()
                .is_some_and(|table| !table.is_empty())
        })
}

/// What the duration's parser expects is plain only to who knows it.
fn with_example(message: &str) -> String {
    if message.ends_with("expected a duration") {
        format!("{message} such as \"90s\" or \"10m\"")
    } else {
        message.to_owned()
    }
}

pub(crate) fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
