//! Sessions by number: pages of slots that never move, and tokens that go stale.
//!
//! A token is index and generation. Taking a value out raises the generation, so an event, an answer or a
//! commit that was on its way to the previous holder of a slot finds nobody (CONTRACT C-5).
//!
//! Pages instead of one vector: growing by doubling copies every session at the worst moment and leaves
//! up to half of the memory unused (DECISIONS C16).

/// Names a value in a [`GenSlab`] for as long as it stays there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// A token that no slab ever hands out; `number` tells such tokens apart.
    pub const fn outside(number: u32) -> Self {
        Self((GENERATION_OUTSIDE as u64) << 32 | number as u64)
    }

    /// The number of a token made by [`Token::outside`].
    pub fn outside_number(self) -> Option<u32> {
        (self.generation() == GENERATION_OUTSIDE).then_some(self.index())
    }

    /// As one word, for tickets and events.
    pub fn word(self) -> u64 {
        self.0
    }

    /// From a word; any word is a token, though perhaps nobody's.
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Position in the slab.
    pub fn index(self) -> u32 {
        self.0 as u32
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }
}

/// Values with generation-checked tokens.
pub struct GenSlab<T> {
    pages: Vec<Page<T>>,
    /// Vacant positions; the one vacated last is used first, its memory is warm.
    vacant: Vec<u32>,
    len: usize,
}

/// Room for [`PAGE_SLOTS`] values, made at once and touched as it is filled: what is not used yet is no memory, and
/// nothing moves.
struct Page<T> {
    generations: Vec<u32>,
    values: Vec<Option<T>>,
}

impl<T> Default for GenSlab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), vacant: Vec::new(), len: 0 }
    }
}

impl<T> GenSlab<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps `value`.
    pub fn insert(&mut self, value: T) -> Token {
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => self.grow(),
        };
        let page = &mut self.pages[index as usize / PAGE_SLOTS];
        let at = index as usize % PAGE_SLOTS;
        if at == page.values.len() {
            page.generations.push(0);
            page.values.push(None);
        }
        page.values[at] = Some(value);
        self.len += 1;
        Token::new(index, page.generations[at])
    }

    /// The value that `token` was given for.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let page = self.pages.get_mut(token.index() as usize / PAGE_SLOTS)?;
        let at = token.index() as usize % PAGE_SLOTS;
        if *page.generations.get(at)? != token.generation() {
            return None;
        }
        page.values.get_mut(at)?.as_mut()
    }

    /// Whatever lives at this position now.
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.pages.get_mut(index as usize / PAGE_SLOTS)?.values.get_mut(index as usize % PAGE_SLOTS)?.as_mut()
    }

    /// The token of whatever lives at this position now.
    pub fn token_at(&self, index: u32) -> Option<Token> {
        let page = self.pages.get(index as usize / PAGE_SLOTS)?;
        let at = index as usize % PAGE_SLOTS;
        page.values.get(at)?.as_ref()?;
        Some(Token::new(index, *page.generations.get(at)?))
    }

    /// Takes the value out; the token is stale from here on.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let page = self.pages.get_mut(token.index() as usize / PAGE_SLOTS)?;
        let at = token.index() as usize % PAGE_SLOTS;
        if *page.generations.get(at)? != token.generation() {
            return None;
        }
        let value = page.values.get_mut(at)?.take()?;
        page.generations[at] = match token.generation() + 1 {
            GENERATION_OUTSIDE => 0,
            generation => generation,
        };
        self.vacant.push(token.index());
        self.len -= 1;
        Some(value)
    }

    /// Tokens of all values, for the rare walk over everything.
    pub fn tokens(&self) -> Vec<Token> {
        (0..(self.pages.len() * PAGE_SLOTS) as u32).filter_map(|index| self.token_at(index)).collect()
    }

    /// A position that was never used: behind the last one, in a new page when that is full.
    fn grow(&mut self) -> u32 {
        let filled = self.pages.last().map_or(PAGE_SLOTS, |page| page.values.len());
        if filled == PAGE_SLOTS {
            let (generations, values) = (Vec::with_capacity(PAGE_SLOTS), Vec::with_capacity(PAGE_SLOTS));
            self.pages.push(Page { generations, values });
        }
        ((self.pages.len() - 1) * PAGE_SLOTS + filled % PAGE_SLOTS) as u32
    }
}

/// Slots of a page.
const PAGE_SLOTS: usize = 1024;
/// Never the generation of a value.
const GENERATION_OUTSIDE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nobody() {
        let mut slab = GenSlab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.index(), second.index(), "the warm slot is used again");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.token_at(second.index()), Some(second));
        assert_eq!(slab.get_mut(Token::outside(0)), None);
        assert_eq!(slab.get_mut(Token::from_word(u64::MAX)), None);
    }

    #[test]
    fn pages_never_move() {
        let mut slab = GenSlab::default();
        let tokens: Vec<_> = (0..3 * PAGE_SLOTS).map(|n| slab.insert(n)).collect();
        let address = std::ptr::from_ref(slab.get_mut(tokens[5]).unwrap());
        for n in 0..5 * PAGE_SLOTS {
            slab.insert(n);
        }
        assert_eq!(std::ptr::from_ref(slab.get_mut(tokens[5]).unwrap()), address);
        assert_eq!(slab.len(), 8 * PAGE_SLOTS);
        for (n, &token) in tokens.iter().enumerate() {
            assert_eq!(slab.remove(token), Some(n));
        }
        assert_eq!(slab.tokens().len(), 5 * PAGE_SLOTS);
    }
}
