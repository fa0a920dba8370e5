//! Who hears what of mail that waits, and how often.

use std::collections::VecDeque;

use smtp::client::Protocol;
use smtp::envelope::Ret;

use super::hops::{BODY, Hop, Script, commit, from_alice, hops};
use super::*;
use crate::Place;

/// Alice's notices.
fn notices(mail: &Path) -> Vec<String> {
    new_files(&mail.join("demo.test/alice")).into_values().collect()
}

#[test]
fn a_delay_is_told_once_to_those_who_may_hear_it() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let hop = Hop::start(Script::default());
    let full = || VecDeque::from(vec!["452 4.2.2 full"; 1000]);
    let all = ["plain@far.example", "never@far.example", "failure@far.example", "asked@far.example", "x@far.example"];
    hop.script.by_address.lock().extend(all.map(|to| (to.to_owned(), full())));
    let mut worker = Worker::start(&spool);
    let mut envelope = from_alice(&[
        ("plain@far.example", Notify(0)),
        ("never@far.example", Notify::NEVER),
        ("failure@far.example", Notify(Notify::FAILURE.0 | Notify::SUCCESS.0)),
        ("asked@far.example", Notify::DELAY),
    ]);
    envelope.set_envid("id+2B1");
    envelope.ret = Some(Ret::Full);
    commit(&mut worker, &envelope, BODY);
    // A stranger, the null sender, and a notice's own envelope.
    worker.commit(Some("forged@victim.example"), &[("x@far.example", "")], BODY);
    worker.commit(None, &[("x@far.example", "")], BODY);
    let mut null = from_alice(&[("x@far.example", Notify(0))]);
    null.set_reverse_path(None);
    commit(&mut worker, &null, BODY);
    worker.die();
    let routes = || Routes::new(Some(hops(vec![hop.place()], Protocol::Smtp))).domain("demo.test", maildir(&mail));
    let start =
        |after: Option<Duration>| Running::start_with(&spool, routes(), |settings| settings.delay_notice = after);
    // The messages are of 2023: not old enough for this.
    let century = Duration::from_secs(100 * 365 * 86_400);
    for after in [None, Some(century)] {
        let running = start(after);
        running.seen.wait(3, "<plain@far.example> waits");
        assert_eq!(running.stop().count("sender is told"), 0);
    }
    let running = start(Some(Duration::from_secs(3600)));
    running.seen.wait(1, "2 recipients wait for long; sender is told by");
    running.seen.wait(1, "delivered to <alice@demo.test>");
    running.seen.wait(5, "<plain@far.example> waits");
    running.seen.wait(9, "<x@far.example> waits");
    assert_eq!(running.stop().count("sender is told"), 1);
    // Known after a restart.
    for _ in 0..2 {
        let running = start(Some(Duration::from_secs(3600)));
        running.seen.wait(4, "<plain@far.example> waits");
        running.seen.wait(6, "<x@far.example> waits");
        assert_eq!(running.stop().count("sender is told"), 0);
    }
    let told = notices(&mail);
    let [notice] = &told[..] else { panic!("{told:#?}") };
    for part in [
        "Return-Path: <>\n",
        "Auto-Submitted: auto-replied\n",
        "Subject: Delayed mail (still being tried)\n",
        "Original-Envelope-Id: id+1\n",
        "Original-Recipient: rfc822; first+name@far.example\nFinal-Recipient: rfc822; plain@far.example\nAction: delayed\nStatus: 4.2.2\nRemote-MTA: dns; 127.0.0.1\nDiagnostic-Code: smtp; 452 4.2.2 full\nWill-Retry-Until: ",
        "Final-Recipient: rfc822; asked@far.example\nAction: delayed\n",
        // RET is for failures (RFC 3461 §4.3).
        "Content-Type: text/rfc822-headers\n\nReceived: by here\nSubject: hello\n--=_",
    ] {
        assert!(notice.contains(part), "{part:?} is not in {notice}");
    }
    assert!(!notice.contains("never@far.example") && !notice.contains("failure@far.example"), "{notice}");
    assert_eq!(hop.texts().len(), 0, "nothing went to strangers");
    // What was told of a delay is told of its end, too.
    hop.script.by_address.lock().insert("plain@far.example".into(), vec!["550 5.1.1 nobody"; 1000].into());
    let running = start(Some(Duration::from_secs(3600)));
    running.seen.wait(1, "<plain@far.example> failed");
    running.seen.wait(1, "delivered to <alice@demo.test>");
    running.stop();
    assert_eq!(notices(&mail).iter().filter(|notice| notice.contains("Action: failed\nStatus: 5.1.1\n")).count(), 1);
}

