//! A batch of which each record is known to be one. What passes here is written to the last record, in every format and to
//! every sink; what does not is put aside as a whole. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use message::event::EventHead;
use message::{ReceivedBatch, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Such a batch.
pub(super) struct Usable {
    pub(super) head: EventHead,
    /// The message that it came in: its sequence in the stream, and when the broker stored it.
    pub(super) came: (u64, Timestamp),
    /// The records as they came.
    pub(super) records: Bytes,
    /// Where in there each one is.
    places: Vec<Place>,
    /// Times that are written with signs which JSON may write otherwise (`\\u005a`), by the number of their record.
    odd_times: BTreeMap<usize, String>,
}

/// Where a record's time and the record itself are.
struct Place {
    at: Range<u32>,
    record: Range<u32>,
}

/// A record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    /// Its time.
    pub(super) at: &'a str,
    /// An object of JSON.
    pub(super) record: &'a str,
}

impl Line<'_> {
    /// Its time; that it is one was found when the batch came.
    pub(super) fn time(&self) -> Timestamp {
        self.at.parse().unwrap_or_default()
    }
}

/// A record as it stands in a batch.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// The message of a record that is not text.
#[derive(Deserialize)]
struct Binary {
    message: Option<serde::de::IgnoredAny>,
    message_base64: Option<String>,
}

impl Usable {
    /// Looks at each record.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the batch.
    pub(super) fn of(batch: &ReceivedBatch) -> Result<Self, String> {
        let ReceivedBatch { head, records } = batch;
        let begin = records.as_ptr() as usize;
        let place = |text: &str| {
            let at = u32::try_from((text.as_ptr() as usize).saturating_sub(begin)).unwrap_or(u32::MAX);
            at..at.saturating_add(u32::try_from(text.len()).unwrap_or(u32::MAX))
        };
        let mut places = Vec::with_capacity(usize::try_from(head.count).unwrap_or(usize::MAX).min(records.len() / 16));
        let (mut second, mut odd_times) = ("", BTreeMap::new());
        for line in batch.lines() {
            let number = places.len() + 1;
            let Ok(Record { at, record }) = serde_json::from_slice(line) else {
                return Err(format!("its record {number} is none: `at`, a time, and `record` make one"));
            };
            // Most records are of the same second as the one before.
            let is_known = at.get(..SECOND) == Some(second) && is_fraction(at.get(SECOND..).unwrap_or_default());
            if !is_known && at.parse::<Timestamp>().is_err() {
                return Err(format!("the time of its record {number} is none"));
            }
            let at = match at {
                Cow::Borrowed(at) => at,
                Cow::Owned(at) => {
                    odd_times.insert(places.len(), at);
                    ""
                }
            };
            if !is_known {
                second = at.get(..SECOND).unwrap_or_default();
            }
            // With a backslash, the name may be written otherwise.
            if (record.get().contains("message_base64") || record.get().contains('\\'))
                && let Ok(Binary { message: None, message_base64: Some(bytes) }) = serde_json::from_str(record.get())
                && data_encoding::BASE64.decode(bytes.as_bytes()).is_err()
            {
                return Err(format!("the message of its record {number} is not in base64"));
            }
            places.push(Place { at: place(at), record: place(record.get()) });
        }
        if places.len() != usize::try_from(head.count).unwrap_or(usize::MAX) {
            return Err(format!("it tells of {} records and holds {}", head.count, places.len()));
        }
        let came = Default::default();
        Ok(Self { head: head.clone(), came, records: records.clone(), places, odd_times })
    }

    /// The records, one by one.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let text = |place: &Range<u32>| {
            let bytes = self.records.get(place.start as usize..place.end as usize).unwrap_or_default();
            std::str::from_utf8(bytes).unwrap_or_default()
        };
        self.places.iter().enumerate().map(move |(number, place)| {
            let at = self.odd_times.get(&number).map_or_else(|| text(&place.at), String::as_str);
            Line { at, record: text(&place.record) }
        })
    }
}

/// So long is a time to the second: `2026-01-02T03:04:05`.
const SECOND: usize = 19;

/// Whether a time may go on so after its second: `.678Z`.
fn is_fraction(rest: &str) -> bool {
    let digits = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix('Z'));
    digits.is_some_and(|digits| (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
