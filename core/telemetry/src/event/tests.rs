use super::*;

fn login() -> Event<'static> {
    Event::audit("login", 1_772_366_400_123)
        .session(42)
        .word("mechanism", "PLAIN")
        .untrusted("authcid", &b"eve\r\n\x1b[31m\"\\\xff\xe2\x80\xae"[..])
        .number("code", 535)
}

#[test]
fn json_is_one_object_in_one_line() {
    let line = login().json("worker[7]");
    assert_eq!(line.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["time"], "2026-03-01T12:00:00.123Z");
    assert_eq!((&value["event"], &value["source"]), (&"login".into(), &"worker[7]".into()));
    assert_eq!(value["session"], "000000000001A");
    assert_eq!((&value["code"], &value["audit"]), (&535.into(), &true.into()));
    assert_eq!(value["authcid"], r#"eve\x0d\x0a\x1b[31m"\\\xff\xe2\x80\xae"#);
}

#[test]
fn human_line_quotes_peers_and_colours_only_when_told() {
    let line = login().human("worker[7]", false);
    assert_eq!(
        line,
        "2026-03-01T12:00:00.123Z info    worker[7] login session=000000000001A mechanism=PLAIN \
         authcid=\"eve\\x0d\\x0a\\x1b[31m\\\"\\\\\\xff\\xe2\\x80\\xae\" code=535\n"
    );
    assert!(login().human("worker[7]", true).contains("\x1b[32minfo   \x1b[0m"));
}

#[test]
fn a_line_stays_below_its_bound_and_is_still_whole() {
    let mut event = login();
    let long = vec![0x01; 5000];
    for name in ["a", "b", "c", "d"] {
        event = event.untrusted(name, long.clone());
    }
    event = event.number("last", 1);
    let json = event.json("worker[7]");
    assert!(json.len() <= LINE_OCTETS_MAX, "{}", json.len());
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&value["cut"], &value["last"]), (&true.into(), &1.into()));
    let human = event.human("worker[7]", true);
    assert!(human.len() <= LINE_OCTETS_MAX && human.ends_with(" last=1 cut=true\n"));
    // Names that somebody hostile put into a packet are bounded, too.
    let name = "\u{1}".repeat(65);
    let mut payload = Vec::new();
    Event { name: Cow::Borrowed(&name), ..login() }.encode(&mut payload);
    assert!(Event::decode(&payload).is_err());
}

#[test]
fn there_and_back_and_no_octet_panics() {
    let event = login().word("rule", "relay.denied");
    let mut payload = Vec::new();
    event.encode(&mut payload);
    assert_eq!(Event::decode(&payload).unwrap(), event);
    for at in 0..payload.len() {
        assert!(Event::decode(&payload[..at]).is_err());
        for value in 0..=255 {
            let mut changed = payload.clone();
            changed[at] = value;
            if let Ok(event) = Event::decode(&changed) {
                let line = event.json("x");
                assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
                assert_eq!(event.human("x", false).matches('\n').count(), 1);
            }
        }
    }
}

#[test]
fn different_octets_look_different() {
    assert_eq!(printable(br"\x0a"), r"\\x0a");
    assert_eq!(printable(b"\x0a"), r"\x0a");
    assert_eq!(printable("grüße 😀".as_bytes()), "grüße 😀");
    assert_eq!(printable("\u{85}\u{7f}\u{202e}".as_bytes()), r"\xc2\x85\x7f\xe2\x80\xae");
}

#[test]
fn dates() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (951_868_800, "2000-03-01T00:00:00.000Z"),
        (4_102_444_799, "2099-12-31T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(rfc3339(seconds * 1000), text);
    }
    rfc3339(u64::MAX);
}
