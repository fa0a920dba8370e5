//! The client's side of SASL: SCRAM with SHA-1, SHA-256 and SHA-512, with and without channel binding (RFC 5802,
//! 7677, 9266), CRAM-MD5 (RFC 2195), OAUTHBEARER (RFC 7628), XOAUTH2, PLAIN (RFC 4616), LOGIN, EXTERNAL (RFC 4422).
//!
//! Names and passwords go out as the octets that they are; whoever has others than ASCII prepares them
//! (RFC 4013) before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sasl::Secret;
use subtle::ConstantTimeEq as _;

use super::credentials::{Credentials, Proof};
use super::scram::{Hash, ServerFirst};

/// A mechanism that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// As [`ScramSha512`](Self::ScramSha512), and bound to the TLS connection: nobody stands between.
    ScramSha512Plus,
    /// The same with SHA-256.
    ScramSha256Plus,
    /// The same with SHA-1.
    ScramSha1Plus,
    /// Proves the client to the server and the server to the client; no password crosses the wire.
    ScramSha512,
    /// The same with SHA-256.
    ScramSha256,
    /// The same with SHA-1.
    ScramSha1,
    /// Proves the client only; no password crosses the wire.
    CramMd5,
    /// The token crosses the wire.
    OauthBearer,
    /// The same in the form from before the RFC.
    Xoauth2,
    /// The password crosses the wire.
    Plain,
    /// The password crosses the wire.
    Login,
    /// Nothing crosses the wire: the peer has seen who we are, by a client certificate for one.
    External,
}

impl Mechanism {
    /// Strongest first.
    pub const ALL: [Self; 12] = [
        Self::ScramSha512Plus,
        Self::ScramSha256Plus,
        Self::ScramSha1Plus,
        Self::ScramSha512,
        Self::ScramSha256,
        Self::ScramSha1,
        Self::CramMd5,
        Self::OauthBearer,
        Self::Xoauth2,
        Self::Plain,
        Self::Login,
        Self::External,
    ];

    /// As registered.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha512Plus => "SCRAM-SHA-512-PLUS",
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::CramMd5 => "CRAM-MD5",
            Self::OauthBearer => "OAUTHBEARER",
            Self::Xoauth2 => "XOAUTH2",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::External => "EXTERNAL",
        }
    }

    /// The one of this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name().eq_ignore_ascii_case(name))
    }

    /// Whether a password or token crosses the wire.
    pub fn is_plaintext(self) -> bool {
        matches!(self, Self::Plain | Self::Login | Self::OauthBearer | Self::Xoauth2)
    }

    /// Whether it is bound to the TLS connection.
    pub fn binds_channel(self) -> bool {
        matches!(self, Self::ScramSha512Plus | Self::ScramSha256Plus | Self::ScramSha1Plus)
    }

    /// Whether it takes a bearer token.
    pub fn takes_token(self) -> bool {
        self.proof() == Proof::Token
    }

    /// Whether it can say as whom to act.
    pub(super) fn carries_authzid(self) -> bool {
        matches!(self, Self::Plain | Self::External) || self.hash().is_some()
    }

    pub(super) fn proof(self) -> Proof {
        match self {
            Self::OauthBearer | Self::Xoauth2 => Proof::Token,
            Self::External => Proof::External,
            _ => Proof::Password,
        }
    }

    fn hash(self) -> Option<Hash> {
        match self {
            Self::ScramSha512Plus | Self::ScramSha512 => Some(Hash::Sha512),
            Self::ScramSha256Plus | Self::ScramSha256 => Some(Hash::Sha256),
            Self::ScramSha1Plus | Self::ScramSha1 => Some(Hash::Sha1),
            _ => None,
        }
    }

    pub(crate) fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// What a TLS connection can be bound by; the driver knows it after the handshake.
#[derive(Clone, Debug, Default)]
pub struct ChannelBindings {
    /// RFC 9266; preferred.
    pub exporter: Option<[u8; 32]>,
    /// RFC 5929 §4.
    pub server_end_point: Option<Box<[u8]>>,
}

/// What SCRAM says of channel binding in front of its first message (RFC 5802 §6).
#[derive(Clone, Copy)]
pub(crate) enum Gs2<'a> {
    /// We do not bind.
    No,
    /// We would, but the peer does not seem to: it fails the login if somebody has struck its offer out.
    Would,
    /// By the best that there is.
    Bound(&'a ChannelBindings),
}

