//! Clients, libraries and somebody between them: an exchange succeeds with the right credentials and nothing
//! altered on the way, and never otherwise.
//!
//! Seeded: `SEED=7 EXCHANGES=1000000 cargo test -p plugin-host --test tampering` runs longer, and a failure
//! names the seed of its exchange.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::client::{self, Digest5, Hash, ScramKeys};
use common::{Answer, Exchange, bundled, load, name};
use plugin_host::Registry;
use sasl::{EffectKind, FailureClass, Mechanism, Status};

const SCRAM: [&str; 6] =
    ["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-512-PLUS"];
const OTHERS: [&str; 7] = ["CRAM-MD5", "DIGEST-MD5", "OAUTHBEARER", "XOAUTH2", "EXTERNAL", "PLAIN", "LOGIN"];

const USER: &str = "we,ird=user";
const PASSWORD: &str = "p\u{e4}ss";
const TOKEN: &str = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==";
const REALM: &str = "mail.example.com";
const SALT: &[u8] = b"sixteen octets ..";

fn library() -> Registry {
    let mut registry = Registry::new();
    load(&mut registry, "standard", &bundled("standard")).unwrap();
    load(&mut registry, "legacy", &bundled("legacy")).unwrap();
    registry
}

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// What is not as it should be, beside what happens on the way.
#[derive(Clone, Copy, Debug, Default)]
struct World {
    /// The client has another password or token than the store.
    wrong_secret: bool,
    /// The store has no such user: the host hands out a decoy, which nobody knows a password for.
    ghost: bool,
    /// Client and server see different TLS connections.
    other_connection: bool,
    /// The client did not see the -PLUS mechanism that was offered (`y`).
    downgrade: bool,
}

/// Whoever is between client and server.
struct Wire<'a> {
    tamper: &'a mut dyn FnMut(&mut Vec<u8>),
    harm: Harm,
}

/// What was done on the way.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Harm {
    None,
    /// Other octets that mean the same, such as one more space: may succeed, need not.
    Form,
    Meaning,
}

impl Wire<'_> {
    fn carry(&mut self, octets: &[u8], same: fn(&[u8], &[u8]) -> bool) -> Vec<u8> {
        let mut carried = octets.to_vec();
        (self.tamper)(&mut carried);
        let harm = match carried == octets {
            true => Harm::None,
            false if same(octets, &carried) => Harm::Form,
            false => Harm::Meaning,
        };
        if harm > self.harm {
            self.harm = harm;
        }
        carried
    }
}

fn exactly(_: &[u8], _: &[u8]) -> bool {
    false
}

#[derive(Debug, PartialEq)]
enum End {
    /// For the host the login is good, and for the client the server is who it should be.
    Success,
    /// The client did not like what it got.
    ClientGaveUp,
    Failure(FailureClass),
}

/// One exchange. Whether it may succeed is for the caller to say.
fn play(mechanism: &Arc<dyn Mechanism>, world: World, wire: &mut Wire<'_>) -> End {
    let mut exchange = Exchange::new(mechanism);
    let secret = if world.wrong_secret { "other" } else { PASSWORD };
    match mechanism.name().as_str() {
        "CRAM-MD5" => cram_md5(&mut exchange, secret, world, wire),
        "DIGEST-MD5" => digest_md5(&mut exchange, secret, world, wire),
        "PLAIN" => {
            let message = format!("\0{USER}\0{secret}");
            let answer = exchange.start(Some(&wire.carry(message.as_bytes(), exactly)));
            verify(&mut exchange, answer, world)
        }
        "LOGIN" => {
            exchange.start(None);
            let prompted = exchange.message(&wire.carry(USER.as_bytes(), exactly));
            if !matches!(prompted, Answer::Challenge(_)) {
                return failure(prompted);
            }
            let answer = exchange.message(&wire.carry(secret.as_bytes(), exactly));
            verify(&mut exchange, answer, world)
        }
        "OAUTHBEARER" => {
            let token = if world.wrong_secret { "b3RoZXI=" } else { TOKEN };
            let message =
                format!("n,a=we=2Cird=3Duser,\x01host=mail.example.com\x01port=587\x01auth=Bearer {token}\x01\x01");
            let answer = exchange.start(Some(&wire.carry(message.as_bytes(), same_fields)));
            verify(&mut exchange, answer, world)
        }
        "XOAUTH2" => {
            let token = if world.wrong_secret { "b3RoZXI=" } else { TOKEN };
            let message = format!("user={USER}\x01auth=Bearer {token}\x01\x01");
            let answer = exchange.start(Some(&wire.carry(message.as_bytes(), same_fields)));
            verify(&mut exchange, answer, world)
        }
        "EXTERNAL" => {
            let answer = exchange.start(Some(&wire.carry(USER.as_bytes(), exactly)));
            verify(&mut exchange, answer, world)
        }
        scram => self::scram(scram, &mut exchange, secret, world, wire),
    }
}

