//! Who has signed what came: found out on all cores while much of it is read, for that is most of the work.

use bus::Message;
use futures::future::join_all;
use message::{PublicKey, SignatureError, sign};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::feeds::{Heard, Source};

/// So much is read before it is looked at; what is read at once is bounded by it.
pub(super) const AT_ONCE: usize = 2048;
/// Fewer than these are not worth another thread.
const PART_MIN: usize = 16;

/// Something that came, and who signed it.
pub(super) struct Checked {
    pub(super) heard: Heard,
    /// Of what stands in a bucket, if its signature holds. Replies are checked by whoever wants them.
    pub(super) signer: Option<Result<PublicKey, SignatureError>>,
}

impl From<Heard> for Checked {
    fn from(heard: Heard) -> Self {
        let signer = sealed(&heard).map(Message::signer);
        Self { heard, signer }
    }
}

/// What is worth to be checked.
fn sealed(heard: &Heard) -> Option<&Message> {
    match heard {
        Heard::Message(Source::Nodes | Source::Presence | Source::Facts | Source::Jobs, message) => {
            (!bus::kv::is_deletion(message)).then_some(message)
        }
        Heard::Message(Source::Replies | Source::Events, _) | Heard::Events(_) => None,
    }
}

fn check(part: Vec<Heard>) -> Vec<Checked> {
    let seals: Vec<_> = part.iter().map(|heard| sealed(heard).map(|message| (message.seal(), message))).collect();
    let signed = seals.iter().flatten();
    let signed: Vec<_> =
        signed.filter_map(|(seal, message)| Some((seal.as_ref().ok()?, &message.payload[..]))).collect();
    let mut verified = sign::verify_all(&signed).into_iter();
    let signers = seals.into_iter().map(|seal| {
        // Of each seal that is one, something was found out.
        let found = seal?.0.and_then(|seal| verified.next().unwrap_or(Err(SignatureError::Missing)).map(|()| seal.key));
        Some(found)
    });
    let signers: Vec<_> = signers.collect();
    part.into_iter().zip(signers).map(|(heard, signer)| Checked { heard, signer }).collect()
}

/// What is being checked. Whoever drops it lets the threads end by themselves, within the time of [`AT_ONCE`] signatures.
pub(super) struct Checking(Vec<JoinHandle<Vec<Checked>>>);

impl Checking {
    /// Begins to check what came, in as many parts as there are cores.
    pub(super) fn begin(mut heard: Vec<Heard>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = heard.len().div_ceil(cores).max(PART_MIN);
        let mut parts = Vec::with_capacity(cores);
        while !heard.is_empty() {
            let rest = heard.split_off(part.min(heard.len()));
            let these = std::mem::replace(&mut heard, rest);
            parts.push(spawn_blocking(move || check(these)));
        }
        Self(parts)
    }

    /// All of it, in the order in which it came.
    pub(super) async fn end(self) -> Result<Vec<Checked>, JoinError> {
        let mut all = Vec::new();
        for part in join_all(self.0).await {
            all.extend(part?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use message::{Seal, Timestamp};
    use nkeys::KeyPair;

    use super::*;

    #[tokio::test]
    async fn what_was_checked_by_many_comes_in_its_order_with_its_own_signer() {
        let pairs: Vec<KeyPair> = (0..7).map(|_| KeyPair::new_user()).collect();
        let heard = (0..1000).map(|number| {
            let payload = Bytes::from(number.to_string());
            // Every fifth of some is signed over something else: with none that does not hold, all goes another way.
            let seal =
                Seal::over(if number < 700 && number % 5 == 0 { b"other" } else { &payload }, &pairs[number % 7])
                    .unwrap();
            let headers = bus::Headers::new().sealed(&seal);
            let message = bus::Message::new("$KV.FACTS.ship1", number as u64, Timestamp::default(), payload, headers);
            Heard::Message(Source::Facts, message)
        });
        let checked = Checking::begin(heard.collect()).end().await.unwrap();
        assert_eq!(checked.len(), 1000);
        for (number, checked) in checked.iter().enumerate() {
            let Heard::Message(_, message) = &checked.heard else { panic!() };
            assert_eq!(message.sequence, number as u64);
            let signer = checked.signer.as_ref().unwrap();
            assert_eq!(
                signer.as_ref().ok(),
                (number >= 700 || number % 5 != 0).then(|| PublicKey::of(&pairs[number % 7])).as_ref()
            );
        }
    }
}
