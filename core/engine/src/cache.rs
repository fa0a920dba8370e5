//! Answers that need not be asked for again: verified passwords, and addresses that exist or are granted.
//!
//! Both are fixed tables that hold only good answers. Each entry carries the directory's epoch; the
//! directory raises that word in shared memory at every change, so one comparison is the whole invalidation
//! (DECISIONS C20). A wrong password is never remembered: trying again must cost the guesser the same.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use smtp::host::Identity;
use zeroize::Zeroize;

/// What a login looks like under the process's key; says nothing to whoever does not have it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; 32]);

/// Verified passwords of one worker process, shared by its shards.
pub struct Passwords {
    key: Hmac<Sha256>,
    sets: Box<[Mutex<Vec<Verified>>]>,
    lifetime_ms: u64,
}

struct Verified {
    tag: Tag,
    identity: Arc<Identity>,
    until_ms: u64,
}

impl Passwords {
    /// An empty table under a fresh random key.
    pub fn new(lifetime_ms: u64) -> Result<Self, getrandom::Error> {
        let mut octets = [0; 32];
        getrandom::fill(&mut octets)?;
        let key = Hmac::new_from_slice(&octets).expect("HMAC takes a key of any length");
        octets.zeroize();
        Ok(Self { key, sets: (0..SETS).map(|_| Mutex::default()).collect(), lifetime_ms })
    }

    /// The tag of a login. The mechanism is part of it: an account may be barred from one and not from another. So is
    /// the back end (empty: our own): the same name in two of them may be two people.
    pub fn tag(&self, backend: &str, mechanism: &str, authcid: &[u8], authzid: &[u8], password: &[u8]) -> Tag {
        let mut mac = self.key.clone();
        for part in [backend.as_bytes(), mechanism.as_bytes(), authcid, authzid, password] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Tag(mac.finalize().into_bytes().into())
    }

    /// Whose password it is, if that was answered under this `epoch` and not too long ago.
    pub fn find(&self, tag: Tag, epoch: u64, now_ms: u64) -> Option<Arc<Identity>> {
        let set = self.set(tag).lock();
        let found = set.iter().find(|verified| verified.tag == tag)?;
        (found.identity.epoch == epoch && now_ms < found.until_ms).then(|| Arc::clone(&found.identity))
    }

    /// Remembers a good answer. A full set forgets the entry that would have expired first.
    pub fn keep(&self, tag: Tag, identity: Arc<Identity>, now_ms: u64) {
        let verified = Verified { tag, identity, until_ms: now_ms + self.lifetime_ms };
        let mut set = self.set(tag).lock();
        let place = match set.iter().position(|old| old.tag == tag) {
            Some(place) => Some(place),
            None if set.len() < SET_ENTRIES => None,
            None => set.iter().enumerate().min_by_key(|(_, old)| old.until_ms).map(|(place, _)| place),
        };
        match place.and_then(|place| set.get_mut(place)) {
            Some(old) => *old = verified,
            None => set.push(verified),
        }
    }

    fn set(&self, tag: Tag) -> &Mutex<Vec<Verified>> {
        &self.sets[usize::from(u16::from_le_bytes([tag.0[0], tag.0[1]])) % SETS]
    }
}

/// Addresses about which the directory said yes; one table per shard.
pub struct Addresses {
    hasher: RandomState,
    entries: Vec<Option<Known>>,
}

struct Known {
    /// Whose right it is; empty for the existence of a mailbox.
    identity: Box<str>,
    address: Box<str>,
    /// The mailbox; empty for a sender's right.
    mailbox: Box<str>,
    epoch: u64,
}

impl Addresses {
    /// Room for `entries` addresses.
    pub fn new(entries: usize) -> Self {
        Self { hasher: RandomState::new(), entries: (0..entries.max(1)).map(|_| None).collect() }
    }

    /// The mailbox behind `address`.
    pub fn mailbox(&self, address: &str, epoch: u64) -> Option<&str> {
        self.find("", address, epoch).map(|known| &*known.mailbox)
    }

    /// Whether `identity` is known to be granted `address`.
    pub fn granted(&self, identity: &str, address: &str, epoch: u64) -> bool {
        !identity.is_empty() && self.find(identity, address, epoch).is_some()
    }

    /// Remembers where mail for `address` goes. `epoch` is the one that held when the question was asked.
    pub fn keep_mailbox(&mut self, address: Box<str>, mailbox: &str, epoch: u64) {
        self.keep(Known { identity: "".into(), address, mailbox: mailbox.into(), epoch });
    }

