//! The log before the store: one frame for each commit, written in place in a file of fixed length. Pure.
//!
//! A store that is a tree rewrites a dozen pages for the smallest change; a commit that only appends a frame and
//! syncs it costs what the disk costs. What the log holds is carried over into the store when it is full, and the
//! log begins anew under another generation: frames of an earlier one are left lying, and mean nothing.
//!
//! `generation u64 | number u32 | length u32 | crc32 u32 | zero u32 | payload | padding to 8`, little-endian. The
//! checksum is over generation, number, length and payload. A frame is written and synced before the next is
//! begun, so only the last may be torn, and what was torn was never confirmed.

use message::{MessageId, OrderId, Timestamp};

use crate::entry::{Entry, OutputRow};
use crate::error::JournalError;
use crate::writer::Write;

/// The length of the log. What it holds is also held in memory until it is carried over.
#[cfg(not(test))]
pub(crate) const LOG_BYTES: usize = 1024 * 1024;
/// Short, so that tests see it full often.
#[cfg(test)]
pub(crate) const LOG_BYTES: usize = 64 * 1024;
const HEADER_BYTES: usize = 24;
const ALIGN: usize = 8;

/// One commit, as it is written.
pub(crate) fn frame(generation: u64, number: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len() + ALIGN);
    frame.extend_from_slice(&generation.to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&checksum(&frame, payload).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame.resize(frame.len().next_multiple_of(ALIGN), 0);
    Some(frame)
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// The frame at `offset`, if it is whole: its number, its payload, and where the next one begins.
fn read_frame(log: &[u8], offset: usize, generation: u64) -> Option<(u32, &[u8], usize)> {
    let header = log.get(offset..offset.checked_add(HEADER_BYTES)?)?;
    let number = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if header.get(..8)? != generation.to_le_bytes() {
        return None;
    }
    let length = usize::try_from(number(12)?).ok()?;
    let start = offset + HEADER_BYTES;
    let payload = log.get(start..start.checked_add(length)?)?;
    if checksum(header.get(..16)?, payload) != number(16)? {
        return None;
    }
    Some((number(8)?, payload, (start + length).next_multiple_of(ALIGN)))
}

/// The payloads of all commits of `generation`, oldest first.
///
/// # Errors
/// [`JournalError::Corrupt`] when a frame in the middle is damaged: then a confirmed commit is lost, and going on
/// could mean doing something twice.
pub(crate) fn replay(log: &[u8], generation: u64) -> Result<Vec<&[u8]>, JournalError> {
    let mut payloads = Vec::new();
    let mut offset = 0;
    while let Some((number, payload, next)) = read_frame(log, offset, generation) {
        if usize::try_from(number) != Ok(payloads.len()) {
            break;
        }
        payloads.push(payload);
        offset = next;
    }
    // Most of the log is looked at here, and hardly ever anything is found.
    let wanted = generation.to_le_bytes();
    let later = log.get(offset + ALIGN..).unwrap_or_default();
    let begins = later.chunks_exact(ALIGN).enumerate().filter(|(_, bytes)| *bytes == wanted);
    if begins.into_iter().any(|(at, _)| read_frame(log, offset + ALIGN * (at + 1), generation).is_some()) {
        let reason = format!("the log is damaged at byte {offset}, and newer commits follow; the disk may be failing");
        return Err(JournalError::Corrupt { reason });
    }
    Ok(payloads)
}

/// The payload of a commit; `None` when one of the writes does not go into the log: such are rare or large, and go to
/// the store at once.
pub(crate) fn encode(writes: &[Write]) -> Result<Option<Vec<u8>>, JournalError> {
    let mut payload = Vec::with_capacity(256 * writes.len());
    for write in writes {
        let at = payload.len();
        payload.extend_from_slice(&[0; 5]);
        let tag = match write {
            Write::Entry(entry) => {
                serde_json::to_writer(&mut payload, entry).map_err(|error| unreadable(&error))?;
                b'e'
            }
            Write::Head { subject, sequence } => {
                payload.extend_from_slice(&sequence.to_le_bytes());
                payload.extend_from_slice(subject.as_bytes());
                b'h'
            }
            Write::Floor(floor) => {
                payload.extend_from_slice(&floor.to_le_bytes());
                b'f'
            }
            Write::Watermark(watermark) => {
                payload.extend_from_slice(&watermark.as_ms().to_le_bytes());
                b'w'
            }
            Write::Reported { id, step } => {
                payload.extend_from_slice(id.as_bytes());
                payload.extend_from_slice(&step.to_le_bytes());
                b'r'
            }
            Write::Output(row) => {
                payload.extend_from_slice(row.order.as_bytes());
                payload.extend_from_slice(&row.number.to_le_bytes());
                payload.push(u8::from(row.is_stderr));
                payload.extend_from_slice(&row.bytes);
                b'o'
            }
            Write::OutputSent { id, number } => {
                payload.extend_from_slice(id.as_bytes());
                payload.extend_from_slice(&number.to_le_bytes());
                b's'
            }
            Write::Audit { row, act } => {
                payload.extend_from_slice(&row.to_le_bytes());
                payload.extend_from_slice(act.as_bytes());
                b'a'
            }
            Write::Audited { row, tip } => {
                payload.extend_from_slice(&row.to_le_bytes());
                payload.extend_from_slice(tip.as_bytes());
                b't'
            }
            Write::Epoch(_)
            | Write::Trust(_)
            | Write::Tombstone(_)
            | Write::Newest(_)
            | Write::Events { .. }
            | Write::EventSent { .. } => return Ok(None),
        };
        let Ok(length) = u32::try_from(payload.len() - at - 5) else { return Ok(None) };
        if let Some([first, rest @ ..]) = payload.get_mut(at..at + 5) {
            *first = tag;
            rest.copy_from_slice(&length.to_le_bytes());
        }
    }
    Ok(Some(payload))
}

fn unreadable(error: &serde_json::Error) -> JournalError {
    JournalError::Corrupt { reason: error.to_string() }
}

/// Takes bytes from the front of what is left.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The writes of a commit.
pub(crate) fn decode(payload: &[u8]) -> Result<Vec<Write>, JournalError> {
    let mut left = Bytes(payload);
    let mut writes = Vec::new();
    while !left.0.is_empty() {
        let wrong = || JournalError::Corrupt { reason: "the log holds a commit that cannot be read".into() };
        let [tag] = left.array().ok_or_else(wrong)?;
        let length = left.u32().and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
        let body = left.take(length).ok_or_else(wrong)?;
        let write = if tag == b'e' {
            let entry: Entry = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
            Some(Write::Entry(Box::new(entry)))
        } else {
            decode_one(tag, Bytes(body))
        };
        writes.push(write.ok_or_else(wrong)?);
    }
    Ok(writes)
}

fn decode_one(tag: u8, mut body: Bytes<'_>) -> Option<Write> {
    Some(match tag {
        b'h' => {
            let sequence = body.u64()?;
            Write::Head { subject: String::from_utf8(body.0.to_vec()).ok()?, sequence }
        }
        b'a' => {
            let row = body.u64()?;
            Write::Audit { row, act: String::from_utf8(body.0.to_vec()).ok()? }
        }
        b't' => {
            let row = body.u64()?;
            Write::Audited { row, tip: String::from_utf8(body.0.to_vec()).ok()? }
        }
        b'f' => Write::Floor(body.u64()?),
        b'w' => Write::Watermark(Timestamp::from_ms(body.array().map(i64::from_le_bytes)?)),
        b'r' => Write::Reported { id: OrderId::from_bytes(body.array()?), step: body.u32()? },
        b'o' => {
            let (order, number) = (OrderId::from_bytes(body.array()?), body.u32()?);
            let [is_stderr] = body.array()?;
            Write::Output(OutputRow { order, number, is_stderr: is_stderr != 0, bytes: body.0.to_vec() })
        }
        b's' => Write::OutputSent { id: OrderId::from_bytes(body.array()?), number: body.u32()? },
        _ => return None,
    })
}

/// A generation that no earlier one of this log shares.
pub(crate) fn fresh_generation() -> Result<u64, JournalError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)
        .map_err(|error| JournalError::Storage { what: "started anew", reason: error.to_string() })?;
    let id = MessageId::from_bytes(bits);
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes() -> Vec<Write> {
        let id = OrderId::from_bytes([3; 16]);
        vec![
            Write::Head { subject: "ship1.command.a.b".into(), sequence: 9 },
            Write::Floor(4),
            Write::Watermark(Timestamp::from_ms(-5)),
            Write::Reported { id, step: 3 },
            Write::Output(OutputRow { order: id, number: 7, is_stderr: true, bytes: vec![0, 255] }),
            Write::OutputSent { id, number: 7 },
        ]
    }

    fn log_of(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut log = frames.concat();
        log.resize(4096, 0);
        log
    }

    #[test]
    fn what_is_written_is_read_again() {
        let payload = encode(&writes()).unwrap().unwrap();
        let log = log_of(&[frame(7, 0, &payload).unwrap(), frame(7, 1, b"").unwrap()]);
        let read = replay(&log, 7).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(decode(read[0]).unwrap(), writes());
        assert!(replay(&log, 8).unwrap().is_empty(), "another generation means nothing");
    }

    #[test]
    fn a_torn_last_frame_does_not_count_and_a_damaged_earlier_one_is_told() {
        let frames: Vec<_> = (0..3).map(|number| frame(7, number, &[number as u8; 40]).unwrap()).collect();
        let whole = log_of(&frames);
        let starts: Vec<usize> = (0..3).map(|index| frames[..index].concat().len()).collect();
        for at in starts[2]..starts[2] + frames[2].len() {
            let mut torn = whole.clone();
            torn[at] ^= 0x55;
            let kept = replay(&torn, 7).unwrap().len();
            // The padding and the reserved word are not looked at.
            assert!(kept == 2 || torn[at] == 0x55, "byte {at}: {kept}");
        }
        for at in 0..24 {
            let mut damaged = whole.clone();
            damaged[starts[1] + at] ^= 0x55;
            match replay(&damaged, 7) {
                Err(JournalError::Corrupt { .. }) => {}
                Ok(read) => assert!(read.len() == 3 && at >= 20, "byte {at} of the header: {}", read.len()),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
