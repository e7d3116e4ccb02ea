//! The fleet: how many are in each state, who is meant by what was typed in, and how they are spread.

use ::fleet::Node;
use maud::{Markup, html};
use message::{NodeState, Timestamp};

use super::parts::{age, bar, cell, choice, cut, field, mark, nothing, number, plural, state, table, wide};
use super::{Page, Tab};
use crate::api::query::Params;
use crate::view::{Group, NODE_STATES, NodePage, Sort};

/// What the page of the fleet shows.
pub(crate) struct FleetPage<'a> {
    /// How many nodes there are in each state, of all.
    pub(crate) all: &'a [(NodeState, usize)],
    pub(crate) params: &'a Params,
    pub(crate) page: &'a NodePage,
    /// The groups by a label, if they are asked for, and whether there are more.
    pub(crate) groups: Option<(&'a [Group], bool)>,
    pub(crate) now: Timestamp,
}

/// What can be asked. `keys` are the labels that nodes have.
pub(crate) fn fleet_filter(params: &Params, keys: &[String]) -> Markup {
    let get = |name| params.get(name);
    let states =
        [("", "any state")].into_iter().chain(NODE_STATES.iter().map(|state| (state.as_str(), state.as_str())));
    let sorts = Sort::ALL.iter().map(|sort| match sort {
        Sort::Name => (sort.as_str(), "name"),
        Sort::State => (sort.as_str(), "state, worst first"),
        Sort::Seen => (sort.as_str(), "longest silent first"),
    });
    let groups = [("", "no groups")].into_iter().chain(keys.iter().map(|key| (key.as_str(), key.as_str())));
    let asked = ["selector", "where", "by", "sort"].into_iter().any(|name| get(name).is_some());
    html! {
        form.filter role="search" method="get" action="/" {
            div.line {
                (field("text", "Name or label", get("text"), "e.g. ship1"))
                (choice("state", "State", get("state"), states))
                button.main type="submit" { "Show" }
                @if *params != Params::default() { a.clear href="/" { "Show all" } }
            }
            details open[asked] {
                summary { "Selector, expression, order, groups" }
                div.line {
                    (field("selector", "Labels", get("selector"), "e.g. site in (oslo, kiel), role!=spare"))
                    (field("where", "Expression", get("where"), "e.g. facts.memory.total > 4e9 && online"))
                    (choice("sort", "Order", get("sort").or(Some("name")), sorts))
                    (choice("by", "Groups by label", get("by"), groups))
                }
            }
        }
    }
}

/// The page.
pub(crate) fn fleet(shown: &FleetPage<'_>, keys: &[String]) -> Page {
    let total: usize = shown.all.iter().map(|(_, count)| count).sum();
    let meant: usize = shown.page.counts.iter().flatten().map(|(_, count)| count).sum();
    let filtered = meant != total;
    let changes = html! {
        (overview(shown.all, total))
        @if let Some((groups, more)) = shown.groups { (self::groups(groups, more, shown.params)) }
        section aria-labelledby="nodes" {
            h2 #nodes { "Nodes" @if filtered { span.quiet { " · " (meant) " of " (total) } } }
            @if total == 0 {
                p.none { "No node is enrolled yet. " code { "steward node enroll NAME --out FILE" } " enrols one." }
            } @else if shown.page.nodes.is_empty() {
                p.none { "No node fulfils all of this. " a href="/" { "Show all" } }
            } @else {
                (table("nodes", &["Name", "State", "Last seen", "Version", "Running / waiting", "Labels"], html! {
                    @for node in &shown.page.nodes { (self::node(node, shown.now)) }
                }))
                @if let Some(next) = &shown.page.next {
                    nav.pages aria-label="More nodes" {
                        @if shown.params.get("cursor").is_some() { a href=(format!("/?{}", shown.params.with("cursor", None))) { "First page" } }
                        a href=(format!("/?{}", shown.params.with("cursor", Some(&next.to_string())))) rel="next" { "Next page" }
                    }
                } @else if shown.params.get("cursor").is_some() {
                    nav.pages aria-label="More nodes" { a href=(format!("/?{}", shown.params.with("cursor", None))) { "First page" } }
                }
            }
        }
    };
    let stays = fleet_filter(shown.params, keys);
    Page { tab: Tab::Fleet, title: "Fleet".into(), stays, changes, every_s: Some(2) }
}

fn overview(counts: &[(NodeState, usize)], total: usize) -> Markup {
    // Those that nobody is ever in would only take room.
    let always = [NodeState::Online, NodeState::Degraded, NodeState::Offline, NodeState::Unknown];
    let count_of = |state| counts.iter().find(|(known, _)| *known == state).map_or(0, |(_, count)| *count);
    let others = [NodeState::Pending, NodeState::Revoked].into_iter().filter(|state| count_of(*state) > 0);
    html! {
        section.overview aria-labelledby="fleet" {
            h1 #fleet { (plural(total, "node", "nodes")) }
            ul.tiles {
                @for state in always.into_iter().chain(others) {
                    li { a.tile.(state.as_str()).zero[count_of(state) == 0] href=(format!("/?state={state}")) {
                        span.what { (mark(state)) (state) }
                        span.count { (count_of(state)) }
                    } }
                }
            }
        }
    }
}

fn groups(groups: &[Group], more: bool, params: &Params) -> Markup {
    let key = params.get("by").unwrap_or_default();
    html! {
        section aria-labelledby="groups" {
            h2 #groups { "By " (cut(key)) }
            @if more { p.note { "Only the first " (groups.len()) " values are shown: a selector makes them fewer." } }
            ul.grid {
                @for group in groups {
                    @let total: usize = group.counts.iter().map(|(_, count)| count).sum();
                    @let selector = group.value.as_ref().map_or_else(|| format!("!{key}"), |value| format!("{key}={value}"));
                    li { a.group href=(format!("/?{}", params.with("selector", Some(&selector)))) {
                        span.name { @match &group.value { Some(value) => { (cut(value)) } None => { span.quiet { "without" } } } }
                        span.count { (total) }
                        (bar(group.counts.iter().map(|(state, count)| (state.as_str(), u64::try_from(*count).unwrap_or(u64::MAX)))))
                        span.counts {
                            @for (index, (state, count)) in group.counts.iter().enumerate() {
                                @if index > 0 { ", " }
                                (count) " " (state)
                            }
                        }
                    } }
                }
            }
        }
    }
}

fn node(node: &Node, now: Timestamp) -> Markup {
    let sign = node.sign.as_ref();
    html! {
        tr role="row" {
            th.name scope="row" role="rowheader" { a href=(format!("/nodes/{}", node.name())) { (node.name()) } }
            (wide("State", state(node.vitality.state, node.vitality.reason.as_deref())))
            (cell("Last seen", match node.last_seen { Some(seen) => age(seen, now), None => html! { span.quiet { "never" } } }))
            (cell("Version", html! { @if let Some(sign) = sign { (cut(&sign.version)) } @else { (nothing()) } }))
            (number("Running / waiting", html! { @if let Some(sign) = sign { (sign.running) " / " (sign.waiting) } @else { (nothing()) } }))
            (wide("Labels", labels(node)))
        }
    }
}

pub(super) fn labels(node: &Node) -> Markup {
    html! {
        @if node.record.labels.is_empty() { (nothing()) }
        @for (key, value) in &node.record.labels {
            span.label { (cut(key)) @if !value.is_empty() { "=" (cut(value)) } } " "
        }
    }
}
