//! The fleet's root key, where it is needed: it signs the list of operators, and the policy.
//!
//! It lies in the home when the fleet is made, and is meant to be kept elsewhere from then on. It is read for the
//! moment, from a file that nobody but its owner can read, and written nowhere but to the file where a new one is to be kept.

use std::path::{Path, PathBuf};

use message::{PublicKey, SealedDocument, Trust};
use nkeys::{KeyPair, KeyPairType};

use crate::context::Home;
use crate::error::FleetError;
use crate::files::{self, Access, io_error};

/// The root's private key below `<home>/keys`; it may be taken offline.
const ROOT_FILE: &str = "fleet-root.nk";
/// The one that comes after it, as long as the handover goes on.
const NEXT_ROOT_FILE: &str = "fleet-root.next.nk";

/// The private half of the fleet's root key.
pub struct RootKey(KeyPair);

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RootKey").field(&self.0.public_key()).finish()
    }
}

impl RootKey {
    /// Reads it from `file`, or from where `init` or a handover put it in `home`. It must be the private half of `root`.
    ///
    /// # Errors
    /// [`FleetError::File`] that says which file is missing, open to others, or that of another fleet.
    pub fn find(home: &Home, file: Option<&Path>, root: &PublicKey) -> Result<Self, FleetError> {
        let path = file.map_or_else(|| home.keys_dir().join(ROOT_FILE), Path::to_owned);
        if file.is_none()
            && let Ok(Some(next)) = Self::read(&home.keys_dir().join(NEXT_ROOT_FILE))
            && PublicKey::of(&next.0) == *root
        {
            // A handover broke off after it had taken effect.
            return Ok(next);
        }
        let wrong = |reason: String| FleetError::File { path: path.clone(), reason };
        let key = Self::read(&path)?.ok_or_else(|| {
            wrong(format!(
                "the root's key is not here, and only it can change who may order: bring {ROOT_FILE} back from where it \
                 is kept, and name it with --root FILE"
            ))
        })?;
        if key.public() != *root {
            let reason = format!("it is the key {}, and this fleet's root is {root}", key.public());
            return Err(wrong(reason));
        }
        Ok(key)
    }

    /// Reads a root's private key; `None` when there is no such file.
    ///
    /// # Errors
    /// [`FleetError::File`] when it is open to others, or none of a root.
    pub fn read(path: &Path) -> Result<Option<Self>, FleetError> {
        let Some(seed) = files::read(path)? else { return Ok(None) };
        files::check_secret(path)?;
        let wrong = |reason: &str| FleetError::File { path: path.to_owned(), reason: reason.to_owned() };
        let pair = KeyPair::from_seed(seed.trim()).map_err(|_| wrong("it does not hold an nkey seed"))?;
        if !matches!(pair.key_pair_type(), KeyPairType::Operator) {
            return Err(wrong("it does not hold the key of a root (its seed begins with SO)"));
        }
        Ok(Some(Self(pair)))
    }

    /// Makes one, and keeps it in a new file that nobody but its owner can read.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is such a file, [`FleetError::Io`] when the disk refuses.
    pub fn make(path: &Path) -> Result<Self, FleetError> {
        if path.exists() {
            return Err(FleetError::usage(format!("{} is there already: choose another file", path.display())));
        }
        let pair = KeyPair::new_operator();
        let seed = pair.seed().map_err(|error| FleetError::signing(&error))?;
        files::write(path, &format!("{seed}\n"), Access::Secret)?;
        Ok(Self(pair))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
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

/// The key that is to be the root, and where it will be kept.
#[derive(Debug)]
pub struct NewRoot {
    key: RootKey,
    /// Where it waits, and where it goes once it is the root. `None`: it stays where it is.
    place: Option<(PathBuf, PathBuf)>,
}

impl NewRoot {
    /// One whose key is kept in a file already.
    ///
    /// # Errors
    /// [`FleetError::File`] when it is none.
    pub fn from_file(path: &Path) -> Result<Self, FleetError> {
        let missing = || FleetError::File { path: path.to_owned(), reason: "there is no such file".into() };
        Ok(Self { key: RootKey::read(path)?.ok_or_else(missing)?, place: None })
    }

    /// A new one, which will stand in the place of the root's key in `home`. One that an attempt left behind is used again.
    ///
    /// # Errors
    /// [`FleetError`] when the disk refuses.
    pub fn at_home(home: &Home) -> Result<Self, FleetError> {
        let (next, place) = (home.keys_dir().join(NEXT_ROOT_FILE), home.keys_dir().join(ROOT_FILE));
        let key = match RootKey::read(&next)? {
            Some(key) => key,
            None => RootKey::make(&next)?,
        };
        Ok(Self { key, place: Some((next, place)) })
    }

    /// The key.
    pub const fn key(&self) -> &RootKey {
        &self.key
    }

    /// It is the root: what was the root's key in the home is of no use to anybody but a thief.
    pub(crate) fn settle(&self) -> Result<(), FleetError> {
        let Some((next, place)) = &self.place else { return Ok(()) };
        std::fs::rename(next, place).map_err(io_error("put the new root's key in place at", place))
    }
}
