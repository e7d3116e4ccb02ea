//! The journal against a model, with a power cut at every write: a disk that loses any part of what was not synced,
//! and tears what it does not lose.

use std::collections::{BTreeMap, BTreeSet};

use message::{History, JobId, MessageId, NodeName, OrderId, State, Timestamp, Token};

use crate::entry::{Entry, EventRow, Lane, OutputRow};
use crate::error::JournalError;
use crate::ledger::Ledger;
use crate::simulate::SimDisk;
use crate::writer::Write;

/// A small random number generator with a seed (splitmix64), so that every failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// What the journal should hold.
#[derive(Debug, Clone, PartialEq, Default)]
struct Model {
    entries: BTreeMap<OrderId, Entry>,
    output: BTreeMap<(OrderId, u32), OutputRow>,
    heads: BTreeMap<String, u64>,
    floor: u64,
    watermark: Timestamp,
    events: BTreeSet<u64>,
}

impl Model {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Entry(entry) => {
                self.entries.insert(entry.id, (**entry).clone());
            }
            Write::Reported { id, step } => {
                if let Some(entry) = self.entries.get_mut(id) {
                    entry.reported = entry.reported.max(*step);
                }
            }
            Write::Output(row) => {
                self.output.insert((row.order, row.number), row.clone());
            }
            Write::OutputSent { id, number } => {
                self.output.remove(&(*id, *number));
            }
            Write::Head { subject, sequence } => {
                self.heads.insert(subject.clone(), *sequence);
            }
            Write::Floor(floor) => {
                self.heads.retain(|_, head| *head > *floor);
                self.floor = *floor;
            }
            Write::Watermark(watermark) => self.watermark = *watermark,
            Write::Events { rows, .. } => self.events.extend(rows.iter().map(|row| row.row)),
            _ => {}
        }
    }

    fn unsettled(&self) -> BTreeSet<OrderId> {
        let has_output = |id: &OrderId| self.output.keys().any(|(order, _)| order == id);
        self.entries
            .values()
            .filter(|entry| !entry.is_settled() || has_output(&entry.id))
            .map(|entry| entry.id)
            .collect()
    }

    /// Whether a journal holds just this, as far as this can be asked.
    fn check(&self, ledger: &Ledger, ids: &[OrderId]) -> Result<(), String> {
        let reader = ledger.reader();
        for id in ids {
            let found = reader.find(id).map_err(|error| error.to_string())?;
            if found.as_ref() != self.entries.get(id) {
                let told =
                    |entry: Option<&Entry>| entry.map(|entry| (entry.sequence, entry.history.state(), entry.reported));
                return Err(format!(
                    "order {id}: {:?} instead of {:?}",
                    told(found.as_ref()),
                    told(self.entries.get(id))
                ));
            }
            let rows = reader.output(id).map_err(|error| error.to_string())?;
            let wanted: Vec<_> = self.output.values().filter(|row| row.order == *id).cloned().collect();
            if rows != wanted {
                return Err(format!("output of {id}: {} rows instead of {}", rows.len(), wanted.len()));
            }
        }
        let unsettled: BTreeSet<OrderId> =
            reader.unsettled().map_err(|error| error.to_string())?.into_iter().map(|entry| entry.id).collect();
        if unsettled != self.unsettled() {
            return Err(format!("{} unsettled instead of {}", unsettled.len(), self.unsettled().len()));
        }
        let mut events = 0;
        for lane in Lane::ALL {
            events += reader.event_count(lane).map_err(|error| error.to_string())?;
        }
        let known = self.events.len() as u64;
        if events != known { Err(format!("{events} events instead of {known}")) } else { Ok(()) }
    }

    fn check_cursor(&self, cursor: &crate::Cursor) -> Result<(), String> {
        let heads: BTreeMap<_, _> = cursor.heads.iter().cloned().collect();
        if (heads == self.heads || (heads.is_empty() && self.heads.is_empty()))
            && cursor.floor == self.floor
            && cursor.watermark == self.watermark
        {
            Ok(())
        } else {
            Err(format!("the cursor is {cursor:?} instead of {self:?}"))
        }
    }
}

fn ids() -> Vec<OrderId> {
    (0..12).map(|number| OrderId::from_bytes([number; 16])).collect()
}

fn entry(id: OrderId, random: &mut Random) -> Entry {
    let paths: [&[State]; 5] = [
        &[State::Delivered],
        &[State::Delivered, State::Running],
        &[State::Delivered, State::Running, State::Succeeded],
        &[State::Expired],
        &[State::Delivered, State::Cancelled],
    ];
    let mut history = History::new();
    for (index, state) in paths[random.below(paths.len())].iter().enumerate() {
        history.push(*state, Timestamp::from_ms(index as i64)).unwrap();
    }
    Entry {
        id,
        sequence: random.next() % 1000,
        job: JobId::new(1, 1),
        from: NodeName::new("central").unwrap(),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        expires: Timestamp::from_ms(1_000),
        supersede: None,
        history,
        reason: (random.below(3) == 0).then(|| "why".to_owned()),
        outcome: None,
        // Some so large that the log is soon full, and some that do not fit it at all.
        body: match random.below(12) {
            0 => Some("x".repeat(70_000)),
            1..5 => Some("y".repeat(9_000)),
            5..9 => Some("z".repeat(random.below(300))),
            _ => None,
        },
        reply_id: MessageId::from_bytes([7; 16]),
        by: None,
        approvals: vec![],
        reported: 0,
    }
}

