//! The decision: may this operator have this done here, now? Pure.
//!
//! An allow needs to be certain, a deny does not: where something cannot be told (which programs a shell line starts, which
//! labels a node has whose record was never read), an `allow` that asks for it does not hold, and a `deny` does.

use serde_json::Value;

use super::{Policy, Rule};
use crate::method::{APPROVE, CANCEL, HELLO, HTTPGET, PROCESSES, SHELLCOMMAND, TAILFILE, TailFile};
use crate::name::{NodeName, Token};
use crate::selector::Labels;
use crate::time::Timestamp;

/// What an order would start on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// No program: a method that is built into the agent.
    Nothing,
    /// A program of the node's own, in `methods.d`.
    Method,
    /// A shell line or a script (or nonsense): what it starts cannot be told from outside.
    Line,
    /// Exactly this program.
    Argv {
        /// The program and its arguments.
        argv: Vec<String>,
        /// In the environment and the directory that it gets by itself. Whoever chooses `PATH` chooses the program.
        plain: bool,
    },
}

/// What an order asks for, as far as a policy looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it would start.
    pub command: Command,
    /// The local user that it names.
    pub user: Option<String>,
}

impl Asked {
    /// Reads it from an order's arguments.
    pub fn of(method: &str, args: &Value) -> Self {
        let user = || args.get("user").and_then(Value::as_str).map(ToOwned::to_owned);
        match method {
            SHELLCOMMAND => Self { command: shell_command(args).unwrap_or(Command::Line), user: user() },
            TAILFILE => {
                let tail = TailFile::read(args).map(|tail| Command::Argv { argv: tail.argv(), plain: true });
                Self { command: tail.unwrap_or(Command::Line), user: user() }
            }
            _ if starts_nothing(method) => Self { command: Command::Nothing, user: None },
            _ => Self { command: Command::Method, user: None },
        }
    }
}

/// Whether a method is built into the agent, and starts no program.
pub(super) fn starts_nothing(method: &str) -> bool {
    [HELLO, PROCESSES, HTTPGET, CANCEL, APPROVE].contains(&method)
}

fn shell_command(args: &Value) -> Option<Command> {
    let given = |name: &str| args.get(name).is_some_and(|value| !value.is_null());
    if given("line") || given("script") {
        return None;
    }
    let argv: Option<Vec<String>> =
        args.get("argv")?.as_array()?.iter().map(|word| word.as_str().map(ToOwned::to_owned)).collect();
    let no_env = args.get("env").is_none_or(|env| env.as_object().is_some_and(serde_json::Map::is_empty));
    Some(Command::Argv { argv: argv?, plain: no_env && !given("cwd") })
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The name of the one who orders; `None` for anybody with these roles.
    pub operator: Option<&'a str>,
    /// What the operator is.
    pub roles: &'a [Token],
    /// Where.
    pub node: &'a NodeName,
    /// What operators signed about the node; `None` where that is not known.
    pub labels: Option<&'a Labels>,
    /// What is to be done.
    pub method: &'a str,
    /// What it is about.
    pub domain: &'a str,
    /// What it would start.
    pub asked: &'a Asked,
    /// The only local user that commands may run as here, where the node itself says so.
    pub only_user: Option<&'a str>,
    /// The local user that a command runs as if nobody names one; `None` where that is not known.
    pub own_user: Option<&'a str>,
    /// The fleet's time.
    pub now: Timestamp,
}

/// What follows from a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may be done.
    Allowed {
        /// The rule that allows it.
        rule: String,
        /// The local user to run as; `None` for the one that commands run as anyway.
        user: Option<String>,
    },
    /// It may be done when so many operators have signed, the one who orders counted.
    NeedsApprovals {
        /// The rule that would allow it.
        rule: String,
        /// The local user to run as.
        user: Option<String>,
        /// How many.
        approvals: u32,
    },
    /// It may not be done.
    Denied {
        /// The rule that denies it; `None` where none allows it.
        rule: Option<String>,
        /// Why: a sentence.
        reason: String,
    },
}

impl Decision {
    /// Whether it may be done at all, be it with approvals.
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }

    /// How many operators must have signed; `None` where it may not be done at all.
    pub const fn approvals(&self) -> Option<u32> {
        match self {
            Self::Allowed { .. } => Some(1),
            Self::NeedsApprovals { approvals, .. } => Some(*approvals),
            Self::Denied { .. } => None,
        }
    }

    /// The local user to run as, where one is named.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Allowed { user, .. } | Self::NeedsApprovals { user, .. } => user.as_deref(),
            Self::Denied { .. } => None,
        }
    }
}

