//! Three brokers that keep three copies of everything: any one of them may die at any moment.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

mod world;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use world::{eventually, lines, pids, program, send};

const SERVERS: usize = 3;
const ORDERS: usize = 30;

struct Cluster {
    dir: tempfile::TempDir,
    brokers: Vec<Child>,
    agent: Option<Child>,
    servers: String,
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = |index: usize| dir.path().join(format!("h{index}"));
        let made = program().arg("--home").arg(home(0)).arg("init").output().unwrap();
        assert!(made.status.success(), "{made:?}");
        for index in 1..SERVERS {
            assert!(Command::new("cp").arg("-a").arg(home(0)).arg(home(index)).status().unwrap().success());
        }
        let (clients, routes) = (free_ports(SERVERS), free_ports(SERVERS));
        let mut brokers = Vec::new();
        for index in 0..SERVERS {
            let mut command = program();
            command.arg("--home").arg(home(index)).args(["-o", "json", "broker"]);
            command.arg("--broker-listen").arg(format!("127.0.0.1:{}", clients[index]));
            command.arg("--cluster-listen").arg(format!("127.0.0.1:{}", routes[index]));
            for other in (0..SERVERS).filter(|other| *other != index) {
                command.arg("--cluster-route").arg(format!("127.0.0.1:{}", routes[other]));
            }
            command.arg("--server-name").arg(format!("s{index}"));
            let log = std::fs::File::create(dir.path().join(format!("s{index}.log"))).unwrap();
            brokers.push(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
        }
        for broker in &mut brokers {
            let mut line = String::new();
            BufReader::new(broker.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert!(serde_json::from_str::<Value>(&line).is_ok(), "a broker said {line:?}");
        }
        let servers = clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
        Self { dir, brokers, agent: None, servers }
    }

    fn home(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("h{index}"))
    }

    fn steward(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = program();
        command.arg("--home").arg(self.home(0)).args(["--server", &self.servers, "-o", "json"]);
        command.args(arguments).output().unwrap()
    }

    fn agent(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("agent.log")).unwrap();
        let mut command = program();
        command.arg("--home").arg(self.home(0)).args(["--server", &self.servers, "agent", "--name", "ship1"]);
        self.agent = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the node is online", || {
            let nodes = self.steward(&["node", "ls"]);
            String::from_utf8_lossy(&nodes.stdout).contains("\"state\":\"online\"")
        });
    }

    /// The nats-server of one broker.
    fn server_pid(&self, index: usize) -> Option<i32> {
        let conf = self.home(index).join("broker/nats.conf");
        let conf = conf.to_str().unwrap().to_owned();
        pids(|line| line.contains("nats-server") && line.contains(&conf)).first().copied()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.agent.iter_mut().chain(&mut self.brokers) {
            send(child.id().try_into().unwrap(), 15);
            let _ = child.wait();
        }
    }
}

fn counts(file: &Path) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for line in lines(file) {
        *counts.entry(line).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn one_of_three_servers_may_die_at_any_moment() {
    let mut cluster = Cluster::start();
    cluster.agent();
    let witness = cluster.dir.path().join("witness");
    let mut jobs = Vec::new();
    for number in 0..ORDERS {
        // Another server every few orders, in the middle of what goes on.
        if number % 6 == 3
            && let Some(pid) = cluster.server_pid((number / 6) % SERVERS)
        {
            send(pid, 9);
        }
        let line = format!("echo {number:03} >> {}", witness.display());
        let key = format!("order-{number}");
        // A client may meet a server that has just died; the key makes it safe to ask again.
        eventually("an order is placed", || {
            let placed = cluster.steward(&["run", "ship1", "--idempotency-key", &key, "--detach", "--sh", &line]);
            if let Ok(job) = serde_json::from_slice::<Value>(&placed.stdout)
                && let Some(job) = job["job"].as_str()
            {
                jobs.push(job.to_owned());
                return true;
            }
            false
        });
    }
    for job in &jobs {
        eventually("a job has succeeded", || {
            let shown = cluster.steward(&["job", "show", job]);
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            shown["nodes"]["ship1"]["state"] == "succeeded"
        });
    }
    let counts = counts(&witness);
    assert_eq!(counts.len(), ORDERS, "{counts:?}");
    assert!(counts.iter().all(|(_, count)| *count == 1), "{counts:?}");
}
