//! `httpget`: fetches a URL. The body is the output, status and headers are the data.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use message::method::HttpGet;
use message::{Outcome, OutputTally, State};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Ended, Execution};
use crate::http::{self, chain};

/// The largest piece of a body that is sent in one message.
const PIECE_BYTES: usize = 32 * 1024;

pub(super) async fn execute(execution: Execution<'_>) -> Ended {
    let order = execution.order;
    let args: HttpGet = match serde_json::from_value(order.args.clone()) {
        Ok(args) => args,
        Err(error) => return Ended::failed(format!("the arguments are not those of httpget: {error}")),
    };
    let cancel = execution.cancel.clone();
    let timeout = order.timeout();
    let max_bytes = order.max_output_bytes;
    tokio::select! {
        () = cancel.cancelled() => Ended { state: State::Cancelled, reason: None, outcome: Outcome::default() },
        fetched = tokio::time::timeout(timeout, fetch(&args, max_bytes, execution)) => match fetched {
            Ok(Ok(ended)) => ended,
            Ok(Err(reason)) => Ended::failed(reason),
            Err(_) => Ended {
                state: State::TimedOut,
                reason: Some(format!("{} did not answer within the time-out", args.url)),
                outcome: Outcome::default(),
            },
        },
    }
}

async fn fetch(args: &HttpGet, max_bytes: u64, execution: Execution<'_>) -> Result<Ended, String> {
    let request = http::get(&args.url, args.headers.iter())?;
    let mut response = request.send().await.map_err(|error| chain(&error))?;
    let status = response.status();
    let data = json!({
        "status": status.as_u16(),
        "headers": response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect::<std::collections::BTreeMap<_, _>>(),
    });
    let announced = response.content_length().unwrap_or(0);
    let (mut kept, mut total) = (0_u64, 0_u64);
    let mut digest = Sha256::new();
    while let Some(mut piece) = response.chunk().await.map_err(|error| chain(&error))? {
        total += piece.len() as u64;
        let room = usize::try_from(max_bytes - kept).unwrap_or(usize::MAX);
        piece.truncate(room);
        kept += piece.len() as u64;
        digest.update(&piece);
        while !piece.is_empty() {
            let part: Bytes = piece.split_to(piece.len().min(PIECE_BYTES));
            execution.output.send(false, part).await.map_err(|error| error.to_string())?;
        }
        // Whoever sends more than is wanted is not read to the end.
        if total > max_bytes {
            break;
        }
    }
    let stdout =
        OutputTally { bytes: kept, total_bytes: total.max(announced), sha256: HEXLOWER.encode(&digest.finalize()) };
    let failed = status.is_client_error() || status.is_server_error();
    Ok(Ended {
        state: if failed { State::Failed } else { State::Succeeded },
        reason: failed.then(|| format!("{} answered {status}", args.url)),
        outcome: Outcome {
            stdout: Some(stdout),
            output_messages: execution.output.count(),
            data: Some(data),
            ..Outcome::default()
        },
    })
}
