//! Succession: how the fleet's root hands over to another key, and how everybody can check that it did.
//!
//! The fleet is named for ever by its first root, which every bundle pins. A *link* of the chain says "after O1 comes
//! O2": O1 signs it, and it takes effect when O2 has signed the same text. A link that O1 alone has signed names the
//! heir: from then on nobody else can follow, so that a root's key may be lost or stolen and the heir still takes over.
//! The chain travels with the list of operators, which the last root of the chain has sealed. What flows in is what
//! somebody offers and what is known; what flows out is who the root is, or why the offer is not believed.

use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::sign::{NoPrivateKey, PublicKey, Seal, SealedDocument, SignatureError};
use crate::time::Timestamp;
use crate::trust::{Trust, TrustError};

/// The longest chain that is read.
pub const LINKS_MAX: usize = 64;

/// The `kind` of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuccessionKind {
    /// The only one.
    Succession,
}

/// What a link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The wire's version.
    pub v: u8,
    /// Always `succession`.
    pub kind: SuccessionKind,
    /// The fleet's first root, which names the fleet.
    pub fleet: PublicKey,
    /// Its place in the chain, from 1.
    pub number: u64,
    /// The root that hands over.
    pub from: PublicKey,
    /// The one that comes after it.
    pub to: PublicKey,
    /// When it was made.
    pub issued: Timestamp,
}

/// A link as it travels: sealed by the root that hands over and, once it takes effect, by the one that comes after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// A [`Handover`], sealed by its `from`.
    #[serde(flatten)]
    pub sealed: SealedDocument,
    /// The signature of its `to` over the same text; not there as long as `to` is the heir only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

impl Succession {
    /// The same link with the consent of the key that it names.
    ///
    /// # Errors
    /// [`NoPrivateKey`] when `heir` holds a public key only.
    pub fn accept(&self, heir: &nkeys::KeyPair) -> Result<Self, NoPrivateKey> {
        let accepted = Some(Seal::over(self.sealed.document.as_bytes(), heir)?.signature);
        Ok(Self { sealed: self.sealed.clone(), accepted })
    }
}

/// A list of operators as it travels and is kept: sealed, with the chain that leads from the fleet's first root to the one
/// that sealed it. In a fleet whose root never changed, the chain is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedTrust {
    /// The list.
    #[serde(flatten)]
    pub sealed: SealedDocument,
    /// The chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<Succession>,
}

impl From<SealedDocument> for SealedTrust {
    fn from(sealed: SealedDocument) -> Self {
        Self { sealed, roots: Vec::new() }
    }
}

/// Why a chain is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// One of its links does not hold.
    #[error("link {number} of the chain of roots does not hold: {reason}")]
    Link {
        /// Which, from 1.
        number: u64,
        /// Why.
        reason: String,
    },
    /// It goes another way than the one that is known.
    #[error(
        "the chain of roots names {offered} after {from}, and {known} is known to follow it: somebody misuses the key of \
         {from}"
    )]
    Fork {
        /// Where the ways part.
        from: PublicKey,
        /// Who follows as far as is known.
        known: PublicKey,
        /// Who is said to follow.
        offered: PublicKey,
    },
}

/// A chain whose every signature holds: who was the fleet's root, who is, and who will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    fleet: PublicKey,
    links: Vec<(Handover, Succession)>,
}

impl Lineage {
    /// That of a fleet whose root never changed.
    #[must_use]
    pub const fn new(fleet: PublicKey) -> Self {
        Self { fleet, links: Vec::new() }
    }

    /// Reads a chain: each link signed by the one before, and all but the last accepted.
    ///
    /// # Errors
    /// [`SuccessionError::Link`].
    pub fn parse(fleet: PublicKey, roots: &[Succession]) -> Result<Self, SuccessionError> {
        let mut lineage = Self::new(fleet);
        for link in roots {
            lineage.push(link.clone())?;
        }
        Ok(lineage)
    }

