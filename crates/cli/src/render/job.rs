//! Jobs for people: counts, the lines about nodes that did not succeed, the tables of `job ls` and `job show`.

use std::collections::BTreeMap;

use fleet::{JobSummary, JobView};
use message::method::Cancelled;
use message::{History, JobRecord, Outcome, State, Timestamp};

use super::paint::{Paint, tame};
use super::table::{Cell, Table};
use super::time;

/// A report tells about at most this many nodes one by one.
pub(crate) const TOLD_MAX: usize = 50;

/// What is told of one node of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) name: &'a str,
    pub(crate) history: &'a History,
    pub(crate) reason: Option<&'a str>,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) broken: Option<&'a str>,
}

/// The nodes of a job in natural order of their names.
pub(crate) fn standings(view: &JobView) -> Vec<Standing<'_>> {
    let mut standings: Vec<_> = view
        .nodes
        .iter()
        .map(|(name, progress)| Standing {
            name: name.as_str(),
            history: &progress.history,
            reason: progress.reason.as_deref(),
            outcome: progress.outcome.as_ref(),
            broken: progress.output_broken.as_deref(),
        })
        .collect();
    standings.sort_by(|a, b| natural(a.name, b.name));
    standings
}

/// What a cancel did at a node.
pub(crate) fn cancelled(cancelled: &Cancelled) -> String {
    match (cancelled.found, cancelled.now) {
        (State::Queued, _) => "had not arrived: it ends as cancelled when it does".to_owned(),
        (State::Delivered, now) => format!("waited: {now}, and never began"),
        (State::Running, State::Cancelled) => "was running: ended, and cancelled".to_owned(),
        (State::Running, now) => format!("was running: it is {now}"),
        (_, now) => format!("had ended: {now}"),
    }
}

/// `2 succeeded, 1 queued`.
pub(crate) fn counts_text(counts: &BTreeMap<State, u32>) -> String {
    let told: Vec<String> =
        counts.iter().filter(|(_, count)| **count > 0).map(|(state, count)| format!("{count} {state}")).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

/// The same, with each word in its colour.
pub(crate) fn counts_painted(counts: &BTreeMap<State, u32>, colors: bool) -> String {
    let told: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| Paint::of_state(*state).on(&format!("{count} {state}"), colors))
        .collect();
    told.join(", ")
}

impl Standing<'_> {
    pub(crate) fn state(&self) -> State {
        self.history.state()
    }

    /// What beyond its state there is to say: reason or exit code, and what its output lacks.
    pub(crate) fn details(&self) -> String {
        let mut told: Vec<String> = Vec::new();
        let ending = self.outcome.and_then(ending);
        match (self.reason.map(tame), ending) {
            // The reason of a plain exit code says the same once more.
            (Some(reason), Some(ending)) if !reason.contains(&ending) => told.extend([ending, reason]),
            (Some(reason), _) => told.push(reason),
            (None, ending) => told.extend(ending),
        }
        told.extend(self.outcome.map(cut).unwrap_or_default());
        told.extend(self.broken.map(|broken| format!("output incomplete: {}", tame(broken))));
        told.join(", ")
    }
}

fn ending(outcome: &Outcome) -> Option<String> {
    match (outcome.exit_code, outcome.signal) {
        (_, Some(signal)) => Some(format!("signal {signal}")),
        (Some(0) | None, None) => None,
        (Some(code), None) => Some(format!("exit code {code}")),
    }
}

fn cut(outcome: &Outcome) -> Vec<String> {
    [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)]
        .into_iter()
        .filter_map(|(name, tally)| tally.as_ref().filter(|tally| tally.truncated()).map(|tally| (name, tally)))
        .map(|(name, tally)| format!("{name} cut off: {} of {} bytes", tally.bytes, tally.total_bytes))
        .collect()
}

