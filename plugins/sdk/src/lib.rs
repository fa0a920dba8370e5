//! Write a SASL mechanism for Portreeve in safe Rust.
//!
//! A mechanism is a pure function: from its state and one [`Event`] to one answer. It never blocks, opens
//! nothing, reads no clock and no random source; what it cannot know or do itself it asks the host to do
//! as an [`Effect`], and is stepped again with the [`Outcome`]. The host owns base64, `*` and `=`, reply
//! codes, limits, decoys for unknown users, logging and the secrets' lifetime.
//!
//! This is all of PLAIN (RFC 4616), tested without a server:
//!
//! ```
//! use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Settings, flag};
//!
//! /// `[authzid] NUL authcid NUL password`.
//! pub struct Plain;
//!
//! impl Mechanism for Plain {
//!     const META: Meta = Meta {
//!         name: c"PLAIN",
//!         flags: flag::CLIENT_FIRST | flag::PLAINTEXT | flag::ALLOW_NUL | flag::UTF8 | flag::POD_STATE,
//!         needs: &[EffectKind::VerifyPassword],
//!         strength: 10,
//!         message_octets_max: 1024,
//!         steps_max: 4,
//!         ..Meta::NONE
//!     };
//!     type State = ();
//!
//!     fn configure(settings: &Settings<'_>) -> Result<Self, String> {
//!         settings.only(&[])?; // a setting nobody reads is an operator's mistake
//!         Ok(Plain)
//!     }
//!
//!     fn step(&self, _: &mut (), cx: Cx<'_>) -> Result<Done, Bad> {
//!         let message = match cx.event() {
//!             Event::Start { initial: None } => return cx.challenge(),
//!             Event::Start { initial: Some(message) } | Event::Message(message) => message,
//!             Event::Outcome(outcome) => return cx.succeed(outcome.proof()?),
//!             Event::Resume => return Err(Bad::INTERNAL),
//!         };
//!         let mut fields = message.split(|octet| *octet == 0);
//!         let (Some(authzid), Some(authcid), Some(password), None) =
//!             (fields.next(), fields.next(), fields.next(), fields.next())
//!         else {
//!             return Err(Bad::MALFORMED.because("not exactly two NULs"));
//!         };
//!         if authcid.is_empty() || password.is_empty() {
//!             return Err(Bad::MALFORMED.because("user or password is empty"));
//!         }
//!         // Nothing is copied: the host is told where in the message the fields lie.
//!         let effect = Effect::VerifyPassword {
//!             authcid: cx.part(authcid)?,
//!             authzid: cx.part(authzid)?,
//!             password: cx.part(password)?,
//!         };
//!         cx.perform(effect)
//!     }
//! }
//!
//! // Makes the library: descriptor, exported function, ELF note. In Cargo.toml: crate-type = ["cdylib"].
//! portreeve_plugin_sdk::portreeve_plugin! { id: "example", mechanisms: [Plain] }
//!
//! use portreeve_plugin_sdk::testing::{Answer, Exchange};
//! use portreeve_plugin_sdk::Status;
//! let mut exchange = Exchange::new(Plain);
//! match exchange.start(Some(b"\0tim\0tanstaaftanstaaf")) {
//!     Answer::Effect { kind: EffectKind::VerifyPassword, authcid, data: password, .. } => {
//!         assert_eq!((&authcid[..], &password[..]), (&b"tim"[..], &b"tanstaaftanstaaf"[..]));
//!     }
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
//! ```
//!
//! A panic in any method is caught at the border and becomes an internal failure of that one exchange, with
//! file and line for the audit log. Build with `panic = "unwind"` (the default): the host refuses libraries
//! that would abort. A step must not allocate: the state lives in memory of the host, output goes to
//! [`Cx::put`], and the host's checks count.
//!
//! A library may bring its own credentials, too: [`Backend`] answers the effects of mechanisms, those of the same
//! library in a protocol of its own.
//!
//! ```
//! use portreeve_plugin_sdk::{Asked, Backend, BackendMeta, EffectKind, Reply, Request, Settings};
//!
//! /// Everybody whose password is their name, backwards.
//! struct Backwards;
//!
//! impl Backend for Backwards {
//!     const META: BackendMeta = BackendMeta {
//!         name: c"backwards",
//!         provides: &[EffectKind::VerifyPassword],
//!         ..BackendMeta::NONE
//!     };
//!
//!     fn configure(settings: &Settings<'_>) -> Result<Self, String> {
//!         settings.only(&[])?;
//!         Ok(Backwards)
//!     }
//!
//!     fn handle(&self, request: &Request<'_>) -> Reply {
//!         let Asked::Password { authcid, password, .. } = request.asked else { return Reply::unsupported() };
//!         match std::str::from_utf8(authcid) {
//!             Ok(name) if name.bytes().rev().eq(password.iter().copied()) => Reply::granted(name),
//!             Ok(_) => Reply::denied(),
//!             Err(_) => Reply::unknown(),
//!         }
//!     }
//! }
//!
//! portreeve_plugin_sdk::portreeve_plugin! { id: "example", mechanisms: [], backends: [Backwards] }
//! ```
#![deny(unsafe_code)] // export.rs, the foreign edge, is the exception