impl Gs2<'_> {
    /// The flag, and what it binds.
    fn flag(&self) -> (&'static str, &[u8]) {
        match self {
            Self::No => ("n", b""),
            Self::Would => ("y", b""),
            Self::Bound(ChannelBindings { exporter: Some(exporter), .. }) => ("p=tls-exporter", exporter),
            Self::Bound(ChannelBindings { server_end_point, .. }) => {
                ("p=tls-server-end-point", server_end_point.as_deref().unwrap_or_default())
            }
        }
    }
}

/// Octets of an initial response that goes with AUTH in one line of 512; a longer one waits for the
/// go-ahead (RFC 4954 §4).
const INITIAL_OCTETS_MAX: usize = 360;

/// One exchange.
pub(crate) struct Exchange {
    pub(crate) mechanism: Mechanism,
    awaited: Awaited,
}

/// What the server's next word is.
enum Awaited {
    /// Nothing was said yet.
    Nothing,
    /// The empty challenge before an initial response that was too long for the AUTH line.
    GoAhead {
        initial: Secret,
        then: Box<Awaited>,
    },
    /// CRAM-MD5's challenge.
    Challenge,
    /// LOGIN's prompts, whatever they say.
    UserName,
    Password,
    /// SCRAM's server-first-message.
    ServerFirst {
        hash: Hash,
        client_first_bare: String,
        nonce: String,
        /// The gs2 header and what it binds, in base64.
        binding: String,
    },
    /// SCRAM's server-final-message.
    ServerFinal {
        signature: Vec<u8>,
    },
    /// The outcome; or why a token was refused, which wants an answer before the reply comes.
    Token,
    /// The outcome. `proven`: 235 may be believed.
    Outcome {
        proven: bool,
    },
}

impl Exchange {
    pub(crate) fn new(mechanism: Mechanism) -> Self {
        Self { mechanism, awaited: Awaited::Nothing }
    }

