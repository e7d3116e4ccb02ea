//! What is read from the broker when somebody asks for it.

use std::collections::HashMap;

use bus::Scan;
use fleet::{Fleet, FleetError};
use message::state::Merge;
use message::{History, JobId, NodeRecord, Reply, ReplySubject, State, Timestamp, Token};
use serde::Serialize;

use crate::watch::latest;

const REPLIES: &str = "REPLIES";

/// What a node made of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NodeJob {
    pub(crate) job: JobId,
    pub(crate) method: Token,
    pub(crate) domain: Token,
    pub(crate) state: State,
    /// When the broker heard of it last.
    pub(crate) at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
}

/// The newest jobs that a node has answered with the key that it has now, newest first.
pub(crate) async fn jobs_of(fleet: &Fleet, record: &NodeRecord, most: usize) -> Result<Vec<NodeJob>, FleetError> {
    let filter = format!("*.reply.*.{}", record.name);
    // A job is answered in two or three steps.
    let start = latest(fleet.bus(), REPLIES, &filter, most.saturating_mul(3)).await?;
    let mut scan = Scan::open(fleet.bus(), REPLIES, &[filter], start).await?;
    let mut jobs: HashMap<JobId, (NodeJob, History)> = HashMap::new();
    while let Some(message) = scan.next().await? {
        let Ok(subject) = message.subject.parse::<ReplySubject>() else { continue };
        if !message.signer().is_ok_and(|signer| signer == record.key) {
            continue;
        }
        let Ok(reply) = Reply::parse(&message.payload) else { continue };
        if reply.job != subject.job || reply.node != record.name {
            continue;
        }
        let known = jobs.get_mut(&reply.job);
        let newer = match known {
            Some((_, history)) => history.merge(&reply.history) == Merge::Newer,
            None => true,
        };
        if newer {
            let told = NodeJob {
                job: reply.job.clone(),
                method: reply.method.clone(),
                domain: reply.domain.clone(),
                state: reply.state(),
                at: message.stored_at,
                reason: reply.reason.clone(),
                exit_code: reply.outcome.as_ref().and_then(|outcome| outcome.exit_code),
            };
            jobs.insert(reply.job.clone(), (told, reply.history));
        }
    }
    let mut jobs: Vec<NodeJob> = jobs.into_values().map(|(job, _)| job).collect();
    jobs.sort_by(|one, other| other.at.cmp(&one.at).then_with(|| other.job.cmp(&one.job)));
    jobs.truncate(most);
    Ok(jobs)
}
