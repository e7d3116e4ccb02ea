//! What a program prints arrives unharmed, in order, in time, and within bounds.

use std::fs;
use std::time::{Duration, Instant};

use exec::{End, Program, Stream, run};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{PLENTY, bytes, collect, collect_until, sh};

#[tokio::test]
async fn a_silent_program_leaves_empty_tallies() {
    let (finished, chunks) = collect(Program::new(["true"])).await;
    assert_eq!(finished.end, End::Exited(0));
    assert_eq!((finished.stdout, finished.stderr, finished.chunks), Default::default());
    assert_eq!(finished.stdout.sha256, <[u8; 32]>::from(Sha256::digest([])));
    assert!(chunks.is_empty());
}

#[tokio::test]
async fn the_exit_code_and_the_signal_are_told_apart() {
    assert_eq!(collect(sh("exit 42")).await.0.end, End::Exited(42));
    let end = collect(sh("kill -9 $$")).await.0.end;
    assert_eq!(end, End::Signalled(9));
    assert_eq!(end.to_string(), "ended by signal 9 (SIGKILL)");
}

#[tokio::test]
async fn both_streams_come_in_the_order_of_appearance() {
    let (finished, chunks) = collect(sh("echo a; sleep 0.1; echo b >&2; sleep 0.1; echo c")).await;
    let seen: Vec<_> = chunks.iter().map(|chunk| (chunk.seq, chunk.stream, &chunk.bytes[..])).collect();
    assert_eq!(
        seen,
        [(0, Stream::Stdout, &b"a\n"[..]), (1, Stream::Stderr, &b"b\n"[..]), (2, Stream::Stdout, &b"c\n"[..])]
    );
    assert_eq!(finished.chunks, 3);
}

#[tokio::test]
async fn nothing_is_lost_when_both_streams_are_written_without_a_pause() {
    let (finished, chunks) = collect(sh("echo a; echo b >&2; echo c")).await;
    assert_eq!(bytes(&chunks, Stream::Stdout), b"a\nc\n");
    assert_eq!(bytes(&chunks, Stream::Stderr), b"b\n");
    assert_eq!((finished.stdout.total, finished.stderr.total), (4, 2));
}

#[tokio::test]
async fn the_first_bytes_arrive_while_the_program_goes_on() {
    let (sender, mut receiver) = mpsc::channel(8);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(run(sh("echo now; sleep 1000"), sender, cancel.clone()));
    let first = timeout(PLENTY, receiver.recv()).await.unwrap().unwrap();
    assert_eq!(&first.bytes[..], b"now\n");
    assert!(!running.is_finished());
    cancel.cancel();
    assert_eq!(running.await.unwrap().end, End::Cancelled);
}

#[tokio::test]
async fn bytes_that_are_no_text_pass_unharmed() {
    let all: Vec<u8> = (0..=255).collect();
    let program = Program { stdin: Some(all.clone().into()), ..Program::new(["cat"]) };
    let (_, chunks) = collect(program).await;
    assert_eq!(bytes(&chunks, Stream::Stdout), all);
}

#[tokio::test]
async fn a_chatty_program_does_not_make_thousands_of_chunks() {
    let began = Instant::now();
    let (finished, chunks) = collect(sh("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")).await;
    let lines = bytes(&chunks, Stream::Stdout).iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 5000);
    let most = began.elapsed().as_millis() / 20 + 10;
    assert!(u128::from(finished.chunks) <= most, "{} chunks, at most {most} expected", finished.chunks);
}

#[tokio::test]
async fn a_chunk_is_never_larger_than_32_kib_and_the_sequence_has_no_gaps() {
    let (finished, chunks) = collect(sh("head -c 900000 /dev/zero; head -c 300000 /dev/zero >&2")).await;
    assert!(chunks.iter().all(|chunk| !chunk.bytes.is_empty() && chunk.bytes.len() <= 32 * 1024));
    assert!(chunks.iter().map(|chunk| chunk.seq).eq(0..finished.chunks));
    assert_eq!((finished.stdout.kept, finished.stderr.kept), (900_000, 300_000));
    assert!(!finished.stdout.truncated());
}

#[tokio::test]
async fn what_is_beyond_the_cap_is_counted_but_not_kept() {
    let program = Program { max_output: 1000, ..sh("yes | head -c 5000000; echo error >&2") };
    let (finished, chunks) = collect(program).await;
    let kept = bytes(&chunks, Stream::Stdout);
    assert_eq!(kept, b"y\n".repeat(500));
    assert_eq!((finished.stdout.total, finished.stdout.kept), (5_000_000, 1000));
    assert_eq!(finished.stdout.sha256, <[u8; 32]>::from(Sha256::digest(&kept)));
    assert!(finished.stdout.truncated() && !finished.stderr.truncated());
    assert_eq!(bytes(&chunks, Stream::Stderr), b"error\n");
}

