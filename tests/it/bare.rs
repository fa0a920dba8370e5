//! A session without a server: a listener of each role, a small directory, and a host that performs
//! every effect at once or late, with a wide or a narrow sink, so that all ways through the session
//! can be taken with the same octets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use policy::{Recipients, RolePolicy};
use sasl::{Secret, Status};
use smtp::envelope::Envelope;
use smtp::host::{
    Account, Allowance, Charge, Context, Effect, Host, Identity, Note, Outcome, Peer, Permission, Pools,
    RecipientOutcome, SaslOutcome, SessionId, TlsFacts, Trouble,
};
use smtp::id::QueueId;
use smtp::listener::{AuthOffer, Limits, Listener, Role, SenderCheck, StarttlsTrailing, SyncViolation, Tls};
use smtp::{Next, Phase, Session};

use crate::mechanisms;
use crate::replies::Reply;

/// Our name in greeting, EHLO and Received.
pub const HOSTNAME: &str = "mx.demo.test";
/// The local domain.
pub const DOMAIN: &str = "demo.test";

/// A listener of `role`, as the shipped configuration would make it.
pub fn listener(role: Role) -> Listener {
    let checked = SenderCheck::Enforce;
    Listener {
        name: role.name().to_owned(),
        role,
        hostname: HOSTNAME.to_owned(),
        ports: Vec::new(),
        tls: if role == Role::Submissions { Tls::Implicit } else { Tls::StartTls },
        require_tls: role.is_submission(),
        require_auth: role.is_submission(),
        auth: AuthOffer::AfterTls,
        mechanisms: mechanisms::all(),
        limits: Limits { message_octets_max: 1 << 20, ..Limits::default() },
        sender_envelope: checked,
        sender_header: if role.is_submission() { checked } else { SenderCheck::Off },
        fixups: role.is_submission(),
        hide_client: role.is_submission(),
        trust_auth_param_from: vec!["trusted@demo.test".to_owned()],
        starttls_trailing: StarttlsTrailing::Drop,
        sync_violation: if role.is_submission() { SyncViolation::Log } else { SyncViolation::Close },
        chunking: true,
        smtputf8: true,
        data_loss: false,
        anonymous: false,
        policy: Box::new(RolePolicy::new(policy::Settings {
            role,
            domains: vec![DOMAIN.to_owned()],
            recipients: Recipients::Directory,
            sender_envelope: checked,
            sender_header: if role.is_submission() { checked } else { SenderCheck::Off },
        })),
    }
}

/// A user of the test directory: all have the password `secret`, save where the dialogue says otherwise.
struct User {
    names: &'static [&'static str],
    password: &'static [u8],
    status: Status,
    account: Account,
    identity: Arc<Identity>,
}

static USERS: LazyLock<Vec<User>> = LazyLock::new(|| {
    let user = |names: &'static [&'static str], senders: &[&str], status, account| User {
        names,
        password: b"secret",
        status,
        account,
        identity: Arc::new(Identity {
            name: names[0].into(),
            senders: senders.iter().map(|&sender| sender.into()).collect(),
            message_octets_max: None,
            recipients_max: None,
            epoch: 0,
        }),
    };
    let limited = |mut user: User| {
        let mut identity = Arc::into_inner(user.identity).expect("not shared yet");
        (identity.message_octets_max, identity.recipients_max) = (Some(2000), Some(1));
        user.identity = Arc::new(identity);
        user
    };
    vec![
        user(
            &["alice@demo.test", "alice"],
            &["alice@demo.test", "sales@demo.test", "@alice.example"],
            Status::Ok,
            Account::Good,
        ),
        user(&["bob@demo.test", "bob"], &["bob@demo.test"], Status::Ok, Account::Good),
        user(&["trusted@demo.test"], &["*"], Status::Ok, Account::Good),
        limited(user(&["small@demo.test"], &["small@demo.test"], Status::Ok, Account::Good)),
        user(&["disabled@demo.test"], &[], Status::Ok, Account::Disabled),
        user(&["weak@demo.test"], &[], Status::Ok, Account::TooWeak),
        user(&["down@demo.test"], &[], Status::Temporary, Account::Good),
        user(&["expired@demo.test"], &[], Status::Expired, Account::Good),
    ]
});

