//! `steward policy`: who may have what done, where.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use fleet::policy::{Line, difference, parse, render};
use message::method::TailFile;
use message::policy::reach::Change;
use message::policy::{Asked, Command, Decision, Policy, Request, Rules, decide};
use message::{Labels, NodeName, Token, method, order};
use serde_json::{Value, json};

use crate::args::json_arguments;
use crate::exit::{Exit, Usage};
use crate::render::paint::tame;
use crate::session::Session;
use crate::verbs::operator::Root;

/// See, try and change who may have what done on which nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    steward policy show\n  \
    steward policy check --operator admin --node \"$(hostname -s)\" --method hello\n  \
    steward policy show > policy.toml && steward policy apply policy.toml --yes")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the policy in force
    #[command(after_help = "Examples:\n  steward policy show\n  steward policy show -o json")]
    Show,
    /// Say whether somebody may have something done, and which rule decides
    ///
    /// With a file, that one is asked instead of the policy in force; with a file alone, it is only read. Exits with 0 if it
    /// may be done, 3 if not. What a node's own agent.toml takes away is not known here.
    #[command(after_help = "Examples:\n  \
        steward policy check --operator admin --node \"$(hostname -s)\" --method shellcommand -- uname -a\n  \
        steward policy check --role admin --node \"$(hostname -s)\" --method hello")]
    Check(Check),
    /// Put another policy in force: shows what it changes and for whom, and asks first
    #[command(after_help = "Example:\n  steward policy show > policy.toml && steward policy apply policy.toml --yes")]
    Apply {
        /// The rules, as TOML
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Yes, it shall be so
        #[arg(long)]
        yes: bool,
        /// Make its version higher than this: nodes that have seen a newer one than this home and the broker name it
        #[arg(long, value_name = "VERSION", default_value_t = 0)]
        above: u64,
        #[command(flatten)]
        root: Root,
    },
}

#[derive(Debug, clap::Args)]
struct Check {
    /// A policy that is not in force
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Who would order
    #[arg(long, value_name = "NAME", conflicts_with = "role")]
    operator: Option<String>,
    /// Or: anybody with this role
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Where
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,
    /// What
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// On what
    #[arg(long, value_name = "DOMAIN", default_value = order::DEFAULT_DOMAIN)]
    domain: String,
    /// As which local user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The program and its arguments; without them, a shell line is meant. Of tailfile: its arguments
    #[arg(last = true, value_name = "ARGV")]
    argv: Vec<String>,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Show => show(session).await,
        Verb::Check(check) => self::check(session, check).await,
        Verb::Apply { file, yes, above, root } => apply(session, &file, yes, above, &root).await,
    }
}

fn read(file: &Path) -> anyhow::Result<Rules> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    parse(&text).with_context(|| format!("{} is not a policy", file.display()))
}

async fn show(session: &mut Session) -> anyhow::Result<Exit> {
    let signed = session.connect().await?.policy().await?;
    if session.out.is_json() {
        let value = signed.map(|signed| {
            let Policy { version, issued, rules, .. } = signed.policy;
            json!({"version": version, "issued": issued, "signed_by": signed.sealed.seal.key, "allow": rules.allow, "deny": rules.deny})
        });
        session.out.json(&value)?;
        return Ok(Exit::Success);
    }
    let Some(signed) = signed else {
        session.out.note("This fleet has no policy: every operator may everything. `steward policy apply` makes one.");
        return Ok(Exit::Success);
    };
    let Policy { version, issued, rules, .. } = signed.policy;
    session.out.line(format!("# version {version}, of {issued}, signed by {}\n", signed.sealed.seal.key))?;
    render(&rules).lines().try_for_each(|line| session.out.line(tame(line)))?;
    Ok(Exit::Success)
}

async fn check(session: &mut Session, check: Check) -> anyhow::Result<Exit> {
    let rules = check.file.as_deref().map(read).transpose()?;
    let (Some(node), Some(wanted)) = (&check.node, &check.method) else {
        if let (Some(rules), Some(file), None, None) = (&rules, &check.file, &check.node, &check.method) {
            session.out.note(format!(
                "{} can be read: {} allow, {} deny",
                file.display(),
                rules.allow.len(),
                rules.deny.len()
            ));
            return Ok(Exit::Success);
        }
        return Err(Usage::new("what is to be checked? Name --node and --method, and --operator or --role").into());
    };
    let fleet = session.connect().await?;
    let trust = fleet.trust();
    let roles = match (&check.operator, &check.role) {
        (Some(name), _) => {
            let found = trust.operators.iter().find(|operator| operator.name == *name).ok_or_else(|| {
                let known: Vec<&str> = trust.operators.iter().map(|operator| operator.name.as_str()).collect();
                Usage::new(format!("no operator is called {name:?}; this fleet has {}", known.join(", ")))
            })?;
            found.roles.clone()
        }
        (None, Some(role)) => vec![Token::role(role.as_str())?],
        (None, None) => return Err(Usage::new("who is to be checked? Name --operator or --role").into()),
    };
    let (wanted, domain) = (Token::method(wanted.as_str())?, Token::domain(check.domain.as_str())?);
    let labels: Labels = fleet.node(node).await?.record.labels;
    let policy = match rules {
        Some(rules) => Some(Policy::new(0, fleet.context().root.clone(), bus::clock::now(), rules)),
        None => fleet.policy().await?.map(|signed| signed.policy),
    };
    let asked = asked(&check, &wanted)?;
    let request = Request {
        operator: check.operator.as_deref(),
        roles: &roles,
        node,
        labels: Some(&labels),
        method: wanted.as_str(),
        domain: domain.as_str(),
        asked: &asked,
        only_user: None,
        own_user: None,
        now: bus::clock::now(),
    };
    let decision = policy.as_ref().map_or_else(
        || Decision::Allowed { rule: "this fleet has no policy".into(), user: None },
        |policy| decide(policy, &request),
    );
    tell(session, &decision)?;
    Ok(if decision.is_denied() { Exit::TargetFailed } else { Exit::Success })
}