fn writes(random: &mut Random) -> Vec<Write> {
    let ids = ids();
    (0..=random.below(3))
        .map(|_| {
            let id = ids[random.below(ids.len())];
            let number = random.below(3) as u32;
            match random.below(12) {
                0..5 => Write::Entry(Box::new(entry(id, random))),
                5 => Write::Reported { id, step: 1 + random.below(3) as u32 },
                6 => Write::Output(OutputRow {
                    order: id,
                    number,
                    is_stderr: random.below(2) == 0,
                    bytes: vec![9; random.below(4000)],
                }),
                7 => Write::OutputSent { id, number },
                8 => Write::Head { subject: format!("a.command.b.{number}"), sequence: random.next() % 1000 },
                9 => Write::Floor(random.next() % 500),
                10 => Write::Watermark(Timestamp::from_ms(random.below(9000) as i64)),
                _ => Write::Events {
                    source: "log".into(),
                    position: None,
                    rows: vec![EventRow {
                        row: random.next() % 1000,
                        subject: "central.event.a.b".into(),
                        id: MessageId::from_bytes([1; 16]),
                        encoding: None,
                        payload: b"{}".to_vec(),
                    }],
                },
            }
        })
        .collect()
}

/// Runs commits until the power goes after `left` writes, cuts it, and compares what is there then.
fn one_life(seed: u64, left: u64) -> Result<bool, String> {
    let mut random = Random(seed);
    let disk = SimDisk::default();
    disk.state().left = Some(left);
    let mut model = Model::default();
    // Whether the commit that the power cut hit may count: all of it or nothing.
    let mut in_doubt: Option<Model> = None;
    let mut survived = false;
    if let Ok((mut ledger, _)) = Ledger::open(Box::new(disk.clone())) {
        survived = true;
        for _ in 0..40 {
            let writes = writes(&mut random);
            let mut next = model.clone();
            writes.iter().for_each(|write| next.apply(write));
            if ledger.commit(writes).is_err() {
                survived = false;
                in_doubt = Some(next);
                break;
            }
            model = next;
        }
    }
    let disk = disk.after_power_cut(&mut |limit| random.below(limit));
    let (ledger, opened) = Ledger::open(Box::new(disk)).map_err(|error| format!("it cannot be opened: {error}"))?;
    let holds = |model: &Model| model.check(&ledger, &ids()).and_then(|()| model.check_cursor(&opened.cursor));
    match (holds(&model), in_doubt.as_ref().map(holds)) {
        (Ok(()), _) | (_, Some(Ok(()))) => Ok(survived),
        (Err(problem), None) => Err(problem),
        (Err(one), Some(Err(other))) => Err(format!("neither without the last commit ({one}) nor with it ({other})")),
    }
}

#[test]
fn what_was_confirmed_survives_a_power_cut_at_every_write() {
    for seed in 0..3 {
        for left in 0.. {
            match one_life(seed, left) {
                Ok(true) => break,
                Ok(false) => {}
                Err(problem) => panic!("seed {seed}, power cut after {left} writes: {problem}"),
            }
        }
    }
}

#[test]
fn a_log_that_lost_a_confirmed_commit_is_noticed() {
    // The check that the model makes can fail: a disk that says it has synced and has not.
    let mut random = Random(5);
    let disk = SimDisk::default();
    let (mut ledger, _) = Ledger::open(Box::new(disk.clone())).unwrap();
    let mut model = Model::default();
    for write in [Write::Floor(1), Write::Floor(2)] {
        model.apply(&write);
        ledger.commit(vec![write]).unwrap();
    }
    drop(ledger);
    let lying = disk.after_power_cut(&mut |limit| random.below(limit));
    {
        let mut state = lying.state();
        state.log.now.iter_mut().take(24).for_each(|byte| *byte ^= 0x55);
    }
    match Ledger::open(Box::new(lying)) {
        Err(JournalError::Corrupt { reason }) => assert!(reason.contains("damaged"), "{reason}"),
        Ok((_, opened)) => assert!(model.check_cursor(&opened.cursor).is_err()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_refused_write_counts_for_nothing_and_the_next_one_goes_through() {
    for refuse_at in 1..400 {
        let mut random = Random(refuse_at);
        let disk = SimDisk::default();
        let (mut ledger, _) = Ledger::open(Box::new(disk.clone())).unwrap();
        let base = disk.state().done;
        disk.state().refuse_at = Some(base + refuse_at);
        let mut model = Model::default();
        let mut refused = false;
        for _ in 0..25 {
            let writes = writes(&mut random);
            match ledger.commit(writes.clone()) {
                Ok(()) => writes.iter().for_each(|write| model.apply(write)),
                Err(JournalError::Full) => refused = true,
                Err(other) => panic!("refused at {refuse_at}: {other}"),
            }
            model.check(&ledger, &ids()).unwrap_or_else(|problem| panic!("refused at {refuse_at}: {problem}"));
        }
        drop(ledger);
        let (ledger, opened) = Ledger::open(Box::new(disk.clone())).unwrap();
        model.check(&ledger, &ids()).unwrap_or_else(|problem| panic!("refused at {refuse_at}, reopened: {problem}"));
        model.check_cursor(&opened.cursor).unwrap();
        if !refused {
            return;
        }
    }
    panic!("the writes never came to an end");
}
