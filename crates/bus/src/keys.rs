//! A fleet's keys on disk, and the credentials made with them.
//!
//! In flows the home of a fleet; out flow the tokens that the broker is configured with and the credentials of
//! people, stations and nodes. What each may do stands in `grants`. Private keys must never leave the files below
//! `<home>/keys`, which only their owner may read, but into credentials for the one they are made for.
//!
//! | file | what it is |
//! | --- | --- |
//! | `fleet-root.nk` | the fleet's identity; signs `fleet.jwt` only: take it offline, nothing here misses it |
//! | `fleet-signing.nk` | signs accounts, in daily use |
//! | `<role>.nk` | signs the users of one role, who then have exactly that role's rights |
//! | `<role>.next.nk` | the one that comes after it, while a rotation goes on |
//! | `fleet.jwt`, `sys.jwt`, `core.jwt`, `edge.jwt` | what the broker is told; not secret |
//!
//! The accounts' own private keys are thrown away at birth: nothing needs them.

mod door;
mod error;
mod files;
mod grants;
mod rotation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};

use crate::claims::{self, Account, ClaimsError, Creds, Operator, Token, User};
pub use door::{KNOCK_API, KNOCK_MESSAGE_MAX, knocker, knocker_inbox};
pub use error::KeysError;
pub use grants::{EDGE_API_PREFIX, Role, STATION_MAY_FAN_OUT};
pub use rotation::RoleKey;

/// Begins the tag that tells a client in which role its credentials are.
const ROLE_TAG: &str = "role:";

/// What the broker must know of a fleet. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The fleet's own token.
    pub operator_jwt: String,
    /// Public key of the account SYS.
    pub system_account: String,
    /// Public key and token of every account.
    pub accounts: Vec<(String, String)>,
}

/// The keys of a fleet, read from its home.
pub struct FleetKeys {
    dir: PathBuf,
    signing: KeyPair,
    roles: Vec<(Role, KeyPair)>,
    operator_jwt: String,
    sys: Issued,
    core: Issued,
    edge: Issued,
}

impl std::fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetKeys").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// An account's token, and what it says.
struct Issued {
    jwt: String,
    token: Token<Account>,
}

impl Issued {
    fn parse(jwt: String) -> Result<Self, ClaimsError> {
        Ok(Self { token: claims::read(&jwt)?, jwt })
    }
}

impl FleetKeys {
    /// Whether `home` holds a fleet's keys.
    #[must_use]
    pub fn exist(home: &Path) -> bool {
        files::dir(home).is_dir()
    }

    /// Makes a new fleet. All of its files appear at once or not at all.
    ///
    /// # Errors
    /// When there is one already, or the disk refuses.
    pub fn create(home: &Path) -> Result<Self, KeysError> {
        let (root, signing) = (KeyPair::new_operator(), KeyPair::new_operator());
        let roles: Vec<_> = Role::ALL.into_iter().map(|role| (role, KeyPair::new_account())).collect();
        let [sys, core, edge] = std::array::from_fn(|_| KeyPair::new_account().public_key());
        let operator_jwt =
            claims::sign(&root, &root.public_key(), "steward", Operator::new(vec![signing.public_key()], sys.clone()))?;
        let accounts = [
            ("sys", sys, grants::sys(scopes(&roles, &[Role::System]))),
            ("core", core.clone(), grants::core(scopes(&roles, &CORE_ROLES))),
            ("edge", edge, grants::edge(&core, scopes(&roles, &[Role::Node]))),
        ];

        let mut batch = files::Batch::new(home)?;
        batch.secret("fleet-root", &root)?;
        batch.secret("fleet-signing", &signing)?;
        for (role, key) in &roles {
            batch.secret(role.as_str(), key)?;
        }
        batch.token("fleet", &operator_jwt)?;
        for (name, public, account) in accounts {
            batch.token(name, &claims::sign(&signing, &public, &name.to_uppercase(), account)?)?;
        }
        batch.commit()?;
        Self::open(home)
    }

    /// Reads the fleet at `home`. Where this version of Steward grants other rights than the stored tokens say, it
    /// signs them anew; what was revoked stays revoked.
    ///
    /// # Errors
    /// When there is none, it is damaged, or others could read it.
    pub fn open(home: &Path) -> Result<Self, KeysError> {
        let dir = files::dir(home);
        files::check_dir(&dir)?;
        let roles = Role::ALL
            .into_iter()
            .map(|role| Ok((role, files::secret(&dir, role.as_str())?)))
            .collect::<Result<_, KeysError>>()?;
        let mut keys = Self {
            signing: files::secret(&dir, "fleet-signing")?,
            roles,
            operator_jwt: files::token(&dir, "fleet")?,
            sys: Issued::parse(files::token(&dir, "sys")?)?,
            core: Issued::parse(files::token(&dir, "core")?)?,
            edge: Issued::parse(files::token(&dir, "edge")?)?,
            dir,
        };
        keys.refresh()?;
        Ok(keys)
    }

