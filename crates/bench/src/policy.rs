//! What the policy costs at the edge: verifying and deciding about one order, and the memory of a large policy.
//!
//! The same calls that an agent makes, under a policy close to the largest that is taken, whose last rule alone fits.

use std::hint::black_box;
use std::time::{Duration, Instant};

use message::policy::{Asked, DOCUMENT_BYTES_MAX, Decision, Policy, RULES_MAX, Request, Rules, decide};
use message::{
    Addressee, JobId, Kind, Labels, NodeName, Order, PublicKey, Seal, Timestamp, Token, WIRE_VERSION,
    order::DEFAULT_DOMAIN,
};
use nkeys::KeyPair;
use serde::Serialize;
use serde_json::{Value, json};

use crate::limits::{ms, quantile};
use crate::system::BenchError;

/// What an order may cost.
const LIMIT_MS: f64 = 0.3;
/// What a policy may take in an agent's memory.
const MEMORY_LIMIT_BYTES: u64 = 2 << 20;
/// So many policies are held at once, so that pages do not hide what one takes.
const HELD: u64 = 64;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyFigures {
    /// How many orders were decided about.
    pub orders: usize,
    /// The rules of the policy.
    pub rules: usize,
    /// Its document's length.
    pub document_bytes: usize,
    /// The signature alone, p50.
    pub verify_p50_ms: f64,
    /// The decision alone, p50.
    pub decide_p50_ms: f64,
    /// Signature, reading the order, and the decision, p50.
    pub p50_ms: f64,
    /// The same, p99.
    pub p99_ms: f64,
    /// What it may take.
    pub limit_ms: f64,
    /// `p99_ms / limit_ms`: at most 1 is the goal.
    pub ratio_to_limit: f64,
    /// What one such policy takes in memory: resident memory with 64 of them less that without, divided by 64.
    pub policy_memory_bytes: u64,
    /// What it may take.
    pub memory_limit_bytes: u64,
}

fn other(error: impl std::fmt::Display) -> BenchError {
    BenchError::System(error.to_string())
}

/// A policy of as many rules as are taken, of which only the last fits.
fn large() -> Result<Rules, BenchError> {
    let rule = |number: usize, program: &str| {
        json!({
            "name": format!("rule {number}"), "roles": ["ops"], "nodes": "site=oslo,tier!=prod", "names": ["ship*"],
            "methods": ["shell*"], "argv": [[program, "restart", "*"], [program, "status", "**"]],
        })
    };
    let allow: Vec<Value> = (1..RULES_MAX).map(|number| rule(number, &format!("systemctl-{number}"))).collect();
    let last = rule(RULES_MAX, "systemctl");
    let allow = [allow, vec![last]].concat();
    serde_json::from_value(json!({"allow": allow, "deny": []})).map_err(other)
}

/// Resident memory of this process, by the kernel's count of pages of 4 KiB.
fn resident_bytes() -> Result<u64, BenchError> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    Ok(pages * 4096)
}

/// Measures verifying and deciding about `orders` orders.
///
/// # Errors
/// [`BenchError`] when the policy cannot be made or does not decide as it should.
pub fn policy(orders: usize) -> Result<PolicyFigures, BenchError> {
    let (root, operator, node) = (KeyPair::new_operator(), KeyPair::new_user(), KeyPair::new_user());
    let mut rules = large()?;
    let text = loop {
        let policy = Policy::new(1, PublicKey::of(&root), Timestamp::from_ms(0), rules.clone());
        match policy.to_text() {
            Ok(text) => break text,
            Err(_) if rules.allow.len() > 1 => drop(rules.allow.remove(0)),
            Err(error) => return Err(other(error)),
        }
    };
    debug_assert!(text.len() <= DOCUMENT_BYTES_MAX);
    let before = resident_bytes()?;
    let held: Vec<Policy> = (0..HELD).map(|_| Policy::parse(&text)).collect::<Result<_, _>>().map_err(other)?;
    let memory = resident_bytes()?.saturating_sub(before) / HELD;
    let policy = held.first().ok_or_else(|| other("no policy"))?;

    let to = Addressee { name: NodeName::new("ship1").map_err(other)?, key: PublicKey::of(&node) };
    let order = Order {
        v: WIRE_VERSION,
        kind: Kind::Command,
        id: bus::clock::order_id(),
        job: JobId::new(1, 1),
        to,
        method: Token::method("shellcommand").map_err(other)?,
        domain: Token::domain(DEFAULT_DOMAIN).map_err(other)?,
        from: NodeName::new("central").map_err(other)?,
        created: Timestamp::from_ms(0),
        expires: Timestamp::from_ms(1),
        timeout_ms: 1,
        max_output_bytes: 1,
        args: json!({"argv": ["systemctl", "restart", "nginx"]}),
        supersede: None,
        secrets: None,
    };
    let bytes = order.to_bytes().map_err(other)?;
    let seal = Seal::over(&bytes, &operator).map_err(other)?;
    let (roles, labels) = ([Token::role("ops").map_err(other)?], Labels::from([("site".into(), "oslo".into())]));
    let (mut verified, mut decided, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..orders.max(1) {
        let begun = Instant::now();
        seal.verify(black_box(&bytes)).map_err(other)?;
        let after_seal = begun.elapsed();
        let order = Order::parse(black_box(&bytes)).map_err(other)?;
        let after_order = begun.elapsed();
        let asked = Asked::of(order.method.as_str(), &order.args);
        let request = Request {
            operator: Some("anna"),
            roles: &roles,
            node: &order.to.name,
            labels: Some(&labels),
            method: order.method.as_str(),
            domain: order.domain.as_str(),
            asked: &asked,
            only_user: None,
            own_user: Some("root"),
            now: order.created,
        };
        let decision = decide(policy, black_box(&request));
        let all: Duration = begun.elapsed();
        if !matches!(decision, Decision::Allowed { .. }) {
            return Err(other(format!("the policy decided {decision:?}")));
        }
        verified.push(after_seal);
        decided.push(all - after_order);
        both.push(all);
    }
    let p99 = ms(quantile(&mut both, 0.99));
    Ok(PolicyFigures {
        orders: both.len(),
        rules: rules.allow.len(),
        document_bytes: text.len(),
        verify_p50_ms: ms(quantile(&mut verified, 0.5)),
        decide_p50_ms: ms(quantile(&mut decided, 0.5)),
        p50_ms: ms(quantile(&mut both, 0.5)),
        p99_ms: p99,
        limit_ms: LIMIT_MS,
        ratio_to_limit: (p99 / LIMIT_MS * 100.0).round() / 100.0,
        policy_memory_bytes: memory,
        memory_limit_bytes: MEMORY_LIMIT_BYTES,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_large_policy_is_small_in_memory_and_its_last_rule_decides() {
        let figures = super::policy(10).unwrap();
        assert!(figures.rules > 100 && figures.document_bytes > 40_000, "{figures:?}");
        assert!(figures.policy_memory_bytes <= figures.memory_limit_bytes, "{figures:?}");
    }
}
