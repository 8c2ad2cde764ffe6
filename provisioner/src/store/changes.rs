//! What is written: each change as statements.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::packed::{self, Packed};
use super::sql::{Connection, Fault, Value, nanoseconds};
use super::{Action, Answer, Change, FORGOTTEN_AT_ONCE, InstanceRecord, StoreError, rows};
use crate::cloud::OfferingKey;
use crate::ids::{InstanceId, IntentId, PoolName};
use crate::money::Money;
use crate::world::{
    Assignment, Hold, HostActivity, HostView, Intent, LeaveReason, Order, PoolMemory, Shortage,
    ShortageKey,
};

/// Hosts in one statement: 1 MB of JSON.
const HEARD_AT_ONCE: usize = 5_000;

/// A change, with what takes time done before the transaction begins.
#[derive(Debug)]
pub(super) enum Write {
    Change(Change),
    Passed { packed: Packed, kept: u32 },
}

pub(super) async fn prepare(changes: Vec<Change>) -> Result<Vec<Write>, StoreError> {
    let mut writes = Vec::with_capacity(changes.len());
    for change in changes {
        writes.push(match change {
            Change::Passed { pass, kept } => Write::Passed {
                packed: packed::pack(pass).await?,
                kept,
            },
            change => Write::Change(change),
        });
    }
    Ok(writes)
}

/// Text for a person, which may come from a host: PostgreSQL has no text with a null character, and
/// one host must not keep the others from being written.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn json<T: Serialize>(what: &T) -> Result<String, StoreError> {
    serde_json::to_string(what)
        .map_err(|error| StoreError::Unavailable(format!("no JSON can be made of it: {error}")))
}

/// The name of a variant, as on the wire.
fn word<T: Serialize>(variant: &T) -> Result<String, StoreError> {
    let quoted = json(variant)?;
    Ok(quoted.trim_matches('"').to_owned())
}

pub(super) async fn apply<C: Connection>(sql: &mut C, write: &Write) -> Result<(), Fault> {
    let change = match write {
        Write::Change(change) => change,
        Write::Passed { packed, kept } => return passed(sql, packed, *kept).await,
    };
    match change {
        Change::IntentOpened(intent) => open(sql, intent).await,
        Change::IntentAnswered { id, answer } => answered(sql, id, answer).await,
        Change::InstanceSeen(record) => seen(sql, record).await,
        Change::InstanceGone {
            id,
            at,
            interrupted,
        } => gone(sql, id, *at, *interrupted).await,
        Change::Assigned { id, assignment } => assigned(sql, id, assignment).await,
        Change::Ended { id, at, reason } => ended(sql, id, *at, *reason).await,
        Change::Suspected { id, since } => suspected(sql, id, *since).await,
        Change::Heard(views) => heard(sql, views).await,
        Change::Held { id, hold } => held(sql, id, hold.as_ref()).await,
        Change::Maintained { pool, order } => maintained(sql, pool.as_ref(), order.as_ref()).await,
        Change::Short(shortage) => short(sql, shortage).await,
        Change::Supplied(key) => supplied(sql, key).await,
        Change::Spent { pool, day, amount } => spent(sql, pool, *day, *amount).await,
        Change::Booked { hours, until } => booked(sql, hours, *until).await,
        Change::Remembered { pool, memory } => remembered(sql, pool, memory).await,
        Change::Passed { .. } => unreachable!("`prepare` packs every pass"),
        Change::Did(action) => did(sql, action).await,
        Change::Forgotten { before } => forgotten(sql, *before).await,
    }
}

async fn run<C: Connection>(
    sql: &mut C,
    statement: &'static str,
    values: Vec<Value<'_>>,
) -> Result<(), Fault> {
    sql.run(statement, values).await?;
    Ok(())
}

/// Runs a statement about one instance and one value.
async fn set<C: Connection>(
    sql: &mut C,
    statement: &'static str,
    id: &InstanceId,
    value: Value<'_>,
) -> Result<(), Fault> {
    run(sql, statement, vec![id.as_str().into(), value]).await
}