/// Decides. Of several rules that allow it, the one that asks for the fewest approvals counts, and of these the first.
pub fn decide(policy: &Policy, request: &Request<'_>) -> Decision {
    let mut best: Option<(&Rule, Option<&str>)> = None;
    let mut denied: Option<&Rule> = None;
    let mut near: Option<(&Rule, &str)> = None;
    for rule in policy.rules.allow.iter().filter(|rule| rule.is_about(request, false)) {
        if let Some(missed) = rule.missed(request) {
            near.get_or_insert((rule, missed));
            continue;
        }
        let Ok(user) = rule.user(request) else {
            near.get_or_insert((rule, "as this local user"));
            continue;
        };
        if let Some(deny) = policy.rules.deny.iter().find(|deny| deny.denies(request, user)) {
            denied.get_or_insert(deny);
        } else if best.is_none_or(|(known, _)| rule.approvals < known.approvals) {
            best = Some((rule, user));
        }
    }
    match (best, denied) {
        (Some((rule, user)), _) => {
            let (name, user) = (rule.name.clone(), user.map(ToOwned::to_owned));
            if rule.approvals > 1 {
                Decision::NeedsApprovals { rule: name, user, approvals: rule.approvals }
            } else {
                Decision::Allowed { rule: name, user }
            }
        }
        (None, Some(deny)) => Decision::Denied {
            rule: Some(deny.name.clone()),
            reason: format!("the policy's rule {:?} denies it to {}", deny.name, who(request)),
        },
        (None, None) => {
            let almost =
                near.map_or_else(String::new, |(rule, missed)| format!("; {:?} does, but not {missed}", rule.name));
            let reason = format!(
                "no rule of the policy allows {} to have {}/{} done on {}{almost}",
                who(request),
                request.method,
                request.domain,
                request.node
            );
            Decision::Denied { rule: None, reason }
        }
    }
}

fn who(request: &Request<'_>) -> String {
    let roles: Vec<&str> = request.roles.iter().map(Token::as_str).collect();
    let roles = if roles.is_empty() { "no role".to_owned() } else { roles.join(", ") };
    request.operator.map_or_else(|| format!("anybody with {roles}"), |name| format!("{name} ({roles})"))
}

impl Rule {
    /// Whether it speaks of this operator.
    pub(super) fn is_of(&self, operator: Option<&str>, roles: &[Token]) -> bool {
        let has_role = self.roles.iter().any(|glob| roles.iter().any(|role| glob.matches(role.as_str())));
        // Of somebody without a name only what holds for everybody is certain.
        let named = |glob: &super::Glob| operator.map_or(glob.as_str() == "*", |name| glob.matches(name));
        has_role || self.operators.iter().any(named)
    }

    /// Whether it speaks of this node; `unknown` is what counts where the labels are not known.
    pub(super) fn is_on(&self, node: &NodeName, labels: Option<&Labels>, unknown: bool) -> bool {
        let meant = |selector: &crate::Selector| labels.map_or(unknown, |labels| selector.matches(labels));
        self.nodes.as_ref().is_none_or(meant)
            && (self.names.is_empty() || self.names.iter().any(|glob| glob.matches_node(node)))
    }

    /// Whether it speaks of this operator, node, method and domain.
    fn is_about(&self, request: &Request<'_>, unknown: bool) -> bool {
        let meant = |globs: &[super::Glob], text: &str| globs.is_empty() || globs.iter().any(|glob| glob.matches(text));
        self.is_of(request.operator, request.roles)
            && self.is_on(request.node, request.labels, unknown)
            && meant(&self.methods, request.method)
            && meant(&self.domains, request.domain)
    }

    /// Which of the other conditions for an allow does not hold, in words.
    fn missed(&self, request: &Request<'_>) -> Option<&'static str> {
        let argv_fits = self.argv.is_empty()
            || match &request.asked.command {
                Command::Argv { argv, plain: true } => self.argv.iter().any(|pattern| pattern.matches(argv)),
                _ => false,
            };
        if !argv_fits {
            return Some(match &request.asked.command {
                Command::Argv { plain: false, .. } => "with an environment or a directory of the order's own",
                Command::Argv { .. } => "with these arguments",
                _ => "for anything but a program with its arguments",
            });
        }
        let in_time = self.times.as_ref().is_none_or(|times| times.contains(request.now));
        (!in_time).then_some("at this hour")
    }

    /// The local user that this rule lets it run as; an error if there is none.
    fn user<'a>(&'a self, request: &Request<'a>) -> Result<Option<&'a str>, ()> {
        if request.asked.command == Command::Nothing {
            return Ok(None);
        }
        let allowed = |user: &str| {
            (self.users.is_empty() || self.users.iter().any(|known| known == user))
                && request.only_user.is_none_or(|only| only == user)
        };
        match request.asked.user.as_deref().or(request.only_user) {
            Some(user) if allowed(user) => Ok(Some(user)),
            Some(_) => Err(()),
            None => Ok(self.users.first().map(String::as_str)),
        }
    }

    /// Whether it denies what would run as `user`.
    fn denies(&self, request: &Request<'_>, user: Option<&str>) -> bool {
        let argv = self.argv.is_empty()
            || match &request.asked.command {
                Command::Argv { argv, .. } => self.argv.iter().any(|pattern| pattern.matches(argv)),
                Command::Line => true,
                Command::Nothing | Command::Method => false,
            };
        let as_user = self.users.is_empty()
            || (request.asked.command != Command::Nothing
                && user.or(request.own_user).is_none_or(|user| self.users.iter().any(|known| known == user)));
        let in_time = self.times.as_ref().is_none_or(|times| times.contains(request.now));
        self.is_about(request, true) && argv && as_user && in_time
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
