//! Saying once what keeps the fleet from being looked after: for the log, which is read when a job
//! waits and nothing is launched.
//!
//! A region that does not answer and a source that cannot be relied on stop nothing else, so no pass
//! fails because of them; every pass has them in its World. Here they are told apart by what they are
//! about, not by their words, which may hold times: each is one line when it begins and one when it
//! is over.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use crate::config::Config;
use crate::ids::{PassId, PoolName, Region, SourceName};
use crate::plan::{Blocker, Plan};
use crate::world::World;

/// What a trouble is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// A region could not be observed: nothing is launched, ended or judged there.
    Region(Region),
    /// A source of demand cannot be relied on: its pools are left as they are.
    Source(SourceName),
    /// Nothing at all is for sale that the pool could launch, although its regions answer.
    Pool(PoolName),
}

/// The pools it concerns, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concern {
    /// The pools.
    pub pools: BTreeSet<PoolName>,
    /// For a person.
    pub reason: String,
}

/// What kept a pass from looking after its pools.
#[must_use]
pub fn troubles(world: &World, plan: &Plan, config: &Config) -> BTreeMap<Trouble, Concern> {
    let mut troubles = BTreeMap::new();
    for (region, view) in world.regions.iter().filter(|(_, view)| !view.observed) {
        let uses = |name: &PoolName| {
            let pool = config.pools.get(name);
            pool.is_some_and(|pool| pool.regions.is_empty() || pool.regions.contains(region))
        };
        let concern = Concern {
            pools: config
                .pools
                .keys()
                .filter(|name| uses(name))
                .cloned()
                .collect(),
            reason: view
                .fault
                .clone()
                .unwrap_or_else(|| "it did not answer".into()),
        };
        troubles.insert(Trouble::Region(region.clone()), concern);
    }
    for (pool, demand) in &world.demand {
        for hold in &demand.holds {
            let trouble = Trouble::Source(hold.source.clone());
            let concern: &mut Concern = troubles.entry(trouble).or_default();
            concern.pools.insert(pool.clone());
            concern.reason.clone_from(&hold.reason);
        }
    }
    for (pool, planned) in &plan.pools {
        // One that has offerings and may use none of them now was told of when the launch fell short.
        let nothing = planned.blocked.iter().find(|blocked| {
            planned.candidates.is_empty()
                && matches!(blocked.by, Blocker::NoOffering | Blocker::NoImage)
        });
        let is_known = |(trouble, concern): (&Trouble, &Concern)| {
            matches!(trouble, Trouble::Region(_)) && concern.pools.contains(pool)
        };
        if let Some(blocked) = nothing
            && !troubles.iter().any(is_known)
        {
            let concern = Concern {
                pools: BTreeSet::from([pool.clone()]),
                reason: blocked.message.clone(),
            };
            troubles.insert(Trouble::Pool(pool.clone()), concern);
        }
    }
    troubles
}

/// What was said.
#[derive(Clone, Debug, Default)]
pub struct Told(BTreeSet<Trouble>);

impl Told {
    /// Logs what is new among `troubles`, and what is over.
    pub fn tell(&mut self, pass: PassId, troubles: &BTreeMap<Trouble, Concern>) {
        for (trouble, concern) in troubles {
            if !self.0.contains(trouble) {
                begins(pass, trouble, concern);
            }
        }
        for trouble in self.0.iter().filter(|told| !troubles.contains_key(told)) {
            ends(pass, trouble);
        }
        self.0 = troubles.keys().cloned().collect();
    }
}

fn begins(pass: PassId, trouble: &Trouble, concern: &Concern) {
    let Concern { pools, reason } = concern;
    let pools: Vec<&str> = pools.iter().map(PoolName::as_str).collect();
    let pools = pools.join(", ");
    match trouble {
        Trouble::Region(region) => {
            warn!(pass = pass.0, %region, pools, error = reason, "a region cannot be observed: nothing is launched, ended or judged there");
        }
        Trouble::Source(source) => {
            warn!(pass = pass.0, %source, pools, error = reason, "a source of demand cannot be relied on: its pools are left as they are");
        }
        Trouble::Pool(pool) => {
            warn!(pass = pass.0, %pool, error = reason, "nothing is for sale that a pool could launch");
        }
    }
}

