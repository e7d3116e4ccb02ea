//! Every parser that reads bytes from outside, as a function that must hold for any bytes: it may refuse them, it may
//! not break down, and what it has read must read the same when it is written again.
//!
//! `fuzz/` hands these functions to libFuzzer; `tests/parsers.rs` runs them over the committed seeds and what a small
//! mutator makes of them, so that every build on a stable compiler exercises them as well. A function that panics has
//! found something.

use bus::claims::{self, Creds};
use message::change::{Listening, timeline};
use message::expression::{Known, Steps};
use message::policy::{Asked, Request, decide};
use message::{
    Admission, Change, EnrolToken, EventBatch, Expression, Facts, JobId, JobRecord, Knock, Labels, LifeSign, Lineage,
    NodeName, NodeRecord, NodeState, Order, OrderChunk, OrderId, OutputSubject, Pattern, Policy, PublicKey, Renewal,
    Reply, ReplySubject, Seal, SealedDocument, SealedTrust, Selector, Subject, Taken, Timestamp, Token, TokenRecord,
    Trust, Vitality, units,
};
use nkeys::{KeyPair, KeyPairType};

use crate::frames::Frames;
use crate::random::Random;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of the directory of its seeds.
    pub name: &'static str,
    /// Must not panic.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 16] = [
    Target { name: "order", run: order },
    Target { name: "reply", run: reply },
    Target { name: "life_sign", run: life_sign },
    Target { name: "event_batch", run: event_batch },
    Target { name: "subject", run: subject },
    Target { name: "name", run: name },
    Target { name: "creds", run: creds },
    Target { name: "trust", run: trust },
    Target { name: "succession", run: succession },
    Target { name: "renewal", run: renewal },
    Target { name: "policy", run: policy },
    Target { name: "job_record", run: job_record },
    Target { name: "frames", run: frames },
    Target { name: "admission", run: admission },
    Target { name: "target", run: target },
    Target { name: "audit", run: audit },
];

/// The longest input that the mutator makes.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// An order, as a node reads it.
pub fn order(bytes: &[u8]) {
    let Ok(order) = Order::parse(bytes) else { return };
    assert!(order.expires >= order.created, "an order that expires before it was made was read");
    if let Ok(written) = order.to_bytes() {
        assert_eq!(Order::parse(&written), Ok(order.clone()), "an order reads back as another one");
    }
    let _ = order.check_addressee(&order.subject().to_string(), &order.to);
    // The node of the test vectors, whose order with secrets is among the seeds.
    if let Ok(pair) = KeyPair::new_from_raw(KeyPairType::User, [3; 32])
        && let Ok(secrets) = message::secret::open(&order, &order.to.key, &pair)
    {
        assert!(secrets.is_empty(), "a box of another operator was opened");
    }
}

/// A reply, as operators and stations read it.
pub fn reply(bytes: &[u8]) {
    let Ok(reply) = Reply::parse(bytes) else { return };
    assert_eq!(reply.step, reply.history.step(), "a reply whose step does not fit was read");
    if let Ok(written) = serde_json::to_vec(&reply) {
        assert_eq!(Reply::parse(&written), Ok(reply.clone()), "a reply reads back as another one");
    }
    let mut history = reply.history.clone();
    assert_eq!(history.merge(&reply.history), message::state::Merge::Stale, "a history contradicts itself");
}

/// A life sign, what a node tells of an earlier one, and a node's record.
pub fn life_sign(bytes: &[u8]) {
    if let Ok(sign) = serde_json::from_slice::<LifeSign>(bytes) {
        for (seen, now, booted) in [(0, 0, 0), (i64::MAX, 0, i64::MIN), (i64::MIN, i64::MAX, 0)] {
            let at = Timestamp::from_ms;
            let _ = Vitality::judge(Some((&sign, at(seen))), at(now), at(booted));
        }
    }
    if let Ok(change) = serde_json::from_slice::<Change>(bytes) {
        let at = Timestamp::from_ms;
        let told = [(change.clone(), at(0)), (change.clone(), at(i64::MAX)), (change, at(i64::MIN))];
        let listening = Listening { now: at(i64::MAX), booted: at(i64::MIN) };
        let spells = timeline(None, &told, None, listening);
        assert!(spells.is_sorted_by_key(|spell| spell.since), "a timeline goes back");
    }
    if let Ok(record) = serde_json::from_slice::<NodeRecord>(bytes) {
        let written = serde_json::to_vec(&record).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<NodeRecord>(&written).ok(), Some(record), "a record reads back otherwise");
    }
}

