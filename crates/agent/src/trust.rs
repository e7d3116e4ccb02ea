//! Who may order here: from the enrolment, then from newer lists that the root has signed.

use std::sync::{Arc, PoisonError, RwLock};

use bus::{Bus, BusError, Message, kv};
use journal::{Journal, Write};
use message::{PublicKey, SealedDocument, Trust};

/// The key of the list of operators in bucket `POLICY`.
pub(crate) const TRUST_KEY: &str = "trust";

/// The list of operators in force.
pub(crate) struct Trusted {
    root: PublicKey,
    current: RwLock<Arc<Trust>>,
}

impl Trusted {
    /// Begins with the list from the enrolment, or the newer one that the journal kept.
    ///
    /// # Errors
    /// A sentence, when the list from the enrolment is not signed by `root`.
    pub(crate) fn open(root: PublicKey, enrolment: &SealedDocument, kept: Option<&str>) -> Result<Self, String> {
        let mut trust = Trust::open(enrolment, &root).map_err(|error| error.to_string())?;
        let kept = kept.and_then(|text| serde_json::from_str::<SealedDocument>(text).ok());
        if let Some(newer) = kept.and_then(|sealed| Trust::open(&sealed, &root).ok())
            && newer.serial > trust.serial
        {
            trust = newer;
        }
        Ok(Self { root, current: RwLock::new(Arc::new(trust)) })
    }

    /// The list in force.
    pub(crate) fn current(&self) -> Arc<Trust> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over a newer list from the bus, if there is one.
    pub(crate) async fn refresh(&self, bus: &Bus, journal: &Journal) -> Result<(), BusError> {
        if let Some(value) = bus.kv_get(kv::POLICY, TRUST_KEY).await? {
            self.take(&value, journal).await;
        }
        Ok(())
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
        let Ok(text) = String::from_utf8(value.payload.to_vec()) else { return false };
        let opened = serde_json::from_str::<SealedDocument>(&text)
            .map_err(|error| error.to_string())
            .and_then(|sealed| Trust::open(&sealed, &self.root).map_err(|error| error.to_string()));
        match opened {
            Err(reason) => tracing::warn!(%reason, "a list of operators on the bus is not believed"),
            Ok(newer) if newer.serial > self.current().serial => {
                let serial = newer.serial;
                if let Err(error) = journal.commit(vec![Write::Trust(text)]).await {
                    tracing::error!(%error, "a newer list of operators could not be kept; the older one stays in force");
                    return false;
                }
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(newer);
                tracing::info!(serial, "a newer list of operators is in force");
                return true;
            }
            Ok(_) => {}
        }
        false
    }
}
