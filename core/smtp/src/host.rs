//! What a session asks of the world around it, and what it is told in return.

use std::net::IpAddr;
use std::sync::Arc;

use crate::envelope::Envelope;
use crate::id::QueueId;
use crate::listener::Listener;
use crate::reply::{self, Reply};

/// Everything a session may look at or write to during one call.
pub struct Context<'a> {
    /// The listener's role, limits, texts; the same for the whole session.
    pub listener: &'a Listener,
    /// Who is at the other end.
    pub peer: &'a Peer,
    /// TLS as negotiated; `None` in clear.
    pub tls: Option<&'a TlsFacts>,
    /// Names the session in logs and in policy replies.
    pub session: SessionId,
    /// Monotonic clock, milliseconds.
    pub now_ms: u64,
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Replies are appended here. The session stops parsing when it holds [`OUT_OCTETS_MAX`] octets.
    pub out: &'a mut Vec<u8>,
    /// Buffers that sessions borrow while they need them, so that an idle one holds none.
    pub pools: &'a mut Pools,
    /// Performs effects, takes message octets, counts.
    pub host: &'a mut dyn Host,
}

/// Unsent reply octets beyond which no further line is parsed (CONTRACT C21).
pub const OUT_OCTETS_MAX: usize = 16 * 1024;

/// The peer as the engine saw it at accept.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Address; IPv4-mapped IPv6 already normalised to IPv4.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// In a network that is exempt from limits, delays and penalties.
    pub exempt: bool,
    /// In a network that may use plaintext mechanisms without TLS.
    pub cleartext_auth: bool,
}

/// What TLS negotiated, for policy, trace and logs.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// 0x0303 or 0x0304.
    pub version: u16,
    /// IANA name of the cipher suite, `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// IANA name of the key-exchange group, `X25519`; empty when unknown.
    pub group: &'static str,
    /// The name that the client asked for, lower case; empty when none.
    pub sni: Box<str>,
    /// A client certificate was presented and verified.
    pub client_certificate: bool,
    /// The session was resumed from a ticket.
    pub resumed: bool,
    /// What SASL exchanges can be bound to: a set of `1 << sasl::ChannelBinding as u32`.
    pub channel_bindings: u32,
}

/// A session's number in logs; shown as 13 characters of Crockford base32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionId(pub u64);

/// Performs what a session cannot do itself.
pub trait Host {
    /// Performs `effect` at once and returns how it ended, or copies what it needs and returns `None`;
    /// then the session parses nothing until [`crate::Session::complete`] brings the outcome.
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome>;

    /// Has another process take one step of this session's exchange, and returns `None`; then the session
    /// waits as for an effect. The mechanism's answer is [`Outcome::Step`]. `Some` when it is known at once.
    fn step(&mut self, mechanism: &dyn sasl::Mechanism, input: sasl::Input<'_>) -> Option<sasl::OwnedStep> {
        let _ = (mechanism, input);
        Some(sasl::OwnedStep::failure(sasl::FailureClass::Temporary, "no process runs this mechanism"))
    }

    /// An answer to [`Host::step`] has been read; its buffer may serve the next one.
    fn reuse(&mut self, answer: sasl::OwnedStep) {
        drop(answer);
    }

    /// The exchange that [`Host::step`] began is over.
    fn finish(&mut self) {}

    /// Makes room for the octets of a new message and names it. `size` is what the client declared.
    fn begin_message(&mut self, size: Option<u64>) -> Result<QueueId, Trouble>;

    /// Takes message octets (no dot stuffing, CRLF line ends) and returns how many. Fewer than offered
    /// means that the sink is full: the session stops and the engine calls again when there is room.
    fn write(&mut self, octets: &[u8]) -> usize;

    /// Forgets the message that was begun; nothing of it remains.
    fn abort_message(&mut self);

