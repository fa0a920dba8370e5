//! Published exchanges against a running server, octet by octet. Its mechanisms are a test library's: those that
//! ship, with the nonces of the examples (`tests/published`). Everything else is as published, too: users, salts,
//! iterations, tokens, names.

use std::fmt::Write as _;
use std::process::Command;

use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use crate::client_certificates::{Authority, prepare};
use crate::server::{Options, Server, output, program, root};
use crate::wire::{Wire, tls_with};

fn vectors() -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("tests/vectors/sasl.json")).expect("the vectors");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["exchanges"].as_array().expect("exchanges").clone()
}

/// A line of the users file for whoever these vectors are about. What proves them is what the vectors say is stored,
/// or the password itself where they say nothing.
fn line(name: &str, vectors: &[&Value], fields: &str) -> String {
    let mut line = format!("{name}:");
    for vector in vectors {
        let text = |key: &str| vector[key].as_str().unwrap_or_default();
        let mech = text("mech");
        let secret = if mech.starts_with("SCRAM") {
            let keys = [text("salt_b64"), text("stored_key_b64"), text("server_key_b64")].join(",");
            format!("{{{mech}}}{},{keys}", vector["iterations"])
        } else if mech == "CRAM-MD5" {
            format!("{{CRAM-MD5}}{}", text("context_hex"))
        } else if mech == "DIGEST-MD5" {
            let [user, realm, ha1] = ["username", "realm", "ha1_hex"].map(text);
            format!("{{DIGEST-MD5}}{user}\\3a{realm}\\3a{ha1}")
        } else {
            format!("{{PLAIN}}{}", text("password"))
        };
        write!(line, "{secret} ").expect("a String");
    }
    format!("{}{fields}\n", line.trim_end())
}

/// Libraries, the mechanisms that they are for, and their settings.
struct Side {
    load: &'static str,
    mechanisms: &'static [&'static str],
    tables: &'static str,
}

/// Those whose messages follow from a nonce.
const NONCES: Side = Side {
    load: "[\"published\"]",
    mechanisms: &["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5", "CRAM-MD5"],
    tables: "[mechanism.DIGEST-MD5]\nrealm = \"example.com\"\nhosts = [\"mail.example.com\"]\n",
};

/// The others, as they ship.
const OTHERS: Side = Side {
    load: "[\"standard\", \"legacy\"]",
    mechanisms: &["OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN", "ANONYMOUS"],
    tables: "[[tokens.issuer]]\nkind = \"file\"\nfile = \"tokens\"\nscope = \"mail\"\n\
             [mechanism.OAUTHBEARER]\nhosts = [\"server.example.com\"]\n",
};

/// Plays these vectors against a server that knows these users; what `plugin vectors` says.
fn play(side: &Side, runner: &str, users: &str, played: &[&Value]) -> String {
    let mut server = Server::prepare(Options { mechanisms: vec!["PLAIN"], ..Options::default() });
    let mut config = server.config().replace("[\"standard\", \"legacy\"]", side.load);
    config = config.replace("mechanisms = [\"PLAIN\"]", &format!("mechanisms = {:?}", side.mechanisms));
    config = config.replace("exempt_nets", "anonymous = \"local\"\npublic_port = 587\nexempt_nets");
    config += &format!("\n[users]\nallow_cleartext = true\ndefault_domain = \"demo.test\"\n{}", side.tables);
    if side.load.contains("published") {
        config += &format!("[[plugins.library]]\nid = \"published\"\nrunner = \"{runner}\"\n");
    }
    server.write_config(&config);
    let token = |vector: &&&Value| vector["token"].is_string() && vector["outcome"] == "success";
    let tokens = played.iter().filter(token).map(|vector| {
        let text = |key: &str| vector[key].as_str().unwrap_or_default();
        let whose = if text("authzid").is_empty() { text("authcid") } else { text("authzid") };
        format!("{} {whose} scope=mail\n", text("token"))
    });
    std::fs::write(server.path("tokens"), tokens.collect::<String>()).expect("the tokens");
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    let file = server.path("vectors.json");
    std::fs::write(&file, json!({ "exchanges": played }).to_string()).expect("the vectors");
    let mut command = Command::new(program());
    command.args(["plugin", "vectors"]).arg(file);
    let (_, said) = output(command.args(["--smtp", &server.submission().to_string(), "--exact"]));
    said
}

