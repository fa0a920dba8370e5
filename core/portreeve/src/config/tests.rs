use std::path::Path;

use super::*;
use crate::options::{self, Default};
use crate::report::Severity;

/// A configuration without fault; lines are added behind it or put in its place.
const GOOD: &str = r#"[[tls.certificate]]
cert = "c.pem"
key = "k.pem"

[[route]]
kind = "maildir"
path = "mail/%d/%n"

[[listener]]
role = "mx"
bind = ["127.0.0.1:2525"]
domains = ["example.org"]
"#;

fn report(text: &str) -> Report {
    parse(Path::new("/etc/portreeve/portreeve.toml"), text).1
}

/// One row: file, line, column, key, a part of the cause, a part of the remedy.
type Row = (&'static str, usize, usize, &'static str, &'static str, &'static str);

fn assert_found(text: &str, row: Row, severity: Severity) {
    let (_, line, column, key, cause, remedy) = row;
    let (config, report) = parse(Path::new("/etc/portreeve/portreeve.toml"), text);
    let places: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.span.as_ref().map_or((0, 0), |s| report.position(s.start)), f.key.as_str(), &f.cause, &f.remedy))
        .collect();
    let hit = report.findings.iter().any(|finding| {
        finding.severity == severity
            && finding.span.as_ref().map_or((0, 0), |span| report.position(span.start)) == (line, column)
            && finding.key == key
            && finding.cause.contains(cause)
            && finding.remedy.contains(remedy)
    });
    assert!(hit, "{text}\nwanted {line}:{column} {key}: …{cause}…; …{remedy}…\nfound {places:#?}");
    assert_eq!(config.is_none(), severity == Severity::Error, "{text}");
    // Every finding has both halves, and shows its line.
    for finding in &report.findings {
        assert!(!finding.cause.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
    }
    let shown = report.render(false);
    if line > 0 {
        assert!(shown.contains(&format!("portreeve.toml:{line}:{column}: ")), "{shown}");
        assert!(shown.contains(&format!("{line} | ")), "{shown}");
        assert!(shown.contains('^'), "{shown}");
    }
}

#[test]
fn good_is_good() {
    let (config, report) = parse(Path::new("/etc/portreeve/portreeve.toml"), GOOD);
    assert!(report.findings.is_empty(), "{}", report.render(false));
    let config = config.unwrap();
    assert_eq!(config.listeners[0].domains, ["example.org"]);
    assert_eq!(config.certificates[0].cert, Path::new("/etc/portreeve/c.pem"));
    assert_eq!(config.users.file, Path::new("/etc/portreeve/state/auth/users"));
    assert_eq!(config.limits.auth_rate, 30);
    assert_eq!(config.listeners[0].per_ip, 50);
}

