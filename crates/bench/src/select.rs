//! How long it takes to find who is meant in a large fleet, by label and by expression: the same calls that a client makes
//! when all that the fleet has told is in its memory. What is not measured here: reading that from the broker, and verifying it.

use std::hint::black_box;
use std::time::Instant;

use message::expression::{Counts, Expression, Known, Steps};
use message::{Labels, NodeState, Selector};
use serde::Serialize;
use serde_json::Value;

use crate::limits::{ms, quantile};
use crate::made_up;
use crate::system::BenchError;

/// What a selector may cost over 100 000 nodes.
const LABELS_LIMIT_MS: f64 = 50.0;
/// What an expression may cost over 100 000 nodes.
const EXPRESSION_LIMIT_MS: f64 = 500.0;
/// The limits are those of so many nodes.
const LIMIT_NODES: usize = 100_000;
/// So often each is measured.
const SAMPLES: usize = 9;
/// What is asked by label.
const LABELS: &str = "site in (oslo,bergen),tier!=prod,!retired";
/// What is asked by expression.
const EXPRESSION: &str =
    "facts.memory.total > 4e9 && online && (labels.site == 'oslo' || facts.disks.exists(d, d.used_percent >= 90))";

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct SelectFigures {
    /// How many nodes were looked at.
    pub nodes: usize,
    /// What was asked by label.
    pub selector: &'static str,
    /// How many it means.
    pub selector_found: usize,
    /// How long it took, p50.
    pub selector_p50_ms: f64,
    /// The longest of all.
    pub selector_max_ms: f64,
    /// What it may take over so many nodes.
    pub selector_limit_ms: f64,
    /// `selector_max_ms / selector_limit_ms`: at most 1 is the goal.
    pub selector_ratio_to_limit: f64,
    /// What was asked by expression.
    pub expression: &'static str,
    /// How many it means.
    pub expression_found: usize,
    /// How long it took, p50.
    pub expression_p50_ms: f64,
    /// The longest of all.
    pub expression_max_ms: f64,
    /// What it may take over so many nodes.
    pub expression_limit_ms: f64,
    /// `expression_max_ms / expression_limit_ms`: at most 1 is the goal.
    pub expression_ratio_to_limit: f64,
}

struct Unit {
    name: String,
    labels: Labels,
    facts: Value,
}

fn unit(number: usize) -> Unit {
    Unit {
        name: format!("ship{number}"),
        labels: made_up::labels(number),
        facts: Value::Object(made_up::facts(number)),
    }
}

/// Measures both over `nodes` made-up nodes.
///
/// # Errors
/// [`BenchError`] when what is asked cannot be understood, or takes too many steps.
pub fn select(nodes: usize) -> Result<SelectFigures, BenchError> {
    let other = |error: &dyn std::fmt::Display| BenchError::System(error.to_string());
    let fleet: Vec<Unit> = (0..nodes).map(unit).collect();
    let (mut by_labels, mut by_expression) = (Vec::new(), Vec::new());
    let (mut selector_found, mut expression_found) = (0, 0);
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        let selector = Selector::parse(black_box(LABELS)).map_err(|error| other(&error))?;
        selector_found = fleet.iter().filter(|unit| selector.matches(&unit.labels)).count();
        by_labels.push(begun.elapsed());

        let begun = Instant::now();
        let expression = Expression::parse(black_box(EXPRESSION)).map_err(|error| other(&error))?;
        let mut steps = Steps::default();
        expression_found = 0;
        for unit in &fleet {
            let known = Known {
                name: &unit.name,
                state: NodeState::Online,
                reason: None,
                labels: &unit.labels,
                facts: &unit.facts,
                version: Some("0.1.0"),
                age_s: Some(3.0),
                uptime_s: Some(60.0),
                counts: Some(Counts::default()),
            };
            if expression.holds(&known, &mut steps).map_err(|error| other(&error))? {
                expression_found += 1;
            }
        }
        by_expression.push(begun.elapsed());
    }
    // A fleet of another size is measured beside its share.
    #[allow(clippy::cast_precision_loss)]
    let share = nodes.max(1) as f64 / LIMIT_NODES as f64;
    let ratio = |took: f64, limit: f64| (took / limit * 1000.0).round() / 1000.0;
    let (selector_limit_ms, expression_limit_ms) = (LABELS_LIMIT_MS * share, EXPRESSION_LIMIT_MS * share);
    let (selector_max_ms, expression_max_ms) =
        (ms(quantile(&mut by_labels, 1.0)), ms(quantile(&mut by_expression, 1.0)));
    Ok(SelectFigures {
        nodes,
        selector: LABELS,
        selector_found,
        selector_p50_ms: ms(quantile(&mut by_labels, 0.5)),
        selector_max_ms,
        selector_limit_ms,
        selector_ratio_to_limit: ratio(selector_max_ms, selector_limit_ms),
        expression: EXPRESSION,
        expression_found,
        expression_p50_ms: ms(quantile(&mut by_expression, 0.5)),
        expression_max_ms,
        expression_limit_ms,
        expression_ratio_to_limit: ratio(expression_max_ms, expression_limit_ms),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_find_some_and_not_all() {
        let figures = super::select(1000).unwrap();
        assert_eq!(figures.selector_found, 200);
        assert!(figures.expression_found > 50 && figures.expression_found < 500, "{figures:?}");
    }
}
