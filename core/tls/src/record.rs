//! The record layer of an open TLS 1.3 connection (RFC 8446 §5): records in, plaintext out, and the other way.
//!
//! ```text
//! rustls: handshake, ticket ──→ Records: two keys with their sequence numbers, and the secrets from which the next
//!                                        keys come (§7.2)
//! record → cipher made from the key → content type → plaintext │ alert │ KeyUpdate │ fault with its alert
//! ```
//!
//! A cipher with its expanded key is made for a call and dropped with it, so that an idle connection holds none.
//! Nothing here is cryptography: AEADs and HKDF are the provider's, the first keys are rustls'. What is ours is their use: a
//! sequence number never serves twice, nothing is told of what does not authenticate, and after a fault the keys are gone.
//!
//! After the handshake a client may send three things: application data, alerts, and KeyUpdate. Certificates are asked
//! for in the handshake or not at all, so no other handshake message is in order.

use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error};
use zeroize::Zeroizing;

use crate::error::{TlsError, alert_name};
use crate::provider::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use crate::secret::{Secret, Traffic};

/// Both directions of a connection.
pub(crate) struct Records {
    read: Keys,
    write: Keys,
    /// What the keys come from, and the next secrets: the client's is that of `read`.
    traffic: Traffic,
    /// How many records one key may seal (§5.5).
    limit: u64,
    /// Goes out in front of the next application data.
    update: Option<KeyUpdate>,
    /// How much of a KeyUpdate has come, if it comes in parts.
    key_update_octets: u8,
    /// Records in a row that brought no application data.
    without_data: u8,
}

/// What a KeyUpdate asks of who receives it (§4.6.3).
#[derive(Clone, Copy)]
enum KeyUpdate {
    NotRequested = 0,
    Requested = 1,
}

/// What [`Records::receive`] did.
pub(crate) struct Progress {
    /// Octets of the records that were whole.
    pub(crate) used: usize,
    /// The peer said `close_notify`; what stands behind it does not count (§6.1).
    pub(crate) peer_closed: bool,
}

/// Why a connection ends, and what the peer is told.
#[derive(Debug)]
pub(crate) struct Fault {
    alert: Option<Alert>,
    error: TlsError,
}

/// §6; those that are sent from here.
#[derive(Clone, Copy, Debug)]
enum Alert {
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    IllegalParameter = 47,
    DecodeError = 50,
    InternalError = 80,
}

impl Records {
    /// Takes over from rustls when the handshake is through and all of its output has been fetched.
    /// `traffic` are its secrets.
    pub(crate) fn after(
        handshake: UnbufferedServerConnection,
        traffic: Option<Box<Traffic>>,
    ) -> Result<Self, TlsError> {
        let (secrets, kernel) = handshake.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite().tls13();
        let limit = suite.ok_or_else(|| TlsError::Internal("not TLS 1.3".into()))?.common.confidentiality_limit;
        Ok(Self {
            read: Keys::new(secrets.rx)?,
            write: Keys::new(secrets.tx)?,
            traffic: *traffic.ok_or_else(|| TlsError::Internal("no secrets".into()))?,
            limit,
            update: None,
            key_update_octets: 0,
            without_data: 0,
        })
    }

