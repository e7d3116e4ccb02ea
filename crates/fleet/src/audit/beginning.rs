//! What `init` did, for the audit log.
//!
//! There is no broker yet when a fleet is made, so there is no log to write to. What was made is kept in the home, and begins
//! the chain of the fleet's first operator: it stands in the same entry as the first thing that he does.

use std::path::PathBuf;

use bus::clock;
use bus::keys::FleetKeys;
use message::audit::Act;
use message::{PublicKey, SignatureError};
use serde::{Deserialize, Serialize};

use crate::context::Home;
use crate::enroll::{FIRST_OPERATOR, STATION};
use crate::error::FleetError;
use crate::files::{self, Access};

/// What was made, until the log has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beginning {
    /// Whose chain begins with it.
    by: PublicKey,
    acts: Vec<Act>,
}

fn file(home: &Home) -> PathBuf {
    home.dir().join("audit").join("beginning.json")
}

/// Keeps what `init` made: the root, who signs in its name, the accounts, the roles, the first operator and the station.
pub(crate) fn keep(
    home: &Home,
    keys: &FleetKeys,
    root: &PublicKey,
    (admin, station): (&PublicKey, &PublicKey),
) -> Result<(), FleetError> {
    let key = |text: String| PublicKey::parse(text).map_err(|error: SignatureError| FleetError::signing(&error));
    let made = |on: &str| Act::change("fleet init", on);
    let mut acts = vec![
        made("root").of_key(root).noting(format!(
            "made at {}, before there was a broker; the first policy lets those of role admin do everything",
            clock::now()
        )),
        made("signing key").of_key(&key(keys.signing_key())?),
    ];
    for (account, claims) in ["SYS", "CORE", "EDGE"].into_iter().zip(keys.account_jwts()) {
        acts.push(made(&format!("account {account}")).of_key(&key(claims.0)?));
    }
    for role in keys.role_keys() {
        acts.push(made(&format!("role {}", role.role.as_str())).of_key(&key(role.key)?));
    }
    acts.push(made(&format!("operator {FIRST_OPERATOR}")).of_key(admin));
    acts.push(made(&format!("station {STATION}")).of_key(station));
    let text = serde_json::to_string(&Beginning { by: admin.clone(), acts });
    files::write(&file(home), &text.map_err(|error| FleetError::signing(&error))?, Access::Plain)
}

/// What the chain of `key` begins with: nothing, if it is not that of the fleet's first operator.
pub(crate) fn of(home: &Home, key: &PublicKey) -> Result<Vec<Act>, FleetError> {
    let path = file(home);
    let Some(text) = files::read(&path)? else { return Ok(vec![]) };
    let beginning: Beginning = serde_json::from_str(&text).map_err(|error| FleetError::File {
        path,
        reason: format!(
            "{error}; it tells the audit log how this fleet was made: look why it is broken, then remove it, and the log \
             begins without it"
        ),
    })?;
    Ok(if beginning.by == *key { beginning.acts } else { vec![] })
}

/// The log has it.
pub(crate) fn told(home: &Home) {
    if let Err(error) = std::fs::remove_file(file(home)) {
        // It is told only by a chain that begins, so not again.
        tracing::debug!(%error, "the file with the beginning of the audit log is left behind");
    }
}
