//! GSSAPI with a real KDC: curl, gsasl and Python log in; whatever is wrong, changed, replayed or too late does not.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::bare::HOSTNAME;
use crate::kerberos::{Party, REALM, Realm, is_here};
use crate::runners::{Client, await_that, reload};
use crate::server::{Options, PATIENCE, Server, output};

/// A server that knows the realm's alice and bob.
fn serve(tables: &str) -> Server {
    let mut server = prepare(tables);
    server.run();
    server
}

fn prepare(tables: &str) -> Server {
    let server =
        Server::prepare(Options { listener: "cleartext_auth_nets = [\"127.0.0.0/8\"]".into(), ..Options::default() });
    let text = server.config().replace("load = [\"standard\", \"legacy\"]", "load = [\"standard\", \"gssapi\"]");
    let text = text.replace("[\"PLAIN\", \"LOGIN\", \"CRAM-MD5\"]", "[\"GSSAPI\", \"PLAIN\"]");
    server.write_config(&(text + tables));
    server
}

fn response(reply: &str) -> Vec<u8> {
    let encoded = reply.strip_prefix("334 ").unwrap_or_else(|| panic!("no challenge: {reply}"));
    STANDARD.decode(encoded.trim()).expect("base64")
}

/// The client's three messages; whoever calls may change each, and gets the reply to the last that was sent.
fn login(
    server: &Server,
    party: &mut Party,
    authzid: &str,
    change: &mut dyn FnMut(usize, Vec<u8>) -> Vec<u8>,
) -> String {
    let layer = [&[1, 0, 0, 0], authzid.as_bytes()].concat();
    login_with(server, party, &layer, change)
}

fn login_with(
    server: &Server,
    party: &mut Party,
    layer: &[u8],
    change: &mut dyn FnMut(usize, Vec<u8>) -> Vec<u8>,
) -> String {
    let mut client = Client::connect(server.mx());
    let token = change(0, party.init("smtp"));
    let mut reply = client.auth_octets("GSSAPI", &token);
    if !reply.starts_with("334 ") {
        return reply;
    }
    let next = party.give("step", &response(&reply));
    assert!(next.is_empty(), "one token of each side is enough");
    let nothing = change(1, next);
    reply = client.ask(&STANDARD.encode(nothing));
    if !reply.starts_with("334 ") {
        return reply;
    }
    let offered = party.give("unwrap", &response(&reply));
    assert_eq!(offered, [1, 0, 0, 0], "no layer, and no size for one");
    let chosen = change(2, party.give("wrap", layer));
    client.ask(&STANDARD.encode(chosen))
}

fn unchanged(_: usize, octets: Vec<u8>) -> Vec<u8> {
    octets
}

/// Whom the last login was, and why it failed, as the audit trail has it.
fn audit(server: &Server, expect: &str) {
    await_that(&format!("{expect} in the audit trail"), || {
        server.log().lines().any(|line| line.contains("\"login\"") && line.contains("GSSAPI") && line.contains(expect))
    });
}

