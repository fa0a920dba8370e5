//! A step allocates nothing, neither in the library nor in the adapter around it, nor on its way through a
//! mechanism-host: a preloaded counter sees every `malloc` of the process, and 20,000 exchanges cost as many as none.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, Engine};
use common::client::{Digest5, Hash, ScramKeys};
use common::{bundled, compile, load, name, probe};
use link::mechanism::{self as wire, ANSWER, FINISH, STEP};
use link::{Link, Outbox, Received, frames};
use plugin_host::{Host, Pool, Registry, Watch};
use sasl::{EffectKind, Event, Facts, Input, Mechanism, Outcome, Proof, State, Status, Step};
use std::time::Duration;

const EXCHANGES: usize = 20_000;
/// Exchanges at a time through a host.
const BATCH: usize = 50;
/// A host has threads, which do not always wait for each other at their start: less than an allocation per batch.
const NOISE: usize = 32;

fn main() {
    if let Ok(exchanges) = std::env::var("EXCHANGES") {
        return child(exchanges.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("count.so");
    compile("count.c", &counter, &[]);
    probe();
    let count = |exchanges, mechanism: &str, runner| count(&counter, folder.path(), exchanges, mechanism, runner);
    let none = count(0, "PLAIN", "inline");
    assert!(none > 100, "the counter does not count: {none}");
    let mechanisms = [
        "PLAIN",
        "LOGIN",
        "CRAM-MD5",
        "DIGEST-MD5",
        "ANONYMOUS",
        "EXTERNAL",
        "OAUTHBEARER",
        "OAUTHBEARER denied",
        "XOAUTH2",
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
        "SCRAM-SHA-512",
        "SCRAM-SHA-1-PLUS",
        "SCRAM-SHA-256-PLUS",
        "SCRAM-SHA-512-PLUS",
    ];
    for mechanism in mechanisms {
        let without = count(0, mechanism, "inline");
        let with = count(EXCHANGES, mechanism, "inline");
        assert_eq!(with, without, "{EXCHANGES} {mechanism} exchanges allocated {}", with - without);
        // Buffers find their size in the first ones.
        let few = count(BATCH, mechanism, "host");
        let many = count(BATCH + EXCHANGES / 4, mechanism, "host");
        let more = many.saturating_sub(few);
        assert!(more < NOISE, "{} {mechanism} exchanges through a host allocated {more}", EXCHANGES / 4);
    }
    // The counter sees what a library allocates: this one does so once per exchange.
    for (runner, before) in [("inline", 0), ("host", BATCH)] {
        let without = count(before, "allocate", runner);
        let with = count(before + 10 * BATCH, "allocate", runner);
        assert!((with - without).abs_diff(10 * BATCH) < NOISE, "{runner}: {}", with - without);
    }
    println!("no allocation in {EXCHANGES} exchanges each of {}", mechanisms.join(", "));
}

fn count(counter: &Path, folder: &Path, exchanges: usize, mechanism: &str, runner: &str) -> usize {
    let report = folder.join("report");
    let run = Command::new(std::env::current_exe().unwrap())
        .env("LD_PRELOAD", counter)
        .env("ALLOCATIONS", &report)
        .env("EXCHANGES", exchanges.to_string())
        .env("MECHANISM", mechanism)
        .env("RUNNER", runner)
        .output()
        .unwrap();
    assert!(run.status.success(), "{mechanism}: {}", String::from_utf8_lossy(&run.stderr));
    std::fs::read_to_string(report).unwrap().parse().unwrap()
}

fn child(exchanges: usize) {
    let mut registry = Registry::new();
    load(&mut registry, "standard", &bundled("standard")).unwrap();
    load(&mut registry, "legacy", &bundled("legacy")).unwrap();
    load(&mut registry, "probe", &probe()).unwrap();
    let case = std::env::var("MECHANISM").unwrap();
    let key = [7; 32];
    let ha1 = Digest5::ha1("user", "mail.example.com", "pencil");
    let outcome = |effect| Outcome { effect, status: Status::Ok, proof: Proof(1), data: &key, scram: None };
    let ended = |effect| Event::Outcome(outcome(effect));
    let denied = |effect| Event::Outcome(Outcome { status: Status::Denied, data: b"{}", ..outcome(effect) });
    let start = Event::Start { initial: true };
    let hash = if case.starts_with("SCRAM") { Hash::of(&case) } else { Hash::Sha1 };
    let keys = ScramKeys::new(hash, b"pencil", b"salt", 1);
    let fetched = Event::Outcome(Outcome { scram: Some(keys.stored()), ..outcome(EffectKind::FetchKey) });

    // All entropy is the octet 5, so what the server says is known before.
    let server_first = format!("r=abc{},s=c2FsdA==,i=1", BASE64_STANDARD.encode([5; 18]));
    let first = format!("{},a=a=2Cb,n=us=3Der,r=abc,x=y", if case.ends_with("-PLUS") { "p=tls-exporter" } else { "n" });
    let (last, _) = keys.finish(&first, &server_first, if case.ends_with("-PLUS") { &key } else { b"" }, ",x=y");
    let digest = Digest5 { ha1, nonce: &"05".repeat(16), cnonce: "c", uri: "smtp/mail.example.com", authzid: "admin" };
    let digest_response = format!(
        "username=\"u\\ser\",realm=\"mail.example.com\",nonce=\"{}\",nc=00000001,cnonce=\"c\",authzid=\"admin\",\
         digest-uri=\"smtp/mail.example.com\",response={}",
        digest.nonce,
        digest.value("AUTHENTICATE")
    );
    let ha1 = Event::Outcome(Outcome { data: &digest.ha1, ..outcome(EffectKind::FetchKey) });
    let oauth = "n,a=a=2Cb,\x01host=mail.example.com\x01port=587\x01auth=Bearer abc\x01\x01";
    let xoauth2 = "user=user@example.com\x01auth=Bearer abc\x01\x01";
    let plain = "\0user@example.com\0pencil";
    // CRAM-MD5 fails with a wrong digest, after all its work.
    let cram = "tim b913a602c7eda7a495b4e6e7334d3890";
    let (name_of_it, steps): (_, Vec<(Event<'_>, &str)>) = match case.as_str() {
        "PLAIN" => ("PLAIN", vec![(start, plain), (ended(EffectKind::VerifyPassword), plain)]),
        "LOGIN" => {
            let steps = [(start, "user"), (Event::Message, "pencil"), (ended(EffectKind::VerifyPassword), "pencil")];
            ("LOGIN", steps.into())
        }
        "CRAM-MD5" => {
            let steps =
                [(Event::Start { initial: false }, ""), (Event::Message, cram), (ended(EffectKind::FetchKey), cram)];
            ("CRAM-MD5", steps.into())
        }
        "DIGEST-MD5" => {
            let response = digest_response.as_str();
            ("DIGEST-MD5", vec![(Event::Start { initial: false }, ""), (Event::Message, response), (ha1, response)])
        }
        "ANONYMOUS" => ("ANONYMOUS", vec![(start, "user@example.com")]),
        "EXTERNAL" => ("EXTERNAL", vec![(start, "user"), (ended(EffectKind::VerifyExternal), "user")]),
        "OAUTHBEARER" => ("OAUTHBEARER", vec![(start, oauth), (ended(EffectKind::VerifyToken), oauth)]),
        "OAUTHBEARER denied" => ("OAUTHBEARER", vec![(start, oauth), (denied(EffectKind::VerifyToken), oauth)]),
        "XOAUTH2" => ("XOAUTH2", vec![(start, xoauth2), (ended(EffectKind::VerifyToken), xoauth2)]),
        "allocate" => ("X-PROBE", vec![(start, "allocate")]),
        scram if scram.ends_with("-PLUS") => {
            let bound = ended(EffectKind::ChannelBinding);
            (scram, vec![(start, &first), (bound, &first), (fetched, &first), (Event::Message, &last)])
        }
        scram => (scram, vec![(start, &first), (fetched, &first), (Event::Message, &last)]),
    };
    if std::env::var("RUNNER").unwrap() == "host" {
        return through_host(registry, name_of_it, &steps, exchanges);
    }
    let mechanism = registry.mechanism(&name(name_of_it), "").unwrap();
    let mut state = State::default();
    state.prepare(mechanism.traits().state_octets);
    let mut scratch = vec![0; mechanism.traits().output_octets_max];
    for _ in 0..exchanges {
        let failed = run(&*mechanism, &steps, &mut state, &mut scratch);
        assert_eq!(failed, matches!(case.as_str(), "CRAM-MD5" | "OAUTHBEARER denied"), "{case}");
    }
}

/// Both sides of a link in one process: what a shard sends, what a host does with it, what comes back.
fn through_host(registry: Registry, mechanism: &str, steps: &[(Event<'_>, &str)], exchanges: usize) {
    let watch = Watch::new(None).unwrap();
    let pool = Pool::start(&watch).unwrap();
    let mut host = Host::new(registry, |_| String::new(), watch, pool).unwrap();
    let (here, there) = Link::pair().unwrap();
    host.add(there);
    let (mut outbox, mut packet) = (Outbox::new(1 << 20), Vec::new());
    for _ in 0..exchanges / BATCH {
        for (event, message) in steps {
            for id in 0..BATCH as u64 {
                let event = wire_event(mechanism, event, message.as_bytes());
                let step = wire::Step { exchange: id, session: 1, unix_ms: 1, entropy: &[5; 64], event };
                outbox.push_sized(STEP, id, step.octets_max(), |to| step.encode(to)).unwrap();
            }
            // Together they may be more than a packet.
            assert!(outbox.flush(&here).unwrap());
            let mut answers = 0;
            while answers < BATCH {
                host.turn(Duration::ZERO);
                while let Received::Packet { .. } = here.receive(&mut packet).unwrap() {
                    let answered = frames(&packet).map(|frame| frame.unwrap()).filter(|frame| frame.kind == ANSWER);
                    answers += answered.filter(|frame| wire::Answer::decode(frame.payload).is_ok()).count();
                }
            }
        }
        for id in 0..BATCH as u64 {
            outbox.push_sized(FINISH, 0, 8, |to| to.extend_from_slice(&id.to_le_bytes())).unwrap();
        }
        assert!(outbox.flush(&here).unwrap());
        host.turn(Duration::ZERO);
        assert_eq!(host.exchanges(), 0);
    }
}

fn wire_event<'a>(mechanism: &'a str, event: &Event<'a>, message: &'a [u8]) -> wire::Event<'a> {
    match event {
        Event::Start { initial } => wire::Event::Start {
            mechanism,
            initial: initial.then_some(message),
            facts: wire::Facts {
                tls: true,
                tls_version: 0x0304,
                client_certificate: false,
                plus_offered: false,
                channel_bindings: 0b110,
                server_name: "mail.example.com",
                client_ip: [192, 0, 2, 1].into(),
                listener: "submission",
                sni: "",
            },
        },
        Event::Message | Event::Resume => wire::Event::Message(message),
        Event::Outcome(Outcome { effect, status, proof, data, scram }) => wire::Event::Outcome {
            effect: *effect as u32,
            status: *status as u32,
            proof: proof.0,
            data,
            scram: scram.map(|key| wire::Scram {
                iterations: key.iterations,
                salt: key.salt,
                stored_key: key.stored_key,
                server_key: key.server_key,
            }),
        },
    }
}

/// Whether it failed.
fn run(mechanism: &dyn Mechanism, steps: &[(Event<'_>, &str)], state: &mut State, scratch: &mut [u8]) -> bool {
    let facts = Facts {
        tls: true,
        tls_version: 0x0304,
        client_certificate: false,
        plus_offered: false,
        channel_bindings: 0b110,
        server_name: "mail.example.com",
        client_ip: [192, 0, 2, 1].into(),
        listener: "submission",
        sni: "",
        session: 1,
    };
    state.prepare(mechanism.traits().state_octets);
    let mut failed = false;
    for (event, message) in steps {
        let message = message.as_bytes();
        let input = Input { event: *event, message, facts: &facts, entropy: &[5; 64], unix_ms: 1, exchange: 1 };
        if let Step::Failure { class, diagnosis, .. } = mechanism.step(state, input, scratch) {
            assert_eq!(class, sasl::FailureClass::Credentials, "{}", String::from_utf8_lossy(diagnosis));
            failed = true;
        }
    }
    mechanism.finish(state);
    failed
}
