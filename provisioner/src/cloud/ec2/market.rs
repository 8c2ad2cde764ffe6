//! What a region sells to us: prices, what is sold where, and the subnets we have to put it in.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types;
use jiff::Timestamp;

use super::action::Action;
use super::call::Caller;
use super::fault::Fault;
use crate::cloud::budget::Priority;
use crate::cloud::{CapacityType, Offering, OfferingKey};
use crate::ids::{InstanceType, Region, Zone};
use crate::money::Money;

/// The configured subnets that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subnets {
    /// By id, in the order of the configuration.
    pub(super) found: Vec<Subnet>,
}

/// One subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) zone: Zone,
    /// Addresses that were free when it was asked for.
    pub(super) free: u32,
}

impl Subnets {
    /// Asks for those with the `wanted` ids; an id that does not exist is missing in the answer.
    pub(super) async fn ask(
        caller: &Caller,
        priority: Priority,
        wanted: &[String],
    ) -> Result<Self, Fault> {
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let mut by_id = BTreeMap::new();
        let mut next: Option<String> = None;
        loop {
            let page = caller
                .call(Action::DescribeSubnets, priority, 0, |client| {
                    client
                        .describe_subnets()
                        .filters(filter("subnet-id", wanted))
                        .max_results(1000)
                        .set_next_token(next.clone())
                        .send()
                })
                .await?;
            for subnet in page.subnets() {
                if let Some(subnet) = read_subnet(subnet) {
                    by_id.insert(subnet.id.clone(), subnet);
                }
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                let found = wanted.iter().filter_map(|id| by_id.remove(id)).collect();
                return Ok(Self { found });
            }
        }
    }

    /// The subnet of a zone: the first one the configuration names, as a fleet takes only one.
    pub(super) fn of_zone(&self, zone: &Zone) -> Option<&str> {
        let mut found = self.found.iter();
        found
            .find(|subnet| subnet.zone == *zone)
            .map(|subnet| subnet.id.as_str())
    }

    pub(super) fn zone_of(&self, id: &str) -> Option<&Zone> {
        let mut found = self.found.iter();
        found
            .find(|subnet| subnet.id == id)
            .map(|subnet| &subnet.zone)
    }
}

fn read_subnet(subnet: &types::Subnet) -> Option<Subnet> {
    Some(Subnet {
        id: subnet.subnet_id()?.to_owned(),
        zone: Zone::parse(subnet.availability_zone()?).ok()?,
        free: u32::try_from(subnet.available_ip_address_count()?).unwrap_or(0),
    })
}

/// A filter of EC2.
pub(super) fn filter<T: AsRef<str>>(name: &str, values: &[T]) -> types::Filter {
    let values = values.iter().map(|value| value.as_ref().to_owned());
    types::Filter::builder()
        .name(name)
        .set_values(Some(values.collect()))
        .build()
}

/// Which of some types are sold in which zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sold {
    pub(super) asked: BTreeSet<InstanceType>,
    pub(super) places: BTreeSet<(InstanceType, Zone)>,
}

/// "Maximum number of values of a filter: 200" (EC2 API Reference, "Filtering").
const MOST_VALUES: usize = 200;

impl Sold {
    pub(super) async fn ask(
        caller: &Caller,
        priority: Priority,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Self, Fault> {
        let names: Vec<&str> = types.iter().map(InstanceType::as_str).collect();
        let mut sold = Self {
            asked: types.clone(),
            places: BTreeSet::new(),
        };
        for names in names.chunks(MOST_VALUES) {
            sold.ask_some(caller, priority, names).await?;
        }
        Ok(sold)
    }

    async fn ask_some(
        &mut self,
        caller: &Caller,
        priority: Priority,
        names: &[&str],
    ) -> Result<(), Fault> {
        let mut next: Option<String> = None;
        loop {
            let page = caller
                .call(
                    Action::DescribeInstanceTypeOfferings,
                    priority,
                    0,
                    |client| {
                        client
                            .describe_instance_type_offerings()
                            .location_type(types::LocationType::AvailabilityZone)
                            .filters(filter("instance-type", names))
                            .max_results(1000)
                            .set_next_token(next.clone())
                            .send()
                    },
                )
                .await?;
            let rows = page.instance_type_offerings().iter().filter_map(|row| {
                let instance_type = InstanceType::parse(row.instance_type()?.as_str()).ok()?;
                Some((instance_type, Zone::parse(row.location()?).ok()?))
            });
            self.places.extend(rows);
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(());
            }
        }
    }
}

/// The spot price of each type in each zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prices {
    pub(super) asked: BTreeSet<InstanceType>,
    pub(super) asked_at: Timestamp,
    pub(super) spot: BTreeMap<(InstanceType, Zone), (Timestamp, Money)>,
}

impl Prices {
    /// One call for all types and zones, and one for each further 1,000 rows. With a start of `now`
    /// EC2 answers with the price that is in force, and no history.
    pub(super) async fn ask(
        caller: &Caller,
        types: &BTreeSet<InstanceType>,
        product: &str,
        now: Timestamp,
    ) -> Result<Self, Fault> {
        let wanted: Vec<_> = types
            .iter()
            .map(|name| types::InstanceType::from(name.as_str()))
            .collect();
        let start = aws_sdk_ec2::primitives::DateTime::from_secs(now.as_second());
        let mut prices = Self {
            asked: types.clone(),
            asked_at: now,
            spot: BTreeMap::new(),
        };
        let mut next: Option<String> = None;
        loop {
            let page = caller
                .call(
                    Action::DescribeSpotPriceHistory,
                    Priority::Observe,
                    0,
                    |client| {
                        client
                            .describe_spot_price_history()
                            .start_time(start)
                            .set_instance_types(Some(wanted.clone()))
                            .product_descriptions(product)
                            .max_results(1000)
                            .set_next_token(next.clone())
                            .send()
                    },
                )
                .await?;
            for row in page.spot_price_history() {
                prices.read(row, product);
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(prices);
            }
        }
    }

