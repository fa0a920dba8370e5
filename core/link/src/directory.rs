//! What workers ask the directory process, and what it answers. An answer carries its question's id.

use std::net::IpAddr;

use crate::BadPacket;
use crate::backend::Effect;
use crate::codec::{Put, Reader};

/// Frame kind of a [`Question`].
pub const QUESTION: u16 = 0x0100;
/// Frame kind of an [`Answer`].
pub const ANSWER: u16 = 0x0101;

/// What a worker wants to know. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Question<'a> {
    /// Is this the user's password?
    VerifyPassword {
        /// Listener's name in the configuration.
        listener: &'a str,
        /// The client.
        client_ip: IpAddr,
        /// SASL name.
        mechanism: &'a str,
        /// Who the client claims to be.
        authcid: &'a [u8],
        /// Whom it wants to act as; empty: itself.
        authzid: &'a [u8],
        /// The claimed password.
        password: &'a [u8],
    },
    /// The stored key of a user, for mechanisms that check a proof themselves.
    FetchKey {
        /// Listener's name in the configuration.
        listener: &'a str,
        /// The client.
        client_ip: IpAddr,
        /// SASL name.
        mechanism: &'a str,
        /// Which key: `sasl::KeyKind` as a number.
        kind: u32,
        /// Who the client claims to be.
        authcid: &'a [u8],
        /// Whom it wants to act as; empty: itself.
        authzid: &'a [u8],
        /// DIGEST-MD5's realm; empty otherwise.
        realm: &'a [u8],
    },
    /// Whom does a verified client certificate stand for?
    VerifyExternal {
        /// Listener's name in the configuration.
        listener: &'a str,
        /// The client.
        client_ip: IpAddr,
        /// SASL name.
        mechanism: &'a str,
        /// Whom it wants to act as; empty: itself.
        authzid: &'a [u8],
        /// What the certificate says.
        certificate: CertificateFields<'a>,
    },
    /// Is this bearer token good, and whose is it?
    VerifyToken {
        /// Listener's name in the configuration.
        listener: &'a str,
        /// The client.
        client_ip: IpAddr,
        /// SASL name.
        mechanism: &'a str,
        /// Whom it wants to act as; empty: itself.
        authzid: &'a [u8],
        /// The token.
        token: &'a [u8],
    },
    /// Who is it that a mechanism has proven by itself?
    Asserted {
        /// Listener's name in the configuration.
        listener: &'a str,
        /// The client.
        client_ip: IpAddr,
        /// SASL name.
        mechanism: &'a str,
        /// Who it says it is.
        authcid: &'a [u8],
        /// Whom they want to act as; empty: themselves.
        authzid: &'a [u8],
    },
    /// An effect that a back end of a library serves.
    Backend {
        /// The listener's back end.
        backend: &'a str,
        /// What is asked. BACKEND_CALL goes to the back end that it names.
        effect: Effect<'a>,
    },
    /// Does this mailbox exist?
    Recipient {
        /// `local@domain`, or `postmaster`.
        address: &'a str,
    },
    /// May the identity send as this address?
    Sender {
        /// Canonical name.
        identity: &'a str,
        /// `local@domain`.
        address: &'a str,
    },
}

/// What a certificate says about who holds its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFields<'a> {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: &'a [u8],
    /// Mail addresses of subjectAltName.
    pub mail: Vec<&'a str>,
    /// URIs of subjectAltName.
    pub uris: Vec<&'a str>,
    /// Common names of the subject.
    pub common_names: Vec<&'a str>,
}

impl<'a> CertificateFields<'a> {
    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.mail.iter().chain(&self.uris).chain(&self.common_names).copied()
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.put_bytes(self.spki_sha256);
        for names in [&self.mail, &self.uris, &self.common_names] {
            to.put_list(names, |to, name| to.put_str(name));
        }
    }

    fn decode(from: &mut Reader<'a>) -> Result<Self, BadPacket> {
        Ok(Self {
            spki_sha256: from.bytes()?,
            mail: from.list(Reader::str)?,
            uris: from.list(Reader::str)?,
            common_names: from.list(Reader::str)?,
        })
    }
}

