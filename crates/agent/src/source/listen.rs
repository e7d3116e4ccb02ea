//! What others send to this node: syslog over UDP, TCP, TLS and unix sockets, and lines on a socket for local programs.
//!
//! Who sends over a stream waits while the journal is full. Datagrams cannot wait: what finds no room is counted, and told.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bus::clock;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::follow::{LINE_BYTES_MAX, Line};
use super::sieve::{Sieve, encoded};
use super::{Certificates, Records, Source, syslog, wait};

/// What waits to be journaled at most.
const QUEUE_MAX: usize = 4096;
/// What came is journaled after so long, or with so many bytes.
const GATHER: Duration = Duration::from_millis(200);
const COMMIT_BYTES: usize = 1 << 20;
/// So many senders may be connected at once, and so long one may stay silent.
const SENDERS_MAX: usize = 256;
const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// Before an address that could not be listened at is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The longest datagram of UDP.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `udp://127.0.0.1:514`
    Udp(SocketAddr),
    /// `tcp://127.0.0.1:514`
    Tcp(SocketAddr),
    /// `tls://0.0.0.0:6514`, and what with
    Tls(SocketAddr, Certificates),
    /// `unix:///run/steward/log`: datagrams, as at `/dev/log`
    UnixDatagram(PathBuf),
    /// `unix-stream:///run/steward/log`
    UnixStream(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no address to listen at: write \"udp://127.0.0.1:514\", \"tcp://…\", \"tls://…\", \"unix:///run/steward/log\" or \
                 \"unix-stream:///…\""
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let socket = || rest.parse().map_err(|_| wrong());
        let path = || if rest.starts_with('/') { Ok(PathBuf::from(rest)) } else { Err(wrong()) };
        match scheme {
            "udp" => socket().map(Self::Udp),
            "tcp" => socket().map(Self::Tcp),
            "tls" => socket().map(|address| Self::Tls(address, Certificates::default())),
            "unix" => path().map(Self::UnixDatagram),
            "unix-stream" => path().map(Self::UnixStream),
            _ => Err(wrong()),
        }
    }
}

/// What is spoken there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Syslog,
    /// Each line is a record: an object of JSON, or a text.
    Lines,
}

/// What a sender has sent, or that something of his was lost.
enum Heard {
    Message(Vec<u8>),
    Lost(u64),
}

pub(super) async fn run(source: Source, address: Address, speech: Speech, cancel: CancellationToken) {
    let (heard, mut queue) = mpsc::channel(QUEUE_MAX);
    let mut senders = JoinSet::new();
    let listening = {
        let (cancel, standing) = (cancel.clone(), source.standing.clone());
        async move {
            loop {
                let ended = listen(&address, &heard, &mut senders, &standing).await;
                if let Err(error) = ended {
                    standing.note("waiting", Some(format!("{address:?} cannot be listened at: {error}")));
                }
                senders.abort_all();
                if wait(&cancel, RETRY).await {
                    return;
                }
            }
        }
    };
    let gathering = gather(&source, speech, &mut queue, &cancel);
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = listening => {}
        () = gathering => {}
    }
}

/// Journals what comes, in turns.
async fn gather(source: &Source, speech: Speech, queue: &mut mpsc::Receiver<Heard>, cancel: &CancellationToken) {
    let mut sieve = Sieve::new(&source.shape);
    loop {
        if source.keep.is_full(source.told.lane) {
            source.standing.note("waiting: the outbox is full", None);
            if wait(cancel, GATHER).await {
                return;
            }
            continue;
        }
        let Some(first) = queue.recv().await else { return };
        let deadline = tokio::time::Instant::now() + GATHER;
        let (mut records, mut kept, mut next) = (source.keep.records(), 0, Some(first));
        let before = sieve.unwanted + sieve.too_many;
        while let Some(heard) = next.take() {
            kept += u64::from(take(heard, speech, &mut sieve, &mut records));
            if records.bytes() < COMMIT_BYTES {
                next = tokio::time::timeout_at(deadline, queue.recv()).await.ok().flatten();
            }
        }
        let dropped = sieve.unwanted + sieve.too_many - before;
        if !records.is_empty() && !source.keep("", None, &records, cancel).await {
            return;
        }
        source.standing.count(kept, dropped);
        source.standing.note("listening", None);
    }
}

