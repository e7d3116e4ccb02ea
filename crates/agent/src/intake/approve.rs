//! Approving: one signature more for an order that waits for it.
//!
//! Decided here like a cancel. Who approves signs the digest of the order's exact bytes, and counts if the policy lets that
//! operator have the same thing done; the one who ordered counts once. What is counted is on disk before the order begins.

use bus::{Message, clock};
use data_encoding::HEXLOWER;
use journal::{Entry, JournalError};
use message::method::{APPROVE, Approve, Approved, STEWARD_DOMAIN};
use message::policy::Decision;
use message::{Operator, Order, Outcome, State, Timestamp};
use sha2::{Digest, Sha256};

use super::{Batch, Decided, Intake, entry, history_of};

/// What becomes of an approval: its own state, a reason, and what it answers.
struct Answer {
    state: State,
    reason: Option<String>,
    approved: Option<Approved>,
}

impl Answer {
    fn rejected(reason: impl Into<String>) -> Self {
        Self { state: State::Rejected, reason: Some(reason.into()), approved: None }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self { state: State::Failed, reason: Some(reason.into()), approved: None }
    }
}

impl Intake {
    /// Takes an approval: counts it, and adds it to `batch` with its answer.
    pub(super) fn approve(
        &self,
        order: &Order,
        operator: &Operator,
        now: Timestamp,
        message: &Message,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        let answer = match read(order) {
            Err(reason) => Answer::failed(reason),
            Ok(wanted) => self.count(&wanted, operator, now, batch)?,
        };
        let mut entry = entry(order, message, None, true);
        entry.body = None;
        entry.by = Some(operator.key.clone());
        entry.reason = answer.reason;
        entry.outcome = answer.approved.map(|approved| Outcome {
            // Four words always make JSON.
            data: serde_json::to_value(approved).ok(),
            ..Outcome::default()
        });
        entry.history = match answer.state {
            State::Rejected => history_of(&[State::Rejected]),
            ended => history_of(&[State::Delivered, State::Running, ended]),
        };
        batch.decided.push(Decided {
            entry,
            place: None,
            runs: false,
            subject: message.subject.clone(),
            rule: None,
            signer: None,
        });
        Ok(())
    }

    fn count(
        &self,
        wanted: &Approve,
        operator: &Operator,
        now: Timestamp,
        batch: &mut Batch,
    ) -> Result<Answer, JournalError> {
        // As it is to be journaled, if this batch has touched it already.
        if let Some(decided) = batch.decided.iter_mut().find(|decided| decided.entry.id == wanted.order) {
            return Ok(self.sign(&mut decided.entry, wanted, operator, now));
        }
        if let Some(known) = batch.approved.iter_mut().find(|entry| entry.id == wanted.order) {
            return Ok(self.sign(known, wanted, operator, now));
        }
        if let Some(gone) = batch.withdrawn.iter_mut().find(|entry| entry.id == wanted.order) {
            return Ok(self.sign(gone, wanted, operator, now));
        }
        let Some(mut entry) = self.journal.find(&wanted.order)? else {
            return Ok(Answer::failed(format!("no order of job {} has come here that could be approved", wanted.job)));
        };
        let before = entry.approvals.len();
        // Kept from beginning until the approval is on disk: an order has one writer at a time.
        let waits = entry.history.state() == State::Delivered && self.processes.in_hand().withdraw(&wanted.order);
        let answer = self.sign(&mut entry, wanted, operator, now);
        if waits && entry.approvals.len() > before {
            batch.approved.push(entry);
        } else if waits {
            self.processes.in_hand().withdrawn(&wanted.order, false);
        }
        Ok(answer)
    }

    /// Adds a signature to an order that waits, if it counts.
    fn sign(&self, entry: &mut Entry, wanted: &Approve, operator: &Operator, now: Timestamp) -> Answer {
        let found = entry.history.state();
        let answer = |signed: usize, needed: u32| Answer {
            state: State::Succeeded,
            reason: None,
            approved: Some(Approved {
                job: wanted.job.clone(),
                found,
                signed: u32::try_from(signed).unwrap_or(u32::MAX),
                needed,
            }),
        };
        let (State::Delivered, Some(body)) = (found, &entry.body) else {
            return answer(entry.approvals.len() + 1, 1);
        };
        if entry.job != wanted.job || HEXLOWER.encode(&Sha256::digest(body.as_bytes())) != wanted.sha256 {
            return Answer::rejected("what was approved is not the order that came here");
        }
        let Ok(order) = Order::parse(body.as_bytes()) else {
            return Answer::failed("the order that was approved cannot be read");
        };
        if entry.by.as_ref() == Some(&operator.key) {
            return Answer::rejected(format!("{} has ordered it: another operator has to approve it", operator.name));
        }
        if let Decision::Denied { reason, .. } = self.gate.decide(&order, Some(&operator.key), now) {
            return Answer::rejected(format!("who may not have it done cannot approve it: {reason}"));
        }
        if !entry.approvals.contains(&operator.key) {
            entry.approvals.push(operator.key.clone());
        }
        let needed = self.gate.decide(&order, entry.by.as_ref(), now).approvals().unwrap_or(1);
        let signed = self.gate.signers(&order, entry, now);
        tracing::info!(order = %entry.id, by = %operator.name, signed, needed, at = %clock::now(), "an order was approved");
        answer(signed, needed)
    }
}

/// What an approval is for.
fn read(order: &Order) -> Result<Approve, String> {
    if order.domain.as_str() != STEWARD_DOMAIN {
        return Err(format!("{APPROVE} is there on the domain {STEWARD_DOMAIN} only, not on {}", order.domain));
    }
    serde_json::from_value(order.args.clone())
        .map_err(|error| format!("the arguments are not those of {APPROVE}: {error}"))
}
