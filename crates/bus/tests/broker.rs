//! The local broker against the real nats-server (`STEWARD_NATS_SERVER`, or one that `find_server` finds).
#![allow(clippy::unwrap_used)] // in the functions that tests share, too

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bus::broker::{Broker, BrokerConfig, BrokerError, BrokerHandle, first_of};
use bus::keys::FleetKeys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn fleet() -> (TempDir, BrokerConfig) {
    let home = tempfile::tempdir().unwrap();
    let trust = FleetKeys::create(home.path()).unwrap().trust();
    let config = BrokerConfig::new(home.path(), trust);
    (home, config)
}

fn script(dir: &Path, body: &str) -> std::path::PathBuf {
    let path = dir.join("fake-server");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn back(handle: &BrokerHandle, restarts: u32) {
    let status = handle.status();
    until("the broker is back", || status.borrow().restarts >= restarts && status.borrow().pid.is_some()).await;
}

#[tokio::test]
async fn a_broker_starts_and_stops() {
    let (_home, config) = fleet();
    let broker = Broker::start(config).await.unwrap();
    let (pid, handle) = (broker.pid(), broker.handle());
    assert!(is_alive(pid) && handle.client_url().starts_with("nats://127.0.0.1:"));
    broker.stop().await;
    assert!(!is_alive(pid));
    assert_eq!(handle.pid(), None);
}

#[tokio::test]
async fn a_killed_broker_is_back_on_the_same_port() {
    let (_home, config) = fleet();
    let broker = Broker::start(config).await.unwrap();
    let (first, handle, cancel) = (broker.pid(), broker.handle(), CancellationToken::new());
    let supervised = tokio::spawn(broker.supervise(cancel.clone()));
    for round in 1..=3 {
        signal(handle.pid().unwrap(), Signal::SIGKILL);
        back(&handle, round).await;
    }
    let second = handle.pid().unwrap();
    assert_ne!(first, second);
    assert!(tokio::net::TcpStream::connect(handle.listen()).await.is_ok());
    cancel.cancel();
    supervised.await.unwrap();
    assert!(!is_alive(second));
}

#[tokio::test]
async fn a_broker_that_cannot_come_back_is_tried_until_it_can() {
    let (_home, config) = fleet();
    let broker = Broker::start(config).await.unwrap();
    let (handle, cancel) = (broker.handle(), CancellationToken::new());
    let supervised = tokio::spawn(broker.supervise(cancel.clone()));
    let status = handle.status();
    signal(handle.pid().unwrap(), Signal::SIGKILL);
    // Take its port before it is back, which may need more than one try.
    let mut thief = None;
    for round in 1..200 {
        until("it is down or back", || status.borrow().pid.is_none() || status.borrow().restarts >= round).await;
        thief = TcpListener::bind(handle.listen()).ok();
        if thief.is_some() {
            break;
        }
        back(&handle, round).await;
        signal(handle.pid().unwrap(), Signal::SIGKILL);
    }
    assert!(thief.is_some());
    let blamed = || status.borrow().last_error.clone().is_some_and(|error| error.contains("cannot listen on"));
    until("the thief is named", blamed).await;
    drop(thief);
    until("the broker is back", || status.borrow().pid.is_some()).await;
    cancel.cancel();
    supervised.await.unwrap();
}

#[tokio::test]
async fn a_stopped_broker_comes_up_on_the_port_it_had() {
    let (_home, config) = fleet();
    let broker = Broker::start(config.clone()).await.unwrap();
    let first = broker.client_url();
    broker.stop().await;
    let broker = Broker::start(config).await.unwrap();
    assert_eq!(broker.client_url(), first);
    broker.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_refused_and_the_taker_named() {
    let (_home, mut config) = fleet();
    let taker = TcpListener::bind("127.0.0.1:0").unwrap();
    config.listen = taker.local_addr().unwrap();
    let error = Broker::start(config).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BrokerError::PortTaken { .. }), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("--broker-listen"), "{text}");
}

