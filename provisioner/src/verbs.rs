//! What the verbs besides `run` do: look into the store, say what is there, and write down orders.
//!
//! They work beside a provisioner that runs, and as well when none does: at three in the morning the
//! dead one is what one looks at. An order is taken up by the next pass.

use std::io::{self, Write};

use clap::CommandFactory as _;
use jiff::Timestamp;
use serde::Serialize;

use crate::check;
use crate::cli::{Cli, Format, HistoryArgs, HoldArgs, MaintenanceArgs, ReleaseArgs, Switch};
use crate::cloud::Finding;
use crate::config::Config;
use crate::exit::Exit;
use crate::explain;
use crate::ids::{PassId, PoolName};
use crate::observe::{self, Asked, Seen};
use crate::plan;
use crate::store::{Action, ActionVerb, Change, HistoryQuery, Pass, Store, StoreError};
use crate::table::Table;
use crate::view::{self, ImageRow, InstanceRow, PoolRow, Told};
use crate::world::{Hold, Order, World, elapsed};

/// Where answers and words go.
#[derive(Debug)]
pub struct Streams<O, E> {
    /// Standard output: data.
    pub out: O,
    /// Standard error: words.
    pub err: E,
    /// Form of the answers.
    pub format: Format,
}

impl<O: Write, E: Write> Streams<O, E> {
    /// Says what is wrong, and returns the exit code for it.
    pub fn refuse(&mut self, exit: Exit, message: impl std::fmt::Display) -> Exit {
        // Nobody is left to tell if standard error is closed.
        drop(writeln!(self.err, "error: {message}"));
        exit
    }

    /// Says something that is no answer.
    pub fn say(&mut self, message: impl std::fmt::Display) {
        drop(writeln!(self.err, "{message}"));
    }

