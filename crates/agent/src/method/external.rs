//! External methods: an executable in `methods.d` reads the order as JSON on standard input and writes its answer.
//!
//! Its exit code says how it went, as for any program. Standard output that is one JSON value becomes the `data`
//! of the outcome as well.

use std::path::Path;

use bytes::Bytes;
use message::reply::DATA_BYTES_MAX;

use super::{Ended, Execution, order_environment, pass_on};

pub(super) async fn execute(path: &Path, execution: Execution<'_>) -> Ended {
    let order = execution.order;
    let mut program = exec::Program::new([path]);
    program.env = order_environment(order);
    program.stdin = Some(Bytes::copy_from_slice(execution.body.as_bytes()));
    program.timeout = order.timeout();
    program.max_output = order.max_output_bytes;

    // The answer is passed on as it appears, and kept beside it as long as it can still be data.
    let (chunks, mut received) = tokio::sync::mpsc::channel::<exec::Chunk>(8);
    let (forward, mut forwarded) = tokio::sync::mpsc::channel::<exec::Chunk>(8);
    let collect = async move {
        let mut answer = Some(Vec::new());
        while let Some(chunk) = received.recv().await {
            if chunk.stream == exec::Stream::Stdout
                && let Some(kept) = &mut answer
            {
                kept.extend_from_slice(&chunk.bytes);
                if kept.len() > DATA_BYTES_MAX {
                    answer = None;
                }
            }
            if forward.send(chunk).await.is_err() {
                break;
            }
        }
        answer
    };
    let output = execution.output;
    let mut lost = None;
    let send = async {
        while let Some(chunk) = forwarded.recv().await {
            pass_on(output, chunk, &mut lost).await;
        }
    };
    let (finished, answer, ()) = tokio::join!(exec::run(program, chunks, execution.cancel), collect, send);
    let mut ended = super::ended(&finished, output.count(), lost);
    ended.outcome.data = answer.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    ended
}
