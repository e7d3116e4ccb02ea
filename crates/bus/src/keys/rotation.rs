//! New role keys in the place of old ones, while users of both are let in.
//!
//! What the broker goes by are the account's claims: first they list a role's next key beside the present one, then the next
//! one signs, and at last the old one is taken out, from when on nobody is let in whom it signed. The claims remember which
//! keys were retired, so that an old copy of these files does not bring one back. What counts is in the claims; the file of
//! the next key only bridges the moment in which the broker is told.

use std::path::PathBuf;

use nkeys::KeyPair;

use super::{FleetKeys, KeysError, Role, files};
use crate::claims::{Account, SigningKey};

/// Begins the tag that names a key which is no key any more.
const RETIRED_TAG: &str = "retired:";

/// A key that signs the users of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKey {
    /// The role.
    pub role: Role,
    /// Its public half.
    pub key: String,
    /// Whether it is the one that signs now; one that does not is let in by the broker until it is retired.
    pub signs: bool,
}

pub(super) fn is_retired(account: &Account, key: &str) -> bool {
    account.tags.iter().any(|tag| tag.strip_prefix(RETIRED_TAG) == Some(key))
}

/// The signing keys that an account shall have: those that it has, with the rights that `wanted` gives their role, and those
/// of `wanted` that it lacks; but none that was retired.
pub(super) fn merged(held: &Account, wanted: Vec<SigningKey>) -> Vec<SigningKey> {
    let rights = |key: &SigningKey| wanted.iter().find(|wanted| wanted.role == key.role);
    let kept = held.signing_keys.iter().filter_map(|key| {
        let role = rights(key)?;
        let mut scoped = role.clone();
        scoped.key.clone_from(&key.key);
        Some(scoped)
    });
    let mut keys: Vec<SigningKey> = kept.collect();
    for key in &wanted {
        if !keys.iter().any(|held| held.key == key.key) {
            keys.push(key.clone());
        }
    }
    keys.retain(|key| !is_retired(held, &key.key));
    keys
}

/// Takes over what other claims of the same account know.
pub(super) fn learn(account: &mut Account, keys: Vec<SigningKey>, tags: Vec<String>) {
    for tag in tags {
        if !account.tags.contains(&tag) {
            account.tags.push(tag);
        }
    }
    for key in keys {
        if !account.signing_keys.iter().any(|held| held.key == key.key) {
            account.signing_keys.push(key);
        }
    }
    let retired = account.clone();
    account.signing_keys.retain(|key| !is_retired(&retired, &key.key));
}

impl FleetKeys {
    /// The keys of all roles: of each the one that signs, and those before it that are not retired yet.
    #[must_use]
    pub fn role_keys(&self) -> Vec<RoleKey> {
        let mut keys = Vec::new();
        for (role, pair) in &self.roles {
            let signs = pair.public_key();
            keys.push(RoleKey { role: *role, key: signs.clone(), signs: true });
            keys.extend(self.old_keys(*role).into_iter().map(|key| RoleKey { role: *role, key, signs: false }));
        }
        keys
    }

    /// The key that signs a role's users now.
    #[must_use]
    pub fn role_key(&self, role: Role) -> Option<String> {
        self.roles.iter().find(|(of, _)| *of == role).map(|(_, pair)| pair.public_key())
    }

    /// The keys of a role that sign nobody any more, and whose users are still let in.
    #[must_use]
    pub fn old_keys(&self, role: Role) -> Vec<String> {
        let signs = self.role_key(role);
        let next = files::secret(&self.dir, &next_file(role)).ok().map(|pair| pair.public_key());
        let keys = self.account(role).token.nats.signing_keys.iter();
        keys.filter(|key| {
            key.role == role.as_str() && Some(&key.key) != signs.as_ref() && Some(&key.key) != next.as_ref()
        })
        .map(|key| key.key.clone())
        .collect()
    }

    /// A token for a user who keeps his private key to himself.
    ///
    /// # Errors
    /// When the name cannot be one, the key is not that of a user, or these files are an old copy.
    pub fn renewed_jwt(&self, role: Role, name: &str, public_key: &str) -> Result<String, KeysError> {
        self.user_jwt(role, name, public_key)
    }

