//! The configuration as the program uses it: typed, complete, and free of contradictions.
//!
//! [`parse`] is a pure function of a file's text: the same text gives the same [`Config`] in the
//! supervisor, in `check`, and in every child that is handed the text. What needs a look at the host
//! (files, ports, libraries) is in `check.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backend::prep::{NameRules, Prep};
use backend::scheme;
use ipnet::IpNet;
use link::grant::{BadGrant, Grants};
use smtp::listener::{AuthOffer, Role, SenderCheck, StarttlsTrailing, SyncViolation, Tls};

use crate::report::Report;
use crate::tokens::{self, TokenIssuer};
use crate::values::{self, MechanismSettings, Table, Value, Values};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it came from.
    pub file: PathBuf,
    /// Its text: what children are handed.
    pub text: Arc<str>,
    /// The name in greeting and trace; `None`: the system's.
    pub hostname: Option<String>,
    /// How long old sessions may go on.
    pub drain: Duration,
    /// Whether losing mail is permitted.
    pub allow_data_loss: bool,
    /// `[process]`.
    pub process: Process,
    /// `[[listener]]`.
    pub listeners: Vec<Listener>,
    /// `tls.min = "1.3"`.
    pub tls_1_3_only: bool,
    /// `[[tls.certificate]]`.
    pub certificates: Vec<Certificate>,
    /// `[users]`.
    pub users: Users,
    /// `[[tokens.issuer]]`.
    pub issuers: Vec<TokenIssuer>,
    /// `[plugins]`.
    pub plugins: Plugins,
    /// `[mechanism.NAME]`.
    pub mechanisms: BTreeMap<String, MechanismSettings>,
    /// `[spool]`.
    pub spool: Spool,
    /// `[[route]]`.
    pub routes: Vec<Route>,
    /// `[queue]`.
    pub queue: Queue,
    /// `[limits]`.
    pub limits: Limits,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[log]`.
    pub log: Log,
    /// `[admin]`.
    pub admin: Admin,
    /// Everything outside repeated tables as written, for places in findings.
    pub written: Table,
}

/// `[process]`.
#[derive(Clone, Debug)]
pub struct Process {
    /// Worker processes.
    pub workers: usize,
    /// Event loops in each; 0: one per core.
    pub shards: usize,
    /// Whom children become when started as root.
    pub user: Option<String>,
    /// Their group.
    pub group: Option<String>,
    /// Holds `run/`, `secrets/` and more.
    pub state_dir: PathBuf,
    /// Whether strangers' code runs only where it can be locked up completely.
    pub sandbox_required: bool,
}

/// `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its table as written, for places in findings.
    pub written: Table,
    /// Unique.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Where it listens.
    pub bind: Vec<SocketAddr>,
    /// The port that clients connect to, if it is another one.
    pub public_port: Option<u16>,
    /// Own host name.
    pub hostname: Option<String>,
    /// How TLS comes about.
    pub tls: Tls,
    /// Indices into [`Config::certificates`], default first.
    pub certificates: Vec<usize>,
    /// Resumption.
    pub tls_tickets: bool,
    /// Whether clients are asked for a certificate.
    pub client_cert: ClientCert,
    /// Who vouches for clients, PEM.
    pub client_ca: Option<PathBuf>,
    /// Local domains.
    pub domains: Vec<String>,
    /// Take every recipient of a local domain.
    pub any_recipient: bool,
    /// Whether AUTH is offered.
    pub auth: AuthOffer,
    /// Whether somebody may log in as nobody.
    pub anonymous: bool,
    /// Mechanism names, strongest first.
    pub mechanisms: Vec<String>,
    /// Instead of names: whatever the back end can serve.
    pub mechanisms_auto: bool,
    /// Who knows the users.
    pub backend: String,
    /// 530 before TLS.
    pub require_tls: bool,
    /// 530 before AUTH.
    pub require_auth: bool,
    /// Passwords in clear.
    pub cleartext_auth_nets: Vec<IpNet>,
    /// No limits, delays, penalties.
    pub exempt_nets: Vec<IpNet>,
    /// MAIL FROM against the identity.
    pub identity_envelope: SenderCheck,
    /// From against the identity.
    pub identity_header: SenderCheck,
    /// Add Date and Message-ID.
    pub fixups: bool,
    /// Client's address stays out of Received.
    pub hide_client: bool,
    /// Whose AUTH= is believed.
    pub trust_auth_param_from: Vec<String>,
    /// Octets behind STARTTLS.
    pub starttls_trailing: StarttlsTrailing,
    /// Talking too early.
    pub sync_violation: SyncViolation,
    /// BDAT.
    pub chunking: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// Largest message.
    pub max_size: u64,
    /// Most recipients.
    pub max_rcpt: u32,
    /// Concurrent sessions of one client.
    pub per_ip: u32,
    /// Longest time from the end of the data to the answer.
    pub data_deadline: Duration,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// No.
    Off,
    /// Yes, but nobody is refused for it.
    Request,
    /// Only who has one that verifies gets in.
    Require,
}

/// `[[tls.certificate]]`.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Its table as written.
    pub written: Table,
    /// Unique.
    pub name: String,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `[users]`.
#[derive(Clone, Debug)]
pub struct Users {
    /// The users file.
    pub file: PathBuf,
    /// Who gets mail for postmaster.
    pub postmaster: Option<String>,
    /// What separates a tag from a name.
    pub tag: Option<char>,
    /// When two names are one.
    pub names: NameRules,
    /// How stored secrets are read.
    pub secrets: scheme::Options,
    /// How long a verified password is believed.
    pub password_cache: Duration,
}

/// `[plugins]`.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Folders searched first.
    pub path: Vec<PathBuf>,
    /// Library ids.
    pub load: Vec<String>,
    /// How single ones are run.
    pub libraries: Vec<PluginLibrary>,
    /// How single back ends are run.
    pub backends: Vec<Backend>,
}

/// `[[plugins.backend]]`.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its table as written.
    pub written: Table,
    /// Its name.
    pub name: String,
    /// For the library, secrets not yet read.
    pub settings: values::Settings,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Calls at a time; `None`: what the library declares.
    pub parallel: Option<usize>,
    /// Logins that may wait.
    pub queue: usize,
    /// Of keys for users whom it does not know.
    pub decoy_iterations: u32,
}

