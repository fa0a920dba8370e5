//! The client's side of the mechanisms that everybody knows, written from the RFCs and apart from the server's
//! side, so that one mistake is not made twice. Test code: no secret here is one.

use hmac::{KeyInit, Mac};
use md5::Digest as _;

use crate::event::{base64, unbase64};

/// What SCRAM hashes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

macro_rules! with_hash {
    ($hash:expr, $function:ident ( $($argument:expr),* )) => {
        match $hash {
            Hash::Sha1 => $function::<sha1::Sha1>($($argument),*),
            Hash::Sha256 => $function::<sha2::Sha256>($($argument),*),
            Hash::Sha512 => $function::<sha2::Sha512>($($argument),*),
        }
    };
}

impl Hash {
    /// H().
    pub fn digest(self, octets: &[u8]) -> Vec<u8> {
        fn of<D: sha2::Digest>(octets: &[u8]) -> Vec<u8> {
            D::digest(octets).to_vec()
        }
        with_hash!(self, of(octets))
    }

    /// HMAC(); a key is never too long or too short.
    pub fn hmac(self, key: &[u8], octets: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha1 => hmac_of::<hmac::Hmac<sha1::Sha1>>(key, octets),
            Hash::Sha256 => hmac_of::<hmac::Hmac<sha2::Sha256>>(key, octets),
            Hash::Sha512 => hmac_of::<hmac::Hmac<sha2::Sha512>>(key, octets),
        }
    }

    /// Hi() of RFC 5802 §2.2.
    pub fn hi(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut salted = vec![0; self.digest(b"").len()];
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt, iterations, &mut salted),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, salt, iterations, &mut salted),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, salt, iterations, &mut salted),
        }
        salted
    }

    /// StoredKey and ServerKey.
    pub fn scram_keys(self, password: &[u8], salt: &[u8], iterations: u32) -> (Vec<u8>, Vec<u8>) {
        let salted = self.hi(password, salt, iterations);
        (self.digest(&self.hmac(&salted, b"Client Key")), self.hmac(&salted, b"Server Key"))
    }
}

fn hmac_of<M: Mac + KeyInit>(key: &[u8], octets: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(octets);
    mac.finalize().into_bytes().to_vec()
}

/// HMAC-MD5.
pub fn hmac_md5(key: &[u8], octets: &[u8]) -> Vec<u8> {
    hmac_of::<hmac::Hmac<md5::Md5>>(key, octets)
}

/// MD5.
pub fn md5(octets: &[u8]) -> Vec<u8> {
    md5::Md5::digest(octets).to_vec()
}

/// The two MD5 states that HMAC-MD5 begins with: outer, then inner (`PRV_K_CRAM_MD5_CTX`).
pub fn cram_context(password: &[u8]) -> Vec<u8> {
    use md5::block_api::Md5Core;
    use md5::digest::block_api::UpdateCore;
    use md5::digest::common::hazmat::SerializableState;
    let mut key = if password.len() > 64 { md5(password) } else { password.to_vec() };
    key.resize(64, 0);
    let state = |pad: u8| {
        let mut block = md5::digest::array::Array::default();
        block.iter_mut().zip(&key).for_each(|(to, octet)| *to = octet ^ pad);
        let mut core = Md5Core::default();
        core.update_blocks(&[block]);
        core.serialize().get(..16).unwrap_or_default().to_vec()
    };
    [state(0x5c), state(0x36)].concat()
}

/// Lower case hexadecimal.
pub fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Who the client is, and what it sees of the connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// Its name.
    pub authcid: String,
    /// Whom it wants to act as.
    pub authzid: String,
    /// Its password.
    pub password: String,
    /// Its token.
    pub token: String,
    /// Its nonce.
    pub nonce: String,
    /// GS2 flag: `n`, `y` or `p=…`.
    pub gs2: String,
    /// The binding as it sees it.
    pub binding: Vec<u8>,
}

