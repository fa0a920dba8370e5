use std::time::Instant;

use super::*;

const SSHA: &str = "{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==";

fn read(text: &str) -> Result<Users, BadUsers> {
    let options = Options {
        names: NameRules { default_domain: Some("demo.test".into()), ..NameRules::default() },
        ..Options::default()
    };
    Users::parse("users".as_ref(), Zeroizing::new(text.as_bytes().to_vec()), &Arc::new(options))
}

fn good(text: &str) -> Users {
    read(text).unwrap_or_else(|bad| panic!("{bad}"))
}

#[test]
fn a_whole_line() {
    let users = good(&format!(
        "# people\n\nAlice:{SSHA} {{CRAM-MD5}}d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b:\
         aliases=Info@demo.test,@Other.test senders=*,@news.test authzids=bob@demo.test mechanisms=plain,LOGIN \
         size=25M recipients=100 disabled\r\nbob@demo.test:\n"
    ));
    assert_eq!((users.len(), users.aliases()), (2, 2));
    let alice = users.user("ALICE@demo.TEST").unwrap();
    assert_eq!(alice.name, "alice@demo.test");
    assert_eq!(alice.secrets.iter().map(StoredSecret::scheme).collect::<Vec<_>>(), ["SSHA", "CRAM-MD5"]);
    assert_eq!(alice.aliases, ["info@demo.test", "@other.test"]);
    assert_eq!(alice.senders, ["*", "@news.test"]);
    assert_eq!(alice.authzids, ["bob@demo.test"]);
    assert_eq!(alice.mechanisms.len(), 2);
    assert_eq!((alice.message_octets_max, alice.recipients_max, alice.disabled), (Some(25 << 20), Some(100), true));
    assert!(alice.verify(b"pencil") && alice.verify(b"tanstaaftanstaaf") && !alice.verify(b"x"));
    assert!(users.user("bob").unwrap().secrets.is_empty());
    assert!(users.user("carol").is_none());
    assert_eq!(users.iter().map(|user| user.name).collect::<Vec<_>>(), ["alice@demo.test", "bob@demo.test"]);
}

#[test]
fn rfc5803_secrets_keep_their_colons() {
    let secret = "SCRAM-SHA-256$4096:AAECAwQFBgcICQoLDA0ODw==$zHCdol2044/ZyWzPLi7oxApCkamKw9Z+E4U/QApd/5Y=:dd5peBOitVnLNFu7VmwP+HiDaaw4OUCv396eVCWhYiE=";
    let users = good(&format!("a:{secret} {SSHA} {{SCRAM-SHA-256}}{secret}:size=1K\n"));
    let user = users.user("a").unwrap();
    assert_eq!((user.secrets.len(), user.message_octets_max), (3, Some(1024)));
    assert!(user.secrets.iter().all(|secret| secret.verify("", b"pencil")));
    assert_eq!(users.profiles(), [Profile { weight: 1, iterations: 4096, salt_octets: 16 }]);
}

#[test]
fn mailboxes_in_their_order() {
    let users =
        good("alice:\nbob::aliases=info@demo.test,@demo.test\ncarol@x.test::aliases=sales+eu@x.test\nsales@x.test:\n");
    let owner = |address: &str| users.mailbox(address).map(|user| user.name);
    for (address, expect) in [
        ("alice@demo.test", Some("alice@demo.test")),
        ("info@demo.test", Some("bob@demo.test")),
        ("alice+shop@demo.test", Some("alice@demo.test")),
        ("alice+a+b@demo.test", Some("alice@demo.test")),
        ("info+x@demo.test", Some("bob@demo.test")),
        ("sales+eu@x.test", Some("carol@x.test")),
        ("sales+us@x.test", Some("sales@x.test")),
        ("nobody@demo.test", Some("bob@demo.test")),
        ("+@demo.test", Some("bob@demo.test")),
        ("nobody@x.test", None),
        ("nobody", None),
        ("@", None),
        ("", None),
    ] {
        assert_eq!(owner(address).as_deref(), expect, "{address}");
    }
    assert_eq!(users.postmaster().unwrap().name, "alice@demo.test");
}

