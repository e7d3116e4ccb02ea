//! The broker's certificate, and the authority that signs it: made where the fleet's keys are, renewed before they expire.
//!
//! In flow a home and the names that the broker is reached by; out flow files that nats-server reads, and the authority's
//! certificate, which every client is given. Private keys must never leave `<home>/tls`, which only its owner may read.
//!
//! | file | what it is |
//! | --- | --- |
//! | `ca.pem`, `ca.key` | the fleet's own authority; the first is what clients verify the broker with |
//! | `server.pem`, `server.key` | the broker's certificate |
//! | `server.json` | for which names, and until when |
//! | `ca.client.pem` | the certificate and key that this home's own clients show, where the broker asks for one |

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use serde::{Deserialize, Serialize};

use crate::claims::unix_now;

const DAY_S: i64 = 24 * 60 * 60;
/// How long the authority lives: whoever trusts it has it in a bundle, which is not renewed by itself.
const CA_AGE_MAX_S: i64 = 20 * 365 * DAY_S;
/// How long a certificate of the broker lives.
const SERVER_AGE_MAX_S: i64 = 397 * DAY_S;
/// With less than this left it is made anew.
const RENEW_BEFORE_S: i64 = 60 * DAY_S;
/// How long a client's certificate lives: as long as the authority, since what it is in is not renewed by itself. It opens
/// the door alone; who may do what goes by the client's key, which can be taken back.
const CLIENT_AGE_MAX_S: i64 = CA_AGE_MAX_S;
/// Clocks differ: certificates hold from a day before they were made.
const BACKDATED_S: i64 = DAY_S;

/// A point of P-256, uncompressed, and how it begins (SEC 1, 2.3.3).
const P256_POINT_BYTES: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}; check its owner, mode and the space on its disk", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("the broker's certificate for {names} cannot be made: {reason}")]
    Make {
        /// For which names.
        names: String,
        /// Why.
        reason: String,
    },
    /// The authority's files are not what they should be.
    #[error("{} cannot be used: {reason}; restore the directory from a backup, or remove it for a new authority (every bundle is then to be made anew)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What a broker shows its clients, and whom of them it lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Its certificate, with the chain that leads to the authority.
    pub cert: PathBuf,
    /// The private key of that.
    pub key: PathBuf,
    /// The authority that clients verify it with, and that signs clients' certificates where those are asked for.
    pub ca: Option<PathBuf>,
    /// Whether clients need a certificate, too.
    pub verify_clients: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    names: BTreeSet<String>,
    not_after: i64,
}

/// The names and addresses under which a broker is reached on its own machine.
#[must_use]
pub fn own_names() -> Vec<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .map(str::to_owned)
        .chain(host.filter(|name| is_dns_name(name)))
        .collect()
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

/// Where a client's certificate and its key lie, in one file: beside the authority that has signed it. Of `ca.pem` that is
/// `ca.client.pem`.
#[must_use]
pub fn client_file(ca: &Path) -> PathBuf {
    ca.with_extension("client.pem")
}

/// A new certificate for the client `name`, and its key, as PEM; `None` where the fleet's own authority is not.
///
/// # Errors
/// [`TlsError`] when the authority's key cannot be used.
pub fn client(home: &Path, name: &str) -> Result<Option<String>, TlsError> {
    client_until(home, name, unix_now() + CLIENT_AGE_MAX_S)
}

/// The same, which ends at `until`, in seconds of Unix time.
///
/// # Errors
/// As [`client`].
pub fn client_until(home: &Path, name: &str, until: i64) -> Result<Option<String>, TlsError> {
    let key = ClientKey::generate()?;
    let cert = certify(home, name, &key.0, until)?;
    Ok(cert.map(|cert| format!("{cert}{}", key.pem())))
}

/// A certificate for the client `name` who has made his key himself, of which `public` is the public half, as
/// [`ClientKey::public`] tells it; `None` where the fleet's own authority is not.
///
/// # Errors
/// [`TlsError`] when that is no key, or the authority's key cannot be used.
pub fn client_with_key(home: &Path, name: &str, public: &[u8]) -> Result<Option<String>, TlsError> {
    if public.len() != P256_POINT_BYTES || public.first() != Some(&UNCOMPRESSED) {
        let reason = "its public key is not a point of P-256, uncompressed".to_owned();
        return Err(TlsError::Make { names: format!("the client {name}"), reason });
    }
    certify(home, name, &TheirKey(public), unix_now() + CLIENT_AGE_MAX_S)
}

