//! CRAM-MD5 (RFC 2195): the server sends a fresh challenge, the client answers with its user name and
//! HMAC-MD5 of the challenge, keyed by the password.
//!
//! What the store keeps is no password but the HMAC's two half-finished MD5 states (32 octets, outer then
//! inner, little-endian words: Dovecot's `{CRAM-MD5}`), so a step costs two MD5 blocks or a few.

use std::marker::PhantomData;

use md5::block_api::Md5Core;
use md5::digest::block_api::{Buffer, FixedOutputCore, UpdateCore};
use md5::digest::common::hazmat::SerializableState;
use md5::digest::{OutputSizeUser, array::Array};
use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, KeyKind, Mechanism, Meta, Part, Settings, flag};
use subtle::ConstantTimeEq;

/// The CRAM-MD5 mechanism.
pub type CramMd5 = Cram<MsgId>;

/// CRAM-MD5 with challenges of `C`.
pub struct Cram<C>(PhantomData<C>);

/// What the challenge looks like: a type of its own, so that a test can put a published challenge into the very code
/// that ships.
pub trait Challenges: Send + Sync + 'static {
    /// The challenge; the same for the same arguments.
    fn challenge(random: &[u8; RANDOM_OCTETS], unix_seconds: u64, host: &[u8]) -> Result<impl AsRef<[u8]>, Bad>;
}

/// What makes the challenge unique. The text is made from it again when the response must be checked, so
/// that the state is small and of one size whatever our name is.
#[derive(Clone, Copy, Default)]
pub struct CramState {
    awaits: Awaits,
    random: [u8; RANDOM_OCTETS],
    unix_seconds: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Awaits {
    #[default]
    Start,
    Response,
    Key,
    Nothing,
}

/// 160 bits: guessing is out of the question, and base32 needs no padding.
pub const RANDOM_OCTETS: usize = 20;
/// `<`, 32 of base32, `.`, 20 digits, `@`, a domain of 255, `>`.
const CHALLENGE_OCTETS_MAX: usize = 1 + 32 + 1 + 20 + 1 + 255 + 1;

impl<C: Challenges> Mechanism for Cram<C> {
    const META: Meta = Meta {
        name: c"CRAM-MD5",
        flags: flag::SERVER_FIRST | flag::OBSOLETE | flag::ENTROPY | flag::POD_STATE,
        needs: &[EffectKind::FetchKey],
        strength: 20,
        message_octets_max: 1024,
        output_octets_max: CHALLENGE_OCTETS_MAX as u32,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = CramState;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self(PhantomData))
    }

    fn step(&self, state: &mut CramState, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match (state.awaits, cx.event()) {
            (Awaits::Start, Event::Start { initial: None }) => {
                let random = cx.entropy().first_chunk().ok_or(Bad::INTERNAL.because("the host sent no entropy"))?;
                *state = CramState { awaits: Awaits::Response, random: *random, unix_seconds: cx.unix_ms() / 1000 };
                cx.put(C::challenge(random, state.unix_seconds, cx.server_name())?.as_ref())?;
                cx.challenge()
            }
            (Awaits::Response, Event::Message(message)) => {
                let response = Response::parse(message)?;
                let authcid = cx.part(response.authcid)?;
                state.awaits = Awaits::Key;
                let (authzid, realm) = (Part::EMPTY, Part::EMPTY);
                cx.perform(Effect::FetchKey { kind: KeyKind::CramMd5Context, authcid, authzid, realm })
            }
            (Awaits::Key, Event::Outcome(outcome)) => {
                state.awaits = Awaits::Nothing;
                let proof = outcome.proof()?;
                let context: &[u8; 32] =
                    outcome.data().try_into().map_err(|_| Bad::INTERNAL.because("the key has not 32 octets"))?;
                let challenge = C::challenge(&state.random, state.unix_seconds, cx.server_name())?;
                let response = Response::parse(cx.message())?;
                let expected = hmac_md5(context, challenge.as_ref())?;
                match bool::from(expected.ct_eq(&response.digest)) {
                    true => cx.succeed(proof),
                    false => Err(Bad::CREDENTIALS),
                }
            }
            _ => Err(Bad::INTERNAL),
        }
    }
}

