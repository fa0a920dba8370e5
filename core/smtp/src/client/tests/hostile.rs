//! Servers that do not mean well.

use super::*;

const GREETED: [&[u8]; 2] = [b"220 s\r\n", b"250-s\r\n250 PIPELINING\r\n"];

/// Feeds replies, each in one read; returns why it ended and what was said after the last of them.
fn after(tune: impl FnOnce(&mut Settings), mails: &[Mail], replies: &[&[u8]]) -> (String, Vec<u8>) {
    let mut driver = Driver::new(settings(tune), Channel::Clear, mails, 100);
    for (i, reply) in replies.iter().enumerate() {
        if i + 1 == replies.len() {
            driver.said.clear();
        }
        driver.hear(reply);
    }
    if driver.closed {
        assert_eq!(driver.results.len(), if mails.is_empty() { 0 } else { driver.client.results().len() });
        assert!(!driver.results.iter().any(|result| result == "pending"));
    }
    (driver.failure(), driver.said)
}

#[test]
fn what_nobody_asked_for() {
    let two = [mail(TWO)];
    let cases: &[(&[&[u8]], &str)] = &[
        (&[b"hello\r\n"], "greeting: reply without a code"),
        (&[b"\x16\x03\x01\0\x05\n"], "greeting: reply line that ends in LF without CR"),
        (&[b"HTTP/1.1 400 Bad Request\r\n"], "greeting: reply without a code"),
        (&[b"250 Ok\r\n"], "greeting: reply that does not fit"),
        (&[b"354 Go\r\n"], "greeting: reply that does not fit"),
        // A reply before its command, in one read with one that was due.
        (&[b"220 s\r\n250 s\r\n"], "EHLO: peer spoke out of turn"),
        (&[b"220 s\r\n2"], "EHLO: peer spoke out of turn"),
        (&[b"220 s\r\n", b"251 s\r\n"], "EHLO: reply that does not fit"),
        (&[b"220 s\r\n", b"250-s\r\n251 x\r\n"], "EHLO: reply whose lines have different codes"),
        (
            &[GREETED[0], GREETED[1], b"250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go\r\n250 Ok\r\n"],
            "message: peer spoke out of turn",
        ),
        (&[GREETED[0], GREETED[1], b"354 Go\r\n"], "MAIL: reply that does not fit"),
        (&[GREETED[0], GREETED[1], b"250 Ok\r\n354 Go\r\n"], "RCPT: reply that does not fit"),
        (&[GREETED[0], GREETED[1], b"250 Ok\r\n250 Ok\r\n250 Ok\r\n250 Ok\r\n"], "DATA: reply that does not fit"),
        (&[GREETED[0], GREETED[1], b"250 Ok\r\n250 Ok\r\n250 Ok\r\n334 Go\r\n"], "DATA: reply that does not fit"),
        (
            &[GREETED[0], GREETED[1], b"250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go\r\n", b"354 Go\r\n"],
            "end of message: reply that does not fit",
        ),
        (
            &[GREETED[0], GREETED[1], b"250 Ok\r\n550 No\r\n550 No\r\n354 Go\r\n", b"354 Go\r\n"],
            "end of message: reply that does not fit",
        ),
    ];
    for (replies, expect) in cases {
        let (failure, said) = after(|_| {}, &two, replies);
        assert_eq!(failure, format!("Protocol 4.5.0 {expect}"), "{:?}", replies.last());
        assert!(said.is_empty(), "{:?} was answered with {:?}", replies.last(), String::from_utf8_lossy(&said));
    }
    let lmtp = |settings: &mut Settings| settings.protocol = Protocol::Lmtp;
    for (replies, expect) in [
        (b"250 Ok\r\n550 No\r\n550 No\r\n354 Go\r\n", "peer wants a message for which it accepted nobody"),
        (b"250 Ok\r\n550 No\r\n550 No\r\n250 Ok\r\n", "reply that does not fit"),
    ] {
        let (failure, _) = after(lmtp, &two, &[GREETED[0], GREETED[1], replies]);
        assert!(failure.starts_with("Protocol") && failure.ends_with(expect), "{failure}");
    }
}

