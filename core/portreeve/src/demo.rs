//! `portreeve demo`: the whole server on unprivileged ports of this machine, with two users.
//!
//! It is `serve` with a configuration that is written first: whoever wonders how something is done finds it
//! in `portreeve-demo/portreeve.toml`. Nothing leaves the machine: mail for other domains lands in a Maildir.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backend::edit::NewUser;
use backend::scheme::{Hash, NewScheme};

use crate::cli::exit;
use crate::config::{self, Config};
use crate::init::{certificate, program};
use crate::{certificates, files, serve, terminal, users};

/// Who can log in.
const USERS: [&str; 2] = ["alice@demo.test", "bob@demo.test"];
/// mx, submission, submissions.
const PORTS: [u16; 3] = [2525, 2587, 2465];

/// Runs it.
pub fn run(dir: &Path) -> ExitCode {
    match prepare(dir) {
        Ok((file, text)) => serve::demo(&file, text),
        Err(error) => terminal::fail(exit::FAILURE, error),
    }
}

/// Makes what is missing; returns the configuration and what is printed once the server answers.
fn prepare(dir: &Path) -> Result<(PathBuf, String), String> {
    let kept = dir.join("portreeve.toml").exists();
    files::private_folder(dir)?;
    files::private_folder(&dir.join("tls"))?;
    files::private_folder(&dir.join("mail"))?;
    let file = dir.join("portreeve.toml");
    // Two demos in one folder would share spool and users.
    if let (Some(config), _) = config::load(&file)
        && crate::control::client::ask(&config.admin.socket, "status").is_ok()
    {
        return Err(format!("{}: a demo is running there already; end it, or use --dir OTHER", dir.display()));
    }
    let mut ports = [0; 3];
    for index in 0..ports.len() {
        ports[index] = free_port(PORTS[index], &ports[..index])?;
    }
    let text = configuration(ports);
    files::write(&file, text.as_bytes(), 0o600)?;
    let (cert, key) = (dir.join("tls/cert.pem"), dir.join("tls/key.pem"));
    if !certificates::usable(&cert, &key) {
        certificate(&cert, &key, &["localhost", "mail.demo.test", "127.0.0.1"])?;
    }
    let (config, report) = config::load(&file);
    let config = config.ok_or_else(|| report.render(false))?;
    let passwords = people(&config, &dir.join("passwords"))?;
    let text = banner(dir, kept, ports, &passwords);
    Ok((file, text))
}

/// The usual port, or a free one when it is taken.
fn free_port(wanted: u16, taken: &[u16]) -> Result<u16, String> {
    let bind = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let port_of = |listener: TcpListener| listener.local_addr().map(|address| address.port());
    for candidate in [wanted, 0, 0, 0] {
        if let Ok(port) = bind(candidate).and_then(port_of)
            && !taken.contains(&port)
        {
            return Ok(port);
        }
    }
    Err(format!("no free port on 127.0.0.1 instead of {wanted}; does the loopback interface work?"))
}

/// Passwords of the two users: those of the last run, or new ones.
fn people(config: &Config, file: &Path) -> Result<[String; 2], String> {
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    let file_of_users = users::file_of(config)?;
    let existing: Vec<String> = if config.users.file.exists() { names(&file_of_users)? } else { Vec::new() };
    let mut passwords = [String::new(), String::new()];
    let mut lines = String::new();
    for (name, password) in USERS.iter().zip(&mut passwords) {
        let known = kept.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        *password = match known {
            Some(known) => known.to_owned(),
            None => new_password()?,
        };
        const SCHEMES: &[NewScheme] = &[NewScheme::Scram(Hash::Sha256), NewScheme::CramMd5];
        let told = |error: backend::edit::EditError| error.to_string();
        if !existing.iter().any(|existing| existing == name) {
            let new = NewUser { name, password: Some(password.as_bytes()), schemes: SCHEMES, ..NewUser::default() };
            file_of_users.add(&new).map_err(told)?;
        } else if known.is_none() {
            file_of_users.passwd(name, password.as_bytes(), SCHEMES).map_err(told)?;
        }
        let _ = writeln!(lines, "{name} {password}");
    }
    if lines != kept {
        files::write(file, lines.as_bytes(), 0o600)?;
    }
    Ok(passwords)
}

fn names(file: &backend::edit::UsersFile) -> Result<Vec<String>, String> {
    let listed = file.list().map_err(|error| error.to_string())?;
    Ok(listed.into_iter().map(|user| user.name).collect())
}

/// 16 letters and digits that nobody mixes up, 80 bits; a shell leaves them alone.
fn new_password() -> Result<String, String> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut octets = [0; 16];
    files::random(&mut octets)?;
    Ok(octets.iter().map(|octet| char::from(LETTERS[usize::from(octet % 32)])).collect())
}

