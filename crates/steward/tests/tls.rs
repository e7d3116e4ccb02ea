//! TLS: who is not proven to be the fleet's broker gets nothing, and nothing is readable on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use world::{eventually, program, send};

/// A fleet whose broker runs alone, with TLS on loopback.
struct Tls {
    home: tempfile::TempDir,
    children: Vec<Child>,
    server: String,
}

impl Tls {
    fn start(arguments: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        assert!(at(home.path(), &["init"]).status.success());
        let mut child = program()
            .arg("--home")
            .arg(home.path())
            .args(["-o", "json", "broker", "--broker-listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the broker said {line:?}"));
        Self { home, children: vec![child], server: ready["server"].as_str().unwrap().to_owned() }
    }

    fn steward(&self, arguments: &[&str]) -> Output {
        at(self.home.path(), arguments)
    }

    fn address(&self) -> &str {
        self.server.split_once("://").unwrap().1
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            send(child.id().try_into().unwrap(), 15);
            let _ = child.wait();
        }
    }
}

fn at(home: &Path, arguments: &[&str]) -> Output {
    program().arg("--home").arg(home).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn everything_works_over_tls_and_only_with_the_fleets_own_authority() {
    let mut tls = Tls::start(&["--tls"]);
    assert!(tls.server.starts_with("tls://"), "{}", tls.server);
    // A node that was given one file.
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("ship1.bundle");
    let enrolled = tls.steward(&["node", "enroll", "ship1", "--out", bundle.to_str().unwrap()]);
    assert!(enrolled.status.success(), "{}", said(&enrolled));
    let state = dir.path().join("ship1");
    let agent = program()
        .args(["agent", "--bundle", bundle.to_str().unwrap(), "--end-commands", "--state", state.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tls.children.push(agent);
    eventually("the node is online", || {
        String::from_utf8_lossy(&tls.steward(&["node", "ls"]).stdout).contains("online")
    });
    let ran = tls.steward(&["run", "ship1", "--", "echo", "over tls"]);
    assert!(ran.status.success() && String::from_utf8_lossy(&ran.stdout).contains("over tls"), "{}", said(&ran));
    // An operator who was given one file; and somebody who is thrown out, by claims that travel the same way.
    let anna = dir.path().join("anna.operator");
    assert!(tls.steward(&["operator", "add", "anna", "--out", anna.to_str().unwrap()]).status.success());
    let hers = dir.path().join("hers");
    assert!(at(&hers, &["context", "import", anna.to_str().unwrap()]).status.success());
    assert!(at(&hers, &["run", "ship1", "--", "true"]).status.success());
    assert!(tls.steward(&["operator", "revoke", "anna", "--yes"]).status.success());
    assert_eq!(at(&hers, &["node", "ls"]).status.code(), Some(1));

    // Another fleet's authority, this machine's authorities: a sentence that says what to do.
    let other = tempfile::tempdir().unwrap();
    bus::tls::ensure(other.path(), &[]).unwrap();
    let ca = other.path().join("tls/ca.pem");
    let refused = tls.steward(&["--ca", ca.to_str().unwrap(), "node", "ls"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("not signed by the authority in"), "{}", said(&refused));
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&bundle).unwrap()).unwrap();
    assert!(text["ca"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    text["ca"] = std::fs::read_to_string(&ca).unwrap().into();
    std::fs::write(&bundle, text.to_string()).unwrap();
    let log = dir.path().join("log");
    let wrong = program()
        .args(["agent", "--bundle", bundle.to_str().unwrap(), "--state", dir.path().join("other").to_str().unwrap()])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    tls.children.push(wrong);
    eventually("the agent says why it does not get through", || {
        std::fs::read_to_string(&log).unwrap().contains("not signed by the authority in")
    });
}

#[test]
fn a_client_that_speaks_plain_text_gets_nothing_and_sends_nothing_that_is_taken() {
    let tls = Tls::start(&["--tls"]);
    let mut stream = TcpStream::connect(tls.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut info = String::new();
    lines.read_line(&mut info).unwrap();
    let info: Value = serde_json::from_str(info.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!(info["tls_required"], true, "{info}");
    stream.write_all(b"CONNECT {\"verbose\":true}\r\nPING\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = lines.read_to_end(&mut rest); // closed or reset, either way
    assert!(!String::from_utf8_lossy(&rest).contains("PONG"), "{rest:?}");
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { params, key, pem }
}

/// What is answered over HTTPS to a question with this token, or none.
fn https(address: &str, ca: &str, name: &'static str, path: &str, token: Option<&str>) -> std::io::Result<String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    let session = rustls::ClientConnection::new(config.into(), ServerName::try_from(name).unwrap())
        .map_err(std::io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(session, tcp);
    let shown = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {name}\r\n{shown}Connection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Beyond loopback the station speaks TLS, under its names alone, and shows nothing to anybody without a token.
#[test]
fn beyond_loopback_the_station_shows_itself_over_tls_to_who_has_a_token() {
    let mut tls = Tls::start(&["--tls"]);
    let home = tls.home.path().to_owned();
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["fleet.example".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &Issuer::from_params(&authority.params, &authority.key)).unwrap();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (cert_file, key_file, address_file) = (path("http.pem"), path("http.key"), path("http.addr"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();

    let refused = tls.steward(&["station", "--http-listen", "0.0.0.0:0"]);
    assert!(!refused.status.success() && said(&refused).contains("--http-cert"), "{}", said(&refused));

    let tokened = tls.steward(&["-o", "json", "station", "token", "add", "anna"]);
    assert!(tokened.status.success(), "{}", said(&tokened));
    let token: Value = serde_json::from_slice(&tokened.stdout).unwrap();
    let token = token["token"].as_str().unwrap();
    let station = program()
        .args(["--home", home.to_str().unwrap(), "station", "--http-listen", "0.0.0.0:0"])
        .args(["--http-cert", &cert_file, "--http-key", &key_file, "--http-name", "fleet.example"])
        .args(["--http-addr-file", &address_file])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tls.children.push(station);
    let mut address = String::new();
    eventually("it listens", || {
        address = std::fs::read_to_string(&address_file).unwrap_or_default().trim().replace("0.0.0.0", "127.0.0.1");
        !address.is_empty()
    });

    let ask = |path: &str, token: Option<&str>| https(&address, &authority.pem, "fleet.example", path, token);
    let asked = "/api/v1/nodes";
    eventually("it shows the nodes", || ask(asked, Some(token)).unwrap().starts_with("HTTP/1.1 200"));
    assert!(ask(asked, None).unwrap().starts_with("HTTP/1.1 401"));
    assert!(ask(asked, Some("steward-station-other")).unwrap().starts_with("HTTP/1.1 401"));
    let page = ask("/", None).unwrap();
    assert!(!page.contains("ship") && !page.starts_with("HTTP/1.1 200"), "{page}");

    // Another authority, or another name, is not the station.
    let other = self::authority();
    assert!(https(&address, &other.pem, "fleet.example", asked, Some(token)).is_err());
    assert!(https(&address, &authority.pem, "other.example", asked, Some(token)).is_err());
    // And in plain text there is nothing.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: fleet.example\r\nConnection: close\r\n\r\n").unwrap();
    let mut got = Vec::new();
    let _ = plain.read_to_end(&mut got);
    assert!(!got.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&got));
}

/// Own certificates: those that hold, those for another name, those that have expired.
#[test]
fn own_certificates_are_used_and_wrong_ones_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = file("ca.pem", &authority.pem);
    let make = |kind: &str, names: &[&str], until: i32| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&authority.params, &authority.key)).unwrap();
        (file(&format!("{kind}.pem"), &cert.pem()), file(&format!("{kind}.key"), &key.serialize_pem()))
    };
    let flags = |(cert, key): &(PathBuf, PathBuf)| -> Vec<String> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        ["--tls-cert", &text(cert), "--tls-key", &text(key), "--tls-ca", &text(&ca)].map(str::to_owned).to_vec()
    };
    let good = flags(&make("good", &["127.0.0.1"], 2100));
    let tls = Tls::start(&good.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(tls.steward(&["node", "ls"]).status.success());
    for (kind, names, until, why) in
        [("name", "other.example", 2100, "--advertise"), ("expired", "127.0.0.1", 2020, "has expired")]
    {
        let home = tempfile::tempdir().unwrap();
        assert!(at(home.path(), &["init"]).status.success());
        let wrong = flags(&make(kind, &[names], until));
        let mut arguments = vec!["broker", "--broker-listen", "127.0.0.1:0"];
        arguments.extend(wrong.iter().map(String::as_str));
        let refused = at(home.path(), &arguments);
        assert_eq!(refused.status.code(), Some(1), "{kind}: {}", said(&refused));
        assert!(said(&refused).contains(why), "{kind}: {}", said(&refused));
    }
}

#[test]
fn a_unit_enrols_itself_over_tls_by_the_authority_in_its_token() {
    let mut tls = Tls::start(&["--tls"]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (token, state) = (path("fleet.token"), path("ship7"));
    let made = tls.steward(&["node", "token", "--out", &token]);
    assert!(made.status.success(), "{}", said(&made));
    let agent = program()
        .args(["agent", "--token", &token, "--name", "ship7", "--end-commands", "--state", &state])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tls.children.push(agent);
    eventually("it knocks and is let in", || tls.steward(&["node", "accept", "ship7", "--yes"]).status.success());
    let ran = tls.steward(&["run", "ship7", "--wait", "30s", "--", "true"]);
    assert!(ran.status.success(), "{}", said(&ran));
}

/// What the broker says to a raw client after the handshake, with this certificate and its key, or none; an error if the handshake
/// or what follows breaks off.
fn raw(address: &str, ca: &Path, own: Option<&str>) -> std::io::Result<String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some(pem) => {
            let certs = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            config.with_client_auth_cert(certs, key).unwrap()
        }
    };
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The greeting is in plain text, one byte at a time: nothing of what follows may be taken with it.
    let mut byte = [0];
    while byte != *b"\n" {
        tcp.read_exact(&mut byte)?;
    }
    let session = rustls::ClientConnection::new(config.into(), ServerName::try_from("127.0.0.1").unwrap())
        .map_err(std::io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(session, tcp);
    stream.write_all(b"CONNECT {\"verbose\":true}\r\nPING\r\n")?;
    let mut said = vec![0; 4096];
    let length = stream.read(&mut said)?;
    Ok(String::from_utf8_lossy(&said[..length]).into_owned())
}

/// A client's certificate and key, signed by the authority of a home or another one, which ends in this year.
fn client_of(ca_key: &str, until: i32) -> String {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "steward fleet");
    let issuer = Issuer::from_params(&ca, KeyPair::from_pem(ca_key).unwrap());
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    format!("{}{}", params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_broker_that_asks_for_certificates_lets_in_nobody_without_one() {
    let mut tls = Tls::start(&["--tls-verify"]);
    assert!(tls.server.starts_with("tls://"), "{}", tls.server);
    let home = tls.home.path().to_owned();
    let ca = home.join("tls/ca.pem");
    // Whoever has a bundle gets in: a node, and an operator elsewhere.
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let enrolled = tls.steward(&["node", "enroll", "ship1", "--out", &path("ship1.bundle")]);
    assert!(enrolled.status.success(), "{}", said(&enrolled));
    let agent = program()
        .args(["agent", "--bundle", &path("ship1.bundle"), "--end-commands", "--state", &path("ship1")])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tls.children.push(agent);
    eventually("ship1 answers", || tls.steward(&["run", "ship1", "--", "true"]).status.success());
    let mode = std::fs::metadata(path("ship1/ca.client.pem")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let added = tls.steward(&["operator", "add", "anna", "--out", &path("anna.bundle")]);
    assert!(added.status.success(), "{}", said(&added));
    let annas = dir.path().join("annas");
    let imported = at(&annas, &["context", "import", &path("anna.bundle")]);
    assert!(imported.status.success(), "{}", said(&imported));
    let _ = at(&annas, &["context", "use", "anna"]);
    let ran = at(&annas, &["run", "ship1", "--", "true"]);
    assert!(ran.status.success(), "{}", said(&ran));
    // Raw clients: with the bundle's certificate the broker talks; without one, with another authority's or with one that has
    // ended it does not.
    let bundle: Value = serde_json::from_str(&std::fs::read_to_string(path("ship1.bundle")).unwrap()).unwrap();
    let genuine = bundle["client"].as_str().unwrap();
    assert!(raw(tls.address(), &ca, Some(genuine)).unwrap().contains("-ERR"), "in, but nobody");
    let ca_key = std::fs::read_to_string(home.join("tls/ca.key")).unwrap();
    assert!(raw(tls.address(), &ca, Some(&client_of(&ca_key, 2100))).is_ok(), "made by the same authority");
    let stranger = client_of(&authority().key.serialize_pem(), 2100);
    for (who, own) in [("nobody", None), ("a stranger", Some(stranger)), ("the past", Some(client_of(&ca_key, 2020)))] {
        let told = raw(tls.address(), &ca, own.as_deref());
        assert!(told.as_ref().map_or(true, String::is_empty), "{who}: {told:?}");
    }
    // A client of ours without one is told what to do.
    std::fs::remove_file(annas.join("contexts/anna.ca.client.pem")).unwrap();
    let refused = at(&annas, &["node", "ls"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("operator rotate"), "{}", said(&refused));
    // What reading the configuration anew must not do: bring back who was thrown out.
    assert!(tls.steward(&["node", "revoke", "ship1", "--yes"]).status.success());
    let broker = world::pids(|line| line.contains("nats-server") && line.contains(home.to_str().unwrap()));
    broker.iter().for_each(|pid| send(*pid, 1));
    let log = home.join("broker/nats.log");
    eventually("it has read it", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Reloaded")));
    let credentials = bus::Credentials::parse(bundle["creds"].as_str().unwrap(), "the bundle").unwrap();
    let connected = tokio::runtime::Runtime::new().unwrap().block_on(bus::Bus::connect(bus::ConnectOptions {
        server: tls.server.clone(),
        ca: Some(ca),
        credentials,
        name: "ship1".into(),
        inbox_prefix: Some("_INBOX.ship1".into()),
        patient: false,
        ping_interval: Duration::from_secs(10),
        api_prefix: bus::EDGE_API,
    }));
    assert!(matches!(connected, Err(bus::BusError::Refused { .. })), "{:?}", connected.err());
}

#[test]
fn a_unit_that_comes_by_token_gets_a_certificate_for_a_key_of_its_own() {
    let mut tls = Tls::start(&["--tls-verify"]);
    let ca = tls.home.path().join("tls/ca.pem");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let made = tls.steward(&["node", "token", "--uses", "1", "--expires", "1h", "--out", &path("token")]);
    assert!(made.status.success(), "{}", said(&made));
    let token = message::EnrolToken::parse(&std::fs::read_to_string(path("token")).unwrap()).unwrap();
    let shared = token.client.unwrap();
    let agent = |stderr: Stdio| {
        let agent =
            ["agent", "--token", &path("token"), "--name", "ship1", "--end-commands", "--state", &path("ship1")];
        program().args(agent).stderr(stderr).spawn().unwrap()
    };
    tls.children.push(agent(Stdio::null()));
    eventually("it knocks", || String::from_utf8_lossy(&tls.steward(&["node", "ls"]).stdout).contains("pending"));
    let accepted = tls.steward(&["node", "accept", "ship1", "--yes"]);
    assert!(accepted.status.success(), "{}", said(&accepted));
    eventually("ship1 answers", || tls.steward(&["run", "ship1", "--", "true"]).status.success());
    let own = std::fs::read_to_string(path("ship1/ca.client.pem")).unwrap();
    assert_ne!(own, shared, "what others hold as well is not what it shows");
    assert!(raw(tls.address(), &ca, Some(&own)).unwrap().contains("-ERR"), "in, but nobody");
    // It is for its own key, which has not left the unit.
    let key = PrivateKeyDer::from_pem_slice(own.as_bytes()).unwrap();
    let key = rcgen::KeyPair::try_from(&key).unwrap().serialize_pem();
    let home = tls.home.path().to_str().unwrap();
    let middle: String = key.lines().nth(1).unwrap().into();
    let found = std::process::Command::new("grep").args(["-rlF", &middle, home]).output().unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    // It comes back with it.
    let mut child = tls.children.pop().unwrap();
    send(child.id().try_into().unwrap(), 15);
    child.wait().unwrap();
    tls.children.push(agent(Stdio::null()));
    eventually("ship1 answers again", || tls.steward(&["run", "ship1", "--", "true"]).status.success());
}