/// `[[plugins.library]]`.
#[derive(Clone, Debug)]
pub struct PluginLibrary {
    /// Its table as written.
    pub written: Table,
    /// Its id.
    pub id: String,
    /// Whether it has a process of its own; `None`: as usual.
    pub process: Option<bool>,
    /// The only content that is loaded.
    pub sha256: Option<[u8; 32]>,
    /// What it may have beside computing.
    pub grants: Grants,
    /// Whether it is believed who somebody is.
    pub self_asserts: bool,
}

impl Config {
    /// The settings of a mechanism, a JSON object; empty when there are none.
    pub fn settings(&self, mechanism: &str) -> &str {
        self.mechanisms.get(mechanism).map_or("", |settings| &settings.json)
    }
}

impl Plugins {
    /// Whether a library has a process of its own.
    pub fn is_process(&self, id: &str) -> bool {
        const BUNDLED: [&str; 2] = ["standard", "legacy"];
        let written = self.libraries.iter().find(|library| library.id == id);
        written.and_then(|library| library.process).unwrap_or(!BUNDLED.contains(&id))
    }

    /// The pinned content of a library.
    pub fn sha256(&self, id: &str) -> Option<[u8; 32]> {
        self.libraries.iter().find(|library| library.id == id)?.sha256
    }

    /// What a library may have beside computing.
    pub fn grants(&self, id: &str) -> Grants {
        self.libraries.iter().find(|library| library.id == id).map(|library| library.grants.clone()).unwrap_or_default()
    }

    /// Whether a library is believed who somebody is.
    pub fn self_asserts(&self, id: &str) -> bool {
        self.libraries.iter().any(|library| library.id == id && library.self_asserts)
    }
}

/// `[spool]`.
#[derive(Clone, Debug)]
pub struct Spool {
    /// Its folder.
    pub path: PathBuf,
    /// Size of a segment file.
    pub segment: u64,
    /// Whether 250 waits for the disk.
    pub durable: bool,
    /// Free room below which mail is refused.
    pub min_free: u64,
    /// The same in per cent.
    pub min_free_percent: u8,
    /// Memory of a worker for messages.
    pub memory: usize,
}

/// `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its table as written.
    pub written: Table,
    /// A domain, or `*`.
    pub domain: String,
    /// What happens to the mail.
    pub kind: RouteKind,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Into Maildirs; a template of [`delivery::Maildir`].
    Maildir(String),
    /// To another server.
    NextHop(HopRoute),
    /// To the hosts that the DNS names.
    Mx(MxRoute),
    /// Thrown away.
    Discard,
}

/// A route to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopRoute {
    /// LMTP, not SMTP.
    pub lmtp: bool,
    /// Next hops, best first.
    pub to: Vec<delivery::Place>,
    /// Whether TLS is used.
    pub security: delivery::Security,
    /// Authorities; `None`: the system's.
    pub authorities: Option<PathBuf>,
    /// The name in the certificate; `None`: the host's.
    pub tls_name: Option<String>,
    /// User, and the file with the password.
    pub login: Option<(String, PathBuf)>,
    /// Connections at the same time.
    pub connections: usize,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Clients wait for the next hop's reply.
    pub pass_through: bool,
}

/// Direct delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxRoute {
    /// Of the hosts.
    pub port: u16,
    /// Whether TLS is used where no policy asks for it.
    pub security: delivery::Security,
    /// Authorities; `None`: the system's.
    pub authorities: Option<PathBuf>,
    /// Connections at the same time.
    pub connections: usize,
    /// Of these, to one host.
    pub connections_per_host: usize,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Name servers; empty: the system's.
    pub resolver: Vec<SocketAddr>,
    /// Longest wait for one of their answers.
    pub dns_timeout: Duration,
    /// Open although they are not public.
    pub allow_private: Vec<IpNet>,
    /// The port of policy hosts; `None`: MTA-STS is not looked at.
    pub mta_sts_port: Option<u16>,
}

/// `[queue]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How old a message may become.
    pub expire: Duration,
    /// How old before its sender is told that it waits; zero: never.
    pub delay_notice: Duration,
    /// To the second attempt.
    pub retry: Duration,
    /// Between attempts at most.
    pub retry_max: Duration,
}

/// `[limits]`; those that listeners may override are in [`Listener`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Command line, octets.
    pub max_line: usize,
    /// Messages of a session.
    pub max_messages: u32,
    /// Refused commands.
    pub max_errors: u8,
    /// Commands that do nothing.
    pub max_idle_commands: u8,
    /// Received lines.
    pub max_received: u16,
    /// Sessions of all workers.
    pub max_sessions: u32,
    /// Connections of a client per minute; 0: no limit, here and below.
    pub connect_rate: u32,
    /// AUTH commands of a client.
    pub auth_rate: u32,
    /// Messages of a client or user.
    pub message_rate: u32,
    /// Recipients of a client or user.
    pub recipient_rate: u32,
    /// Messages of anonymous sessions of a client.
    pub anonymous_rate: u32,
    /// Largest message of an anonymous session.
    pub anonymous_size: u64,
    /// Failed logins of a session.
    pub auth_failures: u8,
    /// AUTH line, octets.
    pub sasl_line_octets_max: usize,
}

/// `[timeouts]`.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Between commands.
    pub command: Duration,
    /// The same for strangers when it is crowded.
    pub command_crowded: Duration,
    /// Until a login.
    pub pre_auth: Duration,
    /// An AUTH exchange.
    pub auth: Duration,
    /// TLS handshake.
    pub handshake: Duration,
    /// Before the rate of a message is looked at.
    pub data_grace: Duration,
    /// Octets a second in data.
    pub min_rate: u64,
    /// For replies to be read.
    pub unread: Duration,
    /// For an answer of the directory.
    pub directory: Duration,
    /// A whole session.
    pub session: Duration,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// `auto`, `human`, `json`.
    pub format: String,
    /// `error`, `warning`, `info`, `debug`.
    pub level: String,
    /// Instead of standard error.
    pub file: Option<PathBuf>,
    /// Audit records of their own.
    pub audit: Option<PathBuf>,
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The admin socket.
    pub socket: PathBuf,
    /// Where figures are served.
    pub metrics: Option<Endpoint>,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Unix socket.
    Unix(PathBuf),
    /// Loopback address.
    Tcp(SocketAddr),
}

/// Largest configuration file, octets.
const FILE_OCTETS_MAX: u64 = 1 << 20;

