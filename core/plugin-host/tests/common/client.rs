//! The client's side of the mechanisms, from their RFCs, as plainly as can be: whole texts, whole hashes.

use base64::prelude::{BASE64_STANDARD, Engine};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Digest;

/// Hash functions of SCRAM.
#[derive(Clone, Copy, Debug)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    /// Of SCRAM-SHA-256-PLUS: SHA-256.
    pub fn of(mechanism: &str) -> Self {
        match mechanism.trim_start_matches("SCRAM-").trim_end_matches("-PLUS") {
            "SHA-1" => Self::Sha1,
            "SHA-256" => Self::Sha256,
            "SHA-512" => Self::Sha512,
            other => panic!("{other}"),
        }
    }

    pub fn digest(self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => sha1::Sha1::digest(text).to_vec(),
            Self::Sha256 => sha2::Sha256::digest(text).to_vec(),
            Self::Sha512 => sha2::Sha512::digest(text).to_vec(),
        }
    }

    pub fn mac(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => mac::<Hmac<sha1::Sha1>>(key, text),
            Self::Sha256 => mac::<Hmac<sha2::Sha256>>(key, text),
            Self::Sha512 => mac::<Hmac<sha2::Sha512>>(key, text),
        }
    }

    /// `Hi()` of RFC 5802 §2.2.
    fn stretch(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut last = self.mac(password, &[salt, &[0, 0, 0, 1]].concat());
        let mut all = last.clone();
        for _ in 1..iterations {
            last = self.mac(password, &last);
            all.iter_mut().zip(&last).for_each(|(all, last)| *all ^= last);
        }
        all
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// What SCRAM makes of a password.
pub struct ScramKeys {
    pub hash: Hash,
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub client_key: Vec<u8>,
    pub stored_key: Vec<u8>,
    pub server_key: Vec<u8>,
}

impl ScramKeys {
    pub fn new(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted = hash.stretch(password, salt, iterations);
        let client_key = hash.mac(&salted, b"Client Key");
        let stored_key = hash.digest(&client_key);
        let server_key = hash.mac(&salted, b"Server Key");
        Self { hash, salt: salt.to_vec(), iterations, client_key, stored_key, server_key }
    }

    /// What the host hands to the mechanism.
    pub fn stored(&self) -> sasl::ScramKey<'_> {
        let Self { salt, stored_key, server_key, .. } = self;
        sasl::ScramKey { iterations: self.iterations, salt, stored_key, server_key }
    }

    /// The client-final-message, and the server-final-message that must come back. `binding` is what follows
    /// the header in `c=`, `extension` begins with a comma.
    pub fn finish(&self, first: &str, server_first: &str, binding: &[u8], extension: &str) -> (String, String) {
        let at = first.match_indices(',').nth(1).unwrap().0 + 1;
        let (header, bare) = first.split_at(at);
        let nonce = server_first.split(',').next().unwrap();
        let cbind = BASE64_STANDARD.encode([header.as_bytes(), binding].concat());
        let without_proof = format!("c={cbind},{nonce}{extension}");
        let message = format!("{bare},{server_first},{without_proof}");
        let signature = self.hash.mac(&self.stored_key, message.as_bytes());
        let proof: Vec<u8> = self.client_key.iter().zip(&signature).map(|(key, mask)| key ^ mask).collect();
        let verifier = BASE64_STANDARD.encode(self.hash.mac(&self.server_key, message.as_bytes()));
        (format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)), format!("v={verifier}"))
    }
}

/// Salt and iterations of a server-first-message, when it answers `nonce`.
pub fn scram_challenge(server_first: &str, nonce: &str) -> Option<(Vec<u8>, u32)> {
    let mut attributes = server_first.split(',');
    let both = attributes.next()?.strip_prefix("r=")?;
    let salt = BASE64_STANDARD.decode(attributes.next()?.strip_prefix("s=")?).ok()?;
    let iterations = attributes.next()?.strip_prefix("i=")?.parse().ok()?;
    let fresh = both.starts_with(nonce) && both.len() > nonce.len();
    (fresh && attributes.next().is_none()).then_some((salt, iterations))
}

pub fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

pub fn cram_md5(password: &[u8], challenge: &[u8]) -> String {
    hex(&mac::<Hmac<md5::Md5>>(password, challenge))
}

/// What DIGEST-MD5 makes of a password, and of both nonces.
pub struct Digest5<'a> {
    pub ha1: Vec<u8>,
    pub nonce: &'a str,
    pub cnonce: &'a str,
    pub uri: &'a str,
    pub authzid: &'a str,
}

impl Digest5<'_> {
    pub fn ha1(user: &str, realm: &str, password: &str) -> Vec<u8> {
        md5::Md5::digest(format!("{user}:{realm}:{password}")).to_vec()
    }

    /// RFC 2831 §2.1.2.1: `method` is `AUTHENTICATE` for the response, empty for rspauth.
    pub fn value(&self, method: &str) -> String {
        let Self { nonce, cnonce, uri, .. } = self;
        let authzid = if self.authzid.is_empty() { String::new() } else { format!(":{}", self.authzid) };
        let a1 = [&self.ha1[..], format!(":{nonce}:{cnonce}{authzid}").as_bytes()].concat();
        let (a1, a2) = (hex(&md5::Md5::digest(a1)), hex(&md5::Md5::digest(format!("{method}:{uri}"))));
        hex(&md5::Md5::digest(format!("{a1}:{nonce}:00000001:{cnonce}:auth:{a2}")))
    }
}
