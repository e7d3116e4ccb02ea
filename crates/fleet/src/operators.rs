//! Who may order: operators come and go by a new list, which the root signs.
//!
//! The list's serial only rises. It goes to the broker first, by compare-and-set, so that of two changes at once none
//! is lost; nodes hear of it while it is stored. What a revoked operator had signed about nodes is signed anew by
//! whoever revokes him, or those nodes would be nobody's.

use std::path::Path;

use bus::BusError;
use bus::clock;
use bus::keys::{FleetKeys, Role};
use bus::kv::{NODES, POLICY};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use message::audit::Act;
use message::{Lineage, NodeName, Operator, PublicKey, Revoked, SealedTrust, Token, Trust, WIRE_VERSION};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use crate::connection::{CONFLICTS_MAX, Fleet, TRUST_KEY, open_trust};
use crate::context::{Context, Home};
use crate::enroll::STATION;
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::revoke::cut_off;
use crate::root::RootKey;

/// How many records are signed anew at once.
const IN_FLIGHT_MAX: usize = 64;
/// The largest list: every node reads it and keeps it.
const LIST_BYTES_MAX: usize = 512 * 1024;

/// What a new operator is given, in one file: who he is, whom to believe, where the broker is. It is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorBundle {
    /// The wire's version.
    pub v: u8,
    /// Always `operator`.
    pub kind: OperatorKind,
    /// The operator's name.
    pub name: NodeName,
    /// Where the broker is.
    pub server: String,
    /// The authority that the broker's certificate must come from, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The certificate that he shows to a broker that asks for one, and the key of that, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The text of his `.creds` file.
    pub creds: String,
    /// The node in whose name he orders.
    pub node: NodeName,
    /// The fleet's first root key, which names the fleet.
    pub root: PublicKey,
    /// Who may order, sealed by the root, with the chain that leads to it where that is another one by now.
    pub trust: SealedTrust,
}

/// The `kind` of an operator's bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorKind {
    /// The only one.
    Operator,
}

impl std::fmt::Debug for OperatorBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorBundle").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}

impl OperatorBundle {
    /// Reads one.
    ///
    /// # Errors
    /// [`FleetError::File`] when it is none, or its list is not signed by its root.
    pub fn load(path: &Path) -> Result<Self, FleetError> {
        let wrong = |reason: String| FleetError::File { path: path.to_owned(), reason };
        let text = files::read(path)?.ok_or_else(|| {
            wrong("there is no such file; `steward operator add NAME --out FILE` makes one where the keys are".into())
        })?;
        let bundle: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if bundle.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}, this steward speaks version {WIRE_VERSION}", bundle.v)));
        }
        Lineage::new(bundle.root.clone()).open(&bundle.trust).map_err(|error| wrong(error.to_string()))?;
        bus::claims::Creds::parse(&bundle.creds).map_err(|error| wrong(error.to_string()))?;
        Ok(bundle)
    }

    /// Writes it, in one piece, for its owner only.
    ///
    /// # Errors
    /// [`FleetError::Io`] when the disk refuses.
    pub fn save(&self, path: &Path) -> Result<(), FleetError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| FleetError::signing(&error))?;
        files::write(path, &format!("{text}\n"), Access::Secret)
    }

    /// Puts the credentials in it in the place of those at `path`.
    ///
    /// # Errors
    /// [`FleetError::Io`] when the disk refuses.
    pub fn replace_creds(&self, path: &Path) -> Result<(), FleetError> {
        files::write(path, &self.creds, Access::Secret)
    }

    /// Makes a context of it in `home`, under the operator's name or another.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is a context of that name, or the home belongs to another fleet.
    pub fn install(&self, home: &Home, name: Option<&str>) -> Result<Context, FleetError> {
        let name = name.unwrap_or(self.name.as_str()).to_owned();
        let creds = home.creds_dir().join(format!("{name}.creds"));
        if Context::list(home)?.contains(&name) || creds.exists() {
            return Err(FleetError::usage(format!(
                "{} has a context or credentials named {name} already: choose another name with --name",
                home.dir().display()
            )));
        }
        let held = files::read(&home.trust_file())?.and_then(|text| serde_json::from_str::<SealedTrust>(&text).ok());
        match held {
            Some(held) if Lineage::new(self.root.clone()).open(&held).is_err() => {
                return Err(FleetError::usage(format!(
                    "{} belongs to another fleet: choose another --home for this one",
                    home.dir().display()
                )));
            }
            Some(_) => {}
            None => save_list(home, &self.trust)?,
        }
        files::write(&creds, &self.creds, Access::Secret)?;
        let ca = match &self.ca {
            Some(pem) => {
                let path = home.contexts_dir().join(format!("{name}.ca.pem"));
                files::write(&path, pem, Access::Plain)?;
                if let Some(client) = &self.client {
                    files::write(&bus::tls::client_file(&path), client, Access::Secret)?;
                }
                Some(path)
            }
            None => None,
        };
        let context = Context {
            name,
            server: self.server.clone(),
            ca,
            creds,
            key_command: None,
            node: self.node.clone(),
            home: home.dir().to_owned(),
            root: self.root.clone(),
            operator: self.name.to_string(),
        };
        context.save(home)?;
        Ok(context)
    }
}

