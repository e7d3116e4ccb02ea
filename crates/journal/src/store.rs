//! The tables and how values lie in them. Every function works inside one transaction of its caller.

use message::{InstanceId, JobId, OrderId, Timestamp, Token};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;

use crate::entry::{Entry, EventRow, Lane, Newest, OutputRow, RETENTION_AFTER_EXPIRY, Tombstone, number_of};
use crate::error::JournalError;
use crate::writer::{Cursor, Write};

type Bytes = &'static [u8];

const META: TableDefinition<'static, &str, Bytes> = TableDefinition::new("meta");
const HEADS: TableDefinition<'static, &str, u64> = TableDefinition::new("heads");
const ORDERS: TableDefinition<'static, [u8; 16], Bytes> = TableDefinition::new("orders");
/// Orders that still need something done: so that a start need not read all that are remembered.
const UNSETTLED: TableDefinition<'static, [u8; 16], ()> = TableDefinition::new("unsettled");
const OUTPUT: TableDefinition<'static, ([u8; 16], u32), Bytes> = TableDefinition::new("output");
const EVENTS: TableDefinition<'static, u64, Bytes> = TableDefinition::new("events");
const SOURCES: TableDefinition<'static, &str, Bytes> = TableDefinition::new("sources");
const TOMBSTONES: TableDefinition<'static, &str, Bytes> = TableDefinition::new("tombstones");
const NEWEST: TableDefinition<'static, &str, Bytes> = TableDefinition::new("newest");
const AUDIT: TableDefinition<'static, u64, Bytes> = TableDefinition::new("audit");

const LAST_EVENT_ROW: &str = "last_event_row";
const INSTANCE: &str = "instance";
const AUDIT_TIP: &str = "audit_tip";
const AUDIT_ROW: &str = "audit_row";
const FLOOR: &str = "floor";
const EPOCH: &str = "epoch";
const WATERMARK: &str = "watermark";
const TRUST: &str = "trust";
/// The generation of the log whose frames are not in the store yet.
const LOG: &str = "log";

fn read_error(error: impl Into<redb::Error>) -> JournalError {
    JournalError::storage("read", error)
}

fn write_error(error: impl Into<redb::Error>) -> JournalError {
    JournalError::storage("written", error)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JournalError> {
    serde_json::from_slice(bytes).map_err(|error| JournalError::Corrupt { reason: error.to_string() })
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, JournalError> {
    serde_json::to_vec(value).map_err(|error| JournalError::Corrupt { reason: error.to_string() })
}

/// Makes the tables and, in a new journal, its instance id.
pub(crate) fn prepare(txn: &WriteTransaction, fresh: InstanceId) -> Result<InstanceId, JournalError> {
    txn.open_table(HEADS).map_err(write_error)?;
    txn.open_table(ORDERS).map_err(write_error)?;
    txn.open_table(UNSETTLED).map_err(write_error)?;
    txn.open_table(OUTPUT).map_err(write_error)?;
    txn.open_table(EVENTS).map_err(write_error)?;
    txn.open_table(SOURCES).map_err(write_error)?;
    txn.open_table(TOMBSTONES).map_err(write_error)?;
    txn.open_table(NEWEST).map_err(write_error)?;
    txn.open_table(AUDIT).map_err(write_error)?;
    let mut meta = txn.open_table(META).map_err(write_error)?;
    let known = meta.get(INSTANCE).map_err(read_error)?.map(|value| value.value().to_vec());
    match known {
        Some(bytes) => decode(&bytes),
        None => {
            meta.insert(INSTANCE, encode(&fresh)?.as_slice()).map_err(write_error)?;
            Ok(fresh)
        }
    }
}

pub(crate) fn cursor(db: &redb::Database) -> Result<Cursor, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let meta = txn.open_table(META).map_err(read_error)?;
    let number = |name: &str| -> Result<u64, JournalError> {
        meta.get(name).map_err(read_error)?.map_or(Ok(0), |value| decode(value.value()))
    };
    let mut heads = Vec::new();
    let table = txn.open_table(HEADS).map_err(read_error)?;
    for row in table.iter().map_err(read_error)? {
        let (subject, head) = row.map_err(read_error)?;
        heads.push((subject.value().to_owned(), head.value()));
    }
    let epoch = meta.get(EPOCH).map_err(read_error)?.map(|value| decode(value.value())).transpose()?;
    let watermark = meta.get(WATERMARK).map_err(read_error)?.map(|value| decode(value.value())).transpose()?;
    Ok(Cursor { floor: number(FLOOR)?, heads, epoch, watermark: watermark.unwrap_or_default() })
}

pub(crate) fn trust(db: &redb::Database) -> Result<Option<String>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let meta = txn.open_table(META).map_err(read_error)?;
    meta.get(TRUST).map_err(read_error)?.map(|value| decode(value.value())).transpose()
}

