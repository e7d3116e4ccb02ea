//! `steward top` as lines. Pure: what is known, and how large the terminal is, become exactly so many lines of at most that width.

use std::cmp::Ordering;
use std::time::Duration;

use fleet::{EventLine, JobSummary, Node};
use message::{NodeState, State, Timestamp};
use serde_json::Value;

use super::job::natural;
use super::paint::{Paint, tame};

/// So many jobs and events are shown where there is room.
pub(crate) const JOBS_MAX: usize = 6;
pub(crate) const EVENTS_MAX: usize = 4;
/// How wide the bar of a job's progress is.
const BAR: usize = 10;
/// States, those that need somebody first.
const WORST_FIRST: [NodeState; 6] = [
    NodeState::Degraded,
    NodeState::Offline,
    NodeState::Unknown,
    NodeState::Pending,
    NodeState::Online,
    NodeState::Revoked,
];

/// In which order nodes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sort {
    #[default]
    Worst,
    Name,
    Age,
    Busy,
}

impl Sort {
    /// The one that comes next.
    pub(crate) const fn next(self) -> Self {
        match self {
            Self::Worst => Self::Name,
            Self::Name => Self::Age,
            Self::Age => Self::Busy,
            Self::Busy => Self::Worst,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Worst => "worst first",
            Self::Name => "by name",
            Self::Age => "longest silent first",
            Self::Busy => "busiest first",
        }
    }
}

/// What is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// In the order in which they are shown.
    pub(crate) nodes: Vec<Node>,
    /// Newest first.
    pub(crate) jobs: Vec<JobSummary>,
    /// By the broker's clock, when that was so.
    pub(crate) at: Timestamp,
}

/// What is shown, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// Nothing, before the first answer.
    pub(crate) known: Option<Known>,
    /// Newest first.
    pub(crate) events: Vec<EventLine>,
    /// How long ago it was known.
    pub(crate) elapsed: Duration,
    /// Why there is nothing newer.
    pub(crate) trouble: Option<String>,
    pub(crate) sort: Sort,
    /// So many rows of nodes are above the top.
    pub(crate) scroll: usize,
    /// Who is meant, as it was said.
    pub(crate) filter: String,
    /// What is being typed: what for, and the text.
    pub(crate) typing: Option<(&'static str, String)>,
}

/// Puts nodes into an order; among equals that of their names.
pub(crate) fn sort(nodes: &mut [Node], sort: Sort) {
    let rank = |node: &Node| WORST_FIRST.iter().position(|state| *state == node.vitality.state);
    let busy = |node: &Node| node.sign.as_ref().map_or(0, |sign| u64::from(sign.running) + u64::from(sign.waiting));
    let by = |one: &Node, other: &Node| match sort {
        Sort::Worst => rank(one).cmp(&rank(other)),
        Sort::Name => Ordering::Equal,
        // Who was never heard is the oldest.
        Sort::Age => other.age.unwrap_or(Duration::MAX).cmp(&one.age.unwrap_or(Duration::MAX)),
        Sort::Busy => busy(other).cmp(&busy(one)),
    };
    nodes.sort_by(|one, other| by(one, other).then_with(|| natural(one.name().as_str(), other.name().as_str())));
}

/// How many rows of nodes there is room for.
pub(crate) fn rows(shown: &Shown, height: usize) -> usize {
    height.saturating_sub(3 + below(shown, height).len())
}

/// A line, piece by piece.
type Line = Vec<(String, Paint)>;

fn plain(text: impl Into<String>) -> (String, Paint) {
    (text.into(), Paint::Plain)
}

fn dim(text: impl Into<String>) -> (String, Paint) {
    (text.into(), Paint::Dim)
}

