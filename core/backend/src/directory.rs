//! Answers questions about users from the users file in memory.
//!
//! What a client may learn is the same for a wrong password, an unknown user and a user without a password:
//! the same answer after the same kind of work. That somebody does not exist is written only in the answer's
//! `doomed`, which the host keeps to itself. That an account is disabled is told after a right proof only.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use link::directory::{Answer, CertificateFields, IdentityFields, Question, Scram};
use parking_lot::RwLock;
use sasl::{KeyKind, MechanismName, Status};
use zeroize::Zeroizing;

use crate::decoy::Decoys;
use crate::derived::{self, Derived};
use crate::prep;
use crate::scheme::{Hash, ScramKeys, StoredSecret};
use crate::token::{self, Refusal, Tokens};
use crate::users::{User, Users};

#[cfg(test)]
mod tests;

/// Sender rights that travel with an identity; the rest is asked for one by one.
const SENDERS_MAX: usize = 64;

/// The number that workers compare before they believe their caches (DECISIONS C20).
pub trait Epoch: Send + Sync {
    /// Everything cached until now is stale. Returns the new number.
    fn raise(&self) -> u64;
    /// The number now.
    fn current(&self) -> u64;
}

impl Epoch for AtomicU64 {
    fn raise(&self) -> u64 {
        self.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn current(&self) -> u64 {
        self.load(Ordering::SeqCst)
    }
}

/// The users, and what is told about them.
pub struct Directory {
    users: RwLock<Arc<Users>>,
    decoys: RwLock<Arc<Decoys>>,
    derived: RwLock<Arc<Derived>>,
    decoy_secret: Option<StoredSecret>,
    epoch: Arc<dyn Epoch>,
    tokens: Option<Tokens>,
}

impl Directory {
    /// `decoy_secret` is what the password of an unknown user is checked against. Without one it is what some
    /// real user has; when there is nobody, a SCRAM-SHA-256 key like those of new users.
    pub fn new(users: Users, decoys: Decoys, decoy_secret: Option<StoredSecret>, epoch: Arc<dyn Epoch>) -> Self {
        let (decoys, users) = (Arc::new(decoys.mirror(&users)), Arc::new(users));
        let derived = RwLock::new(Derived::new(users.clone(), decoys.clone(), None));
        Self { users: RwLock::new(users), decoys: RwLock::new(decoys), derived, decoy_secret, epoch, tokens: None }
    }

    /// With somebody who can tell whose a bearer token is.
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Self { tokens: Some(tokens).filter(|tokens| !tokens.is_empty()), ..self }
    }

    /// Whether anybody can.
    pub fn knows_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Everything that workers remember is stale.
    pub fn forget(&self) {
        self.epoch.raise();
    }

    pub(crate) fn epoch_now(&self) -> u64 {
        self.epoch.current()
    }

    /// The users now.
    pub fn users(&self) -> Arc<Users> {
        self.users.read().clone()
    }

    fn decoys(&self) -> Arc<Decoys> {
        self.decoys.read().clone()
    }

    fn derived(&self) -> Arc<Derived> {
        self.derived.read().clone()
    }

    /// Takes new content into service and makes caches stale.
    pub fn replace(&self, users: Users) -> u64 {
        let (decoys, users) = (Arc::new(self.decoys().mirror(&users)), Arc::new(users));
        let derived = Derived::new(users.clone(), decoys.clone(), Some(&self.derived()));
        *self.decoys.write() = decoys;
        *self.derived.write() = derived;
        let old = std::mem::replace(&mut *self.users.write(), users);
        let epoch = self.epoch.raise();
        drop(old);
        epoch
    }

    /// Whether the answer takes so long that it is made away from the loop.
    pub fn is_heavy(&self, question: &Question<'_>) -> bool {
        match question {
            Question::VerifyPassword { .. } | Question::VerifyToken { .. } => true,
            // SCRAM keys may have to be made from a password in clear.
            Question::FetchKey { kind, .. } => scram_hash(*kind)
                .is_some_and(|hash| self.users().options().secrets.allow_cleartext && !self.derived().is_ready(hash)),
            _ => false,
        }
    }