fn certify(home: &Path, name: &str, key: &impl PublicKeyData, until: i64) -> Result<Option<String>, TlsError> {
    let path = home.join("tls/ca.key");
    let Some(pem) = read(&path)? else { return Ok(None) };
    let ca_key = KeyPair::from_pem(&pem).map_err(|error| TlsError::Damaged { path, reason: error.to_string() })?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (time(unix_now() - BACKDATED_S), time(until));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(key, &Issuer::from_params(&ca_params(), ca_key));
    let cert =
        cert.map_err(|error| TlsError::Make { names: format!("the client {name}"), reason: error.to_string() })?;
    Ok(Some(cert.pem()))
}

/// The public key of somebody else: a point of P-256 (SEC 1, uncompressed).
struct TheirKey<'a>(&'a [u8]);

impl PublicKeyData for TheirKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The key of a client's certificate, made where it is used.
pub struct ClientKey(KeyPair);

impl ClientKey {
    /// A new one.
    ///
    /// # Errors
    /// [`TlsError::Make`] when there is no randomness to be had.
    pub fn generate() -> Result<Self, TlsError> {
        let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        made.map(Self).map_err(|error| TlsError::Make { names: "a client".into(), reason: error.to_string() })
    }

    /// One that was kept as PEM; `None` when that is none.
    #[must_use]
    pub fn from_pem(pem: &str) -> Option<Self> {
        let key = KeyPair::from_pem(pem).ok().map(Self)?;
        (key.public().len() == P256_POINT_BYTES).then_some(key)
    }

    /// The private key, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The public key: a point of P-256, uncompressed (SEC 1, 2.3.3), 65 bytes.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.0.der_bytes()
    }
}

/// The certificate of this home's own clients: operators who use its context, the station, agents that enrol themselves.
fn ensure_client(home: &Path) -> Result<(), TlsError> {
    let path = home.join("tls/ca.client.pem");
    if !path.is_file()
        && let Some(pem) = client(home, "steward")?
    {
        write(&path, &pem)?;
    }
    Ok(())
}

/// The certificate of the broker of `home`, for its own names and `more`: the one that is there, or a new one if that is
/// not for all of them or about to expire. Names that it was for stay in it.
///
/// # Errors
/// [`TlsError`] when the disk refuses, or a name cannot be one.
pub fn ensure(home: &Path, more: &[String]) -> Result<ServerTls, TlsError> {
    let dir = home.join("tls");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
    let at = |name: &str| dir.join(name);
    let files =
        ServerTls { cert: at("server.pem"), key: at("server.key"), ca: Some(at("ca.pem")), verify_clients: false };
    let made = read(&at("server.json"))?.and_then(|text| serde_json::from_str::<Made>(&text).ok());
    let mut names: BTreeSet<String> = own_names().into_iter().chain(more.iter().cloned()).collect();
    if let Some(made) = &made {
        let current = made.not_after - unix_now() > RENEW_BEFORE_S && names.is_subset(&made.names);
        if current && files.cert.is_file() && files.key.is_file() && at("ca.pem").is_file() {
            ensure_client(home)?;
            return Ok(files);
        }
        names.extend(made.names.iter().cloned());
    }
    let failed = |error: rcgen::Error| TlsError::Make {
        names: names.iter().cloned().collect::<Vec<_>>().join(", "),
        reason: error.to_string(),
    };
    let ca_params = ca_params();
    let damaged = |reason: String| TlsError::Damaged { path: at("ca.key"), reason };
    let ca_key = match (read(&at("ca.key"))?, at("ca.pem").is_file()) {
        (Some(pem), true) => KeyPair::from_pem(&pem).map_err(|error| damaged(error.to_string()))?,
        // A new authority instead would lock everybody out, and may come about while nobody looks.
        (None, true) => return Err(damaged("it is not there, though ca.pem is".to_owned())),
        (_, false) => {
            let key = KeyPair::generate().map_err(failed)?;
            let ca = ca_params.self_signed(&key).map_err(failed)?;
            write(&at("ca.key"), &key.serialize_pem())?;
            write(&at("ca.pem"), &ca.pem())?;
            let _ = fs::remove_file(at("ca.client.pem")); // of another authority
            key
        }
    };
    ensure_client(home)?;
    let issuer = Issuer::from_params(&ca_params, ca_key);
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>()).map_err(failed)?;
    let not_after = unix_now() + SERVER_AGE_MAX_S;
    params.distinguished_name.push(DnType::CommonName, "steward broker");
    (params.not_before, params.not_after) = (time(unix_now() - BACKDATED_S), time(not_after));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // The servers of a cluster are each other's clients.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(&key, &issuer).map_err(failed)?;
    // The note goes last: what it tells of is there then. Until then it tells the names alone, which a crash must not lose.
    let note = |not_after| serde_json::to_string(&Made { names: names.clone(), not_after }).unwrap_or_default();
    write(&at("server.json"), &note(0))?;
    write(&files.key, &key.serialize_pem())?;
    write(&files.cert, &cert.pem())?;
    write(&at("server.json"), &note(not_after))?;
    tracing::info!(names = ?names, "the broker has a new certificate");
    Ok(files)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "steward fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (time(unix_now() - BACKDATED_S), time(unix_now() + CA_AGE_MAX_S));
    params
}

