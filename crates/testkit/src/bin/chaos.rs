//! `bench/chaos`: one run of faults, its figures, and an exit code that says whether all promises were kept.

use std::io::Write;
use std::process::ExitCode;

use message::units;
use testkit::plan::Settings;
use testkit::run::{Report, run};
use testkit::system::program;

const HELP: &str = "\
Break a running system in every way, and check that no order was lost, run twice or left unaccounted for.

Usage: bench/chaos [--seed N] [--orders N] [--nodes N] [--brokers N] [--faults N] [--clients N] [--for DUR] [--drops] [--no-resume] [--keep] [-o json]

  --seed N      what jobs and faults are drawn from [default: 1]
  --orders N    how many orders, one for each (job, node) [default: 2000]
  --nodes N     how many nodes [default: 5]
  --brokers N   how many brokers: 1, or 3 that keep three copies of everything [default: 1]
  --faults N    how many faults [default: 20]
  --clients N   how many clients order at once, besides one that runs `steward run` [default: 3]
  --for DUR     spread it over this time, like 10m [default: as fast as it goes]
  --drops       lose live orders too while the link stays up
  --no-resume   do not send at the end what killed clients have left unsent: Steward has to do it
  --keep        keep all files of a good run as well
  -o json       print one JSON object

Exit code 0: every promise was kept. 3: a breach; all files are kept, and said where. 1: the run could not be finished.

Example: bench/chaos --seed 7 --orders 20000 --nodes 20 --faults 200
";

struct Asked {
    settings: Settings,
    json: bool,
    keep: bool,
}

fn main() -> ExitCode {
    let asked = match read(std::env::args().skip(1)) {
        Ok(Some(asked)) => asked,
        Ok(None) => return print(HELP, ExitCode::SUCCESS),
        Err(said) => return complain(&format!("{said}; see bench/chaos --help"), 2),
    };
    // One thread: the kernel ties what is started to the thread that started it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no run without threads and timers: {error}"), 1),
    };
    let mut say = |what: String| {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{what}");
    };
    let ran = runtime.block_on(async {
        let program = program()?;
        tokio::select! {
            ran = Box::pin(run(&program, &asked.settings, asked.keep, &mut say)) => ran,
            () = stopped() => Err(testkit::system::KitError::Wrong("stopped by a signal".into())),
        }
    });
    match ran {
        Err(error) => complain(&error.to_string(), 1),
        Ok(report) => {
            let text = if asked.json { json(&report) } else { human(&report) };
            print(&text, if report.is_good() { ExitCode::SUCCESS } else { ExitCode::from(3) })
        }
    }
}

/// Ctrl-C, or SIGTERM. Where signals cannot be heard, nothing comes of it: the watchdog cleans up then.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        heard = tokio::signal::ctrl_c() => if heard.is_err() { std::future::pending().await },
        _ = term.recv() => {}
    }
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Asked>, String> {
    let mut asked = Asked { settings: Settings::default(), json: false, keep: false };
    let settings = &mut asked.settings;
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        let number = |text: String| text.parse::<usize>().map_err(|_| format!("{text:?} is no number"));
        match flag.as_str() {
            "--seed" => settings.seed = value()?.parse().map_err(|_| "the seed is no number".to_owned())?,
            "--orders" => settings.orders = number(value()?)?.max(10),
            "--nodes" => settings.nodes = number(value()?)?.max(1),
            "--brokers" => match number(value()?)? {
                brokers @ (1 | 3) => settings.brokers = brokers,
                other => return Err(format!("{other} brokers are neither one alone nor a cluster of 3")),
            },
            "--faults" => settings.faults = number(value()?)?,
            "--clients" => settings.clients = number(value()?)?.max(1),
            "--for" => settings.lasts = Some(units::parse_duration(&value()?).map_err(|error| error.to_string())?),
            "--drops" => settings.drops = true,
            "--no-resume" => settings.resume = false,
            "--keep" => asked.keep = true,
            "-o" | "--output" => match value()?.as_str() {
                "json" => asked.json = true,
                "human" => asked.json = false,
                other => return Err(format!("{other:?} is no output: json or human")),
            },
            "-h" | "--help" => return Ok(None),
            other => return Err(format!("what is {other:?}?")),
        }
    }
    Ok(Some(asked))
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_default() + "\n"
}

fn human(report: &Report) -> String {
    // Everything that the JSON holds, a line each.
    let value = serde_json::to_value(report).unwrap_or_default();
    let mut lines: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.as_str() != "breaches")
        .map(|(name, value)| format!("{name:18} {value}"))
        .collect();
    lines.extend(report.breaches.iter().map(|breach| format!("BREACH {:?}: {}", breach.kind, breach.text)));
    lines.push(if report.is_good() { "every promise was kept".into() } else { "NOT every promise was kept".into() });
    if let Some(artefacts) = &report.artefacts {
        lines.push(format!("all files are in {}", artefacts.display()));
    }
    lines.join("\n") + "\n"
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "bench/chaos: {text}");
    ExitCode::from(code)
}
