//! One connection: octets off the wire in, plaintext and octets for the wire out.
//!
//! The only file that knows how rustls is fed. Four traits of its unbuffered interface shape it:
//!
//! - It decrypts and reassembles in the buffer that it is given, and then expects to see the same octets
//!   again in front of newer ones. So what it has not used stays here, in `pending`, and not with a caller
//!   who might move or drop it; sending needs it too.
//! - After an error it must not be fed any more, save to fetch the alert.
//! - It passes over a `close_notify` that comes before the handshake is through. A handshake is therefore
//!   fed record by record, so that ours is the first look.
//! - It can close only what it has opened: during a handshake there is no `close_notify` to send.

use std::mem;
use std::sync::Arc;

use rustls::CipherSuite as Suite;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, WriteTraffic};
use rustls::{Error, HandshakeKind, NamedGroup, server::ServerConnectionData};

use crate::channel_binding::ChannelBinding;
use crate::client_certificate::ClientIdentity;
use crate::error::TlsError;
use crate::noted::{self, Noted};
use crate::server::ServerTls;

/// A TLS connection, server side.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// Octets that rustls waits to see completed: an incomplete record, in front of it complete records
    /// with a handshake message in parts. Without allocation when empty.
    pending: Vec<u8>,
    /// Where in `pending` the incomplete record begins; None when only rustls knows.
    record: Option<usize>,
    phase: Phase,
    noted: Noted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshaking,
    Open,
    PeerClosed,
    /// We closed.
    Closed,
    Failed,
}

/// How a connection stands after [`TlsSession::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The handshake goes on; nothing can be sent.
    Handshaking,
    /// Plaintext flows.
    Open,
    /// The peer said `close_notify`, or we have closed: nothing more will be received, and never again
    /// anything in clear.
    PeerClosed,
}

/// What [`TlsSession::receive`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How the connection stands now.
    pub state: State,
    /// The handshake ended in this call: true exactly once, and [`TlsSession::facts`] are known from here
    /// on. Plaintext behind it may have come along.
    pub handshake_done: bool,
}

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