/// What the directory says. No `Debug`: it may hold a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// To [`Question::VerifyPassword`], [`Question::FetchKey`], [`Question::VerifyExternal`],
    /// [`Question::VerifyToken`], [`Question::Asserted`] and [`Question::Backend`].
    Sasl {
        /// `sasl::Status` as a number.
        status: u8,
        /// The user does not exist or is disabled; the exchange must not succeed.
        doomed: bool,
        /// 0 good, 1 disabled, 2 mechanism too weak.
        account: u8,
        /// Whose credential it is.
        identity: Option<IdentityFields<'a>>,
        /// The key; for a refused token what the client is told.
        data: &'a [u8],
        /// How `data` divides, for SCRAM: salt, StoredKey, ServerKey.
        scram: Option<Scram>,
    },
    /// To [`Question::Recipient`].
    Recipient {
        /// 0 exists, 1 unknown, 2 temporary.
        status: u8,
        /// Whose mailbox; empty unless it exists.
        mailbox: &'a str,
    },
    /// To [`Question::Sender`].
    Sender {
        /// 0 granted, 1 denied, 2 temporary.
        status: u8,
    },
}

/// `smtp::Identity` on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFields<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// What it may send as.
    pub senders: Vec<&'a str>,
    /// Largest message, octets.
    pub message_octets_max: Option<u64>,
    /// Most recipients of a message.
    pub recipients_max: Option<u32>,
    /// The store's epoch when this was read.
    pub epoch: u64,
}

/// Layout of a SCRAM key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scram {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Octets of salt at the start of the data.
    pub salt_octets: u16,
    /// Octets of StoredKey, and of ServerKey.
    pub hash_octets: u16,
}

impl<'a> Question<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::VerifyPassword { listener, client_ip, mechanism, authcid, authzid, password } => {
                to.put_u8(0);
                to.put_str(listener);
                to.put_ip(*client_ip);
                to.put_str(mechanism);
                to.put_bytes(authcid);
                to.put_bytes(authzid);
                to.put_bytes(password);
            }
            Self::FetchKey { listener, client_ip, mechanism, kind, authcid, authzid, realm } => {
                to.put_u8(1);
                to.put_str(listener);
                to.put_ip(*client_ip);
                to.put_str(mechanism);
                to.put_u32(*kind);
                to.put_bytes(authcid);
                to.put_bytes(authzid);
                to.put_bytes(realm);
            }
            Self::VerifyExternal { listener, client_ip, mechanism, authzid, certificate } => {
                to.put_u8(4);
                to.put_str(listener);
                to.put_ip(*client_ip);
                to.put_str(mechanism);
                to.put_bytes(authzid);
                certificate.encode(to);
            }
            Self::VerifyToken { listener, client_ip, mechanism, authzid, token } => {
                to.put_u8(5);
                to.put_str(listener);
                to.put_ip(*client_ip);
                to.put_str(mechanism);
                to.put_bytes(authzid);
                to.put_bytes(token);
            }
            Self::Asserted { listener, client_ip, mechanism, authcid, authzid } => {
                to.put_u8(6);
                to.put_str(listener);
                to.put_ip(*client_ip);
                to.put_str(mechanism);
                to.put_bytes(authcid);
                to.put_bytes(authzid);
            }
            Self::Backend { backend, effect } => {
                to.put_u8(7);
                to.put_str(backend);
                effect.encode(to);
            }
            Self::Recipient { address } => {
                to.put_u8(2);
                to.put_str(address);
            }
            Self::Sender { identity, address } => {
                to.put_u8(3);
                to.put_str(identity);
                to.put_str(address);
            }
        }
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let question = match from.u8()? {
            0 => Self::VerifyPassword {
                listener: from.str()?,
                client_ip: from.ip()?,
                mechanism: from.str()?,
                authcid: from.bytes()?,
                authzid: from.bytes()?,
                password: from.bytes()?,
            },
            1 => Self::FetchKey {
                listener: from.str()?,
                client_ip: from.ip()?,
                mechanism: from.str()?,
                kind: from.u32()?,
                authcid: from.bytes()?,
                authzid: from.bytes()?,
                realm: from.bytes()?,
            },
            2 => Self::Recipient { address: from.str()? },
            3 => Self::Sender { identity: from.str()?, address: from.str()? },
            4 => Self::VerifyExternal {
                listener: from.str()?,
                client_ip: from.ip()?,
                mechanism: from.str()?,
                authzid: from.bytes()?,
                certificate: CertificateFields::decode(&mut from)?,
            },
            5 => Self::VerifyToken {
                listener: from.str()?,
                client_ip: from.ip()?,
                mechanism: from.str()?,
                authzid: from.bytes()?,
                token: from.bytes()?,
            },
            6 => Self::Asserted {
                listener: from.str()?,
                client_ip: from.ip()?,
                mechanism: from.str()?,
                authcid: from.bytes()?,
                authzid: from.bytes()?,
            },
            7 => Self::Backend { backend: from.str()?, effect: Effect::decode(&mut from)? },
            _ => return Err(BadPacket::Value("question")),
        };
        from.end()?;
        Ok(question)
    }
}

