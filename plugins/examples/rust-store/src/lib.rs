// SPDX-License-Identifier: MIT OR Apache-2.0
//! An example: a mechanism with a store of its own, two small pieces in one library.
//!
//! X-STORE-HMAC sends a challenge; the client answers `name NUL HMAC-SHA-256(secret, challenge)`. The mechanism, a
//! pure function, cannot know secrets: it hands challenge and answer to the back end `store` (BACKEND_CALL), which
//! does. The same store serves PLAIN, LOGIN and SCRAM-SHA-256 of other libraries, on a listener with
//! `backend = "store"`.
//!
//! ```toml
//! [[plugins.backend]]
//! name = "store"
//! settings = { users = { file = "store.txt" } } # lines of name:secret
//! ```
#![forbid(unsafe_code)]

use std::collections::HashMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use portreeve_plugin_sdk::{
    Asked, Backend, BackendMeta, Bad, Cx, Done, Effect, EffectKind, Event, KeyKind, Mechanism, Meta, Reply, Request,
    ScramKeys, Settings, flag,
};
use sha2::{Digest as _, Sha256};

/// Octets of the challenge, and of the proof.
const OCTETS: usize = 32;
/// Longest answer of a client.
const MESSAGE_OCTETS_MAX: usize = 1024;

/// X-STORE-HMAC.
pub struct StoreHmac;

/// The challenge that was sent.
#[derive(Default)]
pub struct Sent {
    challenge: Option<[u8; OCTETS]>,
}

impl Mechanism for StoreHmac {
    const META: Meta = Meta {
        name: c"X-STORE-HMAC",
        flags: flag::SERVER_FIRST | flag::ALLOW_NUL | flag::ENTROPY | flag::POD_STATE,
        needs: &[EffectKind::BackendCall],
        strength: 60,
        message_octets_max: MESSAGE_OCTETS_MAX as u32,
        output_octets_max: 2048,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = Sent;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[])?;
        Ok(Self)
    }

    fn step(&self, sent: &mut Sent, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match (sent.challenge, cx.event()) {
            (None, Event::Start { initial: None }) => {
                let challenge = cx.entropy().first_chunk::<OCTETS>().copied().ok_or(Bad::INTERNAL)?;
                sent.challenge = Some(challenge);
                cx.put(&challenge)?;
                cx.challenge()
            }
            (Some(challenge), Event::Message(answer)) => {
                if answer.len() <= OCTETS + 1 || answer.get(answer.len() - OCTETS - 1) != Some(&0) {
                    return Err(Bad::MALFORMED.because("not a name, NUL and 32 octets"));
                }
                // The request is ours to define: challenge, then the answer as it came.
                let mut request = [0; OCTETS + MESSAGE_OCTETS_MAX];
                request[..OCTETS].copy_from_slice(&challenge);
                request[OCTETS..OCTETS + answer.len()].copy_from_slice(answer);
                let service = cx.put_part(b"store")?;
                let request = cx.put_part(&request[..OCTETS + answer.len()])?;
                cx.perform(Effect::BackendCall { service, request })
            }
            // The answer proves whom the back end named beside it; the name itself goes past us.
            (Some(_), Event::Outcome(outcome)) => cx.succeed(outcome.proof()?),
            _ => Err(Bad::INTERNAL),
        }
    }
}

/// The store: names and secrets, and the keys of SCRAM made from them.
pub struct Store {
    users: HashMap<String, User>,
}

struct User {
    secret: Vec<u8>,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

/// As the host's `decoy_iterations` by default, so that nobody can tell who is here.
const ITERATIONS: u32 = 15_000;

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

impl User {
    fn new(name: &str, secret: &[u8]) -> Self {
        // Any salt that stays the same will do; a store of its own would keep a random one.
        let salt = mac(secret, &[name.as_bytes()]).finalize().into_bytes()[..16].to_vec();
        let salted: [u8; OCTETS] = pbkdf2::pbkdf2_hmac_array::<Sha256, OCTETS>(secret, &salt, ITERATIONS);
        let client_key = mac(&salted, &[b"Client Key"]).finalize().into_bytes();
        let server_key = mac(&salted, &[b"Server Key"]).finalize().into_bytes().to_vec();
        Self { secret: secret.to_vec(), salt, stored_key: Sha256::digest(client_key).to_vec(), server_key }
    }
}

impl Backend for Store {
    const META: BackendMeta = BackendMeta {
        name: c"store",
        config_schema: Some(
            c"{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"users\"],\"properties\":{\"users\":{\
              \"type\":\"string\",\"examples\":[\"ann:secret\"],\"description\":\"name:secret, a line each\"}}}",
        ),
        provides: &[EffectKind::VerifyPassword, EffectKind::FetchKey, EffectKind::BackendCall],
        // Everything is in memory.
        blocking: false,
        parallel_max: 1,
    };

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["users"])?;
        let mut users = HashMap::new();
        for (at, line) in settings.value("users").ok_or("`users` is missing")?.lines().enumerate() {
            let (name, secret) = line.split_once(':').ok_or(format!("users, line {}: not name:secret", at + 1))?;
            users.insert(name.to_owned(), User::new(name, secret.as_bytes()));
        }
        Ok(Self { users })
    }

    fn handle(&self, request: &Request<'_>) -> Reply {
        let find = |name: &[u8]| self.users.get_key_value(std::str::from_utf8(name).ok()?);
        match request.asked {
            Asked::Password { authcid, password, .. } => match find(authcid) {
                Some((name, user)) if same(&user.secret, password) => Reply::granted(name),
                Some(_) => Reply::denied(),
                None => Reply::unknown(),
            },
            Asked::Key { kind: KeyKind::ScramSha256, authcid, .. } => match find(authcid) {
                Some((name, User { salt, stored_key, server_key, .. })) => {
                    let (salt, stored_key, server_key) = (salt.clone(), stored_key.clone(), server_key.clone());
                    Reply::scram(name, ScramKeys { iterations: ITERATIONS, salt, stored_key, server_key })
                }
                None => Reply::unknown(),
            },
            Asked::Call { request, .. } => self.prove(request),
            _ => Reply::unsupported(),
        }
    }
}

impl Store {
    /// Challenge, name, NUL, proof.
    fn prove(&self, request: &[u8]) -> Reply {
        let parts = request.split_first_chunk::<OCTETS>();
        let Some((challenge, (named, proof))) =
            parts.and_then(|(challenge, answer)| Some((challenge, answer.split_last_chunk::<OCTETS>()?)))
        else {
            return Reply::unknown();
        };
        let name = named.strip_suffix(&[0]).and_then(|name| std::str::from_utf8(name).ok());
        match name.and_then(|name| self.users.get_key_value(name)) {
            Some((name, user)) if mac(&user.secret, &[challenge]).verify_slice(proof).is_ok() => Reply::granted(name),
            Some(_) => Reply::denied(),
            None => Reply::unknown(),
        }
    }
}

/// Whether two secrets are the same, in a time that says nothing about where they differ.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    Sha256::digest(ours).iter().zip(Sha256::digest(theirs)).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

portreeve_plugin_sdk::portreeve_plugin! { id: "example_store", mechanisms: [StoreHmac], backends: [Store] }