fn failure(answer: Answer) -> End {
    match answer {
        Answer::Failure(class, _) => End::Failure(class),
        other => panic!("neither success nor failure: {other:?}"),
    }
}

/// The host's part where it checks the secret: the effect must say exactly what the client meant.
fn verify(exchange: &mut Exchange, answer: Answer, world: World) -> End {
    let right = match &answer {
        Answer::Effect(EffectKind::VerifyPassword, authcid, authzid, password) => {
            authcid == USER.as_bytes() && authzid.is_empty() && password == PASSWORD.as_bytes()
        }
        Answer::Effect(EffectKind::VerifyToken, fields, authzid, token) => {
            let fields_right = fields.is_empty() || fields == b"host=mail.example.com\x01port=587";
            let needs_fields = exchange.mechanism().name().as_str() == "OAUTHBEARER";
            let fields_right = fields_right && fields.is_empty() != needs_fields;
            token == TOKEN.as_bytes() && authzid == USER.as_bytes() && fields_right
        }
        Answer::Effect(EffectKind::VerifyExternal, _, authzid, _) => !world.wrong_secret && authzid == USER.as_bytes(),
        _ => return failure(answer),
    };
    let status = if right && !world.ghost { Status::Ok } else { Status::Denied };
    match exchange.outcome(status, b"{}") {
        Answer::Success(..) => {
            assert_eq!(status, Status::Ok, "success without a proof");
            End::Success
        }
        other => failure(other),
    }
}

fn cram_md5(exchange: &mut Exchange, secret: &str, world: World, wire: &mut Wire<'_>) -> End {
    let Answer::Challenge(challenge) = exchange.start(None) else { panic!("no challenge") };
    let challenge = wire.carry(&challenge, exactly);
    let response = format!("{USER} {}", client::cram_md5(secret.as_bytes(), &challenge));
    let answer = exchange.message(&wire.carry(response.as_bytes(), |sent, got| {
        // Clients may write the digest in upper case, so that is no alteration.
        let digits = |text: &[u8]| text.iter().rposition(|octet| *octet == b' ').map(|at| at + 1);
        digits(got) == digits(sent)
            && digits(sent).is_some_and(|at| sent[..at] == got[..at] && sent[at..].eq_ignore_ascii_case(&got[at..]))
    }));
    let Answer::Effect(EffectKind::FetchKey, authcid, ..) = &answer else { return failure(answer) };
    let known = authcid == USER.as_bytes() && !world.ghost;
    let context = if known { context_of_password() } else { vec![7; 32] };
    match exchange.outcome(Status::Ok, &context) {
        Answer::Success(..) => {
            assert!(known, "success with a decoy");
            End::Success
        }
        other => failure(other),
    }
}