/// What revoking an operator has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorRevoked {
    /// The keys that count no more.
    pub keys: Vec<PublicKey>,
    /// The serial of the new list.
    pub serial: u64,
    /// How many records of nodes were signed anew.
    pub records: usize,
}

pub(crate) fn save_list(home: &Home, sealed: &SealedTrust) -> Result<(), FleetError> {
    let text = serde_json::to_string_pretty(sealed).map_err(|error| FleetError::signing(&error))?;
    files::write(&home.trust_file(), &format!("{text}\n"), Access::Plain)
}

impl Fleet {
    /// Puts a new operator on the list, with a key made for him; one whose word counts for the policy too, if so wanted.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when the name is taken; otherwise when the list cannot be signed or stored.
    pub async fn add_operator(
        &self,
        keys: &FleetKeys,
        root: &RootKey,
        name: &NodeName,
        (roles, signs_policies): (&[Token], bool),
    ) -> Result<OperatorBundle, FleetError> {
        // These names have inboxes of their own at the broker.
        if [STATION, Role::Provisioner.as_str(), Role::Station.as_str(), Role::System.as_str()].contains(&name.as_str())
        {
            return Err(FleetError::usage(format!("{name} is the name of a part of the fleet: choose another")));
        }
        let pair = KeyPair::new_user();
        let creds = keys.operator_user(name.as_str(), &pair)?.render();
        let key = PublicKey::of(&pair);
        let told: Vec<&str> = roles.iter().map(Token::as_str).collect();
        let told = format!("roles {}{}", told.join(","), if signs_policies { "; signs policies" } else { "" });
        self.record(Act::change("operator add", name.as_str()).of_key(&key).noting(told)).await?;
        let sealed = self
            .change_trust(root, |trust| {
                if trust.operators.iter().any(|operator| operator.name == name.as_str()) {
                    return Err(FleetError::usage(format!(
                        "there is an operator {name} already: choose another name, or take that one off first with \
                         `steward operator revoke {name} --yes`"
                    )));
                }
                let operator = Operator { name: name.to_string(), key: key.clone(), roles: roles.to_vec() };
                trust.operators.push(operator);
                if signs_policies {
                    trust.policy_keys.push(key.clone());
                }
                Ok(())
            })
            .await?;
        self.operator_bundle(name, creds, sealed)
    }

    /// Throws out an operator: the broker cuts him off, and nodes refuse what he has signed as soon as they hear of it. With
    /// `key`, of several keys that go by his name only that one.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is none of that name, or it is oneself.
    pub async fn revoke_operator(
        &self,
        home: &Home,
        root: &RootKey,
        name: &str,
        key: Option<&PublicKey>,
    ) -> Result<OperatorRevoked, FleetError> {
        self.signing_operator()?;
        let trust = self.trust();
        let named = trust.operators.iter().filter(|operator| operator.name == name);
        let keys: Vec<PublicKey> =
            named.map(|operator| operator.key.clone()).filter(|held| key.is_none_or(|key| key == held)).collect();
        if keys.is_empty() {
            let names: Vec<&str> = trust.operators.iter().map(|operator| operator.name.as_str()).collect();
            let with = key.map(|key| format!(" with the key {key}")).unwrap_or_default();
            return Err(FleetError::usage(format!(
                "there is no operator {name}{with}; there are {}",
                names.join(", ")
            )));
        }
        if keys.contains(&self.key()) {
            return Err(FleetError::usage(format!(
                "{name} is who you are: what this key has signed about nodes must be signed anew by another one. Use \
                 the context of another operator (`steward context ls`), or take a new key with `steward operator \
                 rotate {name}`"
            )));
        }
        for key in &keys {
            self.record(Act::change("operator revoke", name).of_key(key)).await?;
            cut_off(home, self.context(), Role::Operator, key).await?;
        }
        // From here on he can write nothing any more.
        let mut records = 0;
        for key in &keys {
            records += self.sign_anew(key).await?;
        }
        self.sign_policy_anew(root, &keys).await?;
        let sealed = self
            .change_trust(root, |trust| {
                trust.operators.retain(|operator| !keys.contains(&operator.key));
                trust.policy_keys.retain(|key| !keys.contains(key));
                for key in &keys {
                    if trust.revoked(key).is_none() {
                        trust.revoked.push(Revoked { name: name.to_owned(), key: key.clone(), revoked: clock::now() });
                    }
                }
                Ok(())
            })
            .await?;
        let serial = self.roots().open(&sealed).map_or(0, |(trust, _)| trust.serial);
        Ok(OperatorRevoked { keys, serial, records })
    }

