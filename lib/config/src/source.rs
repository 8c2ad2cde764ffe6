//! The files: which belong to a configuration, their text, and the line of each key in it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

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
        for (depth, wanted) in key.split('.').enumerate() {
            // `influx[0].url` is looked for at `influx`: a list has one line to point at.
            let wanted = wanted.split('[').next().unwrap_or(wanted);
            let Some((key, value)) = table
                .iter()
                .find(|(key, _)| key.get_ref().as_ref() == wanted)
            else {
                break;
            };
            found = Some((depth + 1, line_at(self.text.as_bytes(), key.span().start)));
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        found
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
