//! A peer that never tires: memory stays bounded, lines cost no allocation, and somebody who only makes
//! mistakes is sent away.

use std::sync::Arc;

use allocation_counter::measure;
use smtp::host::OUT_OCTETS_MAX;
use smtp::listener::Role;

use crate::bare::{self, Bare, Manners};

/// What one session may hold outside message streaming (CONTRACT C20), with its pools and our own buffers.
const OCTETS_MAX: u64 = 192 * 1024;

fn connect(role: Role, login: bool) -> Bare {
    let mut bare = Bare::connect(Arc::new(bare::listener(role)), Manners::FORGETFUL);
    bare.send(b"EHLO client.example\r\n");
    if login {
        bare.send(b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n");
    }
    bare
}

/// Sends `line` 100,000 times, on a new connection whenever the old one was closed.
fn flood(role: Role, login: bool, line: &[u8]) -> (u64, i64) {
    let mut bare = connect(role, login);
    for _ in 0..1000 {
        bare.send(line);
        bare.out.clear();
    }
    let info = measure(|| {
        for _ in 0..100_000 {
            if bare.closed || bare.awaits_tls {
                bare.reconnect();
                bare.send(b"EHLO client.example\r\n");
                if login {
                    bare.send(b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n");
                }
            }
            bare.send(line);
            bare.out.clear();
        }
    });
    (info.bytes_max, info.bytes_current)
}

#[test]
fn every_verb_a_hundred_thousand_times() {
    let lines: [&[u8]; 34] = [
        b"EHLO client.example\r\n",
        b"HELO client.example\r\n",
        b"EHLO\r\n",
        b"MAIL FROM:<alice@demo.test>\r\n",
        b"MAIL FROM:<>\r\n",
        b"MAIL FROM:<alice@demo.test>\r\nMAIL FROM:<alice@demo.test>\r\n",
        b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nRSET\r\n",
        b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\n",
        b"RCPT TO:<nobody@demo.test>\r\n",
        b"RCPT TO:<x@far.example>\r\n",
        b"DATA\r\n",
        b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n",
        b".\r\n",
        b"BDAT 1\r\nx",
        b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nBDAT 1\r\nx",
        b"BDAT 0 LAST\r\n",
        b"BDAT 99999999999999999999\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"VRFY x\r\n",
        b"EXPN x\r\n",
        b"HELP\r\n",
        b"STARTTLS\r\n",
        b"AUTH\r\n",
        b"AUTH PLAIN\r\n",
        b"AUTH LOGIN\r\n",
        b"AUTH CRAM-MD5\r\n",
        b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdAB3cm9uZw==\r\n",
        b"*\r\n",
        b"AAAA\r\n",
        b"XYZZY\r\n",
        b"\r\n",
        b"\n",
        b"NOOP x\ny\r\n",
    ];
    for (role, login) in [(Role::Mx, false), (Role::Submissions, false), (Role::Submissions, true)] {
        for line in lines {
            let (most, left) = flood(role, login, line);
            let what = || format!("{} login={login} {:?}", role.name(), String::from_utf8_lossy(line));
            assert!(most <= OCTETS_MAX, "{}: {most} octets at once", what());
            assert!(left <= 64 * 1024, "{}: {left} octets more at the end", what());
        }
    }
}

/// CONTRACT A10, A11 and their kin: one command, one transaction, one line without end.
#[test]
fn endless_things_on_one_connection() {
    let open: &[u8] = b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\n";
    let endless: [(&str, &[u8], Vec<u8>, usize); 9] = [
        ("tiny chunks", open, b"BDAT 1\r\nx".to_vec(), 200_000),
        ("empty chunks", open, b"BDAT 0\r\n".to_vec(), 200_000),
        ("recipients", b"MAIL FROM:<alice@demo.test>\r\n", b"RCPT TO:<bob@demo.test>\r\n".to_vec(), 100_000),
        ("a line", b"", vec![b'A'; 8192], 4096),
        ("an AUTH line", b"AUTH PLAIN ", vec![b'A'; 8192], 4096),
        (
            "a header",
            b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n",
            b"X: y\r\n".to_vec(),
            300_000,
        ),
        (
            "a header field",
            b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\nFrom: ",
            b"a,\r\n ".to_vec(),
            300_000,
        ),
        (
            "a header line",
            b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\nFrom: ",
            vec![b'a'; 8192],
            1000,
        ),
        (
            "a too large message",
            b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n",
            b"\r\n\r\n.".to_vec(),
            500_000,
        ),
    ];
    for (what, beginning, more, count) in endless {
        for role in [Role::Mx, Role::Submissions] {
            let mut bare = connect(role, role.is_submission());
            let info = measure(|| {
                bare.send(beginning);
                for _ in 0..count {
                    bare.send(&more);
                    bare.out.clear();
                }
            });
            // A thousand recipients and the header that is looked at may be held; nothing else grows.
            let bound = OCTETS_MAX + 1000 * 96 + 256 * 1024;
            assert!(info.bytes_max <= bound, "{what} on {}: {} octets", role.name(), info.bytes_max);
        }
    }
}

/// CONTRACT C21, A15: a client that sends and never reads.
#[test]
fn unread_replies_stop_the_parser() {
    for line in [&b"NOOP\r\n"[..], b"EHLO client.example\r\n", b"RSET\r\n", b"\r\n"] {
        let mut listener = bare::listener(Role::Submissions);
        (listener.limits.errors_max, listener.limits.idle_commands_max) = (u8::MAX, u8::MAX);
        let mut bare = Bare::connect(Arc::new(listener), Manners::FORGETFUL);
        bare.send(&line.repeat(100_000));
        let bound = OUT_OCTETS_MAX + 1024;
        assert!(
            bare.batch_octets_max <= bound,
            "{:?}: {} octets unsent",
            String::from_utf8_lossy(line),
            bare.batch_octets_max
        );
    }
}

/// Issue, figures: no allocation per line.
#[test]
fn a_line_costs_no_allocation() {
    /// Name, role, whether alice has logged in, how often the world itself allocates (its answer about a
    /// local mailbox is a box), and what one cycle sends.
    type Cycle<'a> = (&'a str, Role, bool, u64, &'a [&'a [u8]]);
    let cycles: [Cycle<'_>; 9] = [
        ("NOOP", Role::Mx, false, 0, &[b"NOOP\r\n"]),
        ("RSET", Role::Mx, false, 0, &[b"RSET\r\n"]),
        ("VRFY", Role::Mx, false, 0, &[b"VRFY alice\r\n"]),
        ("garbage", Role::Mx, false, 0, &[b"XYZZY\r\n"]),
        ("MAIL, RCPT, RSET", Role::Mx, false, 1, &[
            b"MAIL FROM:<alice@demo.test> SIZE=100\r\nRCPT TO:<bob@demo.test>\r\nRCPT TO:<x@far.example>\r\nRSET\r\n",
        ]),
        ("MAIL, RCPT, RSET of the authenticated", Role::Submissions, true, 0, &[
            b"MAIL FROM:<alice@demo.test> BODY=8BITMIME RET=FULL\r\nRCPT TO:<x@far.example> NOTIFY=NEVER\r\nRSET\r\n",
        ]),
        ("xtext", Role::Submissions, true, 0, &[
            b"MAIL FROM:<alice@demo.test> ENVID=a+2Bb AUTH=<>\r\nRCPT TO:<x@far.example> ORCPT=rfc822;x+2Bx@far.example\r\nRSET\r\n",
        ]),
        ("a message by DATA", Role::Mx, false, 1, &[
            b"MAIL FROM:<a@far.example>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n",
            b"From: a@far.example\r\n\r\ntext\r\n..\r\n.\r\n",
        ]),
        ("a message by BDAT", Role::Mx, false, 1, &[
            b"MAIL FROM:<a@far.example>\r\nRCPT TO:<bob@demo.test>\r\nBDAT 6\r\na: b\r\nBDAT 6 LAST\r\nc: d\r\n",
        ]),
    ];
    for (what, role, login, by_world, cycle) in cycles {
        let mut listener = bare::listener(role);
        (listener.limits.errors_max, listener.limits.idle_commands_max) = (u8::MAX, u8::MAX);
        let mut bare = Bare::connect(Arc::new(listener), Manners::FORGETFUL);
        bare.send(b"EHLO client.example\r\n");
        if login {
            bare.send(b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n");
        }
        let mut round = |count: u64| {
            for _ in 0..count {
                for octets in cycle {
                    bare.send(octets);
                }
                bare.out.clear();
            }
        };
        round(40);
        let info = measure(|| round(60));
        assert!(!bare.closed, "{what}: closed while counting");
        assert_eq!(info.count_total, 60 * by_world, "{what}: allocations in 60 cycles");
    }
}

/// CONTRACT C23: mistakes, idleness and messages are counted.
#[test]
fn who_only_errs_or_idles_is_sent_away() {
    for (what, line, count) in [
        ("mistakes", &b"XYZZY\r\n"[..], 10),
        ("bad sequences", b"RCPT TO:<bob@demo.test>\r\n", 10),
        ("NOOPs", b"NOOP\r\n", 100),
        ("RSETs", b"RSET\r\n", 100),
        ("VRFYs", b"VRFY x\r\n", 100),
        ("EHLOs", b"EHLO client.example\r\n", 100),
    ] {
        let mut bare = connect(Role::Mx, false);
        bare.out.clear();
        let mut answered = 0;
        let last = loop {
            let heard = bare.ask(line);
            if bare.closed {
                break heard;
            }
            answered += 1;
            assert!(answered <= count + 1, "{what}: {answered} answered");
        };
        assert!(answered + 2 >= count, "{what}: only {answered} answered");
        let farewell = last.lines().last().unwrap_or_default();
        assert!(farewell.starts_with("421 4."), "{what}: {last:?}");
    }
}
