//! Our client against our session, in memory: what one says the other understands.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use ::base64 as base64_crate;
use ::sasl::{
    Effect as Asked, EffectKind, Event, Input, KeyKind, MechanismName, Proof, Secret, State, Status, Step, Traits, flag,
};
use base64_crate::Engine as _;
use base64_crate::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::host::{
    Allowance, Charge, Context, Effect, Host, Identity, Note, Outcome, Peer, Permission, Pools, RecipientOutcome,
    SaslOutcome, ScramLayout, SessionId, TlsFacts, Trouble,
};
use crate::listener::{Listener, Role, Tls};
use crate::{QueueId, Session, testing};

/// A mechanism of the server: PLAIN, LOGIN, CRAM-MD5 or SCRAM-SHA-256, as simple as can be.
struct Plain(MechanismName, Traits, Mutex<Scratch>);

#[derive(Default)]
struct Scratch {
    round: u8,
    kept: Vec<u8>,
    proof: Option<Proof>,
    keys: Vec<u8>,
}

const SALT: &[u8] = b"0123456789abcdef";
const CHALLENGE: &[u8] = b"<17.42@mx.example>";

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// StoredKey and ServerKey of `secret`, by the slow road of RFC 5802 §3.
fn scram_keys() -> Vec<u8> {
    let mut block = mac(b"secret", &[SALT, &[0, 0, 0, 1]].concat());
    let mut salted = block.clone();
    for _ in 1..4096 {
        block = mac(b"secret", &block);
        salted.iter_mut().zip(&block).for_each(|(sum, octet)| *sum ^= octet);
    }
    [Sha256::digest(mac(&salted, b"Client Key")).to_vec(), mac(&salted, b"Server Key")].concat()
}

fn mechanism(name: &str) -> Arc<dyn ::sasl::Mechanism> {
    let traits = Traits {
        flags: match name {
            "LOGIN" | "CRAM-MD5" => flag::SERVER_FIRST,
            "PLAIN" => flag::CLIENT_FIRST | flag::ALLOW_NUL | flag::PLAINTEXT,
            _ => flag::CLIENT_FIRST,
        },
        needs: 0,
        strength: 1,
        state_octets: 0,
        message_octets_max: 2048,
        output_octets_max: 1024,
        steps_max: 8,
        plus_of: None,
    };
    Arc::new(Plain(MechanismName::parse(name.as_bytes()).unwrap(), traits, Mutex::default()))
}

/// Puts `data` into the scratch and lends it out.
fn put<'a>(scratch: &'a mut [u8], data: &[u8]) -> &'a [u8] {
    scratch[..data.len()].copy_from_slice(data);
    &scratch[..data.len()]
}

const WRONG: Step<'static> = Step::Failure { class: ::sasl::FailureClass::Credentials, data: None, diagnosis: b"" };

impl ::sasl::Mechanism for Plain {
    fn name(&self) -> &MechanismName {
        &self.0
    }

    fn traits(&self) -> &Traits {
        &self.1
    }

