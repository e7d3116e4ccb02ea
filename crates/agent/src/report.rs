//! What a node says about an order: the body of a reply, made from its journal entry. Pure.

use message::{NodeName, OutputSubject, Reply, ReplySubject, WIRE_VERSION, reply::ReplyKind};

use journal::Entry;

/// The reply that tells all that is known of `entry`.
pub(crate) fn reply(entry: &Entry, node: &NodeName, clock_error_ms: Option<i64>) -> Reply {
    Reply {
        v: WIRE_VERSION,
        kind: ReplyKind::Reply,
        order: entry.id,
        job: entry.job.clone(),
        node: node.clone(),
        method: entry.method.clone(),
        domain: entry.domain.clone(),
        step: entry.history.step(),
        history: entry.history.clone(),
        reason: entry.reason.clone(),
        outcome: entry.outcome.clone(),
        clock_error_ms,
    }
}

/// Where the replies to `entry` go.
pub(crate) fn reply_subject(entry: &Entry, node: &NodeName) -> ReplySubject {
    ReplySubject { sender: entry.from.clone(), job: entry.job.clone(), node: node.clone() }
}

/// Where the output of `entry` goes.
pub(crate) fn output_subject(entry: &Entry, node: &NodeName) -> OutputSubject {
    OutputSubject { sender: entry.from.clone(), job: entry.job.clone(), node: node.clone() }
}

/// The message id of a reply: the same at every try, and not to be guessed by others.
pub(crate) fn reply_message_id(entry: &Entry) -> String {
    format!("{}-{}", entry.reply_id, entry.history.step())
}

/// The message id of a piece of output.
pub(crate) fn output_message_id(entry: &Entry, number: u32) -> String {
    format!("{}-o{number}", entry.reply_id)
}
