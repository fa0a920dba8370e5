//! What a handshake came to.

use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite as Suite, HandshakeKind, NamedGroup, ProtocolVersion};

/// What was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// 0x0303 or 0x0304.
    pub version: u16,
    /// IANA name of the cipher suite, `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// IANA name of the key-exchange group, `x25519`; empty when there was no exchange (TLS 1.2 resumed).
    pub group: &'static str,
    /// The name that the client asked for, lower case; empty when none.
    pub sni: &'a str,
    /// A client certificate was presented and leads to one of the authorities.
    pub client_certificate: bool,
    /// The session was resumed from a ticket.
    pub resumed: bool,
}

/// The same as small as it can be kept.
pub(crate) struct Negotiated {
    version: ProtocolVersion,
    suite: Suite,
    group: Option<NamedGroup>,
    pub(crate) resumed: bool,
}

impl Negotiated {
    /// None before the end of the handshake.
    pub(crate) fn of(connection: &UnbufferedServerConnection) -> Option<Self> {
        Some(Self {
            version: connection.protocol_version()?,
            suite: connection.negotiated_cipher_suite()?.suite(),
            group: connection.negotiated_key_exchange_group().map(|group| group.name()),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }

    pub(crate) fn is_tls13(&self) -> bool {
        self.version == ProtocolVersion::TLSv1_3
    }

    pub(crate) fn facts<'a>(&self, sni: &'a str, client_certificate: bool) -> Facts<'a> {
        Facts {
            version: self.version.into(),
            cipher: cipher_name(self.suite),
            group: self.group.map_or("", group_name),
            sni,
            client_certificate,
            resumed: self.resumed,
        }
    }
}

/// rustls' own names differ from IANA's for TLS 1.3.
fn cipher_name(suite: Suite) -> &'static str {
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or(""),
    }
}

fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "x25519",
        other => other.as_str().unwrap_or(""),
    }
}
