//! Mechanisms that say themselves who somebody is, and such as take long: with the operator's consent they are
//! served like any other, in both runners; without it, it is an alarm. One that blocks stops nobody else's login.

use std::fs;

use tempfile::TempDir;

use crate::runners::{Client, Faulty, await_that, compile, start_with, status};
use crate::server::{output, root};

const CONSENT: &str = "self_asserts = true";

fn start(terms: &str, flags: &str) -> Faulty {
    let source = root().join("tests/it/fixtures/asserts.c");
    start_with("asserts", "X-ASSERTS", terms, |folder| {
        compile(folder, &source, "asserts", &[&format!("-DFLAGS={flags}")]);
    })
}

fn login(server: &Faulty, message: &str) -> String {
    Client::connect(server.mx()).auth("X-ASSERTS", message)
}

#[test]
fn who_is_believed_names_users_and_gets_what_they_may() {
    for runner in ["inline", "process"] {
        let server = start(&format!("runner = \"{runner}\"\n{CONSENT}"), "PRV_M_SELF_ASSERTS");
        // The same preparation of names as everywhere.
        for alice in ["alice@demo.test", "ALICE@Demo.Test", "alice@demo.test alice@demo.test"] {
            let reply = login(&server, alice);
            assert!(reply.starts_with("235 2.7.0"), "{runner}, {alice}: {reply}\n{}", server.log());
        }
        await_that("the audit record", || {
            server
                .log()
                .lines()
                .any(|line| line.contains("X-ASSERTS") && line.contains("\"identity\":\"alice@demo.test\""))
        });
        // Who does not exist, and who may not: octet by octet a wrong password.
        let wrong = Client::connect(server.mx()).auth("PLAIN", "\0alice@demo.test\0wrong");
        assert!(wrong.starts_with("535 5.7.8"), "{wrong}");
        for refused in ["ghost@demo.test", "alice@demo.test bob@demo.test", "alice@demo.test ghost@demo.test", "\u{1}"]
        {
            assert_eq!(login(&server, refused), wrong, "{runner}, {refused}");
        }
        // Nobody at all, then somebody.
        assert!(login(&server, " alice@demo.test").starts_with("535 5.7.8"), "{runner}");
        assert!(login(&server, "").starts_with("501 5.5.2"), "{runner}");
        // None of this is the mechanism's fault.
        assert!(Client::connect(server.mx()).ask("EHLO client.example").contains("X-ASSERTS"), "{runner}");
        assert!(!server.log().contains("plugin.bypass"), "{runner}: {}", server.log());
    }
}

#[test]
fn an_assertion_without_consent_is_an_alarm() {
    // It has not declared it; with consent or without.
    for terms in ["runner = \"inline\"", "runner = \"process\"", "runner = \"process\"\nself_asserts = true"] {
        let server = start(terms, "0");
        let mut client = Client::connect(server.mx());
        assert!(client.ask("EHLO client.example").contains("X-ASSERTS"), "{terms}");
        let reply = client.auth("X-ASSERTS", "alice@demo.test");
        assert!(reply.starts_with("535 5.7.8"), "{terms}: {reply}");
        await_that("quarantine", || !client.ask("EHLO client.example").contains("X-ASSERTS"));
        await_that("the alarm", || server.log().contains("plugin.bypass"));
        await_that("the record", || server.log().contains("unpermitted assertion"));
        await_that("status", || status(&server)["supervisor"]["quarantine"]["X-ASSERTS"].is_string());
        assert!(client.auth("PLAIN", "\0alice@demo.test\0secret").starts_with("235 "), "{terms}");
    }
    // It has, but nobody believes it: not offered, and the log says what to write.
    let server = start("runner = \"process\"", "PRV_M_SELF_ASSERTS");
    await_that("the remedy", || server.log().contains("self_asserts = true"));
    assert!(!Client::connect(server.mx()).ask("EHLO client.example").contains("X-ASSERTS"));
    assert!(login(&server, "alice@demo.test").starts_with("504 5.5.4"));
}

#[test]
fn a_step_that_blocks_stops_nobody_elses_login() {
    let ground = TempDir::with_prefix("portreeve-it-block-").expect("a folder");
    let file = ground.path().join("now");
    let terms = format!("{CONSENT}\ngrant = [\"read:{}\"]", ground.path().display());
    let server = start(&terms, "PRV_M_SELF_ASSERTS|PRV_M_OFFLOAD_ALL");
    let host = server.processes()["mechanism-host"].clone();
    let mut blocked = Client::connect(server.mx());
    blocked.begin("X-ASSERTS", &format!("until:{}", file.display()));
    for _ in 0..20 {
        let reply = login(&server, "alice@demo.test");
        assert!(reply.starts_with("235 "), "{reply}");
    }
    // Only now it has what it waits for.
    fs::write(&file, "").expect("written");
    let reply = blocked.reply();
    assert!(reply.starts_with("235 "), "{reply}\n{}", server.log());

    // One that does not come back costs its own login and nothing else.
    let mut lost = Client::connect(server.mx());
    lost.begin("X-ASSERTS", "for ever");
    assert!(login(&server, "alice@demo.test").starts_with("235 "));
    let reply = lost.reply();
    assert!(reply.starts_with("454 4.7.0"), "{reply}");
    assert!(login(&server, "alice@demo.test").starts_with("235 "));
    assert_eq!(server.processes()["mechanism-host"], host);
    assert!(!server.log().contains("process.died"), "{}", server.log());
    let (_, listed) = output(&mut server.command(&["plugin", "list"]));
    assert!(listed.contains("believed who somebody is"), "{listed}");
}
