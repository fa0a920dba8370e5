//! GSSAPI (Kerberos V5) for mail clients that have a ticket, as a library of its own: id `gssapi`. It needs libkrb5,
//! its keytab and its replay cache, so it runs in a process of its own, with what the operator grants, and is
//! believed who somebody is (`self_asserts`).
//!
//! ```text
//! client: token → accept … until the context stands          RFC 4422 calls each a response
//! server: 4 octets, wrapped: the layers offered              "none" and nothing else: SMTP has TLS
//! client: 4 octets and whom to act as, wrapped               must choose "none"
//! ```
//!
//! | setting | |
//! |---|---|
//! | `keytab` | file with the keys; libkrb5's default |
//! | `principal` | the one that clients must have a ticket for; any `smtp/…` of the keytab |
//! | `config` | the file that is usually `/etc/krb5.conf` |
//! | `replay_cache` | file that remembers what was said; libkrb5's default, below `/var/tmp` |
//! | `realm` | the only realm whose principals are known here |
//! | `domain` | users are called `primary@domain` instead of `primary@realm`; needs `realm` |
//! | `strip_realm` | users are called `primary`; needs `realm` |
#![deny(unsafe_code)] // gss.rs, the foreign edge, is the exception

#[allow(unsafe_code, reason = "the foreign edge: calls of libgssapi_krb5")]
mod gss;
mod names;

use std::ffi::CString;

use portreeve_plugin_sdk::{Bad, Cx, Done, Event, Mechanism, Meta, Part, Settings, flag};

use gss::{Accepted, Context, Credential, Trouble};
use names::{Domain, Mapping};

/// Which layers there are (RFC 4422 §3.7): none, so no size either.
const NO_LAYER: [u8; 4] = [1, 0, 0, 0];
/// Longest identity that a client may want to act as.
const AUTHZID_OCTETS_MAX: usize = 1024;

/// The GSSAPI mechanism.
pub struct Gssapi {
    principal: Option<String>,
    keytab: Option<CString>,
    replay_cache: Option<CString>,
    mapping: Mapping,
}

/// How far an exchange is.
#[derive(Default)]
#[allow(clippy::large_enum_variant, reason = "it lives in the host's memory, which has room for the largest anyway")]
pub enum State {
    /// The client's first token comes.
    #[default]
    Fresh,
    /// More tokens come.
    Accepting(Context),
    /// The context stands; the client has our last token and answers it with nothing.
    Acknowledging(Context, String),
    /// The client chooses a layer, and says whom to act as.
    Choosing(Context, String),
    /// Nothing comes.
    Over,
}

