//! What time it is, for the purpose of expiry, when clocks lie. The rule; pure.
//!
//! A unit's own clock may be wrong by days: by it, valid orders would be dropped and expired ones run. So expiry goes
//! by the broker's clock: read at each connect and carried on by a clock that nobody sets; never earlier than the
//! moment at which the broker stored the order; and never earlier than the latest time that an operator signed
//! (the watermark), which no broker can turn back.

use std::time::Duration;

use message::Timestamp;

pub(crate) use bus::clock::BrokerTime as FleetTime;

/// By how much a signed time may be ahead of every clock that is known here and still be believed: clocks that are set
/// by NTP, and messages that take their time, are no further apart.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// The time by which an order counts as expired.
pub(crate) fn now_for_expiry(broker: Option<Timestamp>, stored_at: Timestamp, watermark: Timestamp) -> Timestamp {
    broker.unwrap_or_default().max(stored_at).max(watermark)
}

/// Whether an order's signed time may move the watermark. The clock of who signed it may be wrong as well: a time that is
/// ahead of the broker's clock *and* of this node's own is a wrong one, and by it valid orders of others would count as
/// expired. So it takes two of three clocks to move the time.
pub(crate) fn may_move_watermark(
    created: Timestamp,
    watermark: Timestamp,
    broker: Option<Timestamp>,
    stored_at: Timestamp,
    own: Timestamp,
) -> bool {
    created > watermark && created <= broker.unwrap_or_default().max(stored_at).max(own).plus(AHEAD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_ms(1_000_000_000);

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(NOON.as_ms() + ms)
    }

    const DAY: i64 = 24 * 3600 * 1000;

    #[test]
    fn the_nodes_own_clock_plays_no_part() {
        let time = FleetTime::default();
        assert_eq!((time.now(), time.error_ms(NOON)), (None, None));
        time.read(NOON);
        let now = time.now().unwrap();
        assert!(now >= NOON && now < at(60_000));
        for own in [-DAY, 0, DAY] {
            // What it is now, and not what it was when the broker was asked: a clock may be set meanwhile.
            let error = time.error_ms(at(own)).unwrap();
            assert!(error <= own && error > own - 60_000, "{error}");
        }
    }

    #[test]
    fn it_takes_two_of_three_clocks_to_move_the_time() {
        let moves =
            |signed, broker, own| may_move_watermark(at(signed), at(-2 * DAY), Some(at(broker)), at(broker), at(own));
        assert!(moves(0, 0, 0) && moves(0, 0, -DAY) && moves(0, 0, DAY) && moves(-DAY, 0, 0));
        assert!(moves(0, -DAY, 0), "a broker whose clock was turned back");
        assert!(!moves(DAY, 0, 0), "an operator whose clock is a day ahead");
        assert!(!moves(DAY, 0, -DAY));
        assert!(!may_move_watermark(at(0), at(0), None, at(0), at(0)), "it never falls");
    }

    #[test]
    fn time_is_never_earlier_than_what_was_stored_or_signed() {
        assert_eq!(now_for_expiry(None, at(5), at(3)), at(5));
        assert_eq!(now_for_expiry(Some(at(1)), at(5), at(9)), at(9), "a broker that turns its clock back");
        assert_eq!(now_for_expiry(Some(at(7)), at(5), at(3)), at(7));
    }
}