impl<'a> Answer<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Sasl { status, doomed, account, identity, data, scram } => {
                to.put_u8(0);
                to.put_u8(*status);
                to.put_bool(*doomed);
                to.put_u8(*account);
                to.put_option(identity.as_ref(), |to, identity| identity.encode(to));
                to.put_bytes(data);
                to.put_option(*scram, |to, scram| {
                    to.put_u32(scram.iterations);
                    to.put_u16(scram.salt_octets);
                    to.put_u16(scram.hash_octets);
                });
            }
            Self::Recipient { status, mailbox } => {
                to.put_u8(1);
                to.put_u8(*status);
                to.put_str(mailbox);
            }
            Self::Sender { status } => {
                to.put_u8(2);
                to.put_u8(*status);
            }
        }
    }

    /// Reads a payload. A SCRAM layout that does not fit its data is refused here, so that nobody
    /// downstream slices beyond the end.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let answer = match from.u8()? {
            0 => {
                let answer = Self::Sasl {
                    status: from.u8()?,
                    doomed: from.bool()?,
                    account: below(3, from.u8()?, "account")?,
                    identity: from.option(IdentityFields::decode)?,
                    data: from.bytes()?,
                    scram: from.option(|from| {
                        Ok(Scram { iterations: from.u32()?, salt_octets: from.u16()?, hash_octets: from.u16()? })
                    })?,
                };
                if let Self::Sasl { data, scram: Some(scram), .. } = &answer {
                    let octets = usize::from(scram.salt_octets) + 2 * usize::from(scram.hash_octets);
                    if data.len() != octets {
                        return Err(BadPacket::Value("SCRAM layout"));
                    }
                }
                answer
            }
            1 => Self::Recipient { status: below(3, from.u8()?, "recipient status")?, mailbox: from.str()? },
            2 => Self::Sender { status: below(3, from.u8()?, "sender status")? },
            _ => return Err(BadPacket::Value("answer")),
        };
        from.end()?;
        Ok(answer)
    }
}

impl<'a> IdentityFields<'a> {
    fn encode(&self, to: &mut Vec<u8>) {
        to.put_str(self.name);
        to.put_list(&self.senders, |to, sender| to.put_str(sender));
        to.put_option(self.message_octets_max, |to, value| to.put_u64(value));
        to.put_option(self.recipients_max, |to, value| to.put_u32(value));
        to.put_u64(self.epoch);
    }

    fn decode(from: &mut Reader<'a>) -> Result<Self, BadPacket> {
        Ok(Self {
            name: from.str()?,
            senders: from.list(Reader::str)?,
            message_octets_max: from.option(Reader::u64)?,
            recipients_max: from.option(Reader::u32)?,
            epoch: from.u64()?,
        })
    }
}