    /// Opens the records that lie whole at the front of `net`, where they lie, and appends what they say to `plain`.
    pub(crate) fn receive(&mut self, net: &mut [u8], plain: &mut Vec<u8>) -> Result<Progress, Fault> {
        let mut cipher = self.read.cipher()?;
        let mut used = 0;
        while let Some(record) = first_record(net.get_mut(used..).unwrap_or_default())? {
            used += record.len();
            let (content_type, content) = self.read.open(&cipher, record)?;
            match content_type {
                // §5.1: nothing comes between the parts of a handshake message.
                APPLICATION_DATA | ALERT if self.key_update_octets > 0 => {
                    return Err(Fault::unexpected("a record in the middle of a handshake message"));
                }
                APPLICATION_DATA if !content.is_empty() => {
                    self.without_data = 0;
                    plain.extend_from_slice(content);
                }
                // §5.4: cover traffic.
                APPLICATION_DATA => self.count_without_data()?,
                ALERT => {
                    if closes(content)? {
                        return Ok(Progress { used, peer_closed: true });
                    }
                    self.count_without_data()?;
                }
                HANDSHAKE => {
                    self.count_without_data()?;
                    if let Some(request) = self.key_update(content)? {
                        self.read = self.read.next(&mut self.traffic.client)?;
                        cipher = self.read.cipher()?;
                        if request == KeyUpdate::Requested as u8 {
                            // One answer to all that come until we have something to say.
                            self.update.get_or_insert(KeyUpdate::NotRequested);
                        }
                    }
                }
                _ => return Err(Fault::unexpected("a record of a type that is not in order")),
            }
            if self.read.sequence == self.limit {
                // The peer should have thought of it.
                self.update = Some(KeyUpdate::Requested);
            }
        }
        Ok(Progress { used, peer_closed: false })
    }

    /// Appends `plaintext` to `out` as records of at most 16 KiB, behind a KeyUpdate where one is due.
    pub(crate) fn send(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let records = plaintext.len().div_ceil(RECORD_PLAINTEXT_MAX);
        // Growing while a record is plaintext yet would leave a copy behind.
        out.reserve(plaintext.len() + (records + 2) * OVERHEAD_OCTETS);
        let mut cipher = self.write.cipher()?;
        for part in plaintext.chunks(RECORD_PLAINTEXT_MAX) {
            // §5.5: the KeyUpdate is the last record under the old key.
            if self.write.sequence >= self.limit.saturating_sub(1) {
                self.update = Some(KeyUpdate::Requested);
            }
            if let Some(update) = self.update.take() {
                self.write.seal(&cipher, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, update as u8], out)?;
                self.write = self.write.next(&mut self.traffic.server)?;
                cipher = self.write.cipher()?;
            }
            self.write.seal(&cipher, APPLICATION_DATA, part, out)?;
        }
        Ok(())
    }

    /// Appends `close_notify`.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.write.seal(&self.write.cipher()?, ALERT, &[WARNING, CLOSE_NOTIFY], out)
    }

    /// Appends the alert that a fault has. The connection ends with it: §6.2 has the keys forgotten.
    pub(crate) fn end(&mut self, fault: Fault, out: &mut Vec<u8>) -> TlsError {
        if let Some(alert) = fault.alert
            && let Ok(cipher) = self.write.cipher()
        {
            // If it fails, closing the connection has to tell.
            let _ = self.write.seal(&cipher, ALERT, &[FATAL, alert as u8], out);
        }
        fault.error
    }

    /// Takes a part of a handshake message, which is a KeyUpdate or a fault: so no more than its length is ever kept.
    /// What it asks for, when it is whole.
    fn key_update(&mut self, part: &[u8]) -> Result<Option<u8>, Fault> {
        if part.is_empty() {
            return Err(Fault::unexpected("an empty record of a handshake message"));
        }
        for (at, &octet) in part.iter().enumerate() {
            match (self.key_update_octets, octet) {
                // Type, and a length of 1 in three octets.
                (0, KEY_UPDATE) | (1 | 2, 0) | (3, 1) => self.key_update_octets += 1,
                (0, _) => return Err(Fault::unexpected("a handshake message other than KeyUpdate")),
                (1..=3, _) => return Err(Fault::peer(Alert::DecodeError, "a KeyUpdate of another length than 1")),
                // §5.1: it is followed by new keys, so by a new record.
                (_, 0 | 1) if at + 1 == part.len() => {
                    self.key_update_octets = 0;
                    return Ok(Some(octet));
                }
                (_, 0 | 1) => return Err(Fault::unexpected("a message behind a KeyUpdate in one record")),
                _ => return Err(Fault::peer(Alert::IllegalParameter, "a KeyUpdate that asks for something unknown")),
            }
        }
        Ok(None)
    }

    /// A peer may not keep us busy with records that say nothing.
    fn count_without_data(&mut self) -> Result<(), Fault> {
        self.without_data += 1;
        if self.without_data > WITHOUT_DATA_MAX {
            return Err(Fault::unexpected("too many records in a row without application data"));
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }
}

