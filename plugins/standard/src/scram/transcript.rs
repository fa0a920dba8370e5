//! HMAC (RFC 2104) of one growing text under two keys, in little memory.
//!
//! ClientSignature and ServerSignature sign the same AuthMessage with StoredKey and ServerKey (RFC 5802 §3).
//! Of the text so far there remain two half-finished hashes and the one block that neither has seen whole, so
//! an exchange costs the same whatever the client sends: 352 octets with SHA-512, where two HMACs of the
//! usual kind and the keys take 736.

use sha2::digest::Output;
use sha2::digest::block_api::{Block, BlockSizeUser, Buffer, BufferKindUser, Eager, FixedOutputCore};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::digest::typenum::Unsigned as _;
use zeroize::{Zeroize as _, Zeroizing};

/// A hash function as it works on blocks.
pub trait Core: FixedOutputCore + BufferKindUser<BufferKind = Eager> + SerializableState + Default {}

impl<C: FixedOutputCore + BufferKindUser<BufferKind = Eager> + SerializableState + Default> Core for C {}

/// The longest digest of all: SHA-512.
pub(crate) const DIGEST_OCTETS_MAX: usize = 64;
/// Digest, signature or key; the first octets of it are used. Wiped.
pub(crate) type Digest = Zeroizing<[u8; DIGEST_OCTETS_MAX]>;

/// The text so far. Plain octets without a destructor: the host wipes the state that this is a part of.
pub(crate) struct Transcript<C: Core> {
    hashes: [SerializedState<C>; 2],
    block: Block<C>,
    block_octets: u8,
}

impl<C: Core> Transcript<C> {
    pub fn begin(keys: [&[u8]; 2], text: &[&[u8]]) -> Self {
        let mut hashes = keys.map(|key| keyed::<C>(key, INNER));
        let mut buffer = Buffer::<C>::default();
        for part in text {
            buffer.digest_blocks(part, |blocks| hashes.iter_mut().for_each(|hash| hash.update_blocks(blocks)));
        }
        let mut block = Block::<C>::default();
        let unfinished = buffer.get_data();
        // An eager buffer holds less than a block, and a block has at most 128 octets.
        block.iter_mut().zip(unfinished).for_each(|(to, from)| *to = *from);
        Self { hashes: hashes.map(|hash| hash.serialize()), block, block_octets: unfinished.len() as u8 }
    }

    /// HMAC of the text and `rest` under the keys of `begin`; `None` when the state was damaged.
    pub fn finish(&self, keys: [&[u8]; 2], rest: &[u8]) -> Option<[Digest; 2]> {
        let unfinished = self.block.get(..usize::from(self.block_octets))?;
        let sign = |hash: &SerializedState<C>, key| {
            let mut hash = C::deserialize(hash).ok()?;
            let mut buffer = Buffer::<C>::try_new(unfinished).ok()?;
            buffer.digest_blocks(rest, |blocks| hash.update_blocks(blocks));
            let inner = finalize(hash, buffer);
            let mut buffer = Buffer::<C>::default();
            let mut hash = keyed::<C>(key, OUTER);
            buffer.digest_blocks(inner.get(..octets::<C>())?, |blocks| hash.update_blocks(blocks));
            Some(finalize(hash, buffer))
        };
        let ([first, second], [first_key, second_key]) = (&self.hashes, keys);
        Some([sign(first, first_key)?, sign(second, second_key)?])
    }
}

/// Octets of a digest.
pub(crate) const fn octets<C: Core>() -> usize {
    C::OutputSize::USIZE
}

/// The digest of some text.
pub(crate) fn digest<C: Core>(text: &[u8]) -> Digest {
    let (mut hash, mut buffer) = (C::default(), Buffer::<C>::default());
    buffer.digest_blocks(text, |blocks| hash.update_blocks(blocks));
    finalize(hash, buffer)
}

fn finalize<C: Core>(mut hash: C, mut buffer: Buffer<C>) -> Digest {
    let mut output = Output::<C>::default();
    hash.finalize_fixed_core(&mut buffer, &mut output);
    let mut digest = Digest::new([0; DIGEST_OCTETS_MAX]);
    digest.iter_mut().zip(output.iter()).for_each(|(to, from)| *to = *from);
    output.as_mut_slice().zeroize();
    digest
}

const INNER: u8 = 0x36;
const OUTER: u8 = 0x5c;

/// A hash that has seen the padded key. Keys here are digests, never longer than a block.
fn keyed<C: Core>(key: &[u8], pad: u8) -> C {
    debug_assert!(key.len() <= <C as BlockSizeUser>::BlockSize::USIZE);
    let mut block = Block::<C>::default();
    block.fill(pad);
    block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
    let mut hash = C::default();
    hash.update_blocks(std::slice::from_ref(&block));
    block.as_mut_slice().zeroize();
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scram::{ScramHash, Sha1, Sha256, Sha512};
    use hmac::{EagerHash, Hmac, KeyInit, Mac};

    fn agrees<H: ScramHash, D: EagerHash>() {
        let text: Vec<u8> = (0..=255).cycle().take(300).collect();
        let octets = octets::<H::Core>();
        let keys = [&text[..octets], &text[1..octets + 1]];
        let expected = |key: &[u8], text: &[u8]| {
            let mut mac = Hmac::<D>::new_from_slice(key).unwrap();
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        };
        for length in 0..text.len() {
            for cut in [0, length / 3, length / 2, length] {
                let (before, after) = text[..length].split_at(cut);
                let halves = before.split_at(cut / 2);
                let transcript = Transcript::<H::Core>::begin(keys, &[halves.0, b"", halves.1]);
                let signatures = transcript.finish(keys, after).unwrap();
                for (signature, key) in signatures.iter().zip(keys) {
                    assert_eq!(signature[..octets], expected(key, &text[..length]), "{length} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn two_hmacs_agree_with_hmac_however_the_text_is_cut() {
        agrees::<Sha1, sha1::Sha1>();
        agrees::<Sha256, sha2::Sha256>();
        agrees::<Sha512, sha2::Sha512>();
    }

    #[test]
    fn digests_agree_with_their_crate() {
        use sha2::Digest as _;
        for length in [0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 200] {
            let text = vec![b'x'; length];
            assert_eq!(digest::<<Sha1 as ScramHash>::Core>(&text)[..20], sha1::Sha1::digest(&text)[..]);
            assert_eq!(digest::<<Sha256 as ScramHash>::Core>(&text)[..32], sha2::Sha256::digest(&text)[..]);
            assert_eq!(digest::<<Sha512 as ScramHash>::Core>(&text)[..], sha2::Sha512::digest(&text)[..]);
        }
    }
}
