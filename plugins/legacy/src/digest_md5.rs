//! DIGEST-MD5 (RFC 2831), historic (RFC 6331): the server sends a nonce, the client a digest of it with its
//! password, and the server proves that it knows the password, too.
//!
//! ```text
//! challenge  realm="…",nonce="…",qop="auth",algorithm=md5-sess,charset=utf-8
//! response   username="…",realm="…",nonce="…",cnonce="…",nc=00000001,qop=auth,digest-uri="smtp/…",response=…
//! final      rspauth=…
//! ```
//!
//! Authentication only: no integrity, no confidentiality (TLS has both), and each nonce is good for one response.
//! What the store keeps is no password but `H(username:realm:password)`, 16 octets.
//!
//! Stricter than RFC 2831 in one point: directives are known by their names in lower case, as every client
//! writes them, and one that the RFC does not define is refused. The digest does not cover the names, so
//! otherwise somebody on the way could turn `charset` into nothing at all.

use std::marker::PhantomData;

use md5::{Digest as _, Md5};
use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, KeyKind, Mechanism, Meta, Part, Settings, flag};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The DIGEST-MD5 mechanism.
pub type DigestMd5 = Digest<HexNonce>;

/// DIGEST-MD5 with nonces of `N`.
pub struct Digest<N> {
    /// Offered to clients; empty: none is offered. Without the setting it is the server's name.
    realm: Option<String>,
    /// Further names of ours that clients may have connected to.
    hosts: Vec<String>,
    nonces: PhantomData<N>,
}

/// What the nonces look like: a type of its own, so that a test can put a published nonce into the very code that ships.
pub trait Nonces: Send + Sync + 'static {
    /// The nonce, without quotes and backslashes; the same for the same octets.
    fn nonce(random: &[u8; 16]) -> impl AsRef<[u8]>;
}

/// 32 hexadecimal digits, in lower case.
pub struct HexNonce;

impl Nonces for HexNonce {
    fn nonce(random: &[u8; 16]) -> impl AsRef<[u8]> {
        hex(random)
    }
}

/// What the response is checked against.
#[derive(Clone, Copy, Default)]
pub struct DigestState {
    awaits: Awaits,
    random: [u8; 16],
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Awaits {
    #[default]
    Start,
    Response,
    Key,
    Nothing,
}

/// 16 octets in lower-case hexadecimal.
type Hex = [u8; 32];

/// Names, as they are meant (without escapes), octets: an address has at most 320.
const NAME_OCTETS_MAX: usize = 320;
const REALM_OCTETS_MAX: usize = 255;
/// RFC 2831 §2.1.1: a challenge is shorter. Two names in UTF-8 and a realm are, too.
const OUTPUT_OCTETS_MAX: u32 = 2047;
const _: () = assert!(4 * NAME_OCTETS_MAX + REALM_OCTETS_MAX <= OUTPUT_OCTETS_MAX as usize);

impl<N: Nonces> Mechanism for Digest<N> {
    const META: Meta = Meta {
        name: c"DIGEST-MD5",
        config_schema: Some(
            c"{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"realm\":{\"type\":\"string\",\
              \"maxLength\":255,\"examples\":[\"example.com\",\"\"],\"description\":\"Realm of the stored digests; \
              the server's name when absent, none is offered when empty\"},\"hosts\":{\"type\":\"array\",\"items\":\
              {\"type\":\"string\"},\"examples\":[[\"smtp.example.com\"]],\"description\":\"Names beside the \
              server's own that a client may say it connected to\"}}}",
        ),
        // Not UTF8: a client that does not say charset=utf-8 sends ISO 8859-1.
        flags: flag::SERVER_FIRST | flag::OBSOLETE | flag::ENTROPY | flag::MUTUAL | flag::POD_STATE,
        needs: &[EffectKind::FetchKey],
        strength: 25,
        // RFC 2831 §2.1.2: "MUST be less than 4096 bytes".
        message_octets_max: 4095,
        output_octets_max: OUTPUT_OCTETS_MAX,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = DigestState;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["realm", "hosts"])?;
        let realm = settings.value("realm").map(str::to_owned);
        if let Some(realm) = &realm
            && (realm.len() > REALM_OCTETS_MAX || realm.contains(char::is_control))
        {
            return Err("`realm` is longer than 255 octets or has control characters".into());
        }
        let hosts = settings.list("hosts")?.into_iter().map(str::to_owned).collect();
        Ok(Self { realm, hosts, nonces: PhantomData })
    }