    /// Makes a role's next key, unless an earlier attempt has, and returns the claims of its account in which both count. They
    /// have to reach the broker before [`Self::finish_rotation`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin_rotation(&mut self, role: Role) -> Result<String, KeysError> {
        let name = next_file(role);
        let next = match files::secret(&self.dir, &name) {
            Ok(next) => next,
            Err(KeysError::Damaged { .. }) if !self.path_of(&name).exists() => {
                let next = KeyPair::new_account();
                files::new_secret(&self.dir, &name, &next)?;
                next
            }
            Err(error) => return Err(error),
        };
        let mut account = self.account(role).token.nats.clone();
        if !account.signing_keys.iter().any(|key| key.key == next.public_key()) {
            account.signing_keys.push(role.scope(next.public_key()));
        }
        self.reissue(role, account)
    }

    /// From here on the next key signs the role's users.
    ///
    /// # Errors
    /// When the disk refuses, or no rotation was begun.
    pub fn finish_rotation(&mut self, role: Role) -> Result<(), KeysError> {
        let name = next_file(role);
        let next = files::secret(&self.dir, &name)?;
        files::rename_secret(&self.dir, &name, role.as_str())?;
        for (of, pair) in &mut self.roles {
            if *of == role {
                *pair = next.clone();
            }
        }
        Ok(())
    }

    /// Takes the old keys of a role out of its account: nobody is let in any more whom they signed. Returns the claims for the
    /// broker.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn retire(&mut self, role: Role) -> Result<String, KeysError> {
        let old = self.old_keys(role);
        let mut account = self.account(role).token.nats.clone();
        account.signing_keys.retain(|key| !old.contains(&key.key));
        account.tags.extend(old.into_iter().map(|key| format!("{RETIRED_TAG}{key}")));
        self.reissue(role, account)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.nk"))
    }
}

fn next_file(role: Role) -> String {
    format!("{}.next", role.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims;

    fn issuers(keys: &FleetKeys) -> Vec<String> {
        keys.edge.token.nats.signing_keys.iter().map(|key| key.key.clone()).collect()
    }

    #[test]
    fn a_rotation_outlives_reopening_at_each_step_and_a_retired_key_never_comes_back() {
        let home = tempfile::tempdir().unwrap();
        let mut keys = FleetKeys::create(home.path()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp").arg("-a").arg(home.path().join("keys")).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let first = keys.role_key(Role::Node).unwrap();
        keys.begin_rotation(Role::Node).unwrap();
        let mut keys = FleetKeys::open(home.path()).unwrap();
        assert_eq!((keys.role_key(Role::Node).unwrap(), keys.old_keys(Role::Node).len()), (first.clone(), 0));
        let jwt = keys.begin_rotation(Role::Node).unwrap();
        assert_eq!(issuers(&keys).len(), 2, "the one that was made before is used");
        keys.finish_rotation(Role::Node).unwrap();
        let mut keys = FleetKeys::open(home.path()).unwrap();
        let second = keys.role_key(Role::Node).unwrap();
        assert_eq!((keys.old_keys(Role::Node), issuers(&keys)), (vec![first.clone()], vec![first, second.clone()]));
        assert_eq!(jwt, keys.edge.jwt, "nothing is signed anew where nothing changed");
        let user = keys.renewed_jwt(Role::Node, "ship1", &KeyPair::new_user().public_key()).unwrap();
        assert_eq!(claims::read::<claims::User>(&user).unwrap().iss, second);
        keys.retire(Role::Node).unwrap();
        let keys = FleetKeys::open(home.path()).unwrap();
        assert_eq!((keys.old_keys(Role::Node).len(), issuers(&keys)), (0, vec![second.clone()]));

        // A copy of the files from before learns of it from the broker, brings nothing back and signs nobody.
        let mut old = FleetKeys::open(copy.path()).unwrap();
        old.learn(Role::Node, &keys.edge.jwt).unwrap();
        old.revoke_node(&KeyPair::new_user().public_key()).unwrap();
        let old = FleetKeys::open(copy.path()).unwrap();
        assert_eq!(issuers(&old), [second]);
        let refused = old.node_user("ship1", &KeyPair::new_user()).unwrap_err();
        assert!(matches!(refused, KeysError::Retired { .. }), "{refused}");
    }
}
