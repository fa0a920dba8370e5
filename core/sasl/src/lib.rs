//! SASL (RFC 4422) as pure types: what a mechanism is, what it is told, what it may answer.
//!
//! ```text
//! Event (start, message, outcome of an effect) → Mechanism::step → Step
//!                                                                   ├─ Challenge  send it, wait for the client
//!                                                                   ├─ Effect     the host performs it, then Event::Outcome
//!                                                                   ├─ Success    names the effect that proved the identity
//!                                                                   ├─ Asserted   says itself who it is; needs consent
//!                                                                   └─ Failure    one of a closed set of classes
//! ```
//!
//! Absent on purpose: base64, `*`, `=`, line limits, reply codes, clocks, randomness, sockets. The host
//! owns all of them; a mechanism maps octets to a decision. Nothing here knows how a mechanism is
//! implemented: the plugin host adapts a shared library to [`Mechanism`], tests implement it directly.
#![forbid(unsafe_code)]

mod carried;
mod name;
mod secret;
mod state;
mod wipe;

pub use carried::{Flat, OwnedStep};
pub use name::MechanismName;
pub use secret::Secret;
pub use state::State;
pub use wipe::{wipe, wipe_all};

use std::net::IpAddr;

/// What a mechanism declares about itself; constant for its lifetime.
#[derive(Clone, Debug)]
pub struct Traits {
    /// A set of [`flag`] bits.
    pub flags: u32,
    /// Bit `n` stands for the effect kind `16 + n` of the plugin ABI; see [`EffectKind`].
    pub needs: u64,
    /// Position in the EHLO list, 0..=100, strongest first.
    pub strength: u32,
    /// Octets of [`State`] that one exchange needs, at most 4096.
    pub state_octets: usize,
    /// Longest decoded client message, octets. The host refuses longer ones before a step.
    pub message_octets_max: usize,
    /// Scratch that a step may fill with challenge or effect data, octets.
    pub output_octets_max: usize,
    /// Most steps in one exchange; at most 32.
    pub steps_max: u32,
    /// For `X-PLUS`: the name `X` of its sibling without channel binding.
    pub plus_of: Option<MechanismName>,
}

/// Bits of [`Traits::flags`], numbered as in the plugin ABI.
pub mod flag {
    /// Accepts an initial response.
    pub const CLIENT_FIRST: u32 = 0x0001;
    /// An initial response is an error (RFC 4954 §4: 501 5.7.0), found by the host.
    pub const SERVER_FIRST: u32 = 0x0002;
    /// A password or bearer token crosses the wire: offered only inside TLS.
    pub const PLAINTEXT: u32 = 0x0004;
    /// Offered only inside TLS.
    pub const NEEDS_TLS: u32 = 0x0008;
    /// Offered only to a client whose certificate was verified.
    pub const NEEDS_CERT: u32 = 0x0010;
    /// A `-PLUS` mechanism: needs a usable channel binding.
    pub const CHANNEL_BIND: u32 = 0x0020;
    /// Proves the server to the client, too.
    pub const MUTUAL: u32 = 0x0040;
    /// Grants no identity.
    pub const ANONYMOUS: u32 = 0x0080;
    /// Never offered unless the configuration names it.
    pub const OBSOLETE: u32 = 0x0100;
    /// Messages may contain NUL.
    pub const ALLOW_NUL: u32 = 0x0200;
    /// Wants fresh random octets with each event.
    pub const ENTROPY: u32 = 0x0400;
    /// State has no pointers and no destructor.
    pub const POD_STATE: u32 = 0x0800;
    /// Proves identities by itself; needs the operator's consent.
    pub const SELF_ASSERTS: u32 = 0x1000;
    /// Every step runs outside the event loop.
    pub const OFFLOAD_ALL: u32 = 0x2000;
    /// One round trip: AUTH need not end a pipelined group (RFC 4954 §4).
    pub const ONE_ROUNDTRIP: u32 = 0x4000;
    /// Messages must be UTF-8.
    pub const UTF8: u32 = 0x8000;
}

