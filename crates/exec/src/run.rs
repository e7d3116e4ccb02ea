//! The course of one run, from start to true end: a table of contents of this crate.
//!
//! Decides when a program is over; how to start, read and end it is the business of the other modules. Never blocks the
//! executor for longer than one spawn takes, and never waits for a receiver beyond time-out or cancel.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ending::Whom;
use crate::input::Input;
use crate::output::Output;
use crate::program::{Chunk, End, Finished, Program};
use crate::start::{self, Started};

/// How long, after a program has exited, others may go on holding its stdout and stderr before they are ended.
pub const DRAIN: Duration = Duration::from_millis(150);

/// How long a receiver has, after a time-out or cancel, to take what the tree printed last.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Runs a program to its true end.
///
/// What it prints goes to `chunks` while it is printed; nothing more comes after this returns. A slow receiver slows the program
/// down, but neither time-out nor cancel; a receiver that is gone is no error: the rest is only counted. If `cancel` is cancelled
/// already, nothing is started. Needs a tokio runtime with I/O and time enabled.
///
/// Nothing that goes wrong is an `Err`: it is told by [`Finished::end`]. Dropping the future kills the whole tree.
pub async fn run(program: Program, chunks: mpsc::Sender<Chunk>, cancel: CancellationToken) -> Finished {
    if cancel.is_cancelled() {
        return Finished::without_running(End::Cancelled);
    }
    let Started { running, input, stdout, stderr } = match start::start(&program).await {
        Ok(started) => started,
        Err(reason) => return Finished::without_running(End::NotStarted(reason)),
    };
    let began = Instant::now();
    let mut output = Output::new(stdout, stderr, program.max_output, chunks);
    let mut input = Input::new(input, program.stdin);
    let cut = async {
        tokio::select! {
            () = sleep(program.timeout) => End::TimedOut,
            () = cancel.cancelled() => End::Cancelled,
        }
    };
    tokio::pin!(cut);

    let cut_short = tokio::select! {
        biased;
        () = running.exited() => None,
        end = &mut cut => Some(end),
        () = async { tokio::join!(output.pump_forever(), input.feed()); } => None,
    };
    drop(input);

    let (end, took, ended) = if let Some(end) = cut_short {
        let ending = running.end(Whom::Everybody, program.grace);
        let (ended, _) = tokio::select! {
            ended = ending => ended,
            () = output.pump_forever() => Default::default(),
        };
        let took = began.elapsed();
        let _ = timeout(LAST_WORDS, output.drain(LAST_WORDS)).await;
        (end, took, ended)
    } else {
        let took = began.elapsed();
        let held = tokio::select! {
            held = output.drain(DRAIN) => held,
            _ = &mut cut => true,
        };
        let holders = if held { output.pipes() } else { Vec::new() };
        let (end, ended) = running.finish(holders, program.grace).await;
        (end, took, ended)
    };
    let (stdout, stderr, chunks) = output.close();
    Finished { end, stdout, stderr, chunks, leftovers: ended.leftovers, survivors: ended.survivors, took }
}
