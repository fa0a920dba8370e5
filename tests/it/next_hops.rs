//! Mail that leaves: real Dovecot as LMTP server, real Postfix as smarthost with TLS and AUTH, a Maildir on a full
//! disk, and the operator's `portreeve queue`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::server::{Options, PATIENCE, Server, feed, free_address, output};

/// Whether what a test needs is there; where CI=true it must be.
pub fn present(what: &str, there: bool) -> bool {
    if !there {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}; tests/setup installs what is missing");
        eprintln!("SKIPPED: {what}");
    }
    there
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A server of somebody else; ends with its handle.
pub struct Daemon(Child, pub Option<PathBuf>);

impl Daemon {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"), None)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Postfix' own master, which a script has started: it ends with the whole family, and the script with it.
        let master = self.1.as_ref().and_then(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        let first = master.and_then(Pid::from_raw).unwrap_or(Pid::from_child(&self.0));
        let _ = kill_process(first, Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(10)); // between two looks
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks until it is there.
pub fn wait<T>(what: &str, tell: &dyn Fn() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} never comes\n{}", tell());
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
}

/// Files in a Maildir.
pub fn mails(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder.join("new")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read(file.path()).ok())
        .map(|text| String::from_utf8_lossy(&text).replace("\r\n", "\n"))
        .collect()
}

/// Alice logs in and sends.
pub fn submit(server: &Server, to: &str, params: &str, text: &str) {
    let login = Some("\0alice@demo.test\0secret");
    hand_over(server.submission(), login, to, params, text, &|| server.log());
}

/// Hands one message to a server, line by line.
pub fn hand_over(
    server: SocketAddr,
    login: Option<&str>,
    to: &str,
    params: &str,
    text: &str,
    tell: &dyn Fn() -> String,
) {
    let stream = TcpStream::connect(server).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut stream = BufReader::new(stream);
    let mut say = |command: &str, expect: &str| {
        stream.get_mut().write_all(command.as_bytes()).expect("it is sent");
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).expect("a reply");
            assert!(line.starts_with(expect), "{command:?}: {line}\n{}", tell());
            if line.as_bytes().get(3) == Some(&b' ') {
                return;
            }
        }
    };
    say("", "220");
    say("EHLO client.example\r\n", "250");
    if let Some(login) = login {
        say(&format!("AUTH PLAIN {}\r\n", STANDARD.encode(login)), "235");
    }
    say("MAIL FROM:<alice@demo.test>\r\n", "250");
    say(&format!("RCPT TO:<{to}>{params}\r\n"), "250");
    say("DATA\r\n", "354");
    let head = "From: alice@demo.test\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n";
    say(&format!("{head}{text}\r\n.\r\n"), "250");
    say("QUIT\r\n", "221");
}

/// A server whose mail for others, and for itself, goes elsewhere.
pub fn server(local: &str, others: &str) -> Server {
    let mut server = prepared(local, others);
    server.run();
    server
}

/// The same, not running yet.
pub fn prepared(local: &str, others: &str) -> Server {
    let options = Options {
        listener: "require_tls = false\ncleartext_auth_nets = [\"127.0.0.0/8\"]".into(),
        ..Options::default()
    };
    let server = Server::prepare(options);
    let text = server.config();
    let (head, rest) = text.split_once("\n[[route]]").expect("routes");
    let (_, tail) = rest.split_once("\n[log]").expect("the end");
    let routes = format!("[[route]]\ndomain = \"demo.test\"\n{local}\n\n[[route]]\ndomain = \"*\"\n{others}\n");
    server.write_config(&format!("{head}\n{routes}\n[queue]\nretry = \"1h\"\n\n[log]{tail}"));
    let added = feed(&mut server.command(&["user", "add", "carol@demo.test", "--password-stdin"]), b"secret\n");
    assert!(added.0.success(), "{}", added.1);
    server
}

