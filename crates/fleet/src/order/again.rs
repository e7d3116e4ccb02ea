//! What an operator may want of a job that was ordered before: to take it back, or to have it done again.
//!
//! Plans only: whom it concerns and what would be ordered. Whoever has looked at a plan orders it as anything else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use message::method::{APPROVE, Approve, CANCEL, Cancel, STEWARD_DOMAIN};
use message::{JobId, NodeName, Order, Pattern, Secrets, State, Token};

use super::once::{lifetime, sealed_names};
use super::{EXPIRES_MAX, OrderRequest, Terms, sha256};
use crate::connection::Fleet;
use crate::error::FleetError;
use crate::job::{Gather, JobView};
use crate::nodes::Node;

/// How long a node may take to end what runs before it answers that it could not.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// A cancel may wait at least this long for its node.
const CANCEL_EXPIRES_MIN: Duration = Duration::from_secs(3600);
/// Up to so many nodes are read one by one; for more, the whole fleet is read at once.
const EXACT_MAX: usize = 64;
/// How many of them at once.
const READS_IN_FLIGHT_MAX: usize = 8;

/// An order to cancel, not given yet.
#[derive(Debug, Clone, PartialEq)]
pub struct CancelPlan {
    /// What would be ordered.
    pub request: OrderRequest,
    /// The nodes whose orders have not ended.
    pub nodes: Vec<Node>,
    /// What was left out and why, as sentences for people.
    pub notes: Vec<String>,
    /// How many nodes were meant, ended or not.
    pub meant: usize,
}

/// An approval, not given yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ApprovePlan {
    /// What would be ordered.
    pub request: OrderRequest,
    /// Under which terms: each node is told the digest of its own order.
    pub terms: Terms,
    /// The nodes whose orders have not begun.
    pub nodes: Vec<Node>,
    /// What would be approved, and what was left out and why, as sentences for people.
    pub notes: Vec<String>,
    /// How many nodes were meant, begun or not.
    pub meant: usize,
}

/// A job to be done again, not ordered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPlan {
    /// What would be ordered: as it was before.
    pub request: OrderRequest,
    /// Under which terms.
    pub terms: Terms,
    /// For whom.
    pub nodes: Vec<Node>,
    /// Those of them that have not answered: their old orders may still run, and have to be cancelled first.
    pub open: BTreeSet<NodeName>,
    /// The names of its secrets, which have to be given again.
    pub secrets: Vec<String>,
    /// What was left out and why, as sentences for people.
    pub notes: Vec<String>,
}

impl RetryPlan {
    /// The plan with the job's secrets, given anew: what was sealed before, only the nodes can read.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when these are not the secrets that the job was ordered with.
    pub fn with_secrets(mut self, secrets: Secrets) -> Result<Self, FleetError> {
        if !secrets.names().eq(self.secrets.iter().map(String::as_str)) {
            let job = self.terms.retry_of.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(FleetError::usage(if self.secrets.is_empty() {
                format!("job {job} was ordered without secrets: order it anew to give it some, or leave --secret out")
            } else {
                let again: Vec<String> = self.secrets.iter().map(|name| format!("--secret {name}=@FILE")).collect();
                format!(
                    "job {job} was ordered with secrets, which only its nodes can read: give all of them again, with {}",
                    again.join(" ")
                )
            }));
        }
        self.terms.secrets = secrets;
        Ok(self)
    }
}

/// The states of orders that are retried when nobody names others; and of those that have not answered.
pub const RETRIED: [State; 8] = [
    State::Failed,
    State::TimedOut,
    State::Interrupted,
    State::Expired,
    State::Rejected,
    State::Queued,
    State::Delivered,
    State::Running,
];

