//! Message sizes as a distribution, and the generator that draws from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `4096`; `1k-64k`, evenly; `2k:70,20k:25,1m-2m:5`, by weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sizes {
    text: String,
    ranges: Vec<(u64, u64, f64)>,
}

/// Largest message, octets.
const OCTETS_MAX: u64 = 256 << 20;

impl Default for Sizes {
    fn default() -> Self {
        Self { text: "4096".to_owned(), ranges: vec![(4096, 4096, 1.0)] }
    }
}

impl Sizes {
    /// One size.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let whole: f64 = self.ranges.iter().map(|(_, _, weight)| weight).sum();
        let mut at = random.share() * whole;
        for &(low, high, weight) in &self.ranges {
            if at < weight {
                return low + random.below(high - low + 1);
            }
            at -= weight;
        }
        self.ranges.last().map_or(4096, |&(low, _, _)| low)
    }

    /// The largest that can be drawn.
    pub fn octets_max(&self) -> u64 {
        self.ranges.iter().map(|&(_, high, _)| high).max().unwrap_or_default()
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size; write 4096, 1k-64k, or 2k:70,20k:25,1m-2m:5");
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (range, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight: f64 = weight.parse().map_err(|_| bad())?;
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let (low, high) = (octets(low).ok_or_else(bad)?, octets(high).ok_or_else(bad)?);
            if low > high || high > OCTETS_MAX || !(weight.is_finite() && weight > 0.0) {
                return Err(bad());
            }
            ranges.push((low, high, weight));
        }
        Ok(Self { text: text.to_owned(), ranges })
    }
}

impl TryFrom<String> for Sizes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Sizes> for String {
    fn from(sizes: Sizes) -> Self {
        sizes.text
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn octets(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let (digits, unit) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1024),
        None => text.strip_suffix('m').map_or((text.as_str(), 1), |digits| (digits, 1024 * 1024)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// SplitMix64: the same seed gives the same load.
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// From 0 up to, but not, 1.
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions() {
        let mut random = Random(7);
        let sizes: Sizes = "2k:70,20k-30k:25,1m:5".parse().unwrap();
        let (mut small, mut middle, mut large) = (0, 0, 0);
        for _ in 0..10_000 {
            match sizes.draw(&mut random) {
                2048 => small += 1,
                20_480..=30_720 => middle += 1,
                1_048_576 => large += 1,
                other => panic!("{other}"),
            }
        }
        assert!((6_800..7_200).contains(&small) && (2_300..2_700).contains(&middle) && (400..600).contains(&large));
        assert_eq!(sizes.octets_max(), 1 << 20);
        for bad in ["", "x", "2k-1k", "1:0", "1:-1", "999m", "1:nan"] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad}");
        }
    }
}