/// HMAC-MD5's outer and inner state for [`PASSWORD`].
fn context_of_password() -> Vec<u8> {
    use md5::Digest as _;
    use md5::digest::common::hazmat::SerializableState as _;
    let state = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(PASSWORD.as_bytes()).for_each(|(to, from)| *to ^= from);
        md5::Md5::new_with_prefix(block).serialize()[..16].to_vec()
    };
    [state(0x5c), state(0x36)].concat()
}

fn digest_md5(exchange: &mut Exchange, secret: &str, world: World, wire: &mut Wire<'_>) -> End {
    let Answer::Challenge(challenge) = exchange.start(None) else { panic!("no challenge") };
    let challenge = wire.carry(&challenge, same_challenge);
    let Some(directives) = directives(&challenge) else { return End::ClientGaveUp };
    let (Some(nonce), Some(realm)) = (directives.get("nonce"), directives.get("realm")) else {
        return End::ClientGaveUp;
    };
    // Both are in the digest as they arrived.
    let ha1 = Digest5::ha1(USER, realm, secret);
    let digest = Digest5 { ha1, nonce, cnonce: "Y2xpZW50", uri: "smtp/mail.example.com", authzid: "" };
    let response = format!(
        "charset=utf-8,username=\"{USER}\",realm=\"{realm}\",nonce=\"{nonce}\",nc=00000001,cnonce=\"Y2xpZW50\",\
         digest-uri=\"smtp/mail.example.com\",response={},qop=auth",
        digest.value("AUTHENTICATE")
    );
    let answer = exchange.message(&wire.carry(response.as_bytes(), |sent, got| {
        let got = directives_of_response(got);
        got.is_some() && got == directives_of_response(sent)
    }));
    let Answer::Effect(EffectKind::FetchKey, authcid, authzid, realm) = &answer else { return failure(answer) };
    let known = authcid == USER.as_bytes() && authzid.is_empty() && realm == REALM.as_bytes() && !world.ghost;
    let ha1 = if known { Digest5::ha1(USER, REALM, PASSWORD) } else { vec![7; 16] };
    match exchange.outcome(Status::Ok, &ha1) {
        Answer::Success(_, last) => {
            assert!(known, "success with a decoy");
            let last = wire.carry(&last.unwrap(), exactly);
            if last == format!("rspauth={}", digest.value("")).as_bytes() { End::Success } else { End::ClientGaveUp }
        }
        other => failure(other),
    }
}

/// What a list of directives says, whatever white space and quoting it has.
fn directives(mut list: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    loop {
        while let [b' ' | b'\t' | b',', rest @ ..] | [b'\r', b'\n', b' ' | b'\t', rest @ ..] = list {
            list = rest;
        }
        if list.is_empty() {
            return Some(all);
        }
        let equals = list.iter().position(|octet| *octet == b'=')?;
        let name = String::from_utf8(list[..equals].to_vec()).ok()?.trim().to_owned();
        list = list[equals + 1..].trim_ascii_start();
        let mut value = Vec::new();
        if let [b'"', rest @ ..] = list {
            list = rest;
            loop {
                match list {
                    [b'"', rest @ ..] => break list = rest,
                    [b'\\', octet, rest @ ..] | [octet, rest @ ..] => {
                        value.push(*octet);
                        list = rest;
                    }
                    [] => return None,
                }
            }
        } else {
            let end = list.iter().position(|octet| *octet == b',').unwrap_or(list.len());
            value = list[..end].trim_ascii_end().to_vec();
            list = &list[end..];
        }
        if all.insert(name, String::from_utf8(value).ok()?).is_some() {
            return None;
        }
    }
}

/// Only nonce and realm of the challenge decide anything for our client.
fn same_challenge(sent: &[u8], got: &[u8]) -> bool {
    let decisive = |list| {
        directives(list).map(|mut all| {
            all.retain(|name, _| name == "nonce" || name == "realm");
            all
        })
    };
    decisive(got).is_some_and(|got| Some(got) == decisive(sent))
}