/// Reads and parses a file. The report tells everything that is wrong; the configuration is there when
/// nothing is.
pub fn load(file: &Path) -> (Option<Config>, Report) {
    let empty = || Report::new(file.to_owned(), "".into());
    let text = match std::fs::metadata(file) {
        Ok(meta) if meta.len() > FILE_OCTETS_MAX => Err("is larger than 1 MiB".to_owned()),
        _ => std::fs::read(file)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|octets| String::from_utf8(octets).map_err(|error| format!("is not UTF-8: {error}"))),
    };
    match text {
        Ok(text) => parse(file, &text),
        Err(cause) => {
            let mut report = empty();
            report.error(None, "", cause, "name the file with --config FILE, or make one with `portreeve init`");
            (None, report)
        }
    }
}

/// Parses a file's text.
pub fn parse(file: &Path, text: &str) -> (Option<Config>, Report) {
    let mut report = Report::new(file.to_owned(), text.into());
    let values = values::parse(&mut report);
    if report.has_errors() {
        // Still look for required keys and contradictions among what could be read: one run, all findings.
        build(file, &values, &mut report);
        return (None, report);
    }
    let config = build(file, &values, &mut report);
    (config.filter(|_| !report.has_errors()), report)
}

/// Reads one table by option paths.
pub(crate) struct Reader<'a> {
    pub(crate) table: &'a Table,
    pub(crate) role: &'a str,
    pub(crate) base: &'a Path,
}

impl Reader<'_> {
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        match self.table.value(path, self.role)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
    fn word(&self, path: &str) -> String {
        self.text(path).unwrap_or_default()
    }
    fn flag(&self, path: &str) -> bool {
        matches!(self.table.value(path, self.role), Some(Value::Flag(true)))
    }
    fn number(&self, path: &str) -> Option<u64> {
        match self.table.value(path, self.role)? {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }
    /// A number whose bounds in the table fit `T`.
    fn count<T: TryFrom<u64>>(&self, path: &str) -> T {
        let number = self.number(path).expect("the option has a default (tested)");
        T::try_from(number).ok().expect("the option's bounds fit the field (tested)")
    }
    pub(crate) fn time(&self, path: &str) -> Duration {
        Duration::from_millis(self.count(path))
    }
    fn rate(&self, path: &str) -> u32 {
        match self.table.value(path, self.role) {
            Some(Value::Rate(per_minute)) => per_minute,
            _ => 0,
        }
    }
    pub(crate) fn words(&self, path: &str) -> Vec<String> {
        match self.table.value(path, self.role) {
            Some(Value::Words(words)) => words,
            _ => Vec::new(),
        }
    }
    fn addresses(&self, path: &str) -> Vec<SocketAddr> {
        match self.table.value(path, self.role) {
            Some(Value::Addresses(addresses)) => addresses,
            _ => Vec::new(),
        }
    }
    fn networks(&self, path: &str) -> Vec<IpNet> {
        match self.table.value(path, self.role) {
            Some(Value::Networks(networks)) => networks,
            _ => Vec::new(),
        }
    }
    pub(crate) fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(|text| self.base.join(text))
    }
}

fn build(file: &Path, values: &Values, report: &mut Report) -> Option<Config> {
    let base = base_of(file);
    let top = Reader { table: &values.root, role: "mx", base: &base };
    let state_dir = top.path("process.state_dir").unwrap_or_else(|| base.join("state"));
    let repeated = |name: &str| values.repeated.get(name).map(Vec::as_slice).unwrap_or_default();

    let certificates: Vec<Certificate> =
        repeated("tls.certificate[]").iter().filter_map(|table| certificate(table, &base, report)).collect();
    let listeners: Vec<Listener> = repeated("listener[]")
        .iter()
        .filter_map(|table| listener(table, &values.root, &certificates, &base, report))
        .collect();
    let routes: Vec<Route> = repeated("route[]").iter().filter_map(|table| route(table, &base, report)).collect();

    let libraries: Vec<PluginLibrary> =
        repeated("plugins.library[]").iter().filter_map(|table| plugin_library(table, &base, report)).collect();
    let issuers: Vec<TokenIssuer> =
        repeated("tokens.issuer[]").iter().filter_map(|table| tokens::parse(table, &base, report)).collect();

    let backends: Vec<Backend> =
        repeated("plugins.backend[]").iter().filter_map(|table| backend(table, &base, report)).collect();

    let config = Config {
        file: file.to_owned(),
        text: report.text.clone(),
        hostname: top.text("hostname"),
        drain: top.time("drain"),
        allow_data_loss: top.flag("allow_data_loss"),
        process: Process {
            workers: top.count("process.workers"),
            shards: top.count("process.shards"),
            user: top.text("process.user"),
            group: top.text("process.group"),
            state_dir: state_dir.clone(),
            sandbox_required: top.word("process.sandbox") == "require",
        },
        listeners,
        tls_1_3_only: top.word("tls.min") == "1.3",
        certificates,
        users: Users {
            file: top.path("users.file").unwrap_or_else(|| state_dir.join("auth/users")),
            postmaster: top.text("users.postmaster"),
            tag: top.word("users.tag").chars().next().filter(|&c| !c.is_alphabetic()),
            names: NameRules {
                default_domain: top.text("users.default_domain"),
                prep: match top.word("users.prep").as_str() {
                    "precis-casepreserved" => Prep::CasePreserved,
                    "saslprep" => Prep::Saslprep,
                    "none" => Prep::None,
                    _ => Prep::CaseMapped,
                },
            },
            secrets: scheme::Options {
                allow_cleartext: top.flag("users.allow_cleartext"),
                dialect: match top.text("users.dialect").as_deref() {
                    Some("dovecot") => Some(scheme::Dialect::Dovecot),
                    Some("openldap") => Some(scheme::Dialect::OpenLdap),
                    _ => None,
                },
                default_scheme: top.text("users.default_scheme"),
            },
            password_cache: top.time("users.password_cache"),
        },
        issuers,
        plugins: Plugins {
            path: top.words("plugins.path").iter().map(|path| base.join(path)).collect(),
            load: top.words("plugins.load"),
            libraries,
            backends,
        },
        mechanisms: values.mechanisms.clone(),
        spool: Spool {
            path: top.path("spool.path").unwrap_or_else(|| state_dir.join("spool")),
            segment: top.count("spool.segment"),
            durable: top.word("spool.durability") != "none",
            min_free: top.count("spool.min_free"),
            min_free_percent: top.count("spool.min_free_percent"),
            memory: top.count("spool.memory"),
        },
        routes,
        queue: Queue {
            expire: top.time("queue.expire"),
            delay_notice: top.time("queue.delay_notice"),
            retry: top.time("queue.retry"),
            retry_max: top.time("queue.retry_max"),
        },
        limits: Limits {
            max_line: top.count("limits.max_line"),
            max_messages: top.count("limits.max_messages"),
            max_errors: top.count("limits.max_errors"),
            max_idle_commands: top.count("limits.max_idle_commands"),
            max_received: top.count("limits.max_received"),
            max_sessions: top.count("limits.max_sessions"),
            connect_rate: top.rate("limits.connect_rate"),
            auth_rate: top.rate("limits.auth_rate"),
            message_rate: top.rate("limits.message_rate"),
            recipient_rate: top.rate("limits.recipient_rate"),
            anonymous_rate: top.rate("limits.anonymous_rate"),
            anonymous_size: top.count("limits.anonymous_size"),
            auth_failures: top.count("limits.auth_failures"),
            sasl_line_octets_max: top.count("limits.sasl.line_octets_max"),
        },
        timeouts: Timeouts {
            command: top.time("timeouts.command"),
            command_crowded: top.time("timeouts.command_crowded"),
            pre_auth: top.time("timeouts.pre_auth"),
            auth: top.time("timeouts.auth"),
            handshake: top.time("timeouts.handshake"),
            data_grace: top.time("timeouts.data_grace"),
            min_rate: top.count("timeouts.min_rate"),
            unread: top.time("timeouts.unread"),
            directory: top.time("timeouts.directory"),
            session: top.time("timeouts.session"),
        },
        log: Log {
            format: top.word("log.format"),
            level: top.word("log.level"),
            file: top.path("log.file"),
            audit: top.path("log.audit"),
        },
        admin: Admin {
            socket: top.path("admin.socket").unwrap_or_else(|| state_dir.join("run/admin.sock")),
            metrics: top.text("admin.metrics").and_then(|text| endpoint(&text, &base)),
        },
        written: values.root.clone(),
    };
    // A table that could not be read would only cause findings that are not true.
    let whole = config.listeners.len() == repeated("listener[]").len()
        && config.routes.len() == repeated("route[]").len()
        && config.issuers.len() == repeated("tokens.issuer[]").len()
        && config.plugins.libraries.len() == repeated("plugins.library[]").len()
        && config.plugins.backends.len() == repeated("plugins.backend[]").len()
        && config.certificates.len() == repeated("tls.certificate[]").len();
    if whole && !report.has_errors() {
        contradictions(&config, report);
    }
    whole.then_some(config)
}