fn user(name: &[u8]) -> Option<&'static User> {
    USERS.iter().find(|user| user.names.iter().any(|known| known.as_bytes() == name))
}

fn sasl_outcome(effect: &sasl::Effect<'_>) -> SaslOutcome {
    let mut outcome = SaslOutcome {
        status: Status::Denied,
        doomed: false,
        identity: None,
        data: Secret::default(),
        scram: None,
        account: Account::Good,
    };
    let (found, right) = match *effect {
        sasl::Effect::VerifyPassword { authcid, authzid, password } => {
            let found = user(authcid);
            let own =
                authzid.is_empty() || found.is_some_and(|user| user.names.iter().any(|n| n.as_bytes() == authzid));
            (found, own && found.is_some_and(|user| user.password == password))
        }
        sasl::Effect::FetchKey { authcid, .. } => {
            let found = user(authcid);
            // Nobody learns from this answer that a user does not exist: the key is a decoy.
            outcome.data = Secret::new(found.map_or(&b"decoy"[..], |user| user.password).to_vec());
            outcome.doomed = found.is_none();
            (found, true)
        }
        _ => panic!("no mechanism here asks for {:?}", effect.kind()),
    };
    if right {
        outcome.status = found.map_or(Status::Ok, |user| user.status);
        outcome.identity = found.map(|user| user.identity.clone());
        outcome.account = found.map_or(Account::Good, |user| user.account);
    }
    outcome
}

/// An accepted message.
pub struct Message {
    pub envelope: Envelope,
    pub prepend: Vec<u8>,
    pub body: Vec<u8>,
}

/// How the world around the session behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manners {
    /// Effects end only after `receive` has returned.
    pub late: bool,
    /// Octets that the sink takes at a time.
    pub sink_octets: usize,
    /// Keep accepted messages.
    pub keep: bool,
}

impl Manners {
    /// Effects at once, a wide sink, messages kept.
    pub const PLAIN: Self = Self { late: false, sink_octets: usize::MAX, keep: true };
    /// The hardest world: everything late, the sink takes three octets.
    pub const AWKWARD: Self = Self { late: true, sink_octets: 3, keep: true };
    /// Nothing is kept: for sweeps and for counting allocations.
    pub const FORGETFUL: Self = Self { late: false, sink_octets: usize::MAX, keep: false };
}

/// What the host saw; also checks that the session keeps the order of calls.
pub struct World {
    manners: Manners,
    room: usize,
    pending: Option<Outcome>,
    /// A message was begun and neither committed nor aborted.
    open: bool,
    body: Vec<u8>,
    next_id: u64,
    pub messages: Vec<Message>,
    /// Messages made durable, kept or not.
    pub committed: u64,
    /// Octets written to the message that was committed last.
    pub written: u64,
    /// Failed logins that the session reported.
    pub auth_failures: u32,
    /// What a failed login costs.
    pub failure_delay: Option<u32>,
    /// Milliseconds that the session asked to wait.
    pub delayed_ms: u64,
    /// Octets after STARTTLS that the session said it threw away.
    pub trailing_octets: usize,
    /// What the next [`Host::begin_message`] and commit answer.
    pub trouble: Option<Trouble>,
}

