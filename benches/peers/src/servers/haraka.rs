//! Haraka with its own outbound queue; a plugin of ten lines says that no next hop is there now.

use std::process::Command;

use portreeve_load::ground::output;

use super::{Place, Prepared};

pub fn prepare(place: &Place<'_>) -> Result<Prepared, String> {
    let haraka = place.packages.haraka()?;
    let write = |name: &str, text: &str| place.write(name, text);
    // Without its own defaults it does not even greet; `haraka -i` copies them, too.
    let defaults = std::fs::read_to_string(haraka.join("config/connection.ini")).map_err(|error| error.to_string())?;
    write("config/connection.ini", &defaults)?;
    write("config/smtp.ini", &format!("listen=127.0.0.1:{}\nnodes=0\n", place.port))?;
    write("config/me", "mail.bench.test\n")?;
    write("config/log.ini", "[main]\nlevel=warn\n")?;
    write("config/plugins", "tls\nauth/flat_file\nbench\n")?;
    write(
        "config/auth_flat_file.ini",
        &format!("[core]\nmethods=PLAIN,LOGIN\n\n[users]\n{}={}\n", place.user, place.password),
    )?;
    let (cert, key) = (place.cert.display(), place.key.display());
    write("config/tls.ini", &format!("key={key}\ncert={cert}\n"))?;
    for (from, to) in [(&place.cert, "config/tls_cert.pem"), (&place.key, "config/tls_key.pem")] {
        std::fs::copy(from, place.file(to)).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    write("config/outbound.ini", "temp_fail_intervals=1h*3\n")?;
    write(
        "plugins/bench.js",
        "'use strict';\n\
         exports.hook_rcpt = (next, connection) => { connection.relaying = true; next(OK) };\n\
         // No next hop now: it stays in the queue.\n\
         exports.hook_get_mx = (next) => next(DENYSOFT);\n",
    )?;
    std::fs::create_dir_all(place.file("queue")).map_err(|error| error.to_string())?;
    let version =
        output(Command::new("node").arg("-p").arg(format!("require('{}/package.json').version", haraka.display())))?;
    let mut command = Command::new("node");
    command.arg(haraka.join("bin/haraka")).arg("-c").arg(&place.folder);
    Ok(Prepared {
        name: format!("Haraka {}", version.trim()),
        command,
        ports: [place.port; 2],
        durable: "the queue file (fsync)",
        then: "tried once, stays in the queue",
        password: "a comparison in clear",
        once_up: None,
    })
}
