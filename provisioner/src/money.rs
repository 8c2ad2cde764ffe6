//! Money, in whole millionths of a dollar, so that sums are exact and the same in every order.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of US dollars; a price where the field says "per hour".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(i64);

/// Why a number is no amount of money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no amount of money: expected dollars from 0 to 1000000000, such as 12.50")]
pub struct MoneyFault(String);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From millionths of a dollar.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// In millionths of a dollar.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// From dollars, rounded to the millionth.
    ///
    /// # Errors
    /// If it is negative, no number, or more than a billion.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    pub fn from_dollars(dollars: f64) -> Result<Self, MoneyFault> {
        if (0.0..=1e9).contains(&dollars) {
            Ok(Self((dollars * 1e6).round() as i64))
        } else {
            Err(MoneyFault(dollars.to_string()))
        }
    }

    /// In dollars, for showing and for scores.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "52 bits hold four billion dollars"
    )]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// This price per hour times `count` machines.
    #[must_use]
    pub const fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(count as i64))
    }

    /// What this price per hour costs over `time`, rounded up.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "saturates before")]
    pub fn over(self, time: Duration) -> Self {
        const MILLIS_PER_HOUR: i128 = 3_600_000;
        let millis = i128::try_from(time.as_millis()).unwrap_or(i128::MAX);
        let micros = i128::from(self.0)
            .saturating_mul(millis)
            .saturating_add(MILLIS_PER_HOUR - 1)
            .div_euclid(MILLIS_PER_HOUR);
        Self(micros.clamp(0, i128::from(i64::MAX)) as i64)
    }

    /// The difference, not below nothing.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self((self.0 - other.0).max(0))
    }
}

impl Add for Money {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Money {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        f.pad(&format!("${:.digits$}", self.dollars()))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.dollars().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dollars = f64::deserialize(deserializer)?;
        Self::from_dollars(dollars).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_survives_being_written_and_read() {
        for micros in [0, 1, 16_300, 999_999_999_999] {
            let price = Money::from_micros(micros);
            let text = serde_json::to_string(&price).expect("serialises");
            assert_eq!(
                serde_json::from_str::<Money>(&text).expect("parses"),
                price,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for bad in [-0.01, f64::NAN, f64::INFINITY, 2e9] {
            assert!(Money::from_dollars(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_an_hour_is_rounded_up() {
        let price = Money::from_micros(3_600_000);
        assert_eq!(
            price.over(Duration::from_secs(1)),
            Money::from_micros(1_000)
        );
        assert_eq!(price.over(Duration::from_millis(1)), Money::from_micros(1));
        assert_eq!(price.over(Duration::ZERO), Money::ZERO);
        assert_eq!(
            Money::from_micros(1).over(Duration::from_millis(1)),
            Money::from_micros(1)
        );
    }
}
