//! The market file: what the local cloud sells, at which price, how much of it, and what it takes back.
//!
//! Everything here is a function of the file and a time. `docs/local-cloud.md` has the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use farm_config::{Fault, KeyFault, OtherTables, Schema, Section, Source};
use jiff::Timestamp;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::allocate::{Shelf, Stock};
use super::disk::{IMAGE, Meta, POOL};
use crate::cloud::{CapacityType, Offering, OfferingKey};
use crate::ids::{ImageName, InstanceType, PoolName, Region, Zone};
use crate::money::Money;

/// What a market without a file sells of each type in its one zone.
const DEFAULT_CAPACITY: u32 = 64;
/// At this price per hour: a cent.
const DEFAULT_PRICE: Money = Money::from_micros(10_000);

/// As long before the end as EC2 says it.
pub(super) const NOTICE: Duration = Duration::from_secs(120);

/// What there is to buy, and what is taken back.
#[derive(Clone, Debug)]
pub(super) struct Market {
    /// `None`: the market without a file.
    offerings: Option<Vec<OfferingSettings>>,
    quotas: BTreeMap<Region, QuotaSettings>,
    interruptions: Vec<InterruptionSettings>,
    notice: Duration,
    start: Timestamp,
}

/// `[market]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MarketSettings {
    /// From when on prices walk; none: when the file was written.
    #[serde(deserialize_with = "moment")]
    start: Option<Timestamp>,
    /// How long before it takes an instance back the cloud says so.
    #[serde(with = "humantime_serde")]
    notice: Duration,
}

impl Default for MarketSettings {
    fn default() -> Self {
        Self {
            start: None,
            notice: NOTICE,
        }
    }
}

/// `[quota.REGION]`: instances the account may have at once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QuotaSettings {
    spot: Option<u32>,
    on_demand: Option<u32>,
}

/// `[[offerings]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferingSettings {
    #[serde(default = "default_region")]
    region: Region,
    zone: Zone,
    #[serde(rename = "type")]
    instance_type: InstanceType,
    #[serde(default)]
    capacity_type: CapacityType,
    price: Price,
    capacity: u32,
}

/// `[[interruptions]]`: which instances are taken back, and when. All keys that are set must fit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterruptionSettings {
    #[serde(default, deserialize_with = "moment")]
    at: Option<Timestamp>,
    #[serde(default, with = "humantime_serde")]
    age: Option<Duration>,
    #[serde(default)]
    region: Option<Region>,
    #[serde(default)]
    zone: Option<Zone>,
    #[serde(default, rename = "type")]
    instance_type: Option<InstanceType>,
    #[serde(default)]
    pool: Option<PoolName>,
    #[serde(default)]
    image: Option<ImageName>,
}

/// A time, as TOML writes one or as a text.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text,
        other => other.to_string(),
    };
    text.parse().map(Some).map_err(|_| {
        D::Error::custom(format!(
            "`{text}` is no time: expected one with its zone, such as 2026-05-04T12:00:00Z"
        ))
    })
}

/// The region of who names none.
pub(super) fn default_region() -> Region {
    Region::parse("local").expect("made of plain characters")
}

/// A price that stays, or steps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Price(Vec<PriceStep>);

/// From `after` on it is `price`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceStep {
    #[serde(with = "humantime_serde")]
    after: Duration,
    price: Money,
}

impl Price {
    /// The price `time` after the start, and how long before that it became so.
    fn at(&self, time: Duration) -> (Money, Duration) {
        let step = self.0.iter().rev().find(|step| step.after <= time);
        let step = step.or_else(|| self.0.first());
        step.map_or((Money::ZERO, Duration::ZERO), |step| {
            (step.price, step.after)
        })
    }
}

impl<'de> Deserialize<'de> for Price {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PriceVisitor)
    }
}

struct PriceVisitor;

impl<'de> Visitor<'de> for PriceVisitor {
    type Value = Price;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dollars per hour, or a list such as [{ after = \"0s\", price = 0.01 }]")
    }

