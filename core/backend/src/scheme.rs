//! Stored secrets: `{SCHEME[.ENC]}data`, bare `$…$…` strings, RFC 5803 SCRAM keys. Parsing, checking, making.
//!
//! ```text
//! text → SCHEMES row → StoredSecret ─ verify(password)      any scheme: a PLAIN login
//!                                   └ scram_keys, cram_md5   what a mechanism may fetch instead
//! ```
//!
//! A hostile or mistaken hash is a denial of service: `m=4294967295` would ask for four terabytes at each
//! login. So costs are bounded when the text is *parsed*, which is when the file is loaded, and not at the
//! first login. Comparisons take constant time; error texts never repeat the secret.

use std::borrow::Cow;
use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sasl::Secret;
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

mod md5_crypt;
#[cfg(test)]
pub(crate) mod tests;

/// PBKDF2 iterations of new SCRAM keys: about 4 ms per PLAIN login, nothing per SCRAM login.
pub const SCRAM_ITERATIONS: u32 = 15_000;
/// Longest password, octets. Several schemes hash a password once per octet of it.
pub const PASSWORD_OCTETS_MAX: usize = 1024;

const ROUNDS_MAX: u64 = 10_000_000;
const SCRAM_ITERATIONS_MIN: u64 = 4096;
const ARGON2_KIB_MAX: u64 = 1024 * 1024;
const ARGON2_PASSES_MAX: u64 = 20;
const LANES_MAX: u64 = 64;
const BCRYPT_COST_MAX: u64 = 16;
const SCRYPT_OCTETS_MAX: u64 = 1 << 30;

/// How to read what the text itself does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What `{MD5}` means.
    pub dialect: Option<Dialect>,
    /// Take passwords in clear (`{PLAIN}`, `{CLEAR}`, `{CLEARTEXT}`).
    pub allow_cleartext: bool,
    /// The scheme of a secret that names none, `SHA512-CRYPT`.
    pub default_scheme: Option<String>,
}

/// Whose habits a file follows; decides about `{MD5}` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// 32 hexadecimal digits (or MD5-crypt, which shows itself by `$1$`).
    Dovecot,
    /// Base64 of the digest.
    OpenLdap,
}

/// Why a stored secret was not taken. Never holds the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadSecret {
    /// Neither `{SCHEME}` nor a known `$…$` prefix.
    NoScheme,
    /// `{SCHEME}` is none of ours.
    UnknownScheme(String),
    /// Known, but not served.
    Unsupported {
        /// Which scheme.
        scheme: &'static str,
        /// Why.
        why: &'static str,
    },
    /// The data does not have the form of its scheme.
    Malformed {
        /// Which scheme.
        scheme: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Checking it would cost too much, or protects too little.
    Cost {
        /// Which parameter.
        what: &'static str,
        /// What the text says.
        found: u64,
        /// Smallest accepted.
        min: u64,
        /// Largest accepted.
        max: u64,
    },
    /// A password in clear without consent.
    Cleartext,
    /// `{MD5}` means two things.
    AmbiguousMd5,
}

impl BadSecret {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoScheme => "write {SCHEME} before it, or set the default scheme",
            Self::UnknownScheme(_) => "set a new password with 'portreeve user passwd'",
            Self::Unsupported { .. } => "set a new password with 'portreeve user passwd'",
            Self::Malformed { .. } => "copy it again in full, or set a new password with 'portreeve user passwd'",
            Self::Cost { .. } => "hash the password again with a parameter inside these bounds",
            Self::Cleartext => "set a new password with 'portreeve user passwd', or set allow_cleartext = true",
            Self::AmbiguousMd5 => "set dialect = \"dovecot\" or \"openldap\", or write {PLAIN-MD5} or {LDAP-MD5}",
        }
    }
}

impl fmt::Display for BadSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoScheme => f.write_str("the secret names no scheme"),
            Self::UnknownScheme(name) => write!(f, "unknown scheme {{{name}}}"),
            Self::Unsupported { scheme, why } => write!(f, "{scheme} is not supported: {why}"),
            Self::Malformed { scheme, what } => write!(f, "{scheme}: {what}"),
            Self::Cost { what, found, min, max } => write!(f, "{what} is {found}, accepted are {min} to {max}"),
            Self::Cleartext => f.write_str("a password in clear"),
            Self::AmbiguousMd5 => f.write_str("{MD5} means one thing in Dovecot and another in OpenLDAP"),
        }
    }
}

impl std::error::Error for BadSecret {}

