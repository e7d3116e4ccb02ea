//! What all methods share that are programs: the keeper runs them, and this listens.
//!
//! A piece of output is forgotten by the keeper only when it is safe here: confirmed by the broker, or in the journal.

use std::future::pending;
use std::time::Duration;

use keeper::{End, Event, Finished, Id, Program, Run, Tally};
use message::{OrderId, Outcome, OutputTally, State};

use super::tail::looked_on;
use super::{Ended, Execution};
use crate::outbox::Output;

/// How often the keeper is told what is safe by now.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Under what the keeper holds the program of an order.
pub(crate) fn keeper_id(order: &OrderId) -> Id {
    Id(*order.as_bytes())
}

/// Runs the program of an order.
pub(super) async fn run_program(program: &Program, execution: Execution<'_>) -> Option<Ended> {
    if execution.cancel.is_cancelled() {
        return Some(Ended { state: State::Cancelled, reason: None, outcome: Outcome::default() });
    }
    match execution.processes.keeper().start(keeper_id(&execution.order.id), program).await {
        Ok(run) => follow(run, execution).await,
        Err(error) => Some(Ended::failed(error.to_string())),
    }
}

/// Goes on with the program of an order that an earlier run of the agent began.
pub(crate) async fn adopt(execution: Execution<'_>) -> Option<Ended> {
    match execution.processes.keeper().attach(keeper_id(&execution.order.id)).await {
        Some(run) => follow(run, execution).await,
        None => Some(interrupted(&execution.order.id, execution.output).await),
    }
}

async fn follow(mut run: Run, execution: Execution<'_>) -> Option<Ended> {
    let Execution { order, output, cancel, leave, .. } = execution;
    let end = run.ender();
    // Beside all else: a full outbox must not delay the end.
    let cancelled = async {
        cancel.cancelled().await;
        end();
        pending::<()>().await
    };
    let mut lost = None;
    tokio::select! {
        biased;
        // What is not safe yet, the keeper still has.
        () = leave.cancelled() => None,
        () = cancelled => None,
        finished = pass_on(&mut run, output, &mut lost) => Some(match finished {
            Some(finished) => looked_on(order, ended(finished, lost)),
            None => interrupted(&order.id, output).await,
        }),
    }
}

/// Passes on what it prints, until it has ended; `None` when the keeper is lost.
async fn pass_on(run: &mut Run, output: &Output, lost: &mut Option<String>) -> Option<Finished> {
    let mut safe = 0;
    loop {
        let event = tokio::select! {
            biased;
            event = run.next() => event?,
            () = tokio::time::sleep(TELL_EVERY), if safe < output.count() => {
                safe = output.safe();
                run.taken(safe);
                continue;
            }
        };
        match event {
            Event::Ended(finished) => {
                output.resume_at(finished.pieces);
                return Some(finished);
            }
            Event::Output { number, is_stderr, bytes } => {
                // The same piece has the same number, and with it the same message id, for whichever run of the agent.
                output.resume_at(number);
                if let Err(error) = output.send(is_stderr, bytes).await {
                    lost.get_or_insert_with(|| error.to_string());
                }
                safe = output.safe();
                run.taken(safe);
            }
        }
    }
}

/// The keeper is lost, and nobody will ever know how the program ends: what can be found of it is ended.
async fn interrupted(order: &OrderId, output: &Output) -> Ended {
    let ended = keeper::end_orphans(vec![keeper_id(order)]).await;
    tracing::warn!(%order, ended, "the keeper went down while a command ran");
    Ended {
        state: State::Interrupted,
        reason: Some("the keeper of the agent's programs went down while it ran; it was not run again".into()),
        outcome: Outcome { output_messages: output.count(), ..Outcome::default() },
    }
}

/// How a program's end reads as the end of an order.
fn ended(finished: Finished, lost: Option<String>) -> Ended {
    let (state, reason, exit_code, signal) = match finished.end {
        End::Exited { code: 0 } => (State::Succeeded, None, Some(0), None),
        End::Exited { code } => (State::Failed, None, Some(code), None),
        End::Signalled { signal } => {
            (State::Failed, Some(format!("it was ended by signal {signal}")), None, Some(signal))
        }
        End::TimedOut => (
            State::TimedOut,
            Some("it took longer than its time-out; it and all it had started were ended".into()),
            None,
            None,
        ),
        End::Cancelled => (State::Cancelled, None, None, None),
        End::Stopped => {
            let reason = "the keeper of the agent's programs was stopped while it ran, and ended it";
            (State::Interrupted, Some(reason.into()), None, None)
        }
        End::NotStarted { reason } => (State::Failed, Some(reason), None, None),
        End::Unknown => (State::Failed, Some("it ended in a way that this version has no word for".into()), None, None),
    };
    let outcome = Outcome {
        exit_code,
        signal,
        stdout: Some(tally(finished.stdout)),
        stderr: Some(tally(finished.stderr)),
        output_messages: finished.pieces,
        data: finished.answer.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
    };
    let reason = lost.map(|error| format!("its output could not be kept: {error}")).or(finished.trouble).or(reason);
    Ended { state, reason, outcome }
}

fn tally(tally: Tally) -> OutputTally {
    OutputTally { bytes: tally.bytes, total_bytes: tally.total_bytes, sha256: tally.sha256 }
}
