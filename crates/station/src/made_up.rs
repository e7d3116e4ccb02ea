//! Made-up values for tests.

use fleet::{EventLine, JobSummary};
use message::job::JobKind;
use message::registry::{Condition, LifeSignKind, NodeKind};
use message::trust::{Operator, TrustKind};
use message::{
    InstanceId, JobId, JobRecord, LifeSign, NodeName, NodeRecord, OrderId, PublicKey, SealedOrder, State, Timestamp,
    Token, Trust, WIRE_VERSION,
};
use nkeys::{KeyPair, KeyPairType};

pub(crate) fn key(seed: u8) -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [seed; 32]).unwrap()
}

pub(crate) fn trust(operator: &KeyPair) -> Trust {
    Trust {
        v: WIRE_VERSION,
        kind: TrustKind::Trust,
        serial: 1,
        issued: Timestamp::default(),
        operators: vec![Operator::admin("admin", PublicKey::of(operator))],
        policy_keys: vec![],
        revoked: vec![],
    }
}

pub(crate) fn record(name: &str, key: &KeyPair) -> NodeRecord {
    NodeRecord {
        v: WIRE_VERSION,
        kind: NodeKind::Node,
        name: NodeName::new(name).unwrap(),
        key: PublicKey::of(key),
        labels: [("site".to_owned(), "oslo".to_owned())].into(),
        enrolled: Timestamp::default(),
        by: "admin".into(),
        changed: None,
        revoked: None,
    }
}

pub(crate) fn sign(name: &str) -> LifeSign {
    LifeSign {
        v: WIRE_VERSION,
        kind: LifeSignKind::Presence,
        node: NodeName::new(name).unwrap(),
        instance: InstanceId::from_bytes([1; 16]),
        boot: InstanceId::from_bytes([2; 16]),
        seat: None,
        condition: Condition::Up,
        reason: None,
        interval_ms: 10_000,
        at: Timestamp::default(),
        version: "0.1.0".into(),
        uptime_s: 1,
        floor: 0,
        processes: 3,
        running: 1,
        waiting: 2,
        outbox: 0,
        limits: Vec::new(),
        audit: None,
        rtt_ms: None,
    }
}

pub(crate) fn event(id: &str, message: &str) -> EventLine {
    EventLine {
        subject: "central.event.syslogforwarding.nginx".into(),
        from: Some(NodeName::new("ship1").unwrap()),
        to: NodeName::new("central").unwrap(),
        method: Token::method("syslogforwarding").unwrap(),
        domain: Token::domain("nginx").unwrap(),
        at: Timestamp::from_ms(1_795_348_800_000),
        id: id.into(),
        record: [("message".to_owned(), message.into())].into_iter().collect(),
    }
}

pub(crate) fn job(counts: &[(State, u32)]) -> JobSummary {
    JobSummary {
        job: JobId::new(1_795_348_800_000, 7),
        created_at: Timestamp::from_ms(1_795_348_800_000),
        by: "admin".into(),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        targets: counts.iter().map(|(_, count)| count).sum(),
        counts: counts.iter().copied().collect(),
        retry_of: None,
    }
}

pub(crate) fn job_record(job: &JobId) -> JobRecord {
    JobRecord {
        v: WIRE_VERSION,
        kind: JobKind::Job,
        job: job.clone(),
        from: NodeName::new("central").unwrap(),
        by: "admin".into(),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        args: None,
        secrets: Vec::new(),
        created: Timestamp::from_ms(i64::try_from(job.ms()).unwrap()),
        expires: Timestamp::from_ms(1),
        timeout_ms: 1,
        targets: 1,
        chunks: Vec::new(),
        inline: None,
        retry_of: None,
    }
}

pub(crate) fn order(node: &str, key: &KeyPair) -> SealedOrder {
    SealedOrder {
        node: NodeName::new(node).unwrap(),
        key: PublicKey::of(key),
        id: OrderId::from_bytes([5; 16]),
        order: String::new(),
        signature: String::new(),
    }
}
