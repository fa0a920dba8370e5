//! A step allocates nothing, neither in the library nor in the adapter around it: a preloaded counter sees
//! every `malloc` of the process, and 20,000 exchanges cost as many as none.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{bundled, compile, load, name, probe};
use plugin_host::Registry;
use sasl::{EffectKind, Event, Facts, Input, Mechanism, Outcome, Proof, State, Status, Step};

const EXCHANGES: usize = 20_000;

fn main() {
    if let Ok(exchanges) = std::env::var("EXCHANGES") {
        return child(exchanges.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("count.so");
    compile("count.c", &counter, &[]);
    probe();
    let none = count(&counter, folder.path(), 0, "plain");
    assert!(none > 100, "the counter does not count: {none}");
    for mechanism in ["plain", "login", "cram"] {
        let without = count(&counter, folder.path(), 0, mechanism);
        let with = count(&counter, folder.path(), EXCHANGES, mechanism);
        assert_eq!(with, without, "{EXCHANGES} {mechanism} exchanges allocated {}", with - without);
    }
    // The counter sees what a library allocates: this one does so once per exchange.
    let without = count(&counter, folder.path(), 0, "allocate");
    let with = count(&counter, folder.path(), EXCHANGES, "allocate");
    assert_eq!(with - without, EXCHANGES);
    println!("no allocation in {EXCHANGES} exchanges each of PLAIN, LOGIN and CRAM-MD5");
}

fn count(counter: &Path, folder: &Path, exchanges: usize, mechanism: &str) -> usize {
    let report = folder.join("report");
    let run = Command::new(std::env::current_exe().unwrap())
        .env("LD_PRELOAD", counter)
        .env("ALLOCATIONS", &report)
        .env("EXCHANGES", exchanges.to_string())
        .env("MECHANISM", mechanism)
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
    let key = [7; 32];
    let outcome = |effect| Outcome { effect, status: Status::Ok, proof: Proof(1), data: &key, scram: None };
    let verified = Event::Outcome(outcome(EffectKind::VerifyPassword));
    let fetched = Event::Outcome(outcome(EffectKind::FetchKey));
    let start = Event::Start { initial: true };
    let (mechanism, steps): (_, &[(Event<'_>, &[u8])]) = match std::env::var("MECHANISM").unwrap().as_str() {
        "plain" => ("PLAIN", &[(start, b"\0user@example.com\0pencil"), (verified, b"\0user@example.com\0pencil")]),
        "login" => ("LOGIN", &[(start, b"user"), (Event::Message, b"pencil"), (verified, b"pencil")]),
        "cram" => {
            let response = b"tim b913a602c7eda7a495b4e6e7334d3890";
            ("CRAM-MD5", &[(Event::Start { initial: false }, b""), (Event::Message, response), (fetched, response)])
        }
        "allocate" => ("X-PROBE", &[(start, b"allocate")]),
        other => panic!("{other}"),
    };
    let mechanism = registry.mechanism(&name(mechanism), "").unwrap();
    let mut state = State::default();
    state.prepare(mechanism.traits().state_octets);
    let mut scratch = vec![0; mechanism.traits().output_octets_max];
    for _ in 0..exchanges {
        run(&*mechanism, steps, &mut state, &mut scratch);
    }
}

fn run(mechanism: &dyn Mechanism, steps: &[(Event<'_>, &[u8])], state: &mut State, scratch: &mut [u8]) {
    let facts = Facts {
        tls: true,
        tls_version: 0x0304,
        client_certificate: false,
        plus_offered: false,
        channel_bindings: 0,
        server_name: "mail.example.com",
        client_ip: [192, 0, 2, 1].into(),
        listener: "submission",
        sni: "",
        session: 1,
    };
    state.prepare(mechanism.traits().state_octets);
    for (event, message) in steps {
        let input = Input { event: *event, message, facts: &facts, entropy: &[5; 64], unix_ms: 1, exchange: 1 };
        if let Step::Failure { class, diagnosis, .. } = mechanism.step(state, input, scratch) {
            // CRAM-MD5 fails with a wrong digest, after all its work.
            assert_eq!(class, sasl::FailureClass::Credentials, "{}", String::from_utf8_lossy(diagnosis));
        }
    }
    mechanism.finish(state);
}