/// One line for each node that did not succeed, or of which something is to be said; `also` adds what is known besides
/// of one that has not answered. Beyond [`TOLD_MAX`], `more` says where to look.
pub(crate) fn node_lines(
    nodes: &[Standing<'_>],
    colors: bool,
    more: &str,
    also: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let told = nodes.iter().map(|node| (node.name, node.state(), node.details()));
    let mut told: Vec<_> =
        told.filter(|(_, state, details)| *state != State::Succeeded || !details.is_empty()).collect();
    let left_out = told.len().saturating_sub(TOLD_MAX);
    told.truncate(TOLD_MAX);
    let name_width = told.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let state_width = told.iter().map(|(_, state, _)| state.as_str().len()).max().unwrap_or(0);
    let mut lines: Vec<String> = told
        .into_iter()
        .map(|(name, state, details)| {
            let also = (!state.is_terminal()).then(|| also(name)).flatten();
            let details: Vec<String> = [details].into_iter().chain(also).filter(|text| !text.is_empty()).collect();
            let padding = " ".repeat(state_width - state.as_str().len());
            let state = Paint::of_state(state).on(state.as_str(), colors);
            format!("{name:<name_width$}  {state}{padding}  {}", details.join(", ")).trim_end().to_owned()
        })
        .collect();
    if left_out > 0 {
        lines.push(format!("… and {left_out} more; {more}"));
    }
    lines
}

/// `2 succeeded, 1 queued — job 01JD…; steward job watch 01JD…`.
pub(crate) fn summary(record: &JobRecord, counts: &BTreeMap<State, u32>, flags: &str, colors: bool) -> String {
    let job = &record.job;
    let mut line = format!("{} — job {job}", counts_painted(counts, colors));
    if counts.iter().any(|(state, count)| *count > 0 && !state.is_terminal()) {
        line.push_str(&format!("; steward{flags} job watch {job}"));
    }
    line
}

/// The table of `job ls`.
pub(crate) fn list(jobs: &[JobSummary], now: Timestamp) -> Table {
    let mut table = Table::new(&["JOB", "MADE", "BY", "WHAT", "TARGETS", "STATES"]);
    for job in jobs {
        let worst = job
            .counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(state, _)| *state)
            .max_by_key(|state| severity(*state));
        table.row([
            Cell::from(job.job.to_string()),
            Cell::from(time::ago(now.since(job.created_at))),
            Cell::from(tame(&job.by)),
            Cell::from(match &job.retry_of {
                Some(of) => format!("{}, retry of {of}", what(job.method.as_str(), job.domain.as_str())),
                None => what(job.method.as_str(), job.domain.as_str()),
            }),
            Cell::from(job.targets.to_string()),
            Cell::painted(counts_text(&job.counts), worst.map_or(Paint::Plain, Paint::of_state)),
        ]);
    }
    table
}

const fn severity(state: State) -> u8 {
    match state {
        State::Succeeded => 0,
        State::Superseded => 1,
        State::Queued | State::Delivered | State::Running => 2,
        _ => 3,
    }
}

/// `shellcommand`, or `shellcommand/web` where the domain is not the usual one.
pub(crate) fn what(method: &str, domain: &str) -> String {
    if domain == message::order::DEFAULT_DOMAIN { method.to_owned() } else { format!("{method}/{domain}") }
}

/// The head of the page of one job.
pub(crate) fn head(record: &JobRecord, counts: &BTreeMap<State, u32>, now: Timestamp, colors: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut field =
        |name: &str, value: String| lines.push(format!("{} {value}", Paint::Bold.on(&format!("{name:<8}"), colors)));
    field("job", record.job.to_string());
    field(
        "made",
        format!("{} ({}) by {}", time::local(record.created), time::ago(now.since(record.created)), tame(&record.by)),
    );
    field("what", what(record.method.as_str(), record.domain.as_str()));
    if let Some(of) = &record.retry_of {
        field("retry of", of.to_string());
    }
    if let Some(args) = &record.args {
        field("args", shortened(&tame(&args.to_string()), 300));
    }
    if !record.secrets.is_empty() {
        field("secrets", format!("{}, which only the nodes can read", tame(&record.secrets.join(", "))));
    }
    field(
        "times",
        format!(
            "each execution within {}; picked up until {}",
            message::units::human_duration(std::time::Duration::from_millis(record.timeout_ms)),
            time::local(record.expires)
        ),
    );
    field("states", counts_painted(counts, colors));
    lines
}

fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The table of a job's nodes.
pub(crate) fn table(nodes: &[Standing<'_>]) -> Table {
    let mut table = Table::new(&["NODE", "STATE", "EXIT", "BEGUN", "TOOK", "REASON"]);
    let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "-".to_owned()));
    for node in nodes {
        let state = node.state();
        let begun = node.history.at(State::Running);
        let exit = node.outcome.and_then(|outcome| match (outcome.exit_code, outcome.signal) {
            (_, Some(signal)) => Some(format!("signal {signal}")),
            (code, None) => code.map(|code| code.to_string()),
        });
        let took = begun.zip(node.history.finished_at()).map(|(begun, end)| time::between(begun, end));
        table.row([
            Cell::from(node.name),
            Cell::painted(state.as_str(), Paint::of_state(state)),
            or_dash(exit),
            or_dash(begun.map(time::local)),
            or_dash(took),
            Cell::from(node.reason.map(tame).unwrap_or_default()),
        ]);
    }
    table
}

