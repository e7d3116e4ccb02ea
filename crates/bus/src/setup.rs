//! Setting up the store, and asking since when the broker remembers, through a connection.

use std::time::UNIX_EPOCH;

use message::Timestamp;

use crate::connect::Bus;
use crate::error::BusError;
use crate::streams::{self, Options, ProvisionError, Provisioned};

impl Bus {
    /// Sets up every stream and bucket, or brings those that exist up to date. Takes a provisioner's credentials.
    ///
    /// # Errors
    /// [`ProvisionError`] with the stream that the broker refuses, and why.
    pub async fn provision(&self, options: Options) -> Result<Provisioned, ProvisionError> {
        streams::provision(&self.jetstream(), options).await
    }

    /// Since when the broker remembers: life signs that are older prove nothing. Leaves a mark if there is none.
    ///
    /// # Errors
    /// [`BusError`] when the broker cannot be asked.
    pub async fn booted(&self) -> Result<Timestamp, BusError> {
        let booted = streams::mark_boot(&self.jetstream(), 1).await.map_err(|error| BusError::Other {
            what: "asking since when the broker runs".into(),
            reason: error.to_string(),
        })?;
        let ms = booted.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Timestamp::from_ms(i64::try_from(ms).unwrap_or(i64::MAX)))
    }

    fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client.nats())
    }
}
