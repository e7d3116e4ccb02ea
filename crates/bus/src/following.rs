//! Going on with what a stream holds under one filter, with a pull consumer of a given name: the way of a node, which may have no
//! other. What is asked for waits at the broker until something comes.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::Subscriber;
use crate::connect::{Bus, Link};
use crate::error::BusError;
use crate::read::{ABSENCE, ABSENCES_MAX, Consumer, Delivered, NO_RESPONDERS, Start, delivered};
use crate::wire::Message;

/// How many messages are asked for at once; also bounds what waits in memory.
const BATCH: u64 = 64;
/// And how many bytes: more than the largest message has.
const BATCH_BYTES: u64 = 2 << 20;
/// The status of an answer that says that no more may be sent, for one of many reasons.
const CONFLICT: u16 = 409;
/// The description of the one that says that as many have come as were asked for, with bytes to spare (nats-server 2.15,
/// `server/consumer.go`).
const COMPLETED: &str = "Batch Completed";
/// How much longer than it was asked to wait the broker may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How much longer than its user may be silent the broker keeps a consumer.
const INACTIVE_MORE: Duration = Duration::from_secs(60);

/// How often the broker is asked while nothing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long the broker keeps a question while there is nothing. At most 100 s: after two minutes the way for its answer through
    /// the wall between the accounts is gone.
    pub wait: Duration,
    /// How long to wait until it is asked again.
    pub rest: Duration,
}

/// Messages of a stream, in order and without gaps, as long as the link stays up.
pub struct Following {
    bus: Bus,
    stream: String,
    consumer: String,
    inbox: String,
    subscriber: Subscriber,
    pace: Pace,
    /// Messages that may still come of what was asked for last.
    outstanding: u64,
    /// Whether any has come of it.
    is_fruitful: bool,
    /// Not asked again before.
    rests_until: Option<Instant>,
    absences: u32,
    /// The number of the last message that came.
    number: u64,
    link: watch::Receiver<Link>,
    /// How often the link had come about when it was opened.
    ups: u64,
}

impl Following {
    /// Opens it with the consumer `name`, for the messages of `stream` that match `filter`. One of that name that was left behind is
    /// deleted first.
    ///
    /// # Errors
    /// [`BusError`] when the broker does not allow or answer it.
    pub async fn open(
        bus: &Bus,
        stream: &str,
        name: &str,
        filter: String,
        start: Start,
        pace: Pace,
    ) -> Result<Self, BusError> {
        let link = bus.link();
        let ups = link.borrow().ups;
        let inactive = pace.wait + pace.rest + INACTIVE_MORE;
        let created = Consumer { bus, stream, name, filters: &[filter], start, inactive }.create_anew().await?;
        Ok(Self {
            bus: bus.clone(),
            stream: stream.to_owned(),
            consumer: name.to_owned(),
            inbox: created.inbox,
            subscriber: created.subscriber,
            pace,
            outstanding: 0,
            is_fruitful: true,
            rests_until: None,
            absences: 0,
            number: 0,
            link,
            ups,
        })
    }

    /// The next message; waits for it. May be cancelled at any time.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] when the link is, or was, down since it was opened; [`BusError`] when the broker falls silent or
    /// something is missing. What came so far is right; open another one behind it.
    pub async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            if !self.bus.is_up() || self.link.borrow_and_update().ups != self.ups {
                return Err(BusError::Disconnected);
            }
            if let Some(until) = self.rests_until {
                tokio::select! {
                    changed = self.link.changed() => {
                        changed.map_err(|_| BusError::Disconnected)?;
                        continue;
                    }
                    () = sleep_until(until) => self.rests_until = None,
                }
            }
            if self.outstanding == 0 {
                self.ask().await?;
            }
            let answer = tokio::select! {
                biased;
                answer = timeout(self.pace.wait + SILENCE_MAX, self.subscriber.next()) => answer,
                changed = self.link.changed() => {
                    changed.map_err(|_| BusError::Disconnected)?;
                    continue;
                }
            };
            let silent = || BusError::Timeout { what: format!("following {}", self.stream) };
            let answer = answer.map_err(|_| silent())?.ok_or(BusError::Disconnected)?;
            let Some(status) = answer.status else {
                self.outstanding = self.outstanding.saturating_sub(1);
                (self.absences, self.is_fruitful) = (0, true);
                let Delivered { message, number, .. } = delivered(answer)?;
                if number != self.number + 1 {
                    let reason = format!("message {number} came after message {}", self.number);
                    return Err(BusError::Other { what: format!("following {}", self.stream), reason });
                }
                self.number = number;
                return Ok(message);
            };
            match status.as_u16() {
                // Comes behind the last of them, which has been counted, or before it where the stream has replicas: says nothing
                // about what was asked for since.
                CONFLICT if answer.description.as_deref() == Some(COMPLETED) => continue,
                // Nothing there, or nothing more within the time.
                404 | 408 => {
                    if !self.is_fruitful && !self.pace.rest.is_zero() {
                        self.rests_until = Some(Instant::now() + self.pace.rest);
                    }
                }
                // Enough bytes have come. Where the reason was another, the next question tells.
                CONFLICT if self.is_fruitful => {}
                NO_RESPONDERS if self.absences < ABSENCES_MAX => {
                    self.absences += 1;
                    self.rests_until = Some(Instant::now() + ABSENCE);
                }
                code => {
                    let description = answer.description.unwrap_or_else(|| "its consumer is gone".into());
                    return Err(BusError::Broker {
                        what: format!("following {}", self.stream),
                        code: code.into(),
                        description,
                    });
                }
            }
            self.outstanding = 0;
        }
    }

    async fn ask(&mut self) -> Result<(), BusError> {
        let subject = format!("{}.CONSUMER.MSG.NEXT.{}.{}", self.bus.api_prefix, self.stream, self.consumer);
        let body = if self.pace.wait.is_zero() {
            json!({"batch": BATCH, "max_bytes": BATCH_BYTES, "no_wait": true})
        } else {
            json!({"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": u64::try_from(self.pace.wait.as_nanos()).unwrap_or(u64::MAX)})
        };
        self.bus
            .client
            .publish_with_reply(subject, self.inbox.clone(), Bytes::from(body.to_string()))
            .await
            .map_err(|error| BusError::Other { what: "asking for messages".into(), reason: error.to_string() })?;
        (self.outstanding, self.is_fruitful) = (BATCH, false);
        Ok(())
    }
}
