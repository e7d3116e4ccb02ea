//! A keeper and the agents that come and go, by its real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

use std::path::Path;
use std::time::Duration;

use keeper::{Client, End, Event, Finished, Id, Launch, Program, Run};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(20);

/// An agent whose keeper runs in this very process.
fn agent(dir: &Path) -> Client {
    Client::new(dir.to_owned(), Launch { program: "/bin/true".into(), args: Vec::new() })
}

fn keep(dir: &Path) -> JoinHandle<()> {
    let dir = dir.to_owned();
    tokio::spawn(async move { keeper::serve(&dir).await.unwrap() })
}

fn shell(line: &str) -> Program {
    Program {
        argv: vec!["/bin/sh".into(), "-c".into(), line.into()],
        timeout: Duration::from_secs(60),
        max_output: 4 * 1024 * 1024,
        ..Program::default()
    }
}

fn id(number: u8) -> Id {
    Id([number; 16])
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// All that is told of a program, with the number of the first piece.
async fn to_the_end(run: &mut Run) -> (Option<u32>, Vec<u8>, Option<Finished>) {
    let (mut first, mut next, mut all) = (None, None, Vec::new());
    loop {
        match tokio::time::timeout(PATIENCE, run.next()).await.expect("something happens") {
            Some(Event::Output { number, bytes, .. }) => {
                assert_eq!(number, *next.get_or_insert(number), "without gaps");
                first.get_or_insert(number);
                next = Some(number + 1);
                all.extend_from_slice(&bytes);
                run.taken(number + 1);
            }
            Some(Event::Ended(finished)) => return (first, all, Some(finished)),
            None => return (first, all, None),
        }
    }
}

#[tokio::test]
async fn a_program_is_run_and_told_of_and_the_keeper_ends_when_it_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let keeping = keep(dir.path());
    let client = agent(dir.path());
    let program = Program { stdin: Some("in\n".into()), answer_max: 100, ..shell("cat; echo err >&2; exit 3") };
    let mut run = client.start(id(1), &program).await.unwrap();
    let (first, _, finished) = to_the_end(&mut run).await;
    let finished = finished.unwrap();
    assert_eq!((first, &finished.end, finished.pieces), (Some(0), &End::Exited { code: 3 }, 2));
    assert_eq!((finished.answer.unwrap(), finished.stdout.bytes), ("in\n".into(), 3));
    drop(run);
    client.forget(id(1)).await;
    client.close(false).await;
    tokio::time::timeout(PATIENCE, keeping).await.unwrap().unwrap();
    assert!(!dir.path().join("run/keeper.sock").exists());
}

#[tokio::test]
async fn what_one_agent_did_not_take_the_next_one_gets_with_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let _keeping = keep(dir.path());
    let go = dir.path().join("go");
    let line = format!("seq 1 100000; while [ ! -e {} ]; do sleep 0.01; done; echo last", go.display());
    let first = agent(dir.path());
    let mut run = first.start(id(1), &shell(&line)).await.unwrap();
    let mut pieces = Vec::new();
    for _ in 0..3 {
        let Some(Event::Output { number, bytes, .. }) = run.next().await else { panic!() };
        pieces.push(bytes);
        run.taken(number + 1);
    }
    first.leave_running();
    drop(run);
    let second = agent(dir.path());
    assert_eq!(second.held().await.unwrap(), [id(1)]);
    std::fs::write(&go, "").unwrap();
    let mut run = second.attach(id(1)).await.unwrap();
    let (number, rest, finished) = to_the_end(&mut run).await;
    // That the last ones were taken may not have reached the keeper.
    let number = number.unwrap() as usize;
    assert!(number <= 3);
    let mut taken = pieces[..number].concat();
    taken.extend(rest);
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).chain(["last\n".to_owned()]).collect();
    assert!(taken == expected.as_bytes(), "{} of {} bytes", taken.len(), expected.len());
    assert_eq!(finished.unwrap().end, End::Exited { code: 0 });
    // As long as nobody forgets it, it is held, and told again.
    let third = agent(dir.path());
    assert_eq!(third.held().await.unwrap(), [id(1)]);
    third.forget(id(1)).await;
    assert!(to_the_end(&mut third.attach(id(1)).await.unwrap()).await.2.is_none(), "nobody knows it any more");
}