/// The hash functions that schemes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// RFC 1321.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// Octets of a digest.
    pub fn octets(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn run<D: sha2::Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            parts.iter().for_each(|part| digest.update(part));
            digest.finalize().to_vec()
        }
        Zeroizing::new(match self {
            Self::Md5 => run::<Md5>(parts),
            Self::Sha1 => run::<Sha1>(parts),
            Self::Sha256 => run::<Sha256>(parts),
            Self::Sha512 => run::<Sha512>(parts),
        })
    }

    fn hmac(self, key: &[u8], message: &[u8]) -> Zeroizing<Vec<u8>> {
        macro_rules! run {
            ($hash:ty) => {{
                let mut mac = Hmac::<$hash>::new_from_slice(key).expect("HMAC takes keys of any length");
                mac.update(message);
                mac.finalize().into_bytes().to_vec()
            }};
        }
        Zeroizing::new(match self {
            Self::Md5 => run!(Md5),
            Self::Sha1 => run!(Sha1),
            Self::Sha256 => run!(Sha256),
            Self::Sha512 => run!(Sha512),
        })
    }

    fn pbkdf2(self, password: &[u8], salt: &[u8], rounds: u32, octets: usize) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(vec![0; octets]);
        match self {
            Self::Md5 => pbkdf2::pbkdf2_hmac::<Md5>(password, salt, rounds, &mut key),
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, rounds, &mut key),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, rounds, &mut key),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, rounds, &mut key),
        }
        key
    }
}

/// SCRAM keys (RFC 5802 §3).
#[derive(Clone)]
pub struct ScramKeys {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt.
    pub salt: Vec<u8>,
    /// StoredKey.
    pub stored_key: Zeroizing<Vec<u8>>,
    /// ServerKey.
    pub server_key: Zeroizing<Vec<u8>>,
}

impl ScramKeys {
    /// The keys of `password`: the expensive step.
    pub fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Self {
        #[cfg(test)]
        tests::DERIVED.with(|derived| derived.set(derived.get() + 1));
        let salted = hash.pbkdf2(password, salt, iterations, hash.octets());
        let client_key = hash.hmac(&salted, b"Client Key");
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: hash.digest(&[&client_key]),
            server_key: hash.hmac(&salted, b"Server Key"),
        }
    }
}

/// One stored secret, ready to be checked. No `Debug`.
pub struct StoredSecret {
    scheme: &'static str,
    kind: Kind,
}

enum Kind {
    Argon2 {
        algorithm: Algorithm,
        version: Version,
        params: Params,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Bcrypt {
        cost: u32,
        salt: [u8; 16],
        hash: Vec<u8>,
    },
    /// The whole `$5$…` or `$6$…` string; its parts were checked.
    ShaCrypt(String),
    Md5Crypt {
        magic: &'static str,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Scrypt {
        params: scrypt::Params,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Digest {
        hash: Hash,
        digest: Vec<u8>,
        salt: Vec<u8>,
    },
    Pbkdf2 {
        hash: Hash,
        rounds: u32,
        salt: Vec<u8>,
        key: Vec<u8>,
    },
    Scram {
        hash: Hash,
        keys: ScramKeys,
    },
    CramMd5(Zeroizing<[u8; 32]>),
    DigestMd5 {
        /// Of whom and of which realm the digest is; `None`: the two halves of the user's name, as in Dovecot.
        of: Option<(String, String)>,
        ha1: Zeroizing<[u8; 16]>,
    },
    Cleartext(Secret),
}

impl StoredSecret {
    /// Reads a stored secret.
    pub fn parse(text: &str, options: &Options) -> Result<Self, BadSecret> {
        resolve(text, options)?.parse(options)
    }

    /// Writes `text` in the form `{SCHEME}data` that needs no option to be understood.
    pub fn canonical(text: &str, options: &Options) -> Result<String, BadSecret> {
        let resolved = resolve(text, options)?;
        resolved.parse(options)?;
        let encoding = match resolved.encoding {
            Some(Encoding::Base64) => ".b64",
            Some(Encoding::Hex) => ".hex",
            None => "",
        };
        Ok(format!("{{{}{encoding}}}{}", resolved.scheme, resolved.data))
    }

    /// The scheme's usual name, `SCRAM-SHA-256`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Is this the password of the user `name`, in its prepared form? May take long.
    pub fn verify(&self, name: &str, password: &[u8]) -> bool {
        // A C implementation would stop at the NUL, ours would not: refuse rather than differ.
        if password.len() > PASSWORD_OCTETS_MAX || password.contains(&0) {
            return false;
        }
        match &self.kind {
            Kind::Argon2 { algorithm, version, params, salt, hash } => {
                let mut found = Zeroizing::new(vec![0; hash.len()]);
                Argon2::new(*algorithm, *version, params.clone())
                    .hash_password_into(password, salt, &mut found)
                    .is_ok_and(|()| same(&found, hash))
            }
            Kind::Bcrypt { cost, salt, hash } => {
                // The password's terminating NUL counts as long as it is among the first 72 octets.
                let mut key = Zeroizing::new([0; 72]);
                let used = password.len().min(72);
                key[..used].copy_from_slice(&password[..used]);
                let found = Zeroizing::new(bcrypt::bcrypt(*cost, *salt, &key[..(used + 1).min(72)]));
                same(&found[..23], hash)
            }
            Kind::ShaCrypt(text) => {
                use sha_crypt::PasswordVerifier as _;
                sha_crypt::ShaCrypt::default().verify_password(password, text.as_str()).is_ok()
            }
            Kind::Md5Crypt { magic, salt, hash } => same(&md5_crypt::digest(password, magic, salt), hash),
            Kind::Scrypt { params, salt, hash } => {
                let mut found = Zeroizing::new(vec![0; hash.len()]);
                scrypt::scrypt(password, salt, params, &mut found).is_ok_and(|()| same(&found, hash))
            }
            Kind::Digest { hash, digest, salt } => same(&hash.digest(&[password, salt]), digest),
            Kind::Pbkdf2 { hash, rounds, salt, key } => same(&hash.pbkdf2(password, salt, *rounds, key.len()), key),
            Kind::Scram { hash, keys } => {
                let found = ScramKeys::derive(*hash, password, &keys.salt, keys.iterations);
                same(&found.stored_key, &keys.stored_key) & same(&found.server_key, &keys.server_key)
            }
            Kind::CramMd5(context) => same(&*cram_md5_context(password), &**context),
            Kind::DigestMd5 { of, ha1 } => {
                let (user, realm) = of.as_ref().map_or_else(|| halves(name), |(user, realm)| (user, realm));
                same(&*digest_md5_ha1(user.as_bytes(), realm.as_bytes(), password), &**ha1)
            }
            // Digests, so that the time does not tell the length.
            Kind::Cleartext(clear) => same(&Hash::Sha256.digest(&[password]), &Hash::Sha256.digest(&[clear.expose()])),
        }
    }

    /// The SCRAM keys of `hash`, if these are stored.
    pub fn scram_keys(&self, hash: Hash) -> Option<&ScramKeys> {
        match &self.kind {
            Kind::Scram { hash: stored, keys } if *stored == hash => Some(keys),
            _ => None,
        }
    }

    /// The HMAC-MD5 context, stored or made from a password in clear.
    pub fn cram_md5(&self) -> Option<Zeroizing<[u8; 32]>> {
        match &self.kind {
            Kind::CramMd5(context) => Some(context.clone()),
            Kind::Cleartext(clear) => Some(cram_md5_context(clear.expose())),
            _ => None,
        }
    }

    /// What DIGEST-MD5 needs of a client that calls itself `user` in `realm`: stored for just these, or made from a
    /// password in clear. `name` is the user's.
    pub fn digest_md5(&self, name: &str, user: &[u8], realm: &[u8]) -> Option<Zeroizing<[u8; 16]>> {
        match &self.kind {
            Kind::DigestMd5 { of, ha1 } => {
                let own = of.as_ref().map_or_else(|| halves(name), |(user, realm)| (user, realm));
                ((own.0.as_bytes(), own.1.as_bytes()) == (user, realm)).then(|| ha1.clone())
            }
            Kind::Cleartext(clear) => Some(digest_md5_ha1(user, realm, clear.expose())),
            _ => None,
        }
    }

    /// The password itself, if it is stored in clear.
    pub fn cleartext(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Cleartext(clear) => Some(clear.expose()),
            _ => None,
        }
    }

    /// Whether checking it is the work of microseconds.
    pub fn is_cheap(&self) -> bool {
        matches!(self.kind, Kind::Digest { .. } | Kind::CramMd5(_) | Kind::DigestMd5 { .. } | Kind::Cleartext(_))
    }
}

/// What a new password can be stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewScheme {
    /// SCRAM keys; they serve PLAIN, too.
    Scram(Hash),
    /// What CRAM-MD5 needs.
    CramMd5,
    /// What DIGEST-MD5 needs of who calls themselves by their local part, with their domain as realm.
    DigestMd5,
    /// The password itself.
    Plain,
}

