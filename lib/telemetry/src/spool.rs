//! The waiting room on disk between `runner` and its sinks.
//!
//! Records are lines of segment files, numbered upwards and never reused. Appending writes one
//! line to the last segment; each sink reads from its own `Position`, which a small cursor file
//! remembers, and a segment goes when every sink is past it. So each sink gets every record in
//! order at least once, whatever happens to the other sinks or to the process.
//!
//! What bounds it: over `limit` bytes the oldest segment goes, read or not. On a full disk too;
//! when there is none to give, a few records wait in memory. Whatever is lost is counted, in a
//! file, so that a restart forgets nothing.
//!
//! Nothing is synced to the medium: records survive the death of the process, and a power cut may
//! take the last seconds of them.

pub(crate) mod cursor;
mod segment;

pub use segment::{Line, Parsed, parse_segment};

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use farm_events::Record;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use cursor::{Cursor, Position};

/// Longest line: sixteen times what the longest error text of a task should need.
const LONGEST_LINE: usize = 64 << 10;
/// Most bytes handed to a sink at once. InfluxDB advises some thousand lines; ours have ~300 bytes.
const BATCH_BYTES: u64 = 256 << 10;
/// Largest segment, so that dropping one loses little; a spool has at least 16.
const LARGEST_SEGMENT: u64 = 4 << 20;
/// Most bytes kept in memory while the disk takes nothing: about 1,000 records.
const HELD_BYTES: usize = 256 << 10;
/// Shortest time between two log lines about dropped records.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The queue. Shared by the thread that records and the one that sends.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    inner: Mutex<Inner>,
    /// Where the last record ends; sinks wait for it to change.
    end: watch::Sender<Position>,
    /// Told when a record had to be kept in memory.
    pub(crate) holding: Notify,
    /// Cursor file of each sink, and its description.
    cursors: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    limit: u64,
    segment_limit: u64,
    segments: BTreeMap<u64, Extent>,
    /// Number of the last segment, and the file.
    active: u64,
    file: fs_err::File,
    /// First line that each sink has not taken.
    taken: Vec<Position>,
    /// Lines the disk did not take yet.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    losses: Losses,
    /// Held as long as the spool is in use.
    _lock: fs_err::File,
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    bytes: u64,
    lines: u64,
}

/// Records for one sink, read from the spool.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The records, in order.
    pub(crate) records: Vec<Record>,
    /// Place behind each record.
    ends: Vec<Position>,
    /// Place behind all of them, and behind damaged lines that follow.
    next: Position,
    /// Lines that could not be read, and are skipped.
    pub(crate) damaged: u64,
    /// Whether more was waiting than fits into one batch.
    pub(crate) full: bool,
}

impl Batch {
    /// Place behind the first `count` records.
    pub(crate) fn after(&self, count: usize) -> Option<Position> {
        if count >= self.records.len() {
            return Some(self.next);
        }
        count
            .checked_sub(1)
            .and_then(|last| self.ends.get(last))
            .copied()
    }
}

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("spool directory")]
    Io(#[from] io::Error),
    #[error("`{}` is in use by another process: only one `runner` may write to it", .0.display())]
    Busy(PathBuf),
}