    /// Keeps the latest price of the wanted product; a row that cannot be read is no offering.
    fn read(&mut self, row: &types::SpotPrice, product: &str) {
        let said = row
            .product_description()
            .map(types::RiProductDescription::as_str);
        let of_product = said.is_some_and(|said| {
            said == product || said.strip_suffix(" (Amazon VPC)") == Some(product)
        });
        let read = || {
            let instance_type = InstanceType::parse(row.instance_type()?.as_str()).ok()?;
            let zone = Zone::parse(row.availability_zone()?).ok()?;
            let price = Money::from_dollars(row.spot_price()?.parse().ok()?).ok()?;
            Some(((instance_type, zone), (timestamp(row.timestamp()?)?, price)))
        };
        if let Some((place, price)) = read().filter(|_| of_product) {
            let known = self.spot.entry(place).or_insert(price);
            *known = (*known).max(price);
        }
    }
}

/// A moment of the SDK as one of ours.
pub(super) fn timestamp(moment: &aws_sdk_ec2::primitives::DateTime) -> Option<Timestamp> {
    let nanos = i32::try_from(moment.subsec_nanos()).ok()?;
    Timestamp::new(moment.secs(), nanos).ok()
}

/// All that `region` sells of `types` where we have subnets.
pub(super) fn offerings(
    region: &Region,
    types: &BTreeSet<InstanceType>,
    subnets: &Subnets,
    sold: &Sold,
    prices: &Prices,
    on_demand: impl Fn(&InstanceType) -> Option<Money>,
) -> Vec<Offering> {
    let mut offerings = Vec::new();
    let usable = |(instance_type, zone): &&(InstanceType, Zone)| {
        types.contains(instance_type) && subnets.of_zone(zone).is_some()
    };
    for place in sold.places.iter().filter(usable) {
        let (instance_type, zone) = place;
        let offering = |capacity_type, price| Offering {
            key: OfferingKey {
                region: region.clone(),
                zone: zone.clone(),
                instance_type: instance_type.clone(),
                capacity_type,
            },
            price,
            as_of: prices.asked_at,
        };
        let spot = prices.spot.get(place);
        offerings.extend(spot.map(|(_, price)| offering(CapacityType::Spot, *price)));
        let list = on_demand(instance_type);
        offerings.extend(list.map(|price| offering(CapacityType::OnDemand, price)));
    }
    offerings
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::primitives::DateTime;

    use super::*;

    fn row(product: &str, seconds: i64, price: &str) -> types::SpotPrice {
        types::SpotPrice::builder()
            .instance_type(types::InstanceType::from("a.large"))
            .availability_zone("r-1a")
            .product_description(types::RiProductDescription::from(product))
            .timestamp(DateTime::from_secs(seconds))
            .spot_price(price)
            .build()
    }

    fn price(rows: &[types::SpotPrice]) -> Option<Money> {
        let mut prices = Prices {
            asked: BTreeSet::new(),
            asked_at: Timestamp::UNIX_EPOCH,
            spot: BTreeMap::new(),
        };
        for row in rows {
            prices.read(row, "Linux/UNIX");
        }
        prices.spot.into_values().next().map(|(_, price)| price)
    }

    #[test]
    fn the_latest_price_of_the_product_counts_in_whatever_order_it_comes() {
        let mut rows = vec![
            row("Linux/UNIX", 100, "0.10"),
            row("Linux/UNIX (Amazon VPC)", 300, "0.30"),
            row("Windows", 400, "0.40"),
            row("Linux/UNIX", 200, "0.20"),
        ];
        for _ in 0..rows.len() {
            rows.rotate_left(1);
            assert_eq!(price(&rows), Some(Money::from_micros(300_000)));
        }
        assert_eq!(price(&rows[..0]), None);
    }

    #[test]
    fn a_row_without_a_price_is_no_offering() {
        for bad in ["", "free", "-1", "NaN"] {
            assert_eq!(price(&[row("Linux/UNIX", 1, bad)]), None, "{bad}");
        }
    }

    #[test]
    fn a_zone_has_the_subnet_the_configuration_names_first() {
        let subnet = |id: &str, zone: &str| Subnet {
            id: id.to_owned(),
            zone: Zone::parse(zone).unwrap(),
            free: 1,
        };
        let subnets = Subnets {
            found: vec![
                subnet("s-1", "r-1a"),
                subnet("s-2", "r-1a"),
                subnet("s-3", "r-1b"),
            ],
        };
        assert_eq!(subnets.of_zone(&Zone::parse("r-1a").unwrap()), Some("s-1"));
        assert_eq!(subnets.of_zone(&Zone::parse("r-1c").unwrap()), None);
        assert_eq!(subnets.zone_of("s-3").map(Zone::as_str), Some("r-1b"));
    }
}