impl NewScheme {
    /// All of them, by the names of schemes.
    pub const ALL: [(&str, Self); 6] = [
        ("SCRAM-SHA-256", Self::Scram(Hash::Sha256)),
        ("SCRAM-SHA-512", Self::Scram(Hash::Sha512)),
        ("SCRAM-SHA-1", Self::Scram(Hash::Sha1)),
        ("CRAM-MD5", Self::CramMd5),
        ("DIGEST-MD5", Self::DigestMd5),
        ("PLAIN", Self::Plain),
    ];

    /// By its name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, scheme)| *scheme)
    }

    /// The stored text of a new password of the user `name`; `None` for want of random octets, or when a password
    /// that is to be stored in clear is no text.
    pub fn make(self, name: &str, password: &[u8]) -> Option<Zeroizing<String>> {
        match self {
            Self::Scram(hash) => new_scram(hash, password, SCRAM_ITERATIONS).ok(),
            Self::CramMd5 => Some(new_cram_md5(password)),
            Self::DigestMd5 => {
                let (user, realm) = halves(name);
                let ha1 = digest_md5_ha1(user.as_bytes(), realm.as_bytes(), password);
                let mut text = Zeroizing::new(String::from("{DIGEST-MD5}"));
                ha1.iter().for_each(|octet| text.push_str(&format!("{octet:02x}")));
                Some(text)
            }
            Self::Plain => std::str::from_utf8(password).ok().map(|text| Zeroizing::new(format!("{{PLAIN}}{text}"))),
        }
    }
}

/// SCRAM-SHA-256 keys for a new password, as stored text. They serve PLAIN, too.
pub fn new_scram_sha256(password: &[u8], iterations: u32) -> Result<Zeroizing<String>, getrandom::Error> {
    new_scram(Hash::Sha256, password, iterations)
}

