//! A file of JSON lines that may be rotated at any time.

use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use farm_events::Record;
use fs_err::os::unix::fs::OpenOptionsExt as _;

use super::{Delivery, Failure, Sink};

/// Appends one JSON object per line.
#[derive(Debug)]
pub(crate) struct Jsonl {
    path: PathBuf,
    file: Option<fs_err::File>,
}

impl Jsonl {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }
}

impl Sink for Jsonl {
    async fn deliver(&mut self, records: &[Record]) -> Delivery {
        let (count, mut lines) = (records.len(), Vec::with_capacity(records.len() * 512));
        for record in records {
            if let Err(error) = serde_json::to_writer(&mut lines, record) {
                return Delivery::failed(0, Failure::from(error.to_string()));
            }
            lines.push(b'\n');
        }
        let (path, file) = (self.path.clone(), self.file.take());
        // On a thread for blocking work: a file system that hangs stops this sink only.
        let written = tokio::task::spawn_blocking(move || append(&path, file, &lines)).await;
        match written {
            Ok(Ok(file)) => {
                self.file = Some(file);
                Delivery::all(count)
            }
            Ok(Err(error)) => Delivery::failed(0, error),
            Err(error) => Delivery::failed(0, error.to_string()),
        }
    }
}

/// Appends to the file that has the name `path` now, which need not be `file` any more.
fn append(path: &Path, file: Option<fs_err::File>, lines: &[u8]) -> io::Result<fs_err::File> {
    let mut file = match file {
        Some(file) if is_named(&file, path) => file,
        _ => open(path)?,
    };
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(lines) {
        // All of it will come again: what is there of it must not stay.
        file.set_len(before)?;
        return Err(error);
    }
    Ok(file)
}

fn is_named(file: &fs_err::File, path: &Path) -> bool {
    match (file.metadata(), fs_err::metadata(path)) {
        (Ok(ours), Ok(named)) => ours.dev() == named.dev() && ours.ino() == named.ino(),
        _ => false,
    }
}

/// Opens for appending, at the start of a line even if a crash cut the last one short.
fn open(path: &Path) -> io::Result<fs_err::File> {
    let mut file = fs_err::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        // A FIFO without reader fails instead of blocking for ever.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!(
            "`{}` is not a file",
            path.display()
        )));
    }
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