/// Exactly `height` lines, none wider than `width` characters.
pub(crate) fn lines(shown: &Shown, width: usize, height: usize, colors: bool) -> Vec<String> {
    let mut lines = vec![head(shown)];
    match &shown.known {
        None => lines.push(vec![dim("asking the broker …")]),
        Some(known) => {
            lines.push(vec![(
                format!(
                    "{:<20} {:<9} {:>9} {:>7} {:>7} {:>6} {}",
                    "NODE", "STATE", "LAST SEEN", "RUNNING", "WAITING", "OUTBOX", "LABELS, REASON"
                ),
                Paint::Bold,
            )]);
            let room = rows(shown, height);
            let scroll = shown.scroll.min(known.nodes.len().saturating_sub(room));
            lines.extend(known.nodes.iter().skip(scroll).take(room).map(|node| row(node, shown.elapsed)));
        }
    }
    let below = below(shown, height);
    lines.truncate(height.saturating_sub(below.len() + 1));
    lines.resize_with(height.saturating_sub(below.len() + 1), Vec::new);
    lines.extend(below);
    lines.push(foot(shown, height));
    lines.truncate(height);
    lines.into_iter().map(|line| drawn(line, width, colors)).collect()
}

fn head(shown: &Shown) -> Line {
    let Some(known) = &shown.known else { return vec![("steward top".into(), Paint::Bold)] };
    let mut line = vec![(format!("{} nodes", known.nodes.len()), Paint::Bold)];
    for state in WORST_FIRST {
        let count = known.nodes.iter().filter(|node| node.vitality.state == state).count();
        if count > 0 {
            line.push(plain("  "));
            line.push((format!("{count} {state}"), Paint::of_node(state)));
        }
    }
    line.push(dim(format!("  {}", shown.sort.as_str())));
    if !shown.filter.is_empty() {
        line.push(plain("  "));
        line.push((shown.filter.clone(), Paint::Cyan));
    }
    line.push(dim(format!("  as of {} ago", short(shown.elapsed))));
    line
}

fn row(node: &Node, elapsed: Duration) -> Line {
    let state = node.vitality.state;
    let seen = node.age.map_or_else(|| "never".to_owned(), |age| short(age + elapsed));
    let count = |of: fn(&message::LifeSign) -> u32| node.sign.as_ref().map_or(0, of);
    let labels: Vec<String> = node.record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut line = vec![
        plain(format!("{:<20} ", node.name().as_str())),
        (format!("{:<9}", state.as_str()), Paint::of_node(state)),
        plain(format!(
            " {seen:>9} {:>7} {:>7} {:>6} ",
            count(|sign| sign.running),
            count(|sign| sign.waiting),
            count(|sign| sign.outbox)
        )),
        dim(labels.join(",")),
    ];
    if let Some(reason) = &node.vitality.reason {
        line.push(plain(if labels.is_empty() { "" } else { " " }));
        line.push((tame(reason), Paint::of_node(state)));
    }
    line
}

/// `42s`, `7m`, `3h`, `12d`: a column's width of age.
fn short(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..100 => format!("{s}s"),
        s @ 100..6_000 => format!("{}m", s / 60),
        s @ 6_000..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// Jobs and events, where there is room for them.
fn below(shown: &Shown, height: usize) -> Vec<Line> {
    let Some(known) = &shown.known else { return Vec::new() };
    let now = known.at.plus(shown.elapsed);
    let mut lines = Vec::new();
    if height >= 14 {
        lines.push(vec![("JOBS".into(), Paint::Bold)]);
        let room = if height >= 24 { JOBS_MAX } else { 3 };
        lines.extend(known.jobs.iter().take(room).map(|job| progress(job, now)));
        if known.jobs.is_empty() {
            lines.push(vec![dim("none was ordered yet")]);
        }
    }
    if height >= 18 {
        lines.push(vec![("EVENTS".into(), Paint::Bold)]);
        let room = if height >= 24 { EVENTS_MAX } else { 2 };
        lines.extend(shown.events.iter().take(room).map(|event| happened(event, now)));
        if shown.events.is_empty() {
            lines.push(vec![dim("none for a while")]);
        }
    }
    lines
}

fn progress(job: &JobSummary, now: Timestamp) -> Line {
    let ended: u32 = job.counts.iter().filter(|(state, _)| state.is_terminal()).map(|(_, count)| *count).sum();
    let share = |of: usize| (ended as usize * of).checked_div(job.targets as usize).unwrap_or(of).min(of);
    let bad = job.counts.keys().any(|state| Paint::of_state(*state) == Paint::Red);
    let paint = match (bad, ended == job.targets) {
        (true, _) => Paint::Red,
        (false, true) => Paint::Green,
        (false, false) => Paint::Yellow,
    };
    let filled = share(BAR);
    let mut line = vec![
        plain(format!("{} {:>4} ", job.job, short(now.since(job.created_at)))),
        (format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled)), paint),
        plain(format!(" {ended}/{} ", job.targets)),
    ];
    for state in State::ALL {
        if let Some(count) = job.counts.get(&state) {
            line.push((format!("{count} {state} "), Paint::of_state(state)));
        }
    }
    line.push(dim(format!("{}/{} by {}", job.method, job.domain, tame(&job.by))));
    line
}