/// The folder that relative paths start at.
fn base_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(parent).unwrap_or_else(|_| parent.to_owned())
}

fn endpoint(text: &str, base: &Path) -> Option<Endpoint> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Endpoint::Unix(base.join(path))),
        None => text.parse().ok().map(Endpoint::Tcp),
    }
}

fn certificate(table: &Table, base: &Path, report: &mut Report) -> Option<Certificate> {
    let read = Reader { table, role: "mx", base };
    let cert = required(&read, "tls.certificate[].cert", report)?;
    let key = required(&read, "tls.certificate[].key", report)?;
    let cert = base.join(cert);
    let name = read.text("tls.certificate[].name").unwrap_or_else(|| {
        cert.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_else(|| "certificate".into())
    });
    Some(Certificate { written: table.clone(), name, cert, key: base.join(key) })
}

fn plugin_library(table: &Table, base: &Path, report: &mut Report) -> Option<PluginLibrary> {
    let read = Reader { table, role: "mx", base };
    let id = required(&read, "plugins.library[].id", report)?;
    let process = read.text("plugins.library[].runner").map(|runner| runner == "process");
    let sha256 = match read.text("plugins.library[].sha256") {
        None => None,
        Some(text) => match plugin_host::parse_sha256(&text) {
            Some(pin) => Some(pin),
            None => {
                let span = Some(table.span("plugins.library[].sha256"));
                let cause = "is no SHA-256: that has 64 hexadecimal digits";
                report.error(span, "plugins.library.sha256", cause, "write what `sha256sum FILE` prints");
                return None;
            }
        },
    };
    let words = read.words("plugins.library[].grant");
    let grants = match Grants::parse(words.iter().map(String::as_str)) {
        Ok(grants) => grants,
        Err(BadGrant { index, cause, remedy }) => {
            let span = Some(table.element("plugins.library[].grant", index));
            report.error(span, "plugins.library.grant", cause, remedy);
            return None;
        }
    };
    let self_asserts = read.flag("plugins.library[].self_asserts");
    Some(PluginLibrary { written: table.clone(), id, process, sha256, grants, self_asserts })
}

fn backend(table: &Table, base: &Path, report: &mut Report) -> Option<Backend> {
    let read = Reader { table, role: "mx", base };
    Some(Backend {
        name: required(&read, "plugins.backend[].name", report)?,
        settings: match table.value("plugins.backend[].settings", "mx") {
            Some(Value::Settings(settings)) => settings,
            _ => values::Settings::none(),
        },
        timeout: read.time("plugins.backend[].timeout"),
        parallel: read.number("plugins.backend[].parallel").and_then(|number| usize::try_from(number).ok()),
        queue: read.count("plugins.backend[].queue"),
        decoy_iterations: read.count("plugins.backend[].decoy_iterations"),
        written: table.clone(),
    })
}

/// A required text; says so when it is missing (not when it was written and is wrong).
pub(crate) fn required(read: &Reader<'_>, path: &'static str, report: &mut Report) -> Option<String> {
    let text = read.text(path);
    if text.is_none() {
        missing(read.table, path, report);
    }
    text
}

pub(crate) fn missing(table: &Table, path: &'static str, report: &mut Report) {
    if !table.broken.contains(path) {
        let option = crate::options::find(path).expect("a row of the table (tested)");
        let remedy = format!("add: {} = {}", option.key(), option.example);
        report.error(Some(table.header.clone()), path.replace("[]", ""), "is missing", remedy);
    }
}

