//! The connection underneath: async-nats. For a simulation (feature `simulate`, never in a shipped program) a broker in
//! memory takes its place; everything above is the same.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;

#[cfg(feature = "simulate")]
use crate::simulate;

/// A connection; cheap to clone.
#[derive(Clone)]
pub(crate) enum Client {
    Nats(async_nats::Client),
    #[cfg(feature = "simulate")]
    Simulated(std::sync::Arc<dyn simulate::Broker>),
}

impl Client {
    pub(crate) fn is_up(&self) -> bool {
        match self {
            Self::Nats(client) => client.connection_state() == async_nats::connection::State::Connected,
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => broker.is_up(),
        }
    }

    pub(crate) fn server_version(&self) -> Option<String> {
        match self {
            Self::Nats(client) => client.try_server_info().map(|info| info.version),
            #[cfg(feature = "simulate")]
            Self::Simulated(_) => None,
        }
    }

    pub(crate) fn new_inbox(&self) -> String {
        match self {
            Self::Nats(client) => client.new_inbox(),
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => broker.new_inbox(),
        }
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, async_nats::SubscribeError> {
        match self {
            Self::Nats(client) => client.subscribe(subject).await.map(Subscriber::Nats),
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => Ok(Subscriber::Simulated(broker.subscribe(subject))),
        }
    }

    pub(crate) async fn publish(&self, subject: String, payload: Bytes) -> Result<(), async_nats::PublishError> {
        match self {
            Self::Nats(client) => client.publish(subject, payload).await,
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => {
                broker.send(simulate::Packet { subject, payload, ..simulate::Packet::default() });
                Ok(())
            }
        }
    }

    pub(crate) async fn publish_with_headers(
        &self,
        subject: String,
        headers: async_nats::HeaderMap,
        payload: Bytes,
    ) -> Result<(), async_nats::PublishError> {
        match self {
            Self::Nats(client) => client.publish_with_headers(subject, headers, payload).await,
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => {
                let headers = simulate::headers_of(&headers);
                broker.send(simulate::Packet { subject, headers, payload, ..simulate::Packet::default() });
                Ok(())
            }
        }
    }

    pub(crate) async fn publish_with_reply(
        &self,
        subject: String,
        reply: String,
        payload: Bytes,
    ) -> Result<(), async_nats::PublishError> {
        match self {
            Self::Nats(client) => client.publish_with_reply(subject, reply, payload).await,
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => {
                broker.send(simulate::Packet { subject, reply: Some(reply), payload, ..simulate::Packet::default() });
                Ok(())
            }
        }
    }

    pub(crate) async fn send_request(
        &self,
        subject: String,
        request: async_nats::Request,
    ) -> Result<async_nats::Message, async_nats::RequestError> {
        match self {
            Self::Nats(client) => client.send_request(subject, request).await,
            #[cfg(feature = "simulate")]
            Self::Simulated(broker) => simulate::request(broker.as_ref(), subject, request).await,
        }
    }

    pub(crate) async fn flush(&self) {
        match self {
            // Best effort, as closing is.
            Self::Nats(client) => drop(client.flush().await),
            #[cfg(feature = "simulate")]
            Self::Simulated(_) => {}
        }
    }

    pub(crate) async fn drain(&self) {
        match self {
            Self::Nats(client) => drop(client.drain().await),
            #[cfg(feature = "simulate")]
            Self::Simulated(_) => {}
        }
    }

    /// The connection as async-nats knows it, for what only operators and set-up do.
    pub(crate) fn nats(&self) -> async_nats::Client {
        match self {
            Self::Nats(client) => client.clone(),
            #[cfg(feature = "simulate")]
            Self::Simulated(_) => unreachable!("a simulated broker is spoken to as a node does"),
        }
    }
}

/// What comes on a subject.
pub(crate) enum Subscriber {
    Nats(async_nats::Subscriber),
    #[cfg(feature = "simulate")]
    Simulated(tokio::sync::mpsc::UnboundedReceiver<simulate::Packet>),
}

impl Stream for Subscriber {
    type Item = async_nats::Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Nats(subscriber) => Pin::new(subscriber).poll_next(context),
            #[cfg(feature = "simulate")]
            Self::Simulated(packets) => {
                packets.poll_recv(context).map(|packet| packet.map(simulate::Packet::into_message))
            }
        }
    }
}