impl Fleet {
    /// Who would have to be told to cancel `job`: of the nodes that `of` means (all, if it is empty), those whose
    /// orders have not ended.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when `of` means no node of the job; else as [`Fleet::job`].
    pub async fn plan_cancel(&self, job: &JobId, of: &[Pattern]) -> Result<CancelPlan, FleetError> {
        let view = self.job(job, Gather::Ignore).await?;
        let meant = meant(&view, of)?;
        let open: Vec<NodeName> = meant.iter().filter(|name| is_open(&view, name)).cloned().collect();
        let (nodes, mut notes) = self.registered(&open).await?;
        let nodes = still_the_same(&view, nodes, &mut notes);
        let cancel = Cancel { job: job.clone() };
        let name = |error: message::NameError| FleetError::usage(error.to_string());
        let request = OrderRequest {
            method: Token::method(CANCEL).map_err(name)?,
            domain: Token::domain(STEWARD_DOMAIN).map_err(name)?,
            args: serde_json::to_value(cancel).map_err(|error| FleetError::signing(&error))?,
            timeout: CANCEL_TIMEOUT,
            // As long as what it cancels may still be picked up.
            expires: lifetime(self.now(), view.record.expires).clamp(CANCEL_EXPIRES_MIN, EXPIRES_MAX),
            max_output: 0,
        };
        Ok(CancelPlan { request, nodes, notes, meant: meant.len() })
    }

    /// What would have to be signed to approve `job`: of the nodes that `of` means (all, if it is empty), those whose orders
    /// have not begun. What is signed is the digest of each order as it is stored.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when `of` means no node of the job; else as [`Fleet::job`].
    pub async fn plan_approve(&self, job: &JobId, of: &[Pattern]) -> Result<ApprovePlan, FleetError> {
        let view = self.job(job, Gather::Ignore).await?;
        let stored = self.stored_job(job).await?;
        let meant = meant(&view, of)?;
        let waits = |name: &NodeName| {
            let state = view.nodes.get(name).map_or(State::Queued, |node| node.state());
            matches!(state, State::Queued | State::Delivered)
        };
        let open: Vec<NodeName> = meant.iter().filter(|name| waits(name)).cloned().collect();
        let (nodes, mut notes) = self.registered(&open).await?;
        let nodes = still_the_same(&view, nodes, &mut notes);
        let mut own_args = BTreeMap::new();
        for order in stored.orders.iter().filter(|order| nodes.iter().any(|node| *node.name() == order.node)) {
            let digest = sha256(order.order.as_bytes());
            let approve = Approve { job: job.clone(), order: order.id, sha256: digest };
            let args = serde_json::to_value(approve).map_err(|error| FleetError::signing(&error))?;
            own_args.insert(order.node.clone(), args);
        }
        let record = &view.record;
        let what = record.args.as_ref().map_or_else(|| "arguments too long to be shown".into(), ToString::to_string);
        notes.push(format!("{} has ordered {}/{} with {what}", record.by, record.method, record.domain));
        if !record.secrets.is_empty() {
            let names = record.secrets.join(", ");
            notes.push(format!("it comes with the secrets {names}, whose values only the nodes can read"));
        }
        let name = |error: message::NameError| FleetError::usage(error.to_string());
        let request = OrderRequest {
            method: Token::method(APPROVE).map_err(name)?,
            domain: Token::domain(STEWARD_DOMAIN).map_err(name)?,
            args: serde_json::json!({"job": job}),
            timeout: CANCEL_TIMEOUT,
            expires: lifetime(self.now(), view.record.expires).clamp(CANCEL_EXPIRES_MIN, EXPIRES_MAX),
            max_output: 0,
        };
        let terms = Terms { own_args, ..Terms::default() };
        Ok(ApprovePlan { request, terms, nodes, notes, meant: meant.len() })
    }

