//! What a worker is started with.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnet::IpNet;
use link::Link;
use smtp::envelope::Recipient;
use smtp::listener::Listener;

/// Everything that a worker needs. Immutable while it lives, save for what is made to be exchanged
/// (certificates and ticket keys inside [`Port::tls`], directory links by [`crate::Handle::connect_directory`]).
pub struct Setup {
    /// Event loops; one per core as a rule.
    pub shards: usize,
    /// The listeners.
    pub ports: Vec<Port>,
    /// Sessions of the whole worker; more are answered `421 4.3.2`.
    pub sessions_max: usize,
    /// One link to the directory process per shard, in their order; missing ones may be given later.
    pub directory: Vec<Link>,
    /// One link to the delivery process per shard, likewise. Used only where `passes` says so.
    pub delivery: Vec<Link>,
    /// Whether the reply to a message waits for this recipient's next hop; `None`: for nobody's.
    pub passes: Option<Passes>,
    /// Where messages go. Its own pool and durability are chosen there.
    pub spool: spool::Writer,
    /// The limits, shared by all workers.
    pub limits: Arc<limits::Table>,
    /// Secret under which account names stand in the limits; the same in all workers.
    pub account_key: sasl::Secret,
    /// This process' numbers; the board behind it has the directory's epoch.
    pub counts: telemetry::Slot,
    /// The way to the log writer.
    pub events: telemetry::EventSender,
    /// What the worker tells its process; called on its own threads, must not block.
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
    /// Bounds that are the same for all listeners.
    pub bounds: Bounds,
}

/// Whether a recipient's mail is passed through.
pub type Passes = Box<dyn Fn(&Recipient<'_>) -> bool + Send + Sync>;

/// A listener, its sockets, and what the engine must know of it.
pub struct Port {
    /// As sessions see it.
    pub listener: Arc<Listener>,
    /// Listening sockets: bound, listening, non-blocking. TCP_NODELAY set on them passes to every connection.
    pub sockets: Vec<Socket>,
    /// Needed unless the listener's TLS is off.
    pub tls: Option<Arc<tls::ServerTls>>,
    /// Networks without limits, delays and penalties.
    pub exempt_nets: Vec<IpNet>,
    /// Networks that may use plaintext mechanisms without TLS.
    pub cleartext_nets: Vec<IpNet>,
    /// The back end of a library that knows this listener's users; `None`: the directory's own.
    pub backend: Option<Box<str>>,
    /// What one client may do. Not asked for exempt networks.
    pub limits: limits::Config,
    /// When to stop waiting.
    pub deadlines: Deadlines,
}

/// A listening socket and the shard that accepts from it.
pub struct Socket {
    /// Which shard; taken modulo the number of shards.
    pub shard: usize,
    /// The socket. Others may have it, too; it is never shut down.
    pub fd: OwnedFd,
}

/// How long a connection may take for what (CONTRACT C22), milliseconds.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// From one command to the next (RFC 5321 §4.5.3.2.7).
    pub command_ms: u64,
    /// The same for strangers while nine tenths of all sessions are taken.
    pub crowded_ms: u64,
    /// From connecting to a login; `None` where nobody has to log in.
    pub preauth_ms: Option<u64>,
    /// A whole AUTH exchange.
    pub auth_ms: u64,
    /// Before the rate of a message is looked at.
    pub data_grace_ms: u64,
    /// The least rate of a message.
    pub data_octets_per_second: u64,
    /// Between the last octet of a message and its commit; later the client has given up, and keeping the
    /// message would make a twin (PROTOCOL row 11).
    pub data_deadline_ms: u64,
    /// A TLS handshake.
    pub handshake_ms: u64,
    /// A whole session.
    pub session_ms: u64,
    /// For a client to read our replies.
    pub unread_ms: u64,
    /// For an answer of the directory.
    pub effect_ms: u64,
    /// After our last word, for the client's.
    pub linger_ms: u64,
}

impl Deadlines {
    /// The defaults of a role.
    pub fn of(role: smtp::Role) -> Self {
        let submission = role.is_submission();
        Self {
            command_ms: 300_000,
            crowded_ms: 10_000,
            preauth_ms: submission.then_some(120_000),
            auth_ms: 60_000,
            data_grace_ms: 60_000,
            data_octets_per_second: 500,
            data_deadline_ms: if submission { 110_000 } else { 540_000 },
            handshake_ms: 10_000,
            session_ms: 24 * 3_600_000,
            unread_ms: 60_000,
            effect_ms: 30_000,
            linger_ms: 2_000,
        }
    }
}

/// Bounds of the whole worker.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Octets of partial input and unsent replies, all sessions together.
    pub parts_octets_max: usize,
    /// How long a verified password is believed without asking again; 0: not at all.
    pub password_cache_ms: u64,
    /// Addresses that each shard remembers.
    pub addresses_max: usize,
    /// Questions of a shard that may wait for the directory.
    pub questions_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { parts_octets_max: 16 << 20, password_cache_ms: 300_000, addresses_max: 1024, questions_max: 4096 }
    }
}

/// What a worker tells its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The link of this shard to the directory is gone; questions wait a little for a new one.
    DirectoryLost {
        /// Which shard.
        shard: usize,
    },
    /// More than ten panics within a minute: this process should be drained and replaced (CONTRACT C27).
    Panicking,
    /// A shard could not go on; its sessions are gone. The process should be replaced.
    Failed {
        /// Which shard.
        shard: usize,
    },
    /// A process that runs mechanisms has not answered a step in time; it should be replaced.
    RunnerStuck {
        /// Which library: [`sasl::Runner`].
        runner: u16,
        /// Which edition.
        generation: u32,
    },
    /// After a drain: the last session has ended.
    Drained,
}
