//! The users file: who exists, what proves it, what they may do.
//!
//! ```text
//! # comment
//! name:secret[ secret…][:field[ field…]]
//!
//! alice@demo.test:{SCRAM-SHA-256}15000,…:aliases=info@demo.test,@demo.example size=25M
//! bob@demo.test:$6$…$… {CRAM-MD5}…:senders=@news.test recipients=50 disabled
//! archive@demo.test:
//! ```
//!
//! * Three columns, separated by `:`; secrets and fields are separated by spaces, list items by commas.
//! * `\hh` (two hexadecimal digits) stands for that octet. Whatever would be structure is written so: a colon
//!   in a name is `\3a`, a space `\20`, a backslash `\5c`. An RFC 5803 secret keeps its two colons.
//! * Without a secret nobody logs in with a password, but mail is taken; a certificate or Kerberos may still do.
//!
//! A password in clear serves every mechanism, each other form PLAIN and LOGIN and what it is made for: SCRAM keys
//! their SCRAM, a `{CRAM-MD5}` context CRAM-MD5, a `{DIGEST-MD5}` digest DIGEST-MD5 with the name and the realm that
//! it was made of: the halves of the user's name, as Dovecot makes it, or those that stand before it
//! (`{DIGEST-MD5}user\3arealm\3adigest`, as htdigest writes it).
//!
//! | field | says |
//! |---|---|
//! | `aliases=a@b,@c` | mail for these comes here, too; `@c`: all of domain `c` that nobody else has |
//! | `senders=a@b,@c,*` | may send as these, beside every address whose mail comes here |
//! | `authzids=a@b,@c,*` | may log in as these users with its own password (SASL authorization identity) |
//! | `mechanisms=A,B` | only these mechanisms will do; others are told 534 after a right proof |
//! | `cert=spki:…,mail:…,uri:…,cn:…` | whose verified client certificate says one of these is them (EXTERNAL) |
//! | `size=25M` | largest message |
//! | `recipients=100` | most recipients of one message |
//! | `disabled` | no login and no sender rights; mail is still taken |
//!
//! What a certificate says is compared whole: `spki:` with the SHA-256 of its public key in hexadecimal digits
//! (`openssl x509 -in c.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum`), `mail:` and `uri:`
//! with its alternative names, `cn:` with the common name of its subject. One that fits several users needs an
//! authorization identity to choose by. Only authorities of the listener's `client_ca` are believed; name a
//! common name or a mail address only if they watch over those.
//!
//! In memory the file is one block of octets, and beside it a hash table from names and addresses to
//! lines: about twenty octets per user more than the file has. A line is parsed again when it is asked for,
//! which is nothing next to checking a password.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sasl::MechanismName;
use zeroize::Zeroizing;

use crate::decoy::Profile;
use crate::prep::{self, NameRules};
use crate::scheme::{self, Hash, StoredSecret};

pub(crate) mod line;
#[cfg(test)]
mod tests;

pub use line::Fault;

/// Faults that one error names; more are only counted.
const FAULTS_MAX: usize = 20;

/// How to read a users file.
#[derive(Clone, Debug)]
pub struct Options {
    /// When two names are the same.
    pub names: NameRules,
    /// How to read secrets.
    pub secrets: scheme::Options,
    /// What separates a tag from a local part: mail for `alice+shop@…` goes to `alice@…`.
    pub tag_delimiter: Option<char>,
    /// Who gets mail for `postmaster` where nobody else does; without it, the first user of the file.
    pub postmaster: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            names: NameRules::default(),
            secrets: scheme::Options::default(),
            tag_delimiter: Some('+'),
            postmaster: None,
        }
    }
}

/// One user.
#[derive(Default)]
pub struct User {
    /// Prepared name.
    pub name: String,
    /// What proves it is them.
    pub secrets: Vec<StoredSecret>,
    /// Further addresses, `@domain` for the rest of a domain.
    pub aliases: Vec<String>,
    /// What they may send as, beside their own addresses.
    pub senders: Vec<String>,
    /// Whom they may act as.
    pub authzids: Vec<String>,
    /// What their client certificates say: `spki:` with 64 small hexadecimal digits, `mail:`, `uri:`, `cn:`.
    pub certificates: Vec<String>,
    /// Empty: all.
    pub mechanisms: Vec<MechanismName>,
    /// Largest message.
    pub message_octets_max: Option<u64>,
    /// Most recipients.
    pub recipients_max: Option<u32>,
    /// May not log in.
    pub disabled: bool,
}

