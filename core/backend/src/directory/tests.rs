use std::net::IpAddr;

use super::*;
use crate::decoy::Profile;
use crate::prep::NameRules;
use crate::scheme;
use crate::users::Options;

const SSHA: &str = "{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==";
const SCRAM: &str = "{SCRAM-SHA-256}4096,AAECAwQFBgcICQoLDA0ODw==,zHCdol2044/ZyWzPLi7oxApCkamKw9Z+E4U/QApd/5Y=,dd5peBOitVnLNFu7VmwP+HiDaaw4OUCv396eVCWhYiE=";
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn users_of(text: &str, allow_cleartext: bool) -> Users {
    let options = Options {
        names: NameRules { default_domain: Some("demo.test".into()), ..NameRules::default() },
        secrets: scheme::Options { allow_cleartext, ..scheme::Options::default() },
        ..Options::default()
    };
    let text = Zeroizing::new(text.as_bytes().to_vec());
    Users::parse("users".as_ref(), text, &Arc::new(options)).unwrap_or_else(|bad| panic!("{bad}"))
}

fn directory_with(text: &str, allow_cleartext: bool) -> Directory {
    let decoys = Decoys::new([0x5a; 32], vec![Profile { weight: 1, iterations: 4096, salt_octets: 16 }]);
    Directory::new(users_of(text, allow_cleartext), decoys, None, Arc::new(AtomicU64::new(7)))
}

fn directory(text: &str) -> Directory {
    directory_with(text, false)
}

fn asked<'a>(directory: &Directory, question: &Question<'_>, answer: &'a mut Vec<u8>) -> Answer<'a> {
    answer.clear();
    directory.answer(question, answer);
    Answer::decode(answer).unwrap()
}

fn plain<'a>(authcid: &'a str, authzid: &'a str, password: &'a str) -> Question<'a> {
    Question::VerifyPassword {
        listener: "submission",
        client_ip: CLIENT,
        mechanism: "PLAIN",
        authcid: authcid.as_bytes(),
        authzid: authzid.as_bytes(),
        password: password.as_bytes(),
    }
}

fn key<'a>(kind: KeyKind, authcid: &'a str, authzid: &'a str) -> Question<'a> {
    Question::FetchKey {
        listener: "submission",
        client_ip: CLIENT,
        mechanism: "SCRAM-SHA-256",
        kind: kind as u32,
        authcid: authcid.as_bytes(),
        authzid: authzid.as_bytes(),
        realm: b"",
    }
}

const USERS: &str = "\
alice:{SCRAM}:aliases=info@demo.test,@rest.test senders=@news.test size=1M recipients=5
bob:{SCRAM} {SSHA}::disabled
carol:{SSHA}:mechanisms=SCRAM-SHA-256
root:{SCRAM}:authzids=@demo.test
empty:
";

fn users() -> String {
    USERS.replace("{SCRAM}", SCRAM).replace("{SSHA}", SSHA).replace("::disabled", ":disabled")
}

#[test]
fn a_right_password_gives_the_identity() {
    let directory = directory(&users());
    let mut buffer = Vec::new();
    let Answer::Sasl { status: 0, doomed: false, account: 0, identity: Some(identity), data: [], scram: None } =
        asked(&directory, &plain("Alice", "", "pencil"), &mut buffer)
    else {
        panic!("not accepted")
    };
    assert_eq!((identity.name, identity.epoch), ("alice@demo.test", 7));
    assert_eq!(identity.senders, ["alice@demo.test", "info@demo.test", "@news.test"]);
    assert_eq!((identity.message_octets_max, identity.recipients_max), (Some(1 << 20), Some(5)));
    // The authorization identity may be written in another form.
    assert!(matches!(
        asked(&directory, &plain("alice@demo.test", "ALICE", "pencil"), &mut buffer),
        Answer::Sasl { status: 0, identity: Some(_), .. }
    ));
}