    fn step<'a>(&'a self, _: &'a mut State, input: Input<'a>, scratch: &'a mut [u8]) -> Step<'a> {
        let mut own = self.2.lock().unwrap();
        if matches!(input.event, Event::Start { .. }) {
            *own = Scratch::default();
        }
        own.round += 1;
        match (self.0.as_str(), own.round, input.event) {
            ("PLAIN", 1, Event::Start { initial: false }) => {
                own.round = 0;
                Step::Challenge(b"")
            }
            ("PLAIN", 1, _) => {
                let mut parts = input.message.split(|&b| b == 0);
                let (authzid, authcid) = (parts.next().unwrap(), parts.next().unwrap());
                Step::Effect(Asked::VerifyPassword { authcid, authzid, password: parts.next().unwrap() })
            }
            ("LOGIN", 1, _) => Step::Challenge(b"User Name\0"),
            ("LOGIN", 2, _) => {
                own.kept = input.message.to_vec();
                Step::Challenge(b"Password\0")
            }
            ("LOGIN", 3, _) => {
                let authcid = put(scratch, &own.kept);
                Step::Effect(Asked::VerifyPassword { authcid, authzid: b"", password: input.message })
            }
            ("CRAM-MD5", 1, _) => Step::Challenge(CHALLENGE),
            ("CRAM-MD5", 2, _) => {
                let blank = input.message.iter().position(|&b| b == b' ').unwrap();
                own.kept = input.message[blank + 1..].to_vec();
                let authcid = &input.message[..blank];
                Step::Effect(Asked::FetchKey { kind: KeyKind::Cleartext, authcid, authzid: b"", realm: b"" })
            }
            ("CRAM-MD5", 3, Event::Outcome(outcome)) => {
                let mut mac = Hmac::<md5::Md5>::new_from_slice(outcome.data).unwrap();
                mac.update(CHALLENGE);
                let digest: String = mac.finalize().into_bytes().iter().map(|octet| format!("{octet:02x}")).collect();
                match own.kept == digest.as_bytes() {
                    true => Step::Success { proof: outcome.proof, data: None },
                    false => WRONG,
                }
            }
            ("SCRAM-SHA-256", 1, _) => {
                let text = std::str::from_utf8(input.message).unwrap();
                let bare = text.strip_prefix("n,,").unwrap();
                own.kept = bare.as_bytes().to_vec();
                let authcid = &bare["n=".len()..bare.find(',').unwrap()];
                let (kind, authcid) = (KeyKind::ScramSha256, put(scratch, authcid.as_bytes()));
                Step::Effect(Asked::FetchKey { kind, authcid, authzid: b"", realm: b"" })
            }
            ("SCRAM-SHA-256", 2, Event::Outcome(outcome)) => {
                let key = outcome.scram.unwrap();
                own.keys = [key.stored_key, key.server_key].concat();
                own.proof = Some(outcome.proof);
                let bare = String::from_utf8(own.kept.clone()).unwrap();
                let nonce = bare.split("r=").nth(1).unwrap();
                let first = format!("r={nonce}server,s={},i={}", STANDARD.encode(key.salt), key.iterations);
                own.kept = format!("{bare},{first}").into_bytes();
                Step::Challenge(put(scratch, first.as_bytes()))
            }
            ("SCRAM-SHA-256", 3, _) => {
                let text = std::str::from_utf8(input.message).unwrap();
                let (without_proof, proof) = text.split_once(",p=").unwrap();
                let auth_message = [&own.kept[..], b",", without_proof.as_bytes()].concat();
                let (stored, server) = own.keys.split_at(32);
                let signature = mac(stored, &auth_message);
                let proof = STANDARD.decode(proof).unwrap();
                let key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
                if Sha256::digest(key)[..] != *stored {
                    return WRONG;
                }
                let signature = format!("v={}", STANDARD.encode(mac(server, &auth_message)));
                Step::Success { proof: own.proof.unwrap(), data: Some(put(scratch, signature.as_bytes())) }
            }
            ("PLAIN" | "LOGIN", _, Event::Outcome(outcome)) if outcome.status == Status::Ok => {
                Step::Success { proof: outcome.proof, data: None }
            }
            _ => WRONG,
        }
    }
}

/// The server's surroundings: one user, and every message is kept.
#[derive(Default)]
struct World {
    octets: Vec<u8>,
    messages: Vec<(Envelope, Vec<u8>)>,
    logins: Vec<(String, u16)>,
}

impl Host for World {
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome> {
        Some(match effect {
            Effect::Sasl { effect, .. } => {
                let (status, data, scram) = match effect {
                    Asked::VerifyPassword { authcid: b"alice", password: b"secret", .. } => (Status::Ok, vec![], None),
                    Asked::FetchKey { kind: KeyKind::Cleartext, .. } => (Status::Ok, b"secret".to_vec(), None),
                    Asked::FetchKey { .. } => {
                        let layout = ScramLayout { iterations: 4096, salt_octets: SALT.len() as u16, hash_octets: 32 };
                        (Status::Ok, [SALT, &scram_keys()].concat(), Some(layout))
                    }
                    _ => (Status::Denied, vec![], None),
                };
                assert_ne!(effect.kind(), EffectKind::BackendCall);
                let identity = Identity {
                    name: "alice".into(),
                    senders: Box::new(["*".into()]),
                    message_octets_max: None,
                    recipients_max: None,
                    epoch: 0,
                };
                Outcome::Sasl(SaslOutcome {
                    status,
                    doomed: false,
                    identity: Some(Arc::new(identity)),
                    data: Secret::new(data),
                    scram,
                    account: Default::default(),
                })
            }
            Effect::Asserted { .. } => unreachable!("no mechanism here asserts anything"),
            Effect::Recipient { .. } => Outcome::Recipient(RecipientOutcome::Unknown),
            Effect::Sender { .. } => Outcome::Sender(Permission::Granted),
            Effect::Commit { envelope, .. } => {
                self.messages.push((envelope.clone(), std::mem::take(&mut self.octets)));
                Outcome::Commit(Ok(()))
            }
            Effect::Delay { .. } => Outcome::Elapsed,
        })
    }

    fn begin_message(&mut self, _: Option<u64>) -> Result<QueueId, Trouble> {
        self.octets.clear();
        Ok(QueueId(1))
    }

    fn write(&mut self, octets: &[u8]) -> usize {
        self.octets.extend_from_slice(octets);
        octets.len()
    }