pub(crate) fn find(db: &redb::Database, id: &OrderId) -> Result<Option<Entry>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let orders = txn.open_table(ORDERS).map_err(read_error)?;
    orders.get(id.as_bytes()).map_err(read_error)?.map(|value| decode(value.value())).transpose()
}

/// The order of a job. There is no index by job: it would cost every order a write, for the sake of a few cancels.
/// Only what mentions the job is decoded, so that thousands are looked through in a moment.
pub(crate) fn find_job(db: &redb::Database, job: &JobId) -> Result<Option<Entry>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let orders = txn.open_table(ORDERS).map_err(read_error)?;
    for row in orders.iter().map_err(read_error)? {
        let (_, value) = row.map_err(read_error)?;
        if std::str::from_utf8(value.value()).is_ok_and(|text| !text.contains(job.as_str())) {
            continue;
        }
        let entry: Entry = decode(value.value())?;
        if entry.job == *job {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

pub(crate) fn tombstone(db: &redb::Database, job: &JobId) -> Result<Option<Tombstone>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(TOMBSTONES).map_err(read_error)?;
    table.get(job.as_str()).map_err(read_error)?.map(|value| decode(value.value())).transpose()
}

pub(crate) fn newest(db: &redb::Database, key: &Token) -> Result<Option<Newest>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(NEWEST).map_err(read_error)?;
    table.get(key.as_str()).map_err(read_error)?.map(|value| decode(value.value())).transpose()
}

/// The orders that still need something done, in the order of the broker's stream.
pub(crate) fn unsettled(db: &redb::Database) -> Result<Vec<Entry>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let orders = txn.open_table(ORDERS).map_err(read_error)?;
    let mut entries = Vec::new();
    for row in txn.open_table(UNSETTLED).map_err(read_error)?.iter().map_err(read_error)? {
        let (id, ()) = row.map(|(id, unit)| (id.value(), unit.value())).map_err(read_error)?;
        if let Some(value) = orders.get(&id).map_err(read_error)? {
            entries.push(decode::<Entry>(value.value())?);
        }
    }
    entries.sort_by_key(|entry| entry.sequence);
    Ok(entries)
}

pub(crate) fn output(db: &redb::Database, id: &OrderId) -> Result<Vec<OutputRow>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(OUTPUT).map_err(read_error)?;
    let range = (*id.as_bytes(), 0)..=(*id.as_bytes(), u32::MAX);
    let mut rows = Vec::new();
    for row in table.range(range).map_err(read_error)? {
        let (key, value) = row.map_err(read_error)?;
        let (_, number) = key.value();
        if let Some((stream, bytes)) = value.value().split_first() {
            rows.push(OutputRow { order: *id, number, is_stderr: *stream == b'e', bytes: bytes.to_vec() });
        }
    }
    Ok(rows)
}

/// The first `limit` event batches of a lane behind row `after`.
pub(crate) fn events(db: &redb::Database, lane: Lane, after: u64, limit: usize) -> Result<Vec<EventRow>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(EVENTS).map_err(read_error)?;
    let mut rows = Vec::new();
    for row in table.range(lane.behind(after)).map_err(read_error)?.take(limit) {
        let (key, value) = row.map_err(read_error)?;
        let row = EventRow::parse(key.value(), value.value());
        rows.push(row.map_err(|error| JournalError::Corrupt { reason: error.to_string() })?);
    }
    Ok(rows)
}