/// CONTRACT C42: whatever is wrong, the mechanism and the client see the same.
#[test]
fn every_refusal_looks_the_same() {
    let directory = directory(&users());
    let long = "x".repeat(65536);
    let mut first: Option<Vec<u8>> = None;
    for (authcid, authzid, password, exists) in [
        ("alice", "", "wrong", true),
        ("alice", "", "", true),
        ("alice", "bob", "pencil", true),
        ("alice", "nobody", "pencil", true),
        ("alice", "a\0b", "pencil", true),
        ("bob", "", "wrong", true),
        ("carol", "", "wrong", true),
        ("empty", "", "pencil", true),
        ("root", "bob", "pencil", true),
        ("nobody", "", "pencil", false),
        ("", "", "pencil", false),
        ("alice\0", "", "pencil", false),
        ("alice\nbob:x", "", "pencil", false),
        ("a\u{2028}b", "", "pencil", false),
        ("' OR 1=1 --", "", "pencil", false),
        ("*", "", "pencil", false),
        (&long, "", "pencil", false),
        ("nobody", "", &long, false),
        ("alice", "", &long, true),
    ] {
        let mut answer = Vec::new();
        directory.answer(&plain(authcid, authzid, password), &mut answer);
        let Answer::Sasl { status: 1, doomed, .. } = Answer::decode(&answer).unwrap() else {
            panic!("{authcid:.20?} {authzid:?} was not denied")
        };
        assert_eq!(doomed, !exists, "{authcid:.20?}");
        // Without the flag that only the host sees.
        answer[2] = 0;
        assert_eq!(*first.get_or_insert_with(|| answer.clone()), answer, "{authcid:.20?}");
    }
}

#[test]
fn account_states_are_told_after_a_right_proof() {
    let directory = directory(&users());
    let mut buffer = Vec::new();
    for (name, expect) in [("bob", 1), ("carol", 2)] {
        match asked(&directory, &plain(name, "", "pencil"), &mut buffer) {
            Answer::Sasl { status: 0, doomed: false, account, identity: Some(_), .. } => assert_eq!(account, expect),
            _ => panic!("{name}"),
        }
    }
    // root may act for others, who need not have a password but must be enabled.
    match asked(&directory, &plain("root", "empty", "pencil"), &mut buffer) {
        Answer::Sasl { status: 0, account: 0, identity: Some(identity), .. } => {
            assert_eq!(identity.name, "empty@demo.test");
        }
        _ => panic!("root may not act as empty"),
    }
}

#[test]
fn fetched_keys_and_decoys_have_one_shape() {
    let directory = directory(&users());
    let fetch = |authcid: &str, authzid: &str| {
        let mut buffer = Vec::new();
        match asked(&directory, &key(KeyKind::ScramSha256, authcid, authzid), &mut buffer) {
            Answer::Sasl { status: 0, doomed, account, identity, data, scram: Some(scram) } => {
                assert_eq!((scram.iterations, scram.salt_octets, scram.hash_octets), (4096, 16, 32), "{authcid}");
                (doomed, account, identity.map(|identity| identity.name.to_owned()), data.to_vec())
            }
            _ => panic!("{authcid}"),
        }
    };
    let alice = fetch("alice", "");
    assert_eq!((alice.0, alice.1, alice.2.as_deref()), (false, 0, Some("alice@demo.test")));
    assert_eq!(alice.3[..16], (0..16).collect::<Vec<u8>>());
    assert_eq!(fetch("bob", "").1, 1);
    // Nobody, and somebody without this key: both a decoy, the same one each time and in each form of the name.
    for name in ["nobody", "carol", "empty", "x\0y", ""] {
        let ghost = fetch(name, "");
        assert_eq!((ghost.0, ghost.1, ghost.2), (true, 0, None), "{name:?}");
        assert_eq!(ghost.3, fetch(name, "").3);
    }
    assert_eq!(fetch("Nobody@DEMO.test", ""), fetch("nobody", ""));
    assert_ne!(fetch("nobody", "").3, fetch("nobody2", "").3);
    // Not allowed to act as somebody: the real salt, and keys that fit nothing.
    let refused = fetch("alice", "bob");
    assert_eq!((refused.0, refused.2, &refused.3[..16]), (true, None, &alice.3[..16]));
    assert_ne!(refused.3[16..], alice.3[16..]);
    assert_eq!(fetch("root", "alice").2.as_deref(), Some("alice@demo.test"));
    assert!(!directory.is_heavy(&key(KeyKind::ScramSha256, "alice", "")));
}

