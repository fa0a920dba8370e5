//! Every setting there is, in one table.
//!
//! The parser (`values.rs`), the sample file (`config/portreeve.toml`) and the reference
//! (`docs/configuration.md`) are made from [`OPTIONS`]; nothing else in the program knows which keys
//! exist. A new option begins as a row here, and as a field of the part of `config/` that reads it.

use std::fmt::Write as _;

/// One setting.
pub struct Opt {
    /// Where it stands: `spool.path`, `listener[].bind`. `[]` marks a table that may be repeated.
    pub path: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Default,
    /// What a change needs.
    pub reload: Reload,
    /// For the reference and the sample file.
    pub help: &'static str,
    /// A value that shows the form, as TOML.
    pub example: &'static str,
}

/// What may be written as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text without control characters.
    Text,
    /// A host name.
    Host,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number of octets: `65536`, `"64KiB"`, `"50MiB"`.
    Octets {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A span of time: `"250ms"`, `"30s"`, `"5m"`, `"2h"`.
    Duration {
        /// Smallest, milliseconds.
        min: u64,
        /// Largest, milliseconds.
        max: u64,
    },
    /// So many per time: `"30/min"`, `"5/s"`, or `"off"`.
    Rate,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A file or folder; relative ones start at the folder of the configuration file.
    Path,
    /// Addresses with port: `["0.0.0.0:25", "[::]:25"]`.
    Addresses,
    /// Networks: `["127.0.0.0/8", "::1"]`.
    Networks,
    /// Domains: `["example.org"]`.
    Domains,
    /// SASL mechanism names, strongest first.
    Mechanisms,
    /// A list of words.
    Words,
    /// A list of files or folders.
    Paths,
    /// Where a service is reached: `"unix:run/x.sock"`, `"127.0.0.1:9025"` or `"off"`.
    Endpoint,
    /// A mail domain, or `"*"` for all others.
    RouteDomain,
    /// A table whose keys a library knows.
    Settings,
}

/// What holds when an option is not written.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// This value, as TOML.
    Is(&'static str),
    /// It depends on the listener's role; values as TOML.
    ByRole {
        /// For `mx`.
        mx: &'static str,
        /// For `submission`.
        submission: &'static str,
        /// For `submissions`.
        submissions: &'static str,
    },
    /// Nothing is set; the words say what happens then.
    Unset(&'static str),
    /// It must be written.
    Required,
}

/// What a change of an option needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// `portreeve reload`: new sessions see it.
    Command,
    /// Stop and start.
    Restart,
    /// Seen within seconds, by itself.
    Watched,
}

