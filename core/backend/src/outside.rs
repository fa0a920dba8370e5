//! What a back end of a library says, turned into an answer of ours. Nothing of it counts before it was looked at:
//! numbers and lengths of keys, and the identity, which goes through the same rules as the names of the users file.
//!
//! | the back end says                    | the mechanism is told                 | the host notes             |
//! |--------------------------------------|---------------------------------------|----------------------------|
//! | OK, found                            | OK, with the key or the reply         | whose credential it is     |
//! | a key: not found, or not OK          | OK, with a decoy                      | doomed: must not succeed   |
//! | a password, a token: not found       | denied, as for a wrong one            | doomed                     |
//! | TEMPFAIL, nothing, nonsense          | temporary: 454 4.7.0                  |                            |
//!
//! An identity that is a user of the users file has that user's rights, limits and bars. Any other may send as
//! itself. One that is another user's alias there is nobody: it would get that user's mail's rights.

use link::backend::{BROKEN, Effect, Reply};
use sasl::{EffectKind, KeyKind, Status};

use super::directory::{Directory, authorize, sasl_answer, scram_answer, scram_hash};
use crate::broker::Spec;
use crate::scheme::ScramKeys;
use crate::users::{User, Users};

/// Longest salt, most iterations: as for the users file.
const SALT_OCTETS_MAX: usize = 256;
const ITERATIONS_MAX: u32 = 10_000_000;
/// Longest password in clear.
const CLEARTEXT_OCTETS_MAX: usize = 1024;
/// Longest private reply of a back end to its mechanism, and longest error beside a token.
const DATA_OCTETS_MAX: usize = 65_536;

#[cfg(test)]
mod tests;

/// What is wrong with a reply: for the log.
pub type Fault = &'static str;

impl Directory {
    /// Appends the encoded answer to `effect`. The error: the back end broke its contract, and the answer is
    /// "temporary".
    pub fn outside(
        &self,
        spec: &Spec,
        effect: &Effect<'_>,
        reply: Option<&Reply<'_>>,
        to: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let epoch = self.epoch_now();
        let users = self.users();
        let outcome = match (EffectKind::from_abi(effect.effect), reply) {
            (_, None) => Ok(Outcome::bare(Status::Temporary)),
            (_, Some(reply)) if reply.status == BROKEN => Ok(Outcome::bare(Status::Temporary)),
            (None, _) => Ok(Outcome::bare(Status::Unsupported)),
            (Some(EffectKind::FetchKey), Some(reply)) => key(&users, spec, effect, reply),
            (Some(EffectKind::BackendCall), Some(reply)) => private(&users, reply),
            (Some(kind), Some(reply)) => verdict(&users, kind, effect, reply),
        };
        let (outcome, fault) = match outcome {
            Ok(outcome) => (outcome, Ok(())),
            Err(fault) => (Outcome::bare(Status::Temporary), Err(fault)),
        };
        let acting = outcome.who.as_ref().map(|(user, acting)| (user, acting.as_ref().unwrap_or(user)));
        let whose = acting.map(|(user, acting)| (user, acting, effect.mechanism, epoch));
        match &outcome.scram {
            Some(keys) => scram_answer(keys, whose, to),
            None => sasl_answer(outcome.status, outcome.doomed, whose, &outcome.data, None, to),
        }
        fault
    }
}

struct Outcome {
    status: Status,
    doomed: bool,
    /// Who proves it, and whom they act as if that is somebody else.
    who: Option<(User, Option<User>)>,
    data: zeroize::Zeroizing<Vec<u8>>,
    scram: Option<ScramKeys>,
}

impl Outcome {
    fn bare(status: Status) -> Self {
        Self { status, doomed: false, who: None, data: Default::default(), scram: None }
    }

    fn with(mut self, data: &[u8]) -> Self {
        self.data.extend_from_slice(data);
        self
    }
}

/// A password, a token, a certificate: right or not.
fn verdict(users: &Users, kind: EffectKind, effect: &Effect<'_>, reply: &Reply<'_>) -> Result<Outcome, Fault> {
    if reply.data.len() > DATA_OCTETS_MAX {
        return Err("more data than there is room for");
    }
    let status = status(reply)?;
    if matches!(status, Status::Temporary | Status::Unsupported) {
        return Ok(Outcome::bare(status));
    }
    let said = match reply.identity {
        b"" if kind == EffectKind::VerifyPassword => effect.authcid,
        said => said,
    };
    if status == Status::Ok && reply.found {
        if said.is_empty() {
            return Err("OK without an identity");
        }
        let user = identity(users, said)?;
        return Ok(match authorize(users, &user, effect.authzid) {
            Some(acting) => Outcome { who: Some((user, acting)), ..Outcome::bare(Status::Ok) },
            None => Outcome::bare(Status::Denied),
        });
    }
    // RFC 7628's error, for instance, is for a token; a wrong password has nothing to say.
    let data = if kind == EffectKind::VerifyToken { reply.data } else { b"" };
    let status = if status == Status::Ok { Status::Denied } else { status };
    Ok(Outcome { doomed: !reply.found, ..Outcome::bare(status).with(data) })
}