/// How many event batches there are of a lane. Reads them all: they are no more than a few thousand.
pub(crate) fn event_count(db: &redb::Database, lane: Lane) -> Result<u64, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(EVENTS).map_err(read_error)?;
    Ok(table.range(lane.behind(0)).map_err(read_error)?.count() as u64)
}

/// The first `limit` acts for the audit log behind row `after`.
pub(crate) fn audit(db: &redb::Database, after: u64, limit: usize) -> Result<Vec<(u64, String)>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(AUDIT).map_err(read_error)?;
    let mut rows = Vec::new();
    for row in table.range(after.saturating_add(1)..).map_err(read_error)?.take(limit) {
        let (key, value) = row.map_err(read_error)?;
        rows.push((key.value(), String::from_utf8_lossy(value.value()).into_owned()));
    }
    Ok(rows)
}

/// Where the chain in the audit log ends, and the last row that was given out.
pub(crate) fn audit_state(db: &redb::Database) -> Result<(Option<String>, u64), JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let meta = txn.open_table(META).map_err(read_error)?;
    let tip = meta.get(AUDIT_TIP).map_err(read_error)?.map(|value| decode(value.value())).transpose()?;
    let confirmed = meta.get(AUDIT_ROW).map_err(read_error)?.map_or(Ok(0), |value| decode(value.value()))?;
    let table = txn.open_table(AUDIT).map_err(read_error)?;
    let last = table.last().map_err(read_error)?.map_or(0, |(key, _)| key.value());
    Ok((tip, last.max(confirmed)))
}

/// The last number of a row of events that was given out.
pub(crate) fn event_row(db: &redb::Database) -> Result<u64, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let meta = txn.open_table(META).map_err(read_error)?;
    let last = meta.get(LAST_EVENT_ROW).map_err(read_error)?.map_or(Ok(0), |value| decode(value.value()))?;
    let table = txn.open_table(EVENTS).map_err(read_error)?;
    let mut number = number_of(last);
    for lane in Lane::ALL {
        if let Some(row) = table.range(lane.behind(0)).map_err(read_error)?.next_back() {
            number = number.max(number_of(row.map_err(read_error)?.0.value()));
        }
    }
    Ok(number)
}

/// How far a source has been read, in its own words.
pub(crate) fn source(db: &redb::Database, name: &str) -> Result<Option<String>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let table = txn.open_table(SOURCES).map_err(read_error)?;
    let found = table.get(name).map_err(read_error)?;
    Ok(found.map(|value| String::from_utf8_lossy(value.value()).into_owned()))
}

/// The generation of the log that belongs to this store; `None` in a store that never had one.
pub(crate) fn log_generation(db: &redb::Database) -> Result<Option<u64>, JournalError> {
    let txn = db.begin_read().map_err(read_error)?;
    let meta = txn.open_table(META).map_err(read_error)?;
    meta.get(LOG).map_err(read_error)?.map(|value| decode(value.value())).transpose()
}

/// Everything in the log is in the store with this transaction; the log goes on under `generation`.
pub(crate) fn set_log_generation(txn: &WriteTransaction, generation: u64) -> Result<(), JournalError> {
    put_meta(txn, LOG, &generation)
}

/// Forgets orders whose ids can no longer be replayed; returns how many.
pub(crate) fn prune(txn: &WriteTransaction, watermark: Timestamp) -> Result<usize, JournalError> {
    let mut orders = txn.open_table(ORDERS).map_err(write_error)?;
    let mut old = Vec::new();
    for row in orders.iter().map_err(read_error)? {
        let (key, value) = row.map_err(read_error)?;
        if decode::<Entry>(value.value())?.is_forgettable(watermark) {
            old.push(key.value());
        }
    }
    for key in &old {
        orders.remove(key).map_err(write_error)?;
    }
    let outlived = |until: Timestamp| until.plus(RETENTION_AFTER_EXPIRY) < watermark;
    forget(txn, TOMBSTONES, |bytes| decode::<Tombstone>(bytes).is_ok_and(|row| outlived(row.until)))?;
    forget(txn, NEWEST, |bytes| decode::<Newest>(bytes).is_ok_and(|row| outlived(row.until)))?;
    Ok(old.len())
}

