//! One small HTTP request, to see whether a station is there and ready.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A status line is short; what comes behind it does not matter.
const HEAD_BYTES_MAX: u64 = 4 * 1024;

/// The status code that `GET path` at `address` gives.
pub(crate) async fn http_status(address: SocketAddr, path: &str) -> io::Result<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        stream.take(HEAD_BYTES_MAX).read_to_end(&mut head).await?;
        status_of(&head).ok_or_else(|| io::Error::other("it does not speak HTTP"))
    };
    timeout(ANSWER_MAX, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The code in `HTTP/1.1 200 OK`.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_has_a_code() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\nx: y\r\n"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 503 \r\n"), Some(503));
        assert_eq!(status_of(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(status_of(b""), None);
    }
}