/// A key, or a decoy: salt and iterations are seen before anything is proven.
fn key(users: &Users, spec: &Spec, effect: &Effect<'_>, reply: &Reply<'_>) -> Result<Outcome, Fault> {
    let kind = KeyKind::from_abi(effect.arg).ok_or("asked for an unknown kind of key")?;
    let status = status(reply)?;
    if matches!(status, Status::Temporary | Status::Unsupported) {
        return Ok(Outcome::bare(status));
    }
    let prepared = users.options().names.name(effect.authcid);
    let name = prepared.as_deref().map_or(effect.authcid, str::as_bytes);
    let found = status == Status::Ok && reply.found;
    let user = match (found, reply.identity) {
        (false, _) => None,
        (true, b"") => Some(identity(users, effect.authcid)?),
        (true, said) => Some(identity(users, said)?),
    };
    let who = user.and_then(|user| {
        let acting = authorize(users, &user, effect.authzid)?;
        Some((user, acting))
    });
    let doomed = who.is_none();
    if let Some(hash) = scram_hash(effect.arg) {
        let decoy = spec.decoys.scram(hash, name);
        if !found {
            return Ok(Outcome { doomed, scram: Some(decoy), ..Outcome::bare(Status::Ok) });
        }
        let whole = reply.stored_key.len() == hash.octets() && reply.server_key.len() == hash.octets();
        let bounds =
            (1..=SALT_OCTETS_MAX).contains(&reply.salt.len()) && (1..=ITERATIONS_MAX).contains(&reply.iterations);
        if !whole || !bounds {
            return Err("a SCRAM key whose salt, iterations or lengths cannot be");
        }
        let (iterations, salt) = (reply.iterations, reply.salt.to_vec());
        let keys = match doomed {
            // May not act as `authzid`: what can be seen must be the real thing, or it would tell that the user
            // exists. The keys fit no password.
            true => ScramKeys { iterations, salt, ..decoy },
            false => ScramKeys {
                iterations,
                salt,
                stored_key: zeroize::Zeroizing::new(reply.stored_key.to_vec()),
                server_key: zeroize::Zeroizing::new(reply.server_key.to_vec()),
            },
        };
        return Ok(Outcome { doomed, who, scram: Some(keys), ..Outcome::bare(Status::Ok) });
    }
    let octets = match kind {
        KeyKind::DigestMd5Ha1 => 16..=16,
        KeyKind::CramMd5Context => 32..=32,
        _ => 1..=CLEARTEXT_OCTETS_MAX,
    };
    if found && !octets.contains(&reply.data.len()) {
        return Err("a key whose length cannot be");
    }
    let decoy = spec.decoys.cram_md5(name);
    let data = if doomed { decoy.get(..*octets.end().min(&decoy.len())).unwrap_or_default() } else { reply.data };
    Ok(Outcome { doomed, who, ..Outcome::bare(Status::Ok).with(data) })
}

/// What a back end tells its own mechanism. An identity beside it is a proof.
fn private(users: &Users, reply: &Reply<'_>) -> Result<Outcome, Fault> {
    if reply.data.len() > DATA_OCTETS_MAX {
        return Err("more data than there is room for");
    }
    let status = status(reply)?;
    let proven = status == Status::Ok && reply.found && !reply.identity.is_empty();
    let who = if proven { Some((identity(users, reply.identity)?, None)) } else { None };
    let doomed = status == Status::Ok && !reply.found;
    Ok(Outcome { doomed, who, ..Outcome::bare(status).with(reply.data) })
}

fn status(reply: &Reply<'_>) -> Result<Status, Fault> {
    match reply.status {
        0..=5 => Ok(Status::from_abi(reply.status)),
        _ => Err("a status that there is not"),
    }
}

/// Whom a back end means.
fn identity(users: &Users, said: &[u8]) -> Result<User, Fault> {
    let name = users.options().names.name(said).ok_or("an identity that is no name")?;
    if let Some(user) = users.named(&name) {
        return Ok(user);
    }
    // As for lines of the file: names become folders.
    if name.contains(['/', ' ']) || name.starts_with('.') {
        return Err("an identity that begins with '.' or contains '/' or a space");
    }
    if users.aliased(&name).is_some() {
        return Err("an identity that is an alias of a user of the users file");
    }
    Ok(User { name, ..User::default() })
}