impl TlsSession {
    /// A connection that waits for its ClientHello.
    pub fn accept(server: &Arc<ServerTls>) -> Result<Self, TlsError> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(server.config.clone())?,
            pending: Vec::new(),
            record: Some(0),
            phase: Phase::Handshaking,
            noted: Noted { bindings: server.channel_binding.then(Box::default), ..Noted::default() },
        })
    }

    /// Takes octets as they came off the wire, all of them; overwrites them. Appends what they say to `plain`,
    /// and to `out` what is due to the peer.
    ///
    /// On an error the connection is over; send `out` (an alert is in it, where one is due), then close.
    /// The work done is in proportion to the octets given.
    pub fn receive(&mut self, net: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Received, TlsError> {
        if self.phase == Phase::Failed {
            return Err(TlsError::NotOpen);
        }
        let was_handshaking = self.phase == Phase::Handshaking;
        let mut rest = net;
        while !rest.is_empty() && matches!(self.phase, Phase::Handshaking | Phase::Open) {
            if self.phase == Phase::Open && self.pending.is_empty() {
                let used = self.process(rest, plain, out)?;
                let unused = rest.get(used..).unwrap_or_default();
                self.hold(unused, out)?;
                break;
            }
            // Only what completes the record: the records behind it are then read where they lie. Never
            // nothing, so that every turn takes octets and the loop ends, whatever the records say.
            let wanted = self.wanted().max(1).min(rest.len());
            let (taken, behind) = rest.split_at_mut(wanted);
            self.pending.extend_from_slice(taken);
            rest = behind;
            self.process_pending(plain, out)?;
        }
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        Ok(Received {
            state: match self.phase {
                Phase::Handshaking => State::Handshaking,
                Phase::Open => State::Open,
                _ => State::PeerClosed,
            },
            handshake_done: was_handshaking && self.connection_is_open(),
        })
    }

    /// Appends `plaintext` to `out` as records of at most 16 KiB.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !matches!(self.phase, Phase::Open | Phase::PeerClosed) {
            return Err(TlsError::NotOpen);
        }
        if plaintext.is_empty() {
            return Ok(());
        }
        let records = plaintext.len().div_ceil(RECORD_PLAINTEXT_MAX);
        let room = plaintext.len() + (records + 1) * RECORD_OVERHEAD_MAX;
        self.write(room, out, |traffic, room| traffic.encrypt(plaintext, room))
    }

    /// Appends `close_notify` to `out`, where the handshake is through and it was not said before. Nothing
    /// can be sent or received afterwards.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if matches!(self.phase, Phase::Open | Phase::PeerClosed) {
            // If it fails, there is nothing to be told that closing the connection does not tell.
            let _ = self.write(RECORD_OVERHEAD_MAX, out, |traffic, room| traffic.queue_close_notify(room));
        }
        if self.phase != Phase::Failed {
            self.phase = Phase::Closed;
        }
        self.pending = Vec::new();
    }

    /// What was negotiated; None before the end of the handshake.
    pub fn facts(&self) -> Option<Facts<'_>> {
        if !self.connection_is_open() {
            return None;
        }
        Some(Facts {
            version: self.connection.protocol_version()?.into(),
            cipher: cipher_name(self.connection.negotiated_cipher_suite()?.suite()),
            group: self.connection.negotiated_key_exchange_group().map_or("", |group| group_name(group.name())),
            sni: self.noted.sni.as_deref().unwrap_or(""),
            client_certificate: self.noted.certificate_verified,
            resumed: self.is_resumed(),
        })
    }

    /// The client's certificates (DER), its own first. That it holds the key is proven; whether an authority
    /// vouches for it is said by [`Facts::client_certificate`].
    pub fn peer_certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.connection.peer_certificates().unwrap_or_default().iter().map(AsRef::as_ref)
    }

    /// Who the client is by its certificate, when an authority vouches for it. Not known after resumption.
    pub fn client_identity(&self) -> Option<ClientIdentity> {
        let certificate = self.peer_certificates().next().filter(|_| self.noted.certificate_verified)?;
        ClientIdentity::of(certificate)
    }

    /// Octets that only the two ends of this connection share, after the handshake, where the listener's
    /// [`Settings::channel_binding`](crate::Settings::channel_binding) is set and the version has them.
    pub fn channel_binding(&self, kind: ChannelBinding) -> Option<&[u8]> {
        let bindings = self.noted.bindings.as_ref().filter(|_| self.connection_is_open())?;
        match kind {
            ChannelBinding::TlsExporter => bindings.exporter.as_ref().map(|octets| &octets[..]),
            // Who resumes was not shown a certificate; the one that it remembers may have been replaced since.
            ChannelBinding::TlsServerEndPoint if self.is_resumed() => None,
            ChannelBinding::TlsServerEndPoint => bindings.end_point.as_deref(),
        }
    }

    /// Gives the memory of channel bindings back: after a login nobody asks for them.
    pub fn forget_channel_bindings(&mut self) {
        self.noted.bindings = None;
    }

    /// Gives the memory of the name that the client asked for back, when the caller keeps it: `facts` has an
    /// empty one from here on.
    pub fn forget_name(&mut self) {
        self.noted.sni = None;
    }

    fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Octets of memory that it holds for incomplete records and messages; 0 while it is idle.
    pub fn pending_octets(&self) -> usize {
        self.pending.capacity()
    }

    /// Whether the handshake has succeeded at some time.
    fn connection_is_open(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// How many octets complete the header of the incomplete record, or the record.
    fn wanted(&self) -> usize {
        let Some(record) = self.record.and_then(|at| self.pending.get(at..)) else {
            return usize::MAX;
        };
        record_octets(record).unwrap_or(HEADER_OCTETS).saturating_sub(record.len())
    }

    fn process_pending(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        let record = self.record.and_then(|at| self.pending.get(at..)).unwrap_or_default();
        let is_complete = record_octets(record) == Some(record.len());
        if self.phase == Phase::Handshaking && matches!(record, [ALERT, 3, _, 0, 2, _, CLOSE_NOTIFY]) {
            // Not protected, so anybody may have sent it; but what it asks for is what a cut line does too.
            self.phase = Phase::PeerClosed;
            self.pending = Vec::new();
            return Ok(());
        }
        let mut pending = mem::take(&mut self.pending);
        let used = self.process(&mut pending, plain, out).inspect_err(|_| wipe(&mut pending))?;
        if used == 0 {
            self.pending = pending;
            if is_complete {
                self.record = Some(self.pending.len());
            }
            return self.check_size(out);
        }
        let unused = pending.get(used..).unwrap_or_default();
        let held = if unused.is_empty() {
            self.record = Some(0);
            Ok(())
        } else {
            self.hold(unused, out)
        };
        // It was decrypted where it lies.
        wipe(&mut pending);
        if held.is_ok() && self.pending.is_empty() {
            // The allocation serves the next record of the same flight; receive() gives it back.
            pending.clear();
            self.pending = pending;
        }
        held
    }

    /// Keeps what rustls has not used, in as much memory as it needs.
    fn hold(&mut self, unused: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.pending = unused.to_vec();
        // A complete record that was not used holds the beginning of a handshake message; from here on rustls
        // moves octets about, and the headers behind cannot be relied upon.
        self.record = record_octets(unused).is_none_or(|octets| octets > unused.len()).then_some(0);
        self.check_size(out)
    }

    fn check_size(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.pending.len() <= PENDING_OCTETS_MAX {
            return Ok(());
        }
        if self.connection.protocol_version().is_none() {
            // Nothing is encrypted yet. Later rustls is the only one who could, and it has no word for this.
            out.extend_from_slice(&[ALERT, 3, 3, 0, 2, FATAL, RECORD_OVERFLOW]);
        }
        self.phase = Phase::Failed;
        self.pending = Vec::new();
        Err(TlsError::TooLarge)
    }

    /// Feeds rustls until it needs more; returns how many octets it is through with.
    fn process(&mut self, net: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, TlsError> {
        let mut noted = mem::take(&mut self.noted);
        let result = noted::during(&mut noted, || step_through(&mut self.connection, net, plain, out));
        self.noted = noted;
        match result {
            Ok(Progress { used, peer_closed }) => {
                if peer_closed {
                    self.phase = Phase::PeerClosed;
                    // RFC 8446 §6.1: what follows the closure alert is ignored.
                    return Ok(net.len());
                }
                if self.phase == Phase::Handshaking && self.connection_is_open() {
                    self.phase = Phase::Open;
                }
                Ok(used)
            }
            Err(error) => Err(self.fail(error, out)),
        }
    }

    /// Has rustls write into `out`; `room` octets should be enough for it.
    fn write(
        &mut self,
        mut room: usize,
        out: &mut Vec<u8>,
        mut write: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        // Once as a rule; the others are for a key update that needs more room, or goes first.
        for _ in 0..WRITE_ATTEMPTS_MAX {
            match self.connection.process_tls_records(&mut self.pending).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let start = out.len();
                    out.resize(start + room, 0);
                    let written = write(&mut traffic, out.get_mut(start..).unwrap_or_default());
                    out.truncate(start + *written.as_ref().unwrap_or(&0));
                    match written {
                        Ok(_) => return Ok(()),
                        Err(EncryptError::InsufficientSize(error)) => room = error.required_size,
                        Err(EncryptError::EncryptExhausted) => return Err(self.fail(Error::EncryptError, out)),
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|room| data.encode(room), out)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::Closed) => return Ok(()),
                Ok(_) => break,
                Err(error) => return Err(self.fail(error, out)),
            }
        }
        Err(TlsError::NotOpen)
    }

    /// Ends the connection; the alert that rustls has made goes to `out`.
    fn fail(&mut self, error: Error, out: &mut Vec<u8>) -> TlsError {
        self.phase = Phase::Failed;
        self.pending = Vec::new();
        while self.connection.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process_tls_records(&mut []).state
            else {
                break;
            };
            if encode(|room| data.encode(room), out).is_err() {
                break;
            }
        }
        error.into()
    }
}

