//! The history of how a node stood: what it tells when that changes, and the timeline that follows from it. Pure.
//!
//! A node that is away cannot say so. So it tells it afterwards: each [`Change`] carries the life sign that stood before
//! it, with the broker's time of storing it. From the two follows what every reader would have seen in between
//! ([`crate::Vitality::judge`]). Nothing is guessed: where nobody listened, or nobody tells, it is `unknown`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;
use crate::name::NodeName;
use crate::registry::{Condition, INTERVALS_UNTIL_OFFLINE, LifeSign, NodeState};
use crate::time::Timestamp;

/// The bucket keeps so many changes of a node; older ones go.
pub const CHANGES_KEPT: i64 = 64;
/// So many bytes of a reason are told in a change.
pub const REASON_BYTES_MAX: usize = 400;

/// What a node tells when it stands in another way than before, at key `<node>` of bucket `HISTORY`. Signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The wire's version.
    pub v: u8,
    /// Always `change`.
    pub kind: ChangeKind,
    /// The node.
    pub node: NodeName,
    /// Its run.
    pub boot: InstanceId,
    /// When the broker stored the life sign that says it.
    pub since: Timestamp,
    /// What that sign says.
    pub condition: Condition,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The interval of that sign, in milliseconds.
    pub interval_ms: u64,
    /// The sign that stood there before, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<Before>,
    /// When the broker last began with an empty memory; without, nobody has marked it, and silence proves nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub booted: Option<Timestamp>,
}

/// The last life sign before a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// When the broker stored it.
    pub seen: Timestamp,
    /// What it said.
    pub condition: Condition,
    /// Why it was degraded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Its interval, in milliseconds.
    pub interval_ms: u64,
}

/// The `kind` of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The only one.
    Change,
}

impl Before {
    /// What a sign that the broker stored at `seen` was.
    pub fn of(sign: &LifeSign, seen: Timestamp) -> Self {
        let reason = sign.reason.as_deref().map(cut);
        Self { seen, condition: sign.condition, reason, interval_ms: sign.interval_ms }
    }

    /// From when on its silence is more than being late.
    pub fn due(&self) -> Timestamp {
        self.seen.plus(Duration::from_millis(self.interval_ms).saturating_mul(INTERVALS_UNTIL_OFFLINE))
    }
}

/// As much of a reason as is kept.
pub fn cut(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default().to_owned()
}

/// A time during which a node stood in one way; it ends with the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spell {
    /// How it stood.
    pub state: NodeState,
    /// Why, where the state alone does not say it.
    pub reason: Option<String>,
    /// Since when, by the broker's clock.
    pub since: Timestamp,
}

/// The broker's time of reading, and when it last began with an empty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Its time now.
    pub now: Timestamp,
    /// Since when it has listened without a break.
    pub booted: Timestamp,
}

/// How a node has stood, the oldest first: from what it told (each with the broker's time of storing, in their order),
/// when and by whom it was revoked, and the life sign that stands there now.
pub fn timeline(
    revoked: Option<(Timestamp, &str)>,
    told: &[(Change, Timestamp)],
    sign: Option<(&LifeSign, Timestamp)>,
    listening: Listening,
) -> Vec<Spell> {
    let mut line = Line::default();
    let mut last: Option<Before> = None;
    for (change, stored) in told {
        // A node cannot have known of a sign that came later than what it wrote of it.
        let since = change.since.min(*stored);
        match (&change.before, last.as_ref()) {
            (Some(before), _) if before.seen <= since => line.silence(before, since, change.booted),
            (_, Some(last)) => line.unobserved(last, since, "what it said before this was not kept"),
            _ => {}
        }
        let now = Before {
            seen: since,
            condition: change.condition,
            reason: change.reason.clone(),
            interval_ms: change.interval_ms,
        };
        line.says(&now);
        last = Some(now);
    }
    if let Some((sign, seen)) = sign {
        line.silence(&Before::of(sign, seen), listening.now, Some(listening.booted));
    }
    if let Some((at, by)) = revoked {
        line.spells.retain(|spell| spell.since < at);
        line.push(NodeState::Revoked, Some(format!("{by} revoked it")), at);
    }
    line.spells
}

/// A timeline that is being written.
#[derive(Default)]
struct Line {
    spells: Vec<Spell>,
}

impl Line {
    /// A sign was stored: so it stood then.
    fn says(&mut self, sign: &Before) {
        let (state, reason) = match sign.condition {
            Condition::Up => (NodeState::Online, None),
            Condition::Degraded => (NodeState::Degraded, sign.reason.clone()),
            Condition::Bye => (NodeState::Offline, Some("it said goodbye".to_owned())),
        };
        self.push(state, reason, sign.seen);
    }

    /// Nothing was stored between `sign` and `until`.
    fn silence(&mut self, sign: &Before, until: Timestamp, booted: Option<Timestamp>) {
        self.says(sign);
        if sign.condition == Condition::Bye || until <= sign.due() {
            return;
        }
        let allowed = sign.due().since(sign.seen);
        match booted {
            Some(booted) if sign.seen >= booted && until.since(booted) > allowed => {
                self.push(NodeState::Offline, Some("it was silent for three intervals".to_owned()), sign.due());
            }
            Some(_) => self.unobserved(sign, until, "the broker was restarted in between"),
            None => self.unobserved(sign, until, "whether the broker listened is not known"),
        }
    }

    /// After `sign`, nobody can say how it stood until `until`.
    fn unobserved(&mut self, sign: &Before, until: Timestamp, why: &str) {
        if until > sign.due() {
            self.push(NodeState::Unknown, Some(why.to_owned()), sign.due());
        }
    }