/// Mistakes that can be seen in one place. Each file stands alone.
const BAD: &[Row] = &[
    // Syntax
    ("hostname = mail", 1, 12, "", "quoted", "quotes"),
    ("hostname = \"mail", 1, 17, "", "invalid basic string", "quote"),
    ("hostname = \"a\"\nhostname = \"b\"", 2, 1, "", "duplicate key", "keep one"),
    ("[process", 1, 9, "", "unclosed table", "[name]"),
    ("[process]\n[process]", 2, 2, "", "duplicate key", "keep one"),
    ("hostname", 1, 9, "", "key with no value", "key = value"),
    ("[[listener]]\nbind = [\"a\" \"b\"]", 2, 13, "", "missing comma", "a list is written"),
    ("drain = 1.2.3", 1, 12, "", "invalid float", "key = value"),
    // Unknown keys
    ("hostnam = \"a\"", 1, 1, "hostnam", "unknown key", "did you mean \"hostname\"?"),
    ("Hostname = \"a\"", 1, 1, "Hostname", "unknown key", "did you mean \"hostname\"?"),
    ("[proces]\nworkers = 2", 1, 2, "proces", "unknown key", "did you mean \"process\"?"),
    ("[process]\nwokers = 2", 2, 1, "process.wokers", "unknown key", "did you mean \"workers\"?"),
    ("[process]\nstate-dir = \"x\"", 2, 1, "process.state-dir", "unknown key", "did you mean \"state_dir\"?"),
    ("[[listner]]\nrole = \"mx\"", 1, 3, "listner", "unknown key", "did you mean \"listener\"?"),
    ("[[listener]]\nrole = \"mx\"\nbnid = []", 3, 1, "listener.bnid", "unknown key", "did you mean \"bind\"?"),
    ("[[listener]]\nmax_line = 99", 2, 1, "listener.max_line", "unknown key", "it belongs in [limits]"),
    ("[[listener]]\nhide_client = true", 2, 1, "listener.hide_client", "unknown key", "write received.hide_client = "),
    ("[[listener]]\nrecieved.hide_client = true", 2, 1, "listener.recieved", "unknown key", "mean \"received\"?"),
    ("[listeners]\n", 1, 2, "listeners", "unknown key", "did you mean \"listener\"?"),
    ("[limits]\nmax_recpt = 100", 2, 1, "limits.max_recpt", "unknown key", "did you mean \"max_rcpt\"?"),
    ("[limits.sasl]\nline_octet_max = 20000", 2, 1, "limits.sasl.line_octet_max", "unknown", "\"line_octets_max\"?"),
    ("[spool]\nhostname = \"a\"", 2, 1, "spool.hostname", "unknown key", "top of the file"),
    ("frobnicate = 1", 1, 1, "frobnicate", "unknown key", "config reference"),
    ("workers = 2", 1, 1, "workers", "unknown key", "it belongs in [process]"),
    // Tables that are none, and the other way round
    ("process = 3", 1, 1, "process", "is a whole number where a table is meant", "process.workers = "),
    ("[listener]\nrole = \"mx\"", 1, 2, "listener", "a table where repeated", "[[listener]]"),
    ("listener = [3]", 1, 13, "listener", "holds a whole number", "[[listener]]"),
    ("[tls.certificate]\ncert = \"x\"", 1, 6, "tls.certificate", "repeated", "[[tls.certificate]]"),
    ("[[process]]\nworkers = 1", 1, 3, "process", "is a list where a table is meant", "process.workers"),
    ("[hostname]\na = 1", 1, 1, "hostname", "is a table, but must be a host name", "hostname = "),
    // Types
    ("hostname = 5", 1, 12, "hostname", "is a whole number, but must be a host name", "hostname = "),
    (
        "allow_data_loss = \"yes\"",
        1,
        19,
        "allow_data_loss",
        "is text, but must be true or false",
        "allow_data_loss = true",
    ),
    ("[process]\nworkers = \"2\"", 2, 11, "process.workers", "is text, but must be a whole number", "workers = 2"),
    ("[process]\nworkers = 1.5", 2, 11, "process.workers", "is a fraction", "workers = 2"),
    ("drain = 2024-01-01", 1, 9, "drain", "is a date, but must be a time", "drain = \"30s\""),
    ("[[listener]]\nbind = \"0.0.0.0:25\"", 2, 8, "listener.bind", "is text, but must be a list", "[\"0.0.0.0:25\"]"),
    ("[[listener]]\nbind = [25]", 2, 9, "listener.bind", "is a whole number", "bind = [\"0.0.0.0:25\""),
    ("[spool]\npath = 3", 2, 8, "spool.path", "but must be a path in quotes", "path = "),
    ("[limits]\nauth_rate = 30", 2, 13, "limits.auth_rate", "must be a rate", "10/min"),
    // Values
    ("drain = 30", 1, 9, "drain", "30 has no unit", "write \"30s\""),
    ("drain = \"30\"", 1, 9, "drain", "has no unit", "ms, s, m or h"),
    ("drain = \"2 weeks\"", 1, 9, "drain", "unknown unit \"weeks\"", "ms, s, m or h"),
    ("drain = \"99h\"", 1, 9, "drain", "99h is too large", "to 1h"),
    ("drain = \"-3s\"", 1, 9, "drain", "is no time", "like \"30s\""),
    ("hostname = \"a b\"", 1, 12, "hostname", "is no domain name", "hostname = "),
    ("hostname = \"\"", 1, 12, "hostname", "is no domain name", "hostname = "),
    ("[process]\nworkers = 0", 2, 11, "process.workers", "0 is too small", "write 1 to 256"),
    ("[process]\nworkers = -1", 2, 11, "process.workers", "out of range", "write 1 to 256"),
    ("[process]\nworkers = 99999999999999999999", 2, 11, "process.workers", "out of range", "write 1 to 256"),
    ("[process]\nuser = \"a\\u0000b\"", 2, 8, "process.user", "control characters", "user = \"mail\""),
    ("[spool]\npath = \"~/spool\"", 2, 8, "spool.path", "`~` is not expanded", "whole path"),
    ("[spool]\nsegment = \"64 MB\"", 2, 11, "spool.segment", "unknown unit \"MB\"", "KiB, MiB or GiB"),
    ("[spool]\nsegment = \"1KiB\"", 2, 11, "spool.segment", "1KiB is too small", "1MiB to 1GiB"),
    ("[spool]\nsegment = \"99999999999999999GiB\"", 2, 11, "spool.segment", "too large", "MiB"),
    (
        "[spool]\ndurability = \"fsync\"",
        2,
        14,
        "spool.durability",
        "not one of the choices",
        "\"group-fsync\" or \"none\"",
    ),
    ("[limits]\nmax_rcpt = 50", 2, 12, "limits.max_rcpt", "50 is too small", "write 100 to"),
    ("[limits]\nauth_rate = \"30/fortnight\"", 2, 13, "limits.auth_rate", "unknown unit \"fortnight\"", "\"30/min\""),
    ("[limits]\nauth_rate = \"0/min\"", 2, 13, "limits.auth_rate", "no positive number", "off"),
    ("[limits]\nauth_rate = \"never\"", 2, 13, "limits.auth_rate", "no rate", "\"off\""),
    ("[limits]\nsasl.line_octets_max = 512", 2, 24, "limits.sasl.line_octets_max", "too small", "12288"),
    ("[limits]\nauth_failures = 1", 2, 17, "limits.auth_failures", "too small", "write 3 to 20"),
    ("[tls]\nmin = \"1.0\"", 2, 7, "tls.min", "\"1.0\" is not one of the choices", "did you mean \"1.2\"?"),
    ("[log]\nformat = \"yaml\"", 2, 10, "log.format", "not one of the choices", "\"json\""),
    ("[admin]\nmetrics = \"0.0.0.0:9025\"", 2, 11, "admin.metrics", "reached from other hosts", "127.0.0.1:9025"),
    ("[admin]\nmetrics = \"here\"", 2, 11, "admin.metrics", "no place to listen", "unix:PATH"),
    ("[[listener]]\nrole = \"mxx\"", 2, 8, "listener.role", "\"mxx\"", "did you mean \"mx\"?"),
    ("[[listener]]\nrole = \"relay\"", 2, 8, "listener.role", "\"relay\"", "\"submissions\""),
    ("[[listener]]\nbind = [\"0.0.0.0\"]", 2, 9, "listener.bind", "no address with port", "\"0.0.0.0:25\""),
    ("[[listener]]\nbind = [\"::\"]", 2, 9, "listener.bind", "no address with port", "\"[::]:25\""),
    ("[[listener]]\nbind = [\":25\"]", 2, 9, "listener.bind", "no address with port", "\"[::]:25\""),
    ("[[listener]]\nbind = [\"*:25\"]", 2, 9, "listener.bind", "no address with port", "\"0.0.0.0:25\""),
    ("[[listener]]\nbind = [\"localhost:25\"]", 2, 9, "listener.bind", "no address", "127.0.0.1:25"),
    ("[[listener]]\nbind = [\"0.0.0.0:99999\"]", 2, 9, "listener.bind", "no address", "like \"0.0.0.0:25\""),
    (
        "[[listener]]\nbind = [\"[::ffff:1.2.3.4]:25\"]",
        2,
        9,
        "listener.bind",
        "IPv4 address in IPv6 form",
        "1.2.3.4:25",
    ),
    ("[[listener]]\nbind = [\"1.1.1.1:25\", \"1.1.1.1:25\"]", 2, 23, "listener.bind", "twice", "take one"),
    ("[[listener]]\ndomains = [\"a@b.example\"]", 2, 12, "listener.domains", "an address, not a domain", "domains = "),
    ("[[listener]]\ndomains = [\".example\"]", 2, 12, "listener.domains", "no domain name", "domains = "),
    ("[[listener]]\nmechanisms = [\"PLAIN TEXT\"]", 2, 15, "listener.mechanisms", "no mechanism name", "RFC 4422"),
    ("[[listener]]\nexempt_nets = [\"10.0.0.1/8\"]", 2, 16, "listener.exempt_nets", "beyond its /8", "\"10.0.0.0/8\""),
    ("[[listener]]\nexempt_nets = [\"lan\"]", 2, 16, "listener.exempt_nets", "no network", "192.0.2.0/24"),
    ("[[listener]]\ntls = \"ssl\"", 2, 7, "listener.tls", "not one of the choices", "\"starttls\""),
    ("[[listener]]\nlimits.max_size = \"5\"", 2, 19, "listener.limits.max_size", "too small", "64KiB"),
    // Required
    ("[[listener]]\nbind = [\"1.1.1.1:25\"]", 1, 1, "listener.role", "is missing", "add: role = "),
    ("[[listener]]\nrole = \"mx\"", 1, 1, "listener.bind", "is missing", "add: bind = "),
    ("[[route]]\ndomain = \"*\"", 1, 1, "route.kind", "is missing", "add: kind = "),
    ("[[route]]\nkind = \"maildir\"", 1, 1, "route.path", "is missing", "add: path = "),
    ("[[tls.certificate]]\nkey = \"k\"", 1, 1, "tls.certificate.cert", "is missing", "add: cert = "),
    ("[[tls.certificate]]\ncert = \"c\"", 1, 1, "tls.certificate.key", "is missing", "add: key = "),
    ("[[route]]\nkind = \"discard\"\npath = \"x\"", 3, 8, "route.path", "means nothing", "take it out"),
    ("[[route]]\nkind = \"maildir\"\npath = \"m/%x\"", 3, 8, "route.path", "%x is unknown", "%n (local part)"),
    ("[[route]]\nkind = \"maildir\"\npath = \"m/%d/../x\"", 3, 8, "route.path", "`..` may stand only before", "file"),
    // Tokens
    ("[[tokens.issuer]]\nissuer = \"x\"", 1, 1, "tokens.issuer.kind", "is missing", "add: kind = "),
    ("[[tokens.issuer]]\nkind = \"saml\"", 2, 8, "tokens.issuer.kind", "not one of the choices", "\"introspection\""),
    ("[[tokens.issuer]]\nkind = \"jwt\"", 1, 1, "tokens.issuer.keys", "is missing", "add: keys = "),
    ("[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"k\"", 1, 1, "tokens.issuer.issuer", "is missing", "add: issuer = "),
    ("[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"k\"", 1, 1, "tokens.issuer.audience", "is missing", "add: aud"),
    (
        "[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"k\"\nalgorithms = [\"HS256\"]",
        4,
        15,
        "tokens.issuer.algorithms",
        "could make one, too",
        "RS256",
    ),
    (
        "[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"k\"\nalgorithms = [\"none\"]",
        4,
        15,
        "tokens.issuer.algorithms",
        "no algorithm that can be used",
        "EdDSA",
    ),
    ("[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"ftp://x/\"", 3, 8, "tokens.issuer.keys", "no address", "https://"),
    ("[[tokens.issuer]]\nkind = \"introspection\"", 1, 1, "tokens.issuer.url", "is missing", "add: url = "),
    (
        "[[tokens.issuer]]\nkind = \"introspection\"\nurl = \"https://a@b/\"",
        3,
        7,
        "tokens.issuer.url",
        "no address of a web server",
        "https://host/path",
    ),
    (
        "[[tokens.issuer]]\nkind = \"introspection\"\nurl = \"https://b/\"\nclient_id = \"x\"",
        1,
        1,
        "tokens.issuer.client_secret_file",
        "is missing",
        "add: client_secret_file",
    ),
    ("[[tokens.issuer]]\nkind = \"file\"\nkeys = \"k\"", 3, 8, "tokens.issuer.keys", "means nothing", "take it out"),
    ("[[tokens.issuer]]\nkind = \"file\"\nskew = \"2m\"", 3, 8, "tokens.issuer.skew", "2m is too large", "1m"),
    (
        "[[tokens.issuer]]\nkind = \"file\"\nfile = \"f\"\nopenid_configuration = \"http://x/\"",
        4,
        24,
        "tokens.issuer.openid_configuration",
        "no https URL",
        "https://",
    ),
    // Nothing to serve
    ("", 0, 0, "listener", "there is none", "portreeve init"),
];

#[test]
fn each_mistake_is_named_with_place_cause_and_remedy() {
    assert!(BAD.len() >= 60, "{}", BAD.len());
    for row in BAD {
        assert_found(row.0, *row, Severity::Error);
    }
}

/// Contradictions: what stands behind [`GOOD`] (from line 13 on).
const CONTRADICTIONS: &[Row] = &[
    (
        "[[listener]]\nname = \"mx\"\nrole = \"submission\"\nbind = [\"127.0.0.1:2587\"]",
        14,
        8,
        "listener.name",
        "two listeners are called \"mx\"",
        "another name",
    ),
    (
        "[[listener]]\nrole = \"submission\"\nbind = [\"127.0.0.1:2525\"]",
        15,
        9,
        "listener.bind",
        "taken by the listener \"mx\"",
        "another address",
    ),
    (
        "[[listener]]\nrole = \"submission\"\nbind = [\"0.0.0.0:2525\"]",
        15,
        9,
        "listener.bind",
        "taken by the listener \"mx\"",
        "another address",
    ),
    (
        "[[listener]]\nrole = \"submission\"\nbind = [\"0.0.0.0:1\", \"127.0.0.1:1\"]",
        15,
        22,
        "listener.bind",
        "covered by another",
        "take one",
    ),
    (
        "[[listener]]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]",
        15,
        9,
        "listener.bind",
        "has no port",
        "write the port",
    ),
    ("[[listener]]\nrole = \"submission\"\nbind = []", 15, 8, "listener.bind", "is empty", "write an address"),
    (
        "[[listener]]\nrole = \"submissions\"\nbind = [\"127.0.0.1:1\"]\ntls = \"starttls\"",
        16,
        7,
        "listener.tls",
        "TLS from the first octet",
        "implicit",
    ),
    ("tls = \"implicit\"", 13, 7, "listener.tls", "do not speak implicit TLS", "starttls"),
    (
        "tls = \"off\"\nrequire_tls = true",
        14,
        15,
        "listener.require_tls",
        "nobody could get past",
        "require_tls = false",
    ),
    (
        "tls = \"off\"\nclient_cert = \"request\"",
        14,
        15,
        "listener.client_cert",
        "in TLS, and the listener has none",
        "starttls",
    ),
    ("client_cert = \"require\"", 13, 15, "listener.client_cert", "nobody could get in", "client_ca = "),
    ("auth = \"off\"\nrequire_auth = true", 13, 8, "listener.auth", "AUTH is off", "after-tls"),
    ("mechanisms = []", 13, 14, "listener.mechanisms", "is empty", "PLAIN"),
    ("certificates = [\"other\"]", 13, 17, "listener.certificates", "has the name \"other\"", "write one of: c"),
    ("[[route]]\nkind = \"maildir\"\npath = \"x\"", 13, 1, "route.domain", "two routes for \"*\"", "take one"),
    (
        "[[route]]\ndomain = \"a.example\"\nkind = \"discard\"",
        15,
        8,
        "route.kind",
        "loses mail",
        "allow_data_loss = true",
    ),
    (
        "[spool]\ndurability = \"none\"",
        14,
        14,
        "spool.durability",
        "can lose acknowledged mail",
        "allow_data_loss = true",
    ),
    ("[plugins]\nload = []", 14, 8, "plugins.load", "is empty, but listeners offer AUTH", "standard"),
    (
        "[[tls.certificate]]\ncert = \"d/c.pem\"\nkey = \"k\"",
        13,
        1,
        "tls.certificate.name",
        "two certificates are called \"c\"",
        "another name",
    ),
];

#[test]
fn contradictions_are_found() {
    for row in CONTRADICTIONS {
        assert_found(&format!("{GOOD}{}", row.0), *row, Severity::Error);
    }
    let without_route =
        GOOD.replace("[[route]]\nkind = \"maildir\"\n", "[[route]]\nkind = \"maildir\"\ndomain = \"example.org\"\n");
    assert_found(
        &without_route,
        ("", 10, 1, "route", "relays for the authenticated", "domain = \"*\""),
        Severity::Error,
    );
    let elsewhere = without_route.replace("domain = \"example.org\"", "domain = \"other.example\"");
    assert_found(&elsewhere, ("", 13, 12, "listener.domains", "no route takes mail", "[[route]]"), Severity::Error);
    let bare = &GOOD[GOOD.find("[[route]]").unwrap()..];
    assert_found(
        bare,
        ("", 5, 1, "listener.tls", "wants STARTTLS, but there is no certificate", "tls.certificate"),
        Severity::Error,
    );
}

#[test]
fn warnings_do_not_stop() {
    for row in [
        ("recipients = \"any\"", 13, 14, "listener.recipients", "people who do not exist", "directory"),
        ("require_tls = true", 13, 15, "listener.require_tls", "RFC 3207", "false"),
        ("exempt_nets = [\"0.0.0.0/0\"]", 13, 16, "listener.exempt_nets", "for everybody", "name only"),
        ("cleartext_auth_nets = [\"::/0\"]", 13, 24, "listener.cleartext_auth_nets", "everybody", "nobody listens"),
        ("client_ca = \"x\"", 13, 13, "listener.client_ca", "not asked", "client_cert = "),
        ("client_cert = \"request\"", 13, 15, "listener.client_cert", "is ever verified", "client_ca = "),
        (
            "client_cert = \"require\"\nclient_ca = \"x\"",
            13,
            15,
            "listener.client_cert",
            "cannot use TLS here",
            "\"request\"",
        ),
        ("mechanisms = [\"PLAIN\", \"EXTERNAL\"]", 13, 24, "listener.mechanisms", "to nobody", "client_ca"),
        ("[process]\ngroup = \"mail\"", 14, 9, "process.group", "has no user", "process.user"),
    ] {
        assert_found(&format!("{GOOD}{}", row.0), row, Severity::Warning);
    }
}

#[test]
fn all_mistakes_are_told_in_one_run_in_the_order_of_the_file() {
    let shown =
        report("hostnam = \"a\"\ndrain = 5\n[[listener]]\nrole = \"x\"\n[limits]\nmax_rcpt = 1\n").render(false);
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("/etc/")).collect();
    let at: Vec<&str> = lines.iter().map(|line| line.split(": ").next().unwrap()).collect();
    let file = "/etc/portreeve/portreeve.toml";
    let wanted = ["1:1", "2:9", "3:1", "4:8", "6:12"].map(|place| format!("{file}:{place}"));
    assert_eq!(at, wanted, "{shown}");
    let one = shown.lines().take(4).collect::<Vec<_>>().join("\n");
    let expect =
        format!("{file}:1:1: hostnam: unknown key; did you mean \"hostname\"?\n  |\n1 | hostnam = \"a\"\n  | ^^^^^^^");
    assert_eq!(one, expect);
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    for text in ["password = \"hunter2\"", "[users]\nsecret = \"hunter2\"", "api_token = hunter2"] {
        let shown = report(text).render(false);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let shown = report("hostname = \"\u{1b}[31m\"\n\"\u{7}x\\u001b\" = 1").render(false);
    assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
}

#[test]
fn no_mutation_of_a_good_file_panics_and_each_removed_octet_is_judged() {
    let good = include_str!("../../../../config/examples/both.toml");
    for at in 0..good.len() {
        if good.is_char_boundary(at) && good.is_char_boundary(at + 1) {
            let _ = report(&format!("{}{}", &good[..at], &good[at + 1..])).render(false);
            let _ = report(&good[..at]).render(true);
        }
    }
}

#[test]
fn defaults_and_examples_fit_their_kind() {
    for option in options::all() {
        let fits = |literal: &str| values::literal_value(option.kind, literal).is_some();
        assert!(fits(option.example), "{}: example {}", option.path, option.example);
        match option.default {
            Default::Is(literal) => assert!(fits(literal), "{}: {literal}", option.path),
            Default::ByRole { mx, submission, submissions } => {
                assert!(fits(mx) && fits(submission) && fits(submissions), "{}", option.path);
            }
            Default::Unset(words) => assert!(!words.is_empty()),
            Default::Required => assert!(option.path.contains("[]"), "{}: nothing required at the top", option.path),
        }
        let rows = options::sections().filter(|section| section.path == option.section());
        let stands = rows.flat_map(|section| section.options).any(|row| row.path == option.path);
        assert!(stands, "{} does not stand in the table that its path begins with", option.path);
        assert_eq!(options::all().filter(|other| other.path == option.path).count(), 1, "{} stands twice", option.path);
    }
}

#[test]
fn every_option_can_be_written_and_changes_something() {
    let roomy = [
        ("[[route]]\nkind", "[[route]]\ndomain = \"example.org\"\nkind"),
        ("[[route]]", "[[route]]\nkind = \"maildir\"\npath = \"x\"\n[[route]]"),
    ]
    .iter()
    .fold(GOOD.to_owned(), |text, (from, to)| text.replacen(from, to, 1));
    for option in options::all() {
        let mut table: toml::Table = roomy.parse().unwrap();
        let value: toml::Value =
            toml::from_str::<toml::Table>(&format!("v = {}", option.example)).unwrap()["v"].clone();
        let mut at = &mut table;
        let mut parts = option.path.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                at.insert(part.into(), value.clone());
                break;
            }
            let name = part.trim_end_matches("[]");
            let next = at.entry(name).or_insert_with(|| toml::Table::new().into());
            at = match next {
                toml::Value::Array(items) => items.last_mut().unwrap().as_table_mut().unwrap(),
                other => other.as_table_mut().unwrap(),
            };
        }
        let text = toml::to_string(&table).unwrap();
        let unknown: Vec<_> = report(&text)
            .findings
            .into_iter()
            .filter(|finding| finding.cause.contains("unknown key") || finding.cause.contains("but must be"))
            .collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}\n{text}", option.path);
    }
}

