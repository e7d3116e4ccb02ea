use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::policy::{Glob, Rules};
use crate::sign::PublicKey;

fn policy(rules: Value) -> Policy {
    let rules: Rules = serde_json::from_value(rules).unwrap();
    rules.check().unwrap();
    let root = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Operator, [1; 32]).unwrap();
    Policy::new(1, PublicKey::of(&root), Timestamp::from_ms(0), rules)
}

struct Case {
    roles: Vec<Token>,
    node: NodeName,
    labels: Labels,
    asked: Asked,
}

fn case(role: &str, asked: Asked) -> Case {
    Case {
        roles: vec![Token::role(role).unwrap()],
        node: NodeName::new("ship1").unwrap(),
        labels: Labels::from([("site".into(), "oslo".into())]),
        asked,
    }
}

impl Case {
    fn request(&self) -> Request<'_> {
        Request {
            operator: Some("anna"),
            roles: &self.roles,
            node: &self.node,
            labels: Some(&self.labels),
            method: SHELLCOMMAND,
            domain: "operatingsystem",
            asked: &self.asked,
            only_user: None,
            own_user: Some("root"),
            // Sunday, 2026-11-22, 12:00.
            now: Timestamp::from_ms(1_795_348_800_000),
        }
    }
}

fn argv(words: &[&str]) -> Asked {
    Asked::of(SHELLCOMMAND, &json!({"argv": words}))
}

fn line() -> Asked {
    Asked::of(SHELLCOMMAND, &json!({"line": "systemctl restart nginx"}))
}

fn allowed(rule: &str, user: Option<&str>) -> Decision {
    Decision::Allowed { rule: rule.into(), user: user.map(Into::into) }
}

fn reason(decision: Decision) -> String {
    match decision {
        Decision::Denied { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn services() -> Policy {
    policy(json!({"allow": [{
        "name": "services", "roles": ["ops"], "nodes": "site=oslo,tier!=prod", "methods": ["shellcommand"],
        "domains": ["operatingsystem"], "argv": [["systemctl", "restart", "*"]], "users": ["steward", "www"]
    }]}))
}

#[test]
fn what_a_rule_allows_is_allowed_and_all_else_is_denied() {
    let restart = argv(&["systemctl", "restart", "nginx"]);
    let ops = case("ops", restart.clone());
    assert_eq!(decide(&services(), &ops.request()), allowed("services", Some("steward")));
    let stop = reason(decide(&services(), &case("ops", argv(&["systemctl", "stop", "nginx"])).request()));
    assert!(stop.contains("no rule") && stop.contains("\"services\" does, but not with these arguments"), "{stop}");
    let dev = reason(decide(&services(), &case("dev", restart).request()));
    assert!(dev.contains("anna (dev)") && !dev.contains("services"), "{dev}");
    assert!(decide(&services(), &Request { domain: "nginx", ..ops.request() }).is_denied());
    assert!(decide(&services(), &Request { method: "hello", ..ops.request() }).is_denied());
    let prod = Labels::from([("site".into(), "oslo".into()), ("tier".into(), "prod".into())]);
    assert!(decide(&services(), &Request { labels: Some(&prod), ..ops.request() }).is_denied());
    assert!(decide(&services(), &Request { labels: None, ..ops.request() }).is_denied());
    assert!(decide(&policy(json!({})), &ops.request()).is_denied());
}

#[test]
fn who_allows_a_program_allows_neither_a_shell_nor_another_path_to_it() {
    for asked in [
        line(),
        Asked::of(SHELLCOMMAND, &json!({"script": "systemctl restart nginx"})),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["systemctl", "restart", "nginx"], "line": "rm -rf /"})),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["systemctl", "restart", "nginx"], "env": {"PATH": "/tmp"}})),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["systemctl", "restart", "nginx"], "cwd": "/tmp"})),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["systemctl", "restart", 1]})),
        Asked::of(SHELLCOMMAND, &json!("systemctl")),
    ] {
        assert!(decide(&services(), &case("ops", asked.clone()).request()).is_denied(), "{asked:?}");
    }
}