/// `qop=auth` is what is meant without it; charset makes no difference to names in ASCII; the others are
/// ignored. digest-uri is compared without regard to case, but signed as it is.
fn directives_of_response(list: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut all = directives(list)?;
    all.retain(|name, value| match (name.as_str(), value.as_str()) {
        ("maxbuf" | "cipher" | "algorithm" | "opaque", _) => false,
        ("qop", value) => value != "auth",
        ("charset", value) => value != "utf-8",
        _ => true,
    });
    Some(all)
}

/// The scheme in another case, more spaces before the token, and fields that a server must ignore are no
/// alteration of what is asked.
fn same_fields(sent: &[u8], got: &[u8]) -> bool {
    let decisive = |message: &[u8]| {
        let fields = message.split(|octet| *octet == 1).map(<[u8]>::to_vec);
        let mut fields: Vec<_> = fields.collect();
        for field in &mut fields {
            if let Some(token) = field.strip_prefix(b"auth=").and_then(|auth| auth.split_at_checked(6)) {
                if token.0.eq_ignore_ascii_case(b"bearer") && token.1.starts_with(b" ") {
                    *field = [b"auth=Bearer ", token.1.trim_ascii_start()].concat();
                }
            } else if field.starts_with(b"host=") {
                field.make_ascii_lowercase();
            }
        }
        fields
    };
    let mut got = decisive(got);
    // `y` is as good as `n` where there is no -PLUS.
    if let Some(header) = got.first_mut()
        && header.starts_with(b"y,")
    {
        header[0] = b'n';
    }
    let known = |field: &Vec<u8>| {
        field.split(|octet| *octet == b'=').next().is_some_and(|key| {
            key.is_empty() || [&b"auth"[..], b"host", b"port", b"user"].contains(&key) || key.starts_with(b"n,")
        })
    };
    got.retain(known);
    got == decisive(sent)
}

fn scram(mechanism: &str, exchange: &mut Exchange, secret: &str, world: World, wire: &mut Wire<'_>) -> End {
    let hash = Hash::of(mechanism);
    let plus = mechanism.ends_with("-PLUS");
    let (binding, seen) = ([0x0b; 32], if world.other_connection { [0x0c; 32] } else { [0x0b; 32] });
    exchange.channel_bindings = 0b010;
    exchange.plus_offered = world.downgrade;
    let flag = match (plus, world.downgrade) {
        (true, _) => "p=tls-exporter",
        (false, true) => "y",
        (false, false) => "n",
    };
    let first = format!("{flag},,n=we=2Cird=3Duser,r=rOprNGfwEbeRWgbNEkqO");
    let mut answer = exchange.start(Some(&wire.carry(first.as_bytes(), exactly)));
    let mut bound = false;
    if let Answer::Effect(EffectKind::ChannelBinding, ..) = answer {
        bound = true;
        answer = exchange.outcome(Status::Ok, &binding);
    }
    let Answer::Effect(EffectKind::FetchKey, authcid, ..) = &answer else { return failure(answer) };
    let known = authcid == USER.as_bytes() && !world.ghost;
    let stored = ScramKeys::new(hash, PASSWORD.as_bytes(), SALT, 2);
    let decoy = ScramKeys::new(hash, b"nobody's", SALT, 2);
    let Answer::Challenge(challenge) = exchange.scram(if known { stored.stored() } else { decoy.stored() }) else {
        panic!("no challenge")
    };
    let Ok(challenge) = String::from_utf8(wire.carry(&challenge, exactly)) else { return End::ClientGaveUp };
    let Some((salt, iterations)) = client::scram_challenge(&challenge, "rOprNGfwEbeRWgbNEkqO") else {
        return End::ClientGaveUp;
    };
    if !(1..100).contains(&iterations) {
        return End::ClientGaveUp;
    }
    let keys = ScramKeys::new(hash, secret.as_bytes(), &salt, iterations);
    let (last, verifier) = keys.finish(&first, &challenge, if plus { &seen } else { b"" }, "");
    match exchange.message(&wire.carry(last.as_bytes(), exactly)) {
        Answer::Success(_, last) => {
            assert!(known, "success with a decoy");
            assert_eq!(bound, plus, "a -PLUS mechanism that asked for no binding");
            let last = wire.carry(&last.unwrap(), exactly);
            if last == verifier.as_bytes() { End::Success } else { End::ClientGaveUp }
        }
        other => failure(other),
    }
}