    /// Whether a limit permits this now.
    fn charge(&mut self, charge: Charge<'_>) -> Allowance;

    /// 64 fresh random octets.
    fn entropy(&mut self) -> [u8; 64];

    /// Something worth a counter or an audit record happened.
    fn note(&mut self, note: Note<'_>);
}

/// Work outside the session. Borrowed: whoever defers it copies what it needs.
pub enum Effect<'a> {
    /// Asked by a SASL mechanism.
    Sasl {
        /// The mechanism's name, for caches and the audit record.
        mechanism: &'a sasl::MechanismName,
        /// What it asks.
        effect: sasl::Effect<'a>,
    },
    /// Who is it that a mechanism has proven by itself, and may they act as `authzid`?
    Asserted {
        /// The mechanism's name.
        mechanism: &'a sasl::MechanismName,
        /// Who it says it is.
        authcid: &'a [u8],
        /// Whom they want to act as; empty: themselves.
        authzid: &'a [u8],
    },
    /// Does this mailbox exist in a local domain, and whose is it?
    Recipient {
        /// `local@domain`, or `postmaster` alone; domain in lower case.
        address: &'a str,
    },
    /// May the identity send as this address?
    Sender {
        /// Who asks.
        identity: &'a Arc<Identity>,
        /// `local@domain`, domain in lower case.
        address: &'a str,
    },
    /// Make the message that was begun durable.
    Commit {
        /// Who it is from and for.
        envelope: &'a Envelope,
        /// Header lines that go before the body: Received and fix-ups, CRLF line ends.
        prepend: &'a [u8],
    },
    /// Let this much time pass (the answer to a failed login is late on purpose).
    Delay {
        /// Milliseconds.
        ms: u32,
    },
}

/// How an effect ended.
pub enum Outcome {
    /// Of [`Effect::Sasl`] and [`Effect::Asserted`].
    Sasl(SaslOutcome),
    /// Of [`Host::step`].
    Step(sasl::OwnedStep),
    /// Of [`Effect::Recipient`].
    Recipient(RecipientOutcome),
    /// Of [`Effect::Sender`].
    Sender(Permission),
    /// Of [`Effect::Commit`].
    Commit(Result<(), Trouble>),
    /// Of [`Effect::Commit`] where the next hop's word is waited for: the reply.
    Passed(NextHopReply),
    /// Of [`Effect::Delay`].
    Elapsed,
}

/// What the client is told when the next hop decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopReply {
    /// 250: somebody has the message. 4yz or 5yz: nobody has.
    pub code: u16,
    /// Enhanced code and text: printable ASCII, one line.
    pub text: Box<str>,
}

/// How a question of a SASL mechanism ended.
pub struct SaslOutcome {
    /// As the mechanism is told.
    pub status: sasl::Status,
    /// The user does not exist (or is disabled): key or refusal is a decoy, and the exchange must not succeed.
    pub doomed: bool,
    /// Whose credential it was, when `status` is `Ok` and the user exists. For a fetched key this is who
    /// it will be if the mechanism finds the proof right.
    pub identity: Option<Arc<Identity>>,
    /// Fetched key, channel binding, token error.
    pub data: sasl::Secret,
    /// For SCRAM keys: iterations, salt, StoredKey, ServerKey as `data` ranges.
    pub scram: Option<ScramLayout>,
    /// Only policy stands against the login; told after a correct proof.
    pub account: Account,
}

/// Where SCRAM key parts lie in [`SaslOutcome::data`]: salt, then StoredKey, then ServerKey.
#[derive(Clone, Copy, Debug)]
pub struct ScramLayout {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Octets of salt at the start.
    pub salt_octets: u16,
    /// Octets of each key.
    pub hash_octets: u16,
}

/// Standing of an account whose proof is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Account {
    /// May log in.
    #[default]
    Good,
    /// 525 5.7.13.
    Disabled,
    /// 534 5.7.9: the mechanism is too weak for this user.
    TooWeak,
}

/// Who a session has proven to be.
#[derive(Debug)]
pub struct Identity {
    /// Canonical name, `alice@demo.test`.
    pub name: Box<str>,
    /// What it may send as: `a@b`, `@b` (all of a domain), `*`; domains in lower case.
    pub senders: Box<[Box<str>]>,
    /// Largest message, octets; `None`: the listener's limit.
    pub message_octets_max: Option<u64>,
    /// Most recipients of one message; `None`: the listener's limit.
    pub recipients_max: Option<u32>,
    /// The credential store's epoch when this was read; compared with [`Host`]'s current one.
    pub epoch: u64,
}

