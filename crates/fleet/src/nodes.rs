//! The fleet: who belongs to it, how each stands, and who is meant by a target.

mod belief;
mod history;
mod select;

use std::collections::HashMap;
use std::time::Duration;

use bus::keys::Role;
use bus::kv::{FACTS, NODES, PRESENCE, is_deletion, key_of};
use bus::{BusError, Message, Scan, Start};
use bytes::Bytes;
use futures::future::try_join_all;
use message::audit::Act;
use message::registry::NodeKind;
use message::{
    Expression, Facts, LifeSign, NodeName, NodeRecord, Pattern, PublicKey, Selector, Timestamp, Vitality, WIRE_VERSION,
};
use serde_json::json;

use crate::connection::Fleet;
use crate::context::Home;
use crate::error::FleetError;
use crate::revoke::cut_off;
use belief::{BrokerClock, Written};
pub(crate) use belief::{natural, near};
pub use history::NodeHistory;
pub use select::known;

/// Up to so many names are read one by one; for more, the whole fleet is read at once.
const EXACT_MAX: usize = 64;
/// So many nodes are verified on one thread before the next one is asked to help.
const VERIFY_BATCH: usize = 512;
/// How often a record is written again when somebody else was faster.
const CONFLICTS_MAX: u32 = 5;
/// JetStream's code for a stream that does not exist.
const NO_SUCH_STREAM: u64 = 10059;
/// The stream in the broker's memory that tells when the broker started, and its subject.
const BOOT: (&str, &str) = ("BOOT", "steward.boot");

/// Who is meant: whoever fulfils all that is there. Nobody, if nothing is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Names and globs, of which one has to match; see [`Pattern::parse_list`].
    pub patterns: Vec<Pattern>,
    /// What the labels have to be.
    pub labels: Option<Selector>,
    /// What has to hold of labels, facts and presence.
    pub condition: Option<Expression>,
    /// Every node of the fleet that fulfils the rest.
    pub all: bool,
}

/// A node of the fleet, as its signed record and its last signed sign of life tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What an operator signed about it.
    pub record: NodeRecord,
    /// What it last said of itself.
    pub sign: Option<LifeSign>,
    /// What it said of its system; read only where that is asked for.
    pub facts: Option<Facts>,
    /// When the broker stored that.
    pub last_seen: Option<Timestamp>,
    /// How it stands.
    pub vitality: Vitality,
    /// How long ago it last reported, by the broker's clock.
    pub age: Option<Duration>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.record.name
    }

    /// As `node ls -o json` lists it.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "name": self.record.name,
            "state": self.vitality.state,
            "reason": self.vitality.reason,
            "last_seen": self.last_seen,
            "labels": self.record.labels,
            "facts": self.facts.as_ref().map_or_else(|| json!({}), |told| told.facts.clone()),
            "version": self.sign.as_ref().map(|sign| &sign.version),
            "processes": self.sign.as_ref().map_or(0, |sign| sign.processes),
            "rtt_ms": self.rtt_ms(),
            "clock_offset_ms": self.clock_offset_ms(),
        })
    }

    /// How long its last question to the broker took, there and back, in milliseconds.
    pub fn rtt_ms(&self) -> Option<u32> {
        self.sign.as_ref()?.rtt_ms
    }

    /// By how many milliseconds its clock was ahead of the broker's at its last life sign: what it wrote there, beside the
    /// time of storing it. The way there is taken for half of the round trip, if that is known.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        let (sign, stored) = (self.sign.as_ref()?, self.last_seen?);
        let way = i64::from(sign.rtt_ms.unwrap_or(0) / 2);
        Some(sign.at.as_ms().saturating_add(way).saturating_sub(stored.as_ms()))
    }
}

/// Nodes as they stood at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetView {
    /// The nodes, in natural order of their names: `ship2` before `ship10`.
    pub nodes: Vec<Node>,
    /// What was not believed or left out, as sentences for people.
    pub notes: Vec<String>,
    /// The moment, by the broker's clock.
    pub at: Timestamp,
}