    fn refresh(&mut self) -> Result<(), KeysError> {
        let core_key = self.core.token.sub.clone();
        let wanted = [
            grants::sys(scopes(&self.roles, &[Role::System])),
            grants::core(scopes(&self.roles, &CORE_ROLES)),
            grants::edge(&core_key, scopes(&self.roles, &[Role::Node])),
        ];
        for (issued, mut wanted) in [&mut self.sys, &mut self.core, &mut self.edge].into_iter().zip(wanted) {
            wanted.revocations.clone_from(&issued.token.nats.revocations);
            wanted.tags.clone_from(&issued.token.nats.tags);
            wanted.signing_keys = rotation::merged(&issued.token.nats, wanted.signing_keys);
            if issued.token.nats != wanted {
                reissue(&self.dir, &self.signing, issued, wanted)?;
            }
        }
        Ok(())
    }

    /// What the broker must be configured with.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust {
            operator_jwt: self.operator_jwt.clone(),
            system_account: self.sys.token.sub.clone(),
            accounts: self.account_jwts(),
        }
    }

    /// The fleet's own token.
    #[must_use]
    pub fn operator_jwt(&self) -> &str {
        &self.operator_jwt
    }

    /// The public key that signs the accounts' tokens.
    #[must_use]
    pub fn signing_key(&self) -> String {
        self.signing.public_key()
    }

    /// Public key and token of SYS, CORE and EDGE.
    #[must_use]
    pub fn account_jwts(&self) -> Vec<(String, String)> {
        [&self.sys, &self.core, &self.edge]
            .map(|issued| (issued.token.sub.clone(), issued.jwt.clone()))
            .into_iter()
            .collect()
    }

    /// Credentials of a person who orders.
    ///
    /// # Errors
    /// When the name cannot be one, or `key` has no private half.
    pub fn operator_user(&self, name: &str, key: &KeyPair) -> Result<Creds, KeysError> {
        self.user(Role::Operator, name, key)
    }

    /// Credentials of a management station.
    ///
    /// # Errors
    /// As [`Self::operator_user`].
    pub fn station_user(&self, name: &str, key: &KeyPair) -> Result<Creds, KeysError> {
        self.user(Role::Station, name, key)
    }

    /// Credentials to set up streams and buckets, with a key made for the occasion.
    ///
    /// # Errors
    /// As [`Self::operator_user`].
    pub fn provisioner_user(&self) -> Result<Creds, KeysError> {
        self.user(Role::Provisioner, "provisioner", &KeyPair::new_user())
    }

    /// Credentials to push account claims to the broker, with a key made for the occasion.
    ///
    /// # Errors
    /// As [`Self::operator_user`].
    pub fn system_user(&self) -> Result<Creds, KeysError> {
        self.user(Role::System, "system", &KeyPair::new_user())
    }

    /// Credentials of a node whose key was made here. See [`Self::node_jwt`] for keys that stay on the node.
    ///
    /// # Errors
    /// As [`Self::operator_user`].
    pub fn node_user(&self, name: &str, key: &KeyPair) -> Result<Creds, KeysError> {
        self.user(Role::Node, name, key)
    }

    /// The token of a node that keeps its private key to itself.
    ///
    /// # Errors
    /// When the name cannot be one, or the key is not that of a user.
    pub fn node_jwt(&self, name: &str, public_key: &str) -> Result<String, KeysError> {
        self.user_jwt(Role::Node, name, public_key)
    }

    /// Cuts off a node: whatever token its key holds is void from now on. Returns EDGE's new token, which must reach
    /// the broker (`$SYS.REQ.CLAIMS.UPDATE`) to take effect at once; at the latest it does at the broker's next start.
    ///
    /// # Errors
    /// When `public_key` is not one of a user, or the disk refuses.
    pub fn revoke_node(&mut self, public_key: &str) -> Result<String, KeysError> {
        self.revoke(Role::Node, public_key)
    }

    /// The same for a user of any role: returns the new token of the account that the role lives in.
    ///
    /// # Errors
    /// As [`Self::revoke_node`].
    pub fn revoke(&mut self, role: Role, public_key: &str) -> Result<String, KeysError> {
        check_user_key(public_key)?;
        let mut account = self.account(role).token.nats.clone();
        account.revocations.insert(public_key.to_owned(), claims::unix_now());
        self.reissue(role, account)
    }

    /// Takes over what the broker knows to be revoked and these files do not: somebody may have revoked a key elsewhere, with
    /// another copy of them. Claims that this fleet did not sign say nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn learn(&mut self, role: Role, jwt: &str) -> Result<(), KeysError> {
        let Ok(known) = claims::read::<Account>(jwt) else { return Ok(()) };
        let own = self.account(role);
        if known.iss != self.signing.public_key() || known.sub != own.token.sub {
            return Ok(());
        }
        let mut account = own.token.nats.clone();
        for (key, since) in known.nats.revocations {
            let held = account.revocations.entry(key).or_insert(since);
            *held = since.max(*held);
        }
        // Keys may have been added or retired elsewhere, too; one that was retired anywhere is nowhere a key any more.
        rotation::learn(&mut account, known.nats.signing_keys, known.nats.tags);
        // Also when nothing is new: what is handed to the broker must be younger than what it has.
        let younger = known.iat > own.token.iat;
        if account != own.token.nats || younger {
            self.account_mut(role).token.iat = known.iat.max(self.account(role).token.iat);
            self.reissue(role, account)?;
        }
        Ok(())
    }

    /// The public key of the account that a role lives in.
    #[must_use]
    pub fn account_of(&self, role: Role) -> &str {
        &self.account(role).token.sub
    }

    /// Keeps every other process from changing these files until the returned guard is dropped.
    ///
    /// # Errors
    /// When another one has held them for 10 s.
    pub fn lock(home: &Path) -> Result<std::fs::File, KeysError> {
        let dir = files::dir(home);
        files::check_dir(&dir)?;
        files::lock(&dir)
    }

    fn reissue(&mut self, role: Role, account: Account) -> Result<String, KeysError> {
        let (dir, signing) = (self.dir.clone(), self.signing.clone());
        let issued = self.account_mut(role);
        reissue(&dir, &signing, issued, account)?;
        Ok(issued.jwt.clone())
    }

    fn account(&self, role: Role) -> &Issued {
        match role {
            Role::Node => &self.edge,
            Role::System => &self.sys,
            Role::Operator | Role::Station | Role::Provisioner => &self.core,
        }
    }

    fn account_mut(&mut self, role: Role) -> &mut Issued {
        match role {
            Role::Node => &mut self.edge,
            Role::System => &mut self.sys,
            Role::Operator | Role::Station | Role::Provisioner => &mut self.core,
        }
    }

    /// The keys of nodes that were cut off, and since when (seconds of Unix time).
    #[must_use]
    pub fn revoked_nodes(&self) -> &BTreeMap<String, i64> {
        &self.edge.token.nats.revocations
    }

    fn user(&self, role: Role, name: &str, key: &KeyPair) -> Result<Creds, KeysError> {
        Ok(Creds::new(self.user_jwt(role, name, &key.public_key())?, key)?)
    }

    fn user_jwt(&self, role: Role, name: &str, public_key: &str) -> Result<String, KeysError> {
        check_name(name)?;
        check_user_key(public_key)?;
        let account = self.account(role);
        // Every role has a key: `create` and `open` see to it.
        let signer = self.roles.iter().find(|(of, _)| *of == role).map_or(&self.signing, |(_, key)| key);
        if rotation::is_retired(&account.token.nats, &signer.public_key()) {
            return Err(KeysError::Retired { role: role.as_str(), dir: self.dir.clone() });
        }
        let user = User::scoped(account.token.sub.clone(), vec![format!("{ROLE_TAG}{}", role.as_str())]);
        // Made anew for a key that was revoked, the token must be younger than the revocation.
        let revoked = account.token.nats.revocations.get(public_key).copied().unwrap_or(0);
        let iat = claims::unix_now().max(revoked + 1);
        Ok(claims::sign_at(signer, public_key, name, user, iat)?)
    }
}