impl Spool {
    /// Opens the spool in `dir` for `sinks`, and makes it if there is none.
    ///
    /// A sink that was not here before starts with the oldest record there is. What is kept for
    /// sinks that are gone is forgotten.
    pub(crate) fn open(dir: &Path, limit: u64, sinks: &[String]) -> Result<Self, OpenError> {
        create_dir(dir)?;
        let lock = lock(dir)?;
        let segments = scan(dir)?;
        let cursors: Vec<_> = sinks
            .iter()
            .map(|sink| (cursor::path(dir, sink), sink.clone()))
            .collect();
        let mut losses = Losses::open(dir)?;
        losses.count(segments.torn, "a crash cut the last record short");

        let stored: Vec<_> = cursors.iter().map(|(path, _)| load_cursor(path)).collect();
        let newest = (stored.iter().flatten().map(|position| position.segment))
            .chain(segments.extents.keys().copied())
            .max();
        // A number is never used twice: a cursor must not point into a file it did not know.
        let active = newest.map_or(1, |newest| newest + 1);
        let mut extents = segments.extents;
        let file = create_segment(dir, active)?;
        extents.insert(active, Extent::default());
        let oldest = extents.keys().next().copied().unwrap_or(active);
        let start = Position {
            segment: oldest,
            offset: 0,
            lines: 0,
        };
        let taken = stored
            .into_iter()
            .map(|position| known_place(&extents, position.unwrap_or(start)))
            .collect();
        forget_strangers(dir, &cursors)?;

        let mut inner = Inner {
            dir: dir.to_owned(),
            limit,
            segment_limit: (limit / 16).min(LARGEST_SEGMENT),
            segments: extents,
            active,
            file,
            taken,
            held: VecDeque::new(),
            held_bytes: 0,
            losses,
            _lock: lock,
        };
        inner.collect();
        let end = watch::Sender::new(inner.end());
        Ok(Self {
            dir: dir.to_owned(),
            inner: Mutex::new(inner),
            end,
            holding: Notify::new(),
            cursors,
        })
    }

    /// Appends a record. Never fails: what cannot be kept is counted.
    pub(crate) fn append(&self, record: &Record) {
        let line = segment::to_line(record);
        let mut inner = self.lock();
        match line {
            Ok(line) if line.len() <= LONGEST_LINE => inner.append(line),
            Ok(line) => {
                debug!(bytes = line.len(), "record is too long for the spool");
                inner.losses.count(1, "a record was too long");
            }
            Err(error) => {
                debug!(%error, "record cannot be written as JSON");
                inner.losses.count(1, "a record cannot be written as JSON");
            }
        }
        let (end, holding) = (inner.end(), !inner.held.is_empty());
        drop(inner);
        if holding {
            self.holding.notify_one();
        }
        self.publish(end);
    }

    /// Tries again to write what waits in memory. Returns whether nothing is left there.
    pub(crate) fn release(&self) -> bool {
        let mut inner = self.lock();
        inner.release();
        let (end, empty) = (inner.end(), inner.held.is_empty());
        drop(inner);
        self.publish(end);
        empty
    }

    /// Gives up what still waits in memory, and counts it.
    pub(crate) fn close(&self) {
        self.release();
        let mut inner = self.lock();
        let lost = inner.held.len() as u64;
        inner.held.clear();
        inner.held_bytes = 0;
        inner
            .losses
            .count(lost, "the disk took no records until the end");
    }