    /// Prints text, or the same as JSON.
    pub fn answer<T: Serialize>(&mut self, value: &T, text: impl FnOnce(&T) -> String) -> Exit {
        let printed = match self.format {
            Format::Text => self.out.write_all(text(value).as_bytes()),
            Format::Json => serde_json::to_writer(&mut self.out, value)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(self.out)),
        };
        match printed.and_then(|()| self.out.flush()) {
            Ok(()) => Exit::Done,
            // Who closed the pipe has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Err(error) => self.refuse(Exit::Failed, format!("cannot print: {error}")),
        }
    }

    fn failed(&mut self, error: &StoreError) -> Exit {
        self.refuse(Exit::Failed, error)
    }

    /// `provisioner completions`.
    pub fn completions(&mut self, shell: clap_complete::Shell) -> Exit {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "provisioner", &mut text);
        self.print(&text)
    }

    /// `provisioner man`.
    pub fn man(&mut self) -> Exit {
        let mut text = Vec::new();
        match clap_mangen::Man::new(Cli::command()).render(&mut text) {
            Ok(()) => self.print(&text),
            Err(error) => self.refuse(Exit::Failed, error),
        }
    }

    fn print(&mut self, bytes: &[u8]) -> Exit {
        match self.out.write_all(bytes) {
            Ok(()) => Exit::Done,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Err(error) => self.refuse(Exit::Failed, format!("cannot print: {error}")),
        }
    }

    /// A pass in words, or as the JSON that `plan --replay` takes.
    pub fn pass(&mut self, pass: &Pass, only: Option<&PoolName>) -> Exit {
        self.answer(pass, |pass| explain::text(pass, only))
    }

    /// What a pass would do now.
    pub fn rehearsal(&mut self, pass: &Pass) -> Exit {
        let exit = self.pass(pass, None);
        if exit == Exit::Done && !pass.faults.is_empty() {
            return Exit::Failed;
        }
        exit
    }

    /// A stored pass planned again, by `config` or by its own.
    pub fn replay(&mut self, pass: Pass, config: Config, as_then: bool) -> Exit {
        let config = if as_then {
            match serde_json::from_value(pass.config) {
                Ok(config) => config,
                Err(error) => {
                    return self.refuse(
                        Exit::Failed,
                        format!(
                            "the configuration of pass {} is not understood: {error}",
                            pass.id
                        ),
                    );
                }
            }
        } else {
            config
        };
        let planned = plan::plan(&pass.world, &config, pass.seed);
        let faults = check::check(&pass.world, &config, &planned);
        let again = Pass {
            config: serde_json::to_value(&config).unwrap_or_default(),
            plan: planned,
            faults,
            ..pass
        };
        self.rehearsal(&again)
    }

    /// `provisioner ps`: what the store knows, orders of this minute included.
    pub async fn ps<S: Store>(
        &mut self,
        store: &S,
        config: &Config,
        pool: Option<&PoolName>,
        now: Timestamp,
    ) -> Exit {
        let world = match known(store, config, now).await {
            Ok(world) => world,
            Err(error) => return self.failed(&error),
        };
        let mut rows = view::instances(&world);
        rows.retain(|row| pool.is_none_or(|pool| row.pool.as_ref() == Some(pool)));
        self.answer(&rows, |rows| instances_table(rows, now))
    }

    /// `provisioner pools`: as of the last pass.
    pub async fn pools<S: Store>(&mut self, store: &S) -> Exit {
        match last_pass(store).await {
            Ok(Some(pass)) => {
                let age = format!("as of pass {} at {:.0}", pass.id, pass.at);
                self.say(age);
                self.answer(&view::pools(&pass), |rows| pools_table(rows))
            }
            Ok(None) => self.refuse(Exit::Failed, "no pass was made yet"),
            Err(error) => self.failed(&error),
        }
    }

    /// `provisioner images`.
    pub async fn images<S: Store>(&mut self, store: &S, config: &Config, now: Timestamp) -> Exit {
        match known(store, config, now).await {
            Ok(world) => self.answer(&view::images(&world, config), |rows| images_table(rows)),
            Err(error) => self.failed(&error),
        }
    }

    /// `provisioner check`: all that was looked at, and 1 if anything is wrong.
    pub fn findings(&mut self, findings: &[Finding]) -> Exit {
        let is_whole = findings.iter().all(|finding| finding.fault.is_none());
        let printed = self.answer(&findings, |findings| {
            let line = |finding: &Finding| match &finding.fault {
                None => format!("ok     {}\n", finding.subject),
                Some(fault) => format!("fault  {}: {fault}\n", finding.subject),
            };
            findings.iter().map(line).collect()
        });
        if is_whole { printed } else { Exit::Failed }
    }

    /// `provisioner hold`.
    pub async fn hold<S: Store>(&mut self, store: &S, args: HoldArgs, now: Timestamp) -> Exit {
        let HoldArgs {
            instance,
            owner,
            reason,
            time,
        } = args;
        let expires = time.and_then(|time| now.saturating_add(time).ok());
        let until = expires.map_or("until released".to_owned(), |at| format!("until {at}"));
        let hold = Hold {
            owner: owner.clone(),
            reason: reason.clone(),
            expires,
        };
        let action = Action {
            result: format!("{reason}; {until}"),
            ..order(ActionVerb::Held, owner, now)
        };
        self.keep(store, instance, Some(hold), action).await
    }

    /// `provisioner release`.
    pub async fn release<S: Store>(
        &mut self,
        store: &S,
        args: ReleaseArgs,
        now: Timestamp,
    ) -> Exit {
        let action = Action {
            result: "may be ended again".into(),
            ..order(ActionVerb::Released, args.by, now)
        };
        self.keep(store, args.instance, None, action).await
    }

    async fn keep<S: Store>(
        &mut self,
        store: &S,
        instance: crate::ids::InstanceId,
        hold: Option<Hold>,
        action: Action,
    ) -> Exit {
        let known = match store.registration(&instance).await {
            Ok(known) => known,
            Err(error) => return self.failed(&error),
        };
        let Some(known) = known else {
            return self.refuse(
                Exit::Failed,
                format!("no instance `{instance}`: `provisioner ps` shows those there are"),
            );
        };
        if hold.is_none() && known.record.hold.is_none() {
            return self.refuse(Exit::Failed, format!("instance `{instance}` is not held"));
        }
        let action = Action {
            instance: Some(instance.clone()),
            intent: known.record.intent,
            pool: Some(known.record.pool),
            ..action
        };
        let changes = vec![
            Change::Held { id: instance, hold },
            Change::Did(action.clone()),
        ];
        self.order(store, changes, &action).await
    }

    /// `provisioner maintenance`.
    pub async fn maintenance<S: Store>(
        &mut self,
        store: &S,
        args: MaintenanceArgs,
        now: Timestamp,
    ) -> Exit {
        let MaintenanceArgs {
            switch,
            pool,
            reason,
            by,
        } = args;
        let (order_, result) = match switch {
            Switch::On => {
                let result = format!("on: {reason}");
                let order = Order {
                    by: by.clone(),
                    reason,
                    at: now,
                };
                (Some(order), result)
            }
            Switch::Off => (None, "off".to_owned()),
        };
        let action = Action {
            pool: pool.clone(),
            result,
            ..order(ActionVerb::Maintained, by, now)
        };
        let changes = vec![
            Change::Maintained {
                pool,
                order: order_,
            },
            Change::Did(action.clone()),
        ];
        self.order(store, changes, &action).await
    }

    async fn order<S: Store>(&mut self, store: &S, changes: Vec<Change>, action: &Action) -> Exit {
        match store.commit(None, changes).await {
            Ok(()) => self.answer(action, |action| {
                format!("{}\nthe next pass takes it up\n", history_line(action))
            }),
            Err(error) => self.failed(&error),
        }
    }

    /// `provisioner history`.
    pub async fn history<S: Store>(
        &mut self,
        store: &S,
        args: HistoryArgs,
        now: Timestamp,
    ) -> Exit {
        let query = HistoryQuery {
            instance: args.instance,
            pool: args.pool,
            pass: args.pass,
            since: args.since.and_then(|since| now.saturating_sub(since).ok()),
            limit: args.limit,
        };
        match store.history(&query).await {
            Ok(actions) => self.answer(&actions, |actions| {
                // Oldest first, as one reads.
                let lines = actions.iter().rev().map(history_line);
                lines.map(|line| line + "\n").collect()
            }),
            Err(error) => self.failed(&error),
        }
    }
}

