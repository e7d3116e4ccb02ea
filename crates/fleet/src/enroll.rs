//! Beginnings: a new fleet, and a new node in it.

use std::path::Path;

use bus::claims::{self, Creds};
use bus::clock;
use bus::keys::FleetKeys;
use message::policy::Rules;
use message::trust::TrustKind;
use message::{Lineage, NodeName, Operator, Policy, PublicKey, SealedDocument, SealedTrust, Trust, WIRE_VERSION};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use crate::audit::beginning;
use crate::connection::Fleet;
use crate::context::{Context, DEFAULT_CONTEXT, Home};
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::policy;
use crate::root::RootKey;

/// The first operator of a fleet.
pub const FIRST_OPERATOR: &str = "admin";
/// What the station is called, and in whose name is ordered.
pub const STATION: &str = "central";

/// What a new node is given, in one file: who it is, whom to believe, where the broker is. It is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The wire's version.
    pub v: u8,
    /// Always `bundle`.
    pub kind: BundleKind,
    /// The node's name.
    pub name: NodeName,
    /// Where the broker is.
    pub server: String,
    /// The authority that the broker's certificate must come from, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The certificate that it shows to a broker that asks for one, and the key of that, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The text of its `.creds` file.
    pub creds: String,
    /// The fleet's first root key, which names the fleet.
    pub root: PublicKey,
    /// Who may order, sealed by the root, with the chain that leads to it where that is another one by now.
    pub trust: SealedTrust,
    /// What may be done, sealed by the root or its delegate: the policy of that moment, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<SealedDocument>,
    /// In whose name orders may come.
    pub from: Vec<NodeName>,
}

/// The `kind` of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleKind {
    /// The only one.
    Bundle,
}

