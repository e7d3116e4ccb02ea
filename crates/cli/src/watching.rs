//! Waiting for a job: whom to wait for, how long, and what is shown meanwhile.
//!
//! [`Patience`] decides and does nothing; [`watch`] does and decides nothing. What goes on after the wait is the
//! job, not this program: nothing here stops it.

use std::collections::HashMap;
use std::time::Duration;

use fleet::{Fleet, Follow, JobView, Node, Selection, Update};
use message::{NodeName, Pattern, State};
use tokio::time::{Instant, sleep_until};

use crate::out::{Closed, Out};
use crate::render::job::counts_text;
use crate::render::live::Live;
use crate::signals::StopSignals;

/// How long nodes that were not online when the job was made are waited for.
const ABSENT_WAIT: Duration = Duration::from_secs(2);
/// What a present node may take beyond its execution time-out, for the way there and back.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How often silent nodes are looked at: one that went offline is not waited for any longer.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(100);
/// Up to this many nodes are counted at every update; more of them, once a tick.
const COUNTED_AT_ONCE_MAX: usize = 200;
/// Up to this many silent nodes are looked at one by one; beyond that, all of the fleet at once.
const LOOK_ONE_BY_ONE_MAX: usize = 50;

/// Whom to wait for, and until when.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Nodes that have not settled, and what is known of them.
    open: HashMap<NodeName, Open>,
    present: usize,
    begun: Instant,
    /// When the last present node has either answered or overrun its time-out.
    present_until: Instant,
    timeout: Duration,
    limit: Option<Duration>,
}

/// What is known of a node that has not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Was not online, and has said nothing.
    Absent,
    /// Was online, and has said nothing.
    Silent,
    /// Has said something.
    Speaking,
}

impl Patience {
    /// For a job made at `begun`, whose executions may take `timeout`. With `limit` presence does not matter.
    pub(crate) fn new(
        nodes: impl IntoIterator<Item = (NodeName, bool)>,
        begun: Instant,
        timeout: Duration,
        limit: Option<Duration>,
    ) -> Self {
        let open: HashMap<_, _> = nodes
            .into_iter()
            .map(|(node, present)| (node, if present { Open::Silent } else { Open::Absent }))
            .collect();
        let present = open.values().filter(|open| **open == Open::Silent).count();
        Self { open, present, begun, present_until: begun + timeout + ANSWER_GRACE, timeout, limit }
    }

    /// For whoever wants to see the end, or `limit`.
    pub(crate) fn endless(limit: Option<Duration>) -> Self {
        let far = Duration::from_secs(10 * 365 * 24 * 60 * 60);
        Self::new([], Instant::now(), Duration::ZERO, Some(limit.unwrap_or(far)))
    }

    /// A node has said something.
    pub(crate) fn heard(&mut self, node: &NodeName, state: State, settled: bool, now: Instant) {
        if settled {
            if self.open.remove(node).is_some_and(|open| open != Open::Absent) {
                self.present -= 1;
            }
            return;
        }
        let Some(open) = self.open.get_mut(node) else { return };
        if *open == Open::Absent {
            self.present += 1;
        }
        // Its time-out begins when it begins; before that, it may have others in front of it.
        if *open != Open::Speaking || state == State::Running {
            self.present_until = self.present_until.max(now + self.timeout + ANSWER_GRACE);
        }
        *open = Open::Speaking;
    }

    /// A node that has said nothing is not online any more.
    fn gone(&mut self, node: &NodeName) {
        if let Some(open) = self.open.get_mut(node).filter(|open| **open == Open::Silent) {
            *open = Open::Absent;
            self.present -= 1;
        }
    }

    /// Nodes that should have said something.
    fn silent(&self) -> Vec<NodeName> {
        self.open.iter().filter(|(_, open)| **open == Open::Silent).map(|(node, _)| node.clone()).collect()
    }

    /// When to wait no longer, by what is known now.
    pub(crate) fn until(&self) -> Instant {
        match self.limit {
            Some(limit) => self.begun + limit,
            None if self.present > 0 => self.present_until,
            None => self.begun + ABSENT_WAIT,
        }
    }
}

/// Why a wait was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every node has settled.
    Settled,
    /// The time was up.
    WaitOver,
    /// A person or the system asked to stop.
    Interrupted,
    /// Nobody reads the output any more.
    Closed,
}

/// Which of `nodes` can answer now.
pub(crate) fn presence(nodes: &[Node]) -> impl Iterator<Item = (NodeName, bool)> {
    nodes.iter().map(|node| (node.name().clone(), node.vitality.state.is_reachable()))
}

/// Shows what becomes known of a job until every node has settled or patience ends.
pub(crate) async fn watch(
    out: &mut Out,
    fleet: &Fleet,
    follow: &mut Follow,
    patience: &mut Patience,
    signals: &mut StopSignals,
    live: &mut Live,
) -> anyhow::Result<Ended> {
    out.start_progress();
    let ended = Box::pin(watch_shown(out, fleet, follow, patience, signals, live)).await;
    let ended = match ended.and_then(|ended| live.finish(out).map(|()| ended)) {
        Err(error) if error.is::<Closed>() => Ok(Ended::Closed),
        other => other,
    };
    out.end_progress();
    ended
}