fn configuration([mx, submission, submissions]: [u16; 3]) -> String {
    let user = if rustix::process::geteuid().is_root() {
        "\n# A demo of root stays root: it writes into this folder. A real server becomes the user `portreeve`.\n\
         user = \"root\"\n"
    } else {
        ""
    };
    let listener = |role: &str, port: u16| {
        format!(
            "\n[[listener]]\n\
             role = \"{role}\"\n\
             bind = [\"127.0.0.1:{port}\"]\n\
             domains = [\"demo.test\"]\n\
             mechanisms = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\"]\n\
             # No limits and no delays for this machine, so that one can play.\n\
             exempt_nets = [\"127.0.0.0/8\", \"::1\"]\n"
        )
    };
    format!(
        "# Written by `portreeve demo` at each start.\n\
         \n\
         hostname = \"mail.demo.test\"\n\
         drain = \"2s\"\n\
         \n\
         [process]\n\
         state_dir = \"state\"\n\
         {user}\
         \n\
         [[tls.certificate]]\n\
         cert = \"tls/cert.pem\"\n\
         key = \"tls/key.pem\"\n\
         \n\
         [plugins]\n\
         load = [\"standard\", \"legacy\"]\n\
         \n\
         [spool]\n\
         segment = \"4MiB\"\n\
         min_free = \"16MiB\"\n\
         min_free_percent = 0\n\
         {}{}{}\
         \n\
         [[route]]\n\
         domain = \"demo.test\"\n\
         kind = \"maildir\"\n\
         path = \"mail/%d/%n\"\n\
         \n\
         # Mail for all other domains is captured here: nothing leaves this machine.\n\
         [[route]]\n\
         domain = \"*\"\n\
         kind = \"maildir\"\n\
         path = \"mail/outbound\"\n\
         \n\
         [log]\n\
         format = \"human\"\n",
        listener("mx", mx),
        listener("submission", submission),
        listener("submissions", submissions),
    )
}

/// A path as one would type it.
fn typed(path: &Path) -> String {
    let shown = path.display().to_string();
    if path.is_absolute() || shown.starts_with('.') { shown } else { format!("./{shown}") }
}

fn banner(dir: &Path, kept: bool, ports: [u16; 3], passwords: &[String; 2]) -> String {
    let [mx, submission, submissions] = ports;
    let [alice, bob] = passwords;
    let (dir, program) = (typed(dir), program());
    let mut to = String::new();
    let _ =
        writeln!(to, "  mx          smtp://127.0.0.1:{mx:<6} takes mail for demo.test, relays for the authenticated");
    let _ = writeln!(to, "  submission  smtp://127.0.0.1:{submission:<6} STARTTLS, then AUTH");
    let _ = writeln!(to, "  submissions smtps://127.0.0.1:{submissions:<5} TLS, then AUTH");
    for (usual, taken) in PORTS.iter().zip(ports).filter(|&(&usual, taken)| usual != taken) {
        let _ = writeln!(to, "              (port {usual} is in use by another program: {taken} instead)");
    }
    let _ = writeln!(to, "  users       {} / {alice}   {} / {bob}", USERS[0], USERS[1]);
    let _ = writeln!(to, "  mail lands  {dir}/mail/demo.test/alice/new/   for other domains: {dir}/mail/outbound/new/");
    let _ = writeln!(to, "  status      {program} status --config {dir}/portreeve.toml");
    let was = if kept { "was there already and is used again" } else { "is kept between runs" };
    let _ = writeln!(to, "  folder      {dir} {was}, with passwords and mail; to remove it: rm -r {dir}");
    let _ = writeln!(to, "try:");
    let message = |from: &str, to: &str, subject: &str| {
        format!("printf 'From: <{from}>\\r\\nTo: <{to}>\\r\\nSubject: {subject}\\r\\n\\r\\nIt works.\\r\\n'")
    };
    let _ = writeln!(
        to,
        "  {} | curl -sS --ssl-reqd --cacert {dir}/tls/cert.pem --url smtp://localhost:{submission} \
         --user '{}:{alice}' --mail-from {} --mail-rcpt {} -T -",
        message(USERS[0], USERS[1], "by curl, STARTTLS"),
        USERS[0],
        USERS[0],
        USERS[1],
    );
    let _ = writeln!(
        to,
        "  {} | curl -sS --cacert {dir}/tls/cert.pem --url smtps://localhost:{submissions} \
         --user '{}:{bob}' --mail-from {} --mail-rcpt far@away.example -T -",
        message(USERS[1], "far@away.example", "by curl, TLS"),
        USERS[1],
        USERS[1],
    );
    let _ = writeln!(
        to,
        "  swaks --server 127.0.0.1:{submission} --tls --auth CRAM-MD5 --auth-user {} --auth-password {alice} \
         --from {} --to {} --hide-all && sleep 1 && ls {dir}/mail/demo.test/bob/new",
        USERS[0], USERS[0], USERS[1],
    );
    let _ = writeln!(to, "  swaks --server 127.0.0.1:{mx} --from stranger@elsewhere.example --to {}", USERS[0]);
    let _ = writeln!(to, "Ctrl-C ends it.\n");
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_with_its_passwords_and_busy_ports_are_replaced() {
        let dir = std::env::temp_dir().join(format!("portreeve-demo-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (file, first) = prepare(&dir).unwrap();
        let shown = dir.display();
        assert!(first.contains(&format!("to remove it: rm -r {shown}")), "{first}");
        assert!(first.contains("is kept between runs"), "{first}");
        let passwords = std::fs::read_to_string(dir.join("passwords")).unwrap();
        assert_eq!(passwords.lines().count(), 2);
        for line in passwords.lines() {
            let (name, password) = line.split_once(' ').unwrap();
            assert!(password.len() == 16 && first.contains(&format!("{name} / {password}")), "{first}");
        }
        let (_, second) = prepare(&dir).unwrap();
        assert!(second.contains("is used again"), "{second}");
        assert_eq!(std::fs::read_to_string(dir.join("passwords")).unwrap(), passwords);

        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        assert_ne!(free_port(port, &[]).unwrap(), port);

        let (config, report) = config::load(&file);
        assert!(report.findings.is_empty(), "{}", report.render(false));
        let config = config.unwrap();
        assert!(config.listeners.iter().all(|listener| !listener.exempt_nets.is_empty()));
        let listed = users::file_of(&config).unwrap().list().unwrap();
        assert_eq!(listed.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), USERS);
        assert!(listed.iter().all(|user| user.schemes == ["SCRAM-SHA-256", "CRAM-MD5"]), "{listed:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
