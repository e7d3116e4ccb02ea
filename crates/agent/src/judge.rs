//! The decision about a message on a node's subject: discard, refuse or take. Pure.
//!
//! Order of checks: signature over the exact bytes, signer, body, addressee, time. Nothing is parsed before its
//! signature holds, and only what a trusted operator signed is answered: an answer to anybody else could be
//! aimed, or could contradict the fate of a genuine order whose id was copied.

use message::{Addressee, Operator, Order, Revoked, Seal, SignatureError, State, Timestamp, Trust, order::OrderError};

/// Why a message is discarded without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    /// No signature, or one that does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The signature holds, but its key may not order here.
    #[error("{key} has signed it, who is not an operator of this fleet")]
    Stranger {
        /// The key.
        key: message::PublicKey,
    },
    /// Signed by an operator, but not an order for this node.
    #[error(transparent)]
    Order(#[from] OrderError),
}

impl Discard {
    /// The word that it is counted under.
    pub const fn counter(&self) -> &'static str {
        match self {
            Self::Signature(SignatureError::Missing) => "unsigned",
            Self::Signature(_) => "wrongly_signed",
            Self::Stranger { .. } => "stranger",
            Self::Order(OrderError::Subject { .. } | OrderError::Key { .. }) => "misaddressed",
            Self::Order(OrderError::TooLarge { .. }) => "oversized",
            Self::Order(_) => "malformed",
        }
    }
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Log, count, and nothing else.
    Discard(Discard),
    /// Record and report that it was not run.
    Refuse {
        /// The order.
        order: Box<Order>,
        /// `rejected` or `expired`.
        state: State,
        /// Why: a sentence.
        reason: String,
    },
    /// Record, report and run.
    Take {
        /// The order.
        order: Box<Order>,
        /// The operator who signed it.
        operator: Operator,
    },
}

/// What a decision rests on besides the message itself.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// This node.
    pub me: &'a Addressee,
    /// Who may order.
    pub trust: &'a Trust,
    /// Now, by this node's clock.
    pub now: Timestamp,
}

/// Judges a message that came on `subject` with `payload`.
pub fn judge(subject: &str, payload: &[u8], seal: Result<Seal, SignatureError>, grounds: Grounds<'_>) -> Verdict {
    match verified(subject, payload, seal, grounds) {
        Err(discard) => Verdict::Discard(discard),
        Ok((order, Signer::Revoked(who))) => {
            let reason = format!("{} has signed it, who is no operator any more since {}", who.name, who.revoked);
            Verdict::Refuse { order: Box::new(order), state: State::Rejected, reason }
        }
        Ok((order, _)) if order.expires <= grounds.now => {
            let reason = format!("it expired at {}, before this node got it", order.expires);
            Verdict::Refuse { order: Box::new(order), state: State::Expired, reason }
        }
        Ok((order, Signer::Operator(operator))) => Verdict::Take { order: Box::new(order), operator },
    }
}

/// Whoever has signed an order: one who may order, or one who could once. The latter is answered too: what he ordered before
/// may have waited for this node all the time, and must not stay without an end.
enum Signer {
    Operator(Operator),
    Revoked(Revoked),
}

fn verified(
    subject: &str,
    payload: &[u8],
    seal: Result<Seal, SignatureError>,
    grounds: Grounds<'_>,
) -> Result<(Order, Signer), Discard> {
    let seal = seal?;
    if payload.len() > message::order::ORDER_BYTES_MAX {
        return Err(OrderError::TooLarge { bytes: payload.len() }.into());
    }
    // A stranger is turned away before the costlier check: a flood of wrongly signed messages must stay cheap.
    let signer = match (grounds.trust.operator(&seal.key), grounds.trust.revoked(&seal.key)) {
        (Some(operator), _) => Signer::Operator(operator.clone()),
        (None, Some(revoked)) => Signer::Revoked(revoked.clone()),
        (None, None) => return Err(Discard::Stranger { key: seal.key }),
    };
    seal.verify(payload)?;
    let order = Order::parse(payload)?;
    order.check_addressee(subject, grounds.me)?;
    Ok((order, signer))
}

#[cfg(test)]
mod tests {
    use message::{JobId, NodeName, OrderId, PublicKey, Token, WIRE_VERSION, subject::Kind, trust::TrustKind};
    use nkeys::{KeyPair, KeyPairType};
    use proptest::prelude::*;

    use super::*;

    fn pair(byte: u8) -> KeyPair {
        KeyPair::new_from_raw(KeyPairType::User, [byte; 32]).unwrap()
    }

    fn me() -> Addressee {
        Addressee { name: NodeName::new("ship1").unwrap(), key: PublicKey::of(&pair(7)) }
    }

    fn trust() -> Trust {
        let admin = Operator::admin("admin", PublicKey::of(&pair(1)));
        Trust {
            v: 1,
            kind: TrustKind::Trust,
            serial: 1,
            issued: Timestamp::from_ms(0),
            operators: vec![admin],
            policy_keys: vec![],
            revoked: vec![],
        }
    }

