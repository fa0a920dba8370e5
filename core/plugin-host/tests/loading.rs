//! Libraries good and bad on their way into the process, and what the host does with their faults.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::{Answer, Exchange, bundled, compile, load, load_on, name, probe};
use plugin_host::{LoadError, Registry, Terms, inspect};
use sasl::{EffectKind, FailureClass, Proof, Status};

fn internal(answer: Answer) -> String {
    match answer {
        Answer::Failure(FailureClass::Internal, diagnosis) => diagnosis,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plugin_in_c_logs_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portreeve_c_plain.so");
    compile("c_plain.c", &path, &[]);
    let mut registry = Registry::new();
    load(&mut registry, "c_plain", &path).unwrap();
    let mechanism = registry.mechanism(&name("X-C-PLAIN"), "{}").unwrap();
    let verify = Answer::Effect(EffectKind::VerifyPassword, b"Kurt".into(), b"Ursel".into(), b"xipj3plmq".into());

    let mut exchange = Exchange::new(&mechanism);
    assert_eq!(exchange.start(Some(b"Ursel\0Kurt\0xipj3plmq")), verify);
    assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
    let mut exchange = Exchange::new(&mechanism);
    assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
    assert_eq!(exchange.message(b"Ursel\0Kurt\0xipj3plmq"), verify);
    for (status, class) in [
        (Status::Denied, FailureClass::Credentials),
        (Status::Temporary, FailureClass::Temporary),
        (Status::Unsupported, FailureClass::Temporary),
        (Status::Expired, FailureClass::Expired),
        (Status::Transition, FailureClass::Transition),
    ] {
        assert_eq!(exchange.outcome(status, b""), Answer::Failure(class, String::new()), "{status:?}");
    }
    for malformed in [&b"\0a"[..], b"\0\0b", b"\0a\0", b"\0a\0b\0", b"\0a\xff\0b"] {
        let answer = Exchange::new(&mechanism).start(Some(malformed));
        assert!(matches!(answer, Answer::Failure(FailureClass::Malformed, _)), "{malformed:?}: {answer:?}");
    }
    assert!(registry.mechanism(&name("X-C-PLAIN"), r#"{"a":1}"#).is_err(), "it has no settings");
}

#[test]
fn what_the_flags_exclude_never_reaches_the_mechanism() {
    let mut registry = Registry::new();
    load(&mut registry, "standard", &bundled("standard")).unwrap();
    load(&mut registry, "legacy", &bundled("legacy")).unwrap();
    for (mechanism, message, diagnosis) in [
        ("LOGIN", &b"a\0"[..], "NUL in the message"),
        ("PLAIN", b"\0a\xff\0b", "message is not UTF-8"),
        ("PLAIN", &[b'x'; 2049], "message longer than the mechanism takes"),
        ("CRAM-MD5", b"", "an initial response, but the server speaks first"),
    ] {
        let mechanism = registry.mechanism(&name(mechanism), "").unwrap();
        let answer = Exchange::new(&mechanism).start(Some(message));
        assert_eq!(answer, Answer::Failure(FailureClass::Malformed, diagnosis.into()));
    }
}

#[test]
fn a_broken_handshake_names_its_fault() {
    let folder = tempfile::tempdir().unwrap();
    let note = |from: &str, to: &str| {
        let good = r#"{"abi":"1.0","id":"bad","version":"1","panic":"none","mechanisms":{"X-BAD":["BACKEND_CALL"]}}"#;
        assert!(good.contains(from));
        format!("NOTE=\"{}\"", good.replace(from, to).replace('"', "\\\""))
    };
    let cases: &[(&[&str], &str)] = &[
        (&["MAGIC=7"], "its descriptor begins with 0x0000000000000007, not with the magic 0x3176564552545250"),
        (&["MAJOR=2"], "its descriptor has ABI major 2, this host speaks 1"),
        (&["SIZE=16"], "its descriptor has 16 octets, ABI 1.0 has"),
        (&["STRIDE=8"], "its mech_stride is 8, a mechanism has"),
        (&["STRIDE=(sizeof(prv_mech)+4)"], "its mech_stride is"),
        (&["COUNT=0"], "it has 0 mechanisms; 1 to 64 can be"),
        (&["COUNT=65"], "it has 65 mechanisms"),
        (&["COUNT=2"], "it has X-BAD twice"),
        (&["MECH_SIZE=8"], "mechanism 1: it has 8 octets, ABI 1.0 has"),
        (&["MECH_SIZE=4000"], "mechanism 1: its size is 4000, the stride is"),
        (&["NAME=\"x-bad\""], "mechanism 1: its name is none"),
        (&["NAME=\"THIS-NAME-IS-TOO-LONG\""], "mechanism 1: its name is none"),
        (&["NAME=NULL"], "mechanism 1: its name is none"),
        (&["NAME=\"X-OTHER\""], "its note and its descriptor list different mechanisms"),
        (&["FLAGS=0x80000000u"], "X-BAD has a flag that this host does not know"),
        (&["FLAGS=3"], "X-BAD is CLIENT_FIRST and SERVER_FIRST"),
        (&["FLAGS=PRV_M_POD_STATE"], "X-BAD is POD_STATE and has a drop_state"),
        (&["FLAGS=PRV_M_CHANNEL_BIND"], "X-BAD is CHANNEL_BIND without plus_of"),
        (&["NEEDS=0"], "its note and its descriptor differ about what X-BAD needs"),
        (&["STATE=4033"], "X-BAD wants more than 4032 octets of state"),
        (&["ALIGN=128"], "X-BAD wants an alignment other than"),
        (&["ALIGN=3"], "X-BAD wants an alignment other than"),
        (&["STEP=NULL"], "X-BAD has no step"),
        (&["ID=\"good\""], "its note has the id \"bad\", its descriptor \"good\""),
        (&["REFUSES"], "refuses this host: not on a Monday"),
        (&["NO_NOTE"], "no Portreeve plugin: it has no section .note.portreeve"),
        (&[&note("1.0", "2.0")], "plugin ABI 2, this host speaks 1; rebuild it"),
        (&[&note("none", "abort")], "built with panic = \"abort\""),
        (&[&note("\"bad\"", "\"good\"")], "it is the plugin \"good\", not \"bad\""),
        (&[&note("}}", "}")], "its note is not JSON"),
    ];
    for (index, (defines, expected)) in cases.iter().enumerate() {
        let path = folder.path().join(format!("bad{index}.so"));
        compile("bad.c", &path, defines);
        let error = load(&mut Registry::new(), "bad", &path).unwrap_err().to_string();
        assert!(error.contains(expected), "{defines:?}: {error}");
        assert!(error.starts_with(path.to_str().unwrap()) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_broken_step_fails_its_exchange_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.so");
    compile("bad.c", &path, &[]);
    let mut registry = Registry::new();
    load(&mut registry, "bad", &path).unwrap();
    let mechanism = registry.mechanism(&name("X-BAD"), "").unwrap();
    let faults = [
        ("msg beyond", "octets outside of its region"),
        ("msg far", "octets outside of its region"),
        ("out beyond", "octets outside of its region"),
        ("state beyond", "octets outside of its region"),
        ("region", "an unknown region"),
        ("none with octets", "an unknown region"),
        ("used", "wrote more than there is room"),
        ("action", "an unknown action"),
        ("action 0", "an unknown action"),
        ("action 99", "an unknown action"),
        ("undeclared", "an effect that it did not declare"),
        ("class", "an unknown class"),
        ("class 0", "an unknown class"),
        ("diag beyond", "octets outside of its region"),
        ("long challenge", "sends more than it declared"),
        ("asserts early", "asserts an identity without success"),
        ("flag", "flag that this host does not know"),
        ("offload", "OFFLOAD without having declared it"),
    ];
    for (message, expected) in faults {
        let diagnosis = internal(Exchange::new(&mechanism).start(Some(message.as_bytes())));
        assert!(diagnosis.contains(expected), "{message}: {diagnosis}");
    }
    // Whether it may is not decided here, so that who runs the library need not be believed.
    let asserted = Exchange::new(&mechanism).start(Some(b"asserts"));
    assert_eq!(asserted, Answer::Asserted(vec![], vec![]));
    // Steps out of order are the host's fault, and do not reach the library.
    assert!(internal(Exchange::new(&mechanism).message(b"good")).contains("has not begun"));
    let good = Answer::Effect(EffectKind::BackendCall, vec![], vec![], b"good".into());
    {
        let mut twice = Exchange::new(&mechanism);
        assert_eq!(twice.start(Some(b"good")), good);
        assert!(internal(twice.start(Some(b"good"))).contains("twice"));
        assert_eq!(twice.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
    }
    // Refused before the first step: there is no state to drop.
    assert!(matches!(Exchange::new(&mechanism).start(Some(&[b'x'; 65])), Answer::Failure(FailureClass::Malformed, _)));
    drop(mechanism);
    let log = registry.take_log();
    let begun = faults.len() + 2;
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].0.as_str(), log[0].1.text.as_str()), ("bad", &*format!("begun {begun}, dropped {begun}")));
}

#[test]
fn a_panic_is_contained() {
    let mut registry = Registry::new();
    load(&mut registry, "probe", &probe()).unwrap();
    let mechanism = registry.mechanism(&name("X-PROBE"), "").unwrap();
    for _ in 0..3 {
        let diagnosis = internal(Exchange::new(&mechanism).start(Some(b"panic")));
        assert!(diagnosis.starts_with("panic at ") && diagnosis.contains("probe.rs:"), "{diagnosis}");
        assert!(!diagnosis.contains("client sent"), "the message may hold a secret: {diagnosis}");
        let mut other = Exchange::new(&mechanism);
        assert!(matches!(other.start(Some(b"call")), Answer::Effect(EffectKind::BackendCall, ..)));
        assert_eq!(other.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
    }
    let error = registry.mechanism(&name("X-PROBE"), r#"{"scope":"panic"}"#).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("X-PROBE") && error.contains("panic at"), "{error}");
}

#[test]
fn facts_reach_the_mechanism() {
    let mut registry = Registry::new();
    load(&mut registry, "probe", &probe()).unwrap();
    let mechanism = registry.mechanism(&name("X-PROBE"), "").unwrap();
    for (client_ip, expected) in [
        ("192.0.2.1", "Some(192.0.2.1) 304"),
        ("::ffff:192.0.2.1", "Some(192.0.2.1) 304"),
        ("2001:db8::1", "Some(2001:db8::1) 304"),
    ] {
        let mut exchange = Exchange::new(&mechanism);
        exchange.client_ip = client_ip.parse().unwrap();
        assert_eq!(exchange.start(Some(b"facts")), Answer::Challenge(expected.into()));
    }
}

#[test]
fn settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.so");
    compile("bad.c", &path, &[]);
    let mut registry = Registry::new();
    load(&mut registry, "bad", &path).unwrap();
    load(&mut registry, "standard", &bundled("standard")).unwrap();
    load(&mut registry, "probe", &probe()).unwrap();
    for (mechanism, settings, expected) in [
        ("X-BAD", r#"{"list":["x"]}"#, "unknown setting list.0 = x (type 1)"),
        ("PLAIN", r#"{"scope":"mail"}"#, "unknown setting `scope`: this mechanism has none"),
        ("X-PROBE", r#"{"scope":"bad"}"#, "scope: no such scope"),
        ("X-PROBE", "{", "its settings are not JSON"),
        ("X-PROBE", "3", "its settings are no table"),
    ] {
        let error = registry.mechanism(&name(mechanism), settings).map(|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::Settings { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains(mechanism) && !error.contains('\n'), "{error}");
    }
    let error = registry.mechanism(&name("X-PROBE"), r#"{"scope":"long"}"#).map(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with(&"ä".repeat(255)) && !error.contains('\u{fffd}'), "cut between characters: {error}");
    assert!(registry.mechanism(&name("X-PROBE"), r#"{"scope":"mail"}"#).is_ok());
}

#[test]
fn what_needs_a_process_of_its_own_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (index, flag, word) in [
        (0, "PRV_M_OFFLOAD_ALL", "OFFLOAD"),
        (1, "PRV_M_MAY_OFFLOAD", "OFFLOAD"),
        (2, "PRV_M_SELF_ASSERTS", "SELF_ASSERTS"),
    ] {
        let path = folder.path().join(format!("bad{index}.so"));
        compile("bad.c", &path, &[&format!("FLAGS={flag}")]);
        let mut registry = Registry::new();
        load(&mut registry, "bad", &path).unwrap();
        let error = registry.mechanism(&name("X-BAD"), "").map(|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::Unfit { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        // What the operator can do about it is to permit it.
        let mut registry = Registry::new();
        load_on(&mut registry, "bad", &path, Terms { process: true, self_asserts: true }).unwrap();
        assert!(registry.mechanism(&name("X-BAD"), "").is_ok(), "{flag}");
    }
}

#[test]
fn one_name_one_library() {
    let folder = tempfile::tempdir().unwrap();
    let twin = folder.path().join("twin.so");
    let note = r#"{"abi":"1.0","id":"twin","version":"1","panic":"none","mechanisms":{"X-BAD":["BACKEND_CALL"]}}"#;
    compile("bad.c", &twin, &[&format!("NOTE=\"{}\"", note.replace('"', "\\\"")), "ID=\"twin\""]);
    let bad = folder.path().join("bad.so");
    compile("bad.c", &bad, &[]);
    let mut registry = Registry::new();
    load(&mut registry, "bad", &bad).unwrap();
    let error = load(&mut registry, "twin", &twin).unwrap_err();
    assert!(matches!(error, LoadError::DuplicateName { .. }), "{error}");
    assert!(matches!(load(&mut registry, "bad", &bad).unwrap_err(), LoadError::DuplicateId { .. }));
    let error = registry.mechanism(&name("SCRAM-SHA-256"), "").map(|_| ()).unwrap_err().to_string();
    assert_eq!(
        error,
        "mechanism SCRAM-SHA-256: no loaded plugin has it; loaded are X-BAD; name its plugin under plugins.load"
    );
    assert_eq!(registry.list().len(), 1);
}

/// Reload: the same file twice is two instances, each with its own statics.
#[test]
fn each_load_is_an_instance_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.so");
    compile("bad.c", &path, &[]);
    let mut counts = Vec::new();
    for exchanges in [2, 3] {
        let mut registry = Registry::new();
        load(&mut registry, "bad", &path).unwrap();
        let mechanism = registry.mechanism(&name("X-BAD"), "").unwrap();
        for _ in 0..exchanges {
            Exchange::new(&mechanism).start(Some(b"good"));
        }
        drop(mechanism);
        counts.push(registry.take_log().remove(0).1.text);
    }
    assert_eq!(counts, ["begun 2, dropped 2", "begun 3, dropped 3"]);
}

/// A constructor runs when the library is loaded, and not before.
#[test]
fn inspecting_executes_nothing() {
    let inspection = inspect(&bundled("legacy")).unwrap();
    let names: Vec<_> = inspection.note.mechanisms.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["ANONYMOUS", "CRAM-MD5", "DIGEST-MD5"]);
    assert_eq!(inspection.note.abi, (1, 0));
    assert!(inspection.needed.iter().any(|library| library.starts_with("libc.so")), "{:?}", inspection.needed);

    let folder = tempfile::tempdir().unwrap();
    let (path, trace) = (folder.path().join("portreeve_bad.so"), folder.path().join("trace"));
    let source = folder.path().join("evil.c");
    let constructor = format!(
        "#include \"{}/tests/fixtures/bad.c\"\n\
         __attribute__((constructor)) static void run(void) {{ FILE *f = fopen(\"{}\", \"w\"); if (f) fclose(f); }}\n",
        env!("CARGO_MANIFEST_DIR"),
        trace.display()
    );
    std::fs::write(&source, constructor).unwrap();
    compile(source.to_str().unwrap(), &path, &[]);
    inspect(&path).unwrap();
    let demands = plugin_host::Demands { ownership: plugin_host::Ownership::Relaxed, sha256: None };
    let vetted = plugin_host::vet(&path, &demands).unwrap();
    assert!(!trace.exists(), "inspecting or vetting ran its constructor");
    Registry::new().load("bad", vetted.fd, &path, Terms::default()).unwrap();
    assert!(trace.exists(), "the constructor would have left a trace");
}

#[test]
fn only_sealed_copies_are_loaded() {
    let file = std::fs::File::open(bundled("standard")).unwrap();
    let error = Registry::new().load("standard", file.into(), &bundled("standard"), Terms::default()).unwrap_err();
    assert!(matches!(error, LoadError::Unsealed { .. }), "{error}");
}
