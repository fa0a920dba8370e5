//! SCRAM's arithmetic and its server's first message (RFC 5802), for each hash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

/// Least iterations that we answer to: fewer would sell the password to whoever plays the server
/// (RFC 7677 §4).
const ITERATIONS_MIN: u32 = 4096;
/// Most iterations: a hostile server may not buy more of our time with one line.
const ITERATIONS_MAX: u32 = 1 << 20;

/// The hash of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    fn digest(self, octets: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(octets).to_vec(),
            Self::Sha256 => Sha256::digest(octets).to_vec(),
            Self::Sha512 => Sha512::digest(octets).to_vec(),
        }
    }

    pub(super) fn mac(self, key: &[u8], message: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Sha1 => finish(keyed::<Hmac<Sha1>>(key), &[message]),
            Self::Sha256 => finish(keyed::<Hmac<Sha256>>(key), &[message]),
            Self::Sha512 => finish(keyed::<Hmac<Sha512>>(key), &[message]),
        })
    }

    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Sha1 => salted::<Hmac<Sha1>>(password, salt, iterations),
            Self::Sha256 => salted::<Hmac<Sha256>>(password, salt, iterations),
            Self::Sha512 => salted::<Hmac<Sha512>>(password, salt, iterations),
        }
    }
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn finish<M: Mac>(mut mac: M, parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// Hi() of RFC 5802 §2.2: PBKDF2 with one block.
fn salted<M: Mac + KeyInit + Clone>(password: &[u8], salt: &[u8], iterations: u32) -> Zeroizing<Vec<u8>> {
    let keyed: M = keyed(password);
    let mut block = Zeroizing::new(finish(keyed.clone(), &[salt, &[0, 0, 0, 1]]));
    let mut salted = block.clone();
    for _ in 1..iterations {
        let mut mac = keyed.clone();
        mac.update(&block);
        block.copy_from_slice(&mac.finalize().into_bytes());
        salted.iter_mut().zip(block.iter()).for_each(|(sum, octet)| *sum ^= octet);
    }
    salted
}

/// ClientKey and ServerKey of RFC 5802 §3.
#[derive(Clone)]
pub(super) struct Keys {
    hash: Hash,
    salt: Vec<u8>,
    iterations: u32,
    pub(super) client_key: Zeroizing<Vec<u8>>,
    server_key: Zeroizing<Vec<u8>>,
}

impl Keys {
    pub(super) fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted = hash.salted(password, salt, iterations);
        let (client_key, server_key) = (hash.mac(&salted, b"Client Key"), hash.mac(&salted, b"Server Key"));
        Self { hash, salt: salt.to_vec(), iterations, client_key, server_key }
    }

    pub(super) fn are_for(&self, hash: Hash, salt: &[u8], iterations: u32) -> bool {
        (self.hash, &self.salt[..], self.iterations) == (hash, salt, iterations)
    }

    /// ClientProof, and the ServerSignature that must come back.
    pub(super) fn sign(&self, auth_message: &str) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        let mut proof = self.hash.mac(&self.hash.digest(&self.client_key), auth_message.as_bytes());
        proof.iter_mut().zip(self.client_key.iter()).for_each(|(octet, key)| *octet ^= key);
        (proof, self.hash.mac(&self.server_key, auth_message.as_bytes()).to_vec())
    }
}

/// The server-first-message, `r=…,s=…,i=…`.
pub(super) struct ServerFirst<'a> {
    pub(super) nonce: &'a str,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
}

impl<'a> ServerFirst<'a> {
    pub(super) fn parse(text: &'a str, client_nonce: &str) -> Result<Self, &'static str> {
        const BAD: &str = "SCRAM message that is malformed";
        // RFC 5802 §5.1: an `m=` in front is a mandatory extension, and we know none. Others may follow.
        let mut attributes = text.split(',');
        let mut attribute = |name| attributes.next().and_then(|text| text.strip_prefix(name)).ok_or(BAD);
        let nonce = attribute("r=")?;
        let salt = STANDARD.decode(attribute("s=")?).map_err(|_| BAD)?;
        let iterations = crate::param::digits(attribute("i=")?).ok_or(BAD)?;
        let fresh = nonce.strip_prefix(client_nonce).is_some_and(|own| !own.is_empty());
        if !fresh || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("SCRAM nonce that is not made from ours");
        }
        let iterations = u32::try_from(iterations)
            .ok()
            .filter(|count| (ITERATIONS_MIN..=ITERATIONS_MAX).contains(count))
            .ok_or("SCRAM iteration count out of bounds")?;
        if salt.is_empty() { Err(BAD) } else { Ok(Self { nonce, salt, iterations }) }
    }
}
