//! Syslog as a sink: RFC 5424, over TCP with octet counting (RFC 6587, RFC 5425 section 4.3) or a datagram each.

use std::io;

use message::syslog::{FACILITIES, SEVERITIES};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::config::{Format, SyslogSink};
use super::sink::{Load, write};
use super::usable::{Line, Usable};
use crate::hand_over::{PATIENCE, Refusal};

/// The facility where a record names none: `user`.
const USER: usize = 1;
/// The severity where a record names none: `info`.
const INFO: usize = 6;
/// The largest message in a datagram (RFC 5426, section 3.2, for networks with a common MTU); what is beyond is cut off.
const DATAGRAM_BYTES_MAX: usize = 8192;

/// Somebody who takes syslog, and the way there.
pub(super) struct Syslog {
    sink: SyslogSink,
    stream: Option<TcpStream>,
}

impl Syslog {
    pub(super) const fn new(sink: SyslogSink) -> Self {
        Self { sink, stream: None }
    }

    /// Sends all of a load, and returns how many records that were. Nobody confirms what has come: what was on its way when a
    /// connection broke is sent again only if that was noticed before all of it was handed over.
    pub(super) async fn deliver(&mut self, load: &Load, format: Format) -> Result<u64, Refusal> {
        let mut messages = Vec::new();
        for batch in &load.batches {
            messages.extend(batch.lines().enumerate().map(|(number, line)| message(batch, number, line, format)));
        }
        if messages.is_empty() {
            return Ok(0);
        }
        let sent = if self.sink.is_tcp { self.stream_out(&messages).await } else { self.send_out(&messages).await };
        match sent {
            Ok(()) => Ok(messages.len() as u64),
            Err(error) => {
                self.stream = None;
                Err(Refusal::Later(format!("syslog at {}: {error}", self.sink.address)))
            }
        }
    }

    async fn stream_out(&mut self, messages: &[Vec<u8>]) -> io::Result<()> {
        // Who has closed is not written to: what is in the buffers of a dead connection is lost without a word.
        if self.stream.as_ref().is_some_and(
            |stream| !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        ) {
            self.stream = None;
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(patient(TcpStream::connect(&self.sink.address)).await?),
        };
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend_from_slice(format!("{} ", message.len()).as_bytes());
            bytes.extend_from_slice(message);
        }
        patient(async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        })
        .await
    }

    async fn send_out(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        let address = patient(tokio::net::lookup_host(&self.sink.address)).await?.next();
        let address = address.ok_or_else(|| io::Error::other("it has no address"))?;
        let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
        socket.connect(address).await?;
        for message in messages {
            patient(socket.send(message.get(..DATAGRAM_BYTES_MAX).unwrap_or(message))).await?;
        }
        Ok(())
    }
}

async fn patient<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::other(format!("nothing was taken for {} s", PATIENCE.as_secs()))),
    }
}

/// What a record that came from syslog tells of where it belongs.
#[derive(Default, Deserialize)]
struct Origin {
    severity: Option<String>,
    facility: Option<String>,
    host: Option<String>,
    app: Option<String>,
    pid: Option<String>,
    msgid: Option<String>,
}

