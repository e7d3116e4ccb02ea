//! What the program tells of itself while it runs: to stderr, as much as was asked for.

use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Color};

/// Overrides `-v` with a filter such as `debug` or `bus=trace,warn`.
pub(crate) const VARIABLE: &str = "STEWARD_LOG";

/// Starts logging. A filter that makes no sense is told, and not used.
pub(crate) fn init(cli: &Cli) {
    let level = level(cli.global.verbose, cli.global.quiet, cli.verb.is_service());
    let wanted = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    // Targets and levels are enough: filters on fields would take a regular expression engine along.
    let usual = || Targets::from_str(level).unwrap_or_default();
    let (filter, complaint) = match wanted.as_deref().map(Targets::from_str) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (usual(), Some(error)),
        None => (usual(), None),
    };
    let ansi = match cli.global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::IsTerminal::is_terminal(&std::io::stderr())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    // A second subscriber can only be there in tests; theirs counts then.
    let _ = if cli.verb.is_service() {
        registry.with(lines).try_init()
    } else {
        registry.with(lines.without_time()).try_init()
    };
    if let Some(error) = complaint {
        tracing::warn!(
            "{VARIABLE} is not used, since it makes no sense: {error}; write it like `debug` or `bus=trace,warn`"
        );
    }
}

fn level(verbose: u8, quiet: bool, service: bool) -> &'static str {
    match (verbose, quiet, service) {
        (0, true, _) => "error",
        (0, false, false) => "warn,async_nats=error",
        (0, false, true) => "info,async_nats=error",
        (1, ..) => "info",
        (2, ..) => "debug,async_nats=info",
        _ => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_tell_more_and_quiet_ones_less() {
        assert_eq!(level(0, false, false), "warn,async_nats=error");
        assert_eq!(level(0, false, true), "info,async_nats=error");
        assert_eq!(level(0, true, true), "error");
        assert_eq!(level(1, false, false), "info");
        assert_eq!(level(2, true, false), "debug,async_nats=info");
        for verbose in 0..4 {
            assert!(Targets::from_str(level(verbose, false, true)).is_ok());
        }
    }
}