#[test]
fn published_exchanges_come_out_over_the_wire_octet_by_octet() {
    let all = vectors();
    let of = |mech: &str, at: usize| all.iter().filter(|vector| vector["mech"] == mech).nth(at).expect("a vector");
    let user = [of("SCRAM-SHA-1", 0), of("SCRAM-SHA-256", 0), of("SCRAM-SHA-512", 0), of("DIGEST-MD5", 1)];
    let of_nonces = [
        line("user", &user, ""),
        line("we\\2cird\\3duser", &[of("SCRAM-SHA-256", 1)], ""),
        line("tim", &[of("CRAM-MD5", 0)], ""),
    ];
    let of_others = [
        line("user", &[of("LOGIN", 0)], ""),
        line("we\\2cird\\3duser", &[], ""),
        line("tim", &[of("PLAIN", 0)], ""),
        line("kurt", &[of("PLAIN", 1)], ":authzids=ursel@demo.test"),
        line("test", &[of("PLAIN", 2)], ""),
        "ursel:\nuser@example.com:\nsomeuser@example.com:\n".to_owned(),
    ];
    // One more has another salt for the same user, so it needs a users file of its own.
    let other = of("SCRAM-SHA-256", 2);
    // Not here: names with a space, which the users file does not take; what is bound to a TLS connection, which cannot be
    // as published; what comes with a certificate, see below; DIGEST-MD5 with IMAP.
    let elsewhere = |vector: &Value| {
        let mech = vector["mech"].as_str().unwrap_or_default();
        mech.ends_with("-PLUS")
            || mech == "EXTERNAL"
            || vector["authcid"] == "tim cook"
            || vector["realm"] == "elwood.innosoft.com"
    };
    let (nonces, others): (Vec<&Value>, Vec<&Value>) = all
        .iter()
        .filter(|vector| *vector != other && !elsewhere(vector))
        .partition(|vector| NONCES.mechanisms.contains(&vector["mech"].as_str().unwrap_or_default()));
    assert!(nonces.len() >= 6 && others.len() >= 18, "only {} and {}", nonces.len(), others.len());
    let all_right = |played: &[&Value]| format!("{} as published, 0 otherwise, 0 skipped", played.len());
    for runner in ["inline", "process"] {
        let said = play(&NONCES, runner, &of_nonces.concat(), &nonces);
        assert!(said.contains(&all_right(&nonces)), "{runner}: {said}");
    }
    let said = play(&OTHERS, "inline", &of_others.concat(), &others);
    assert!(said.contains(&all_right(&others)), "{said}");
    let said = play(&NONCES, "inline", &line("user", &[other], ""), &[other]);
    assert!(said.contains(&all_right(&[other])), "{said}");
    // Who compares exactly does compare: another salt is another message.
    let mut changed = other.clone();
    changed["salt_b64"] = json!("AAECAwQFBgcICQoLDA0ODg==");
    let said = play(&NONCES, "inline", &line("user", &[&changed], ""), &[other]);
    assert!(said.contains("0 as published, 1 otherwise") && said.contains("the challenge is"), "{said}");
}

/// Those that need a certificate, which `plugin vectors` has not: the messages are as published, the certificate is ours.
#[test]
fn published_exchanges_with_a_certificate() {
    let authority = Authority::new("Ours");
    let mut server = prepare("request", &authority);
    let users = "fred@example.com::cert=mail:fred@example.com\nginger@example.com::cert=mail:ginger@example.com\n";
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    let mut played = 0;
    for vector in vectors().iter().filter(|vector| vector["mech"] == "EXTERNAL") {
        let [line] = &vector["exchange"].as_array().expect("lines")[..] else { panic!("one message: {vector}") };
        let message = line["c"].as_str().expect("of the client");
        let authzid = vector["authzid"].as_str().expect("whom to act as");
        // The same message from somebody else's certificate is refused where it names somebody.
        for (mail, wanted) in [
            ("fred@example.com", "235 2.7.0"),
            ("ginger@example.com", if authzid.is_empty() { "235 2.7.0" } else { "535 5.7.8" }),
            ("nobody@example.com", "535 5.7.8"),
        ] {
            // At once, and after the empty challenge (RFC 4422 appendix A, RFC 4954 §4).
            for (version, initial) in [(&TLS12, true), (&TLS13, true), (&TLS13, false)] {
                let config = tls_with(&server, &[version], Some(authority.issue("x", &[mail])));
                let mut wire = Wire::connect(server.submissions(), true, config).expect("TLS");
                wire.reply().expect("a greeting");
                assert!(wire.ask("EHLO client.example").expect("EHLO").contains("AUTH EXTERNAL "));
                let reply = if initial {
                    let message = if message.is_empty() { "=" } else { message };
                    wire.ask(&format!("AUTH EXTERNAL {message}"))
                } else {
                    assert_eq!(wire.ask("AUTH EXTERNAL").expect("a challenge").trim_end(), "334");
                    wire.ask(message)
                };
                let reply = reply.expect("a reply");
                assert!(reply.starts_with(wanted), "{mail} {vector}: {reply}\n{}", server.log());
            }
        }
        played += 1;
    }
    assert!(played >= 2, "only {played}");
}
