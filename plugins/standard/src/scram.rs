//! SCRAM (RFC 5802): the client proves that it knows the password without sending it, the server proves that
//! it knows the stored keys, and a `-PLUS` exchange is bound to its TLS connection (RFC 9266, RFC 5929 §4).
//! With SHA-1 (RFC 5802), SHA-256 (RFC 7677) and SHA-512.
//!
//! ```text
//! client-first  gs2-header n=user,r=nonce[,ext]   → CHANNEL_BINDING if -PLUS → FETCH_KEY
//! server-first  r=nonce nonce,s=salt,i=count
//! client-final  c=header and binding,r=…[,ext],p=proof
//! server-final  v=signature                          sent as final data; then success
//! ```
//!
//! Between the messages an exchange remembers the stored keys, digests of what must come back, and two
//! half-finished HMACs: less than 512 octets whatever the client sends. Whatever is wrong, the client is not
//! told what: there is no `e=`, and for users who do not exist the host makes up keys.

#[path = "scram/transcript.rs"]
mod transcript;

use std::ffi::CStr;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portreeve_plugin_sdk::{
    Bad, ChannelBinding, Cx, Done, Effect, EffectKind, Event, KeyKind, Mechanism, Meta, Part, Proof, ScramKey,
    Settings, flag,
};
use sha2::digest::Output;
use sha2::digest::block_api::CoreProxy;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::gs2::{self, Flag, Header};
use transcript::{Core, DIGEST_OCTETS_MAX, Digest, Transcript, digest, octets};

/// One of the six SCRAM mechanisms, with server nonces of `N`.
pub struct Scram<H, const PLUS: bool, N = Fresh>(PhantomData<(H, N)>);

/// SCRAM-SHA-1.
pub type ScramSha1 = Scram<Sha1, false>;
/// SCRAM-SHA-1-PLUS.
pub type ScramSha1Plus = Scram<Sha1, true>;
/// SCRAM-SHA-256.
pub type ScramSha256 = Scram<Sha256, false>;
/// SCRAM-SHA-256-PLUS.
pub type ScramSha256Plus = Scram<Sha256, true>;
/// SCRAM-SHA-512.
pub type ScramSha512 = Scram<Sha512, false>;
/// SCRAM-SHA-512-PLUS.
pub type ScramSha512Plus = Scram<Sha512, true>;

/// What differs between the hash functions.
pub trait ScramHash: Send + Sync + 'static {
    /// The function.
    type Core: Core;
    /// Name without and with channel binding.
    const NAMES: [&'static CStr; 2];
    /// The keys that it takes.
    const KEY: KeyKind;
    /// Position in the EHLO list, the one with channel binding 20 higher.
    const STRENGTH: u32;
    /// More flags.
    const FLAGS: u32;
}

/// RFC 5802. Only clients that know nothing better need it: off unless the configuration names it.
pub struct Sha1;
/// RFC 7677.
pub struct Sha256;
/// draft-melnikov-scram-sha-512.
pub struct Sha512;