impl Bundle {
    /// Reads one.
    ///
    /// # Errors
    /// [`FleetError::File`] when it is no bundle, or its trust is not signed by its root.
    pub fn load(path: &Path) -> Result<Self, FleetError> {
        let wrong = |reason: String| FleetError::File { path: path.to_owned(), reason };
        let text = files::read(path)?.ok_or_else(|| {
            wrong(
                "there is no such file; `steward node enroll NAME --out FILE` makes one where the fleet's keys are"
                    .into(),
            )
        })?;
        let bundle: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if bundle.v != WIRE_VERSION {
            return Err(wrong(format!("it is of version {}, this steward speaks version {WIRE_VERSION}", bundle.v)));
        }
        Lineage::new(bundle.root.clone()).open(&bundle.trust).map_err(|error| wrong(error.to_string()))?;
        bundle.key().map_err(|error| wrong(error.to_string()))?;
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

    /// The node's public key.
    ///
    /// # Errors
    /// [`FleetError`] when the credentials in it are damaged.
    pub fn key(&self) -> Result<PublicKey, FleetError> {
        Ok(PublicKey::of(&Creds::parse(&self.creds)?.key()?))
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}

/// Enrols a node: a new key, credentials, and a signed record. Nothing is kept here but the record.
///
/// # Errors
/// [`FleetError::NodeExists`] when the name is taken.
pub async fn enroll(keys: &FleetKeys, fleet: &Fleet, name: &NodeName) -> Result<Bundle, FleetError> {
    let bundle = new_bundle(keys, fleet, name).await?;
    fleet.register(name, &bundle.key()?).await?;
    Ok(bundle)
}

/// Enrols a node that runs on this host: the bundle stays in `<home>/nodes/<name>/bundle.json`, and is used again.
///
/// # Errors
/// [`FleetError::NodeExists`] when the name is taken by a node whose key is not here.
pub async fn enroll_here(home: &Home, keys: &FleetKeys, fleet: &Fleet, name: &NodeName) -> Result<Bundle, FleetError> {
    let path = home.node_dir(name).join("bundle.json");
    if path.exists() {
        let mut bundle = Bundle::load(&path)?;
        fleet.register(name, &bundle.key()?).await?;
        let before = bundle.clone();
        bundle.server.clone_from(&fleet.context().server);
        bundle.ca = fleet.context().ca_pem()?;
        if bundle.client.is_none() || bundle.ca != before.ca {
            bundle.client = fleet.context().client_pem(name)?;
        }
        bundle.trust = fleet.sealed_trust().await?;
        bundle.policy = fleet.policy().await?.map(|policy| policy.sealed).or(bundle.policy);
        if bundle != before {
            bundle.save(&path)?;
        }
        return Ok(bundle);
    }
    let bundle = new_bundle(keys, fleet, name).await?;
    // Kept before it is registered: a name whose key was lost in between would be taken for ever.
    bundle.save(&path)?;
    if let Err(error) = fleet.register(name, &bundle.key()?).await {
        if matches!(error, FleetError::NodeExists { .. }) {
            let _ = std::fs::remove_file(&path); // the key in it is nobody's
        }
        return Err(error);
    }
    Ok(bundle)
}

/// Gives a node a new key, and cuts the old one off. The bundle is at `path`, or in place of the one of a node that runs on this
/// host, before anything else changes: a key that was lost would leave the name with nobody.
///
/// # Errors
/// [`FleetError::NoMatch`] when there is no such node; [`FleetError::Usage`] when it is not said where the bundle goes.
pub async fn rotate(
    home: &Home,
    keys: &FleetKeys,
    fleet: &Fleet,
    name: &NodeName,
    path: Option<&Path>,
) -> Result<Bundle, FleetError> {
    fleet.node(name).await?;
    let here = home.node_dir(name).join("bundle.json");
    let path = match path {
        Some(path) => path,
        None if here.is_file() => &here,
        None => {
            return Err(FleetError::usage(format!(
                "{name} does not run in this home: say where its new bundle shall be written with --out FILE"
            )));
        }
    };
    let bundle = new_bundle(keys, fleet, name).await?;
    bundle.save(path)?;
    fleet.replace_key(home, name, &bundle.key()?).await?;
    Ok(bundle)
}

async fn new_bundle(keys: &FleetKeys, fleet: &Fleet, name: &NodeName) -> Result<Bundle, FleetError> {
    let creds = keys.node_user(name.as_str(), &KeyPair::new_user())?;
    Ok(Bundle {
        v: WIRE_VERSION,
        kind: BundleKind::Bundle,
        name: name.clone(),
        server: fleet.context().server.clone(),
        ca: fleet.context().ca_pem()?,
        client: fleet.context().client_pem(name)?,
        creds: creds.render(),
        root: fleet.context().root.clone(),
        trust: fleet.sealed_trust().await?,
        policy: fleet.policy().await?.map(|policy| policy.sealed),
        from: vec![fleet.context().node.clone()],
    })
}

/// Makes a fleet at `home`: its keys, the credentials of its first operator `admin` and of its station, the list of
/// operators sealed by the root, and the context `default`, which is returned. Streams come with the first broker.
/// An attempt that broke off is completed.
///
/// # Errors
/// [`FleetError::FleetExists`] when there is one already.
pub fn init(home: &Home, server: &str) -> Result<Context, FleetError> {
    if is_initialized(home) {
        return Err(FleetError::FleetExists { home: home.dir().to_owned() });
    }
    let keys = if FleetKeys::exist(home.dir()) { FleetKeys::open(home.dir())? } else { FleetKeys::create(home.dir())? };
    let station = NodeName::new(STATION).map_err(|error| FleetError::usage(error.to_string()))?;
    let creds = home.creds_dir().join(format!("{FIRST_OPERATOR}.creds"));
    let admin = creds_at(&creds, |key| Ok(keys.operator_user(FIRST_OPERATOR, key)?))?;
    let station_key = creds_at(&home.station_creds(), |key| Ok(keys.station_user(STATION, key)?))?;
    let root = PublicKey::parse(claims::read::<claims::Operator>(keys.operator_jwt())?.sub)
        .map_err(|error| FleetError::signing(&error))?;
    trust_at(home, &root, &Operator::admin(FIRST_OPERATOR, admin.clone()))?;
    policy_at(home, &root)?;
    beginning::keep(home, &keys, &root, (&admin, &station_key))?;
    let context = Context {
        name: DEFAULT_CONTEXT.into(),
        server: server.into(),
        ca: None,
        creds,
        key_command: None,
        node: station,
        home: home.dir().to_owned(),
        root,
        operator: FIRST_OPERATOR.into(),
    };
    // Last, as the mark that all is there.
    context.save(home)?;
    Ok(context)
}

/// Whether `home` holds a complete fleet.
pub fn is_initialized(home: &Home) -> bool {
    FleetKeys::exist(home.dir())
        && home.contexts_dir().join(format!("{DEFAULT_CONTEXT}.toml")).is_file()
        && home.station_creds().is_file()
        && home.trust_file().is_file()
}

/// The key of the credentials at `path`, which are made if there are none.
fn creds_at(path: &Path, make: impl Fn(&KeyPair) -> Result<Creds, FleetError>) -> Result<PublicKey, FleetError> {
    if let Some(text) = files::read(path)? {
        let broken = |error: claims::ClaimsError| FleetError::File { path: path.to_owned(), reason: error.to_string() };
        let key = Creds::parse(&text).map_err(broken)?.key().map_err(broken)?;
        return Ok(PublicKey::of(&key));
    }
    let pair = KeyPair::new_user();
    files::write(path, &make(&pair)?.render(), Access::Secret)?;
    Ok(PublicKey::of(&pair))
}

/// Makes the list of operators unless there is one that names `first`.
fn trust_at(home: &Home, root: &PublicKey, first: &Operator) -> Result<(), FleetError> {
    let path = home.trust_file();
    let held = files::read(&path)?
        .and_then(|text| serde_json::from_str::<SealedTrust>(&text).ok())
        .and_then(|sealed| Lineage::new(root.clone()).open(&sealed).ok());
    let serial = match held.map(|(trust, _)| trust) {
        Some(trust) if trust.operator(&first.key).is_some() => return Ok(()),
        Some(trust) => trust.serial + 1,
        None => 1,
    };
    let trust = Trust {
        v: WIRE_VERSION,
        kind: TrustKind::Trust,
        serial,
        issued: clock::now(),
        operators: vec![first.clone()],
        policy_keys: vec![],
        revoked: vec![],
    };
    let sealed = RootKey::find(home, None, root)?.seal(&trust)?;
    let text = serde_json::to_string_pretty(&sealed).map_err(|error| FleetError::signing(&error))?;
    files::write(&path, &format!("{text}\n"), Access::Plain)
}

/// Makes the first policy, in which admins may everything, unless there is one.
fn policy_at(home: &Home, root: &PublicKey) -> Result<(), FleetError> {
    let path = home.policy_file();
    if files::read(&path)?.is_some() {
        return Ok(());
    }
    let first = Policy::new(1, root.clone(), clock::now(), Rules::first());
    policy::save(home, &policy::seal(&first, RootKey::find(home, None, root)?.pair())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SERVER: &str = "nats://127.0.0.1:4222";

    #[test]
    fn a_fleet_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        assert!(!is_initialized(&home));
        let context = init(&home, SERVER).unwrap();
        assert!(is_initialized(&home));
        assert_eq!(Context::load(&home, None).unwrap(), context);
        let error = init(&home, SERVER).unwrap_err();
        assert!(matches!(error, FleetError::FleetExists { .. }), "{error}");
        let (_, (trust, _)) = crate::connection::sealed_trust(&context).unwrap();
        let admin = Creds::parse(&std::fs::read_to_string(&context.creds).unwrap()).unwrap();
        assert_eq!(trust.operator(&PublicKey::of(&admin.key().unwrap())).unwrap().name, "admin");
        assert_eq!(std::fs::metadata(&context.creds).unwrap().permissions().mode() & 0o777, 0o600);
        let station = Creds::parse(&std::fs::read_to_string(home.station_creds()).unwrap()).unwrap();
        assert!(trust.operator(&PublicKey::of(&station.key().unwrap())).is_none(), "a station orders nothing");
    }

    #[test]
    fn an_attempt_that_broke_off_is_completed_with_the_same_keys() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let context = init(&home, SERVER).unwrap();
        let trust = std::fs::read_to_string(home.trust_file()).unwrap();
        std::fs::remove_dir_all(home.contexts_dir()).unwrap();
        assert_eq!(init(&home, SERVER).unwrap(), context);
        assert_eq!(std::fs::read_to_string(home.trust_file()).unwrap(), trust);
        // The operator's credentials were lost: the list has to name the new ones, and be newer.
        std::fs::remove_file(&context.creds).unwrap();
        std::fs::remove_dir_all(home.contexts_dir()).unwrap();
        let context = init(&home, SERVER).unwrap();
        assert_eq!(crate::connection::sealed_trust(&context).unwrap().1.0.serial, 2);
    }

    #[test]
    fn a_bundle_reads_back_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let context = init(&home, SERVER).unwrap();
        let keys = FleetKeys::open(home.dir()).unwrap();
        let bundle = Bundle {
            v: WIRE_VERSION,
            kind: BundleKind::Bundle,
            name: NodeName::new("ship1").unwrap(),
            server: SERVER.into(),
            ca: None,
            client: None,
            creds: keys.node_user("ship1", &KeyPair::new_user()).unwrap().render(),
            root: context.root.clone(),
            trust: crate::connection::sealed_trust(&context).unwrap().0,
            policy: None,
            from: vec![context.node],
        };
        let path = dir.path().join("ship1.bundle");
        bundle.save(&path).unwrap();
        assert_eq!(Bundle::load(&path).unwrap(), bundle);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = PublicKey::of(&KeyPair::new_operator());
        Bundle { root: other, ..bundle }.save(&path).unwrap();
        let error = Bundle::load(&path).unwrap_err().to_string();
        assert!(error.contains("root"), "{error}");
    }
}
