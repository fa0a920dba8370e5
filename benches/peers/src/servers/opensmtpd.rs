//! OpenSMTPD with hand-on paused.

use std::path::Path;
use std::process::Command;

use portreeve_load::ground::output;

use super::{Place, Prepared, needs_root};
use crate::cage::in_folders;

pub fn prepare(place: &Place<'_>) -> Result<Prepared, String> {
    needs_root()?;
    let smtpd = place.packages.debian("opensmtpd", "usr/sbin/smtpd")?;
    if !smtpd.starts_with("/usr") {
        // The program that pauses it must be of the queue's group; unpacked it is not.
        let control = smtpd.with_file_name("smtpctl");
        output(Command::new("chgrp").arg("64501").arg(&control))?;
        output(Command::new("chmod").arg("2555").arg(&control))?;
    }
    // Users, spool, run folder and its chroot are built in: it gets others in a mount namespace.
    let [users, groups] = place.users(&["opensmtpd", "opensmtpq"])?;
    for folder in ["spool/smtpd", "lib/opensmtpd/empty", "run"] {
        place.make(folder, 0o711, None)?;
    }
    let (spool, lib, run) = (place.file("spool"), place.file("lib"), place.file("run"));
    let hash = output(Command::new("openssl").args(["passwd", "-6", place.password]))?;
    let creds = place.write("creds", &format!("{} {}\n", place.user, hash.trim()))?;
    place.write("run/mailname", "mail.bench.test\n")?;
    let config = place.write(
        "smtpd.conf",
        &format!(
            "pki bench cert \"{}\"\npki bench key \"{}\"\ntable creds file:{}\n\
             listen on 127.0.0.1 port {} tls pki bench auth-optional <creds> hostname mail.bench.test\n\
             action \"on\" relay host \"smtp://127.0.0.1:9\"\nmatch from any for any action \"on\"\n",
            place.cert.display(),
            place.key.display(),
            creds.display(),
            place.port,
        ),
    )?;
    // It looks every client's name up and cannot be told not to: here nobody waits for an answer.
    let resolver = place.write("resolv.conf", "nameserver 127.0.0.1\nlookup file\n")?;
    let binds: [(&Path, &str); 6] = [
        (&users, "/etc/passwd"),
        (&groups, "/etc/group"),
        (&resolver, "/etc/resolv.conf"),
        (&spool, "/var/spool"),
        (&lib, "/var/lib"),
        (&run, "/run"),
    ];
    let mut command = in_folders(&binds, &smtpd);
    command.args(["-d", "-f"]).arg(config);
    // It says its version together with how it is used.
    let help = output(Command::new("sh").args(["-c", "\"$0\" -h 2>&1; true"]).arg(&smtpd)).unwrap_or_default();
    let version = help.lines().find_map(|line| line.strip_prefix("version: OpenSMTPD ")).unwrap_or("?").to_owned();
    Ok(Prepared {
        name: format!("OpenSMTPD {version}"),
        command,
        ports: [place.port; 2],
        durable: "message file, envelope file",
        then: "stays in the queue, hand-on paused",
        password: "SHA-512 crypt",
        once_up: Some(pause),
    })
}

/// Nothing is handed on: only accepting is measured.
fn pause(pid: u32, smtpd: &Path) -> Result<(), String> {
    let control = smtpd.with_file_name("smtpctl");
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &pid.to_string()]).arg(control).args(["pause", "mta"]);
    output(&mut command).map(drop)
}
