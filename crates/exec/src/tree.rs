//! Finds the processes that belong to a program.
//!
//! Reads `/proc` and answers who is alive; never sends a signal. Blocking: for a thread of its own, or a rare moment.

use std::collections::{HashMap, HashSet};
use std::fs;

/// The variable that marks a tree.
pub(crate) const MARK: &str = "STEWARD_EXEC";

/// A process for all time: its number may be used again, but not at the same clock tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since boot.
    pub(crate) born: u64,
}

impl Process {
    /// Whether it is still there and not a zombie.
    pub(crate) fn alive(self) -> bool {
        Status::read(self.pid).is_some_and(|status| status.process == self && status.alive)
    }

    /// Whether it has one of these pipes open.
    pub(crate) fn holds(self, pipes: &[u64]) -> bool {
        let Ok(open) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return false };
        let targets = open.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        let names: Vec<_> = pipes.iter().map(|number| format!("pipe:[{number}]")).collect();
        targets.into_iter().any(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
    }
}

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status {
    process: Process,
    parent: i32,
    group: i32,
    session: i32,
    alive: bool,
}

impl Status {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may hold anything, also spaces and parentheses: count from the last `)`.
    fn parse(pid: i32, line: &[u8]) -> Option<Self> {
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
        let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
        let state = *fields.first()?;
        // The first thread of a living process may be a zombie.
        let alive = !matches!(state, "Z" | "X" | "x") || number(17)? > 1;
        Some(Self {
            process: Process { pid, born: fields.get(19)?.parse().ok()? },
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            alive,
        })
    }
}

/// The numbers of all processes, the latest first, for those are the first to be gone again.
fn numbers() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable_by(|one, other| other.cmp(one));
    pids
}

/// Who belongs to a program at one moment.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Those that are alive.
    pub(crate) living: Vec<Process>,
    /// Process groups that hold nobody but members, besides the one that the program leads.
    pub(crate) groups: HashSet<i32>,
    /// Whether nobody on this machine was born while we looked: only then is nobody missed for sure.
    pub(crate) settled: bool,
    /// The numbers of all other processes.
    pub(crate) strangers: HashSet<i32>,
}

/// The marks by which the processes of one program are known. Good as long as the program has not been reaped.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The program itself, which also leads a process group.
    pub(crate) root: i32,
    /// `STEWARD_EXEC=…`, as it stands in the environment.
    mark: Vec<u8>,
    /// The numbers of the pipes that it prints to.
    pipes: Vec<u64>,
}

impl Tree {
    /// Of the program `root` that carries this value of [`MARK`] and prints to these pipes.
    pub(crate) fn new(root: i32, mark: &str, pipes: Vec<u64>) -> Self {
        Self { root, mark: format!("{MARK}={mark}").into_bytes(), pipes }
    }

    /// All living members. `known` are members found earlier, whose parents may be gone by now.
    pub(crate) fn members(&self, known: &HashSet<Process>) -> Members {
        let newest_before = newest();
        let born = Status::read(self.root).map_or(0, |status| status.process.born);
        let mut all = Vec::new();
        let mut members = HashSet::new();
        for status in numbers().into_iter().filter_map(Status::read) {
            // At once, before it is gone.
            let marked = status.alive && status.process.born >= born && self.marks(status.process);
            if marked || status.group == self.root || known.contains(&status.process) {
                members.insert(status.process.pid);
            }
            all.push(status);
        }
        let by_pid: HashMap<i32, &Status> = all.iter().map(|status| (status.process.pid, status)).collect();
        let us = std::process::id().cast_signed();
        let mut untouchable = ancestors(us, &by_pid);
        // Other children of ours are other programs, and hold all our descriptors for an instant until they exec.
        let siblings = all.iter().filter(|status| status.parent == us && status.process.pid != self.root);
        untouchable.extend(siblings.map(|status| status.process.pid));
        let our_session = by_pid.get(&us).map(|status| status.session);
        members.insert(self.root);
        members.retain(|pid| !untouchable.contains(pid));
        let mut sessions = HashSet::new();
        loop {
            let before = members.len();
            for status in &all {
                let pid = status.process.pid;
                if members.contains(&pid) && our_session != Some(status.session) {
                    sessions.insert(status.session);
                }
                let related = members.contains(&status.parent) || sessions.contains(&status.session);
                if related && !untouchable.contains(&pid) {
                    members.insert(pid);
                }
            }
            if members.len() == before {
                break;
            }
        }
        let living = all.iter().filter(|status| status.alive && members.contains(&status.process.pid));
        // A session that is not ours was opened by a member: everybody in it descends from one.
        let apart = all.iter().filter(|status| sessions.contains(&status.session) && status.group > 1);
        Members {
            living: living.map(|status| status.process).collect(),
            groups: apart.map(|status| status.group).collect(),
            settled: newest_before.is_some() && newest_before == newest(),
            strangers: by_pid.keys().filter(|pid| !members.contains(pid)).copied().collect(),
        }
    }