/// As fast as memory can be set, and not left out by a compiler.
fn wipe(octets: &mut [u8]) {
    octets.fill(0);
    zeroize::optimization_barrier(octets);
}

struct Progress {
    used: usize,
    peer_closed: bool,
}

fn step_through(
    connection: &mut UnbufferedServerConnection,
    net: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Progress, Error> {
    let mut used = 0;
    let mut peer_closed = false;
    // Each turn uses up a record, takes a piece of output, or is the last.
    loop {
        let status = connection.process_tls_records(net.get_mut(used..).unwrap_or_default());
        let mut discard = status.discard;
        let is_last = match status.state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                let mut before = 0;
                while let Some(record) = traffic.next_record() {
                    forget(before);
                    let record = record?;
                    plain.extend_from_slice(record.payload);
                    discard += record.discard;
                    before = record.payload.len();
                }
                forget(before);
                false
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|room| data.encode(room), out).map_err(|error| Error::General(error.to_string()))?;
                false
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                false
            }
            ConnectionState::PeerClosed => {
                peer_closed = true;
                true
            }
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed => true,
            // Early data is never allowed (`ServerTls`); a state that a later release adds is not ours to guess.
            _ => return Err(Error::General("unexpected state of the TLS library".into())),
        };
        used += discard;
        if is_last {
            return Ok(Progress { used, peer_closed });
        }
    }
}

