//! What the verbs besides `run` do: look into the store, say what is there, and write down orders.
//!
//! They work beside a provisioner that runs, and as well when none does: at three in the morning the
//! dead one is what one looks at. An order is taken up by the next pass.

use std::io::{self, Write};

use clap::CommandFactory as _;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{Cli, Format, HistoryArgs, HoldArgs, MaintenanceArgs, ReleaseArgs, Switch};
use crate::exit::Exit;
use crate::explain;
use crate::ids::PoolName;
use crate::store::{Action, ActionVerb, Change, HistoryQuery, Pass, Store, StoreError};
use crate::world::{Hold, Order};

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