    /// Where records end, now and later.
    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.end.subscribe()
    }

    /// What sink number `sink` has to take next; `None` if it has taken everything.
    pub(crate) fn next(&self, sink: usize) -> Option<Batch> {
        let mut from = *self.lock().taken.get(sink)?;
        loop {
            let (place, extent) = self.lock().next_from(from)?;
            match self.read(place, extent) {
                Ok(batch) => return Some(batch),
                Err(error) => {
                    let lost = extent.lines.saturating_sub(place.lines);
                    let next = Position {
                        offset: extent.bytes,
                        lines: extent.lines,
                        ..place
                    };
                    let mut inner = self.lock();
                    // Dropped while it was opened: counted already.
                    if inner.segments.contains_key(&place.segment) {
                        warn!(%error, lost, "segment of the spool cannot be read, going on behind it");
                        inner.losses.count(lost, "a segment cannot be read");
                        inner.abandon(place.segment);
                    }
                    from = next;
                }
            }
        }
    }

    fn read(&self, place: Position, extent: Extent) -> io::Result<Batch> {
        let waiting = extent.bytes - place.offset;
        let mut bytes = vec![0; usize::try_from(waiting.min(BATCH_BYTES)).unwrap_or(0)];
        let file = fs_err::File::open(segment_path(&self.dir, place.segment))?;
        file.file().read_exact_at(&mut bytes, place.offset)?;
        let parsed = parse_segment(&bytes);
        let mut batch = Batch {
            next: place,
            full: waiting > BATCH_BYTES,
            ..Batch::default()
        };
        if parsed.lines.is_empty() {
            // No line break for longer than a line can be: damaged; go on behind what was read.
            batch.damaged = 1;
            batch.next.offset += bytes.len() as u64;
        }
        for (line, length) in parsed.lines {
            batch.next.offset += length as u64;
            batch.next.lines += 1;
            match line {
                Line::Record(record) => {
                    batch.records.push(*record);
                    batch.ends.push(batch.next);
                }
                Line::Damaged => batch.damaged += 1,
            }
        }
        Ok(batch)
    }

    /// Notes that sink number `sink` has taken everything before `position`.
    pub(crate) fn take(&self, sink: usize, position: Position) {
        let mut inner = self.lock();
        if let Some(taken) = inner.taken.get_mut(sink) {
            *taken = position;
        }
        inner.collect();
        if !inner.held.is_empty() {
            inner.release();
        }
        let end = inner.end();
        drop(inner);
        self.publish(end);
        self.save_cursor(sink, position);
    }

    /// A cursor that cannot be saved costs doubles after a crash, nothing else.
    fn save_cursor(&self, sink: usize, position: Position) {
        let Some((path, sink)) = self.cursors.get(sink) else {
            return;
        };
        if let Err(error) = cursor::save(
            path,
            &Cursor {
                sink: sink.clone(),
                position,
            },
        ) {
            debug!(%error, sink, "cursor not saved");
        }
    }

    /// Bytes that some sink has not taken, records dropped since the start, and ever.
    pub(crate) fn stats(&self) -> (u64, u64, u64) {
        let inner = self.lock();
        (
            inner.pending_bytes(),
            inner.losses.now,
            inner.losses.before + inner.losses.now,
        )
    }

    /// Nothing here can leave the state half changed, so a panic elsewhere does no harm.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, end: Position) {
        self.end.send_if_modified(|known| {
            let is_news = end > *known;
            if is_news {
                *known = end;
            }
            is_news
        });
    }
}

impl Inner {
    fn append(&mut self, line: Vec<u8>) {
        self.release();
        if self.held.is_empty() && self.write(&line) {
            return;
        }
        self.held_bytes += line.len();
        self.held.push_back(line);
        let mut lost = 0;
        while self.held_bytes > HELD_BYTES
            && let Some(oldest) = self.held.pop_front()
        {
            self.held_bytes -= oldest.len();
            lost += 1;
        }
        self.losses.count(lost, "the disk takes no records");
    }

    /// Writes what waits in memory, as far as the disk takes it.
    fn release(&mut self) {
        while let Some(line) = self.held.pop_front() {
            if !self.write(&line) {
                self.held.push_front(line);
                return;
            }
            self.held_bytes -= line.len();
        }
    }

    /// Writes one line, making room for it where that is possible.
    fn write(&mut self, line: &[u8]) -> bool {
        let length = line.len() as u64;
        if self.extent().bytes + length > self.segment_limit {
            self.roll();
        }
        while self.total() + length > self.limit && self.drop_oldest("the spool is full") {}
        loop {
            match self.write_once(line) {
                Ok(()) => return true,
                Err(error) if is_full(&error) && self.make_room() => {}
                Err(error) => {
                    debug!(%error, "spool cannot be written");
                    return false;
                }
            }
        }
    }

    fn write_once(&mut self, line: &[u8]) -> io::Result<()> {
        let extent = self.extent();
        if let Err(error) = self.file.write_all(line) {
            // Part of the line may be there.
            if self.file.set_len(extent.bytes).is_err() {
                self.roll();
            }
            return Err(error);
        }
        let extent = self.segments.entry(self.active).or_default();
        extent.bytes += line.len() as u64;
        extent.lines += 1;
        Ok(())
    }