#[tokio::test]
async fn an_id_that_is_held_starts_nothing_a_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let _keeping = keep(dir.path());
    let witness = dir.path().join("witness");
    let program = shell(&format!("echo ran >> {}; echo out", witness.display()));
    let client = agent(dir.path());
    for _ in 0..3 {
        let mut run = client.start(id(1), &program).await.unwrap();
        let (first, out, finished) = to_the_end(&mut run).await;
        assert!(finished.is_some() && first.is_none_or(|number| number == 0));
        assert!(out == b"out\n" || out.is_empty());
    }
    assert_eq!(std::fs::read_to_string(&witness).unwrap(), "ran\n");
}

#[tokio::test]
async fn a_run_that_is_dropped_is_ended_unless_the_agent_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let _keeping = keep(dir.path());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let client = agent(dir.path());
    let endless = |file: &Path| {
        let file = file.display();
        shell(&format!("trap 'echo > {file}; exit' TERM; echo > {file}-begun; while :; do sleep 0.01; done"))
    };
    let run = client.start(id(1), &endless(&one)).await.unwrap();
    let mut told = client.start(id(2), &endless(&two)).await.unwrap();
    let begun = [dir.path().join("one-begun"), dir.path().join("two-begun")];
    eventually("both run", || begun.iter().all(|file| file.exists())).await;
    drop(run);
    eventually("the first is ended", || one.exists()).await;
    told.ender()();
    assert_eq!(to_the_end(&mut told).await.2.unwrap().end, End::Cancelled);
    assert!(two.exists());
}

#[tokio::test]
async fn everything_can_be_ended_with_the_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let keeping = keep(dir.path());
    let client = agent(dir.path());
    let mut run = client.start(id(1), &shell("sleep 100")).await.unwrap();
    client.close(true).await;
    tokio::time::timeout(PATIENCE, keeping).await.unwrap().unwrap();
    let (_, _, finished) = to_the_end(&mut run).await;
    assert!(finished.is_none_or(|finished| finished.end == End::Stopped));
}

#[tokio::test]
async fn a_keeper_of_an_earlier_agent_that_holds_nothing_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let keeping = keep(dir.path());
    let first = agent(dir.path());
    let mut run = first.start(id(1), &shell("true")).await.unwrap();
    to_the_end(&mut run).await;
    // What an agent says last is dropped if the next one comes before it is read.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let next = agent(dir.path());
        let held = next.held().await.unwrap();
        if held.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "it is never forgotten");
        next.forget(id(1)).await;
        sleep(Duration::from_millis(20)).await;
    }
    tokio::time::timeout(PATIENCE, keeping).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_script_lies_in_a_file_as_long_as_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let _keeping = keep(dir.path());
    let client = agent(dir.path());
    let script = keeper::Script { text: "echo $0 $1\n".into(), args: vec!["x".into()] };
    let program = Program { argv: vec!["/bin/sh".into()], script: Some(script), ..shell("") };
    let (_, out, _) = to_the_end(&mut client.start(id(1), &program).await.unwrap()).await;
    let text = String::from_utf8(out).unwrap();
    let (path, argument) = text.trim().split_once(' ').unwrap();
    assert!(path.contains("steward-script-") && argument == "x", "{text}");
    assert!(!Path::new(path).exists());
}

#[tokio::test]
async fn without_room_on_disk_a_program_goes_on_and_what_was_cut_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let _keeping = keep(dir.path());
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    let line = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; head -c 1000000 /dev/zero; echo > {}; exit 4",
        go.display(),
        done.display()
    );
    let first = agent(dir.path());
    let run = first.start(id(1), &shell(&line)).await.unwrap();
    first.leave_running();
    drop(run);
    let second = agent(dir.path());
    assert_eq!(second.held().await.unwrap(), [id(1)]);
    // A directory that is gone takes no file, for whatever user the test runs as.
    std::fs::remove_dir_all(dir.path().join("run")).unwrap();
    std::fs::write(&go, "").unwrap();
    eventually("the program goes on", || done.exists()).await;
    let mut run = second.attach(id(1)).await.unwrap();
    let (_, out, finished) = to_the_end(&mut run).await;
    let finished = finished.unwrap();
    assert_eq!(finished.end, End::Exited { code: 4 });
    assert!(finished.trouble.unwrap().contains("cut short"));
    assert_eq!((finished.stdout.total_bytes, finished.stdout.bytes), (1_000_000, out.len() as u64));
    assert!((64 * 1024..300 * 1024).contains(&out.len()), "{}", out.len());
}