fn listener(
    table: &Table,
    root: &Table,
    certificates: &[Certificate],
    base: &Path,
    report: &mut Report,
) -> Option<Listener> {
    let role_text = required(&Reader { table, role: "mx", base }, "listener[].role", report);
    let role_name = role_text.as_deref().unwrap_or("mx");
    let read = Reader { table, role: role_name, base };
    let top = Reader { table: root, role: role_name, base };
    let bind = match table.value("listener[].bind", role_name) {
        Some(Value::Addresses(bind)) => bind,
        _ => {
            missing(table, "listener[].bind", report);
            return None;
        }
    };
    let role = match role_text.as_deref()? {
        "mx" => Role::Mx,
        "submission" => Role::Submission,
        _ => Role::Submissions,
    };
    let wanted = read.words("listener[].certificates");
    let mut chosen = Vec::new();
    for (index, name) in wanted.iter().enumerate() {
        match certificates.iter().position(|certificate| certificate.name == *name) {
            Some(at) => chosen.push(at),
            None => {
                let known: Vec<&str> = certificates.iter().map(|certificate| certificate.name.as_str()).collect();
                report.error(
                    Some(table.element("listener[].certificates", index)),
                    "listener.certificates",
                    format!("no [[tls.certificate]] has the name {name:?}"),
                    if known.is_empty() {
                        "add a [[tls.certificate]] table".to_owned()
                    } else {
                        format!("write one of: {}", known.join(", "))
                    },
                );
            }
        }
    }
    if wanted.is_empty() {
        chosen = (0..certificates.len()).collect();
    }
    Some(Listener {
        name: read.text("listener[].name").unwrap_or_else(|| role_name.to_owned()),
        role,
        bind,
        public_port: read.number("listener[].public_port").and_then(|port| u16::try_from(port).ok()),
        hostname: read.text("listener[].hostname"),
        tls: match read.word("listener[].tls").as_str() {
            "off" => Tls::Off,
            "starttls" => Tls::StartTls,
            _ => Tls::Implicit,
        },
        certificates: chosen,
        tls_tickets: read.flag("listener[].tls_tickets"),
        client_cert: match read.word("listener[].client_cert").as_str() {
            "request" => ClientCert::Request,
            "require" => ClientCert::Require,
            _ => ClientCert::Off,
        },
        client_ca: read.path("listener[].client_ca"),
        domains: read.words("listener[].domains"),
        any_recipient: read.word("listener[].recipients") == "any",
        auth: match read.word("listener[].auth").as_str() {
            "off" => AuthOffer::Off,
            _ => AuthOffer::AfterTls,
        },
        anonymous: read.word("listener[].anonymous") == "local",
        mechanisms: read.words("listener[].mechanisms"),
        mechanisms_auto: read.text("listener[].mechanisms").is_some(),
        backend: read.word("listener[].backend"),
        require_tls: read.flag("listener[].require_tls"),
        require_auth: read.flag("listener[].require_auth"),
        cleartext_auth_nets: read.networks("listener[].cleartext_auth_nets"),
        exempt_nets: read.networks("listener[].exempt_nets"),
        identity_envelope: sender_check(&read.word("listener[].identity.envelope")),
        identity_header: sender_check(&read.word("listener[].identity.header")),
        fixups: read.flag("listener[].fixups"),
        hide_client: read.flag("listener[].received.hide_client"),
        trust_auth_param_from: read.words("listener[].trust_auth_param_from"),
        starttls_trailing: match read.word("listener[].starttls_trailing").as_str() {
            "close" => StarttlsTrailing::Close,
            _ => StarttlsTrailing::Drop,
        },
        sync_violation: match read.word("listener[].sync_violation").as_str() {
            "log" => SyncViolation::Log,
            _ => SyncViolation::Close,
        },
        chunking: read.flag("listener[].chunking"),
        smtputf8: read.flag("listener[].smtputf8"),
        max_size: read.number("listener[].limits.max_size").unwrap_or_else(|| top.count("limits.max_size")),
        max_rcpt: match read.number("listener[].limits.max_rcpt") {
            Some(_) => read.count("listener[].limits.max_rcpt"),
            None => top.count("limits.max_rcpt"),
        },
        per_ip: read.count("listener[].limits.per_ip"),
        data_deadline: read.time("listener[].timeouts.data_deadline"),
        written: table.clone(),
    })
}

fn sender_check(word: &str) -> SenderCheck {
    match word {
        "off" => SenderCheck::Off,
        _ => SenderCheck::Enforce,
    }
}

fn route(table: &Table, base: &Path, report: &mut Report) -> Option<Route> {
    let read = Reader { table, role: "mx", base };
    let word = required(&read, "route[].kind", report)?;
    let hop = matches!(word.as_str(), "lmtp" | "smtp");
    let mx = word == "mx";
    for (&path, entry) in &table.entries {
        let fits = match path {
            "route[].domain" | "route[].kind" => true,
            "route[].path" => word == "maildir",
            // It has a default everywhere.
            "route[].timeout" => true,
            "route[].pass_through" => hop || !read.flag(path),
            "route[].tls" | "route[].tls_ca" | "route[].connections" => hop || mx,
            "route[].connections_per_host"
            | "route[].resolver"
            | "route[].dns_timeout"
            | "route[].mta_sts"
            | "route[].mta_sts_port"
            | "route[].allow_private"
            | "route[].port" => mx,
            _ => hop,
        };
        if !fits {
            let cause = format!("means nothing for kind {word:?}");
            report.error(Some(entry.span.clone()), path.replace("[]", ""), cause, "take it out");
        }
    }
    let kind = match word.as_str() {
        "discard" => RouteKind::Discard,
        "maildir" => RouteKind::Maildir(maildir(&read, report)?),
        "mx" => RouteKind::Mx(direct(&read, report)),
        _ => RouteKind::NextHop(next_hop(&read, word == "lmtp", report)?),
    };
    Some(Route { written: table.clone(), domain: read.word("route[].domain"), kind })
}

fn maildir(read: &Reader<'_>, report: &mut Report) -> Option<String> {
    let path = required(read, "route[].path", report)?;
    // Only what the operator wrote is a template; the folder that it starts at is not.
    let base = read.base.to_string_lossy().replace('%', "%%");
    let template = Path::new(&base).join(&path).to_string_lossy().into_owned();
    if let Err(bad) = delivery::Maildir::new(&template, delivery::LineEnd::Lf) {
        let (cause, remedy) = crate::certificates::halves(&bad.to_string());
        report.error(Some(read.table.span("route[].path")), "route.path", cause, remedy);
    }
    Some(template)
}

