//! A small generator of random numbers that is the same everywhere: a seed tells a whole run.
//!
//! SplitMix64. Not for keys, ids or anything that nobody may guess.

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The one that this seed makes.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        // The bias is far below what a schedule of faults could notice.
        low + self.bits() % span.max(1)
    }

    /// An index below `length`; 0 for an empty list.
    pub fn below(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        usize::try_from(self.between(0, length.saturating_sub(1))).unwrap_or(0)
    }

    /// One of several, each as likely as its weight says; 0 when all weights are 0.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.between(1, weights.iter().sum::<u64>().max(1));
        for (index, weight) in weights.iter().enumerate() {
            if left <= *weight {
                return index;
            }
            left -= weight;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_all_that_follows_and_ranges_are_kept() {
        let (mut one, mut other) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            assert_eq!(one.bits(), other.bits());
            assert!((3..=5).contains(&one.between(3, 5)));
            assert!(one.below(4) < 4);
            assert_eq!(one.weighted(&[0, 1, 0]), 1);
            other.bits();
            other.bits();
            other.bits();
        }
        assert_eq!(one.below(0), 0);
    }
}