fn new_scram(hash: Hash, password: &[u8], iterations: u32) -> Result<Zeroizing<String>, getrandom::Error> {
    let scheme = match hash {
        Hash::Sha512 => "SCRAM-SHA-512",
        Hash::Sha1 => "SCRAM-SHA-1",
        _ => "SCRAM-SHA-256",
    };
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    let keys = ScramKeys::derive(hash, password, &salt, iterations);
    Ok(Zeroizing::new(format!(
        "{{{scheme}}}{iterations},{},{},{}",
        BASE64.encode(salt),
        BASE64.encode(&*keys.stored_key),
        BASE64.encode(&*keys.server_key)
    )))
}

/// The CRAM-MD5 context of a new password, as stored text.
pub fn new_cram_md5(password: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from("{CRAM-MD5}"));
    for octet in cram_md5_context(password).iter() {
        text.push_str(&format!("{octet:02x}"));
    }
    text
}

/// The two MD5 states of HMAC-MD5 after the key block: outer, then inner, little-endian words. Whoever has
/// them can answer any challenge, so they are no better than the password for CRAM-MD5; but they do not
/// tell the password, and they are what Dovecot's `{CRAM-MD5}` holds.
pub fn cram_md5_context(password: &[u8]) -> Zeroizing<[u8; 32]> {
    // MD5 after no octets (RFC 1321 §3.3).
    const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let hashed = Hash::Md5.digest(&[password]);
    let key = if password.len() > 64 { &hashed[..] } else { password };
    let mut context = Zeroizing::new([0; 32]);
    for (half, pad) in context.chunks_exact_mut(16).zip([0x5c, 0x36]) {
        let mut block = Zeroizing::new([pad; 64]);
        block.iter_mut().zip(key).for_each(|(octet, key)| *octet ^= key);
        let mut state = START;
        md5::block_api::compress(&mut state, &[*block]);
        for (octets, word) in half.chunks_exact_mut(4).zip(state) {
            octets.copy_from_slice(&word.to_le_bytes());
        }
        state.zeroize();
    }
    context
}

/// `H(username:realm:password)` (RFC 2831 §2.1.2.1). Names and password that ISO 8859-1 can hold are hashed in it,
/// whatever they were sent in.
pub fn digest_md5_ha1(user: &[u8], realm: &[u8], password: &[u8]) -> Zeroizing<[u8; 16]> {
    let parts = [latin1(user), latin1(realm), latin1(password)];
    let hashed = Hash::Md5.digest(&[&parts[0], b":", &parts[1], b":", &parts[2]]);
    let mut ha1 = Zeroizing::new([0; 16]);
    ha1.copy_from_slice(&hashed);
    ha1
}

fn latin1(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let short = |text: &str| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>();
    let short = std::str::from_utf8(text).ok().filter(|text| !text.is_ascii()).and_then(short);
    Zeroizing::new(short.unwrap_or_else(|| text.to_vec()))
}

