//! Taking back: what cancels and newer orders of a key do to those that wait, run, or have not arrived.
//!
//! Decided here and not by a process, so that it never waits behind what it is to end. Whatever it changes is
//! journaled in the same commit as the order that wanted it.

use std::time::Duration;

use bus::{Message, clock};
use journal::{Entry, JournalError, Newest, Tombstone};
use message::method::{CANCEL, Cancel, Cancelled, STEWARD_DOMAIN};
use message::policy::Decision;
use message::{JobId, Operator, Order, OrderId, PublicKey, State, Token, Trust};

use super::{Batch, Decided, Intake, entry, history_of};
use crate::in_hand::Found;
use crate::process::cancel_outcome;

/// How far ahead an order may expire at most: what has not arrived by then will only ever be reported as expired.
const EXPIRY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A running order that a cancel wants to end.
pub(super) struct Ending {
    /// The cancel's own order.
    pub(super) cancel: OrderId,
    pub(super) order: OrderId,
    pub(super) job: JobId,
    pub(super) by: String,
    pub(super) limit: Duration,
}

/// What a cancel found, as it is known in the intake.
pub(super) enum Cancelling {
    /// Everything is decided.
    Done { found: State, now: State },
    /// It runs, and its process has to end it.
    Running(OrderId),
    /// The order of cancel itself makes no sense.
    Refused(String),
    /// The order to be cancelled is somebody else's, and the policy does not let this operator cancel it.
    Strangers,
}

impl Intake {
    /// Whether an order that arrives was cancelled or superseded before it came.
    pub(super) fn foregone(
        &self,
        order: &Order,
        by: Option<&PublicKey>,
        sequence: u64,
        batch: &Batch,
    ) -> Result<Option<(State, String)>, JournalError> {
        let buried = match batch.tombstones.iter().rfind(|stone| stone.job == order.job) {
            Some(stone) => Some(stone.clone()),
            None => self.journal.tombstone(&order.job)?,
        };
        let buried = buried.filter(|stone| stone.only_of.is_empty() || by.is_some_and(|by| stone.only_of.contains(by)));
        if let Some(stone) = buried {
            return Ok(Some((State::Cancelled, stone.reason)));
        }
        let Some(key) = &order.supersede else { return Ok(None) };
        let newest = match batch.newest.get(key) {
            Some(newest) => Some(newest.clone()),
            None => self.journal.newest(key)?,
        };
        let newer = newest.filter(|newest| sequence < newest.sequence);
        Ok(newer.map(|newer| (State::Superseded, superseded_by(&newer.job, key))))
    }

    /// A new order takes the place of those that wait under its key; it becomes the newest of them.
    pub(super) fn supersede(
        &self,
        key: &Token,
        order: &Order,
        sequence: u64,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        let reason = superseded_by(&order.job, key);
        let older =
            |decided: &&mut Decided| decided.entry.supersede.as_ref() == Some(key) && decided.entry.sequence < sequence;
        let waiting: Vec<_> = batch.decided.iter_mut().filter(older).filter(|decided| decided.runs).collect();
        for decided in waiting {
            self.withdraw_unwritten(decided, State::Superseded, &reason);
        }
        for id in self.processes.in_hand().waiting_under(key, sequence) {
            self.withdraw(&id, State::Superseded, &reason, batch)?;
        }
        let until = order.created.plus(EXPIRY_MAX);
        let newest = Newest { key: key.clone(), sequence, job: order.job.clone(), until };
        batch.newest.insert(key.clone(), newest);
        Ok(())
    }

    /// What waits was ordered by one who may not order any more: it will not begin. Not while the journal is in doubt, which
    /// may not know what became of it: a catch-up that ends the doubt comes here again, and until then nothing begins.
    pub(super) async fn withdraw_revoked(&mut self) -> Result<(), JournalError> {
        if self.past.is_doubtful() {
            return Ok(());
        }
        let trust = self.trusted.current();
        let mut batch = Batch::default();
        for (id, signer) in self.processes.in_hand().waiting_by() {
            if trust.operator(&signer).is_some() {
                continue;
            }
            let who = trust.revoked(&signer).map_or_else(|| signer.to_string(), |revoked| revoked.name.clone());
            let reason = format!("{who} has signed it, who became no operator any more while it waited");
            if let Err(error) = self.withdraw(&id, State::Cancelled, &reason, &mut batch) {
                self.give_back(&batch);
                return Err(error);
            }
        }
        if !batch.withdrawn.is_empty() {
            tracing::warn!(orders = batch.withdrawn.len(), "orders of revoked operators waited; they will not begin");
        }
        self.journal_batch(batch).await
    }

