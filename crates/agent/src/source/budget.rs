//! How many bytes of events may leave in an hour, and what goes first when they are few. Pure.

use journal::Lane;

const HOUR_MS: f64 = 3_600_000.0;
/// What a message costs on the link beside its payload: headers with the signature, and the broker's receipt.
const MESSAGE_BYTES: u64 = 600;

/// A bucket of bytes. A quarter of the hour's may go at once, the rest comes in over the hour: so no hour has more, wherever it
/// begins. Of what is in it, a quarter is for urgent events alone, and another one not for those of low priority.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Per hour; `None`: as many as come.
    bytes: Option<u64>,
    level: f64,
    at_ms: u64,
}

/// What may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first one of this lane.
    Go(Lane),
    /// Nothing for so long.
    Wait {
        /// Milliseconds.
        ms: u64,
    },
    /// Nothing is there.
    Nothing,
}

impl Budget {
    pub(crate) fn new(bytes: Option<u64>) -> Self {
        let mut budget = Self { bytes, level: 0.0, at_ms: 0 };
        budget.level = budget.most();
        budget
    }

    /// What may go at once.
    fn most(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a budget is far from 2^52 bytes")]
        self.bytes.map_or(0.0, |bytes| bytes as f64 / 4.0)
    }

    /// For how many milliseconds a message of `lane` with a payload of so many bytes has to wait; 0: not at all. `now_ms` is of a
    /// clock that does not go back. One that is larger than what may go at once goes when all of that is there, and others wait then.
    fn wait_ms(&mut self, lane: Lane, payload: usize, now_ms: u64) -> u64 {
        if self.bytes.is_none() {
            return 0;
        }
        let (most, per_ms) = (self.most(), self.most() * 3.0 / HOUR_MS);
        #[allow(clippy::cast_precision_loss, reason = "an agent does not run for 2^52 milliseconds")]
        let passed = now_ms.saturating_sub(std::mem::replace(&mut self.at_ms, now_ms)) as f64;
        self.level = (self.level + passed * per_ms).min(most);
        let spared = match lane {
            Lane::Urgent => 0.0,
            Lane::Normal => most / 4.0,
            Lane::Low => most / 2.0,
        };
        let missing = cost(payload).min(most - spared) + spared - self.level;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a wait of an hour or so, and not below 0"
        )]
        if missing > 0.0 { (missing / per_ms).ceil() as u64 } else { 0 }
    }

    /// Which of the messages that wait, each with its lane and the bytes of its payload, the most urgent first, may leave; or for how
    /// many milliseconds none may. What is less urgent never goes before what waits: it would go on using up what that waits for.
    pub(crate) fn choose(&mut self, waiting: impl IntoIterator<Item = (Lane, usize)>, now_ms: u64) -> Choice {
        match waiting.into_iter().next() {
            None => Choice::Nothing,
            Some((lane, payload)) => match self.wait_ms(lane, payload, now_ms) {
                0 => Choice::Go(lane),
                ms => Choice::Wait { ms },
            },
        }
    }

    /// A message with a payload of so many bytes has left.
    pub(crate) fn spend(&mut self, payload: usize) {
        if self.bytes.is_some() {
            self.level -= cost(payload);
        }
    }
}

fn cost(payload: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a message has less than 2^52 bytes")]
    let bytes = (payload as u64).saturating_add(MESSAGE_BYTES) as f64;
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn without_a_budget_nothing_waits() {
        let mut budget = Budget::new(None);
        budget.spend(1 << 30);
        assert_eq!(budget.wait_ms(Lane::Low, 1 << 30, 0), 0);
    }

    #[test]
    fn what_is_urgent_goes_when_all_else_waits() {
        let mut budget = Budget::new(Some(400_000));
        let (mut low, mut normal, mut urgent) = (0, 0, 0);
        while budget.wait_ms(Lane::Low, 400, 0) == 0 {
            budget.spend(400);
            low += 1;
        }
        while budget.wait_ms(Lane::Normal, 400, 0) == 0 {
            budget.spend(400);
            normal += 1;
        }
        while budget.wait_ms(Lane::Urgent, 400, 0) == 0 {
            budget.spend(400);
            urgent += 1;
        }
        assert_eq!((low, normal, urgent), (50, 25, 25), "of 100 kB that may go at once");
        // 300 kB come in over the hour: a kilobyte in 12 s.
        assert_eq!(budget.wait_ms(Lane::Urgent, 400, 0), 12_000);
        assert_eq!(budget.wait_ms(Lane::Urgent, 400, 12_000), 0);
        assert_eq!(budget.wait_ms(Lane::Normal, 400, 12_000), 12_000 * 25);
    }

    #[test]
    fn what_is_too_large_for_the_bucket_goes_when_it_is_full() {
        let mut budget = Budget::new(Some(400_000));
        assert_eq!(budget.wait_ms(Lane::Low, 500_000, 0), 0);
        budget.spend(500_000);
        let wait = budget.wait_ms(Lane::Urgent, 400, 0);
        assert!(wait > HOUR, "{wait}");
        assert_eq!(budget.wait_ms(Lane::Low, 500_000, 10 * HOUR), 0);
    }

    #[test]
    fn small_ones_do_not_keep_a_large_urgent_one_waiting_for_ever() {
        let mut budget = Budget::new(Some(400_000));
        budget.spend(60_000);
        let waiting = [(Lane::Urgent, 90_000), (Lane::Normal, 100), (Lane::Low, 100)];
        let Choice::Wait { ms } = budget.choose(waiting, 0) else { panic!("there is not so much") };
        assert_eq!(budget.choose(waiting[1..].iter().copied(), 0), Choice::Go(Lane::Normal), "but for the urgent one");
        assert_eq!(budget.choose(waiting, ms), Choice::Go(Lane::Urgent));
        assert_eq!(budget.choose([], ms), Choice::Nothing);
    }

    proptest! {
        #[test]
        fn no_hour_has_more_than_its_bytes(
            tries in prop::collection::vec((0_u64..200_000, 0_usize..20_000, 0_usize..3), 1..300),
            begins in 0_u64..HOUR,
        ) {
            let bytes = 400_000;
            let mut budget = Budget::new(Some(bytes));
            let (mut now, mut sent) = (0, Vec::new());
            for (later, payload, lane) in tries {
                now += later;
                if budget.wait_ms(Lane::ALL[lane], payload, now) == 0 {
                    budget.spend(payload);
                    sent.push((now, payload as u64 + MESSAGE_BYTES));
                }
            }
            let hour = begins..begins + HOUR;
            let spent: u64 = sent.iter().filter(|(at, _)| hour.contains(at)).map(|(_, bytes)| bytes).sum();
            prop_assert!(spent <= bytes, "{spent}");
        }
    }
}