impl World {
    fn answer(&mut self, effect: Effect<'_>) -> Outcome {
        match effect {
            Effect::Sasl { effect, .. } => Outcome::Sasl(sasl_outcome(&effect)),
            Effect::Recipient { address } => Outcome::Recipient(recipient(address)),
            Effect::Sender { identity, address } => Outcome::Sender(match address {
                _ if identity.senders.iter().any(|sender| &**sender == address) => Permission::Granted,
                // An alias that somebody got since they have logged in: policy does not know it, the directory does.
                "new@demo.test" => Permission::Granted,
                "busy@demo.test" => Permission::Temporary,
                _ => Permission::Denied,
            }),
            Effect::Commit { envelope, prepend } => {
                assert!(self.open, "commit of a message that was never begun");
                self.open = false;
                if let Some(trouble) = self.trouble.take() {
                    return Outcome::Commit(Err(trouble));
                }
                assert!(envelope.recipients().len() > 0, "a message for nobody");
                self.committed += 1;
                if self.manners.keep {
                    let body = std::mem::take(&mut self.body);
                    self.messages.push(Message { envelope: envelope.clone(), prepend: prepend.to_vec(), body });
                }
                Outcome::Commit(Ok(()))
            }
            Effect::Delay { ms } => {
                self.delayed_ms += u64::from(ms);
                Outcome::Elapsed
            }
            #[allow(unreachable_patterns, reason = "an effect of a later version has no answer here")]
            _ => panic!("an effect that this host does not know"),
        }
    }
}

fn recipient(address: &str) -> RecipientOutcome {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, DOMAIN));
    assert_eq!(domain, DOMAIN, "asked about a domain that is not ours");
    let local = local.split('+').next().unwrap_or_default();
    let is = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(local));
    // The answer's box is the one allocation here; `soak` counts on that.
    if is(&["alice", "sales", "postmaster"]) {
        RecipientOutcome::Exists { mailbox: "alice@demo.test".into() }
    } else if is(&["bob", "josé"]) {
        RecipientOutcome::Exists { mailbox: "bob@demo.test".into() }
    } else if is(&["busy"]) {
        RecipientOutcome::Temporary
    } else {
        RecipientOutcome::Unknown
    }
}

impl Host for World {
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome> {
        assert!(self.pending.is_none(), "a second effect while one is pending");
        let outcome = self.answer(effect);
        if self.manners.late {
            self.pending = Some(outcome);
            return None;
        }
        Some(outcome)
    }

    fn begin_message(&mut self, _: Option<u64>) -> Result<QueueId, Trouble> {
        assert!(!self.open, "a message was begun before the last one ended");
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        self.open = true;
        self.body.clear();
        self.written = 0;
        self.next_id += 1;
        Ok(QueueId::new(1_700_000_000_000, u128::from(self.next_id)))
    }

    fn write(&mut self, octets: &[u8]) -> usize {
        assert!(self.open, "octets of a message that was never begun");
        let taken = octets.len().min(self.room);
        if self.manners.sink_octets != usize::MAX {
            self.room -= taken;
        }
        if self.manners.keep {
            self.body.extend_from_slice(&octets[..taken]);
        }
        self.written += taken as u64;
        taken
    }

    fn abort_message(&mut self) {
        assert!(self.open, "abort of a message that was never begun");
        self.open = false;
    }

    fn charge(&mut self, charge: Charge<'_>) -> Allowance {
        match charge {
            Charge::AuthFailure { .. } => {
                self.auth_failures += 1;
                self.failure_delay.map_or(Allowance::Permit, Allowance::Delay)
            }
            _ => Allowance::Permit,
        }
    }

    fn entropy(&mut self) -> [u8; 64] {
        self.next_id += 1;
        let mut octets = [0x5a; 64];
        octets[..8].copy_from_slice(&self.next_id.to_le_bytes());
        octets
    }

    fn note(&mut self, note: Note<'_>) {
        if let Note::StarttlsTrailing { octets } = note {
            self.trailing_octets += octets;
        }
    }
}

/// A session, its world, and what the client has not read yet.
pub struct Bare {
    listener: Arc<Listener>,
    tls: Option<&'static TlsFacts>,
    session: Option<Session>,
    pools: Pools,
    pub world: World,
    unread: Vec<u8>,
    /// Octets from the server that the client has not taken yet.
    pub out: Vec<u8>,
    batch: Vec<u8>,
    /// Most reply octets that the session left unsent in one turn.
    pub batch_octets_max: usize,
    pub now_ms: u64,
    /// How long a late effect takes.
    pub effect_ms: u64,
    /// 220 to STARTTLS was said and no handshake done yet.
    pub awaits_tls: bool,
    pub closed: bool,
    /// Octets that came after STARTTLS and before the handshake.
    pub dropped: usize,
}