impl Fleet {
    /// All nodes, without their facts.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn nodes(&self) -> Result<FleetView, FleetError> {
        self.look(false).await
    }

    /// The nodes that are meant, or all if nothing is said, also if there are none, and also those that are no targets.
    /// Facts are read if the selection or `facts` asks for them.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked, or a name is not known.
    pub async fn list(&self, selection: &Selection, facts: bool) -> Result<FleetView, FleetError> {
        select::narrow(self.look(facts || selection.needs_facts()).await?, selection)
    }

    async fn look(&self, facts: bool) -> Result<FleetView, FleetError> {
        let told = async { if facts { self.facts().await } else { Ok(Vec::new()) } };
        let (records, signs, told, clock) =
            tokio::try_join!(self.bucket(NODES), self.bucket(PRESENCE), told, self.broker_clock())?;
        let (trust, signs, told) = (self.trust(), std::sync::Arc::new(signs), std::sync::Arc::new(told));
        let mut parts = Vec::new();
        for part in records.chunks(VERIFY_BATCH) {
            let (part, trust) = (part.to_vec(), trust.clone());
            let (signs, told) = (std::sync::Arc::clone(&signs), std::sync::Arc::clone(&told));
            parts.push(tokio::task::spawn_blocking(move || belief::view(&part, &signs, &told, &trust, clock)));
        }
        let mut view = FleetView { at: clock.now, ..FleetView::default() };
        for part in try_join_all(parts).await.map_err(|error| FleetError::signing(&error))? {
            view.nodes.extend(part.nodes);
            view.notes.extend(part.notes);
        }
        view.nodes.sort_by(|one, other| belief::natural(one.name(), other.name()));
        Ok(view)
    }

    /// One node, with its facts.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] naming near names when there is none.
    pub async fn node(&self, name: &NodeName) -> Result<Node, FleetError> {
        let mut view = self.named(&[name], true).await?;
        view.nodes.pop().ok_or_else(|| select::no_match(&[name], &[]))
    }

    /// The nodes that are meant, each once. Exact names are read one by one, without a look at the whole fleet.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when an exact name is not known (with near names) or nothing matches;
    /// [`FleetError::Usage`] when the selection is empty.
    pub async fn resolve(&self, selection: &Selection) -> Result<FleetView, FleetError> {
        if selection.is_empty() {
            return Err(FleetError::usage(
                "no target: name nodes (`ship1,ship2`), a glob (`'ship*'`), a selector (-l site=oslo), or say --all",
            ));
        }
        let view = match select::exact(selection) {
            Some(names) if names.len() <= EXACT_MAX => self.named(&names, selection.needs_facts()).await?,
            _ => self.look(selection.needs_facts()).await?,
        };
        select::select(view, selection)
    }

    /// Sets and removes labels; returns the record as it is now.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such node, [`FleetError::Usage`] when a label breaks the rules.
    pub async fn label(
        &self,
        name: &NodeName,
        set: &[(String, String)],
        remove: &[String],
    ) -> Result<NodeRecord, FleetError> {
        set.iter().try_for_each(|(key, value)| check_label(key, value))?;
        let by = self.signing_operator()?;
        for _ in 0..CONFLICTS_MAX {
            let Some(written) = self.bus().kv_get(NODES, name.as_str()).await? else {
                return Err(self.unknown(&[name]).await);
            };
            let mut record = self.believe(&written)?;
            for key in remove {
                record.labels.remove(key);
            }
            record.labels.extend(set.iter().cloned());
            record.by.clone_from(&by);
            // Later than before also where this clock is behind: nodes never go back.
            let after = record.changed.map(|before| before.plus(Duration::from_millis(1)));
            record.changed = Some(after.unwrap_or_default().max(self.now()));
            let change: Vec<String> = set.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let gone: Vec<String> = remove.iter().map(|key| format!("{key}-")).collect();
            self.record(Act::change("node label", name.as_str()).noting([change, gone].concat().join(" "))).await?;
            if self.write_record(&record, written.sequence).await? {
                return Ok(record);
            }
        }
        Err(BusError::Conflict { what: format!("the record of {name}") }.into())
    }

    /// Takes a node off the list. What it stored stays; its credentials stay valid until they are revoked.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such node.
    pub async fn remove(&self, name: &NodeName) -> Result<(), FleetError> {
        if self.bus().kv_get(NODES, name.as_str()).await?.is_none() {
            return Err(self.unknown(&[name]).await);
        }
        self.record(Act::change("node rm", name.as_str())).await?;
        self.bus().kv_delete(NODES, name.as_str()).await?;
        Ok(())
    }

    /// Throws a node out: the broker cuts its key off, its record says so, and what it says from then on counts for nothing.
    /// Returns the record as it is now.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such node, otherwise when the fleet's keys are not in `home`.
    pub async fn revoke(&self, home: &Home, name: &NodeName) -> Result<NodeRecord, FleetError> {
        let by = self.signing_operator()?;
        for _ in 0..CONFLICTS_MAX {
            let Some(written) = self.bus().kv_get(NODES, name.as_str()).await? else {
                return Err(self.unknown(&[name]).await);
            };
            let mut record = self.believe(&written)?;
            self.record(Act::change("node revoke", name.as_str()).of_key(&record.key)).await?;
            // Also when the record says so already: an attempt may have broken off before the broker was told.
            cut_off(home, self.context(), Role::Node, &record.key).await?;
            if record.revoked.is_some() {
                return Ok(record);
            }
            record.revoked = Some(self.now());
            record.by.clone_from(&by);
            if self.write_record(&record, written.sequence).await? {
                return Ok(record);
            }
        }
        Err(BusError::Conflict { what: format!("the record of {name}") }.into())
    }

    /// Puts a new key into the record of a node, revoked or not, and cuts the old one off. Returns the record as it is now.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when there is no such node, otherwise when the fleet's keys are not in `home`.
    pub async fn replace_key(&self, home: &Home, name: &NodeName, key: &PublicKey) -> Result<NodeRecord, FleetError> {
        let by = self.signing_operator()?;
        for _ in 0..CONFLICTS_MAX {
            let Some(written) = self.bus().kv_get(NODES, name.as_str()).await? else {
                return Err(self.unknown(&[name]).await);
            };
            let mut record = self.believe(&written)?;
            let old = format!("in the place of {}", record.key);
            self.record(Act::change("node rotate", name.as_str()).of_key(key).noting(old)).await?;
            cut_off(home, self.context(), Role::Node, &record.key).await?;
            (record.key, record.revoked, record.enrolled) = (key.clone(), None, self.now());
            record.by.clone_from(&by);
            if self.write_record(&record, written.sequence).await? {
                return Ok(record);
            }
        }
        Err(BusError::Conflict { what: format!("the record of {name}") }.into())
    }

    /// Signs and stores the record of a node. The same name with the same key changes nothing.
    ///
    /// # Errors
    /// [`FleetError::NodeExists`] when the name is taken by another key.
    pub async fn register(&self, name: &NodeName, key: &PublicKey) -> Result<NodeRecord, FleetError> {
        let by = self.signing_operator()?;
        for _ in 0..CONFLICTS_MAX {
            let last = self.last_written(name).await?;
            if let Some(written) = last.as_ref().filter(|message| !is_deletion(message)) {
                let record = self.believe(written)?;
                if record.key == *key && record.revoked.is_some() {
                    return Err(FleetError::NodeRevoked { name: name.to_string() });
                }
                return if record.key == *key {
                    Ok(record)
                } else {
                    Err(FleetError::NodeExists { name: name.to_string(), key: record.key.to_string() })
                };
            }
            let record = NodeRecord {
                v: WIRE_VERSION,
                kind: NodeKind::Node,
                name: name.clone(),
                key: key.clone(),
                labels: [].into(),
                enrolled: self.now(),
                by: by.clone(),
                changed: Some(self.now()),
                revoked: None,
            };
            self.record(Act::change("node enroll", name.as_str()).of_key(key)).await?;
            if self.write_record(&record, last.map_or(0, |message| message.sequence)).await? {
                return Ok(record);
            }
        }
        Err(BusError::Conflict { what: format!("the record of {name}") }.into())
    }

    /// The record of a node, if there is one that is believed.
    pub(crate) async fn record_of(&self, name: &NodeName) -> Result<Option<NodeRecord>, FleetError> {
        let written = self.bus().kv_get(NODES, name.as_str()).await?;
        Ok(written.and_then(|written| self.believe(&written).ok()))
    }

    /// The records by which one of `addressees`, nodes with the keys that orders are addressed to, has no word any more:
    /// revoked, or under another key.
    pub(crate) async fn silencing<'a>(
        &self,
        addressees: impl Iterator<Item = (&'a NodeName, &'a PublicKey)>,
    ) -> Result<Vec<NodeRecord>, FleetError> {
        let mut keys: HashMap<&str, Vec<&PublicKey>> = HashMap::new();
        for (name, key) in addressees {
            keys.entry(name.as_str()).or_default().push(key);
        }
        let records = if keys.len() <= EXACT_MAX {
            let read = keys.keys().map(|name| async move { self.bus().kv_get(NODES, name).await });
            try_join_all(read).await?.into_iter().flatten().collect()
        } else {
            self.bucket(NODES).await?
        };
        // Nearly none does; only those that do are worth a look at the signature.
        let silences = |message: &&Message| {
            let Some(keys) = keys.get(key_of(&message.subject)).filter(|_| !is_deletion(message)) else { return false };
            let record = serde_json::from_slice::<NodeRecord>(&message.payload);
            record.is_ok_and(|record| keys.iter().any(|key| record.silenced(key).is_some()))
        };
        Ok(records.iter().filter(silences).filter_map(|message| self.believe(message).ok()).collect())
    }

    pub(crate) fn believe(&self, written: &Message) -> Result<NodeRecord, FleetError> {
        belief::record(&Written::of(written), &self.trust()).map_err(|message| FleetError::NoMatch { message })
    }

    /// The nodes of these names; an error if one is not known.
    async fn named(&self, names: &[&NodeName], facts: bool) -> Result<FleetView, FleetError> {
        let one = |name: &NodeName| {
            let name = name.to_string();
            async move {
                let told = async { if facts { self.bus().kv_get(FACTS, &name).await } else { Ok(None) } };
                tokio::try_join!(self.bus().kv_get(NODES, &name), self.bus().kv_get(PRESENCE, &name), told)
            }
        };
        let all = async { try_join_all(names.iter().map(|name| one(name))).await.map_err(FleetError::from) };
        // Where nodes are named, something is usually ordered of them.
        let chain = async {
            self.find_chain().await;
            Ok(())
        };
        let (found, clock, ()) = tokio::try_join!(all, self.broker_clock(), chain)?;
        let missing: Vec<&NodeName> =
            names.iter().zip(&found).filter(|(_, (record, ..))| record.is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            return Err(self.unknown(&missing).await);
        }
        let (mut records, mut signs, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for (record, sign, facts) in found {
            records.extend(record);
            signs.extend(sign);
            told.extend(facts);
        }
        let mut view = belief::view(&records, &signs, &told, &self.trust(), clock);
        if view.nodes.len() < names.len() {
            return Err(FleetError::NoMatch { message: view.notes.join("; ") });
        }
        view.nodes.sort_by(|one, other| belief::natural(one.name(), other.name()));
        view.nodes.dedup_by(|one, other| one.name() == other.name());
        Ok(view)
    }

    /// The error for names that nobody has; names near ones if they can be read.
    async fn unknown(&self, missing: &[&NodeName]) -> FleetError {
        let records = self.bucket(NODES).await.unwrap_or_default();
        let known: Vec<&str> = records.iter().map(|message| bus::kv::key_of(&message.subject)).collect();
        select::no_match(missing, &known)
    }

    /// What all nodes say of their systems; a broker that was set up before there was such a thing has none.
    async fn facts(&self) -> Result<Vec<Message>, FleetError> {
        match self.bucket(FACTS).await {
            Err(FleetError::Bus(BusError::Broker { code: NO_SUCH_STREAM, .. })) => Ok(Vec::new()),
            read => read,
        }
    }

    async fn bucket(&self, bucket: &str) -> Result<Vec<Message>, FleetError> {
        Ok(self.bus().kv_all(bucket, "*").await?.0)
    }

    /// The last thing written at the key of `name`, be it a deletion.
    async fn last_written(&self, name: &NodeName) -> Result<Option<Message>, FleetError> {
        let (stream, subject) = (format!("KV_{NODES}"), format!("$KV.{NODES}.{name}"));
        let mut scan = Scan::open(self.bus(), &stream, &[subject], Start::LastPerSubject).await?;
        Ok(scan.next().await?)
    }

    /// Writes a record if `revision` is the last one of its key; tells whether it was.
    pub(crate) async fn write_record(&self, record: &NodeRecord, revision: u64) -> Result<bool, FleetError> {
        let bytes = serde_json::to_vec(record).map_err(|error| FleetError::signing(&error))?;
        let seal = self.seal(&bytes)?;
        match self.bus().kv_put_if(NODES, record.name.as_str(), Bytes::from(bytes), Some(&seal), revision).await {
            Ok(_) => Ok(true),
            Err(BusError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The broker's time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked.
    pub async fn broker_now(&self) -> Result<Timestamp, FleetError> {
        Ok(self.broker_clock().await?.now)
    }

    /// The broker's time, and since when it has been listening. Without a mark in its memory it may have begun just
    /// now: then silence proves nothing.
    async fn broker_clock(&self) -> Result<BrokerClock, FleetError> {
        let (stream, subject) = BOOT;
        match Scan::open(self.bus(), stream, &[subject.to_owned()], Start::LastPerSubject).await {
            Ok(mut scan) => {
                let now = scan.opened_at();
                self.read_time(now);
                let booted = scan.next().await?.map_or(now, |mark| mark.stored_at);
                Ok(BrokerClock { now, booted })
            }
            Err(BusError::Broker { code: NO_SUCH_STREAM, .. }) => {
                let nothing = format!("$KV.{PRESENCE}.none");
                let mut scan =
                    Scan::open(self.bus(), &format!("KV_{PRESENCE}"), &[nothing], Start::LastPerSubject).await?;
                let now = scan.opened_at();
                self.read_time(now);
                scan.next().await?; // ends the scan; a node that is called so does no harm
                Ok(BrokerClock { now, booted: now })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Labels follow the rules of Kubernetes, so that selectors read the same.
pub(crate) fn check_label(key: &str, value: &str) -> Result<(), FleetError> {
    if !message::selector::is_label(key) {
        return Err(FleetError::usage(format!(
            "{key:?} cannot be a label: use up to 63 letters, digits, `_`, `-` and `.`, with a letter or digit at \
             both ends"
        )));
    }
    if !message::selector::is_label_value(value) {
        return Err(FleetError::usage(format!(
            "{value:?} cannot be the value of the label {key}: use up to 63 letters, digits, `_`, `-` and `.`, with a \
             letter or digit at both ends"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("site", "oslo", true)]
    #[case("example.com/site", "", true)]
    #[case("gpu", "a-b_c.d", true)]
    #[case("", "x", false)]
    #[case("a b", "x", false)]
    #[case("-a", "x", false)]
    #[case("a", "x y", false)]
    #[case("a", "-", false)]
    fn labels_follow_the_rules_of_kubernetes(#[case] key: &str, #[case] value: &str, #[case] ok: bool) {
        assert_eq!(check_label(key, value).is_ok(), ok);
    }
}