impl Mechanism for Gssapi {
    const META: Meta = Meta {
        name: c"GSSAPI",
        config_schema: Some(SCHEMA),
        flags: flag::CLIENT_FIRST | flag::MUTUAL | flag::ALLOW_NUL | flag::SELF_ASSERTS | flag::OFFLOAD_ALL,
        strength: 75,
        // Tickets of large organisations carry the groups of their users.
        message_octets_max: 65_536,
        output_octets_max: 8192,
        steps_max: 16,
        ..Meta::NONE
    };
    type State = State;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["keytab", "principal", "config", "replay_cache", "realm", "domain", "strip_realm"])?;
        let text = |key: &str| settings.value(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let path = |key: &str, kind: &str| match text(key) {
            Some(path) if !path.starts_with('/') => Err(format!("`{key}` is {path:?}: write a whole path")),
            Some(path) => {
                CString::new(format!("{kind}{path}")).map(Some).map_err(|_| format!("`{key}` has a NUL in it"))
            }
            None => Ok(None),
        };
        let mapping = Mapping {
            realm: text("realm"),
            domain: match (text("domain"), settings.value("strip_realm") == Some("true")) {
                (Some(_), true) => return Err("`domain` and `strip_realm` exclude each other: keep one".into()),
                (Some(domain), false) => Domain::Is(domain),
                (None, true) => Domain::Stripped,
                (None, false) => Domain::Realm,
            },
        };
        if mapping.realm.is_none() && mapping.domain != Domain::Realm {
            return Err(
                "`domain` and `strip_realm` need `realm` beside them: the alice of every other realm that your \
                        Kerberos trusts would be your alice"
                    .into(),
            );
        }
        if let Some(file) = path("config", "")?.and_then(|path| path.into_string().ok()) {
            gss::use_configuration(&file);
        }
        let (keytab, replay_cache) = (path("keytab", "FILE:")?, path("replay_cache", "file2:")?);
        let this = Self { principal: text("principal"), keytab, replay_cache, mapping };
        // Also loads whatever the library loads at its first use: later it can load nothing.
        match this.credential() {
            Err(trouble) if settings.value("keytab").is_some() => Err(format!(
                "no key: {}; is the keytab there, readable for the user that the server runs as, and granted: \
                 grant = [\"read:{}\"]?",
                trouble.words(),
                settings.value("keytab").unwrap_or_default()
            )),
            _ => Ok(this),
        }
    }

    fn step(&self, state: &mut State, cx: Cx<'_>) -> Result<Done, Bad> {
        let message = match cx.event() {
            Event::Start { initial: None } => return cx.challenge(),
            Event::Start { initial: Some(message) } | Event::Message(message) => message,
            Event::Outcome(_) | Event::Resume => return Err(Bad::INTERNAL.because("nothing was asked for")),
        };
        match std::mem::replace(state, State::Over) {
            State::Fresh => {
                // Whatever it is, it is no fault of the client's.
                const NO_KEY: Bad = Bad::TEMPORARY.because("no key: is the keytab there, readable and granted?");
                let credential = self.credential().map_err(|_| NO_KEY)?;
                self.accept(state, Context::new(credential), message, cx)
            }
            State::Accepting(context) => self.accept(state, context, message, cx),
            State::Acknowledging(context, principal) if message.is_empty() => offer(state, context, principal, cx),
            State::Acknowledging(..) => Err(Bad::MALFORMED.because("the last token is answered with nothing")),
            State::Choosing(context, principal) => self.choose(context, &principal, message, cx),
            State::Over => Err(Bad::INTERNAL.because("the exchange is over")),
        }
    }
}

impl Gssapi {
    /// Read anew for each exchange: a keytab may have been renewed.
    fn credential(&self) -> Result<Credential, Trouble> {
        let store = [(c"keytab", &self.keytab), (c"rcache", &self.replay_cache)];
        let store: Vec<_> = store.iter().filter_map(|(key, value)| value.as_ref().map(|value| (*key, value))).collect();
        Credential::acquire(self.principal.as_deref(), &store)
    }

    fn accept(&self, state: &mut State, mut context: Context, token: &[u8], mut cx: Cx<'_>) -> Result<Done, Bad> {
        if token.is_empty() {
            return Err(Bad::MALFORMED.because("an empty token"));
        }
        let Accepted { token, peers } = context.accept(token).map_err(bad)?;
        cx.put(&token)?;
        let Some((principal, target)) = peers else {
            *state = State::Accepting(context);
            return cx.challenge();
        };
        // With a name of our own the library has looked; without one any key of the keytab fits, that of a login
        // server, too.
        if self.principal.is_none() && !target.starts_with("smtp/") {
            return Err(Bad::CREDENTIALS.because("the ticket is for another service than smtp"));
        }
        if token.is_empty() {
            return offer(state, context, principal, cx);
        }
        *state = State::Acknowledging(context, principal);
        cx.challenge()
    }

    fn choose(&self, mut context: Context, principal: &str, message: &[u8], mut cx: Cx<'_>) -> Result<Done, Bad> {
        let plain = context.unwrap(message).map_err(bad)?;
        let Some((chosen, authzid)) = plain.split_first_chunk::<4>() else {
            return Err(Bad::MALFORMED.because("the choice of a layer has four octets"));
        };
        if *chosen != NO_LAYER {
            return Err(Bad::MALFORMED.because("a layer that was not offered, or a size for none"));
        }
        let authzid = std::str::from_utf8(authzid).ok().filter(|authzid| !authzid.contains('\0'));
        let authzid = authzid.filter(|authzid| authzid.len() <= AUTHZID_OCTETS_MAX);
        let authzid = authzid.ok_or(Bad::MALFORMED.because("an authorization identity that can be nobody's"))?;
        let authcid = cx.put_part(self.mapping.user(principal)?.as_bytes())?;
        let authzid = match self.mapping.authzid(authzid, principal)? {
            authzid if authzid.is_empty() => Part::EMPTY,
            authzid => cx.put_part(authzid.as_bytes())?,
        };
        cx.assert_identity(authcid, authzid)
    }
}