#[tokio::test]
async fn a_port_taken_by_another_nats_server_says_so() {
    let (_home, config) = fleet();
    let other = Broker::start(config).await.unwrap();
    let (_home, mut config) = fleet();
    config.listen = other.handle().listen();
    let text = Broker::start(config).await.unwrap_err().to_string();
    assert!(text.contains("nats-server 2.") && text.contains(&format!("process {}", other.pid())), "{text}");
    other.stop().await;
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused() {
    let (_home, mut config) = fleet();
    config.listen = "192.0.2.1:4222".parse::<SocketAddr>().unwrap();
    assert!(matches!(Broker::start(config).await, Err(BrokerError::Address { .. })));
}

#[tokio::test]
async fn a_second_broker_on_one_home_is_refused() {
    let (_home, config) = fleet();
    let broker = Broker::start(config.clone()).await.unwrap();
    let error = Broker::start(config).await.unwrap_err();
    assert!(matches!(error, BrokerError::AlreadyRunning { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    broker.stop().await;
}

#[tokio::test]
async fn a_server_left_behind_is_ended_and_its_port_used_again() {
    let (home, config) = fleet();
    let broker = Broker::start(config.clone()).await.unwrap();
    let url = broker.client_url();
    broker.stop().await;
    // What a steward that died with its server still running leaves behind.
    let conf = home.path().canonicalize().unwrap().join("broker/nats.conf");
    let server = bus::broker::find_server().await.unwrap();
    let mut orphan = Command::new(server.path).arg("-c").arg(&conf).spawn().unwrap();
    let listen = url.trim_start_matches("nats://").to_owned();
    until("the orphan listens", || std::net::TcpStream::connect(&listen).is_ok()).await;
    let broker = Broker::start(config).await.unwrap();
    assert_eq!(broker.client_url(), url);
    assert!(!is_alive(orphan.id()));
    orphan.wait().unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_dies_with_the_process_that_keeps_it() {
    // Run as a child of the test below, which kills it.
    if let Some(home) = std::env::var_os("STEWARD_TEST_KEEP_BROKER") {
        let trust = FleetKeys::open(Path::new(&home)).unwrap().trust();
        let broker = Broker::start(BrokerConfig::new(&home, trust)).await.unwrap();
        fs::write(Path::new(&home).join("up.new"), broker.pid().to_string()).unwrap();
        fs::rename(Path::new(&home).join("up.new"), Path::new(&home).join("up")).unwrap();
        return std::future::pending().await;
    }
    let (home, config) = fleet();
    let mut keeper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_broker_dies_with_the_process_that_keeps_it"])
        .env("STEWARD_TEST_KEEP_BROKER", home.path())
        .spawn()
        .unwrap();
    until("the kept broker is up", || home.path().join("up").exists()).await;
    let pid: u32 = fs::read_to_string(home.path().join("up")).unwrap().parse().unwrap();
    assert!(is_alive(pid));
    // In a process group of its own: Ctrl-C in the terminal does not reach it.
    let group = nix::unistd::getpgid(Some(Pid::from_raw(i32::try_from(pid).unwrap()))).unwrap();
    assert_eq!(group.as_raw(), i32::try_from(pid).unwrap());
    let error = Broker::start(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("kept by process {}", keeper.id())), "{error}");
    signal(keeper.id(), Signal::SIGKILL);
    keeper.wait().unwrap();
    let broker = Broker::start(config).await.unwrap();
    assert!(!is_alive(pid));
    broker.stop().await;
}

#[tokio::test]
async fn a_dropped_broker_is_asked_to_stop() {
    let (_home, config) = fleet();
    let broker = Broker::start(config).await.unwrap();
    let pid = broker.pid();
    drop(broker);
    until("it stops", || !is_alive(pid)).await;
}

#[tokio::test]
async fn too_old_or_foreign_servers_are_passed_over_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let old = script(dir.path(), "echo 'nats-server: v2.9.0'");
    let other = tempfile::tempdir().unwrap();
    let foreign = script(other.path(), "echo 'nginx version: nginx/1.26.0'");
    let missing = dir.path().join("none");
    let error = first_of(vec![old.clone(), foreign.clone(), missing]).await.unwrap_err().to_string();
    for part in
        ["is version 2.9.0", "is something else", "does not run", "2.11", "scripts/setup", "STEWARD_NATS_SERVER"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    let good = bus::broker::find_server().await.unwrap();
    assert_eq!(first_of(vec![old, foreign, good.path.clone()]).await.unwrap(), good);
}

#[tokio::test]
async fn a_server_that_dies_at_once_is_quoted() {
    let (home, config) = fleet();
    fs::create_dir_all(home.path().join("broker")).unwrap();
    fs::write(home.path().join("broker/store"), "in the way").unwrap();
    let text = Broker::start(config).await.unwrap_err().to_string();
    assert!(text.contains("ended at once") && text.to_lowercase().contains("jetstream"), "{text}");
}

#[tokio::test]
async fn a_server_that_never_serves_is_ended() {
    let (home, mut config) = fleet();
    config.server = Some(script(
        home.path(),
        "if [ \"$1\" = --version ]; then echo 'nats-server: v2.15.1'; else echo waiting for godot >&2; exec sleep 1000; fi",
    ));
    config.ready_within = Duration::from_millis(500);
    let text = Broker::start(config).await.unwrap_err().to_string();
    assert!(text.contains("did not get ready") && text.contains("waiting for godot"), "{text}");
}

#[tokio::test]
async fn strange_characters_in_the_home_are_harmless() {
    let parent = tempfile::tempdir().unwrap();
    let home = parent.path().join(r#"a "b" \c $D {e} # f"#);
    let trust = FleetKeys::create(&home).unwrap().trust();
    let broker = Broker::start(BrokerConfig::new(&home, trust)).await.unwrap();
    assert!(home.join("broker/store").is_dir() && home.join("broker/jwt").is_dir());
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_could_not_write_is_started_anew() {
    use std::io::Write;
    let (home, config) = fleet();
    let broker = Broker::start(config).await.unwrap();
    let (first, handle, cancel) = (broker.pid(), broker.handle(), CancellationToken::new());
    let supervised = tokio::spawn(broker.supervise(cancel.clone()));
    // What nats-server says when the disk is full; it then refuses all further messages of the stream.
    let mut log = fs::OpenOptions::new().append(true).open(home.path().join("broker/nats.log")).unwrap();
    writeln!(log, "[1] 2026/11/22 21:31:50.02 [ERR] Filestore [COMMANDS] Critical write error: no space left").unwrap();
    back(&handle, 1).await;
    assert!(!is_alive(first));
    cancel.cancel();
    supervised.await.unwrap();
}

#[tokio::test]
async fn a_broker_cancelled_while_it_comes_back_is_stopped() {
    let (home, mut config) = fleet();
    let real = bus::broker::find_server().await.unwrap().path;
    let slow = home.path().join("slow");
    let body = format!(
        "if [ -e '{slow}' ] && [ \"$1\" != --version ]; then echo $$ > '{slow}'; exec sleep 1000; fi; exec '{real}' \"$@\"",
        slow = slow.display(),
        real = real.display()
    );
    config.server = Some(script(home.path(), &body));
    let broker = Broker::start(config).await.unwrap();
    let (handle, cancel) = (broker.handle(), CancellationToken::new());
    fs::write(&slow, "").unwrap();
    let supervised = tokio::spawn(broker.supervise(cancel.clone()));
    signal(handle.pid().unwrap(), Signal::SIGKILL);
    let started = || fs::read_to_string(&slow).unwrap().trim().parse::<u32>().ok();
    until("it is started again", || started().is_some()).await;
    cancel.cancel();
    supervised.await.unwrap();
    assert!(!is_alive(started().unwrap()));
}
