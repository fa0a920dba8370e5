//! What a step sees and how it answers. Safe code: `export` turns the host's pointers into slices first.

use std::net::IpAddr;
use std::ops::Range;

use crate::abi::{self, action, conn, fail, key, out_flag, region, status};

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A new exchange. No initial response and an empty one (`=` on the wire) are different things.
    Start {
        /// The initial response, if the client sent one.
        initial: Option<&'a [u8]>,
    },
    /// The client's next response.
    Message(&'a [u8]),
    /// The effect that was asked for has ended; [`Cx::message`] is still the same client message.
    Outcome(Outcome<'a>),
    /// Answer to [`Cx::offload`].
    Resume,
}

/// How an effect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = status::OK,
    /// The password, token or certificate is wrong.
    Denied = status::DENIED,
    /// The back end could not say.
    Temporary = status::TEMPFAIL,
    /// No back end can do this.
    Unsupported = status::UNSUPPORTED,
    /// The user has no key of this kind yet.
    Transition = status::TRANSITION,
    /// The credential has expired.
    Expired = status::EXPIRED,
}

/// Names what proved an identity: kept by the host, repeated by the mechanism in [`Cx::succeed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(pub(crate) u32);

/// The end of an effect.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    pub(crate) status: u32,
    pub(crate) handle: u32,
    pub(crate) data: &'a [u8],
    pub(crate) scram: Option<ScramKey<'a>>,
}

/// Stored SCRAM keys (RFC 5802 §3).
#[derive(Clone, Copy)]
pub struct ScramKey<'a> {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt.
    pub salt: &'a [u8],
    /// StoredKey.
    pub stored_key: &'a [u8],
    /// ServerKey.
    pub server_key: &'a [u8],
}

impl std::fmt::Debug for Outcome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome").field("status", &self.status).finish_non_exhaustive()
    }
}

impl<'a> Outcome<'a> {
    /// The proof, or the failure class that belongs to the status: `?` is the right thing to do with it.
    pub fn proof(&self) -> Result<Proof, Bad> {
        Err(match self.status {
            status::OK => return Ok(Proof(self.handle)),
            status::DENIED => Bad::CREDENTIALS,
            status::TEMPFAIL => Bad::TEMPORARY,
            status::UNSUPPORTED => Bad::TEMPORARY.because("no back end can do this"),
            status::TRANSITION => Bad::TRANSITION,
            status::EXPIRED => Bad::EXPIRED,
            _ => Bad::INTERNAL.because("the outcome has a status that this mechanism does not know"),
        })
    }

    /// Key, binding octets, error JSON, back-end reply.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The keys that a SCRAM key kind asked for.
    pub fn scram(&self) -> Result<ScramKey<'a>, Bad> {
        self.scram.ok_or(Bad::INTERNAL.because("the host sent no SCRAM key"))
    }
}

/// Kinds of stored keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KeyKind {
    /// The password itself.
    Cleartext = key::CLEARTEXT,
    /// SCRAM-SHA-1 keys.
    ScramSha1 = key::SCRAM_SHA1,
    /// SCRAM-SHA-256 keys.
    ScramSha256 = key::SCRAM_SHA256,
    /// SCRAM-SHA-512 keys.
    ScramSha512 = key::SCRAM_SHA512,
    /// 16 octets H(user:realm:password).
    DigestMd5Ha1 = key::DIGEST_MD5_HA1,
    /// 32 octets: outer then inner MD5 state of HMAC-MD5, little-endian words.
    CramMd5Context = key::CRAM_MD5_CTX,
}