impl Creds {
    /// Whose credentials these are and in which role; no role if Steward did not make them.
    ///
    /// # Errors
    /// When they hold no user token.
    pub fn identity(&self) -> Result<(String, Option<Role>), ClaimsError> {
        let token = self.token()?;
        let role = token.nats.tags.iter().find_map(|tag| Role::named(tag.strip_prefix(ROLE_TAG)?));
        Ok((token.name, role))
    }

    /// The inbox prefix a client must use with these credentials.
    ///
    /// # Errors
    /// When they hold no user token.
    pub fn inbox_prefix(&self) -> Result<String, ClaimsError> {
        let (name, role) = self.identity()?;
        Ok(role.map_or_else(|| "_INBOX".to_owned(), |role| role.inbox_prefix(&name)))
    }
}

/// The roles that live in CORE.
const CORE_ROLES: [Role; 3] = [Role::Operator, Role::Station, Role::Provisioner];

fn scopes(keys: &[(Role, KeyPair)], roles: &[Role]) -> Vec<claims::SigningKey> {
    keys.iter().filter(|(role, _)| roles.contains(role)).map(|(role, key)| role.scope(key.public_key())).collect()
}

/// Signs an account's claims anew and keeps them, in place of those in `issued`.
fn reissue(dir: &Path, signing: &KeyPair, issued: &mut Issued, account: Account) -> Result<(), KeysError> {
    let Token { sub, name, iat, .. } = &issued.token;
    // Of two tokens the broker keeps the later one, and its clock counts seconds.
    let iat = claims::unix_now().max(iat + 1);
    let jwt = claims::sign_at(signing, sub, name, account, iat)?;
    files::replace_token(dir, &name.to_lowercase(), &jwt)?;
    *issued = Issued::parse(jwt)?;
    Ok(())
}

