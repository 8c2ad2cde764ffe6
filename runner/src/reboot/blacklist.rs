//! The verb `runner blacklist`: people look into the lists of reboot patterns and change them.
//!
//! A change is one read, one check and one rename under an exclusive lock on the directory, so two
//! people at once lose nothing and a host that reads meanwhile sees the old list or the new one.
//! The text is edited, not written anew: comments and order stay as people left them.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use toml_edit::{DocumentMut, Value};

use super::lists::{
    Fault, ListName, Lists, RebootList, RebootPattern, Unweighable, compile, today,
};
use super::verb::{Surroundings, chain};
use super::{Format, exit, lists};
use crate::state::State;

/// Looks into the lists of patterns that force a reboot, and changes them.
#[derive(Clone, Debug, clap::Args)]
pub struct BlacklistArgs {
    /// Directory of `hosts.toml` and `jobs.toml` instead of `reboot.blacklists`.
    #[arg(long, value_name = "DIR", global = true)]
    pub blacklists: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: BlacklistVerb,
}

/// What `runner blacklist` can do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum BlacklistVerb {
    /// Says which entry matches a name: exit code 0 if one does, 1 if none.
    Test(TestArgs),
    /// Prints the entries, how many reboots each caused, and which have expired.
    List(ListArgs),
    /// Adds an entry at the end of a list.
    Add(AddArgs),
    /// Ends an entry today. It stays in the list, as history.
    Expire(ExpireArgs),
}

/// Arguments of `runner blacklist test`.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// Name of a host or of a job.
    pub name: String,
    /// Look into this list only.
    #[arg(long, value_enum)]
    pub list: Option<ListName>,
}

/// Arguments of `runner blacklist list`.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Print this list only.
    #[arg(long, value_enum)]
    pub list: Option<ListName>,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `runner blacklist add`.
#[derive(Clone, Debug, clap::Args)]
pub struct AddArgs {
    /// Regular expression, matched anywhere in the name and in either case.
    #[arg(allow_hyphen_values = true)]
    pub pattern: String,
    /// Why a match must reboot.
    #[arg(long)]
    pub reason: String,
    /// First day (UTC) on which it no longer counts, such as 2026-11-20.
    #[arg(long, value_name = "DATE")]
    pub expires: Option<Date>,
    /// The list to add to.
    #[arg(long, value_enum)]
    pub list: ListName,
}

/// Arguments of `runner blacklist expire`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExpireArgs {
    /// The pattern, as it is written in the list.
    #[arg(allow_hyphen_values = true)]
    pub pattern: String,
    /// The list it is in.
    #[arg(long, value_enum)]
    pub list: ListName,
}

/// Why a list is not looked into or not changed.
#[derive(Debug, thiserror::Error)]
enum BlacklistError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Fault>),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Unweighable(#[from] Unweighable),
    #[error("cannot change `{file}`")]
    Change {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot print")]
    Print(#[from] io::Error),
}

impl BlacklistError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid(_) | Self::Refused(_) | Self::Unweighable(_) => exit::CONFIGURATION,
            Self::Change { .. } | Self::Print(_) => exit::FAILED,
        }
    }
}

/// Carries out `runner blacklist` and returns its exit code: 0 done, 78 for an invalid list or
/// pattern, 1 for the rest, which for `test` is also "no entry matches".
pub fn run_blacklist(
    args: &BlacklistArgs,
    surroundings: &Surroundings<'_>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> u8 {
    let directory = args
        .blacklists
        .as_deref()
        .unwrap_or(&surroundings.policy.blacklists);
    let result = match &args.verb {
        BlacklistVerb::Test(args) => test(directory, args, surroundings, out),
        BlacklistVerb::List(args) => list(directory, args, surroundings, out),
        BlacklistVerb::Add(args) => add(directory, args, surroundings, err),
        BlacklistVerb::Expire(args) => expire(directory, args, surroundings, err),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            drop(writeln!(err, "error: {}", chain(&error)));
            error.exit_code()
        }
    }
}

fn load(directory: &Path) -> Result<Lists, BlacklistError> {
    Lists::load(directory).map_err(BlacklistError::Invalid)
}

fn chosen(list: Option<ListName>) -> impl Iterator<Item = ListName> {
    ListName::ALL
        .into_iter()
        .filter(move |name| list.is_none_or(|list| list == *name))
}

/// How many reboots an entry caused on this host; `None` if the state cannot be read.
fn reboots(state: Option<&State>, entry: &RebootPattern) -> Option<u64> {
    let state = state?;
    Some(
        state
            .reboots_by_pattern
            .get(entry.pattern())
            .copied()
            .unwrap_or(0),
    )
}

/// The state, for the counts only: the lists are worth looking at without.
fn state(surroundings: &Surroundings<'_>) -> Option<State> {
    State::load(surroundings.state_dir)
        .ok()
        .map(|loaded| loaded.state)
}

