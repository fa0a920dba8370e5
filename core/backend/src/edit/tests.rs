use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::prep::NameRules;
use crate::scheme::Dialect;

fn options() -> Options {
    Options {
        names: NameRules { default_domain: Some("demo.test".into()), ..NameRules::default() },
        ..Options::default()
    }
}

struct Place {
    folder: tempfile::TempDir,
    file: UsersFile,
}

impl Place {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        if !text.is_empty() {
            fs::write(&path, text).unwrap();
        }
        Self { file: UsersFile::new(path, options()), folder }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.folder.path().join("users")).unwrap()
    }
}

/// SCRAM keys and a CRAM-MD5 context.
const BOTH: &[NewScheme] = &[NewScheme::Scram(crate::scheme::Hash::Sha256), NewScheme::CramMd5];

fn new<'a>(name: &'a str, password: &'a [u8]) -> NewUser<'a> {
    NewUser { name, password: Some(password), ..NewUser::default() }
}

#[test]
fn add_passwd_verify_remove() {
    let place = Place::new("");
    let file = &place.file;
    let alice = NewUser {
        schemes: BOTH,
        aliases: &["Info@demo.test", "@rest.test"],
        senders: &["*"],
        message_octets_max: Some(1000),
        recipients_max: Some(7),
        ..new("Alice", b"pencil")
    };
    assert_eq!(file.add(&alice).unwrap(), "alice@demo.test");
    assert!(matches!(file.add(&alice), Err(EditError::Exists(name)) if name == "alice@demo.test"));
    file.add(&NewUser { name: "box", ..NewUser::default() }).unwrap();
    let mode = |name: &str| fs::metadata(place.folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("users"), 0o600);

    assert_eq!(file.verify("alice", b"pencil").unwrap(), Verified::Right);
    assert_eq!(file.verify("alice", b"x").unwrap(), Verified::Wrong);
    assert_eq!(file.verify("box", b"x").unwrap(), Verified::Wrong);
    assert_eq!(file.verify("who", b"x").unwrap(), Verified::Unknown);
    file.set_disabled("alice", true).unwrap();
    assert_eq!(file.verify("alice", b"pencil").unwrap(), Verified::Disabled);
    file.set_disabled("alice", true).unwrap();
    file.set_disabled("alice", false).unwrap();

    file.passwd("ALICE", "neü".as_bytes(), &[]).unwrap();
    assert_eq!(file.verify("alice", "neü".as_bytes()).unwrap(), Verified::Right);
    assert_eq!(file.verify("alice", b"pencil").unwrap(), Verified::Wrong);
    let listed = file.list().unwrap();
    assert_eq!(
        listed[0],
        Listed {
            name: "alice@demo.test".into(),
            schemes: vec!["SCRAM-SHA-256", "CRAM-MD5"],
            aliases: vec!["info@demo.test".into(), "@rest.test".into()],
            senders: vec!["*".into()],
            disabled: false,
        }
    );
    assert!(place.text().contains(":aliases=info@demo.test,@rest.test senders=* size=1000 recipients=7\n"));

    assert!(matches!(file.remove("who"), Err(EditError::Unknown(_))));
    assert!(matches!(file.passwd("who", b"x", &[]), Err(EditError::Unknown(_))));
    file.remove("alice").unwrap();
    file.remove("box").unwrap();
    assert!(file.list().unwrap().is_empty());
    assert_eq!(place.text(), FIRST_LINES);
}

#[test]
fn comments_and_order_stay() {
    let text = "# first\n\nbob:\n  \n# about carol\ncarol@x.test:$1$saltsalt$wCrc3hcrR95SV83Xh8Z.41:size=1K\n# last\n";
    let place = Place::new(text);
    place.file.add(&NewUser { name: "dave", ..NewUser::default() }).unwrap();
    assert_eq!(place.text(), format!("{text}dave@demo.test:\n"));
    place.file.passwd("carol@x.test", b"pencil", &[]).unwrap();
    let lines: Vec<_> = place.text().lines().map(str::to_owned).collect();
    assert_eq!((lines[4].as_str(), lines[6].as_str()), ("# about carol", "# last"));
    assert!(lines[5].starts_with("carol@x.test:{SCRAM-SHA-256}15000,") && lines[5].ends_with(":size=1K"));
    place.file.remove("bob").unwrap();
    assert!(place.text().starts_with("# first\n\n  \n# about carol\n"));
}

