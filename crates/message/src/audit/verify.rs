//! Whether the chains are whole, and where not. Pure.
//!
//! Signature and writer first; then the links of each chain in the order of the stream. The end of a chain cannot prove
//! itself: it is compared with what is told elsewhere (life signs, earlier looks). What nodes decided is compared with what
//! operators wrote that they ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Act, Entry, OPERATOR_CHAIN, Stored, Tip, sha256, subject};
use crate::id::JobId;
use crate::name::NodeName;
use crate::sign::PublicKey;
use crate::time::Timestamp;
use crate::trust::Trust;

/// The end of a chain, told elsewhere than in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of which chain: its subject.
    pub subject: String,
    /// The number of an entry that was there.
    pub seq: u64,
    /// The SHA-256 of its bytes.
    pub sha256: String,
    /// Who tells.
    pub told_by: String,
}

/// What a verification rests on besides the entries.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// Who may order, and who could once.
    pub trust: &'a Trust,
    /// The keys of nodes, as operators signed them. Those that are told in operators' chains are known besides.
    pub nodes: &'a [(NodeName, PublicKey)],
    /// Ends of chains that are told elsewhere.
    pub heads: &'a [Head],
    /// For how long the stream keeps entries, and now: what is older may be gone rightly.
    pub kept: (Duration, Timestamp),
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// Entries are not there: from this number to that one.
    Gap {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// The chain begins later than it did, and not since the stream forgot its beginning by age.
    Beginning {
        /// The first entry that is there.
        first: u64,
    },
    /// The entry does not link to the one before it: one of both was replaced.
    Altered {
        /// The entry.
        seq: u64,
    },
    /// Two different entries have this number.
    Fork {
        /// The number.
        seq: u64,
    },
    /// The same entry once more.
    Repeated {
        /// The entry.
        seq: u64,
    },
    /// The entry stands behind a later one.
    Reordered {
        /// The entry.
        seq: u64,
    },
    /// The end is missing: elsewhere a later entry is told of.
    End {
        /// The last entry that is there; 0 for none.
        last: u64,
        /// The entry that was there once.
        told: u64,
        /// Who tells.
        told_by: String,
    },
    /// Elsewhere another entry of this number is told of.
    Rewritten {
        /// The entry.
        seq: u64,
        /// Who tells.
        told_by: String,
    },
}

/// How one chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// Its subject.
    pub subject: String,
    /// Who writes it.
    pub writer: String,
    /// `operator`, or the instance of a node's journal.
    pub chain: String,
    /// How many entries are there.
    pub entries: u64,
    /// The number of the first one.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// The SHA-256 of the last one.
    pub sha256: String,
    /// When the last one was written.
    pub at: Option<Timestamp>,
    /// What is wrong with it; nothing, if it is whole.
    pub faults: Vec<Fault>,
}

/// What is in the stream and belongs to no chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Strange {
    /// Where it stands in the stream.
    pub sequence: u64,
    /// On which subject.
    pub subject: String,
    /// Why it is not believed.
    pub reason: String,
}

/// A node decided about an order of which its operator's chain says nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unaccounted {
    /// The job.
    pub job: JobId,
    /// Who signed the order.
    pub by: PublicKey,
    /// Which node says so.
    pub node: String,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub whole: bool,
    /// All chains.
    pub chains: Vec<ChainReport>,
    /// What is in the stream, and counts for nothing.
    pub strange: Vec<Strange>,
    /// Orders that nobody wrote down.
    pub unaccounted: Vec<Unaccounted>,
}

/// An entry that is believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The entry.
    pub entry: Entry,
    /// Whose key signed it.
    pub key: PublicKey,
}

/// The entry in what is stored, if its signature holds and it stands where its writer's entries stand. Says nothing about
/// whether the key is that of somebody who belongs to the fleet.
///
/// # Errors
/// A sentence.
pub fn open(stored: &Stored) -> Result<Opened, String> {
    let seal = stored.seal.as_ref().ok_or("it is not signed")?;
    seal.verify(stored.entry.as_bytes()).map_err(|error| error.to_string())?;
    let entry = Entry::parse(stored.entry.as_bytes()).map_err(|error| error.to_string())?;
    if subject(&entry.writer, &seal.key, &entry.chain) != stored.subject {
        return Err(format!("it is an entry of {} with another key or chain than the subject says", entry.writer));
    }
    Ok(Opened { entry, key: seal.key.clone() })
}

