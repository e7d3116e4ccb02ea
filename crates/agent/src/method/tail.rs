//! `tailfile`: the end of a file and what is added to it, as long as the order lasts. The system's own `tail` does it, as the
//! user and within the limits of any program.

use keeper::Program;
use message::method::{TAILFILE, TailFile};
use message::{Order, State};

use super::{Ended, Execution, order_environment, run_program};

pub(super) async fn execute(execution: Execution<'_>) -> Option<Ended> {
    let order = execution.order;
    let args = match TailFile::read(&order.args) {
        Ok(args) => args,
        Err(reason) => return Some(Ended::failed(reason)),
    };
    let program = Program {
        argv: args.argv().into_iter().map(Into::into).collect(),
        script: None,
        env: order_environment(order),
        cwd: Some("/".into()),
        user: execution.user.clone(),
        stdin: None,
        timeout: order.timeout(),
        max_output: order.max_output_bytes,
        answer_max: 0,
        secrets: Vec::new(),
    };
    run_program(&program, execution).await
}

/// Whoever follows a file looks on until the time-out, which is no failure then.
pub(super) fn looked_on(order: &Order, ended: Ended) -> Ended {
    let follows = order.method.as_str() == TAILFILE && TailFile::read(&order.args).is_ok_and(|args| args.follow);
    if follows && ended.state == State::TimedOut {
        return Ended { state: State::Succeeded, reason: None, ..ended };
    }
    ended
}
