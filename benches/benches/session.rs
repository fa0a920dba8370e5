//! The session machine: lines, dialogues, message octets.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use smtp::{Role, Session, testing};
use std::hint::black_box;

/// Strict parse and dispatch of a command of 30 octets: bar 20 ns.
fn line(criterion: &mut Criterion) {
    let line = b"RCPT TO:<someone@example.org>\r\n";
    criterion.bench_function("line/parse and dispatch 30 octets", |bencher| {
        bencher.iter(|| smtp::dispatch(black_box(line)));
    });
}

fn dialogue(criterion: &mut Criterion) {
    let listener = testing::listener(Role::Mx);
    let mut world = testing::World::new();
    // Or the session would end after a hundred commands that do nothing.
    world.peer.exempt = true;
    let mut session = Session::new();
    session.greet(&mut world.context(&listener));
    session.receive(b"EHLO client.example\r\n", &mut world.context(&listener));
    let mut group = criterion.benchmark_group("session");
    group.bench_function("NOOP", |bencher| {
        bencher.iter(|| {
            world.clear();
            session.receive(black_box(b"NOOP\r\n"), &mut world.context(&listener))
        });
    });
    group.bench_function("RSET, MAIL, RCPT, DATA, 4 KiB, pipelined", |bencher| {
        let mut input = b"RSET\r\nMAIL FROM:<a@b.example> SIZE=4096\r\nRCPT TO:<c@d.example>\r\nDATA\r\n".to_vec();
        input.extend_from_slice(b"From: <a@b.example>\r\nSubject: bench\r\n\r\n");
        while input.len() < 4096 {
            input.extend_from_slice(b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz\r\n");
        }
        input.extend_from_slice(b".\r\n");
        bencher.iter_batched_ref(
            || {
                let mut session = Session::new();
                session.receive(b"EHLO client.example\r\n", &mut world.context(&listener));
                world.clear();
                (session, testing::World::new())
            },
            |(session, world)| session.receive(black_box(&input), &mut world.context(&listener)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn body(criterion: &mut Criterion) {
    let listener = testing::listener(Role::Mx);
    let mut octets = Vec::new();
    while octets.len() < 64 * 1024 {
        octets.extend_from_slice(b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwx\r\n");
    }
    let mut group = criterion.benchmark_group("body");
    group.throughput(Throughput::Bytes(octets.len() as u64));
    let mut world = testing::World::new();
    let mut session = Session::new();
    let mut listener = listener;
    listener.limits.message_octets_max = u64::MAX / 4;
    session.receive(
        b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: x\r\n\r\n",
        &mut world.context(&listener),
    );
    group.bench_function("DATA, 64 KiB of 76-octet lines into memory", |bencher| {
        bencher.iter(|| {
            world.clear();
            session.receive(black_box(&octets), &mut world.context(&listener))
        });
    });
    group.finish();
}

criterion_group!(benches, line, dialogue, body);
criterion_main!(benches);