async fn watch_shown(
    out: &mut Out,
    fleet: &Fleet,
    follow: &mut Follow,
    patience: &mut Patience,
    signals: &mut StopSignals,
    live: &mut Live,
) -> anyhow::Result<Ended> {
    let mut look_again = Instant::now() + LOOK_AGAIN;
    let mut tick = tokio::time::interval(TICK);
    // Counting a large fleet takes its time: not at every update.
    let mut news_since = Instant::now();
    loop {
        if out.shows_progress() && (news_since.elapsed() >= TICK || follow.view().nodes.len() <= COUNTED_AT_ONCE_MAX) {
            out.set_progress(Some(progress_text(follow.view())));
            news_since = Instant::now();
        }
        let heard = {
            // Not begun anew at every tick: a reader that has to find its stream again needs its time.
            let mut next = std::pin::pin!(follow.next());
            loop {
                tokio::select! {
                    biased;
                    () = signals.next() => return Ok(Ended::Interrupted),
                    heard = &mut next => break heard?,
                    () = sleep_until(patience.until()) => return Ok(Ended::WaitOver),
                    _ = tick.tick() => out.set_progress(None),
                    () = sleep_until(look_again) => {
                        look_at_silent(fleet, patience).await;
                        look_again = Instant::now() + LOOK_AGAIN;
                    }
                }
            }
        };
        let Some(update) = heard else { return Ok(Ended::Settled) };
        note(patience, follow.view(), &update);
        live.update(out, &update)?;
    }
}

fn note(patience: &mut Patience, view: &JobView, update: &Update) {
    let (Update::State { node, .. } | Update::Output { node, .. } | Update::Note { node: Some(node), .. }) = update
    else {
        return;
    };
    if let Some(progress) = view.nodes.get(node) {
        patience.heard(node, progress.state(), progress.settled(), Instant::now());
    }
}

/// What cannot be read now is looked at again later: the wait has an end in any case.
async fn look_at_silent(fleet: &Fleet, patience: &mut Patience) {
    let silent = if patience.limit.is_some() { Vec::new() } else { patience.silent() };
    if silent.is_empty() {
        return;
    }
    let seen = if silent.len() <= LOOK_ONE_BY_ONE_MAX {
        let patterns = silent.into_iter().map(Pattern::Name).collect();
        fleet.resolve(&Selection { patterns, ..Selection::default() }).await
    } else {
        fleet.nodes().await
    };
    match seen {
        Ok(seen) => {
            for node in seen.nodes.iter().filter(|node| !node.vitality.state.is_reachable()) {
                patience.gone(node.name());
            }
        }
        Err(error) => tracing::debug!(%error, "silent nodes could not be looked at"),
    }
}

fn progress_text(view: &JobView) -> String {
    format!("{} of {} nodes", counts_text(&view.counts()), view.nodes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn patience(present: &[&str], absent: &[&str], limit: Option<Duration>) -> (Patience, Instant) {
        let begun = Instant::now();
        let nodes = present.iter().map(|n| (name(n), true)).chain(absent.iter().map(|n| (name(n), false)));
        (Patience::new(nodes, begun, TIMEOUT, limit), begun)
    }

    #[test]
    fn nodes_that_are_away_are_waited_for_two_seconds() {
        let (patience, begun) = patience(&[], &["ship3"], None);
        assert_eq!(patience.until(), begun + ABSENT_WAIT);
    }

    #[test]
    fn nodes_that_are_online_are_waited_for_until_they_answer_or_time_out() {
        let (mut patience, begun) = patience(&["ship1", "ship2"], &["ship3"], None);
        assert_eq!(patience.until(), begun + TIMEOUT + ANSWER_GRACE);
        patience.heard(&name("ship1"), State::Succeeded, true, begun);
        assert_eq!(patience.until(), begun + TIMEOUT + ANSWER_GRACE);
        patience.heard(&name("ship2"), State::Failed, true, begun);
        assert_eq!(patience.until(), begun + ABSENT_WAIT, "only ship3 is left, and it is away");
    }

    #[test]
    fn the_time_out_of_a_node_begins_when_it_begins() {
        let (mut patience, begun) = patience(&["ship1"], &[], None);
        let later = begun + Duration::from_secs(50);
        patience.heard(&name("ship1"), State::Running, false, later);
        assert_eq!(patience.until(), later + TIMEOUT + ANSWER_GRACE);
    }

    #[test]
    fn a_node_that_comes_back_in_time_is_waited_for() {
        let (mut patience, begun) = patience(&[], &["ship3"], None);
        let soon = begun + Duration::from_secs(1);
        patience.heard(&name("ship3"), State::Delivered, false, soon);
        assert_eq!(patience.until(), (begun + TIMEOUT + ANSWER_GRACE).max(soon + TIMEOUT + ANSWER_GRACE));
        patience.heard(&name("ship3"), State::Succeeded, true, soon);
        assert!(patience.until() <= begun + ABSENT_WAIT);
    }

    #[test]
    fn a_silent_node_that_went_offline_is_waited_for_no_longer_and_a_speaking_one_is() {
        let (mut patience, begun) = patience(&["ship1"], &[], None);
        patience.gone(&name("ship1"));
        assert_eq!(patience.until(), begun + ABSENT_WAIT);
        patience.heard(&name("ship1"), State::Running, false, begun);
        patience.gone(&name("ship1"));
        assert!(patience.until() > begun + TIMEOUT);
        assert!(patience.silent().is_empty());
    }

    #[test]
    fn a_limit_counts_whoever_is_there() {
        let limit = Duration::from_secs(7);
        let (mut patience, begun) = patience(&["ship1"], &["ship3"], Some(limit));
        assert_eq!(patience.until(), begun + limit);
        patience.heard(&name("ship1"), State::Running, false, begun);
        assert_eq!(patience.until(), begun + limit);
    }
}
