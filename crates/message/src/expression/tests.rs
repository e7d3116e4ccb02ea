use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn labels() -> Labels {
    [("site", "oslo"), ("gpu", ""), ("example.com/tier", "a")].map(|(k, v)| (k.into(), v.into())).into()
}

fn facts() -> Value {
    json!({
        "memory": {"total": 8_000_000_000_u64, "free": 1_000_000_000}, "os": "debian", "virtual": true, "nothing": null,
        "disks": [{"mount": "/", "free": 5e9}, {"mount": "/srv", "free": 1e8}], "units_failed": ["nginx.service"],
    })
}

fn holds_for(text: &str, facts: &Value) -> bool {
    let labels = labels();
    let known = Known {
        name: "ship1",
        state: NodeState::Online,
        reason: None,
        labels: &labels,
        facts,
        version: Some("0.1.0"),
        age_s: Some(12.5),
        uptime_s: Some(60.0),
        counts: Some(Counts { processes: 4, ..Counts::default() }),
    };
    let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let again = Expression::parse(&expression.explicit()).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(again.explicit(), expression.explicit());
    let held = expression.holds(&known, &mut Steps::default()).unwrap();
    assert_eq!(again.holds(&known, &mut Steps::default()).unwrap(), held, "{}", expression.explicit());
    held
}

#[rstest]
#[case("facts.memory.total > 4e9 && online", true)]
#[case("facts.memory.free / facts.memory.total < 0.2", true)]
#[case("facts.memory.total > 4e9 && !online", false)]
#[case("labels.site == 'oslo'", true)]
#[case("labels[\"example.com/tier\"] in ['a', \"b\"]", true)]
#[case("'gpu' in labels && has(labels.gpu) && labels.gpu == ''", true)]
#[case("has(labels.role)", false)]
#[case("facts.disks.exists(d, d.free < 1e9 && d.mount != '/')", true)]
#[case("facts.disks.all(d, d.free < 1e9)", false)]
#[case("facts.disks.exists(a, facts.disks.exists(b, a.free > b.free))", true)]
#[case("facts.disks[1].mount == '/srv'", true)]
#[case("facts.disks[2].mount == '/srv'", false)]
#[case("size(facts.units_failed) > 0 && 'nginx.service' in facts.units_failed", true)]
#[case("name.startsWith('ship') && version.contains('.1') && name.endsWith('1')", true)]
#[case("state == 'online' && age < 30 && uptime >= 60 && processes == 4 && running == 0", true)]
#[case("1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 % 4 == 3 && 3 / 2 == 1.5 && -1 < 0", true)]
#[case("false || true && false", false)]
#[case("online ? name == 'ship1' : false", true)]
#[case("facts.virtual", true)]
#[case("facts.nothing == null", true)]
fn an_expression_means_what_it_says(#[case] text: &str, #[case] meant: bool) {
    assert_eq!(holds_for(text, &facts()), meant);
}

/// Of a node that has none of it; and of one that says something of another type.
#[rstest]
#[case("facts.a == 1")]
#[case("facts.a != 1")]
#[case("facts.a.b.c < 1")]
#[case("facts.a > 1")]
#[case("facts.a in [1, 2]")]
#[case("labels.role != 'test'")]
#[case("facts.a")]
#[case("facts.a.exists(x, true)")]
#[case("facts.a.all(x, true)")]
#[case("facts.memory.total / 0 == 1")]
#[case("facts.os < 4")]
#[case("facts.os + 1 == 1")]
#[case("facts.os.contains(facts.memory)")]
#[case("size(facts.memory.total) == 1")]
fn a_comparison_with_what_is_not_there_is_false_and_never_an_error(#[case] text: &str) {
    assert!(!holds_for(text, &facts()));
    assert!(!holds_for(text, &Value::Null));
}

#[test]
fn what_is_of_another_type_is_different() {
    assert!(holds_for("facts.os != 4", &facts()));
    assert!(!holds_for("facts.os == 4", &facts()));
    assert!(holds_for("!facts.a", &facts()));
}

