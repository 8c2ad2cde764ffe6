//! The files: which belong to a configuration, their text, and the line of each key in it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::Fault;
use crate::trust;

/// One file as read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl Source {
    /// The file at `path`, if nobody but root and the running user can have written it.
    ///
    /// # Errors
    /// Why it cannot be read, is not trusted, or is not text.
    pub fn read(path: &Path) -> Result<Self, Fault> {
        let bytes = fs_err::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Fault::of_file(
                path,
                "no such file: expected a configuration in TOML; name another with `--config PATH`",
            ),
            _ => Fault::of_file(path, error.to_string()),
        })?;
        trust::check(path).map_err(|distrust| Fault::of_file(path, distrust.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = line_at(error.as_bytes(), at);
            Fault::at(path, Some(line), "not UTF-8: expected TOML")
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    pub(crate) fn fault(&self, span: Option<Range<usize>>, message: impl Into<String>) -> Fault {
        let line = span.map(|span| line_at(self.text.as_bytes(), span.start));
        Fault::at(&self.path, line, message)
    }

    /// How many parts of the path `key` this file sets, and the line of the last of them.
    pub(crate) fn find(&self, key: &str) -> Option<(usize, usize)> {
        let (root, _) = DeTable::parse_recoverable(&self.text);
        let mut table = root.get_ref();
        let mut found = None;
        for (depth, part) in key.split('.').enumerate() {
            let (name, index) = name_and_index(part);
            let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else {
                break;
            };
            if let Some(item) = index.and_then(|index| value.get_ref().as_array()?.get(index)) {
                // The item as a whole: a list is replaced, not merged, so no other file has more of it.
                return Some((depth + 1, line_at(self.text.as_bytes(), item.span().start)));
            }
            found = Some((depth + 1, line_at(self.text.as_bytes(), key.span().start)));
            let Some(inner) = value.get_ref().as_table() else {
                break;
            };
            table = inner;
        }
        found
    }
}

/// `influx` and 0 of `influx[0]`.
fn name_and_index(part: &str) -> (&str, Option<usize>) {
    let indexed = part
        .strip_suffix(']')
        .and_then(|part| part.rsplit_once('['))
        .and_then(|(name, index)| Some((name, index.parse().ok()?)));
    match indexed {
        Some((name, index)) => (name, Some(index)),
        None => (part, None),
    }
}

/// Line of the byte `offset`, from 1.
fn line_at(text: &[u8], offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// `path`, and the `*.toml` of the directory beside it that is named like it with `.d`, by name.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let directory = path.with_extension("d");
    let drop_ins =
        drop_ins(&directory).map_err(|error| Fault::of_file(&directory, error.to_string()))?;
    Ok(std::iter::once(path.to_owned()).chain(drop_ins).collect())
}

fn drop_ins(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