/// rustls hands a record out as a copy of its own, of just that length, and frees it as it is. Whoever asks for as
/// many octets right afterwards is given the same ones by any allocator that we know, so they are wiped that way.
/// Larger records are pieces of messages: no line has room for them.
fn forget(octets: usize) {
    if (1..=FORGOTTEN_OCTETS_MAX).contains(&octets) {
        let mut same = Vec::with_capacity(octets);
        // Written, so that it is not left out; not asked for as zeroes, which come from elsewhere.
        same.resize(octets, 0xff);
        wipe(&mut same);
    }
}

fn encode(mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, out: &mut Vec<u8>) -> Result<(), TlsError> {
    // The first call only asks for the size.
    let Err(EncodeError::InsufficientSize(size)) = encode(&mut []) else { return Ok(()) };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    match encode(out.get_mut(start..).unwrap_or_default()) {
        Ok(written) => {
            out.truncate(start + written);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(TlsError::Internal(error.to_string()))
        }
    }
}

/// The size that the record at the front says it has, header included.
fn record_octets(octets: &[u8]) -> Option<usize> {
    let [_, _, _, high, low, ..] = octets else { return None };
    Some(HEADER_OCTETS + usize::from(u16::from_be_bytes([*high, *low])))
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

const HEADER_OCTETS: usize = 5;
/// RFC 8446 §5.1.
pub const RECORD_PLAINTEXT_MAX: usize = 16 << 10;
/// The longest AUTH line is shorter.
const FORGOTTEN_OCTETS_MAX: usize = RECORD_PLAINTEXT_MAX - 1;
/// Header, explicit nonce (TLS 1.2), content type, tag; a key update in front fits the room of one record.
const RECORD_OVERHEAD_MAX: usize = 64;
/// A record (16 KiB and 256 octets) with room for a long client chain; rustls would reassemble up to 64 KiB.
const PENDING_OCTETS_MAX: usize = 24 << 10;
const WRITE_ATTEMPTS_MAX: usize = 8;
const ALERT: u8 = 21;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const RECORD_OVERFLOW: u8 = 22;

// An idle session is this and what rustls allocates besides; growing it is a decision, not an accident.
const _: () = assert!(mem::size_of::<TlsSession>() <= mem::size_of::<UnbufferedServerConnection>() + 80);

#[cfg(test)]
mod tests;