/// What is to be checked, as an order would ask for it.
fn asked(check: &Check, wanted: &Token) -> anyhow::Result<Asked> {
    if wanted.as_str() == method::TAILFILE {
        let mut args = json_arguments(&check.argv)?;
        if let Some(user) = &check.user {
            args.insert("user".into(), user.as_str().into());
        }
        let args = Value::Object(args);
        TailFile::read(&args)
            .map_err(|error| Usage::new(format!("{error}: say which file behind `--`: -- path=/var/log/syslog")))?;
        return Ok(Asked::of(method::TAILFILE, &args));
    }
    let mut asked = Asked::of(wanted.as_str(), &json!({"user": check.user}));
    if asked.command != Command::Nothing && !check.argv.is_empty() {
        asked.command = Command::Argv { argv: check.argv.clone(), plain: true };
    }
    if wanted.as_str() != method::SHELLCOMMAND && !check.argv.is_empty() {
        return Err(Usage::new(format!("{wanted} takes no command line: leave `-- …` out")).into());
    }
    Ok(asked)
}

fn tell(session: &mut Session, decision: &Decision) -> anyhow::Result<()> {
    let (word, rule, reason) = match decision {
        Decision::Allowed { rule, .. } => ("allowed", Some(rule), None),
        Decision::NeedsApprovals { rule, .. } => ("needs_approvals", Some(rule), None),
        Decision::Denied { rule, reason } => ("denied", rule.as_ref(), Some(reason)),
    };
    if session.out.is_json() {
        return session.out.json(&json!({
            "decision": word, "rule": rule, "reason": reason, "user": decision.user(), "approvals": decision.approvals(),
        }));
    }
    let user = decision.user().map(|user| format!(", as the local user {user}")).unwrap_or_default();
    session.out.line(match decision {
        Decision::Allowed { rule, .. } => format!("allowed by {:?}{}", tame(rule), tame(&user)),
        Decision::NeedsApprovals { rule, approvals, .. } => {
            format!("allowed by {:?}{} when {approvals} operators have signed it", tame(rule), tame(&user))
        }
        Decision::Denied { reason, .. } => format!("denied: {}", tame(reason)),
    })
}

async fn apply(session: &mut Session, file: &Path, yes: bool, above: u64, root: &Root) -> anyhow::Result<Exit> {
    let rules = read(file)?;
    let fleet = session.connect().await?;
    let before = fleet.policy().await?.map(|signed| signed.policy);
    let base = before.as_ref().map_or(0, |policy| policy.version);
    let old = before.as_ref().map(|policy| render(&policy.rules)).unwrap_or_default();
    let new = render(&rules);
    if above <= base && before.as_ref().is_some_and(|policy| policy.rules == rules) {
        if session.out.is_json() {
            session.out.json(&json!({"version": base, "changes": []}))?;
        }
        session.out.note(format!("This is the policy in force, version {base}: nothing to change."));
        return Ok(Exit::Success);
    }
    let changes = fleet.policy_changes(before.as_ref().map(|policy| &policy.rules), &rules).await?;
    for line in difference(&old, &new) {
        match line {
            Line::Same(_) => {}
            Line::New(line) => session.out.note(tame(&format!("+ {line}"))),
            Line::Old(line) => session.out.note(tame(&format!("- {line}"))),
        }
    }
    session.out.note("");
    for change in &changes {
        session.out.note(tame(&sentence(change)));
    }
    if changes.is_empty() {
        session.out.note("Nobody gains or loses anything by it, of the operators and nodes that there are.");
    }
    if !yes {
        agree("Put it in force?", "not put in force")?;
    }
    let policy = fleet.apply_policy(&rules, (base, above), root.root.as_deref()).await?;
    if session.out.is_json() {
        let changes: Vec<_> = changes.iter().map(to_json).collect();
        session.out.json(&json!({"version": policy.version, "changes": changes}))?;
    } else {
        session.out.note(format!("Version {} of the policy is in force.", policy.version));
    }
    Ok(Exit::Success)
}

fn sentence(change: &Change) -> String {
    let list = |items: &std::collections::BTreeSet<String>| items.iter().cloned().collect::<Vec<_>>().join(", ");
    let conditions = if change.conditions.is_empty() { String::new() } else { format!(" ({})", change.conditions) };
    let verb = if change.gained { "gains" } else { "loses" };
    format!("{} {verb} {}{conditions} on {}", change.operator, list(&change.methods), list(&change.nodes))
}

fn to_json(change: &Change) -> serde_json::Value {
    json!({
        "operator": change.operator, "change": if change.gained { "gains" } else { "loses" },
        "methods": change.methods, "conditions": change.conditions, "nodes": change.nodes,
    })
}

/// Asks a person; a script has to say --yes.
pub(crate) fn agree(question: &str, otherwise: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Usage::new("nobody is here to be asked: say --yes if it shall be so").into());
    }
    let mut err = std::io::stderr();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Usage::new(otherwise).into()) }
}