    /// Goes on with another state; what is older than what stands there already, or the same, is passed over.
    fn push(&mut self, state: NodeState, reason: Option<String>, since: Timestamp) {
        if let Some(last) = self.spells.last()
            && (since < last.since || (last.state == state && last.reason == reason))
        {
            return;
        }
        self.spells.push(Spell { state, reason, since });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn before(condition: Condition, seen: i64) -> Before {
        let reason = (condition == Condition::Degraded).then(|| "the disk is full".to_owned());
        Before { seen: Timestamp::from_ms(seen), condition, reason, interval_ms: 1000 }
    }

    fn change(condition: Condition, since: i64, before: Option<Before>, booted: Option<i64>) -> (Change, Timestamp) {
        let at = Timestamp::from_ms(since);
        let change = Change {
            v: 1,
            kind: ChangeKind::Change,
            node: NodeName::new("ship1").unwrap(),
            boot: InstanceId::from_bytes([2; 16]),
            since: at,
            condition,
            reason: (condition == Condition::Degraded).then(|| "the disk is full".to_owned()),
            interval_ms: 1000,
            before,
            booted: booted.map(Timestamp::from_ms),
        };
        (change, at.plus(Duration::from_millis(5)))
    }

    fn told(changes: &[(Change, Timestamp)], revoked: Option<i64>) -> Vec<(&'static str, i64)> {
        let listening = Listening { now: Timestamp::from_ms(1_000_000), booted: Timestamp::from_ms(0) };
        let line = timeline(revoked.map(|at| (Timestamp::from_ms(at), "admin")), changes, None, listening);
        line.iter().map(|spell| (spell.state.as_str(), spell.since.as_ms())).collect()
    }

    #[test]
    fn what_a_node_tells_afterwards_shows_when_it_was_away() {
        use Condition::{Bye, Degraded, Up};
        let line = [
            change(Up, 10_000, None, Some(0)),
            change(Degraded, 20_000, Some(before(Up, 19_000)), Some(0)),
            // It was killed after it had said that it was well again, and came back.
            change(Up, 50_000, Some(before(Up, 30_000)), Some(0)),
            change(Up, 70_000, Some(before(Bye, 60_000)), Some(0)),
            // A restart so short that nobody could notice.
            change(Up, 72_000, Some(before(Up, 71_000)), Some(0)),
        ];
        let expected = [
            ("online", 10_000),
            ("degraded", 20_000),
            ("online", 30_000),
            ("offline", 33_000),
            ("online", 50_000),
            ("offline", 60_000),
            ("online", 70_000),
        ];
        assert_eq!(told(&line, None), expected);
        assert_eq!(told(&line, Some(55_000)).last(), Some(&("revoked", 55_000)));
    }

    #[test]
    fn where_nobody_listened_it_is_unknown() {
        use Condition::Up;
        let first = change(Up, 10_000, None, Some(0));
        for (gone, booted) in [(Some(before(Up, 20_000)), Some(25_000)), (Some(before(Up, 20_000)), None)] {
            let line = [first.clone(), change(Up, 90_000, gone, booted)];
            assert_eq!(told(&line, None), [("online", 10_000), ("unknown", 23_000), ("online", 90_000)]);
        }
        // The store has lost the sign before.
        let line = [first, change(Up, 90_000, None, Some(0))];
        assert_eq!(told(&line, None), [("online", 10_000), ("unknown", 13_000), ("online", 90_000)]);
    }

    #[test]
    fn the_present_sign_ends_the_timeline() {
        let listening = Listening { now: Timestamp::from_ms(100_000), booted: Timestamp::from_ms(0) };
        let mut sign: LifeSign = serde_json::from_value(serde_json::json!({
            "v": 1, "kind": "presence", "node": "ship1", "instance": "11111111111111111111111111111111",
            "boot": "22222222222222222222222222222222", "condition": "up", "interval_ms": 1000,
            "at": "2026-11-22T12:00:00.000Z", "version": "0.1.0", "uptime_s": 1, "floor": 0, "processes": 1,
            "running": 0, "waiting": 0, "outbox": 0
        }))
        .unwrap();
        let line = [change(Condition::Up, 10_000, None, Some(0))];
        let end = |sign: &LifeSign, seen| {
            let line = timeline(None, &line, Some((sign, Timestamp::from_ms(seen))), listening);
            line.last().map(|spell| (spell.state, spell.since.as_ms()))
        };
        assert_eq!(end(&sign, 99_000), Some((NodeState::Online, 10_000)));
        assert_eq!(end(&sign, 50_000), Some((NodeState::Offline, 53_000)));
        sign.condition = Condition::Bye;
        assert_eq!(end(&sign, 50_000), Some((NodeState::Offline, 50_000)));
    }

    proptest! {
        #[test]
        fn a_timeline_goes_forward_and_never_repeats_itself(
            steps in prop::collection::vec((0_u8..3, 0_i64..50_000, prop::option::of(0_i64..50_000), prop::option::of(0_i64..50_000)), 0..20),
        ) {
            let condition = |n: u8| [Condition::Up, Condition::Degraded, Condition::Bye][usize::from(n)];
            let line: Vec<_> = steps
                .iter()
                .map(|(n, since, seen, booted)| change(condition(*n), *since, seen.map(|seen| before(condition(*n), seen)), *booted))
                .collect();
            let listening = Listening { now: Timestamp::from_ms(60_000), booted: Timestamp::from_ms(0) };
            let spells = timeline(None, &line, None, listening);
            for pair in spells.windows(2) {
                prop_assert!(pair[0].since <= pair[1].since);
                prop_assert!((pair[0].state, &pair[0].reason) != (pair[1].state, &pair[1].reason));
            }
        }
    }
}