fn direct(read: &Reader<'_>, report: &mut Report) -> MxRoute {
    use delivery::Security;
    let table = read.table;
    let number = |path: &str, otherwise: u64| read.number(path).unwrap_or(otherwise);
    let port = |path: &str, otherwise: u64| u16::try_from(number(path, otherwise)).unwrap_or(u16::MAX);
    let count = |path: &str, otherwise: u64| usize::try_from(number(path, otherwise)).unwrap_or(1);
    let security = match read.text("route[].tls").as_deref() {
        Some("off") => Security::Off,
        Some("required") => Security::Required,
        Some("implicit") => {
            let remedy = "write \"opportunistic\" or \"required\"";
            let cause = "hosts that the DNS names listen on port 25, where TLS begins with STARTTLS";
            report.error(Some(table.span("route[].tls")), "route.tls", cause, remedy);
            Security::Required
        }
        _ => Security::Opportunistic,
    };
    let mta_sts = !table.entries.contains_key("route[].mta_sts") || read.flag("route[].mta_sts");
    for (path, fits) in
        [("route[].tls_ca", mta_sts || security == Security::Required), ("route[].mta_sts_port", mta_sts)]
    {
        if table.entries.contains_key(path) && !fits {
            let remedy = "take it out, or do not write mta_sts = false";
            report.error(Some(table.span(path)), path.replace("[]", ""), "no certificate is verified", remedy);
        }
    }
    let connections = count("route[].connections", 50);
    MxRoute {
        port: port("route[].port", 25),
        security,
        authorities: read.path("route[].tls_ca"),
        connections,
        connections_per_host: count("route[].connections_per_host", 5).min(connections),
        timeout: read.time("route[].timeout"),
        resolver: read.addresses("route[].resolver"),
        dns_timeout: Duration::from_millis(number("route[].dns_timeout", 5000)),
        allow_private: read.networks("route[].allow_private"),
        mta_sts_port: mta_sts.then(|| port("route[].mta_sts_port", 443)),
    }
}

fn next_hop(read: &Reader<'_>, lmtp: bool, report: &mut Report) -> Option<HopRoute> {
    use delivery::Security;
    let table = read.table;
    let words = read.words("route[].to");
    if words.is_empty() {
        missing(table, "route[].to", report);
        return None;
    }
    let mut to = Vec::new();
    for (at, word) in words.iter().enumerate() {
        match crate::next_hop::place(word, read.base) {
            Ok(place) => to.push(place),
            Err((cause, remedy)) => {
                report.error(Some(table.element("route[].to", at)), "route.to", cause, remedy);
            }
        }
    }
    let security = match read.text("route[].tls").as_deref() {
        Some("off") => Security::Off,
        Some("opportunistic") => Security::Opportunistic,
        Some("required") => Security::Required,
        Some("implicit") => Security::Implicit,
        _ if lmtp => Security::Off,
        _ => Security::Opportunistic,
    };
    let verifies = matches!(security, Security::Required | Security::Implicit);
    for path in ["route[].tls_ca", "route[].tls_name"] {
        if table.entries.contains_key(path) && !verifies {
            let remedy = "write tls = \"required\" or \"implicit\", or take it out";
            report.error(Some(table.span(path)), path.replace("[]", ""), "no certificate is verified", remedy);
        }
    }
    let login = match (read.text("route[].user"), read.path("route[].password_file")) {
        (Some(user), Some(file)) => Some((user, file)),
        (None, None) => None,
        (Some(_), None) => {
            missing(table, "route[].password_file", report);
            None
        }
        (None, Some(_)) => {
            missing(table, "route[].user", report);
            None
        }
    };
    let in_clear = security == Security::Off && to.iter().any(|place| matches!(place, delivery::Place::Tcp(..)));
    if login.is_some() && in_clear {
        report.warning(
            Some(table.span("route[].user")),
            "route.user",
            "without TLS no password is sent: the next hop must offer SCRAM-SHA-256 or CRAM-MD5",
            "write tls = \"required\"",
        );
    }
    Some(HopRoute {
        lmtp,
        to,
        security,
        authorities: read.path("route[].tls_ca"),
        tls_name: read.text("route[].tls_name"),
        login,
        connections: read.number("route[].connections").map_or(4, |count| count as usize),
        timeout: read.time("route[].timeout"),
        pass_through: read.flag("route[].pass_through"),
    })
}

impl Config {
    /// The route of a recipient domain.
    pub fn route_of(&self, domain: &str) -> Option<&Route> {
        let named = self.routes.iter().find(|route| route.domain == domain);
        named.or_else(|| self.routes.iter().find(|route| route.domain == "*"))
    }

    /// Whether mail may be lost, by choice.
    pub fn loses_data(&self) -> bool {
        !self.spool.durable || self.routes.iter().any(|route| route.kind == RouteKind::Discard)
    }

    /// Our name on a listener.
    pub fn hostname_of(&self, listener: &Listener) -> String {
        listener.hostname.clone().or_else(|| self.hostname.clone()).unwrap_or_else(system_hostname)
    }
}

/// The system's host name, lower case.
pub fn system_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() || name == "(none)" { "localhost".into() } else { name }
}