/// CONTRACT C44: whatever a name or alias contains, the file has one more line that says exactly that,
/// or nothing changes.
#[test]
fn hostile_identities_never_become_structure() {
    let long = "a".repeat(65536);
    let hostile = [
        "a\0b",
        "a\nroot:{PLAIN}x",
        "a\r\nb:",
        "a\u{2028}b:",
        "a:b",
        "a:{PLAIN}x:senders=*",
        "'",
        "\"",
        "\\",
        "\\3a",
        "a\\0ab",
        "a b",
        "a,b",
        "a=b",
        "#a",
        "# comment",
        "*",
        ")(",
        "%00",
        "a@b@c",
        "@",
        "@x",
        "x@",
        "..",
        "../../etc",
        "a/b",
        "",
        " ",
        "\t",
        "{PLAIN}x",
        "' OR ''='",
        "a\u{7f}",
        "a\u{ad}b",
        "\u{feff}a",
        "a\u{200b}",
        "ａ",
        "é",
        &long,
        &long[..255],
        &long[..256],
        &long[..321],
    ];
    for name in hostile {
        let place = Place::new("# kept\nkept:\n");
        let before = place.text();
        match place.file.add(&new(name, b"pencil")) {
            Ok(written) => {
                let listed = place.file.list().unwrap();
                assert_eq!(listed.len(), 2, "{name:?}");
                assert_eq!((listed[0].name.as_str(), listed[1].name.as_str()), ("kept@demo.test", written.as_str()));
                assert_eq!((listed[1].senders.len(), listed[1].schemes.len()), (0, 1), "{name:?}");
                assert_eq!(place.file.verify(name, b"pencil").unwrap(), Verified::Right, "{name:?}");
                place.file.passwd(name, b"other", BOTH).unwrap();
                assert_eq!(place.file.verify(name, b"other").unwrap(), Verified::Right, "{name:?}");
                place.file.remove(name).unwrap();
            }
            Err(error) => {
                assert!(matches!(error, EditError::BadName(_)) && error.to_string().len() < 1000, "{name:?}: {error}")
            }
        }
        assert_eq!(place.text(), before, "{name:?}");

        let aliased = NewUser { name: "user", aliases: &[name], ..NewUser::default() };
        match place.file.add(&aliased) {
            Ok(_) => {
                let listed = place.file.list().unwrap();
                assert_eq!((listed.len(), listed[1].aliases.len(), listed[1].senders.len()), (2, 1, 0), "{name:?}");
                place.file.remove("user").unwrap();
            }
            Err(error) => assert!(matches!(error, EditError::BadAddress(_)), "{name:?}: {error}"),
        }
        assert_eq!(place.text(), before, "{name:?}");
    }
    let place = Place::new("kept:\n");
    for password in [&b""[..], b"a\0b", &[b'x'; 1025]] {
        assert!(matches!(place.file.add(&new("x", password)), Err(EditError::BadPassword)));
    }
    // A password is hashed, so it may be anything else.
    place.file.add(&new("x", b"a:b {PLAIN}\n\\ \xff")).unwrap();
    assert_eq!(place.file.verify("x", b"a:b {PLAIN}\n\\ \xff").unwrap(), Verified::Right);
}

#[test]
fn a_bad_file_is_named_and_left_alone() {
    let place = Place::new("alice:\nbob\n");
    let error = place.file.add(&NewUser { name: "carol", ..NewUser::default() }).unwrap_err().to_string();
    assert!(error.contains("users:2:4: no colon"), "{error}");
    assert_eq!(place.text(), "alice:\nbob\n");
    // A change that would make a bad file is none.
    let place = Place::new("alice::aliases=info@demo.test\n");
    let error = place.file.add(&NewUser { name: "info", ..NewUser::default() }).unwrap_err().to_string();
    assert!(error.contains("alias 'info@demo.test'"), "{error}");
    assert_eq!(place.text(), "alice::aliases=info@demo.test\n");
    let nowhere = UsersFile::new("/nonexistent/users", options());
    assert!(
        nowhere.add(&NewUser { name: "a", ..NewUser::default() }).unwrap_err().to_string().contains("/nonexistent")
    );
}

#[test]
fn many_administrators_at_once() {
    let place = Place::new("");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let file = &place.file;
            scope.spawn(move || {
                for n in 0..10 {
                    file.add(&NewUser { name: &format!("u{thread}-{n}"), ..NewUser::default() }).unwrap();
                }
                for n in 0..5 {
                    file.remove(&format!("u{thread}-{n}")).unwrap();
                }
            });
        }
    });
    assert_eq!(place.file.list().unwrap().len(), 40);
    let mut names: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["users", "users.lock"]);
}

