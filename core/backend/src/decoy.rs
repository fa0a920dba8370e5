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
use crate::users::{User, Users};

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
    /// The profiles were given, not found in the store.
    given: bool,
    /// Some of the store's users: what a wrong password costs for them it costs for others.
    people: Vec<User>,
}

/// Users who are looked at to know what all of them are like.
const SAMPLE: usize = 20_000;
/// Users who stand in for unknown ones.
const STAND_INS: usize = 256;

impl Decoys {
    /// `secret` is the same on all nodes and at all times. `profiles` should mirror the store; empty means
    /// that [`Decoys::mirror`] finds them there, and until then what new users get.
    pub fn new(secret: [u8; 32], profiles: Vec<Profile>) -> Self {
        let given = !profiles.is_empty();
        let mut profiles: Vec<_> = profiles.into_iter().filter(|profile| profile.weight > 0).collect();
        profiles.iter_mut().for_each(|profile| profile.salt_octets = profile.salt_octets.clamp(1, SALT_OCTETS_MAX));
        // By what does not change when somebody is added: a name that fell on one profile stays there.
        profiles.sort_by_key(|profile| (profile.iterations, profile.salt_octets));
        if profiles.is_empty() {
            profiles.push(Profile { weight: 1, iterations: SCRAM_ITERATIONS, salt_octets: 16 });
        }
        let weights = profiles.iter().map(|profile| u64::from(profile.weight)).sum();
        Self { secret: Zeroizing::new(secret), profiles, weights, given, people: Vec::new() }
    }

    /// The same for these users: unknown names get keys distributed as theirs are, and a wrong password costs
    /// what it costs for one of them.
    pub fn mirror(&self, users: &Users) -> Self {
        let profiles = if self.given { self.profiles.clone() } else { users.profiles_of(users.sample(SAMPLE)) };
        let people = users.sample(STAND_INS).collect();
        Self { given: self.given, people, ..Self::new(*self.secret, profiles) }
    }

    /// A real user whose password is as hard to check as the unknown `name`'s would be.
    pub fn stand_in(&self, name: &[u8]) -> Option<&User> {
        let picked = self.pick(b"prv-mock-1 person\0", name, self.people.len() as u64);
        self.people.get(picked as usize)
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
        let picked = self.pick(b"prv-mock-1 profile\0", user, self.weights);
        let mut below = 0;
        let found = self.profiles.iter().find(|profile| {
            below += u64::from(profile.weight);
            picked < below
        });
        *found.expect("the weights sum to more than was picked")
    }

    /// A number below `end` that follows from the name. When `end` changes a little, few names change their place.
    fn pick(&self, label: &[u8], name: &[u8], end: u64) -> u64 {
        let head = self.mac(&[label, name]).first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
        ((u128::from(head) * u128::from(end)) >> 64) as u64
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

    fn store(fast: usize, slow: usize) -> Users {
        let key = |iterations: u32, salt: &[u8]| {
            let base64 = |octets: &[u8]| STANDARD.encode(octets);
            format!("{{SCRAM-SHA-256}}{iterations},{},{},{}", base64(salt), base64(&[7; 32]), base64(&[8; 32]))
        };
        let lines = (0..fast + slow).map(|n| {
            let key = if n % (fast + slow) < fast { key(4096, &[1; 16]) } else { key(20_000, &[2; 12]) };
            format!("user{n}@demo.test:{key}\n")
        });
        let text = Zeroizing::new(lines.collect::<String>().into_bytes());
        Users::parse("users".as_ref(), text, &std::sync::Arc::default()).unwrap_or_else(|bad| panic!("{bad}"))
    }

    #[test]
    fn ghosts_are_like_the_users_of_the_store_and_stay_so_when_it_grows() {
        let decoys = Decoys::new([0x5a; 32], Vec::new());
        let look = |decoys: &Decoys| -> Vec<(u32, usize)> {
            let keys = (0..5_000).map(|n| decoys.scram(Hash::Sha256, format!("ghost{n}@demo.test").as_bytes()));
            keys.map(|keys| (keys.iterations, keys.salt.len())).collect()
        };
        assert!(look(&decoys).iter().all(|found| *found == (SCRAM_ITERATIONS, 16)), "nobody to be like");
        let before = look(&decoys.mirror(&store(700, 300)));
        let slow = before.iter().filter(|found| **found == (20_000, 12)).count();
        assert!((1_400..1_600).contains(&slow) && before.iter().all(|it| [(20_000, 12), (4096, 16)].contains(it)));
        let after = look(&decoys.mirror(&store(701, 300)));
        let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(changed < 20, "{changed} of 5,000 changed with one user more");
        // Who stands in for a ghost is somebody real, and always the same.
        let decoys = decoys.mirror(&store(700, 300));
        let name = |n: u32| decoys.stand_in(format!("ghost{n}").as_bytes()).map(|user| user.name.clone());
        assert!(name(1).is_some() && name(1) == name(1));
        assert!((0..50).map(name).collect::<std::collections::BTreeSet<_>>().len() > 20);
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