    /// Adds a link. One that accepts what the last link only named takes its place.
    ///
    /// # Errors
    /// [`SuccessionError`] when it does not hold, or does not follow.
    pub fn push(&mut self, link: Succession) -> Result<(), SuccessionError> {
        let number = self.links.len() as u64 + u64::from(self.heir().is_none());
        let wrong = |reason: String| SuccessionError::Link { number, reason };
        if number > LINKS_MAX as u64 {
            return Err(wrong(format!("a chain has {LINKS_MAX} links at most")));
        }
        let root = self.root().clone();
        // Before anything in it is read.
        let text = link.sealed.open(&root).map_err(|error| wrong(error.to_string()))?;
        let handover: Handover = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if handover.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}", handover.v)));
        }
        if handover.fleet != self.fleet || handover.from != root || handover.number != number {
            return Err(wrong("it belongs to another place or another fleet".into()));
        }
        if !handover.to.as_str().starts_with('O') || self.was_root(&handover.to) {
            return Err(wrong(format!("{} cannot be a root after this one", handover.to)));
        }
        if let Some(accepted) = &link.accepted {
            handover.to.verify(text.as_bytes(), accepted).map_err(|error: SignatureError| wrong(error.to_string()))?;
        }
        if let Some(heir) = self.heir() {
            if *heir != handover.to {
                return Err(SuccessionError::Fork { from: root, known: heir.clone(), offered: handover.to });
            }
            self.links.pop();
        }
        self.links.push((handover, link));
        Ok(())
    }

    /// The key that names the fleet: its first root.
    #[must_use]
    pub const fn fleet(&self) -> &PublicKey {
        &self.fleet
    }

    /// The root now.
    #[must_use]
    pub fn root(&self) -> &PublicKey {
        self.accepted().last().map_or(&self.fleet, |handover| &handover.to)
    }

    /// The only one who can be root after this one, if that was told already.
    #[must_use]
    pub fn heir(&self) -> Option<&PublicKey> {
        self.links.last().filter(|(_, link)| link.accepted.is_none()).map(|(handover, _)| &handover.to)
    }

    /// How often the root has changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.accepted().count() as u64
    }

    /// The handovers that took effect, in order.
    pub fn accepted(&self) -> impl Iterator<Item = &Handover> {
        self.links.iter().filter(|(_, link)| link.accepted.is_some()).map(|(handover, _)| handover)
    }

    /// Whether a key is or was the root.
    #[must_use]
    pub fn was_root(&self, key: &PublicKey) -> bool {
        self.fleet == *key || self.accepted().any(|handover| handover.to == *key)
    }

    /// The link that would follow, for the root to seal.
    #[must_use]
    pub fn next(&self, to: PublicKey, issued: Timestamp) -> Handover {
        Handover {
            v: WIRE_VERSION,
            kind: SuccessionKind::Succession,
            fleet: self.fleet.clone(),
            number: self.generation() + 1,
            from: self.root().clone(),
            to,
            issued,
        }
    }

    /// The link that names the heir, to be accepted by it.
    #[must_use]
    pub fn named(&self) -> Option<&Succession> {
        self.links.last().map(|(_, link)| link).filter(|link| link.accepted.is_none())
    }

    /// The chain as it travels.
    #[must_use]
    pub fn links(&self) -> Vec<Succession> {
        self.links.iter().map(|(_, link)| link.clone()).collect()
    }

    /// What both know together: one has to be the beginning of the other.
    ///
    /// # Errors
    /// [`SuccessionError::Fork`] when they go different ways.
    pub fn join(&self, other: &Self) -> Result<Self, SuccessionError> {
        for ((known, _), (offered, _)) in self.links.iter().zip(&other.links) {
            // Two signatures of one root over the same key after it are no fork: only who follows counts.
            if known.to != offered.to {
                return Err(SuccessionError::Fork {
                    from: known.from.clone(),
                    known: known.to.clone(),
                    offered: offered.to.clone(),
                });
            }
        }
        let further = |one: &Self| (one.generation(), one.links.len());
        Ok(if further(other) > further(self) { other.clone() } else { self.clone() })
    }

    /// Opens a list that somebody offers, by what is known here: returns it with what is known then. That it is newer than
    /// another one is for [`is_newer`] to say.
    ///
    /// # Errors
    /// [`TrustError`] when its chain does not hold, goes another way, or its seal is not that of the last root.
    pub fn open(&self, offered: &SealedTrust) -> Result<(Trust, Self), TrustError> {
        let lineage = self.join(&Self::parse(self.fleet.clone(), &offered.roots)?)?;
        let trust = Trust::open(&offered.sealed, lineage.root())?;
        Ok((trust, lineage))
    }
}