fn take(heard: Heard, speech: Speech, sieve: &mut Sieve, records: &mut Records) -> bool {
    let (now, at) = (Instant::now(), clock::now().to_string());
    let record = match heard {
        Heard::Lost(count) => {
            let text = format!("{count} messages came faster than they could be kept, and are lost");
            Some([("message".to_owned(), Value::from(text)), ("lost".to_owned(), count.into())].into_iter().collect())
        }
        Heard::Message(bytes) => {
            let fields = match speech {
                Speech::Syslog => syslog::record(&bytes),
                Speech::Lines => serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            // What is wanted is asked of the text alone; the fields are there already.
            let text = match fields.get("message").and_then(Value::as_str) {
                Some(text) => text.as_bytes().to_vec(),
                None => bytes,
            };
            sieve.record(Line { bytes: text, goes_on: false }, &Map::new(), now).map(|record| {
                let mut fields = fields;
                if fields.contains_key("message") || fields.is_empty() {
                    fields.extend(record);
                }
                fields
            })
        }
    };
    let Some(record) = record else { return false };
    records.push(|into| encoded(&at, &record, into));
    true
}

/// Listens until something is wrong with the address.
async fn listen(
    address: &Address,
    heard: &mpsc::Sender<Heard>,
    senders: &mut JoinSet<()>,
    standing: &super::Standing,
) -> io::Result<()> {
    match address {
        Address::Udp(address) => {
            let socket = UdpSocket::bind(address).await?;
            standing.note("listening", None);
            let mut lost = 0;
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            loop {
                let (length, _) = socket.recv_from(&mut buffer).await?;
                hand_over(buffer.get(..length).unwrap_or_default(), heard, &mut lost);
            }
        }
        Address::UnixDatagram(path) => {
            let _ = std::fs::remove_file(path); // of a run that died
            let socket = UnixDatagram::bind(path)?;
            standing.note("listening", None);
            let mut lost = 0;
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            loop {
                let (length, _) = socket.recv_from(&mut buffer).await?;
                hand_over(buffer.get(..length).unwrap_or_default(), heard, &mut lost);
            }
        }
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            standing.note("listening", None);
            loop {
                let (stream, _) = listener.accept().await?;
                admit(async { Some(stream) }, heard, senders, standing);
            }
        }
        Address::Tls(address, certificates) => {
            // Told now, not when somebody comes.
            certificates.acceptor().map_err(io::Error::other)?;
            let listener = TcpListener::bind(address).await?;
            standing.note("listening", None);
            loop {
                let (stream, _) = listener.accept().await?;
                let (certificates, told) = (certificates.clone(), standing.clone());
                let opened = async move {
                    let opened = certificates.accept(stream).await;
                    opened.inspect_err(|reason| told.note("listening", Some(reason.clone()))).ok()
                };
                admit(opened, heard, senders, standing);
            }
        }
        Address::UnixStream(path) => {
            let _ = std::fs::remove_file(path); // of a run that died
            let listener = UnixListener::bind(path)?;
            standing.note("listening", None);
            loop {
                let (stream, _) = listener.accept().await?;
                admit(async { Some(stream) }, heard, senders, standing);
            }
        }
    }
}

/// A datagram goes into the queue, or is counted as lost.
fn hand_over(bytes: &[u8], heard: &mpsc::Sender<Heard>, lost: &mut u64) {
    if *lost > 0 && heard.try_send(Heard::Lost(*lost)).is_ok() {
        *lost = 0;
    }
    if heard.try_send(Heard::Message(bytes.to_vec())).is_err() {
        *lost += 1;
    }
}

/// Hears a sender, once his connection is open: `None` when it does not come about.
fn admit<S: AsyncRead + Unpin + Send>(
    opened: impl Future<Output = Option<S>> + Send + 'static,
    heard: &mpsc::Sender<Heard>,
    senders: &mut JoinSet<()>,
    standing: &super::Standing,
) {
    while senders.try_join_next().is_some() {}
    if senders.len() >= SENDERS_MAX {
        standing.note("listening", Some(format!("{SENDERS_MAX} senders are connected: one more was sent away")));
        return;
    }
    let heard = heard.clone();
    senders.spawn(async move {
        let Some(mut stream) = opened.await else { return };
        let (mut buffer, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
        // Who has gone has ended his last line.
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout(SILENCE_MAX, stream.read(&mut chunk)).await {
            buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
            let mut messages = Vec::new();
            syslog::frames(&mut buffer, LINE_BYTES_MAX, |message| messages.push(message.to_vec()));
            for message in messages {
                if heard.send(Heard::Message(message)).await.is_err() {
                    return;
                }
            }
        }
        if !buffer.is_empty() {
            let _ = heard.send(Heard::Message(buffer)).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_how_it_is_spoken_to() {
        assert_eq!("udp://127.0.0.1:514".parse(), Ok(Address::Udp("127.0.0.1:514".parse().unwrap())));
        assert_eq!("unix:///dev/log".parse(), Ok(Address::UnixDatagram("/dev/log".into())));
        for wrong in ["127.0.0.1:514", "udp://here", "unix://dev/log", "http://x"] {
            assert!(wrong.parse::<Address>().unwrap_err().contains("udp://127.0.0.1:514"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn datagrams_that_find_no_room_are_counted_and_told() {
        let (heard, mut queue) = mpsc::channel(2);
        let mut lost = 0;
        for _ in 0..5 {
            hand_over(b"x", &heard, &mut lost);
        }
        assert_eq!(lost, 3);
        while queue.try_recv().is_ok() {}
        hand_over(b"y", &heard, &mut lost);
        assert_eq!(lost, 0);
        assert!(matches!(queue.try_recv(), Ok(Heard::Lost(3))));
        assert!(matches!(queue.try_recv(), Ok(Heard::Message(text)) if text == b"y"));
    }
}
