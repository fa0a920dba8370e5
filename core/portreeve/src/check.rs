//! What can only be found out on this host: files, folders, users, libraries, ports.
//!
//! `portreeve check`, the start of `serve` and every reload run this same code, after [`config::parse`]
//! found nothing wrong with the file itself.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::users::{BadUsers, Users, WhyBad};
use supervisor::{LAST_ONES_MAX, Lock};

use crate::certificates::{self, Dates, Sets};
use crate::cli::{ConfigArg, exit};
use crate::config::{self, Config, RouteKind};
use crate::control::client;
use crate::plugins::{self, Library};
use crate::report::Report;
use crate::{ehlo, files, rights, terminal, tokens, users};

/// Everything that a server needs beside its configuration, read and found good.
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Certificates of each listener.
    pub certificates: Sets,
    /// Who vouches for clients, of each listener, PEM.
    pub client_authorities: Vec<Option<String>>,
    /// Mechanism libraries.
    pub libraries: Vec<Library>,
}

/// Why a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody asks.
    Check,
    /// The server is about to start.
    Start,
    /// The running server is about to take it over; its own ports are its own.
    Reload,
}

/// `portreeve check`.
pub fn command(arg: &ConfigArg, print_ehlo: Option<&str>) -> ExitCode {
    let (checked, report) = all(&arg.file(), Occasion::Check);
    eprint!("{}", report.render(terminal::color()));
    let Some(checked) = checked else { return ExitCode::from(exit::CONFIGURATION) };
    match print_ehlo {
        Some(name) => match ehlo::print(&checked, name) {
            Ok(text) => terminal::print(&text),
            Err(error) => terminal::fail(exit::FAILURE, error),
        },
        None => terminal::print(&format!("{}: fine\n", checked.config.file.display())),
    }
}

/// Reads a file and checks everything. The report tells what was found; what a server needs is there when
/// that holds no error.
pub fn all(file: &Path, occasion: Occasion) -> (Option<Checked>, Report) {
    let (config, mut report) = config::load(file);
    let Some(config) = config else { return (None, report) };
    let dates = if occasion == Occasion::Reload { Dates::Strict } else { Dates::Lenient };
    who_we_become(&config, &mut report);
    let certificates = certificates::read(&config, dates, &mut report);
    let client_authorities = certificates::client_authorities(&config, &mut report);
    folders(&config, &mut report);
    next_hops(&config, &mut report);
    tokens(&config, &mut report);
    users_file(&config, &mut report);
    let libraries = plugins::read(&config, &mut report);
    ports(&config, occasion, &mut report);
    let (false, Some(certificates), Some(client_authorities), Some(libraries)) =
        (report.has_errors(), certificates, client_authorities, libraries)
    else {
        return (None, report);
    };
    (Some(Checked { config, certificates, client_authorities, libraries }), report)
}

fn who_we_become(config: &Config, report: &mut Report) {
    let span = Some(config.written.span("process.user"));
    let span = span.filter(|_| config.written.entries.contains_key("process.user"));
    if let Err(cause) = rights::ids(config) {
        let (cause, remedy) = certificates::halves(&cause);
        report.error(span, "process.user", cause, remedy);
    } else if rights::stays_root(config) {
        report.warning(
            span,
            "process.user",
            "every process keeps root's rights",
            "name a user of its own, or start the server as one",
        );
    }
}