async fn open<C: Connection>(sql: &mut C, intent: &Intent) -> Result<(), Fault> {
    let id = &intent.request.intent;
    let request = json(&intent.request)?;
    let new = sql
        .run(
            "INSERT INTO intents (id, request, pass, made_at, attempts, not_before) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
            vec![
                id.as_str().into(),
                request.as_str().into(),
                intent.pass.0.into(),
                intent.made_at.into(),
                intent.attempts.into(),
                intent.not_before.into(),
            ],
        )
        .await?;
    if new == 1 {
        return Ok(());
    }
    let before = sql
        .ask(
            "SELECT request FROM intents WHERE id = $1",
            vec![id.as_str().into()],
            |row| Ok(row.text(0)?.map(str::to_owned)),
        )
        .await?;
    if before == [Some(request)] {
        return Ok(());
    }
    Err(StoreError::Damaged(format!(
        "intent `{id}` was opened before with another request: expected a new id for a new launch; \
         was the store replaced by an older copy of itself?"
    ))
    .into())
}

async fn answered<C: Connection>(sql: &mut C, id: &IntentId, answer: &Answer) -> Result<(), Fault> {
    match answer {
        Answer::Launched { launched, records } => {
            for record in records {
                enter(sql, record).await?;
            }
            close(sql, id, &serde_json::json!({ "launched": launched })).await
        }
        Answer::Failed(message) => {
            close(sql, id, &serde_json::json!({ "failed": plain(message) })).await
        }
        Answer::Again {
            message,
            not_before,
        } => {
            let values = vec![
                id.as_str().into(),
                plain(message).into(),
                (*not_before).into(),
            ];
            run(
                sql,
                "UPDATE intents SET attempts = attempts + 1, message = $2, not_before = $3 \
                 WHERE id = $1 AND answer IS NULL",
                values,
            )
            .await
        }
    }
}

async fn close<C: Connection>(
    sql: &mut C,
    id: &IntentId,
    answer: &serde_json::Value,
) -> Result<(), Fault> {
    run(
        sql,
        "UPDATE intents SET attempts = attempts + 1, not_before = NULL, answer = $2 \
         WHERE id = $1 AND answer IS NULL",
        vec![id.as_str().into(), answer.to_string().into()],
    )
    .await
}

/// Takes an instance in: `false` if it was there, or is gone already.
async fn enter<C: Connection>(sql: &mut C, record: &InstanceRecord) -> Result<bool, Fault> {
    let mut values = known_of(record)?;
    values.push(going_on(&record.assignment)?.into());
    values.push(record.hold.as_ref().map(json).transpose()?.into());
    values.push(record.suspected_at.into());
    values.push(record.ended_at.into());
    let entered = sql
        .run(
            "INSERT INTO instances (id, region, zone, instance_type, capacity_type, intent, pool, \
             image, image_id, price, launched_at, private_address, assignment, hold, \
             suspected_at, ended_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
             ON CONFLICT (id) DO NOTHING",
            values,
        )
        .await?;
    if entered == 0 {
        return Ok(false);
    }
    cleared(sql, &record.id).await?;
    if let Some(host) = &record.host {
        heard(sql, &[(record.id.clone(), host.clone())]).await?;
    }
    Ok(true)
}

/// What the cloud knows of an instance, in the order of the columns.
fn known_of(record: &InstanceRecord) -> Result<Vec<Value<'_>>, StoreError> {
    let OfferingKey {
        region,
        zone,
        instance_type,
        capacity_type,
    } = &record.offering;
    Ok(vec![
        record.id.as_str().into(),
        region.as_str().into(),
        zone.as_str().into(),
        instance_type.as_str().into(),
        word(capacity_type)?.into(),
        record.intent.as_ref().map(IntentId::as_str).into(),
        record.pool.as_str().into(),
        record.image.as_str().into(),
        record
            .image_id
            .as_ref()
            .map(crate::ids::ImageId::as_str)
            .into(),
        record.price.micros().into(),
        record.launched_at.into(),
        record
            .private_address
            .map(|address| address.to_string())
            .into(),
    ])
}