#[test]
fn a_next_hop_that_is_left_alone_is_a_delay_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let nobody = Place::Tcp("127.0.0.1".into(), 1);
    let mut worker = Worker::start(&spool);
    for _ in 0..3 {
        commit(&mut worker, &from_alice(&[("b@far.example", Notify(0))]), BODY);
    }
    worker.die();
    let routes = Routes::new(Some(hops(vec![nobody], Protocol::Smtp))).domain("demo.test", maildir(&mail));
    let running = Running::start_with(&spool, routes, |settings| settings.delay_notice = Some(Duration::from_secs(1)));
    running.seen.wait(3, "delivered to <alice@demo.test>");
    running.seen.wait(20, "<b@far.example> waits");
    assert_eq!(running.stop().count("sender is told"), 3);
    let told = notices(&mail);
    assert!(told.iter().all(|notice| notice.contains("Action: delayed\nStatus: 4.4.1\n")), "{told:#?}");
}

/// CONTRACT C28: whatever a stranger writes, nothing is sent to anybody but the next hop's own recipients.
#[test]
fn hostile_senders_make_no_mail_to_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let hop = Hop::start(Script::default());
    // Every kind of end.
    let ends = [
        ("taken@far.example", "250 2.1.5 OK"),
        ("full@far.example", "452 4.2.2 full"),
        ("nobody@far.example", "550 5.1.1 nobody"),
    ];
    hop.script.by_address.lock().extend(ends.map(|(to, reply)| (to.to_owned(), vec![reply; 10_000].into())));
    let every = Notify(Notify::SUCCESS.0 | Notify::FAILURE.0 | Notify::DELAY.0);
    let senders = [
        None,
        Some("victim@elsewhere.example"),
        Some("alice@demo.test"),
        Some("postmaster@demo.test"),
        Some("mailer-daemon@far.example"),
        Some("taken@far.example"),
        Some("\"a b\"@elsewhere.example"),
    ];
    let mut worker = Worker::start(&spool);
    let mut sent = 0;
    for sender in senders {
        for notify in [Notify(0), every, Notify::NEVER] {
            for (to, _) in ends {
                let mut envelope = Envelope::default();
                envelope.set_reverse_path(sender);
                // What a client says of itself is no proof.
                envelope.set_auth("alice@demo.test");
                envelope.ret = Some(Ret::Full);
                envelope.push(Recipient {
                    address: to,
                    mailbox: "",
                    orcpt: Some("rfc822;victim@elsewhere.example"),
                    notify,
                });
                commit(&mut worker, &envelope, BODY);
                sent += 1;
            }
        }
    }
    // One who had logged in, but sends as nobody: a notice about a notice is never sent.
    for notify in [Notify(0), every] {
        let mut envelope = from_alice(&ends.map(|(to, _)| (to, notify)));
        envelope.set_reverse_path(None);
        commit(&mut worker, &envelope, BODY);
    }
    worker.die();
    let routes = || Routes::new(Some(hops(vec![hop.place()], Protocol::Smtp))).domain("demo.test", maildir(&mail));
    let age = |settings: &mut Settings| settings.delay_notice = Some(Duration::from_secs(1));
    let running = Running::start_with(&spool, routes(), age);
    running.seen.wait(sent / 3 + 2, "delivered to <taken@far.example>");
    running.seen.wait(2 * sent, "waits");
    let seen = running.stop();
    assert_eq!(seen.count("sender is told"), 0, "{:#?}", seen.lines.lock());
    // Whoever wants no report is not waited for.
    let over = seen.count("sender is not told");
    assert_eq!(over, senders.len());
    // And when their time is over.
    let running = Running::start_with(&spool, routes(), |settings| {
        age(settings);
        settings.expire = Duration::from_secs(60);
    });
    running.seen.wait(2 * (sent / 3 + 2) - over, "sender is not told");
    wait_until_empty(&spool);
    assert_eq!(running.stop().count("sender is told"), 0);
    // The ledger: what left is what was sent, once each, to whom it was sent.
    let taken = hop.script.taken.lock();
    assert_eq!(taken.len(), sent / 3 + 2);
    assert!(taken.iter().all(|(to, text)| *to == ["taken@far.example"] && !text.contains("delivery-status")));
    assert!(!mail.exists(), "nobody here got anything");
}
