//! Direct delivery with a name server and hosts of our own on loopback.

mod name_server;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use smtp::envelope::Notify;
use tls::Trust;

use self::name_server::{NameServer, Says, a, cname, mx, txt};
use super::*;
use crate::tests::hops::{BODY, Fault, Hop as Server, Script, Step, WHOLE, commit, from_alice};
use crate::tests::{Running, Worker};
use crate::{Event, Routes};

fn settings(names: &NameServer, port: u16) -> MxSettings {
    let anybody = || ClientTls::new(Trust::Anybody).unwrap();
    MxSettings {
        hostname: "our.example".into(),
        own_names: vec!["our.example".into(), "also.our.example".into()],
        own: vec!["127.0.0.77:2525".parse().unwrap()],
        port,
        security: Security::Opportunistic,
        tls_any: anybody(),
        tls_verified: anybody(),
        sts: None,
        resolver: vec![names.address],
        dns_patience: Duration::from_millis(300),
        allowed: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        connections: 8,
        connections_per_host: 2,
        patience: Duration::from_millis(500),
        backoff: Retry { first: Duration::from_millis(10), max: Duration::from_millis(40) },
        events: Arc::new(|_: &Event<'_>| {}),
    }
}

/// A plan, or its refusal, as one line.
fn planned(route: &MxRoute, domain: &str) -> String {
    route.state.lock().unanswered.clear();
    match route.plan(domain) {
        Ok(plan) => {
            let host = |host: &Host| match &host.addresses {
                Ok(addresses) => {
                    format!("{}={}", host.name, addresses.iter().map(|a| a.to_string() + " ").collect::<String>())
                }
                Err(trouble) => format!("{}?{}", host.name, trouble.status),
            };
            plan.hosts.iter().map(host).collect::<Vec<_>>().join(", ").replace(" ,", ",").trim_end().to_owned()
        }
        Err(Verdict::Never(trouble) | Verdict::Later(trouble)) => format!("{} {}", trouble.status, trouble.text),
        Err(other) => format!("{other:?}"),
    }
}

#[test]
fn what_the_dns_says_becomes_a_plan_or_a_reason() {
    let names = NameServer::start();
    let many: Vec<_> = (0..1200).map(|n| mx("many.example", 1200 - n, &format!("h{n}.example"))).collect();
    let long = "a-label-that-is-rather-long-so-that-it-does-not-fit.".repeat(3);
    names.hold(&[
        mx("far.example", 20, "b.example"),
        mx("far.example", 10, "A.example"),
        a("a.example", "127.0.0.2"),
        a("a.example", "::1"),
        a("a.example", "127.0.0.3"),
        a("b.example", "127.0.0.4"),
        a("implicit.example", "127.0.0.2"),
        mx("turns.example", 1, "turns-host.example"),
        a("turns-host.example", "2a00::1"),
        a("turns-host.example", "2a00::2"),
        a("turns-host.example", "2a00::3"),
        a("turns-host.example", "127.0.0.6"),
        mx("null.example", 0, "."),
        txt("text.example", &["nothing else"]),
        // The domain is an alias, in one answer and by another question.
        mx("target.example", 1, "b.example"),
        cname("apart.example", "target.example"),
        // So is a host.
        mx("aliased.example", 1, "c.example"),
        cname("c.example", "b.example"),
        cname("round.example", "about.example"),
        cname("about.example", "round.example"),
        mx("gone.example", 1, "nowhere.example"),
        mx("half.example", 1, "nowhere.example"),
        mx("half.example", 2, "b.example"),
        mx("unsure.example", 1, "servfail.example"),
        mx("unsure.example", 2, "b.example"),
        mx("ours.example", 5, "OUR.example"),
        mx("ours.example", 5, "b.example"),
        mx("backup.example", 1, "a.example"),
        mx("backup.example", 5, "also.our.example"),
        mx("backup.example", 6, "b.example"),
        mx("address.example", 1, "by-address.example"),
        a("by-address.example", "127.0.0.77"),
        mx("inner.example", 1, "inner-host.example"),
        a("inner-host.example", "10.0.0.1"),
        a("inner-host.example", "fe80::1"),
        mx("mixed.example", 1, "mixed-host.example"),
        a("mixed-host.example", "192.168.0.1"),
        a("mixed-host.example", "127.0.0.4"),
        mx("xn--bcher-kva.example", 1, "b.example"),
        mx("local.example", 1, "localhost"),
    ]);
    let chain: Vec<_> =
        (0..30).map(|n| cname(&format!("{n}.chain.example"), &format!("{}.chain.example", n + 1))).collect();
    names.hold(&chain);
    let longer = |records: &[_]| records.to_vec();
    for (owner, says) in [
        ("servfail.example", Says::Code(ResponseCode::ServFail)),
        ("refused.example", Says::Code(ResponseCode::Refused)),
        ("formerr.example", Says::Code(ResponseCode::FormErr)),
        ("silent.example", Says::Silence),
        ("garbage.example", Says::Garbage),
        ("garbled.example", Says::GarbageThen(vec![mx("garbled.example", 1, "b.example")])),
        (
            "cut.example",
            Says::Truncated(longer(&[
                mx("cut.example", 1, "b.example"),
                mx("cut.example", 2, &format!("{long}example")),
            ])),
        ),
        ("many.example", Says::Truncated(many)),
        ("strange.example", Says::Records(vec![mx("evil.example", 1, "b.example"), a("strange.example", "127.0.0.9")])),
        (
            "stranger.example",
            Says::Records(vec![mx("stranger.example", 1, "b.example"), mx("evil.example", 0, "a.example")]),
        ),
        ("astray.example", Says::Astray(vec![mx("elsewhere.example", 1, "b.example")])),
        (
            "together.example",
            Says::Records(vec![cname("together.example", "target.example"), mx("target.example", 1, "b.example")]),
        ),
    ] {
        names.say(owner, RecordType::MX, says);
    }
    for kind in [RecordType::A, RecordType::AAAA] {
        names.say("servfail.example", kind, Says::Code(ResponseCode::ServFail));
    }
    for n in 1190..1200 {
        names.hold(&[a(&format!("h{n}.example"), "127.0.0.5")]);
    }
    let route = MxRoute::new(settings(&names, 25)).unwrap();
    let b = "b.example=127.0.0.4";
    let mut wrong = Vec::new();
    let both = "a.example=::1 127.0.0.2 127.0.0.3, b.example=127.0.0.4";
    for (domain, expect) in [
        ("far.example", both),
        ("implicit.example", "implicit.example=127.0.0.2"),
        ("turns.example", "turns-host.example=2a00::1 127.0.0.6 2a00::2 2a00::3"),
        ("null.example", "5.1.10 null.example accepts no mail"),
        ("nobody.example", "5.1.2 nobody.example: the name does not exist (NXDOMAIN)"),
        ("text.example", "5.1.2 text.example has no MX record and no address"),
        ("apart.example", b),
        ("together.example", b),
        ("aliased.example", "c.example=127.0.0.4"),
        // CNAMEs without an end lead to nothing.
        ("round.example", "5.1.2 round.example has no MX record and no address"),
        ("0.chain.example", "5.1.2 0.chain.example has no MX record and no address"),
        ("gone.example", "5.4.4 no host of gone.example can be used: nowhere.example: no address: the name does not"),
        ("half.example", b),
        ("unsure.example", "servfail.example?4.4.3, b.example=127.0.0.4"),
        ("ours.example", "5.4.6 mail for ours.example would come back"),
        ("backup.example", "a.example=::1 127.0.0.2 127.0.0.3"),
        ("address.example", "5.4.6 mail for address.example would come back"),
        ("our.example", "5.1.2 our.example: the name does not exist"),
        ("inner.example", "5.4.4 no host of inner.example can be used: inner-host.example: fe80::1 is a link-local"),
        ("mixed.example", "mixed-host.example=127.0.0.4"),
        ("local.example", "localhost=::1 127.0.0.1"),
        ("bücher.example", b),
        (
            "servfail.example",
            "4.4.3 servfail.example: its MX records are not known now: the name server answered SERVFAIL",
        ),
        (
            "refused.example",
            "4.4.3 refused.example: its MX records are not known now: the name server answered REFUSED",
        ),
        ("formerr.example", "4.4.3 formerr.example"),
        (
            "silent.example",
            "4.4.3 silent.example: its MX records are not known now: the name servers did not answer in time",
        ),
        ("garbage.example", "4.4.3 garbage.example"),
        // What may be forged is passed over: the true answer may still come, but not from here.
        ("garbled.example", "4.4.3 garbled.example: its MX records are not known now: the name servers did not"),
        ("cut.example", b),
        ("strange.example", "5.1.2 strange.example has no MX record and no address"),
        ("stranger.example", b),
        ("astray.example", "5.1.2 astray.example has no MX record and no address"),
        ("[127.0.0.5]", "127.0.0.5=127.0.0.5"),
        ("[ipv6:::1]", "::1=::1"),
        ("[10.0.0.1]", "5.4.4 10.0.0.1 is a private address"),
        ("[127.0.0.77]", "5.4.6 "),
        ("[x-tag:what]", "5.1.2 [x-tag:what] is no address of a host"),
        ("a b", "5.1.2 \"a b\" is no domain"),
        ("", "5.1.2 \"\" is no domain"),
    ] {
        let port = if matches!(domain, "address.example" | "[127.0.0.77]") { 2525 } else { 25 };
        let other;
        let route = if port == 25 {
            &route
        } else {
            other = MxRoute::new(settings(&names, port)).unwrap();
            &other
        };
        let told = planned(route, domain);
        if !told.starts_with(expect) || (expect.contains('=') && told != expect) {
            wrong.push(format!("{domain}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(names.over_tcp() >= 1, "truncated answers are asked for again over TCP");
    // The best ten of twelve hundred.
    let told = planned(&route, "many.example");
    assert!(told.starts_with("h1199.example=127.0.0.5, h1198.example=") && told.matches('=').count() == 10, "{told}");
    let closed = MxRoute::new(MxSettings { allowed: Vec::new(), ..settings(&names, 25) }).unwrap();
    for domain in ["far.example", "local.example", "[127.0.0.1]", "[IPv6:::ffff:127.0.0.1]"] {
        let told = planned(&closed, domain);
        assert!(told.starts_with("5.4.4") && told.contains("is a loopback address"), "{domain}: {told}");
    }
}

#[test]
fn answers_are_kept_and_trouble_is_not() {
    let names = NameServer::start();
    names.hold(&[mx("far.example", 1, "a.example"), a("a.example", "127.0.0.2")]);
    names.say("sick.example", RecordType::MX, Says::Code(ResponseCode::ServFail));
    let route = MxRoute::new(settings(&names, 25)).unwrap();
    for _ in 0..3 {
        assert_eq!(planned(&route, "far.example"), "a.example=127.0.0.2");
    }
    assert_eq!((names.asked("far.example MX"), names.asked("a.example A")), (1, 1));
    assert!(planned(&route, "sick.example").starts_with("4.4.3"));
    names.say("sick.example", RecordType::MX, Says::Records(vec![mx("sick.example", 1, "a.example")]));
    // While it is left alone nobody asks.
    route.state.lock().unanswered.insert(
        "sick.example".to_owned(),
        (1, Instant::now() + Duration::from_secs(60), Trouble::own(Enhanced::new(4, 4, 3), "sick")),
    );
    let before = names.asked("sick.example MX");
    assert!(matches!(route.plan("sick.example"), Err(Verdict::Postponed(..))));
    assert_eq!(names.asked("sick.example MX"), before);
    assert_eq!(planned(&route, "sick.example"), "a.example=127.0.0.2");
    // One question at a time for one domain: others wait for its end.
    let domain = destination("domain", "far.example");
    route.state.lock().looking.insert(domain);
    assert!(matches!(route.plan("far.example"), Err(Verdict::Busy(to)) if to == domain));
    assert_eq!((route.room(domain), route.room(Destination::default())), (0, 8));
    route.state.lock().looking.clear();
    assert!(route.room(domain) > 0);
}

/// Servers at these addresses, all at one port.
fn servers(addresses: &[&str]) -> (Vec<Server>, u16) {
    for _ in 0..100 {
        let first = TcpListener::bind((addresses[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let rest = addresses[1..].iter().map(|address| TcpListener::bind((*address, port)));
        if let Ok(rest) = rest.collect::<Result<Vec<_>, _>>() {
            let all = std::iter::once(first).chain(rest);
            return (all.map(|listener| Server::start_on(listener, Script::default())).collect(), port);
        }
    }
    panic!("no port is free at all of {addresses:?}");
}

fn start(spool: &Path, settings: MxSettings) -> (Running, Worker) {
    let running = Running::start(spool, Routes::new(Some(Arc::new(MxRoute::new(settings).unwrap()))));
    let mut worker = Worker::start(spool);
    running.handle.follow(worker.link.take().unwrap());
    (running, worker)
}

#[test]
fn host_after_host_and_address_after_address_until_one_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let names = NameServer::start();
    // Nobody listens at 127.0.0.9.
    let (servers, port) = servers(&["127.0.0.2", "127.0.0.3"]);
    names.hold(&[
        mx("far.example", 10, "dead.example"),
        mx("far.example", 20, "alive.example"),
        a("dead.example", "127.0.0.9"),
        a("alive.example", "127.0.0.9"),
        a("alive.example", "127.0.0.2"),
        a("alive.example", "127.0.0.3"),
        mx("other.example", 1, "alive.example"),
    ]);
    let (running, mut worker) = start(folder.path(), settings(&names, port));
    let to: &[(&str, Notify)] =
        &[("bob@far.example", Notify(0)), ("eve@FAR.example", Notify(0)), ("x@other.example", Notify(0))];
    commit(&mut worker, &from_alice(to), BODY);
    running.seen.wait(1, "delivered to <bob@far.example> by mx");
    running.seen.wait(1, "delivered to <eve@FAR.example> by mx");
    running.seen.wait(1, "delivered to <x@other.example> by mx");
    assert!(servers[0].texts().iter().all(|text| text == WHOLE));
    let taken = servers[0].script.taken.lock().clone();
    assert!(taken.iter().any(|(to, _)| *to == ["bob@far.example", "eve@FAR.example"]), "one transaction: {taken:?}");
    // The first address hangs up at its greeting: the next one of the same host is asked.
    servers[0].script.faults.lock().extend([(Step::Greeting, Fault::Reset), (Step::Greeting, Fault::Reset)]);
    names.hold(&[mx("third.example", 1, "new.example"), a("new.example", "127.0.0.2"), a("new.example", "127.0.0.3")]);
    commit(&mut worker, &from_alice(&[("c@third.example", Notify(0))]), BODY);
    running.seen.wait(1, "delivered to <c@third.example> by mx");
    assert_eq!(servers[1].texts(), [WHOLE]);
    running.stop();
}

#[test]
fn connections_are_used_again_and_bounded_by_host() {
    let folder = tempfile::tempdir().unwrap();
    let names = NameServer::start();
    let (servers, port) = servers(&["127.0.0.2", "127.0.0.3"]);
    names.hold(&[
        mx("slow.example", 1, "slow-host.example"),
        a("slow-host.example", "127.0.0.2"),
        mx("quick.example", 1, "quick-host.example"),
        a("quick-host.example", "127.0.0.3"),
    ]);
    let patient = MxSettings { patience: Duration::from_secs(30), ..settings(&names, port) };
    let (running, mut worker) = start(folder.path(), patient);
    servers[0].script.frozen.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        commit(&mut worker, &from_alice(&[("bob@slow.example", Notify(0))]), BODY);
    }
    for n in 1..=20 {
        commit(&mut worker, &from_alice(&[("bob@quick.example", Notify(0))]), BODY);
        running.seen.wait(n, "delivered to <bob@quick.example>");
    }
    assert_eq!(running.seen.count("delivered to <bob@slow.example>"), 0);
    assert!(servers[0].script.connections.load(Ordering::SeqCst) <= 2, "connections_per_host");
    assert!(servers[1].script.connections.load(Ordering::SeqCst) <= 2, "used again");
    servers[0].script.frozen.store(false, Ordering::SeqCst);
    running.seen.wait(20, "delivered to <bob@slow.example>");
    assert!(servers[0].script.connections.load(Ordering::SeqCst) <= 2, "used again");
    running.stop();
}

#[test]
fn trouble_waits_and_says_why_and_refusals_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let names = NameServer::start();
    let (servers, port) = servers(&["127.0.0.2"]);
    names.hold(&[mx("far.example", 1, "a.example"), a("a.example", "127.0.0.2"), mx("null.example", 0, ".")]);
    names.say("sick.example", RecordType::MX, Says::Silence);
    let replies = servers[0].script.clone();
    replies.by_address.lock().insert("grey@far.example".into(), ["451 4.7.1 later"].into());
    replies.by_address.lock().insert("no@far.example".into(), ["550 5.1.1 nobody"].into());
    let (running, mut worker) = start(folder.path(), settings(&names, port));
    let to: Vec<(&str, Notify)> =
        ["grey@far.example", "no@far.example", "yes@far.example", "a@null.example", "b@sick.example", "c@gone.example"]
            .map(|address| (address, Notify::NEVER))
            .into();
    commit(&mut worker, &from_alice(&to), BODY);
    running.seen.wait(1, "delivered to <yes@far.example> by mx");
    running.seen.wait(1, "<no@far.example> failed (mx): a.example[127.0.0.2]:");
    running.seen.wait(1, "<a@null.example> failed (mx): null.example accepts no mail");
    running.seen.wait(1, "<c@gone.example> failed (mx): gone.example: the name does not exist (NXDOMAIN)");
    running.seen.wait(
        1,
        "<b@sick.example> waits (mx): sick.example: its MX records are not known now: the name servers did not",
    );
    running.seen.wait(1, "delivered to <grey@far.example> by mx");
    names.say("sick.example", RecordType::MX, Says::Records(vec![mx("sick.example", 1, "a.example")]));
    running.seen.wait(1, "delivered to <b@sick.example> by mx");
    assert_eq!(servers[0].texts().len(), 3);
    running.stop();
}

#[test]
fn a_silent_name_server_does_not_keep_delivery_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let names = NameServer::start();
    names.say("silent.example", RecordType::MX, Says::Silence);
    let endless = MxSettings { dns_patience: Duration::from_secs(3600), ..settings(&names, 25) };
    let (running, mut worker) = start(folder.path(), endless);
    commit(&mut worker, &from_alice(&[("x@silent.example", Notify(0))]), BODY);
    while names.asked("silent.example MX") == 0 {
        std::thread::yield_now();
    }
    let seen = running.stop();
    seen.wait(1, "delivery ends");
}

#[test]
fn odd_octets_harm_no_parser() {
    let good: [&[u8]; 4] = [
        b"v=STSv1; id=20160831085700Z;\n",
        b"version: STSv1\r\nmode: enforce\r\nmx: *.far.example\r\nmax_age: 604800\r\n",
        b"id: 7\nfetched: 12\nversion: STSv1\nmode: none\nmax_age: 1\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ];
    let mut seed = 1_u32;
    let mut any = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for text in good {
        for end in 0..=text.len() {
            fuzz_mx(&text[..end]);
        }
        for _ in 0..20_000 {
            let mut octets = text.to_vec();
            for _ in 0..=any(3) {
                let at = any(octets.len());
                match any(3) {
                    0 => octets[at] = any(256) as u8,
                    1 => drop(octets.remove(at)),
                    _ => octets.insert(at, b"\r\n:;=*. \t0\xff"[any(11)]),
                }
            }
            fuzz_mx(&octets);
        }
    }
}