fn forget(
    txn: &WriteTransaction,
    table: TableDefinition<'static, &str, Bytes>,
    is_old: impl Fn(&[u8]) -> bool,
) -> Result<(), JournalError> {
    let mut table = txn.open_table(table).map_err(write_error)?;
    table.retain(|_, bytes| !is_old(bytes)).map_err(write_error)
}

/// Applies one write inside `txn`.
pub(crate) fn apply(txn: &WriteTransaction, write: &Write) -> Result<(), JournalError> {
    match write {
        Write::Entry(entry) => put_entry(txn, entry),
        Write::Head { subject, sequence } => {
            let mut heads = txn.open_table(HEADS).map_err(write_error)?;
            heads.insert(subject.as_str(), *sequence).map_err(write_error)?;
            Ok(())
        }
        Write::Floor(floor) => {
            let mut heads = txn.open_table(HEADS).map_err(write_error)?;
            heads.retain(|_, head| head > *floor).map_err(write_error)?;
            put_meta(txn, FLOOR, floor)
        }
        Write::Epoch(epoch) => {
            let mut heads = txn.open_table(HEADS).map_err(write_error)?;
            heads.retain(|_, _| false).map_err(write_error)?;
            // Sequences of the old store would make every order of the new one look older than what was before.
            let mut newest = txn.open_table(NEWEST).map_err(write_error)?;
            newest.retain(|_, _| false).map_err(write_error)?;
            drop((heads, newest));
            untell(txn)?;
            put_meta(txn, FLOOR, &0_u64)?;
            put_meta(txn, EPOCH, epoch)
        }
        Write::Watermark(watermark) => put_meta(txn, WATERMARK, watermark),
        Write::Trust(document) => put_meta(txn, TRUST, document),
        Write::Reported { id, step } => {
            let orders = txn.open_table(ORDERS).map_err(write_error)?;
            let known = orders.get(id.as_bytes()).map_err(read_error)?.map(|value| value.value().to_vec());
            drop(orders);
            let Some(bytes) = known else { return Ok(()) };
            let mut entry: Entry = decode(&bytes)?;
            entry.reported = entry.reported.max(*step);
            put_entry(txn, &entry)
        }
        Write::Tombstone(row) => {
            let mut table = txn.open_table(TOMBSTONES).map_err(write_error)?;
            table.insert(row.job.as_str(), encode(row)?.as_slice()).map_err(write_error)?;
            Ok(())
        }
        Write::Newest(row) => {
            let mut table = txn.open_table(NEWEST).map_err(write_error)?;
            table.insert(row.key.as_str(), encode(row)?.as_slice()).map_err(write_error)?;
            Ok(())
        }
        Write::Output(row) => {
            let mut table = txn.open_table(OUTPUT).map_err(write_error)?;
            let mut value = Vec::with_capacity(row.bytes.len() + 1);
            value.push(if row.is_stderr { b'e' } else { b'o' });
            value.extend_from_slice(&row.bytes);
            table.insert((*row.order.as_bytes(), row.number), value.as_slice()).map_err(write_error)?;
            drop(table);
            refresh_unsettled(txn, &row.order)
        }
        Write::OutputSent { id, number } => {
            let mut table = txn.open_table(OUTPUT).map_err(write_error)?;
            table.remove((*id.as_bytes(), *number)).map_err(write_error)?;
            drop(table);
            refresh_unsettled(txn, id)
        }
        Write::Events { source, position, rows } => {
            let mut table = txn.open_table(EVENTS).map_err(write_error)?;
            for row in rows {
                let bytes = row.to_bytes().map_err(|error| JournalError::Corrupt { reason: error.to_string() })?;
                table.insert(row.row, bytes.as_slice()).map_err(write_error)?;
            }
            drop(table);
            // Numbers never go back, also when all rows have been sent: receivers remember the last one.
            if let Some(last) = rows.iter().map(|row| number_of(row.row)).max() {
                put_meta(txn, LAST_EVENT_ROW, &last)?;
            }
            if let Some(position) = position {
                let mut sources = txn.open_table(SOURCES).map_err(write_error)?;
                sources.insert(source.as_str(), position.as_bytes()).map_err(write_error)?;
            }
            Ok(())
        }
        Write::Audit { row, act } => {
            let mut table = txn.open_table(AUDIT).map_err(write_error)?;
            table.insert(*row, act.as_bytes()).map_err(write_error)?;
            Ok(())
        }
        Write::Audited { row, tip } => {
            let mut table = txn.open_table(AUDIT).map_err(write_error)?;
            table.retain(|held, _| held > *row).map_err(write_error)?;
            drop(table);
            put_meta(txn, AUDIT_ROW, row)?;
            put_meta(txn, AUDIT_TIP, tip)
        }
        Write::EventSent { row } => {
            let mut table = txn.open_table(EVENTS).map_err(write_error)?;
            table.remove(*row).map_err(write_error)?;
            Ok(())
        }
    }
}

