//! Postfix with Cyrus SASL and a user database of its own; `discard` behind the queue.

use std::process::Command;

use portreeve_load::ground::output;

use super::{Place, Prepared, needs_root};

pub fn prepare(place: &Place<'_>) -> Result<Prepared, String> {
    needs_root()?;
    let postfix = place.packages.debian("postfix", "usr/sbin/postfix")?;
    if !postfix.starts_with("/usr") {
        return Err("must be installed (tests/setup does it): its users and its daemon folder are built in".to_owned());
    }
    let path = place.folder.display();
    place.make("queue", 0o755, None)?;
    place.make("data", 0o700, Some("postfix"))?;
    let sasl = "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\n";
    place.write("sasl/smtpd.conf", &format!("{sasl}sasldb_path: {path}/sasldb\n"))?;
    let (name, realm) = place.user.split_once('@').unwrap_or((place.user, ""));
    output(Command::new("sh").args([
        "-c",
        "echo \"$1\" | saslpasswd2 -p -c -f \"$2/sasldb\" -u \"$3\" \"$4\" && chgrp postfix \"$2/sasldb\" && chmod 640 \"$2/sasldb\"",
        "sh",
        place.password,
        &path.to_string(),
        realm,
        name,
    ]))
    .map_err(|error| format!("saslpasswd2 (package sasl2-bin): {error}"))?;
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {path}/queue\ndata_directory = {path}/data\n\
         maillog_file = {path}/log\nmaillog_file_prefixes = {path}\nmyhostname = mail.bench.test\nmydestination =\n\
         relay_domains = bench.test\nrelay_recipient_maps =\nmynetworks =\ninet_interfaces = 127.0.0.1\n\
         inet_protocols = ipv4\nalias_maps =\nalias_database =\nrelay_transport = discard:\ndefault_transport = discard:\n\
         smtpd_tls_cert_file = {cert}\nsmtpd_tls_key_file = {key}\nsmtpd_tls_security_level = may\n\
         smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = cyrus\nsmtpd_sasl_path = smtpd\n\
         cyrus_sasl_config_path = {path}/sasl\nsmtpd_client_connection_count_limit = 0\n\
         smtpd_client_connection_rate_limit = 0\nsmtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination\n",
        cert = place.cert.display(),
        key = place.key.display(),
    );
    place.write("main.cf", &main)?;
    let mut master = format!("127.0.0.1:{} inet n - n - - smtpd\n", place.port);
    for (name, program, private, wake, most) in [
        ("cleanup", "cleanup", "n", "-", "0"),
        ("qmgr", "qmgr", "n", "300", "1"),
        ("tlsmgr", "tlsmgr", "-", "1000?", "1"),
        ("rewrite", "trivial-rewrite", "-", "-", "-"),
        ("bounce", "bounce", "-", "-", "0"),
        ("defer", "bounce", "-", "-", "0"),
        ("trace", "bounce", "-", "-", "0"),
        ("proxymap", "proxymap", "-", "-", "-"),
        ("discard", "discard", "-", "-", "-"),
        ("error", "error", "-", "-", "-"),
        ("retry", "error", "-", "-", "-"),
        ("anvil", "anvil", "-", "-", "1"),
    ] {
        master += &format!("{name} unix {private} - n {wake} {most} {program}\n");
    }
    master += "postlog unix-dgram n - n - 1 postlogd\n";
    place.write("master.cf", &master)?;
    let version = output(Command::new("postconf").args(["-hd", "mail_version"]))?;
    let mut command = Command::new(postfix);
    command.arg("-c").arg(&place.folder).arg("start-fg");
    Ok(Prepared {
        name: format!("Postfix {}", version.trim()),
        command,
        ports: [place.port; 2],
        durable: "the queue file (cleanup, fsync)",
        then: "the queue manager hands it to discard",
        password: "Cyrus sasldb, in clear",
        once_up: None,
    })
}
