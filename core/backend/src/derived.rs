//! SCRAM keys of users whose passwords are kept in clear, made once for each content of the users file and not at each
//! login: whoever asks costs us no PBKDF2 (RFC 5802 §2.2), whether the user exists or not.
//!
//! ```text
//! first question for a hash → a thread of its own makes the keys of all such users → questions look them up
//! until then, and where there are too many users of this kind: one derivation per question, as for everybody else
//! ```
//!
//! All or none: keys that are made when somebody first asks for them would tell by the time who has logged in before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::decoy::Decoys;
use crate::pool::NICE;
use crate::prep;
use crate::scheme::{Hash, ScramKeys, StoredSecret};
use crate::users::{User, Users};

/// Most users with a password in clear whose keys are kept: some 300 octets each and hash.
pub const USERS_MAX: usize = 10_000;

/// The hashes of SCRAM.
const HASHES: [Hash; 3] = [Hash::Sha1, Hash::Sha256, Hash::Sha512];

/// The keys for one content of the users file.
pub struct Derived {
    users: Arc<Users>,
    decoys: Arc<Decoys>,
    sets: [Place; HASHES.len()],
}

#[derive(Default)]
struct Place {
    /// Somebody has asked.
    wanted: AtomicBool,
    /// `None`: too many users.
    set: OnceLock<Option<Arc<Set>>>,
    /// Of the content before this one: who has the same password has the same keys. Until they are made: it has passwords
    /// that are no longer anybody's.
    before: Mutex<Option<Arc<Set>>>,
}

/// By prepared names.
type Set = HashMap<String, Entry>;

struct Entry {
    password: Zeroizing<Vec<u8>>,
    keys: ScramKeys,
}

/// The password in clear, if the user has one.
pub fn cleartext(user: &User) -> Option<&[u8]> {
    user.secrets.iter().find_map(StoredSecret::cleartext)
}

impl Derived {
    /// For this content; what was made for the content before is taken over where it is still right.
    pub fn new(users: Arc<Users>, decoys: Arc<Decoys>, before: Option<&Self>) -> Arc<Self> {
        let place = |at: usize| {
            let Some(place) = before.map(|before| &before.sets[at]) else { return Place::default() };
            let made = place.set.get().map_or_else(|| place.before.lock().clone(), Clone::clone);
            Place { before: Mutex::new(made), ..Place::default() }
        };
        let this = Arc::new(Self { users, decoys, sets: std::array::from_fn(place) });
        for (at, hash) in HASHES.into_iter().enumerate() {
            if before.is_some_and(|before| before.sets[at].wanted.load(Ordering::Relaxed)) {
                this.is_ready(hash);
            }
        }
        this
    }

    /// Whether nothing has to be derived any more to answer questions for this hash. The first question begins it.
    pub fn is_ready(self: &Arc<Self>, hash: Hash) -> bool {
        let Some(at) = HASHES.iter().position(|known| *known == hash) else { return false };
        let Some(place) = self.sets.get(at) else { return false };
        if let Some(made) = place.set.get() {
            return made.is_some();
        }
        if !place.wanted.swap(true, Ordering::Relaxed) {
            let this = Arc::downgrade(self);
            let begun = std::thread::Builder::new().name("scram-keys".into()).spawn(move || {
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
                make(&this, at);
            });
            // Without a thread it stays as it was.
            place.wanted.store(begun.is_ok(), Ordering::Relaxed);
        }
        false
    }

    /// Whether it is known whether there are too many.
    #[cfg(test)]
    pub fn is_settled(&self, hash: Hash) -> bool {
        HASHES.iter().zip(&self.sets).any(|(known, place)| *known == hash && place.set.get().is_some())
    }

    /// The keys of `name`, if `users` are those whose keys were made and all were.
    pub fn find(self: &Arc<Self>, users: &Users, hash: Hash, name: &str) -> Option<Option<&ScramKeys>> {
        if !std::ptr::eq(&raw const *self.users, users) || !self.is_ready(hash) {
            return None;
        }
        let at = HASHES.iter().position(|known| *known == hash)?;
        let set = self.sets.get(at)?.set.get()?.as_ref()?;
        Some(set.get(name).map(|entry| &entry.keys))
    }
}

/// Makes one set, unless newer content makes it worthless meanwhile.
fn make(of: &Weak<Derived>, at: usize) {
    let Some(hash) = HASHES.get(at).copied() else { return };
    let Some((users, decoys, before)) = of.upgrade().map(|this| {
        let before = this.sets.get(at).and_then(|place| place.before.lock().take());
        (this.users.clone(), this.decoys.clone(), before)
    }) else {
        return;
    };
    if users.iter().filter(|user| cleartext(user).is_some()).nth(USERS_MAX).is_some() {
        return keep(of, at, None);
    }
    let mut set = Set::new();
    for user in users.iter() {
        let Some(clear) = cleartext(&user) else { continue };
        if of.strong_count() == 0 {
            return;
        }
        let decoy = decoys.scram(hash, user.name.as_bytes());
        let same = |entry: &&Entry| {
            *entry.password == clear && (entry.keys.iterations, &entry.keys.salt) == (decoy.iterations, &decoy.salt)
        };
        let keys = match before.as_ref().and_then(|before| before.get(&user.name)).filter(same) {
            Some(entry) => entry.keys.clone(),
            None => ScramKeys::derive(hash, &prep::enrolled(clear), &decoy.salt, decoy.iterations),
        };
        let entry = Entry { password: Zeroizing::new(clear.to_vec()), keys };
        set.insert(user.name, entry);
    }
    keep(of, at, Some(set));
}

fn keep(of: &Weak<Derived>, at: usize, set: Option<Set>) {
    if let Some(this) = of.upgrade()
        && let Some(place) = this.sets.get(at)
    {
        let _ = place.set.set(set.map(Arc::new));
    }
}