#[test]
fn a_command_runs_as_a_user_that_the_rule_names() {
    let as_user = |user: &str| {
        let asked = Asked::of(SHELLCOMMAND, &json!({"argv": ["systemctl", "restart", "nginx"], "user": user}));
        decide(&services(), &case("ops", asked).request())
    };
    assert_eq!(as_user("www"), allowed("services", Some("www")));
    assert!(reason(as_user("root")).contains("as this local user"));
    // What the node itself says narrows it further.
    let ops = case("ops", argv(&["systemctl", "restart", "nginx"]));
    let only = |user: &'static str| decide(&services(), &Request { only_user: Some(user), ..ops.request() });
    assert_eq!(only("www"), allowed("services", Some("www")));
    assert!(only("nobody").is_denied());
}

#[test]
fn a_file_is_shown_as_the_program_that_shows_it() {
    let logs = policy(json!({"allow": [{"name": "logs", "roles": ["ops"], "methods": ["tailfile"], "users": ["www"],
        "argv": [["tail", "-n", "*", "-F", "--", "/var/log/*"]]}]}));
    let tail = |args: Value| {
        let ops = case("ops", Asked::of(TAILFILE, &args));
        decide(&logs, &Request { method: TAILFILE, ..ops.request() })
    };
    assert_eq!(tail(json!({"path": "/var/log/nginx/access.log"})), allowed("logs", Some("www")));
    for args in [
        json!({"path": "/etc/shadow"}),
        json!({"path": "/var/log/../../etc/shadow"}),
        json!({"path": "/var/log/x", "user": "root"}),
        json!({"path": "/var/log/x", "lines": "-1"}),
        json!({"path": ["/var/log/x"]}),
    ] {
        assert!(tail(args.clone()).is_denied(), "{args}");
    }
}

#[test]
fn a_deny_wins_and_where_something_is_not_known_it_holds() {
    let rules = |deny: Value| policy(json!({"allow": [{"name": "all", "roles": ["ops"]}], "deny": [deny]}));
    let no_rm = rules(json!({"name": "no rm", "operators": ["*"], "argv": [["rm", "**"]]}));
    let decided = decide(&no_rm, &case("ops", argv(&["rm", "-rf", "/"])).request());
    assert_eq!(
        decided,
        Decision::Denied {
            rule: Some("no rm".into()),
            reason: "the policy's rule \"no rm\" denies it to anna (ops)".into()
        }
    );
    assert_eq!(decide(&no_rm, &case("ops", argv(&["ls"])).request()), allowed("all", None));
    assert!(decide(&no_rm, &case("ops", line()).request()).is_denied(), "nobody knows what a line runs");
    let no_root = rules(json!({"name": "no root", "operators": ["*"], "users": ["root"]}));
    let ls = case("ops", argv(&["ls"]));
    assert!(decide(&no_root, &ls.request()).is_denied(), "the agent's own user is root");
    assert!(decide(&no_root, &Request { own_user: None, ..ls.request() }).is_denied());
    assert!(!decide(&no_root, &Request { own_user: Some("pi"), ..ls.request() }).is_denied());
    let oslo = rules(json!({"name": "not oslo", "operators": ["*"], "nodes": "site=oslo"}));
    assert!(decide(&oslo, &Request { labels: None, ..ls.request() }).is_denied());
    let sunday = rules(json!({"name": "sunday", "operators": ["*"], "times": {"days": "sun"}}));
    assert!(decide(&sunday, &ls.request()).is_denied());
}

#[test]
fn the_rule_that_asks_for_the_fewest_approvals_counts() {
    let two = json!({"name": "two", "roles": ["ops"], "approvals": 2, "users": ["root"]});
    let rules = policy(json!({"allow": [&two]}));
    let ls = case("ops", argv(&["ls"]));
    let needs = Decision::NeedsApprovals { rule: "two".into(), user: Some("root".into()), approvals: 2 };
    assert_eq!(decide(&rules, &ls.request()), needs);
    let rules = policy(json!({"allow": [two, {"name": "ls", "roles": ["ops"], "argv": [["ls"]]}]}));
    assert_eq!(decide(&rules, &ls.request()), allowed("ls", None));
    assert_eq!(decide(&rules, &case("ops", argv(&["rm"])).request()), needs);
}

