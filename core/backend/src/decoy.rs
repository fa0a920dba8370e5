//! Keys for users who do not exist (PROTOCOL row 16).
//!
//! SCRAM shows salt and iterations before the client has proven anything, so whoever asks for an unknown
//! user must get some, the same ones each time, from each process and each node, and distributed as those
//! of real users. All of it is computed from a secret that the nodes share; nothing is stored.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::scheme::{Hash, SCRAM_ITERATIONS, ScramKeys};

/// How many real users, relative to the others, have keys with these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Relative frequency.
    pub weight: u32,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Octets of salt.
    pub salt_octets: u16,
}

/// As in the store, which refuses longer ones.
const SALT_OCTETS_MAX: u16 = 256;

/// Makes decoys. `Debug` shows no secret.
pub struct Decoys {
    secret: Zeroizing<[u8; 32]>,
    profiles: Vec<Profile>,
    weights: u64,
}

impl Decoys {
    /// `secret` is the same on all nodes and at all times. `profiles` should mirror the store
    /// ([`crate::users::Users::profiles`]); empty means what new users get.
    pub fn new(secret: [u8; 32], profiles: Vec<Profile>) -> Self {
        let mut profiles: Vec<_> = profiles.into_iter().filter(|profile| profile.weight > 0).collect();
        profiles.iter_mut().for_each(|profile| profile.salt_octets = profile.salt_octets.clamp(1, SALT_OCTETS_MAX));
        if profiles.is_empty() {
            profiles.push(Profile { weight: 1, iterations: SCRAM_ITERATIONS, salt_octets: 16 });
        }
        let weights = profiles.iter().map(|profile| u64::from(profile.weight)).sum();
        Self { secret: Zeroizing::new(secret), profiles, weights }
    }

    /// The SCRAM keys that `user` (a prepared name) would have. Nobody knows a password for them.
    pub fn scram(&self, hash: Hash, user: &[u8]) -> ScramKeys {
        let mechanism = match hash {
            Hash::Md5 => "CRAM-MD5",
            Hash::Sha1 => "SCRAM-SHA-1",
            Hash::Sha256 => "SCRAM-SHA-256",
            Hash::Sha512 => "SCRAM-SHA-512",
        };
        let profile = self.profile(user);
        ScramKeys {
            iterations: profile.iterations,
            salt: self.octets("salt", mechanism, user, profile.salt_octets.into()).to_vec(),
            stored_key: self.octets("stored", mechanism, user, hash.octets()),
            server_key: self.octets("server", mechanism, user, hash.octets()),
        }
    }

    /// The CRAM-MD5 context that `user` would have.
    pub fn cram_md5(&self, user: &[u8]) -> Zeroizing<Vec<u8>> {
        self.octets("stored", "CRAM-MD5", user, 32)
    }

    /// What DIGEST-MD5 would need of `user`.
    pub fn digest_md5(&self, user: &[u8]) -> Zeroizing<Vec<u8>> {
        self.octets("stored", "DIGEST-MD5", user, 16)
    }

    /// Does not depend on the mechanism, or two mechanisms would tell a ghost from a user.
    fn profile(&self, user: &[u8]) -> Profile {
        let picked = self.mac(&[b"prv-mock-1 profile\0", user]);
        let picked = picked.first_chunk().map_or(0, |head| u64::from_be_bytes(*head)) % self.weights;
        let mut below = 0;
        let found = self.profiles.iter().find(|profile| {
            below += u64::from(profile.weight);
            picked < below
        });
        *found.expect("the weights sum to more than was picked")
    }

    fn octets(&self, part: &str, mechanism: &str, user: &[u8], octets: usize) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(octets.next_multiple_of(32)));
        let label = format!("prv-mock-1 {part}\0{mechanism}\0");
        for counter in 0u8.. {
            if out.len() >= octets {
                break;
            }
            out.extend_from_slice(&*self.mac(&[label.as_bytes(), user, &[0, counter]]));
        }
        out.truncate(octets);
        out
    }

    fn mac(&self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.secret).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Decoys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoys").field("profiles", &self.profiles).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn profiles() -> Vec<Profile> {
        vec![
            Profile { weight: 90, iterations: 4096, salt_octets: 16 },
            Profile { weight: 10, iterations: 10_000, salt_octets: 16 },
        ]
    }

    #[test]
    fn vectors() {
        let all: serde_json::Value = serde_json::from_str(include_str!("../testdata/vectors.json")).unwrap();
        let decoys = Decoys::new([0x5a; 32], profiles());
        let vectors = all["decoys"]["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 4);
        for vector in vectors {
            let hash = if vector["mech"] == "SCRAM-SHA-1" { Hash::Sha1 } else { Hash::Sha256 };
            let keys = decoys.scram(hash, vector["user"].as_str().unwrap().as_bytes());
            assert_eq!(vector["iterations"], keys.iterations);
            assert_eq!(vector["salt_b64"], STANDARD.encode(&keys.salt));
            assert_eq!(vector["stored_key_b64"], STANDARD.encode(&*keys.stored_key));
            assert_eq!(vector["server_key_b64"], STANDARD.encode(&*keys.server_key));
        }
    }

    #[test]
    fn profiles_follow_their_weights_whatever_the_mechanism() {
        let decoys = Decoys::new([0x5a; 32], profiles());
        let mut slow = 0;
        for n in 0..20_000 {
            slow += u32::from(decoys.profile(format!("user{n}@example.com").as_bytes()).iterations == 10_000);
        }
        assert!((1_850..2_150).contains(&slow), "{slow}");
        for n in 0..200 {
            let user = format!("user{n}");
            let iterations = |hash| decoys.scram(hash, user.as_bytes()).iterations;
            assert_eq!(iterations(Hash::Sha1), iterations(Hash::Sha512));
        }
        assert_eq!(decoys.scram(Hash::Sha512, b"x").server_key.len(), 64);
        assert_ne!(
            decoys.scram(Hash::Sha512, b"x").server_key[..32],
            decoys.scram(Hash::Sha512, b"x").server_key[32..]
        );
    }
}
