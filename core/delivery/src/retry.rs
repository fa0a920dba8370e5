//! When to try again: twice as long after each failure, up to a bound, spread by chance so that what failed
//! together does not come back together.

use std::time::Duration;

/// The times between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first: Duration::from_secs(30), max: Duration::from_secs(3600) }
    }
}

impl Retry {
    /// Time from the end of this attempt (from 1) to the next one; `chance` is any number.
    pub fn after(&self, attempt: u32, chance: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.max);
        // 80 to 120 per cent.
        doubled.mul_f64(0.8 + 0.4 * f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_bound_and_spreads() {
        let retry = Retry { first: Duration::from_secs(10), max: Duration::from_secs(100) };
        let middle = u32::MAX / 2;
        let seconds: Vec<u64> = [1, 2, 3, 4, 5, 40, u32::MAX]
            .map(|attempt| retry.after(attempt, middle).as_secs_f64().round() as u64)
            .into();
        assert_eq!(seconds, [10, 20, 40, 80, 100, 100, 100]);
        assert_eq!(retry.after(1, 0), Duration::from_secs(8));
        assert_eq!(retry.after(1, u32::MAX), Duration::from_secs(12));
    }
}
