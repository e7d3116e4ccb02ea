//! Who may order here: from the enrolment, then from newer lists that the fleet's root has signed; and who that root is, by the
//! chain that comes with them. Neither ever goes back.

use std::sync::{Arc, PoisonError, RwLock};

use bus::{Bus, BusError, Message, kv};
use journal::{Journal, Write};
use message::succession::is_newer;
use message::{Lineage, PublicKey, SealedTrust, Trust};

/// The key of the list of operators in bucket `POLICY`.
pub(crate) const TRUST_KEY: &str = "trust";

/// The list of operators in force, and the roots up to the one that sealed it.
pub(crate) struct Trusted {
    current: RwLock<(Arc<Trust>, Arc<Lineage>)>,
}

impl Trusted {
    /// Begins with the list from the enrolment, or the newer one that the journal kept. `fleet` is the fleet's first root.
    ///
    /// # Errors
    /// A sentence, when the list from the enrolment is not signed by the root that its chain leads to.
    pub(crate) fn open(fleet: PublicKey, enrolment: &SealedTrust, kept: Option<&str>) -> Result<Self, String> {
        let (mut trust, mut roots) = Lineage::new(fleet).open(enrolment).map_err(|error| error.to_string())?;
        if let Some(kept) = kept.and_then(|text| serde_json::from_str::<SealedTrust>(text).ok()) {
            let parsed = Lineage::parse(roots.fleet().clone(), &kept.roots);
            match parsed.and_then(|known| roots.join(&known)) {
                Ok(joined) => {
                    if let Ok((newer, _)) = joined.open(&kept)
                        && is_newer((&newer, &joined), (&trust, &roots))
                    {
                        trust = newer;
                    }
                    roots = joined;
                }
                // Whoever brought the enrolment has the last word about whom to follow.
                Err(error) => tracing::error!(%error, "the enrolment follows another root than what was kept here"),
            }
        }
        Ok(Self { current: RwLock::new((Arc::new(trust), Arc::new(roots))) })
    }

    /// The list in force.
    pub(crate) fn current(&self) -> Arc<Trust> {
        self.both().0
    }

    /// Who was the fleet's root, who is, and who will be.
    pub(crate) fn roots(&self) -> Arc<Lineage> {
        self.both().1
    }

    fn both(&self) -> (Arc<Trust>, Arc<Lineage>) {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a newer list from the bus, if there is one.
    pub(crate) async fn refresh(&self, bus: &Bus, journal: &Journal) -> Result<(), BusError> {
        let found = bus.kv_get(kv::POLICY, TRUST_KEY).await?;
        self.read(found.as_ref(), journal).await;
        Ok(())
    }

    /// Takes over what was read from the bus, if it is newer.
    pub(crate) async fn read(&self, found: Option<&Message>, journal: &Journal) {
        if let Some(value) = found {
            self.take(value, journal).await;
        }
    }

    /// Takes over a newer list from what was just stored below `POLICY`, wherever it comes from: only its signature and its
    /// serial count. Tells whether another list is in force now.
    pub(crate) async fn hear(&self, stored: &Message, journal: &Journal) -> bool {
        stored.subject.rsplit('.').next() == Some(TRUST_KEY)
            && !kv::is_deletion(stored)
            && self.take(stored, journal).await
    }

    /// An older list is never taken.
    async fn take(&self, value: &Message, journal: &Journal) -> bool {
        let (trust, known) = self.both();
        let opened = serde_json::from_slice::<SealedTrust>(&value.payload)
            .map_err(|error| error.to_string())
            .and_then(|offered| Ok((known.open(&offered).map_err(|error| error.to_string())?, offered)));
        match opened {
            Err(reason) => tracing::warn!(%reason, "a list of operators on the bus is not believed"),
            Ok(((newer, roots), offered)) if is_newer((&newer, &roots), (&trust, &known)) => {
                // With all that is known of the roots, whatever the offer leaves out of it.
                let kept = SealedTrust { roots: roots.links(), ..offered };
                let Ok(text) = serde_json::to_string(&kept) else { return false };
                let serial = newer.serial;
                if let Err(error) = journal.commit(vec![Write::Trust(text)]).await {
                    tracing::error!(%error, "a newer list of operators could not be kept; the older one stays in force");
                    return false;
                }
                if roots.generation() > known.generation() {
                    tracing::warn!(root = %roots.root(), "the fleet has a new root; what the one before signs counts no more");
                }
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(newer), Arc::new(roots));
                tracing::info!(serial, "a newer list of operators is in force");
                return true;
            }
            Ok(_) => {}
        }
        false
    }
}