impl ScramHash for Sha1 {
    type Core = <sha1::Sha1 as CoreProxy>::Core;
    const NAMES: [&'static CStr; 2] = [c"SCRAM-SHA-1", c"SCRAM-SHA-1-PLUS"];
    const KEY: KeyKind = KeyKind::ScramSha1;
    const STRENGTH: u32 = 60;
    const FLAGS: u32 = flag::OBSOLETE;
}

impl ScramHash for Sha256 {
    type Core = <sha2::Sha256 as CoreProxy>::Core;
    const NAMES: [&'static CStr; 2] = [c"SCRAM-SHA-256", c"SCRAM-SHA-256-PLUS"];
    const KEY: KeyKind = KeyKind::ScramSha256;
    const STRENGTH: u32 = 70;
    const FLAGS: u32 = 0;
}

impl ScramHash for Sha512 {
    type Core = <sha2::Sha512 as CoreProxy>::Core;
    const NAMES: [&'static CStr; 2] = [c"SCRAM-SHA-512", c"SCRAM-SHA-512-PLUS"];
    const KEY: KeyKind = KeyKind::ScramSha512;
    const STRENGTH: u32 = 75;
    const FLAGS: u32 = 0;
}

/// Where the server's nonces come from: a type of its own, so that a test can put the nonces of published examples
/// into the very code that ships.
pub trait Nonces: Send + Sync + 'static {
    /// The server's part, printable and without a comma (RFC 5802 §7), at most 32 octets. `entropy` is fresh,
    /// `client_first` the whole message.
    fn nonce(entropy: &[u8], client_first: &[u8]) -> Result<impl AsRef<[u8]>, Bad>;
}

/// Base64 of 18 random octets: RFC 5802 §5.1 leaves the length to us.
pub struct Fresh;

impl Nonces for Fresh {
    fn nonce(entropy: &[u8], _: &[u8]) -> Result<impl AsRef<[u8]>, Bad> {
        let random: &[u8; 18] = entropy.first_chunk().ok_or(Bad::INTERNAL.because("the host sent no entropy"))?;
        let mut nonce = [0; 24];
        STANDARD.encode_slice(random, &mut nonce).map_err(|_| Bad::INTERNAL)?;
        Ok(nonce)
    }
}

/// Octets of a SHA-256 digest.
type Remembered = [u8; 32];

/// Where the exchange stands.
#[derive(Default)]
pub enum ScramState<H: ScramHash> {
    /// The client-first-message comes.
    #[default]
    ClientFirst,
    /// The channel binding comes.
    Binding,
    /// The key comes.
    Key {
        /// Digest of the cbind-input that the client must repeat.
        cbind: Remembered,
    },
    /// The client-final-message comes.
    ClientFinal {
        /// What it is checked against.
        sent: Sent<H>,
        /// What proves the identity, when it is right.
        proof: Proof,
    },
    /// Nothing comes any more.
    Over,
}

impl<H: ScramHash, const PLUS: bool, N: Nonces> Mechanism for Scram<H, PLUS, N> {
    const META: Meta = Meta {
        name: H::NAMES[PLUS as usize],
        plus_of: if PLUS { Some(H::NAMES[0]) } else { None },
        flags: flag::CLIENT_FIRST
            | flag::MUTUAL
            | flag::ENTROPY
            | flag::UTF8
            | flag::POD_STATE
            | H::FLAGS
            | if PLUS { flag::CHANNEL_BIND | flag::NEEDS_TLS } else { 0 },
        needs: if PLUS { &[EffectKind::FetchKey, EffectKind::ChannelBinding] } else { &[EffectKind::FetchKey] },
        strength: H::STRENGTH + if PLUS { 20 } else { 0 },
        message_octets_max: 4096,
        output_octets_max: OUTPUT_OCTETS_MAX,
        steps_max: 6,
        ..Meta::NONE
    };
    type State = ScramState<H>;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self(PhantomData))
    }

    fn step(&self, state: &mut ScramState<H>, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match (&*state, cx.event()) {
            (ScramState::ClientFirst, Event::Start { initial: None }) => cx.challenge(),
            (ScramState::ClientFirst, Event::Start { initial: Some(message) } | Event::Message(message)) => {
                let first = ClientFirst::parse(message)?;
                match first.binding(PLUS, &cx)? {
                    Some(kind) => {
                        *state = ScramState::Binding;
                        cx.perform(Effect::ChannelBinding(kind))
                    }
                    None => fetch_key(&first, b"", state, cx),
                }
            }
            (ScramState::Binding, Event::Outcome(outcome)) => {
                outcome.proof()?;
                if outcome.data().is_empty() {
                    return Err(Bad::INTERNAL.because("the host sent an empty channel binding"));
                }
                fetch_key(&ClientFirst::parse(cx.message())?, outcome.data(), state, cx)
            }
            (ScramState::Key { cbind }, Event::Outcome(outcome)) => {
                let (proof, key) = (outcome.proof()?, outcome.scram()?);
                let first = ClientFirst::parse(cx.message())?;
                let nonce = N::nonce(cx.entropy(), cx.message())?;
                let message = ServerFirst::new(first.nonce, nonce.as_ref(), &key)?;
                cx.put(message.as_bytes())?;
                let sent = Sent::new(&first, &message, &key, *cbind)?;
                *state = ScramState::ClientFinal { sent, proof };
                cx.challenge()
            }
            (ScramState::ClientFinal { sent, proof }, Event::Message(message)) => {
                let (checked, proof) = (sent.check(message), *proof);
                *state = ScramState::Over;
                cx.put(b"v=")?;
                cx.put(checked?.as_bytes())?;
                cx.succeed(proof)
            }
            _ => Err(Bad::INTERNAL),
        }
    }
}