static TLS_FACTS: LazyLock<TlsFacts> = LazyLock::new(|| TlsFacts {
    version: 0x0304,
    cipher: "TLS_AES_128_GCM_SHA256",
    group: "X25519",
    sni: HOSTNAME.into(),
    client_certificate: false,
    resumed: false,
    channel_bindings: 0,
});

/// A peer that is a stranger to every exemption.
pub const STRANGER: Peer =
    Peer { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), port: 40_007, exempt: false, cleartext_auth: false };

impl Bare {
    /// Connects and is greeted; on an implicit-TLS listener after the handshake.
    pub fn connect(listener: Arc<Listener>, manners: Manners) -> Self {
        let mut bare = Self {
            listener,
            tls: None,
            session: None,
            pools: Pools::default(),
            world: World {
                manners,
                room: manners.sink_octets,
                pending: None,
                open: false,
                body: Vec::new(),
                next_id: 0,
                messages: Vec::new(),
                committed: 0,
                written: 0,
                auth_failures: 0,
                failure_delay: None,
                delayed_ms: 0,
                trailing_octets: 0,
                trouble: None,
            },
            unread: Vec::new(),
            out: Vec::new(),
            batch: Vec::new(),
            batch_octets_max: 0,
            now_ms: 1_000,
            effect_ms: 0,
            awaits_tls: false,
            closed: false,
            dropped: 0,
        };
        bare.reconnect();
        bare
    }

    /// Ends the session, if there is one, and begins another with the same pools.
    pub fn reconnect(&mut self) {
        self.hang_up();
        self.tls = (self.listener.tls == Tls::Implicit).then_some(&*TLS_FACTS);
        self.unread.clear();
        self.out.clear();
        self.world.pending = None;
        (self.closed, self.awaits_tls, self.dropped) = (false, false, 0);
        let mut session = Session::new();
        self.with(&mut session, |session, cx| session.greet(cx));
        self.session = Some(session);
        self.flush();
    }

    /// The connection is gone.
    pub fn hang_up(&mut self) {
        if let Some(mut session) = self.session.take() {
            self.with(&mut session, |session, cx| session.end(cx));
            assert!(!self.world.open, "a message outlived its session (CONTRACT C5)");
        }
    }