mod backend;
mod cx;
#[allow(unsafe_code, reason = "the foreign edge: everything else in this crate is safe code")]
#[doc(hidden)]
pub mod export;
mod settings;
pub mod testing;

pub use backend::{Asked, Backend, BackendMeta, Reply, Request, ScramKeys};
pub use cx::{
    Bad, ChannelBinding, Cx, Done, Effect, EffectKind, Event, KeyKind, Outcome, Part, Proof, ScramKey, Status,
};
pub use settings::Settings;

#[doc(hidden)]
pub use portreeve_plugin_abi as abi;

use std::ffi::CStr;

/// Bits of [`Meta::flags`]; explained in `portreeve_plugin.h`.
pub mod flag {
    pub use portreeve_plugin_abi::mech_flag::*;
}

/// One SASL mechanism.
///
/// One value per listener and reload, shared by all its exchanges and threads; one `State` per exchange.
pub trait Mechanism: Send + Sync + Sized + 'static {
    /// What it declares about itself.
    const META: Meta;
    /// What one exchange remembers between steps: at most 4,000 octets, in memory of the host. Made by
    /// `Default` when the exchange starts.
    type State: Default + Send + 'static;
    /// Takes the operator's settings; called before any exchange. The error is shown to the operator.
    fn configure(settings: &Settings<'_>) -> Result<Self, String>;
    /// One step of one exchange.
    fn step(&self, state: &mut Self::State, cx: Cx<'_>) -> Result<Done, Bad>;
}

/// What a mechanism declares about itself. Checked when the library is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// RFC 4422 §3.1: 1 to 20 of `A-Z 0-9 - _`.
    pub name: &'static CStr,
    /// For `X-PLUS`: `X`.
    pub plus_of: Option<&'static CStr>,
    /// JSON Schema of the settings.
    pub config_schema: Option<&'static CStr>,
    /// Set of [`flag`] bits.
    pub flags: u32,
    /// The effects that it may ask for; the host refuses any other.
    pub needs: &'static [EffectKind],
    /// Position in the EHLO list, 0..=100, strongest first.
    pub strength: u32,
    /// Longest client message after base64.
    pub message_octets_max: u32,
    /// Most octets that one step puts out.
    pub output_octets_max: u32,
    /// Most steps in one exchange, at most 32. An effect costs one.
    pub steps_max: u32,
}

impl Meta {
    /// To start from: `Meta { name: c"…", ..Meta::NONE }`. It does not pass the checks by itself.
    pub const NONE: Meta = Meta {
        name: c"",
        plus_of: None,
        config_schema: None,
        flags: 0,
        needs: &[],
        strength: 0,
        message_octets_max: 1024,
        output_octets_max: 0,
        steps_max: 8,
    };
}