fn test(
    directory: &Path,
    args: &TestArgs,
    surroundings: &Surroundings<'_>,
    out: &mut impl Write,
) -> Result<u8, BlacklistError> {
    let lists = load(directory)?;
    let state = state(surroundings);
    let mut code = exit::FAILED;
    for name in chosen(args.list) {
        match lists.list(name).first_match(&args.name, surroundings.now)? {
            None => writeln!(out, "{name}: no entry matches `{}`", args.name)?,
            Some(entry) => {
                code = exit::DONE;
                writeln!(out, "{name}: `{}` matches `{}`", entry.pattern(), args.name)?;
                write_details(out, name, entry, state.as_ref())?;
            }
        }
    }
    Ok(code)
}

fn write_details(
    out: &mut impl Write,
    name: ListName,
    entry: &RebootPattern,
    state: Option<&State>,
) -> io::Result<()> {
    writeln!(out, "  reason   {}", entry.reason)?;
    writeln!(out, "  added    {}", entry.added)?;
    if let Some(expires) = entry.expires {
        writeln!(out, "  expires  {expires}")?;
    }
    match reboots(state, entry) {
        Some(count) => writeln!(out, "  reboots  {count}")?,
        None => writeln!(
            out,
            "  reboots  not known: the state of this host cannot be read"
        )?,
    }
    writeln!(out, "  where    {}:{}", name.file_name(), entry.line())
}

/// An entry as `blacklist list --format json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    list: ListName,
    pattern: &'a str,
    reason: &'a str,
    added: Date,
    expires: Option<Date>,
    expired: bool,
    reboots: Option<u64>,
}