/// User and realm of a name, as Dovecot divides it for DIGEST-MD5: at the first `@`.
fn halves(name: &str) -> (&str, &str) {
    name.split_once('@').unwrap_or((name, ""))
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// What a scheme's data looks like.
#[derive(Clone, Copy)]
enum Form {
    Argon2(Option<Algorithm>),
    Bcrypt,
    ShaCrypt {
        prefix: &'static str,
        hash_characters: usize,
    },
    Md5Crypt,
    Scrypt,
    /// Digest, then salt; hexadecimal when `hex` and nothing else is said.
    Digest {
        hash: Hash,
        salted: bool,
        hex: bool,
    },
    Pbkdf2(Hash),
    Scram(Hash),
    CramMd5,
    DigestMd5,
    Cleartext,
    /// Look at the data's own prefix.
    Crypt,
    /// Depends on the dialect.
    Md5,
    Refused(&'static str),
}

/// Every scheme that has a name.
const SCHEMES: &[(&str, Form)] = &[
    ("ARGON2ID", Form::Argon2(Some(Algorithm::Argon2id))),
    ("ARGON2I", Form::Argon2(Some(Algorithm::Argon2i))),
    ("ARGON2", Form::Argon2(None)),
    ("BLF-CRYPT", Form::Bcrypt),
    ("BCRYPT", Form::Bcrypt),
    ("SHA512-CRYPT", Form::ShaCrypt { prefix: "$6$", hash_characters: 86 }),
    ("SHA256-CRYPT", Form::ShaCrypt { prefix: "$5$", hash_characters: 43 }),
    ("MD5-CRYPT", Form::Md5Crypt),
    ("SCRYPT", Form::Scrypt),
    ("SSHA", Form::Digest { hash: Hash::Sha1, salted: true, hex: false }),
    ("SSHA256", Form::Digest { hash: Hash::Sha256, salted: true, hex: false }),
    ("SSHA512", Form::Digest { hash: Hash::Sha512, salted: true, hex: false }),
    ("SMD5", Form::Digest { hash: Hash::Md5, salted: true, hex: false }),
    ("SHA", Form::Digest { hash: Hash::Sha1, salted: false, hex: false }),
    ("SHA1", Form::Digest { hash: Hash::Sha1, salted: false, hex: false }),
    ("SHA256", Form::Digest { hash: Hash::Sha256, salted: false, hex: false }),
    ("SHA512", Form::Digest { hash: Hash::Sha512, salted: false, hex: false }),
    ("LDAP-MD5", Form::Digest { hash: Hash::Md5, salted: false, hex: false }),
    ("PLAIN-MD5", Form::Digest { hash: Hash::Md5, salted: false, hex: true }),
    ("PBKDF2", Form::Pbkdf2(Hash::Sha1)),
    ("PBKDF2-SHA1", Form::Pbkdf2(Hash::Sha1)),
    ("PBKDF2-SHA256", Form::Pbkdf2(Hash::Sha256)),
    ("PBKDF2-SHA512", Form::Pbkdf2(Hash::Sha512)),
    ("SCRAM-SHA-1", Form::Scram(Hash::Sha1)),
    ("SCRAM-SHA-256", Form::Scram(Hash::Sha256)),
    ("SCRAM-SHA-512", Form::Scram(Hash::Sha512)),
    ("CRAM-MD5", Form::CramMd5),
    ("HMAC-MD5", Form::CramMd5),
    ("DIGEST-MD5", Form::DigestMd5),
    ("PLAIN", Form::Cleartext),
    ("CLEAR", Form::Cleartext),
    ("CLEARTEXT", Form::Cleartext),
    ("CRYPT", Form::Crypt),
    ("MD5", Form::Md5),
    ("DES-CRYPT", Form::Refused("only its first eight characters would count")),
    ("LANMAN", Form::Refused("it protects nothing")),
    ("NTLM", Form::Refused("it protects nothing")),
    ("PLAIN-MD4", Form::Refused("it protects nothing")),
    ("KERBEROS", Form::Refused("another service holds the password")),
    ("SASL", Form::Refused("another service holds the password")),
];

/// What begins a string in modular crypt format, and whose form it has.
const PREFIXES: &[(&str, &str)] = &[
    ("$argon2id$", "ARGON2ID"),
    ("$argon2i$", "ARGON2I"),
    ("$argon2d$", "ARGON2"),
    ("$2a$", "BLF-CRYPT"),
    ("$2b$", "BLF-CRYPT"),
    ("$2x$", "BLF-CRYPT"),
    ("$2y$", "BLF-CRYPT"),
    ("$5$", "SHA256-CRYPT"),
    ("$6$", "SHA512-CRYPT"),
    ("$1$", "MD5-CRYPT"),
    ("$apr1$", "MD5-CRYPT"),
    ("$scrypt$", "SCRYPT"),
];

#[derive(Clone, Copy)]
enum Encoding {
    Base64,
    Hex,
}

struct Resolved<'a> {
    scheme: &'static str,
    form: Form,
    encoding: Option<Encoding>,
    data: Cow<'a, str>,
}

/// Finds the scheme: by name, by the data's own prefix, or by the options.
fn resolve<'a>(text: &'a str, options: &Options) -> Result<Resolved<'a>, BadSecret> {
    let (name, data) = match text.strip_prefix('{') {
        Some(rest) => {
            let (name, data) = rest.split_once('}').ok_or(BadSecret::NoScheme)?;
            (Some(name), data)
        }
        None => (None, text),
    };
    let Some(name) = name else {
        if data.starts_with('$') {
            return crypt(data);
        }
        // RFC 5803 (and PostgreSQL): the scheme, then `$`.
        if let Some((name, rest)) = data.split_once('$').filter(|(name, _)| name.starts_with("SCRAM-SHA-")) {
            let (scheme, form) = row(name)?;
            return Ok(Resolved { scheme, form, encoding: None, data: rfc5803(scheme, rest)?.into() });
        }
        let name = options.default_scheme.as_deref().ok_or(BadSecret::NoScheme)?;
        return named(name, data, options);
    };
    named(name, data, options)
}