    fn visit_f64<E: serde::de::Error>(self, dollars: f64) -> Result<Price, E> {
        let price = Money::from_dollars(dollars).map_err(E::custom)?;
        let after = Duration::ZERO;
        Ok(Price(vec![PriceStep { after, price }]))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "what is so large is refused as a price"
    )]
    fn visit_i64<E: serde::de::Error>(self, dollars: i64) -> Result<Price, E> {
        self.visit_f64(dollars as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Price, A::Error> {
        let mut steps: Vec<PriceStep> = Vec::new();
        while let Some(step) = items.next_element::<PriceStep>()? {
            let begins = steps.last().map(|last| last.after);
            let is_next = begins.map_or(step.after.is_zero(), |last| last < step.after);
            if !is_next {
                return Err(A::Error::custom(
                    "the steps of a price must begin with `after = \"0s\"`, each later than the one before",
                ));
            }
            steps.push(step);
        }
        if steps.is_empty() {
            return Err(A::Error::invalid_length(0, &self));
        }
        Ok(Price(steps))
    }
}

const SCHEMA: Schema = Schema {
    default_path: "",
    sections: &[
        Section::one::<MarketSettings>("market"),
        Section::named::<QuotaSettings>("quota", "region"),
        Section::list::<OfferingSettings>("offerings"),
        Section::list::<InterruptionSettings>("interruptions"),
    ],
    other_tables: OtherTables::Refused,
};

impl Market {
    /// The market without a file: each region sells every type in one zone, `REGION-a`.
    pub(super) fn unlimited() -> Self {
        Self {
            offerings: None,
            quotas: BTreeMap::new(),
            interruptions: Vec::new(),
            notice: NOTICE,
            start: Timestamp::UNIX_EPOCH,
        }
    }

    /// The market in this file, which was written at `written`.
    ///
    /// # Errors
    /// All faults, each with its line.
    pub(super) fn read(source: Source, written: Timestamp) -> Result<Self, Vec<Fault>> {
        let document = SCHEMA.read(vec![source])?;
        let market = document.typed(|tables| {
            let settings = tables.one::<MarketSettings>("market");
            let quotas = tables.named::<QuotaSettings>("quota");
            let market = Self {
                offerings: Some(tables.list("offerings")),
                quotas: quotas
                    .iter()
                    .filter_map(|(region, quota)| {
                        Some((Region::parse(region).ok()?, quota.clone()))
                    })
                    .collect(),
                interruptions: tables.list("interruptions"),
                notice: settings.notice,
                start: settings.start.unwrap_or(written),
            };
            (market, quotas)
        });
        let (market, quotas) = market?;
        let mut faults = market.contradictions();
        faults.extend(quotas.keys().filter_map(|region| {
            let fault = Region::parse(region).err()?;
            Some(KeyFault::new(format!("quota.{region}"), fault.to_string()))
        }));
        document.agree(faults)?;
        Ok(market)
    }

    fn contradictions(&self) -> Vec<KeyFault> {
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, offering) in self.offerings.iter().flatten().enumerate() {
            let key = offering.key();
            if !seen.insert(key.clone()) {
                faults.push(KeyFault::new(
                    format!("offerings[{index}]"),
                    format!(
                        "`offerings[{index}]` sells {} in {} as {} once more: expected each once",
                        key.instance_type, key.zone, key.capacity_type
                    ),
                ));
            }
        }
        for (index, interruption) in self.interruptions.iter().enumerate() {
            if interruption.at.is_some() == interruption.age.is_some() {
                faults.push(KeyFault::new(
                    format!("interruptions[{index}]"),
                    format!("`interruptions[{index}]`: expected either `at` or `age`"),
                ));
            }
        }
        faults
    }

    /// How long before it takes an instance back it says so.
    pub(super) fn notice(&self) -> Duration {
        self.notice
    }

    /// What `region` sells of `types` at `now`.
    pub(super) fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
        now: Timestamp,
    ) -> Vec<Offering> {
        let Some(offerings) = &self.offerings else {
            return unlimited(region, types, now);
        };
        let walked = self.walked(now);
        offerings
            .iter()
            .filter(|offering| {
                offering.region == *region && types.contains(&offering.instance_type)
            })
            .map(|offering| {
                let (price, since) = offering.price.at(walked);
                let as_of = self
                    .start
                    .checked_add(jiff::SignedDuration::try_from(since).unwrap_or_default());
                Offering {
                    key: offering.key(),
                    price,
                    as_of: as_of.unwrap_or(now).min(now),
                }
            })
            .collect()
    }

    /// What is left at `now` of the offerings `wanted`, when `used` run.
    pub(super) fn shelf(
        &self,
        region: &Region,
        capacity_type: CapacityType,
        wanted: &BTreeSet<InstanceType>,
        used: &BTreeMap<OfferingKey, u32>,
        now: Timestamp,
    ) -> Shelf {
        let stock = self.offerings(region, wanted, now).into_iter();
        let stock = stock.map(|offering| {
            let taken = used.get(&offering.key).copied().unwrap_or_default();
            let free = self.capacity(&offering.key).saturating_sub(taken);
            let price = offering.price;
            (offering.key, Stock { price, free })
        });
        let quota = self
            .quotas
            .get(region)
            .and_then(|quota| match capacity_type {
                CapacityType::Spot => quota.spot,
                CapacityType::OnDemand => quota.on_demand,
            });
        let in_quota = used
            .iter()
            .filter(|(key, _)| key.region == *region && key.capacity_type == capacity_type);
        let in_quota = in_quota.map(|(_, count)| count).sum();
        Shelf {
            stock: stock.collect(),
            quota: quota.map(|quota| quota.saturating_sub(in_quota)),
        }
    }

    fn capacity(&self, key: &OfferingKey) -> u32 {
        let Some(offerings) = &self.offerings else {
            return DEFAULT_CAPACITY;
        };
        let offering = offerings.iter().find(|offering| offering.key() == *key);
        offering.map_or(0, |offering| offering.capacity)
    }

    /// When the cloud takes this instance back, if it will.
    pub(super) fn interruption(&self, instance: &Meta) -> Option<Timestamp> {
        if !instance.is_spot() {
            return None;
        }
        let rules = self.interruptions.iter();
        rules.filter_map(|rule| rule.takes(instance)).min()
    }

    /// Time since the prices began to walk; zero if the clock stepped back.
    fn walked(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.start)).unwrap_or_default()
    }
}

