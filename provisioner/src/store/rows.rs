//! What is read: rows turned into what they stand for.
//!
//! Nothing here trusts the database: a row that is not what was written is a fault that names it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::value::Error as WordError;
use serde::de::{DeserializeOwned, IntoDeserializer as _};

use super::sql::{Connection, Fault, Row, Value, only};
use super::{Action, HistoryQuery, InstanceRecord, PassSummary, Registration, Stored};
use crate::cloud::OfferingKey;
use crate::ids::{InstanceId, IntentId, PassId, PoolName};
use crate::money::Money;
use crate::world::{
    Assignment, HostView, Intent, Interruptions, Maintenance, Order, PoolMemory, Shortage,
};

/// Nanoseconds of an hour.
const HOUR: i64 = 3_600_000_000_000;

/// Hours of which offerings are remembered.
pub(super) const HOURS_KEPT: i64 = 24;

type Read<T> = Result<T, sqlx::Error>;

/// The hour of the clock `time` is in, since 1970.
pub(super) fn hour(time: Timestamp) -> i64 {
    super::sql::nanoseconds(time).div_euclid(HOUR)
}

fn unread(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

/// The fault of a row, with what the row is about.
fn about(what: &str, id: &str, error: &sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Decode(why) => unread(format_args!("{what} `{id}`: {why}")),
        other => unread(format_args!("{what} `{id}`: {other}")),
    }
}

fn missing(column: usize) -> sqlx::Error {
    unread(format_args!("column {column} is empty: expected a value"))
}

fn integer(row: &dyn Row, column: usize) -> Read<i64> {
    row.integer(column)?.ok_or_else(|| missing(column))
}

fn real(row: &dyn Row, column: usize) -> Read<f64> {
    row.real(column)?.ok_or_else(|| missing(column))
}

fn text(row: &dyn Row, column: usize) -> Read<&str> {
    row.text(column)?.ok_or_else(|| missing(column))
}

fn owned(row: &dyn Row, column: usize) -> Read<String> {
    text(row, column).map(str::to_owned)
}

pub(super) fn unsigned(row: &dyn Row, column: usize) -> Read<u64> {
    u64::try_from(integer(row, column)?).map_err(unread)
}

fn count(row: &dyn Row, column: usize) -> Read<u32> {
    u32::try_from(integer(row, column)?).map_err(unread)
}

fn instant(nanoseconds: i64) -> Read<Timestamp> {
    Timestamp::from_nanosecond(nanoseconds.into()).map_err(unread)
}

fn time(row: &dyn Row, column: usize) -> Read<Timestamp> {
    instant(integer(row, column)?)
}

fn time_if_any(row: &dyn Row, column: usize) -> Read<Option<Timestamp>> {
    row.integer(column)?.map(instant).transpose()
}

/// A name, or one of the words of an enum.
fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Read<T> {
    text.parse().map_err(unread)
}

fn name<T: std::str::FromStr<Err: std::fmt::Display>>(row: &dyn Row, column: usize) -> Read<T> {
    parsed(text(row, column)?)
}

fn name_if_any<T: std::str::FromStr<Err: std::fmt::Display>>(
    row: &dyn Row,
    column: usize,
) -> Read<Option<T>> {
    row.text(column)?.map(parsed).transpose()
}

/// A variant of an enum, by its name on the wire.
fn word<T: DeserializeOwned>(row: &dyn Row, column: usize) -> Read<T> {
    let word: serde::de::value::StrDeserializer<'_, WordError> =
        text(row, column)?.into_deserializer();
    T::deserialize(word).map_err(unread)
}

fn json<T: DeserializeOwned>(row: &dyn Row, column: usize) -> Read<T> {
    serde_json::from_str(text(row, column)?).map_err(unread)
}

fn json_if_any<T: DeserializeOwned>(row: &dyn Row, column: usize) -> Read<Option<T>> {
    let text = row.text(column)?;
    text.map(serde_json::from_str).transpose().map_err(unread)
}

/// The columns [`record`] reads. `%` stands for the condition.
macro_rules! instances_where {
    ($condition:literal) => {
        concat!(
            "SELECT i.id, i.region, i.zone, i.instance_type, i.capacity_type, i.intent, i.pool, ",
            "i.image, i.image_id, i.price, i.launched_at, i.private_address, i.assignment, i.hold, ",
            "i.suspected_at, i.ended_at, h.registered_at, h.heard_at, h.activity, h.since, h.job, ",
            "h.runs, h.interruption_at, h.key ",
            "FROM instances i LEFT JOIN hosts h ON h.instance = i.id WHERE i.gone_at IS NULL",
            $condition
        )
    };
}

fn offering(row: &dyn Row, first: usize) -> Read<OfferingKey> {
    Ok(OfferingKey {
        region: name(row, first)?,
        zone: name(row, first + 1)?,
        instance_type: name(row, first + 2)?,
        capacity_type: word(row, first + 3)?,
    })
}

