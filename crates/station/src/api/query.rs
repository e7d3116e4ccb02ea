//! What is asked for, read from the part of an address behind the `?`. Pure.

use std::str::FromStr;

use fleet::{EventFilter, Selection, Since};
use message::{Expression, NodeState, Pattern, Selector, State, Timestamp, units};

use super::problem::Problem;
use crate::hub::Topic;
use crate::view::{NODE_STATES, NodeQuery, PAGE_MAX, Sort};

/// So many entries there are on a page if nothing is said.
pub(crate) const PAGE: usize = 100;
/// The longest part behind the `?`.
const QUERY_BYTES_MAX: usize = 8 * 1024;

/// Names and values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads what stands behind the `?`. What is empty is left out, as forms send it; what is not in `known` is wrong.
    pub(crate) fn read(text: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let text = text.unwrap_or_default();
        if text.len() > QUERY_BYTES_MAX {
            return Err(Problem::usage(format!("more than {QUERY_BYTES_MAX} bytes are asked for")));
        }
        let pairs = form_urlencoded::parse(text.as_bytes());
        let pairs: Vec<_> = pairs.into_owned().filter(|(_, value)| !value.is_empty()).collect();
        for (name, _) in &pairs {
            if !known.contains(&name.as_str()) {
                let near = known.iter().min_by_key(|key| strsim::damerau_levenshtein(key, name));
                let near = near.filter(|key| strsim::damerau_levenshtein(key, name) <= 3);
                let hint = near
                    .map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean {near}?"));
                return Err(Problem::usage(format!("there is no parameter {name:?}: {hint}")));
            }
        }
        Ok(Self(pairs))
    }

    /// The value of a name; the last one, if there are several.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// All words that are given for a name, once or several times, separated by commas.
    fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let all = self.0.iter().filter(move |(own, _)| own == name);
        all.flat_map(|(_, value)| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
    }

    fn parsed<T: FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Problem::usage(format!("{name}={text:?} is not {what}")))
    }

    fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.parsed(name, "`true` or `false`")?.unwrap_or(false))
    }

    pub(crate) fn limit(&self, most: usize) -> Result<usize, Problem> {
        let limit = self.parsed("limit", "a number")?.unwrap_or(PAGE.min(most));
        if (1..=most).contains(&limit) { Ok(limit) } else { Err(Problem::usage(format!("limit is 1 to {most}"))) }
    }

    /// Written again, with `name` set to `value`, or without it.
    pub(crate) fn with(&self, name: &str, value: Option<&str>) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        for (own, value) in self.0.iter().filter(|(own, _)| own != name) {
            text.append_pair(own, value);
        }
        if let Some(value) = value {
            text.append_pair(name, value);
        }
        text.finish()
    }
}

/// What says which nodes are meant.
pub(crate) const NODE_PARAMS: [&str; 10] =
    ["target", "selector", "where", "state", "text", "sort", "limit", "cursor", "count", "facts"];

/// Which nodes.
pub(crate) fn nodes(params: &Params) -> Result<NodeQuery, Problem> {
    let wrong = |name: &str, error: message::target::TargetError| Problem::usage(format!("{name}: {error}"));
    let selection = Selection {
        patterns: params
            .get("target")
            .map_or(Ok(Vec::new()), Pattern::parse_list)
            .map_err(|error| wrong("target", error))?,
        labels: params.get("selector").map(Selector::from_str).transpose().map_err(|error| wrong("selector", error))?,
        condition: params.get("where").map(Expression::parse).transpose().map_err(|error| wrong("where", error))?,
        all: false,
    };
    let state = |word: &str| {
        let known = NODE_STATES.into_iter().find(|state| state.as_str() == word);
        known.ok_or_else(|| {
            let known = NODE_STATES.map(NodeState::as_str).join(", ");
            Problem::usage(format!("{word:?} is no state of a node: they are {known}"))
        })
    };
    let sort = match params.get("sort") {
        None => Sort::default(),
        Some(word) => Sort::ALL.into_iter().find(|sort| sort.as_str() == word).ok_or_else(|| {
            Problem::usage(format!("sort={word:?} is not one of {}", Sort::ALL.map(Sort::as_str).join(", ")))
        })?,
    };
    Ok(NodeQuery {
        selection,
        states: params.words("state").map(state).collect::<Result<_, _>>()?,
        text: params.get("text").unwrap_or_default().to_owned(),
        sort,
        after: params.parsed("cursor", "a cursor: it is the `next` of an answer before")?,
        limit: params.limit(PAGE_MAX)?,
        counted: params.flag("count")?,
        facts: params.flag("facts")?,
    })
}

