//! Whether somebody else lives under this node's name and key: a cloned disk, a restored snapshot, a double start.
//! The decisions; pure.
//!
//! Both would take the same orders. So each that finds out stops taking and beginning any, says `degraded: cloned`,
//! and goes on only when the other has been silent for as long as makes a node offline.

use std::time::Duration;

use message::registry::{Condition, INTERVALS_UNTIL_OFFLINE};
use message::{InstanceId, LifeSign};

/// What a life sign under this node's name, signed with its key, means for an agent that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nobody else can be alive.
    Free,
    /// It may be alive: by then it would have spoken again.
    Wait(Duration),
    /// Another journal lives under this name.
    Taken,
}

/// How long after its next sign is due a run counts as gone, when it is waited for.
const LATE: Duration = Duration::from_secs(1);

/// Judges the last sign, `age` old by the broker's clock, at the start of a run with journal `instance` at `seat`.
pub(crate) fn claim(sign: &LifeSign, age: Duration, instance: InstanceId, seat: &str) -> Claim {
    let interval = Duration::from_millis(sign.interval_ms);
    if sign.condition == Condition::Bye {
        return Claim::Free;
    }
    if sign.instance != instance {
        let alive = age <= interval.saturating_mul(INTERVALS_UNTIL_OFFLINE);
        return if alive { Claim::Taken } else { Claim::Free };
    }
    // This run has the lock of that very file on that very machine: whoever had it is dead. But if it had heard of
    // another, that one may live.
    if sign.seat.as_deref() == Some(seat) && !says_cloned(sign) {
        return Claim::Free;
    }
    // One sign may have been late or lost; the second is not.
    match interval.saturating_mul(2).checked_sub(age) {
        Some(due) => Claim::Wait(due + LATE),
        None => Claim::Free,
    }
}

/// Whether a sign that stands where our own should stand is that of another living run.
pub(crate) fn is_twin(sign: &LifeSign, boot: InstanceId) -> bool {
    sign.boot != boot && sign.condition != Condition::Bye
}

/// How every complaint about a clone begins.
const CLONED: &str = "cloned:";

fn says_cloned(sign: &LifeSign) -> bool {
    sign.reason.as_deref().is_some_and(|reason| reason.starts_with(CLONED))
}

/// What the node says of itself.
pub(crate) fn complaint(sign: &LifeSign) -> String {
    format!(
        "{CLONED} a second agent lives under this name and key (run {}); neither takes orders, so that none is run twice: \
         stop one of them, and enrol it under a name of its own",
        sign.boot
    )
}

/// For how long the other must be silent before this one goes on.
pub(crate) fn silence(interval: Duration) -> Duration {
    interval.saturating_mul(INTERVALS_UNTIL_OFFLINE)
}

/// The seat of the journal in `dir`: the file, and the kernel that has run without a break since.
pub(crate) fn seat(dir: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = std::fs::metadata(dir.join("journal.redb")).map(|file| format!("{}:{}", file.dev(), file.ino()));
    match file {
        Ok(file) if !boot.is_empty() => format!("{}/{file}", boot.trim()),
        // Without knowing, no two runs have the same.
        _ => bus::clock::instance_id().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use message::registry::LifeSignKind;
    use message::{NodeName, Timestamp};

    use super::*;

    fn sign(condition: Condition) -> LifeSign {
        LifeSign {
            v: 1,
            kind: LifeSignKind::Presence,
            node: NodeName::new("ship1").unwrap(),
            instance: InstanceId::from_bytes([1; 16]),
            boot: InstanceId::from_bytes([2; 16]),
            seat: Some("here".into()),
            condition,
            reason: None,
            interval_ms: 15_000,
            at: Timestamp::from_ms(0),
            version: "0.1.0".into(),
            uptime_s: 1,
            floor: 0,
            processes: 1,
            running: 0,
            waiting: 0,
            outbox: 0,
            limits: Vec::new(),
            audit: None,
            rtt_ms: None,
        }
    }

    fn judged(sign: &LifeSign, age_s: u64, instance: u8, seat: &str) -> Claim {
        claim(sign, Duration::from_secs(age_s), InstanceId::from_bytes([instance; 16]), seat)
    }

    #[test]
    fn a_restart_is_not_a_clone() {
        assert_eq!(judged(&sign(Condition::Up), 1, 1, "here"), Claim::Free);
        assert_eq!(judged(&sign(Condition::Bye), 1, 1, "elsewhere"), Claim::Free);
    }

    #[test]
    fn the_same_journal_elsewhere_waits_until_the_other_would_have_spoken() {
        assert_eq!(judged(&sign(Condition::Up), 5, 1, "elsewhere"), Claim::Wait(Duration::from_secs(26)));
        assert_eq!(judged(&sign(Condition::Up), 31, 1, "elsewhere"), Claim::Free);
        let old = LifeSign { seat: None, ..sign(Condition::Up) };
        assert_eq!(judged(&old, 30, 1, "here"), Claim::Wait(LATE));
    }

    #[test]
    fn who_had_heard_of_a_clone_listens_again_after_a_restart() {
        let mut halted = sign(Condition::Degraded);
        assert_eq!(judged(&halted, 5, 1, "here"), Claim::Free);
        halted.reason = Some(complaint(&sign(Condition::Up)));
        assert_eq!(judged(&halted, 5, 1, "here"), Claim::Wait(Duration::from_secs(26)));
    }

    #[test]
    fn another_journal_is_refused_while_the_first_may_live() {
        assert_eq!(judged(&sign(Condition::Up), 45, 9, "here"), Claim::Taken);
        assert_eq!(judged(&sign(Condition::Degraded), 46, 9, "here"), Claim::Free);
        assert_eq!(judged(&sign(Condition::Bye), 1, 9, "here"), Claim::Free);
    }
}