#[test]
fn somebody_without_a_name_may_what_everybody_with_that_role_may() {
    let rules = policy(
        json!({"allow": [{"name": "anna", "operators": ["a*"]}, {"name": "ops", "roles": ["ops"], "methods": ["hello"]}]}),
    );
    let ops = case("ops", Asked::of(HELLO, &json!({})));
    let anybody = Request { operator: None, ..ops.request() };
    assert!(decide(&rules, &anybody).is_denied());
    assert_eq!(decide(&rules, &Request { method: "hello", ..anybody }), allowed("ops", None));
}

// --- properties -----------------------------------------------------------------------------------------------------

fn globs(of: &'static [&'static str]) -> impl Strategy<Value = Vec<Glob>> {
    proptest::collection::vec(proptest::sample::select(of), 0..3)
        .prop_map(|globs| globs.into_iter().map(|glob| Glob::parse(glob).unwrap()).collect())
}

fn rule() -> impl Strategy<Value = Rule> {
    let who = (globs(&["ops", "dev", "*"]), globs(&["anna", "b*", "*"]));
    let selectors = ["site=oslo", "site!=oslo", "gpu", "!gpu"].map(|text| text.parse().unwrap()).to_vec();
    let place = (proptest::option::of(proptest::sample::select(selectors)), globs(&["ship1", "ship*", "car*"]));
    let what = (globs(&["shellcommand", "h*"]), globs(&["operatingsystem", "*"]));
    let argv = [r#"["ls"]"#, r#"["ls","**"]"#, r#"["*"]"#].map(|text| serde_json::from_str(text).unwrap()).to_vec();
    let how = (
        proptest::collection::vec(proptest::sample::select(argv), 0..2),
        proptest::collection::vec(proptest::sample::select(vec!["root".to_owned(), "www".to_owned()]), 0..2),
        proptest::option::of(proptest::sample::select(vec![
            serde_json::from_str(r#"{"days":"mon-sat"}"#).unwrap(),
            serde_json::from_str(r#"{"from":"06:00","to":"20:00"}"#).unwrap(),
        ])),
        1_u32..4,
    );
    (who, place, what, how).prop_map(
        |((roles, operators), (nodes, names), (methods, domains), (argv, users, times, approvals))| Rule {
            name: "rule".into(),
            roles,
            operators,
            nodes,
            names,
            methods,
            domains,
            argv,
            users,
            times,
            approvals,
        },
    )
}

fn of(allow: Vec<Rule>, deny: Vec<Rule>) -> Policy {
    let mut policy = policy(json!({}));
    policy.rules = Rules { allow, deny };
    policy
}

#[derive(Debug)]
struct Asking {
    operator: Option<&'static str>,
    role: &'static str,
    node: &'static str,
    labels: Option<Labels>,
    method: &'static str,
    asked: Asked,
    only_user: Option<&'static str>,
    own_user: Option<&'static str>,
    day: i64,
}

fn asking() -> impl Strategy<Value = Asking> {
    let labels = vec![
        None,
        Some(Labels::new()),
        Some(Labels::from([("site".into(), "oslo".into())])),
        Some(Labels::from([("gpu".into(), String::new())])),
    ];
    let asked = vec![
        argv(&["ls"]),
        argv(&["ls", "-l"]),
        argv(&["rm"]),
        line(),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["ls"], "user": "www"})),
        Asked::of(SHELLCOMMAND, &json!({"argv": ["ls"], "env": {"A": "b"}})),
        Asked::of(HELLO, &json!({})),
        Asked::of("backup", &json!({})),
    ];
    let users = vec![None, Some("root"), Some("www")];
    (
        (
            proptest::sample::select(vec![None, Some("anna"), Some("bob")]),
            proptest::sample::select(vec!["ops", "dev"]),
            proptest::sample::select(vec!["ship1", "ship2", "car1"]),
            proptest::sample::select(labels),
        ),
        proptest::sample::select(vec![SHELLCOMMAND, HELLO, "backup"]),
        proptest::sample::select(asked),
        proptest::sample::select(users.clone()),
        proptest::sample::select(users),
        0_i64..7,
    )
        .prop_map(|((operator, role, node, labels), method, asked, only_user, own_user, day)| Asking {
            operator,
            role,
            node,
            labels,
            method,
            asked,
            only_user,
            own_user,
            day,
        })
}