fn named<'a>(name: &str, data: &'a str, options: &Options) -> Result<Resolved<'a>, BadSecret> {
    let (name, encoding) = match name.split_once('.') {
        Some((name, encoding)) if encoding.eq_ignore_ascii_case("b64") => (name, Some(Encoding::Base64)),
        Some((name, encoding)) if encoding.eq_ignore_ascii_case("base64") => (name, Some(Encoding::Base64)),
        Some((name, encoding)) if encoding.eq_ignore_ascii_case("hex") => (name, Some(Encoding::Hex)),
        Some(_) => return Err(BadSecret::UnknownScheme(printable(name))),
        None => (name, None),
    };
    let (scheme, form) = row(name)?;
    let mut resolved = Resolved { scheme, form, encoding, data: data.into() };
    // Digests are octets, and the encoding is how they are written. For all others it wraps a text.
    if let (Some(encoding), false) = (encoding, matches!(form, Form::Digest { .. } | Form::CramMd5 | Form::DigestMd5)) {
        let octets = decode(data, encoding).ok_or(malformed(scheme, "the outer encoding is damaged"))?;
        let text = String::from_utf8(octets).map_err(|_| malformed(scheme, "the outer encoding hides no text"))?;
        (resolved.encoding, resolved.data) = (None, text.into());
    }
    match form {
        Form::Crypt if resolved.data.starts_with('$') => {
            let crypt = crypt(&resolved.data)?;
            (resolved.scheme, resolved.form) = (crypt.scheme, crypt.form);
        }
        Form::Crypt => {
            return Err(BadSecret::Unsupported {
                scheme: "DES-CRYPT",
                why: "only its first eight characters would count",
            });
        }
        Form::Md5 if resolved.data.starts_with("$1$") => {
            (resolved.scheme, resolved.form) = ("MD5-CRYPT", Form::Md5Crypt)
        }
        Form::Md5 => {
            let name = match options.dialect {
                Some(Dialect::Dovecot) => "PLAIN-MD5",
                Some(Dialect::OpenLdap) => "LDAP-MD5",
                None => return Err(BadSecret::AmbiguousMd5),
            };
            (resolved.scheme, resolved.form) = row(name)?;
        }
        Form::Scram(_) => {
            if let Some(rest) = resolved.data.strip_prefix(scheme).and_then(|rest| rest.strip_prefix('$')) {
                resolved.data = rfc5803(scheme, rest)?.into();
            }
        }
        Form::Refused(why) => return Err(BadSecret::Unsupported { scheme, why }),
        _ => {}
    }
    Ok(resolved)
}

fn crypt(data: &str) -> Result<Resolved<'_>, BadSecret> {
    let known = PREFIXES.iter().find(|(prefix, _)| data.starts_with(prefix));
    let Some((_, name)) = known else {
        let why = "unknown $…$ prefix";
        return Err(if data.starts_with("$y$") || data.starts_with("$gy$") || data.starts_with("$7$") {
            BadSecret::Unsupported { scheme: "YESCRYPT", why: "no implementation that we would trust yet" }
        } else {
            BadSecret::Malformed { scheme: "CRYPT", what: why }
        });
    };
    let (scheme, form) = row(name)?;
    Ok(Resolved { scheme, form, encoding: None, data: data.into() })
}

fn row(name: &str) -> Result<(&'static str, Form), BadSecret> {
    let row = SCHEMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    row.copied().ok_or_else(|| BadSecret::UnknownScheme(printable(name)))
}

/// `i:salt$stored:server` in Dovecot's form, which has no colon: `i,salt,stored,server`.
fn rfc5803(scheme: &'static str, data: &str) -> Result<String, BadSecret> {
    let parts = data.split_once('$').and_then(|(left, right)| Some((left.split_once(':')?, right.split_once(':')?)));
    let ((iterations, salt), (stored, server)) = parts.ok_or(malformed(scheme, "not iterations:salt$stored:server"))?;
    Ok(format!("{iterations},{salt},{stored},{server}"))
}