    /// Appends the encoded answer.
    pub fn answer(&self, question: &Question<'_>, to: &mut Vec<u8>) {
        // Before the users are read: an answer from old content must not carry a new epoch.
        let epoch = self.epoch.current();
        let users = self.users();
        match *question {
            Question::VerifyPassword { mechanism, authcid, authzid, password, .. } => {
                self.verify_password(&users, epoch, mechanism, authcid, authzid, password, to);
            }
            Question::FetchKey { mechanism, kind, authcid, authzid, realm, .. } => {
                self.fetch_key(&users, epoch, mechanism, kind, authcid, authzid, realm, to);
            }
            Question::VerifyExternal { mechanism, authzid, ref certificate, .. } => {
                match certified(&users, authzid, certificate) {
                    Some((user, acting)) => {
                        let whose = (&user, acting.as_ref().unwrap_or(&user), mechanism, epoch);
                        sasl_answer(Status::Ok, false, Some(whose), &[], None, to);
                    }
                    None => sasl_answer(Status::Denied, false, None, &[], None, to),
                }
            }
            Question::VerifyToken { mechanism, authzid, token, .. } => {
                self.verify_token(&users, epoch, mechanism, authzid, token, to);
            }
            Question::Asserted { mechanism, authcid, authzid, .. } => {
                let name = users.options().names.name(authcid);
                let user = name.and_then(|name| users.named(&name));
                let whose = user.and_then(|user| authorize(&users, &user, authzid).map(|acting| (user, acting)));
                match &whose {
                    Some((user, acting)) => {
                        let whose = (user, acting.as_ref().unwrap_or(user), mechanism, epoch);
                        sasl_answer(Status::Ok, false, Some(whose), &[], None, to);
                    }
                    None => sasl_answer(Status::Denied, false, None, &[], None, to),
                }
            }
            // Asked where the back ends are: in the loop.
            Question::Backend { .. } => sasl_answer(Status::Unsupported, false, None, &[], None, to),
            Question::Recipient { address } => recipient(&users, address, to),
            Question::Sender { identity, address } => {
                let status = if may_send_as(&users, identity, address) { 0 } else { 1 };
                Answer::Sender { status }.encode(to);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one question")]
    fn verify_password(
        &self,
        users: &Users,
        epoch: u64,
        mechanism: &str,
        authcid: &[u8],
        authzid: &[u8],
        password: &[u8],
        to: &mut Vec<u8>,
    ) {
        let name = users.options().names.name(authcid);
        let user = name.as_deref().and_then(|name| users.named(name));
        let proven = self.proves(user.as_ref(), name.as_deref().map_or(authcid, str::as_bytes), password);
        let acting = user.as_ref().filter(|_| proven).and_then(|user| authorize(users, user, authzid));
        match (user, acting) {
            (Some(user), Some(acting)) => {
                let acting = acting.as_ref().unwrap_or(&user);
                sasl_answer(Status::Ok, false, Some((&user, acting, mechanism, epoch)), &[], None, to);
            }
            (user, _) => sasl_answer(Status::Denied, user.is_none(), None, &[], None, to),
        }
    }

    /// Who a token's issuer says it is for decides who has it, whatever the client says beside it. Somebody whom
    /// the users file does not know is told what is told of a forged token.
    fn verify_token(&self, users: &Users, epoch: u64, mechanism: &str, authzid: &[u8], token: &[u8], to: &mut Vec<u8>) {
        let Some(tokens) = &self.tokens else {
            return sasl_answer(Status::Unsupported, false, None, &[], None, to);
        };
        let (answer, issuer) = tokens.verify(token);
        let refusal = match answer {
            token::Answer::Trouble => return sasl_answer(Status::Temporary, false, None, &[], None, to),
            token::Answer::Bad(refusal) => refusal,
            token::Answer::Good(name) => {
                let user = users.options().names.name(name.as_bytes()).and_then(|name| users.named(&name));
                let acting = user.as_ref().and_then(|user| authorize(users, user, authzid));
                if let (Some(user), Some(acting)) = (user, acting) {
                    let acting = acting.as_ref().unwrap_or(&user);
                    return sasl_answer(Status::Ok, false, Some((&user, acting, mechanism, epoch)), &[], None, to);
                }
                Refusal::Invalid("for nobody here")
            }
        };
        let error = tokens.error(mechanism, refusal, issuer);
        sasl_answer(Status::Denied, false, None, error.as_bytes(), None, to);
    }

    /// Whether the password is right. Costs about the same when there is no such user.
    fn proves(&self, user: Option<&User>, name: &[u8], password: &[u8]) -> bool {
        // Cheap secrets only, or none: what they lack in cost is added when they do not fit.
        if user.is_some_and(|user| user.verify(password)) {
            return true;
        }
        let decoys = self.decoys();
        let stand_in = decoys.stand_in(name).filter(|_| user.is_none() && self.decoy_secret.is_none());
        if let Some(stand_in) = stand_in {
            let _ = black_box(stand_in.verify(password));
        }
        if user.or(stand_in).is_some_and(|user| user.secrets.iter().any(|secret| !secret.is_cheap())) {
            return false;
        }
        let keys = decoys.scram(Hash::Sha256, name);
        for candidate in prep::candidates(password) {
            match &self.decoy_secret {
                Some(decoy) => drop(black_box(decoy.verify("", &candidate))),
                None => drop(black_box(ScramKeys::derive(Hash::Sha256, &candidate, &keys.salt, keys.iterations))),
            }
        }
        false
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one question")]
    fn fetch_key(
        &self,
        users: &Users,
        epoch: u64,
        mechanism: &str,
        kind: u32,
        authcid: &[u8],
        authzid: &[u8],
        realm: &[u8],
        to: &mut Vec<u8>,
    ) {
        let (name, user) = claimed(users, authcid, realm);
        let name = name.as_deref().map_or(authcid, str::as_bytes);
        let acting = user.as_ref().and_then(|user| authorize(users, user, authzid));
        let whose = user.as_ref().zip(acting.as_ref());
        let whose = whose.map(|(user, acting)| (user, acting.as_ref().unwrap_or(user), mechanism, epoch));
        if let Some(hash) = scram_hash(kind) {
            let decoy = self.decoys().scram(hash, name);
            let real = self.scram_keys(users, user.as_ref(), hash, &decoy);
            match (real, whose) {
                (Some(real), Some(whose)) => scram_answer(&real, Some(whose), to),
                // May not act as `authzid`: salt and iterations must be the real ones, or they would tell that
                // the user exists. The keys fit no password.
                (Some(real), None) => {
                    let keys = ScramKeys { iterations: real.iterations, salt: real.salt, ..decoy };
                    scram_answer(&keys, None, to);
                }
                (None, _) => scram_answer(&decoy, None, to),
            }
            return;
        }
        match KeyKind::from_abi(kind) {
            Some(KeyKind::CramMd5Context) => {
                let real = user.as_ref().and_then(|user| user.secrets.iter().find_map(StoredSecret::cram_md5));
                match (real, whose) {
                    (Some(real), Some(whose)) => sasl_answer(Status::Ok, false, Some(whose), &*real, None, to),
                    _ => sasl_answer(Status::Ok, true, None, &self.decoys().cram_md5(name), None, to),
                }
            }
            Some(KeyKind::DigestMd5Ha1) => {
                let of = |user: &User| user.secrets.iter().find_map(|s| s.digest_md5(&user.name, authcid, realm));
                match (user.as_ref().and_then(of), whose) {
                    (Some(real), Some(whose)) => sasl_answer(Status::Ok, false, Some(whose), &*real, None, to),
                    _ => sasl_answer(Status::Ok, true, None, &self.decoys().digest_md5(name), None, to),
                }
            }
            Some(KeyKind::Cleartext) if users.options().secrets.allow_cleartext => {
                let real = user.as_ref().and_then(|user| user.secrets.iter().find_map(StoredSecret::cleartext));
                match (real, whose) {
                    (Some(real), Some(whose)) => sasl_answer(Status::Ok, false, Some(whose), real, None, to),
                    _ => sasl_answer(Status::Ok, true, None, &self.decoys().cram_md5(name), None, to),
                }
            }
            // Nobody has one, so this tells nothing about anybody.
            _ => sasl_answer(Status::Unsupported, false, None, &[], None, to),
        }
    }

    /// Stored SCRAM keys, or keys made from a password in clear. Where passwords in clear are allowed, and not all keys
    /// are made yet, each question costs one derivation, or the time would tell who has such a password, or exists.
    fn scram_keys(&self, users: &Users, user: Option<&User>, hash: Hash, decoy: &ScramKeys) -> Option<ScramKeys> {
        let stored = user.and_then(|user| user.secrets.iter().find_map(|secret| secret.scram_keys(hash)));
        if !users.options().secrets.allow_cleartext {
            return stored.cloned();
        }
        let derived = self.derived();
        if let Some(made) = derived.find(users, hash, user.map_or("", |user| &user.name)) {
            return stored.or(made).cloned();
        }
        let clear = user.and_then(derived::cleartext);
        let made = ScramKeys::derive(hash, &prep::enrolled(clear.unwrap_or(b"-")), &decoy.salt, decoy.iterations);
        stored.cloned().or_else(|| clear.map(|_| made))
    }
}

/// What is said when there is nobody to say more: the queue is full, or the work failed.
pub fn temporary(question: &Question<'_>, to: &mut Vec<u8>) {
    match question {
        Question::VerifyPassword { .. }
        | Question::FetchKey { .. }
        | Question::VerifyExternal { .. }
        | Question::VerifyToken { .. }
        | Question::Asserted { .. }
        | Question::Backend { .. } => {
            sasl_answer(Status::Temporary, false, None, &[], None, to);
        }
        Question::Recipient { .. } => Answer::Recipient { status: 2, mailbox: "" }.encode(to),
        Question::Sender { .. } => Answer::Sender { status: 2 }.encode(to),
    }
}

fn recipient(users: &Users, address: &str, to: &mut Vec<u8>) {
    let prepared = users.options().names.address(address);
    let mut found = prepared.as_deref().and_then(|address| users.mailbox(address));
    if found.is_none() && is_postmaster(address) {
        found = users.postmaster();
        if found.is_none() {
            // RFC 5321 §4.5.1 forbids to refuse it for good, and there is nobody yet.
            return Answer::Recipient { status: 2, mailbox: "" }.encode(to);
        }
    }
    match found {
        Some(user) => Answer::Recipient { status: 0, mailbox: &user.name }.encode(to),
        None => Answer::Recipient { status: 1, mailbox: "" }.encode(to),
    }
}

fn is_postmaster(address: &str) -> bool {
    address.split('@').next().is_some_and(|local| local.eq_ignore_ascii_case("postmaster"))
}

/// May send as every address whose mail it gets, and as what its line says.
fn may_send_as(users: &Users, identity: &str, address: &str) -> bool {
    let Some(user) = users.named(identity).filter(|user| !user.disabled) else { return false };
    let Some(address) = users.options().names.address(address) else { return false };
    let gets_mail = users.mailbox(&address).is_some_and(|owner| owner.name == user.name);
    gets_mail || matches(&user.senders, &address)
}

/// Whether one of `patterns` (`a@b`, `@b`, `*`) covers the prepared `address`.
fn matches(patterns: &[String], address: &str) -> bool {
    let domain = address.rfind('@').map(|at| &address[at..]);
    patterns.iter().any(|pattern| pattern == "*" || pattern == address || Some(pattern.as_str()) == domain)
}

/// Whether `user` may act as `authzid`, and who that is if it is somebody else. `None` is answered exactly
/// as a wrong password is.
pub(crate) fn authorize(users: &Users, user: &User, authzid: &[u8]) -> Option<Option<User>> {
    if authzid.is_empty() {
        return Some(None);
    }
    let wanted = users.options().names.name(authzid)?;
    if wanted == user.name {
        return Some(None);
    }
    let target = users.named(&wanted).filter(|target| matches(&user.authzids, &target.name) && !target.disabled);
    target.map(Some)
}

/// Whom a certificate stands for, and whom they act as if that is somebody else. When it fits several users
/// `authzid` has to say which; a guess would give somebody another one's rights.
fn certified(users: &Users, authzid: &[u8], certificate: &CertificateFields<'_>) -> Option<(User, Option<User>)> {
    let spki: String = certificate.spki_sha256.iter().map(|octet| format!("{octet:02x}")).collect();
    let mail =
        certificate.mail.iter().filter_map(|mail| Some(format!("mail:{}", users.options().names.address(mail)?)));
    let uris = certificate.uris.iter().map(|uri| format!("uri:{uri}"));
    let common_names = certificate.common_names.iter().map(|name| format!("cn:{name}"));
    let mut fitting: Vec<User> = Vec::new();
    for said in std::iter::once(format!("spki:{spki}")).chain(mail).chain(uris).chain(common_names) {
        for user in users.certified(&said) {
            if !fitting.iter().any(|known| known.name == user.name) {
                fitting.push(user);
            }
        }
    }
    let wanted = users.options().names.name(authzid).filter(|_| !authzid.is_empty());
    if let Some(at) = fitting.iter().position(|user| Some(&user.name) == wanted.as_ref()) {
        return Some((fitting.swap_remove(at), None));
    }
    let user = fitting.pop().filter(|_| fitting.is_empty())?;
    let acting = authorize(users, &user, authzid)?;
    Some((user, acting))
}

/// Whose key is asked for. In a realm (DIGEST-MD5) a name without a domain has the realm for one.
fn claimed(users: &Users, authcid: &[u8], realm: &[u8]) -> (Option<String>, Option<User>) {
    let names = &users.options().names;
    if !realm.is_empty() && !authcid.contains(&b'@') {
        let name = names.name(&[authcid, b"@", realm].concat());
        if let Some(user) = name.as_deref().and_then(|name| users.named(name)) {
            return (name, Some(user));
        }
    }
    let name = names.name(authcid);
    let user = name.as_deref().and_then(|name| users.named(name));
    (name, user)
}

pub(crate) fn scram_hash(kind: u32) -> Option<Hash> {
    match KeyKind::from_abi(kind)? {
        KeyKind::ScramSha1 => Some(Hash::Sha1),
        KeyKind::ScramSha256 => Some(Hash::Sha256),
        KeyKind::ScramSha512 => Some(Hash::Sha512),
        _ => None,
    }
}

/// Who proves it, whom they act as, with which mechanism, at which epoch.
pub(crate) type Whose<'a> = (&'a User, &'a User, &'a str, u64);

pub(crate) fn scram_answer(keys: &ScramKeys, whose: Option<Whose<'_>>, to: &mut Vec<u8>) {
    let mut data = Zeroizing::new(Vec::with_capacity(keys.salt.len() + 2 * keys.stored_key.len()));
    data.extend_from_slice(&keys.salt);
    data.extend_from_slice(&keys.stored_key);
    data.extend_from_slice(&keys.server_key);
    let scram = Scram {
        iterations: keys.iterations,
        salt_octets: keys.salt.len() as u16,
        hash_octets: keys.stored_key.len() as u16,
    };
    sasl_answer(Status::Ok, whose.is_none(), whose, &data, Some(scram), to);
}

pub(crate) fn sasl_answer(
    status: Status,
    doomed: bool,
    whose: Option<Whose<'_>>,
    data: &[u8],
    scram: Option<Scram>,
    to: &mut Vec<u8>,
) {
    let account = whose.map_or(0, |(user, _, mechanism, _)| {
        let allowed = user.mechanisms.is_empty()
            || MechanismName::parse(mechanism.as_bytes()).is_some_and(|name| user.mechanisms.contains(&name));
        match (user.disabled, allowed) {
            (true, _) => 1,
            (false, false) => 2,
            (false, true) => 0,
        }
    });
    let identity = whose.map(|(_, acting, _, epoch)| {
        let own = std::iter::once(&acting.name).chain(acting.aliases.iter().filter(|alias| !alias.starts_with('@')));
        IdentityFields {
            name: &acting.name,
            senders: own.chain(&acting.senders).take(SENDERS_MAX).map(String::as_str).collect(),
            message_octets_max: acting.message_octets_max,
            recipients_max: acting.recipients_max,
            epoch,
        }
    });
    Answer::Sasl { status: status as u32 as u8, doomed, account, identity, data, scram }.encode(to);
}