async fn seen<C: Connection>(sql: &mut C, record: &InstanceRecord) -> Result<(), Fault> {
    if enter(sql, record).await? {
        return Ok(());
    }
    cleared(sql, &record.id).await?;
    run(
        sql,
        "UPDATE instances SET region = $2, zone = $3, instance_type = $4, capacity_type = $5, \
         intent = COALESCE($6, intent), pool = $7, image = $8, image_id = COALESCE($9, image_id), \
         price = $10, launched_at = $11, private_address = COALESCE($12, private_address), \
         suspected_at = CASE WHEN gone_at IS NULL THEN suspected_at END, gone_at = NULL \
         WHERE id = $1",
        known_of(record)?,
    )
    .await
}

async fn gone<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    at: Timestamp,
    interrupted: bool,
) -> Result<(), Fault> {
    let found = sql
        .run(
            "UPDATE instances SET gone_at = $2 WHERE id = $1 AND gone_at IS NULL",
            vec![id.as_str().into(), at.into()],
        )
        .await?;
    if found == 0 || !interrupted {
        return Ok(());
    }
    let hour = Value::from(rows::hour(at));
    set(
        sql,
        "INSERT INTO offering_hours \
         (hour, region, zone, instance_type, capacity_type, instance_hours, interruptions) \
         SELECT $2, region, zone, instance_type, capacity_type, 0, 1 FROM instances WHERE id = $1 \
         ON CONFLICT (hour, region, zone, instance_type, capacity_type) \
         DO UPDATE SET interruptions = offering_hours.interruptions + 1",
        id,
        hour,
    )
    .await
}

/// The assignment as it is written: nothing for the usual one.
fn going_on(assignment: &Assignment) -> Result<Option<String>, StoreError> {
    match assignment {
        Assignment::GoOn => Ok(None),
        Assignment::Drain { .. } | Assignment::Quit { .. } => json(assignment).map(Some),
    }
}

async fn assigned<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    assignment: &Assignment,
) -> Result<(), Fault> {
    set(
        sql,
        "UPDATE instances SET assignment = $2 WHERE id = $1 AND gone_at IS NULL",
        id,
        going_on(assignment)?.into(),
    )
    .await
}

async fn ended<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    at: Timestamp,
    reason: LeaveReason,
) -> Result<(), Fault> {
    run(
        sql,
        "UPDATE instances SET ended_at = $2, ended_for = $3 \
         WHERE id = $1 AND ended_at IS NULL AND gone_at IS NULL",
        vec![id.as_str().into(), at.into(), word(&reason)?.into()],
    )
    .await
}

async fn suspected<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    since: Option<Timestamp>,
) -> Result<(), Fault> {
    let recorded = sql
        .run(
            "UPDATE instances SET suspected_at = $2 WHERE id = $1 AND gone_at IS NULL",
            vec![id.as_str().into(), since.into()],
        )
        .await?;
    if recorded == 1 {
        return Ok(());
    }
    match since {
        None => cleared(sql, id).await,
        Some(since) => {
            set(
                sql,
                "INSERT INTO suspects (instance, since) VALUES ($1, $2) \
                 ON CONFLICT (instance) DO UPDATE SET since = excluded.since",
                id,
                since.into(),
            )
            .await
        }
    }
}

/// No longer a suspect without a record.
async fn cleared<C: Connection>(sql: &mut C, id: &InstanceId) -> Result<(), Fault> {
    let id = vec![id.as_str().into()];
    run(sql, "DELETE FROM suspects WHERE instance = $1", id).await
}

async fn held<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    hold: Option<&Hold>,
) -> Result<(), Fault> {
    set(
        sql,
        "UPDATE instances SET hold = $2 WHERE id = $1 AND gone_at IS NULL",
        id,
        hold.map(json).transpose()?.into(),
    )
    .await
}

/// One host, as [`Connection::HEARD`] takes it.
#[derive(Serialize)]
struct HeardRow<'a>(
    &'a str,
    i64,
    i64,
    HostActivity,
    i64,
    Option<String>,
    i64,
    Option<i64>,
);

async fn heard<C: Connection>(sql: &mut C, views: &[(InstanceId, HostView)]) -> Result<(), Fault> {
    // Each once, the last of the list, and in the order of the table.
    let last: BTreeMap<&str, &HostView> =
        views.iter().map(|(id, view)| (id.as_str(), view)).collect();
    let rows: Vec<HeardRow<'_>> = last.into_iter().map(heard_row).collect();
    for rows in rows.chunks(HEARD_AT_ONCE) {
        run(sql, C::HEARD, vec![json(&rows)?.into()]).await?;
    }
    Ok(())
}