impl Asking {
    fn decide(&self, policy: &Policy) -> Decision {
        let (roles, node) = ([Token::role(self.role).unwrap()], NodeName::new(self.node).unwrap());
        decide(
            policy,
            &Request {
                operator: self.operator,
                roles: &roles,
                node: &node,
                labels: self.labels.as_ref(),
                method: self.method,
                domain: "operatingsystem",
                asked: &self.asked,
                only_user: self.only_user,
                own_user: self.own_user,
                now: Timestamp::from_ms(self.day * 86_400_000 + 43_200_000),
            },
        )
    }
}

/// How hard it is to have it done; what is denied is the hardest.
fn hardness(decision: &Decision) -> u32 {
    decision.approvals().unwrap_or(u32::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn without_an_allow_nothing_is_allowed(asking in asking(), deny in proptest::collection::vec(rule(), 0..3)) {
        prop_assert!(asking.decide(&of(vec![], deny)).is_denied());
    }

    #[test]
    fn a_deny_more_never_allows_more(
        asking in asking(), allow in proptest::collection::vec(rule(), 0..4), mut deny in proptest::collection::vec(rule(), 0..2), more in rule(),
    ) {
        let before = asking.decide(&of(allow.clone(), deny.clone()));
        deny.push(more);
        prop_assert!(hardness(&asking.decide(&of(allow, deny))) >= hardness(&before));
    }

    #[test]
    fn an_allow_more_never_allows_less(
        asking in asking(), mut allow in proptest::collection::vec(rule(), 0..3), deny in proptest::collection::vec(rule(), 0..2), more in rule(),
    ) {
        let before = asking.decide(&of(allow.clone(), deny.clone()));
        allow.push(more);
        prop_assert!(hardness(&asking.decide(&of(allow, deny))) <= hardness(&before));
    }

    #[test]
    fn what_the_node_narrows_never_widens(
        asking in asking(), allow in proptest::collection::vec(rule(), 0..4), deny in proptest::collection::vec(rule(), 0..2), user in proptest::sample::select(vec!["root", "www"]),
    ) {
        // Without a deny: a user that is chosen here may be one that a deny does not speak of.
        let policy = of(allow, vec![]);
        let free = Asking { only_user: None, ..asking };
        let before = free.decide(&policy);
        let narrowed = Asking { only_user: Some(user), ..free };
        let after = narrowed.decide(&policy);
        prop_assert!(hardness(&after) >= hardness(&before));
        prop_assert!(after.user().is_none_or(|after| after == user));
        // And with one, what it leaves could have been asked for before by naming that user.
        let policy = of(policy.rules.allow, deny);
        let after = narrowed.decide(&policy);
        let mut asked = narrowed.asked.clone();
        if asked.command != Command::Nothing && asked.user.is_none() {
            asked.user = Some(user.to_owned());
        }
        let named = Asking { only_user: None, asked, ..narrowed };
        prop_assert!(hardness(&after) >= hardness(&named.decide(&policy)));
    }

    #[test]
    fn knowing_the_labels_never_allows_less(asking in asking(), allow in proptest::collection::vec(rule(), 0..4), deny in proptest::collection::vec(rule(), 0..3)) {
        let policy = of(allow, deny);
        let known = hardness(&asking.decide(&policy));
        let unknown = Asking { labels: None, ..asking };
        prop_assert!(hardness(&unknown.decide(&policy)) >= known);
    }

    #[test]
    fn a_denied_order_names_the_rule_or_says_that_there_is_none(asking in asking(), allow in proptest::collection::vec(rule(), 0..4), deny in proptest::collection::vec(rule(), 0..3)) {
        if let Decision::Denied { rule, reason } = asking.decide(&of(allow, deny)) {
            prop_assert!(match rule { Some(rule) => reason.contains(&rule), None => reason.starts_with("no rule") }, "{}", reason);
        }
    }
}