fn happened(event: &EventLine, now: Timestamp) -> Line {
    let from = event.from.as_ref().map_or_else(|| "somebody unproven".to_owned(), ToString::to_string);
    let said = match event.record.get("message") {
        Some(Value::String(text)) => text.clone(),
        _ => Value::Object(event.record.clone()).to_string(),
    };
    vec![
        plain(format!("{:>4} ", short(now.since(event.at)))),
        (from, Paint::Cyan),
        dim(format!(" {}/{} ", event.method, event.domain)),
        plain(tame(&said).replace('\t', " ")),
    ]
}

fn foot(shown: &Shown, height: usize) -> Line {
    if let Some((what, text)) = &shown.typing {
        return vec![(format!("{what}: "), Paint::Bold), plain(tame(text)), dim("▏ Enter: choose, Esc: leave it")];
    }
    if let Some(trouble) = &shown.trouble {
        return vec![(tame(trouble).replace("\\n", " "), Paint::Red)];
    }
    let total = shown.known.as_ref().map_or(0, |known| known.nodes.len());
    let room = rows(shown, height);
    let mut line = vec![dim("q quit  s sort  / name  l labels  w where  c clear  ↑↓ PgUp PgDn scroll")];
    if total > room {
        let first = shown.scroll.min(total - room);
        line.push(plain(format!("  {}–{} of {total}", first + 1, first + room)));
    }
    line
}

