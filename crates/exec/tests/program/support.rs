//! What the tests share: a program of one shell line, its output, and a look at who is left.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use exec::{Chunk, Finished, Program, Stream, run};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, even on a machine that is busy with other things.
pub(crate) const PLENTY: Duration = Duration::from_secs(30);

/// A shell line, with a time-out that no healthy test meets.
pub(crate) fn sh(line: &str) -> Program {
    Program { timeout: PLENTY, ..Program::new(["sh", "-c", line]) }
}

/// Runs it with a receiver that takes everything at once.
pub(crate) async fn collect(program: Program) -> (Finished, Vec<Chunk>) {
    collect_until(program, CancellationToken::new()).await
}

/// The same, to be cancelled.
pub(crate) async fn collect_until(program: Program, cancel: CancellationToken) -> (Finished, Vec<Chunk>) {
    let (sender, mut receiver) = mpsc::channel(64);
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            taken.push(chunk);
        }
        taken
    });
    let finished = run(program, sender, cancel).await;
    (finished, taking.await.unwrap())
}

/// All bytes of one stream.
pub(crate) fn bytes(chunks: &[Chunk], stream: Stream) -> Vec<u8> {
    chunks.iter().filter(|chunk| chunk.stream == stream).flat_map(|chunk| chunk.bytes.to_vec()).collect()
}

/// A variable that a program and all it starts carry, and no other program does.
pub(crate) struct Family(String);

impl Family {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The program, made one of the family.
    pub(crate) fn adopt(&self, mut program: Program) -> Program {
        program.env.push(("TEST_FAMILY".into(), (&self.0).into()));
        program
    }

    /// How many of them are alive now.
    pub(crate) fn size(&self) -> usize {
        let variable = format!("TEST_FAMILY={}", self.0);
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
        })
        .count()
    }

    /// Waits until at least so many of them are alive.
    pub(crate) async fn grow_to(&self, size: usize) {
        until("the family grows", || self.size() >= size).await;
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Children of this process that are zombies, by number.
pub(crate) fn zombies() -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        rest.starts_with(&format!(" Z {} ", std::process::id()))
    })
    .collect()
}

/// Waits for a condition; fails when it has not come true in plenty of time.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PLENTY;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