/// Answer about a mailbox.
#[derive(Debug, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// It exists; mail for it goes to this user's mailbox.
    Exists {
        /// The user's canonical name.
        mailbox: Box<str>,
    },
    /// 550 5.1.1.
    Unknown,
    /// 451 4.3.0.
    Temporary,
}

/// Answer about sender rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// May.
    Granted,
    /// 550 5.7.1.
    Denied,
    /// 451 4.3.0.
    Temporary,
}

/// Why the message cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// 451 4.3.0: something local failed.
    Temporary,
    /// 452 4.3.1: no room.
    NoSpace,
    /// 451 4.4.5: our deadline passed before the commit was handed over.
    Late,
}

impl Trouble {
    /// As the client is told.
    pub(crate) fn reply(self) -> &'static Reply {
        match self {
            Self::Temporary => &reply::LOCAL_TROUBLE,
            Self::NoSpace => &reply::NO_SPACE,
            Self::Late => &reply::TOO_LATE,
        }
    }
}

/// What is charged to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge<'a> {
    /// An AUTH command, also one that is refused.
    AuthAttempt,
    /// A failed login.
    AuthFailure {
        /// What the client claimed to be; untrusted octets, empty when it never said.
        authcid: &'a [u8],
    },
    /// A login that succeeded.
    AuthSuccess {
        /// What the client claimed to be.
        authcid: &'a [u8],
    },
    /// A MAIL command.
    Message,
    /// A MAIL command of somebody anonymous, on top of that.
    AnonymousMessage,
    /// An accepted recipient.
    Recipient,
}

/// Answer to a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Go on.
    Permit,
    /// Go on after this many milliseconds (only for [`Charge::AuthFailure`]).
    Delay(u32),
    /// Over the limit.
    Refuse,
}

/// Events for counters and audit. Never a secret.
pub enum Note<'a> {
    /// A reply was given; `rule` is its stable id, `code` its three digits.
    Reply {
        /// Reply code.
        code: u16,
        /// Stable id, `relay.denied`.
        rule: &'static str,
    },
    /// A login ended.
    Login {
        /// Mechanism.
        mechanism: &'a str,
        /// What the client claimed to be; untrusted octets. Empty when it never said.
        authcid: &'a [u8],
        /// Canonical name on success.
        identity: Option<&'a str>,
        /// Reply code.
        code: u16,
        /// Stable reason, `credentials`, `cancelled`, `temporary`, …
        reason: &'static str,
        /// Mechanism's own words, untrusted; for the log only.
        diagnosis: &'a [u8],
        /// Since AUTH, with what the client took.
        ms: u64,
    },
    /// Somebody has logged in as nobody (RFC 4505).
    Anonymous {
        /// Mechanism.
        mechanism: &'a str,
        /// The trace text that they left: untrusted, and proof of nothing.
        trace: &'a [u8],
    },
    /// A message was accepted.
    Accepted {
        /// Its id.
        id: QueueId,
        /// Octets, without our prepended lines.
        octets: u64,
        /// Recipients.
        recipients: usize,
        /// Envelope sender, empty for the null sender; untrusted text.
        reverse_path: &'a str,
    },
    /// A transaction ended without a message.
    Aborted {
        /// Stable reason.
        reason: &'static str,
        /// Octets received until then.
        octets: u64,
    },
    /// Octets after STARTTLS were thrown away (RFC 3207 §6).
    StarttlsTrailing {
        /// How many.
        octets: usize,
    },
}

/// Buffers on loan; one set per event loop.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "the boxes themselves go back and forth between pool and session")]
pub struct Pools {
    pub(crate) transactions: Vec<Box<crate::transaction::Transaction>>,
    pub(crate) exchanges: Vec<Box<crate::auth::Authentication>>,
    /// Messages of exchanges that wait for their client: they have none.
    pub(crate) messages: Vec<sasl::Secret>,
    /// What a mechanism writes into during a step; empty of secrets between two.
    pub(crate) scratch: Vec<u8>,
}