/// A batch of events.
pub fn event_batch(bytes: &[u8]) {
    // Also as a frame that somebody has packed: bounded, whatever it claims.
    if let Ok(unpacked) = message::event::unpack(bytes, Some(message::event::ZSTD)) {
        assert!(unpacked.len() <= message::event::UNPACKED_BYTES_MAX, "more was unpacked than may be");
    }
    let Ok(batch) = EventBatch::parse(bytes) else { return };
    assert_eq!(usize::try_from(batch.head.count), Ok(batch.records.len()), "a batch with another count was read");
    let _ = batch.subject();
    assert_eq!(EventBatch::parse(&batch.to_bytes()), Ok(batch), "a batch reads back as another one");
}

/// Subjects of all kinds.
pub fn subject(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(subject) = text.parse::<Subject>() {
        assert_eq!(subject.to_string(), text, "a subject is written otherwise");
    }
    if let Ok(subject) = text.parse::<ReplySubject>() {
        assert_eq!(subject.to_string(), text, "a reply's subject is written otherwise");
    }
    if let Ok(subject) = text.parse::<OutputSubject>() {
        assert_eq!(subject.to_string(), text, "an output's subject is written otherwise");
    }
}

/// Names, ids, times, patterns, durations, sizes, keys.
pub fn name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = NodeName::new(text) {
        let safe = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        assert!(safe && name.as_str() == text, "a node's name could leave its directory");
    }
    for token in [Token::method(text), Token::domain(text)].into_iter().flatten() {
        let safe = text.bytes().all(|byte| byte.is_ascii_graphic() && !b".*>".contains(&byte));
        assert!(safe && token.as_str() == text, "a token could be a wildcard");
    }
    if let Ok(job) = JobId::parse(text) {
        assert_eq!(job.as_str(), text);
    }
    if let Ok(order) = text.parse::<OrderId>() {
        assert_eq!(order.to_string(), text);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        let _ = (time.to_string(), time.plus(std::time::Duration::MAX), time.since(Timestamp::from_ms(i64::MIN)));
    }
    if let (Ok(patterns), Ok(node)) = (Pattern::parse_list(text), NodeName::new("ship1")) {
        let _ = patterns.iter().filter(|pattern| pattern.matches(&node)).count();
    }
    let _ = units::parse_duration(text).map(units::human_duration);
    let _ = units::parse_size(text);
    if let Ok(key) = PublicKey::parse(text) {
        assert!(key.verify(b"", "").is_err(), "nothing is no signature");
    }
}

/// An expression over nodes, judged by facts that are read from the same bytes; and facts alone.
pub fn target(bytes: &[u8]) {
    let (first, rest) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let told = Facts::parse(rest).map(|told| told.facts).unwrap_or_default();
    let Ok(expression) =
        std::str::from_utf8(first).map_err(drop).and_then(|text| Expression::parse(text).map_err(drop))
    else {
        return;
    };
    let labels = Labels::new();
    let known = Known {
        name: "ship1",
        state: NodeState::Online,
        reason: None,
        labels: &labels,
        facts: &told,
        version: None,
        age_s: None,
        uptime_s: None,
        counts: None,
    };
    let held = expression.holds(&known, &mut Steps::default());
    // With every bracket written, it may be too long or too deep; else it means the same.
    if let (Ok(again), Ok(held)) = (Expression::parse(&expression.explicit()), held) {
        assert_eq!(again.holds(&known, &mut Steps::default()), Ok(held), "an expression reads back as another one");
    }
    let _ = expression.why(&known);
}