impl Person {
    /// `user` with `pencil` of the RFCs.
    pub fn user() -> Self {
        Self {
            authcid: "user".into(),
            authzid: String::new(),
            password: "pencil".into(),
            token: "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==".into(),
            nonce: "rOprNGfwEbeRWgbNEkqO".into(),
            gs2: "n".into(),
            binding: Vec::new(),
        }
    }
}

/// A mechanism that a client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 4616.
    Plain,
    /// draft-murchison-sasl-login.
    Login,
    /// RFC 2195.
    CramMd5,
    /// RFC 2831.
    DigestMd5,
    /// RFC 5802; with channel binding or without.
    Scram(Hash, bool),
    /// RFC 7628.
    OauthBearer,
    /// Vendors' documents.
    Xoauth2,
    /// RFC 4422 appendix A.
    External,
    /// RFC 4505.
    Anonymous,
}

impl Kind {
    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "PLAIN" => Self::Plain,
            "LOGIN" => Self::Login,
            "CRAM-MD5" => Self::CramMd5,
            "DIGEST-MD5" => Self::DigestMd5,
            "SCRAM-SHA-1" => Self::Scram(Hash::Sha1, false),
            "SCRAM-SHA-1-PLUS" => Self::Scram(Hash::Sha1, true),
            "SCRAM-SHA-256" => Self::Scram(Hash::Sha256, false),
            "SCRAM-SHA-256-PLUS" => Self::Scram(Hash::Sha256, true),
            "SCRAM-SHA-512" => Self::Scram(Hash::Sha512, false),
            "SCRAM-SHA-512-PLUS" => Self::Scram(Hash::Sha512, true),
            "OAUTHBEARER" => Self::OauthBearer,
            "XOAUTH2" => Self::Xoauth2,
            "EXTERNAL" => Self::External,
            "ANONYMOUS" => Self::Anonymous,
            _ => return None,
        })
    }

    /// Whether the proof is computed from a challenge or a key, and not just shown.
    pub fn computes(self) -> bool {
        matches!(self, Self::CramMd5 | Self::DigestMd5 | Self::Scram(..))
    }
}

/// One exchange of a client.
#[derive(Clone, Debug)]
pub struct Client {
    kind: Kind,
    person: Person,
    turn: usize,
    /// SCRAM: client-first-bare; then the server's signature that must come.
    memory: Vec<u8>,
    expected: Option<Vec<u8>>,
    /// Octets of the last message that prove something.
    pub proof: std::ops::Range<usize>,
}

impl Client {
    /// A client that has said nothing.
    pub fn new(kind: Kind, person: Person) -> Self {
        Self { kind, person, turn: 0, memory: Vec::new(), expected: None, proof: 0..0 }
    }

    /// What it says first, when it speaks first.
    pub fn initial(&mut self) -> Option<Vec<u8>> {
        let Person { authcid, authzid, password, token, nonce, gs2, .. } = &self.person;
        let message = match self.kind {
            Kind::Plain => [authzid.as_bytes(), authcid.as_bytes(), password.as_bytes()].join(&0),
            Kind::Scram(..) => {
                let bare = format!("n={},r={nonce}", escape(authcid));
                self.memory = bare.clone().into();
                format!("{}{bare}", header(gs2, authzid)).into()
            }
            Kind::OauthBearer => format!("{}\x01auth=Bearer {token}\x01\x01", header(gs2, authzid)).into(),
            Kind::Xoauth2 => format!("user={authcid}\x01auth=Bearer {token}\x01\x01").into(),
            Kind::External => authzid.clone().into(),
            Kind::Anonymous => b"sirhc".to_vec(),
            Kind::Login | Kind::CramMd5 | Kind::DigestMd5 => return None,
        };
        self.proof = 0..message.len();
        self.turn = 1;
        Some(message)
    }