    /// Whether AUTH was said.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.awaited, Awaited::Nothing)
    }

    /// Whether the server may say 235 now. One that has not proven to know the password is not the server
    /// that we were told about (RFC 5802 §5).
    pub(crate) fn is_proven(&self) -> bool {
        matches!(self.awaited, Awaited::Outcome { proven: true } | Awaited::Token)
    }

    /// Appends AUTH.
    pub(crate) fn begin(&mut self, credentials: &Credentials, entropy: &[u8; 24], gs2: Gs2<'_>, out: &mut Vec<u8>) {
        let Credentials { authcid, authzid, secret, .. } = credentials;
        let (initial, then) = match self.mechanism {
            Mechanism::CramMd5 => (None, Awaited::Challenge),
            Mechanism::Login => (None, Awaited::UserName),
            Mechanism::Plain => {
                let parts = [authzid.as_bytes(), b"\0", authcid.as_bytes(), b"\0", secret.expose()];
                (Some(parts.concat()), Awaited::Outcome { proven: true })
            }
            Mechanism::External => (Some(authzid.as_bytes().to_vec()), Awaited::Outcome { proven: true }),
            // RFC 7628 §3.1
            Mechanism::OauthBearer => {
                let name = saslname(authcid);
                let parts = [b"n,a=", name.as_bytes(), b",\x01auth=Bearer ", secret.expose(), b"\x01\x01"];
                (Some(parts.concat()), Awaited::Token)
            }
            Mechanism::Xoauth2 => {
                let parts = [b"user=", authcid.as_bytes(), b"\x01auth=Bearer ", secret.expose(), b"\x01\x01"];
                (Some(parts.concat()), Awaited::Token)
            }
            scram => {
                let nonce = STANDARD.encode(entropy);
                let client_first_bare = format!("n={},r={nonce}", saslname(authcid));
                let (flag, bound) = gs2.flag();
                let header = gs2_header(flag, authzid);
                let binding = STANDARD.encode([header.as_bytes(), bound].concat());
                let first = format!("{header}{client_first_bare}").into_bytes();
                let hash = scram.hash().expect("all others have their own arm");
                (Some(first), Awaited::ServerFirst { hash, client_first_bare, nonce, binding })
            }
        };
        out.extend_from_slice(b"AUTH ");
        out.extend_from_slice(self.mechanism.name().as_bytes());
        self.awaited = match initial.map(Secret::new) {
            None => {
                out.extend_from_slice(b"\r\n");
                then
            }
            Some(initial) if initial.expose().len() > INITIAL_OCTETS_MAX => {
                out.extend_from_slice(b"\r\n");
                Awaited::GoAhead { initial, then: Box::new(then) }
            }
            // RFC 4954 §4: an initial response that is there, and empty.
            Some(initial) if initial.expose().is_empty() => {
                out.extend_from_slice(b" =\r\n");
                then
            }
            Some(initial) => {
                out.push(b' ');
                put_line(initial.expose(), out);
                then
            }
        };
    }

    /// Appends the response to `challenge`, which is still in base64.
    pub(crate) fn respond(
        &mut self,
        challenge: &str,
        credentials: &Credentials,
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        let challenge = STANDARD.decode(challenge).map_err(|_| "challenge that is no base64")?;
        let Credentials { authcid, secret, .. } = credentials;
        self.awaited = match std::mem::replace(&mut self.awaited, Awaited::Outcome { proven: false }) {
            Awaited::GoAhead { initial, then } => {
                put_line(initial.expose(), out);
                *then
            }
            Awaited::UserName => {
                put_line(authcid.as_bytes(), out);
                Awaited::Password
            }
            Awaited::Password => {
                put_line(secret.expose(), out);
                Awaited::Outcome { proven: true }
            }
            Awaited::Challenge => {
                // RFC 2195 §2: user name, blank, digest in lower-case hexadecimal.
                let mut mac = Hmac::<Md5>::new_from_slice(secret.expose()).expect("HMAC takes keys of any length");
                mac.update(&challenge);
                let mut response = format!("{authcid} ");
                for octet in mac.finalize().into_bytes() {
                    response
                        .extend([octet >> 4, octet & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize])));
                }
                put_line(response.as_bytes(), out);
                Awaited::Outcome { proven: true }
            }
            Awaited::ServerFirst { hash, client_first_bare, nonce, binding } => {
                let server_first = std::str::from_utf8(&challenge).map_err(|_| "SCRAM message that is no UTF-8")?;
                let ServerFirst { nonce, salt, iterations } = ServerFirst::parse(server_first, &nonce)?;
                let keys = credentials.scram_keys(hash, &salt, iterations);
                let without_proof = format!("c={binding},r={nonce}");
                let (proof, signature) = keys.sign(&format!("{client_first_bare},{server_first},{without_proof}"));
                put_line(format!("{without_proof},p={}", STANDARD.encode(&*proof)).as_bytes(), out);
                Awaited::ServerFinal { signature }
            }
            Awaited::ServerFinal { signature } => {
                // `e=…` says that we failed; the empty line brings the reply that says so.
                let proven = !challenge.starts_with(b"e=");
                if proven {
                    let claimed = challenge.strip_prefix(b"v=").ok_or("SCRAM message without a signature")?;
                    let claimed = claimed.split(|&b| b == b',').next().unwrap_or_default();
                    let claimed = STANDARD.decode(claimed).map_err(|_| "SCRAM signature that is no base64")?;
                    if !bool::from(claimed.ct_eq(&signature[..])) {
                        return Err("SCRAM signature that is wrong: the server does not know the password");
                    }
                }
                out.extend_from_slice(b"\r\n");
                Awaited::Outcome { proven }
            }
            Awaited::Token => {
                // RFC 7628 §3.2.3: one U+0001 brings the reply; XOAUTH2 has an empty line for it.
                out.extend_from_slice(if self.mechanism == Mechanism::OauthBearer { b"AQ==\r\n" } else { b"\r\n" });
                Awaited::Outcome { proven: false }
            }
            Awaited::Nothing | Awaited::Outcome { .. } => return Err("challenge too many"),
        };
        Ok(())
    }
}

/// RFC 5802 §5.1: the channel binding, and whom to act as.
fn gs2_header(flag: &str, authzid: &str) -> String {
    if authzid.is_empty() { format!("{flag},,") } else { format!("{flag},a={},", saslname(authzid)) }
}

/// RFC 5802 §5.1: `,` and `=` have meanings of their own.
fn saslname(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

/// Appends base64 and CRLF.
fn put_line(data: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + base64::encoded_len(data.len(), true).unwrap_or_default(), 0);
    // The slice has exactly the length that the encoder asks for.
    let _ = STANDARD.encode_slice(data, out.get_mut(start..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