impl KeyKind {
    /// From the ABI number.
    pub(crate) fn from_abi(number: u32) -> Option<Self> {
        let all = [
            Self::Cleartext,
            Self::ScramSha1,
            Self::ScramSha256,
            Self::ScramSha512,
            Self::DigestMd5Ha1,
            Self::CramMd5Context,
        ];
        all.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Channel bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChannelBinding {
    /// RFC 9266.
    TlsExporter = abi::binding::TLS_EXPORTER,
    /// RFC 5929 §4.
    TlsServerEndPoint = abi::binding::TLS_SERVER_END_POINT,
}

/// The kinds of [`Effect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EffectKind {
    /// Is this the user's password?
    VerifyPassword = action::VERIFY_PASSWORD,
    /// What key is stored for the user?
    FetchKey = action::FETCH_KEY,
    /// Is this bearer token good, and whose is it?
    VerifyToken = action::VERIFY_TOKEN,
    /// May the holder of the client certificate act as this identity?
    VerifyExternal = action::VERIFY_EXTERNAL,
    /// The channel-binding octets of this connection.
    ChannelBinding = action::CHANNEL_BINDING,
    /// A question in a back end's private protocol.
    BackendCall = action::BACKEND_CALL,
}

impl EffectKind {
    pub(crate) fn from_abi(number: u32) -> Option<Self> {
        Some(match number {
            action::VERIFY_PASSWORD => Self::VerifyPassword,
            action::FETCH_KEY => Self::FetchKey,
            action::VERIFY_TOKEN => Self::VerifyToken,
            action::VERIFY_EXTERNAL => Self::VerifyExternal,
            action::CHANNEL_BINDING => Self::ChannelBinding,
            action::BACKEND_CALL => Self::BackendCall,
            _ => return None,
        })
    }
}

/// Octets in the client's message, the output or the state; see [`Cx::part`].
#[derive(Clone, Copy, Debug)]
pub struct Part(abi::Slice);

impl Part {
    /// No octets.
    pub const EMPTY: Part = Part(abi::Slice::NONE);
}

/// Work for the host.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// Is this the user's password?
    VerifyPassword {
        /// Whose, as claimed.
        authcid: Part,
        /// Whom to act as; empty when not asked for.
        authzid: Part,
        /// Raw octets.
        password: Part,
    },
    /// What key is stored for the user? A user who does not exist has one, too: the host makes it up.
    FetchKey {
        /// Which.
        kind: KeyKind,
        /// Whose, as claimed.
        authcid: Part,
        /// Whom to act as; empty when not asked for.
        authzid: Part,
        /// Realm of DIGEST-MD5, else empty.
        realm: Part,
    },
    /// Is this bearer token good, and whose is it?
    VerifyToken {
        /// The token.
        token: Part,
        /// Whom to act as; empty when not asked for.
        authzid: Part,
        /// `key=value` fields that came beside it, separated by 0x01.
        fields: Part,
    },
    /// May the holder of the client certificate act as this identity?
    VerifyExternal {
        /// Whom to act as; empty: derive it from the certificate.
        authzid: Part,
    },
    /// The channel-binding octets of this connection.
    ChannelBinding(ChannelBinding),
    /// A question in a back end's private protocol.
    BackendCall {
        /// The back end's name.
        service: Part,
        /// Its private request.
        request: Part,
    },
}

/// Why an exchange failed: a class, which decides the reply, and a reason for the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    pub(crate) class: u32,
    pub(crate) reason: &'static str,
}

impl Bad {
    /// Wrong user, password, proof.
    pub const CREDENTIALS: Bad = Bad::of(fail::CREDENTIALS);
    /// The mechanism's grammar was violated.
    pub const MALFORMED: Bad = Bad::of(fail::MALFORMED);
    /// The back end could not say.
    pub const TEMPORARY: Bad = Bad::of(fail::TEMPORARY);
    /// May not act as the authorization identity.
    pub const AUTHORIZATION: Bad = Bad::of(fail::AUTHZ);
    /// The mechanism is too weak for this user.
    pub const TOO_WEAK: Bad = Bad::of(fail::TOO_WEAK);
    /// Needs TLS.
    pub const NEED_TLS: Bad = Bad::of(fail::NEED_TLS);
    /// The user must set a new secret first.
    pub const TRANSITION: Bad = Bad::of(fail::TRANSITION);
    /// Channel binding did not match, or a downgrade was seen.
    pub const CHANNEL_BINDING: Bad = Bad::of(fail::CBINDING);
    /// The credential has expired.
    pub const EXPIRED: Bad = Bad::of(fail::EXPIRED);
    /// The mechanism is broken, or was stepped in a way that cannot be.
    pub const INTERNAL: Bad = Bad::of(fail::INTERNAL);

    const fn of(class: u32) -> Bad {
        Bad { class, reason: "" }
    }

    /// Adds a reason for the audit log; the client never sees it. At most 256 octets, no secrets.
    pub const fn because(self, reason: &'static str) -> Bad {
        Bad { class: self.class, reason }
    }
}

/// A step's answer. Only the methods of [`Cx`] that end a step make one.
#[derive(Debug)]
pub struct Done {
    pub(crate) action: u32,
    pub(crate) used: usize,
    pub(crate) arg: u32,
    pub(crate) flags: u32,
    pub(crate) handle: u32,
    pub(crate) reason: &'static str,
    pub(crate) authcid: abi::Slice,
    pub(crate) authzid: abi::Slice,
    pub(crate) data: abi::Slice,
    pub(crate) data2: abi::Slice,
}

