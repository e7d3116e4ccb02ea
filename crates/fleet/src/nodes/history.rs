//! How a node has stood: what it told of that itself, and what follows from the life sign that stands there now.

use bus::kv::{HISTORY, PRESENCE};
use bus::{BusError, Message, Scan, Start};
use message::change::{Listening, Spell, timeline};
use message::{Change, NodeName, NodeRecord, Timestamp, WIRE_VERSION};
use serde_json::{Value, json};

use super::{NO_SUCH_STREAM, Node};
use crate::connection::Fleet;
use crate::error::FleetError;

/// How a node has stood, as far as that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeHistory {
    /// The oldest first.
    pub spells: Vec<Spell>,
    /// What was not believed, as sentences for people.
    pub notes: Vec<String>,
}

impl NodeHistory {
    /// As `node history -o json` lists it, the oldest first.
    pub fn to_json(&self) -> Vec<Value> {
        let ends = self.spells.iter().skip(1).map(|next| Some(next.since)).chain([None]);
        let spells = self.spells.iter().zip(ends);
        spells
            .map(|(spell, until)| {
                json!({"state": spell.state, "reason": spell.reason, "since": spell.since, "until": until})
            })
            .collect()
    }
}

impl Fleet {
    /// How a node has stood.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such node, otherwise when the broker cannot be asked.
    pub async fn history(&self, node: &Node) -> Result<NodeHistory, FleetError> {
        let name = node.name();
        // The sign before what was told: one that came in between is told of itself.
        let (sign, clock) = tokio::try_join!(
            async { Ok::<_, FleetError>(self.bus().kv_get(PRESENCE, name.as_str()).await?) },
            self.broker_clock()
        )?;
        let written = self.changes(name).await?;
        let mut history = NodeHistory::default();
        let mut told: Vec<(Change, Timestamp)> = Vec::new();
        for message in written {
            match believe(&message, &node.record) {
                Ok(change) => told.push((change, message.stored_at)),
                Err(note) => history.notes.push(note),
            }
        }
        let sign = sign.and_then(|message| {
            let sign = super::belief::life_sign(&super::belief::Written::of(&message), &node.record).ok()?;
            Some((sign, message.stored_at))
        });
        let listening = Listening { now: clock.now, booted: clock.booted };
        history.spells = timeline(
            node.record.revoked.map(|at| (at, node.record.by.as_str())),
            &told,
            sign.as_ref().map(|(sign, seen)| (sign, *seen)),
            listening,
        );
        Ok(history)
    }

    /// What a node told; a broker that was set up before there was such a thing has nothing.
    async fn changes(&self, name: &NodeName) -> Result<Vec<Message>, FleetError> {
        let (stream, subject) = (format!("KV_{HISTORY}"), format!("$KV.{HISTORY}.{name}"));
        let mut scan = match Scan::open(self.bus(), &stream, &[subject], Start::First).await {
            Err(BusError::Broker { code: NO_SUCH_STREAM, .. }) => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut told = Vec::new();
        while let Some(message) = scan.next().await? {
            told.push(message);
        }
        Ok(told)
    }
}

/// A change, if the node signed it.
fn believe(message: &Message, record: &NodeRecord) -> Result<Change, String> {
    let wrong = |reason: String| {
        format!("a change of {} that the broker stored at {} is not believed: {reason}", record.name, message.stored_at)
    };
    let signer = message.signer().map_err(|error| wrong(error.to_string()))?;
    if signer != record.key {
        return Err(wrong(format!("it is signed by {signer}, the node's key is {}", record.key)));
    }
    let change: Change = serde_json::from_slice(&message.payload).map_err(|error| wrong(error.to_string()))?;
    if change.v != WIRE_VERSION || change.node != record.name {
        return Err(wrong(format!("it is that of {} in version {}", change.node, change.v)));
    }
    Ok(change)
}