    /// Gives disk space back: first what is read by all, then the oldest.
    fn make_room(&mut self) -> bool {
        let end = self.end();
        if self.segments.len() == 1
            && end.offset > 0
            && self.taken.iter().all(|taken| *taken == end)
        {
            self.roll();
        }
        self.drop_oldest("the disk is full")
    }

    /// Starts a new segment. Where that fails, the old one grows on.
    fn roll(&mut self) {
        match create_segment(&self.dir, self.active + 1) {
            Ok(file) => {
                self.file = file;
                self.active += 1;
                self.segments.insert(self.active, Extent::default());
                self.collect();
            }
            Err(error) => debug!(%error, "no new segment"),
        }
    }

    /// Removes the oldest segment, unless it is the one written to. Returns whether it did.
    fn drop_oldest(&mut self, reason: &'static str) -> bool {
        let Some((&number, &extent)) = self.segments.first_key_value() else {
            return false;
        };
        if number == self.active {
            return false;
        }
        let read_by_all = (self.taken.iter())
            .map(|taken| match taken.segment.cmp(&number) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => taken.lines,
                std::cmp::Ordering::Greater => extent.lines,
            })
            .min()
            .unwrap_or(extent.lines);
        // Counted first: to be killed in between must not hide the loss.
        self.losses
            .count(extent.lines.saturating_sub(read_by_all), reason);
        self.remove(number);
        true
    }

    /// Removes segments that every sink is past.
    fn collect(&mut self) {
        let end = self.end();
        let past = |number: u64, extent: Extent, taken: &Position| {
            taken.segment > number || (taken.segment == number && taken.offset >= extent.bytes)
        };
        while let Some((&number, &extent)) = self.segments.first_key_value()
            && number < end.segment
            && self.taken.iter().all(|taken| past(number, extent, taken))
        {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        self.segments.remove(&number);
        if let Err(error) = fs_err::remove_file(segment_path(&self.dir, number)) {
            debug!(%error, "segment not removed");
        }
    }

    /// Forgets a segment that cannot be read.
    fn abandon(&mut self, number: u64) {
        if number == self.active {
            self.roll();
        }
        if number != self.active {
            self.remove(number);
        }
    }

    /// The first place at or after `from` where a line is, and what its segment holds.
    fn next_from(&self, from: Position) -> Option<(Position, Extent)> {
        self.segments
            .range(from.segment..)
            .map(|(&segment, &extent)| {
                let start = Position {
                    segment,
                    offset: 0,
                    lines: 0,
                };
                (if segment == from.segment { from } else { start }, extent)
            })
            .find(|(place, extent)| place.offset < extent.bytes)
    }

    fn extent(&self) -> Extent {
        self.segments.get(&self.active).copied().unwrap_or_default()
    }

    fn end(&self) -> Position {
        let Extent { bytes, lines } = self.extent();
        Position {
            segment: self.active,
            offset: bytes,
            lines,
        }
    }

    fn total(&self) -> u64 {
        self.segments.values().map(|extent| extent.bytes).sum()
    }

    fn pending_bytes(&self) -> u64 {
        let Some(first) = self.taken.iter().min() else {
            return 0;
        };
        let on_disk: u64 = (self.segments.range(first.segment..))
            .map(|(&number, extent)| {
                let read = if number == first.segment {
                    first.offset
                } else {
                    0
                };
                extent.bytes.saturating_sub(read)
            })
            .sum();
        on_disk + self.held_bytes as u64
    }
}

/// Counts records that not every sink got.
#[derive(Debug)]
struct Losses {
    file: fs_err::File,
    before: u64,
    now: u64,
    logged: Option<Instant>,
}