/// Room for what a step puts out: at most two names, or the server-first-message.
const OUTPUT_OCTETS_MAX: u32 = 1024;
const _: () = assert!(2 * gs2::NAME_OCTETS_MAX <= OUTPUT_OCTETS_MAX as usize);
const _: () = assert!(SERVER_FIRST_OCTETS_MAX <= OUTPUT_OCTETS_MAX as usize);

fn fetch_key<H: ScramHash>(
    first: &ClientFirst<'_>,
    binding: &[u8],
    state: &mut ScramState<H>,
    mut cx: Cx<'_>,
) -> Result<Done, Bad> {
    *state = ScramState::Key { cbind: remember(&[first.header.octets, binding]) };
    let authcid = gs2::name_part(&mut cx, first.username)?;
    let authzid = gs2::name_part(&mut cx, first.header.authzid)?;
    cx.perform(Effect::FetchKey { kind: H::KEY, authcid, authzid, realm: Part::EMPTY })
}

/// Instead of octets that the client must repeat; SHA-256 with every mechanism, as this is not for speed.
fn remember(parts: &[&[u8]]) -> Remembered {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

// ---------------------------------------------------------------- messages

/// `client-first-message = gs2-header client-first-message-bare`.
struct ClientFirst<'a> {
    header: Header<'a>,
    bare: &'a [u8],
    username: &'a [u8],
    nonce: &'a [u8],
}

impl<'a> ClientFirst<'a> {
    /// `client-first-message-bare = [reserved-mext ","] username "," nonce ["," extensions]`
    fn parse(message: &'a [u8]) -> Result<Self, Bad> {
        let (header, bare) = gs2::header(message)?;
        if bare.starts_with(b"m=") {
            return Err(Bad::MALFORMED.because("a mandatory extension (RFC 5802 section 5.1)"));
        }
        let mut attributes = bare.split(|octet| *octet == b',');
        let username = gs2::checked_name(value(attributes.next(), b"n=")?)?;
        let nonce = value(attributes.next(), b"r=")?;
        if nonce.len() > CLIENT_NONCE_OCTETS_MAX {
            return Err(Bad::MALFORMED.because("a nonce longer than 256 octets"));
        }
        if nonce.is_empty() || !nonce.iter().all(|octet| matches!(octet, 0x21..=0x7e)) {
            return Err(Bad::MALFORMED.because("the nonce is empty or not printable"));
        }
        extensions(attributes)?;
        Ok(Self { header, bare, username, nonce })
    }

    /// Which channel binding the exchange uses, if the client's choice fits the mechanism and the connection.
    fn binding(&self, plus: bool, cx: &Cx<'_>) -> Result<Option<ChannelBinding>, Bad> {
        let kind = match (plus, self.header.flag) {
            (false, Flag::Unsupported) => return Ok(None),
            // Somebody took the -PLUS mechanisms out of our EHLO reply (RFC 5802 §6).
            (false, Flag::NotOffered) if cx.plus_was_offered() => {
                return Err(Bad::CHANNEL_BINDING.because("downgrade: the client did not see the -PLUS mechanism"));
            }
            (false, Flag::NotOffered) => return Ok(None),
            (false, Flag::Required(_)) => return Err(Bad::CHANNEL_BINDING.because("p= without -PLUS")),
            (true, Flag::Required(b"tls-exporter")) => ChannelBinding::TlsExporter,
            (true, Flag::Required(b"tls-server-end-point")) => ChannelBinding::TlsServerEndPoint,
            (true, Flag::Required(_)) => return Err(Bad::CHANNEL_BINDING.because("an unknown channel binding")),
            (true, _) => return Err(Bad::CHANNEL_BINDING.because("-PLUS without p=")),
        };
        match cx.channel_binding_usable(kind) {
            true => Ok(Some(kind)),
            false => Err(Bad::CHANNEL_BINDING.because("this connection has no such channel binding")),
        }
    }
}

/// `client-final-message = channel-binding "," nonce ["," extensions] "," proof`.
struct ClientFinal<'a> {
    channel_binding: &'a [u8],
    nonce: &'a [u8],
    without_proof: &'a [u8],
    proof: &'a [u8],
}