/// A reply more than commands: when idle and in LMTP it is one too many.
#[test]
fn wrong_counts() {
    let group: &[u8] = b"250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go\r\n";
    let lmtp = |settings: &mut Settings| settings.protocol = Protocol::Lmtp;
    let mut driver = Driver::new(settings(lmtp), Channel::Clear, &[mail(TWO), mail(TWO)], 100);
    [GREETED[0], GREETED[1], group].iter().for_each(|reply| driver.hear(reply));
    driver.hear(b"250 one\r\n250 two\r\n250 three\r\n");
    assert_eq!(driver.failure(), "Protocol 4.5.0 idle: peer spoke out of turn");
    assert_eq!(driver.results, ["taken 250 one", "taken 250 two"]);

    let mut client = Client::new(settings(|_| {}), Channel::Clear, [0; 24]);
    let mut out = Vec::new();
    // Nothing is said while something not understood is left.
    assert_eq!(client.receive(b"220 s\r\n42", &mut out), (7, Next::Read));
    assert_eq!((out.len(), client.receive(b"421 Bye\r\n", &mut out).1, out.len()), (0, Next::Closed, 0));

    let mut client = Client::new(settings(|_| {}), Channel::Clear, [0; 24]);
    client.receive(GREETED[0], &mut out);
    assert_eq!(client.receive(GREETED[1], &mut out).1, Next::Ready);
    assert_eq!(client.receive(b"", &mut out).1, Next::Ready);
    assert_eq!(client.receive(b"42", &mut out), (0, Next::Ready));
    assert_eq!(client.receive(b"421 4.3.2 Bye\r\n", &mut out).1, Next::Closed);
    assert_eq!((client.failure().unwrap().class, client.failure().unwrap().stage), (Class::Temporary, Stage::Idle));
}

/// Octets in clear behind the 220 to STARTTLS, at every split: they are refused, never heard inside TLS.
#[test]
fn injection_behind_starttls() {
    let tls = |settings: &mut Settings| settings.starttls = StartTls::Required;
    let replies = b"220 2.0.0 Go\r\n250-evil\r\n250 AUTH PLAIN\r\n";
    for split in 1..=replies.len() {
        let mut client = Client::new(settings(tls), Channel::Clear, [0; 24]);
        let mut out = Vec::new();
        client.receive(b"220 s\r\n", &mut out);
        client.receive(b"250-s\r\n250 STARTTLS\r\n", &mut out);
        out.clear();
        let (used, next) = client.receive(&replies[..split], &mut out);
        if split < b"220 2.0.0 Go\r\n".len() {
            assert_eq!((used, next), (0, Next::Read));
        } else if split == b"220 2.0.0 Go\r\n".len() {
            assert_eq!((used, next), (split, Next::StartTls));
            // A driver that hands on what came later in clear is told so, too.
            assert_eq!(client.receive(&replies[split..], &mut out).1, Next::Closed);
        } else {
            assert_eq!(next, Next::Closed, "split at {split}");
        }
        if next == Next::Closed {
            assert_eq!(client.failure().unwrap().to_string(), "STARTTLS: peer spoke out of turn");
            assert_eq!(client.tls_started(&mut out), Next::Closed);
        }
        assert!(out.is_empty() && !client.peer().auth, "split at {split}");
    }
    // And what was rightly said in clear is gone before anything is said inside.
    let (mut client, mut out) = (Client::new(settings(tls), Channel::Clear, [0; 24]), Vec::new());
    for reply in [&b"220 s\r\n"[..], b"250-s\r\n250-SIZE 1\r\n250 STARTTLS\r\n", b"220 Go\r\n"] {
        client.receive(reply, &mut out);
    }
    assert!(client.peer().size);
    client.tls_started(&mut out);
    assert_eq!(*client.peer(), Extensions::default());
}

