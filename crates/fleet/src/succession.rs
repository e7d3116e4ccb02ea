//! The root hands over: to an heir that it named before, or to a new key at once.
//!
//! The chain of roots and the list that the new one has sealed go to the broker in one value, so that nobody ever sees the one
//! without the other; the policy follows, sealed anew. The new key is on disk before anybody hears of it.

use std::path::Path;

use bus::clock;
use message::audit::Act;
use message::{Lineage, PublicKey, SealedDocument, Succession};

use crate::connection::Fleet;
use crate::error::FleetError;
use crate::root::{NewRoot, RootKey};

impl Fleet {
    /// Names the heir: the only key that can be the root after this one. Returns the serial of the list that tells it.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when another one was named; otherwise when the list cannot be signed or stored.
    pub async fn name_heir(&self, root: &RootKey, heir: &PublicKey) -> Result<u64, FleetError> {
        self.record(Act::change("root heir", "").of_key(heir)).await?;
        let sealed = self
            .change_list(root, |_, roots| match roots.heir() {
                Some(named) if named == heir => Ok(()),
                Some(named) => Err(FleetError::usage(format!(
                    "{named} was named as the heir before, and nobody can take that back: whoever steals the root's key \
                     could do so as well"
                ))),
                None => extend(roots, link(roots, root, heir)?),
            })
            .await?;
        Ok(self.roots().open(&sealed).map_or(0, |(trust, _)| trust.serial))
    }

    /// Makes `next` the root: by the word of the root, or as the heir that it named before. Signs the policy in force anew.
    /// Returns the serial of the new root's first list. What broke off half-way is completed.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when it is not the heir, and the root's key is not here; otherwise when what is signed cannot be
    /// stored.
    pub async fn hand_over(&self, root: Option<&RootKey>, next: &NewRoot) -> Result<u64, FleetError> {
        let (key, before, policy) = (next.key(), self.roots(), self.policy_held().await?);
        match before.was_root(&key.public()) {
            // The second half of an earlier attempt.
            true if *before.root() == key.public() => {}
            true => {
                return Err(FleetError::usage(format!("{} was the root before, and cannot come back", key.public())));
            }
            false => {
                self.record(Act::change("root rotate", "").of_key(&key.public())).await?;
                self.change_list(key, |_, roots| {
                    let named = match (roots.heir(), root) {
                        (Some(heir), _) if *heir == key.public() => roots.named().cloned(),
                        (Some(heir), _) => {
                            return Err(FleetError::usage(format!(
                                "{heir} was named as the heir, so that it alone can be the next root: bring its key, and \
                                 name it with --heir FILE"
                            )));
                        }
                        (None, Some(root)) => Some(link(roots, root, &key.public())?),
                        (None, None) => None,
                    };
                    let named = named.ok_or_else(|| {
                        FleetError::usage("no heir was named: it takes the root's own key to hand over (--root FILE)")
                    })?;
                    let accepted = named.accept(key.pair()).map_err(|error| FleetError::signing(&error))?;
                    extend(roots, accepted)
                })
                .await?;
            }
        }
        self.sign_policy_of_earlier_root(key, policy).await?;
        next.settle()?;
        Ok(self.trust().serial)
    }
}

/// What the root signs about the one that comes after it.
fn link(roots: &Lineage, root: &RootKey, to: &PublicKey) -> Result<Succession, FleetError> {
    let text =
        serde_json::to_string(&roots.next(to.clone(), clock::now())).map_err(|error| FleetError::signing(&error))?;
    let sealed = SealedDocument::new(text, root.pair()).map_err(|error| FleetError::signing(&error))?;
    Ok(Succession { sealed, accepted: None })
}

fn extend(roots: &mut Lineage, link: Succession) -> Result<(), FleetError> {
    roots.push(link).map_err(|error| FleetError::Trust { reason: error.to_string() })
}

/// Makes the key of an heir, to be kept apart from the root's.
///
/// # Errors
/// As [`RootKey::make`].
pub fn make_heir(path: &Path) -> Result<PublicKey, FleetError> {
    Ok(RootKey::make(path)?.public())
}
