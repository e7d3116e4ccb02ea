//! What must hold after a run, whatever befell it: read back from the replies that were stored, and compared with what
//! the programs themselves saw.

use std::collections::{BTreeMap, BTreeSet};

use keeper::End;
use message::state::Merge;
use message::{History, OrderId, State};

use super::world::{Calamity, Issued, Life, World};

/// The histories of all orders, folded from all replies of one epoch or, with `None`, of all.
fn histories(world: &World, epoch: Option<u64>) -> (BTreeMap<OrderId, History>, BTreeSet<OrderId>) {
    let (mut found, mut contradicted) = (BTreeMap::<OrderId, History>::new(), BTreeSet::new());
    let net = world.shared.net();
    for (_, reply) in net.heard.iter().filter(|(own, _)| epoch.is_none_or(|epoch| *own == epoch)) {
        let known = found.entry(reply.order).or_default();
        if known.merge(&reply.history) == Merge::Contradiction {
            // Of two clones one may be cut off with the program: what the other says then is that it does not know, and
            // readers keep what they heard first.
            let unknown = [known.state(), reply.state()].contains(&State::Interrupted);
            if !(unknown && world.calamity == Calamity::Clone) {
                contradicted.insert(reply.order);
            }
        }
    }
    (found, contradicted)
}

/// Whether an order must have an end: the broker has it, or has ever heard of it.
fn counts(world: &World, issued: &Issued) -> bool {
    let net = world.shared.net();
    issued.stored.iter().any(|(epoch, _)| *epoch == net.epoch)
        || net.heard.iter().any(|(_, reply)| reply.order == issued.order.id)
}

fn unanswered(world: &World) -> Vec<(OrderId, State)> {
    let epoch = world.shared.net().epoch;
    let (found, _) = histories(world, Some(epoch));
    let open = world.orders.iter().filter(|issued| counts(world, issued)).map(|issued| {
        let state = found.get(&issued.order.id).map_or(State::Queued, History::state);
        (issued.order.id, state)
    });
    open.filter(|(_, state)| !state.is_terminal()).collect()
}

/// Whether every order has its end, as a reader of the broker sees it.
pub(super) fn is_settled(world: &World) -> bool {
    unanswered(world).is_empty() && world.lives.iter().all(|(_, life)| life.ended.is_some())
}

/// Everything that does not hold.
pub(super) fn check(world: &World) -> Vec<String> {
    let mut breaches = world.breaches.clone();
    breaches.extend(world.shared.net().complaints.iter().cloned());
    let issued = world.by_id();
    for (id, state) in unanswered(world) {
        breaches.push(format!("{id} has no end: it stands at {state}"));
    }
    let (found, contradicted) = histories(world, None);
    for id in &contradicted {
        if !world.excused.contains(id) {
            breaches.push(format!("{id}: two pasts were told"));
        }
    }
    for id in found.keys().filter(|id| !issued.contains_key(id)) {
        breaches.push(format!("{id} was answered and never ordered"));
    }
    let mut lives: BTreeMap<OrderId, Vec<&Life>> = BTreeMap::new();
    for (id, life) in &world.lives {
        lives.entry(*id).or_default().push(life);
    }
    for (id, own) in &lives {
        if !issued.contains_key(id) {
            breaches.push(format!("{id} has begun and was never ordered"));
        }
        if own.len() > 1 && !world.excused.contains(id) {
            breaches.push(format!("{id} has begun {} times", own.len()));
        }
    }
    for (id, history) in &found {
        let own = lives.get(id).map_or(&[][..], Vec::as_slice);
        let Some(issued) = issued.get(id) else { continue };
        if world.excused.contains(id) {
            continue;
        }
        if let Some(problem) = contradiction(issued, history, own, world.calamity) {
            breaches.push(format!("{id}: {problem}"));
        }
    }
    breaches.extend(overtaken(world, &lives));
    breaches.extend(taken_back(world, &found, &lives));
    breaches
}