/// `ship2` before `ship10`: runs of digits compare as numbers.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a_rest, mut b_rest) = (a, b);
    while let (Some(x), Some(y)) = (a_rest.chars().next(), b_rest.chars().next()) {
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let ((xs, a_next), (ys, b_next)) = (a_rest.split_at(digits(a_rest)), b_rest.split_at(digits(b_rest)));
            let (xs, ys) = (xs.trim_start_matches('0'), ys.trim_start_matches('0'));
            let order = xs.len().cmp(&ys.len()).then_with(|| xs.cmp(ys));
            if order.is_ne() {
                return order;
            }
            (a_rest, b_rest) = (a_next, b_next);
        } else if x == y {
            (a_rest, b_rest) = (&a_rest[x.len_utf8()..], &b_rest[y.len_utf8()..]);
        } else {
            return x.cmp(&y);
        }
    }
    a_rest.len().cmp(&b_rest.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use message::job::JobKind;
    use message::{JobId, NodeName, OutputTally, Token};

    use super::*;

    fn record(targets: u32) -> JobRecord {
        JobRecord {
            v: 1,
            kind: JobKind::Job,
            job: JobId::new(1_795_348_800_000, 42),
            from: NodeName::new("central").unwrap(),
            by: "admin".into(),
            method: Token::method("shellcommand").unwrap(),
            domain: Token::domain("operatingsystem").unwrap(),
            args: None,
            secrets: Vec::new(),
            created: Timestamp::from_ms(1_795_348_800_000),
            expires: Timestamp::from_ms(1_795_352_400_000),
            timeout_ms: 60_000,
            targets,
            chunks: Vec::new(),
            inline: None,
            retry_of: None,
        }
    }

    fn history(path: &[State]) -> History {
        let mut history = History::new();
        for (index, state) in path.iter().enumerate() {
            history.push(*state, Timestamp::from_ms(i64::try_from(index).unwrap() * 1_500)).unwrap();
        }
        history
    }

    fn standing<'a>(name: &'a str, history: &'a History) -> Standing<'a> {
        Standing { name, history, reason: None, outcome: None, broken: None }
    }

    #[test]
    fn a_report_tells_who_did_not_succeed_and_why() {
        use State::{Delivered, Failed, Queued, Running, Succeeded};
        let (good, bad, none) =
            (history(&[Delivered, Running, Succeeded]), history(&[Delivered, Running, Failed]), history(&[]));
        let code = Outcome { exit_code: Some(3), ..Outcome::default() };
        let cut = OutputTally { bytes: 10, total_bytes: 20, sha256: String::new() };
        let long = Outcome { exit_code: Some(0), stdout: Some(cut), ..Outcome::default() };
        let nodes = [
            standing("ship1", &good),
            standing("ship2", &none),
            Standing { reason: Some("there is no program frob"), ..standing("ship3", &bad) },
            Standing { outcome: Some(&long), ..standing("ship4", &good) },
            Standing { outcome: Some(&code), ..standing("ship10", &bad) },
            Standing { outcome: Some(&code), reason: Some("ended with exit code 3"), ..standing("ship11", &bad) },
        ];
        let lines = node_lines(&nodes, false, "", |name| (name == "ship2").then(|| "offline".to_owned()));
        let expected = "\
ship2   queued     offline
ship3   failed     there is no program frob
ship4   succeeded  stdout cut off: 10 of 20 bytes
ship10  failed     exit code 3
ship11  failed     ended with exit code 3";
        assert_eq!(lines.join("\n"), expected);
        let (record, counts) = (record(3), [(Succeeded, 2), (Queued, 1)].into());
        let job = &record.job;
        assert_eq!(
            summary(&record, &counts, " --home x", false),
            format!("1 queued, 2 succeeded — job {job}; steward --home x job watch {job}")
        );
        assert_eq!(summary(&record, &[(Succeeded, 2)].into(), "", false), format!("2 succeeded — job {job}"));
    }

    #[test]
    fn of_a_large_fleet_not_every_node_is_told() {
        let none = history(&[]);
        let names: Vec<String> = (0..60).map(|number| format!("n{number}")).collect();
        let nodes: Vec<_> = names.iter().map(|name| standing(name, &none)).collect();
        let lines = node_lines(&nodes, false, "look there", |_| None);
        assert_eq!((lines.len(), lines[50].as_str()), (51, "… and 10 more; look there"));
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["ship10", "ship2", "ship1", "ship02", "a", "ship2b"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "ship1", "ship02", "ship2", "ship2b", "ship10"]);
    }

    #[test]
    fn the_table_of_a_job_shows_how_long_each_took() {
        use State::{Delivered, Running, Succeeded};
        let done = Outcome { exit_code: Some(0), ..Outcome::default() };
        let (good, none) = (history(&[Delivered, Running, Succeeded]), history(&[]));
        let lines = table(&[Standing { outcome: Some(&done), ..standing("ship1", &good) }, standing("ship2", &none)])
            .lines(false);
        assert!(lines[1].starts_with("ship1  succeeded  0 ") && lines[1].ends_with("  1.5s"), "{}", lines[1]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["ship2", "queued", "-", "-", "-"]);
    }
}
