/// Octets of one block; also the strictest alignment that a mechanism may ask for.
const BLOCK_OCTETS: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Block([u8; BLOCK_OCTETS]);

/// Memory that one exchange of a mechanism owns: zeroed at the start, aligned to 64, at a fixed address
/// while the exchange lives, wiped at its end.
///
/// The host places it, so that a mechanism allocates nothing. [`State::prepare`] keeps the blocks of an
/// earlier exchange when they suffice.
#[derive(Default)]
pub struct State {
    blocks: Vec<Block>,
    octets: usize,
}

impl State {
    /// Makes `octets` zeroed octets available.
    pub fn prepare(&mut self, octets: usize) {
        self.wipe();
        self.octets = octets;
        let blocks = octets.div_ceil(BLOCK_OCTETS);
        if self.blocks.len() < blocks {
            self.blocks.resize(blocks, Block([0; BLOCK_OCTETS]));
        }
    }

    /// Octets that are available to the mechanism.
    pub fn len(&self) -> usize {
        self.octets
    }

    /// Whether the mechanism keeps no state at all.
    pub fn is_empty(&self) -> bool {
        self.octets == 0
    }

    /// 64 of the octets, for a mechanism that is written in safe Rust; `None` beyond the end.
    pub fn block(&mut self, index: usize) -> Option<&mut [u8; BLOCK_OCTETS]> {
        self.blocks.get_mut(..self.octets.div_ceil(BLOCK_OCTETS))?.get_mut(index).map(|block| &mut block.0)
    }

    /// Where the state begins; valid until the next call that takes `&mut self`.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.blocks.as_mut_ptr().cast()
    }

    /// Sets all octets to zero. Blocks beyond those in use are so since their last use.
    pub fn wipe(&mut self) {
        let used = self.octets.div_ceil(BLOCK_OCTETS).min(self.blocks.len());
        let used = self.blocks.get_mut(..used).unwrap_or_default();
        used.fill(Block([0; BLOCK_OCTETS]));
        zeroize::optimization_barrier(used);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zeroed_again() {
        let mut state = State::default();
        state.prepare(100);
        assert_eq!(state.as_mut_ptr() as usize % 64, 0);
        state.block(1).unwrap()[5] = 7;
        assert!(state.block(2).is_none());
        state.prepare(70);
        assert_eq!((state.len(), state.blocks[1].0[5]), (70, 0));
    }
}
