//! Syslog over TLS as a source: who may send, and to whom.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use world::{World, eventually};

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// A certificate for this host, and its key.
    fn certify(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// Sends a message over TLS, with this certificate and its key, or none; an error when the other side does not take it.
fn send(port: u16, ca: &str, own: Option<&(String, String)>, text: &str) -> std::io::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_millis(500)))?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let session = rustls::ClientConnection::new(config.into(), name).map_err(std::io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(session, tcp);
    let message = format!("<13>1 - host app - - - {text}");
    write!(stream, "{} {message}", message.len())?;
    stream.flush()?;
    // Who is not taken is told so only now.
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    stream.conn.send_close_notify();
    stream.flush()
}

fn messages(world: &World) -> Vec<String> {
    let output = world.steward(&["event", "ls", "--domain", "tls", "-o", "ndjson"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let record = |line: &str| serde_json::from_str::<Value>(line).unwrap()["record"]["message"].clone();
    text.lines().map(|line| record(line).as_str().unwrap().to_owned()).collect()
}

#[test]
fn only_who_has_a_certificate_of_the_authority_sends_and_a_new_one_needs_no_restart() {
    let mut world = World::up();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (authority, stranger) = (Authority::new(), Authority::new());
    let put = |(cert, key): &(String, String)| {
        std::fs::write(at("cert.pem"), cert).unwrap();
        std::fs::write(at("key.pem"), key).unwrap();
    };
    put(&authority.certify());
    std::fs::write(at("ca.pem"), &authority.pem).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = |name: &str| at(name).display().to_string();
    let config = format!(
        "[[event]]\nmethod=\"log\"\ndomain=\"tls\"\nsyslog=\"tls://127.0.0.1:{port}\"\ncert={:?}\nkey={:?}\nclient_ca={:?}\n",
        path("cert.pem"),
        path("key.pem"),
        path("ca.pem")
    );
    std::fs::write(world.path("ship1.toml"), config).unwrap();
    world.agent("ship1", &["--config", world.path("ship1.toml").to_str().unwrap()]);
    let own = authority.certify();
    eventually("it is listened to", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    send(port, &authority.pem, Some(&own), "by certificate").unwrap();
    eventually("the message arrives", || messages(&world) == ["by certificate"]);

    assert!(send(port, &authority.pem, None, "without a certificate").is_err());
    assert!(send(port, &authority.pem, Some(&stranger.certify()), "by another authority").is_err());
    assert!(send(port, &stranger.pem, Some(&own), "to somebody else").is_err(), "the server is not who it should be");
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"<13>in plain text\n").unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = plain.read_to_end(&mut Vec::new()); // an alert, and the end
    eventually("who was sent away is told of", || {
        let shown = world.json(0, &["ps", "ship1"]);
        shown.to_string().contains("was sent away")
    });

    // Another certificate in the same place, by another authority.
    put(&stranger.certify());
    send(port, &stranger.pem, Some(&own), "to the new one").unwrap();
    eventually("that one arrives too", || messages(&world).len() == 2);
    assert_eq!(messages(&world), ["by certificate", "to the new one"], "nothing else was taken");
}

#[test]
fn what_cannot_be_used_is_named() {
    let world = World::up();
    for (keys, says) in [
        ("syslog=\"tls://127.0.0.1:6514\"", "needs cert and key"),
        ("syslog=\"tls://127.0.0.1:6514\"\ncert=\"a.pem\"\nkey=\"/b.pem\"", "not an absolute path"),
        ("syslog=\"tcp://127.0.0.1:6514\"\ncert=\"/a.pem\"", "tls://"),
        ("syslog=\"tls://here\"\ncert=\"/a.pem\"\nkey=\"/b.pem\"", "no address"),
    ] {
        let path = world.path("wrong.toml");
        std::fs::write(&path, format!("[[event]]\nmethod=\"log\"\ndomain=\"tls\"\n{keys}\n")).unwrap();
        let refused = world.steward(&["agent", "--name", "ship9", "--config", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(says) && said.contains(path.to_str().unwrap()),
            "{keys}: {said}"
        );
    }
}
