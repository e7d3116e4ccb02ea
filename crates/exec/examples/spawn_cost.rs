//! What a run costs on top of what any start of a process costs: `true` over and over, one after the other.
//!
//! `cargo run --release -p steward-exec --example spawn_cost [ROUNDS]`. The ways take turns in short rounds, so that a busy
//! machine disturbs them alike.
#![allow(clippy::print_stdout)]

use std::process::Command;
use std::time::Instant;

use exec::{End, Program, run};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const BATCH: u32 = 50;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: u32 = std::env::args().nth(1).map_or(Ok(30), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut bare, mut piped, mut ours, mut task) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(measure(|| (0..BATCH).try_for_each(|_| Command::new("true").spawn()?.wait().map(drop)))?);
        piped.push(measure(|| (0..BATCH).try_for_each(|_| Command::new("true").output().map(drop)))?);
        ours.push(measure(|| {
            runtime.block_on(runs());
            Ok(())
        })?);
        task.push(measure(|| Ok(runtime.block_on(async { tokio::spawn(runs()).await })?))?);
    }
    let bare = median(bare);
    println!("each `true` after the other, median of {rounds} rounds of {BATCH}:");
    for (name, rate) in [
        ("bare spawn + wait", bare),
        ("std output(), two pipes", median(piped)),
        ("exec::run, block_on", median(ours)),
        ("exec::run, in a task", median(task)),
    ] {
        println!("{name:25} {rate:6.0}/s  {:.2} of bare", rate / bare);
    }
    Ok(())
}

/// Programs per second.
fn measure(batch: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<f64> {
    let began = Instant::now();
    batch()?;
    Ok(f64::from(BATCH) / began.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn runs() {
    for _ in 0..BATCH {
        let (sender, _receiver) = mpsc::channel(16);
        let finished = run(Program::new(["true"]), sender, CancellationToken::new()).await;
        assert_eq!(finished.end, End::Exited(0));
    }
}