    /// Puts a second key for an operator on the list, with the roles of the first. Both count until the older one is revoked,
    /// which takes the new one if it is one's own.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is none of that name, or he has two keys already.
    pub async fn renew_operator(
        &self,
        keys: &FleetKeys,
        root: &RootKey,
        name: &NodeName,
    ) -> Result<(OperatorBundle, PublicKey), FleetError> {
        let (pair, trust) = (KeyPair::new_user(), self.trust());
        let mut named = trust.operators.iter().filter(|operator| operator.name == name.as_str());
        let (held, second) = (named.next(), named.next());
        let Some(held) = held else {
            return Err(FleetError::usage(format!("there is no operator {name}; `steward operator ls` lists them")));
        };
        if second.is_some() {
            return Err(FleetError::usage(format!(
                "{name} has two keys already: revoke the older one first with `steward operator revoke {name} --key KEY --yes`"
            )));
        }
        let (old, roles, key) = (held.key.clone(), held.roles.clone(), PublicKey::of(&pair));
        let creds = keys.operator_user(name.as_str(), &pair)?.render();
        let told = format!("beside {old}");
        self.record(Act::change("operator rotate", name.as_str()).of_key(&key).noting(told)).await?;
        let sealed = self
            .change_trust(root, |trust| {
                let operator = Operator { name: name.to_string(), key: key.clone(), roles: roles.clone() };
                trust.operators.push(operator);
                if trust.policy_keys.contains(&old) {
                    trust.policy_keys.push(key.clone());
                }
                Ok(())
            })
            .await?;
        Ok((self.operator_bundle(name, creds, sealed)?, old))
    }

    fn operator_bundle(
        &self,
        name: &NodeName,
        creds: String,
        trust: SealedTrust,
    ) -> Result<OperatorBundle, FleetError> {
        Ok(OperatorBundle {
            v: WIRE_VERSION,
            kind: OperatorKind::Operator,
            name: name.clone(),
            server: self.context().server.clone(),
            ca: self.context().ca_pem()?,
            client: self.context().client_pem(name)?,
            creds,
            node: self.context().node.clone(),
            root: self.context().root.clone(),
            trust,
        })
    }

    /// Signs the records of nodes that `signer` had signed with this identity. Returns how many.
    async fn sign_anew(&self, signer: &PublicKey) -> Result<usize, FleetError> {
        let by = self.signing_operator()?;
        let (records, _) = self.bus().kv_all(NODES, "*").await?;
        let his = records.iter().filter(|record| record.signer().is_ok_and(|key| key == *signer));
        let signed: Vec<bool> = stream::iter(his)
            .map(|written| async {
                let Ok(mut record) = self.believe(written) else { return Ok(false) };
                record.by.clone_from(&by);
                self.write_record(&record, written.sequence).await
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        Ok(signed.into_iter().filter(|signed| *signed).count())
    }

    /// Changes the list of operators: a new one with the next serial, sealed by the root, at the broker and at home.
    pub(crate) async fn change_trust(
        &self,
        root: &RootKey,
        change: impl Fn(&mut Trust) -> Result<(), FleetError>,
    ) -> Result<SealedTrust, FleetError> {
        self.change_list(root, |trust, _| change(trust)).await
    }

    /// The same for the chain of roots, too: who is the root when `change` has been at it has to be `root`.
    pub(crate) async fn change_list(
        &self,
        root: &RootKey,
        change: impl Fn(&mut Trust, &mut Lineage) -> Result<(), FleetError>,
    ) -> Result<SealedTrust, FleetError> {
        for _ in 0..CONFLICTS_MAX {
            let stored = self.bus().kv_get(POLICY, TRUST_KEY).await?;
            if let Some(theirs) = stored.as_ref().and_then(|m| open_trust(&m.payload, &self.roots()).ok()) {
                self.adopt(theirs);
            }
            let (mut trust, mut roots) = (Trust::clone(&self.trust()), Lineage::clone(&self.roots()));
            change(&mut trust, &mut roots)?;
            trust.serial = trust
                .serial
                .checked_add(1)
                .ok_or_else(|| FleetError::usage("no list of operators comes after the one in force"))?;
            trust.issued = clock::now();
            let sealed = SealedTrust { sealed: root.seal(&trust)?, roots: roots.links() };
            // What nobody would believe must not get to the broker.
            self.roots().open(&sealed).map_err(|error| FleetError::Trust { reason: error.to_string() })?;
            let text = serde_json::to_string(&sealed).map_err(|error| FleetError::signing(&error))?;
            if text.len() > LIST_BYTES_MAX {
                return Err(FleetError::usage(format!(
                    "the list of operators would have {} KiB, of {} that are possible",
                    text.len() / 1024,
                    LIST_BYTES_MAX / 1024
                )));
            }
            let revision = stored.map_or(0, |message| message.sequence);
            match self.bus().kv_put_if(POLICY, TRUST_KEY, Bytes::from(text), None, revision).await {
                Ok(_) => {
                    self.adopt((trust, roots));
                    save_list(&self.context().home(), &sealed)?;
                    return Ok(sealed);
                }
                Err(BusError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(BusError::Conflict { what: "the list of operators".into() }.into())
    }
}