fn folders(config: &Config, report: &mut Report) {
    let Ok(ids) = rights::ids(config) else { return };
    let state = config.process.state_dir.clone();
    let mut check = |path: &Path, span: Option<std::ops::Range<usize>>, key: &str| {
        if let Some((folder, ids)) = ids.as_ref().and_then(|ids| Some((files::barrier(path, ids, &state)?, ids))) {
            let cause = format!("{}: user {} cannot pass {}", path.display(), ids.uid, folder.display());
            let remedy = format!("name a folder elsewhere, like /var/lib/portreeve, or chmod o+x {}", folder.display());
            report.error(span.clone(), key, cause, remedy);
        }
        if let Err(cause) = files::writable(path, ids.as_ref()) {
            let remedy = match &ids {
                Some(ids) => format!("give it away: chown {}:{} {}", ids.uid, ids.gid, path.display()),
                None => "name another folder, or give us the right to write there".into(),
            };
            report.error(span, key, cause, remedy);
        }
    };
    let written = |path: &str| config.written.entries.get(path).map(|entry| entry.span.clone());
    // The state folder itself may stay root's; what children write lies below it.
    check(&config.process.state_dir.join("run"), written("process.state_dir"), "process.state_dir");
    check(&config.spool.path, written("spool.path"), "spool.path");
    for (path, key) in [(&config.log.file, "log.file"), (&config.log.audit, "log.audit")] {
        if let Some(folder) = path.as_deref().and_then(Path::parent) {
            check(folder, written(key), key);
        }
    }
    for route in &config.routes {
        if let RouteKind::Maildir(template) = &route.kind {
            check(&fixed_part(template), Some(route.written.span("route[].path")), "route.path");
        }
    }
}

