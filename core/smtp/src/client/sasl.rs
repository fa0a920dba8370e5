//! The client's side of SASL: SCRAM-SHA-256 (RFC 5802, 7677), CRAM-MD5 (RFC 2195), PLAIN (RFC 4616), LOGIN.
//!
//! No channel binding: the gs2 header is always `n`. Names and passwords go out as the octets that they
//! are; whoever has others than ASCII prepares them (RFC 4013) before.

use std::fmt;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sasl::Secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, Zeroizing};

/// A mechanism that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Proves the client to the server and the server to the client; no password crosses the wire.
    ScramSha256,
    /// Proves the client only; no password crosses the wire.
    CramMd5,
    /// The password crosses the wire.
    Plain,
    /// The password crosses the wire.
    Login,
}

impl Mechanism {
    /// Strongest first.
    pub const ALL: [Self; 4] = [Self::ScramSha256, Self::CramMd5, Self::Plain, Self::Login];

    /// As registered.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::CramMd5 => "CRAM-MD5",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
        }
    }

    /// Whether the password crosses the wire.
    pub fn is_plaintext(self) -> bool {
        matches!(self, Self::Plain | Self::Login)
    }

    /// Whether it can say as whom to act.
    fn carries_authzid(self) -> bool {
        matches!(self, Self::ScramSha256 | Self::Plain)
    }

    pub(crate) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Who we are to a peer. Shared by connections: what is expensive is done once.
pub struct Credentials {
    authcid: Box<str>,
    authzid: Box<str>,
    password: Secret,
    /// SCRAM keys for the salt that the peer showed last.
    keys: Mutex<Option<ScramKeys>>,
}

/// A name or password that no mechanism can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCredentials;

impl fmt::Display for BadCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("user name or password is empty, longer than 1024 octets, or has a NUL in it")
    }
}

impl std::error::Error for BadCredentials {}

impl Credentials {
    /// `authzid` is whom to act as; empty: who we are.
    pub fn new(authcid: &str, authzid: &str, password: &str) -> Result<Self, BadCredentials> {
        let bad = |text: &str| text.len() > 1024 || text.contains('\0');
        if authcid.is_empty() || password.is_empty() || bad(authcid) || bad(authzid) || bad(password) {
            return Err(BadCredentials);
        }
        let password = Secret::new(password.as_bytes().to_vec());
        Ok(Self { authcid: authcid.into(), authzid: authzid.into(), password, keys: Mutex::new(None) })
    }

    /// Whether `mechanism` can say all of it.
    pub(crate) fn fit(&self, mechanism: Mechanism) -> bool {
        self.authzid.is_empty() || mechanism.carries_authzid()
    }

    /// SCRAM keys, from the last time when salt and iterations are the same (RFC 5802 §3 allows it).
    fn scram_keys(&self, salt: &[u8], iterations: u32) -> ScramKeys {
        // A panic elsewhere leaves no half-made keys behind: they are replaced whole.
        let mut kept = self.keys.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(keys) = kept.as_ref().filter(|keys| keys.salt == salt && keys.iterations == iterations) {
            return keys.clone();
        }
        let keys = ScramKeys::derive(self.password.expose(), salt, iterations);
        *kept = Some(keys.clone());
        keys
    }
}

/// ClientKey and ServerKey of RFC 5802 §3.
#[derive(Clone)]
struct ScramKeys {
    salt: Vec<u8>,
    iterations: u32,
    client_key: [u8; 32],
    server_key: [u8; 32],
}

impl Drop for ScramKeys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

impl ScramKeys {
    fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        // Hi() of RFC 5802 §2.2: PBKDF2 with one block.
        let keyed = hmac_sha256(password);
        let mut block = Zeroizing::new(finish(keyed.clone(), &[salt, &[0, 0, 0, 1]]));
        let mut salted = block.clone();
        for _ in 1..iterations {
            *block = finish(keyed.clone(), &[&*block]);
            salted.iter_mut().zip(block.iter()).for_each(|(sum, octet)| *sum ^= octet);
        }
        Self {
            salt: salt.to_vec(),
            iterations,
            client_key: finish(hmac_sha256(&*salted), &[b"Client Key"]),
            server_key: finish(hmac_sha256(&*salted), &[b"Server Key"]),
        }
    }
}