#[test]
fn endless_replies_end() {
    for (piece, expect) in [
        (&b"250-more\r\n"[..], "reply with too many lines"),
        (b"250-", "reply line that is too long"),
        (b"xxxxxxxx", "reply line that is too long"),
        (b"250 Ok\r\n250 Ok\r\n", "peer spoke out of turn"),
    ] {
        let mut driver = Driver::new(settings(|_| {}), Channel::Clear, &[], 1);
        driver.hear(b"220 s\r\n");
        for _ in 0..10_000 {
            if driver.closed {
                break;
            }
            driver.hear(piece);
        }
        assert!(driver.failure().ends_with(expect), "{}", driver.failure());
        assert!(driver.said == b"EHLO c.example\r\n");
    }
}

/// A server that does not know the password can neither be sent mail nor learn the password.
#[test]
fn scram_against_an_impostor() {
    use base64::Engine as _;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let nonce = base64(
        "\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}",
    );
    let first = format!("334 {}\r\n", base64(&format!("r={nonce}x,s=AAAA,i=4096")));
    let wrong = format!("334 {}\r\n", base64(&format!("v={}", base64(&"x".repeat(32)))));
    let refusal = format!("334 {}\r\n", base64("e=other-error"));
    let ehlo = b"250-s\r\n250 AUTH SCRAM-SHA-256\r\n";
    for (replies, expect) in [
        (vec!["235 Ok\r\n"], "peer accepts a login without having proven itself"),
        (vec![&first, "235 Ok\r\n"], "peer accepts a login without having proven itself"),
        (vec![&first, &wrong], "SCRAM signature that is wrong: the server does not know the password"),
        (vec![&first, "334\r\n"], "SCRAM message without a signature"),
        (vec![&first, &refusal, "235 Ok\r\n"], "peer accepts a login without having proven itself"),
        (vec!["334\r\n"], "SCRAM message that is malformed"),
    ] {
        let mut all: Vec<&[u8]> = vec![b"220 s\r\n", ehlo];
        all.extend(replies.iter().map(|reply| reply.as_bytes()));
        let tune = |settings: &mut Settings| {
            login(settings);
            settings.starttls = StartTls::Never;
        };
        let (failure, said) = after(tune, &[mail(TWO)], &all);
        assert_eq!(failure, format!("Protocol 4.5.0 AUTH: {expect}"), "{replies:?}");
        assert!(said.is_empty(), "{replies:?}");
    }
    let tune = |settings: &mut Settings| {
        login(settings);
        settings.starttls = StartTls::Never;
    };
    let (failure, said) = after(tune, &[], &[b"220 s\r\n", ehlo, first.as_bytes(), refusal.as_bytes()]);
    assert_eq!((failure.as_str(), &said[..]), ("", &b"\r\n"[..]));
    let replies: [&[u8]; 5] = [b"220 s\r\n", ehlo, first.as_bytes(), refusal.as_bytes(), b"535 5.7.8 No\r\n"];
    let (failure, said) = after(tune, &[], &replies);
    assert_eq!((failure.as_str(), &said[..]), ("Permanent 5.7.8 AUTH: 535 5.7.8 No", &b"QUIT\r\n"[..]));
}

/// The words of a peer reach logs and notices: one line, bounded, no control characters.
#[test]
fn words_are_tamed() {
    let reply = [b"554 5.7.1 \x1b]0;x\x07 \xff ".as_slice(), &[b'y'; 1500], b"\r\n"].concat();
    let mut client = Client::new(settings(|_| {}), Channel::Clear, [0; 24]);
    let mut out = Vec::new();
    assert_eq!(client.receive(&reply, &mut out).1, Next::Closed);
    let failure = client.failure().unwrap();
    assert!(failure.text.len() <= 512 && !failure.text.contains(char::is_control), "{failure}");
    assert!(failure.is_permanent() && out == b"QUIT\r\n");
}