/// One chain while it is read.
#[derive(Default)]
struct Chain {
    writer: String,
    chain: String,
    first: u64,
    tip: Option<Tip>,
    known: BTreeMap<u64, String>,
    entries: u64,
    /// Before this, entries have rightly gone by age.
    aged: Option<Timestamp>,
    faults: Vec<Fault>,
}

impl Chain {
    fn take(&mut self, entry: &Entry, bytes: &[u8], (kept, now): (Duration, Timestamp)) {
        let digest = sha256(bytes);
        self.entries += 1;
        let Some(tip) = &self.tip else {
            (self.writer, self.chain, self.first) = (entry.writer.clone(), entry.chain.clone(), entry.seq);
            if let Some(prev) = &entry.prev {
                if prev.at.plus(kept) <= now {
                    self.aged = Some(prev.at);
                } else {
                    self.faults.push(Fault::Beginning { first: entry.seq });
                }
            }
            self.known.insert(entry.seq, digest);
            self.tip = Some(Tip::of(entry, bytes));
            return;
        };
        if entry.seq <= tip.seq {
            let seq = entry.seq;
            self.faults.push(match self.known.get(&seq) {
                Some(known) if *known == digest => Fault::Repeated { seq },
                Some(_) => Fault::Fork { seq },
                None => Fault::Reordered { seq },
            });
            self.known.entry(seq).or_insert(digest);
            return;
        }
        if entry.seq > tip.seq + 1 {
            self.faults.push(Fault::Gap { from: tip.seq + 1, to: entry.seq - 1 });
        } else if entry.prev.as_ref().is_none_or(|prev| prev.sha256 != tip.sha256) {
            self.faults.push(Fault::Altered { seq: entry.seq });
        }
        self.known.insert(entry.seq, digest);
        self.tip = Some(Tip::of(entry, bytes));
    }

    fn compare(&mut self, head: &Head) {
        let last = self.tip.as_ref().map_or(0, |tip| tip.seq);
        let told_by = head.told_by.clone();
        if head.seq > last {
            self.faults.push(Fault::End { last, told: head.seq, told_by });
        } else if self.known.get(&head.seq).is_some_and(|known| *known != head.sha256) {
            self.faults.push(Fault::Rewritten { seq: head.seq, told_by });
        }
    }
}

/// What is stored, and what of it is believed: an entry, and whether an operator wrote it; or a sentence why not.
pub type Believed<'a> = (&'a Stored, Result<(Opened, bool), String>);

/// Looks who wrote what: signature, place, and whether the key is that of an operator (who was one when it was stored) or of
/// a node of this fleet.
pub fn believe<'a>(
    all: impl Iterator<Item = &'a Stored>,
    trust: &Trust,
    nodes: &[(NodeName, PublicKey)],
) -> Vec<Believed<'a>> {
    let is_operators = |stored: &Stored, opened: &Opened| {
        let (key, writer) = (&opened.key, &opened.entry.writer);
        let named = trust.operator(key).map(|one| &one.name).or(trust.revoked(key).map(|one| &one.name));
        opened.entry.chain == OPERATOR_CHAIN && named == Some(writer) && trust.was_operator(key, stored.stored_at)
    };
    let opened: Vec<Believed<'a>> = all
        .map(|stored| {
            let opened = open(stored).map(|opened| {
                let by_operator = is_operators(stored, &opened);
                (opened, by_operator)
            });
            (stored, opened)
        })
        .collect();
    // Keys that were replaced since stand in no record any more, but operators told of them.
    let mut known: BTreeSet<(String, PublicKey)> =
        nodes.iter().map(|(name, key)| (name.to_string(), key.clone())).collect();
    for (opened, _) in opened.iter().filter_map(|(_, entry)| entry.as_ref().ok()).filter(|(_, by)| *by) {
        known.extend(opened.entry.acts.iter().filter_map(|act| match act {
            Act::Change { what, on, key: Some(key), .. } if what.starts_with("node ") => {
                Some((on.clone(), key.clone()))
            }
            _ => None,
        }));
    }
    let belongs = |(opened, by_operator): (Opened, bool)| {
        if by_operator || known.contains(&(opened.entry.writer.clone(), opened.key.clone())) {
            return Ok((opened, by_operator));
        }
        Err(format!("{} with this key is no operator and no node of this fleet", opened.entry.writer))
    };
    opened.into_iter().map(|(stored, entry)| (stored, entry.and_then(belongs))).collect()
}

