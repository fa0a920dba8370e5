//! Direct delivery: a real name server (nsd) with a zone of ours, real Postfix as the hosts that it names, and an
//! HTTPS host for MTA-STS policies.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::next_hops::{
    Daemon, is_installed, is_root, mails, open_folder, postfix_with, prepared, present, queue, submit, wait,
};
use crate::server::{Server, free_address, output};

/// nsd, authoritative for `example`; everything else it refuses. Ends with its handle.
struct NameServer {
    dir: PathBuf,
    address: SocketAddr,
    daemon: Option<Daemon>,
}

impl NameServer {
    fn start(dir: &Path, zone: &str) -> Self {
        let dir = dir.join("nsd");
        fs::create_dir(&dir).expect("a folder");
        // An address that nobody connects from, and a port that is free there for both transports.
        let address = free_address();
        drop(UdpSocket::bind(address).expect("the same port"));
        let config = format!(
            "server:\n ip-address: {}@{}\n zonesdir: \"{dir}\"\n database: \"\"\n pidfile: \"{dir}/pid\"\n \
             logfile: \"{dir}/log\"\n username: \"\"\n chroot: \"\"\n xfrdfile: \"{dir}/xfrd\"\n zonelistfile: \"{dir}/list\"\n \
             xfrdir: \"{dir}\"\n server-count: 1\n\
             remote-control:\n control-enable: no\n\
             zone:\n name: \"example\"\n zonefile: \"zone\"\n",
            address.ip(),
            address.port(),
            dir = dir.display()
        );
        fs::write(dir.join("nsd.conf"), config).expect("its configuration");
        let mut server = Self { dir, address, daemon: None };
        server.serve(zone);
        server
    }

    /// With another zone from now on.
    fn serve(&mut self, zone: &str) {
        self.daemon = None;
        // Answers are good for this moment only, so that a change is seen at once.
        let head = "$ORIGIN example.\n$TTL 0\n@ SOA ns.example. root.example. 1 3600 600 86400 0\n@ NS ns.example.\n\
                    ns A 127.0.0.1\n";
        fs::write(self.dir.join("zone"), format!("{head}{zone}")).expect("the zone");
        self.daemon = Some(Daemon::start(Command::new("nsd").args(["-d", "-c"]).arg(self.dir.join("nsd.conf"))));
        let log = self.dir.join("log");
        wait("nsd", &|| fs::read_to_string(&log).unwrap_or_default(), || TcpStream::connect(self.address).ok());
    }
}

/// A policy host: says to each name what is told here. Ends with its handle.
struct PolicyHost {
    answers: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl PolicyHost {
    fn start(certificate: &Path, key: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(certificate).expect("PEM").collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("they match");
        let config = Arc::new(config);
        let (answers, asked) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicUsize::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let (its, count, end) = (answers.clone(), asked.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let connection = ServerConnection::new(config.clone()).expect("a connection");
                let _ = answer(StreamOwned::new(connection, stream), &its);
            }
        });
        Self { answers, asked, over, address, thread: Some(thread) }
    }

    fn say(&self, domain: &str, answer: &str) {
        self.answers.lock().expect("nobody panicked").insert(format!("mta-sts.{domain}"), answer.to_owned());
    }

    fn policy(&self, domain: &str, text: &str) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}", text.len());
        self.say(domain, &format!("{head}\r\n\r\n{text}"));
    }
}

