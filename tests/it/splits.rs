//! The same octets give the same replies however they are cut; nothing but CRLF.CRLF ends a message;
//! nothing that was said before TLS is heard after it.

use std::sync::Arc;

use proptest::prelude::*;
use smtp::listener::{Listener, Role, StarttlsTrailing, SyncViolation};

use crate::bare::{self, Bare, Manners};
use crate::dialog::{self, Cut, pieces, play_bare};

#[test]
fn every_dialogue_cut_in_two_anywhere() {
    let mut failures = Vec::new();
    let mut played = 0u64;
    for dialog in dialog::ALL.iter().filter(|dialog| !dialog.whole) {
        let place = dialog.places[0];
        let Ok(octets) = play_bare(dialog, place, Manners::PLAIN, Cut::Nowhere) else {
            continue; // `dialog` reports it
        };
        // In a long one the ends are cut everywhere and the middle now and then.
        let stride = octets / 1500 + 1;
        for at in (1..octets).filter(|at| at % stride == 0 || *at < 300 || octets - at < 300) {
            played += 1;
            if let Err(why) = play_bare(dialog, place, Manners::PLAIN, Cut::At(at)) {
                failures.push(why);
                break;
            }
        }
    }
    println!("{played} cuts");
    assert!(failures.is_empty(), "{} dialogues depend on where they are cut:\n{}", failures.len(), failures.join("\n"));
}

/// A listener that does not mind clients that talk too early, so that any octets may come in one read.
fn patient(role: Role) -> Arc<Listener> {
    let mut listener = bare::listener(role);
    listener.sync_violation = SyncViolation::Log;
    Arc::new(listener)
}

/// Everything that the server says to `octets`, cut by `seed`, and whether it closed.
fn heard(listener: &Arc<Listener>, octets: &[u8], manners: Manners, seed: Option<u64>) -> (String, bool, u64) {
    let mut bare = Bare::connect(listener.clone(), manners);
    match seed {
        Some(seed) => pieces(octets, seed).for_each(|piece| bare.send(piece)),
        None => bare.send(octets),
    }
    (bare.take(), bare.closed, bare.world.committed)
}

