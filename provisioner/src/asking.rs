//! Asking the sources of demand in every pass, and telling what the rules do not fit.

use std::time::Duration;

use jiff::Timestamp;
use tracing::warn;

use crate::cloud::Finding;
use crate::config::Config;
use crate::demand::rules::{RuleReport, Rules};
use crate::demand::{Memory, Sources, observe_all, resolve};
use crate::observe::Asked;
use crate::pass::Demand;

/// Longest wait for all sources together; each has its own, shorter `timeout`.
const DEADLINE: Duration = Duration::from_secs(45);

/// The sources of a farm, and what was learnt from them so far.
#[derive(Debug)]
pub struct Asking {
    sources: Sources,
    rules: Rules,
    memory: Memory,
    /// What was told of the rules, so that it is told once.
    told: Vec<String>,
}

impl Asking {
    /// The sources and rules of `config`.
    ///
    /// # Errors
    /// Each that cannot be used, one sentence each.
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        let sources = Sources::new(&config.sources).map_err(|faults| {
            let sentence = |(name, fault)| format!("source `{name}`: {fault}");
            faults.into_iter().map(sentence).collect::<Vec<_>>()
        })?;
        let rules = Rules::compile(&config.rules).map_err(|faults| {
            let sentence = |(index, fault)| format!("rules[{index}]: {fault}");
            faults.into_iter().map(sentence).collect::<Vec<_>>()
        })?;
        Ok(Self {
            sources,
            rules,
            memory: Memory::default(),
            told: Vec::new(),
        })
    }

    /// Each source asked once, and the rules that can never get a job.
    pub async fn check(&self, now: Timestamp) -> Vec<Finding> {
        let answers = observe_all(&self.sources, now, DEADLINE).await;
        let sources = answers.into_iter().map(|(name, answer)| Finding {
            subject: format!("source {name}"),
            fault: answer.err().map(|error| error.to_string()),
        });
        let report = RuleReport {
            shadowed: self.rules.surely_shadowed(),
            ..RuleReport::default()
        };
        let rules = report.sentences().into_iter().map(|sentence| Finding {
            subject: "rules".into(),
            fault: Some(sentence),
        });
        sources.chain(rules).collect()
    }
}

impl Demand for Asking {
    async fn observe(&mut self, config: &Config, now: Timestamp) -> Asked {
        let answers = observe_all(&self.sources, now, DEADLINE).await;
        let resolved = resolve(&answers, &self.memory, &self.rules, config, now);
        self.memory = resolved.memory;
        let remarks = resolved.report.sentences();
        for remark in remarks.iter().filter(|remark| !self.told.contains(remark)) {
            warn!(remark, "the rules do not fit the jobs");
        }
        self.told.clone_from(&remarks);
        Asked {
            pools: resolved.demand,
            remarks,
        }
    }
}