/// A file of credentials, and the token in it.
pub fn creds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(creds) = Creds::parse(text) {
        let again = Creds::parse(&creds.render());
        assert_eq!(again.ok().map(|again| again.jwt().to_owned()).as_deref(), Some(creds.jwt()), "another token");
        let _ = (creds.key().is_ok(), creds.token().is_ok());
    }
    let _ = bus::Credentials::parse(text, "a test").is_ok();
    let _ = claims::read::<claims::User>(text.trim()).is_ok();
}

/// A sealed list of operators.
pub fn trust(bytes: &[u8]) {
    if let Ok(sealed) = serde_json::from_slice::<SealedDocument>(bytes)
        && let Ok(trust) = Trust::open(&sealed, &sealed.seal.key)
    {
        assert!(sealed.seal.verify(sealed.document.as_bytes()).is_ok(), "what is not signed was opened");
        let _ = trust.operators.first().and_then(|operator| trust.operator(&operator.key));
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(seal) = Seal::from_headers(text.lines().next(), text.lines().nth(1)) {
        let _ = seal.verify(bytes);
    }
}

/// What passes at an enrolment by token: the token itself, a knock, its answer, a token's record.
pub fn admission(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(token) = EnrolToken::parse(&text) {
        let written = token.to_text().unwrap_or_default();
        assert_eq!(EnrolToken::parse(&written).as_ref(), Ok(&token), "a token reads back as another one");
        assert!(token.key().is_ok(), "a token without a key was read");
    }
    let says = serde_json::from_slice::<Knock>(bytes);
    if let Ok(said) = &says
        && let Ok(knock) = Knock::open(bytes, &said.subject(), &said.key)
    {
        assert_eq!(knock.subject().split('.').count(), 3, "a knock could stand elsewhere");
        assert!(Knock::open(bytes, "knock.x.y", &knock.key).is_err(), "a knock was taken from a foreign place");
    }
    if let Ok(record) = serde_json::from_slice::<TokenRecord>(bytes) {
        let _ = record.left(Timestamp::from_ms(0));
        let written = serde_json::to_vec(&record).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<TokenRecord>(&written).ok(), Some(record), "a record reads back otherwise");
    }
    if let Ok(answer) = serde_json::from_slice::<Admission>(bytes) {
        let written = serde_json::to_vec(&answer).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Admission>(&written).ok(), Some(answer), "an answer reads back otherwise");
    }
}

/// A list of operators with the chain of roots, as nodes and operators read it.
pub fn succession(bytes: &[u8]) {
    let Ok(offered) = serde_json::from_slice::<SealedTrust>(bytes) else { return };
    let written = serde_json::to_vec(&offered).unwrap_or_default();
    assert_eq!(serde_json::from_slice::<SealedTrust>(&written).ok(), Some(offered.clone()), "it reads back otherwise");
    // Whoever names the fleet in the first link is taken at his word: it is the chain behind it that is looked at.
    let fleet = offered.roots.first().map_or(&offered.sealed, |link| &link.sealed).seal.key.clone();
    if let Ok(roots) = Lineage::parse(fleet.clone(), &offered.roots) {
        assert_eq!(
            Lineage::parse(fleet.clone(), &roots.links()),
            Ok(roots.clone()),
            "a chain reads back as another one"
        );
        assert_eq!(roots.join(&Lineage::new(fleet)), Ok(roots), "a chain goes back");
    }
    if let Ok((_, roots)) = Lineage::new(offered.sealed.seal.key.clone()).open(&offered) {
        assert_eq!(*roots.root(), offered.sealed.seal.key, "somebody else's list was opened");
    }
}

/// A new token, and the receipt for one.
pub fn renewal(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Whose it is stands in it; whoever it is not for must not read it.
    let key = text.split("\"key\":\"").nth(1).and_then(|rest| PublicKey::parse(rest.get(..56)?).ok());
    let Some(key) = key else { return };
    if let Ok(renewal) = Renewal::parse(bytes, &key) {
        let written = serde_json::to_vec(&renewal).unwrap_or_default();
        assert_eq!(Renewal::parse(&written, &key), Ok(renewal.clone()), "a renewal reads back as another one");
        assert_eq!(renewal.key, key, "a renewal of somebody else was read");
        let _ = claims::read::<claims::User>(&renewal.jwt).is_ok();
    }
    if let Ok(taken) = Taken::parse(bytes, &key) {
        assert_eq!(taken.key, key, "a receipt of somebody else was read");
    }
}