/// Whether nothing but the wire stands in the way.
fn should_succeed(mechanism: &str, world: World) -> bool {
    let scram = mechanism.starts_with("SCRAM");
    let hindered = match mechanism.ends_with("-PLUS") {
        true => world.other_connection,
        false => scram && world.downgrade,
    };
    !(world.wrong_secret || world.ghost || hindered)
}

fn honest(mechanism: &Arc<dyn Mechanism>, world: World) -> End {
    play(mechanism, world, &mut Wire { tamper: &mut |_| {}, harm: Harm::None })
}

#[test]
fn right_credentials_and_nothing_altered() {
    let registry = library();
    for mechanism_name in SCRAM.iter().chain(&OTHERS) {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        assert_eq!(honest(&mechanism, World::default()), End::Success, "{mechanism_name}");
        for world in [
            World { wrong_secret: true, ..World::default() },
            World { ghost: true, ..World::default() },
            World { other_connection: true, ..World::default() },
            World { downgrade: true, ..World::default() },
        ] {
            let expected = should_succeed(mechanism_name, world);
            assert_eq!(honest(&mechanism, world) == End::Success, expected, "{mechanism_name} {world:?}");
        }
    }
}

/// A ghost and a wrong password are told the same; a man in the middle is known for what he is.
#[test]
fn failures_have_their_class() {
    let registry = library();
    for mechanism_name in SCRAM {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        let plus = mechanism_name.ends_with("-PLUS");
        let class = |world| honest(&mechanism, world);
        assert_eq!(
            class(World { wrong_secret: true, ..World::default() }),
            class(World { ghost: true, ..World::default() })
        );
        let world = World { other_connection: true, downgrade: !plus, ..World::default() };
        assert_eq!(class(world), End::Failure(FailureClass::ChannelBinding), "{mechanism_name}");
    }
}

/// Each message cut after each octet, and each of its bits turned.
#[test]
fn every_bit_and_every_end_of_every_message() {
    let registry = library();
    for mechanism_name in SCRAM.iter().chain(&OTHERS) {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        let mut lengths = Vec::new();
        let mut measure = |message: &mut Vec<u8>| lengths.push(message.len());
        play(&mechanism, World::default(), &mut Wire { tamper: &mut measure, harm: Harm::None });
        for (stage, length) in lengths.into_iter().enumerate() {
            for bit in 0..8 * length {
                let flip = |message: &mut Vec<u8>| message[bit / 8] ^= 1 << (bit % 8);
                attack(&mechanism, stage, &flip, &format!("bit {bit} of message {stage}"));
            }
            for end in 0..length {
                let cut = |message: &mut Vec<u8>| message.truncate(end);
                attack(&mechanism, stage, &cut, &format!("message {stage} cut after {end}"));
            }
            attack(&mechanism, stage, &|message| message.extend(b"x"), &format!("message {stage} longer"));
            let twice = |message: &mut Vec<u8>| message.extend(message.clone());
            attack(&mechanism, stage, &twice, &format!("message {stage} twice"));
            attack(&mechanism, stage, &|message| message.resize(20_000, b'x'), &format!("message {stage} huge"));
        }
    }
}

fn attack(mechanism: &Arc<dyn Mechanism>, stage: usize, change: &dyn Fn(&mut Vec<u8>), what: &str) {
    let mut at = 0;
    let mut tamper = |message: &mut Vec<u8>| {
        if at == stage {
            change(message);
        }
        at += 1;
    };
    let mut wire = Wire { tamper: &mut tamper, harm: Harm::None };
    let end = play(mechanism, World::default(), &mut wire);
    judge(mechanism, World::default(), wire.harm, &end, what);
}