#[test]
fn other_keys() {
    let text = "tim:{CRAM-MD5}d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b\nclear:{PLAIN}pencil\n";
    let directory = directory_with(text, true);
    let mut buffer = Vec::new();
    for (name, real) in [("tim", true), ("clear", true), ("nobody", false)] {
        match asked(&directory, &key(KeyKind::CramMd5Context, name, ""), &mut buffer) {
            Answer::Sasl { status: 0, doomed, data, identity, .. } => {
                assert_eq!((doomed, data.len(), identity.is_some()), (!real, 32, real), "{name}");
            }
            _ => panic!("{name}"),
        }
    }
    match asked(&directory, &key(KeyKind::Cleartext, "clear", ""), &mut buffer) {
        Answer::Sasl { status: 0, data: b"pencil", .. } => {}
        _ => panic!("the password in clear"),
    }
    // Keys that were made from the password fit it.
    let question = key(KeyKind::ScramSha256, "clear", "");
    assert!(directory.is_heavy(&question));
    match asked(&directory, &question, &mut buffer) {
        Answer::Sasl { status: 0, doomed: false, data, scram: Some(scram), .. } => {
            let keys = ScramKeys::derive(Hash::Sha256, b"pencil", &data[..16], scram.iterations);
            assert_eq!(data[16..48], keys.stored_key[..]);
        }
        _ => panic!("SCRAM keys"),
    }
    // Of whom and for which realm the digest was made decides whether it is any use; who has none gets a decoy.
    let digests = directory_with(
        "dora:{DIGEST-MD5}ad9a807ce00c929fd778bb7551638ae9\nother:{DIGEST-MD5}o\\3ar\\3a241dc523d512ee3f7608549fd1f9dd1b\n\
         clear:{PLAIN}pencil\n",
        true,
    );
    for (authcid, realm, real) in [
        ("dora", "demo.test", true),
        ("dora@demo.test", "demo.test", false),
        ("dora", "", false),
        ("dora", "mx.demo.test", false),
        ("clear", "demo.test", true),
        ("clear@demo.test", "whatever", true),
        ("clear", "mx.demo.test", true),
        ("nobody", "demo.test", false),
        ("nobody@demo.test", "", false),
    ] {
        let question = Question::FetchKey {
            listener: "submission",
            client_ip: CLIENT,
            mechanism: "DIGEST-MD5",
            kind: KeyKind::DigestMd5Ha1 as u32,
            authcid: authcid.as_bytes(),
            authzid: b"",
            realm: realm.as_bytes(),
        };
        assert!(!digests.is_heavy(&question));
        match asked(&digests, &question, &mut buffer) {
            Answer::Sasl { status: 0, doomed, data, identity, .. } => {
                assert_eq!((doomed, data.len(), identity.is_some()), (!real, 16, real), "{authcid} {realm}");
            }
            _ => panic!("{authcid}"),
        }
    }
    let strict = directory_with("a:\n", false);
    assert!(matches!(asked(&strict, &key(KeyKind::Cleartext, "a", ""), &mut buffer), Answer::Sasl { status: 3, .. }));
}

/// What is told about SCRAM-SHA-256 keys: doomed, the keys, and how many derivations that took.
fn scram_of(directory: &Directory, name: &str) -> (bool, Vec<u8>, u32) {
    let (before, mut buffer) = (scheme::tests::DERIVED.get(), Vec::new());
    match asked(directory, &key(KeyKind::ScramSha256, name, ""), &mut buffer) {
        Answer::Sasl { status: 0, doomed, data, scram: Some(_), .. } => {
            (doomed, data.to_vec(), scheme::tests::DERIVED.get() - before)
        }
        _ => panic!("{name}"),
    }
}

#[test]
fn keys_of_passwords_in_clear_are_made_once_and_not_at_each_login() {
    let text = format!("clear:{{PLAIN}}pencil\nother:{{PLAIN}}brush\nstored:{SCRAM}\nempty:\n");
    let directory = directory_with(&text, true);
    let await_keys = || {
        while directory.is_heavy(&key(KeyKind::ScramSha256, "clear", "")) {
            std::thread::yield_now();
        }
    };
    await_keys();
    let (doomed, clear, derived) = scram_of(&directory, "clear");
    assert_eq!(clear[16..48], ScramKeys::derive(Hash::Sha256, b"pencil", &clear[..16], 4096).stored_key[..]);
    assert_eq!((doomed, derived), (false, 0));
    let other = scram_of(&directory, "other").1;
    for (name, ghost) in [("other", false), ("stored", false), ("empty", true), ("ghost", true)] {
        let (doomed, _, derived) = scram_of(&directory, name);
        assert_eq!((doomed, derived), (ghost, 0), "{name}");
    }
    // New content needs new keys; who has kept the password has kept the keys.
    directory.replace(users_of(&text.replace("brush", "paint"), true));
    await_keys();
    assert_eq!(scram_of(&directory, "clear"), (false, clear, 0));
    let (doomed, painted, derived) = scram_of(&directory, "other");
    assert!(!doomed && derived == 0 && painted[..16] == other[..16] && painted[16..] != other[16..]);
    assert_eq!(painted[16..48], ScramKeys::derive(Hash::Sha256, b"paint", &painted[..16], 4096).stored_key[..]);
    // Who has lost it has no keys any more.
    directory.replace(users_of(&text.replace("{PLAIN}brush", ""), true));
    await_keys();
    assert!(scram_of(&directory, "other").0);
}

