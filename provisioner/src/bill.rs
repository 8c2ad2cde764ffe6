//! What the instances have cost: booked once in every pass, by pool and day.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::cloud::OfferingKey;
use crate::ids::PoolName;
use crate::money::Money;
use crate::store::{Change, InstanceRecord, Stored};
use crate::world::elapsed;

/// Money and hours since the last booking.
#[derive(Clone, Debug, PartialEq)]
pub struct Booking {
    /// Money by pool and day (UTC).
    pub spent: BTreeMap<(PoolName, Date), Money>,
    /// Instance hours by offering.
    pub hours: BTreeMap<OfferingKey, f64>,
    /// The time booked until.
    pub until: Timestamp,
}

/// What `records` cost from `booked_until` to `now`, each from its launch at the earliest, at the
/// price it was launched at. A clock that stepped back books nothing and is waited for.
#[must_use]
pub fn book(
    records: &[InstanceRecord],
    booked_until: Option<Timestamp>,
    now: Timestamp,
) -> Booking {
    let mut booking = Booking {
        spent: BTreeMap::new(),
        hours: BTreeMap::new(),
        until: booked_until.map_or(now, |until| until.max(now)),
    };
    for record in records {
        let from = booked_until.map_or(record.launched_at, |until| until.max(record.launched_at));
        let hours = elapsed(from, now).as_secs_f64() / 3600.0;
        if hours > 0.0 {
            *booking.hours.entry(record.offering.clone()).or_default() += hours;
        }
        for (day, begin, end) in days(from, now) {
            let cost = record.price.over(elapsed(begin, end));
            *booking.spent.entry((record.pool.clone(), day)).or_default() += cost;
        }
    }
    booking
}

/// The part of each day (UTC) between two times.
fn days(from: Timestamp, to: Timestamp) -> impl Iterator<Item = (Date, Timestamp, Timestamp)> {
    let mut begin = from;
    std::iter::from_fn(move || {
        if begin >= to {
            return None;
        }
        let day = date(begin);
        let midnight = day
            .tomorrow()
            .and_then(|day| day.to_zoned(TimeZone::UTC))
            .map_or(to, |zoned| zoned.timestamp());
        let part = (day, begin, midnight.min(to));
        begin = midnight;
        Some(part)
    })
}

/// The day of a time, in UTC.
#[must_use]
pub fn date(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

impl Booking {
    /// Adds it to what is stored, so that the plan of this pass sees it, and gives it to be written.
    #[must_use]
    pub fn enter(self, stored: &mut Stored, now: Timestamp) -> Vec<Change> {
        let today = date(now);
        let mut changes = Vec::with_capacity(self.spent.len() + 1);
        for ((pool, day), amount) in self.spent {
            if day == today {
                *stored.spent_today.entry(pool.clone()).or_default() += amount;
            }
            changes.push(Change::Spent { pool, day, amount });
        }
        changes.push(Change::Booked {
            hours: self.hours.into_iter().collect(),
            until: self.until,
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::CapacityType;
    use crate::ids::{ImageName, InstanceId, InstanceType, Region, Zone};
    use crate::world::Assignment;

    fn record(launched_at: &str) -> InstanceRecord {
        InstanceRecord {
            id: InstanceId::parse("i-1").unwrap(),
            offering: OfferingKey {
                region: Region::parse("here").unwrap(),
                zone: Zone::parse("here-a").unwrap(),
                instance_type: InstanceType::parse("small").unwrap(),
                capacity_type: CapacityType::Spot,
            },
            intent: None,
            pool: PoolName::parse("build").unwrap(),
            image: ImageName::parse("base").unwrap(),
            image_id: None,
            price: Money::from_micros(1_000_000),
            launched_at: launched_at.parse().unwrap(),
            private_address: None,
            host: None,
            assignment: Assignment::GoOn,
            hold: None,
            suspected_at: None,
            ended_at: None,
        }
    }

    fn dollars(booking: &Booking) -> Vec<(String, f64)> {
        let spent = booking.spent.iter();
        spent
            .map(|((_, day), money)| (day.to_string(), money.dollars()))
            .collect()
    }

    #[test]
    fn money_is_booked_on_the_day_it_was_spent() {
        let now = "2026-01-02T01:00:00Z".parse().unwrap();
        let booking = book(&[record("2026-01-01T22:30:00Z")], None, now);
        assert_eq!(
            dollars(&booking),
            [
                ("2026-01-01".to_owned(), 1.5),
                ("2026-01-02".to_owned(), 1.0)
            ]
        );
        assert!((booking.hours.values().sum::<f64>() - 2.5).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_booked_twice() {
        let until = "2026-01-01T23:00:00Z".parse().unwrap();
        let now = "2026-01-01T23:30:00Z".parse().unwrap();
        let booking = book(&[record("2026-01-01T22:30:00Z")], Some(until), now);
        assert_eq!(dollars(&booking), [("2026-01-01".to_owned(), 0.5)]);
    }

    #[test]
    fn a_clock_that_stepped_back_books_nothing_and_is_waited_for() {
        let until = "2026-01-01T23:00:00Z".parse().unwrap();
        let now = "2026-01-01T22:45:00Z".parse().unwrap();
        let booking = book(&[record("2026-01-01T22:30:00Z")], Some(until), now);
        assert_eq!(dollars(&booking), []);
        assert_eq!(booking.until, until);
    }
}
