use crate::wipe_all;

/// Octets that must not be printed and do not outlive their use: no `Debug`, no `Clone`, wiped on drop.
#[derive(Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over `octets`.
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }

    /// The octets.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Replaces the content by a copy of `octets`; the old content is wiped, also when the buffer moves.
    pub fn set(&mut self, octets: &[u8]) {
        self.make_room(octets.len());
        self.0.extend_from_slice(octets);
    }

    /// Wipes the content; so many octets can be put into the buffer without its growing.
    pub fn make_room(&mut self, octets: usize) {
        wipe_all(&mut self.0);
        if self.0.capacity() < octets {
            self.0 = Vec::with_capacity(octets.next_power_of_two().max(64));
        }
    }

    /// Octets that the buffer holds without growing.
    pub fn room(&self) -> usize {
        self.0.capacity()
    }

    /// Wipes the content and keeps the (empty) buffer.
    pub fn wipe(&mut self) {
        wipe_all(&mut self.0);
    }

    /// The buffer, for a decoder that must not go through a second copy.
    ///
    /// Growing it may leave a copy behind in freed memory: reserve first.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe_all(&mut self.0);
    }
}
