//! The fleet's root key, where it is needed: it signs the list of operators, and the policy.
//!
//! It lies in the home when the fleet is made, and is meant to be kept elsewhere from then on. It is read for the
//! moment, from a file that nobody but its owner can read, and must never be written anywhere.

use std::path::Path;

use message::{PublicKey, SealedDocument, Trust};
use nkeys::KeyPair;

use crate::context::Home;
use crate::error::FleetError;
use crate::files;

/// The root's private key below `<home>/keys`; it may be taken offline.
const ROOT_FILE: &str = "fleet-root.nk";

/// The private half of the fleet's root key.
pub struct RootKey(KeyPair);

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RootKey").field(&self.0.public_key()).finish()
    }
}

impl RootKey {
    /// Reads it from `file`, or from where `init` put it in `home`. It must be the private half of `root`.
    ///
    /// # Errors
    /// [`FleetError::File`] that says which file is missing, open to others, or that of another fleet.
    pub fn find(home: &Home, file: Option<&Path>, root: &PublicKey) -> Result<Self, FleetError> {
        let path = file.map_or_else(|| home.keys_dir().join(ROOT_FILE), Path::to_owned);
        let wrong = |reason: String| FleetError::File { path: path.clone(), reason };
        let seed = files::read(&path)?.ok_or_else(|| {
            wrong(format!(
                "the root's key is not here, and only it can change who may order: bring {ROOT_FILE} back from where it \
                 is kept, and name it with --root FILE"
            ))
        })?;
        files::check_secret(&path)?;
        let pair = KeyPair::from_seed(seed.trim()).map_err(|_| wrong("it does not hold an nkey seed".into()))?;
        if PublicKey::of(&pair) != *root {
            let reason = format!("it is the key {}, and this fleet's root is {root}", pair.public_key());
            return Err(wrong(reason));
        }
        Ok(Self(pair))
    }

    /// The key itself, for the policy.
    pub(crate) const fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// Signs a list of operators.
    pub(crate) fn seal(&self, trust: &Trust) -> Result<SealedDocument, FleetError> {
        let document = serde_json::to_string(trust).map_err(|error| FleetError::signing(&error))?;
        SealedDocument::new(document, &self.0).map_err(|error| FleetError::signing(&error))
    }
}