/// The time must not tell who has a password in clear, or exists.
#[test]
fn where_too_many_have_passwords_in_clear_everybody_costs_the_same() {
    let lines = (0..=crate::derived::USERS_MAX).map(|n| format!("clear{n}:{{PLAIN}}pencil\n"));
    let directory = directory_with(&(lines.collect::<String>() + &format!("stored:{SCRAM}\nempty:\n")), true);
    let heavy = key(KeyKind::ScramSha256, "clear1", "");
    for _ in 0..2 {
        for (name, ghost) in [("clear1", false), ("stored", false), ("empty", true), ("ghost", true)] {
            let (doomed, _, derived) = scram_of(&directory, name);
            assert_eq!((doomed, derived, directory.is_heavy(&heavy)), (ghost, 1, true), "{name}");
        }
        while !directory.derived().is_settled(Hash::Sha256) {
            std::thread::yield_now();
        }
    }
}

#[test]
fn recipients() {
    let directory = directory(&users());
    let mut buffer = Vec::new();
    for (address, expect) in [
        ("Alice@demo.test", Some("alice@demo.test")),
        ("alice+tag@demo.test", Some("alice@demo.test")),
        ("\"alice\"@demo.test", Some("alice@demo.test")),
        ("info@demo.test", Some("alice@demo.test")),
        ("anything@rest.test", Some("alice@demo.test")),
        ("bob@demo.test", Some("bob@demo.test")),
        ("postmaster", Some("alice@demo.test")),
        ("PostMaster@elsewhere.test", Some("alice@demo.test")),
        ("ghost@demo.test", None),
        ("a\nb@demo.test", None),
        ("", None),
    ] {
        match asked(&directory, &Question::Recipient { address }, &mut buffer) {
            Answer::Recipient { status: 0, mailbox } => assert_eq!(Some(mailbox), expect, "{address}"),
            Answer::Recipient { status: 1, mailbox: "" } => assert_eq!(None, expect, "{address}"),
            _ => panic!("{address}"),
        }
    }
    let nobody = super::tests::directory("");
    let postmaster = Question::Recipient { address: "postmaster" };
    assert!(matches!(asked(&nobody, &postmaster, &mut buffer), Answer::Recipient { status: 2, .. }));
}

#[test]
fn senders() {
    let directory = directory(&format!("{}\nany::senders=*\n", users()));
    let mut buffer = Vec::new();
    for (identity, address, granted) in [
        ("alice@demo.test", "alice@demo.test", true),
        ("alice@demo.test", "ALICE+x@demo.test", true),
        ("alice@demo.test", "info@demo.test", true),
        ("alice@demo.test", "who@rest.test", true),
        ("alice@demo.test", "who@news.test", true),
        ("alice@demo.test", "bob@demo.test", false),
        ("alice@demo.test", "who@sub.news.test", false),
        ("alice@demo.test", "who@else.test", false),
        ("alice@demo.test", "postmaster@else.test", false),
        ("alice@demo.test", "", false),
        ("any@demo.test", "who@else.test", true),
        ("bob@demo.test", "bob@demo.test", false),
        ("gone@demo.test", "gone@demo.test", false),
    ] {
        match asked(&directory, &Question::Sender { identity, address }, &mut buffer) {
            Answer::Sender { status } => assert_eq!(status == 0, granted, "{identity} as {address}"),
            _ => panic!("{address}"),
        }
    }
}

#[test]
fn foreign_letters_in_passwords() {
    // As enrolled here, and as Dovecot hashes: the octets as they came.
    let composed = scheme::new_scram_sha256("päss".as_bytes(), 4096).unwrap();
    let raw = scheme::new_scram_sha256("pa\u{308}ss".as_bytes(), 4096).unwrap();
    let directory = directory(&format!("a:{}\nb:{}\n", *composed, *raw));
    let mut buffer = Vec::new();
    for (name, password, right) in
        [("a", "päss", true), ("a", "pa\u{308}ss", true), ("b", "pa\u{308}ss", true), ("b", "päss", false)]
    {
        let Answer::Sasl { status, .. } = asked(&directory, &plain(name, "", password), &mut buffer) else {
            panic!("{name}")
        };
        assert_eq!(status == 0, right, "{name} {password}");
    }
}