impl User {
    /// Whether SCRAM-SHA-256 can succeed: there are keys, or a password in clear to make them of.
    pub fn has_scram_sha_256(&self) -> bool {
        let serves = |secret: &StoredSecret| secret.scram_keys(Hash::Sha256).is_some() || secret.cleartext().is_some();
        self.secrets.iter().any(serves)
    }

    /// Whether one of the secrets fits the password, in any of the forms that it may have been hashed in.
    pub fn verify(&self, password: &[u8]) -> bool {
        let candidates = prep::candidates(password);
        self.secrets.iter().any(|secret| candidates.iter().any(|candidate| secret.verify(&self.name, candidate)))
    }
}

/// A users file in memory.
pub struct Users {
    text: Zeroizing<Vec<u8>>,
    index: Index,
    options: Arc<Options>,
    first: Option<String>,
    count: usize,
    aliases: usize,
}

/// Why a users file was not taken.
#[derive(Debug)]
pub struct BadUsers {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: WhyBad,
}

/// See [`BadUsers`].
#[derive(Debug)]
pub enum WhyBad {
    /// It could not be read.
    Io(io::Error),
    /// It is not a regular file, or has more than 4 GiB.
    NotAFile,
    /// Lines with faults: the first ones, and how many more.
    Lines(Vec<(usize, Fault)>, usize),
}