/// What fits the table row by row, but not together.
fn contradictions(config: &Config, report: &mut Report) {
    if config.listeners.is_empty() {
        let remedy = "add a [[listener]] table, or let `portreeve init` write a file";
        report.error(None, "listener", "there is none: nothing would be served", remedy);
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        about_listener(config, index, listener, report);
    }
    for (index, certificate) in config.certificates.iter().enumerate() {
        if config.certificates[..index].iter().any(|earlier| earlier.name == certificate.name) {
            report.error(
                Some(certificate.written.span("tls.certificate[].name")),
                "tls.certificate.name",
                format!("two certificates are called {:?}", certificate.name),
                "give one of them another name",
            );
        }
    }
    tokens::contradictions(config, report);
    for (index, library) in config.plugins.libraries.iter().enumerate() {
        let span = || Some(library.written.span("plugins.library[].id"));
        let (key, id) = ("plugins.library.id", &library.id);
        if config.plugins.libraries[..index].iter().any(|earlier| earlier.id == *id) {
            report.error(span(), key, format!("two tables for the library {id:?}"), "keep one of them");
        }
        if !config.plugins.load.contains(id) {
            let remedy = format!("add \"{id}\" to plugins.load, or take the table out");
            report.error(span(), key, format!("{id:?} is not in plugins.load"), remedy);
        }
        if !library.grants.is_empty() && !config.plugins.is_process(id) {
            report.error(
                Some(library.written.span("plugins.library[].grant")),
                "plugins.library.grant",
                format!("{id:?} runs inside of the workers, which have no files and no network to give"),
                "write runner = \"process\" beside it",
            );
        }
    }
    for (index, backend) in config.plugins.backends.iter().enumerate() {
        if config.plugins.backends[..index].iter().any(|earlier| earlier.name == backend.name) {
            let span = Some(backend.written.span("plugins.backend[].name"));
            let cause = format!("two tables for the back end {:?}", backend.name);
            report.error(span, "plugins.backend.name", cause, "keep one of them");
        }
        if backend.timeout >= config.timeouts.directory {
            let span = Some(backend.written.span("plugins.backend[].timeout"));
            let cause = "is not shorter than timeouts.directory: the login would be over before";
            report.error(span, "plugins.backend.timeout", cause, "make it shorter, or timeouts.directory longer");
        }
    }
    for (index, route) in config.routes.iter().enumerate() {
        let span = || Some(route.written.span("route[].domain"));
        if config.routes[..index].iter().any(|earlier| earlier.domain == route.domain) {
            let cause = format!("two routes for {:?}: the second is never taken", route.domain);
            report.error(span(), "route.domain", cause, "take one of them out");
        }
        if let RouteKind::NextHop(hop) = &route.kind {
            about_next_hop(config, route, hop, report);
        }
        if route.kind == RouteKind::Discard && !config.allow_data_loss {
            report.error(
                Some(route.written.span("route[].kind")),
                "route.kind",
                "\"discard\" loses mail",
                "write kind = \"maildir\", or allow_data_loss = true at the top of the file (benches only)",
            );
        }
    }
    if !config.spool.durable && !config.allow_data_loss {
        report.error(
            Some(config.written.span("spool.durability")),
            "spool.durability",
            "\"none\" can lose acknowledged mail",
            "write \"group-fsync\", or allow_data_loss = true at the top of the file (benches only)",
        );
    }
    if config.allow_data_loss && !config.loses_data() {
        report.warning(
            Some(config.written.span("allow_data_loss")),
            "allow_data_loss",
            "permits losing mail, but nothing here does",
            "take it out",
        );
    }
    if config.users.secrets.allow_cleartext {
        report.warning(
            Some(config.written.span("users.allow_cleartext")),
            "users.allow_cleartext",
            "whoever reads the users file, or a copy of it, has the passwords",
            "take it out unless a mechanism needs them: SCRAM, CRAM-MD5 and DIGEST-MD5 have stored forms of their own",
        );
    }
    if config.process.group.is_some() && config.process.user.is_none() {
        report.warning(
            Some(config.written.span("process.group")),
            "process.group",
            "has no user beside it: it goes with the user `portreeve`",
            "add process.user",
        );
    }
    if config.plugins.load.is_empty() && config.listeners.iter().any(|l| l.auth != AuthOffer::Off) {
        report.error(
            Some(config.written.span("plugins.load")),
            "plugins.load",
            "is empty, but listeners offer AUTH",
            "write [\"standard\"], or auth = \"off\" on each listener",
        );
    }
}

/// A next hop must not be this server.
fn about_next_hop(config: &Config, route: &Route, hop: &HopRoute, report: &mut Report) {
    let binds = || config.listeners.iter().flat_map(|listener| &listener.bind);
    for (at, place) in hop.to.iter().enumerate() {
        let delivery::Place::Tcp(host, port) = place else { continue };
        // Names that this server calls itself by. What other names lead to is not looked at, here or in delivery.
        let named = config.listeners.iter().any(|listener| config.hostname_of(listener).eq_ignore_ascii_case(host));
        let ip = host.parse::<std::net::IpAddr>().ok();
        let own = |bind: &SocketAddr| {
            let here = ip.is_some_and(|ip| bind.ip() == ip || (bind.ip().is_unspecified() && ip.is_loopback()));
            bind.port() == *port && (here || named)
        };
        if binds().any(own) {
            report.error(
                Some(route.written.element("route[].to", at)),
                "route.to",
                format!("{place} is this server itself: mail would go round"),
                "name the server that mail goes to next",
            );
        }
    }
}