/// Seconds of Unix time, as rcgen takes them.
fn time<T: From<SystemTime>>(unix_s: i64) -> T {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0))).into()
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TlsError + use<'a> {
    move |source| TlsError::Io { action, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let staging = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&staging); // of a process that died
    let fill = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staging)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staging, path)
    };
    fill().map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_has_made_his_key_himself_gets_a_certificate_for_it_and_for_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(client_with_key(home.path(), "ship1", ClientKey::generate().unwrap().public()).unwrap(), None);
        ensure(home.path(), &[]).unwrap();
        let key = ClientKey::generate().unwrap();
        let kept = ClientKey::from_pem(&key.pem()).unwrap();
        assert_eq!(kept.public(), key.public());
        assert!(client_with_key(home.path(), "ship1", key.public()).unwrap().unwrap().contains("BEGIN CERTIFICATE"));
        let long = [key.public(), &[0]].concat();
        for none in [&b""[..], &key.public()[1..], &long] {
            assert!(matches!(client_with_key(home.path(), "ship1", none), Err(TlsError::Make { .. })), "{none:?}");
        }
        assert!(ClientKey::from_pem("none").is_none());
    }

    #[test]
    fn a_certificate_is_kept_until_it_is_about_to_expire_or_lacks_a_name() {
        let home = tempfile::tempdir().unwrap();
        let text = |name: &str| fs::read_to_string(home.path().join("tls").join(name)).unwrap();
        ensure(home.path(), &[]).unwrap();
        let (ca, first) = (text("ca.pem"), text("server.pem"));
        ensure(home.path(), &["localhost".to_owned()]).unwrap();
        assert_eq!(text("server.pem"), first);
        ensure(home.path(), &["broker.example".to_owned()]).unwrap();
        let second = text("server.pem");
        assert_ne!(second, first);
        let mut made: Made = serde_json::from_str(&text("server.json")).unwrap();
        assert!(made.names.contains("broker.example") && made.names.contains("127.0.0.1"));
        made.not_after = unix_now() + RENEW_BEFORE_S - 1;
        fs::write(home.path().join("tls/server.json"), serde_json::to_string(&made).unwrap()).unwrap();
        ensure(home.path(), &[]).unwrap();
        assert_ne!(text("server.pem"), second);
        assert!(text("server.json").contains("broker.example"), "names stay");
        assert_eq!(text("ca.pem"), ca, "the authority stays");
        let own = text("ca.client.pem");
        assert!(own.contains("BEGIN CERTIFICATE") && own.contains("PRIVATE KEY"));
        for secret in ["ca.key", "server.key", "ca.client.pem"] {
            let mode = fs::metadata(home.path().join("tls").join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
        // Whoever keeps the authority's key elsewhere does not get another authority when the time has come.
        fs::remove_file(home.path().join("tls/ca.key")).unwrap();
        assert!(client(home.path(), "ship1").unwrap().is_none());
        ensure(home.path(), &[]).unwrap();
        assert!(ensure(home.path(), &["one.more".to_owned()]).unwrap_err().to_string().contains("not there"));
        assert_eq!(text("ca.pem"), ca);
    }
}