/// Lines a client might send, and some that it should not.
pub const LINES: [&[u8]; 40] = [
    b"EHLO client.example\r\n",
    b"HELO client.example\r\n",
    b"MAIL FROM:<alice@demo.test>\r\n",
    b"MAIL FROM:<a@far.example> SIZE=100 BODY=8BITMIME\r\n",
    b"MAIL FROM:<>\r\n",
    b"RCPT TO:<bob@demo.test>\r\n",
    b"RCPT TO:<alice@demo.test>\r\n",
    b"RCPT TO:<nobody@demo.test>\r\n",
    b"RCPT TO:<x@far.example>\r\n",
    b"DATA\r\n",
    b".\r\n",
    b"..\r\n",
    b".\n",
    b"\r\n.\r\n",
    b"\r\r\n.\r\n",
    b"From: alice@demo.test\r\n",
    b"\r\n",
    b"text\r\n",
    b"text\n",
    b"text\r",
    b"BDAT 5\r\nabc\r\n",
    b"BDAT 0\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 11 LAST\r\nSubject: x\n",
    b"BDAT 12 LAST\r\nSubject: x\r\n",
    b"BDAT 3\r\n",
    b"BDAT -1\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY x\r\n",
    b"QUIT\r\n",
    b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH LOGIN\r\n",
    b"AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n",
    b"YWxpY2VAZGVtby50ZXN0\r\n",
    b"c2VjcmV0\r\n",
    b"*\r\n",
    b"\0",
    b"XYZZY",
];

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        12 => (0..LINES.len()).prop_map(|at| LINES[at].to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => (0usize..3000, any::<u8>()).prop_map(|(count, octet)| [vec![octet; count], b"\r\n".to_vec()].concat()),
    ];
    // Most conversations begin as a sensible one would: deep states are found by going there.
    let beginning = prop_oneof![
        Just(&b""[..]),
        Just(&b"EHLO client.example\r\n"[..]),
        Just(&b"EHLO c.example\r\nAUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\nMAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\n"[..]),
        Just(&b"EHLO c.example\r\nMAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n"[..]),
    ];
    (beginning, proptest::collection::vec(line, 1..24))
        .prop_map(|(beginning, lines)| [beginning, &lines.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_any_octets_gives_the_same_replies(octets in conversation(), seed in any::<u64>(), mx in any::<bool>()) {
        let listener = patient(if mx { Role::Mx } else { Role::Submissions });
        let whole = heard(&listener, &octets, Manners::PLAIN, None);
        let awkward = heard(&listener, &octets, Manners::AWKWARD, Some(seed));
        prop_assert_eq!(&whole, &awkward, "{:?}", String::from_utf8_lossy(&octets));
        let single = pieces(&octets, seed).next().map_or(0, <[u8]>::len);
        let (before, after) = octets.split_at(single);
        let mut bare = Bare::connect(listener, Manners::PLAIN);
        bare.send(before);
        bare.send(after);
        prop_assert_eq!(whole.0, bare.take(), "{:?}", String::from_utf8_lossy(&octets));
    }

    #[test]
    fn dialogues_cut_into_pieces(at in any::<prop::sample::Index>(), seed in any::<u64>(), late in any::<bool>(), narrow in 1usize..9) {
        let dialog = at.get(&dialog::ALL);
        let place = dialog.places[0];
        let manners = Manners { late, sink_octets: narrow, keep: true };
        if !dialog.whole && play_bare(dialog, place, Manners::PLAIN, Cut::Nowhere).is_ok() {
            prop_assert_eq!(play_bare(dialog, place, manners, Cut::Pieces(seed)).map(|_| ()), Ok(()));
        }
    }
}

/// What RFC 5321 §4.1.1.4 and §4.5.2 say, in as few lines as possible: the body, whether a CR or LF in it
/// stands alone, and what follows the end of data.
pub fn reference(data: &[u8]) -> Option<(Vec<u8>, bool, &[u8])> {
    let end = if data.starts_with(b".\r\n") { 0 } else { data.windows(5).position(|part| part == b"\r\n.\r\n")? + 2 };
    let text = &data[..end];
    let mut body = Vec::new();
    let mut bare = false;
    for (at, &octet) in text.iter().enumerate() {
        let line_start = at == 0 || (at >= 2 && &text[at - 2..at] == b"\r\n");
        bare |= octet == b'\n' && (at == 0 || text[at - 1] != b'\r');
        bare |= octet == b'\r' && text.get(at + 1) != Some(&b'\n');
        if !(octet == b'.' && line_start) {
            body.push(octet);
        }
    }
    Some((body, bare, &data[end + 3..]))
}

/// What stands around a dot that must not end the message (CONTRACT C31; CVE-2023-51764 and its kin).
const AROUND: [&[u8]; 12] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\r\n",
    b"\n\r",
    b"\r\n\n",
    b"\r\n\r",
    b"\r\n\0",
    b"\0\r\n",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x0b",
];

/// Endings and what a message with each of them is: text that goes on, or (`true`) the end.
fn endings() -> Vec<(Vec<u8>, bool)> {
    let mut endings = Vec::new();
    for before in AROUND {
        for after in AROUND {
            let ending = [before, b".", after].concat();
            let ends = before.ends_with(b"\r\n") && after.starts_with(b"\r\n");
            endings.push((ending, ends));
        }
    }
    for more in [
        &b"\r\n..\r\n"[..],
        b"\r\n. \r\n",
        b"\r\n.\t\r\n",
        b"\r\n.\x08\r\n",
        b"\r\n.\r \n",
        b"\r\n\x2e\x2e\n",
        b"\r\n.=0D=0A",
    ] {
        endings.push((more.to_vec(), false));
    }
    endings
}

const INJECTED: &[u8] = b"MAIL FROM:<evil@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\nevil\r\n";

