//! One SASL exchange through a mechanism library that was loaded with dlopen, as the worker runs it.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use plugin_host::{Demands, Ownership, Registry, vet};
use sasl::{EffectKind, Event, Facts, Input, Mechanism, MechanismName, Outcome, Proof, State, Status, Step};
use std::hint::black_box;

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

fn mechanism(name: &str) -> Arc<dyn Mechanism> {
    let path = library("standard");
    let vetted = vet(&path, &Demands { ownership: Ownership::Relaxed, sha256: None }).expect("our own library");
    let mut registry = Registry::new();
    let fd: OwnedFd = vetted.fd;
    registry.load("standard", fd, Path::new(&path), plugin_host::Terms::default()).expect("our own library");
    registry.mechanism(&MechanismName::parse(name.as_bytes()).expect("a name"), "").expect("listed")
}

fn plain(criterion: &mut Criterion) {
    let mechanism = mechanism("PLAIN");
    let facts = Facts {
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
    };
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

criterion_group!(benches, plain);
criterion_main!(benches);