    fn step(&self, state: &mut DigestState, mut cx: Cx<'_>) -> Result<Done, Bad> {
        let random = state.random;
        let nonce = N::nonce(&random);
        let nonce = nonce.as_ref();
        match (state.awaits, cx.event()) {
            (Awaits::Start, Event::Start { initial: None }) => {
                let random: &[u8; 16] =
                    cx.entropy().first_chunk().ok_or(Bad::INTERNAL.because("the host sent no entropy"))?;
                *state = DigestState { awaits: Awaits::Response, random: *random };
                self.put_challenge(N::nonce(random).as_ref(), &mut cx)?;
                cx.challenge()
            }
            (Awaits::Response, Event::Message(message)) => {
                state.awaits = Awaits::Nothing;
                let response = self.checked_response(message, nonce, &cx)?;
                let authcid = name_part(response.username, response.utf8, &mut cx)?;
                // RFC 2831 §2.1.2: authzid is UTF-8 whatever the charset of the other names.
                let authzid = response.authzid.map_or(Ok(Part::EMPTY), |authzid| name_part(authzid, true, &mut cx))?;
                let realm = cx.put_part(self.realm(&cx))?;
                state.awaits = Awaits::Key;
                cx.perform(Effect::FetchKey { kind: KeyKind::DigestMd5Ha1, authcid, authzid, realm })
            }
            (Awaits::Key, Event::Outcome(outcome)) => {
                state.awaits = Awaits::Nothing;
                let proof = outcome.proof()?;
                let ha1: &[u8; 16] =
                    outcome.data().try_into().map_err(|_| Bad::INTERNAL.because("the key has not 16 octets"))?;
                let response = Response::parse(cx.message())?;
                let session = response.session_key(ha1, nonce);
                let expected = response.value(&session, nonce, b"AUTHENTICATE:");
                if !bool::from(expected.ct_eq(response.response)) {
                    return Err(Bad::CREDENTIALS);
                }
                cx.put(b"rspauth=")?;
                cx.put(&response.value(&session, nonce, b":"))?;
                cx.succeed(proof)
            }
            _ => Err(Bad::INTERNAL),
        }
    }
}

impl<N: Nonces> Digest<N> {
    fn realm<'a>(&'a self, cx: &Cx<'a>) -> &'a [u8] {
        self.realm.as_ref().map_or(cx.server_name(), |realm| realm.as_bytes())
    }

    fn put_challenge(&self, nonce: &[u8], cx: &mut Cx<'_>) -> Result<(), Bad> {
        let realm = self.realm(cx);
        if !realm.is_empty() {
            cx.put(b"realm=\"")?;
            for octet in realm {
                if matches!(octet, b'"' | b'\\') {
                    cx.put(b"\\")?;
                }
                cx.put(&[*octet])?;
            }
            cx.put(b"\",")?;
        }
        cx.put(b"nonce=\"")?;
        cx.put(nonce)?;
        cx.put(b"\",qop=\"auth\",algorithm=md5-sess,charset=utf-8")
    }

    /// The response, if it answers our challenge.
    fn checked_response<'a>(&self, message: &'a [u8], nonce: &[u8], cx: &Cx<'_>) -> Result<Response<'a>, Bad> {
        let response = Response::parse(message)?;
        if !response.nonce.octets().eq(nonce.iter().copied()) {
            return Err(Bad::MALFORMED.because("not the nonce that was sent"));
        }
        let realm = response.realm.unwrap_or(Value::EMPTY);
        if !realm.octets().eq(self.realm(cx).iter().copied()) {
            return Err(Bad::CREDENTIALS.because("not the realm that was offered; it is the setting `realm`"));
        }
        // RFC 2831 §2.1.2: or we might be somebody else's way to log in there.
        if !self.is_ours(response.digest_uri, cx)? {
            return Err(Bad::CREDENTIALS.because("digest-uri names another host; ours are in the setting `hosts`"));
        }
        Ok(response)
    }

    /// `digest-uri-value = serv-type "/" host [ "/" serv-name ]`: SMTP at one of our names.
    fn is_ours(&self, digest_uri: &[u8], cx: &Cx<'_>) -> Result<bool, Bad> {
        const FAULT: Bad = Bad::MALFORMED.because("digest-uri is not service/host (RFC 2831 section 2.1.2)");
        let mut parts = digest_uri.split(|octet| *octet == b'/');
        let (Some(service), Some(host), replicated, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FAULT);
        };
        let in_host = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.');
        let is_host = |name: &[u8]| !name.is_empty() && name.iter().all(in_host);
        if service.is_empty() || !service.iter().all(u8::is_ascii_alphabetic) {
            return Err(FAULT);
        }
        if !is_host(host) || !replicated.is_none_or(is_host) {
            return Err(FAULT);
        }
        let mut ours = self.hosts.iter().map(String::as_bytes).chain([cx.server_name()]);
        Ok(service.eq_ignore_ascii_case(b"smtp") && ours.any(|name| name.eq_ignore_ascii_case(host)))
    }
}

