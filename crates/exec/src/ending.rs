//! Ends the processes of a program: TERM, grace, KILL, until none is left.
//!
//! Synchronous and blocking on purpose: it runs on a thread of its own, goes on when the run that asked for it is dropped, and
//! reaps the program at last. Looks before it strikes, because parent links vanish with the parents. Never signals
//! a process that is not a member of the tree at that very moment.

use std::collections::HashSet;
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::tree::{Members, Process, Tree};

/// How long KILL may take to have its effect before a process counts as a survivor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How often to look again, on a machine that starts processes all the time, before nobody counts as nobody.
pub(crate) const LOOKS: u32 = 8;

/// How long one chase after fleeing processes takes at most, before everybody is looked at again.
const CHASE: Duration = Duration::from_millis(200);

/// The longest pause between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(32);

/// Which members of a tree are to be ended.
#[derive(Clone, Debug)]
pub(crate) enum Whom {
    /// All of them.
    Everybody,
    /// Those that have one of these pipes open.
    Holders(Vec<u64>),
}

/// What the ending came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ended {
    /// As [`crate::Finished::leftovers`] counts.
    pub(crate) leftovers: u32,
    /// Those that KILL did not end.
    pub(crate) survivors: u32,
}

/// Ends those members. Without a grace there is no TERM. The program itself is not reaped yet.
pub(crate) fn end(tree: &Tree, whom: &Whom, grace: Duration) -> Ended {
    let mut known = HashSet::new();
    if !grace.is_zero() {
        let deadline = Instant::now().checked_add(grace);
        if ask(tree, whom, deadline, &mut known) {
            return Ended { leftovers: leftovers(whom, known.len(), 0), survivors: 0 };
        }
    }
    let (killed, survivors) = kill(tree, whom, &mut known);
    Ended { leftovers: leftovers(whom, known.len(), killed), survivors: count(survivors) }
}

/// Kills the process group of a program that has not been reaped, at once and without looking further.
pub(crate) fn kill_group(tree: &Tree) {
    signal_group(tree.root, Signal::KILL);
}

/// Reaps the program, which blocks until it is dead. `None` if somebody else did.
pub(crate) fn reap(child: &mut Child) -> Option<ExitStatus> {
    child
        .wait()
        .inspect_err(|error| tracing::warn!(pid = child.id(), %error, "the exit status of a program is lost"))
        .ok()
}

/// After an exit everybody who had to be ended is a leftover; after a time-out only who did not heed TERM.
fn leftovers(whom: &Whom, all: usize, killed: usize) -> u32 {
    let number = match whom {
        Whom::Everybody => killed,
        Whom::Holders(_) => all,
    };
    count(number)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The living members that are meant. Looks again when it sees none and somebody may have slipped through by forking.
fn find(tree: &Tree, whom: &Whom, known: &HashSet<Process>) -> Members {
    let mut looks = 1;
    loop {
        let mut found = tree.members(known);
        if let Whom::Holders(pipes) = whom {
            found.living.retain(|process| process.holds(pipes));
        }
        if !found.living.is_empty() || found.settled || looks >= LOOKS {
            return found;
        }
        looks += 1;
    }
}

/// Sends TERM to everybody once, and CONT so that the stopped ones hear it. True when nobody is left for sure,
/// false at the deadline.
fn ask(tree: &Tree, whom: &Whom, deadline: Option<Instant>, known: &mut HashSet<Process>) -> bool {
    let mut pause = Duration::from_millis(1);
    loop {
        let Members { living: found, settled, .. } = find(tree, whom, known);
        if found.is_empty() {
            return settled || matches!(whom, Whom::Holders(_));
        }
        let mut fresh: Vec<_> = found.into_iter().filter(|process| known.insert(*process)).collect();
        // Parents first: who heeds TERM shall not take it for a mishap of its children.
        fresh.sort_unstable_by_key(|process| (process.born, process.pid));
        for process in &fresh {
            signal(*process, Signal::TERM);
            signal(*process, Signal::CONT);
        }
        // The dear look at everybody is due again only when all those we know are gone.
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            sleep(pause);
            pause = (pause * 2).min(PAUSE);
            if !known.iter().any(|process| process.alive()) {
                break;
            }
            // A holder may also let go without dying.
            if matches!(whom, Whom::Holders(_)) {
                break;
            }
        }
    }
}

/// Sends KILL until nobody is left or patience is. How many got it, and how many survived.
fn kill(tree: &Tree, whom: &Whom, known: &mut HashSet<Process>) -> (usize, usize) {
    let deadline = Instant::now() + PATIENCE;
    let everybody = matches!(whom, Whom::Everybody);
    let mut pause = Duration::from_micros(500);
    let mut killed = HashSet::new();
    loop {
        let Members { living: mut found, groups, settled, mut strangers } = find(tree, whom, known);
        for process in &found {
            signal(*process, Signal::KILL);
        }
        if everybody {
            // A group is killed as one, even while it forks.
            signal_group(tree.root, Signal::KILL);
            groups.into_iter().for_each(|group| signal_group(group, Signal::KILL));
        }
        if everybody && !settled {
            let strike = |process| {
                signal(process, Signal::KILL);
                found.push(process);
            };
            chase(tree, &mut strangers, strike);
        }
        if found.is_empty() {
            return (killed.len(), 0);
        }
        if Instant::now() >= deadline {
            tracing::warn!(root = tree.root, left = ?found, "processes survive KILL");
            return (killed.len(), found.len());
        }
        known.extend(&found);
        killed.extend(found);
        sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
}

/// Goes after those that flee by forking, until a few looks in a row catch nobody.
fn chase(tree: &Tree, strangers: &mut HashSet<i32>, mut strike: impl FnMut(Process)) {
    let deadline = Instant::now() + CHASE;
    let mut in_vain = 0;
    while in_vain < LOOKS && Instant::now() < deadline {
        in_vain = if tree.chase(strangers, &mut strike) > 0 { 0 } else { in_vain + 1 };
        sleep(Duration::from_micros(200));
    }
}

/// Signals a whole group of the tree.
fn signal_group(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = kill_process_group(group, signal); // gone, or not ours to signal: the next look tells
    }
}

/// Signals this process and no other that got its number since.
pub(crate) fn signal(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let _ = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) if process.alive() => pidfd_send_signal(handle, signal),
        Ok(_gone) => Ok(()),
        Err(_no_pidfd) if process.alive() => kill_process(pid, signal), // a kernel before 5.3, or no descriptor free
        Err(error) => Err(error),
    };
}