/// CONTRACT C-7: two servers that each think that the other one has the mailbox.
#[test]
fn a_message_that_goes_round_between_two_servers_ends() {
    let options = || Options {
        listener: "require_tls = false\ncleartext_auth_nets = [\"127.0.0.0/8\"]".into(),
        ..Options::default()
    };
    let (mut one, mut two) = (Server::prepare(options()), Server::prepare(options()));
    for (server, other) in [(&one, &two), (&two, &one)] {
        let text = server.config();
        let (head, rest) = text.split_once("\n[[route]]").expect("routes");
        let (_, tail) = rest.split_once("\n[log]").expect("the end");
        let route = format!("[[route]]\nkind = \"smtp\"\nto = [\"{}\"]\ntls = \"off\"\n", other.mx());
        server.write_config(&format!("{head}\n{route}\n[queue]\nretry = \"1h\"\n\n[log]{tail}"));
    }
    one.run();
    two.run();
    submit(&one, "bob@demo.test", "", "Subject: round and round\r\n\r\nhello\r\n");
    let tell = || format!("{}\n---\n{}", one.log(), two.log());
    let stuck = wait("the end of the loop", &tell, || {
        [&one, &two].iter().find_map(|server| queue(server, &["list"])["messages"].get(0).cloned())
    });
    let reason = stuck["recipients"][0]["reason"].as_str().expect("a reason");
    // Nobody hears of it: whoever handed it on last had not logged in.
    assert!(reason.contains("554 5.4.6 Too many hops") && reason.contains("may not be told"), "{reason}");
    let accepted = |server: &Server| server.log().matches("\"message.accepted\"").count();
    wait("the log", &tell, || (accepted(&one) + accepted(&two) >= 50).then_some(()));
    assert_eq!(accepted(&one) + accepted(&two), 50, "one Received line each time");
}

/// A folder that daemons with users of their own can pass.
pub fn open_folder() -> TempDir {
    let dir = TempDir::with_prefix("portreeve-hop-").expect("a folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::create_dir(dir.path().join("boxes")).expect("a folder");
    fs::set_permissions(dir.path().join("boxes"), fs::Permissions::from_mode(0o777)).expect("its mode");
    dir
}

/// LMTP for alice and bob at `lmtp`, SASL for Postfix at `auth`.
pub fn dovecot(dir: &Path) -> Daemon {
    let path = dir.display();
    let users: String = ["alice", "bob", "relay"]
        .iter()
        .map(|name| format!("{name}@demo.test:{{PLAIN}}relay-secret:65534:65534::::\n"))
        .collect();
    fs::write(dir.join("passwd"), users).expect("users");
    fs::set_permissions(dir.join("passwd"), fs::Permissions::from_mode(0o644)).expect("its mode");
    let config = format!(
        "base_dir = {path}/run\nstate_dir = {path}/run\nlog_path = {path}/dovecot.log\nprotocols = lmtp\nssl = no\nlisten = 127.0.0.1\n\
         mail_location = maildir:{path}/boxes/%n\nfirst_valid_uid = 1\nauth_mechanisms = plain scram-sha-256\n\
         postmaster_address = postmaster@demo.test\n\
         passdb {{\n driver = passwd-file\n args = {path}/passwd\n}}\n\
         userdb {{\n driver = passwd-file\n args = {path}/passwd\n}}\n\
         service lmtp {{\n unix_listener {path}/lmtp {{\n mode = 0666\n }}\n}}\n\
         service auth {{\n unix_listener {path}/auth {{\n mode = 0666\n }}\n}}\n"
    );
    fs::write(dir.join("dovecot.conf"), config).expect("its configuration");
    let daemon = Daemon::start(Command::new("dovecot").args(["-F", "-c"]).arg(dir.join("dovecot.conf")));
    let log = dir.join("dovecot.log");
    wait("dovecot", &|| fs::read_to_string(&log).unwrap_or_default(), || {
        dir.join("lmtp").exists().then_some(()).filter(|()| dir.join("auth").exists())
    });
    daemon
}

/// A smarthost that wants TLS and AUTH, and is the last one for `far.example`.
pub fn postfix(dir: &Path, certificate: &Path, key: &Path) -> (Daemon, SocketAddr) {
    postfix_with(dir, certificate, key, "")
}

/// The same with more lines in main.cf; they win.
pub fn postfix_with(dir: &Path, certificate: &Path, key: &Path, more: &str) -> (Daemon, SocketAddr) {
    let address = free_address();
    let path = dir.display();
    for folder in ["postfix", "queue", "data"] {
        fs::create_dir(dir.join(folder)).expect("a folder");
    }
    assert!(Command::new("chown").args(["postfix"]).arg(dir.join("data")).status().is_ok_and(|done| done.success()));
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {path}/queue\ndata_directory = {path}/data\n\
         maillog_file = {path}/postfix.log\nmaillog_file_prefixes = {path}\nmyhostname = relay.example\n\
         mydestination =\nmynetworks =\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
         virtual_mailbox_domains = far.example\nvirtual_mailbox_base = {path}/boxes\n\
         virtual_mailbox_maps = inline:{{ {{ known@far.example = known/ }} }}\nvirtual_minimum_uid = 1\n\
         virtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n\
         smtpd_tls_cert_file = {}\nsmtpd_tls_key_file = {}\nsmtpd_tls_security_level = may\nsmtpd_tls_auth_only = yes\n\
         smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {path}/auth\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
         smtpd_recipient_restrictions = reject_unlisted_recipient, permit_sasl_authenticated, reject\n{more}",
        certificate.display(),
        key.display()
    );
    fs::write(dir.join("postfix/main.cf"), main).expect("main.cf");
    let mut master = format!("{address} inet n - n - - smtpd\n");
    for (name, program, private, most) in [
        ("cleanup", "cleanup", "n", "0"),
        ("qmgr", "qmgr", "n", "1"),
        ("rewrite", "trivial-rewrite", "-", "-"),
        ("bounce", "bounce", "-", "0"),
        ("defer", "bounce", "-", "0"),
        ("trace", "bounce", "-", "0"),
        ("proxymap", "proxymap", "-", "-"),
        ("virtual", "virtual", "-", "-"),
        ("error", "error", "-", "-"),
        ("retry", "error", "-", "-"),
        ("anvil", "anvil", "-", "1"),
        ("tlsmgr", "tlsmgr", "-", "1"),
    ] {
        let kind = "unix";
        let wake = match name {
            "qmgr" => "300",
            "tlsmgr" => "1000?",
            _ => "-",
        };
        // It writes as the mailbox's owner, so it begins with all rights.
        let unprivileged = if name == "virtual" { "n" } else { "-" };
        master += &format!("{name} {kind} {private} {unprivileged} n {wake} {most} {program}\n");
    }
    master += "postlog unix-dgram n - n - 1 postlogd\n";
    fs::write(dir.join("postfix/master.cf"), master).expect("master.cf");
    let mut daemon = Daemon::start(Command::new("postfix").arg("-c").arg(dir.join("postfix")).arg("start-fg"));
    daemon.1 = Some(dir.join("queue/pid/master.pid"));
    let log = dir.join("postfix.log");
    wait("postfix", &|| fs::read_to_string(&log).unwrap_or_default(), || TcpStream::connect(address).ok());
    (daemon, address)
}

