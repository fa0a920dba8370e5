//! A world for one session that needs no sockets: for examples and benches.
//!
//! Its directory knows nobody, its sink keeps what it gets, every limit permits, and time stands still.

use std::net::{IpAddr, Ipv4Addr};

use crate::envelope::Envelope;
use crate::host::{
    Allowance, Charge, Context, Effect, Host, Note, Outcome, Peer, Permission, Pools, RecipientOutcome, SaslOutcome,
    SessionId, TlsFacts, Trouble,
};
use crate::id::QueueId;
use crate::listener::{AuthOffer, Limits, Listener, Role, SenderCheck, StarttlsTrailing, SyncViolation, Tls};
use crate::policy::{Facts, Policy, Verdict};

/// Permits everything.
struct Anything;

impl Policy for Anything {
    fn mail(&self, _: &Facts<'_>, _: Option<&str>) -> Verdict {
        Verdict::Permit
    }
    fn rcpt(&self, _: &Facts<'_>, _: &Envelope, _: &str) -> Verdict {
        Verdict::Permit
    }
    fn header_from(&self, _: &Facts<'_>, _: &str) -> Verdict {
        Verdict::Permit
    }
}

/// A listener named `mx.example` that permits every sender and recipient and needs neither TLS nor AUTH.
pub fn listener(role: Role) -> Listener {
    Listener {
        name: role.name().to_owned(),
        role,
        hostname: "mx.example".to_owned(),
        ports: Vec::new(),
        tls: Tls::StartTls,
        require_tls: false,
        require_auth: false,
        auth: AuthOffer::AfterTls,
        mechanisms: Vec::new(),
        limits: Limits::default(),
        sender_envelope: SenderCheck::Off,
        sender_header: SenderCheck::Off,
        fixups: false,
        hide_client: false,
        trust_auth_param_from: Vec::new(),
        starttls_trailing: StarttlsTrailing::Drop,
        sync_violation: SyncViolation::Log,
        chunking: true,
        smtputf8: true,
        data_loss: false,
        anonymous: false,
        policy: Box::new(Anything),
    }
}

/// What surrounds one session.
pub struct World {
    out: Vec<u8>,
    pools: Pools,
    /// Who is at the other end.
    pub peer: Peer,
    sink: Sink,
    /// TLS as the session shall see it.
    pub tls: Option<TlsFacts>,
}

#[derive(Default)]
struct Sink {
    octets: Vec<u8>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// In clear, from 192.0.2.1 (RFC 5737).
    pub fn new() -> Self {
        let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let peer = Peer { ip, port: 4711, exempt: false, cleartext_auth: false };
        Self { out: Vec::new(), pools: Pools::default(), peer, sink: Sink::default(), tls: None }
    }

    /// A context for one call.
    pub fn context<'a>(&'a mut self, listener: &'a Listener) -> Context<'a> {
        Context {
            listener,
            peer: &self.peer,
            tls: self.tls.as_ref(),
            session: SessionId(1),
            now_ms: 0,
            unix_ms: 0,
            out: &mut self.out,
            pools: &mut self.pools,
            host: &mut self.sink,
        }
    }

    /// Everything said so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Forgets what was said and what the sink got; keeps the buffers.
    pub fn clear(&mut self) {
        self.out.clear();
        self.sink.octets.clear();
    }

    /// Message octets that the sink got.
    pub fn message(&self) -> &[u8] {
        &self.sink.octets
    }
}

impl Host for Sink {
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome> {
        Some(match effect {
            Effect::Sasl { .. } | Effect::Asserted { .. } => Outcome::Sasl(SaslOutcome {
                status: sasl::Status::Denied,
                doomed: true,
                identity: None,
                data: sasl::Secret::default(),
                scram: None,
                account: Default::default(),
            }),
            Effect::Recipient { .. } => Outcome::Recipient(RecipientOutcome::Unknown),
            Effect::Sender { .. } => Outcome::Sender(Permission::Denied),
            Effect::Commit { .. } => Outcome::Commit(Ok(())),
            Effect::Delay { .. } => Outcome::Elapsed,
        })
    }
    fn begin_message(&mut self, _: Option<u64>) -> Result<QueueId, Trouble> {
        Ok(QueueId(1))
    }
    fn write(&mut self, octets: &[u8]) -> usize {
        self.octets.extend_from_slice(octets);
        octets.len()
    }
    fn abort_message(&mut self) {
        self.octets.clear();
    }
    fn charge(&mut self, _: Charge<'_>) -> Allowance {
        Allowance::Permit
    }
    fn entropy(&mut self) -> [u8; 64] {
        [0; 64]
    }
    fn note(&mut self, _: Note<'_>) {}
}
