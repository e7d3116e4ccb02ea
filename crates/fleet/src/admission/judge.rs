//! Who of those who knocked may come in. Pure.

use std::collections::{BTreeMap, HashMap};

use message::admission::{fingerprint, short};
use message::{NodeName, NodeRecord, PublicKey, Timestamp, TokenId, TokenRecord};

use super::Pending;

/// What stands at a name in `NODES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// A record that an operator signed.
    Node(Box<NodeRecord>),
    /// A record that was removed; its revision.
    Removed(u64),
    /// Something that is not believed, and why.
    NotBelieved(String),
}

/// What is to be done about a knock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Let it in; the record of this revision is replaced, of 0: made.
    Admit(u64),
    /// It is in already: an earlier attempt broke off before it was told.
    Tell,
    /// Leave it outside, for this reason.
    Refuse(String),
}

/// Judges each of `knocks`. `tokens` are those that are believed.
pub(super) fn judge(
    knocks: &[Pending],
    standing: &HashMap<NodeName, Standing>,
    tokens: &HashMap<TokenId, TokenRecord>,
    now: Timestamp,
) -> Vec<Verdict> {
    let by_token = |knock: &Pending| match tokens.get(&knock.knock.token) {
        Some(token) => token.left(now).map(drop),
        None => {
            Err(format!("the token {} is not one that an operator of this fleet has signed", short(&knock.knock.token)))
        }
    };
    let mut rivals: BTreeMap<&NodeName, Vec<&PublicKey>> = BTreeMap::new();
    for knock in knocks.iter().filter(|knock| by_token(knock).is_ok()) {
        rivals.entry(&knock.knock.name).or_default().push(&knock.knock.key);
    }
    let one = |pending: &Pending| {
        let (name, key) = (&pending.knock.name, &pending.knock.key);
        let revision = match standing.get(name) {
            None => 0,
            Some(Standing::Removed(revision)) => *revision,
            Some(Standing::NotBelieved(reason)) => {
                return Verdict::Refuse(format!("the name {name} is taken by a record that is not believed: {reason}"));
            }
            Some(Standing::Node(record)) if record.key == *key && record.revoked.is_none() => return Verdict::Tell,
            Some(Standing::Node(record)) => return Verdict::Refuse(taken(record, key)),
        };
        if let Err(reason) = by_token(pending) {
            return Verdict::Refuse(reason);
        }
        let same = rivals.get(name).map_or(&[][..], Vec::as_slice);
        if same.len() > 1 {
            let prints: Vec<String> = same.iter().map(|key| fingerprint(key)).collect();
            return Verdict::Refuse(format!(
                "{} units want to be called {name} ({}): compare with what the right one shows, and choose it with \
                 `steward node accept {name} --fingerprint …`",
                same.len(),
                prints.join(", ")
            ));
        }
        Verdict::Admit(revision)
    };
    knocks.iter().map(one).collect()
}

fn taken(record: &NodeRecord, key: &PublicKey) -> String {
    let name = &record.name;
    let how = match record.revoked {
        Some(at) if record.key == *key => {
            return format!("{name} was revoked at {at}, and its key with it: knock anew with a new key");
        }
        Some(at) => format!("was revoked at {at}"),
        None => "is enrolled".to_owned(),
    };
    format!(
        "a node named {name} {how}, with another key ({}), and nobody takes its name over: if it is that unit with a new \
         key, say so with `steward node rotate {name} --out FILE`; else let this one have another name",
        fingerprint(&record.key)
    )
}

#[cfg(test)]
mod tests {
    use message::WIRE_VERSION;
    use message::admission::{Knock, KnockKind, TokenRecordKind};
    use message::registry::NodeKind;
    use nkeys::{KeyPair, KeyPairType};

    use super::*;

