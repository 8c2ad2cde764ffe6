//! A pass in words: how each pool's numbers came about, and why each offering won or lost.

use std::fmt::Write as _;

use crate::ids::PoolName;
use crate::plan::{Candidate, Fate, Plan, PoolPlan};
use crate::store::Pass;

/// Losing offerings shown for one pool; the rest is counted. JSON has all of them.
const LOSERS_SHOWN: usize = 20;

/// `pass` for a person; with `only`, that pool alone.
#[must_use]
pub fn text(pass: &Pass, only: Option<&PoolName>) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!("pass {} at {}, seed {}", pass.id, pass.at, pass.seed),
    );
    for (region, view) in &pass.world.regions {
        if !view.observed {
            let fault = view.fault.as_deref().unwrap_or("no reason known");
            line(
                &mut out,
                format_args!("region {region} could not be observed: {fault}"),
            );
        }
    }
    for remark in &pass.world.remarks {
        line(&mut out, format_args!("rules: {remark}"));
    }
    for fault in &pass.faults {
        line(&mut out, format_args!("STOPPED by check: {fault}"));
    }
    for fault in &pass.plan.faults {
        line(&mut out, format_args!("fault: {fault}"));
    }
    for (name, pool) in &pass.plan.pools {
        if only.is_none_or(|only| only == name) {
            out.push('\n');
            explain_pool(&mut out, pass, name, pool);
        }
    }
    if only.is_none() {
        out.push('\n');
        explain_rest(&mut out, &pass.plan);
    }
    out
}

/// Appends a line. A `String` takes any.
fn line(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(out, "{arguments}").expect("a String takes any text");
}

fn explain_pool(out: &mut String, pass: &Pass, name: &PoolName, pool: &PoolPlan) {
    line(out, format_args!("pool {name}"));
    if let Some(demand) = pass.world.demand.get(name) {
        let left_out = demand.too_young + demand.too_old;
        let mut words = format!("{} waiting, {} running", demand.pending, demand.running);
        if left_out > 0 {
            words += &format!(
                " ({} too young to count, {} stuck)",
                demand.too_young, demand.too_old
            );
        }
        line(out, format_args!("  demand    {words}"));
        for hold in &demand.holds {
            line(
                out,
                format_args!("  hold      source {}: {}", hold.source, hold.reason),
            );
        }
    }
    line(
        out,
        format_args!(
            "  hosts     {} up ({} busy), {} on their way, {} leaving",
            pool.existing, pool.busy, pool.requested, pool.stopping
        ),
    );
    line(
        out,
        format_args!(
            "  decision  target {}, {} wanted, {} launched, at most {} per hour",
            pool.target, pool.wanted, pool.launching, pool.bill
        ),
    );
    for blocked in &pool.blocked {
        line(
            out,
            format_args!("  blocked   {} fewer: {}", blocked.count, blocked.message),
        );
    }
    for launch in &pass.plan.launches {
        if launch.pool == *name {
            line(
                out,
                format_args!(
                    "  launch    {} × {} in {} as {}, {} choices",
                    launch.count,
                    launch.image,
                    launch.region,
                    launch.capacity_type,
                    launch.choices.len()
                ),
            );
        }
    }
    explain_candidates(out, &pool.candidates);
}

fn explain_candidates(out: &mut String, candidates: &[Candidate]) {
    let mut losers = 0;
    for candidate in candidates {
        let fate = match &candidate.fate {
            Fate::Chosen { intent } => format!("chosen for {intent}"),
            Fate::Spare => "good, not needed".to_owned(),
            Fate::Lost { why } => {
                losers += 1;
                if losers > LOSERS_SHOWN {
                    continue;
                }
                why.clone()
            }
        };
        line(
            out,
            format_args!(
                "  {:<9} {:<14} {:<12} {:>9}  {:.5}  {fate}",
                candidate.key.capacity_type.to_string(),
                candidate.key.instance_type,
                candidate.key.zone,
                candidate.price.to_string(),
                candidate.score,
            ),
        );
    }
    if losers > LOSERS_SHOWN {
        line(
            out,
            format_args!(
                "  and {} more that lost; all of them: --format json",
                losers - LOSERS_SHOWN
            ),
        );
    }
}

fn explain_rest(out: &mut String, plan: &Plan) {
    for id in &plan.replays {
        line(out, format_args!("launch {id} is sent again"));
    }
    for termination in &plan.terminations {
        line(
            out,
            format_args!(
                "end {}: {}",
                termination.id,
                crate::apply::reason_text(termination.reason)
            ),
        );
    }
    for reassignment in &plan.assignments {
        line(
            out,
            format_args!(
                "tell {}: {}",
                reassignment.id,
                crate::apply::told(&reassignment.assignment)
            ),
        );
    }
    for id in &plan.adoptions {
        line(out, format_args!("adopt {id}"));
    }
    for loss in &plan.losses {
        line(out, format_args!("lost {}: {}", loss.id, loss.message));
    }
    for suspicion in &plan.suspicions {
        let verb = if suspicion.suspected {
            "suspect"
        } else {
            "clear"
        };
        line(
            out,
            format_args!("{verb} {}: {}", suspicion.id, suspicion.message),
        );
    }
    line(
        out,
        format_args!("the fleet costs at most {} per hour", plan.bill),
    );
}
