//! TLS: who is not proven to be the fleet's broker gets nothing, and nothing is readable on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
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