impl fmt::Display for BadUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            WhyBad::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "{path}: no such file; make it with 'portreeve user add'")
            }
            WhyBad::Io(error) => write!(f, "{path}: {error}; it must be readable by the user that portreeve runs as"),
            WhyBad::NotAFile => write!(f, "{path}: not a regular file of at most 4 GiB; name another one as users"),
            WhyBad::Lines(faults, more) => {
                for (i, (line, fault)) in faults.iter().enumerate() {
                    let end = if i == 0 { "" } else { "\n" };
                    write!(f, "{end}{path}:{line}:{}: {}; {}", fault.column, fault.cause, fault.remedy)?;
                }
                if *more > 0 {
                    write!(f, "\n{path}: and {more} more")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for BadUsers {}

impl Users {
    /// Reads and checks a file.
    pub fn load(path: &Path, options: &Arc<Options>) -> Result<Self, BadUsers> {
        let bad = |why| BadUsers { path: path.to_owned(), why };
        let mut file = File::open(path).map_err(|error| bad(WhyBad::Io(error)))?;
        let facts = file.metadata().map_err(|error| bad(WhyBad::Io(error)))?;
        if !facts.is_file() || facts.len() >= u64::from(NOWHERE) {
            return Err(bad(WhyBad::NotAFile));
        }
        // One octet more than the file has, so that reading to the end never moves the block.
        let mut text = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
        file.by_ref().take(u64::from(NOWHERE)).read_to_end(&mut text).map_err(|error| bad(WhyBad::Io(error)))?;
        Self::parse(path, text, options)
    }

    /// Checks the content of a file; `path` is for messages.
    pub fn parse(path: &Path, text: Zeroizing<Vec<u8>>, options: &Arc<Options>) -> Result<Self, BadUsers> {
        if text.len() >= NOWHERE as usize {
            return Err(BadUsers { path: path.to_owned(), why: WhyBad::NotAFile });
        }
        let lines = text.iter().filter(|octet| **octet == b'\n').count() + 1;
        let mut users = Self {
            text,
            index: Index::for_entries(lines),
            options: options.clone(),
            first: None,
            count: 0,
            aliases: 0,
        };
        let mut faults = Vec::new();
        let mut with_aliases = Vec::new();
        let (mut at, mut number) = (0, 0);
        while let Some(line) = users.line(at) {
            number += 1;
            let next = at + line.len() + 1;
            match line::user(line, options) {
                Ok(None) => {}
                Err(fault) => faults.push((number, fault)),
                Ok(Some(user)) => match users.named(&user.name) {
                    Some(_) => faults.push((
                        number,
                        Fault {
                            column: 1,
                            cause: format!("user '{}' for the second time", user.name),
                            remedy: "merge the two lines".to_owned(),
                        },
                    )),
                    None => {
                        if !user.aliases.is_empty() {
                            with_aliases.push((number, at));
                        }
                        users.insert(Key::Name(&user.name), at);
                        user.certificates.iter().for_each(|said| users.insert(Key::Certificate(said), at));
                        users.count += 1;
                        users.first.get_or_insert(user.name);
                    }
                },
            }
            at = next;
        }
        // Aliases only now, since a name anywhere in the file goes before them.
        for (number, at) in with_aliases {
            let user = users.line(at).and_then(|line| line::user(line, options).ok().flatten());
            let Some(user) = user else { continue };
            for alias in &user.aliases {
                let owner = match users.named(alias) {
                    Some(_) => Some(alias.clone()),
                    None => users.aliased(alias).map(|owner| owner.name),
                };
                match owner {
                    Some(owner) => faults.push((
                        number,
                        Fault {
                            column: 1,
                            cause: format!("alias '{alias}' already belongs to '{owner}'"),
                            remedy: "remove it from one of the two".to_owned(),
                        },
                    )),
                    None => {
                        users.insert(Key::Alias(alias), at);
                        users.aliases += 1;
                    }
                }
            }
        }
        if let Some(postmaster) = &options.postmaster
            && users.user(postmaster).is_none()
            && users.count > 0
        {
            faults.push((
                1,
                Fault {
                    column: 1,
                    cause: format!("no user '{postmaster}', whom the configuration names as postmaster"),
                    remedy: "add that user, or name another one".to_owned(),
                },
            ));
        }
        if faults.is_empty() {
            return Ok(users);
        }
        faults.sort_by_key(|(number, _)| *number);
        let more = faults.len().saturating_sub(FAULTS_MAX);
        faults.truncate(FAULTS_MAX);
        Err(BadUsers { path: path.to_owned(), why: WhyBad::Lines(faults, more) })
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no user.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many aliases there are.
    pub fn aliases(&self) -> usize {
        self.aliases
    }

    /// What was read with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Octets of memory that the content takes.
    pub fn memory_octets(&self) -> usize {
        self.text.capacity() + self.index.slots.len() * size_of::<Slot>()
    }

    /// The user of that name, as the client or the operator wrote it.
    pub fn user(&self, name: &str) -> Option<User> {
        self.named(&self.options.names.name(name.as_bytes())?)
    }

    /// The user of that prepared name.
    pub fn named(&self, name: &str) -> Option<User> {
        self.find(Key::Name(name))
    }

    /// Whose alias this is.
    pub fn aliased(&self, alias: &str) -> Option<User> {
        self.find(Key::Alias(alias))
    }

    /// The users whose certificate says this, in the form of [`User::certificates`].
    pub fn certified(&self, said: &str) -> impl Iterator<Item = User> {
        self.find_all(Key::Certificate(said))
    }

    /// Who gets mail for a prepared address: exact, alias, without its tag, catch-all, in that order.
    pub fn mailbox(&self, address: &str) -> Option<User> {
        let exact = |address: &str| self.named(address).or_else(|| self.aliased(address));
        if let Some(user) = exact(address) {
            return Some(user);
        }
        let (local, domain) = address.rsplit_once('@')?;
        let untagged = self.options.tag_delimiter.and_then(|delimiter| local.split_once(delimiter));
        if let Some((local, _)) = untagged.filter(|(local, _)| !local.is_empty())
            && let Some(user) = exact(&format!("{local}@{domain}"))
        {
            return Some(user);
        }
        self.aliased(&format!("@{domain}"))
    }

    /// Who gets what nobody else does and RFC 5321 §4.5.1 wants delivered.
    pub fn postmaster(&self) -> Option<User> {
        match &self.options.postmaster {
            Some(name) => self.user(name),
            None => self.named(self.first.as_deref()?),
        }
    }

    /// All users, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = User> {
        self.text.split(|octet| *octet == b'\n').filter_map(|line| line::user(line, &self.options).ok().flatten())
    }

    /// How the SCRAM keys of the file are distributed: what decoys should look like. Most frequent first.
    pub fn profiles(&self) -> Vec<Profile> {
        self.profiles_of(self.iter())
    }

    /// About so many of the users, from all over the file.
    pub fn sample(&self, most: usize) -> impl Iterator<Item = User> {
        let lines = self.text.split(|octet| *octet == b'\n');
        let step = (self.count / most.max(1)).max(1);
        lines.step_by(step).filter_map(|line| line::user(line, &self.options).ok().flatten())
    }

    /// The same for some of them.
    pub fn profiles_of(&self, users: impl Iterator<Item = User>) -> Vec<Profile> {
        let mut counts = HashMap::new();
        for user in users {
            let keys = [Hash::Sha256, Hash::Sha1, Hash::Sha512]
                .into_iter()
                .find_map(|hash| user.secrets.iter().find_map(|secret| secret.scram_keys(hash)));
            if let Some(keys) = keys {
                *counts.entry((keys.iterations, keys.salt.len())).or_insert(0u32) += 1;
            }
        }
        let mut profiles: Vec<_> = counts
            .into_iter()
            .map(|((iterations, salt), weight)| Profile { weight, iterations, salt_octets: salt as u16 })
            .collect();
        profiles.sort_by_key(|profile| (u32::MAX - profile.weight, profile.iterations, profile.salt_octets));
        profiles
    }

    fn line(&self, at: usize) -> Option<&[u8]> {
        let rest = self.text.get(at..).filter(|rest| !rest.is_empty())?;
        rest.split(|octet| *octet == b'\n').next()
    }

    fn find(&self, key: Key<'_>) -> Option<User> {
        self.find_all(key).next()
    }

    fn find_all(&self, key: Key<'_>) -> impl Iterator<Item = User> {
        self.index.lines(self.index.hash(key)).filter_map(move |at| {
            let user = line::user(self.line(at)?, &self.options).ok()??;
            let same = match key {
                Key::Name(name) => user.name == name,
                Key::Alias(alias) => user.aliases.iter().any(|own| own == alias),
                Key::Certificate(said) => user.certificates.iter().any(|own| own == said),
            };
            same.then_some(user)
        })
    }

    fn insert(&mut self, key: Key<'_>, at: usize) {
        let hash = self.index.hash(key);
        self.index.insert(hash, at as u32);
    }
}

#[derive(Clone, Copy, Hash)]
enum Key<'a> {
    Name(&'a str),
    Alias(&'a str),
    Certificate(&'a str),
}

/// Line offset of an empty slot; files are smaller than this.
const NOWHERE: u32 = u32::MAX;

/// Part of the hash and where the line begins. What it belongs to stands in the line.
#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    at: u32,
}

/// Open addressing: eight octets per slot, three quarters full at most.
struct Index {
    slots: Vec<Slot>,
    used: usize,
    hasher: RandomState,
}

impl Index {
    fn for_entries(entries: usize) -> Self {
        let slots = vec![Slot { hash: 0, at: NOWHERE }; (entries + entries / 3).next_power_of_two().max(8)];
        Self { slots, used: 0, hasher: RandomState::new() }
    }

    fn hash(&self, key: Key<'_>) -> u32 {
        let hash = self.hasher.hash_one(key);
        (hash ^ hash >> 32) as u32
    }

    /// The slots from where `hash` belongs until the first empty one.
    fn probe(&self, hash: u32) -> impl Iterator<Item = usize> {
        let mask = self.slots.len() - 1;
        (0..self.slots.len()).map(move |step| (spread(hash) + step) & mask)
    }

    fn lines(&self, hash: u32) -> impl Iterator<Item = usize> {
        let slots = self.probe(hash).map(|slot| self.slots[slot]).take_while(|slot| slot.at != NOWHERE);
        slots.filter(move |slot| slot.hash == hash).map(|slot| slot.at as usize)
    }

    fn insert(&mut self, hash: u32, at: u32) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let larger = vec![Slot { hash: 0, at: NOWHERE }; self.slots.len() * 2];
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot.at != NOWHERE {
                    self.place(slot);
                }
            }
        }
        self.place(Slot { hash, at });
        self.used += 1;
    }

    fn place(&mut self, slot: Slot) {
        let free = self.probe(slot.hash).find(|at| self.slots[*at].at == NOWHERE);
        let free = free.expect("a quarter of the slots is empty");
        self.slots[free] = slot;
    }
}

/// The stored half must not be the half that chose the slot, or all neighbours would look alike.
fn spread(hash: u32) -> usize {
    (hash as usize).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}