    fn with<T>(&mut self, session: &mut Session, call: impl FnOnce(&mut Session, &mut Context<'_>) -> T) -> T {
        let mut cx = Context {
            listener: &self.listener,
            peer: &STRANGER,
            tls: self.tls,
            session: SessionId(7),
            now_ms: self.now_ms,
            unix_ms: 1_700_000_000_000 + self.now_ms,
            out: &mut self.batch,
            pools: &mut self.pools,
            host: &mut self.world,
        };
        call(session, &mut cx)
    }

    fn flush(&mut self) {
        self.batch_octets_max = self.batch_octets_max.max(self.batch.len());
        self.out.append(&mut self.batch);
    }

    /// What the engine does with one read.
    pub fn send(&mut self, octets: &[u8]) {
        if self.awaits_tls {
            self.dropped += octets.len();
            return;
        }
        let Some(mut session) = self.session.take().filter(|_| !self.closed) else { return };
        let mut unread = std::mem::take(&mut self.unread);
        unread.extend_from_slice(octets);
        let used = self.turn(&mut session, &unread);
        unread.drain(..used);
        self.unread = unread;
        self.flush();
        self.session = Some(session);
    }

    /// Feeds the session until it wants to read again; returns how many octets are used up.
    fn turn(&mut self, session: &mut Session, unread: &[u8]) -> usize {
        let (mut used, mut stalls) = (0, 0);
        loop {
            let (octets, mut next) = self.with(session, |session, cx| session.receive(&unread[used..], cx));
            used += octets;
            stalls = if octets == 0 { stalls + 1 } else { 0 };
            assert!(stalls < 50_000, "the session neither uses octets nor says what it waits for");
            while let Next::Pending = next {
                // What is queued is written before an effect is waited for (DECISIONS C11).
                self.flush();
                let outcome = self.world.pending.take().expect("Next::Pending without an effect");
                self.now_ms += self.effect_ms;
                next = self.with(session, |session, cx| session.complete(outcome, cx));
            }
            match next {
                Next::Read if octets > 0 && used < unread.len() => {}
                Next::Read => {
                    let rest = unread.len() - used;
                    assert!(rest <= self.listener.limits.sasl_line_octets_max, "{rest} octets kept by the caller");
                    return used;
                }
                Next::SinkFull => self.world.room = self.world.manners.sink_octets,
                Next::OutFull => self.flush(),
                Next::StartTls => {
                    self.awaits_tls = true;
                    self.dropped += unread.len() - used;
                    return unread.len();
                }
                Next::Close => {
                    self.closed = true;
                    return unread.len();
                }
                Next::Pending => unreachable!("completed above"),
            }
        }
    }

    /// The TLS handshake after 220.
    pub fn handshake(&mut self) {
        assert!(std::mem::take(&mut self.awaits_tls), "no handshake is due");
        self.enter_tls();
    }

    /// Puts a connection inside TLS as if STARTTLS had been its first command.
    pub fn enter_tls(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        self.tls = Some(&*TLS_FACTS);
        self.with(&mut session, |session, cx| session.tls_started(cx));
        self.session = Some(session);
        self.flush();
    }

    /// Sends and takes what came back.
    pub fn ask(&mut self, octets: &[u8]) -> String {
        self.send(octets);
        self.take()
    }

    /// What the server said since the last call, as text.
    pub fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.out)).into_owned()
    }

    /// Calls `each` for every reply since the last call.
    pub fn replies(&mut self, mut each: impl FnMut(Reply<'_>)) {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while let Some((reply, after)) = Reply::first_in(rest).unwrap_or_else(|why| panic!("{why}")) {
            reply.check(HOSTNAME).unwrap_or_else(|why| panic!("{why}"));
            each(reply);
            rest = after;
        }
        assert!(rest.is_empty(), "half a reply: {:?}", String::from_utf8_lossy(rest));
        self.out = out;
        self.out.clear();
    }

    /// Whether the session says that a transaction is open.
    pub fn in_transaction(&self) -> bool {
        let phase = self.session.as_ref().map(Session::phase);
        matches!(phase, Some(Phase::Command { transaction: true, .. }))
    }

    /// Whether a message was begun that is neither committed nor aborted.
    pub fn message_open(&self) -> bool {
        self.world.open
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.hang_up();
        }
    }
}

/// Or the time would tell what a back end does for somebody who exists.
#[test]
fn a_failed_login_is_answered_when_the_limits_say_however_long_its_check_took() {
    use base64::Engine as _;
    for (check_ms, wait_ms) in [(0, 2_000), (150, 1_850), (1_999, 1), (2_000, 0), (9_000, 0)] {
        for lines in [&["AUTH PLAIN {}"][..], &["AUTH PLAIN", "{}"]] {
            let mut bare = Bare::connect(Arc::new(listener(Role::Submissions)), Manners::AWKWARD);
            (bare.effect_ms, bare.world.failure_delay) = (check_ms, Some(2_000));
            bare.ask(b"EHLO client.example\r\n");
            let message = base64::engine::general_purpose::STANDARD.encode("\0alice@demo.test\0wrong");
            let mut reply = String::new();
            for line in lines {
                // What the client takes to think is its own time.
                bare.now_ms += 10_000;
                reply = bare.ask(format!("{}\r\n", line.replace("{}", &message)).as_bytes());
            }
            assert!(reply.starts_with("535 5.7.8"), "{reply}");
            assert_eq!(bare.world.delayed_ms, wait_ms, "after {check_ms} ms");
        }
    }
}