    /// Remembers a granted right.
    pub fn keep_granted(&mut self, identity: &str, address: Box<str>, epoch: u64) {
        self.keep(Known { identity: identity.into(), address, mailbox: "".into(), epoch });
    }

    fn find(&self, identity: &str, address: &str, epoch: u64) -> Option<&Known> {
        let known = self.entries.get(self.place(identity, address))?.as_ref()?;
        (known.epoch == epoch && *known.address == *address && *known.identity == *identity).then_some(known)
    }

    fn keep(&mut self, known: Known) {
        let place = self.place(&known.identity, &known.address);
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = Some(known);
        }
    }

    fn place(&self, identity: &str, address: &str) -> usize {
        self.hasher.hash_one((identity, address)) as usize % self.entries.len()
    }
}

/// Sets of the password table.
const SETS: usize = 2048;
/// Entries of a set; 16,384 in all.
const SET_ENTRIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(epoch: u64) -> Arc<Identity> {
        Arc::new(Identity {
            name: "alice@demo.test".into(),
            senders: Box::default(),
            message_octets_max: None,
            recipients_max: None,
            epoch,
        })
    }

    #[test]
    fn a_verified_password_lives_for_its_epoch_and_its_time() {
        let passwords = Passwords::new(300_000).unwrap();
        let tag = passwords.tag("", "PLAIN", b"alice", b"", b"secret");
        assert!(passwords.find(tag, 7, 0).is_none());
        passwords.keep(tag, identity(7), 1000);
        assert_eq!(&*passwords.find(tag, 7, 300_999).unwrap().name, "alice@demo.test");
        assert!(passwords.find(tag, 7, 301_000).is_none(), "too old");
        assert!(passwords.find(tag, 8, 1000).is_none(), "the directory has changed");
        for (backend, mechanism, authcid, authzid, password) in [
            ("", "LOGIN", "alice", "", "secret"),
            ("", "PLAIN", "alic", "e", "secret"),
            ("", "PLAIN", "alice", "secret", ""),
            ("", "PLAIN", "alice", "", "Secret"),
            ("ldap", "PLAIN", "alice", "", "secret"),
            ("PLAIN", "", "alice", "", "secret"),
        ] {
            let other = passwords.tag(backend, mechanism, authcid.as_bytes(), authzid.as_bytes(), password.as_bytes());
            assert!(passwords.find(other, 7, 1000).is_none(), "{backend} {mechanism} {authcid} {authzid} {password}");
        }
        assert!(Passwords::new(1).unwrap().tag("", "PLAIN", b"alice", b"", b"secret") != tag, "one key per process");
    }

    #[test]
    fn the_password_table_is_bounded() {
        let passwords = Passwords::new(300_000).unwrap();
        for n in 0..40_000u64 {
            passwords.keep(passwords.tag("", "PLAIN", &n.to_le_bytes(), b"", b""), identity(0), n);
        }
        let kept: usize = passwords.sets.iter().map(|set| set.lock().len()).sum();
        assert!(kept <= SETS * SET_ENTRIES && kept > SETS * SET_ENTRIES / 2, "{kept}");
        let newest = passwords.tag("", "PLAIN", &39_999u64.to_le_bytes(), b"", b"");
        assert!(passwords.find(newest, 0, 40_000).is_some());
    }

    #[test]
    fn addresses_are_known_until_the_directory_changes() {
        // A table each: in one of them the second might take the place of the first.
        let mut addresses = Addresses::new(64);
        addresses.keep_mailbox("bob@demo.test".into(), "bob", 3);
        assert_eq!(addresses.mailbox("bob@demo.test", 3), Some("bob"));
        assert_eq!(addresses.mailbox("bob@demo.test", 4), None, "the directory has changed");
        assert!(!addresses.granted("", "bob@demo.test", 3), "a mailbox is no right");

        let mut addresses = Addresses::new(64);
        addresses.keep_granted("alice", "sales@demo.test".into(), 3);
        assert!(addresses.granted("alice", "sales@demo.test", 3));
        assert!(!addresses.granted("alice", "sales@demo.test", 4), "the directory has changed");
        assert!(!addresses.granted("bob", "sales@demo.test", 3));
        assert_eq!(addresses.mailbox("sales@demo.test", 3), None, "a right is no mailbox");
    }

    #[test]
    fn the_latest_address_of_a_place_is_the_one_known() {
        let mut addresses = Addresses::new(1);
        addresses.keep_mailbox("bob@demo.test".into(), "bob", 3);
        addresses.keep_mailbox("eve@demo.test".into(), "eve", 3);
        assert_eq!(addresses.mailbox("eve@demo.test", 3), Some("eve"));
        assert_eq!(addresses.mailbox("bob@demo.test", 3), None);
    }
}