    /// Looks only at processes that are no `strangers` yet, and strikes each that carries our mark the moment it is seen: the
    /// way to catch those that live no longer than a look at everybody takes. How many there were.
    pub(crate) fn chase(&self, strangers: &mut HashSet<i32>, mut strike: impl FnMut(Process)) -> usize {
        let us = std::process::id().cast_signed();
        let mut caught = 0;
        for pid in numbers() {
            if strangers.contains(&pid) {
                continue;
            }
            let Some(status) = Status::read(pid).filter(|status| status.alive) else { continue };
            if pid == self.root || (status.parent != us && self.marks(status.process)) {
                strike(status.process);
                caught += 1;
            } else {
                strangers.insert(pid);
            }
        }
        caught
    }

    /// Whether a process carries our mark in its environment, or prints where our program prints.
    fn marks(&self, process: Process) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == self.mark) || process.holds(&self.pipes)
    }
}

/// Living processes that carry one of these in their environment, but for this process and those above it.
pub(crate) fn carriers(marks: &[Vec<u8>]) -> Vec<Process> {
    let all: Vec<Status> = numbers().into_iter().filter_map(Status::read).collect();
    let by_pid: HashMap<i32, &Status> = all.iter().map(|status| (status.process.pid, status)).collect();
    let untouchable = ancestors(std::process::id().cast_signed(), &by_pid);
    let carries = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| marks.iter().any(|mark| mark == variable))
    };
    let found = all.iter().filter(|status| status.alive && !untouchable.contains(&status.process.pid));
    found.filter(|status| carries(status.process.pid)).map(|status| status.process).collect()
}

/// The number that was given away last, which is the last word of this file.
fn newest() -> Option<u64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().last()?.parse().ok()
}

/// This process, those above it, and init: no member of any tree, whatever the marks say.
fn ancestors(us: i32, by_pid: &HashMap<i32, &Status>) -> HashSet<i32> {
    let mut found = HashSet::from([0, 1]);
    let mut pid = us;
    while found.insert(pid)
        && let Some(status) = by_pid.get(&pid)
    {
        pid = status.parent;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse_the_status() {
        let line = b"42 (a) b (S 9 9) R 7 40 39 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let status = Status::parse(42, line).unwrap();
        let process = Process { pid: 42, born: 4711 };
        assert_eq!(status, Status { process, parent: 7, group: 40, session: 39, alive: true });
    }

    #[test]
    fn a_zombie_with_living_threads_is_alive() {
        let line = |threads: u32| format!("42 (x) Z 7 40 39 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0");
        assert!(!Status::parse(42, line(1).as_bytes()).unwrap().alive);
        assert!(Status::parse(42, line(3).as_bytes()).unwrap().alive);
    }

    #[test]
    fn this_process_is_alive_and_no_member_of_a_tree_of_its_own() {
        let me = Status::read(std::process::id().cast_signed()).unwrap();
        assert!(me.process.alive());
        let tree = Tree::new(me.process.pid, "none", Vec::new());
        assert!(!tree.members(&HashSet::new()).living.contains(&me.process));
    }
}
