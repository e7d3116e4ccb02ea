//! How fast lines of a file at the edge are in a file at the centre, and what that costs.
//!
//! The whole path: an agent that follows the file, its journal, the broker, the station's receiver with its place on disk. The lines
//! are those of a web server's access log, made by a generator with a seed.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::process::Command;

use crate::rest::{cpu_ticks, ticks_per_s};
use crate::system::{BenchError, System, rss_bytes};

/// The unit that is measured.
const UNIT: &str = "edge1";
/// What the agent may have resident meanwhile.
const RSS_LIMIT_BYTES: u64 = 32 << 20;
/// Which share of the input may be on the wire.
const WIRE_LIMIT: f64 = 0.2;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct EventsFigures {
    /// How many lines.
    pub lines: u64,
    /// How long they are together.
    pub input_bytes: u64,
    /// From the first look at the file until the last line is in the receiver's.
    pub seconds: f64,
    /// `lines / seconds`.
    pub lines_per_s: f64,
    /// What the agent used of a processor meanwhile, in seconds.
    pub agent_cpu_s: f64,
    /// The same of the station, which receives.
    pub station_cpu_s: f64,
    /// The same of the broker.
    pub broker_cpu_s: f64,
    /// The most that the agent had resident.
    pub agent_rss_max_bytes: u64,
    /// The limit for it.
    pub agent_rss_limit_bytes: u64,
    /// What the broker stored of it: as much as was on the wire, but for the frames of TCP and IP.
    pub stored_bytes: u64,
    /// `stored_bytes / input_bytes`.
    pub stored_share: f64,
    /// The limit for it.
    pub stored_share_limit: f64,
    /// Whether what arrived is what was written, byte for byte.
    pub identical: bool,
    /// What is not as in a fleet.
    pub left_out: Vec<&'static str>,
}

/// Measures `lines`.
///
/// # Errors
/// [`BenchError`] when the system does not start, or not everything arrives.
pub async fn events(lines: u64) -> Result<EventsFigures, BenchError> {
    let dir = tempfile::Builder::new().prefix("steward-bench-events-").tempdir()?;
    let (input, out) = (dir.path().join("access.log"), dir.path().join("out"));
    let input_bytes = write_log(&input, lines)?;
    let config = dir.path().join("station.toml");
    let text = format!("[[receive]]\nmethod = \"syslogforwarding\"\nfile = {:?}\n", out.join("{from}.log"));
    std::fs::write(&config, text)?;
    let system = System::up_with_station(&config).await?;
    let measured = measure(&system, dir.path(), &input, input_bytes, lines).await;
    system.stop().await;
    measured
}

async fn measure(
    system: &System,
    dir: &Path,
    input: &Path,
    input_bytes: u64,
    lines: u64,
) -> Result<EventsFigures, BenchError> {
    let agent_toml = dir.join("agent.toml");
    let text = format!("[[event]]\nmethod = \"syslogforwarding\"\ndomain = \"nginx\"\nfile = {input:?}\n");
    std::fs::write(&agent_toml, text)?;
    let gone = |what: &str| BenchError::System(format!("its {what} is not found"));
    let station = system.station_pid().ok_or_else(|| gone("station"))?;
    let broker = system.broker_pid().ok_or_else(|| gone("broker"))?;
    let before = (cpu_ticks(station)?, cpu_ticks(broker)?);
    let mut agent = Command::new(std::env::current_exe()?)
        .arg("--home")
        .arg(system.dir())
        .args(["agent", "--name", UNIT, "--config"])
        .arg(&agent_toml)
        .kill_on_drop(true)
        .spawn()?;
    let pid = agent.id().ok_or_else(|| gone("agent"))?;
    let arrived = dir.join(format!("out/{UNIT}.log"));
    let (began, mut rss, mut first) = (Instant::now(), 0, None);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        rss = rss.max(rss_bytes(pid)?);
        let there = std::fs::metadata(&arrived).map_or(0, |met| met.len());
        if there > 0 && first.is_none() {
            first = Some(began.elapsed());
        }
        if there >= input_bytes {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(BenchError::System(format!(
                "{there} of {input_bytes} bytes arrived within {} s",
                PATIENCE.as_secs()
            )));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let per_s = f64::from(ticks_per_s());
    // Counts of ticks and bytes are exact as numbers with a fraction.
    #[allow(clippy::cast_precision_loss)]
    let (of, share) = (|ticks: u64| ticks as f64 / per_s, |part: u64, of: u64| part as f64 / of.max(1) as f64);
    let agent_cpu_s = of(cpu_ticks(pid)?);
    let (station_cpu_s, broker_cpu_s) = (of(cpu_ticks(station)? - before.0), of(cpu_ticks(broker)? - before.1));
    let stored_bytes = system.fleet.stored_events_bytes().await?;
    agent.start_kill()?;
    agent.wait().await?;
    #[allow(clippy::cast_precision_loss)]
    Ok(EventsFigures {
        lines,
        input_bytes,
        seconds: (seconds * 1e3).round() / 1e3,
        lines_per_s: (lines as f64 / seconds).round(),
        agent_cpu_s,
        station_cpu_s,
        broker_cpu_s,
        agent_rss_max_bytes: rss,
        agent_rss_limit_bytes: RSS_LIMIT_BYTES,
        stored_bytes,
        stored_share: (share(stored_bytes, input_bytes) * 1e4).round() / 1e4,
        stored_share_limit: WIRE_LIMIT,
        identical: std::fs::read(input)? == std::fs::read(&arrived)?,
        left_out: vec![
            "agent, broker and station share one machine and its disk",
            "the time includes the agent's start",
        ],
    })
}

/// Writes an access log as web servers do; the same for the same number of lines. Returns its length.
///
/// # Errors
/// [`BenchError`] when the file cannot be written.
pub fn write_log(path: &Path, lines: u64) -> Result<u64, BenchError> {
    const PATHS: [&str; 12] = [
        "/",
        "/index.html",
        "/assets/app.css",
        "/assets/app.js",
        "/api/v1/orders",
        "/api/v1/orders/",
        "/login",
        "/images/logo.png",
        "/favicon.ico",
        "/search?q=",
        "/health",
        "/products/",
    ];
    const AGENTS: [&str; 6] = [
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:131.0) Gecko/20100101 Firefox/131.0",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148",
        "curl/8.9.1",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Prometheus/2.54.1",
    ];
    let mut state: u64 = 0x5eed;
    let mut random = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut bytes = 0;
    for number in 0..lines {
        let pick =
            |from: &[&'static str], at: u64| from.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or_default();
        let (path_at, agent_at) = (random(12), random(6));
        let tail =
            if path_at == 5 || path_at == 9 || path_at == 11 { random(100_000).to_string() } else { String::new() };
        let status = [200, 200, 200, 200, 200, 304, 404, 500]
            .get(usize::try_from(random(8)).unwrap_or(0))
            .copied()
            .unwrap_or(200);
        let line = format!(
            "203.0.{}.{} - - [22/Nov/2026:{:02}:{:02}:{:02} +0000] \"GET {}{tail} HTTP/1.1\" {status} {} \"-\" \"{}\" {:.3}\n",
            random(4) + 110,
            random(256),
            number / 360_000 % 24,
            number / 6000 % 60,
            number / 100 % 60,
            pick(&PATHS, path_at),
            random(60_000),
            pick(&AGENTS, agent_at),
            f64::from(u32::try_from(random(900)).unwrap_or(0)) / 1000.0,
        );
        file.write_all(line.as_bytes())?;
        bytes += line.len() as u64;
    }
    file.flush()?;
    Ok(bytes)
}
