//! What a policy gives to whom, and what changes between two of them. Pure.
//!
//! For each operator, node and method: under which further conditions (domains, command lines, users, hours, approvals) it
//! may be done. Exact for what rules can tell: two policies with equal reach decide alike in every case.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::starts_nothing;
use super::{Arguments, Rule, Rules};
use crate::method::{CANCEL, HELLO, HTTPGET, PROCESSES, SHELLCOMMAND, TAILFILE};
use crate::name::NodeName;
use crate::selector::Labels;
use crate::trust::Operator;

/// What stands for every method that no rule names.
pub const OTHER_METHODS: &str = "other methods";

/// One change for one operator: what, under which conditions, on which nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Who.
    pub operator: String,
    /// Whether it is gained; lost otherwise.
    pub gained: bool,
    /// Which methods.
    pub methods: BTreeSet<String>,
    /// Under which conditions; empty for none.
    pub conditions: String,
    /// Where.
    pub nodes: BTreeSet<String>,
}

/// The methods worth telling apart under these rules.
fn methods(rules: &[&Rules]) -> BTreeSet<String> {
    let named = rules.iter().flat_map(|rules| rules.allow.iter().chain(&rules.deny)).flat_map(|rule| &rule.methods);
    let literal = named.filter(|glob| glob.is_literal()).map(ToString::to_string);
    [SHELLCOMMAND, HELLO, HTTPGET, PROCESSES, TAILFILE, CANCEL]
        .map(String::from)
        .into_iter()
        .chain(literal)
        .chain([OTHER_METHODS.into()])
        .collect()
}

/// What may be done of one thing: the conditions of all that allows it, and of all that denies it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reach {
    allow: BTreeSet<String>,
    deny: BTreeSet<String>,
}

impl Reach {
    fn of(rules: Option<&Rules>, operator: &Operator, node: &NodeName, labels: &Labels, method: &str) -> Self {
        // Without a policy, operators may everything.
        let Some(rules) = rules else { return Self { allow: [String::new()].into(), deny: BTreeSet::new() } };
        let conditions = |list: &[Rule], denies: bool| -> BTreeSet<String> {
            list.iter()
                .filter(|rule| {
                    rule.is_of(Some(&operator.name), &operator.roles) && rule.is_on(node, Some(labels), false)
                })
                .filter_map(|rule| rule.conditions(method, denies))
                .collect()
        };
        let (mut allow, mut deny) = (conditions(&rules.allow, false), conditions(&rules.deny, true));
        if deny.contains("") {
            allow.clear();
        }
        if allow.is_empty() {
            deny.clear();
        } else if allow.contains("") {
            allow = [String::new()].into();
        }
        Self { allow, deny }
    }
}

impl Rule {
    /// What else it asks for where `method` is meant; `None` where it is not.
    fn conditions(&self, method: &str, denies: bool) -> Option<String> {
        let mut parts = Vec::new();
        // What starts no program has neither a command line nor a user.
        let (no_line, no_user) = (![SHELLCOMMAND, TAILFILE].contains(&method), starts_nothing(method));
        let fits = |argv: &&Arguments| method == SHELLCOMMAND || (!no_line && argv.may_start("tail"));
        let lines: Vec<String> = self.argv.iter().filter(fits).map(ToString::to_string).collect();
        if (lines.is_empty() && !self.argv.is_empty()) || (no_user && denies && !self.users.is_empty()) {
            return None;
        }
        if method == OTHER_METHODS {
            let open: Vec<&str> =
                self.methods.iter().filter(|glob| !glob.is_literal()).map(|glob| glob.as_str()).collect();
            match open.as_slice() {
                _ if self.methods.is_empty() || open.contains(&"*") => {}
                [] => return None,
                some => parts.push(format!("methods {}", some.join(", "))),
            }
        } else if !(self.methods.is_empty() || self.methods.iter().any(|glob| glob.matches(method))) {
            return None;
        }
        let listed = |parts: &mut Vec<String>, what: &str, items: Vec<String>| {
            if !items.is_empty() {
                parts.push(format!("{what} {}", items.join(" | ")));
            }
        };
        let domains = self.domains.iter().map(ToString::to_string).collect();
        if !self.domains.iter().any(|glob| glob.as_str() == "*") {
            listed(&mut parts, "domain", domains);
        }
        listed(&mut parts, "command", lines);
        if !no_user {
            listed(&mut parts, "as", self.users.clone());
        }
        listed(&mut parts, "at", self.times.iter().map(ToString::to_string).collect());
        if self.approvals > 1 {
            parts.push(format!("signed by {} operators", self.approvals));
        }
        Some(parts.join("; "))
    }
}