/// Whether a list takes the place of another: a later root's does so whatever its serial, so that nobody who stole the key of
/// an earlier one can have the last word.
#[must_use]
pub fn is_newer((trust, lineage): (&Trust, &Lineage), (before, known): (&Trust, &Lineage)) -> bool {
    (lineage.generation(), trust.serial) > (known.generation(), before.serial)
}

#[cfg(test)]
mod tests {
    use nkeys::{KeyPair, KeyPairType};

    use super::*;
    use crate::trust::{Operator, TrustKind};

    fn root(byte: u8) -> KeyPair {
        KeyPair::new_from_raw(KeyPairType::Operator, [byte; 32]).unwrap()
    }

    fn public(byte: u8) -> PublicKey {
        PublicKey::of(&root(byte))
    }

    fn fleet() -> Lineage {
        Lineage::new(public(1))
    }

    /// The link from the root of `lineage`, whose key is `from`, to `to`.
    fn named(lineage: &Lineage, from: u8, to: u8) -> Succession {
        let text = serde_json::to_string(&lineage.next(public(to), Timestamp::from_ms(0))).unwrap();
        Succession { sealed: SealedDocument::new(text, &root(from)).unwrap(), accepted: None }
    }

    fn then(lineage: &Lineage, from: u8, to: u8) -> Lineage {
        let mut lineage = lineage.clone();
        lineage.push(named(&lineage, from, to).accept(&root(to)).unwrap()).unwrap();
        lineage
    }

    fn list(serial: u64, by: u8, roots: &Lineage) -> SealedTrust {
        let operator = PublicKey::of(&KeyPair::new_from_raw(KeyPairType::User, [9; 32]).unwrap());
        let trust = Trust {
            v: WIRE_VERSION,
            kind: TrustKind::Trust,
            serial,
            issued: Timestamp::from_ms(0),
            operators: vec![Operator::admin("admin", operator)],
            policy_keys: vec![],
            revoked: vec![],
        };
        let sealed = SealedDocument::new(serde_json::to_string(&trust).unwrap(), &root(by)).unwrap();
        SealedTrust { sealed, roots: roots.links() }
    }

    #[test]
    fn a_root_hands_over_with_the_consent_of_the_next_and_counts_no_more() {
        let second = then(&fleet(), 1, 2);
        assert_eq!((second.root(), second.generation(), second.heir()), (&public(2), 1, None));
        let third = then(&second, 2, 3);
        assert_eq!(Lineage::parse(public(1), &third.links()).unwrap(), third);
        assert!(third.was_root(&public(1)) && third.was_root(&public(3)) && !third.was_root(&public(4)));
        // Who has heard believes the last alone; who has not follows the chain.
        for knows in [fleet(), second.clone(), third.clone()] {
            assert_eq!(knows.open(&list(1, 3, &third)).unwrap().1, third);
            assert!(knows.open(&list(9, 4, &third)).is_err());
        }
        for (by, roots) in [(1, &fleet()), (2, &second), (1, &third), (2, &third)] {
            assert!(third.open(&list(u64::MAX, by, roots)).is_err(), "{by}");
        }
        // A shorter chain before a list of the last root is no harm: what is known is known.
        assert_eq!(third.open(&list(5, 3, &second)).unwrap().1, third);
    }

