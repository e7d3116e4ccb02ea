//! Jobs: following one as its replies come in, looking one up, and listing them.

mod feed;
mod json;
mod list;
mod progress;
mod stored;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bus::{Scan, Start};
use message::{JobId, NodeName, NodeRecord, State, Timestamp, Token};
use serde::Serialize;
use tokio::time::Instant;

use crate::connection::Fleet;
use crate::error::FleetError;
use crate::nodes::Node;
use crate::order::{OrderRequest, PlacedJob, Terms};
use feed::{Feed, Live};
pub use progress::NodeProgress;
pub(crate) use stored::{StoredJob, open_record};
use view::Arrival;
pub use view::JobView;

/// Between two looks whether a node whose answer is waited for was revoked, or has another key; and of how many at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
const LOOKED_AT_MAX: usize = 64;
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
    fleet: Fleet,
    messages: Feed,
    view: JobView,
    gather: Gather,
    updates: VecDeque<Update>,
    /// When it is looked for nodes that will never answer.
    look: Instant,
}

impl Follow {
    async fn open(fleet: &Fleet, view: JobView, gather: Gather) -> Result<Self, FleetError> {
        let messages = Feed::steady(fleet.bus(), filters(&view.record.job, gather)).await?;
        let mut follow = Self::new(fleet, messages, view, gather);
        let silencing = fleet.silencing(follow.view.addressees()).await?;
        follow.conclude(&silencing).await?;
        Ok(follow)
    }

    fn new(fleet: &Fleet, messages: Feed, view: JobView, gather: Gather) -> Self {
        let look = Instant::now() + LOOK_INTERVAL;
        Self { fleet: fleet.clone(), messages, view, gather, updates: VecDeque::new(), look }
    }

    /// Ends the orders of nodes whose word counts no more, once all that they said before is folded in. May be cancelled at
    /// any time: it is begun anew.
    async fn conclude(&mut self, silencing: &[NodeRecord]) -> Result<(), FleetError> {
        if self.view.silence(silencing) {
            let filters = filters(&self.view.record.job, self.gather);
            let mut scan = Scan::open(self.fleet.bus(), REPLIES, &filters, Start::First).await?;
            while let Some(message) = scan.next().await? {
                self.updates.extend(self.view.apply(&Arrival::from(&message)));
            }
            self.updates.extend(self.view.conclude());
        }
        self.look = Instant::now() + LOOK_INTERVAL;
        Ok(())
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
            tokio::select! {
                message = self.messages.next() => self.updates.extend(self.view.apply(&Arrival::from(&message?))),
                () = tokio::time::sleep_until(self.look) => {
                    let open = self.view.unsettled(LOOKED_AT_MAX);
                    let silencing = self.fleet.silencing(open.iter().map(|(name, key)| (name, key))).await?;
                    self.conclude(&silencing).await?;
                }
            }
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

impl JobSummary {
    /// An order went from one state to another.
    pub fn count(&mut self, before: State, after: State) {
        if let Some(count) = self.counts.get_mut(&before) {
            *count = count.saturating_sub(1);
        }
        *self.counts.entry(after).or_insert(0) += 1;
        self.counts.retain(|_, count| *count > 0);
    }
}

impl Fleet {
    /// Follows a job from its beginning; all that is stored of it comes first.
    ///
    /// # Errors
    /// [`FleetError::NoJob`] when there is none, [`FleetError::Job`] when its record is not signed by an operator.
    pub async fn follow(&self, job: &JobId, gather: Gather) -> Result<Follow, FleetError> {
        let view = self.stored_job(job).await?.view(gather);
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
        Ok((placed, Follow::new(self, Feed::Live(Box::new(live)), view, gather)))
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
        self.read_answers(&mut view, &filters(job, gather)).await?;
        Ok(view)
    }

    /// How a job stands now at one of its nodes: a view with that node alone, read without the answers of the others.
    ///
    /// # Errors
    /// As [`Fleet::follow`]; [`FleetError::NoMatch`] when the job is not for that node.
    pub async fn job_at(&self, job: &JobId, node: &NodeName, gather: Gather) -> Result<JobView, FleetError> {
        let mut view = self.stored_job(job).await?.view_of(node, gather);
        if view.nodes.is_empty() {
            return Err(FleetError::NoMatch { message: format!("job {job} is not for {node}") });
        }
        let filters: Vec<String> =
            filters(job, gather).iter().map(|filter| format!("{}{node}", filter.trim_end_matches('*'))).collect();
        self.read_answers(&mut view, &filters).await?;
        Ok(view)
    }

    async fn read_answers(&self, view: &mut JobView, filters: &[String]) -> Result<(), FleetError> {
        let silencing = self.silencing(view.addressees()).await?;
        view.silence(&silencing);
        let mut scan = Scan::open(self.bus(), REPLIES, filters, Start::First).await?;
        while let Some(message) = scan.next().await? {
            view.apply(&Arrival::from(&message));
        }
        view.conclude();
        Ok(())
    }
}