/// Which jobs, of those at hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct JobQuery {
    pub(crate) by: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) domain: Option<String>,
    /// With an order in one of these states.
    pub(crate) states: Vec<State>,
    pub(crate) limit: usize,
}

pub(crate) const JOB_PARAMS: [&str; 5] = ["by", "method", "domain", "state", "limit"];

pub(crate) fn jobs(params: &Params, most: usize) -> Result<JobQuery, Problem> {
    let text = |name: &str| params.get(name).map(ToOwned::to_owned);
    Ok(JobQuery {
        by: text("by"),
        method: text("method"),
        domain: text("domain"),
        states: order_states(params)?,
        limit: params.limit(most)?,
    })
}

/// States of orders; `open` means those that are not final.
pub(crate) fn order_states(params: &Params) -> Result<Vec<State>, Problem> {
    let mut states = Vec::new();
    for word in params.words("state") {
        let before = states.len();
        states.extend(
            State::ALL.into_iter().filter(|state| state.as_str() == word || (word == "open" && !state.is_terminal())),
        );
        if states.len() == before {
            let known = State::ALL.map(State::as_str).join(", ");
            return Err(Problem::usage(format!("{word:?} is no state of an order: they are open, {known}")));
        }
    }
    Ok(states)
}

impl JobQuery {
    pub(crate) fn wants(&self, job: &fleet::JobSummary) -> bool {
        let is = |wanted: &Option<String>, own: &str| wanted.as_ref().is_none_or(|wanted| wanted == own);
        is(&self.by, &job.by)
            && is(&self.method, job.method.as_str())
            && is(&self.domain, job.domain.as_str())
            && (self.states.is_empty() || self.states.iter().any(|state| job.counts.contains_key(state)))
    }
}

pub(crate) const EVENT_PARAMS: [&str; 9] =
    ["from", "to", "method", "domain", "since", "until", "grep", "where", "limit"];

/// Which events.
pub(crate) fn events(params: &Params) -> Result<EventFilter, Problem> {
    let pattern = |name: &str| match params.get(name).map(Pattern::parse_list).transpose() {
        Ok(None) => Ok(None),
        Ok(Some(mut list)) if list.len() == 1 => Ok(list.pop()),
        Ok(Some(_)) => Err(Problem::usage(format!("{name} is one name or glob"))),
        Err(error) => Err(Problem::usage(format!("{name}: {error}"))),
    };
    let text = |name: &str| params.get(name).map(ToOwned::to_owned);
    let time = |name: &str| {
        let read = |text: &str| match units::parse_duration(text) {
            Ok(ago) => Ok(Since::Ago(ago)),
            Err(error) => text.parse::<Timestamp>().map(Since::At).map_err(|_| {
                Problem::usage(format!(
                    "{name}={text:?} is neither a time (2026-11-20T08:00:00Z) nor how long ago: {error}"
                ))
            }),
        };
        params.get(name).map(read).transpose()
    };
    let condition = params.get("where").map(Expression::over_records).transpose();
    Ok(EventFilter {
        from: pattern("from")?,
        to: pattern("to")?,
        method: text("method"),
        domain: text("domain"),
        since: time("since")?,
        until: time("until")?,
        grep: text("grep"),
        condition: condition.map_err(|error| Problem::usage(format!("where: {error}")))?,
    })
}

