//! External methods: an executable in `methods.d` reads the order as JSON on standard input and writes its answer.
//!
//! Its exit code says how it went, as for any program. Standard output that is one JSON value becomes the `data`
//! of the outcome as well.

use std::path::Path;

use bytes::Bytes;
use keeper::Program;
use message::reply::DATA_BYTES_MAX;

use super::{Ended, Execution, laid_out, order_environment, run_program};

pub(super) async fn execute(path: &Path, execution: Execution<'_>) -> Option<Ended> {
    let order = execution.order;
    let program = Program {
        argv: vec![path.into()],
        env: order_environment(order),
        user: execution.user.clone(),
        stdin: Some(Bytes::copy_from_slice(execution.body.as_bytes())),
        timeout: order.timeout(),
        max_output: order.max_output_bytes,
        answer_max: DATA_BYTES_MAX,
        secrets: laid_out(&execution.secrets),
        ..Program::default()
    };
    run_program(&program, execution).await
}