    fn abort_message(&mut self) {
        self.octets.clear();
    }

    fn charge(&mut self, _: Charge<'_>) -> Allowance {
        Allowance::Permit
    }

    fn entropy(&mut self) -> [u8; 64] {
        [0; 64]
    }

    fn note(&mut self, note: Note<'_>) {
        if let Note::Login { mechanism, code, .. } = note {
            self.logins.push((mechanism.to_owned(), code));
        }
    }
}

/// Both ends of a connection.
struct Pair {
    driver: Driver,
    listener: Listener,
    session: Session,
    world: World,
    tls: Option<TlsFacts>,
    pools: Pools,
    /// Everything that the client said.
    said: String,
    /// Everything that the server said.
    heard: Vec<u8>,
}

impl Pair {
    fn new(settings: Arc<Settings>, listener: Listener, mails: &[Mail], piece: usize) -> Self {
        let driver = Driver::new(settings, Channel::Clear, mails, piece);
        let (world, pools) = (World::default(), Pools::default());
        let mut pair = Self {
            driver,
            listener,
            session: Session::new(),
            world,
            tls: None,
            pools,
            said: String::new(),
            heard: Vec::new(),
        };
        pair.server(|session, cx| session.greet(cx));
        pair
    }

    /// Calls the session; returns what it said.
    fn server<T>(&mut self, call: impl FnOnce(&mut Session, &mut Context<'_>) -> T) -> T {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        call(
            &mut self.session,
            &mut Context {
                listener: &self.listener,
                peer: &Peer { ip, port: 1, exempt: false, cleartext_auth: false },
                tls: self.tls.as_ref(),
                session: SessionId(1),
                now_ms: 0,
                unix_ms: 0,
                out: &mut self.heard,
                pools: &mut self.pools,
                host: &mut self.world,
            },
        )
    }

    /// Until both have nothing to say. Octets travel in pieces of `step`, both ways.
    fn run(mut self, step: usize) -> Self {
        let mut pending = Vec::new();
        for _ in 0..100_000 {
            let heard = std::mem::take(&mut self.heard);
            heard.chunks(step).for_each(|piece| self.driver.hear(piece));
            let said = std::mem::take(&mut self.driver.said);
            if said.is_empty() && self.driver.closed {
                self.server(|session, cx| session.end(cx));
                return self;
            }
            assert!(!(said.is_empty() && heard.is_empty()), "both wait; the client said {}", self.said);
            self.said += &String::from_utf8_lossy(&said);
            let (said, handshake) = match said.strip_suffix(b"<TLS>\r\nEHLO c.example\r\n") {
                Some(before) => (before.to_vec(), true),
                None => (said, false),
            };
            for piece in said.chunks(step) {
                pending.extend_from_slice(piece);
                let (used, _) = self.server(|session, cx| session.receive(&pending, cx));
                pending.drain(..used);
            }
            if handshake {
                self.tls = Some(TlsFacts {
                    version: 0x0304,
                    cipher: "TLS_AES_128_GCM_SHA256",
                    group: "",
                    sni: "".into(),
                    client_certificate: false,
                    resumed: false,
                    channel_bindings: 0,
                });
                self.server(|session, cx| session.tls_started(cx));
                pending = b"EHLO c.example\r\n".to_vec();
                let (used, _) = self.server(|session, cx| session.receive(&pending, cx));
                pending.drain(..used);
            }
        }
        panic!("no end; the client said {}", self.said);
    }
}

fn bodies() -> Vec<Vec<u8>> {
    vec![
        b"".to_vec(),
        b".\r\n".to_vec(),
        b"Subject: x\r\n\r\n..\r\n.\r\n\r\n.x\r\n".to_vec(),
        b"no end of line".to_vec(),
        [&b"Subject: large\r\n\r\n"[..], &b".all lines begin with a dot\r\n".repeat(4000)].concat(),
    ]
}