fn judge(mechanism: &Arc<dyn Mechanism>, world: World, harm: Harm, end: &End, what: &str) {
    let mechanism = mechanism.name().as_str();
    let right = should_succeed(mechanism, world);
    let allowed = match harm {
        Harm::None => (*end == End::Success) == right,
        Harm::Form => *end != End::Success || right,
        Harm::Meaning => *end != End::Success,
    };
    assert!(allowed, "{mechanism}, {what}: {world:?}, {harm:?}, {end:?}");
    assert_ne!(
        *end,
        End::Failure(FailureClass::Internal),
        "{mechanism}, {what}: what a peer sends is no fault of ours"
    );
    assert_ne!(*end, End::Failure(FailureClass::Temporary), "{mechanism}, {what}: nothing would be better later");
}

/// Pieces that grammars are made of.
const PIECES: [&[u8]; 28] = [
    b",",
    b"=",
    b"=2C",
    b"=3D",
    b"=2c",
    b"\0",
    b"\x01",
    b"\"",
    b"\\",
    b" ",
    b"n,,",
    b"y,,",
    b"p=tls-exporter,,",
    b"a=admin",
    b",m=x",
    b",x=y",
    b",p=",
    b"c=biws",
    b"r=",
    b"auth=Bearer ",
    b"authzid=\"admin\"",
    b"qop=auth-int",
    b"\xff",
    b"\xc3\xa4",
    b"\r\n",
    b"@",
    b"00000002",
    b"{",
];

fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(message.len() + 1);
        match random.below(8) {
            0 | 1 if at < message.len() => message[at] ^= 1 << random.below(8),
            2 if at < message.len() => message[at] = random.next() as u8,
            3 if at < message.len() => drop(message.remove(at)),
            4 => message.truncate(at),
            5 => {
                let from = random.below(message.len() + 1);
                let piece = message[from..(from + random.below(40)).min(message.len())].to_vec();
                message.splice(at..at, piece);
            }
            6 => drop(message.drain(at..(at + random.below(12)).min(message.len()))),
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                message.splice(at..at, piece.iter().copied());
            }
        }
    }
}

#[test]
fn seeded_fuzz() {
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    let (seed, exchanges) = (number("SEED").unwrap_or(1), number("EXCHANGES").unwrap_or(6_000));
    let registry = library();
    for mechanism_name in SCRAM.iter().chain(&OTHERS) {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        let mut successes = 0;
        for seed in seed..seed + exchanges {
            let mut random = Random(seed);
            let world = World {
                wrong_secret: random.one_in(8),
                ghost: random.one_in(8),
                other_connection: random.one_in(8),
                downgrade: random.one_in(8),
            };
            let mut tamper = |message: &mut Vec<u8>| {
                if random.one_in(3) {
                    mutate(message, &mut random);
                }
            };
            let mut wire = Wire { tamper: &mut tamper, harm: Harm::None };
            let end = play(&mechanism, world, &mut wire);
            judge(&mechanism, world, wire.harm, &end, &format!("SEED={seed}"));
            successes += u64::from(end == End::Success);
        }
        // The fuzz must see both sides of the oracle.
        assert!(successes > exchanges / 50 && successes < exchanges / 10 * 9, "{mechanism_name}: {successes}");
    }
}