/// A new store has heard nothing: every end is to be told again.
fn untell(txn: &WriteTransaction) -> Result<(), JournalError> {
    let orders = txn.open_table(ORDERS).map_err(write_error)?;
    let mut told = Vec::new();
    for row in orders.iter().map_err(read_error)? {
        let (_, value) = row.map_err(read_error)?;
        let entry: Entry = decode(value.value())?;
        if entry.reported > 0 {
            told.push(Entry { reported: 0, ..entry });
        }
    }
    drop(orders);
    told.iter().try_for_each(|entry| put_entry(txn, entry))
}

fn put_meta<T: serde::Serialize>(txn: &WriteTransaction, name: &str, value: &T) -> Result<(), JournalError> {
    let mut meta = txn.open_table(META).map_err(write_error)?;
    meta.insert(name, encode(value)?.as_slice()).map_err(write_error)?;
    Ok(())
}

fn put_entry(txn: &WriteTransaction, entry: &Entry) -> Result<(), JournalError> {
    let mut orders = txn.open_table(ORDERS).map_err(write_error)?;
    orders.insert(entry.id.as_bytes(), encode(entry)?.as_slice()).map_err(write_error)?;
    drop(orders);
    mark(txn, entry)
}

fn refresh_unsettled(txn: &WriteTransaction, id: &OrderId) -> Result<(), JournalError> {
    let orders = txn.open_table(ORDERS).map_err(write_error)?;
    let known = orders.get(id.as_bytes()).map_err(read_error)?.map(|value| value.value().to_vec());
    drop(orders);
    known.map_or(Ok(()), |bytes| mark(txn, &decode(&bytes)?))
}

/// Keeps the list of unsettled orders true: an order is on it until its end and all its output are confirmed.
fn mark(txn: &WriteTransaction, entry: &Entry) -> Result<(), JournalError> {
    let id = *entry.id.as_bytes();
    let output = txn.open_table(OUTPUT).map_err(write_error)?;
    let has_output = output.range((id, 0)..=(id, u32::MAX)).map_err(read_error)?.next().is_some();
    drop(output);
    let mut unsettled = txn.open_table(UNSETTLED).map_err(write_error)?;
    if entry.is_settled() && !has_output {
        unsettled.remove(&id).map_err(write_error)?;
    } else if unsettled.get(&id).map_err(read_error)?.is_none() {
        // Only when it is not there: an insert dirties a page even when it changes nothing.
        unsettled.insert(&id, ()).map_err(write_error)?;
    }
    Ok(())
}