    fn order() -> Order {
        Order {
            v: WIRE_VERSION,
            kind: Kind::Command,
            id: OrderId::from_bytes([1; 16]),
            job: JobId::new(1, 1),
            to: me(),
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            from: NodeName::new("central").unwrap(),
            created: Timestamp::from_ms(1_000),
            expires: Timestamp::from_ms(2_000),
            timeout_ms: 1,
            max_output_bytes: 1,
            args: serde_json::json!({"argv": ["true"]}),
            supersede: None,
            secrets: None,
        }
    }

    const SUBJECT: &str = "ship1.command.shellcommand.operatingsystem";

    fn judged(subject: &str, bytes: &[u8], seal: Result<Seal, SignatureError>, now_ms: i64) -> Verdict {
        judge(subject, bytes, seal, Grounds { me: &me(), trust: &trust(), now: Timestamp::from_ms(now_ms) })
    }

    fn counter(verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Discard(discard) => discard.counter(),
            other => panic!("not discarded: {other:?}"),
        }
    }

    #[test]
    fn an_operators_order_is_taken() {
        let bytes = order().to_bytes().unwrap();
        let verdict = judged(SUBJECT, &bytes, Seal::over(&bytes, &pair(1)).map_err(|_| SignatureError::Missing), 1_500);
        assert_eq!(verdict, Verdict::Take { order: Box::new(order()), operator: trust().operators.remove(0) });
    }

    #[test]
    fn an_expired_order_is_refused_and_reported() {
        let bytes = order().to_bytes().unwrap();
        let seal = Seal::over(&bytes, &pair(1)).unwrap();
        assert!(matches!(judged(SUBJECT, &bytes, Ok(seal), 2_000), Verdict::Refuse { state: State::Expired, .. }));
    }

    #[test]
    fn an_order_of_one_who_is_an_operator_no_more_is_refused_and_reported() {
        let bytes = order().to_bytes().unwrap();
        let seal = Seal::over(&bytes, &pair(1)).unwrap();
        let revoked = Revoked { name: "admin".into(), key: PublicKey::of(&pair(1)), revoked: Timestamp::from_ms(500) };
        let trust = Trust { operators: vec![], revoked: vec![revoked], ..trust() };
        let grounds = Grounds { me: &me(), trust: &trust, now: Timestamp::from_ms(1_500) };
        let verdict = judge(SUBJECT, &bytes, Ok(seal.clone()), grounds);
        assert!(matches!(verdict, Verdict::Refuse { state: State::Rejected, .. }), "{verdict:?}");
        // What somebody else only says that he signed is nothing to answer.
        assert_eq!(counter(judge(SUBJECT, b"{}", Ok(seal), grounds)), "wrongly_signed");
    }

    #[test]
    fn everything_else_is_discarded_and_counted() {
        let bytes = order().to_bytes().unwrap();
        let seal = |key: u8, bytes: &[u8]| Ok(Seal::over(bytes, &pair(key)).unwrap());
        assert_eq!(counter(judged(SUBJECT, &bytes, Err(SignatureError::Missing), 1_500)), "unsigned");
        assert_eq!(counter(judged(SUBJECT, &bytes, seal(2, &bytes), 1_500)), "stranger");
        assert_eq!(counter(judged(SUBJECT, &bytes, seal(1, b"other bytes"), 1_500)), "wrongly_signed");
        let elsewhere = "ship1.command.shellcommand.other";
        assert_eq!(counter(judged(elsewhere, &bytes, seal(1, &bytes), 1_500)), "misaddressed");
        let other_method = "ship1.command.hello.operatingsystem";
        assert_eq!(counter(judged(other_method, &bytes, seal(1, &bytes), 1_500)), "misaddressed");
        assert_eq!(counter(judged(SUBJECT, b"{}", seal(1, b"{}"), 1_500)), "malformed");
        let huge = vec![b' '; message::order::ORDER_BYTES_MAX + 1];
        assert_eq!(counter(judged(SUBJECT, &huge, seal(1, &huge), 1_500)), "oversized");
        let mut foreign = order();
        foreign.to.key = PublicKey::of(&pair(8));
        let bytes = foreign.to_bytes().unwrap();
        assert_eq!(counter(judged(SUBJECT, &bytes, seal(1, &bytes), 1_500)), "misaddressed");
    }

    proptest! {
        #[test]
        fn no_altered_byte_gets_through(at in any::<usize>(), bit in 0_u8..8) {
            let bytes = order().to_bytes().unwrap();
            let seal = Seal::over(&bytes, &pair(1)).unwrap();
            let mut altered = bytes;
            let at = at % altered.len();
            altered[at] ^= 1 << bit;
            prop_assert!(matches!(judged(SUBJECT, &altered, Ok(seal), 1_500), Verdict::Discard(_)));
        }
    }
}