fn heard_row<'a>((id, view): (&'a str, &HostView)) -> HeardRow<'a> {
    HeardRow(
        id,
        nanoseconds(view.registered_at),
        nanoseconds(view.heard_at),
        view.activity,
        nanoseconds(view.since),
        view.job.as_deref().map(plain),
        // No host makes more runs than this; one that says so is believed that far.
        i64::try_from(view.runs).unwrap_or(i64::MAX),
        view.interruption_at.map(nanoseconds),
    )
}

/// Registers a host, once: the key that is registered afterwards.
pub(super) async fn register<C: Connection>(
    sql: &mut C,
    id: &InstanceId,
    key: &str,
    now: Timestamp,
) -> Result<Option<String>, Fault> {
    run(
        sql,
        "INSERT INTO hosts (instance, key, registered_at, heard_at, activity, since, runs) \
         SELECT id, $2, $3, $3, $4, $3, 0 FROM instances WHERE id = $1 AND gone_at IS NULL \
         ON CONFLICT (instance) DO UPDATE SET key = COALESCE(hosts.key, excluded.key)",
        vec![
            id.as_str().into(),
            key.into(),
            now.into(),
            word(&HostActivity::Idle)?.into(),
        ],
    )
    .await?;
    let registered = sql.ask(
        "SELECT h.key FROM hosts h JOIN instances i ON i.id = h.instance \
         WHERE i.id = $1 AND i.gone_at IS NULL",
        vec![id.as_str().into()],
        |row| Ok(row.text(0)?.map(str::to_owned)),
    );
    Ok(registered.await?.pop().flatten())
}

async fn maintained<C: Connection>(
    sql: &mut C,
    pool: Option<&PoolName>,
    order: Option<&Order>,
) -> Result<(), Fault> {
    // A pool's name is never empty.
    let pool = Value::from(pool.map_or("", PoolName::as_str));
    let Some(order) = order else {
        return run(sql, "DELETE FROM maintenance WHERE pool = $1", vec![pool]).await;
    };
    run(
        sql,
        "INSERT INTO maintenance (pool, ordered_by, reason, ordered_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (pool) DO UPDATE SET ordered_by = excluded.ordered_by, \
         reason = excluded.reason, ordered_at = excluded.ordered_at",
        vec![
            pool,
            plain(&order.by).into(),
            plain(&order.reason).into(),
            order.at.into(),
        ],
    )
    .await
}

async fn short<C: Connection>(sql: &mut C, shortage: &Shortage) -> Result<(), Fault> {
    run(
        sql,
        "INSERT INTO shortages (key, reason, message, failures, found_at, closed_until) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO UPDATE SET \
         reason = excluded.reason, message = excluded.message, failures = excluded.failures, \
         found_at = excluded.found_at, closed_until = excluded.closed_until",
        vec![
            json(&shortage.key)?.into(),
            word(&shortage.reason)?.into(),
            plain(&shortage.message).into(),
            shortage.failures.into(),
            shortage.at.into(),
            shortage.until.into(),
        ],
    )
    .await
}

async fn supplied<C: Connection>(sql: &mut C, key: &ShortageKey) -> Result<(), Fault> {
    let key = json(key)?;
    run(
        sql,
        "DELETE FROM shortages WHERE key = $1",
        vec![key.into()],
    )
    .await
}

async fn spent<C: Connection>(
    sql: &mut C,
    pool: &PoolName,
    day: Date,
    amount: Money,
) -> Result<(), Fault> {
    run(
        sql,
        "INSERT INTO spent (day, pool, amount) VALUES ($1, $2, $3) \
         ON CONFLICT (day, pool) DO UPDATE SET amount = spent.amount + excluded.amount",
        vec![
            day.to_string().into(),
            pool.as_str().into(),
            amount.micros().into(),
        ],
    )
    .await
}

