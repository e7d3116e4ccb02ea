//! Jobs: following one as its replies come in, looking one up, and listing them.

mod feed;
mod json;
mod list;
mod progress;
mod stored;
mod view;

use std::collections::{BTreeMap, VecDeque};

use bus::{Scan, Start};
use message::{JobId, NodeName, State, Timestamp, Token};
use serde::Serialize;

use crate::connection::Fleet;
use crate::error::FleetError;
use crate::nodes::Node;
use crate::order::{OrderRequest, PlacedJob, Terms};
use feed::{Feed, Live};
pub use progress::NodeProgress;
pub(crate) use stored::{StoredJob, open_record};
use view::Arrival;
pub use view::JobView;

/// The stream of answers and output.
pub(crate) const REPLIES: &str = "REPLIES";

/// One of the two output streams of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What to do with the output of programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gather {
    /// Pass it on as [`Update::Output`] and keep it in the view: needs memory for all nodes together.
    #[default]
    Keep,
    /// Pass it on, and forget it.
    Pass,
    /// Do not read it. A node then counts as settled as soon as its state is final.
    Ignore,
}

/// Something that became known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A node entered a state.
    State {
        /// The node.
        node: NodeName,
        /// The state.
        state: State,
        /// When, by the node's clock.
        at: Timestamp,
        /// Why, where the state needs a reason.
        reason: Option<String>,
    },
    /// A node's program wrote something; pieces come in order and once.
    Output {
        /// The node.
        node: NodeName,
        /// Where it wrote.
        stream: OutputStream,
        /// What it wrote.
        bytes: bytes::Bytes,
    },
    /// Something is wrong that a person should know: a forged reply, output that does not fit its digest.
    Note {
        /// The node that it concerns, where it concerns one.
        node: Option<NodeName>,
        /// A sentence.
        text: String,
    },
}

/// Follows a job.
pub struct Follow {
    messages: Feed,
    view: JobView,
    updates: VecDeque<Update>,
}

impl Follow {
    async fn open(fleet: &Fleet, view: JobView, gather: Gather) -> Result<Self, FleetError> {
        let filters = filters(&view.record.job, gather);
        let messages = Feed::steady(fleet.bus(), filters).await?;
        Ok(Self { messages, view, updates: VecDeque::new() })
    }

    /// The next thing that becomes known, or `None` once every node is settled. May be cancelled at any time.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read any more.
    pub async fn next(&mut self) -> Result<Option<Update>, FleetError> {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return Ok(Some(update));
            }
            if self.view.settled() {
                return Ok(None);
            }
            let message = self.messages.next().await?;
            self.updates.extend(self.view.apply(&Arrival::from(&message)));
        }
    }

    /// How the job stands by what was read so far.
    pub fn view(&self) -> &JobView {
        &self.view
    }

    /// The same, taken out.
    pub fn into_view(self) -> JobView {
        self.view
    }
}

fn filters(job: &JobId, gather: Gather) -> Vec<String> {
    let mut filters = vec![format!("*.reply.{job}.*")];
    if gather != Gather::Ignore {
        filters.push(format!("*.output.{job}.*"));
    }
    filters
}

/// A line of `job ls`; serialized as `job ls -o json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobSummary {
    /// Its id.
    pub job: JobId,
    /// When it was made, by the operator's clock.
    pub created_at: Timestamp,
    /// Who ordered it.
    pub by: String,
    /// What is to be done.
    pub method: Token,
    /// What it is about.
    pub domain: Token,
    /// How many nodes it is for.
    pub targets: u32,
    /// How many of them are in each state.
    pub counts: BTreeMap<State, u32>,
    /// The job that this one repeats for some of its nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
}

impl Fleet {
    /// Follows a job from its beginning; all that is stored of it comes first.
    ///
    /// # Errors
    /// [`FleetError::NoJob`] when there is none, [`FleetError::Job`] when its record is not signed by an operator.
    pub async fn follow(&self, job: &JobId, gather: Gather) -> Result<Follow, FleetError> {
        let mut view = self.stored_job(job).await?.view(gather);
        view.silence(&self.revoked(view.nodes.keys()).await?);
        Follow::open(self, view, gather).await
    }

    /// Orders under terms, and follows from before the first order has left.
    ///
    /// # Errors
    /// As [`Fleet::order_under`].
    pub async fn order_and_follow(
        &self,
        request: &OrderRequest,
        targets: &[Node],
        terms: &Terms,
        gather: Gather,
    ) -> Result<(PlacedJob, Follow), FleetError> {
        let job = self.job_under(terms)?;
        let live = Live::open(self.bus(), filters(&job, gather)).await?;
        let placed = self.order_as(&job, request, targets, terms).await?;
        if placed.known {
            let follow = self.follow_placed(&placed, gather).await?;
            return Ok((placed, follow));
        }
        let view = JobView::new(placed.record.clone(), &placed.expected, placed.max_output, gather);
        let follow = Follow { messages: Feed::Live(Box::new(live)), view, updates: VecDeque::new() };
        Ok((placed, follow))
    }

    /// Follows a job that was just ordered.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read.
    pub async fn follow_placed(&self, placed: &PlacedJob, gather: Gather) -> Result<Follow, FleetError> {
        let view = JobView::new(placed.record.clone(), &placed.expected, placed.max_output, gather);
        Follow::open(self, view, gather).await
    }

    /// How a job stands now.
    ///
    /// # Errors
    /// As [`Fleet::follow`].
    pub async fn job(&self, job: &JobId, gather: Gather) -> Result<JobView, FleetError> {
        let mut view = self.stored_job(job).await?.view(gather);
        view.silence(&self.revoked(view.nodes.keys()).await?);
        let mut scan = Scan::open(self.bus(), REPLIES, &filters(job, gather), Start::First).await?;
        while let Some(message) = scan.next().await? {
            view.apply(&Arrival::from(&message));
        }
        Ok(view)
    }
}