/// Keys as no store should have them: a fault of the host's, not a way in.
#[test]
fn damaged_keys() {
    let registry = library();
    for mechanism_name in &SCRAM[..3] {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        let good = ScramKeys::new(Hash::of(mechanism_name), PASSWORD.as_bytes(), SALT, 2);
        let octets = good.stored_key.len();
        let first = "n,,n=user,r=abc";
        for change in 0..octets {
            let mut exchange = Exchange::new(&mechanism);
            exchange.start(Some(first.as_bytes()));
            let mut stored_key = good.stored_key.clone();
            stored_key[change] ^= 1;
            let keys = ScramKeys { stored_key, ..ScramKeys::new(good.hash, PASSWORD.as_bytes(), SALT, 2) };
            let Answer::Challenge(challenge) = exchange.scram(keys.stored()) else { panic!() };
            let (last, _) = good.finish(first, std::str::from_utf8(&challenge).unwrap(), b"", "");
            let answer = exchange.message(last.as_bytes());
            assert!(matches!(answer, Answer::Failure(FailureClass::Credentials, _)), "{answer:?}");
        }
        for length in (0..octets).chain(octets + 1..octets + 70) {
            let mut exchange = Exchange::new(&mechanism);
            exchange.start(Some(first.as_bytes()));
            let stored_key = vec![0; length];
            let answer = exchange.scram(sasl::ScramKey { stored_key: &stored_key, ..good.stored() });
            assert!(matches!(answer, Answer::Failure(FailureClass::Internal, _)), "{length}: {answer:?}");
        }
    }
}

/// A server's nonce is never the same twice: each of the host's random octets that it is made of counts.
#[test]
fn nonces_follow_entropy() {
    let registry = library();
    for (mechanism_name, random_octets) in [("SCRAM-SHA-256", 18), ("CRAM-MD5", 20), ("DIGEST-MD5", 16)] {
        let mechanism = registry.mechanism(&name(mechanism_name), "").unwrap();
        let keys = ScramKeys::new(Hash::Sha256, b"", SALT, 1);
        let challenge = |entropy: [u8; 64]| {
            let mut exchange = Exchange::new(&mechanism);
            exchange.entropy = entropy;
            let answer = match mechanism_name {
                "SCRAM-SHA-256" => {
                    exchange.start(Some(b"n,,n=user,r=abc"));
                    exchange.scram(keys.stored())
                }
                _ => exchange.start(None),
            };
            let Answer::Challenge(challenge) = answer else { panic!("{answer:?}") };
            challenge
        };
        let first = challenge([0; 64]);
        for at in 0..random_octets {
            let mut entropy = [0; 64];
            entropy[at] = 1;
            assert_ne!(challenge(entropy), first, "{mechanism_name}: octet {at} decides nothing");
        }
    }
}

/// ANONYMOUS proves nothing, so nothing can be altered that mattered: whatever comes, it names no proof, asks for
/// nothing, and takes only what is text (RFC 4505 §2).
#[test]
fn anonymous_never_names_a_proof() {
    let registry = library();
    let mechanism = registry.mechanism(&name("ANONYMOUS"), "").unwrap();
    let mut random = Random(7);
    let mut taken = 0;
    for _ in 0..20_000 {
        let pieces: [&[u8]; 12] = [
            b"sirhc",
            b"@",
            b"example",
            "\u{1f600}".as_bytes(),
            b"\0",
            b"\r\n",
            b"\xff",
            b" ",
            b"\xe2\x80\x8f",
            b"\x7f",
            &[b'x'; 200],
            b"",
        ];
        let message: Vec<u8> = (0..random.below(4)).flat_map(|_| pieces[random.below(12)].to_vec()).collect();
        let text = std::str::from_utf8(&message);
        let is_text = text.is_ok_and(|text| {
            let halves = text.rsplit_once('@').is_none_or(|(local, domain)| !local.is_empty() && !domain.is_empty());
            halves && text.chars().count() <= 255 && !text.contains(|c: char| c.is_control() || c == '\u{200f}')
        });
        match Exchange::new(&mechanism).start(Some(&message)) {
            Answer::Success(proof, data) => {
                assert!(is_text && proof.0 == 0 && data.is_none(), "{message:?}");
                taken += 1;
            }
            Answer::Failure(FailureClass::Malformed, _) => assert!(!is_text, "{message:?}"),
            other => panic!("{message:?}: {other:?}"),
        }
    }
    assert!(taken > 1000, "{taken}");
}