fn below(bound: u8, value: u8, field: &'static str) -> Result<u8, BadPacket> {
    if value < bound { Ok(value) } else { Err(BadPacket::Value(field)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> Vec<Question<'static>> {
        vec![
            Question::VerifyPassword {
                listener: "submission",
                client_ip: "192.0.2.7".parse().unwrap(),
                mechanism: "PLAIN",
                authcid: b"alice",
                authzid: b"",
                password: b"\0\xff secret",
            },
            Question::FetchKey {
                listener: "mx",
                client_ip: "2001:db8::1".parse().unwrap(),
                mechanism: "SCRAM-SHA-256",
                kind: 3,
                authcid: b"bob",
                authzid: b"x",
                realm: b"r",
            },
            Question::VerifyExternal {
                listener: "submission",
                client_ip: "192.0.2.7".parse().unwrap(),
                mechanism: "EXTERNAL",
                authzid: b"",
                certificate: CertificateFields {
                    spki_sha256: &[7; 32],
                    mail: vec!["alice@demo.test", ""],
                    uris: vec![],
                    common_names: vec!["Alice"],
                },
            },
            Question::VerifyToken {
                listener: "submission",
                client_ip: "192.0.2.7".parse().unwrap(),
                mechanism: "OAUTHBEARER",
                authzid: b"alice@demo.test",
                token: b"a-._~+/0==",
            },
            Question::Asserted {
                listener: "submission",
                client_ip: "192.0.2.7".parse().unwrap(),
                mechanism: "GSSAPI",
                authcid: b"alice@demo.test",
                authzid: b"",
            },
            Question::Backend {
                backend: "pins",
                effect: Effect {
                    effect: 21,
                    arg: 0,
                    conn_flags: 1,
                    tls_version: 0x0303,
                    session: 7,
                    client_ip: "192.0.2.7".parse().unwrap(),
                    mechanism: "X-PIN",
                    listener: "submission",
                    sni: "",
                    authcid: b"",
                    authzid: b"",
                    data: b"\0request",
                    data2: b"",
                    service: b"pins",
                },
            },
            Question::Recipient { address: "alice@demo.test" },
            Question::Sender { identity: "alice@demo.test", address: "sales@demo.test" },
        ]
    }

    fn answers() -> Vec<Answer<'static>> {
        vec![
            Answer::Sasl {
                status: 0,
                doomed: true,
                account: 2,
                identity: Some(IdentityFields {
                    name: "alice@demo.test",
                    senders: vec!["alice@demo.test", "@demo.test"],
                    message_octets_max: Some(1 << 40),
                    recipients_max: None,
                    epoch: 9,
                }),
                data: &[7; 72],
                scram: Some(Scram { iterations: 4096, salt_octets: 8, hash_octets: 32 }),
            },
            Answer::Recipient { status: 0, mailbox: "alice@demo.test" },
            Answer::Sender { status: 2 },
        ]
    }

    #[test]
    fn there_and_back_and_every_cut_is_an_error() {
        for question in questions() {
            let mut payload = Vec::new();
            question.encode(&mut payload);
            assert!(Question::decode(&payload).is_ok_and(|same| same == question));
            for cut in 0..payload.len() {
                assert!(Question::decode(&payload[..cut]).is_err());
            }
            payload.push(0);
            assert!(Question::decode(&payload).is_err_and(|bad| bad == BadPacket::Trailing));
        }
        for answer in answers() {
            let mut payload = Vec::new();
            answer.encode(&mut payload);
            assert!(Answer::decode(&payload).is_ok_and(|same| same == answer));
            for cut in 0..payload.len() {
                assert!(Answer::decode(&payload[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_scram_layout_beyond_its_data_is_refused() {
        let mut payload = Vec::new();
        Answer::Sasl {
            status: 0,
            doomed: false,
            account: 0,
            identity: None,
            data: &[0; 10],
            scram: Some(Scram { iterations: 1, salt_octets: 8, hash_octets: 32 }),
        }
        .encode(&mut payload);
        assert!(Answer::decode(&payload).is_err_and(|bad| bad == BadPacket::Value("SCRAM layout")));
    }

    #[test]
    fn changed_octets_never_panic() {
        let mut payloads = Vec::new();
        for question in questions() {
            payloads.push(Vec::new());
            question.encode(payloads.last_mut().unwrap());
        }
        for answer in answers() {
            payloads.push(Vec::new());
            answer.encode(payloads.last_mut().unwrap());
        }
        for payload in payloads {
            for at in 0..payload.len() {
                for value in [0, 1, 2, 4, 6, 0x7f, 0x80, 0xff] {
                    let mut changed = payload.clone();
                    changed[at] = value;
                    let _ = Question::decode(&changed);
                    let _ = Answer::decode(&changed);
                }
            }
        }
    }
}
