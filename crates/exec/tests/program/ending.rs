//! A program is over with all that belongs to it, and with nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use exec::{End, Program, Stream, run};
use rstest::rstest;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{Family, PLENTY, alive, bytes, collect, collect_until, sh, until, zombies};

const SHORT: Duration = Duration::from_millis(300);

/// Runs it until its tree has this size, cancels it, and looks who is left.
async fn cancelled_at(size: usize, program: Program) -> exec::Finished {
    let family = Family::new();
    let cancel = CancellationToken::new();
    let running = tokio::spawn(collect_until(family.adopt(program), cancel.clone()));
    family.grow_to(size).await;
    cancel.cancel();
    let (finished, _) = timeout(PLENTY, running).await.unwrap().unwrap();
    assert_eq!((finished.end.clone(), finished.survivors), (End::Cancelled, 0));
    assert_eq!(family.size(), 0, "somebody is left");
    finished
}

#[tokio::test]
async fn a_cancelled_token_starts_nothing() {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (finished, _) = collect_until(sh("sleep 1000"), cancel).await;
    assert_eq!((finished.end, finished.took), (End::Cancelled, Duration::ZERO));
}

#[tokio::test]
async fn a_timeout_ends_a_program_that_heeds_term_without_waiting_for_the_grace() {
    let program = Program { timeout: SHORT, grace: PLENTY, ..Program::new(["sleep", "1000"]) };
    let (finished, _) = collect(program).await;
    assert_eq!((finished.end, finished.leftovers), (End::TimedOut, 0));
    assert!(finished.took >= SHORT && finished.took < PLENTY, "{:?}", finished.took);
}

#[rstest]
#[case::in_the_background(3, "sleep 1000 & sleep 1000; true")]
#[case::in_a_session_of_its_own(3, "setsid sleep 1000 & sleep 1000; true")]
#[case::an_orphan_in_a_session_of_its_own(3, "(setsid sh -c 'setsid sleep 1000 &' &); sleep 1000; true")]
#[case::detached_from_the_output(3, "setsid sleep 1000 >/dev/null 2>&1 & sleep 1000; true")]
#[case::many(9, "for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 1000; true' & done; wait")]
#[case::stopped(2, "sh -c 'kill -STOP $$' & wait; sleep 1000")]
#[tokio::test]
async fn no_process_of_the_tree_outlives_a_cancel(#[case] size: usize, #[case] line: &str) {
    let finished = cancelled_at(size, Program { grace: PLENTY, ..sh(line) }).await;
    assert_eq!(finished.leftovers, 0, "TERM was enough");
}

#[rstest]
#[case::the_program_itself(2, "trap '' TERM; sleep 1000; sleep 1000; true")]
#[case::a_grandchild(4, "setsid sh -c \"trap '' TERM; sleep 1000; sleep 1000\" & sleep 1000; true")]
#[case::all_and_forking(3, "trap '' TERM; while true; do sleep 0.01 & sleep 0.01; done")]
#[tokio::test]
async fn who_ignores_term_is_killed_after_the_grace(#[case] size: usize, #[case] line: &str) {
    let finished = cancelled_at(size, Program { grace: SHORT, ..sh(line) }).await;
    assert!(finished.leftovers >= 1, "{finished:?}");
}

#[tokio::test]
async fn a_wiped_environment_hides_neither_a_child_nor_an_orphan_that_still_prints_to_us() {
    for line in [
        "env -i setsid sleep 1000 >/dev/null 2>&1 & echo $!; wait",
        "(env -i setsid sh -c 'echo $$; exec sleep 1000' &); sleep 1000; true",
    ] {
        let (sender, mut receiver) = mpsc::channel(8);
        let cancel = CancellationToken::new();
        let running = tokio::spawn(run(sh(line), sender, cancel.clone()));
        let pid = timeout(PLENTY, receiver.recv()).await.unwrap().unwrap().bytes;
        let pid: u32 = std::str::from_utf8(&pid).unwrap().trim().parse().unwrap();
        assert!(alive(pid));
        cancel.cancel();
        assert_eq!(timeout(PLENTY, running).await.unwrap().unwrap().survivors, 0);
        assert!(!alive(pid), "{line}");
    }
}

