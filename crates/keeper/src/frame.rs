//! How a message travels: a header in JSON and raw bytes beside it, each preceded by its length.
//!
//! Both lengths are bounded, so that nobody who writes nonsense makes the other side reserve memory for it.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

/// The longest header, and the most bytes beside it: more than the largest order can ask for.
const PART_MAX: usize = 8 * 1024 * 1024;

/// A message as it is written.
///
/// # Errors
/// When it is too long, or cannot be written as JSON.
pub(crate) fn encode(header: &impl Serialize, beside: &[u8]) -> io::Result<Vec<u8>> {
    let header = Zeroizing::new(serde_json::to_vec(header)?);
    let mut frame = Vec::with_capacity(8 + header.len() + beside.len());
    for part in [&header[..], beside] {
        let length = u32::try_from(part.len()).ok().filter(|_| part.len() <= PART_MAX);
        let length = length.ok_or_else(|| io::Error::other("a message between agent and keeper is too long"))?;
        frame.extend_from_slice(&length.to_be_bytes());
    }
    frame.extend_from_slice(&header);
    frame.extend_from_slice(beside);
    Ok(frame)
}

/// The next message; `None` at the end. Must not be dropped half-way and called again.
///
/// # Errors
/// When the link breaks, or what comes is no message.
pub(crate) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(T, Bytes)>> {
    let mut lengths = [0; 8];
    match from.read_exact(&mut lengths).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, e, f, g, h] = lengths;
    // There may be secrets in it.
    let header = Zeroizing::new(part(from, u32::from_be_bytes([a, b, c, d])).await?);
    let beside = part(from, u32::from_be_bytes([e, f, g, h])).await?;
    Ok(Some((serde_json::from_slice(&header)?, beside.into())))
}

async fn part(from: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Vec<u8>> {
    let length = length as usize;
    if length > PART_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the length of a message is beyond what is allowed"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let frame = [encode(&"one", b"beside").unwrap(), encode(&"two", b"").unwrap()].concat();
        let mut from = frame.as_slice();
        assert_eq!(read::<String>(&mut from).await.unwrap().unwrap(), ("one".to_owned(), Bytes::from("beside")));
        assert_eq!(read::<String>(&mut from).await.unwrap().unwrap().0, "two");
        assert!(read::<String>(&mut from).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_length_beyond_all_bounds_reserves_nothing() {
        let mut from: &[u8] = &[255; 64];
        assert_eq!(read::<String>(&mut from).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