/// The World as far as the store knows it, without a look at the cloud.
async fn known<S: Store>(store: &S, config: &Config, now: Timestamp) -> Result<World, StoreError> {
    let stored = store.stored(now).await?;
    let last = store.passes(1).await?;
    let id = last.first().map_or(PassId(0), |pass| pass.id);
    let (seen, asked) = (Seen::default(), Asked::default());
    Ok(observe::world(id, now, config, seen, stored, asked))
}

async fn last_pass<S: Store>(store: &S) -> Result<Option<Pass>, StoreError> {
    let last = store.passes(1).await?;
    match last.first() {
        Some(last) => store.pass(last.id).await,
        None => Ok(None),
    }
}

fn instances_table(rows: &[InstanceRow], now: Timestamp) -> String {
    let mut table = Table::new(&[
        "INSTANCE", "POOL", "IMAGE", "ZONE", "TYPE", "PRICE/H", "PHASE", "SINCE", "AGE", "RUNS",
        "JOB", "TOLD", "HELD BY",
    ]);
    for row in rows {
        let ago = |at: Option<Timestamp>| at.map(|at| short(elapsed(at, now))).unwrap_or_default();
        let told = match (row.assignment, row.reason) {
            (Told::GoOn, _) => String::new(),
            (Told::Drain, reason) => format!("drain ({})", name(reason.as_ref())),
            (Told::Quit, reason) => format!("quit ({})", name(reason.as_ref())),
        };
        table.row(vec![
            row.instance_id.to_string(),
            name(row.pool.as_ref()),
            name(row.image.as_ref()),
            row.zone.to_string(),
            row.instance_type.to_string(),
            row.price.to_string(),
            word(&row.phase),
            ago(row.since),
            ago(Some(row.launched_at)),
            row.runs.map(|runs| runs.to_string()).unwrap_or_default(),
            row.job.clone().unwrap_or_default(),
            told,
            row.hold
                .as_ref()
                .map(|hold| hold.owner.clone())
                .unwrap_or_default(),
        ]);
    }
    table.text()
}

fn pools_table(rows: &[PoolRow]) -> String {
    let mut table = Table::new(&[
        "POOL",
        "WAITING",
        "OLDEST",
        "UP",
        "BUSY",
        "COMING",
        "LEAVING",
        "TARGET",
        "BILL/H",
        "TODAY",
        "BLOCKED BY",
    ]);
    for row in rows {
        let mut blocked: Vec<String> = row.blocked.iter().map(|by| by.message.clone()).collect();
        blocked.extend(
            row.holds
                .iter()
                .map(|hold| format!("source {}: {}", hold.source, hold.reason)),
        );
        blocked.dedup();
        table.row(vec![
            row.pool.to_string(),
            row.pending
                .map(|pending| pending.to_string())
                .unwrap_or_default(),
            row.oldest_age.map(short).unwrap_or_default(),
            row.existing.to_string(),
            row.busy.to_string(),
            row.requested.to_string(),
            row.stopping.to_string(),
            row.target.to_string(),
            row.bill.to_string(),
            format!("{:.2}", row.spent_today),
            blocked.join("; "),
        ]);
    }
    table.text()
}

fn images_table(rows: &[ImageRow]) -> String {
    let mut table = Table::new(&["IMAGE", "POOL", "SHARE", "INSTANCES", "REGISTERED", "BUSY"]);
    for row in rows {
        if row.pools.is_empty() {
            let unused = vec![row.image.to_string(), String::new(), String::new()];
            let zeros = std::iter::repeat_n("0".to_owned(), 3);
            table.row(unused.into_iter().chain(zeros).collect());
        }
        for pool in &row.pools {
            table.row(vec![
                row.image.to_string(),
                pool.pool.to_string(),
                format!("{} %", pool.percentage),
                pool.instances.to_string(),
                pool.registered.to_string(),
                pool.busy.to_string(),
            ]);
        }
    }
    table.text()
}

fn name(name: Option<&impl ToString>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

/// The stable name of a value, as JSON has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The two largest units of a duration.
fn short(time: std::time::Duration) -> String {
    let whole = std::time::Duration::from_secs(time.as_secs());
    let words = humantime::format_duration(whole).to_string();
    words.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn order(verb: ActionVerb, by: String, at: Timestamp) -> Action {
    Action {
        at,
        by,
        verb,
        instance: None,
        intent: None,
        pool: None,
        pass: None,
        result: String::new(),
    }
}

/// One action for a person.
fn history_line(action: &Action) -> String {
    let or_none = |name: Option<String>| name.unwrap_or_else(|| "-".into());
    let about = or_none(
        action
            .instance
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| action.intent.as_ref().map(ToString::to_string)),
    );
    format!(
        "{:.0} {:<15} {:<20} {:<22} by {}: {}",
        action.at,
        action.verb,
        or_none(action.pool.as_ref().map(ToString::to_string)),
        about,
        action.by,
        action.result.replace(char::is_control, "\u{fffd}"),
    )
}