/// Whether what was told of an order contradicts what its program saw.
fn contradiction(issued: &Issued, history: &History, lives: &[&Life], calamity: Calamity) -> Option<String> {
    let state = history.state();
    let is_program = issued.order.method.as_str() == "shellcommand";
    if !is_program {
        let expected: &[State] = match issued.order.method.as_str() {
            "nosuch" => &[State::Rejected, State::Expired, State::Cancelled, State::Superseded, State::Interrupted],
            _ => return (!lives.is_empty()).then(|| "it has begun a program".to_owned()),
        };
        return (!expected.contains(&state)).then(|| format!("told as {state}, with no such method"));
    }
    let told_begun = history.at(State::Running).is_some();
    let end = lives.last().and_then(|life| life.ended.clone()).and_then(|(_, end)| end);
    // Whose journal was set back may only know that it has been at it.
    let forgot = matches!(calamity, Calamity::SetBack | Calamity::Clone) && state == State::Interrupted;
    if state == State::Interrupted && !told_begun && !forgot {
        return Some("told as interrupted, and nothing was forgotten".to_owned());
    }
    if !told_begun && !lives.is_empty() && !forgot {
        return Some(format!("told as {state} without having run, and it has begun"));
    }
    let fits = match state {
        State::Succeeded => end == Some(End::Exited { code: 0 }),
        State::Failed => matches!(end, Some(End::Exited { code: 1 })),
        State::TimedOut => end == Some(End::TimedOut),
        State::Cancelled if told_begun => lives.is_empty() || end == Some(End::Cancelled),
        State::Interrupted => {
            forgot || lives.is_empty() || lives.iter().any(|life| life.lost) || end == Some(End::Cancelled)
        }
        State::Expired | State::Superseded | State::Rejected | State::Cancelled => lives.is_empty(),
        // That it has no end is said elsewhere.
        State::Queued | State::Delivered | State::Running => true,
    };
    (!fits).then(|| format!("told as {state}, and it has begun {} times and ended {end:?}", lives.len()))
}

/// Which order began, where it was stored, and its life.
type Begun<'a> = (OrderId, (u64, u64), &'a Life);

/// Orders of one subject that did not run one after the other in the order of their sequences.
fn overtaken(world: &World, lives: &BTreeMap<OrderId, Vec<&Life>>) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut last = BTreeMap::<(String, usize), Begun<'_>>::new();
    // By their beginnings.
    for (id, life) in &world.lives {
        let Some(issued) = world.orders.iter().find(|issued| issued.order.id == *id) else { continue };
        // What was stored anew has no single place, and what began twice has been complained of.
        let ([place], Some(1)) = (issued.stored.as_slice(), lives.get(id).map(Vec::len)) else { continue };
        let key = (issued.packet.subject.clone(), life.machine);
        if let Some((earlier, before, other)) = last.get(&key) {
            if before.0 == place.0 && before.1 > place.1 {
                breaches.push(format!("{id} ({}) was overtaken by {earlier} ({})", place.1, before.1));
            }
            if other.ended.as_ref().is_none_or(|(ended, _)| *ended > life.begun) {
                breaches.push(format!("{id} has begun before {earlier} of the same subject had ended"));
            }
        }
        last.insert(key, (*id, *place, life));
    }
    breaches
}

/// Cancels that told something else than what became of their orders.
fn taken_back(world: &World, found: &BTreeMap<OrderId, History>, lives: &BTreeMap<OrderId, Vec<&Life>>) -> Vec<String> {
    let net = world.shared.net();
    let mut breaches = Vec::new();
    for cancel in world.orders.iter().filter(|issued| issued.cancels.is_some()) {
        let answer = net.heard.iter().rev().find(|(_, reply)| reply.order == cancel.order.id);
        let Some(data) = answer.and_then(|(_, reply)| reply.outcome.as_ref()?.data.clone()) else { continue };
        let target = world.orders.iter().find(|issued| Some(&issued.order.job) == cancel.cancels.as_ref());
        let Some(target) = target.filter(|target| !world.excused.contains(&target.order.id)) else { continue };
        let state = found.get(&target.order.id).map_or(State::Queued, History::state);
        let begun = lives.contains_key(&target.order.id);
        if data["now"] == "cancelled" && (data["found"] == "queued" || data["found"] == "delivered") && begun {
            breaches.push(format!("{} was cancelled before it ran, and has begun", target.order.id));
        }
        if data["now"] == "cancelled" && data["found"] == "delivered" && state != State::Cancelled {
            breaches.push(format!("{} was cancelled while it waited, and stands at {state}", target.order.id));
        }
    }
    breaches
}