impl Drop for PolicyHost {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(
    stream: StreamOwned<ServerConnection, TcpStream>,
    answers: &Mutex<HashMap<String, String>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut host, mut right) = (String::new(), String::new(), false);
    while stream.read_line(&mut line)? > 2 {
        right |= line == "GET /.well-known/mta-sts.txt HTTP/1.1\r\n";
        if let Some(name) = line.strip_prefix("Host: ") {
            host = name.trim().to_owned();
        }
        line.clear();
    }
    // Who speaks to a host by name says so in TLS, too (RFC 8461 §7.1).
    right &= stream.get_ref().conn.server_name() == Some(&host);
    let answer = answers.lock().expect("nobody panicked").get(&host).filter(|_| right).cloned();
    let answer = answer.unwrap_or_else(|| "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned());
    stream.get_mut().write_all(answer.as_bytes())?;
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush()
}

/// An authority in `ca.pem`, and a certificate of it for these names.
fn certificate(dir: &Path, names: &[&str]) -> (PathBuf, PathBuf) {
    let mut params = CertificateParams::new(vec!["ca.example".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.join("ca.pem"), ca.pem()).expect("a file");
    let (certificate, key_file) = (dir.join("leaf.pem"), dir.join("leaf-key.pem"));
    fs::write(&certificate, leaf.pem()).expect("a file");
    fs::write(&key_file, key.serialize_pem()).expect("a file");
    (certificate, key_file)
}

fn ready() -> bool {
    present("nsd and Postfix must be installed, and we must be root to start them", {
        is_root() && is_installed("nsd") && is_installed("postfix")
    })
}

/// A host for the world: it takes mail for these addresses, from anybody, into folders below `boxes`.
fn host(dir: &Path, certificate: &Path, key: &Path, boxes: &[(&str, &str)]) -> (Daemon, SocketAddr) {
    let domains: Vec<&str> = boxes.iter().filter_map(|(address, _)| Some(address.split_once('@')?.1)).collect();
    let maps: Vec<String> = boxes.iter().map(|(address, folder)| format!("{{ {address} = {folder}/ }}")).collect();
    let more = format!(
        "smtpd_tls_received_header = yes\nsmtpd_sasl_auth_enable = no\nsmtpd_relay_restrictions = reject_unauth_destination\n\
         smtpd_recipient_restrictions = reject_unlisted_recipient\nvirtual_mailbox_domains = {}\n\
         virtual_mailbox_maps = inline:{{ {} }}\n",
        domains.join(" "),
        maps.join(", ")
    );
    postfix_with(dir, certificate, key, &more)
}

/// Ends it and starts it again.
fn restart(server: &mut Server) {
    server.signal(Signal::TERM);
    assert!(server.wait().success(), "{}", server.log());
    server.run();
}

/// Why the mail for this address waits.
fn reason(server: &Server, to: &str) -> Option<String> {
    let list = queue(server, &["list", "--to", to]);
    let recipients = list["messages"].get(0)?["recipients"].as_array()?.clone();
    let its = recipients.iter().find(|one| one["address"] == to)?;
    its["reason"].as_str().filter(|text| !text.contains("waits for a free")).map(str::to_owned)
}

fn waits(server: &Server, to: &str, parts: &[&str]) {
    let told = wait(&format!("a reason for {to}"), &|| server.log(), || reason(server, to));
    assert!(parts.iter().all(|part| told.contains(part)), "{to}: {told}");
}

#[test]
fn mail_goes_where_the_dns_says_and_comes_back_when_it_says_nobody() {
    if !ready() {
        return;
    }
    let dir = open_folder();
    let (certificate, key) = certificate(dir.path(), &["relay.example"]);
    let (_postfix, relay) = host(dir.path(), &certificate, &key, &[("known@far.example", "known")]);
    let names = NameServer::start(
        dir.path(),
        // Nobody listens at 127.0.0.9. Postfix is reached by an alias, too.
        &format!(
            "far MX 10 dead.far\nfar MX 20 alive.far\ndead.far A 127.0.0.9\nalive.far A {}\n\
             null MX 0 .\nloop MX 5 {hostname}.\nloop MX 10 alive.far\n\
             inner MX 1 inner-host\ninner-host A 10.1.2.3\n",
            relay.ip(),
            hostname = crate::bare::HOSTNAME
        ),
    );
    let maildir = "kind = \"maildir\"\npath = \"mail/%d/%n\"";
    let mut server = prepared(
        maildir,
        &format!(
            "kind = \"mx\"\nport = {}\nresolver = [\"{}\"]\nallow_private = [\"127.0.0.0/8\"]\nmta_sts = false",
            relay.port(),
            names.address
        ),
    );
    // Started as root, delivery asks name servers as somebody without rights.
    let text = fs::read_to_string(server.path("portreeve.toml")).expect("the configuration");
    assert!(text.contains("user = \"root\"\n"), "{text}");
    server.write_config(&text.replace("user = \"root\"\n", "user = \"nobody\"\ngroup = \"nogroup\"\n"));
    fs::set_permissions(server.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    let mut chown = Command::new("chown");
    assert!(chown.args(["-R", "nobody:nogroup"]).arg(server.path("state")).status().is_ok_and(|done| done.success()));
    server.run();
    let delivery = server.processes()["delivery"][0];
    let status = fs::read_to_string(format!("/proc/{}/status", delivery.as_raw_nonzero())).expect("its status");
    assert!(status.lines().any(|line| line.starts_with("Uid:") && !line.contains("\t0")), "{status}");
    // A real client, logged in.
    let submission = server.submission();
    let mut swaks = Command::new("swaks");
    swaks.args(["--server", &submission.ip().to_string(), "--port", &submission.port().to_string()]);
    swaks.args(["--auth", "PLAIN", "--auth-user", "alice@demo.test", "--auth-password", "secret"]);
    swaks.args(["--from", "alice@demo.test", "--to", "known@far.example", "--header", "Subject: to far"]);
    let sent = output(&mut swaks);
    assert!(sent.0.success(), "{}\n{}", sent.1, server.log());
    let tell = || {
        let log = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        format!("{}\n--- postfix\n{}\n--- nsd\n{}", server.log(), log("postfix.log"), log("nsd/log"))
    };
    let boxes = dir.path().join("boxes");
    let mail = wait("the mail at Postfix", &tell, || mails(&boxes.join("known")).pop());
    assert!(mail.contains("Subject: to far\n") && mail.contains("(using TLSv1.3"), "{mail}");
    let alice = server.path("mail/demo.test/alice");
    for (to, status, part) in [
        ("unknown@far.example", "5.1.1", "Remote-MTA: dns; alive.far.example\n"),
        ("x@null.example", "5.1.10", "null MX"),
        ("x@gone.example", "5.1.2", "NXDOMAIN"),
        ("x@loop.example", "5.4.6", "would come back"),
        ("x@inner.example", "5.4.4", "10.1.2.3 is a private address"),
        ("x@[10.1.2.3]", "5.4.4", "10.1.2.3 is a private address"),
    ] {
        submit(&server, to, "", "Subject: to nobody\r\n\r\nhello\r\n");
        let wanted = format!("Final-Recipient: rfc822; {to}\n");
        let report = wait(to, &tell, || mails(&alice).into_iter().find(|mail| mail.contains(&wanted)));
        assert!(report.contains(&format!("Status: {status}\n")) && report.contains(part), "{to}: {report}");
    }
    // The name server answers for `example` only.
    submit(&server, "x@elsewhere.test", "", "Subject: later\r\n\r\nhello\r\n");
    waits(&server, "x@elsewhere.test", &["elsewhere.test: its MX records are not known now", "REFUSED"]);
    let shown: Value = queue(&server, &["list", "--to", "x@elsewhere.test"]);
    assert_eq!(shown["messages"][0]["recipients"][0]["route"], "mx", "{shown}");
}

#[test]
fn a_domain_with_an_mta_sts_policy_gets_its_mail_in_verified_tls_or_not_at_all() {
    if !ready() {
        return;
    }
    let dir = open_folder();
    let domains = ["good", "cert", "list", "test", "moved", "page"];
    let hosts: Vec<String> = domains.iter().map(|domain| format!("mta-sts.{domain}.example")).collect();
    let mut certified: Vec<&str> = hosts.iter().map(String::as_str).collect();
    certified.push("mx.example");
    let (certificate, key) = certificate(dir.path(), &certified);
    let addresses: Vec<(String, &str)> =
        domains.iter().chain(&["forged"]).map(|&domain| (format!("x@{domain}.example"), domain)).collect();
    let boxes: Vec<(&str, &str)> = addresses.iter().map(|(address, folder)| (address.as_str(), *folder)).collect();
    let (_postfix, relay) = host(dir.path(), &certificate, &key, &boxes);
    let policies = PolicyHost::start(&certificate, &key);
    // Postfix is known by two names, and its certificate has one of them. `forged` has a policy host without a
    // certificate.
    let zone = |id: &str| {
        let mut zone = format!("mx A {0}\nother A {0}\n", relay.ip());
        for domain in domains.iter().chain(&["forged"]) {
            let host = if *domain == "cert" { "other" } else { "mx" };
            zone += &format!(
                "{domain} MX 10 {host}\n_mta-sts.{domain} TXT \"v=STSv1; id={id};\"\nmta-sts.{domain} A 127.0.0.1\n"
            );
        }
        zone
    };
    let mut names = NameServer::start(dir.path(), &zone("1"));
    let policy = |mode: &str, mx: &str| format!("version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: 86400\r\n");
    policies.policy("good.example", &policy("enforce", "mx.example"));
    policies.policy("cert.example", &policy("enforce", "*.example"));
    policies.policy("list.example", &policy("enforce", "elsewhere.example"));
    policies.policy("test.example", &policy("testing", "elsewhere.example"));
    policies.policy("forged.example", &policy("enforce", "elsewhere.example"));
    policies.say("moved.example", "HTTP/1.1 302 Found\r\nLocation: https://mta-sts.good.example/\r\n\r\n");
    policies.say("page.example", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n");
    let mut server = prepared(
        "kind = \"maildir\"\npath = \"mail/%d/%n\"",
        &format!(
            "kind = \"mx\"\nport = {}\nresolver = [\"{}\"]\nallow_private = [\"127.0.0.0/8\"]\nmta_sts_port = {}\n\
             tls_ca = {:?}",
            relay.port(),
            names.address,
            policies.address.port(),
            dir.path().join("ca.pem")
        ),
    );
    server.run();
    let boxes = dir.path().join("boxes");
    let arrives = |server: &Server, domain: &str, subject: &str| {
        let tell = || server.log() + &fs::read_to_string(dir.path().join("postfix.log")).unwrap_or_default();
        let wanted = format!("Subject: {subject}\n");
        wait(domain, &tell, || mails(&boxes.join(domain)).into_iter().find(|mail| mail.contains(&wanted)))
    };
    let send = |server: &Server, domain: &str, subject: &str| {
        submit(server, &format!("x@{domain}.example"), "", &format!("Subject: {subject}\r\n\r\nhello\r\n"));
    };
    for domain in domains.iter().chain(&["forged"]) {
        send(&server, domain, "first");
    }
    // Mode `testing` asks for nothing, and a policy that cannot be had is none; the log says so.
    for domain in ["good", "test", "moved", "page", "forged"] {
        let mail = arrives(&server, domain, "first");
        assert!(mail.contains("(using TLSv1.3"), "{mail}");
    }
    let certificate = ["certificate", "the MTA-STS policy of cert.example (mode enforce, id 1) demands verified TLS"];
    waits(&server, "x@cert.example", &certificate);
    let list = ["mx.example is not among the hosts that the MTA-STS policy of list.example (mode enforce, id 1)"];
    waits(&server, "x@list.example", &list);
    for (domain, part) in [("moved", "redirects are not followed"), ("page", "text/html"), ("forged", "certificate")] {
        let host = format!("https://mta-sts.{domain}.example/.well-known/mta-sts.txt: ");
        let log = server.log();
        let line = log.lines().find(|line| line.contains(&host)).unwrap_or_else(|| panic!("{domain}: {log}"));
        assert!(line.contains(part) && line.contains("its mail is handed on without"), "{line}");
    }
    // A kept policy is used again, and goes on, also after a restart, when nothing of it can be had.
    let asked = policies.asked.load(Ordering::SeqCst);
    send(&server, "good", "second");
    arrives(&server, "good", "second");
    assert_eq!(policies.asked.load(Ordering::SeqCst), asked, "no question for what is kept");
    let gone: String =
        zone("1").lines().filter(|line| !line.contains("mta-sts")).map(|l| l.to_owned() + "\n").collect();
    names.serve(&gone);
    restart(&mut server);
    assert!(server.path("state/sts/list.example").is_file());
    send(&server, "list", "second");
    send(&server, "good", "third");
    arrives(&server, "good", "third");
    waits(&server, "x@list.example", &list);
    assert!(
        mails(&boxes.join("list")).is_empty() && mails(&boxes.join("cert")).is_empty(),
        "nothing without its policy"
    );
    // The domain mends its policy and says so with another id.
    policies.policy("list.example", &policy("enforce", "mx.example"));
    policies.policy("cert.example", "version: STSv1\nmode: none\nmax_age: 60\n");
    names.serve(&zone("2"));
    let tell = || server.log();
    wait("both", &tell, || {
        queue(&server, &["retry", "--all"]);
        (!mails(&boxes.join("list")).is_empty() && !mails(&boxes.join("cert")).is_empty()).then_some(())
    });
    assert!(fs::read_to_string(server.path("state/sts/list.example")).expect("it is kept").starts_with("id: 2\n"));
}