#[test]
fn faults_name_line_column_cause_and_remedy() {
    for (text, line, column, words) in [
        ("# x\nalice\n", 2, 6, "no colon"),
        ("\u{e9}: \n@x:\n", 2, 1, "nobody's name"),
        ("a/b@x:\n", 1, 1, "'/'"),
        ("../x@x:\n", 1, 1, "'.'"),
        ("a b@x:\n", 1, 1, "space"),
        ("a\\20b@x:\n", 1, 1, "space"),
        ("a\\0ab@x:\n", 1, 1, "nobody's name"),
        ("a\\zz@x:\n", 1, 2, "hexadecimal"),
        ("a\\ff@x:\n", 1, 1, "UTF-8"),
        ("a\u{2028}b@x:\n", 1, 1, "nobody's name"),
        ("a:{PLAIN}x\n", 1, 3, "clear"),
        ("a:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA== {WHAT}x\n", 1, 50, "WHAT"),
        ("a::size=0\n", 1, 9, "size"),
        ("a::size=18446744073709551615G\n", 1, 9, "size"),
        ("a::recipients=-1\n", 1, 15, "recipients"),
        ("a::colour=red\n", 1, 4, "unknown field 'colour='"),
        ("a::enabled\n", 1, 4, "neither key=value"),
        ("a::aliases=ok@x,bad@\n", 1, 17, "'bad@'"),
        ("a::aliases=*\n", 1, 12, "'*'"),
        ("a::mechanisms=PL AIN\n", 1, 18, "neither key=value"),
        ("a:::x\n", 1, 4, "third colon"),
        ("a::cert=mail:a@b size=1:2\n", 1, 24, "third colon"),
        ("a::cert=a@b\n", 1, 9, "does not fit here"),
        ("a::cert=cn:,cn:x\n", 1, 9, "does not fit here"),
        ("a::cert=cn:x,spki:00\n", 1, 14, "does not fit here"),
        ("a:\nb:\nA@demo.test:\n", 3, 1, "second time"),
        ("a::aliases=b@demo.test\nb:\n", 1, 1, "belongs to 'b@demo.test'"),
        ("a::aliases=c@x\nb::aliases=c@x\n", 2, 1, "belongs to 'a@demo.test'"),
        ("a\t:\n", 1, 2, "control"),
    ] {
        let bad = read(text).err().unwrap_or_else(|| panic!("{text:?} was taken"));
        let WhyBad::Lines(faults, 0) = &bad.why else { panic!("{text:?}: {bad}") };
        let (at, fault) = &faults[0];
        assert_eq!((*at, fault.column), (line, column), "{text:?}: {bad}");
        assert!(fault.cause.contains(words) && !fault.remedy.is_empty(), "{text:?}: {bad}");
        assert!(bad.to_string().starts_with(&format!("users:{line}:{column}: ")), "{bad}");
    }
    let many = "x\n".repeat(100);
    assert!(matches!(read(&many).err().unwrap().why, WhyBad::Lines(faults, 80) if faults.len() == 20));
    assert!(read(&format!("a:{}\n", "x".repeat(70_000))).is_err());
    let latin1 = Zeroizing::new(b"a:\nj\xf6rg:\n".to_vec());
    let bad = Users::parse("users".as_ref(), latin1, &Arc::default()).err().unwrap().to_string();
    assert!(bad.starts_with("users:2:2:") && bad.contains("UTF-8"), "{bad}");
}

#[test]
fn nothing_in_the_file_makes_a_panic() {
    let line = format!("alice\\3a:{SSHA} SCRAM-SHA-1$4096:a$b:c:aliases=a@b,@c size=1M disabled\n");
    for at in 0..=line.len() {
        for insert in ["\\", ":", " ", ",", "=", "\0", "é", "\n", "{", "}", "$", "@", "SCRAM-SHA-", "#"] {
            let _ = read(&format!("{}{insert}{}", &line[..at], &line[at..]));
            let _ = read(&format!("{}{insert}", &line[..at]));
        }
    }
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let options = Arc::default();
    let missing = Users::load(&folder.path().join("none"), &options).err().unwrap().to_string();
    assert!(missing.contains("user add"), "{missing}");
    assert!(matches!(Users::load(folder.path(), &options).err().unwrap().why, WhyBad::NotAFile));
    assert!(matches!(Users::load("/dev/zero".as_ref(), &options).err().unwrap().why, WhyBad::NotAFile));
    assert_eq!(good("").len(), 0);
    assert_eq!(good("\u{feff}# x\na:\n").len(), 1);
    assert!(good("").postmaster().is_none());
}

#[test]
fn the_index_grows_and_finds_all() {
    let mut text = String::new();
    for n in 0..1000 {
        // More aliases than lines, so that the table must grow.
        text.push_str(&format!("u{n}::aliases=a{n}@x,b{n}@x,c{n}@x\n"));
    }
    let users = good(&text);
    assert_eq!((users.len(), users.aliases()), (1000, 3000));
    for n in 0..1000 {
        let name = format!("u{n}@demo.test");
        assert_eq!(users.named(&name).unwrap().name, name);
        assert_eq!(users.mailbox(&format!("c{n}@x")).unwrap().name, name);
    }
    assert!(users.named("u1000@demo.test").is_none());
}

fn crowd(count: usize) -> String {
    let secret = crate::scheme::new_scram_sha256(b"x", 4096).unwrap();
    let mut text = String::with_capacity(count * 192);
    for n in 0..count {
        text.push_str(&format!("user{n:07}@example.com:{}\n", *secret));
    }
    text
}

fn measure(count: usize) -> (f64, usize) {
    let text = Zeroizing::new(crowd(count).into_bytes());
    let started = Instant::now();
    let users = Users::parse("users".as_ref(), text, &Arc::default()).unwrap_or_else(|bad| panic!("{bad}"));
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(users.len(), count);
    assert!(users.named(&format!("user{:07}@example.com", count - 1)).is_some());
    (seconds, users.memory_octets() / count)
}

#[test]
fn fifty_thousand_users() {
    let (seconds, octets) = measure(50_000);
    assert!(octets <= 300, "{octets} octets per user");
    assert!(seconds < 10.0, "{seconds} s");
}

/// `cargo test --release -p backend million -- --ignored --nocapture`
#[test]
#[ignore = "a million users; seconds and 400 MB"]
fn a_million_users() {
    let (seconds, octets) = measure(1_000_000);
    println!("1,000,000 users: {seconds:.2} s, {octets} octets each");
    assert!(octets <= 300, "{octets} octets per user");
}