/// Tells the client which layers there are.
fn offer(state: &mut State, mut context: Context, principal: String, mut cx: Cx<'_>) -> Result<Done, Bad> {
    cx.put(&context.wrap(&NO_LAYER).map_err(bad)?)?;
    *state = State::Choosing(context, principal);
    cx.challenge()
}

/// What the failure of a call means, by the numbers of RFC 2744 and of libkrb5's `krb5.h`.
fn bad(Trouble { major, minor }: Trouble) -> Bad {
    const TICKET_EXPIRED: i64 = -1_765_328_352;
    const TICKET_NOT_YET_VALID: i64 = -1_765_328_351;
    const REPEAT: i64 = -1_765_328_350;
    const SKEW: i64 = -1_765_328_347;
    const BAD_INTEGRITY: i64 = -1_765_328_353;
    const WRONG_PRINCIPAL: i64 = -1_765_328_240;
    const KEYTAB_NOT_FOUND: i64 = -1_765_328_203;
    const KEYTAB_IO: i64 = -1_765_328_200;
    const KEYTAB_VERSION_NOT_FOUND: i64 = -1_765_328_154;
    // The replay cache's own troubles; one of them is that it has found a replay.
    const CACHE: std::ops::RangeInclusive<i64> = -1_765_328_225..=-1_765_328_212;
    const CACHE_REPLAY: i64 = -1_765_328_221;
    const CACHE_REQUIRED: i64 = -1_765_328_169;
    let routine = major & 0x00ff_0000;
    match i64::from(minor.cast_signed()) {
        _ if major & gss::DUPLICATE_TOKEN != 0 => Bad::CREDENTIALS.because("this was said before"),
        REPEAT | CACHE_REPLAY => Bad::CREDENTIALS.because("this was said before"),
        TICKET_EXPIRED => Bad::EXPIRED.because("the ticket has expired"),
        TICKET_NOT_YET_VALID | SKEW => Bad::CREDENTIALS.because("the client's clock and ours differ"),
        WRONG_PRINCIPAL | KEYTAB_NOT_FOUND | KEYTAB_VERSION_NOT_FOUND => {
            Bad::CREDENTIALS.because("the ticket is for another service, or for another key than the keytab has")
        }
        BAD_INTEGRITY => Bad::CREDENTIALS.because("the ticket does not fit our key, or was changed"),
        KEYTAB_IO => Bad::TEMPORARY.because("the keytab cannot be read: is it granted?"),
        minor if CACHE.contains(&minor) || minor == CACHE_REQUIRED => {
            Bad::TEMPORARY.because("the replay cache cannot be written: is its folder granted?")
        }
        // EPERM, ENOENT, EIO, EACCES, EFBIG, ENOSPC, EROFS: the system's own numbers come through.
        1 | 2 | 5 | 13 | 27 | 28 | 30 if routine == gss::FAILURE => {
            Bad::TEMPORARY.because("the replay cache or the keytab cannot be opened: is it granted?")
        }
        _ if routine == gss::CREDENTIALS_EXPIRED || routine == gss::CONTEXT_EXPIRED => {
            Bad::EXPIRED.because("the ticket has expired")
        }
        _ if routine == gss::DEFECTIVE_TOKEN || routine == gss::BAD_MECH => {
            Bad::MALFORMED.because("a token that is none")
        }
        _ if routine == gss::NO_CRED => Bad::TEMPORARY.because("no key: is the keytab there and granted?"),
        _ if routine == gss::UNAVAILABLE => Bad::CREDENTIALS.because("the context protects nothing"),
        _ => Bad::CREDENTIALS.because("the token was refused"),
    }
}

const SCHEMA: &std::ffi::CStr = cr#"{
  "type": "object", "additionalProperties": false,
  "properties": {
    "keytab": { "type": "string", "description": "file with the keys" },
    "principal": { "type": "string", "description": "whom clients must have a ticket for, smtp/mx.example.org" },
    "config": { "type": "string", "description": "file instead of /etc/krb5.conf" },
    "replay_cache": { "type": "string", "description": "file that remembers what was said" },
    "realm": { "type": "string", "description": "the only realm that is known here" },
    "domain": { "type": "string", "description": "stands for the realm in users' names" },
    "strip_realm": { "type": "boolean", "description": "users' names have no domain" }
  }
}"#;

portreeve_plugin_sdk::portreeve_plugin! { id: "gssapi", mechanisms: [Gssapi] }