#[rstest]
#[case("", 0)]
#[case("online &&", 9)]
#[case("onlin", 0)]
#[case("labels.site = 'oslo'", 12)]
#[case("labels.gpu > 4", 11)]
#[case("name && online", 0)]
#[case("facts.memory.total > 4GB", 22)]
#[case("labels.site == 'oslo", 15)]
#[case("(online", 7)]
#[case("online)", 6)]
#[case("1 < 2 < 3", 6)]
#[case("online == 1", 7)]
#[case("name", 0)]
#[case("facts.a.b(1)", 8)]
#[case("facts.disks.exists(facts, true)", 19)]
#[case("has(name)", 4)]
#[case("schön", 3)]
#[case("online & online", 7)]
#[case("[1] == [1]", 4)]
fn a_wrong_expression_is_echoed_with_a_mark_under_the_character(#[case] text: &str, #[case] at: usize) {
    let error = Expression::parse(text).unwrap_err().to_string();
    let (echo, mark) = error.split_once('\n').unwrap().1.split_once('\n').unwrap();
    assert_eq!(echo, format!("  {text}"), "{error}");
    assert_eq!(mark.len(), at + 3, "{error}");
}

#[test]
fn an_expression_is_bounded_in_length_depth_and_time() {
    for open in ["(", "[", "!", "-", "facts[", "has(", "true?", "facts.a.exists(x,"] {
        assert!(Expression::parse(&open.repeat(2000 / open.len())).is_err(), "{open}");
    }
    assert!(Expression::parse(&"x".repeat(1 << 20)).is_err());
    assert!(Expression::parse(&format!("online{}", " && online".repeat(200))).is_ok());
    assert!(Expression::parse(&format!("1{} == 1", "+1".repeat(900))).is_err());
    // As deep as may be: it is judged, written and dropped on a small stack.
    let deep = format!("facts{} == 1", ".a".repeat(500));
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || assert!(!holds_for(&deep, &facts())))
        .unwrap()
        .join()
        .unwrap();

    let costly = "facts.l.exists(a, facts.l.exists(b, facts.l.exists(c, facts.l.exists(d, a + b + c + d < 0))))";
    let facts = json!({"l": (0..100).collect::<Vec<u32>>()});
    let labels = Labels::new();
    let known = Known {
        name: "ship1",
        state: NodeState::Offline,
        reason: None,
        labels: &labels,
        facts: &facts,
        version: None,
        age_s: None,
        uptime_s: None,
        counts: None,
    };
    let expression = Expression::parse(costly).unwrap();
    assert_eq!(expression.holds(&known, &mut Steps::default()), Err(TooCostly));
    drop(expression.why(&known));
}

#[test]
fn it_says_which_part_holds_and_with_which_value() {
    let (labels, facts) = (labels(), facts());
    let known = Known {
        name: "ship1",
        state: NodeState::Online,
        reason: None,
        labels: &labels,
        facts: &facts,
        version: None,
        age_s: None,
        uptime_s: None,
        counts: None,
    };
    let why = |text: &str| Expression::parse(text).unwrap().why(&known);
    assert_eq!(
        why("facts.memory.total > 4e9 && online"),
        ["facts.memory.total > 4e9 (facts.memory.total=8000000000)", "online"]
    );
    assert_eq!(why("labels.role == 'x' || labels.site == 'oslo'"), ["labels.site == 'oslo' (labels.site=oslo)"]);
    assert_eq!(why("!(labels.role == 'x')"), ["!(labels.role == 'x') (labels.role=not there)"]);
}