/// The key of one direction; wiped when it is dropped.
pub(crate) struct Keys {
    algorithm: &'static Algorithm,
    key: Zeroizing<[u8; KEY_OCTETS_MAX]>,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    /// Of the next record.
    sequence: u64,
}

impl Keys {
    pub(crate) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("secrets of an unknown cipher".into())),
        };
        let mut keys = Self { algorithm, key: Zeroizing::default(), iv: Zeroizing::default(), sequence };
        let (key, iv) = (key.as_ref(), iv.as_ref());
        match keys.key.get_mut(..key.len()) {
            Some(to) if key.len() == algorithm.key_len() && iv.len() == NONCE_LEN => to.copy_from_slice(key),
            _ => return Err(Error::General("secrets of another length than the cipher's".into())),
        }
        keys.iv.copy_from_slice(iv);
        Ok(keys)
    }

    /// Those behind it: the secret is followed by the next, which the keys come from (§7.2, §7.3).
    fn next(&self, secret: &mut Secret) -> Result<Self, Fault> {
        let lost = || Fault::internal("no secret for the next keys");
        *secret = secret.next().ok_or_else(lost)?;
        let mut next =
            Self { algorithm: self.algorithm, key: Zeroizing::default(), iv: Zeroizing::default(), sequence: 0 };
        let key = next.key.get_mut(..self.algorithm.key_len()).ok_or_else(lost)?;
        secret.expand(b"key", key).ok_or_else(lost)?;
        secret.expand(b"iv", &mut *next.iv).ok_or_else(lost)?;
        Ok(next)
    }

    pub(crate) fn cipher(&self) -> Result<LessSafeKey, Fault> {
        let key = self.key.get(..self.algorithm.key_len()).unwrap_or_default();
        UnboundKey::new(self.algorithm, key).map(LessSafeKey::new).map_err(|_| Fault::internal("key is not usable"))
    }

    /// §5.3. Each once: a sequence number that could wrap ends the connection.
    fn nonce(&mut self) -> Result<Nonce, Fault> {
        let next = self.sequence.checked_add(1).ok_or_else(|| Fault::internal("no sequence number is left"))?;
        let mut nonce = *self.iv;
        let sequence = self.sequence.to_be_bytes();
        nonce.iter_mut().rev().zip(sequence.iter().rev()).for_each(|(octet, of_sequence)| *octet ^= of_sequence);
        self.sequence = next;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Opens a whole record: its content type, and its content without padding (§5.2, §5.4).
    pub(crate) fn open<'a>(&mut self, cipher: &LessSafeKey, record: &'a mut [u8]) -> Result<(u8, &'a [u8]), Fault> {
        let Some((header, sealed)) = record.split_first_chunk_mut::<HEADER_OCTETS>() else {
            return Err(Fault::internal("not a whole record"));
        };
        if sealed.len() < TAG_OCTETS {
            return Err(Fault::bad_record());
        }
        let nonce = self.nonce()?;
        let inner = &*cipher.open_in_place(nonce, Aad::from(*header), sealed).map_err(|_| Fault::bad_record())?;
        if inner.len() > RECORD_PLAINTEXT_MAX + 1 {
            return Err(Fault::overflow());
        }
        let Some(type_at) = inner.iter().rposition(|&octet| octet != 0) else {
            return Err(Fault::unexpected("a record of zeroes, without a content type"));
        };
        match inner.split_at(type_at) {
            (content, [content_type, ..]) => Ok((*content_type, content)),
            _ => Err(Fault::internal("no content type")),
        }
    }

    pub(crate) fn seal(
        &mut self,
        cipher: &LessSafeKey,
        kind: u8,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let too_long = || Fault::internal("record is too long");
        let length = u16::try_from(content.len() + 1 + TAG_OCTETS).map_err(|_| too_long())?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
        let nonce = self.nonce()?;
        out.reserve(content.len() + OVERHEAD_OCTETS);
        let start = out.len();
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.push(kind);
        let inner = out.get_mut(start + HEADER_OCTETS..).unwrap_or_default();
        match cipher.seal_in_place_separate_tag(nonce, Aad::from(header), inner) {
            Ok(tag) => {
                out.extend_from_slice(tag.as_ref());
                Ok(())
            }
            Err(_) => {
                out.truncate(start);
                Err(Fault::internal("record cannot be sealed"))
            }
        }
    }
}

