//! Where the broker listens, who else does, and whether it is ready.
//!
//! In flows an address; out flows a sentence about who holds it, or what a server there says of itself. Looks only.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A server on this machine greets at once.
const GREETING_MAX: Duration = Duration::from_secs(2);
/// No INFO line is nearly as long.
const GREETING_BYTES_MAX: u64 = 64 * 1024;

/// What a nats-server says first.
#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    #[serde(default)]
    pub(super) server_name: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) jetstream: bool,
}

/// Where a client on this machine finds what listens on `listen`.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// Reads the greeting of the nats-server at `address`.
pub(super) async fn greeting(address: SocketAddr) -> io::Result<Greeting> {
    use tokio::io::AsyncReadExt;
    let greet = async {
        let stream = TcpStream::connect(reachable(address)).await?;
        let mut line = String::new();
        BufReader::new(stream.take(GREETING_BYTES_MAX)).read_line(&mut line).await?;
        let json = line.strip_prefix("INFO ").ok_or_else(|| io::Error::other("it is no nats-server"))?;
        serde_json::from_str(json).map_err(io::Error::other)
    };
    timeout(GREETING_MAX, greet).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether `address` can be listened on; port 0 becomes one that is free.
pub(super) fn try_listen(address: SocketAddr) -> io::Result<SocketAddr> {
    TcpListener::bind(address)?.local_addr()
}

/// Who holds `address`, in words for a sentence.
pub(super) async fn holder(address: SocketAddr) -> String {
    let process = listener(address.port()).map(|(pid, name)| format!("process {pid} ({name})"));
    let nats = greeting(address).await.ok().map(|greeting| format!("nats-server {}", greeting.version));
    match (nats, process) {
        (Some(nats), Some(process)) => format!("a {nats}, {process}"),
        (Some(nats), None) => format!("a {nats} of another user"),
        (None, Some(process)) => process,
        (None, None) => "a process of another user".to_owned(),
    }
}

/// Pid and name of the process that listens on `port`, where the system lets us see it.
fn listener(port: u16) -> Option<(u32, String)> {
    let socket = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        let inode = table.lines().skip(1).find_map(|line| listening_inode(line, port).map(str::to_owned))?;
        Some(format!("socket:[{inode}]"))
    })?;
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == socket.as_str())
    };
    let pid = pids.into_iter().find(holds)?;
    Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned()))
}

/// The inode in a line of `/proc/net/tcp` if it tells of a socket that listens on `port`.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (_, hex) = local.rsplit_once(':')?;
    (*state == LISTEN && u16::from_str_radix(hex, 16).ok()? == port).then_some(*inode)
}