fn hmac_sha256(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn finish(mut mac: Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Least iterations that we answer to: fewer would sell the password to whoever plays the server
/// (RFC 7677 §4).
const ITERATIONS_MIN: u32 = 4096;
/// Most iterations: a hostile server may not buy more of our time with one line.
const ITERATIONS_MAX: u32 = 1 << 20;
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
        client_first_bare: String,
        nonce: String,
    },
    /// SCRAM's server-final-message.
    ServerFinal {
        signature: [u8; 32],
    },
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
        matches!(self.awaited, Awaited::Outcome { proven: true })
    }

    /// Appends AUTH.
    pub(crate) fn begin(&mut self, credentials: &Credentials, entropy: &[u8; 24], out: &mut Vec<u8>) {
        let Credentials { authcid, authzid, password, .. } = credentials;
        let (initial, then) = match self.mechanism {
            Mechanism::CramMd5 => (None, Awaited::Challenge),
            Mechanism::Login => (None, Awaited::UserName),
            Mechanism::Plain => {
                let parts = [authzid.as_bytes(), b"\0", authcid.as_bytes(), b"\0", password.expose()];
                (Some(Secret::new(parts.concat())), Awaited::Outcome { proven: true })
            }
            Mechanism::ScramSha256 => {
                let nonce = STANDARD.encode(entropy);
                let client_first_bare = format!("n={},r={nonce}", saslname(authcid));
                let message = format!("{}{client_first_bare}", gs2_header(authzid));
                (Some(Secret::new(message.into_bytes())), Awaited::ServerFirst { client_first_bare, nonce })
            }
        };
        out.extend_from_slice(b"AUTH ");
        out.extend_from_slice(self.mechanism.name().as_bytes());
        self.awaited = match initial {
            None => {
                out.extend_from_slice(b"\r\n");
                then
            }
            Some(initial) if initial.expose().len() > INITIAL_OCTETS_MAX => {
                out.extend_from_slice(b"\r\n");
                Awaited::GoAhead { initial, then: Box::new(then) }
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
        let Credentials { authcid, authzid, password, .. } = credentials;
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
                put_line(password.expose(), out);
                Awaited::Outcome { proven: true }
            }
            Awaited::Challenge => {
                // RFC 2195 §2: user name, blank, digest in lower-case hexadecimal.
                let mut mac = Hmac::<Md5>::new_from_slice(password.expose()).expect("HMAC takes keys of any length");
                mac.update(&challenge);
                let mut response = format!("{authcid} ");
                for octet in mac.finalize().into_bytes() {
                    response
                        .extend([octet >> 4, octet & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize])));
                }
                put_line(response.as_bytes(), out);
                Awaited::Outcome { proven: true }
            }
            Awaited::ServerFirst { client_first_bare, nonce } => {
                let server_first = std::str::from_utf8(&challenge).map_err(|_| "SCRAM message that is no UTF-8")?;
                let ServerFirst { nonce, salt, iterations } = ServerFirst::parse(server_first, &nonce)?;
                let keys = credentials.scram_keys(&salt, iterations);
                let without_proof = format!("c={},r={nonce}", STANDARD.encode(gs2_header(authzid)));
                let auth_message = format!("{client_first_bare},{server_first},{without_proof}");
                let stored_key: [u8; 32] = Sha256::digest(keys.client_key).into();
                let mut proof = Zeroizing::new(finish(hmac_sha256(&stored_key), &[auth_message.as_bytes()]));
                proof.iter_mut().zip(keys.client_key).for_each(|(octet, key)| *octet ^= key);
                put_line(format!("{without_proof},p={}", STANDARD.encode(*proof)).as_bytes(), out);
                let signature = finish(hmac_sha256(&keys.server_key), &[auth_message.as_bytes()]);
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
            Awaited::Nothing | Awaited::Outcome { .. } => return Err("challenge too many"),
        };
        Ok(())
    }
}