/// The connection as a mechanism may know it: a snapshot taken when the exchange starts.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Whether the connection is inside TLS.
    pub tls: bool,
    /// Negotiated version as on the wire (0x0303, 0x0304), 0 outside TLS.
    pub tls_version: u16,
    /// A client certificate was presented and verified.
    pub client_certificate: bool,
    /// The `-PLUS` sibling was listed in the EHLO reply of this connection.
    pub plus_offered: bool,
    /// Set of `1 << ChannelBinding as u32`.
    pub channel_bindings: u32,
    /// Our own name, as in the greeting.
    pub server_name: &'a str,
    /// The peer's address.
    pub client_ip: IpAddr,
    /// The listener's name in the configuration.
    pub listener: &'a str,
    /// The name that the client asked for in TLS (SNI), empty when none.
    pub sni: &'a str,
    /// Identifies the session in logs.
    pub session: u64,
}

/// Channel bindings by their ABI number. There is no tls-unique (RFC 9266 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChannelBinding {
    /// RFC 9266.
    TlsExporter = 1,
    /// RFC 5929 §4.
    TlsServerEndPoint = 2,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A new exchange. `initial` tells whether [`Input::message`] is an initial response: absent and
    /// empty (`=` on the wire) are different things (RFC 4954 §4).
    Start {
        /// The client sent an initial response, possibly empty.
        initial: bool,
    },
    /// The client's next response is in [`Input::message`].
    Message,
    /// The effect that was asked for has ended. [`Input::message`] is still the same client message.
    Outcome(Outcome<'a>),
    /// Answer to [`Step::Offload`], now away from the event loop.
    Resume,
}

/// Everything that one step may look at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What happened.
    pub event: Event<'a>,
    /// The client's message, decoded from base64; pinned until the next challenge is answered.
    pub message: &'a [u8],
    /// The connection.
    pub facts: &'a Facts<'a>,
    /// 64 fresh random octets when the mechanism asked for them ([`flag::ENTROPY`]), else empty.
    pub entropy: &'a [u8],
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Names the exchange in diagnostics.
    pub exchange: u64,
}

/// Names a proof in the host's ledger. A mechanism can repeat it but not make one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(pub u32);

/// How an effect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done. For FETCH_KEY also when the user does not exist: the key is a decoy then, and only the host knows.
    Ok = 0,
    /// The password, token or certificate is wrong.
    Denied = 1,
    /// The back end could not say.
    Temporary = 2,
    /// No back end can do this.
    Unsupported = 3,
    /// The user exists but has no key of this kind yet.
    Transition = 4,
    /// The credential has expired.
    Expired = 5,
}

/// The end of an effect, as the mechanism sees it. Valid during one step.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Which effect.
    pub effect: EffectKind,
    /// How it ended.
    pub status: Status,
    /// Hand this to [`Step::Success`] to name what proved the identity.
    pub proof: Proof,
    /// Key, binding octets, error JSON, back-end reply.
    pub data: &'a [u8],
    /// For the SCRAM key kinds.
    pub scram: Option<ScramKey<'a>>,
}

/// Stored SCRAM keys (RFC 5802 §3). No `Debug` of the keys.
#[derive(Clone, Copy)]
pub struct ScramKey<'a> {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt, octets.
    pub salt: &'a [u8],
    /// StoredKey, hash-length octets.
    pub stored_key: &'a [u8],
    /// ServerKey, hash-length octets.
    pub server_key: &'a [u8],
}

impl std::fmt::Debug for ScramKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramKey").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// Kinds of stored keys, numbered as in the plugin ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum KeyKind {
    /// The password itself.
    Cleartext = 1,
    /// SCRAM-SHA-1 keys.
    ScramSha1 = 2,
    /// SCRAM-SHA-256 keys.
    ScramSha256 = 3,
    /// SCRAM-SHA-512 keys.
    ScramSha512 = 4,
    /// 16 octets: H(user:realm:password).
    DigestMd5Ha1 = 5,
    /// 32 octets: outer then inner MD5 state of HMAC-MD5, little-endian words.
    CramMd5Context = 6,
}