fn unlimited(region: &Region, types: &BTreeSet<InstanceType>, now: Timestamp) -> Vec<Offering> {
    let zone = Zone::parse(&format!("{region}-a"));
    let both = [CapacityType::Spot, CapacityType::OnDemand];
    let offered = zone.into_iter().flat_map(|zone| {
        types.iter().flat_map(move |instance_type| {
            let zone = zone.clone();
            both.map(move |capacity_type| Offering {
                key: OfferingKey {
                    region: region.clone(),
                    zone: zone.clone(),
                    instance_type: instance_type.clone(),
                    capacity_type,
                },
                price: DEFAULT_PRICE,
                as_of: now,
            })
        })
    });
    offered.collect()
}

impl OfferingSettings {
    fn key(&self) -> OfferingKey {
        OfferingKey {
            region: self.region.clone(),
            zone: self.zone.clone(),
            instance_type: self.instance_type.clone(),
            capacity_type: self.capacity_type,
        }
    }
}

impl InterruptionSettings {
    /// When this rule takes `instance` back, if it does.
    fn takes(&self, instance: &Meta) -> Option<Timestamp> {
        fn fits<T: PartialEq<U>, U: ?Sized>(wanted: Option<&T>, is: &U) -> bool {
            wanted.is_none_or(|wanted| wanted == is)
        }
        let offering = &instance.offering;
        let tag = |name| instance.tag(name).unwrap_or_default();
        let fits = fits(self.region.as_ref(), &offering.region)
            && fits(self.zone.as_ref(), &offering.zone)
            && fits(self.instance_type.as_ref(), &offering.instance_type)
            && self
                .pool
                .as_ref()
                .is_none_or(|pool| pool.as_str() == tag(POOL))
            && self
                .image
                .as_ref()
                .is_none_or(|image| image.as_str() == tag(IMAGE));
        let at = self.at.or_else(|| {
            let age = jiff::SignedDuration::try_from(self.age?).ok()?;
            instance.launched_at.checked_add(age).ok()
        })?;
        // What is launched after the hour is not meant.
        (fits && at > instance.launched_at).then_some(at)
    }
}