/// A record as a message. One that came from syslog goes on as what it was; of another, its node is the host, its domain the
/// application, its method the kind of message.
fn message(batch: &Usable, number: usize, line: Line<'_>, format: Format) -> Vec<u8> {
    let Line { at, record } = line;
    let origin: Origin = serde_json::from_str(record).unwrap_or_default();
    let place = |words: &[&str], name: Option<&String>, without: usize| {
        name.and_then(|name| words.iter().position(|word| word == name)).unwrap_or(without)
    };
    let severity = place(&SEVERITIES, origin.severity.as_ref(), INFO);
    let facility = place(&FACILITIES, origin.facility.as_ref(), USER);
    let head = &batch.head;
    let mut bytes = format!(
        "<{}>1 {at} {} {} {} {} - ",
        facility * 8 + severity,
        word(origin.host.as_deref().unwrap_or(head.from.as_str()), 255),
        word(origin.app.as_deref().unwrap_or(head.domain.as_str()), 48),
        word(origin.pid.as_deref().unwrap_or("-"), 128),
        word(origin.msgid.as_deref().unwrap_or(head.method.as_str()), 32),
    )
    .into_bytes();
    write(batch, number, line, format, &mut bytes);
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

/// A field of the header (RFC 5424, section 6): without what it may not hold, and no longer than it may be.
fn word(text: &str, most: usize) -> String {
    let word: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use message::ReceivedBatch;
    use message::event::EventHead;
    use message::{Kind, MessageId, NodeName, Timestamp, Token, WIRE_VERSION};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn batch(records: &str) -> Usable {
        let head = EventHead {
            v: WIRE_VERSION,
            kind: Kind::Event,
            id: MessageId::from_bytes([9; 16]),
            from: NodeName::new("ship1").unwrap(),
            to: NodeName::new("central").unwrap(),
            method: Token::method("log").unwrap(),
            domain: Token::domain("nginx").unwrap(),
            created: Timestamp::from_ms(0),
            count: records.lines().count().try_into().unwrap(),
            journal: None,
            row: None,
        };
        Usable::of(&ReceivedBatch { head, records: Bytes::copy_from_slice(records.as_bytes()) }).unwrap()
    }

    const RECORDS: &str = r#"{"at":"2026-11-22T23:59:59.999Z","record":{"message":"GET /\u00fc"}}
{"at":"2026-11-23T00:00:00.000Z","record":{"facility":"auth","severity":"crit","host":"router 1","app":"su","pid":"231","message":"two\nlines"}}
{"at":"2026-11-23T00:00:00.000Z","record":{"severity":99,"n":1}}
"#;
    const MESSAGES: [&str; 3] = [
        "<14>1 2026-11-22T23:59:59.999Z ship1 nginx - log - GET /ü",
        "<34>1 2026-11-23T00:00:00.000Z router1 su 231 log - two\nlines",
        "<14>1 2026-11-23T00:00:00.000Z ship1 nginx - log - {\"severity\":99,\"n\":1}",
    ];

    #[tokio::test]
    async fn each_record_is_a_message_with_its_length_before_it_and_a_closed_connection_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut syslog = Syslog::new(SyslogSink { is_tcp: true, address });
        let load = Load { batches: vec![batch(RECORDS)], sequence: 1 };
        let wanted: String = MESSAGES.iter().map(|message| format!("{} {message}", message.len())).collect();
        for _ in 0..2 {
            let (sent, accepted) = tokio::join!(syslog.deliver(&load, Format::Raw), listener.accept());
            assert_eq!(sent.unwrap(), 3);
            let mut heard = vec![0; wanted.len()];
            let mut stream = accepted.unwrap().0;
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(String::from_utf8(heard).unwrap(), wanted);
            drop(stream);
            // The end of the connection has to come here before the next load goes.
            syslog.stream.as_ref().unwrap().readable().await.unwrap();
        }
        drop(listener);
        let refused = syslog.deliver(&load, Format::Raw).await;
        assert!(
            matches!(&refused, Err(Refusal::Later(reason)) if reason.contains("syslog at 127.0.0.1")),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn datagrams_are_a_message_each() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let mut syslog = Syslog::new(SyslogSink { is_tcp: false, address });
        let load = Load { batches: vec![batch(RECORDS)], sequence: 1 };
        assert_eq!(syslog.deliver(&load, Format::Raw).await.unwrap(), 3);
        for wanted in MESSAGES {
            let mut heard = [0; 1000];
            let length = socket.recv(&mut heard).await.unwrap();
            assert_eq!(std::str::from_utf8(&heard[..length]), Ok(wanted));
        }
    }
}
