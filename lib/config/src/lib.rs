//! How the programs read what people configure: TOML files, all faults at once, each with file and line.
//!
//! A program describes its tables once, in a [`Schema`]. [`Schema::load`] reads `FILE` and the
//! `*.toml` of the directory beside it (`provisioner.d/` for `provisioner.toml`), refuses files
//! that others may write ([`trust`]), checks every key of every file on its own, and merges the
//! files key by key. What comes out is a [`Document`], from which the program makes its typed
//! configuration ([`Document::typed`]) and to which it reports keys that contradict each other
//! ([`Document::agree`]). Each step reports everything it finds; the next step begins only if
//! nothing was found.
//!
//! Tokens and passwords are never in these files; they are in files of their own ([`secret`]).
//!
//! ```
//! use std::collections::BTreeMap;
//! use farm_config::{Fault, KeyFault, OtherTables, Schema, Section, Source};
//!
//! #[derive(Debug, Default, serde::Deserialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Pool {
//!     min: u32,
//!     max: u32,
//! }
//!
//! const SCHEMA: Schema = Schema {
//!     default_path: "/etc/farm.toml",
//!     sections: &[Section::named::<Pool>("pools", "pool")],
//!     other_tables: OtherTables::Refused,
//! };
//!
//! fn pools(sources: Vec<Source>) -> Result<BTreeMap<String, Pool>, Vec<Fault>> {
//!     let document = SCHEMA.read(sources)?;
//!     let pools = document.typed(|tables| tables.named::<Pool>("pools"))?;
//!     document.agree(pools.iter().filter(|(_, pool)| pool.min > pool.max).map(|(name, _)| {
//!         KeyFault::new(
//!             format!("pools.{name}.min"),
//!             format!("`pools.{name}.min` is above `max`: expected at most that many"),
//!         )
//!     }))?;
//!     Ok(pools)
//! }
//!
//! let source = |text: &str| Source { path: "farm.toml".into(), text: text.into() };
//! let faults = pools(vec![source("[pools.build]\nmax = 2\nmin = 3\n")]).unwrap_err();
//! assert_eq!(
//!     faults[0].to_string(),
//!     "farm.toml:3: `pools.build.min` is above `max`: expected at most that many",
//! );
//! let faults = pools(vec![source("[pols.build]\n")]).unwrap_err();
//! assert_eq!(
//!     faults[0].to_string(),
//!     "farm.toml:1: unknown table `[pols]`, expected `[pools.NAME]`; was `[pools]` meant?",
//! );
//! ```

mod document;
mod fault;
mod keys;
mod schema;
pub mod secret;
mod source;
pub mod trust;

pub use document::{Document, Tables};
pub use fault::{Fault, KeyFault};
pub use schema::{OtherTables, Schema, Section};
pub use source::Source;

#[cfg(test)]
mod tests;