impl Resolved<'_> {
    fn parse(&self, options: &Options) -> Result<StoredSecret, BadSecret> {
        let (scheme, data) = (self.scheme, &*self.data);
        let bad = |what| malformed(scheme, what);
        let kind = match self.form {
            Form::Argon2(wanted) => {
                let mut parts = data.strip_prefix('$').ok_or(bad("must begin with $argon2"))?.split('$').peekable();
                let algorithm = match parts.next() {
                    Some("argon2id") => Algorithm::Argon2id,
                    Some("argon2i") => Algorithm::Argon2i,
                    Some("argon2d") => Algorithm::Argon2d,
                    _ => return Err(bad("must begin with $argon2id$, $argon2i$ or $argon2d$")),
                };
                if wanted.is_some_and(|wanted| wanted != algorithm) {
                    return Err(bad("the data belongs to another variant of Argon2"));
                }
                let version = match parts.next_if(|part| part.starts_with("v=")) {
                    Some("v=19") => Version::V0x13,
                    Some("v=16") | None => Version::V0x10,
                    Some(_) => return Err(bad("unknown version")),
                };
                let costs = parts.next().ok_or(bad("no parameters"))?;
                let (mut memory, mut passes, mut lanes) = (0, 0, 0);
                for cost in costs.split(',') {
                    let (key, value) = cost.split_once('=').ok_or(bad("bad parameter"))?;
                    let value = number(value).ok_or(bad("bad parameter"))?;
                    match key {
                        "m" => memory = bounded("argon2 memory (KiB)", value, 8, ARGON2_KIB_MAX)?,
                        "t" => passes = bounded("argon2 passes", value, 1, ARGON2_PASSES_MAX)?,
                        "p" => lanes = bounded("argon2 lanes", value, 1, LANES_MAX)?,
                        _ => return Err(bad("unknown parameter")),
                    }
                }
                let salt = part(&mut parts, scheme, "salt")?;
                let hash = part(&mut parts, scheme, "hash")?;
                if parts.next().is_some() || !(8..=64).contains(&salt.len()) || !(12..=64).contains(&hash.len()) {
                    return Err(bad("salt or hash has an impossible length"));
                }
                let params =
                    Params::new(memory, passes, lanes, Some(hash.len())).map_err(|_| bad("impossible parameters"))?;
                Kind::Argon2 { algorithm, version, params, salt, hash }
            }
            Form::Bcrypt => {
                if data.starts_with("$2x$") {
                    return Err(BadSecret::Unsupported { scheme, why: "$2x$ marks hashes of a faulty implementation" });
                }
                let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| data.strip_prefix(prefix));
                let rest = rest.ok_or(bad("must begin with $2a$, $2b$ or $2y$"))?;
                let (cost, rest) = rest.split_once('$').ok_or(bad("no cost"))?;
                let cost = bounded("bcrypt cost", number(cost).ok_or(bad("no cost"))?, 4, BCRYPT_COST_MAX)?;
                let (salt, hash) = rest.split_at_checked(22).ok_or(bad("cut off"))?;
                let salt = BCRYPT.decode(salt).ok().and_then(|salt| salt.try_into().ok()).ok_or(bad("damaged salt"))?;
                let hash = BCRYPT.decode(hash).ok().filter(|hash| hash.len() == 23).ok_or(bad("damaged hash"))?;
                Kind::Bcrypt { cost, salt, hash }
            }
            Form::ShaCrypt { prefix, hash_characters } => {
                let mut rest = data.strip_prefix(prefix).ok_or(bad("wrong prefix"))?;
                if let Some(after) = rest.strip_prefix("rounds=") {
                    let (rounds, after) = after.split_once('$').ok_or(bad("cut off"))?;
                    bounded("rounds", number(rounds).ok_or(bad("bad number of rounds"))?, 1000, ROUNDS_MAX)?;
                    rest = after;
                }
                let (salt, hash) = rest.split_once('$').ok_or(bad("cut off"))?;
                let letters = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/');
                if salt.is_empty() || salt.len() > 64 || !letters(salt) {
                    return Err(bad("damaged salt"));
                }
                if hash.len() != hash_characters || !letters(hash) {
                    return Err(bad("damaged hash"));
                }
                Kind::ShaCrypt(data.to_owned())
            }
            Form::Md5Crypt => {
                let magic = ["$1$", "$apr1$"].into_iter().find(|magic| data.starts_with(magic));
                let magic = magic.ok_or(bad("must begin with $1$ or $apr1$"))?;
                let (salt, hash) = data[magic.len()..].split_once('$').ok_or(bad("cut off"))?;
                let hash = md5_crypt::decode(hash).ok_or(bad("damaged hash"))?;
                if salt.len() > 8 {
                    return Err(bad("the salt is longer than 8 characters"));
                }
                Kind::Md5Crypt { magic, salt: salt.as_bytes().to_vec(), hash: hash.to_vec() }
            }
            Form::Scrypt => {
                let mut parts = data.strip_prefix("$scrypt$").ok_or(bad("must begin with $scrypt$"))?.split('$');
                let (mut log_n, mut r, mut p) = (0, 0, 0);
                for cost in parts.next().unwrap_or_default().split(',') {
                    let (key, value) = cost.split_once('=').ok_or(bad("bad parameter"))?;
                    let value = number(value).ok_or(bad("bad parameter"))?;
                    match key {
                        "ln" => log_n = bounded("scrypt ln", value, 1, 24)?,
                        "r" => r = bounded("scrypt r", value, 1, 64)?,
                        "p" => p = bounded("scrypt p", value, 1, 16)?,
                        _ => return Err(bad("unknown parameter")),
                    }
                }
                bounded("scrypt memory", (128 * u64::from(r)) << log_n, 0, SCRYPT_OCTETS_MAX)?;
                let params = scrypt::Params::new(log_n as u8, r, p).map_err(|_| bad("impossible parameters"))?;
                let salt = part(&mut parts, scheme, "salt")?;
                let hash = part(&mut parts, scheme, "hash")?;
                if parts.next().is_some() || !(10..=64).contains(&hash.len()) {
                    return Err(bad("the hash has an impossible length"));
                }
                Kind::Scrypt { params, salt, hash }
            }
            Form::Digest { hash, salted, hex } => {
                let encoding = self.encoding.unwrap_or(match hex || (!salted && data.len() == 2 * hash.octets()) {
                    true => Encoding::Hex,
                    false => Encoding::Base64,
                });
                let mut digest = decode(data, encoding).ok_or(bad("damaged digest"))?;
                if digest.len() < hash.octets() || digest.len() > hash.octets() + 256 {
                    return Err(bad("the digest has an impossible length"));
                }
                let salt = digest.split_off(hash.octets());
                if !salted && !salt.is_empty() {
                    return Err(bad("the digest has an impossible length"));
                }
                Kind::Digest { hash, digest, salt }
            }
            Form::Pbkdf2(hash) => match data.strip_prefix("$1$") {
                // Dovecot: the salt is taken as text.
                Some(rest) => {
                    let mut parts = rest.split('$');
                    let (salt, rounds, key) = (parts.next(), parts.next(), parts.next());
                    let (Some(salt), Some(rounds), Some(key), None) = (salt, rounds, key, parts.next()) else {
                        return Err(bad("not $1$salt$rounds$hash"));
                    };
                    let rounds = bounded("rounds", number(rounds).ok_or(bad("bad number of rounds"))?, 1, ROUNDS_MAX)?;
                    let key = decode(key, Encoding::Hex).filter(|key| key.len() == 20).ok_or(bad("damaged hash"))?;
                    Kind::Pbkdf2 { hash: Hash::Sha1, rounds, salt: salt.as_bytes().to_vec(), key }
                }
                None => {
                    let mut parts = data.split('$');
                    let rounds = number(parts.next().unwrap_or_default()).ok_or(bad("not rounds$salt$hash"))?;
                    let rounds = bounded("rounds", rounds, 1, ROUNDS_MAX)?;
                    let salt = part(&mut parts, scheme, "salt")?;
                    let key = part(&mut parts, scheme, "hash")?;
                    if parts.next().is_some() || !(16..=64).contains(&key.len()) {
                        return Err(bad("the hash has an impossible length"));
                    }
                    Kind::Pbkdf2 { hash, rounds, salt, key }
                }
            },
            Form::Scram(hash) => {
                let mut parts = data.split(',');
                let iterations =
                    number(parts.next().unwrap_or_default()).ok_or(bad("not iterations,salt,stored,server"))?;
                let iterations = bounded("SCRAM iterations", iterations, SCRAM_ITERATIONS_MIN, ROUNDS_MAX)?;
                let salt = part(&mut parts, scheme, "salt")?;
                let stored_key = Zeroizing::new(part(&mut parts, scheme, "StoredKey")?);
                let server_key = Zeroizing::new(part(&mut parts, scheme, "ServerKey")?);
                if parts.next().is_some() || salt.is_empty() || salt.len() > 256 {
                    return Err(bad("not iterations,salt,stored,server"));
                }
                if stored_key.len() != hash.octets() || server_key.len() != hash.octets() {
                    return Err(bad("a key has the wrong length"));
                }
                Kind::Scram { hash, keys: ScramKeys { iterations, salt, stored_key, server_key } }
            }
            Form::CramMd5 => {
                let context = decode(data, self.encoding.unwrap_or(Encoding::Hex)).map(Zeroizing::new);
                let context = context.and_then(|context| <[u8; 32]>::try_from(&context[..]).ok());
                Kind::CramMd5(Zeroizing::new(context.ok_or(bad("not 64 hexadecimal digits"))?))
            }
            Form::DigestMd5 => {
                // Dovecot: the digest alone. htdigest: whose it is, before it.
                let mut parts = data.rsplitn(3, ':');
                let (digest, realm, user) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
                let of = match (user, realm) {
                    (None, None) => None,
                    (Some(user), Some(realm)) if !user.is_empty() => Some((user.to_owned(), realm.to_owned())),
                    _ => return Err(bad("neither a digest nor user:realm:digest")),
                };
                let ha1 = decode(digest, self.encoding.unwrap_or(Encoding::Hex)).map(Zeroizing::new);
                let ha1 =
                    ha1.and_then(|ha1| <[u8; 16]>::try_from(&ha1[..]).ok()).ok_or(bad("not 32 hexadecimal digits"))?;
                Kind::DigestMd5 { of, ha1: Zeroizing::new(ha1) }
            }
            Form::Cleartext if !options.allow_cleartext => return Err(BadSecret::Cleartext),
            Form::Cleartext if data.is_empty() || data.len() > PASSWORD_OCTETS_MAX => {
                return Err(bad("empty or too long"));
            }
            Form::Cleartext => Kind::Cleartext(Secret::new(data.as_bytes().to_vec())),
            Form::Crypt | Form::Md5 | Form::Refused(_) => unreachable!("resolve() returns none of these"),
        };
        Ok(StoredSecret { scheme, kind })
    }
}