impl KeyKind {
    /// From the ABI number; `None` for numbers of a later minor.
    pub fn from_abi(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Cleartext,
            2 => Self::ScramSha1,
            3 => Self::ScramSha256,
            4 => Self::ScramSha512,
            5 => Self::DigestMd5Ha1,
            6 => Self::CramMd5Context,
            _ => return None,
        })
    }
}

/// The kinds of [`Effect`], numbered as in the plugin ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EffectKind {
    /// Is this the user's password?
    VerifyPassword = 16,
    /// What key is stored for the user?
    FetchKey = 17,
    /// Is this bearer token good, and whose is it?
    VerifyToken = 18,
    /// May the holder of the client certificate act as this identity?
    VerifyExternal = 19,
    /// The channel-binding octets of this connection.
    ChannelBinding = 20,
    /// A question in a back end's private protocol.
    BackendCall = 21,
}

impl ChannelBinding {
    /// From the ABI number.
    pub fn from_abi(number: u32) -> Option<Self> {
        [Self::TlsExporter, Self::TlsServerEndPoint].into_iter().find(|kind| *kind as u32 == number)
    }
}

impl EffectKind {
    /// From the ABI number; `None` for numbers of a later minor.
    pub fn from_abi(number: u32) -> Option<Self> {
        let all = [
            Self::VerifyPassword,
            Self::FetchKey,
            Self::VerifyToken,
            Self::VerifyExternal,
            Self::ChannelBinding,
            Self::BackendCall,
        ];
        all.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The bit of this kind in [`Traits::needs`].
    pub fn need(self) -> u64 {
        1 << (self as u32 - 16)
    }
}

/// Work that a mechanism cannot do itself. Slices point into the message, the scratch or the state.
#[derive(Clone, Copy)]
pub enum Effect<'a> {
    /// [`EffectKind::VerifyPassword`].
    VerifyPassword {
        /// Whose password, as claimed.
        authcid: &'a [u8],
        /// Whom to act as; empty when not asked for.
        authzid: &'a [u8],
        /// The password, raw octets.
        password: &'a [u8],
    },
    /// [`EffectKind::FetchKey`].
    FetchKey {
        /// Which key.
        kind: KeyKind,
        /// Whose key, as claimed.
        authcid: &'a [u8],
        /// Whom to act as; empty when not asked for.
        authzid: &'a [u8],
        /// Realm of DIGEST-MD5, else empty.
        realm: &'a [u8],
    },
    /// [`EffectKind::VerifyToken`].
    VerifyToken {
        /// The bearer token.
        token: &'a [u8],
        /// Whom to act as; empty when not asked for.
        authzid: &'a [u8],
        /// `key=value` pairs that came beside the token, separated by 0x01.
        fields: &'a [u8],
    },
    /// [`EffectKind::VerifyExternal`].
    VerifyExternal {
        /// Whom to act as; empty: derive it from the certificate.
        authzid: &'a [u8],
    },
    /// [`EffectKind::ChannelBinding`].
    ChannelBinding {
        /// Which one.
        kind: ChannelBinding,
    },
    /// [`EffectKind::BackendCall`].
    BackendCall {
        /// The back end's name.
        service: &'a [u8],
        /// Its private request.
        request: &'a [u8],
    },
}

impl Effect<'_> {
    /// Which kind this is.
    pub fn kind(&self) -> EffectKind {
        match self {
            Effect::VerifyPassword { .. } => EffectKind::VerifyPassword,
            Effect::FetchKey { .. } => EffectKind::FetchKey,
            Effect::VerifyToken { .. } => EffectKind::VerifyToken,
            Effect::VerifyExternal { .. } => EffectKind::VerifyExternal,
            Effect::ChannelBinding { .. } => EffectKind::ChannelBinding,
            Effect::BackendCall { .. } => EffectKind::BackendCall,
        }
    }
}