fn list(
    directory: &Path,
    args: &ListArgs,
    surroundings: &Surroundings<'_>,
    out: &mut impl Write,
) -> Result<u8, BlacklistError> {
    let lists = load(directory)?;
    let state = state(surroundings);
    let rows: Vec<_> = chosen(args.list)
        .flat_map(|name| {
            lists
                .list(name)
                .patterns
                .iter()
                .map(move |entry| (name, entry))
        })
        .map(|(name, entry)| Row {
            list: name,
            pattern: entry.pattern(),
            reason: &entry.reason,
            added: entry.added,
            expires: entry.expires,
            expired: entry.is_expired(surroundings.now),
            reboots: reboots(state.as_ref(), entry),
        })
        .collect();
    match args.format {
        Format::Text => write_table(out, &rows)?,
        Format::Json => {
            serde_json::to_writer(&mut *out, &rows).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(exit::DONE)
}

fn write_table(out: &mut impl Write, rows: &[Row<'_>]) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no entries");
    }
    let width = rows
        .iter()
        .map(|row| row.pattern.chars().count())
        .max()
        .unwrap_or(0)
        .max(7);
    writeln!(
        out,
        "{:5}  {:width$}  {:10}  {:18}  {:>7}  REASON",
        "LIST", "PATTERN", "ADDED", "EXPIRES", "REBOOTS"
    )?;
    for row in rows {
        let expires = match row.expires {
            None => "never".into(),
            Some(day) if row.expired => format!("{day} expired"),
            Some(day) => day.to_string(),
        };
        let reboots = row.reboots.map_or("?".into(), |count| count.to_string());
        writeln!(
            out,
            "{:5}  {:width$}  {:10}  {expires:18}  {reboots:>7}  {}",
            row.list.as_str(),
            row.pattern,
            row.added.to_string(),
            row.reason
        )?;
    }
    Ok(())
}

fn add(
    directory: &Path,
    args: &AddArgs,
    surroundings: &Surroundings<'_>,
    err: &mut impl Write,
) -> Result<u8, BlacklistError> {
    let today = today(surroundings.now);
    compile(&args.pattern).map_err(BlacklistError::Refused)?;
    if args.reason.trim().is_empty() {
        let message = "empty `--reason`: expected why a match must reboot";
        return Err(BlacklistError::Refused(message.into()));
    }
    if let Some(expires) = args.expires.filter(|expires| *expires <= today) {
        return Err(BlacklistError::Refused(format!(
            "`--expires {expires}` is not after today, {today}: such an entry would never match"
        )));
    }
    change(directory, args.list, |text, list| {
        let existing = list
            .patterns
            .iter()
            .find(|entry| entry.pattern() == args.pattern && !entry.is_expired(surroundings.now));
        if let Some(entry) = existing {
            return Err(BlacklistError::Refused(format!(
                "`{}` is in {}:{} already, since {}: {}",
                args.pattern,
                args.list.file_name(),
                entry.line(),
                entry.added,
                entry.reason
            )));
        }
        Ok(with_entry(text, args, today))
    })?;
    writeln!(err, "added `{}` to {}", args.pattern, args.list.file_name())?;
    Ok(exit::DONE)
}

/// `text` with the new entry behind everything else.
fn with_entry(text: &str, args: &AddArgs, today: Date) -> String {
    let mut new = text.to_owned();
    if !new.is_empty() {
        new.push_str(if new.ends_with('\n') { "\n" } else { "\n\n" });
    }
    new.push_str("[[pattern]]\n");
    new.push_str(&format!(
        "pattern = {}\n",
        Value::from(args.pattern.as_str())
    ));
    new.push_str(&format!("reason = {}\n", Value::from(args.reason.as_str())));
    new.push_str(&format!("added = {today}\n"));
    if let Some(expires) = args.expires {
        new.push_str(&format!("expires = {expires}\n"));
    }
    new
}

fn expire(
    directory: &Path,
    args: &ExpireArgs,
    surroundings: &Surroundings<'_>,
    err: &mut impl Write,
) -> Result<u8, BlacklistError> {
    let today = today(surroundings.now);
    change(directory, args.list, |text, list| {
        let in_force = |entry: &RebootPattern| {
            entry.pattern() == args.pattern && !entry.is_expired(surroundings.now)
        };
        let Some(index) = list.patterns.iter().position(in_force) else {
            return Err(BlacklistError::Refused(no_such_entry(list, args)));
        };
        with_expiry(text, index, today).map_err(BlacklistError::Refused)
    })?;
    writeln!(
        err,
        "`{}` in {} ended today, {today}",
        args.pattern,
        args.list.file_name()
    )?;
    Ok(exit::DONE)
}

fn no_such_entry(list: &RebootList, args: &ExpireArgs) -> String {
    let file = args.list.file_name();
    let pattern = &args.pattern;
    match list
        .patterns
        .iter()
        .rfind(|entry| entry.pattern() == *pattern)
    {
        Some(RebootPattern {
            expires: Some(day), ..
        }) => {
            format!("`{pattern}` in {file} expired on {day} already")
        }
        Some(_) | None => format!(
            "no entry `{pattern}` in {file}: expected a pattern as it is written there; type `runner blacklist list --list {}`",
            args.list
        ),
    }
}

/// `text` with the entry at `index` ended by `day`.
fn with_expiry(text: &str, index: usize, day: Date) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    let table = document
        .get_mut("pattern")
        .and_then(|item| item.as_array_of_tables_mut())
        .and_then(|tables| tables.get_mut(index))
        .ok_or("the list changed in front of the lock")?;
    let day: toml_edit::Datetime = day
        .to_string()
        .parse()
        .map_err(|error| format!("{error}"))?;
    match table
        .get_mut("expires")
        .and_then(|item| item.as_value_mut())
    {
        Some(value) => {
            // The comment behind the value stays.
            let decor = value.decor().clone();
            *value = Value::from(day);
            *value.decor_mut() = decor;
        }
        None => {
            table.insert("expires", toml_edit::value(day));
        }
    }
    Ok(document.to_string())
}

/// Replaces a list by what `edit` makes of it, under the lock. Nothing changes if anything fails.
fn change(
    directory: &Path,
    name: ListName,
    edit: impl FnOnce(&str, &RebootList) -> Result<String, BlacklistError>,
) -> Result<(), BlacklistError> {
    let file = directory.join(name.file_name());
    let change = |source: io::Error| BlacklistError::Change {
        file: file.clone(),
        source,
    };
    let _lock = lock(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => BlacklistError::Refused(format!(
            "`{}` is not a directory: expected the directory of `hosts.toml` and `jobs.toml`; type `--blacklists DIR`",
            directory.display()
        )),
        _ => change(error),
    })?;
    let text = lists::read(&file).map_err(|fault| BlacklistError::Invalid(vec![fault]))?;
    let list = RebootList::parse(&text, &file).map_err(BlacklistError::Invalid)?;
    let new = edit(&text, &list)?;
    // The proof that the edit did not break the list; its entries are what hosts will read.
    RebootList::parse(&new, &file).map_err(BlacklistError::Invalid)?;
    replace(&file, new.as_bytes()).map_err(change)
}

/// Waits for the lock on a directory. It ends with the descriptor, so with the process at the latest.
fn lock(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(directory, flags, Mode::empty())?;
    rustix::fs::flock(&descriptor, FlockOperation::LockExclusive)?;
    Ok(descriptor)
}

/// Replaces `file`, or what it links to, whole or not at all; mode and owner stay.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = fs_err::canonicalize(file)?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let old = fs_err::metadata(&file)?;
    let mut new = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)?;
    new.write_all(content)?;
    let made = new.as_file().metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        std::os::unix::fs::fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    // After the change of owner, which takes away set-id bits.
    let mode = std::fs::Permissions::from_mode(old.mode() & 0o7777);
    new.as_file().set_permissions(mode)?;
    new.as_file().sync_all()?;
    new.persist(&file).map_err(|error| error.error)?;
    fs_err::File::open(directory)?.sync_all()
}