fn malformed(scheme: &'static str, what: &'static str) -> BadSecret {
    BadSecret::Malformed { scheme, what }
}

fn number(text: &str) -> Option<u64> {
    // `parse` alone would take "+5".
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn bounded(what: &'static str, found: u64, min: u64, max: u64) -> Result<u32, BadSecret> {
    match u32::try_from(found) {
        Ok(fits) if (min..=max).contains(&found) => Ok(fits),
        _ => Err(BadSecret::Cost { what, found, min, max }),
    }
}

/// The next part of a PHC-like string, base64 of any dialect.
fn part<'a>(
    parts: &mut impl Iterator<Item = &'a str>,
    scheme: &'static str,
    what: &'static str,
) -> Result<Vec<u8>, BadSecret> {
    parts.next().and_then(|part| decode(part, Encoding::Base64)).ok_or(malformed(
        scheme,
        match what {
            "salt" => "the salt is missing or damaged",
            "hash" => "the hash is missing or damaged",
            _ => "a key is missing or damaged",
        },
    ))
}

fn decode(text: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        // passlib and OpenLDAP write `.` for `+`.
        Encoding::Base64 => BASE64.decode(text.replace('.', "+")).ok(),
        Encoding::Hex => {
            let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
            let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
            Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
    }
}

/// What may be a part of the secret, if somebody forgot the scheme, must not be repeated in a message.
fn printable(name: &str) -> String {
    let plain = name.len() <= 24 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if plain { name.to_ascii_uppercase() } else { "…".to_owned() }
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BCRYPT: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, LENIENT.with_encode_padding(false));