    /// What it answers to a challenge.
    pub fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, String> {
        let turn = self.turn;
        self.turn += 1;
        if turn == 0
            && let Some(message) = self.initial()
        {
            return if challenge.is_empty() { Ok(message) } else { Err("the first challenge is not empty".into()) };
        }
        let person = &self.person;
        let message = match (self.kind, turn) {
            (Kind::Login, 0) => person.authcid.clone().into(),
            (Kind::Login, 1) => person.password.clone().into(),
            (Kind::CramMd5, 0) => {
                let digest = hex(&hmac_md5(person.password.as_bytes(), challenge));
                let message = format!("{} {digest}", person.authcid).into_bytes();
                self.proof = message.len() - 32..message.len();
                return Ok(message);
            }
            (Kind::DigestMd5, 0) => return self.digest_md5(challenge),
            (Kind::DigestMd5, 1) => {
                let expected = self.expected.take().unwrap_or_default();
                return if challenge == expected { Ok(Vec::new()) } else { Err("rspauth is wrong".into()) };
            }
            (Kind::Scram(hash, _), 1) => return self.scram_final(hash, challenge),
            (Kind::Scram(..), 2) => {
                let expected = self.expected.take().unwrap_or_default();
                return if challenge == expected {
                    Ok(Vec::new())
                } else {
                    Err("the server's signature v= is wrong (RFC 5802 section 3)".into())
                };
            }
            // The server's error: RFC 7628 §3.2.3 wants 0x01, XOAUTH2 an empty line.
            (Kind::OauthBearer, 1) => b"\x01".to_vec(),
            (Kind::Xoauth2, 1) => Vec::new(),
            _ => return Err(format!("challenge {} is one too many", turn + 1)),
        };
        self.proof = 0..message.len();
        Ok(message)
    }

    /// Whether the server has proven itself, where the mechanism has it do so.
    pub fn is_content(&self) -> bool {
        self.expected.is_none()
    }

    fn scram_final(&mut self, hash: Hash, server_first: &[u8]) -> Result<Vec<u8>, String> {
        let text = std::str::from_utf8(server_first).map_err(|_| "server-first-message is not UTF-8")?;
        let field = |name: &str| text.split(',').find_map(|field| field.strip_prefix(name));
        let nonce = field("r=").filter(|nonce| nonce.len() > self.person.nonce.len());
        let nonce =
            nonce.filter(|nonce| nonce.starts_with(&self.person.nonce)).ok_or("r= does not begin with our nonce")?;
        let salt = field("s=").and_then(unbase64).filter(|salt| !salt.is_empty()).ok_or("s= is not base64")?;
        let iterations: u32 = field("i=").and_then(|count| count.parse().ok()).ok_or("i= is no number")?;
        if iterations == 0 || iterations > 1_000_000 {
            return Err(format!("i= is {iterations}"));
        }
        let binding = [header(&self.person.gs2, &self.person.authzid).as_bytes(), &self.person.binding].concat();
        let without_proof = format!("c={},r={nonce}", base64(&binding));
        let auth_message = [&self.memory, server_first, without_proof.as_bytes()].join(&b","[..]);
        let salted = hash.hi(self.person.password.as_bytes(), &salt, iterations);
        let client_key = hash.hmac(&salted, b"Client Key");
        let signature = hash.hmac(&hash.digest(&client_key), &auth_message);
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        let verifier = hash.hmac(&hash.hmac(&salted, b"Server Key"), &auth_message);
        self.expected = Some(format!("v={}", base64(&verifier)).into());
        let message = format!("{without_proof},p={}", base64(&proof)).into_bytes();
        self.proof = 0..message.len();
        Ok(message)
    }

    fn digest_md5(&mut self, challenge: &[u8]) -> Result<Vec<u8>, String> {
        let text = std::str::from_utf8(challenge).map_err(|_| "the challenge is not UTF-8")?;
        let nonce = quoted(text, "nonce").ok_or("no nonce in the challenge")?;
        let offered = quoted(text, "realm").unwrap_or_default();
        let person = &self.person;
        let (user, realm) = (person.authcid.as_str(), offered);
        let (cnonce, uri) = ("OA6MHXh6VqTrRk", "smtp/mail.example.com");
        let digest =
            DigestMd5 { user, realm, password: &person.password, nonce, cnonce, uri, authzid: &person.authzid };
        self.expected = Some(format!("rspauth={}", digest.response("")).into());
        let mut message = format!(
            "charset=utf-8,username=\"{user}\",realm=\"{realm}\",nonce=\"{nonce}\",nc=00000001,cnonce=\"{cnonce}\",\
             digest-uri=\"{uri}\",qop=auth"
        );
        if !person.authzid.is_empty() {
            message += &format!(",authzid=\"{}\"", person.authzid);
        }
        message += ",response=";
        let start = message.len();
        message += &digest.response("AUTHENTICATE");
        self.proof = start..message.len();
        Ok(message.into())
    }
}