#[test]
fn tickets_open_the_door_for_real_clients() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    let server = serve(&realm.tables(""));
    realm.ticket("alice", &[]);

    // What is granted is shown, and nobody else's library has it.
    let (_, listed) = output(&mut server.command(&["plugin", "list"]));
    assert!(
        listed.contains("gssapi") && listed.contains("granted: read:") && listed.contains("self_asserts"),
        "{listed}"
    );
    assert!(Client::connect(server.mx()).ask("EHLO client.example").contains("AUTH GSSAPI PLAIN"));

    let mut party = Party::new(&realm, "alice");
    let reply = login(&server, &mut party, "", &mut unchanged);
    assert!(reply.starts_with("235 2.7.0"), "{reply}\n{}", server.log());
    audit(&server, "\"identity\":\"alice@demo.test\"");

    let file = server.path("message");
    fs::write(&file, "From: alice@demo.test\r\nTo: bob@demo.test\r\nSubject: a ticket\r\n\r\nhello\r\n")
        .expect("written");
    let (port, ip) = (server.submission().port(), server.ip);
    let mut curl = realm.command("curl");
    curl.args(["--silent", "--show-error", "--verbose", "--insecure", "--ssl-reqd", "--login-options", "AUTH=GSSAPI"]);
    curl.args(["--user", "alice@demo.test:", "--mail-from", "alice@demo.test", "--mail-rcpt", "bob@demo.test"]);
    curl.arg("--upload-file").arg(&file).args(["--resolve", &format!("{HOSTNAME}:{port}:{ip}")]);
    curl.arg(format!("smtp://{HOSTNAME}:{port}/client.example")).env("KRB5CCNAME", realm.cache("alice"));
    let (done, told) = output(&mut curl);
    assert!(done.success() && told.contains("AUTH GSSAPI"), "{told}\n{}", server.log());

    let mut gsasl = realm.command("gsasl");
    gsasl.args(["--smtp", "--mechanism", "GSSAPI", "--service", "smtp", "--hostname", HOSTNAME, "--starttls"]);
    gsasl.arg("--x509-ca-file=").args(["--authentication-id", "alice@demo.test", "--authorization-id", ""]);
    gsasl.arg(ip.to_string()).arg(port.to_string()).env("KRB5CCNAME", realm.cache("alice"));
    let (done, told) = output(&mut gsasl);
    assert!(done.success() && told.contains("235 2.7.0"), "{told}\n{}", server.log());

    let stored = server.mail("bob", 1);
    let text = String::from_utf8_lossy(&stored[0]).into_owned();
    assert!(text.contains("Subject: a ticket") && text.contains("ESMTPSA"), "{text}");

    // The KDC is not asked by the server: who has a ticket is let in, who has none is not.
    let mut realm = realm;
    realm.stop();
    let reply = login(&server, &mut party, "", &mut unchanged);
    assert!(reply.starts_with("235 2.7.0"), "{reply}");
    assert!(Party::new(&realm, "bob").try_ask("init", &format!("smtp@{HOSTNAME}")).is_err());
    assert!(!server.log().contains("process.died"), "{}", server.log());
}

/// Mapping, rights, limits of the account: all as for a password.
#[test]
fn a_principal_is_a_user_with_its_rights_and_nobody_else() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    let server = serve(&realm.tables(""));
    ["alice", "carol"].iter().for_each(|who| realm.ticket(who, &[]));
    let (mut alice, mut carol) = (Party::new(&realm, "alice"), Party::new(&realm, "carol"));

    // Refusals are octet by octet those of a wrong password.
    let wrong = Client::connect(server.mx()).auth("PLAIN", "\0alice@demo.test\0wrong");
    assert!(wrong.starts_with("535 5.7.8"), "{wrong}");
    assert_eq!(login(&server, &mut carol, "", &mut unchanged), wrong, "a ticket, but no account");
    audit(&server, "\"authcid\":\"carol@DEMO.TEST\"");
    assert_eq!(login(&server, &mut alice, "bob@demo.test", &mut unchanged), wrong, "she may not act as him");
    assert_eq!(login(&server, &mut alice, "nobody@demo.test", &mut unchanged), wrong);
    for herself in ["alice@demo.test", "alice", "Alice@Demo.Test"] {
        let reply = login(&server, &mut alice, herself, &mut unchanged);
        assert!(reply.starts_with("235 "), "{herself}: {reply}");
    }

    let users = server.path("state/auth/users");
    let text = fs::read_to_string(&users).expect("the users file");
    let change = |from: &str, to: &str| {
        let changed: Vec<String> = text
            .lines()
            .map(|line| if line.starts_with(from) { format!("{line}{to}") } else { line.to_owned() })
            .collect();
        let new = server.path("state/auth/new");
        fs::write(&new, changed.join("\n") + "\n").expect("written");
        fs::rename(new, &users).expect("replaced");
    };
    let fields =
        if text.lines().any(|line| line.starts_with("alice") && line.matches(':').count() > 1) { " " } else { ":" };
    change("alice", &format!("{fields}authzids=bob@demo.test"));
    await_that("her right to act as him", || {
        login(&server, &mut alice, "bob@demo.test", &mut unchanged).starts_with("235 ")
    });
    audit(&server, "\"identity\":\"bob@demo.test\"");
    change("alice", &format!("{fields}disabled"));
    await_that("the end of her account", || login(&server, &mut alice, "", &mut unchanged).starts_with("525 "));
    change("alice", &format!("{fields}mechanisms=PLAIN"));
    await_that("another mechanism only", || login(&server, &mut alice, "", &mut unchanged).starts_with("534 "));
    drop(server);

    // Users' names without a domain, in another one, and a realm that is not ours.
    for (settings, expect) in [
        (format!("realm = \"{REALM}\"\ndomain = \"demo.test\""), "235 "),
        (format!("realm = \"{REALM}\"\nstrip_realm = true"), "535 "),
        ("realm = \"OTHER.TEST\"".to_owned(), "535 "),
        (format!("principal = \"smtp/{HOSTNAME}\""), "235 "),
    ] {
        let server = serve(&realm.tables(&settings));
        let reply = login(&server, &mut alice, "", &mut unchanged);
        assert!(reply.starts_with(expect), "{settings}: {reply}\n{}", server.log());
    }
}