#[test]
fn every_way_of_sending() {
    let mails: Vec<Mail> = bodies().into_iter().map(|body| mail(TWO).tuned(|mail| mail.body = body)).collect();
    for number in 0..24u8 {
        let (group, chunks, offered) = (number & 1 != 0, number & 2 != 0, number & 4 != 0);
        let step = [1usize << 20, 1000, 97][usize::from(number >> 3)];
        let pick = |yes| if yes { Use::IfOffered } else { Use::Never };
        let settings = settings(|settings| {
            (settings.pipelining, settings.chunking) = (pick(group), pick(chunks));
            settings.starttls = StartTls::Never;
        });
        let listener = Listener { chunking: offered, ..testing::listener(Role::Mx) };
        let pair = Pair::new(settings, listener, &mails, step).run(step);
        assert_eq!(pair.driver.failure(), "");
        assert_eq!(pair.driver.results, vec!["taken 250 Ok: queued as 00000000000000000000000001"; 10], "{number}");
        assert_eq!(pair.said.contains("BDAT"), chunks && offered);
        for (sent, (envelope, body)) in mails.iter().zip(&pair.world.messages) {
            let mut expect = sent.body.clone();
            if !(chunks && offered || expect.is_empty() || expect.ends_with(b"\r\n")) {
                expect.extend_from_slice(b"\r\n");
            }
            assert!(*body == expect, "{number}: {} octets became {}", expect.len(), body.len());
            assert_eq!(envelope.recipients().map(|to| to.address.to_owned()).collect::<Vec<_>>(), TWO);
            assert_eq!((envelope.reverse_path(), envelope.size), (Some("a@c.example"), Some(sent.body.len() as u64)));
        }
        assert_eq!(pair.world.messages.len(), mails.len());
    }
}

#[test]
fn parameters_arrive() {
    let sent = mail(&["jörg@bücher.example", "postmaster"]).tuned(|mail| {
        mail.envelope.set_envid("id+2B1");
        mail.envelope.ret = Some(Ret::Full);
        mail.envelope.body = Body::EightBitMime;
        mail.notify = Notify(Notify::FAILURE.0 | Notify::DELAY.0);
        mail.orcpt = Some("utf-8;jörg@bücher.example");
    });
    let settings = settings(|settings| settings.starttls = StartTls::Never);
    let pair = Pair::new(settings, testing::listener(Role::Mx), std::slice::from_ref(&sent), 10).run(7);
    assert_eq!(pair.driver.failure(), "");
    let (envelope, body) = &pair.world.messages[0];
    assert_eq!((envelope.envid(), envelope.ret, envelope.body), (Some("id+2B1"), Some(Ret::Full), Body::EightBitMime));
    assert!(envelope.smtputf8 && *body == sent.body);
    for (to, address) in envelope.recipients().zip(&sent.to) {
        assert_eq!((to.address, to.notify, to.orcpt), (*address, sent.notify, sent.orcpt));
    }
    // Where it is not offered, only the recipient that needs it fails.
    let listener = Listener { smtputf8: false, ..testing::listener(Role::Mx) };
    let plain = sent.tuned(|mail| mail.orcpt = None);
    let settings = self::settings(|settings| settings.starttls = StartTls::Never);
    let pair = Pair::new(settings, listener, &[plain], 10).run(7);
    assert!(pair.driver.results[0].starts_with("Permanent 5.6.7"), "{:?}", pair.driver.results);
    assert!(pair.driver.results[1].starts_with("taken"), "{:?}", pair.driver.results);
}

#[test]
fn logging_in() {
    for name in ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"] {
        for (password, code) in [("secret", 235), ("wrong", 535)] {
            for step in [1, 50, 10_000] {
                let settings = settings(|settings| {
                    let credentials = Credentials::new("alice", "", password).unwrap();
                    settings.login = Some(Login::new(Arc::new(credentials)));
                    settings.starttls = StartTls::Required;
                });
                let listener = Listener {
                    mechanisms: vec![mechanism(name)],
                    require_tls: true,
                    require_auth: true,
                    ..testing::listener(Role::Submission)
                };
                let from = mail(TWO).tuned(|mail| mail.body = b"From: <a@c.example>\r\n\r\nx\r\n".to_vec());
                let pair = Pair::new(settings, listener, &[from], 100).run(step);
                assert_eq!(pair.world.logins, [(name.to_owned(), code)], "{name} {password}");
                match code {
                    235 => {
                        assert_eq!(pair.driver.failure(), "", "{name}");
                        assert_eq!(pair.world.messages.len(), 1, "{name}: {:?}", pair.driver.results);
                    }
                    _ => {
                        let refused = "Permanent 5.7.8 AUTH: 535 5.7.8 Authentication credentials invalid";
                        assert_eq!((pair.driver.failure().as_str(), pair.world.messages.len()), (refused, 0), "{name}");
                    }
                }
                assert!(!pair.said.contains("secret") && pair.driver.client.channel() == Channel::Tls);
            }
        }
    }
}

#[test]
fn tls_that_is_not_there() {
    let listener = Listener { tls: Tls::Off, ..testing::listener(Role::Mx) };
    let settings = settings(|settings| settings.starttls = StartTls::Required);
    let pair = Pair::new(settings, listener, &[mail(TWO)], 10).run(10);
    assert_eq!(pair.driver.failure(), "Temporary 4.7.4 STARTTLS: 4.7.4 peer does not offer STARTTLS");
    assert_eq!(pair.said, "EHLO c.example\r\nQUIT\r\n");
    assert!(pair.world.messages.is_empty());
}
