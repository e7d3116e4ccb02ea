//! What the program tells of itself while it runs: to stderr, as much as was asked for; and what a service warns of, to
//! the fleet's error log.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use message::{Complaint, errorlog};
use tokio::sync::mpsc::{Receiver, Sender};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Color};

/// Overrides `-v` with a filter such as `debug` or `bus=trace,warn`.
pub(crate) const VARIABLE: &str = "STEWARD_LOG";

/// So many complaints wait to be told; what is beyond is counted.
const COMPLAINTS_MAX: usize = 256;

/// Starts logging. A filter that makes no sense is told, and not used. Of a service comes back what it warns of, whatever is shown.
pub(crate) fn init(cli: &Cli) -> Option<Receiver<Complaint>> {
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
    // A second subscriber can only be there in tests; theirs counts then.
    let complaints = if cli.verb.is_service() {
        let (complaining, complaints) = Complaining::new();
        let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
        let _ = registry.with(complaining.with_filter(complained_of())).try_init();
        Some(complaints)
    } else {
        let _ = tracing_subscriber::registry().with(lines.without_time().with_filter(filter)).try_init();
        None
    };
    if let Some(error) = complaint {
        tracing::warn!(
            "{VARIABLE} is not used, since it makes no sense: {error}; write it like `debug` or `bus=trace,warn`"
        );
    }
    complaints
}

/// What the fleet's error log is told.
fn complained_of() -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("async_nats", LevelFilter::ERROR)
}

/// Takes what the program warns of to where it is told. Never waits: it may be called from anywhere.
struct Complaining {
    to: Sender<Complaint>,
    left_out: AtomicU64,
}

impl Complaining {
    fn new() -> (Self, Receiver<Complaint>) {
        let (to, complaints) = tokio::sync::mpsc::channel(COMPLAINTS_MAX);
        (Self { to, left_out: AtomicU64::new(0) }, complaints)
    }
}

impl<S: Subscriber> Layer<S> for Complaining {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => errorlog::Level::Error,
            _ => errorlog::Level::Warn,
        };
        let Ok(place) = self.to.try_reserve() else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut said = Said::default();
        event.record(&mut said);
        place.send(Complaint {
            at: bus::clock::now(),
            level,
            place: event.metadata().target(),
            message: said.message,
            fields: said.fields,
            left_out: self.left_out.swap(0, Ordering::Relaxed),
        });
    }
}

/// The fields of an event.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
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
    fn what_is_warned_of_is_told_with_its_fields_and_bounded() {
        let (complaining, mut complaints) = Complaining::new();
        let subscriber = tracing_subscriber::registry().with(complaining.with_filter(complained_of()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("all is well");
            tracing::warn!(node = %"ship1", tries = 3, "the link is {}", "down");
            for _ in 0..COMPLAINTS_MAX {
                tracing::error!(error = "full", "no room");
            }
        });
        let first = complaints.try_recv().unwrap();
        assert_eq!((first.level, first.message.as_str()), (errorlog::Level::Warn, "the link is down"));
        assert_eq!(first.fields, [("node", "ship1".to_owned()), ("tries", "3".to_owned())]);
        assert_eq!(first.place, "cli::logging::tests");
        let mut others = 0;
        while let Ok(other) = complaints.try_recv() {
            assert_eq!((other.level, other.left_out), (errorlog::Level::Error, 0));
            others += 1;
        }
        assert_eq!(others, COMPLAINTS_MAX - 1, "the last one found no place");
    }

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