/// The sealed parts of a client's first token: the ticket's and the authenticator's, octet strings of some length.
fn ciphers(token: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for at in 0..token.len().saturating_sub(4) {
        let (start, octets) = match token[at..at + 4] {
            [0x04, 0x81, length, _] => (at + 3, usize::from(length)),
            [0x04, 0x82, high, low] => (at + 4, usize::from(high) << 8 | usize::from(low)),
            _ => continue,
        };
        let inside = found.last().is_some_and(|last| at < last.end);
        if !inside && octets >= 100 && start + octets <= token.len() {
            found.push(start..start + octets);
        }
    }
    assert_eq!(found.len(), 2, "a ticket and an authenticator");
    found
}

/// The oracle: success with the right ticket and nothing altered, and with nothing else.
#[test]
fn whatever_is_changed_replayed_or_made_up_does_not_get_in() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    let server = serve(&realm.tables(""));
    realm.ticket("alice", &[]);
    let mut party = Party::new(&realm, "alice");

    // Said before, on another connection: all of it, or only the token.
    let mut said = Vec::new();
    let reply = login(&server, &mut party, "", &mut |_, octets| {
        said.push(octets.clone());
        octets
    });
    assert!(reply.starts_with("235 ") && said.len() == 3, "{reply}");
    let reply = Client::connect(server.mx()).auth_octets("GSSAPI", &said[0]);
    assert!(reply.starts_with("535 5.7.8"), "a replayed token: {reply}");
    audit(&server, "said before");
    let reply = login(&server, &mut party, "", &mut |at, octets| if at == 2 { said[2].clone() } else { octets });
    assert!(!reply.starts_with("235 "), "the last message of another context: {reply}");

    // A ticket for another service of this host: its key is in the keytab.
    let reply = Client::connect(server.mx()).auth_octets("GSSAPI", &party.init("host"));
    assert!(reply.starts_with("535 5.7.8"), "{reply}");
    audit(&server, "another service");

    // Layers that were not offered, sizes for none, too little, names that can be nobody's.
    for layer in [
        &[2u8, 0, 0, 0][..],
        &[4, 0, 16, 0],
        &[1, 0, 0, 1],
        &[0, 0, 0, 0],
        &[3, 0, 0, 0],
        &[1, 0, 0],
        b"",
        b"\x01\0\0\0a\0b",
        b"\x01\0\0\0\xff",
    ] {
        let reply = login_with(&server, &mut party, layer, &mut unchanged);
        assert!(reply.starts_with("501 5.5.2"), "{layer:?}: {reply}");
    }
    // Something where nothing is due, nothing where something is.
    let reply = login(&server, &mut party, "", &mut |at, octets| if at == 1 { b"x".to_vec() } else { octets });
    assert!(reply.starts_with("501 5.5.2"), "{reply}");
    let reply = login(&server, &mut party, "", &mut |at, octets| if at == 0 { octets } else { Vec::new() });
    assert!(reply.starts_with("501 ") || reply.starts_with("535 "), "{reply}");

    // Rubbish, cut short, doubled, one bit: at each step.
    let mut tried = 0;
    for at in [0, 2] {
        let mut whole = Vec::new();
        let reply = login(&server, &mut party, "", &mut |step, octets| {
            if step == at {
                whole.clone_from(&octets);
            }
            octets
        });
        assert!(reply.starts_with("235 "), "{reply}");
        for place in (0..whole.len()).step_by((whole.len() / 60).max(1)) {
            let mut free = false;
            let reply = login(&server, &mut party, "", &mut |step, mut octets| {
                if step == at {
                    let place = place.min(octets.len() - 1);
                    free = match at {
                        0 => !ciphers(&octets).iter().any(|cipher| cipher.contains(&place)),
                        _ => place == 6 || place == 7,
                    };
                    octets[place] ^= 1 << (place % 8);
                }
                octets
            });
            // Kerberos itself leaves reserved bits and the kinds of names open around what is sealed (RFC 4120 §5.5.1),
            // and how far a message was rotated (RFC 4121 §4.2.5): nothing that anybody is told by.
            let refused = reply.starts_with("535 ") || reply.starts_with("501 ");
            assert!(refused || free && reply.starts_with("235 "), "message {at}, a bit of octet {place}: {reply}");
            tried += 1;
        }
        for change in [
            (|_| b"garbage".to_vec()) as fn(Vec<u8>) -> Vec<u8>,
            |_| vec![0; 3000],
            |octets| octets[..octets.len() / 2].to_vec(),
            |octets| octets[..octets.len() - 1].to_vec(),
            |octets| [octets.clone(), octets].concat(),
            |octets| [octets, vec![0]].concat(),
        ] {
            let mut sent = 0;
            let reply = login(&server, &mut party, "", &mut |step, octets| {
                let octets = if step == at { change(octets) } else { octets };
                sent = octets.len();
                octets
            });
            assert!(reply.starts_with("535 ") || reply.starts_with("501 "), "message {at}, {sent} octets: {reply}");
            tried += 1;
        }
    }
    assert!(tried >= 100, "{tried}");
    assert!(!server.log().contains("\"identity\":\"bob"), "whoever got in is who has the ticket");
    // Longer than any line may be.
    let reply = Client::connect(server.mx()).auth_octets("GSSAPI", &vec![b'a'; 200_000]);
    assert!(reply.starts_with("500 5.5.6"), "{reply}");
    assert!(login(&server, &mut party, "", &mut unchanged).starts_with("235 "));
    assert!(!server.log().contains("process.died") && !server.log().contains("quarantine"), "{}", server.log());

    // Without the grant that the replay cache needs it is the server's trouble, and told so in the log only.
    let text = fs::read_to_string(server.path("portreeve.toml")).expect("its configuration");
    let write = format!(", \"write:{}\"", realm.path("rcache").display());
    server.write_config(&text.replace(&write, ""));
    reload(&server);
    // The worker before may have had this connection already, and then says goodbye.
    let mut replies = (0..10).map(|_| login(&server, &mut party, "", &mut unchanged));
    let reply = replies.find(|reply| !reply.starts_with("421 ")).expect("a reply");
    assert!(reply.starts_with("454 4.7.0"), "{reply}");
    audit(&server, "replay cache");
    // Without the keytab's the new configuration is not taken, and says why; the old one serves.
    let read = format!("\"read:{}\"", realm.path("keytab").display());
    server.write_config(&text.replace(&read, "\"read:/etc/hostname\""));
    let (taken, told) = output(&mut server.command(&["reload"]));
    assert!(!taken.success() && told.contains("no key") && told.contains("grant"), "{told}");
}