/// What is followed; everything, if nothing is said.
pub(crate) fn topics(params: &Params) -> Result<Vec<Topic>, Problem> {
    let topic = |word: &str| {
        Topic::CHOICE.into_iter().find(|topic| topic.as_str() == word).ok_or_else(|| {
            let known = Topic::CHOICE.map(Topic::as_str).join(", ");
            Problem::usage(format!("{word:?} cannot be followed: the topics are {known}"))
        })
    };
    params.words("topic").map(topic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeQuery, Problem> {
        nodes(&Params::read(Some(text), &NODE_PARAMS)?)
    }

    #[test]
    fn everything_that_can_be_said_of_nodes_is_understood() {
        let query = read(
            "target=ship*,hub&selector=site%3Doslo&where=facts.cpus+%3E+2&state=offline,degraded&state=unknown\
             &text=x&sort=last_seen&limit=7&cursor=3.ship9&count=true&facts=true",
        )
        .unwrap();
        assert_eq!((query.selection.patterns.len(), query.states.len(), query.limit), (2, 3, 7));
        assert!(
            query.selection.labels.is_some() && query.selection.condition.is_some() && query.counted && query.facts
        );
        assert_eq!((query.sort, query.after.unwrap().to_string()), (Sort::Seen, "3.ship9".to_owned()));
        // An empty field of a form says nothing.
        let query = read("target=&selector=&where=&limit=").unwrap();
        assert!(query.selection.is_empty() && query.limit == PAGE);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let says = |text: &str| read(text).unwrap_err().detail;
        assert!(says("selecter=a").contains("did you mean selector?"));
        assert!(says("zzzzzzzz=a").contains("known are target"));
        assert!(says("selector=a%3D%3D%3Db").contains("^"), "{}", says("selector=a%3D%3D%3Db"));
        assert!(says("where=facts.").contains('^') && says("target=a,b%20c").contains('^'));
        assert!(says("limit=0").contains("1 to 1000") && says("limit=x").contains("number"));
        assert!(says("state=gone").contains("degraded") && says("sort=x").contains("last_seen"));
        assert!(says("cursor=x").contains("cursor") && says("count=yes").contains("true"));
        assert!(Params::read(Some(&"x".repeat(9000)), &[]).is_err());
    }

    #[test]
    fn jobs_and_events_and_topics_are_chosen_by_what_is_said() {
        let params = |text: &str, known: &[&str]| Params::read(Some(text), known).unwrap();
        let query = jobs(&params("by=anna&state=open,failed", &JOB_PARAMS), 200).unwrap();
        assert_eq!((query.states.len(), query.by.as_deref()), (4, Some("anna")));
        assert!(jobs(&params("state=x", &JOB_PARAMS), 200).is_err());
        let filter = events(&params("from=ship*&domain=nginx&since=1h&grep=5xx", &EVENT_PARAMS)).unwrap();
        assert_eq!(filter.since, Some(Since::Ago(std::time::Duration::from_secs(3600))));
        let filter = events(&params("since=2026-11-20T08:00:00Z", &EVENT_PARAMS)).unwrap();
        assert!(matches!(filter.since, Some(Since::At(_))));
        assert!(events(&params("since=yesterday", &EVENT_PARAMS)).unwrap_err().detail.contains("how long ago"));
        assert!(events(&params("until=1h&where=record.x+%3E+2", &EVENT_PARAMS)).unwrap().condition.is_some());
        assert!(events(&params("where=facts.cpus+%3E+2", &EVENT_PARAMS)).unwrap_err().detail.contains('^'));
        assert!(events(&params("from=a,b", &EVENT_PARAMS)).is_err());
        assert_eq!(topics(&params("topic=node,job", &["topic"])).unwrap(), [Topic::Node, Topic::Job]);
        assert!(topics(&params("topic=x", &["topic"])).is_err());
    }

    #[test]
    fn an_address_is_written_again_with_one_thing_changed() {
        let params = Params::read(Some("selector=a%3Db&state=offline"), &NODE_PARAMS).unwrap();
        assert_eq!(params.with("state", None), "selector=a%3Db");
        assert_eq!(params.with("cursor", Some("0.a")), "selector=a%3Db&state=offline&cursor=0.a");
    }
}