#[tokio::test]
async fn an_endless_printer_is_ended_in_time() {
    let program = Program { timeout: Duration::from_millis(300), max_output: 10_000, ..Program::new(["yes"]) };
    let (finished, chunks) = collect(program).await;
    assert_eq!(finished.end, End::TimedOut);
    assert_eq!(bytes(&chunks, Stream::Stdout).len(), 10_000);
    assert!(finished.stdout.total > 1_000_000);
    assert!(finished.took < Duration::from_secs(5), "{:?}", finished.took);
}

#[tokio::test]
async fn a_printer_of_gigabytes_takes_no_memory() {
    let before = resident();
    let (finished, _) = collect(sh("head -c 2000000000 /dev/zero")).await;
    assert_eq!((finished.end, finished.stdout.total), (End::Exited(0), 2_000_000_000));
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 * 1024, "grew by {grown} KiB"); // other tests run at the same time
}

#[tokio::test]
async fn a_slow_receiver_gets_everything() {
    let (sender, mut receiver) = mpsc::channel(1);
    let running = tokio::spawn(run(sh("head -c 600000 /dev/zero"), sender, CancellationToken::new()));
    let mut taken = 0;
    while let Some(chunk) = receiver.recv().await {
        taken += chunk.bytes.len();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(taken, 600_000);
    let finished = running.await.unwrap();
    assert_eq!((finished.end, finished.stdout.kept), (End::Exited(0), 600_000));
}

#[tokio::test]
async fn a_receiver_that_does_not_receive_holds_up_neither_timeout_nor_cancel() {
    for by_timeout in [true, false] {
        let (sender, mut receiver) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let mut program = Program { max_output: u64::MAX, ..Program::new(["yes"]) };
        if by_timeout {
            program.timeout = Duration::from_millis(100);
        } else {
            let cancel = cancel.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                cancel.cancel();
            });
        }
        let finished = timeout(PLENTY, run(program, sender, cancel)).await.unwrap();
        assert_eq!(finished.end, if by_timeout { End::TimedOut } else { End::Cancelled });
        assert!(finished.took < Duration::from_secs(5), "{:?}", finished.took);
        // The tally tells exactly what the channel took.
        let (mut kept, mut hash) = (0, Sha256::new());
        while let Ok(chunk) = receiver.try_recv() {
            kept += chunk.bytes.len() as u64;
            hash.update(&chunk.bytes);
        }
        assert_eq!(finished.stdout.kept, kept);
        assert_eq!(finished.stdout.sha256, <[u8; 32]>::from(hash.finalize()));
        assert!(finished.stdout.truncated());
    }
}

#[tokio::test]
async fn a_program_that_exited_is_told_so_even_if_nobody_takes_its_output_before_the_cancel() {
    let (sender, _receiver) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(run(sh("head -c 60000 /dev/zero; exit 3"), sender, cancel.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.is_finished());
    cancel.cancel();
    let finished = timeout(PLENTY, running).await.unwrap().unwrap();
    assert_eq!(finished.end, End::Exited(3));
    assert!(finished.stdout.truncated());
}

#[tokio::test]
async fn without_a_receiver_the_output_is_still_counted() {
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let finished = run(sh("head -c 3000000 /dev/zero"), sender, CancellationToken::new()).await;
    assert_eq!((finished.end, finished.stdout.total, finished.chunks), (End::Exited(0), 3_000_000, 0));
}

#[tokio::test]
async fn a_receiver_that_goes_away_in_the_middle_holds_nobody_up() {
    let (sender, mut receiver) = mpsc::channel(1);
    let running = tokio::spawn(run(sh("head -c 3000000 /dev/zero"), sender, CancellationToken::new()));
    receiver.recv().await.unwrap();
    drop(receiver);
    let finished = timeout(PLENTY, running).await.unwrap().unwrap();
    assert_eq!((finished.end, finished.stdout.total), (End::Exited(0), 3_000_000));
}

#[tokio::test]
async fn the_last_words_of_a_program_that_is_ended_arrive() {
    let program =
        Program { timeout: Duration::from_millis(300), ..sh("trap 'echo bye; exit 0' TERM; sleep 1000 & wait") };
    let (finished, chunks) = collect_until(program, CancellationToken::new()).await;
    assert_eq!(finished.end, End::TimedOut);
    assert_eq!(bytes(&chunks, Stream::Stdout), b"bye\n");
}

#[tokio::test]
async fn environment_and_working_directory_are_as_asked() {
    let mut program = sh("echo $GREETING; pwd; echo $HOME");
    program.env.push(("GREETING".into(), "hei".into()));
    program.cwd = Some("/usr".into());
    let (_, chunks) = collect(program).await;
    let home = std::env::var("HOME").unwrap_or_default();
    assert_eq!(bytes(&chunks, Stream::Stdout), format!("hei\n/usr\n{home}\n").into_bytes());
}

/// KiB of memory of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}
