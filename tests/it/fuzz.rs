//! Entry points for fuzzers as plain functions, each with an oracle beyond "no panic", and a short run from
//! a fixed seed. A coverage-guided fuzzer calls the same functions.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smtp::host::OUT_OCTETS_MAX;
use smtp::listener::{Role, SyncViolation};
use smtp::{header, param, path};

use crate::bare::{self, Bare, Manners};
use crate::dialog::pieces;
use crate::splits::{LINES, reference};

/// F2: any octets, any pieces, any role. Replies are well formed (the harness reads them strictly), bounded, and no
/// message is accepted that has a bare CR or LF.
pub fn session(octets: &[u8]) {
    let Some((&choice, octets)) = octets.split_first() else { return };
    let role = [Role::Mx, Role::Submission, Role::Submissions][usize::from(choice) % 3];
    let mut listener = bare::listener(role);
    if choice & 64 != 0 {
        listener.sync_violation = SyncViolation::Log;
    }
    let manners = if choice & 128 != 0 { Manners::AWKWARD } else { Manners::PLAIN };
    let mut bare = Bare::connect(Arc::new(listener), manners);
    if choice & 32 != 0 && role != Role::Submissions {
        bare.enter_tls();
    }
    if choice & 16 != 0 {
        bare.send(b"EHLO client.example\r\n");
        bare.send(b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n");
    }
    let mut replies = 0;
    for piece in pieces(octets, u64::from(choice) << 8 | octets.len() as u64) {
        bare.send(piece);
        bare.replies(|_| replies += 1);
        if bare.awaits_tls {
            bare.handshake();
        }
    }
    // A reply needs at least a line of two octets; a chunk or a login may add one of its own.
    assert!(replies <= octets.len() / 2 + 8, "{replies} replies to {} octets", octets.len());
    assert!(bare.batch_octets_max <= OUT_OCTETS_MAX + 1024);
    for message in &bare.world.messages {
        let text = String::from_utf8_lossy(&message.body).replace("\r\n", "");
        assert!(!text.contains(['\r', '\n']), "a bare CR or LF was accepted");
        assert!(message.envelope.recipients().len() > 0);
        let lines = String::from_utf8_lossy(&message.prepend).into_owned();
        assert!(lines.ends_with("\r\n") && !lines.replace("\r\n", "").contains(['\r', '\n', '\0']), "{lines:?}");
        assert_eq!(lines.matches("Received:").count(), 1, "{lines:?}");
    }
}

/// F3: DATA against the reference.
pub fn framing(octets: &[u8]) {
    let data = [octets, b"\r\n.\r\n"].concat();
    let Some((body, bare_newline, rest)) = reference(&data) else { return };
    let data = &data[..data.len() - rest.len()];
    let mut bare = Bare::connect(Arc::new(bare::listener(Role::Mx)), Manners::PLAIN);
    bare.send(b"EHLO client.example\r\n");
    bare.send(b"MAIL FROM:<a@far.example>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n");
    bare.take();
    pieces(data, data.len() as u64).for_each(|piece| bare.send(piece));
    let heard = bare.take();
    // Other faults of the content (a loop) may be named first; a bare newline is never accepted.
    assert!(heard.starts_with("250 ") || heard.starts_with("554 "), "{heard:?}");
    assert!(!(bare_newline && heard.starts_with("250 ")), "{heard:?}");
    if let Some(message) = bare.world.messages.first() {
        assert_eq!(message.body, body);
    }
}

/// F4: addresses, parameters, xtext.
pub fn addresses(octets: &[u8]) {
    if let Ok((parsed, rest)) = path::parse(octets) {
        assert!(rest.len() < octets.len());
        if let path::Path::Mailbox(mailbox) = parsed {
            let mut canonical = String::new();
            mailbox.write_canonical(&mut canonical);
            let again = path::mailbox(&canonical).expect("what was printed is an address");
            let mut twice = String::new();
            again.write_canonical(&mut twice);
            assert_eq!(canonical, twice);
            assert!(!canonical.contains(['\r', '\n', '\0']), "{canonical:?}");
        }
    }
    let _ = (param::mail(octets), param::rcpt(octets));
    if let Ok(text) = std::str::from_utf8(octets) {
        let mut octets = [0; param::XTEXT_OCTETS_MAX];
        let decoded = param::decode_xtext(text, &mut octets);
        if let Some(decoded) = decoded {
            assert!(!decoded.contains(|c: char| c.is_control()), "{text:?} decodes to {decoded:?}");
        }
        let _ = (path::is_domain(text), path::is_literal(text), path::is_qualified(text), path::split(text));
    }
    let _ = header::addresses(octets, |_| {});
}

/// F5: an initial response is taken as base64 exactly when the strict decoder takes it.
pub fn base64_line(octets: &[u8]) {
    let response: Vec<u8> = octets.iter().filter(|c| (b'!'..=b'~').contains(*c)).copied().collect();
    if response.is_empty() || response == b"=" || response.len() > 2000 {
        return;
    }
    let mut bare = Bare::connect(Arc::new(bare::listener(Role::Submissions)), Manners::PLAIN);
    bare.send(b"EHLO client.example\r\n");
    bare.take();
    let heard = bare.ask(&[b"AUTH LOGIN ", &response[..], b"\r\n"].concat());
    let strict = STANDARD.decode(&response);
    let expected = match &strict {
        Err(_) => "501 5.5.2",
        Ok(name) if name.contains(&0) => "5", // NUL has no place in LOGIN
        Ok(name) if name.len() > 62 => "501 5.5.2",
        Ok(_) => "334 UGFzc3dvcmQ6",
    };
    assert!(heard.starts_with(expected), "{:?} gave {heard:?}", String::from_utf8_lossy(&response));
}

/// A generator that needs no crate: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    /// Pieces of `corpus` in any order, with a few octets changed, doubled or gone.
    fn mutate(&mut self, corpus: &[&[u8]], most: usize) -> Vec<u8> {
        let mut octets = Vec::new();
        for _ in 0..1 + self.roll(most) {
            octets.extend_from_slice(corpus[self.roll(corpus.len())]);
        }
        for _ in 0..self.roll(6) {
            let at = self.roll(octets.len());
            match self.roll(4) {
                0 => octets.insert(at, self.roll(256) as u8),
                1 => octets.truncate(at.max(1)),
                2 if at < octets.len() => drop(octets.remove(at)),
                _ if at < octets.len() => octets[at] = b"\r\n\0.=+<>@\" \x80"[self.roll(12)],
                _ => {}
            }
            if octets.is_empty() {
                octets.push(0);
            }
        }
        octets
    }
}