/// A model of the language: an expression as a tree, with a meaning that is written down as naively as possible.
#[derive(Debug, Clone)]
enum Model {
    Value(Value),
    Fact(&'static str),
    Compare(&'static str, Box<Model>, Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
    Not(Box<Model>),
}

impl Model {
    fn text(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Fact(name) => format!("facts.{name}"),
            Self::Compare(sign, one, other) => format!("({} {sign} {})", one.text(), other.text()),
            Self::And(one, other) => format!("({} && {})", one.text(), other.text()),
            Self::Or(one, other) => format!("({} || {})", one.text(), other.text()),
            Self::Not(of) => format!("!{}", of.text()),
        }
    }

    fn value(&self, facts: &Value) -> Option<Value> {
        let truth = |model: &Self| model.value(facts) == Some(json!(true));
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::Fact(name) => facts.get(name).cloned(),
            Self::And(one, other) => Some(json!(truth(one) && truth(other))),
            Self::Or(one, other) => Some(json!(truth(one) || truth(other))),
            Self::Not(of) => Some(json!(!truth(of))),
            Self::Compare(sign, one, other) => Some(json!(match (one.value(facts), other.value(facts)) {
                (Some(one), Some(other)) => match (*sign, one.as_i64().zip(other.as_i64())) {
                    ("==", _) => one == other,
                    ("!=", _) => one != other,
                    ("<", Some((one, other))) => one < other,
                    (">=", Some((one, other))) => one >= other,
                    ("<", None) => one.as_str().zip(other.as_str()).is_some_and(|(one, other)| one < other),
                    _ => one.as_str().zip(other.as_str()).is_some_and(|(one, other)| one >= other),
                },
                _ => false,
            })),
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0..3_i64).prop_map(|n| json!(n)),
        "[ab]{0,2}".prop_map(|text| json!(text)),
        any::<bool>().prop_map(|b| json!(b))
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let leaf = prop_oneof![
        value().prop_map(Model::Value),
        prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(Model::Fact),
    ];
    let compare = (prop_oneof![Just("=="), Just("!="), Just("<"), Just(">=")], leaf.clone(), leaf)
        .prop_map(|(sign, one, other)| Model::Compare(sign, one.into(), other.into()));
    compare.prop_recursive(5, 32, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(one, other)| Model::And(one.into(), other.into())),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| Model::Or(one.into(), other.into())),
            inner.prop_map(|of| Model::Not(of.into())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_judged_is_what_the_model_says(model in model(), a in value(), b in value()) {
        let facts = json!({"a": a, "b": b});
        // What compares two values of different types that stand in the text itself is refused.
        if let Ok(expression) = Expression::parse(&model.text()) {
            prop_assert_eq!(holds_for(&expression.to_string(), &facts), model.value(&facts) == Some(json!(true)));
        }
    }

    #[test]
    fn no_text_makes_it_panic_and_what_is_read_is_written_alike(
        text in "([a-c1]|facts|labels|online|name|[!&|()<>=.,?:+*/%'-]|\\[|\\]|&&| in |exists\\(x,|has\\(|size\\(){0,12}|.{0,40}"
    ) {
        match Expression::parse(&text) {
            Ok(_) => { holds_for(&text, &facts()); }
            Err(error) => drop(error.to_string()),
        }
    }
}

#[test]
fn an_expression_over_records_knows_the_record_and_who_reports_and_nothing_else() {
    let record = serde_json::json!({"message": "kernel: oom-killer", "pid": 7});
    let labels = labels();
    let holds = |text: &str| {
        let expression = Expression::over_records(text).unwrap();
        expression.holds(&Known::of_record("ship1", &labels, &record), &mut Steps::default()).unwrap()
    };
    assert!(holds("record.message.contains('oom') && record.pid > 6 && name.startsWith('ship')"));
    assert!(!holds("record.absent == 1"));
    assert!(
        Expression::over_records("facts.cpu > 1").unwrap_err().to_string().contains("there are name, labels, record")
    );
    assert!(Expression::parse("record.pid > 1").unwrap_err().to_string().contains("\"record\" is not known"));
}

#[test]
fn it_says_which_facts_it_asks_for() {
    let named = |text: &str| {
        let expression = Expression::parse(text).unwrap();
        expression.facts_named().map(|names| names.into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(named("online"), Some(String::new()));
    assert_eq!(
        named("facts.memory.total > 4e9 && facts.disks.exists(d, d.used_percent > 90)").unwrap(),
        "disks memory"
    );
    assert_eq!(named("has(facts.os) ? facts.os.id == 'debian' : facts.cpu.count > 2").unwrap(), "cpu os");
    assert_eq!(named("facts['memory'].total > 4e9"), None);
    assert_eq!(named("size(facts) > 2 && facts.os.id == 'debian'"), None);
}