    #[test]
    fn a_later_roots_list_is_newer_whatever_an_earlier_one_has_signed() {
        let second = then(&fleet(), 1, 2);
        let (high, known) = fleet().open(&list(u64::MAX, 1, &fleet())).unwrap();
        let (low, lineage) = fleet().open(&list(2, 2, &second)).unwrap();
        assert!(is_newer((&low, &lineage), (&high, &known)));
        assert!(!is_newer((&high, &known), (&low, &lineage)));
        assert!(!is_newer((&low, &lineage), (&low, &lineage)));
    }

    #[test]
    fn whom_the_root_has_named_nobody_overtakes() {
        let mut heir = fleet();
        heir.push(named(&fleet(), 1, 2)).unwrap();
        assert_eq!((heir.root(), heir.heir(), heir.generation()), (&public(1), Some(&public(2)), 0));
        // The root goes on meanwhile, also with a list that does not repeat who the heir is.
        assert_eq!(heir.open(&list(3, 1, &fleet())).unwrap().1, heir);
        // Its key was stolen, and the thief names himself.
        let thief = then(&fleet(), 1, 7);
        assert!(matches!(heir.open(&list(9, 7, &thief)), Err(TrustError::Succession(SuccessionError::Fork { .. }))));
        let mut other = heir.clone();
        assert!(matches!(other.push(named(&fleet(), 1, 7)), Err(SuccessionError::Fork { .. })));
        // The heir needs nobody's signature but its own.
        let mut after = heir.clone();
        after.push(heir.named().unwrap().accept(&root(2)).unwrap()).unwrap();
        assert_eq!((after.root(), after.heir(), after.generation()), (&public(2), None, 1));
        assert_eq!(heir.open(&list(1, 2, &after)).unwrap().1, after);
        // And who has heard of nobody may be led astray: the chain is what has to be heard first.
        assert!(fleet().open(&list(9, 7, &thief)).is_ok());
    }

    #[test]
    fn a_link_that_does_not_hold_is_refused() {
        let good = named(&fleet(), 1, 2).accept(&root(2)).unwrap();
        let altered = Succession {
            sealed: SealedDocument {
                document: good.sealed.document.replace(public(2).as_str(), public(3).as_str()),
                ..good.sealed.clone()
            },
            ..good.clone()
        };
        let by_another = named(&fleet(), 3, 2).accept(&root(2)).unwrap();
        let taken = Succession { accepted: named(&fleet(), 1, 2).accept(&root(3)).unwrap().accepted, ..good.clone() };
        let user = fleet().next(PublicKey::of(&KeyPair::new_user()), Timestamp::from_ms(0));
        let user = SealedDocument::new(serde_json::to_string(&user).unwrap(), &root(1)).unwrap();
        let elsewhere = Lineage::new(public(5)).next(public(2), Timestamp::from_ms(0));
        let elsewhere = SealedDocument::new(serde_json::to_string(&elsewhere).unwrap(), &root(1)).unwrap();
        let unaccepted = |sealed| Succession { sealed, accepted: None };
        for wrong in [altered, by_another, taken, unaccepted(user), unaccepted(elsewhere)] {
            assert!(Lineage::parse(public(1), std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
        }
        // Nobody comes back, nothing follows what was not accepted, and no link counts twice.
        let second = then(&fleet(), 1, 2);
        let back = named(&second, 2, 1).accept(&root(1)).unwrap();
        assert!(Lineage::parse(public(1), &[good.clone(), back]).is_err());
        let follows = named(&second, 2, 3);
        assert!(Lineage::parse(public(1), &[unaccepted(good.sealed.clone()), follows]).is_err());
        assert!(Lineage::parse(public(1), &[good.clone(), good]).is_err());
    }

    #[test]
    fn a_list_without_a_chain_is_written_as_ever() {
        let plain = list(1, 1, &fleet());
        assert_eq!(serde_json::to_string(&plain).unwrap(), serde_json::to_string(&plain.sealed).unwrap());
        let text = serde_json::to_string(&list(1, 2, &then(&fleet(), 1, 2))).unwrap();
        let read: SealedTrust = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(read.roots.len(), 1);
    }
}