fn record(row: &dyn Row) -> Read<InstanceRecord> {
    let id: InstanceId = name(row, 0)?;
    whole_record(row, &id).map_err(|error| about("instance", id.as_str(), &error))
}

fn whole_record(row: &dyn Row, id: &InstanceId) -> Read<InstanceRecord> {
    Ok(InstanceRecord {
        id: id.clone(),
        offering: offering(row, 1)?,
        intent: name_if_any(row, 5)?,
        pool: name(row, 6)?,
        image: name(row, 7)?,
        image_id: name_if_any(row, 8)?,
        price: Money::from_micros(integer(row, 9)?),
        launched_at: time(row, 10)?,
        private_address: name_if_any(row, 11)?,
        assignment: json_if_any::<Assignment>(row, 12)?.unwrap_or_default(),
        hold: json_if_any(row, 13)?,
        suspected_at: time_if_any(row, 14)?,
        ended_at: time_if_any(row, 15)?,
        host: host(row)?,
    })
}

/// The host of an instance, if it registered.
fn host(row: &dyn Row) -> Read<Option<HostView>> {
    let Some(registered_at) = time_if_any(row, 16)? else {
        return Ok(None);
    };
    Ok(Some(HostView {
        registered_at,
        heard_at: time(row, 17)?,
        activity: word(row, 18)?,
        since: time(row, 19)?,
        job: row.text(20)?.map(str::to_owned),
        runs: unsigned(row, 21)?,
        interruption_at: time_if_any(row, 22)?,
    }))
}

fn intent(row: &dyn Row) -> Read<Intent> {
    let id = text(row, 0)?;
    whole_intent(row).map_err(|error| about("intent", id, &error))
}

fn whole_intent(row: &dyn Row) -> Read<Intent> {
    Ok(Intent {
        request: json(row, 1)?,
        pass: PassId(unsigned(row, 2)?),
        made_at: time(row, 3)?,
        attempts: count(row, 4)?,
        not_before: time_if_any(row, 5)?,
    })
}

fn shortage(row: &dyn Row) -> Read<Shortage> {
    Ok(Shortage {
        key: json(row, 0)?,
        reason: word(row, 1)?,
        message: owned(row, 2)?,
        failures: count(row, 3)?,
        at: time(row, 4)?,
        until: time(row, 5)?,
    })
}

fn interruptions(row: &dyn Row) -> Read<Interruptions> {
    Ok(Interruptions {
        key: offering(row, 0)?,
        count: count(row, 4)?,
        instance_hours: real(row, 5)?,
    })
}

/// Whose order it is, nobody's being the fleet's.
fn order(row: &dyn Row) -> Read<(Option<PoolName>, Order)> {
    let pool = text(row, 0)?;
    let pool = (!pool.is_empty()).then(|| parsed(pool)).transpose()?;
    let order = Order {
        by: owned(row, 1)?,
        reason: owned(row, 2)?,
        at: time(row, 3)?,
    };
    Ok((pool, order))
}

fn suspect(row: &dyn Row) -> Read<(InstanceId, Timestamp)> {
    Ok((name(row, 0)?, time(row, 1)?))
}

fn pool_money(row: &dyn Row) -> Read<(PoolName, Money)> {
    Ok((name(row, 0)?, Money::from_micros(integer(row, 1)?)))
}

fn pool_memory(row: &dyn Row) -> Read<(PoolName, PoolMemory)> {
    Ok((name(row, 0)?, json(row, 1)?))
}

/// All that a pass needs.
pub(super) async fn stored<C: Connection>(sql: &mut C, now: Timestamp) -> Result<Stored, Fault> {
    let head = sql.ask("SELECT id, booked_until FROM store", vec![], |row| {
        Ok((owned(row, 0)?, time_if_any(row, 1)?))
    });
    let (id, booked_until) = only(head.await?)?;
    let mut instances = sql.ask(instances_where!(""), vec![], record).await?;
    // Here, because databases order text by the customs of a country.
    instances.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    let mut shortages = sql
        .ask(
            "SELECT key, reason, message, failures, found_at, closed_until FROM shortages",
            vec![],
            shortage,
        )
        .await?;
    shortages.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    let today = TimeZone::UTC.to_datetime(now).date().to_string();
    let suspects = "SELECT instance, since FROM suspects";
    let spent = "SELECT pool, amount FROM spent WHERE day = $1";
    let memory = "SELECT pool, memory FROM pool_memory";
    Ok(Stored {
        id,
        booked_until,
        instances,
        suspects: map(sql.ask(suspects, vec![], suspect).await?),
        shortages,
        intents: open_intents(sql).await?,
        interruptions: recent_interruptions(sql, now).await?,
        maintenance: maintenance(sql).await?,
        spent_today: map(sql.ask(spent, vec![today.into()], pool_money).await?),
        memory: map(sql.ask(memory, vec![], pool_memory).await?),
    })
}