/// The server-first-message, `r=…,s=…,i=…`.
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    fn parse(text: &'a str, client_nonce: &str) -> Result<Self, &'static str> {
        const BAD: &str = "SCRAM message that is malformed";
        // RFC 5802 §5.1: an `m=` in front is a mandatory extension, and we know none. Others may follow.
        let mut attributes = text.split(',');
        let mut attribute = |name| attributes.next().and_then(|text| text.strip_prefix(name)).ok_or(BAD);
        let nonce = attribute("r=")?;
        let salt = STANDARD.decode(attribute("s=")?).map_err(|_| BAD)?;
        let iterations = crate::param::digits(attribute("i=")?).ok_or(BAD)?;
        let fresh = nonce.strip_prefix(client_nonce).is_some_and(|own| !own.is_empty());
        if !fresh || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("SCRAM nonce that is not made from ours");
        }
        let iterations = u32::try_from(iterations)
            .ok()
            .filter(|count| (ITERATIONS_MIN..=ITERATIONS_MAX).contains(count))
            .ok_or("SCRAM iteration count out of bounds")?;
        if salt.is_empty() { Err(BAD) } else { Ok(Self { nonce, salt, iterations }) }
    }
}

/// RFC 5802 §5.1: no channel binding, and whom to act as.
fn gs2_header(authzid: &str) -> String {
    if authzid.is_empty() { "n,,".to_owned() } else { format!("n,a={},", saslname(authzid)) }
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
mod tests {
    use super::*;

    fn exchange(mechanism: Mechanism, credentials: &Credentials) -> (Exchange, String) {
        let (mut exchange, mut out) = (Exchange::new(mechanism), Vec::new());
        exchange.begin(credentials, &[7; 24], &mut out);
        (exchange, String::from_utf8(out).unwrap())
    }

    fn respond(exchange: &mut Exchange, credentials: &Credentials, challenge: &str) -> Result<String, &'static str> {
        let mut out = Vec::new();
        exchange.respond(&STANDARD.encode(challenge), credentials, &mut out)?;
        let out = String::from_utf8(out).unwrap();
        Ok(String::from_utf8(STANDARD.decode(out.strip_suffix("\r\n").unwrap()).unwrap()).unwrap())
    }

    #[test]
    fn plain_and_login() {
        let credentials = Credentials::new("alice", "", "secret").unwrap();
        let (plain, said) = exchange(Mechanism::Plain, &credentials);
        assert_eq!(said, format!("AUTH PLAIN {}\r\n", STANDARD.encode("\0alice\0secret")));
        assert!(plain.is_proven());
        let (mut login, said) = exchange(Mechanism::Login, &credentials);
        assert_eq!(said, "AUTH LOGIN\r\n");
        assert_eq!(respond(&mut login, &credentials, "User Name").unwrap(), "alice");
        assert!(!login.is_proven());
        assert_eq!(respond(&mut login, &credentials, "").unwrap(), "secret");
        assert!(login.is_proven());
        assert!(respond(&mut login, &credentials, "more").is_err());
    }

    #[test]
    fn a_long_initial_response_waits_for_its_go_ahead() {
        let credentials = Credentials::new(&"a".repeat(600), "", "secret").unwrap();
        let (mut plain, said) = exchange(Mechanism::Plain, &credentials);
        assert_eq!(said, "AUTH PLAIN\r\n");
        assert!(!plain.is_proven());
        assert_eq!(respond(&mut plain, &credentials, "").unwrap().len(), 600 + 8);
        assert!(plain.is_proven());
    }

    /// RFC 2195 §2.
    #[test]
    fn cram_md5_vector() {
        let credentials = Credentials::new("tim", "", "tanstaaftanstaaf").unwrap();
        let (mut cram, _) = exchange(Mechanism::CramMd5, &credentials);
        let response = respond(&mut cram, &credentials, "<1896.697170952@postoffice.reston.mci.net>").unwrap();
        assert_eq!(response, "tim b913a602c7eda7a495b4e6e7334d3890");
        assert!(cram.is_proven());
    }

    /// RFC 7677 §3; the nonce there is no base64 of ours.
    #[test]
    fn scram_sha_256_vector() {
        let credentials = Credentials::new("user", "", "pencil").unwrap();
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let first = || Awaited::ServerFirst { client_first_bare: format!("n=user,r={nonce}"), nonce: nonce.clone() };
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        for (server_final, proven) in [
            ("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", Ok(true)),
            ("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", Err(())),
            ("v=", Err(())),
            ("", Err(())),
            ("e=invalid-proof", Ok(false)),
        ] {
            let mut scram = Exchange { mechanism: Mechanism::ScramSha256, awaited: first() };
            assert_eq!(
                respond(&mut scram, &credentials, server_first).unwrap(),
                "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
            );
            assert!(!scram.is_proven());
            let end = respond(&mut scram, &credentials, server_final);
            assert_eq!(end.map(|_| scram.is_proven()).map_err(drop), proven, "{server_final}");
        }
    }

    #[test]
    fn scram_refuses_what_a_hostile_server_says() {
        let credentials = Credentials::new("user", "", "pencil").unwrap();
        for (server_first, good) in [
            ("r=NONCEx,s=AAAA,i=4096", true),
            ("r=NONCEx,s=AAAA,i=4096,x=future", true),
            ("r=NONCE,s=AAAA,i=4096", false),
            ("r=other,s=AAAA,i=4096", false),
            ("r=NONCE x,s=AAAA,i=4096", false),
            ("r=NONCEx,s=,i=4096", false),
            ("r=NONCEx,s=A,i=4096", false),
            ("r=NONCEx,s=AAAA,i=4095", false),
            ("r=NONCEx,s=AAAA,i=4294967295", false),
            ("r=NONCEx,s=AAAA,i=-1", false),
            ("m=x,r=NONCEx,s=AAAA,i=4096", false),
            ("s=AAAA,r=NONCEx,i=4096", false),
            ("r=NONCEx,s=AAAA", false),
            ("", false),
        ] {
            let (mut scram, said) = exchange(Mechanism::ScramSha256, &credentials);
            let initial = STANDARD.decode(said.trim_end().rsplit(' ').next().unwrap()).unwrap();
            let initial = String::from_utf8(initial).unwrap();
            let nonce = initial.split("r=").nth(1).unwrap();
            let answer = respond(&mut scram, &credentials, &server_first.replace("NONCE", nonce));
            assert_eq!(answer.is_ok(), good, "{server_first}: {answer:?}");
            assert!(!scram.is_proven());
        }
    }

    #[test]
    fn names_are_escaped_and_keys_are_kept() {
        let credentials = Credentials::new("a=b,c", "boss", "pencil").unwrap();
        let (_, said) = exchange(Mechanism::ScramSha256, &credentials);
        let initial = STANDARD.decode(said.trim_end().rsplit(' ').next().unwrap()).unwrap();
        assert!(initial.starts_with(b"n,a=boss,n=a=3Db=2Cc,r="));
        assert!(credentials.fit(Mechanism::Plain) && !credentials.fit(Mechanism::Login));
        let first = credentials.scram_keys(b"salt", 4096);
        assert_eq!(credentials.scram_keys(b"salt", 4096).client_key, first.client_key);
        assert_ne!(credentials.scram_keys(b"tlas", 4096).client_key, first.client_key);
        for (authcid, password) in [("", "x"), ("x", ""), ("a\0b", "x"), ("x", "a\0b")] {
            assert!(Credentials::new(authcid, "", password).is_err());
        }
    }
}