pub fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
}

#[test]
fn dovecot_and_postfix_take_what_portreeve_accepted_and_senders_hear_of_what_they_refuse() {
    if !present("Dovecot and Postfix must be installed, and we must be root to start them", {
        is_root() && is_installed("dovecot") && is_installed("postfix")
    }) {
        return;
    }
    let dir = open_folder();
    let _dovecot = dovecot(dir.path());
    // The certificate of another Portreeve: the only one that is believed below.
    let other = Server::prepare(Options::default());
    let (certificate, key) = other.certificate_files();
    let (_postfix, relay) = postfix(dir.path(), &certificate, &key);
    fs::write(dir.path().join("password"), "relay-secret\n").expect("a password");
    fs::set_permissions(dir.path().join("password"), fs::Permissions::from_mode(0o600)).expect("its mode");
    let path = dir.path().display();
    let server = server(
        &format!("kind = \"lmtp\"\nto = [\"unix:{path}/lmtp\"]"),
        &format!(
            "kind = \"smtp\"\nto = [\"127.0.0.1:1\", \"{relay}\"]\ntls = \"required\"\ntls_ca = {certificate:?}\n\
             tls_name = {:?}\nuser = \"relay@demo.test\"\npassword_file = \"{path}/password\"",
            crate::bare::HOSTNAME
        ),
    );
    let tell = || {
        let log = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        format!("{}\n--- dovecot\n{}\n--- postfix\n{}", server.log(), log("dovecot.log"), log("postfix.log"))
    };
    let comes = |name: &str, part: &str| {
        let folder = dir.path().join("boxes").join(name);
        wait(part, &tell, || mails(&folder).into_iter().find(|mail| mail.contains(part)))
    };
    submit(&server, "bob@demo.test", "", "Subject: to dovecot\r\n\r\n.hello\r\n");
    let mail = comes("bob", "Subject: to dovecot\n");
    assert!(mail.contains("Return-Path: <alice@demo.test>\n") && mail.ends_with("\n\nhello\n\n"), "{mail}");
    submit(&server, "known@far.example", "", "Subject: to postfix\r\n\r\nhello\r\n");
    let mail = comes("known", "Subject: to postfix\n");
    assert!(mail.contains("(using TLSv1.3") || mail.contains("by relay.example (Postfix) with ESMTPSA"), "{mail}");
    for (to, tail) in
        [("unknown@far.example", " NOTIFY=FAILURE ORCPT=rfc822;first+2Bname@far.example"), ("carol@demo.test", "")]
    {
        submit(&server, to, tail, "Subject: to nobody\r\n\r\nhello\r\n");
        let report = comes("alice", &format!("Final-Recipient: rfc822; {to}\n"));
        assert!(report.contains("Action: failed\nStatus: 5.1.1\n"), "{report}");
        assert!(report.contains("Return-Path: <>\n") && report.contains("Subject: to nobody\n"), "{report}");
        assert_eq!(
            report.contains("Original-Recipient: rfc822; first+name@far.example\n"),
            !tail.is_empty(),
            "{report}"
        );
    }
}