/// Reads everything, in the order of the stream, and tells where a chain was cut or altered.
pub fn verify<'a>(all: impl Iterator<Item = &'a Stored>, grounds: Grounds<'_>) -> Report {
    let opened = believe(all, grounds.trust, grounds.nodes);
    let mut strange = Vec::new();
    let mut chains: BTreeMap<&str, Chain> = BTreeMap::new();
    let mut ordered: BTreeSet<(&PublicKey, &JobId)> = BTreeSet::new();
    let mut decided = Vec::new();
    for (stored, entry) in &opened {
        let (opened, by_operator) = match entry {
            Ok((opened, by_operator)) => (opened, *by_operator),
            Err(reason) => {
                let (sequence, subject) = (stored.sequence, stored.subject.clone());
                strange.push(Strange { sequence, subject, reason: reason.clone() });
                continue;
            }
        };
        let entry = &opened.entry;
        for act in &entry.acts {
            match act {
                Act::Order { job, .. } if by_operator => drop(ordered.insert((&opened.key, job))),
                Act::Decision { job, by: Some(by), at, .. } if !by_operator => {
                    decided.push((by, job, &entry.writer, *at));
                }
                _ => {}
            }
        }
        chains.entry(&stored.subject).or_default().take(entry, stored.entry.as_bytes(), grounds.kept);
    }
    for head in grounds.heads {
        let chain = chains.entry(&head.subject).or_default();
        if chain.tip.is_none() && chain.writer.is_empty() {
            let mut tokens = head.subject.split('.');
            chain.writer = tokens.next().unwrap_or_default().to_owned();
            chain.chain = tokens.next_back().unwrap_or_default().to_owned();
        }
        chain.compare(head);
    }
    let aged: BTreeMap<&str, Timestamp> =
        chains.iter().filter_map(|(subject, chain)| Some((subject.split('.').nth(2)?, chain.aged?))).collect();
    let unaccounted: BTreeSet<Unaccounted> = decided
        .into_iter()
        .filter(|(by, job, _, at)| {
            !ordered.contains(&(*by, *job)) && aged.get(by.as_str()).is_none_or(|aged| at > aged)
        })
        .map(|(by, job, node, _)| Unaccounted { job: job.clone(), by: by.clone(), node: node.clone() })
        .collect();
    let chains: Vec<ChainReport> = chains
        .into_iter()
        .map(|(subject, chain)| ChainReport {
            subject: subject.to_owned(),
            writer: chain.writer,
            chain: chain.chain,
            entries: chain.entries,
            first: chain.first,
            last: chain.tip.as_ref().map_or(0, |tip| tip.seq),
            at: chain.tip.as_ref().map(|tip| tip.at),
            sha256: chain.tip.map(|tip| tip.sha256).unwrap_or_default(),
            faults: chain.faults,
        })
        .collect();
    let whole = strange.is_empty() && unaccounted.is_empty() && chains.iter().all(|chain| chain.faults.is_empty());
    Report { whole, chains, strange, unaccounted: unaccounted.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use nkeys::{KeyPair, KeyPairType};
    use proptest::prelude::*;

    use super::*;
    use crate::sign::Seal;
    use crate::trust::{Operator, Revoked, TrustKind};

    fn pair(byte: u8) -> KeyPair {
        KeyPair::new_from_raw(KeyPairType::User, [byte; 32]).unwrap()
    }

    fn trust() -> Trust {
        Trust {
            v: 1,
            kind: TrustKind::Trust,
            serial: 1,
            issued: Timestamp::from_ms(0),
            operators: vec![Operator::admin("admin", PublicKey::of(&pair(1)))],
            policy_keys: vec![],
            revoked: vec![],
        }
    }

    fn stored(entry: &Entry, key: &KeyPair, sequence: u64) -> Stored {
        let text = String::from_utf8(entry.to_bytes().unwrap()).unwrap();
        Stored {
            sequence,
            stored_at: entry.at,
            subject: subject(&entry.writer, &PublicKey::of(key), &entry.chain),
            seal: Some(Seal::over(text.as_bytes(), key).unwrap()),
            entry: text,
        }
    }

    /// A chain of `count` entries, as `admin` writes it.
    fn chain(count: u64) -> Vec<Stored> {
        let mut tip = None;
        (1..=count)
            .map(|number| {
                let at = Timestamp::from_ms(i64::try_from(number).unwrap());
                let acts = vec![Act::change("node label", format!("ship{number}"))];
                let entry = Entry::after(tip.as_ref(), ("admin", OPERATOR_CHAIN), at, acts);
                tip = Some(Tip::of(&entry, &entry.to_bytes().unwrap()));
                stored(&entry, &pair(1), number)
            })
            .collect()
    }

    fn report(all: &[Stored], heads: &[Head]) -> Report {
        let kept = (Duration::from_secs(3600), Timestamp::from_ms(1000));
        verify(all.iter(), Grounds { trust: &trust(), nodes: &[], heads, kept })
    }

    fn faults(all: &[Stored], heads: &[Head]) -> Vec<Fault> {
        let report = report(all, heads);
        assert!(report.strange.is_empty(), "{:?}", report.strange);
        report.chains.into_iter().flat_map(|chain| chain.faults).collect()
    }

    fn head(all: &[Stored], seq: u64) -> Head {
        let stored = &all[usize::try_from(seq - 1).unwrap()];
        let digest = sha256(stored.entry.as_bytes());
        Head { subject: stored.subject.clone(), seq, sha256: digest, told_by: "a life sign".into() }
    }

    #[test]
    fn a_whole_chain_is_whole() {
        let all = chain(5);
        let report = report(&all, &[head(&all, 5), head(&all, 2)]);
        assert!(report.whole, "{report:?}");
        assert_eq!((report.chains[0].first, report.chains[0].last), (1, 5));
    }

    #[test]
    fn an_end_that_is_told_elsewhere_is_missed() {
        let all = chain(5);
        let told_by = "a life sign".to_owned();
        let end = Fault::End { last: 3, told: 5, told_by: told_by.clone() };
        assert_eq!(faults(&all[..3], &[head(&all, 5)]), [end]);
        // Rewritten with the right key, so that every link fits.
        let other = Head { sha256: sha256(b"another"), ..head(&all, 4) };
        assert_eq!(faults(&all, &[other]), [Fault::Rewritten { seq: 4, told_by: told_by.clone() }]);
        assert_eq!(faults(&[], &[head(&all, 1)]), [Fault::End { last: 0, told: 1, told_by }]);
    }

    #[test]
    fn what_has_aged_away_is_no_cut() {
        let all = chain(5);
        let kept = (Duration::from_millis(10), Timestamp::from_ms(12));
        let grounds = Grounds { trust: &trust(), nodes: &[], heads: &[], kept };
        assert!(verify(all[2..].iter(), grounds).whole);
        assert!(!verify(all[3..].iter(), grounds).whole, "entry 3 is not old enough to be gone");
    }

    #[test]
    fn another_entry_with_the_right_key_is_a_fork_or_an_alteration() {
        let mut all = chain(4);
        let tip = Tip { seq: 2, sha256: sha256(all[1].entry.as_bytes()), at: Timestamp::from_ms(2) };
        let entry = Entry::after(Some(&tip), ("admin", OPERATOR_CHAIN), Timestamp::from_ms(3), vec![]);
        let other = stored(&entry, &pair(1), 5);
        let mut forked = all.clone();
        forked.push(other.clone());
        assert_eq!(faults(&forked, &[]), [Fault::Fork { seq: 3 }]);
        all[2] = Stored { sequence: 3, ..other };
        assert_eq!(faults(&all, &[]), [Fault::Altered { seq: 4 }]);
    }

    #[test]
    fn strangers_and_revoked_writers_count_for_nothing() {
        let mut all = chain(2);
        let entry = Entry::after(None, ("admin", OPERATOR_CHAIN), Timestamp::from_ms(3), vec![]);
        all.push(stored(&entry, &pair(2), 3));
        let report = report(&all, &[]);
        assert_eq!((report.whole, report.strange[0].sequence, report.chains.len()), (false, 3, 1));
        let revoked = Revoked { name: "admin".into(), key: PublicKey::of(&pair(1)), revoked: Timestamp::from_ms(2) };
        let trust = Trust { operators: vec![], revoked: vec![revoked], ..trust() };
        let kept = (Duration::from_secs(3600), Timestamp::from_ms(1000));
        let report = verify(all[..2].iter(), Grounds { trust: &trust, nodes: &[], heads: &[], kept });
        assert_eq!((report.chains[0].last, report.strange.len()), (1, 1), "what he wrote before still counts");
    }

    #[test]
    fn an_order_that_nobody_wrote_down_is_told() {
        let mut all = chain(1);
        let enrolled = Act::change("node enroll", "ship1").of_key(&PublicKey::of(&pair(7)));
        let tip = Tip { seq: 1, sha256: sha256(all[0].entry.as_bytes()), at: Timestamp::from_ms(1) };
        let entry = Entry::after(Some(&tip), ("admin", OPERATOR_CHAIN), Timestamp::from_ms(2), vec![enrolled]);
        all.push(stored(&entry, &pair(1), 2));
        let job = JobId::new(1, 1);
        let decision = Act::Decision {
            order: crate::OrderId::from_bytes([1; 16]),
            job: job.clone(),
            by: Some(PublicKey::of(&pair(1))),
            method: crate::Token::method("hello").unwrap(),
            domain: crate::Token::domain("operatingsystem").unwrap(),
            state: crate::State::Delivered,
            rule: None,
            policy: None,
            reason: None,
            at: Timestamp::from_ms(3),
        };
        let entry = Entry::after(None, ("ship1", "x"), Timestamp::from_ms(3), vec![decision]);
        all.push(stored(&entry, &pair(7), 3));
        let report = report(&all, &[]);
        assert!(report.strange.is_empty(), "the node's key is told by the operator: {:?}", report.strange);
        let by = PublicKey::of(&pair(1));
        assert_eq!(report.unaccounted, [Unaccounted { job, by, node: "ship1".into() }]);
        assert!(!report.whole);
    }

    proptest! {
        #[test]
        fn a_missing_entry_is_missed_at_its_place(count in 2_u64..12, at in any::<prop::sample::Index>()) {
            let mut all = chain(count);
            let whole = all.clone();
            let gone = all.remove(at.index(all.len())).sequence;
            let expected = if gone == 1 {
                Fault::Beginning { first: 2 }
            } else if gone == count {
                Fault::End { last: count - 1, told: count, told_by: "a life sign".into() }
            } else {
                Fault::Gap { from: gone, to: gone }
            };
            prop_assert_eq!(faults(&all, &[head(&whole, count)]), [expected]);
        }

        #[test]
        fn a_repeated_entry_is_told(count in 1_u64..12, at in any::<prop::sample::Index>()) {
            let mut all = chain(count);
            let again = all[at.index(all.len())].clone();
            all.push(again.clone());
            prop_assert_eq!(faults(&all, &[]), [Fault::Repeated { seq: again.sequence }]);
        }

        #[test]
        fn two_entries_in_each_others_place_are_told(count in 3_u64..12, at in any::<prop::sample::Index>()) {
            let mut all = chain(count);
            let first = at.index(all.len() - 1);
            all.swap(first, first + 1);
            let moved = u64::try_from(first).unwrap() + 1;
            let found = faults(&all, &[]);
            prop_assert!(found.contains(&Fault::Reordered { seq: moved }), "{:?}", found);
        }

        #[test]
        fn any_altered_byte_is_told(count in 1_u64..6, at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), bit in 0_u8..7) {
            let mut all = chain(count);
            let hit = at.index(all.len());
            let mut bytes = all[hit].entry.clone().into_bytes();
            let place = byte.index(bytes.len());
            bytes[place] ^= 1 << bit;
            all[hit].entry = String::from_utf8_lossy(&bytes).into_owned();
            let report = report(&all, &[]);
            prop_assert_eq!(report.strange.iter().map(|one| one.sequence).collect::<Vec<_>>(), [all[hit].sequence]);
            prop_assert!(!report.whole);
        }

        #[test]
        fn garbage_is_no_entry(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Entry::parse(&bytes).is_err());
        }
    }
}
