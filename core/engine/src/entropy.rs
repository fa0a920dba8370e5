//! Random octets for one shard, fetched from the kernel a page at a time.

use zeroize::Zeroize;

/// Buffered random octets. What was handed out is wiped here.
pub struct Entropy {
    octets: Box<[u8; BUFFER_OCTETS]>,
    used: usize,
}

impl Entropy {
    /// Empty; the first use fills it.
    pub fn new() -> Self {
        Self { octets: Box::new([0; BUFFER_OCTETS]), used: BUFFER_OCTETS }
    }

    /// `N` fresh octets, `N` at most a page.
    ///
    /// # Panics
    /// When the kernel has no randomness to give: nothing secret can be made without it.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        if BUFFER_OCTETS - self.used < N {
            getrandom::fill(&mut self.octets[..]).expect("getrandom(2) does not fail once the kernel has booted");
            self.used = 0;
        }
        let mut taken = [0; N];
        let from = &mut self.octets[self.used..self.used + N];
        taken.copy_from_slice(from);
        from.zeroize();
        self.used += N;
        taken
    }
}

const BUFFER_OCTETS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_the_same_twice() {
        let mut entropy = Entropy::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(entropy.take::<64>()));
        }
    }
}