#[test]
fn a_ticket_that_has_expired_is_refused() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    // Clocks must agree to a second, so that nobody has to wait for five minutes.
    let tables = realm.tables("").replace("/krb5.conf", "/strict.conf");
    let server = serve(&tables);
    realm.ticket("alice", &["-l", "3s"]);
    let mut party = Party::new(&realm, "alice");
    let token = party.init("smtp");
    let mut klist = realm.command("klist");
    klist.args(["-s", "-c", &realm.cache("alice")]);
    let until = Instant::now() + PATIENCE;
    while output(&mut klist).0.success() {
        assert!(Instant::now() < until, "the ticket does not expire");
        std::thread::sleep(Duration::from_millis(50)); // between two looks
    }
    let expired = Instant::now();
    while expired.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50)); // the clocks may differ by one
    }
    let reply = Client::connect(server.mx()).auth_octets("GSSAPI", &token);
    assert!(reply.starts_with("535 5.7.8"), "{reply}");
    await_that("the reason", || server.log().contains("expired") || server.log().contains("clock"));
}

#[test]
fn without_consent_it_is_refused_and_the_remedy_is_told() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    let server = prepare(&realm.tables("").replace("self_asserts = true", ""));
    let (fine, told) = output(&mut server.command(&["check"]));
    assert!(!fine.success() && told.contains("SELF_ASSERTS") && told.contains("self_asserts = true"), "{told}");
    let server = prepare(
        &realm
            .tables("")
            .replace("self_asserts = true", "self_asserts = true\nrunner = \"inline\"\ngrant = []")
            .replacen("grant = [\"read", "#", 1),
    );
    let (fine, told) = output(&mut server.command(&["check"]));
    assert!(!fine.success() && told.contains("OFFLOAD") && told.contains("runner = \"process\""), "{told}");
}