/// The record at the front, when it is whole. One that could not be in order is refused as soon as its header is there.
fn first_record(octets: &mut [u8]) -> Result<Option<&mut [u8]>, Fault> {
    let &mut [kind, major, _, high, low, ..] = octets else { return Ok(None) };
    match (kind, major) {
        (APPLICATION_DATA, 3) => {}
        // §5: neither in clear nor change_cipher_spec, which belongs to the handshake.
        (CHANGE_CIPHER_SPEC..=HANDSHAKE, 3) => return Err(Fault::unexpected("a record that is not protected")),
        _ => return Err(Fault { alert: Some(Alert::UnexpectedMessage), error: TlsError::NotTls }),
    }
    let sealed_octets = usize::from(u16::from_be_bytes([high, low]));
    if sealed_octets > SEALED_OCTETS_MAX {
        return Err(Fault::overflow());
    }
    Ok(octets.get_mut(..HEADER_OCTETS + sealed_octets))
}

/// Whether an alert says `close_notify`. All others are errors whatever their level says (§6), save one.
fn closes(content: &[u8]) -> Result<bool, Fault> {
    match *content {
        [_, CLOSE_NOTIFY] => Ok(true),
        // §6.1: a `close_notify` should follow. Java sends it with every close.
        [_, USER_CANCELED] => Ok(false),
        // Who has given up is not told anything.
        [_, other] => Err(Fault { alert: None, error: TlsError::Alert(alert_name(AlertDescription::from(other))) }),
        [] => Err(Fault::unexpected("an empty alert")),
        // §5.1: exactly one in a record, and whole.
        _ => Err(Fault::peer(Alert::DecodeError, "an alert of another length than 2")),
    }
}

impl Fault {
    fn peer(alert: Alert, cause: &str) -> Self {
        Self { alert: Some(alert), error: TlsError::Peer(cause.into()) }
    }

    fn unexpected(cause: &str) -> Self {
        Self::peer(Alert::UnexpectedMessage, cause)
    }

    fn bad_record() -> Self {
        Self { alert: Some(Alert::BadRecordMac), error: TlsError::BadRecord }
    }

    fn overflow() -> Self {
        Self { alert: Some(Alert::RecordOverflow), error: TlsError::TooLarge }
    }

    fn internal(cause: &str) -> Self {
        Self { alert: Some(Alert::InternalError), error: TlsError::Internal(cause.into()) }
    }
}

/// From rustls, which is only asked for the first keys here.
impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { alert: Some(Alert::InternalError), error: TlsError::Internal(error.to_string()) }
    }
}

/// RFC 8446 §5.1.
pub const RECORD_PLAINTEXT_MAX: usize = 16 << 10;
/// §5.2: of what stands behind the header.
const SEALED_OCTETS_MAX: usize = RECORD_PLAINTEXT_MAX + 256;
const HEADER_OCTETS: usize = 5;
/// Of every AEAD that TLS 1.3 has here.
const TAG_OCTETS: usize = 16;
/// Header, content type and tag.
const OVERHEAD_OCTETS: usize = HEADER_OCTETS + 1 + TAG_OCTETS;
const KEY_OCTETS_MAX: usize = 32;
/// OpenSSL permits as many empty records, rustls as many KeyUpdates.
const WITHOUT_DATA_MAX: u8 = 32;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

#[cfg(test)]
mod tests;