    /// Takes an order to cancel: decides what it does, and adds it to `batch` with its answer.
    pub(super) async fn cancel(
        &self,
        order: &Order,
        operator: &Operator,
        decision: &Decision,
        message: &Message,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        let by = cancelled_by(&operator.name, order);
        // What an operator has ordered, that operator may take back; what others have, only by a rule of the policy.
        let only_of = if matches!(decision, Decision::Allowed { .. }) { None } else { Some(&operator.key) };
        let (cancelling, job) = match read(order) {
            Err(reason) => (Cancelling::Refused(reason), order.job.clone()),
            Ok(job) => (self.find_and_withdraw(&job, order, (&by, only_of), batch).await?, job),
        };
        let mut entry = entry(order, message, None, true);
        // Nothing of the order is needed any more, unless it has to wait for an end: the next start may have to see to that.
        if !matches!(cancelling, Cancelling::Running(_)) {
            entry.body = None;
        }
        entry.by = Some(operator.key.clone());
        match cancelling {
            Cancelling::Strangers => {
                let why = match decision {
                    Decision::Denied { reason, .. } => reason.clone(),
                    Decision::Allowed { rule, .. } | Decision::NeedsApprovals { rule, .. } => {
                        format!(
                            "the policy's rule {rule:?} asks for more than one operator, which a cancel cannot wait for"
                        )
                    }
                };
                entry.reason = Some(format!("the order of job {job} is not {}'s own: {why}", operator.name));
                entry.history = history_of(&[State::Rejected]);
            }
            Cancelling::Refused(reason) => {
                entry.reason = Some(reason);
                entry.history = history_of(&[State::Delivered, State::Running, State::Failed]);
            }
            Cancelling::Done { found, now } => {
                entry.outcome = Some(cancel_outcome(job, found, now));
                entry.history = history_of(&[State::Delivered, State::Running, State::Succeeded]);
            }
            Cancelling::Running(id) => {
                batch.endings.push(Ending { cancel: order.id, order: id, job, by, limit: order.timeout() });
            }
        }
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

    pub(super) async fn find_and_withdraw(
        &self,
        job: &JobId,
        order: &Order,
        (by, only_of): (&str, Option<&PublicKey>),
        batch: &mut Batch,
    ) -> Result<Cancelling, JournalError> {
        let is_strangers = |entry: &Entry| only_of.is_some_and(|own| entry.by.as_ref() != Some(own));
        let stands = |state: State| Cancelling::Done { found: state, now: state };
        if let Some(decided) = batch.decided.iter_mut().find(|decided| decided.entry.job == *job) {
            if is_strangers(&decided.entry) {
                return Ok(Cancelling::Strangers);
            }
            if !decided.runs {
                return Ok(stands(decided.entry.history.state()));
            }
            self.withdraw_unwritten(decided, State::Cancelled, by);
            return Ok(Cancelling::Done { found: State::Delivered, now: State::Cancelled });
        }
        if let Some(withdrawn) = batch.withdrawn.iter().find(|entry| entry.job == *job) {
            let strangers = is_strangers(withdrawn);
            return Ok(if strangers { Cancelling::Strangers } else { stands(withdrawn.history.state()) });
        }
        // Approved in this very batch, and therefore kept from beginning already.
        if let Some(at) = batch.approved.iter().position(|entry| entry.job == *job) {
            if is_strangers(&batch.approved[at]) {
                return Ok(Cancelling::Strangers);
            }
            let mut entry = batch.approved.remove(at);
            if entry.history.push(State::Cancelled, clock::now()).is_ok() {
                entry.reason = Some(by.to_owned());
                entry.body = None;
            }
            batch.withdrawn.push(entry);
            return Ok(Cancelling::Done { found: State::Delivered, now: State::Cancelled });
        }
        if let Some((id, found)) = self.processes.in_hand().find(job) {
            if only_of.is_some() && self.journal.find(&id)?.is_none_or(|entry| is_strangers(&entry)) {
                return Ok(Cancelling::Strangers);
            }
            if found == Found::Waiting && self.withdraw(&id, State::Cancelled, by, batch)? {
                return Ok(Cancelling::Done { found: State::Delivered, now: State::Cancelled });
            }
            return Ok(Cancelling::Running(id));
        }
        // This takes its time. Nothing can arrive meanwhile, since it would have to come through here.
        if let Some(entry) = self.journal.find_job(job).await? {
            return Ok(if is_strangers(&entry) { Cancelling::Strangers } else { stands(entry.history.state()) });
        }
        let until = order.created.plus(EXPIRY_MAX);
        // Whose order will come is not known: nobody's cancel may take the place of another's.
        let stone = match batch.tombstones.iter().rfind(|stone| stone.job == *job) {
            Some(stone) => Some(stone.clone()),
            None => self.journal.tombstone(job)?,
        };
        let only_of = match (only_of, stone) {
            (None, _) => vec![],
            (Some(_), Some(stone)) if stone.only_of.is_empty() => vec![],
            (Some(own), stone) => {
                let mut keys = stone.map(|stone| stone.only_of).unwrap_or_default();
                if !keys.contains(own) {
                    keys.push(own.clone());
                }
                keys
            }
        };
        batch.tombstones.push(Tombstone { job: job.clone(), until, reason: by.to_owned(), only_of });
        Ok(Cancelling::Done { found: State::Queued, now: State::Cancelled })
    }

    /// Withdraws an order that waits; `false` when it has begun.
    fn withdraw(&self, id: &OrderId, state: State, reason: &str, batch: &mut Batch) -> Result<bool, JournalError> {
        let in_hand = self.processes.in_hand();
        if !in_hand.withdraw(id) {
            return Ok(false);
        }
        let (found, failed) = match self.journal.find(id) {
            Ok(found) => (found, None),
            Err(error) => (None, Some(error)),
        };
        if let Some(mut entry) = found
            && entry.history.push(state, clock::now()).is_ok()
        {
            entry.reason = Some(reason.to_owned());
            entry.body = None;
            batch.withdrawn.push(entry);
            return Ok(true);
        }
        in_hand.withdrawn(id, false);
        failed.map_or(Ok(false), Err)
    }

    /// The same for an order of this very batch, which nobody has heard of yet.
    fn withdraw_unwritten(&self, decided: &mut Decided, state: State, reason: &str) {
        let entry: &mut Entry = &mut decided.entry;
        self.processes.unclaim(&entry.method, &entry.domain);
        entry.history = history_of(&[State::Delivered, state]);
        entry.reason = Some(reason.to_owned());
        entry.body = None;
        decided.place = None;
        decided.runs = false;
    }

    /// Does again, for a journal that did not know it, what an order did to others when it was taken: so it was told.
    pub(super) async fn do_again(
        &self,
        order: &Order,
        operator: &Operator,
        entry: &Entry,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        if order.method.as_str() == CANCEL {
            let told = entry.outcome.as_ref().and_then(|outcome| outcome.data.clone());
            let told = told.and_then(|data| serde_json::from_value::<Cancelled>(data).ok());
            if let Some(told) = told.filter(|told| told.now == State::Cancelled) {
                // By what the policy says today: what it allowed that day, nobody here remembers.
                let now = self.identity.time.now().unwrap_or_default().max(self.watermark);
                let allowed = matches!(self.gate.decide(order, Some(&operator.key), now), Decision::Allowed { .. });
                let only_of = (!allowed).then_some(&operator.key);
                let by = cancelled_by(&operator.name, order);
                self.find_and_withdraw(&told.job, order, (&by, only_of), batch).await?;
            }
        } else if let Some(key) = &order.supersede
            && entry.history.at(State::Delivered).is_some()
            && self.foregone(order, Some(&operator.key), entry.sequence, batch)?.is_none()
        {
            self.supersede(key, order, entry.sequence, batch)?;
        }
        Ok(())
    }

    /// Forgets a batch that could not be journaled: all that was withdrawn waits as before.
    pub(super) fn give_back(&self, batch: &Batch) {
        for decided in batch.decided.iter().filter(|decided| decided.runs) {
            self.processes.unclaim(&decided.entry.method, &decided.entry.domain);
        }
        for entry in batch.withdrawn.iter().chain(&batch.approved) {
            self.processes.in_hand().withdrawn(&entry.id, false);
        }
    }

    /// What was withdrawn is on disk: lets go of it.
    pub(super) fn let_go(&mut self, entry: &Entry) {
        self.processes.in_hand().withdrawn(&entry.id, true);
        if let Some(held) = &mut self.held
            && let Some(at) = held.iter().position(|held| held.task.id == entry.id)
        {
            held.remove(at);
            self.processes.unclaim(&entry.method, &entry.domain);
        } else {
            self.processes.take_back(&entry.method, &entry.domain, &entry.id);
        }
    }
}

/// A cancel that waited for the end of something when the agent went down: whose, by whom, and for how long.
pub(crate) fn left_waiting(entry: &Entry, trust: &Trust) -> Option<(JobId, String, Duration)> {
    if (entry.method.as_str(), entry.domain.as_str()) != (CANCEL, STEWARD_DOMAIN) {
        return None;
    }
    let order = Order::parse(entry.body.as_ref()?.as_bytes()).ok()?;
    let key = entry.by.as_ref()?;
    let name = trust.operator(key).map(|operator| operator.name.clone());
    let name = name.or_else(|| trust.revoked(key).map(|revoked| revoked.name.clone()));
    Some((read(&order).ok()?, cancelled_by(&name.unwrap_or_else(|| key.to_string()), &order), order.timeout()))
}

/// What a cancel asks for.
fn read(order: &Order) -> Result<JobId, String> {
    if order.domain.as_str() != STEWARD_DOMAIN {
        return Err(format!("{CANCEL} is there on the domain {STEWARD_DOMAIN} only, not on {}", order.domain));
    }
    let cancel: Cancel = serde_json::from_value(order.args.clone())
        .map_err(|error| format!("the arguments are not those of {CANCEL}: {error}"))?;
    if cancel.job == order.job {
        return Err("a cancel cannot take back itself".into());
    }
    Ok(cancel.job)
}

fn cancelled_by(operator: &str, order: &Order) -> String {
    format!("cancelled by {operator} (job {})", order.job)
}

fn superseded_by(job: &JobId, key: &Token) -> String {
    format!("the newer order of job {job} has the same key {key}")
}