fn ends(pass: PassId, trouble: &Trouble) {
    match trouble {
        Trouble::Region(region) => info!(pass = pass.0, %region, "a region is observed again"),
        Trouble::Source(source) => {
            info!(pass = pass.0, %source, "a source of demand is relied on again");
        }
        Trouble::Pool(pool) => info!(pass = pass.0, %pool, "a pool can launch again"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::demand::{PoolDemand, SourceHold};
    use crate::observe::{self, Asked, Seen};
    use crate::plan::{Blocked, PoolPlan};
    use crate::store::Stored;

    const CONFIG: &str = r#"
[images.base]
directory = "/images/base"

[pools.here]
image = "base"
types = { small = 1.0 }
regions = ["local"]

[pools.everywhere]
image = "base"
types = { small = 1.0 }

[pools.elsewhere]
image = "base"
types = { small = 1.0 }
regions = ["other"]

[regions.local]
[regions.other]
"#;

    fn config() -> Config {
        let mut config: Config = toml::from_str(CONFIG).unwrap();
        config.sources.clear();
        config
    }

    fn stored() -> Stored {
        Stored {
            id: "s".into(),
            instances: Vec::new(),
            suspects: BTreeMap::new(),
            intents: Vec::new(),
            shortages: Vec::new(),
            interruptions: Vec::new(),
            maintenance: crate::world::Maintenance::default(),
            spent_today: BTreeMap::new(),
            memory: BTreeMap::new(),
            booked_until: None,
        }
    }

    fn world(faults: &[(&str, &str)], holds: &[(&str, &str)]) -> World {
        let config = config();
        let mut seen = Seen::default();
        for region in config.regions.keys() {
            match faults.iter().find(|(name, _)| *name == region.as_str()) {
                Some((_, fault)) => drop(seen.faults.insert(region.clone(), (*fault).into())),
                None => drop(seen.sightings.insert(region.clone(), Vec::new())),
            }
        }
        let mut asked = Asked::default();
        for (pool, source) in holds {
            let hold = SourceHold {
                source: source.parse().unwrap(),
                reason: "down".into(),
            };
            let demand = PoolDemand {
                holds: vec![hold],
                ..PoolDemand::default()
            };
            asked.pools.insert(pool.parse().unwrap(), demand);
        }
        observe::world(
            PassId(1),
            Timestamp::UNIX_EPOCH,
            &config,
            seen,
            stored(),
            asked,
        )
    }

    fn shown(world: &World) -> Vec<(Trouble, String, String)> {
        shown_of(world, &Plan::default())
    }

    fn shown_of(world: &World, plan: &Plan) -> Vec<(Trouble, String, String)> {
        let shown = troubles(world, plan, &config()).into_iter();
        shown
            .map(|(trouble, concern)| {
                let pools: Vec<&str> = concern.pools.iter().map(PoolName::as_str).collect();
                (trouble, pools.join(" "), concern.reason)
            })
            .collect()
    }

    #[test]
    fn where_all_answer_there_is_nothing_to_say() {
        assert_eq!(shown(&world(&[], &[])), []);
    }

    #[test]
    fn a_region_that_fails_names_the_pools_that_may_use_it() {
        let region = Trouble::Region("other".parse().unwrap());
        assert_eq!(
            shown(&world(&[("other", "closed")], &[])),
            [(region, "elsewhere everywhere".into(), "closed".into())]
        );
    }

    #[test]
    fn a_source_is_one_trouble_however_many_pools_it_feeds() {
        let source = Trouble::Source("queue".parse().unwrap());
        assert_eq!(
            shown(&world(&[], &[("here", "queue"), ("elsewhere", "queue")])),
            [(source, "elsewhere here".into(), "down".into())]
        );
    }

    #[test]
    fn a_pool_nothing_is_sold_to_is_named_unless_its_region_is_the_reason() {
        let blocked = Blocked {
            by: Blocker::NoOffering,
            count: 1,
            message: "nothing".into(),
        };
        let planned = PoolPlan {
            blocked: vec![blocked],
            ..PoolPlan::default()
        };
        let pool: PoolName = "elsewhere".parse().unwrap();
        let plan = Plan {
            pools: BTreeMap::from([(pool.clone(), planned)]),
            ..Plan::default()
        };
        assert_eq!(
            shown_of(&world(&[], &[]), &plan),
            [(Trouble::Pool(pool), "elsewhere".into(), "nothing".into())]
        );
        let down = shown_of(&world(&[("other", "closed")], &[]), &plan);
        assert_eq!(down.len(), 1, "{down:?}");
        assert!(matches!(down[0].0, Trouble::Region(_)));
    }

    #[test]
    fn what_was_told_is_told_again_only_after_it_was_over() {
        let mut told = Told::default();
        let down = world(&[("other", "closed")], &[]);
        let down = troubles(&down, &Plan::default(), &config());
        told.tell(PassId(1), &down);
        assert_eq!(told.0.len(), 1);
        told.tell(PassId(2), &BTreeMap::new());
        assert!(told.0.is_empty());
    }
}