/// A file system of its own; goes with its handle.
struct Small(PathBuf);

impl Small {
    fn mount(folder: PathBuf) -> Option<Self> {
        fs::create_dir_all(&folder).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&folder).stderr(Stdio::null());
        mount.status().is_ok_and(|done| done.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// `portreeve queue … --json`.
pub fn queue(server: &Server, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["queue"].iter().chain(arguments).chain(&["--json"]).copied().collect();
    let (status, text) = output(&mut server.command(&all));
    assert!(status.success(), "queue {arguments:?}: {text}\n{}", server.log());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_full_disk_delays_mail_and_the_operator_lets_it_go() {
    if !present("a file system must be mounted, which needs root", is_root()) {
        return;
    }
    let dir = open_folder();
    let Some(small) = Small::mount(dir.path().join("small")) else {
        present("this system lets nobody mount a file system", std::env::var("CI").as_deref() != Ok("true"));
        eprintln!("SKIPPED: mount is not permitted");
        return;
    };
    fs::write(small.0.join("ballast"), vec![0; 900 << 10]).expect("room for it");
    let path = small.0.display();
    let maildir = format!("kind = \"maildir\"\npath = \"{path}/%n\"");
    let server = server(&maildir, &maildir);
    submit(&server, "bob@demo.test", "", &format!("Subject: big\r\n\r\n{}", "line of text\r\n".repeat(20_000)));
    submit(&server, "carol@demo.test", "", "Subject: small\r\n\r\nhello\r\n");
    wait("the small one", &|| server.log(), || mails(&small.0.join("carol")).pop());
    let waiting = wait("the big one in the queue", &|| server.log(), || {
        let list = queue(&server, &["list", "--to", "bob@demo.test"]);
        list["messages"].get(0).cloned()
    });
    assert_eq!((waiting["state"].as_str(), waiting["sender"].as_str()), (Some("waiting"), Some("alice@demo.test")));
    let reason = waiting["recipients"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("No space left"), "{reason}");
    assert!(waiting["next_seconds"].as_u64().is_some_and(|seconds| seconds > 1800), "{waiting}");
    let id = waiting["id"].as_str().expect("an id");
    let shown = queue(&server, &["show", id]);
    assert!(shown["message"]["header"].as_str().is_some_and(|header| header.contains("Subject: big\r\n")), "{shown}");
    assert!(mails(&small.0.join("bob")).is_empty(), "nothing half");
    assert_eq!(queue(&server, &["list", "--domain", "far.example"])["matched"], 0);
    assert_eq!(queue(&server, &["stats"])["waiting"], 1);
    assert_eq!(queue(&server, &["hold", id])["changed"], 1);
    fs::remove_file(small.0.join("ballast")).expect("it was there");
    assert_eq!(queue(&server, &["stats"])["held"], 1);
    assert_eq!(queue(&server, &["release", "--all"])["changed"], 1);
    let mail = wait("the big one", &|| server.log(), || mails(&small.0.join("bob")).pop());
    assert_eq!(mail.matches("line of text\n").count(), 20_000);
    assert_eq!(fs::read_dir(small.0.join("bob/tmp")).expect("tmp").count(), 0);
    // Nobody names no message by accident.
    assert_eq!(output(&mut server.command(&["queue", "remove"])).0.code(), Some(2));
}