#[tokio::test]
async fn a_family_that_flees_from_generation_to_generation_is_caught() {
    let folder = tempfile::TempDir::new().unwrap();
    let script = folder.path().join("flee");
    fs::write(&script, "#!/bin/sh\ntrap '' TERM\nsetsid \"$0\" &\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let flee = script.to_str().unwrap();
    for line in ["trap '' TERM; f() { f & }; f; sleep 1000; sleep 1000", &format!("{flee} & sleep 1000; true")] {
        cancelled_at(2, Program { grace: SHORT, ..sh(line) }).await;
    }
}

#[tokio::test]
async fn a_daemon_that_let_go_of_the_output_outlives_a_normal_exit() {
    let family = Family::new();
    let began = Instant::now();
    let line = "nohup sleep 1000 >/dev/null 2>&1 & echo $!";
    let (finished, chunks) = collect(family.adopt(sh(line))).await;
    assert_eq!((finished.end, finished.leftovers), (End::Exited(0), 0));
    assert!(began.elapsed() < PLENTY);
    let pid: i32 = String::from_utf8(bytes(&chunks, Stream::Stdout)).unwrap().trim().parse().unwrap();
    assert!(alive(pid.cast_unsigned()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_background_process_that_holds_the_output_is_ended_soon_after_a_normal_exit() {
    let family = Family::new();
    let line = "sleep 1000 & sleep 1000 >/dev/null 2>&1 & echo $!; exit 7";
    let (finished, chunks) = collect(family.adopt(sh(line))).await;
    assert_eq!((finished.end, finished.leftovers), (End::Exited(7), 1));
    assert!(finished.took < PLENTY);
    let daemon: i32 = String::from_utf8(bytes(&chunks, Stream::Stdout)).unwrap().trim().parse().unwrap();
    assert!(alive(daemon.cast_unsigned()), "only the holder is ended");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("nobody is left", || family.size() == 0).await;
}

#[tokio::test]
async fn a_background_printer_does_not_keep_a_program_alive() {
    let family = Family::new();
    let program = Program { max_output: 1000, ..sh("yes & exit 0") };
    let (finished, _) = timeout(PLENTY, collect(family.adopt(program))).await.unwrap();
    assert_eq!((finished.end, finished.leftovers), (End::Exited(0), 1));
    assert_eq!(family.size(), 0);
}

#[tokio::test]
async fn a_background_process_that_ends_in_a_moment_is_waited_for() {
    let (finished, chunks) = collect(sh("(sleep 0.03; echo late) & echo early")).await;
    assert_eq!((finished.end, finished.leftovers), (End::Exited(0), 0));
    assert_eq!(bytes(&chunks, Stream::Stdout), b"early\nlate\n");
}

#[tokio::test]
async fn dropping_the_run_kills_the_tree_and_leaves_no_zombie() {
    let family = Family::new();
    let line = "trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000";
    let running = tokio::spawn(collect(family.adopt(sh(line))));
    family.grow_to(3).await;
    running.abort();
    until("the tree is gone", || family.size() == 0).await;
    until("no zombie is left", || zombies().is_empty()).await;
}

#[tokio::test]
async fn no_run_leaves_a_zombie() {
    let mut runs = tokio::task::JoinSet::new();
    for index in 0..40 {
        let timeout = if index % 2 == 0 { Duration::from_millis(50) } else { PLENTY };
        let line = if index % 2 == 0 { "sleep 1000 & sleep 1000" } else { "echo $$" };
        runs.spawn(collect(Program { timeout, ..sh(line) }));
    }
    while let Some(done) = runs.join_next().await {
        assert!(matches!(done.unwrap().0.end, End::TimedOut | End::Exited(0)));
    }
    // Other tests of this process have children too, but none stays a zombie.
    until("no zombie is left", || zombies().is_empty()).await;
}

#[tokio::test]
async fn ending_one_program_does_not_touch_another() {
    let (one, other) = (Family::new(), Family::new());
    let cancel = CancellationToken::new();
    let staying = tokio::spawn(collect_until(other.adopt(sh("setsid sleep 1000 & sleep 1000; true")), cancel.clone()));
    other.grow_to(3).await;
    let program = Program { timeout: SHORT, ..sh("setsid sleep 1000 & sleep 1000; true") };
    assert_eq!(collect(one.adopt(program)).await.0.end, End::TimedOut);
    assert_eq!((one.size(), other.size()), (0, 3));
    cancel.cancel();
    assert_eq!(staying.await.unwrap().0.end, End::Cancelled);
}
