//! One connection: octets off the wire in, plaintext and octets for the wire out.
//!
//! The handshake is rustls', and all of TLS 1.2. When a handshake of TLS 1.3 is through, its keys pass to the record
//! layer in `record.rs`, and rustls' connection is gone, which would keep some 3 KiB for as long as a client is silent.
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

use rustls::Error;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, WriteTraffic};

use crate::channel_binding::ChannelBinding;
use crate::client_certificate::ClientIdentity;
use crate::error::TlsError;
use crate::facts::{Facts, Negotiated};
use crate::noted::{self, Noted};
use crate::record::{Progress, RECORD_PLAINTEXT_MAX, Records};
use crate::server::ServerTls;

/// A TLS connection, server side.
pub struct TlsSession {
    pub(crate) layer: Layer,
    /// An incomplete record; as long as rustls reads them, in front of it complete records with a handshake message in
    /// parts. Without allocation when empty.
    pending: Vec<u8>,
    /// Where in `pending` the incomplete record begins; None when only rustls knows.
    record: Option<usize>,
    phase: Phase,
    noted: Noted,
    /// Since the end of the handshake.
    negotiated: Option<Negotiated>,
    /// Of a client whose certificate an authority vouches for.
    identity: Option<Box<ClientIdentity>>,
}

/// Who seals and opens records.
pub(crate) enum Layer {
    /// During the handshake, and with TLS 1.2.
    Rustls(Box<UnbufferedServerConnection>),
    /// TLS 1.3 after the handshake.
    Records(Box<Records>),
    /// Nobody any more: RFC 8446 §6.2 has the keys of a failed connection forgotten.
    Over,
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

impl TlsSession {
    /// A connection that waits for its ClientHello.
    pub fn accept(server: &Arc<ServerTls>) -> Result<Self, TlsError> {
        Ok(Self {
            layer: Layer::Rustls(Box::new(UnbufferedServerConnection::new(server.config.clone())?)),
            pending: Vec::new(),
            record: Some(0),
            phase: Phase::Handshaking,
            noted: Noted { bindings: server.channel_binding.then(Box::default), ..Noted::default() },
            negotiated: None,
            identity: None,
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
            if matches!(self.layer, Layer::Records(_)) {
                self.receive_records(rest, plain, out)?;
                break;
            }
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
            handshake_done: was_handshaking && self.negotiated.is_some(),
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
        if let Layer::Records(records) = &mut self.layer {
            return match records.send(plaintext, out) {
                Ok(()) => Ok(()),
                Err(fault) => {
                    let error = records.end(fault, out);
                    Err(self.over(error))
                }
            };
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
            let _ = match &mut self.layer {
                Layer::Records(records) => records.close(out).is_ok(),
                _ => self.write(RECORD_OVERHEAD_MAX, out, |traffic, room| traffic.queue_close_notify(room)).is_ok(),
            };
        }
        if self.phase != Phase::Failed {
            self.phase = Phase::Closed;
        }
        (self.layer, self.pending) = (Layer::Over, Vec::new());
    }

    /// What was negotiated; None before the end of the handshake.
    pub fn facts(&self) -> Option<Facts<'_>> {
        let negotiated = self.negotiated.as_ref()?;
        let sni = self.noted.sni.as_deref().unwrap_or("");
        Some(negotiated.facts(sni, self.noted.certificate_verified))
    }

    /// The client presented a certificate and proved that it holds the key; whether an authority vouches for it is
    /// said by [`Facts::client_certificate`].
    pub fn certificate_presented(&self) -> bool {
        self.negotiated.is_some() && self.noted.certificate_presented
    }

    /// Who the client is by its certificate, when an authority vouches for it. Not known after resumption.
    pub fn client_identity(&self) -> Option<&ClientIdentity> {
        self.identity.as_deref()
    }

    /// Octets that only the two ends of this connection share, after the handshake, where the listener's
    /// [`Settings::channel_binding`](crate::Settings::channel_binding) is set and the version has them.
    pub fn channel_binding(&self, kind: ChannelBinding) -> Option<&[u8]> {
        let bindings = self.noted.bindings.as_ref()?;
        let negotiated = self.negotiated.as_ref()?;
        match kind {
            ChannelBinding::TlsExporter => bindings.exporter.as_ref().map(|octets| &octets[..]),
            // Who resumes was not shown a certificate; the one that it remembers may have been replaced since.
            ChannelBinding::TlsServerEndPoint if negotiated.resumed => None,
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

    /// Octets of memory that it holds for incomplete records and messages; 0 while it is idle.
    pub fn pending_octets(&self) -> usize {
        self.pending.capacity()
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
        let is_encrypted = match &self.layer {
            Layer::Rustls(connection) => connection.protocol_version().is_some(),
            _ => true,
        };
        if !is_encrypted {
            // Nothing is encrypted yet. Later rustls is the only one who could, and it has no word for this.
            out.extend_from_slice(&[ALERT, 3, 3, 0, 2, FATAL, RECORD_OVERFLOW]);
        }
        Err(self.over(TlsError::TooLarge))
    }

    /// Has our own record layer read. What is incomplete is completed first, and where it lies.
    fn receive_records(&mut self, mut net: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        while !net.is_empty() && self.phase == Phase::Open {
            if self.pending.is_empty() {
                let used = self.open_records(net, plain, out)?;
                self.pending.extend_from_slice(net.get(used..).unwrap_or_default());
                break;
            }
            let whole = record_octets(&self.pending).unwrap_or(HEADER_OCTETS);
            let wanted = whole.saturating_sub(self.pending.len()).clamp(1, net.len());
            let (taken, behind) = mem::take(&mut net).split_at_mut(wanted);
            self.pending.extend_from_slice(taken);
            net = behind;
            let mut pending = mem::take(&mut self.pending);
            let used = self.open_records(&mut pending, plain, out);
            match used {
                Ok(0) => self.pending = pending,
                // It was decrypted where it lies.
                _ => wipe(&mut pending),
            }
            used?;
        }
        Ok(())
    }

    /// How many octets the records had that lie whole at the front of `net`.
    fn open_records(&mut self, net: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, TlsError> {
        let Layer::Records(records) = &mut self.layer else { return Err(TlsError::NotOpen) };
        match records.receive(net, plain) {
            Ok(Progress { used, peer_closed: false }) => Ok(used),
            Ok(Progress { peer_closed: true, .. }) => {
                self.phase = Phase::PeerClosed;
                // RFC 8446 §6.1: what follows the closure alert is ignored.
                Ok(net.len())
            }
            Err(fault) => {
                let error = records.end(fault, out);
                Err(self.over(error))
            }
        }
    }

    /// Feeds rustls until it needs more; returns how many octets it is through with.
    fn process(&mut self, net: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, TlsError> {
        let Layer::Rustls(connection) = &mut self.layer else { return Err(TlsError::NotOpen) };
        match noted::during(&mut self.noted, || step_through(connection, net, plain, out)) {
            Ok(Progress { used, peer_closed }) => {
                if peer_closed {
                    self.phase = Phase::PeerClosed;
                    // RFC 8446 §6.1: what follows the closure alert is ignored.
                    return Ok(net.len());
                }
                if self.phase == Phase::Handshaking && !connection.is_handshaking() {
                    self.open()?;
                }
                Ok(used)
            }
            Err(error) => Err(self.fail(error, out)),
        }
    }

    /// The handshake is through: notes what rustls knows of it, and takes TLS 1.3 over.
    ///
    /// rustls has nothing left then. It is fed record by record in a handshake and has handed out what it had to send;
    /// and it refuses a Finished that does not end its record (RFC 8446 §5.1), so no part of a message is with it.
    fn open(&mut self) -> Result<(), TlsError> {
        let Layer::Rustls(connection) = mem::replace(&mut self.layer, Layer::Over) else { return Ok(()) };
        self.phase = Phase::Open;
        let negotiated = Negotiated::of(&connection);
        let certificate = connection.peer_certificates().unwrap_or_default().first();
        self.identity = certificate
            .filter(|_| self.noted.certificate_verified)
            .and_then(|certificate| ClientIdentity::of(certificate))
            .map(Box::new);
        self.layer = match &negotiated {
            Some(negotiated) if negotiated.is_tls13() => match Records::after(*connection, self.noted.traffic.take()) {
                Ok(records) => Layer::Records(Box::new(records)),
                Err(error) => return Err(self.over(error)),
            },
            _ => Layer::Rustls(connection),
        };
        self.negotiated = negotiated;
        Ok(())
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
            let Layer::Rustls(connection) = &mut self.layer else { break };
            match connection.process_tls_records(&mut self.pending).state {
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
        if let Layer::Rustls(connection) = &mut self.layer {
            while connection.wants_write() {
                let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(&mut []).state else {
                    break;
                };
                if encode(|room| data.encode(room), out).is_err() {
                    break;
                }
            }
        }
        self.over(error.into())
    }

    fn over(&mut self, error: TlsError) -> TlsError {
        self.phase = Phase::Failed;
        (self.layer, self.pending) = (Layer::Over, Vec::new());
        error
    }
}

/// As fast as memory can be set, and not left out by a compiler.
fn wipe(octets: &mut [u8]) {
    octets.fill(0);
    zeroize::optimization_barrier(octets);
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

/// TLS 1.2 only. rustls hands a record out as a copy of its own, of just that length, and frees it as it is. Whoever asks for as
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

const HEADER_OCTETS: usize = 5;
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

// An idle session is this and what its layer allocates; growing it is a decision, not an accident.
const _: () = assert!(mem::size_of::<TlsSession>() <= 136);

#[cfg(test)]
mod tests;