/// A table of the file.
pub struct Section {
    /// `listener[]`, `limits`; empty for the top of the file.
    pub path: &'static str,
    /// What it is for.
    pub help: &'static str,
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The role names.
pub const ROLES: &[&str] = &["mx", "submission", "submissions"];

/// Tables in the order of the sample file.
pub const SECTIONS: &[Section] = &[
    Section { path: "", help: "The whole server." },
    Section { path: "process", help: "Processes and the rights they run with." },
    Section {
        path: "listener[]",
        help: "A listener: addresses, what they are for, who may do what there. Repeat the table for each one.",
    },
    Section {
        path: "tls",
        help: "TLS for all listeners. Certificates are chosen by the name that the client asks for (SNI); the first \
               certificate of a listener is its default.",
    },
    Section { path: "tls.certificate[]", help: "A certificate with its key. Repeat the table for each one." },
    Section { path: "users", help: "Who may log in, and which local mailboxes exist." },
    Section {
        path: "tokens.issuer[]",
        help: "Whose bearer tokens are believed (OAUTHBEARER, XOAUTH2); the mechanisms are offered when there is one. \
               The user that a token names must be in the users file. Repeat the table for each issuer: one that does \
               not know a token leaves it to the others.",
    },
    Section { path: "plugins", help: "Mechanism libraries." },
    Section {
        path: "plugins.library[]",
        help: "How one library is run. Libraries without such a table run as their defaults say. Repeat the table for \
               each one.",
    },
    Section {
        path: "plugins.backend[]",
        help: "How one back end of a library is run. Without a table it has no settings and the defaults below.",
    },
    Section {
        path: "mechanism",
        help: "Settings of mechanisms, a table for each: `[mechanism.GSSAPI]`. Which keys there are is the library's \
               affair, `portreeve plugin inspect` and its documents tell.",
    },
    Section { path: "spool", help: "Where accepted mail is kept until it is handed on." },
    Section {
        path: "route[]",
        help: "Where mail goes, by recipient domain. The first route that names the domain is taken, then the one \
               for \"*\". Repeat the table for each one.",
    },
    Section { path: "queue", help: "How long mail is tried." },
    Section {
        path: "limits", help: "Bounds. Those that a listener may set for itself stand there as `limits.…` too."
    },
    Section { path: "timeouts", help: "Deadlines." },
    Section { path: "log", help: "Log lines: one event, one line. Passwords and tokens are never written." },
    Section { path: "admin", help: "How the running server is asked for its state." },
];

/// All settings, in the order of the sample file.
pub const OPTIONS: &[Opt] = &[
    // The whole server
    Opt {
        path: "hostname",
        kind: Kind::Host,
        default: Default::Unset("the system's host name"),
        reload: Reload::Command,
        help: "Our name in greeting, EHLO reply and Received lines. Should resolve to this host's address.",
        example: "\"mail.example.org\"",
    },
    Opt {
        path: "drain",
        kind: Kind::Duration { min: 0, max: HOUR },
        default: Default::Is("\"120s\""),
        reload: Reload::Command,
        help: "How long sessions may go on after SIGTERM, or in an old generation after a reload. Idle sessions get \
               421 then; a transaction in progress may finish until 300 s.",
        example: "\"30s\"",
    },
    Opt {
        path: "allow_data_loss",
        kind: Kind::Flag,
        default: Default::Is("false"),
        reload: Reload::Command,
        help: "Permits what can lose mail: `spool.durability = \"none\"` and routes of kind `discard`. For benches only; \
               said loudly in the EHLO reply and in `portreeve status`.",
        example: "true",
    },
    // Processes
    Opt {
        path: "process.workers",
        kind: Kind::Count { min: 1, max: 256 },
        default: Default::Is("1"),
        reload: Reload::Restart,
        help: "Worker processes. More than one gives isolation, and more sessions than one process may have descriptors.",
        example: "2",
    },
    Opt {
        path: "process.shards",
        kind: Kind::Count { min: 0, max: 256 },
        default: Default::Is("0"),
        reload: Reload::Restart,
        help: "Event loops (threads) in each worker; 0 means one per core.",
        example: "4",
    },
    Opt {
        path: "process.user",
        kind: Kind::Text,
        default: Default::Unset("`portreeve` when started as root; no change of user otherwise"),
        reload: Reload::Restart,
        help: "Every process except the supervisor runs as this user when started as root. \"root\" keeps root's \
               rights and warns.",
        example: "\"mail\"",
    },
    Opt {
        path: "process.group",
        kind: Kind::Text,
        default: Default::Unset("the user's own group"),
        reload: Reload::Restart,
        help: "The group that goes with `process.user`.",
        example: "\"mail\"",
    },
    Opt {
        path: "process.state_dir",
        kind: Kind::Path,
        default: Default::Is("\"state\""),
        reload: Reload::Restart,
        help: "Holds `run/` (lock, sockets), `secrets/`, and by default `spool/` and `auth/`. Made with mode 0700.",
        example: "\"/var/lib/portreeve\"",
    },
    Opt {
        path: "process.sandbox",
        kind: Kind::Choice(&["best-effort", "require"]),
        default: Default::Is("\"best-effort\""),
        reload: Reload::Restart,
        help: "How processes that run mechanism libraries are locked up (Landlock, seccomp): with what this kernel has, \
               or not at all started when something is missing. `portreeve status --json` shows what is in force.",
        example: "\"require\"",
    },
    // Listeners
    Opt {
        path: "listener[].name",
        kind: Kind::Text,
        default: Default::Unset("the role's name"),
        reload: Reload::Command,
        help: "Names the listener in logs, figures and commands. Each name once.",
        example: "\"mx\"",
    },
    Opt {
        path: "listener[].role",
        kind: Kind::Choice(ROLES),
        default: Default::Required,
        reload: Reload::Command,
        help: "`mx` takes mail for its domains and relays for the authenticated (port 25); `submission` wants STARTTLS, \
               then AUTH (587); `submissions` wants TLS from the first octet, then AUTH (465).",
        example: "\"mx\"",
    },
    Opt {
        path: "listener[].bind",
        kind: Kind::Addresses,
        default: Default::Required,
        reload: Reload::Command,
        help: "Addresses with port. `[::]` takes IPv6 only; write `0.0.0.0` beside it for IPv4.",
        example: "[\"0.0.0.0:25\", \"[::]:25\"]",
    },
    Opt {
        path: "listener[].public_port",
        kind: Kind::Count { min: 1, max: 65_535 },
        default: Default::Unset("that of `bind`"),
        reload: Reload::Command,
        help: "The port that clients connect to, when something before us (NAT, a container, a balancer) makes another one of \
               it. OAUTHBEARER clients say which port they mean, and it must be this one or one of `bind` (RFC 7628 §3.2).",
        example: "587",
    },
    Opt {
        path: "listener[].hostname",
        kind: Kind::Host,
        default: Default::Unset("`hostname`"),
        reload: Reload::Command,
        help: "Our name on this listener.",
        example: "\"submit.example.org\"",
    },
    Opt {
        path: "listener[].tls",
        kind: Kind::Choice(&["off", "starttls", "implicit"]),
        default: Default::ByRole { mx: "\"starttls\"", submission: "\"starttls\"", submissions: "\"implicit\"" },
        reload: Reload::Command,
        help: "How TLS comes about.",
        example: "\"starttls\"",
    },
    Opt {
        path: "listener[].certificates",
        kind: Kind::Words,
        default: Default::Unset("all of them"),
        reload: Reload::Command,
        help: "Names of the `[[tls.certificate]]` tables that this listener uses; the first is its default.",
        example: "[\"main\"]",
    },
    Opt {
        path: "listener[].tls_tickets",
        kind: Kind::Flag,
        default: Default::ByRole { mx: "false", submission: "true", submissions: "true" },
        reload: Reload::Command,
        help: "Whether clients may resume TLS sessions. Off on `mx`: a large sender drops connections that offer it.",
        example: "true",
    },
    Opt {
        path: "listener[].client_cert",
        kind: Kind::Choice(&["off", "request", "require"]),
        default: Default::Is("\"off\""),
        reload: Reload::Command,
        help: "Whether clients are asked for a TLS certificate. `request` refuses nobody; `require` lets only those in \
               whose certificate `client_ca` vouches for. Sessions are not resumed then: who has proven a certificate \
               proves it each time.",
        example: "\"request\"",
    },
    Opt {
        path: "listener[].client_ca",
        kind: Kind::Path,
        default: Default::Unset("no authority: whatever a client presents is noted, and nothing is verified"),
        reload: Reload::Command,
        help: "The authorities that issue to clients, PEM, any number of certificates in one file. Only what they vouch \
               for counts for EXTERNAL.",
        example: "\"client-ca.pem\"",
    },
    Opt {
        path: "listener[].domains",
        kind: Kind::Domains,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "Our own domains: their recipients must exist (unknown ones: 550 5.1.1), and anybody may write to them \
               on `mx`. All other domains are relaying.",
        example: "[\"example.org\"]",
    },
    Opt {
        path: "listener[].recipients",
        kind: Kind::Choice(&["directory", "any"]),
        default: Default::Is("\"directory\""),
        reload: Reload::Command,
        help: "`directory` asks the users file whether a recipient in `domains` exists. `any` takes every recipient \
               there: only for hosts whose next hop says no, or bounces go to forged senders.",
        example: "\"any\"",
    },
    Opt {
        path: "listener[].auth",
        kind: Kind::Choice(&["off", "after-tls"]),
        default: Default::Is("\"after-tls\""),
        reload: Reload::Command,
        help: "Whether AUTH is offered (inside TLS; in clear only to `cleartext_auth_nets`).",
        example: "\"off\"",
    },
    Opt {
        path: "listener[].mechanisms",
        kind: Kind::Mechanisms,
        default: Default::ByRole {
            mx: "[\"PLAIN\", \"LOGIN\"]",
            submission: "[\"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-256\", \"PLAIN\", \"LOGIN\"]",
            submissions: "[\"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-256\", \"PLAIN\", \"LOGIN\"]",
        },
        reload: Reload::Command,
        help: "SASL mechanisms to offer. Each must be in a loaded library, see `plugins.load`; CRAM-MD5 is in `legacy`. \
               `\"auto\"`: all mechanisms of the loaded libraries that the back end can serve, strongest first, without \
               historic and anonymous ones.",
        example: "[\"PLAIN\", \"LOGIN\", \"CRAM-MD5\"]",
    },
    Opt {
        path: "listener[].anonymous",
        kind: Kind::Choice(&["off", "local"]),
        default: Default::Is("\"off\""),
        reload: Reload::Command,
        help: "What a client may do that logs in as nobody (ANONYMOUS, RFC 4505, in the library `legacy`). `local`: leave \
               mail for local users, from addresses of other domains; never relay. Bounds: `limits.anonymous_rate` and \
               `limits.anonymous_size`. What the client says about itself is logged and proves nothing.",
        example: "\"local\"",
    },
    Opt {
        path: "listener[].backend",
        kind: Kind::Text,
        default: Default::Is("\"users\""),
        reload: Reload::Command,
        help: "Who knows the passwords and keys of this listener's users: `users` is the users file, any other name a \
               back end of a loaded library. An identity that such a back end proves has the rights and limits of the user \
               of that name in the users file; one that is not there may send as itself.",
        example: "\"acme\"",
    },
    Opt {
        path: "listener[].require_tls",
        kind: Kind::Flag,
        default: Default::ByRole { mx: "false", submission: "true", submissions: "true" },
        reload: Reload::Command,
        help: "Before TLS everything but EHLO, HELO, NOOP, RSET, STARTTLS and QUIT is answered 530. A public MX must \
               not ask for this (RFC 3207 §4).",
        example: "false",
    },
    Opt {
        path: "listener[].require_auth",
        kind: Kind::Flag,
        default: Default::ByRole { mx: "false", submission: "true", submissions: "true" },
        reload: Reload::Command,
        help: "Before AUTH a transaction is answered 530.",
        example: "false",
    },
    Opt {
        path: "listener[].cleartext_auth_nets",
        kind: Kind::Networks,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "Networks that may send passwords without TLS.",
        example: "[\"127.0.0.0/8\", \"::1/128\"]",
    },
    Opt {
        path: "listener[].exempt_nets",
        kind: Kind::Networks,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "Networks without limits, delays and penalties: webmail hosts, load tests.",
        example: "[\"192.0.2.0/24\"]",
    },
    Opt {
        path: "listener[].identity.envelope",
        kind: Kind::Choice(&["enforce", "off"]),
        default: Default::Is("\"enforce\""),
        reload: Reload::Command,
        help: "MAIL FROM held against what the user may send as.",
        example: "\"off\"",
    },
    Opt {
        path: "listener[].identity.header",
        kind: Kind::Choice(&["enforce", "off"]),
        default: Default::Is("\"enforce\""),
        reload: Reload::Command,
        help: "Header From held against what the user may send as.",
        example: "\"off\"",
    },
    Opt {
        path: "listener[].fixups",
        kind: Kind::Flag,
        default: Default::ByRole { mx: "false", submission: "true", submissions: "true" },
        reload: Reload::Command,
        help: "Add Date and Message-ID where a client left them out (RFC 6409 §8).",
        example: "false",
    },
    Opt {
        path: "listener[].received.hide_client",
        kind: Kind::Flag,
        default: Default::ByRole { mx: "false", submission: "true", submissions: "true" },
        reload: Reload::Command,
        help: "Keep the client's address and name out of the Received line.",
        example: "false",
    },
    Opt {
        path: "listener[].trust_auth_param_from",
        kind: Kind::Words,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "Users whose `AUTH=` parameter of MAIL is believed (RFC 4954 §5); others' counts as `<>`.",
        example: "[\"relay@example.org\"]",
    },
    Opt {
        path: "listener[].starttls_trailing",
        kind: Kind::Choice(&["drop", "close"]),
        default: Default::Is("\"drop\""),
        reload: Reload::Command,
        help: "Octets that came behind STARTTLS in clear: thrown away and counted, or `554 5.5.0` and close.",
        example: "\"close\"",
    },
    Opt {
        path: "listener[].sync_violation",
        kind: Kind::Choice(&["close", "log"]),
        default: Default::ByRole { mx: "\"close\"", submission: "\"log\"", submissions: "\"log\"" },
        reload: Reload::Command,
        help: "A client that talks before it may: `554 5.5.0` and close, or only noted.",
        example: "\"log\"",
    },
    Opt {
        path: "listener[].chunking",
        kind: Kind::Flag,
        default: Default::Is("true"),
        reload: Reload::Command,
        help: "Offer CHUNKING (BDAT, RFC 3030).",
        example: "false",
    },
    Opt {
        path: "listener[].smtputf8",
        kind: Kind::Flag,
        default: Default::Is("true"),
        reload: Reload::Command,
        help: "Offer SMTPUTF8 (RFC 6531). Turn it off when what is behind the routes cannot carry it.",
        example: "false",
    },
    Opt {
        path: "listener[].limits.max_size",
        kind: Kind::Octets { min: 64 * KIB, max: 4 * GIB },
        default: Default::Unset("`limits.max_size`"),
        reload: Reload::Command,
        help: "Largest message on this listener.",
        example: "\"25MiB\"",
    },
    Opt {
        path: "listener[].limits.max_rcpt",
        kind: Kind::Count { min: 100, max: 100_000 },
        default: Default::Unset("`limits.max_rcpt`"),
        reload: Reload::Command,
        help: "Most recipients of a message on this listener.",
        example: "200",
    },
    Opt {
        path: "listener[].limits.per_ip",
        kind: Kind::Count { min: 1, max: 60_000 },
        default: Default::ByRole { mx: "50", submission: "20", submissions: "20" },
        reload: Reload::Command,
        help: "Concurrent sessions of one client (an IPv4 address, an IPv6 /64) on this listener; more get 421 4.7.0.",
        example: "100",
    },
    Opt {
        path: "listener[].timeouts.data_deadline",
        kind: Kind::Duration { min: 10 * SECOND, max: HOUR },
        default: Default::ByRole { mx: "\"540s\"", submission: "\"110s\"", submissions: "\"110s\"" },
        reload: Reload::Command,
        help: "From the end of the data to our answer. Later the message is not kept and 451 4.4.5 is said, so that a \
               client that gave up makes no twin.",
        example: "\"300s\"",
    },
    // TLS
    Opt {
        path: "tls.min",
        kind: Kind::Choice(&["1.2", "1.3"]),
        default: Default::Is("\"1.2\""),
        reload: Reload::Command,
        help: "Oldest TLS version (RFC 8996).",
        example: "\"1.3\"",
    },
    Opt {
        path: "tls.certificate[].name",
        kind: Kind::Text,
        default: Default::Unset("the file's name without its ending"),
        reload: Reload::Command,
        help: "What a listener's `certificates` calls it.",
        example: "\"main\"",
    },
    Opt {
        path: "tls.certificate[].cert",
        kind: Kind::Path,
        default: Default::Required,
        reload: Reload::Watched,
        help: "PEM file: our certificate first, then those between it and the root.",
        example: "\"tls/fullchain.pem\"",
    },
    Opt {
        path: "tls.certificate[].key",
        kind: Kind::Path,
        default: Default::Required,
        reload: Reload::Watched,
        help: "PEM file: the private key. Readable for its owner only.",
        example: "\"tls/privkey.pem\"",
    },
    // Users
    Opt {
        path: "users.file",
        kind: Kind::Path,
        default: Default::Unset("`auth/users` in the state folder"),
        reload: Reload::Watched,
        help: "The users file; `portreeve user` edits it. A changed file is checked, then taken over.",
        example: "\"/etc/portreeve/users\"",
    },
    Opt {
        path: "users.postmaster",
        kind: Kind::Text,
        default: Default::Unset("the first user of the file"),
        reload: Reload::Command,
        help: "The user who gets mail for `postmaster` where nobody else does (RFC 5321 §4.5.1).",
        example: "\"alice@example.org\"",
    },
    Opt {
        path: "users.tag",
        kind: Kind::Choice(&["+", "-", "=", "off"]),
        default: Default::Is("\"+\""),
        reload: Reload::Command,
        help: "What separates a tag from a name: mail for `alice+shop@…` goes to `alice@…`.",
        example: "\"-\"",
    },
    Opt {
        path: "users.prep",
        kind: Kind::Choice(&["precis-casemapped", "precis-casepreserved", "saslprep", "none"]),
        default: Default::Is("\"precis-casemapped\""),
        reload: Reload::Command,
        help: "When two names are one. `precis-casemapped` (RFC 8265 §3.3): case and width of letters do not matter. \
               `precis-casepreserved` (§3.4): case does. `saslprep` (RFC 4013): what looks the same in print is the same, \
               case matters. `none`: to the octet. Domains never depend on case, except with `none`.",
        example: "\"saslprep\"",
    },
    Opt {
        path: "users.default_domain",
        kind: Kind::Host,
        default: Default::Unset("a name without a domain stays without one"),
        reload: Reload::Command,
        help: "The domain of users who log in without naming one.",
        example: "\"example.org\"",
    },
    Opt {
        path: "users.allow_cleartext",
        kind: Kind::Flag,
        default: Default::Is("false"),
        reload: Reload::Command,
        help: "Whether the file may hold passwords in clear (`{PLAIN}…`). They serve every mechanism: SCRAM keys are made of \
               them, with a salt fixed per user, once for each content of the file and beside the logins; with more than \
               10,000 such users at each login. Whoever reads the file has the passwords.",
        example: "true",
    },
    Opt {
        path: "users.dialect",
        kind: Kind::Choice(&["dovecot", "openldap"]),
        default: Default::Unset("`{MD5}` is a mistake"),
        reload: Reload::Command,
        help: "What `{MD5}` means in the file: 32 hexadecimal digits in Dovecot, base64 in OpenLDAP.",
        example: "\"dovecot\"",
    },
    Opt {
        path: "users.default_scheme",
        kind: Kind::Text,
        default: Default::Unset("a secret without a scheme is a mistake"),
        reload: Reload::Command,
        help: "The scheme of secrets in the file that name none.",
        example: "\"SHA512-CRYPT\"",
    },
    Opt {
        path: "users.password_cache",
        kind: Kind::Duration { min: 0, max: HOUR },
        default: Default::Is("\"5m\""),
        reload: Reload::Command,
        help: "How long a verified password is believed without asking again. A changed users file ends it at once.",
        example: "\"0s\"",
    },
    // Tokens
    Opt {
        path: "tokens.issuer[].kind",
        kind: Kind::Choice(&["jwt", "introspection", "file"]),
        default: Default::Required,
        reload: Reload::Command,
        help: "How a token is checked. `jwt`: by its signature, with `keys`. `introspection`: by asking the server that \
               issued it (RFC 7662), at `url`. `file`: it stands in `file`; for tests.",
        example: "\"jwt\"",
    },
    Opt {
        path: "tokens.issuer[].name",
        kind: Kind::Text,
        default: Default::Unset("`issuer`, else the kind"),
        reload: Reload::Command,
        help: "For messages; unique.",
        example: "\"staff\"",
    },
    Opt {
        path: "tokens.issuer[].issuer",
        kind: Kind::Text,
        default: Default::Unset("not looked at; for `jwt` it must be written"),
        reload: Reload::Command,
        help: "What the token must say about who issued it (`iss`), to the letter.",
        example: "\"https://login.example.org\"",
    },
    Opt {
        path: "tokens.issuer[].audience",
        kind: Kind::Words,
        default: Default::Unset("not looked at; for `jwt` it must be written"),
        reload: Reload::Command,
        help: "Whom the token must be meant for (`aud`): one of these.",
        example: "[\"smtp.example.org\"]",
    },
    Opt {
        path: "tokens.issuer[].keys",
        kind: Kind::Text,
        default: Default::Unset("for `jwt` it must be written"),
        reload: Reload::Command,
        help: "The issuer's key set (RFC 7517): an https URL, fetched again every ten minutes and when a token names a \
               new key; or a file, read again when it changes.",
        example: "\"https://login.example.org/jwks.json\"",
    },
    Opt {
        path: "tokens.issuer[].algorithms",
        kind: Kind::Words,
        default: Default::Is("[\"RS256\", \"PS256\", \"ES256\", \"EdDSA\"]"),
        reload: Reload::Command,
        help: "Signatures that are believed. Also known: RS384, RS512, PS384, PS512, ES384. None with a shared secret.",
        example: "[\"ES256\"]",
    },
    Opt {
        path: "tokens.issuer[].url",
        kind: Kind::Text,
        default: Default::Unset("for `introspection` it must be written"),
        reload: Reload::Command,
        help: "The introspection endpoint. After five failures in a row it is left alone for five seconds.",
        example: "\"https://login.example.org/introspect\"",
    },
    Opt {
        path: "tokens.issuer[].client_id",
        kind: Kind::Text,
        default: Default::Unset("nothing is said about who asks"),
        reload: Reload::Command,
        help: "Who we are at the introspection endpoint.",
        example: "\"portreeve\"",
    },
    Opt {
        path: "tokens.issuer[].client_secret_file",
        kind: Kind::Path,
        default: Default::Unset("none"),
        reload: Reload::Command,
        help: "A file with our secret there in its first line.",
        example: "\"secrets/introspection\"",
    },
    Opt {
        path: "tokens.issuer[].file",
        kind: Kind::Path,
        default: Default::Unset("for `file` it must be written"),
        reload: Reload::Command,
        help: "A file of tokens, one per line: `TOKEN USER [exp=SECONDS-SINCE-1970] [scope=WORD]…`. Read again when it \
               changes.",
        example: "\"tokens\"",
    },
    Opt {
        path: "tokens.issuer[].claim",
        kind: Kind::Text,
        default: Default::Unset("`email`; for `introspection` `username`"),
        reload: Reload::Command,
        help: "Which claim names the user, as the users file does. Name only one that users cannot choose themselves.",
        example: "\"preferred_username\"",
    },
    Opt {
        path: "tokens.issuer[].scope",
        kind: Kind::Text,
        default: Default::Unset("any will do"),
        reload: Reload::Command,
        help: "What the token must be good for (`scope` or `scp`). The first issuer's is told to clients whose token is \
               refused.",
        example: "\"mail\"",
    },
    Opt {
        path: "tokens.issuer[].openid_configuration",
        kind: Kind::Text,
        default: Default::Unset("not told"),
        reload: Reload::Command,
        help: "Where clients learn how to get a token; told to those whose token is refused (RFC 7628 §3.2.2).",
        example: "\"https://login.example.org/.well-known/openid-configuration\"",
    },
    Opt {
        path: "tokens.issuer[].ca",
        kind: Kind::Path,
        default: Default::Unset("the authorities that the system trusts"),
        reload: Reload::Command,
        help: "PEM file: who vouches for the issuer's server.",
        example: "\"tls/own-ca.pem\"",
    },
    Opt {
        path: "tokens.issuer[].skew",
        kind: Kind::Duration { min: 0, max: MINUTE },
        default: Default::Is("\"30s\""),
        reload: Reload::Command,
        help: "How much the issuer's clock may differ from ours.",
        example: "\"5s\"",
    },
    Opt {
        path: "tokens.issuer[].timeout",
        kind: Kind::Duration { min: 100, max: 10 * SECOND },
        default: Default::Is("\"3s\""),
        reload: Reload::Command,
        help: "For an answer of the issuer's server; then 454.",
        example: "\"1s\"",
    },
    // Plugins
    Opt {
        path: "plugins.path",
        kind: Kind::Paths,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "Folders that are searched for libraries first; then the program's own folder, then \
               `../lib/portreeve/plugins` beside it.",
        example: "[\"/usr/lib/portreeve/plugins\"]",
    },
    Opt {
        path: "plugins.load",
        kind: Kind::Words,
        default: Default::Is("[\"standard\"]"),
        reload: Reload::Command,
        help: "Libraries to load, by id: `portreeve_<id>.so` or `libportreeve_<id>.so`. Bundled: `standard` (PLAIN, \
               LOGIN), `legacy` (CRAM-MD5).",
        example: "[\"standard\", \"legacy\"]",
    },
    Opt {
        path: "plugins.library[].id",
        kind: Kind::Text,
        default: Default::Required,
        reload: Reload::Command,
        help: "Which library: its id, as in `plugins.load`.",
        example: "\"standard\"",
    },
    Opt {
        path: "plugins.library[].runner",
        kind: Kind::Choice(&["inline", "process"]),
        default: Default::Unset("`inline` for `standard` and `legacy`, `process` for all others"),
        reload: Reload::Command,
        help: "Where it runs. `process`: in a process of its own without network and files; a crash costs the logins \
               that are under way in it, and a changed file is taken over without a new generation of workers. \
               `inline`: inside of the workers, where a fault of the library is the worker's.",
        example: "\"process\"",
    },
    Opt {
        path: "plugins.library[].grant",
        kind: Kind::Words,
        default: Default::Is("[]"),
        reload: Reload::Command,
        help: "What a library in a process of its own may have beside computing: `net` (connections to others), \
               `read:PATH` and `write:PATH` (a file, or everything below a folder).",
        example: "[\"net\", \"read:/etc/krb5.conf\", \"write:/var/tmp\"]",
    },
    Opt {
        path: "plugins.library[].self_asserts",
        kind: Kind::Flag,
        default: Default::Is("false"),
        reload: Reload::Command,
        help: "Believe this library when it says who somebody is, without a proof that the server could check: \
               Kerberos works so. Without it its mechanisms of this kind are not offered.",
        example: "true",
    },
    Opt {
        path: "plugins.library[].sha256",
        kind: Kind::Text,
        default: Default::Unset("any content"),
        reload: Reload::Command,
        help: "The only content that is loaded: 64 hexadecimal digits, as `sha256sum` prints them.",
        example: "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
    },
    Opt {
        path: "plugins.backend[].name",
        kind: Kind::Text,
        default: Default::Required,
        reload: Reload::Command,
        help: "Which back end: its name in its library, see `portreeve plugin inspect`.",
        example: "\"acme\"",
    },
    Opt {
        path: "plugins.backend[].settings",
        kind: Kind::Settings,
        default: Default::Unset("none"),
        reload: Reload::Command,
        help: "What the back end wants to know, as its library describes it (`config_schema`). `{ file = \"…\" }` stands \
               for the text of a file, `{ env = \"…\" }` for a variable of the server's environment: both are read when \
               the server starts and at reload, and only the back end's process gets them.",
        example: "{ users = { file = \"acme-users\" } }",
    },
    Opt {
        path: "plugins.backend[].timeout",
        kind: Kind::Duration { min: 50, max: 60 * SECOND },
        default: Default::Is("\"5s\""),
        reload: Reload::Command,
        help: "How long an answer may take, waiting for a free place included; then the login is answered `454 4.7.0`. A \
               process with a call that is not over three times as long after that is replaced. Must be shorter than \
               `timeouts.directory`.",
        example: "\"2s\"",
    },
    Opt {
        path: "plugins.backend[].parallel",
        kind: Kind::Count { min: 1, max: 64 },
        default: Default::Unset("what the library declares, at most 64"),
        reload: Reload::Command,
        help: "Most calls at the same time.",
        example: "4",
    },
    Opt {
        path: "plugins.backend[].queue",
        kind: Kind::Count { min: 1, max: 65_536 },
        default: Default::Is("1024"),
        reload: Reload::Command,
        help: "Logins that may wait for a free place; more are answered `454 4.7.0` at once.",
        example: "256",
    },
    Opt {
        path: "plugins.backend[].decoy_iterations",
        kind: Kind::Count { min: 1, max: 10_000_000 },
        default: Default::Is("15000"),
        reload: Reload::Command,
        help: "For back ends with SCRAM keys: the iterations that users whom it does not know seem to have. Write what its \
               real users have, or strangers can tell one from the other.",
        example: "4096",
    },
    // Spool
    Opt {
        path: "spool.path",
        kind: Kind::Path,
        default: Default::Unset("`spool` in the state folder"),
        reload: Reload::Restart,
        help: "Folder of the spool. A local file system that keeps what it has synced.",
        example: "\"/var/spool/portreeve\"",
    },
    Opt {
        path: "spool.segment",
        kind: Kind::Octets { min: MIB, max: GIB },
        default: Default::Is("\"64MiB\""),
        reload: Reload::Command,
        help: "Size of one segment file.",
        example: "\"16MiB\"",
    },
    Opt {
        path: "spool.durability",
        kind: Kind::Choice(&["group-fsync", "none"]),
        default: Default::Is("\"group-fsync\""),
        reload: Reload::Command,
        help: "`group-fsync`: 250 means that message and envelope are on disk. `none` can lose acknowledged mail and \
               needs `allow_data_loss = true`; when all routes are `discard`, messages are then not written at all.",
        example: "\"none\"",
    },
    Opt {
        path: "spool.min_free",
        kind: Kind::Octets { min: 0, max: 1024 * GIB },
        default: Default::Is("\"256MiB\""),
        reload: Reload::Command,
        help: "With less free room new messages get 452 4.3.1.",
        example: "\"1GiB\"",
    },
    Opt {
        path: "spool.min_free_percent",
        kind: Kind::Count { min: 0, max: 90 },
        default: Default::Is("10"),
        reload: Reload::Command,
        help: "The same, in per cent of the file system's room and of its files (inodes).",
        example: "5",
    },
    Opt {
        path: "spool.memory",
        kind: Kind::Octets { min: MIB, max: 64 * GIB },
        default: Default::Is("\"64MiB\""),
        reload: Reload::Command,
        help: "Memory of one worker for messages on their way to the disk.",
        example: "\"256MiB\"",
    },
    // Routes
    Opt {
        path: "route[].domain",
        kind: Kind::RouteDomain,
        default: Default::Is("\"*\""),
        reload: Reload::Command,
        help: "The recipient's domain; \"*\" is every other one.",
        example: "\"example.org\"",
    },
    Opt {
        path: "route[].kind",
        kind: Kind::Choice(&["maildir", "lmtp", "smtp", "mx", "discard"]),
        default: Default::Required,
        reload: Reload::Command,
        help: "`maildir` writes files below `path`; `lmtp` hands mail to a mailbox server (RFC 2033), `smtp` to other \
               mail servers, both at `to`; `mx` to the hosts that the recipient's domain names in the DNS; `discard` \
               throws mail away (benches; needs `allow_data_loss = true`).",
        example: "\"maildir\"",
    },
    Opt {
        path: "route[].path",
        kind: Kind::Path,
        default: Default::Unset("required for `maildir`"),
        reload: Reload::Command,
        help: "Folder of the Maildirs. `%d` stands for the mailbox's domain, `%n` for its name, `%u` for both, `%%` for a \
               per cent sign; without them all mail of the route lands in one Maildir.",
        example: "\"mail/%d/%n\"",
    },
    Opt {
        path: "route[].to",
        kind: Kind::Words,
        default: Default::Unset("required for `lmtp` and `smtp`"),
        reload: Reload::Command,
        help: "Next hops, best first: `host:port`, `[2001:db8::1]:25` or `unix:PATH`. The first one that works gets \
               the mail; one that fails is left alone for 10 s, later for up to 5 minutes. `lmtp` is given mailbox \
               names (aliases are resolved), `smtp` the addresses as they came.",
        example: "[\"relay1.example.org:587\", \"relay2.example.org:587\"]",
    },
    Opt {
        path: "route[].tls",
        kind: Kind::Choice(&["off", "opportunistic", "required", "implicit"]),
        default: Default::Unset("`opportunistic` for `smtp` and `mx`, `off` for `lmtp`"),
        reload: Reload::Command,
        help: "`opportunistic`: STARTTLS when it is offered, with any certificate. `required`: STARTTLS with a \
               certificate that verifies, or nothing is sent. `implicit`: the same from the first octet (port 465), \
               not for `mx`. Where an MTA-STS policy is in force (`mta_sts`) it is `required` whatever is written here.",
        example: "\"required\"",
    },
    Opt {
        path: "route[].tls_ca",
        kind: Kind::Path,
        default: Default::Unset("the authorities that the system trusts"),
        reload: Reload::Command,
        help: "Authorities that next hops' certificates must come from, PEM; for `mx` those of MTA-STS policy hosts, too.",
        example: "\"/etc/portreeve/relay-ca.pem\"",
    },
    Opt {
        path: "route[].tls_name",
        kind: Kind::Host,
        default: Default::Unset("the host in `to`"),
        reload: Reload::Command,
        help: "The name that must be in next hops' certificates.",
        example: "\"relay.example.org\"",
    },
    Opt {
        path: "route[].user",
        kind: Kind::Text,
        default: Default::Unset("no login"),
        reload: Reload::Command,
        help: "Log in to next hops as this user: SCRAM-SHA-256 or CRAM-MD5, and inside TLS PLAIN or LOGIN.",
        example: "\"relay-user\"",
    },
    Opt {
        path: "route[].password_file",
        kind: Kind::Path,
        default: Default::Unset("required with `user`"),
        reload: Reload::Command,
        help: "Its first line is the password. The server's user must be able to read it, and nobody else.",
        example: "\"/etc/portreeve/relay-password\"",
    },
    Opt {
        path: "route[].connections",
        kind: Kind::Count { min: 1, max: 200 },
        default: Default::Unset("4; 50 for `mx`"),
        reload: Reload::Command,
        help: "Connections to the route's next hops at the same time. Each has a thread.",
        example: "10",
    },
    Opt {
        path: "route[].connections_per_host",
        kind: Kind::Count { min: 1, max: 200 },
        default: Default::Unset("5 for `mx`"),
        reload: Reload::Command,
        help: "For `mx`: of these connections, to one host. Mail that finds them all in use waits for one.",
        example: "2",
    },
    Opt {
        path: "route[].resolver",
        kind: Kind::Addresses,
        default: Default::Unset("the system's, from /etc/resolv.conf"),
        reload: Reload::Command,
        help: "For `mx`: the name servers that are asked, address and port. A resolver on this host or in its network, \
               which does the walking and, better, checks DNSSEC.",
        example: "[\"127.0.0.1:53\"]",
    },
    Opt {
        path: "route[].dns_timeout",
        kind: Kind::Duration { min: 100, max: MINUTE },
        default: Default::Unset("5s for `mx`"),
        reload: Reload::Command,
        help: "For `mx`: longest wait for one answer of a name server. Each question is asked twice, by UDP, and by TCP \
               when the answer is truncated.",
        example: "\"3s\"",
    },
    Opt {
        path: "route[].mta_sts",
        kind: Kind::Flag,
        default: Default::Unset("`true` for `mx`"),
        reload: Reload::Command,
        help: "For `mx`: honour MTA-STS policies (RFC 8461). They are kept in `sts/` of the state folder. Where one with \
               mode `enforce` is in force, only hosts that it names get the mail, inside TLS and with a certificate that \
               verifies; otherwise the mail waits.",
        example: "false",
    },
    Opt {
        path: "route[].allow_private",
        kind: Kind::Networks,
        default: Default::Unset("none"),
        reload: Reload::Command,
        help: "For `mx`: networks that mail may go to although they are not public. Loopback, private, link-local and \
               reserved addresses are refused otherwise: the DNS of a stranger must not choose services in your network.",
        example: "[\"10.20.0.0/16\"]",
    },
    Opt {
        path: "route[].port",
        kind: Kind::Count { min: 1, max: 65_535 },
        default: Default::Unset("25 for `mx`"),
        reload: Reload::Command,
        help: "For `mx`: the port of the hosts. Any other than 25 is for tests.",
        example: "25",
    },
    Opt {
        path: "route[].mta_sts_port",
        kind: Kind::Count { min: 1, max: 65_535 },
        default: Default::Unset("443 for `mx`"),
        reload: Reload::Command,
        help: "For `mx`: the port of MTA-STS policy hosts. Any other than 443 is for tests.",
        example: "443",
    },
    Opt {
        path: "route[].timeout",
        kind: Kind::Duration { min: SECOND, max: 15 * MINUTE },
        default: Default::Is("\"5m\""),
        reload: Reload::Command,
        help: "Longest wait for a next hop's reply, where RFC 5321 does not ask for less. Six times this, and a second \
               for each KiB, are given to a whole message.",
        example: "\"60s\"",
    },
    Opt {
        path: "route[].pass_through",
        kind: Kind::Flag,
        default: Default::Is("false"),
        reload: Reload::Command,
        help: "For `lmtp` and `smtp`. The client waits until the next hop has taken the message or refused it, and gets \
               that reply; nothing is kept here meanwhile. When the next hop takes it for some recipients only, or other \
               recipients have an ordinary route, the rest goes into the queue and the reply is 250. Each connection \
               serves one waiting client: see `connections`.",
        example: "true",
    },
    // The queue
    Opt {
        path: "queue.expire",
        kind: Kind::Duration { min: MINUTE, max: 30 * 24 * HOUR },
        default: Default::Is("\"120h\""),
        reload: Reload::Command,
        help: "How old a message may become before it is given up and its sender, when it had logged in, gets a report.",
        example: "\"48h\"",
    },
    Opt {
        path: "queue.delay_notice",
        kind: Kind::Duration { min: 0, max: 30 * 24 * HOUR },
        default: Default::Is("\"4h\""),
        reload: Reload::Command,
        help: "How long a message may wait before its sender, when it had logged in and did not ask otherwise with NOTIFY, is \
               told so, once for each recipient. `\"0s\"`: never.",
        example: "\"30m\"",
    },
    Opt {
        path: "queue.retry",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"30s\""),
        reload: Reload::Command,
        help: "Time to the second attempt; later ones come after twice as long each.",
        example: "\"2m\"",
    },
    Opt {
        path: "queue.retry_max",
        kind: Kind::Duration { min: SECOND, max: 24 * HOUR },
        default: Default::Is("\"1h\""),
        reload: Reload::Command,
        help: "Longest time between two attempts.",
        example: "\"30m\"",
    },
    // Limits
    Opt {
        path: "limits.max_size",
        kind: Kind::Octets { min: 64 * KIB, max: 4 * GIB },
        default: Default::Is("\"50MiB\""),
        reload: Reload::Command,
        help: "Largest message; announced as SIZE (RFC 1870), more gets 552 5.3.4.",
        example: "\"25MiB\"",
    },
    Opt {
        path: "limits.max_rcpt",
        kind: Kind::Count { min: 100, max: 100_000 },
        default: Default::Is("1000"),
        reload: Reload::Command,
        help: "Most recipients of a message, at least 100 (RFC 5321 §4.5.3.1.8); more get 452 4.5.3.",
        example: "200",
    },
    Opt {
        path: "limits.max_line",
        kind: Kind::Count { min: 512, max: 65_536 },
        default: Default::Is("2048"),
        reload: Reload::Command,
        help: "Longest command line with CRLF, octets; longer ones get 500 5.5.2 and the session goes on.",
        example: "4096",
    },
    Opt {
        path: "limits.max_messages",
        kind: Kind::Count { min: 1, max: 1_000_000 },
        default: Default::Is("1000"),
        reload: Reload::Command,
        help: "Messages of one session.",
        example: "100",
    },
    Opt {
        path: "limits.max_errors",
        kind: Kind::Count { min: 1, max: 255 },
        default: Default::Is("10"),
        reload: Reload::Command,
        help: "Refused commands before 421.",
        example: "20",
    },
    Opt {
        path: "limits.max_idle_commands",
        kind: Kind::Count { min: 10, max: 255 },
        default: Default::Is("100"),
        reload: Reload::Command,
        help: "Commands that do nothing (NOOP, RSET, VRFY, HELP, repeated EHLO) before 421.",
        example: "50",
    },
    Opt {
        path: "limits.max_received",
        kind: Kind::Count { min: 10, max: 1000 },
        default: Default::Is("50"),
        reload: Reload::Command,
        help: "Received lines before a message counts as looping (554 5.4.6).",
        example: "30",
    },
    Opt {
        path: "limits.max_sessions",
        kind: Kind::Count { min: 1, max: 10_000_000 },
        default: Default::Is("100000"),
        reload: Reload::Command,
        help: "Sessions of all listeners and workers together; more get 421 4.3.2. A worker can have as many as it may \
               have descriptors.",
        example: "20000",
    },
    Opt {
        path: "limits.connect_rate",
        kind: Kind::Rate,
        default: Default::Is("\"off\""),
        reload: Reload::Command,
        help: "Connections of one client (an IPv4 address, an IPv6 /64); more get 421 4.7.0.",
        example: "\"60/min\"",
    },
    Opt {
        path: "limits.auth_rate",
        kind: Kind::Rate,
        default: Default::Is("\"30/min\""),
        reload: Reload::Command,
        help: "AUTH commands of one client; more get 454 4.7.0.",
        example: "\"10/min\"",
    },
    Opt {
        path: "limits.message_rate",
        kind: Kind::Rate,
        default: Default::Is("\"off\""),
        reload: Reload::Command,
        help: "Messages of one client or user; more get 450 4.7.1.",
        example: "\"60/min\"",
    },
    Opt {
        path: "limits.recipient_rate",
        kind: Kind::Rate,
        default: Default::Is("\"off\""),
        reload: Reload::Command,
        help: "Recipients of one client or user; more get 450 4.7.1.",
        example: "\"200/min\"",
    },
    Opt {
        path: "limits.anonymous_rate",
        kind: Kind::Rate,
        default: Default::Is("\"10/min\""),
        reload: Reload::Command,
        help: "Messages of anonymous sessions of one client address (IPv6: /64), beside `message_rate`.",
        example: "\"2/min\"",
    },
    Opt {
        path: "limits.anonymous_size",
        kind: Kind::Octets { min: 64 * KIB, max: GIB },
        default: Default::Is("\"1MiB\""),
        reload: Reload::Command,
        help: "Largest message of an anonymous session.",
        example: "\"256KiB\"",
    },
    Opt {
        path: "limits.auth_failures",
        kind: Kind::Count { min: 3, max: 20 },
        default: Default::Is("3"),
        reload: Reload::Command,
        help: "Failed logins of one session before 421 4.7.0; not fewer than 3 (RFC 4954 §9).",
        example: "5",
    },
    Opt {
        path: "limits.sasl.line_octets_max",
        kind: Kind::Count { min: 12_288, max: 131_072 },
        default: Default::Is("24576"),
        reload: Reload::Command,
        help: "Longest AUTH command or response line with CRLF, octets (RFC 4954 §4 asks for 12288).",
        example: "32768",
    },
    // Deadlines
    Opt {
        path: "timeouts.command",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"300s\""),
        reload: Reload::Command,
        help: "From one whole command to the next (RFC 5321 §4.5.3.2.7); not moved by single octets.",
        example: "\"60s\"",
    },
    Opt {
        path: "timeouts.command_crowded",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"10s\""),
        reload: Reload::Command,
        help: "The same for strangers while nine tenths of `limits.max_sessions` are taken.",
        example: "\"30s\"",
    },
    Opt {
        path: "timeouts.pre_auth",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"120s\""),
        reload: Reload::Command,
        help: "On listeners that require AUTH: from connecting to a successful login.",
        example: "\"60s\"",
    },
    Opt {
        path: "timeouts.auth",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"60s\""),
        reload: Reload::Command,
        help: "A whole AUTH exchange.",
        example: "\"30s\"",
    },
    Opt {
        path: "timeouts.handshake",
        kind: Kind::Duration { min: SECOND, max: 10 * MINUTE },
        default: Default::Is("\"10s\""),
        reload: Reload::Command,
        help: "A TLS handshake.",
        example: "\"30s\"",
    },
    Opt {
        path: "timeouts.data_grace",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"60s\""),
        reload: Reload::Command,
        help: "Before the rate of a message is looked at.",
        example: "\"120s\"",
    },
    Opt {
        path: "timeouts.min_rate",
        kind: Kind::Octets { min: 0, max: MIB },
        default: Default::Is("500"),
        reload: Reload::Command,
        help: "Octets a second that message data must come with on average, once `data_grace` is over.",
        example: "1000",
    },
    Opt {
        path: "timeouts.unread",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"60s\""),
        reload: Reload::Command,
        help: "For a client to read our replies.",
        example: "\"30s\"",
    },
    Opt {
        path: "timeouts.directory",
        kind: Kind::Duration { min: SECOND, max: HOUR },
        default: Default::Is("\"30s\""),
        reload: Reload::Command,
        help: "For an answer about a password or a recipient; then 454 or 451.",
        example: "\"10s\"",
    },
    Opt {
        path: "timeouts.session",
        kind: Kind::Duration { min: MINUTE, max: 24 * HOUR },
        default: Default::Is("\"24h\""),
        reload: Reload::Command,
        help: "A whole session.",
        example: "\"2h\"",
    },
    // Log
    Opt {
        path: "log.format",
        kind: Kind::Choice(&["auto", "human", "json"]),
        default: Default::Is("\"auto\""),
        reload: Reload::Restart,
        help: "`auto`: for people on a terminal, JSON otherwise.",
        example: "\"json\"",
    },
    Opt {
        path: "log.level",
        kind: Kind::Choice(&["error", "warning", "info", "debug"]),
        default: Default::Is("\"info\""),
        reload: Reload::Restart,
        help: "The least important events that are written.",
        example: "\"warning\"",
    },
    Opt {
        path: "log.file",
        kind: Kind::Path,
        default: Default::Unset("standard error"),
        reload: Reload::Restart,
        help: "File that log lines are appended to. It is opened again when it was moved away.",
        example: "\"/var/log/portreeve.log\"",
    },
    Opt {
        path: "log.audit",
        kind: Kind::Path,
        default: Default::Unset("among the log lines"),
        reload: Reload::Restart,
        help: "File for audit records (one per session and per login), as JSON lines.",
        example: "\"/var/log/portreeve-audit.log\"",
    },
    // Admin
    Opt {
        path: "admin.socket",
        kind: Kind::Path,
        default: Default::Unset("`run/admin.sock` in the state folder"),
        reload: Reload::Restart,
        help: "Unix socket of `portreeve status` and `reload`; mode 0600.",
        example: "\"/run/portreeve/admin.sock\"",
    },
    Opt {
        path: "admin.metrics",
        kind: Kind::Endpoint,
        default: Default::Is("\"off\""),
        reload: Reload::Restart,
        help: "Figures as Prometheus text: `\"unix:PATH\"`, or an address of this host itself. Answers GET /metrics.",
        example: "\"127.0.0.1:9025\"",
    },
];

