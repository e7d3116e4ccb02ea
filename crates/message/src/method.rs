//! What the built-in methods take: the shapes of `args`, shared by those who order and those who execute.
//!
//! They are read strictly, like orders: an argument that is not understood is refused, never ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Runs a program, a shell line or a script.
pub const SHELLCOMMAND: &str = "shellcommand";
/// Answers with who and how it is; `steward ping`.
pub const HELLO: &str = "hello";
/// Fetches a URL.
pub const HTTPGET: &str = "httpget";
/// Shows the end of a file, and what is added to it.
pub const TAILFILE: &str = "tailfile";
/// Lists the node's processes (message handlers); `steward ps`.
pub const PROCESSES: &str = "processes";

/// Takes back what a job has ordered; `steward job cancel`. Decided where orders are taken in, so that it never waits
/// behind what it is to end.
pub const CANCEL: &str = "cancel";
/// Approves an order that the policy holds until more operators have signed it; `steward job approve`. Decided where orders are
/// taken in, like [`CANCEL`].
pub const APPROVE: &str = "approve";
/// The domain of what is about Steward itself, such as [`CANCEL`].
pub const STEWARD_DOMAIN: &str = "steward";

/// The arguments of [`CANCEL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The job whose order is taken back.
    pub job: crate::id::JobId,
}

/// What [`CANCEL`] answers: how it found the order, and how the order stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job whose order was taken back.
    pub job: crate::id::JobId,
    /// `queued` means that the order had not arrived: when it does, it ends `cancelled`.
    pub found: crate::state::State,
    /// `cancelled`, unless it had ended before or ended by itself meanwhile.
    pub now: crate::state::State,
}

/// The arguments of [`APPROVE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// The job.
    pub job: crate::id::JobId,
    /// The node's order of it.
    pub order: crate::id::OrderId,
    /// SHA-256 over the order's exact bytes, in hexadecimal: what is approved is what was read, and nothing else.
    pub sha256: String,
}

/// What [`APPROVE`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approved {
    /// The job whose order was approved.
    pub job: crate::id::JobId,
    /// How the order was found.
    pub found: crate::state::State,
    /// How many operators have signed it now, the one who ordered counted.
    pub signed: u32,
    /// How many must have.
    pub needed: u32,
}

/// The arguments of [`SHELLCOMMAND`]: exactly one of `argv`, `line` and `script`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShellCommand {
    /// A program and its arguments; no shell in between.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub argv: Option<Vec<String>>,
    /// A line for `/bin/sh -c`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<String>,
    /// The text of a script; its `#!` line says what runs it, without one `/bin/sh`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub script: Option<String>,
    /// Arguments for the script.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub script_args: Vec<String>,
    /// Environment variables, added to the agent's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub env: BTreeMap<String, String>,
    /// The working directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cwd: Option<String>,
    /// The local user to run as.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// What is on standard input, in base64; nothing without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stdin_base64: Option<String>,
}

/// The arguments of [`TAILFILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailFile {
    /// The file: an absolute path without `..`.
    pub path: String,
    /// So many of its last lines.
    #[serde(default = "tail_lines")]
    pub lines: u32,
    /// Whether to go on with what is added, also under the same name after a rotation, until the time-out.
    #[serde(default = "tail_follows")]
    pub follow: bool,
    /// The local user to read it as.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
}

const fn tail_lines() -> u32 {
    10
}

const fn tail_follows() -> bool {
    true
}

impl TailFile {
    /// Reads an order's arguments.
    ///
    /// # Errors
    /// A sentence that says what is wrong with them.
    pub fn read(args: &serde_json::Value) -> Result<Self, String> {
        let read: Self = serde_json::from_value(args.clone())
            .map_err(|error| format!("the arguments are not those of tailfile: {error}"))?;
        // A policy may allow what lies below a directory.
        if !read.path.starts_with('/') || read.path.split('/').any(|part| part == "..") {
            return Err(format!("path has to be absolute, without `..`; it is {:?}", read.path));
        }
        Ok(read)
    }

    /// The program that does it, and its arguments: what a policy looks at, and what is executed.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec!["tail".to_owned(), "-n".to_owned(), self.lines.to_string()];
        if self.follow {
            argv.push("-F".to_owned());
        }
        argv.extend(["--".to_owned(), self.path.clone()]);
        argv
    }
}

/// The arguments of [`HTTPGET`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpGet {
    /// What to fetch: `http://…` or `https://…`.
    pub url: String,
    /// Headers of the request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub headers: BTreeMap<String, String>,
}

/// One process of a node, as `steward ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The subject that it receives on.
    pub subject: String,
    /// The subject that it replies on; `*` stands for the job.
    pub reply: String,
    /// `idle`, `running`, `restarting`, `following`, …
    pub state: String,
    /// Messages handled to an end.
    pub handled: u64,
    /// Those of them that did not succeed.
    pub failed: u64,
    /// How often the handler broke down and was started again.
    pub restarts: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Since when it is in this state.
    pub since: crate::time::Timestamp,
}