/// Why an exchange failed; the host turns each class into exactly one reply of RFC 4954 §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FailureClass {
    /// Wrong user, password, proof.
    Credentials = 1,
    /// The mechanism's grammar was violated.
    Malformed = 2,
    /// The back end could not say.
    Temporary = 3,
    /// May not act as the authorization identity.
    Authorization = 4,
    /// The mechanism is too weak for this user.
    TooWeak = 5,
    /// Needs TLS.
    NeedTls = 6,
    /// The user must set a new secret first.
    Transition = 7,
    /// Channel binding did not match, or a downgrade was seen.
    ChannelBinding = 8,
    /// The credential has expired.
    Expired = 9,
    /// The mechanism is broken.
    Internal = 10,
}

impl FailureClass {
    /// From the ABI number.
    pub fn from_abi(number: u32) -> Option<Self> {
        let all = [
            Self::Credentials,
            Self::Malformed,
            Self::Temporary,
            Self::Authorization,
            Self::TooWeak,
            Self::NeedTls,
            Self::Transition,
            Self::ChannelBinding,
            Self::Expired,
            Self::Internal,
        ];
        all.into_iter().find(|class| *class as u32 == number)
    }
}

impl Status {
    /// From the ABI number; one of a later minor says as little as [`Status::Temporary`].
    pub fn from_abi(number: u32) -> Self {
        let all = [Self::Ok, Self::Denied, Self::Temporary, Self::Unsupported, Self::Transition, Self::Expired];
        all.into_iter().find(|status| *status as u32 == number).unwrap_or(Self::Temporary)
    }
}

/// What the mechanism wants next. Slices live until the next step.
pub enum Step<'a> {
    /// Send this (possibly empty) and wait for the client.
    Challenge(&'a [u8]),
    /// Perform this, then step again with [`Event::Outcome`].
    Effect(Effect<'a>),
    /// The identity is the one that `proof` proved. `data` must reach the client before the outcome.
    Success {
        /// From the [`Outcome`] that proved the identity.
        proof: Proof,
        /// Final data (SCRAM's `v=…`); the host sends it as one last challenge.
        data: Option<&'a [u8]>,
    },
    /// The mechanism has proven by itself who the client is ([`flag::SELF_ASSERTS`]): nothing that the host could
    /// look up proves it. Whether there is such a user is the host's to find out.
    Asserted {
        /// Who it is.
        authcid: &'a [u8],
        /// Whom to act as; empty when not asked for.
        authzid: &'a [u8],
        /// Final data, as in [`Step::Success`].
        data: Option<&'a [u8]>,
    },
    /// The exchange is over.
    Failure {
        /// Why.
        class: FailureClass,
        /// Final data (OAUTHBEARER's error JSON); the host sends it as one last challenge.
        data: Option<&'a [u8]>,
        /// For the audit log only, never for the client.
        diagnosis: &'a [u8],
    },
    /// The rest of this step is heavy: call again with [`Event::Resume`] away from the event loop.
    Offload,
}

/// The number of a process beside ours that runs mechanisms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runner(pub u16);

/// One SASL mechanism, able to run any number of exchanges at once.
///
/// A step is a function of state and input: it never blocks, reads no clock and no random source,
/// and keeps no pointer that it was handed.
pub trait Mechanism: Send + Sync {
    /// Its registered name.
    fn name(&self) -> &MechanismName;
    /// What it declares about itself.
    fn traits(&self) -> &Traits;
    /// One step of one exchange. `state` is zeroed before [`Event::Start`] and belongs to the exchange;
    /// `scratch` has at least [`Traits::output_octets_max`] octets.
    fn step<'a>(&'a self, state: &'a mut State, input: Input<'a>, scratch: &'a mut [u8]) -> Step<'a>;
    /// Where it runs when that is not here: then [`Mechanism::step`] is not called, the host carries each
    /// input to that runner and brings the answer as an [`OwnedStep`].
    fn runner(&self) -> Option<Runner> {
        None
    }
    /// Whether it may be offered now; one in quarantine may not.
    fn is_available(&self) -> bool {
        true
    }
    /// Into quarantine or out of it, because somebody else decided so.
    fn set_available(&self, available: bool) {
        let _ = available;
    }
    /// Takes it out of service: it broke a promise that the login depends on.
    fn quarantine(&self) {}
    /// The exchange ended, by any cause, after at least one step. The host wipes `state` afterwards.
    fn finish(&self, state: &mut State) {
        let _ = state;
    }
}