/// The row of a path, `listener[].role`.
pub fn find(path: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.path == path)
}

impl Opt {
    /// The table it stands in, as in [`SECTIONS`].
    pub fn section(&self) -> &'static str {
        SECTIONS
            .iter()
            .map(|section| section.path)
            .filter(|&section| {
                section.is_empty() || self.path.strip_prefix(section).is_some_and(|r| r.starts_with('.'))
            })
            .max_by_key(|section| section.len())
            .unwrap_or_default()
    }

    /// The key as written inside its table: `received.hide_client`.
    pub fn key(&self) -> &'static str {
        let section = self.section();
        if section.is_empty() { self.path } else { &self.path[section.len() + 1..] }
    }
}

impl Kind {
    /// What may be written, for the reference and for errors.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Host => "host name".into(),
            Self::Flag => "true or false".into(),
            Self::Count { min, max } => format!("whole number, {min} to {max}"),
            Self::Octets { min, max } => format!("octets, {} to {}", octets(min), octets(max)),
            Self::Duration { min, max } => format!("time, {} to {}", duration(min), duration(max)),
            Self::Rate => "number per s or min, like \"30/min\"; or \"off\"".into(),
            Self::Choice(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or "),
            Self::Path => "path".into(),
            Self::Addresses => "list of address:port".into(),
            Self::Networks => "list of networks".into(),
            Self::Domains => "list of domains".into(),
            Self::Mechanisms => "list of SASL mechanism names, or \"auto\"".into(),
            Self::Words => "list of names".into(),
            Self::Paths => "list of paths".into(),
            Self::Endpoint => "\"unix:PATH\", loopback address:port, or \"off\"".into(),
            Self::RouteDomain => "domain or \"*\"".into(),
            Self::Settings => "table, as the library describes it".into(),
        }
    }
}