/// RFC 2831 §2.1.2.1, md5-sess and qop auth.
pub struct DigestMd5<'a> {
    /// username
    pub user: &'a str,
    /// realm
    pub realm: &'a str,
    /// The password.
    pub password: &'a str,
    /// nonce
    pub nonce: &'a str,
    /// cnonce
    pub cnonce: &'a str,
    /// digest-uri
    pub uri: &'a str,
    /// authzid
    pub authzid: &'a str,
}

impl DigestMd5<'_> {
    /// response with `AUTHENTICATE`, rspauth with nothing.
    pub fn response(&self, method: &str) -> String {
        let Self { user, realm, password, nonce, cnonce, uri, authzid } = self;
        let mut a1 = md5(format!("{user}:{realm}:{password}").as_bytes());
        a1.extend(format!(":{nonce}:{cnonce}").bytes());
        if !authzid.is_empty() {
            a1.extend(format!(":{authzid}").bytes());
        }
        let a2 = format!("{method}:{uri}");
        let text = format!("{}:{nonce}:00000001:{cnonce}:auth:{}", hex(&md5(&a1)), hex(&md5(a2.as_bytes())));
        hex(&md5(text.as_bytes()))
    }
}

/// The value of `name="…"`.
pub fn quoted<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn header(gs2: &str, authzid: &str) -> String {
    if authzid.is_empty() { format!("{gs2},,") } else { format!("{gs2},a={},", escape(authzid)) }
}

fn escape(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scram_by_the_rfcs() {
        for (kind, server, nonce, proof, verifier) in [
            (
                Kind::Scram(Hash::Sha1, false),
                "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
                "fyko+d2lbbFgONRv9qkxdawL",
                "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
                "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            ),
            (
                Kind::Scram(Hash::Sha256, false),
                "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
                "rOprNGfwEbeRWgbNEkqO",
                "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
        ] {
            let mut client = Client::new(kind, Person { nonce: nonce.into(), ..Person::user() });
            assert_eq!(client.initial().unwrap(), format!("n,,n=user,r={nonce}").into_bytes());
            let last = String::from_utf8(client.answer(server.as_bytes()).unwrap()).unwrap();
            assert!(last.ends_with(&format!(",p={proof}")), "{last}");
            assert!(!client.is_content() && client.clone().answer(b"v=x").is_err());
            assert_eq!(client.answer(verifier.as_bytes()), Ok(vec![]));
            assert!(client.is_content() && client.answer(b"").is_err());
        }
    }

    #[test]
    fn md5_by_the_rfcs() {
        let context = cram_context(b"tanstaaftanstaaf");
        assert_eq!(hex(&context), "d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b");
        let person = Person { authcid: "tim".into(), password: "tanstaaftanstaaf".into(), ..Person::user() };
        let mut client = Client::new(Kind::CramMd5, person);
        let answer = client.answer(b"<1896.697170952@postoffice.reston.mci.net>").unwrap();
        assert_eq!(answer, b"tim b913a602c7eda7a495b4e6e7334d3890");
        let digest = DigestMd5 {
            user: "chris",
            realm: "elwood.innosoft.com",
            password: "secret",
            nonce: "OA6MG9tEQGm2hh",
            cnonce: "OA6MHXh6VqTrRk",
            uri: "imap/elwood.innosoft.com",
            authzid: "",
        };
        assert_eq!(digest.response("AUTHENTICATE"), "d388dad90d4bbd760a152321f2143af7");
        assert_eq!(digest.response(""), "ea40f60335c427b5527b84dbabcdfffd");
    }
}