// ---------------------------------------------------------------- the response

/// `digest-response`, checked as far as one can without having sent the challenge.
struct Response<'a> {
    username: Value<'a>,
    realm: Option<Value<'a>>,
    nonce: Value<'a>,
    cnonce: Value<'a>,
    digest_uri: &'a [u8],
    response: &'a [u8],
    authzid: Option<Value<'a>>,
    utf8: bool,
}

/// The directives of a response (RFC 2831 §2.1.2), each at most once. The last four decide nothing here.
const DIRECTIVES: [&[u8]; 14] = [
    b"username",
    b"realm",
    b"nonce",
    b"cnonce",
    b"nc",
    b"qop",
    b"digest-uri",
    b"response",
    b"charset",
    b"authzid",
    b"maxbuf",
    b"cipher",
    b"algorithm",
    b"opaque",
];

impl<'a> Response<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Bad> {
        let mut values = [None; DIRECTIVES.len()];
        let mut scanner = Scanner(message);
        while let Some((name, value)) = scanner.directive()? {
            let at = DIRECTIVES.iter().position(|known| *known == name);
            let at = at.ok_or(Bad::MALFORMED.because("a directive that RFC 2831 does not define"))?;
            if values[at].replace(value).is_some() {
                return Err(Bad::MALFORMED.because("a directive twice"));
            }
        }
        let [username, realm, nonce, cnonce, nc, qop, digest_uri, response, charset, authzid, ..] = values;
        const MISSING: Bad = Bad::MALFORMED.because("a directive is missing, empty or not of its form");
        let needed = |value: Option<Value<'a>>| value.filter(|value| !value.raw.is_empty()).ok_or(MISSING);
        // Values that have no use for escapes have none.
        let plain = |value: Value<'a>| if value.escaped { Err(MISSING) } else { Ok(value.raw) };
        let digest_uri = plain(needed(digest_uri)?)?;
        let response = plain(needed(response)?)?;
        if response.len() != size_of::<Hex>()
            || !response.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(Bad::MALFORMED.because("response has not 32 lower-case hexadecimal digits"));
        }
        // RFC 2831 §2.1.3. Another one would use a nonce again (§2.2), and ours are gone after one response.
        if plain(needed(nc)?)? != NC {
            return Err(Bad::MALFORMED.because("nc is not 00000001"));
        }
        if qop.is_some_and(|qop| qop.raw != QOP) {
            return Err(Bad::MALFORMED.because("qop is not auth, and nothing else was offered"));
        }
        if charset.is_some_and(|charset| charset.raw != b"utf-8") {
            return Err(Bad::MALFORMED.because("charset is not utf-8"));
        }
        // RFC 2831 §2.1.2: present and empty is not the same as absent: it would be in the digest.
        let authzid = authzid.map(|authzid| needed(Some(authzid))).transpose()?;
        let (username, nonce, cnonce) = (needed(username)?, needed(nonce)?, needed(cnonce)?);
        Ok(Self { username, realm, nonce, cnonce, digest_uri, response, authzid, utf8: charset.is_some() })
    }

    /// `HEX(H(A1))` of md5-sess: `A1 = { HA1, ":", nonce, ":", cnonce [, ":", authzid] }` (RFC 2831 §2.1.2.1).
    fn session_key(&self, ha1: &[u8; 16], nonce: &[u8]) -> Zeroizing<Hex> {
        let mut md5 = Md5::new();
        md5.update(ha1);
        md5.update(b":");
        md5.update(nonce);
        md5.update(b":");
        self.cnonce.hash(&mut md5);
        if let Some(authzid) = self.authzid {
            md5.update(b":");
            authzid.hash(&mut md5);
        }
        Zeroizing::new(hex(&md5.finalize().into()))
    }

    /// `response-value` of RFC 2831 §2.1.2.1; `method` is `AUTHENTICATE:` for the client and `:` for us (§2.1.3).
    fn value(&self, session: &Hex, nonce: &[u8], method: &[u8]) -> Hex {
        let a2: [u8; 16] = Md5::new().chain_update(method).chain_update(self.digest_uri).finalize().into();
        let mut md5 = Md5::new();
        for part in [&session[..], b":", nonce, b":", NC, b":"] {
            md5.update(part);
        }
        self.cnonce.hash(&mut md5);
        for part in [&b":"[..], QOP, b":", &hex(&a2)] {
            md5.update(part);
        }
        hex(&md5.finalize().into())
    }
}