fn with_data(listener: &Arc<Listener>) -> Bare {
    let mut bare = Bare::connect(listener.clone(), Manners::PLAIN);
    bare.send(b"EHLO client.example\r\n");
    bare.send(b"MAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\nDATA\r\n");
    assert!(bare.take().ends_with("354 ") || bare.world.messages.is_empty());
    bare
}

#[test]
fn nothing_but_crlf_dot_crlf_ends_data() {
    let endings = endings();
    assert!(endings.iter().filter(|(_, ends)| !ends).count() >= 40);
    let listener = patient(Role::Mx);
    for (ending, ends) in endings {
        for beginning in [&b"a: b\r\n\r\ntext"[..], b""] {
            let data = [beginning, &ending, INJECTED, b"\r\n.\r\nNOOP\r\n"].concat();
            let (body, bare_newline, rest) = reference(&data).expect("it ends");
            assert_eq!(
                ends || beginning.is_empty() && ending.starts_with(b"\r\n.\r\n"),
                rest.len() > INJECTED.len(),
                "{ending:?}"
            );
            for at in 0..=data.len() {
                let mut bare = with_data(&listener);
                bare.send(&data[..at]);
                bare.send(&data[at..]);
                let heard = bare.take();
                let first = if bare_newline { "554 5.6.0" } else { "250 2.0.0" };
                let why = || format!("{:?} cut at {at} gave {heard:?}", String::from_utf8_lossy(&data));
                assert!(heard.starts_with(first), "{}", why());
                // What follows the true end is commands; before it there are none.
                let replies = heard.lines().count();
                let commands = if ends { 4 } else { 1 };
                assert!(replies > commands && (ends || replies == 2), "{}", why());
                let accepted: Vec<&[u8]> = bare.world.messages.iter().map(|message| message.body.as_slice()).collect();
                let (own, others) = accepted.split_at(usize::from(!bare_newline));
                assert!(bare_newline || own[0] == body, "{}", why());
                // A second message is only there when the first one truly ended before it.
                assert!(others.is_empty() || rest.len() > INJECTED.len() && others == [b"evil\r\n\r\n"], "{}", why());
            }
        }
    }
}

fn no_bare_newline(body: &[u8]) -> bool {
    !String::from_utf8_lossy(body).replace("\r\n", "").contains(['\r', '\n'])
}

#[test]
fn in_a_chunk_nothing_ends_anything() {
    let listener = patient(Role::Mx);
    for (ending, _) in endings() {
        let chunk = [b"a: b\r\n\r\ntext", &ending[..], INJECTED].concat();
        let sent = [format!("BDAT {} LAST\r\n", chunk.len()).as_bytes(), &chunk, b"NOOP\r\n"].concat();
        for at in 0..=sent.len() {
            let mut bare = Bare::connect(listener.clone(), Manners::PLAIN);
            bare.send(b"EHLO client.example\r\nMAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\n");
            bare.take();
            bare.send(&sent[..at]);
            bare.send(&sent[at..]);
            let heard = bare.take();
            let good = no_bare_newline(&chunk);
            let why = || format!("{:?} cut at {at} gave {heard:?}", String::from_utf8_lossy(&sent));
            assert!(heard.starts_with(if good { "250 2.0.0" } else { "554 5.6.0" }), "{}", why());
            assert_eq!(heard.lines().count(), 2, "{}", why());
            let accepted = bare.world.messages.first().map(|message| message.body.as_slice());
            assert_eq!(accepted, good.then_some(&chunk[..]), "{}", why());
        }
    }
}