/// A name becomes a token of subjects that rights are granted on: a `*` in it would grant everyone's.
fn check_name(name: &str) -> Result<(), KeysError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let ok = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
        && !["all", "in", "core"].contains(&name);
    if ok { Ok(()) } else { Err(KeysError::Name { name: name.to_owned() }) }
}

fn check_user_key(public_key: &str) -> Result<(), KeysError> {
    match KeyPair::from_public_key(public_key) {
        Ok(key) if matches!(key.key_pair_type(), KeyPairType::User) => Ok(()),
        _ => Err(KeysError::PublicKey(public_key.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_made_once_and_read_back() {
        let home = tempfile::tempdir().unwrap();
        assert!(!FleetKeys::exist(home.path()));
        assert!(matches!(FleetKeys::open(home.path()), Err(KeysError::Missing(_))));
        let made = FleetKeys::create(home.path()).unwrap();
        assert!(matches!(FleetKeys::create(home.path()), Err(KeysError::Exists(_))));
        let read = FleetKeys::open(home.path()).unwrap();
        assert_eq!(made.trust(), read.trust());
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        FleetKeys::create(home.path()).unwrap();
        let file = home.path().join("keys/node.nk");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = FleetKeys::open(home.path()).unwrap_err().to_string();
        assert!(error.contains("node.nk") && error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(home.path().join("keys"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = FleetKeys::open(home.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn the_root_key_may_be_taken_offline() {
        let home = tempfile::tempdir().unwrap();
        FleetKeys::create(home.path()).unwrap();
        std::fs::remove_file(home.path().join("keys/fleet-root.nk")).unwrap();
        let keys = FleetKeys::open(home.path()).unwrap();
        keys.operator_user("alice", &KeyPair::new_user()).unwrap();
    }

    #[test]
    fn a_name_that_would_widen_rights_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let keys = FleetKeys::create(home.path()).unwrap();
        for name in ["", "*", ">", "a.b", "a b", "-a", "in", "core", "all", "{{name()}}", "é"] {
            let error = keys.node_jwt(name, &KeyPair::new_user().public_key()).unwrap_err();
            assert!(matches!(error, KeysError::Name { .. }), "{name}: {error}");
        }
        assert!(matches!(keys.node_jwt("ship1", "nonsense"), Err(KeysError::PublicKey(_))));
        let account = KeyPair::new_account().public_key();
        assert!(matches!(keys.node_jwt("ship1", &account), Err(KeysError::PublicKey(_))));
    }

    #[test]
    fn a_revocation_outlives_reopening_and_makes_the_token_younger() {
        let home = tempfile::tempdir().unwrap();
        let mut keys = FleetKeys::create(home.path()).unwrap();
        let ship = KeyPair::new_user().public_key();
        let before = keys.edge.token.iat;
        keys.revoke_node(&ship).unwrap();
        assert!(keys.edge.token.iat > before);
        let keys = FleetKeys::open(home.path()).unwrap();
        assert!(keys.revoked_nodes().contains_key(&ship));
    }

    #[test]
    fn credentials_tell_role_and_inbox() {
        let home = tempfile::tempdir().unwrap();
        let keys = FleetKeys::create(home.path()).unwrap();
        let node = keys.node_user("ship1", &KeyPair::new_user()).unwrap();
        assert_eq!(node.identity().unwrap(), ("ship1".to_owned(), Some(Role::Node)));
        assert_eq!(node.inbox_prefix().unwrap(), "_INBOX.ship1");
        let alice = keys.operator_user("alice", &KeyPair::new_user()).unwrap();
        assert_eq!(alice.inbox_prefix().unwrap(), "_INBOX_alice");
    }
}