/// A policy as it is signed, and a label selector.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(policy) = Policy::parse(text) {
        assert_eq!(policy.to_text().as_deref(), Ok(text), "a policy is written in two ways");
        assert!(policy.rules.check().is_ok(), "rules that make no sense were read");
        let (asked, labels) = (Asked::of("shellcommand", &serde_json::json!({"argv": ["ls"]})), Labels::new());
        if let Ok(node) = NodeName::new("ship1") {
            let request = Request {
                operator: Some("anna"),
                roles: &[],
                node: &node,
                labels: Some(&labels),
                method: "shellcommand",
                domain: "operatingsystem",
                asked: &asked,
                only_user: None,
                own_user: None,
                now: Timestamp::from_ms(i64::MAX),
            };
            let known = decide(&policy, &request).is_denied();
            let unknown = decide(&policy, &Request { labels: None, ..request }).is_denied();
            assert!(unknown || !known, "who knows less allows more");
        }
    }
    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(Selector::parse(&selector.to_string()), Ok(selector), "a selector reads back otherwise");
    }
}

/// The record of a job, and a chunk of its orders.
pub fn job_record(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<JobRecord>(bytes) {
        let written = serde_json::to_vec(&record).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<JobRecord>(&written).ok(), Some(record), "a job reads back otherwise");
    }
    if let Ok(chunk) = serde_json::from_slice::<OrderChunk>(bytes) {
        for sealed in &chunk.orders {
            order(sealed.order.as_bytes());
        }
    }
}

/// An entry of the audit log, and a line of its export.
pub fn audit(bytes: &[u8]) {
    if let Ok(entry) = message::audit::Entry::parse(bytes) {
        assert_eq!(entry.seq == 1, entry.prev.is_none(), "a chain begins in its middle");
        if let Ok(written) = entry.to_bytes() {
            assert_eq!(message::audit::Entry::parse(&written), Ok(entry), "an entry reads back as another one");
        }
    }
    if let Ok(stored) = serde_json::from_slice::<message::audit::Stored>(bytes)
        && let Ok(opened) = message::audit::open(&stored)
    {
        let held = stored.seal.as_ref().is_some_and(|seal| seal.verify(stored.entry.as_bytes()).is_ok());
        assert!(held && stored.subject.contains(opened.key.as_str()), "what is not signed was opened");
    }
}

/// What this kit itself reads of a broker.
pub fn frames(bytes: &[u8]) {
    let (mut whole, mut pieces) = (Frames::default(), Frames::default());
    let once: usize = whole.push(bytes).iter().map(|frame| frame.bytes.len()).sum();
    let pieced: usize = bytes.chunks(7).flat_map(|piece| pieces.push(piece)).map(|frame| frame.bytes.len()).sum();
    assert!(once <= bytes.len() && pieced <= bytes.len(), "more came out than went in");
}

/// What parsers stumble over.
const MORSELS: [&[u8]; 16] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b",",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\xff",
    b"\0",
    b".",
    b"\r\n",
    b"0001-01-01T00:00:00Z",
];

/// Makes another input of `seed`.
pub fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.between(1, 6) {
        let at = random.below(bytes.len().max(1)).min(bytes.len());
        let to = (at + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.bits().to_le_bytes()[0],
            2 => drop(bytes.drain(at..to)),
            3 => {
                let piece = bytes[at..to].to_vec();
                let times = random.below(40);
                bytes.splice(at..at, piece.repeat(times));
            }
            4 => bytes.truncate(at),
            5 => {
                let from = random.below(other.len().max(1)).min(other.len());
                let piece = other[from..(from + random.below(64)).min(other.len())].to_vec();
                bytes.splice(at..to, piece);
            }
            6 => {
                let deep = vec![b"[{"[random.below(2)]; random.below(300)];
                bytes.splice(at..at, deep);
            }
            _ => drop(bytes.splice(at..to, MORSELS[random.below(MORSELS.len())].iter().copied())),
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}