fn about_listener(config: &Config, index: usize, listener: &Listener, report: &mut Report) {
    let span = |path: &str| Some(listener.written.span(path));
    let earlier = &config.listeners[..index];
    if earlier.iter().any(|other| other.name == listener.name) {
        report.error(
            span("listener[].name"),
            "listener.name",
            format!("two listeners are called {:?}", listener.name),
            "give one of them another name",
        );
    }
    if listener.bind.is_empty() {
        report.error(span("listener[].bind"), "listener.bind", "is empty", "write an address, like [\"0.0.0.0:25\"]");
    }
    for (at, address) in listener.bind.iter().enumerate() {
        let place = Some(listener.written.element("listener[].bind", at));
        if address.port() == 0 {
            let remedy = "write the port, 25, 587 or 465";
            report.error(place.clone(), "listener.bind", format!("{address} has no port"), remedy);
        }
        let clash = |other: &SocketAddr| {
            other.port() == address.port()
                && other.is_ipv4() == address.is_ipv4()
                && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
        };
        if let Some(other) = earlier.iter().find(|other| other.bind.iter().any(clash)) {
            report.error(
                place,
                "listener.bind",
                format!("{address} is taken by the listener {:?}", other.name),
                "give one of them another address or port",
            );
        } else if listener.bind[..at].iter().any(clash) {
            report.error(
                place,
                "listener.bind",
                format!("{address} is covered by another address of this listener"),
                "take one of them out",
            );
        }
    }
    match (listener.role, listener.tls) {
        (Role::Submissions, Tls::Off | Tls::StartTls) => report.error(
            span("listener[].tls"),
            "listener.tls",
            "the role \"submissions\" is TLS from the first octet (RFC 8314 §3.3)",
            "write tls = \"implicit\", or role = \"submission\"",
        ),
        (Role::Mx, Tls::Implicit) => report.error(
            span("listener[].tls"),
            "listener.tls",
            "other hosts do not speak implicit TLS to an mx",
            "write tls = \"starttls\"",
        ),
        _ => {}
    }
    if listener.tls != Tls::Off && listener.certificates.is_empty() && !config.certificates.is_empty() {
        // Names that were not found have been told already.
    } else if listener.tls != Tls::Off && listener.certificates.is_empty() {
        let how = if listener.tls == Tls::Implicit { "implicit TLS" } else { "STARTTLS" };
        report.error(
            span("listener[].tls"),
            "listener.tls",
            format!("the listener {:?} wants {how}, but there is no certificate", listener.name),
            "add a [[tls.certificate]] table with cert and key, or write tls = \"off\"",
        );
    }
    if listener.require_tls && listener.tls == Tls::Off {
        report.error(
            span("listener[].require_tls"),
            "listener.require_tls",
            "nobody could get past it: the listener has no TLS",
            "write require_tls = false, or tls = \"starttls\"",
        );
    }
    if listener.require_tls && listener.role == Role::Mx {
        report.warning(
            span("listener[].require_tls"),
            "listener.require_tls",
            "a public mx must not refuse mail in clear (RFC 3207 §4)",
            "write require_tls = false unless only known hosts deliver here",
        );
    }
    about_client_certificates(listener, report);
    if listener.require_auth && listener.auth == AuthOffer::Off {
        report.error(
            span("listener[].auth"),
            "listener.auth",
            "nobody could get past require_auth: AUTH is off",
            "write auth = \"after-tls\", or require_auth = false",
        );
    }
    if listener.auth != AuthOffer::Off && listener.tls == Tls::Off && listener.cleartext_auth_nets.is_empty() {
        let blocked = listener.require_auth;
        let (cause, remedy) = (
            "AUTH is offered inside TLS only, and the listener has none",
            "write tls = \"starttls\", auth = \"off\", or name networks in cleartext_auth_nets",
        );
        if blocked {
            report.error(span("listener[].auth"), "listener.auth", cause, remedy);
        } else {
            report.warning(span("listener[].auth"), "listener.auth", cause, remedy);
        }
    }
    if listener.auth != AuthOffer::Off && listener.mechanisms.is_empty() && !listener.mechanisms_auto {
        report.error(
            span("listener[].mechanisms"),
            "listener.mechanisms",
            "is empty, but AUTH is offered",
            "write [\"PLAIN\", \"LOGIN\"], or auth = \"off\"",
        );
    }
    let anonymous = listener.mechanisms.iter().position(|name| name == "ANONYMOUS");
    match (listener.anonymous, anonymous) {
        (true, Some(_)) => report.warning(
            span("listener[].anonymous"),
            "listener.anonymous",
            "whoever connects may leave mail for local users under any foreign name",
            "take it out unless that is what this listener is for",
        ),
        (true, None) => report.warning(
            span("listener[].anonymous"),
            "listener.anonymous",
            "means nothing: no mechanism here is anonymous",
            "add \"ANONYMOUS\" to mechanisms and \"legacy\" to plugins.load, or take it out",
        ),
        (false, Some(at)) if listener.auth != AuthOffer::Off => report.warning(
            Some(listener.written.element("listener[].mechanisms", at)),
            "listener.mechanisms",
            "ANONYMOUS is offered to nobody: the listener does not permit it",
            "write anonymous = \"local\", or take it out",
        ),
        _ => {}
    }
    for (at, network) in listener.cleartext_auth_nets.iter().enumerate() {
        if network.prefix_len() == 0 {
            report.warning(
                Some(listener.written.element("listener[].cleartext_auth_nets", at)),
                "listener.cleartext_auth_nets",
                format!("{network} lets everybody send passwords in clear"),
                "name only networks that nobody listens in",
            );
        }
    }
    for (at, network) in listener.exempt_nets.iter().enumerate() {
        if network.prefix_len() == 0 {
            report.warning(
                Some(listener.written.element("listener[].exempt_nets", at)),
                "listener.exempt_nets",
                format!("{network} takes limits and penalties away for everybody"),
                "name only hosts that you run",
            );
        }
    }
    if listener.any_recipient {
        report.warning(
            span("listener[].recipients"),
            "listener.recipients",
            "\"any\" takes mail for people who do not exist: bounces go to forged senders",
            "write \"directory\" unless the next hop says no before we say 250",
        );
    }
    if listener.role == Role::Mx && listener.domains.is_empty() {
        report.warning(
            span("listener[].domains"),
            "listener.domains",
            format!("the mx {:?} has no domains: it takes no mail from strangers", listener.name),
            "write domains = [\"example.org\"]",
        );
    }
    for (at, domain) in listener.domains.iter().enumerate() {
        if config.route_of(domain).is_none() {
            report.error(
                Some(listener.written.element("listener[].domains", at)),
                "listener.domains",
                format!("no route takes mail for {domain}"),
                format!("add a [[route]] table with domain = \"{domain}\" or \"*\""),
            );
        }
    }
    // Whoever has authenticated may write anywhere.
    if listener.auth != AuthOffer::Off && config.route_of("*").is_none() {
        report.error(
            Some(listener.written.header.clone()),
            "route",
            format!(
                "the listener {:?} relays for the authenticated, but no route takes mail for other domains",
                listener.name
            ),
            "add a [[route]] table with domain = \"*\", or write auth = \"off\"",
        );
    }
    if !listener.require_auth && listener.role.is_submission() {
        report.warning(
            span("listener[].require_auth"),
            "listener.require_auth",
            "strangers may submit mail for local domains here",
            "write require_auth = true",
        );
    }
}

fn about_client_certificates(listener: &Listener, report: &mut Report) {
    let span = |path: &str| Some(listener.written.span(path));
    if listener.client_cert == ClientCert::Off {
        if listener.client_ca.is_some() {
            report.warning(
                span("listener[].client_ca"),
                "listener.client_ca",
                "is not used: clients are not asked for a certificate",
                "write client_cert = \"request\", or take it out",
            );
        }
    } else if listener.tls == Tls::Off {
        report.error(
            span("listener[].client_cert"),
            "listener.client_cert",
            "clients show certificates in TLS, and the listener has none",
            "write tls = \"starttls\", or take it out",
        );
    } else if listener.client_ca.is_none() {
        let (key, remedy) =
            ("listener.client_cert", "write client_ca = \"client-ca.pem\", the file of the authorities");
        match listener.client_cert {
            ClientCert::Require => {
                let cause = "nobody could get in: without client_ca no certificate can be verified";
                report.error(span("listener[].client_cert"), key, cause, remedy);
            }
            _ => {
                let cause = "without client_ca no certificate is ever verified";
                report.warning(span("listener[].client_cert"), key, cause, remedy);
            }
        }
    } else if listener.client_cert == ClientCert::Require && listener.role == Role::Mx {
        report.warning(
            span("listener[].client_cert"),
            "listener.client_cert",
            "other hosts have no certificate of your authorities: they cannot use TLS here",
            "write \"request\" unless only known hosts deliver here",
        );
    }
    let verifies = listener.client_cert != ClientCert::Off && listener.client_ca.is_some();
    if let Some(at) = listener.mechanisms.iter().position(|name| name == "EXTERNAL")
        && listener.auth != AuthOffer::Off
        && !verifies
    {
        report.warning(
            Some(listener.written.element("listener[].mechanisms", at)),
            "listener.mechanisms",
            "EXTERNAL is offered to nobody: it needs a verified client certificate",
            "write client_cert = \"request\" and client_ca, or take it out",
        );
    }
}

#[cfg(test)]
mod tests;
