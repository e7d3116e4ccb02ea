//! How much memory agents and station need while a run goes on.

use serde::Serialize;

use crate::process::rss_bytes;
use crate::system::System;

/// What was measured of one kind of process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    /// How many times it was looked at.
    pub samples: usize,
    /// The least.
    pub min_bytes: u64,
    /// Half of the samples are not larger.
    pub median_bytes: u64,
    /// The most.
    pub max_bytes: u64,
    /// The median of the first tenth of the run.
    pub first_tenth_bytes: u64,
    /// The median of the last tenth of the run.
    pub last_tenth_bytes: u64,
}

impl Memory {
    fn of(samples: &[u64]) -> Self {
        let tenth = (samples.len() / 10).max(1).min(samples.len());
        Self {
            samples: samples.len(),
            min_bytes: samples.iter().copied().min().unwrap_or(0),
            median_bytes: median(samples),
            max_bytes: samples.iter().copied().max().unwrap_or(0),
            first_tenth_bytes: median(samples.get(..tenth).unwrap_or_default()),
            last_tenth_bytes: median(samples.get(samples.len() - tenth..).unwrap_or_default()),
        }
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// Collects samples.
#[derive(Default)]
pub(crate) struct Samples {
    agents: Vec<u64>,
    station: Vec<u64>,
}

impl Samples {
    /// Looks once: the mean of all agents that run, and the station.
    pub(crate) fn take(&mut self, system: &System) {
        let (agents, station) = system.pids();
        let agents: Vec<u64> = agents.into_iter().filter_map(rss_bytes).collect();
        if let Some(mean) = agents.iter().sum::<u64>().checked_div(u64::try_from(agents.len()).unwrap_or(0)) {
            self.agents.push(mean);
        }
        self.station.extend(station.and_then(rss_bytes));
    }

    pub(crate) fn agents(&self) -> Memory {
        Memory::of(&self.agents)
    }

    pub(crate) fn station(&self) -> Memory {
        Memory::of(&self.station)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_run_are_compared_by_their_medians() {
        let samples: Vec<u64> = (1..=100).collect();
        let memory = Memory::of(&samples);
        assert_eq!((memory.min_bytes, memory.median_bytes, memory.max_bytes), (1, 51, 100));
        assert_eq!((memory.first_tenth_bytes, memory.last_tenth_bytes), (6, 96));
        assert_eq!(Memory::of(&[]).samples, 0);
    }
}