#[test]
fn a_symbolic_link_stays_one_and_leftovers_do_no_harm() {
    let place = Place::new("");
    let real = place.folder.path().join("real");
    fs::write(&real, "a:\n").unwrap();
    fs::write(place.folder.path().join("real.new"), "left behind").unwrap();
    std::os::unix::fs::symlink("real", place.folder.path().join("users")).unwrap();
    place.file.add(&NewUser { name: "b", ..NewUser::default() }).unwrap();
    assert!(fs::symlink_metadata(place.folder.path().join("users")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(real).unwrap(), "a:\nb@demo.test:\n");
}

#[test]
fn import_passwd_files() {
    let text = "\
# from the old server
alice@demo.test:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==:1000:1000::/home/alice::userdb_quota_rule=*:storage=1G
bob:$6$saltstring123456$pygyWFxobvjmHX/DDrzjaTwZL0HL6.JxvqwUYJz0Pj2W0snWiXR5F6xjRwpyYSevn3hxGtoqeTYagUbSxdnt70
carol:SCRAM-SHA-256$4096:AAECAwQFBgcICQoLDA0ODw==$zHCdol2044/ZyWzPLi7oxApCkamKw9Z+E4U/QApd/5Y=:dd5peBOitVnLNFu7VmwP+HiDaaw4OUCv396eVCWhYiE=:1:1::::nologin
dave:{MD5}qPaDC855Copn/C6E4SCTug==
\r
eve:{PLAIN}pencil
mallory:{CRYPT}abJ32bJMdTsnY
open:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==::::::nopassword=y
locked:!:
nocolon
ALICE:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==
../x:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==
huge:{BLF-CRYPT}$2y$31$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu
";
    let place = Place::new("# mine\nbob::size=1K\nkept:\n");
    let imported = place.file.import(text.as_bytes()).unwrap();
    assert_eq!((imported.added, imported.changed, imported.unchanged), (2, 1, 0));
    let refused: Vec<_> = imported.refused.iter().map(|refused| (refused.line, refused.cause.as_str())).collect();
    for (line, words) in [
        (5, "OpenLDAP"),
        (7, "clear"),
        (8, "eight characters"),
        (9, "everybody"),
        (10, "locked"),
        (11, "colon"),
        (12, "line 2"),
        (13, "'.'"),
        (14, "bcrypt cost"),
    ] {
        assert!(refused.iter().any(|(at, cause)| *at == line && cause.contains(words)), "{line} {words}: {refused:?}");
    }
    assert_eq!(refused.len(), 9);
    for name in ["alice", "bob"] {
        assert_eq!(place.file.verify(name, b"pencil").unwrap(), Verified::Right, "{name}");
    }
    assert_eq!(place.file.verify("carol", b"pencil").unwrap(), Verified::Disabled);
    let written = place.text();
    assert!(
        written.starts_with("# mine\nbob@demo.test:{SHA512-CRYPT}$6$") && written.contains(":size=1K\nkept:\n"),
        "{written}"
    );

    let again = place.file.import(text.as_bytes()).unwrap();
    assert_eq!((again.added, again.changed, again.unchanged), (0, 0, 3));
    assert_eq!(place.text(), written);

    let mut with_options = options();
    with_options.secrets = scheme::Options {
        dialect: Some(Dialect::OpenLdap),
        allow_cleartext: true,
        default_scheme: Some("PLAIN".into()),
    };
    let other = UsersFile::new(place.folder.path().join("other"), with_options);
    assert_eq!(other.import(b"dave:{MD5}qPaDC855Copn/C6E4SCTug==\neve:pen cil\nodd:a{b}\\3a\n").unwrap().added, 3);
    assert_eq!(other.verify("dave", b"pencil").unwrap(), Verified::Right);
    assert_eq!(other.verify("eve", b"pen cil").unwrap(), Verified::Right);
    assert_eq!(other.verify("odd", b"a{b}\\3a").unwrap(), Verified::Right);
}

#[test]
fn import_postfix_virtual() {
    let text = "\
# /etc/postfix/virtual
demo.test        anything
info@demo.test   alice@demo.test
sales@demo.test
   bob
chef@demo.test   info@demo.test
@rest.test       bob
loop@demo.test   pool@demo.test
pool@demo.test   loop@demo.test
all@demo.test    alice, bob
away@demo.test   somebody@gmail.test
bob@demo.test    alice
alice@demo.test  alice
alone
old@demo.test    bob
info@demo.test   bob
";
    let place = Place::new("alice:\nbob::aliases=first@demo.test size=1K\ncarol::aliases=old@demo.test\n");
    let imported = place.file.import_aliases(text.as_bytes()).unwrap();
    assert_eq!((imported.added, imported.unchanged), (4, 1), "{imported:?}");
    let lines: Vec<_> = imported.refused.iter().map(|refused| refused.line).collect();
    assert_eq!(lines, [8, 9, 10, 11, 12, 14, 15, 16], "{imported:?}");
    let listed = place.file.list().unwrap();
    assert_eq!(listed[0].aliases, ["chef@demo.test", "info@demo.test"]);
    assert_eq!(listed[1].aliases, ["first@demo.test", "@rest.test", "sales@demo.test"]);
    assert!(place.text().contains("sales@demo.test size=1K\n"));
    let written = place.text();
    let again = place.file.import_aliases(text.as_bytes()).unwrap();
    assert_eq!((again.added, again.unchanged, again.refused.len()), (0, 5, 8));
    assert_eq!(place.text(), written);
}

#[test]
fn imports_of_anything_never_panic() {
    let line = "a@b:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==:1:SCRAM-SHA-1$:x nologin\n@c d\n";
    for at in 0..=line.len() {
        for insert in ["\\", ":", " ", "\0", "é", "\n", "{", "$", "@", "SCRAM-SHA-"] {
            let text = format!("{}{insert}{}", &line[..at], &line[at..]);
            crate::fuzz_texts(text.as_bytes());
        }
    }
    assert_eq!(fuzz_import(b"\xff\xff:\n\xfe"), [1, 2]);
}
