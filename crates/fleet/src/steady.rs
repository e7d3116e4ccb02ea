//! Reading on as a stream grows, across whatever interrupts it.

use std::time::Duration;

use bus::{Bus, BusError, Message, Start, Tail};

/// How often reading is begun again, a second apart, before it is given up.
const REOPENINGS_MAX: u32 = 30;

/// A tail that begins again behind the last message read when it breaks off.
pub(crate) struct Steady {
    bus: Bus,
    stream: &'static str,
    filters: Vec<String>,
    start: Start,
    tail: Option<Tail>,
    reopenings: u32,
}

impl Steady {
    pub(crate) async fn open(
        bus: &Bus,
        stream: &'static str,
        filters: Vec<String>,
        start: Start,
    ) -> Result<Self, BusError> {
        let tail = Some(Tail::open(bus, stream, &filters, start).await?);
        Ok(Self { bus: bus.clone(), stream, filters, start, tail, reopenings: 0 })
    }

    /// One that opens its tail with the first question for a message.
    pub(crate) fn later(bus: &Bus, stream: &'static str, filters: Vec<String>, start: Start) -> Self {
        Self { bus: bus.clone(), stream, filters, start, tail: None, reopenings: 0 }
    }

    /// The next message. May be cancelled at any time. Once in a while one may come twice.
    pub(crate) async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            let Some(tail) = self.tail.as_mut() else {
                self.reopen().await?;
                continue;
            };
            match tail.next().await {
                Ok(message) => {
                    (self.start, self.reopenings) = (Start::Sequence(message.sequence + 1), 0);
                    return Ok(message);
                }
                Err(error) => {
                    tracing::debug!(%error, stream = self.stream, "reading was interrupted");
                    self.tail = None;
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), BusError> {
        self.reopenings += 1;
        if self.reopenings > 1 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        match Tail::open(&self.bus, self.stream, &self.filters, self.start).await {
            Ok(tail) => self.tail = Some(tail),
            Err(error) if self.reopenings >= REOPENINGS_MAX => return Err(error),
            Err(error) => tracing::debug!(%error, stream = self.stream, "reading cannot go on yet"),
        }
        Ok(())
    }
}
