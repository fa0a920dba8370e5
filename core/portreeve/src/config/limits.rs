//! `[limits]` and `[timeouts]`: how much, and for how long. Those of `[limits]` that a listener may override are in
//! [`Listener`](super::Listener), with what holds there.

use std::time::Duration;

use super::reader::Reader;

/// `[limits]`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Command line, octets.
    pub max_line: usize,
    /// Messages of a session.
    pub max_messages: u32,
    /// Refused commands.
    pub max_errors: u8,
    /// Commands that do nothing.
    pub max_idle_commands: u8,
    /// Received lines.
    pub max_received: u16,
    /// Sessions of all workers.
    pub max_sessions: u32,
    /// Connections of a client per minute; 0: no limit, here and below.
    pub connect_rate: u32,
    /// AUTH commands of a client.
    pub auth_rate: u32,
    /// Messages of a client or user.
    pub message_rate: u32,
    /// Recipients of a client or user.
    pub recipient_rate: u32,
    /// Messages of anonymous sessions of a client.
    pub anonymous_rate: u32,
    /// Largest message of an anonymous session.
    pub anonymous_size: u64,
    /// Failed logins of a session.
    pub auth_failures: u8,
    /// AUTH line, octets.
    pub sasl_line_octets_max: usize,
}

/// `[timeouts]`.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Between commands.
    pub command: Duration,
    /// The same for strangers when it is crowded.
    pub command_crowded: Duration,
    /// Until a login.
    pub pre_auth: Duration,
    /// An AUTH exchange.
    pub auth: Duration,
    /// TLS handshake.
    pub handshake: Duration,
    /// Before the rate of a message is looked at.
    pub data_grace: Duration,
    /// Octets a second in data.
    pub min_rate: u64,
    /// For replies to be read.
    pub unread: Duration,
    /// For an answer of the directory.
    pub directory: Duration,
    /// A whole session.
    pub session: Duration,
}

impl Limits {
    pub(super) fn read(top: &Reader<'_>) -> Self {
        Self {
            max_line: top.count("limits.max_line"),
            max_messages: top.count("limits.max_messages"),
            max_errors: top.count("limits.max_errors"),
            max_idle_commands: top.count("limits.max_idle_commands"),
            max_received: top.count("limits.max_received"),
            max_sessions: top.count("limits.max_sessions"),
            connect_rate: top.rate("limits.connect_rate"),
            auth_rate: top.rate("limits.auth_rate"),
            message_rate: top.rate("limits.message_rate"),
            recipient_rate: top.rate("limits.recipient_rate"),
            anonymous_rate: top.rate("limits.anonymous_rate"),
            anonymous_size: top.count("limits.anonymous_size"),
            auth_failures: top.count("limits.auth_failures"),
            sasl_line_octets_max: top.count("limits.sasl.line_octets_max"),
        }
    }
}

impl Timeouts {
    pub(super) fn read(top: &Reader<'_>) -> Self {
        Self {
            command: top.time("timeouts.command"),
            command_crowded: top.time("timeouts.command_crowded"),
            pre_auth: top.time("timeouts.pre_auth"),
            auth: top.time("timeouts.auth"),
            handshake: top.time("timeouts.handshake"),
            data_grace: top.time("timeouts.data_grace"),
            min_rate: top.count("timeouts.min_rate"),
            unread: top.time("timeouts.unread"),
            directory: top.time("timeouts.directory"),
            session: top.time("timeouts.session"),
        }
    }
}