impl Losses {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("dropped"))?;
        let mut text = String::new();
        let before = match file.read_to_string(&mut text) {
            Ok(0) => 0,
            Ok(_) => text.trim().parse().unwrap_or_else(|_| {
                warn!(path = %file.path().display(), "count of dropped records is damaged, starting at 0");
                0
            }),
            Err(error) => return Err(error),
        };
        let mut losses = Self {
            file,
            before,
            now: 0,
            logged: None,
        };
        losses.save();
        Ok(losses)
    }

    fn count(&mut self, lost: u64, reason: &'static str) {
        if lost == 0 {
            return;
        }
        self.now += lost;
        self.save();
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now - logged >= LOG_EVERY) {
            self.logged = Some(now);
            warn!(
                reason,
                dropped = self.now,
                "records dropped before every sink had them"
            );
        }
    }

    /// Written over its old place: on a full disk there is no other.
    fn save(&mut self) {
        let text = format!("{:020}\n", self.before + self.now);
        let written = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(text.as_bytes()));
        if let Err(error) = written {
            debug!(%error, "count of dropped records not saved");
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn create_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

fn lock(dir: &Path) -> Result<fs_err::File, OpenError> {
    let file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Busy(dir.to_owned())),
        Err(error) => Err(OpenError::Io(error.into())),
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    // As many digits as the largest number has, so that `ls` shows them in order.
    dir.join(format!("{number:020}.seg"))
}

fn create_segment(dir: &Path, number: u64) -> io::Result<fs_err::File> {
    fs_err::OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(segment_path(dir, number))
}

/// What lies in the directory.
#[derive(Default)]
struct Segments {
    extents: BTreeMap<u64, Extent>,
    torn: u64,
}

fn scan(dir: &Path) -> io::Result<Segments> {
    let mut segments = Segments::default();
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        let Some(number) = segment_number(&path) else {
            continue;
        };
        match measure(&path) {
            Ok((extent, torn)) => {
                segments.torn += u64::from(torn);
                if extent.bytes > 0 {
                    segments.extents.insert(number, extent);
                } else if let Err(error) = fs_err::remove_file(&path) {
                    debug!(%error, "empty segment not removed");
                    segments.extents.insert(number, extent);
                }
            }
            Err(error) => {
                warn!(%error, "segment of the spool cannot be used, going on without it");
                // Its number is taken nevertheless.
                segments.extents.insert(number, Extent::default());
                segments.torn += 1;
            }
        }
    }
    Ok(segments)
}

fn segment_number(path: &Path) -> Option<u64> {
    (path.extension()? == "seg").then(|| path.file_stem()?.to_str()?.parse().ok())?
}

/// Counts lines, and cuts off a line that does not end. Returns whether there was one.
fn measure(path: &Path) -> io::Result<(Extent, bool)> {
    let file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)?;
    let mut reader = io::BufReader::with_capacity(64 << 10, &file);
    let mut extent = Extent::default();
    let mut length = 0;
    loop {
        let bytes = io::BufRead::fill_buf(&mut reader)?;
        if bytes.is_empty() {
            break;
        }
        for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            extent.lines += 1;
            extent.bytes = length + index as u64 + 1;
        }
        let read = bytes.len();
        length += read as u64;
        io::BufRead::consume(&mut reader, read);
    }
    let torn = length > extent.bytes;
    if torn {
        file.set_len(extent.bytes)?;
    }
    Ok((extent, torn))
}

fn load_cursor(path: &Path) -> Option<Position> {
    match cursor::load(path) {
        Ok(cursor) => cursor.map(|cursor| cursor.position),
        Err(error) => {
            warn!(%error, "cursor is damaged, its sink starts with the oldest record");
            None
        }
    }
}

/// The place itself, or the end of what is there: a power cut may have taken the rest.
fn known_place(extents: &BTreeMap<u64, Extent>, place: Position) -> Position {
    match extents.get(&place.segment) {
        Some(extent) if place.offset > extent.bytes => Position {
            offset: extent.bytes,
            lines: extent.lines,
            ..place
        },
        _ => place,
    }
}

fn forget_strangers(dir: &Path, cursors: &[(PathBuf, String)]) -> io::Result<()> {
    for path in cursor::list(dir)? {
        if cursors.iter().all(|(known, _)| *known != path) {
            info!(cursor = %path.display(), "sink is no longer configured, its place is forgotten");
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