/// What the host gave to one step.
pub(crate) struct Given<'a> {
    pub event: Event<'a>,
    pub message: &'a [u8],
    pub entropy: &'a [u8],
    pub unix_ms: u64,
    pub exchange: u64,
    pub conn_flags: u32,
    pub channel_bindings: u32,
    pub server_name: &'a [u8],
    pub client_ip: &'a [u8],
    pub listener: &'a [u8],
    pub sni: &'a [u8],
    pub session_id: u64,
    pub tls_version: u32,
    /// Addresses of the state: parts of it are named by where they lie.
    pub state: Range<usize>,
    /// The scratch without the room for a diagnosis.
    pub scratch: &'a mut [u8],
}

/// One step: what happened, the connection, room for output, and the ways to answer.
pub struct Cx<'a> {
    given: Given<'a>,
    used: usize,
}

impl<'a> Cx<'a> {
    pub(crate) fn new(given: Given<'a>) -> Self {
        Self { given, used: 0 }
    }

    /// What happened.
    pub fn event(&self) -> Event<'a> {
        self.given.event
    }

    /// The client's last message: also while the outcome of an effect is handled.
    pub fn message(&self) -> &'a [u8] {
        self.given.message
    }

    /// 64 fresh random octets when the mechanism declared `ENTROPY`, else empty.
    pub fn entropy(&self) -> &'a [u8] {
        self.given.entropy
    }

    /// Wall clock, milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.given.unix_ms
    }

    /// Names the exchange in diagnostics.
    pub fn exchange(&self) -> u64 {
        self.given.exchange
    }

    /// Whether the connection is inside TLS.
    pub fn tls(&self) -> bool {
        self.given.conn_flags & conn::TLS != 0
    }

    /// The TLS version as on the wire, 0 outside TLS.
    pub fn tls_version(&self) -> u32 {
        self.given.tls_version
    }

    /// Whether a client certificate was verified.
    pub fn client_certificate(&self) -> bool {
        self.given.conn_flags & conn::CLIENT_CERT != 0
    }

    /// Whether the `-PLUS` sibling was advertised on this connection.
    pub fn plus_was_offered(&self) -> bool {
        self.given.conn_flags & conn::CB_SIBLING != 0
    }

    /// Whether this connection has such a channel binding.
    pub fn channel_binding_usable(&self, kind: ChannelBinding) -> bool {
        self.given.channel_bindings & (1 << kind as u32) != 0
    }

    /// Our own name, as in the greeting; the same in every step of an exchange.
    pub fn server_name(&self) -> &'a [u8] {
        self.given.server_name
    }

    /// The peer's address.
    pub fn client_ip(&self) -> Option<IpAddr> {
        if let Ok(v4) = <[u8; 4]>::try_from(self.given.client_ip) {
            return Some(v4.into());
        }
        <[u8; 16]>::try_from(self.given.client_ip).ok().map(IpAddr::from)
    }

    /// The listener's name in the configuration.
    pub fn listener(&self) -> &'a [u8] {
        self.given.listener
    }

    /// The name that the client asked for in TLS, empty when none.
    pub fn sni(&self) -> &'a [u8] {
        self.given.sni
    }

    /// The session in the host's logs.
    pub fn session_id(&self) -> u64 {
        self.given.session_id
    }

    /// Appends to the output.
    pub fn put(&mut self, octets: &[u8]) -> Result<(), Bad> {
        let room = self.given.scratch.get_mut(self.used..self.used + octets.len());
        room.ok_or(Bad::INTERNAL.because("output is longer than declared"))?.copy_from_slice(octets);
        self.used += octets.len();
        Ok(())
    }

    /// Appends to the output and names what was appended: for data that is not in the message as it is.
    pub fn put_part(&mut self, octets: &[u8]) -> Result<Part, Bad> {
        let off = self.used;
        self.put(octets)?;
        Ok(Part(slice(region::OUT, off, octets.len())))
    }

    /// What was put so far.
    pub fn written(&self) -> &[u8] {
        self.given.scratch.get(..self.used).unwrap_or_default()
    }

    /// Names octets of the message, of the state or of what was put, so that the host finds them without a
    /// copy. Octets from elsewhere are an error: [`Cx::put_part`] copies them.
    pub fn part(&self, octets: &[u8]) -> Result<Part, Bad> {
        let message = self.given.message.as_ptr_range();
        let output = self.written().as_ptr_range();
        let areas = [
            (region::MSG, message.start as usize..message.end as usize),
            (region::OUT, output.start as usize..output.end as usize),
            (region::STATE, self.given.state.clone()),
        ];
        let (start, end) = (octets.as_ptr() as usize, octets.as_ptr() as usize + octets.len());
        match areas.into_iter().find(|(_, area)| area.start <= start && end <= area.end) {
            _ if octets.is_empty() => Ok(Part::EMPTY),
            Some((region, area)) => Ok(Part(slice(region, start - area.start, octets.len()))),
            None => Err(Bad::INTERNAL.because("octets outside of message, output and state")),
        }
    }

    /// Sends what was put (possibly nothing) and waits for the client.
    pub fn challenge(self) -> Result<Done, Bad> {
        Ok(Done { data: slice(region::OUT, 0, self.used), ..self.done(action::CHALLENGE) })
    }

    /// Asks the host; the next event is [`Event::Outcome`].
    pub fn perform(self, effect: Effect) -> Result<Done, Bad> {
        let done = |action| self.done(action);
        Ok(match effect {
            Effect::VerifyPassword { authcid, authzid, password } => {
                Done { authcid: authcid.0, authzid: authzid.0, data: password.0, ..done(action::VERIFY_PASSWORD) }
            }
            Effect::FetchKey { kind, authcid, authzid, realm } => Done {
                arg: kind as u32,
                authcid: authcid.0,
                authzid: authzid.0,
                data: realm.0,
                ..done(action::FETCH_KEY)
            },
            Effect::VerifyToken { token, authzid, fields } => {
                Done { data: token.0, authzid: authzid.0, data2: fields.0, ..done(action::VERIFY_TOKEN) }
            }
            Effect::VerifyExternal { authzid } => Done { authzid: authzid.0, ..done(action::VERIFY_EXTERNAL) },
            Effect::ChannelBinding(kind) => Done { arg: kind as u32, ..done(action::CHANNEL_BINDING) },
            Effect::BackendCall { service, request } => {
                Done { data2: service.0, data: request.0, ..done(action::BACKEND_CALL) }
            }
        })
    }

    /// The identity is the one that `proof` proved. What was put, if anything, reaches the client first.
    pub fn succeed(self, proof: Proof) -> Result<Done, Bad> {
        Ok(Done { handle: proof.0, ..self.last(action::SUCCESS) })
    }

    /// Ends well with an identity that this mechanism has proven by itself: only for one that declares
    /// `SELF_ASSERTS`, and only where the operator consents. `authzid` is whom to act as, empty when not asked for. The
    /// host finds out whether there is such a user and what it may do. Say what has to reach the client as
    /// [`Cx::challenge`] first: an assertion has no final data.
    pub fn assert_identity(self, authcid: Part, authzid: Part) -> Result<Done, Bad> {
        let flags = out_flag::SELF_ASSERTED;
        Ok(Done { flags, authcid: authcid.0, authzid: authzid.0, ..self.done(action::SUCCESS) })
    }

    /// Ends well without an identity, on purpose: only for a mechanism that declares `ANONYMOUS`, and only where
    /// the operator grants it. The client's message is its trace text.
    pub fn succeed_anonymously(self) -> Result<Done, Bad> {
        Ok(self.last(action::SUCCESS))
    }

    /// Fails, and sends what was put as the last challenge. Without final data, `Err(bad)` is enough.
    pub fn fail(self, bad: Bad) -> Result<Done, Bad> {
        Ok(Done { arg: bad.class, reason: bad.reason, ..self.last(action::FAIL) })
    }

    /// Asks to be called again with [`Event::Resume`] where nobody waits for it. Needs `MAY_OFFLOAD`.
    pub fn offload(self) -> Result<Done, Bad> {
        Ok(self.done(action::OFFLOAD))
    }

    fn last(&self, action: u32) -> Done {
        let flags = if self.used == 0 { 0 } else { out_flag::FINAL_DATA };
        Done { flags, data: slice(region::OUT, 0, self.used), ..self.done(action) }
    }

    fn done(&self, action: u32) -> Done {
        let none = abi::Slice::NONE;
        let used = self.used;
        let (authcid, authzid, data, data2) = (none, none, none, none);
        Done { action, used, arg: 0, flags: 0, handle: 0, reason: "", authcid, authzid, data, data2 }
    }
}

fn slice(region: u32, off: usize, len: usize) -> abi::Slice {
    match (u32::try_from(off), u32::try_from(len)) {
        (Ok(off), Ok(len)) if len > 0 => abi::Slice { region, off, len },
        _ => abi::Slice::NONE,
    }
}
