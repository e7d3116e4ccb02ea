//! What an agent costs at rest, how large the program is, and how long a whole `steward run` takes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::process::Command;

use crate::limits::{ms, quantile};
use crate::system::{BenchError, NODE, System, rss_bytes};

/// How many times `steward run` is measured.
const RUNS: usize = 30;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct RestFigures {
    /// For how long the agent was left alone.
    pub seconds: u64,
    /// The agent's resident memory after that.
    pub agent_rss_bytes: u64,
    /// The goal for it.
    pub agent_rss_limit_bytes: u64,
    /// The share of one core that the agent used meanwhile.
    pub agent_cpu_percent: f64,
    /// The goal for it.
    pub agent_cpu_limit_percent: f64,
    /// The program's size.
    pub binary_bytes: u64,
    /// The goal for it.
    pub binary_limit_bytes: u64,
    /// One whole process `steward run NODE -- true`, p50.
    pub run_p50_ms: f64,
    /// The goal for it.
    pub run_limit_ms: f64,
}

/// Measures an agent that is left alone for `rest`.
///
/// # Errors
/// [`BenchError`] when the system does not start or its agent is not found.
pub async fn rest(rest: Duration) -> Result<RestFigures, BenchError> {
    let (system, _) = System::start().await?;
    let measured = measure(&system, rest).await;
    system.stop().await;
    measured
}

async fn measure(system: &System, rest: Duration) -> Result<RestFigures, BenchError> {
    let exe = std::env::current_exe()?;
    let mut runs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begun = Instant::now();
        let status = Command::new(&exe)
            .arg("--home")
            .arg(system.dir())
            .args(["run", NODE, "--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await?;
        if !status.success() {
            return Err(BenchError::Order(status.to_string()));
        }
        runs.push(begun.elapsed());
    }
    let pid = system.agent_pid().ok_or_else(|| BenchError::System("its agent is not found".into()))?;
    let before = cpu_ticks(pid)?;
    tokio::time::sleep(rest).await;
    let used = cpu_ticks(pid)?.saturating_sub(before);
    // A count of ticks is exact as a number with a fraction.
    #[allow(clippy::cast_precision_loss)]
    let cpu_s = used as f64 / f64::from(ticks_per_s());
    Ok(RestFigures {
        seconds: rest.as_secs(),
        agent_rss_bytes: rss_bytes(pid)?,
        agent_rss_limit_bytes: 10 << 20,
        agent_cpu_percent: (cpu_s / rest.as_secs_f64().max(1.0) * 1e4).round() / 100.0,
        agent_cpu_limit_percent: 0.1,
        binary_bytes: std::fs::metadata(&exe)?.len(),
        binary_limit_bytes: 14_000_000,
        run_p50_ms: ms(quantile(&mut runs, 0.5)),
        run_limit_ms: 60.0,
    })
}

pub(crate) fn ticks_per_s() -> u32 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100)
}

pub(crate) fn cpu_ticks(pid: u32) -> Result<u64, BenchError> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let numbers = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // Fields 14 and 15 of proc(5), counted from the state, which is field 3.
    Ok(numbers.split(' ').skip(11).take(2).filter_map(|number| number.parse::<u64>().ok()).sum())
}
