//! Servers of other makes that log in here as clients: Postfix' smtp(8) over Cyrus SASL with each mechanism, and
//! Dovecot's submission proxy.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use crate::next_hops::{Daemon, hand_over, is_installed, is_root, open_folder, present, wait};
use crate::server::{Options, Server, free_address};

const MECHANISMS: [&str; 7] =
    ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5", "CRAM-MD5", "PLAIN", "LOGIN"];

/// With alice's password in clear, which serves each of them.
fn portreeve() -> Server {
    let top = "users.allow_cleartext = true".to_owned();
    let mut server = Server::prepare(Options { mechanisms: MECHANISMS.to_vec(), top, ..Options::default() });
    // Postfix was told an address and takes that for the name of the host.
    let hosts = format!("\n[mechanism.DIGEST-MD5]\nhosts = [\"{}\"]\n", server.ip);
    server.write_config(&(server.config() + &hosts));
    fs::write(server.path("state/auth/users"), "alice@demo.test:{PLAIN}secret\nbob@demo.test:\n").expect("users");
    server.run();
    server
}

fn tag(mechanism: &str) -> String {
    format!("bob+{}@demo.test", mechanism.to_lowercase())
}

#[test]
fn postfix_logs_in_with_each_mechanism_that_cyrus_sasl_has() {
    let plugins = ["x86_64", "aarch64"].map(|machine| format!("/usr/lib/{machine}-linux-gnu/sasl2/libscram.so"));
    if !present("Postfix, libsasl2-modules and root", {
        is_root() && is_installed("postfix") && plugins.iter().any(|file| std::path::Path::new(file).exists())
    }) {
        return;
    }
    let server = portreeve();
    let dir = open_folder();
    let (path, address) = (dir.path().display(), free_address());
    for folder in ["postfix", "queue", "data"] {
        fs::create_dir(dir.path().join(folder)).expect("a folder");
    }
    let data = dir.path().join("data");
    assert!(Command::new("chown").arg("postfix").arg(data).status().is_ok_and(|done| done.success()));
    let next = server.submission();
    let routes: Vec<String> = MECHANISMS
        .iter()
        .enumerate()
        .map(|(n, mechanism)| format!("{{ {} = with{n}:[{}]:{} }}", tag(mechanism), next.ip(), next.port()))
        .collect();
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {path}/queue\ndata_directory = {path}/data\n\
         maillog_file = {path}/postfix.log\nmaillog_file_prefixes = {path}\nmyhostname = relay.example\n\
         mydestination =\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nalias_maps =\n\
         alias_database =\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
         smtp_tls_security_level = encrypt\nsmtp_sasl_auth_enable = yes\nsmtp_sasl_security_options = noanonymous\n\
         smtp_sasl_tls_security_options = noanonymous\nsmtp_sasl_password_maps = static:alice@demo.test:secret\n\
         transport_maps = inline:{{ {} }}\n",
        routes.join(", ")
    );
    fs::write(dir.path().join("postfix/main.cf"), main).expect("main.cf");
    let mut master = format!("{address} inet n - n - - smtpd\n");
    for (name, program, private, wake, most) in [
        ("cleanup", "cleanup", "n", "-", "0"),
        ("qmgr", "qmgr", "n", "300", "1"),
        ("rewrite", "trivial-rewrite", "-", "-", "-"),
        ("bounce", "bounce", "-", "-", "0"),
        ("defer", "bounce", "-", "-", "0"),
        ("trace", "bounce", "-", "-", "0"),
        ("proxymap", "proxymap", "-", "-", "-"),
        ("error", "error", "-", "-", "-"),
        ("retry", "error", "-", "-", "-"),
        ("scache", "scache", "-", "-", "1"),
        ("anvil", "anvil", "-", "-", "1"),
        ("tlsmgr", "tlsmgr", "-", "1000?", "1"),
    ] {
        master += &format!("{name} unix {private} - n {wake} {most} {program}\n");
    }
    for (n, mechanism) in MECHANISMS.iter().enumerate() {
        master += &format!("with{n} unix - - n - - smtp\n  -o smtp_sasl_mechanism_filter={mechanism}\n");
    }
    master += "postlog unix-dgram n - n - 1 postlogd\n";
    fs::write(dir.path().join("postfix/master.cf"), master).expect("master.cf");
    let mut daemon = Daemon::start(Command::new("postfix").arg("-c").arg(dir.path().join("postfix")).arg("start-fg"));
    daemon.1 = Some(dir.path().join("queue/pid/master.pid"));
    let log = dir.path().join("postfix.log");
    let tell = || format!("{}\n--- postfix\n{}", server.log(), fs::read_to_string(&log).unwrap_or_default());
    wait("postfix", &tell, || TcpStream::connect(address).ok());
    for mechanism in MECHANISMS {
        let text = format!("Subject: for {}\r\n\r\nhello", tag(mechanism));
        hand_over(address, None, &tag(mechanism), "", &text, &tell);
    }
    for mechanism in MECHANISMS {
        let login = format!("\"mechanism\":\"{mechanism}\",\"authcid\":\"alice@demo.test\",\"code\":235");
        wait(mechanism, &tell, || server.log().contains(&login).then_some(()));
    }
    assert_eq!(server.mail("bob", MECHANISMS.len()).len(), MECHANISMS.len(), "{}", tell());
}

#[test]
fn dovecots_submission_proxy_logs_in() {
    let there = std::path::Path::new("/usr/lib/dovecot/submission").exists();
    if !present("dovecot-submissiond and root", is_root() && is_installed("dovecot") && there) {
        return;
    }
    let server = portreeve();
    let dir = open_folder();
    let (path, address) = (dir.path().display(), free_address());
    let next = server.submission();
    fs::write(dir.path().join("passwd"), "alice@demo.test:{PLAIN}own-secret:65534:65534::::\n").expect("users");
    let config = format!(
        "base_dir = {path}/run\nstate_dir = {path}/run\nlog_path = {path}/dovecot.log\nprotocols = submission\nssl = no\n\
         listen = {}\nmail_location = maildir:{path}/boxes/%n\nfirst_valid_uid = 1\nauth_mechanisms = plain\n\
         disable_plaintext_auth = no\nhostname = proxy.example\n\
         passdb {{\n driver = passwd-file\n args = {path}/passwd\n}}\n\
         userdb {{\n driver = passwd-file\n args = {path}/passwd\n}}\n\
         service submission-login {{\n inet_listener submission {{\n port = {}\n }}\n}}\n\
         submission_relay_host = {}\nsubmission_relay_port = {}\nsubmission_relay_ssl = starttls\n\
         submission_relay_ssl_verify = no\nsubmission_relay_user = alice@demo.test\nsubmission_relay_password = secret\n",
        address.ip(),
        address.port(),
        next.ip(),
        next.port()
    );
    fs::write(dir.path().join("dovecot.conf"), config).expect("its configuration");
    let _dovecot = Daemon::start(Command::new("dovecot").args(["-F", "-c"]).arg(dir.path().join("dovecot.conf")));
    let log = dir.path().join("dovecot.log");
    let tell = || format!("{}\n--- dovecot\n{}", server.log(), fs::read_to_string(&log).unwrap_or_default());
    wait("dovecot", &tell, || TcpStream::connect(address).ok());
    let login = Some("\0alice@demo.test\0own-secret");
    hand_over(address, login, "bob@demo.test", "", "Subject: for bob\r\n\r\nhello", &tell);
    assert_eq!(server.mail("bob", 1).len(), 1, "{}", tell());
    wait("the login", &tell, || server.log().contains("\"authcid\":\"alice@demo.test\",\"code\":235").then_some(()));
}
