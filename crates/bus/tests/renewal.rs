//! A broker's certificate is renewed while it runs, against the real nats-server.
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bus::broker::{Broker, BrokerConfig};
use bus::keys::FleetKeys;
use bus::{Bus, BusError, ConnectOptions, Credentials, streams};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

/// How long the first certificate lives: long enough to start a broker and connect, short enough to wait for its end.
const FIRST: Duration = Duration::from_secs(12);

/// Puts a certificate that is about to end in the place of the broker's.
fn about_to_end(home: &Path) -> SystemTime {
    let at = |name: &str| home.join("tls").join(name);
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "steward fleet");
    let issuer = Issuer::from_params(&ca, KeyPair::from_pem(&fs::read_to_string(at("ca.key")).unwrap()).unwrap());
    let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "broker.example".to_owned()]).unwrap();
    let until = SystemTime::now() + FIRST;
    params.not_after = until.into();
    let key = KeyPair::generate().unwrap();
    fs::write(at("server.key"), key.serialize_pem()).unwrap();
    fs::write(at("server.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    let unix = until.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let made = format!(r#"{{"names": ["127.0.0.1", "broker.example"], "not_after": {unix}}}"#);
    fs::write(at("server.json"), made).unwrap();
    until
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends_and_no_connection_is_lost() {
    let home = tempfile::tempdir().unwrap();
    let keys = FleetKeys::create(home.path()).unwrap();
    let tls = bus::tls::ensure(home.path(), &[]).unwrap();
    let ca = tls.ca.clone();
    let ends = about_to_end(home.path());
    let first = fs::read(&tls.cert).unwrap();
    let mut config = BrokerConfig::new(home.path(), keys.trust());
    config.tls = Some(tls.clone());
    config.certificates_every = Duration::from_millis(100);
    let broker = Broker::start(config).await.unwrap();
    let (handle, pid) = (broker.handle(), broker.pid());
    let creds = keys.provisioner_user().unwrap();
    let connect = async || -> Result<Bus, BusError> {
        Bus::connect(ConnectOptions {
            server: handle.client_url(),
            ca: ca.clone(),
            credentials: Credentials::parse(&creds.render(), "the test").unwrap(),
            name: "test".into(),
            inbox_prefix: Some(creds.inbox_prefix().unwrap()),
            patient: false,
            ping_interval: Duration::from_secs(10),
            api_prefix: bus::CORE_API,
        })
        .await
    };
    let before = connect().await.unwrap();
    before.provision(streams::Options::fitting(handle.store_bytes_max())).await.unwrap();
    let cancel = CancellationToken::new();
    let supervised = tokio::spawn(broker.supervise(cancel.clone()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read(&tls.cert).unwrap() == first {
        assert!(Instant::now() < deadline, "the certificate is not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let made = fs::read_to_string(home.path().join("tls/server.json")).unwrap();
    assert!(made.contains("broker.example"), "names stay: {made}");
    // Until the first one is over, and then some: whoever comes now is shown the second.
    let over = ends.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(2);
    tokio::time::sleep(over).await;
    let after = connect().await.unwrap();
    after.round_trip(Duration::from_secs(5)).await.unwrap();
    before.round_trip(Duration::from_secs(5)).await.unwrap();
    let link = *before.link().borrow();
    assert_eq!((link.up, link.ups), (true, 1), "the first connection was never lost");
    assert_eq!((handle.pid(), handle.status().borrow().restarts), (Some(pid), 0), "the broker was never started anew");
    cancel.cancel();
    supervised.await.unwrap();
}