fn committed(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

#[test]
fn the_committed_files_are_the_generated_ones() {
    let (file, command) = ("config/portreeve.toml", "portreeve config sample > config/portreeve.toml");
    assert!(committed(file) == options::sample(), "{file} is out of date; run: {command}");
    let (file, command) = ("docs/configuration.md", "portreeve config reference > docs/configuration.md");
    assert!(committed(file) == options::reference(), "{file} is out of date; run: {command}");
}

#[test]
fn the_sample_names_every_option_and_means_nothing_until_changed() {
    let sample = options::sample();
    let found = report(&sample);
    assert_eq!(found.findings.len(), 1, "only that there is no listener: {}", found.render(false));
    for option in options::all() {
        assert!(
            sample.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{} = ", option.key())))
        );
    }
    // With every `#` before an option taken away the file says what holds anyway.
    let opened: String = sample
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let opened =
        opened.replace("bind = [\"0.0.0.0:25\", \"[::]:25\"]", "bind = [\"0.0.0.0:25\", \"[::]:25\"]\nauth = \"off\"");
    // The library of the example is not among the default ones.
    let opened = opened.replacen("\nid = \"example\"", "\nid = \"standard\"", 1);
    // What belongs to one kind of issuer only stands there as an example.
    let jwt = "kind = \"jwt\"\nkeys = \"k\"\nissuer = \"i\"\naudience = [\"a\"]";
    let opened = opened.replacen("kind = \"jwt\"", jwt, 1);
    let found = report(&opened.replacen("\nauth = \"after-tls\"", "", 1).replacen(
        "kind = \"maildir\"",
        "kind = \"maildir\"\npath = \"m\"",
        1,
    ));
    let errors: Vec<_> = found.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{}\n{opened}", found.render(false));
}

#[test]
fn the_examples_are_good() {
    for name in ["mx", "submission", "both"] {
        let path = format!("config/examples/{name}.toml");
        let (config, report) = parse(Path::new("/etc/portreeve/portreeve.toml"), &committed(&path));
        assert!(report.findings.is_empty(), "{path}:\n{}", report.render(false));
        assert!(config.is_some());
    }
}

#[test]
fn issuers_of_tokens() {
    let good = |more: &str| parse(Path::new("/etc/portreeve/portreeve.toml"), &format!("{GOOD}\n{more}\n"));
    let jwt = "[[tokens.issuer]]\nkind = \"jwt\"\nkeys = \"jwks.json\"\nissuer = \"i\"\naudience = [\"a\"]\n";
    let asks = "[[tokens.issuer]]\nkind = \"introspection\"\nname = \"x\"\nurl = \"http://localhost:8080/i\"\n\
                client_id = \"c\"\nclient_secret_file = \"s\"\n";
    let (config, report) = good(&format!("{jwt}{asks}"));
    assert!(report.findings.is_empty(), "{}", report.render(false));
    let issuers = config.expect("good").issuers;
    assert_eq!((issuers[0].name.as_str(), issuers[0].claim.as_str()), ("i", "email"));
    assert_eq!((issuers[1].name.as_str(), issuers[1].claim.as_str()), ("x", "username"));
    assert!(matches!(&issuers[1].kind, TokenKind::Introspection { client: Some((_, file)), .. }
        if file == Path::new("/etc/portreeve/s")));
    for (more, wanted) in [
        (asks.replace("http://localhost:8080", "http://login.example.org"), "without TLS whoever is on the way"),
        (asks.lines().take(4).collect::<Vec<_>>().join("\n"), "lets anybody try tokens"),
        ("[[tokens.issuer]]\nkind = \"file\"\nfile = \"t\"".into(), "whoever can read the file"),
        (
            "[[listener]]\nrole = \"mx\"\nname = \"b\"\nbind = [\"127.0.0.1:26\"]\ndomains = [\"example.org\"]\n\
          mechanisms = [\"PLAIN\", \"XOAUTH2\"]"
                .into(),
            "XOAUTH2 is offered to nobody",
        ),
        (format!("{jwt}{jwt}"), "two issuers are called \"i\""),
    ] {
        let (_, report) = good(&more);
        assert!(report.render(false).contains(wanted), "{more}: {}", report.render(false));
    }
}

#[test]
fn routes_to_next_hops() {
    let good = |route: &str| format!("{GOOD}\n[[route]]\ndomain = \"hop.example\"\n{route}\n");
    let smtp = "kind = \"smtp\"\nto = [\"relay.example:587\", \"[2001:db8::1]:25\"]\n";
    let config = parse(Path::new("/etc/portreeve/portreeve.toml"), &good(smtp)).0.expect("it is good");
    let route = config.route_of("hop.example").expect("it is there");
    let RouteKind::NextHop(hop) = &route.kind else { panic!("{route:?}") };
    assert_eq!((hop.to.len(), hop.security, hop.connections), (2, delivery::Security::Opportunistic, 4));
    for (route, expect) in [
        ("kind = \"lmtp\"".to_owned(), "route.to: is missing"),
        ("kind = \"smtp\"\nto = [\"relay.example\"]".to_owned(), "has no port"),
        (format!("{smtp}path = \"mail\""), "route.path: means nothing for kind \"smtp\""),
        (format!("{smtp}user = \"u\""), "route.password_file: is missing"),
        (format!("{smtp}password_file = \"f\""), "route.user: is missing"),
        (format!("{smtp}tls_ca = \"f\""), "no certificate is verified"),
        ("kind = \"maildir\"\npath = \"m\"\ntls = \"off\"".to_owned(), "route.tls: means nothing"),
        ("kind = \"smtp\"\nto = [\"127.0.0.1:2525\"]".to_owned(), "is this server itself"),
        (format!("kind = \"smtp\"\nto = [\"{}:2525\"]", system_hostname()), "is this server itself"),
    ] {
        let shown = report(&good(&route)).render(false);
        assert!(shown.contains(expect), "{route}: {shown}");
    }
}

#[test]
fn grants_consent_and_settings() {
    let with = |text: &str| format!("{GOOD}\n[plugins]\nload = [\"standard\", \"x\"]\n{text}\n");
    let table = "[[plugins.library]]\nid = \"x\"\n";
    let text = format!(
        "{table}grant = [\"net\", \"read:/etc/krb5.keytab\"]\nself_asserts = true\n\
         [mechanism.gssapi]\nkeytab = \"/k\"\nlist = [1, true]\n"
    );
    let config = parse(Path::new("/etc/portreeve/portreeve.toml"), &with(&text)).0.expect("it is good");
    assert_eq!(config.plugins.grants("x").to_string(), "net read:/etc/krb5.keytab");
    assert!(config.plugins.self_asserts("x") && !config.plugins.self_asserts("standard"));
    assert!(config.plugins.grants("standard").is_empty());
    assert_eq!(config.settings("GSSAPI"), r#"{"keytab":"/k","list":[1,true]}"#);
    assert_eq!(config.settings("PLAIN"), "");
    for (text, expect) in [
        (format!("{table}grant = [\"net\", \"files\"]"), "plugins.library.grant: \"files\" is no grant; write \"net\""),
        (format!("{table}grant = [\"read:etc\"]"), "a path begins with /; write a whole path"),
        (format!("{table}runner = \"inline\"\ngrant = [\"net\"]"), "runs inside of the workers"),
        ("[mechanism]\ngssapi = 1".into(), "mechanism.gssapi: is a whole number where a table is meant"),
        ("[mechanism.\"a b\"]".into(), "is no mechanism name"),
        ("[mechanism.X]\na = 1.5".into(), "is a fraction, which no setting is"),
    ] {
        let shown = report(&with(&text)).render(false);
        assert!(shown.contains(expect), "{text}: {shown}");
    }
}