/// A line as it is written; what does not fit is cut off.
fn drawn(line: Line, width: usize, colors: bool) -> String {
    let (mut text, mut left) = (String::new(), width);
    for (piece, paint) in line {
        let cut: String = piece.chars().take(left).collect();
        left -= cut.chars().count();
        if !cut.is_empty() {
            text.push_str(&paint.on(&cut, colors));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use message::registry::NodeKind;
    use message::{JobId, NodeName, NodeRecord, PublicKey, Token, Vitality, WIRE_VERSION};

    use super::*;

    fn node(name: &str, state: NodeState, age_s: Option<u64>) -> Node {
        let key = PublicKey::of(&nkeys::KeyPair::new_user());
        let record = NodeRecord {
            v: WIRE_VERSION,
            kind: NodeKind::Node,
            name: NodeName::new(name).unwrap(),
            key,
            labels: [("site".to_owned(), "oslo".to_owned())].into(),
            enrolled: Timestamp::default(),
            by: "admin".into(),
            changed: None,
            revoked: None,
        };
        let reason = (state == NodeState::Degraded).then(|| "journal:\x1b[2J full".to_owned());
        let age = age_s.map(Duration::from_secs);
        Node { record, sign: None, facts: None, last_seen: None, vitality: Vitality { state, reason }, age }
    }

    fn job(counts: &[(State, u32)]) -> JobSummary {
        JobSummary {
            job: JobId::new(100_000, 7),
            created_at: Timestamp::from_ms(100_000),
            by: "admin".into(),
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            targets: counts.iter().map(|(_, count)| count).sum(),
            counts: counts.iter().copied().collect::<BTreeMap<_, _>>(),
            retry_of: None,
        }
    }

    fn shown(count: usize) -> Shown {
        let mut nodes: Vec<Node> =
            (1..=count).map(|number| node(&format!("ship{number}"), NodeState::Online, Some(3))).collect();
        if let Some(first) = nodes.get_mut(1) {
            *first = node("ship2", NodeState::Degraded, Some(200));
        }
        if let Some(first) = nodes.get_mut(2) {
            *first = node("ship3", NodeState::Offline, None);
        }
        sort(&mut nodes, Sort::Worst);
        let jobs = vec![job(&[(State::Succeeded, 3), (State::Failed, 1), (State::Running, 4)])];
        let known = Known { nodes, jobs, at: Timestamp::from_ms(160_000) };
        Shown { known: Some(known), elapsed: Duration::from_secs(2), ..Shown::default() }
    }

    #[test]
    fn counts_worst_nodes_jobs_and_ages_are_seen_at_a_glance() {
        let lines = lines(&shown(4), 120, 24, false);
        assert!(
            lines[0].starts_with("4 nodes  1 degraded  1 offline  2 online  worst first  as of 2s ago"),
            "{}",
            lines[0]
        );
        assert!(lines[1].starts_with("NODE "));
        assert!(lines[2].starts_with("ship2") && lines[2].contains("degraded         3m"), "{}", lines[2]);
        assert!(lines[2].ends_with("site=oslo journal:\\u{1b}[2J full"), "{}", lines[2]);
        assert!(lines[3].starts_with("ship3") && lines[3].contains("offline       never"), "{}", lines[3]);
        assert!(lines[4].starts_with("ship1") && lines[4].contains("online           5s"), "{}", lines[4]);
        let job = lines.iter().find(|line| line.contains("shellcommand")).unwrap();
        assert!(job.contains("62s █████░░░░░ 4/8 4 running 3 succeeded 1 failed "), "{job}");
        assert!(lines[23].starts_with("q quit"));
    }

    #[test]
    fn whatever_the_size_the_lines_fit() {
        for height in 0..40 {
            for width in [0, 1, 7, 20, 80, 300] {
                for count in [0, 1, 5, 200] {
                    let lines = lines(&shown(count), width, height, false);
                    assert_eq!(lines.len(), height);
                    assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}x{height}: {lines:?}");
                }
            }
        }
        assert_eq!(lines(&Shown::default(), 80, 24, true).len(), 24);
    }

    #[test]
    fn one_scrolls_to_the_last_and_no_further() {
        let mut shown = shown(100);
        shown.scroll = 1_000;
        let room = rows(&shown, 24);
        let lines = lines(&shown, 100, 24, false);
        assert!(lines[1 + room].starts_with("ship100 "), "{}", lines[1 + room]);
        assert!(lines[23].ends_with(&format!("{}–100 of 100", 101 - room)), "{}", lines[23]);
    }

    #[test]
    fn nodes_stand_in_the_order_that_was_chosen() {
        let of = |by: Sort| {
            let mut nodes = shown(4).known.unwrap().nodes;
            sort(&mut nodes, by);
            nodes.iter().map(|node| node.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(Sort::Worst), ["ship2", "ship3", "ship1", "ship4"]);
        assert_eq!(of(Sort::Name), ["ship1", "ship2", "ship3", "ship4"]);
        assert_eq!(of(Sort::Age), ["ship3", "ship2", "ship1", "ship4"]);
    }

    #[test]
    fn what_is_typed_and_what_is_wrong_stands_at_the_foot() {
        let mut shown = shown(2);
        shown.trouble = Some("no broker answers".into());
        assert_eq!(lines(&shown, 80, 10, false)[9], "no broker answers");
        shown.typing = Some(("labels", "site=o".into()));
        assert!(lines(&shown, 80, 10, false)[9].starts_with("labels: site=o▏"));
    }
}