/// Who gains and who loses what, over these operators and nodes, when `after` takes the place of `before`.
pub fn changes(
    before: Option<&Rules>,
    after: &Rules,
    operators: &[Operator],
    nodes: &[(NodeName, Labels)],
) -> Vec<Change> {
    let both: Vec<&Rules> = before.into_iter().chain([after]).collect();
    let methods = methods(&both);
    // Alike for all methods and nodes is told once: first nodes are gathered, then methods.
    let mut by_nodes: BTreeMap<(String, bool, String, String), BTreeSet<String>> = BTreeMap::new();
    for operator in operators {
        for (node, labels) in nodes {
            for method in &methods {
                let old = Reach::of(before, operator, node, labels, method);
                let new = Reach::of(Some(after), operator, node, labels, method);
                let mut tell = |gained: bool, conditions: String| {
                    let key = (operator.name.clone(), gained, conditions, method.clone());
                    by_nodes.entry(key).or_default().insert(node.to_string());
                };
                new.allow.difference(&old.allow).for_each(|what| tell(true, what.clone()));
                old.allow.difference(&new.allow).for_each(|what| tell(false, what.clone()));
                // An exception counts where something is left that it excepts from.
                if !old.allow.is_empty() && !new.allow.is_empty() {
                    new.deny.difference(&old.deny).for_each(|what| tell(false, what.clone()));
                    old.deny.difference(&new.deny).for_each(|what| tell(true, what.clone()));
                } else {
                    new.deny.iter().for_each(|what| tell(true, format!("but for: {what}")));
                }
            }
        }
    }
    let mut by_methods: BTreeMap<(String, bool, String, BTreeSet<String>), BTreeSet<String>> = BTreeMap::new();
    for ((operator, gained, conditions, method), nodes) in by_nodes {
        by_methods.entry((operator, gained, conditions, nodes)).or_default().insert(method);
    }
    by_methods
        .into_iter()
        .map(|((operator, gained, conditions, nodes), methods)| Change { operator, gained, methods, conditions, nodes })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::name::Token;
    use crate::sign::PublicKey;

    fn rules(value: serde_json::Value) -> Rules {
        serde_json::from_value(value).unwrap()
    }

    fn operators() -> Vec<Operator> {
        let key = PublicKey::of(&nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, [1; 32]).unwrap());
        let ops = Operator { roles: vec![Token::role("ops").unwrap()], ..Operator::admin("anna", key.clone()) };
        vec![Operator::admin("admin", key), ops]
    }

    fn nodes() -> Vec<(NodeName, Labels)> {
        let node =
            |name: &str, site: &str| (NodeName::new(name).unwrap(), Labels::from([("site".into(), site.into())]));
        vec![node("ship1", "oslo"), node("ship2", "oslo"), node("ship3", "bergen")]
    }

    fn told(before: Option<&Rules>, after: &Rules) -> Vec<String> {
        let text = |change: Change| {
            let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(",");
            let sign = if change.gained { '+' } else { '-' };
            format!(
                "{sign} {} {} [{}] {}",
                change.operator,
                join(change.methods),
                change.conditions,
                join(change.nodes)
            )
        };
        changes(before, after, &operators(), &nodes()).into_iter().map(text).collect()
    }

    const ALL: &str = "cancel,hello,httpget,other methods,processes,shellcommand,tailfile";

    #[test]
    fn a_first_policy_takes_from_all_who_are_no_admins() {
        assert_eq!(told(None, &Rules::first()), [format!("- anna {ALL} [] ship1,ship2,ship3")]);
        assert!(told(Some(&Rules::first()), &Rules::first()).is_empty());
    }

    #[test]
    fn what_a_rule_gives_is_told_with_its_conditions_and_nodes() {
        let mut after = Rules::first();
        after.allow.extend(
            rules(json!({"allow": [{
                "name": "services", "roles": ["ops"], "nodes": "site=oslo", "methods": ["shellcommand"],
                "argv": [["systemctl", "restart", "*"]], "users": ["steward"], "approvals": 2
            }]}))
            .allow,
        );
        let line = "anna shellcommand [command systemctl restart *; as steward; signed by 2 operators] ship1,ship2";
        assert_eq!(told(Some(&Rules::first()), &after), [format!("+ {line}")]);
        assert_eq!(told(Some(&after), &Rules::first()), [format!("- {line}")]);
        // Another name, and nothing else: nobody gains or loses.
        let mut renamed = after.clone();
        renamed.allow[1].name = "restarts".into();
        assert!(told(Some(&after), &renamed).is_empty());
    }

    #[test]
    fn a_deny_takes_and_its_end_gives() {
        let before = Rules::first();
        let mut after = before.clone();
        after.deny = rules(json!({"deny": [{"name": "not ship3", "operators": ["*"], "names": ["ship3"]}]})).deny;
        assert_eq!(told(Some(&before), &after), [format!("- admin {ALL} [] ship3")]);
        after.deny = rules(json!({"deny": [{"name": "no rm", "operators": ["*"], "methods": ["shellcommand"], "argv": [["rm", "**"]]}]})).deny;
        assert_eq!(told(Some(&before), &after), ["- admin shellcommand [command rm **] ship1,ship2,ship3"]);
        assert_eq!(told(Some(&after), &before), ["+ admin shellcommand [command rm **] ship1,ship2,ship3"]);
    }
}