/// The work for an unknown user is the work for a wrong password: medians within a factor that a loaded
/// machine allows, where a missing decoy would be a factor of a thousand.
#[test]
fn unknown_users_cost_what_others_cost() {
    let directory = directory(&users());
    let median = |name: &str| {
        let mut buffer = Vec::new();
        let mut times: Vec<_> = (0..15)
            .map(|_| {
                let started = std::time::Instant::now();
                asked(&directory, &plain(name, "", "wrong"), &mut buffer);
                started.elapsed()
            })
            .collect();
        times.sort();
        times[7].as_secs_f64()
    };
    let known = median("alice");
    for name in ["nobody", "empty", "carol", "x\0y"] {
        let ratio = median(name) / known;
        assert!((0.2..5.0).contains(&ratio), "{name}: {ratio}");
    }
}

#[test]
fn new_content_raises_the_epoch() {
    let directory = directory("a:\n");
    let other = super::tests::directory("b:\n");
    let users = Arc::into_inner(Arc::new(other)).unwrap().users.into_inner();
    let old = directory.users();
    assert_eq!(directory.replace(Arc::into_inner(users).unwrap()), 8);
    assert!(old.user("a").is_some() && directory.users().user("a").is_none() && directory.users().user("b").is_some());
}

fn external<'a>(authzid: &'a str, certificate: &CertificateFields<'a>) -> Question<'a> {
    let (listener, client_ip, mechanism) = ("submission", CLIENT, "EXTERNAL");
    Question::VerifyExternal {
        listener,
        client_ip,
        mechanism,
        authzid: authzid.as_bytes(),
        certificate: certificate.clone(),
    }
}

#[test]
fn a_certificate_stands_for_whom_the_file_says() {
    let text = format!(
        "alice::cert=spki:{},mail:Alice@Demo.test authzids=@demo.test\n\
         bob::cert=cn:Both\\20of\\20them,uri:urn:x\\2cy\n\
         carol::cert=cn:Both\\20of\\20them disabled\n\
         dave::cert=cn:dave mechanisms=PLAIN\n",
        "0A".repeat(32)
    );
    let directory = directory(&text);
    let nobody = CertificateFields { spki_sha256: &[1; 32], mail: vec![], uris: vec![], common_names: vec![] };
    let key = CertificateFields { spki_sha256: &[10; 32], ..nobody.clone() };
    let mail = CertificateFields { mail: vec!["x@demo.test", "alice@DEMO.test"], ..nobody.clone() };
    let both = CertificateFields { common_names: vec!["Both of them"], ..nobody.clone() };
    let uri = CertificateFields { uris: vec!["urn:x,y"], ..nobody.clone() };
    let (other, dave) = (
        CertificateFields { common_names: vec!["Dave", "mail:alice@demo.test", ""], ..nobody.clone() },
        CertificateFields { common_names: vec!["dave"], ..nobody.clone() },
    );
    let mut buffer = Vec::new();
    for (certificate, authzid, wanted) in [
        (&nobody, "", None),
        (&nobody, "alice", None),
        (&key, "", Some(("alice@demo.test", 0))),
        (&key, "ALICE@demo.test", Some(("alice@demo.test", 0))),
        (&mail, "", Some(("alice@demo.test", 0))),
        // She may act as everybody there, but not as somebody who may not log in, and not as nobody.
        (&mail, "bob", Some(("bob@demo.test", 0))),
        (&mail, "carol", None),
        (&mail, "zoe", None),
        // Two users: one has to be named.
        (&both, "", None),
        (&both, "bob", Some(("bob@demo.test", 0))),
        (&both, "carol", Some(("carol@demo.test", 1))),
        (&both, "alice", None),
        (&uri, "", Some(("bob@demo.test", 0))),
        (&uri, "alice", None),
        // Compared whole, and each kind with its kind.
        (&other, "", None),
        (&dave, "", Some(("dave@demo.test", 2))),
    ] {
        let found = match asked(&directory, &external(authzid, certificate), &mut buffer) {
            Answer::Sasl { status: 0, doomed: false, account, identity: Some(identity), data: [], scram: None } => {
                Some((identity.name.to_owned(), account))
            }
            Answer::Sasl { status: 1, doomed: false, account: 0, identity: None, data: [], scram: None } => None,
            _ => panic!("another answer"),
        };
        assert_eq!(found, wanted.map(|(name, account)| (name.to_owned(), account)), "{certificate:?} {authzid}");
    }
}