fn map<K: Ord, V>(rows: Vec<(K, V)>) -> BTreeMap<K, V> {
    rows.into_iter().collect()
}

async fn open_intents<C: Connection>(sql: &mut C) -> Result<Vec<Intent>, Fault> {
    let mut intents = sql
        .ask(
            "SELECT id, request, pass, made_at, attempts, not_before FROM intents \
             WHERE answer IS NULL",
            vec![],
            intent,
        )
        .await?;
    intents.sort_unstable_by(|one, other| one.request.intent.cmp(&other.request.intent));
    Ok(intents)
}

async fn recent_interruptions<C: Connection>(
    sql: &mut C,
    now: Timestamp,
) -> Result<Vec<Interruptions>, Fault> {
    let mut recent = sql
        .ask(
            "SELECT region, zone, instance_type, capacity_type, \
             CAST(SUM(interruptions) AS BIGINT), SUM(instance_hours) \
             FROM offering_hours WHERE hour > $1 \
             GROUP BY region, zone, instance_type, capacity_type",
            vec![(hour(now) - HOURS_KEPT).into()],
            interruptions,
        )
        .await?;
    recent.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    Ok(recent)
}

async fn maintenance<C: Connection>(sql: &mut C) -> Result<Maintenance, Fault> {
    let orders = "SELECT pool, ordered_by, reason, ordered_at FROM maintenance";
    let mut maintenance = Maintenance::default();
    for (pool, order) in sql.ask(orders, vec![], order).await? {
        match pool {
            None => maintenance.fleet = Some(order),
            Some(pool) => {
                maintenance.pools.insert(pool, order);
            }
        }
    }
    Ok(maintenance)
}

pub(super) async fn registration<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
) -> Result<Option<Registration>, Fault> {
    let found = sql.ask(
        instances_where!(" AND i.id = $1"),
        vec![id.as_str().into()],
        |row| {
            Ok(Registration {
                record: record(row)?,
                key: row.text(23)?.map(str::to_owned),
            })
        },
    );
    Ok(found.await?.pop())
}

pub(super) async fn passes<C: Connection>(
    sql: &mut C,
    limit: u32,
) -> Result<Vec<PassSummary>, Fault> {
    let passes = sql.ask(
        "SELECT id, began_at, launches, terminations, faults FROM passes ORDER BY id DESC LIMIT $1",
        vec![limit.into()],
        |row| {
            Ok(PassSummary {
                id: PassId(unsigned(row, 0)?),
                at: time(row, 1)?,
                launches: count(row, 2)?,
                terminations: count(row, 3)?,
                faults: count(row, 4)?,
            })
        },
    );
    Ok(passes.await?)
}

pub(super) async fn pass_body<C: Connection>(
    sql: &mut C,
    id: PassId,
) -> Result<Option<Vec<u8>>, Fault> {
    let body = sql.ask(
        "SELECT body FROM passes WHERE id = $1",
        vec![id.0.into()],
        |row| Ok(row.bytes(0)?.unwrap_or_default().to_vec()),
    );
    Ok(body.await?.pop())
}

/// The history by one of its indexes; `$2` to `$5` are asked as well where they are set.
macro_rules! history_where {
    ($indexed:literal) => {
        concat!(
            "SELECT done_at, done_by, verb, instance, intent, pool, pass, result FROM history ",
            "WHERE ",
            $indexed,
            " AND ($2 IS NULL OR instance = $2) AND ($3 IS NULL OR pool = $3)",
            " AND ($4 IS NULL OR pass = $4) AND ($5 IS NULL OR done_at >= $5)",
            " ORDER BY entry DESC LIMIT $1"
        )
    };
}

fn action(row: &dyn Row) -> Read<Action> {
    Ok(Action {
        at: time(row, 0)?,
        by: owned(row, 1)?,
        verb: word(row, 2)?,
        instance: name_if_any(row, 3)?,
        intent: name_if_any::<IntentId>(row, 4)?,
        pool: name_if_any(row, 5)?,
        pass: row
            .integer(6)?
            .map(|_| unsigned(row, 6).map(PassId))
            .transpose()?,
        result: owned(row, 7)?,
    })
}

pub(super) async fn history<C: Connection>(
    sql: &mut C,
    query: &HistoryQuery,
) -> Result<Vec<Action>, Fault> {
    let statement = if query.instance.is_some() {
        history_where!("instance = $2")
    } else if query.pass.is_some() {
        history_where!("pass = $4")
    } else if query.pool.is_some() {
        history_where!("pool = $3")
    } else {
        history_where!("TRUE")
    };
    let pass = query.pass.map(|pass| Value::from(pass.0));
    let values = vec![
        query.limit.into(),
        query.instance.as_ref().map(InstanceId::as_str).into(),
        query.pool.as_ref().map(PoolName::as_str).into(),
        pass.unwrap_or(Value::Integer(None)),
        query.since.into(),
    ];
    Ok(sql.ask(statement, values, action).await?)
}
