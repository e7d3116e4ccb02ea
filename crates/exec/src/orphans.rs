//! Ends what is left of programs whose runner was killed, and with it everything that this crate knew of them.
//!
//! All that is left to go by is a variable in their environment that the caller had given them. Synchronous and blocking, as `ending`.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::ending::{LOOKS, PATIENCE, PAUSE, signal};
use crate::tree::{self, Carriers};

/// Ends every process that carries `variable` with one of these values in its environment, daemons too, but never this process
/// or one above it: TERM, after `grace` KILL, until none is left. Returns how many there were. Blocks; for a thread of its own.
///
/// One look that finds nobody is not enough while processes are born or exec: such a one may have been missed.
pub fn end_orphans(variable: &str, values: &[String], grace: Duration) -> usize {
    if values.is_empty() {
        return 0;
    }
    let marks: Vec<Vec<u8>> = values.iter().map(|value| format!("{variable}={value}").into_bytes()).collect();
    let began = Instant::now();
    let mut seen = HashSet::new();
    let mut pause = Duration::from_millis(1);
    let mut in_vain = 0;
    loop {
        let Carriers { living: found, settled } = tree::carriers(&marks, &seen);
        in_vain = if found.is_empty() { in_vain + 1 } else { 0 };
        if found.is_empty() && (settled || in_vain >= LOOKS) {
            return seen.len();
        }
        let waited = began.elapsed();
        if waited > grace.saturating_add(PATIENCE) {
            tracing::warn!(left = ?found, "what is left of programs survives KILL");
            return seen.len();
        }
        for process in found {
            let is_new = seen.insert(process);
            if waited >= grace {
                signal(process, Signal::KILL);
            } else if is_new {
                signal(process, Signal::TERM);
                signal(process, Signal::CONT);
            }
        }
        sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn those_who_carry_the_variable_are_ended_and_nobody_else() {
        // One process each, which a KILL ends and nothing else; it speaks once it no longer minds a TERM.
        let start = |value: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "trap '' TERM; echo; exec sleep 100"]).env("ORPHAN_TEST", value);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let value = format!("one-{}", std::process::id());
        let (mut meant, mut other) = (start(&value), start("another"));
        let waiting = std::thread::spawn(move || meant.wait().unwrap());
        assert!(end_orphans("ORPHAN_TEST", &[value], Duration::from_millis(100)) >= 1);
        assert_eq!(waiting.join().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        assert!(end_orphans("ORPHAN_TEST", &["another".to_owned()], Duration::ZERO) >= 1);
        other.wait().unwrap();
    }
}