/// `<random.time@host>`: the form of a msg-id, unpredictable (RFC 2195 §2).
pub struct MsgId;

impl Challenges for MsgId {
    fn challenge(random: &[u8; RANDOM_OCTETS], unix_seconds: u64, host: &[u8]) -> Result<impl AsRef<[u8]>, Bad> {
        let mut challenge = Challenge { octets: [0; CHALLENGE_OCTETS_MAX], len: 0 };
        let mut digits = [0; 20];
        for part in [b"<", &base32(random)[..], b".", decimal(unix_seconds, &mut digits), b"@", host, b">"] {
            challenge.put(part)?;
        }
        Ok(challenge)
    }
}

struct Challenge {
    octets: [u8; CHALLENGE_OCTETS_MAX],
    len: usize,
}

impl Challenge {
    fn put(&mut self, octets: &[u8]) -> Result<(), Bad> {
        let room = self.octets.get_mut(self.len..self.len + octets.len());
        room.ok_or(Bad::INTERNAL.because("the server's name is longer than 255 octets"))?.copy_from_slice(octets);
        self.len += octets.len();
        Ok(())
    }
}

impl AsRef<[u8]> for Challenge {
    fn as_ref(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }
}

/// `user SP 32 hex digits`.
struct Response<'a> {
    authcid: &'a [u8],
    digest: [u8; 16],
}

impl<'a> Response<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Bad> {
        // The last space: user names may contain others.
        let at = message.iter().rposition(|octet| *octet == b' ').ok_or(Bad::MALFORMED.because("no space"))?;
        let (authcid, hex) = (message.get(..at).unwrap_or_default(), message.get(at + 1..).unwrap_or_default());
        if authcid.is_empty() {
            return Err(Bad::MALFORMED.because("no user name"));
        }
        let (pairs, rest) = hex.as_chunks::<2>();
        if pairs.len() != 16 || !rest.is_empty() {
            return Err(Bad::MALFORMED.because("the digest has not 32 hexadecimal digits"));
        }
        let mut digest = [0; 16];
        for (octet, [high, low]) in digest.iter_mut().zip(pairs) {
            match (nibble(*high), nibble(*low)) {
                (Some(high), Some(low)) => *octet = high << 4 | low,
                _ => return Err(Bad::MALFORMED.because("the digest has not 32 hexadecimal digits")),
            }
        }
        Ok(Self { authcid, digest })
    }
}

/// RFC 2195 §2 has lower case; some clients send upper.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// HMAC-MD5 (RFC 2104) from the states that stand after the padded key's block: outer, then inner.
fn hmac_md5(context: &[u8; 32], text: &[u8]) -> Result<[u8; 16], Bad> {
    let (outer, inner) = context.split_at(16);
    let inner = resume_md5(inner, text)?;
    resume_md5(outer, &inner)
}

/// MD5 of one block that `words` has seen already, then `text`.
fn resume_md5(words: &[u8], text: &[u8]) -> Result<[u8; 16], Bad> {
    // Four words, then how many blocks they have seen; both little-endian.
    let mut state = Array::default();
    let (at_words, at_blocks) = state.split_at_mut(16);
    at_words.copy_from_slice(words);
    at_blocks.copy_from_slice(&1u64.to_le_bytes());
    let mut md5 = Md5Core::deserialize(&state).map_err(|_| Bad::INTERNAL.because("MD5 refuses the state"))?;
    let mut buffer = Buffer::<Md5Core>::default();
    buffer.digest_blocks(text, |blocks| md5.update_blocks(blocks));
    let mut digest = Array::<u8, <Md5Core as OutputSizeUser>::OutputSize>::default();
    md5.finalize_fixed_core(&mut buffer, &mut digest);
    Ok(digest.into())
}

/// RFC 4648 §6, in lower case.
fn base32(octets: &[u8; RANDOM_OCTETS]) -> [u8; 32] {
    let mut text = [0; 32];
    let (groups, _) = octets.as_chunks::<5>();
    for (to, &[a, b, c, d, e]) in text.chunks_exact_mut(8).zip(groups) {
        let bits = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        for (index, character) in to.iter_mut().enumerate() {
            *character = b"abcdefghijklmnopqrstuvwxyz234567"[(bits >> (35 - 5 * index) & 31) as usize];
        }
    }
    text
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests;
