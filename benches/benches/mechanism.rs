//! SASL exchanges through a mechanism library that was loaded with dlopen, as the worker runs it, and as a
//! mechanism-host answers a batch of them. `portreeve bench sasl` measures the same with a real process.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conformance::client::{Client, Hash, Kind, Person};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use link::mechanism as wire;
use link::{Link, Outbox, Received, frames};
use plugin_host::{Demands, Host, Ownership, Pool, Registry, Terms, Watch, vet};
use sasl::{EffectKind, Event, Facts, Input, Mechanism, MechanismName, Outcome, Proof, ScramKey, State, Status, Step};
use std::hint::black_box;
use std::time::Duration;

/// Builds the bundled libraries with the profile of the bench and finds the one called `id`.
fn library(id: &str) -> PathBuf {
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--release", "-q", "-p", &format!("portreeve-{id}")])
        .status()
        .expect("cargo runs");
    assert!(status.success());
    let target = std::env::current_exe().expect("this bench has a path");
    let release = target.ancestors().find(|path| path.ends_with("release")).expect("benches run in target/release");
    release.join(format!("libportreeve_{id}.so"))
}

fn registry() -> Registry {
    let path = library("standard");
    let vetted = vet(&path, &Demands { ownership: Ownership::Relaxed, sha256: None }).expect("our own library");
    let mut registry = Registry::new();
    let fd: OwnedFd = vetted.fd;
    registry.load("standard", fd, Path::new(&path), Terms::default()).expect("our own library");
    registry
}

fn mechanism(name: &str) -> Arc<dyn Mechanism> {
    registry().mechanism(&MechanismName::parse(name.as_bytes()).expect("a name"), "").expect("listed")
}

fn facts() -> Facts<'static> {
    Facts {
        tls: true,
        tls_version: 0x0304,
        client_certificate: false,
        plus_offered: false,
        channel_bindings: 0,
        server_name: "mx.example",
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        listener: "submission",
        sni: "",
        session: 1,
    }
}

fn plain(criterion: &mut Criterion) {
    let mechanism = mechanism("PLAIN");
    let facts = facts();
    let mut state = State::default();
    let mut scratch = vec![0; mechanism.traits().output_octets_max];
    let message = b"\0alice@demo.test\0a password of some length";
    criterion.bench_function("exchange/PLAIN through dlopen, both steps", |bencher| {
        bencher.iter(|| {
            state.prepare(mechanism.traits().state_octets);
            let input = |event| Input {
                event,
                message: black_box(message),
                facts: &facts,
                entropy: &[],
                unix_ms: 0,
                exchange: 1,
            };
            let asked = mechanism.step(&mut state, input(Event::Start { initial: true }), &mut scratch);
            assert!(matches!(asked, Step::Effect(_)));
            let outcome = Outcome {
                effect: EffectKind::VerifyPassword,
                status: Status::Ok,
                proof: Proof(1),
                data: &[],
                scram: None,
            };
            let over = mechanism.step(&mut state, input(Event::Outcome(outcome)), &mut scratch);
            assert!(matches!(over, Step::Success { .. }));
            mechanism.finish(&mut state);
        });
    });
}

fn scram(criterion: &mut Criterion) {
    let mechanism = mechanism("SCRAM-SHA-256");
    let facts = facts();
    let mut state = State::default();
    let mut scratch = vec![0; mechanism.traits().output_octets_max];
    let (salt, iterations) = ([7; 16], 4096);
    let (stored_key, server_key) = Hash::Sha256.scram_keys(b"pencil", &salt, iterations);
    let scram = Some(ScramKey { iterations, salt: &salt, stored_key: &stored_key, server_key: &server_key });
    let fetched = Outcome { effect: EffectKind::FetchKey, status: Status::Ok, proof: Proof(1), data: &[], scram };
    let input = |event, message| Input { event, message, facts: &facts, entropy: &[5; 64], unix_ms: 0, exchange: 1 };
    // The entropy is fixed, so what the client says is known after one exchange.
    let mut client = Client::new(Kind::Scram(Hash::Sha256, false), Person::user());
    let first = client.initial().expect("the client begins");
    state.prepare(mechanism.traits().state_octets);
    let asked = mechanism.step(&mut state, input(Event::Start { initial: true }, &first), &mut scratch);
    assert!(matches!(asked, Step::Effect(_)));
    let last = match mechanism.step(&mut state, input(Event::Outcome(fetched), &first), &mut scratch) {
        Step::Challenge(challenge) => client.answer(challenge).expect("an answer"),
        _ => panic!("no challenge"),
    };
    mechanism.finish(&mut state);
    criterion.bench_function("exchange/SCRAM-SHA-256 through dlopen, three steps", |bencher| {
        bencher.iter(|| {
            state.prepare(mechanism.traits().state_octets);
            mechanism.step(&mut state, input(Event::Start { initial: true }, black_box(&first)), &mut scratch);
            mechanism.step(&mut state, input(Event::Outcome(fetched), &first), &mut scratch);
            let over = mechanism.step(&mut state, input(Event::Message, black_box(&last)), &mut scratch);
            assert!(matches!(over, Step::Success { .. }));
            mechanism.finish(&mut state);
        });
    });
}

/// Both sides in one thread: what is encoded, sent, stepped, answered, decoded.
fn host(criterion: &mut Criterion) {
    let watch = Watch::new(None).expect("descriptors");
    let pool = Pool::start(&watch).expect("threads");
    let mut host = Host::new(registry(), |_| String::new(), watch, pool).expect("our own library");
    let (here, there) = Link::pair().expect("a pair of sockets");
    host.add(there);
    let (mut outbox, mut packet) = (Outbox::new(1 << 20), Vec::new());
    let facts = wire::Facts {
        tls: true,
        tls_version: 0x0304,
        client_certificate: false,
        plus_offered: false,
        channel_bindings: 0,
        server_name: "mx.example",
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        listener: "submission",
        sni: "",
    };
    let initial = Some(&b"\0alice@demo.test\0a password of some length"[..]);
    let verified = wire::Event::Outcome { effect: 16, status: 0, proof: 1, data: b"", scram: None };
    let events = [wire::Event::Start { mechanism: "PLAIN", initial, facts }, verified];
    let mut group = criterion.benchmark_group("64 exchanges at a time");
    group.throughput(Throughput::Elements(64));
    group.bench_function("exchange/PLAIN through a mechanism-host", |bencher| {
        bencher.iter(|| {
            for event in &events {
                for exchange in 0..64 {
                    let step = wire::Step { exchange, session: 1, unix_ms: 0, entropy: &[], event: event.clone() };
                    outbox.push_sized(wire::STEP, exchange, step.octets_max(), |to| step.encode(to)).expect("room");
                }
                outbox.flush(&here).expect("the host is there");
                host.turn(Duration::ZERO);
                let mut answers = 0;
                while let Received::Packet { .. } = here.receive(&mut packet).expect("the host is there") {
                    let frames = frames(&packet).flatten().filter(|frame| frame.kind == wire::ANSWER);
                    answers += frames.filter(|frame| wire::Answer::decode(frame.payload).is_ok()).count();
                }
                assert_eq!(answers, 64);
            }
            for exchange in 0..64u64 {
                let ended = |to: &mut Vec<u8>| to.extend_from_slice(&exchange.to_le_bytes());
                outbox.push_sized(wire::FINISH, 0, 8, ended).expect("room");
            }
        });
    });
    group.finish();
}

criterion_group!(benches, plain, scram, host);
criterion_main!(benches);
