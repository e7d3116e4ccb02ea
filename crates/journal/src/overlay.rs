//! What the log holds and the store does not yet: looked at first by whoever reads. Pure.

use std::collections::BTreeMap;

use message::OrderId;

use crate::entry::{Entry, OutputRow};
use crate::writer::Write;

/// Changes since the log began anew, folded: the last word on each order, on each piece of output.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) entries: BTreeMap<OrderId, Entry>,
    /// `None`: confirmed, to be removed from the store.
    pub(crate) output: BTreeMap<([u8; 16], u32), Option<OutputRow>>,
    /// Acts for the audit log; those that are confirmed before the log is full never reach the store.
    pub(crate) audit: BTreeMap<u64, String>,
    /// Up to which row they are confirmed, and where the chain ends.
    pub(crate) audited: Option<(u64, String)>,
    /// Changes of the cursor, in their order.
    pub(crate) cursor: Vec<Write>,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.output.is_empty()
            && self.cursor.is_empty()
            && self.audit.is_empty()
            && self.audited.is_none()
    }

    /// Folds in one write. `known` is what the store knows of an order that is not here.
    pub(crate) fn apply(&mut self, write: Write, known: impl FnOnce(&OrderId) -> Option<Entry>) {
        match write {
            Write::Entry(entry) => {
                self.entries.insert(entry.id, *entry);
            }
            Write::Reported { id, step } => {
                let entry = self.entries.remove(&id).or_else(|| known(&id));
                if let Some(mut entry) = entry {
                    entry.reported = entry.reported.max(step);
                    self.entries.insert(id, entry);
                }
            }
            Write::Output(row) => {
                // Whether its order is settled depends on it.
                if !self.entries.contains_key(&row.order)
                    && let Some(entry) = known(&row.order)
                {
                    self.entries.insert(row.order, entry);
                }
                self.output.insert((*row.order.as_bytes(), row.number), Some(row));
            }
            Write::OutputSent { id, number } => {
                self.output.insert((*id.as_bytes(), number), None);
            }
            Write::Audit { row, act } => {
                self.audit.insert(row, act);
            }
            Write::Audited { row, tip } => {
                self.audit = self.audit.split_off(&row.saturating_add(1));
                self.audited = Some((row, tip));
            }
            other => self.cursor.push(other),
        }
    }

    /// The output of an order: `stored`, with what is newer.
    pub(crate) fn newest(stored: Vec<OutputRow>, newer: Vec<(u32, Option<OutputRow>)>) -> Vec<OutputRow> {
        let mut rows: BTreeMap<u32, OutputRow> = stored.into_iter().map(|row| (row.number, row)).collect();
        for (number, row) in newer {
            match row {
                Some(row) => rows.insert(number, row),
                None => rows.remove(&number),
            };
        }
        rows.into_values().collect()
    }

    /// Everything as writes to the store, in an order that its rules need: output first, for it decides with its
    /// order whether anything is left to do.
    pub(crate) fn writes(&self) -> impl Iterator<Item = Write> + '_ {
        let output = self.output.iter().map(|((order, number), row)| match row {
            Some(row) => Write::Output(row.clone()),
            None => Write::OutputSent { id: OrderId::from_bytes(*order), number: *number },
        });
        let entries = self.entries.values().map(|entry| Write::Entry(Box::new(entry.clone())));
        let audited = self.audited.iter().map(|(row, tip)| Write::Audited { row: *row, tip: tip.clone() });
        let audit = self.audit.iter().map(|(row, act)| Write::Audit { row: *row, act: act.clone() });
        output.chain(entries).chain(audited).chain(audit).chain(self.cursor.iter().cloned())
    }
}