/// Runs `target` on `count` inputs; a failing one is printed, to be kept as a test.
fn run(seed: u64, count: usize, corpus: &[&[u8]], most: usize, target: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let mut dice = Dice(seed);
    let count = if std::env::var_os("PORTREEVE_LONG").is_some() { count * 50 } else { count };
    for _ in 0..count {
        let octets = dice.mutate(corpus, most);
        if let Err(cause) = std::panic::catch_unwind(|| target(&octets)) {
            eprintln!("seed {seed}, input b\"{}\"", octets.escape_ascii());
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn sessions_for_a_moment() {
    let beginnings: [&[u8]; 6] = [b"\x00", b"\xd1", b"\x60", b"\x72", b"\xf2", b"\x31"];
    for (seed, beginning) in (1..).zip(beginnings) {
        run(seed, 2500, &LINES, 20, |octets| session(&[beginning, octets].concat()));
    }
}

#[test]
fn framing_for_a_moment() {
    let parts: [&[u8]; 10] =
        [b"\r\n", b"\n", b"\r", b".", b"..", b"a: b\r\n", b"\r\n.\r", b"Received: x\r\n", b"\0", b"text text text\r\n"];
    run(7, 10_000, &parts, 40, framing);
}

#[test]
fn addresses_for_a_moment() {
    let parts: [&[u8]; 24] = [
        b"<",
        b">",
        b"a",
        b"@",
        b"b.example",
        b"\"",
        b"\\",
        b".",
        b"[192.0.2.1]",
        b"[IPv6:2001:db8::1]",
        b"@x.example:",
        b" ",
        b"SIZE=",
        b"12",
        b"BODY=8BITMIME",
        b"AUTH=",
        b"<>",
        b"+2B",
        b"+0A",
        b"NOTIFY=NEVER",
        b"ORCPT=rfc822;",
        b"\xc3\xa9",
        b"(c)",
        b",",
    ];
    run(8, 200_000, &parts, 12, addresses);
}

#[test]
fn base64_for_a_moment() {
    let parts: [&[u8]; 9] = [b"AAAA", b"Zm9v", b"YQ==", b"YWI=", b"=", b"A", b"+/", b"-", b"YR=="];
    run(9, 20_000, &parts, 12, base64_line);
}

/// The parts below the session have their entry points beside their code.
#[test]
fn packets_segments_records_and_users_for_a_moment() {
    let numbers: [&[u8]; 10] = [
        b"\0\0\0\0",
        b"\x01\0\0\0",
        b"\xff\xff\xff\xff",
        b"\0\x01",
        b"\x01\x01",
        b"\x10\0\0\0",
        b"alice@demo.test",
        b"\x05\0\0\0hello",
        b"\0\0\0\0\0\0\0\0",
        b"PRTRV",
    ];
    run(10, 20_000, &numbers, 20, link::fuzz_packet);
    run(11, 5_000, &numbers, 40, spool::fuzz_segment);
    let records: [&[u8]; 7] = [
        b"\x16\x03\x01\0\x05",
        b"\x15\x03\x03\0\x02\x01\0",
        b"\x17\x03\x03\0\x10",
        b"\x01\0\0\x01",
        b"\x03\x03",
        b"\0\0\0\0\0\0\0\0",
        b"EHLO x\r\n",
    ];
    run(12, 3_000, &records, 20, tls::fuzz_receive);
    // Kind, padding, length, content; see `tls::fuzz_records`.
    let instructions: [&[u8]; 9] = [
        b"\x03\0\x08EHLO x\r\n",
        b"\x03\x05\x06NOOP\r\n",
        b"\x02\0\x05\x18\0\0\x01\x01",
        b"\x02\0\x01\x18",
        b"\x02\0\x04\0\0\x01\0",
        b"\x01\0\x02\x01\0",
        b"\x01\0\x02\x01\x5a",
        b"\x03\0\0",
        b"\xc0\0\x05\x17\x03\x03\x41\0",
    ];
    run(14, 300, &instructions, 12, tls::fuzz_records);
    let lines: [&[u8]; 9] = [
        b"alice@demo.test",
        b":",
        b"{PLAIN}",
        b"{SCRAM-SHA-256}",
        b"$6$rounds=5000$salt$",
        b"\n",
        b"alias=",
        b"*@demo.test",
        b"#",
    ];
    run(13, 5_000, &lines, 20, backend::fuzz_texts);
}

/// What an issuer's servers say, and what clients with tokens do.
#[test]
fn issuers_and_bearers_for_a_moment() {
    // One document each time, so that the octets that change are what makes it a bad one.
    let documents: [&[u8]; 8] = [
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
        br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"},{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}]}"#,
        br#"{"keys":[{"kty":"RSA","kid":"r","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}]}"#,
        br#"{"keys":[]}"#,
        br#"{"active":true,"iss":"https://login.example","aud":"smtp.example","exp":1900000000,"email":"alice@demo.test","scope":"openid mail"}"#,
        br#"{"active":true,"iss":"https://login.example","aud":["x","smtp.example"],"nbf":1700000000.5,"email":"a","scp":["mail"],"email_verified":true}"#,
        br#"{"active":true,"iss":"https://login.example","aud":"smtp.example","exp":1800000001,"email":"a","scope":"mail","email_verified":"false"}"#,
        br#"{"active":false}"#,
    ];
    run(14, 30_000, &documents, 1, backend::token::fuzz_json);
    let pieces: [&[u8]; 18] = [
        b"n,,\x01",
        b"y,a=we=2Cird=3Duser,\x01",
        b"n,a=user@example.com,\x01",
        b"p=tls-exporter,,\x01",
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01",
        b"auth=bearer  a\x01",
        b"host=mail.example.com\x01",
        b"host=other.example\x01",
        b"host=",
        b"port=587\x01",
        b"port=65535\x01",
        b"port=65536\x01",
        b"port=0",
        b"user=x\x01",
        b"mthd=POST\x01",
        b"\x01",
        b"\x01\x01",
        b",",
    ];
    run(15, 60_000, &pieces, 8, portreeve_standard::fuzz_oauthbearer);
    // Whole ones, so that most of them are good.
    let messages: [&[u8]; 4] = [
        b"n,a=user@example.com,\x01host=mail.example.com\x01port=587\x01auth=Bearer abc==\x01\x01",
        b"y,,\x01auth=BEARER a-._~+/0\x01x=\t\x01\x01",
        b"n,a=a=3D=2C=3D,\x01port=1\x01auth=Bearer a\x01host=MAIL.example.com\x01\x01",
        b"n,,\x01auth=Bearer a\x01\x01",
    ];
    run(16, 60_000, &messages, 1, portreeve_standard::fuzz_oauthbearer);
}
