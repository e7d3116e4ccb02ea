//! Methods: how an order is executed. Built-in ones, and any executable in `methods.d`.
//!
//! What flows in is an order that was verified, accepted and journaled as running; what flows out is output as it
//! appears and, once, how it ended. A method must never touch the journal or the bus itself.

mod external;
mod httpget;
mod program;
mod shell;
mod tail;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use message::{Order, Outcome, Secrets, State, method};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::outbox::Output;
use crate::process::Processes;
use crate::run::Identity;

use program::run_program;
pub(crate) use program::{adopt, keeper_id};

/// How an execution ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// A terminal state.
    pub(crate) state: State,
    /// Why, where the state needs a reason.
    pub(crate) reason: Option<String>,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

impl Ended {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self { state: State::Failed, reason: Some(reason.into()), outcome: Outcome::default() }
    }

    fn with_data(data: serde_json::Value) -> Self {
        Self { state: State::Succeeded, reason: None, outcome: Outcome { data: Some(data), ..Outcome::default() } }
    }
}

/// How an order of some method is executed here.
#[derive(Debug, Clone)]
pub(crate) enum Method {
    ShellCommand,
    Hello,
    HttpGet,
    TailFile,
    Processes,
    /// An executable in `methods.d`.
    External(PathBuf),
}

/// Everything an execution may use.
pub(crate) struct Execution<'a> {
    pub(crate) order: &'a Order,
    /// The exact signed body.
    pub(crate) body: &'a str,
    /// What was sealed to this node alone, opened.
    pub(crate) secrets: Secrets,
    /// The local user to run programs as; `None` for the agent's own.
    pub(crate) user: Option<String>,
    pub(crate) output: &'a mut Output,
    pub(crate) cancel: CancellationToken,
    pub(crate) identity: &'a Identity,
    pub(crate) processes: &'a Arc<Processes>,
    /// What is cancelled when the agent goes and its programs stay.
    pub(crate) leave: CancellationToken,
}

impl Method {
    /// The method of this name.
    ///
    /// # Errors
    /// A sentence that names the methods that there are.
    pub(crate) fn find(name: &str, methods_dir: &Path) -> Result<Self, String> {
        match name {
            method::SHELLCOMMAND => return Ok(Self::ShellCommand),
            method::HELLO => return Ok(Self::Hello),
            method::HTTPGET => return Ok(Self::HttpGet),
            method::TAILFILE => return Ok(Self::TailFile),
            method::PROCESSES => return Ok(Self::Processes),
            _ => {}
        }
        // A method's name is one subject token: without a dot it cannot climb, without a slash it is one file.
        let path = methods_dir.join(name);
        if !name.contains('/') && path.is_file() {
            return Ok(Self::External(path));
        }
        let mut known = vec![
            method::SHELLCOMMAND.to_owned(),
            method::HELLO.to_owned(),
            method::HTTPGET.to_owned(),
            method::TAILFILE.to_owned(),
            method::PROCESSES.to_owned(),
            // Not executed here: they are decided where orders are taken in.
            method::CANCEL.to_owned(),
            method::APPROVE.to_owned(),
        ];
        let files = std::fs::read_dir(methods_dir).into_iter().flatten().flatten();
        known.extend(files.filter_map(|file| file.file_name().into_string().ok()));
        Err(format!(
            "this node has no method {name:?}; it has {}. An executable {} would add it",
            known.join(", "),
            path.display()
        ))
    }

    /// Whether it runs a program of whoever orders, which secrets can be laid out for.
    pub(crate) const fn takes_secrets(&self) -> bool {
        matches!(self, Self::ShellCommand | Self::External(_))
    }

    /// Executes an order. Ends by itself at the order's time-out or when cancelled. `None`: the agent goes, and the program
    /// that was executed goes on without it.
    pub(crate) async fn execute(&self, execution: Execution<'_>) -> Option<Ended> {
        Some(match self {
            Self::ShellCommand => return shell::execute(execution).await,
            Self::External(path) => return external::execute(path, execution).await,
            Self::TailFile => return tail::execute(execution).await,
            Self::HttpGet => httpget::execute(execution).await,
            Self::Hello => Ended::with_data(json!({
                "node": execution.identity.me.name,
                "version": crate::VERSION,
                "at": bus::clock::now(),
                "uptime_s": execution.identity.started.elapsed().as_secs(),
                "instance": execution.identity.instance,
                "boot": execution.identity.boot,
                "policy": execution.processes.policy_version(),
                "discarded": execution.processes.counters().discards(),
                "repeated": execution.processes.counters().repeated.load(std::sync::atomic::Ordering::Relaxed),
            })),
            Self::Processes => Ended::with_data(json!(execution.processes.list())),
        })
    }
}

/// What every program learns about its order.
fn order_environment(order: &Order) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    [
        ("STEWARD_NODE", order.to.name.to_string()),
        ("STEWARD_JOB", order.job.to_string()),
        (keeper::ORDER_VARIABLE, order.id.to_string()),
        ("STEWARD_METHOD", order.method.to_string()),
        ("STEWARD_DOMAIN", order.domain.to_string()),
        // What the agent was told by whoever started it is not for what an order starts: empty counts as unset.
        ("STEWARD_PARENT", String::new()),
        ("STEWARD_LOG", String::new()),
        // Nor are the secrets of an order that started this agent; the keeper sets it where there are own ones.
        (keeper::SECRETS_VARIABLE, String::new()),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}

/// Secrets as the keeper takes them.
fn laid_out(secrets: &Secrets) -> Vec<keeper::Secret> {
    let secret = |(name, value): (&str, &[u8])| keeper::Secret { name: name.to_owned(), value: value.to_vec().into() };
    secrets.iter().map(secret).collect()
}