async fn booked<C: Connection>(
    sql: &mut C,
    hours: &[(OfferingKey, f64)],
    until: Timestamp,
) -> Result<(), Fault> {
    let hour = rows::hour(until);
    for (key, hours) in hours {
        run(
            sql,
            "INSERT INTO offering_hours \
             (hour, region, zone, instance_type, capacity_type, instance_hours, interruptions) \
             VALUES ($1, $2, $3, $4, $5, $6, 0) \
             ON CONFLICT (hour, region, zone, instance_type, capacity_type) \
             DO UPDATE SET instance_hours = offering_hours.instance_hours + excluded.instance_hours",
            vec![
                hour.into(),
                key.region.as_str().into(),
                key.zone.as_str().into(),
                key.instance_type.as_str().into(),
                word(&key.capacity_type)?.into(),
                Value::Real(*hours),
            ],
        )
        .await?;
    }
    run(
        sql,
        "DELETE FROM offering_hours WHERE hour <= $1",
        vec![(hour - rows::HOURS_KEPT).into()],
    )
    .await?;
    let until = vec![until.into()];
    run(sql, "UPDATE store SET booked_until = $1", until).await
}

async fn remembered<C: Connection>(
    sql: &mut C,
    pool: &PoolName,
    memory: &PoolMemory,
) -> Result<(), Fault> {
    run(
        sql,
        "INSERT INTO pool_memory (pool, memory) VALUES ($1, $2) \
         ON CONFLICT (pool) DO UPDATE SET memory = excluded.memory",
        vec![pool.as_str().into(), json(memory)?.into()],
    )
    .await
}

async fn passed<C: Connection>(sql: &mut C, packed: &Packed, kept: u32) -> Result<(), Fault> {
    let Packed { summary, body } = packed;
    run(
        sql,
        "INSERT INTO passes (id, began_at, launches, terminations, faults, body) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET \
         began_at = excluded.began_at, launches = excluded.launches, \
         terminations = excluded.terminations, faults = excluded.faults, body = excluded.body",
        vec![
            summary.id.0.into(),
            summary.at.into(),
            summary.launches.into(),
            summary.terminations.into(),
            summary.faults.into(),
            Value::Bytes(body.clone()),
        ],
    )
    .await?;
    run(
        sql,
        "DELETE FROM passes WHERE id <= $1 - $2",
        vec![summary.id.0.into(), kept.into()],
    )
    .await
}

async fn did<C: Connection>(sql: &mut C, action: &Action) -> Result<(), Fault> {
    let pass = action.pass.map(|pass| Value::from(pass.0));
    run(
        sql,
        "INSERT INTO history (done_at, done_by, verb, instance, intent, pool, pass, result) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        vec![
            action.at.into(),
            plain(&action.by).into(),
            word(&action.verb)?.into(),
            action.instance.as_ref().map(InstanceId::as_str).into(),
            action.intent.as_ref().map(IntentId::as_str).into(),
            action.pool.as_ref().map(PoolName::as_str).into(),
            pass.unwrap_or(Value::Integer(None)),
            plain(&action.result).into(),
        ],
    )
    .await
}

/// What [`forgotten`] removes; of `$1` the older, of `$2` at most.
const FORGOTTEN: [&str; 5] = [
    "DELETE FROM history WHERE entry IN \
     (SELECT entry FROM history WHERE done_at < $1 ORDER BY done_at LIMIT $2)",
    "DELETE FROM intents WHERE id IN (SELECT id FROM intents \
     WHERE answer IS NOT NULL AND made_at < $1 ORDER BY made_at LIMIT $2)",
    "DELETE FROM instances WHERE id IN (SELECT id FROM instances \
     WHERE gone_at IS NOT NULL AND gone_at < $1 ORDER BY gone_at LIMIT $2)",
    "DELETE FROM suspects WHERE instance IN \
     (SELECT instance FROM suspects WHERE since < $1 LIMIT $2)",
    "DELETE FROM shortages WHERE key IN \
     (SELECT key FROM shortages WHERE closed_until < $1 LIMIT $2)",
];

async fn forgotten<C: Connection>(sql: &mut C, before: Timestamp) -> Result<(), Fault> {
    for statement in FORGOTTEN {
        let values = vec![before.into(), FORGOTTEN_AT_ONCE.into()];
        run(sql, statement, values).await?;
    }
    // A row for each day and pool: never many.
    let day = TimeZone::UTC.to_datetime(before).date().to_string();
    run(sql, "DELETE FROM spent WHERE day < $1", vec![day.into()]).await
}
