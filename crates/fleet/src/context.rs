//! Where a person's fleet lives on disk, and what is needed to reach it.

use std::path::{Path, PathBuf};

use bus::tls::TlsError;
use data_encoding::BASE64;
use message::{NodeName, PublicKey, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::FleetError;
use crate::files::{self, Access, io_error};
use crate::identity;

/// The context that is made first, and current until another is selected.
pub const DEFAULT_CONTEXT: &str = "default";

/// The directory of keys, contexts, broker store and try-out agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The home at `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The fleet's keys: `keys/`.
    pub fn keys_dir(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// Credentials of operators and station: `creds/`.
    pub fn creds_dir(&self) -> PathBuf {
        self.0.join("creds")
    }

    /// The station's credentials: `creds/station.creds`.
    pub fn station_creds(&self) -> PathBuf {
        self.creds_dir().join("station.creds")
    }

    /// The contexts: `contexts/`.
    pub fn contexts_dir(&self) -> PathBuf {
        self.0.join("contexts")
    }

    /// The broker's configuration and store: `broker/`.
    pub fn broker_dir(&self) -> PathBuf {
        self.0.join("broker")
    }

    /// The state of an agent that runs on this host: `nodes/<name>/`.
    pub fn node_dir(&self, name: &NodeName) -> PathBuf {
        self.0.join("nodes").join(name.as_str())
    }

    /// The station's state: `station/`.
    pub fn station_dir(&self) -> PathBuf {
        self.0.join("station")
    }

    /// The policy, sealed by the root or its delegate: `policy.json`.
    pub fn policy_file(&self) -> PathBuf {
        self.0.join("policy.json")
    }

    /// How often enrolment tokens were used: `tokens/`.
    pub fn tokens_dir(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// The list of operators, sealed by the root: `trust.json`.
    pub fn trust_file(&self) -> PathBuf {
        self.0.join("trust.json")
    }
}

/// What a person needs to order: `contexts/<name>.toml`; the current one's name stands in `contexts/current`.
///
/// Overrides such as `--server` and `--creds` are applied by the caller to the fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// Where the broker is.
    pub server: String,
    /// The authority that the broker's certificate must come from, a PEM file; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The credentials: a file that the `nats` CLI and any NATS client take. Absolute, or as the caller gave it.
    pub creds: PathBuf,
    /// The command that prints the private key, where that is not kept in `creds`: program and arguments.
    pub key_command: Option<Vec<String>>,
    /// The node in whose name is ordered: replies go to it.
    pub node: NodeName,
    /// The home that it belongs to.
    pub home: PathBuf,
    /// The fleet's root key.
    pub root: PublicKey,
    /// The operator's name.
    pub operator: String,
}

/// A context as it stands in its file. Credentials below the home are written relative to it, so that a home can
/// be moved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
    creds: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_command: Option<Vec<String>>,
    node: NodeName,
    root: PublicKey,
    operator: String,
}