/// `1048576` as `1MiB`.
pub fn octets(number: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if number >= unit && number.is_multiple_of(unit) {
            return format!("{}{name}", number / unit);
        }
    }
    number.to_string()
}

/// `300000` as `5m`.
pub fn duration(ms: u64) -> String {
    for (unit, name) in [(HOUR, "h"), (MINUTE, "m"), (SECOND, "s")] {
        if ms >= unit && ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    format!("{ms}ms")
}

impl Default {
    fn describe(self) -> String {
        match self {
            Self::Is(value) => format!("`{value}`"),
            Self::ByRole { mx, submission, submissions } if submission == submissions => {
                format!("`{mx}` for mx, `{submission}` for submission and submissions")
            }
            Self::ByRole { mx, submission, submissions } => {
                format!("`{mx}` for mx, `{submission}` for submission, `{submissions}` for submissions")
            }
            Self::Unset(words) => words.into(),
            Self::Required => "none: must be written".into(),
        }
    }
}

/// `config/portreeve.toml`: every option, out-commented, at its default.
pub fn sample() -> String {
    let mut to = String::from(
        "# Portreeve: every option at its default. Generated by `portreeve config sample`.\n\
         # Lines with `#` and no space behind it are options: take the `#` away to change one.\n\
         # `portreeve init` writes a short file that works; `portreeve check` explains what is wrong with one.\n\
         # Relative paths start at the folder of this file. `docs/configuration.md` is the reference.\n",
    );
    for section in SECTIONS {
        let _ = writeln!(to);
        wrap(&mut to, section.help);
        if let Some(name) = section.path.strip_suffix("[]") {
            let _ = writeln!(to, "#[[{name}]]");
        } else if !section.path.is_empty() {
            let _ = writeln!(to, "#[{}]", section.path);
        }
        for option in OPTIONS.iter().filter(|option| option.section() == section.path) {
            let _ = writeln!(to);
            wrap(&mut to, option.help);
            let key = option.key();
            match option.default {
                Default::Is(value) => {
                    let _ = writeln!(to, "#{key} = {value}");
                }
                Default::ByRole { mx, .. } => {
                    let _ = writeln!(to, "# Default: {}.\n#{key} = {mx}", option.default.describe());
                }
                Default::Unset(words) => {
                    let _ = writeln!(to, "# Default: {words}. Example:\n# {key} = {}", option.example);
                }
                Default::Required => {
                    let _ = writeln!(to, "# Must be written. Example:\n#{key} = {}", option.example);
                }
            }
        }
    }
    to
}

fn wrap(to: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column == 0 || column + 1 + word.len() > 110 {
            to.push_str(if column == 0 { "#" } else { "\n#" });
            column = 1;
        }
        to.push(' ');
        to.push_str(word);
        column += 1 + word.len();
    }
    to.push('\n');
}

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut to = String::from(
        "# Configuration reference\n\n\
         Generated by `portreeve config reference` from the table of options (`core/portreeve/src/options.rs`).\n\n\
         The file is TOML. Unknown keys are refused; relative paths start at the folder of the file. `portreeve check`\n\
         names file, line and column of each mistake, why it is one and what to do. Exit codes: 0 fine, 1 failure,\n\
         2 wrong usage, 78 mistake in the configuration.\n\n\
         Octets are whole numbers or texts like `\"64KiB\"`, `\"50MiB\"`, `\"1GiB\"`; times are texts like `\"250ms\"`,\n\
         `\"30s\"`, `\"5m\"`, `\"2h\"`; rates are texts like `\"30/min\"`, or `\"off\"`.\n\n\
         A change takes effect: *reload* after `portreeve reload` (or SIGHUP), for new sessions; *restart* after stopping\n\
         and starting; *watched* within seconds, by itself, when the file's content is right.\n",
    );
    for section in SECTIONS {
        let title = match section.path.strip_suffix("[]") {
            Some(name) => format!("`[[{name}]]`"),
            None if section.path.is_empty() => "Top of the file".into(),
            None => format!("`[{}]`", section.path),
        };
        let _ = write!(to, "\n## {title}\n\n{}\n", section.help);
        for option in OPTIONS.iter().filter(|option| option.section() == section.path) {
            let _ = write!(
                to,
                "\n### `{}`\n\n{}\n\n- value: {}\n- default: {}\n- change: {}\n- example: `{} = {}`\n",
                option.key(),
                option.help,
                option.kind.describe(),
                option.default.describe(),
                match option.reload {
                    Reload::Command => "reload",
                    Reload::Restart => "restart",
                    Reload::Watched => "watched",
                },
                option.key(),
                option.example,
            );
        }
    }
    to
}