const NC: &[u8] = b"00000001";
const QOP: &[u8] = b"auth";

/// A directive's value: a token, or what stands between the quotes.
#[derive(Clone, Copy)]
struct Value<'a> {
    raw: &'a [u8],
    /// Has quoted-pairs.
    escaped: bool,
}

impl<'a> Value<'a> {
    const EMPTY: Value<'static> = Value { raw: b"", escaped: false };

    /// What is meant: a quoted-pair is its second octet (RFC 2831 §7.2).
    fn octets(self) -> impl Iterator<Item = u8> + 'a {
        let mut raw = self.raw.iter().copied();
        std::iter::from_fn(move || match raw.next()? {
            b'\\' if self.escaped => raw.next(),
            octet => Some(octet),
        })
    }

    fn hash(self, md5: &mut Md5) {
        match self.escaped {
            false => md5.update(self.raw),
            true => self.octets().for_each(|octet| md5.update([octet])),
        }
    }
}

/// Names a name to the host, in UTF-8.
fn name_part(name: Value<'_>, utf8: bool, cx: &mut Cx<'_>) -> Result<Part, Bad> {
    let (mut meant, mut length) = ([0; NAME_OCTETS_MAX], 0);
    for octet in name.octets() {
        *meant.get_mut(length).ok_or(Bad::MALFORMED.because("a name longer than 320 octets"))? = octet;
        length += 1;
    }
    let meant = meant.get(..length).unwrap_or_default();
    match utf8 || meant.is_ascii() {
        true if std::str::from_utf8(meant).is_err() => Err(Bad::MALFORMED.because("a name is not UTF-8")),
        true if !name.escaped => cx.part(name.raw),
        true => cx.put_part(meant),
        // ISO 8859-1 is the beginning of Unicode.
        false => {
            let (mut text, mut length) = ([0; 2 * NAME_OCTETS_MAX], 0);
            for octet in meant {
                length += char::from(*octet).encode_utf8(text.get_mut(length..).unwrap_or_default()).len();
            }
            cx.put_part(text.get(..length).unwrap_or_default())
        }
    }
}

/// Reads `1#( token "=" ( token | quoted-string ) )` with the freedoms of RFC 2831 §7.1: linear white space
/// between words, and elements of the list that are empty.
struct Scanner<'a>(&'a [u8]);

impl<'a> Scanner<'a> {
    fn directive(&mut self) -> Result<Option<(&'a [u8], Value<'a>)>, Bad> {
        const FAULT: Bad = Bad::MALFORMED.because("not a list of directives (RFC 2831 section 7.1)");
        self.skip_space();
        while self.take(b',') {
            self.skip_space();
        }
        if self.0.is_empty() {
            return Ok(None);
        }
        let name = self.token().ok_or(FAULT)?;
        self.skip_space();
        if !self.take(b'=') {
            return Err(FAULT);
        }
        self.skip_space();
        let value = match self.take(b'"') {
            true => self.quoted().ok_or(FAULT)?,
            false => Value { raw: self.token().ok_or(FAULT)?, escaped: false },
        };
        self.skip_space();
        match self.0 {
            [] | [b',', ..] => Ok(Some((name, value))),
            _ => Err(FAULT),
        }
    }

    fn take(&mut self, octet: u8) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if *first == octet => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    /// `LWS = [CRLF] 1*( SP | HT )`
    fn skip_space(&mut self) {
        while let [b' ' | b'\t', rest @ ..] | [b'\r', b'\n', b' ' | b'\t', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let in_token = |octet: &u8| octet.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(octet);
        let (token, rest) = self.0.split_at(self.0.iter().take_while(|octet| in_token(octet)).count());
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// What stands before the closing quote. No control characters, not even escaped: no name has any.
    fn quoted(&mut self) -> Option<Value<'a>> {
        let (mut at, mut escaped) = (0, false);
        loop {
            match self.0.get(at)? {
                b'"' => break,
                b'\\' if self.0.get(at + 1)?.is_ascii_control() || !self.0.get(at + 1)?.is_ascii() => return None,
                b'\\' => {
                    escaped = true;
                    at += 2;
                }
                octet if octet.is_ascii_control() => return None,
                _ => at += 1,
            }
        }
        let raw = self.0.get(..at)?;
        self.0 = self.0.get(at + 1..)?;
        Some(Value { raw, escaped })
    }
}

fn hex(octets: &[u8; 16]) -> Hex {
    let mut text = [0; 32];
    for (to, octet) in text.as_chunks_mut::<2>().0.iter_mut().zip(octets) {
        *to = [octet >> 4, octet & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
    }
    text
}

#[cfg(test)]
mod tests;
