//! What the machine can do at best: the limits that Steward is measured beside.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bus::{Bus, Headers, clock};
use bytes::Bytes;

use crate::system::BenchError;

/// How many times each limit is taken.
const SAMPLES: usize = 300;

/// The share `part` (0 to 1) of the samples is not slower than this.
pub(crate) fn quantile(samples: &mut [Duration], part: f64) -> Duration {
    samples.sort_unstable();
    // An index below the length of a list that fits into memory.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = ((samples.len() as f64 - 1.0) * part).round() as usize;
    samples.get(index).copied().unwrap_or_default()
}

pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

pub(crate) fn round(figure: f64, digits: i32) -> f64 {
    let shift = 10_f64.powi(digits);
    (figure * shift).round() / shift
}

/// Starting `true` and waiting for its end, one at a time.
pub(crate) fn spawn() -> Result<Vec<Duration>, BenchError> {
    (0..SAMPLES)
        .map(|_| {
            let begun = Instant::now();
            Command::new("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            Ok(begun.elapsed())
        })
        .collect()
}

/// Writing 4 KiB and waiting until they are on disk, one at a time.
pub(crate) fn fsync(dir: &Path) -> Result<Vec<Duration>, BenchError> {
    let path = dir.join("fsync.limit");
    let mut file = File::create(&path)?;
    let block = [7_u8; 4096];
    let samples = (0..SAMPLES)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect();
    std::fs::remove_file(&path)?;
    samples
}

/// Publishing 256 B and waiting for the broker's acknowledgement, one at a time.
pub(crate) async fn publish(bus: &Bus) -> Result<Vec<Duration>, BenchError> {
    let payload = Bytes::from(vec![b'x'; 256]);
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        bus.publish("central.event.bench.limit", Headers::from(clock::message_id()), payload.clone()).await?;
        samples.push(begun.elapsed());
    }
    Ok(samples)
}
