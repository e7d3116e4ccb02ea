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
    /// A thread of the kernel: it has no environment.
    kernel: bool,
    /// Where its environment begins and ends in its memory. `None` while it execs: its memory is not filled in yet.
    environment: Option<(u64, u64)>,
}

/// The flag of `/proc/PID/stat` that tells a thread of the kernel (`PF_KTHREAD` of include/linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

impl Status {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may hold anything, also spaces and parentheses: count from the last `)`.
    fn parse(pid: i32, line: &[u8]) -> Option<Self> {
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(49).collect();
        let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
        let place = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0);
        let state = *fields.first()?;
        // The first thread of a living process may be a zombie.
        let alive = !matches!(state, "Z" | "X" | "x") || number(17)? > 1;
        Some(Self {
            process: Process { pid, born: fields.get(19)?.parse().ok()? },
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            alive,
            kernel: fields.get(6)?.parse::<u64>().ok()? & KERNEL_THREAD != 0,
            // The end of the code is what an exec fills in last, after the environment (fs/binfmt_elf.c).
            environment: if place(24) == 0 { None } else { Some((place(47), place(48))) },
        })
    }

    /// Whether the environment holds one of these variables, each given as `NAME=value`. `None` while nobody can tell: a process
    /// that execs has no environment for a moment, or what was read of the old one is cut, and it may be one of those that are
    /// looked for.
    fn carries(&self, variables: &[Vec<u8>]) -> Option<bool> {
        if self.kernel {
            return Some(false);
        }
        // Gone, or another user's, which we may not signal either.
        let Ok(environment) = fs::read(format!("/proc/{}/environ", self.process.pid)) else { return Some(false) };
        if environment.split(|byte| *byte == 0).any(|carried| variables.iter().any(|variable| variable == carried)) {
            return Some(true);
        }
        let Some(now) = Self::read(self.process.pid).filter(|now| now.process == self.process && now.alive) else {
            return Some(false);
        };
        let (begin, end) = now.environment?;
        let is_whole = usize::try_from(end.saturating_sub(begin)).is_ok_and(|length| length == environment.len());
        is_whole.then_some(false)
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
    /// Whether nobody on this machine was born or without an environment while we looked: only then is nobody missed for sure.
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
        let mut unknown = false;
        for status in numbers().into_iter().filter_map(Status::read) {
            // At once, before it is gone.
            let marks = (status.alive && status.process.born >= born).then(|| self.marks(&status));
            unknown |= marks == Some(None);
            let marked = marks.flatten() == Some(true);
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
            settled: !unknown && newest_before.is_some() && newest_before == newest(),
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
            let marks = if status.parent == us { Some(false) } else { self.marks(&status) };
            if pid == self.root || marks == Some(true) {
                strike(status.process);
                caught += 1;
            } else if marks.is_some() {
                strangers.insert(pid);
            }
        }
        caught
    }

    /// Whether a process carries our mark in its environment, or prints where our program prints. `None` while nobody can tell.
    fn marks(&self, status: &Status) -> Option<bool> {
        match status.carries(std::slice::from_ref(&self.mark)) {
            Some(true) => Some(true),
            _ if status.process.holds(&self.pipes) => Some(true),
            unsure => unsure,
        }
    }
}

/// Who carries one of some variables at one moment.
#[derive(Debug)]
pub(crate) struct Carriers {
    /// Those that are alive, but for this process and those above it.
    pub(crate) living: Vec<Process>,
    /// As [`Members::settled`].
    pub(crate) settled: bool,
}

/// Looks for the processes that carry one of these in their environment, or are `known` to have carried it.
pub(crate) fn carriers(variables: &[Vec<u8>], known: &HashSet<Process>) -> Carriers {
    let newest_before = newest();
    let all: Vec<Status> = numbers().into_iter().filter_map(Status::read).collect();
    let by_pid: HashMap<i32, &Status> = all.iter().map(|status| (status.process.pid, status)).collect();
    let untouchable = ancestors(std::process::id().cast_signed(), &by_pid);
    let mut found = Carriers { living: Vec::new(), settled: true };
    for status in all.iter().filter(|status| status.alive && !untouchable.contains(&status.process.pid)) {
        let carries = if known.contains(&status.process) { Some(true) } else { status.carries(variables) };
        match carries {
            Some(true) => found.living.push(status.process),
            Some(false) => {}
            None => found.settled = false,
        }
    }
    found.settled &= newest_before.is_some() && newest_before == newest();
    found
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
        let expected =
            Status { process, parent: 7, group: 40, session: 39, alive: true, kernel: false, environment: None };
        assert_eq!(status, expected);
    }

    #[test]
    fn a_zombie_with_living_threads_is_alive() {
        let line = |threads: u32| format!("42 (x) Z 7 40 39 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0");
        assert!(!Status::parse(42, line(1).as_bytes()).unwrap().alive);
        assert!(Status::parse(42, line(3).as_bytes()).unwrap().alive);
    }

    #[test]
    fn an_environment_without_the_variable_is_known_to_be_so_an_empty_one_too() {
        let me = Status::read(std::process::id().cast_signed()).unwrap();
        let variable = b"STEWARD_NOBODY_SETS_THIS=1".to_vec();
        assert_eq!(me.carries(&[variable]), Some(false));
        let bare = std::process::Command::new("sleep").arg("100").env_clear().spawn().map(Ended).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let carries = || Status::read(bare.0.id().cast_signed()).unwrap().carries(&[b"A=1".to_vec()]);
        while carries().is_none() {
            assert!(std::time::Instant::now() < deadline, "an empty environment is one that is known");
        }
    }

    /// A child that does not outlive its test.
    struct Ended(std::process::Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// What a look tells of one that execs all the time: that it carries the variable, or that nobody can tell.
    #[test]
    fn one_that_execs_is_never_taken_for_a_stranger() {
        let again = "test $1 -gt 0 || exec sleep 100; exec sh -c \"$0\" \"$0\" $(($1 - 1))";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", again, again, "100000"]).env("STEWARD_EXECS", "1");
        let child = command.spawn().map(Ended).unwrap();
        let pid = child.0.id().cast_signed();
        let variable = [b"STEWARD_EXECS=1".to_vec()];
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        let mut unsure = 0;
        let mut begun = false;
        while std::time::Instant::now() < until {
            match Status::read(pid).unwrap().carries(&variable) {
                Some(true) => begun = true,
                // Before its first exec it is a copy of this process.
                Some(false) => assert!(!begun, "a process in the middle of an exec was taken for a stranger"),
                None => unsure += 1,
            }
        }
        println!("nobody could tell {unsure} times");
    }

    #[test]
    fn this_process_is_alive_and_no_member_of_a_tree_of_its_own() {
        let me = Status::read(std::process::id().cast_signed()).unwrap();
        assert!(me.process.alive());
        let tree = Tree::new(me.process.pid, "none", Vec::new());
        assert!(!tree.members(&HashSet::new()).living.contains(&me.process));
    }
}