/// Files of routes to next hops: there, good, and readable for whom we become.
fn next_hops(config: &Config, report: &mut Report) {
    let ids = rights::ids(config).ok().flatten();
    for route in &config.routes {
        let span = |option: &str| Some(route.written.span(&format!("route[].{option}")));
        let made = match &route.kind {
            RouteKind::NextHop(hop) => crate::next_hop::make(config, hop).map(drop),
            RouteKind::Mx(mx) => {
                let nobody = std::sync::Arc::new(|_: &delivery::Event<'_>| {});
                crate::next_hop::make_mx(config, mx, None, nobody).map(drop)
            }
            _ => Ok(()),
        };
        if let Err((option, why)) = made {
            let (cause, remedy) = certificates::halves(&why);
            report.error(span(option), format!("route.{option}"), cause, remedy);
            continue;
        }
        if let RouteKind::NextHop(hop) = &route.kind
            && let Some((_, file)) = &hop.login
        {
            secret_file(file, ids.as_ref(), span("password_file"), "route.password_file", report);
        }
    }
}

/// Issuers of tokens: their files are there and good.
fn tokens(config: &Config, report: &mut Report) {
    let ids = rights::ids(config).ok().flatten();
    for issuer in &config.issuers {
        let span = |option: &str| Some(issuer.written.span(&format!("tokens.issuer[].{option}")));
        if let Err((option, why)) = tokens::make(issuer) {
            let (cause, remedy) = certificates::halves(&why);
            report.error(span(option), format!("tokens.issuer.{option}"), cause, remedy);
        } else if let Some((option, file)) = tokens::secret_file(issuer) {
            secret_file(file, ids.as_ref(), span(option), &format!("tokens.issuer.{option}"), report);
        }
    }
}

/// A file with a secret: readable for whom we become, and for nobody else.
fn secret_file(
    file: &Path,
    ids: Option<&link::ids::Ids>,
    span: Option<std::ops::Range<usize>>,
    key: &str,
    report: &mut Report,
) {
    let Ok(meta) = std::fs::metadata(file) else { return };
    let readable = |uid: u32, gid: u32| {
        (meta.uid() == uid && meta.mode() & 0o400 != 0)
            || (meta.gid() == gid && meta.mode() & 0o040 != 0)
            || meta.mode() & 0o004 != 0
    };
    if let Some(ids) = ids.filter(|ids| !readable(ids.uid, ids.gid)) {
        let cause = format!("{}: user {} cannot read it", file.display(), ids.uid);
        report.error(span, key, cause, format!("chown {}:{} {}", ids.uid, ids.gid, file.display()));
    } else if meta.mode() & 0o004 != 0 {
        let cause = format!("{}: everybody on this host may read the password", file.display());
        report.warning(span, key, cause, format!("chmod o-r {}", file.display()));
    }
}

/// The folder of a Maildir template up to its first variable.
pub fn fixed_part(template: &str) -> std::path::PathBuf {
    let path = template.replace("%%", "\0");
    let fixed: std::path::PathBuf =
        Path::new(&path).components().take_while(|part| !part.as_os_str().to_string_lossy().contains('%')).collect();
    fixed.to_string_lossy().replace('\0', "%").into()
}

fn users_file(config: &Config, report: &mut Report) {
    let span = config.written.entries.get("users.file").map(|entry| entry.span.clone());
    let asks = config.listeners.iter().any(|l| l.auth != smtp::listener::AuthOffer::Off || !l.any_recipient);
    match Users::load(&config.users.file, &Arc::new(users::options(config))) {
        Ok(loaded) if loaded.is_empty() && asks => {
            let cause =
                format!("{}: has no users: nobody can log in, no recipient exists", config.users.file.display());
            report.warning(span, "users.file", cause, "add one with `portreeve user add NAME@DOMAIN`");
        }
        Ok(loaded) => who_cannot_use_scram(config, &loaded, report),
        Err(BadUsers { why: WhyBad::Io(error), .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            if asks {
                let cause = format!("{}: is not there yet: nobody can log in", config.users.file.display());
                report.warning(span, "users.file", cause, "make it with `portreeve user add NAME@DOMAIN`");
            }
        }
        Err(bad) => {
            let (cause, remedy) = certificates::halves(&bad.to_string());
            report.error(span, "users.file", cause, remedy);
        }
    }
}

/// Clients take the strongest mechanism that they are offered, and few try another one when it fails.
fn who_cannot_use_scram(config: &Config, users: &Users, report: &mut Report) {
    const SCRAM: &str = "SCRAM-SHA-256";
    let offers = |listener: &&config::Listener| {
        listener.auth != smtp::listener::AuthOffer::Off
            && listener.backend == plugin_host::OWN_BACKEND
            && (listener.mechanisms_auto || listener.mechanisms.iter().any(|name| name == SCRAM))
    };
    let Some(listener) = config.listeners.iter().find(offers) else { return };
    if let Some(user) = users.iter().find(|user| !user.secrets.is_empty() && !user.has_scram_sha_256()) {
        let cause = format!("{} has no key for {SCRAM}: clients that choose it cannot log in", user.name);
        let remedy = "set the password anew with `portreeve user passwd`, or write mechanisms = [\"PLAIN\", \"LOGIN\"]";
        report.warning(Some(listener.written.span("listener[].mechanisms")), "listener.mechanisms", cause, remedy);
    }
}

fn ports(config: &Config, occasion: Occasion, report: &mut Report) {
    // The supervisor itself says what it cannot bind; asking it from within a reload would wait for ever.
    if occasion == Occasion::Reload {
        return;
    }
    let first = rights::first_port();
    // What the running server has bound is not in anybody's way.
    let own = if occasion == Occasion::Check { running_binds(config) } else { BTreeSet::new() };
    // What children of a server that was killed still hold will be free in a moment.
    let waits = occasion == Occasion::Start && Lock::is_left_behind(&config.process.state_dir);
    let until = Instant::now() + if waits { LAST_ONES_MAX } else { Duration::ZERO };
    for listener in &config.listeners {
        for (index, address) in listener.bind.iter().enumerate() {
            if own.contains(&address.to_string()) {
                continue;
            }
            let span = Some(listener.written.element("listener[].bind", index));
            if address.port() < first {
                let cause = format!("{address}: ports below {first} need root or CAP_NET_BIND_SERVICE");
                report.error(span, "listener.bind", cause, "start as root (rights are dropped), or take a higher port");
            } else if let Err(error) = probe_until(*address, until) {
                let (cause, remedy) = match error.kind() {
                    std::io::ErrorKind::AddrInUse => (
                        format!("{address} is in use by another program"),
                        format!(
                            "stop that one (`ss -ltnp 'sport = :{}'` names it), or take another port",
                            address.port()
                        ),
                    ),
                    std::io::ErrorKind::AddrNotAvailable => (
                        format!("{address} is no address of this host"),
                        "write one of `ip address`, or 0.0.0.0".into(),
                    ),
                    _ => (format!("{address} cannot be bound: {error}"), "take another address or port".into()),
                };
                report.error(span, "listener.bind", cause, remedy);
            }
        }
    }
}

/// Tries until then.
fn probe_until(address: SocketAddr, until: Instant) -> std::io::Result<()> {
    loop {
        match probe(address) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            probed => return probed,
        }
    }
}

/// Binds for a moment, without SO_REUSEPORT: two servers on one address would share its clients silently.
fn probe(address: SocketAddr) -> std::io::Result<()> {
    let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier run in TIME_WAIT are nobody's.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    drop(TcpListener::from(socket));
    Ok(())
}

fn running_binds(config: &Config) -> BTreeSet<String> {
    let Ok(answer) = client::ask(&config.admin.socket, "status") else { return BTreeSet::new() };
    let listeners = answer["about"]["listeners"].as_array().cloned().unwrap_or_default();
    let binds = listeners.iter().flat_map(|listener| listener["bind"].as_array().cloned().unwrap_or_default());
    binds.filter_map(|bind| bind.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Severity;

    struct Host {
        dir: std::path::PathBuf,
    }

    impl Host {
        fn new(name: &str) -> Host {
            let dir = std::env::temp_dir().join(format!("portreeve-check-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            files::private_folder(&dir).unwrap();
            crate::init::certificate(&dir.join("c.pem"), &dir.join("k.pem"), &["mail.check.test"]).unwrap();
            Host { dir }
        }

        /// Checks a good file with `from` replaced by `to`; returns errors as `line:column key: cause; remedy`.
        fn errors(&self, from: &str, to: &str) -> Vec<String> {
            let good = "hostname = \"mail.check.test\"\n\
                        [process]\nuser = \"root\"\n\
                        [spool]\npath = \"spool\"\n\
                        [users]\nfile = \"users\"\n\
                        [plugins]\nload = [\"not_there\"]\n\
                        [[tls.certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n\
                        [[route]]\nkind = \"maildir\"\npath = \"mail/%d/%n\"\n\
                        [[listener]]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\ndomains = [\"check.test\"]\nauth = \"off\"\n";
            assert!(good.contains(from), "{from}");
            let file = self.dir.join("p.toml");
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().to_string();
            std::fs::write(&file, good.replace(from, to).replace("127.0.0.1:0", &free)).unwrap();
            let (checked, report) = all(&file, Occasion::Start);
            assert_eq!(checked.is_none(), report.has_errors());
            let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
            let told = errors.map(|f| {
                let (line, column) = f.span.as_ref().map_or((0, 0), |span| report.position(span.start));
                format!("{line}:{column} {}: {}; {}", f.key, f.cause, f.remedy)
            });
            told.collect()
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn what_is_wrong_with_this_host_is_named_with_its_place() {
        let host = Host::new("places");
        std::fs::write(host.dir.join("file"), "no folder").unwrap();
        std::fs::write(host.dir.join("bad-users"), "alice@check.test:{NO-SUCH-SCHEME}x\n").unwrap();
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = holder.local_addr().unwrap().to_string();
        for (from, to, wanted) in [
            ("hostname", "hostname", "9:9 plugins.load: "),
            ("\"spool\"", "\"file/spool\"", "5:8 spool.path: "),
            ("\"mail/%d/%n\"", "\"file/%d\"", "15:8 route.path: "),
            ("\"users\"", "\"bad-users\"", "7:8 users.file: "),
            ("\"c.pem\"", "\"x.pem\"", "11:8 tls.certificate.cert: "),
            ("\"k.pem\"", "\"c.pem\"", "11:8 tls.certificate.cert: "),
            (
                "auth = \"off\"",
                "client_cert = \"request\"\nclient_ca = \"x.pem\"\nauth = \"off\"",
                "21:13 listener.client_ca: ",
            ),
            (
                "auth = \"off\"",
                "client_cert = \"request\"\nclient_ca = \"k.pem\"\nauth = \"off\"",
                "21:13 listener.client_ca: ",
            ),
            ("127.0.0.1:0", held.as_str(), "18:9 listener.bind: "),
            ("127.0.0.1:0", "192.0.2.1:42525", "18:9 listener.bind: 192.0.2.1:42525 is no address of this host"),
        ] {
            let errors = host.errors(from, to);
            assert!(errors.iter().any(|error| error.starts_with(wanted)), "{to}: wanted {wanted}, found {errors:#?}");
        }
        // A port whose holder is gone is free again.
        drop(holder);
        let errors = host.errors("127.0.0.1:0", &held);
        assert!(!errors.iter().any(|error| error.contains("listener.bind")), "{errors:?}");
    }

    #[test]
    fn mechanisms_without_a_library_name_the_one_that_has_them() {
        let host = Host::new("mechanisms");
        let file = host.dir.join("p.toml");
        let text = "[plugins]\nload = []\n[[tls.certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n\
                    [[route]]\nkind = \"maildir\"\npath = \"m\"\n\
                    [[listener]]\nrole = \"mx\"\nbind = [\"127.0.0.1:1\"]\ndomains = [\"a.test\"]\nauth = \"off\"\n";
        let (config, _) = config::parse(&file, text);
        let mut config = config.unwrap();
        config.listeners[0].auth = smtp::listener::AuthOffer::AfterTls;
        config.listeners[0].mechanisms = vec!["CRAM-MD5".into(), "X-OWN".into()];
        let mut report = Report::new(config.file.clone(), config.text.clone());
        assert!(plugins::read(&config, &mut report).is_none());
        let told = report.line();
        assert!(
            told.contains("no loaded library has the mechanism CRAM-MD5; add \"legacy\" to plugins.load"),
            "{told}"
        );
        assert!(told.contains("X-OWN"), "{told}");
    }

    #[test]
    fn users_whom_the_strongest_mechanism_would_lock_out_are_named() {
        let host = Host::new("scram");
        let (file, users) = (host.dir.join("p.toml"), host.dir.join("users"));
        let text = "[users]\nfile = \"users\"\n[[tls.certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n\
                    [[route]]\nkind = \"maildir\"\npath = \"m\"\n\
                    [[listener]]\nrole = \"submission\"\nbind = [\"127.0.0.1:1\"]\ndomains = [\"a.test\"]\n";
        let hashed = "{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==";
        let keys = "{SCRAM-SHA-256}4096,AAECAwQFBgcICQoLDA0ODw==,zHCdol2044/ZyWzPLi7oxApCkamKw9Z+E4U/QApd/5Y=,\
                    dd5peBOitVnLNFu7VmwP+HiDaaw4OUCv396eVCWhYiE=";
        for (more, secrets, warned) in [
            ("", hashed.to_owned(), true),
            ("", format!("{hashed} {keys}"), false),
            ("", String::new(), false),
            ("mechanisms = [\"PLAIN\"]", hashed.to_owned(), false),
            ("auth = \"off\"\nrequire_auth = false", hashed.to_owned(), false),
        ] {
            std::fs::write(&users, format!("good@a.test:{keys}\nother@a.test:{secrets}\n")).unwrap();
            let (config, _) = config::parse(&file, &format!("{text}{more}\n"));
            let config = config.unwrap();
            let mut report = Report::new(config.file.clone(), config.text.clone());
            users_file(&config, &mut report);
            let told = report.render(false);
            assert_eq!(told.contains("other@a.test has no key for SCRAM-SHA-256"), warned, "{more} {secrets}: {told}");
            assert!(!report.has_errors(), "{told}");
        }
    }

    #[test]
    fn the_fixed_part_of_a_template() {
        for (template, fixed) in [("/m/%d/%n", "/m"), ("/m/out", "/m/out"), ("/m/50%%/%u", "/m/50%"), ("/%d", "/")] {
            assert_eq!(fixed_part(template), Path::new(fixed), "{template}");
        }
    }
}