impl<'a> ClientFinal<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Bad> {
        let mut attributes = message.split(|octet| *octet == b',');
        let last = attributes.next_back();
        let proof = value(last, b"p=")?;
        let without_proof = message.len() - last.map_or(0, <[u8]>::len);
        let channel_binding = value(attributes.next(), b"c=")?;
        let nonce = value(attributes.next(), b"r=")?;
        extensions(attributes)?;
        let without_proof = message.get(..without_proof.saturating_sub(1)).unwrap_or_default();
        Ok(Self { channel_binding, nonce, without_proof, proof })
    }
}

fn value<'a>(attribute: Option<&'a [u8]>, name: &[u8; 2]) -> Result<&'a [u8], Bad> {
    let value = attribute.and_then(|attribute| attribute.strip_prefix(name));
    value.ok_or(Bad::MALFORMED.because("an attribute is missing or not in its place (RFC 5802 section 7)"))
}

/// `extensions = attr-val *("," attr-val)`, `attr-val = ALPHA "=" 1*value-char`. Unknown ones are ignored, but
/// stay in the text that is signed (RFC 5802 §5.1). What the RFC defines has its place elsewhere.
fn extensions<'a>(attributes: impl Iterator<Item = &'a [u8]>) -> Result<(), Bad> {
    let mut seen = 0u64;
    for attribute in attributes {
        let (name, value) = match attribute {
            [name, b'=', value @ ..] if name.is_ascii_alphabetic() => (*name, value),
            _ => return Err(Bad::MALFORMED.because("an extension is no attribute (RFC 5802 section 7)")),
        };
        if value.is_empty() || value.contains(&0) {
            return Err(Bad::MALFORMED.because("an extension without a value"));
        }
        let bit = 1 << (name - b'A');
        if b"anmrcsipve".contains(&name) || seen & bit != 0 {
            return Err(Bad::MALFORMED.because("an attribute twice, or not in its place"));
        }
        seen |= bit;
    }
    Ok(())
}

/// Longest that a client may choose; clients send 24 to 48.
const CLIENT_NONCE_OCTETS_MAX: usize = 256;
/// Longest salt: what a store may have.
const SALT_OCTETS_MAX: usize = 256;
/// Longest of ours.
const SERVER_NONCE_OCTETS_MAX: usize = 32;
/// `r=` nonces `,s=` base64 `,i=` 10 digits.
const SERVER_FIRST_OCTETS_MAX: usize =
    2 + CLIENT_NONCE_OCTETS_MAX + SERVER_NONCE_OCTETS_MAX + 3 + SALT_OCTETS_MAX.div_ceil(3) * 4 + 3 + 10;

/// `server-first-message = nonce "," salt "," iteration-count`.
struct ServerFirst(Text<SERVER_FIRST_OCTETS_MAX>);

impl ServerFirst {
    fn new(client_nonce: &[u8], server_nonce: &[u8], key: &ScramKey<'_>) -> Result<Self, Bad> {
        if key.iterations == 0 || key.salt.is_empty() || key.salt.len() > SALT_OCTETS_MAX {
            return Err(Bad::INTERNAL.because("the key has no iterations, no salt, or more than 256 octets of it"));
        }
        let mut text = Text::EMPTY;
        text.put(b"r=")?;
        text.put(client_nonce)?;
        text.put(server_nonce)?;
        text.put(b",s=")?;
        text.put_base64(key.salt)?;
        text.put(b",i=")?;
        text.put_decimal(key.iterations)?;
        Ok(Self(text))
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Client's and server's nonce together.
    fn nonce(&self) -> &[u8] {
        let text = self.as_bytes();
        text.get(2..).and_then(|text| text.split(|octet| *octet == b',').next()).unwrap_or_default()
    }
}

/// Text on the stack.
struct Text<const N: usize> {
    octets: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Self { octets: [0; N], length: 0 };
    const FULL: Bad = Bad::INTERNAL.because("a text is longer than its bound");

    fn put(&mut self, octets: &[u8]) -> Result<(), Bad> {
        self.octets.get_mut(self.length..self.length + octets.len()).ok_or(Self::FULL)?.copy_from_slice(octets);
        self.length += octets.len();
        Ok(())
    }

