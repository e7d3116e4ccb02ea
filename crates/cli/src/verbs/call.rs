//! `steward call`: any method of a node.

use message::Token;
use message::order::DEFAULT_DOMAIN;
use serde_json::Value;

use super::run::{Ordering, What, order_and_wait};
use crate::args::{Target, Traits, json_arguments, method_domain};
use crate::exit::{Exit, Usage};
use crate::session::Session;

/// Call a method of nodes.
///
/// Arguments are written key=value: a value that is JSON is taken as such, anything else as text. With --all, -l or
/// -w, TARGET may be left out. `steward ps NODE` shows which methods a node has. Exit codes are those of `steward run`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "steward call TARGET METHOD[/DOMAIN] [KEY=VALUE…] [FLAGS]\n       steward call --all METHOD[/DOMAIN] [KEY=VALUE…] [FLAGS]",
    after_help = "Examples:\n  \
        steward call --all hello\n  \
        steward call '*' processes/steward -o json\n  \
        steward call ship1 tailfile path=/var/log/syslog --timeout 10m\n  \
        steward call \"$(hostname -s)\" httpget url=http://127.0.0.1:8420/healthz"
)]
pub(crate) struct Args {
    /// Which nodes, what to call, and with which arguments
    #[arg(value_name = "TARGET METHOD[/DOMAIN] KEY=VALUE", required = true)]
    words: Vec<String>,

    #[command(flatten)]
    traits: Traits,

    /// Every node of the fleet
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    ordering: Ordering,
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let Words { target, method, arguments } = words(&args.words, args.all || args.traits.are_said())?;
    let selection = Target { target, traits: args.traits, all: args.all }.selection("call", &format!(" {method}"))?;
    let (method, domain) = method_domain(&method)?;
    let domain = match domain {
        Some(domain) => domain,
        None => Token::domain(DEFAULT_DOMAIN)?,
    };
    let what = What { method, domain, args: Value::Object(json_arguments(&arguments)?) };
    order_and_wait(session, &selection, what, &args.ordering).await
}

#[derive(Debug, PartialEq, Eq)]
struct Words {
    target: Option<String>,
    method: String,
    arguments: Vec<String>,
}

/// Tells target, method and arguments apart. With --all a first word without a second one that could be a method is
/// the method.
fn words(words: &[String], all: bool) -> Result<Words, Usage> {
    let is_argument = |word: &String| word.contains('=');
    let (target, rest) = match words {
        [target, method, ..] if !is_argument(method) => (Some(target.clone()), &words[1..]),
        _ if all => (None, words),
        [target, ..] => {
            return Err(Usage::new(format!(
                "what is to be called? Name a method behind the target: `steward call {target} hello`; \
                 `steward ps NODE` shows which methods a node has"
            )));
        }
        [] => (None, words),
    };
    match rest {
        [method, arguments @ ..] => Ok(Words { target, method: method.clone(), arguments: arguments.to_vec() }),
        [] => Err(Usage::new("what is to be called? Name a method: `steward call --all hello`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str, all: bool) -> Option<(Option<String>, String, usize)> {
        let line: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        words(&line, all).ok().map(|words| (words.target, words.method, words.arguments.len()))
    }

    #[test]
    fn target_method_and_arguments_are_told_apart() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told("ship1 httpget url=x a=b", false), Some((some("ship1"), "httpget".into(), 2)));
        assert_eq!(told("ship1 hello", false), Some((some("ship1"), "hello".into(), 0)));
        assert_eq!(told("httpget url=x", true), Some((None, "httpget".into(), 1)));
        assert_eq!(told("hello", true), Some((None, "hello".into(), 0)));
        assert_eq!(told("ship1 httpget url=x", true), Some((some("ship1"), "httpget".into(), 1)));
        assert_eq!(told("ship1", false), None);
        assert_eq!(told("httpget url=x", false), None);
    }
}