/// A market that is read again when its file changes.
#[derive(Debug)]
pub(super) struct MarketFile {
    path: Option<std::path::PathBuf>,
    read: Option<(Stamp, Result<Market, String>)>,
}

/// What tells one content of a file from another without reading it.
type Stamp = (SystemTime, u64, u64);

impl MarketFile {
    pub(super) fn new(path: Option<&Path>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            read: None,
        }
    }

    /// The market as it is now.
    ///
    /// # Errors
    /// Every fault of the file, one on each line.
    pub(super) fn market(&mut self) -> Result<&Market, String> {
        let stamp = match &self.path {
            None => (SystemTime::UNIX_EPOCH, 0, 0),
            Some(path) => stamp(path).map_err(|error| error.to_string())?,
        };
        if self.read.as_ref().is_none_or(|(read, _)| *read != stamp) {
            let market = match &self.path {
                None => Ok(Market::unlimited()),
                Some(path) => read(path, stamp.0),
            };
            self.read = Some((stamp, market));
        }
        match &self.read {
            Some((_, Ok(market))) => Ok(market),
            Some((_, Err(faults))) => Err(faults.clone()),
            None => unreachable!("it was read right before"),
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs_err::metadata(path)?;
    Ok((metadata.modified()?, metadata.len(), metadata.ino()))
}

fn read(path: &Path, written: SystemTime) -> Result<Market, String> {
    let written = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
    Source::read(path)
        .map_err(|fault| vec![fault])
        .and_then(|source| Market::read(source, written))
        .map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
            lines.join("\n")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Market, Vec<Fault>> {
        let source = Source {
            path: "local.market".into(),
            text: text.into(),
        };
        Market::read(source, Timestamp::UNIX_EPOCH)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn small() -> BTreeSet<InstanceType> {
        BTreeSet::from([InstanceType::parse("small").unwrap()])
    }

    const MARKET: &str = r#"
[market]
notice = "30s"

[quota.local]
spot = 5

[[offerings]]
zone = "local-a"
type = "small"
price = [{ after = "0s", price = 0.01 }, { after = "10m", price = 0.03 }]
capacity = 4

[[offerings]]
zone = "local-a"
type = "small"
capacity_type = "on_demand"
price = 1
capacity = 2

[[interruptions]]
age = "5m"
pool = "linux64"

[[interruptions]]
at = 1970-01-01T01:00:00Z
"#;

    #[test]
    fn a_price_walks_at_its_steps_and_not_before() {
        let market = read_text(MARKET).unwrap();
        let price = |seconds| {
            let offered = market.offerings(&default_region(), &small(), at(seconds));
            (offered[0].price, offered[0].as_of)
        };
        let (cheap, dear) = (Money::from_micros(10_000), Money::from_micros(30_000));
        assert_eq!(price(-5), (cheap, at(-5)));
        assert_eq!(price(0), (cheap, at(0)));
        assert_eq!(price(599), (cheap, at(0)));
        assert_eq!(price(600), (dear, at(600)));
        assert_eq!(price(100_000), (dear, at(600)));
    }

    #[test]
    fn what_runs_is_missing_on_the_shelf() {
        let market = read_text(MARKET).unwrap();
        let offered = market.offerings(&default_region(), &small(), at(0));
        let [spot, on_demand] = &offered[..] else {
            panic!("{offered:?}");
        };
        let used = BTreeMap::from([(spot.key.clone(), 3), (on_demand.key.clone(), 7)]);
        let shelf =
            |capacity_type| market.shelf(&default_region(), capacity_type, &small(), &used, at(0));
        let of_spot = shelf(CapacityType::Spot);
        assert_eq!(of_spot.quota, Some(2));
        assert_eq!(of_spot.stock[&spot.key].free, 1);
        assert_eq!(of_spot.stock[&on_demand.key].free, 0);
        assert_eq!(shelf(CapacityType::OnDemand).quota, None);
    }

    fn instance(pool: &str, launched_at: i64, capacity_type: CapacityType) -> Meta {
        let meta = serde_json::json!({
            "id": "i-1", "region": "local", "zone": "local-a", "instance_type": "small",
            "capacity_type": capacity_type, "price": 0.01, "launched_at": at(launched_at),
            "image_id": "/image", "tags": { POOL: pool },
            "run": { "runner": "/runner", "image": "/image", "isolated": false, "forward": [],
                "writable": [], "hidden": [], "market": null, "grace_period": "1s" },
        });
        serde_json::from_value(meta).unwrap()
    }

    #[test]
    fn the_first_rule_that_comes_takes_a_spot_instance_it_is_meant_for() {
        let market = read_text(MARKET).unwrap();
        let taken = |pool, launched_at, capacity_type| {
            market.interruption(&instance(pool, launched_at, capacity_type))
        };
        let spot = CapacityType::Spot;
        assert_eq!(taken("linux64", 100, spot), Some(at(400)));
        assert_eq!(taken("linux64", 3500, spot), Some(at(3600)));
        assert_eq!(taken("win64", 100, spot), Some(at(3600)));
        assert_eq!(taken("win64", 3600, spot), None);
        assert_eq!(taken("linux64", 100, CapacityType::OnDemand), None);
    }

    #[test]
    fn the_example_is_a_market() {
        let example = read_text(include_str!("../../../../deploy/local/local.market")).unwrap();
        let offered = example.offerings(&default_region(), &small(), at(0));
        assert_eq!(offered.len(), 3);
    }

    #[test]
    fn without_a_file_every_type_is_sold() {
        let offered = Market::unlimited().offerings(&default_region(), &small(), at(7));
        assert_eq!(offered.len(), 2);
        assert_eq!(offered[0].key.zone.as_str(), "local-a");
        assert_eq!(offered[0].price, Money::from_micros(10_000));
    }

    #[test]
    fn every_fault_is_said_with_its_line() {
        let faults = read_text(
            r#"
[market]
notice = "soon"

[[offerings]]
zone = "a b"
type = "small"
price = -1
capacity = 4

[[offerings]]
zone = "a"
type = "small"
price = [{ after = "1s", price = 0.01 }]

[[offerings]]
zone = "a"
type = "small"
price = []
capacity = "many"

[[interruptions]]
at = 2026-05-04

[interruption]
"#,
        );
        insta::assert_snapshot!(lines(faults));
    }

    #[test]
    fn every_contradiction_is_said_with_its_line() {
        let faults = read_text(
            r#"
[quota."no region"]
spot = 1

[[offerings]]
zone = "a"
type = "small"
price = 1
capacity = 1

[[offerings]]
zone = "a"
type = "small"
price = 2
capacity = 1

[[interruptions]]
zone = "a"
"#,
        );
        insta::assert_snapshot!(lines(faults));
    }

    fn lines(faults: Result<Market, Vec<Fault>>) -> String {
        let faults = faults.unwrap_err();
        let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
        lines.join("\n")
    }
}