/// The conformance kit holds it to what applies, and says of the rest why it does not.
#[test]
fn the_kit_says_what_does_not_apply() {
    if !is_here() {
        return;
    }
    let realm = Realm::start();
    let settings = format!(
        r#"{{"config":{:?},"keytab":{:?},"replay_cache":{:?}}}"#,
        realm.path("krb5.conf"),
        realm.path("keytab"),
        realm.path("rcache/kit")
    );
    let program = crate::server::program();
    let mut check = Command::new(&program);
    check.args(["plugin", "check"]).arg(program.with_file_name("libportreeve_gssapi.so"));
    check.args(["--json", "--seconds", "1", "--config", &settings]);
    let (good, told) = output(&mut check);
    assert!(good.success(), "{told}");
    for (rule, why) in [
        ("M1", "OFFLOAD_ALL or SELF_ASSERTS"),
        ("M3", "drop_state"),
        ("M5", "OFFLOAD_ALL or SELF_ASSERTS"),
        ("M7", "OFFLOAD"),
        ("P3", "asserts identities"),
        ("P5", "SELF_ASSERTS"),
    ] {
        let found = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let found: Vec<_> = found.filter(|line| line["rule"] == rule && line["mech"] == "GSSAPI").collect();
        let said = found
            .iter()
            .all(|line| line["result"] == "skip" && line["text"].as_str().is_some_and(|it| it.contains(why)));
        assert!(found.len() == 1 && said, "{rule}: {found:?}");
    }
    let passed = told.lines().filter(|line| line.contains("\"result\":\"pass\"")).count();
    assert!(passed >= 12, "{told}");
}
