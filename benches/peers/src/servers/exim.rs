//! Exim, which only queues (`queue_only`): what would come then is a process per message.

use std::path::Path;
use std::process::Command;

use portreeve_load::ground::output;

use super::{Place, Prepared, needs_root};
use crate::cage::in_folders;

pub fn prepare(place: &Place<'_>) -> Result<Prepared, String> {
    needs_root()?;
    let exim = place.packages.debian("exim4-daemon-light", "usr/sbin/exim4")?;
    // The user is built in.
    let [users, groups] = place.users(&["Debian-exim"])?;
    place.make("spool", 0o750, Some("64500:64500"))?;
    place.make("logs", 0o750, Some("64500:64500"))?;
    let path = place.folder.display();
    let config = place.write(
        "exim.conf",
        &format!(
            "spool_directory = {path}/spool\nlog_file_path = {path}/logs/%slog\npid_file_path = {path}/exim.pid\n\
             primary_hostname = mail.bench.test\nkeep_environment =\nlocal_interfaces = 127.0.0.1\n\
             daemon_smtp_ports = {port}\ntls_advertise_hosts = *\ntls_certificate = {path}/cert.pem\n\
             tls_privatekey = {path}/key.pem\nauth_advertise_hosts = *\nqueue_only\nsplit_spool_directory\n\
             smtp_accept_max = 0\nsmtp_accept_queue = 0\nsmtp_accept_queue_per_connection = 0\nsmtp_connect_backlog = 1024\n\
             host_lookup =\nrfc1413_query_timeout = 0s\nnever_users =\nacl_smtp_rcpt = rcpt\nacl_smtp_data = data\n\
             begin acl\nrcpt:\n  accept domains = bench.test\n  accept authenticated = *\n  deny message = no relay\n\
             data:\n  accept\n\
             begin routers\nnowhere:\n  driver = redirect\n  allow_fail\n  data = :blackhole:\n\
             begin transports\nbegin retry\n* * F,1h,15m\nbegin authenticators\nplain:\n  driver = plaintext\n  public_name = PLAIN\n\
             \x20 server_prompts = :\n  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}\n\
             \x20 server_set_id = $auth2\n",
            port = place.port,
            user = place.user,
            password = place.password,
        ),
    )?;
    // It reads them as its own user.
    for (from, to) in [(&place.cert, "cert.pem"), (&place.key, "key.pem")] {
        let to = place.file(to);
        std::fs::copy(from, &to).map_err(|error| format!("{}: {error}", to.display()))?;
        output(Command::new("chown").arg("64500:64500").arg(&to))?;
    }
    let binds: [(&Path, &str); 2] = [(&users, "/etc/passwd"), (&groups, "/etc/group")];
    let version = output(in_folders(&binds, &exim).arg("-C").arg(&config).arg("-bV"))?;
    let version = version.split_whitespace().nth(2).unwrap_or("?").to_owned();
    let mut command = in_folders(&binds, &exim);
    command.arg("-C").arg(config).args(["-bdf"]);
    Ok(Prepared {
        name: format!("Exim {version}"),
        command,
        ports: [place.port; 2],
        durable: "body file and header file (fsync each)",
        then: "stays in the queue",
        password: "a comparison in clear",
        once_up: None,
    })
}