    fn key(seed: u8) -> PublicKey {
        PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap())
    }

    fn id(byte: u8) -> TokenId {
        TokenId::from_bytes([byte; 16])
    }

    fn knock(name: &str, seed: u8, token: u8) -> Pending {
        let knock = Knock {
            v: WIRE_VERSION,
            kind: KnockKind::Knock,
            token: id(token),
            name: NodeName::new(name).unwrap(),
            key: key(seed),
            tls_key: None,
            version: "0.1.0".into(),
            at: Timestamp::default(),
        };
        Pending { knock, since: Timestamp::default(), obstacle: None }
    }

    fn tokens() -> HashMap<TokenId, TokenRecord> {
        let token = |byte: u8, used: u32| TokenRecord {
            v: WIRE_VERSION,
            kind: TokenRecordKind::TokenRecord,
            id: id(byte),
            account: key(200),
            uses: 2,
            used,
            expires: Timestamp::from_ms(1_000),
            labels: [].into(),
            created: Timestamp::default(),
            by: "admin".into(),
            revoked: None,
        };
        [(id(1), token(1, 0)), (id(2), token(2, 2))].into()
    }

    fn node(name: &str, seed: u8, revoked: bool) -> (NodeName, Standing) {
        let name = NodeName::new(name).unwrap();
        let record = NodeRecord {
            v: WIRE_VERSION,
            kind: NodeKind::Node,
            name: name.clone(),
            key: key(seed),
            labels: [].into(),
            enrolled: Timestamp::default(),
            by: "admin".into(),
            changed: None,
            revoked: revoked.then(Timestamp::default),
        };
        (name, Standing::Node(Box::new(record)))
    }

    fn verdicts(knocks: &[Pending], standing: &[(NodeName, Standing)]) -> Vec<Verdict> {
        judge(knocks, &standing.iter().cloned().collect(), &tokens(), Timestamp::from_ms(1))
    }

    fn refusal(knock: Pending, standing: &[(NodeName, Standing)]) -> String {
        match verdicts(&[knock], standing).remove(0) {
            Verdict::Refuse(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_that_nobody_has_is_free_and_one_that_was_removed_too() {
        let removed = (NodeName::new("ship2").unwrap(), Standing::Removed(7));
        let found = verdicts(&[knock("ship1", 1, 1), knock("ship2", 2, 1)], &[removed]);
        assert_eq!(found, [Verdict::Admit(0), Verdict::Admit(7)]);
    }

    #[test]
    fn nobody_takes_a_name_over() {
        let enrolled = refusal(knock("ship1", 1, 1), &[node("ship1", 9, false)]);
        assert!(enrolled.contains("is enrolled") && enrolled.contains("node rotate ship1"), "{enrolled}");
        let revoked = refusal(knock("ship1", 1, 1), &[node("ship1", 9, true)]);
        assert!(revoked.contains("was revoked") && revoked.contains("node rotate ship1"), "{revoked}");
        assert!(refusal(knock("ship1", 1, 1), &[node("ship1", 1, true)]).contains("its key with it"));
        let odd = (NodeName::new("ship1").unwrap(), Standing::NotBelieved("forged".into()));
        assert!(refusal(knock("ship1", 1, 1), &[odd]).contains("forged"));
    }

    #[test]
    fn who_is_in_is_told_again_also_when_the_token_is_used_up() {
        assert_eq!(verdicts(&[knock("ship1", 1, 2)], &[node("ship1", 1, false)]), [Verdict::Tell]);
    }

    #[test]
    fn of_two_with_one_name_neither_comes_in_unless_one_comes_by_a_void_token() {
        let found = verdicts(&[knock("ship1", 1, 1), knock("ship1", 2, 1), knock("ship2", 3, 1)], &[]);
        for verdict in &found[..2] {
            let Verdict::Refuse(reason) = verdict else { panic!("{verdict:?}") };
            assert!(reason.contains(&fingerprint(&key(1))) && reason.contains(&fingerprint(&key(2))), "{reason}");
            assert!(reason.contains("--fingerprint"), "{reason}");
        }
        assert_eq!(found[2], Verdict::Admit(0));
        let found = verdicts(&[knock("ship1", 1, 1), knock("ship1", 2, 2)], &[]);
        assert_eq!(found[0], Verdict::Admit(0));
    }

    #[test]
    fn a_void_token_lets_nobody_in() {
        assert!(refusal(knock("ship1", 1, 2), &[]).contains("used up"));
        assert!(refusal(knock("ship1", 1, 3), &[]).contains("not one that an operator"));
    }
}