impl Context {
    /// Reads the context `name`, or the current one.
    ///
    /// # Errors
    /// [`FleetError::NoContext`] when there is none, [`FleetError::File`] when it cannot be understood.
    pub fn load(home: &Home, name: Option<&str>) -> Result<Self, FleetError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => Self::current_name(home)?,
        };
        check_name(&name)?;
        let path = file(home, &name);
        let text = files::read(&path)?.ok_or_else(|| no_context(home, &name))?;
        let read: ContextFile = toml::from_str(&text)
            .map_err(|error| FleetError::File { path, reason: error.to_string().trim_end().to_owned() })?;
        Ok(Self {
            name,
            server: read.server,
            ca: read.ca.map(|ca| home.dir().join(ca)),
            // Joining an absolute path gives that path.
            creds: home.dir().join(read.creds),
            key_command: read.key_command,
            node: read.node,
            home: home.dir().to_owned(),
            root: read.root,
            operator: read.operator,
        })
    }

    /// The names of all contexts, sorted; none when there is no home yet.
    ///
    /// # Errors
    /// [`FleetError::Io`] when the directory cannot be read.
    pub fn list(home: &Home) -> Result<Vec<String>, FleetError> {
        let dir = home.contexts_dir();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &dir)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file_name = entry.map_err(io_error("read", &dir))?.file_name();
            if let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(".toml"))
                && check_name(name).is_ok()
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The name of the current context: `default` until another was selected.
    ///
    /// # Errors
    /// [`FleetError::Io`] when the file cannot be read.
    pub fn current_name(home: &Home) -> Result<String, FleetError> {
        let text = files::read(&current_file(home))?.unwrap_or_default();
        let name = text.trim();
        Ok(if name.is_empty() { DEFAULT_CONTEXT.to_owned() } else { name.to_owned() })
    }

    /// Makes the context `name` the current one.
    ///
    /// # Errors
    /// [`FleetError::NoContext`] when there is none of that name.
    pub fn select(home: &Home, name: &str) -> Result<(), FleetError> {
        check_name(name)?;
        if !file(home, name).is_file() {
            return Err(no_context(home, name));
        }
        files::write(&current_file(home), &format!("{name}\n"), Access::Plain)
    }

    /// Writes it, in one piece.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when its name cannot be a file's, [`FleetError::Io`] when the disk refuses.
    pub fn save(&self, home: &Home) -> Result<(), FleetError> {
        check_name(&self.name)?;
        let path = file(home, &self.name);
        let written = ContextFile {
            server: self.server.clone(),
            ca: self.ca.as_ref().map(|ca| ca.strip_prefix(home.dir()).unwrap_or(ca).to_owned()),
            creds: self.creds.strip_prefix(home.dir()).unwrap_or(&self.creds).to_owned(),
            key_command: self.key_command.clone(),
            node: self.node.clone(),
            root: self.root.clone(),
            operator: self.operator.clone(),
        };
        let text = toml::to_string(&written)
            .map_err(|error| FleetError::File { path: path.clone(), reason: error.to_string() })?;
        files::write(&path, &text, Access::Plain)
    }

    /// The authority's certificate, for others to verify the broker with.
    pub(crate) fn ca_pem(&self) -> Result<Option<String>, FleetError> {
        let Some(path) = &self.ca else { return Ok(None) };
        let missing = || FleetError::File { path: path.clone(), reason: "there is no such file".into() };
        Ok(Some(files::read(path)?.ok_or_else(missing)?))
    }

    /// A certificate for the client `name` and its key, as PEM, where the broker shows one of this home's own authority; it is
    /// of use where the broker asks for it.
    pub(crate) fn client_pem(&self, name: &NodeName) -> Result<Option<String>, FleetError> {
        self.certificate(|home| bus::tls::client(home, name.as_str()))
    }

    /// The same for all who come by a token, which ends with it.
    pub(crate) fn door_pem(&self, token: &str, until: Timestamp) -> Result<Option<String>, FleetError> {
        self.certificate(|home| bus::tls::client_until(home, &format!("token {token}"), until.as_ms().div_euclid(1000)))
    }

    /// The same for one who has made his key himself, in base64: the certificate alone.
    pub(crate) fn client_cert(&self, name: &NodeName, key: &str) -> Result<Option<String>, FleetError> {
        // What is none is found to be none by its length.
        let key = BASE64.decode(key.as_bytes()).unwrap_or_default();
        self.certificate(|home| bus::tls::client_with_key(home, name.as_str(), &key))
    }

    fn certificate(
        &self,
        make: impl FnOnce(&Path) -> Result<Option<String>, TlsError>,
    ) -> Result<Option<String>, FleetError> {
        let tls = self.home.join("tls");
        if self.ca.as_ref() != Some(&tls.join("ca.pem")) {
            return Ok(None);
        }
        make(&self.home).map_err(|error| FleetError::File { path: tls.join("ca.key"), reason: error.to_string() })
    }

    /// Has a command print the private key from now on: once it has given the right one, the file of credentials is left with
    /// the token alone.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when the command gives no key, [`BusError`](bus::BusError) when it gives another.
    pub async fn take_key_from(&mut self, command: &[String]) -> Result<(), FleetError> {
        self.key_command = Some(command.to_vec());
        let creds = identity::creds(self).await?;
        self.save(&self.home())?;
        files::write(&self.creds, &creds.render_public(), Access::Secret)
    }

    /// The home that it belongs to.
    pub fn home(&self) -> Home {
        Home::new(&self.home)
    }

    /// As `context show -o json` prints it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name,
            "server": self.server,
            "ca": self.ca,
            "creds": self.creds,
            "key_command": self.key_command,
            "home": self.home,
            "node": self.node,
            "operator": self.operator,
            "root": self.root,
        })
    }
}