    /// What would have to be ordered to have `job` done again by those of its nodes that `of` means (all, if it is
    /// empty) and whose orders stand at one of `states`.
    ///
    /// # Errors
    /// [`FleetError::NoMatch`] when `of` means no node of the job; else as [`Fleet::job`].
    pub async fn plan_retry(
        &self,
        job: &JobId,
        of: &[Pattern],
        states: &BTreeSet<State>,
    ) -> Result<RetryPlan, FleetError> {
        let view = self.job(job, Gather::Ignore).await?;
        let stored = self.stored_job(job).await?;
        let doubt = |reason: String| FleetError::Job { job: job.to_string(), reason };
        let first = stored.orders.first().ok_or_else(|| doubt("it holds no order".into()))?;
        let order = Order::parse(first.order.as_bytes()).map_err(|error| doubt(error.to_string()))?;
        let state = |name: &NodeName| view.nodes.get(name).map_or(State::Queued, |node| node.state());
        let meant: Vec<NodeName> = meant(&view, of)?.into_iter().filter(|name| states.contains(&state(name))).collect();
        let (nodes, mut notes) = self.registered(&meant).await?;
        let same: Vec<Node> = still_the_same(&view, nodes.clone(), &mut notes);
        let open = same.iter().map(|node| node.name().clone()).filter(|name| is_open(&view, name)).collect();
        let secrets = sealed_names(&order).map(ToOwned::to_owned).collect();
        let request = OrderRequest {
            timeout: order.timeout(),
            expires: lifetime(order.created, order.expires),
            method: order.method,
            domain: order.domain,
            args: order.args,
            max_output: order.max_output_bytes,
        };
        let terms = Terms { supersede: order.supersede, retry_of: Some(job.clone()), ..Terms::default() };
        Ok(RetryPlan { request, terms, nodes, open, secrets, notes })
    }

    /// Those of `names` that belong to the fleet now, and sentences about the others.
    async fn registered(&self, names: &[NodeName]) -> Result<(Vec<Node>, Vec<String>), FleetError> {
        let mut nodes = Vec::new();
        if names.len() <= EXACT_MAX {
            let read = |name: NodeName| async move {
                match self.node(&name).await {
                    Ok(node) => Ok(Some(node)),
                    Err(FleetError::NoMatch { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            };
            let found: Vec<Option<Node>> =
                stream::iter(names.to_vec()).map(read).buffered(READS_IN_FLIGHT_MAX).try_collect().await?;
            nodes.extend(found.into_iter().flatten());
        } else {
            let wanted: BTreeSet<&NodeName> = names.iter().collect();
            nodes.extend(self.nodes().await?.nodes.into_iter().filter(|node| wanted.contains(node.name())));
        }
        let found: BTreeSet<&NodeName> = nodes.iter().map(Node::name).collect();
        let missing = names.iter().filter(|name| !found.contains(name));
        let notes =
            missing.map(|name| format!("{name} is left out: it does not belong to the fleet any more")).collect();
        Ok((nodes, notes))
    }
}

/// Of the nodes, those that still have the key that the job's orders are addressed to.
fn still_the_same(view: &JobView, nodes: Vec<Node>, notes: &mut Vec<String>) -> Vec<Node> {
    let (same, others): (Vec<Node>, Vec<Node>) = nodes.into_iter().partition(|node| {
        view.nodes.get(node.name()).is_some_and(|progress| progress.is_addressed_to(&node.record.key))
    });
    let others = others.iter().map(Node::name).filter(|name| is_open(view, name));
    notes.extend(others.map(|name| format!("{name} was enrolled anew: what was ordered before cannot run there")));
    same
}

fn is_open(view: &JobView, name: &NodeName) -> bool {
    view.nodes.get(name).is_some_and(|node| !node.state().is_terminal())
}

/// The nodes of a job that are meant.
fn meant(view: &JobView, of: &[Pattern]) -> Result<Vec<NodeName>, FleetError> {
    for pattern in of {
        if !view.nodes.keys().any(|name| pattern.matches(name)) {
            let message = format!("job {} is for no node {pattern}", view.record.job);
            return Err(FleetError::NoMatch { message });
        }
    }
    let is_meant = |name: &&NodeName| of.is_empty() || of.iter().any(|pattern| pattern.matches(name));
    Ok(view.nodes.keys().filter(is_meant).cloned().collect())
}