static PARTS: [&[u8]; 8] = [b"\r", b"\n", b"\r\n", b".", b"\0", b"x", b"\r\n.", b"\r\n.\r"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random texts of the octets that matter, against the reference.
    #[test]
    fn data_equals_the_reference(
        parts in proptest::collection::vec(prop::sample::select(&PARTS[..]), 0..30),
        seed in any::<u64>(),
        narrow in 1usize..5,
    ) {
        let data = [&parts.concat()[..], b"\r\n.\r\n"].concat();
        let (body, bare_newline, rest) = reference(&data).expect("it ends");
        let data = &data[..data.len() - rest.len()];
        let listener = patient(Role::Mx);
        let mut bare = Bare::connect(listener, Manners { late: true, sink_octets: narrow, keep: true });
        bare.send(b"EHLO c.example\r\nMAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\nDATA\r\n");
        bare.take();
        pieces(data, seed).for_each(|piece| bare.send(piece));
        let heard = bare.take();
        prop_assert!(heard.starts_with(if bare_newline { "554 5.6.0" } else { "250 2.0.0" }), "{:?} gave {heard:?}", String::from_utf8_lossy(data));
        prop_assert_eq!(bare.world.messages.first().map(|message| message.body.clone()), (!bare_newline).then_some(body));
    }
}

/// RFC 3207 §6, CONTRACT A1: whatever came before the handshake is not heard after it, wherever the reads ended.
#[test]
fn starttls_injection_at_every_split_point() {
    let injected: &[u8] = b"EHLO evil.example\r\nAUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\nMAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\nevil\r\n.\r\nQUIT\r\n";
    let before: &[u8] = b"EHLO client.example\r\nMAIL FROM:<a@far.example>\r\nSTARTTLS\r\n";
    let sent = [before, injected].concat();
    for role in [Role::Mx, Role::Submission] {
        let listener = patient(role);
        for first in 0..=sent.len() {
            // The rest comes in two reads, too, so that a cut line is met by STARTTLS.
            for second in [first, (first + sent.len()) / 2, sent.len()] {
                let mut bare = Bare::connect(listener.clone(), Manners::PLAIN);
                bare.take();
                bare.send(&sent[..first]);
                bare.send(&sent[first..second]);
                bare.send(&sent[second..]);
                let heard = bare.take();
                let finals: Vec<&str> = heard.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).collect();
                let why = || format!("{} cut at {first} and {second}: {heard:?}", role.name());
                assert_eq!(finals.len(), 3, "{}", why());
                assert!(finals[2].starts_with("220 2.0.0") && bare.awaits_tls && !bare.closed, "{}", why());
                bare.handshake();
                assert_eq!(bare.take(), "", "no greeting after STARTTLS (RFC 3207 §4.2)");
                // Nobody said EHLO, nobody logged in, nothing was begun.
                let refusal = if role == Role::Mx { "503 5.5.1" } else { "530 5.7.0" };
                assert!(bare.ask(b"MAIL FROM:<alice@demo.test>\r\n").starts_with(refusal), "{}", why());
                assert!(bare.ask(b"RCPT TO:<bob@demo.test>\r\n").starts_with(refusal), "{}", why());
                assert!(bare.ask(b"AUTH PLAIN AAAA\r\n").starts_with("503 5.5.1"), "{}", why());
                assert!(!bare.ask(b"EHLO client.example\r\n").contains("STARTTLS"));
                assert!(bare.ask(b"DATA\r\n").starts_with(refusal), "{}", why());
                assert_eq!(bare.world.committed, 0);
            }
        }
    }
}

#[test]
fn or_the_connection_is_closed_when_octets_follow_starttls() {
    let mut listener = bare::listener(Role::Submission);
    listener.starttls_trailing = StarttlsTrailing::Close;
    let listener = Arc::new(listener);
    let sent = b"STARTTLS\r\nAUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n";
    for at in 0..=sent.len() {
        let mut bare = Bare::connect(listener.clone(), Manners::PLAIN);
        bare.take();
        bare.send(&sent[..at]);
        bare.send(&sent[at..]);
        let heard = bare.take();
        // Only what is already read when STARTTLS is seen can be noticed (DECISIONS C8).
        let noticed = at != 10;
        assert!(heard.starts_with(if noticed { "554 5.5.0" } else { "220 2.0.0" }), "cut at {at}: {heard:?}");
        assert_eq!((bare.closed, bare.awaits_tls), (noticed, !noticed), "cut at {at}");
    }
}