fn file(home: &Home, name: &str) -> PathBuf {
    home.contexts_dir().join(format!("{name}.toml"))
}

fn current_file(home: &Home) -> PathBuf {
    home.contexts_dir().join("current")
}

fn check_name(name: &str) -> Result<(), FleetError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(FleetError::usage(format!(
        "{name:?} cannot be the name of a context: use 1 to 64 letters, digits, `_` and `-`"
    )))
}

fn no_context(home: &Home, name: &str) -> FleetError {
    let known = match Context::list(home).unwrap_or_default() {
        names if names.is_empty() => "there is none yet; `steward up` or `steward init` makes the first one".to_owned(),
        names => format!("there are {}; `steward context use NAME` selects one", names.join(", ")),
    };
    FleetError::NoContext { name: name.to_owned(), dir: home.contexts_dir(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(home: &Home) -> Context {
        let root = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Operator, [1; 32]).unwrap();
        Context {
            name: "default".into(),
            server: "nats://127.0.0.1:4222".into(),
            creds: home.creds_dir().join("admin.creds"),
            ca: None,
            key_command: None,
            node: NodeName::new("central").unwrap(),
            home: home.dir().to_owned(),
            root: PublicKey::of(&root),
            operator: "admin".into(),
        }
    }

    #[test]
    fn a_context_reads_back_as_written_and_moves_with_its_home() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        context(&home).save(&home).unwrap();
        assert_eq!(Context::load(&home, None).unwrap(), context(&home));
        let moved = Home::new(dir.path().join("elsewhere"));
        std::fs::rename(home.dir(), moved.dir()).unwrap();
        assert_eq!(Context::load(&moved, Some("default")).unwrap(), context(&moved));
    }

    #[test]
    fn the_current_context_is_default_until_another_is_selected() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        assert_eq!(Context::current_name(&home).unwrap(), "default");
        let prod = Context { name: "prod".into(), server: "tls://prod:4222".into(), ..context(&home) };
        prod.save(&home).unwrap();
        let error = Context::load(&home, None).unwrap_err().to_string();
        assert!(error.contains("\"default\"") && error.contains("there are prod"), "{error}");
        assert!(Context::select(&home, "staging").is_err());
        Context::select(&home, "prod").unwrap();
        assert_eq!(Context::load(&home, None).unwrap(), prod);
        assert_eq!(Context::list(&home).unwrap(), ["prod"]);
    }

    #[test]
    fn an_empty_home_says_how_to_begin() {
        let dir = tempfile::tempdir().unwrap();
        let error = Context::load(&Home::new(dir.path().join("none")), None).unwrap_err();
        assert!(error.to_string().contains("steward init"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn an_unknown_key_and_a_path_as_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        context(&home).save(&home).unwrap();
        let path = home.contexts_dir().join("default.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("sever = 1\n{text}")).unwrap();
        let error = Context::load(&home, None).unwrap_err().to_string();
        assert!(error.contains("sever") && error.contains("default.toml"), "{error}");
        assert!(Context::load(&home, Some("../../etc/passwd")).is_err());
    }
}
