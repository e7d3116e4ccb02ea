//! The configuration file of the local nats-server.
//!
//! Pure text: in flow paths, numbers and the fleet's public tokens, out flows what nats-server reads. No secret is in
//! it, and nothing a person wrote gets in unquoted.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::keys::Trust;
use crate::tls::ServerTls;

/// How soon what was stored is forced to the disk. An acknowledged message survives the death of the server at once;
/// this decides what a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncInterval {
    /// At most this much later.
    Within(Duration),
    /// Before the acknowledgement: nothing is lost, at some 5 000 instead of 100 000 messages a second.
    Always,
}

/// The server's own log file begins anew, keeping one predecessor, at this size.
const LOG_BYTES_MAX: u32 = 16 << 20;
/// Far above what one machine can serve; the system's limit of open files is met before.
const CONNECTIONS_MAX: u32 = 1_000_000;

/// One server's place in a cluster of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Where the other servers reach this one.
    pub listen: SocketAddr,
    /// Where this server reaches the others: host and port each.
    pub routes: Vec<String>,
}

/// What differs from one broker to the next.
pub(super) struct Conf<'a> {
    pub(super) cluster: Option<&'a Cluster>,
    pub(super) listen: SocketAddr,
    pub(super) server_name: &'a str,
    /// Absolute; UTF-8, as nats-server's configuration is.
    pub(super) dir: &'a str,
    pub(super) sync: SyncInterval,
    pub(super) payload_bytes_max: u32,
    pub(super) store_bytes_max: u64,
    pub(super) memory_bytes_max: u64,
    pub(super) trust: &'a Trust,
    pub(super) tls: Option<&'a ServerTls>,
    pub(super) cluster_tls: Option<&'a ServerTls>,
}

impl Conf<'_> {
    pub(super) fn render(&self) -> String {
        let at = |name: &str| quote(&Path::new(self.dir).join(name).to_string_lossy());
        let sync = match self.sync {
            SyncInterval::Always => "always".to_owned(),
            SyncInterval::Within(span) => quote(&format!("{}ms", span.as_millis().max(1))),
        };
        let mut text = format!(
            "# Written by steward at every start of the broker; changes made here do not last.\n\
             listen: {listen}\n\
             server_name: {name}\n\
             pid_file: {pid}\n\
             log_file: {log}\n\
             logfile_size_limit: {LOG_BYTES_MAX}\n\
             logfile_max_num: 2\n\
             max_connections: {CONNECTIONS_MAX}\n\
             max_payload: {payload}\n\
             # A client that cannot be written to for this long is cut off; it comes back and catches up.\n\
             write_deadline: \"10s\"\n\
             # Clients ping by themselves, as often as their links can bear it, and with that keep the broker from doing so.\n\
             # Only a peer that vanished without a word is pinged, and gone after two intervals. Less than half an hour would\n\
             # cost units on metered links more than all else that they say.\n\
             ping_interval: \"31m\"\n\
             ping_max: 1\n\
             jetstream {{\n  store_dir: {store}\n  max_file_store: {file}\n  max_memory_store: {memory}\n  \
             sync_interval: {sync}\n}}\n\
             operator: {operator}\n\
             system_account: {system}\n\
             resolver {{\n  type: full\n  dir: {jwt}\n  allow_delete: false\n  interval: \"2m\"\n}}\n\
             resolver_preload {{\n",
            listen = quote(&self.listen.to_string()),
            name = quote(self.server_name),
            pid = at("nats.pid"),
            log = at("nats.log"),
            payload = self.payload_bytes_max,
            store = at("store"),
            file = self.store_bytes_max,
            memory = self.memory_bytes_max,
            operator = quote(&self.trust.operator_jwt),
            system = quote(&self.trust.system_account),
            jwt = at("jwt"),
        );
        for (account, jwt) in &self.trust.accounts {
            let _ = writeln!(text, "  {account}: {}", quote(jwt)); // writing to a String cannot fail
        }
        text.push_str("}\n");
        if let Some(tls) = self.tls {
            text.push_str(&tls_block(tls, tls.verify_clients));
        }
        if let Some(cluster) = self.cluster {
            let routes: Vec<String> = cluster.routes.iter().map(|route| quote(&format!("nats://{route}"))).collect();
            // The servers show each other their certificates.
            let tls = self.cluster_tls.map(|tls| tls_block(tls, true)).unwrap_or_default();
            let (listen, routes) = (quote(&cluster.listen.to_string()), routes.join(", "));
            // writing to a String cannot fail
            let _ =
                writeln!(text, "cluster {{\n  name: \"steward\"\n  listen: {listen}\n  routes: [{routes}]\n{tls}}}");
        }
        text
    }
}

fn tls_block(tls: &ServerTls, verify: bool) -> String {
    let path = |path: &Path| quote(&path.to_string_lossy());
    let ca = tls.ca.as_ref().map(|ca| format!("  ca_file: {}\n", path(ca))).unwrap_or_default();
    format!(
        "tls {{\n  cert_file: {}\n  key_file: {}\n{ca}  verify: {verify}\n  timeout: 10\n}}\n",
        path(&tls.cert),
        path(&tls.key)
    )
}

/// A string in nats-server's notation.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_stay_inside_the_string() {
        assert_eq!(quote(r#"a"b\c"#), r#""a\"b\\c""#);
        assert_eq!(quote("a\nb"), r#""a\nb""#);
    }
}
