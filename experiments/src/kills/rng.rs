//! Dice that fall the same way for the same seed.

use std::time::Duration;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Dice of a seed; streams of one seed fall differently.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.throw();
        rng
    }

    /// The next 64 bits.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in 0..1.
    pub fn fraction(&mut self) -> f64 {
        (self.throw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True so often in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.throw() % 100 < percent
    }

    /// Uniform between nothing and `longest`.
    pub fn within(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.fraction())
    }

    /// One of several, each as often as its weight says.
    ///
    /// # Panics
    /// Without any weight.
    pub fn one_of<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let total: u64 = choices.iter().map(|&(weight, _)| weight).sum();
        let mut dice = self.throw() % total;
        for &(weight, choice) in choices {
            if dice < weight {
                return choice;
            }
            dice -= weight;
        }
        unreachable!("the dice are below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_falls_the_same_way_and_weights_are_kept() {
        let falls = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            [(); 8].map(|()| rng.throw())
        };
        assert_eq!(falls(1, 2), falls(1, 2));
        assert_ne!(falls(1, 2), falls(1, 3));
        assert_ne!(falls(1, 2), falls(2, 2));
        let mut rng = Rng::new(7, 0);
        let hits = (0..10_000).filter(|_| rng.one_of(&[(3, true), (1, false)]));
        assert!((7_300..7_700).contains(&hits.count()));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.fraction())));
    }
}