    fn put_base64(&mut self, octets: &[u8]) -> Result<(), Bad> {
        let room = self.octets.get_mut(self.length..).ok_or(Self::FULL)?;
        self.length += STANDARD.encode_slice(octets, room).map_err(|_| Self::FULL)?;
        Ok(())
    }

    fn put_decimal(&mut self, mut number: u32) -> Result<(), Bad> {
        let mut digits = [b'0'; 10];
        let mut at = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            at -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.put(digits.get(at..).unwrap_or_default())
    }

    fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}

// ---------------------------------------------------------------- the proof

/// What the client-final-message is checked against.
pub struct Sent<H: ScramHash> {
    stored_key: Output<H::Core>,
    server_key: Output<H::Core>,
    /// AuthMessage so far.
    transcript: Transcript<H::Core>,
    cbind: Remembered,
    nonce: Remembered,
}

impl<H: ScramHash> Sent<H> {
    /// `AuthMessage = client-first-message-bare "," server-first-message "," client-final-message-without-proof`
    fn new(first: &ClientFirst<'_>, server: &ServerFirst, key: &ScramKey<'_>, cbind: Remembered) -> Result<Self, Bad> {
        const FAULT: Bad = Bad::INTERNAL.because("a key is not as long as its hash");
        let keys = [key.stored_key, key.server_key];
        let [stored_key, server_key] = keys.map(|key| Output::<H::Core>::try_from(key).map_err(|_| FAULT));
        Ok(Self {
            stored_key: stored_key?,
            server_key: server_key?,
            transcript: Transcript::begin(keys, &[first.bare, b",", server.as_bytes(), b","]),
            cbind,
            nonce: remember(&[server.nonce()]),
        })
    }

    /// ServerSignature in base64, when the client's proof is right.
    fn check(&self, message: &[u8]) -> Result<Text<SIGNATURE_OCTETS_MAX>, Bad> {
        let last = ClientFinal::parse(message)?;
        if !is_same(remember(&[last.nonce]), self.nonce) {
            return Err(Bad::MALFORMED.because("not the nonce that was sent"));
        }
        // All of the decoded octets: nothing may follow the header where there is no binding (RFC 5802 §7).
        let mut cbind = [0; CBIND_OCTETS_MAX];
        let length = STANDARD.decode_slice(last.channel_binding, &mut cbind);
        let length = length.map_err(|_| Bad::MALFORMED.because("c= is not base64, or longer than can be"))?;
        if !is_same(remember(&[cbind.get(..length).unwrap_or_default()]), self.cbind) {
            return Err(Bad::CHANNEL_BINDING.because("the client sees another header or another TLS connection"));
        }
        let mut client_key = Zeroizing::new([0; DIGEST_OCTETS_MAX + 2]);
        let length = STANDARD.decode_slice(last.proof, &mut *client_key);
        if length != Ok(octets::<H::Core>()) {
            return Err(Bad::MALFORMED.because("p= is not base64 of a digest"));
        }
        let [client, server] = self
            .transcript
            .finish([&self.stored_key, &self.server_key], last.without_proof)
            .ok_or(Bad::INTERNAL.because("the state was damaged"))?;
        // ClientKey = ClientProof XOR ClientSignature; its digest is what the store has.
        client_key.iter_mut().zip(client.iter()).for_each(|(to, from)| *to ^= from);
        let found: Digest = digest::<H::Core>(client_key.get(..octets::<H::Core>()).unwrap_or_default());
        let found = found.get(..octets::<H::Core>()).unwrap_or_default();
        if !bool::from(found.ct_eq(&self.stored_key)) {
            return Err(Bad::CREDENTIALS);
        }
        let mut verifier = Text::EMPTY;
        verifier.put_base64(server.get(..octets::<H::Core>()).unwrap_or_default())?;
        Ok(verifier)
    }
}

fn is_same(found: Remembered, expected: Remembered) -> bool {
    found.ct_eq(&expected).into()
}

/// Base64 of a digest.
const SIGNATURE_OCTETS_MAX: usize = DIGEST_OCTETS_MAX.div_ceil(3) * 4;
/// `p=tls-server-end-point,a=` name `,` and a digest, rounded up to groups of base64.
const CBIND_OCTETS_MAX: usize = (25 + gs2::NAME_OCTETS_MAX + 1 + DIGEST_OCTETS_MAX).div_ceil(3) * 3;

#[cfg(test)]
mod tests;
