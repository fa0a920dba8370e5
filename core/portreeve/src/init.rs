//! `portreeve init`: a short commented configuration that works on this host, with its folders and a
//! self-signed certificate to begin with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::exit;
use crate::config::system_hostname;
use crate::{files, terminal};

/// What was asked for.
pub struct Wish {
    /// Where to.
    pub dir: PathBuf,
    /// The host's name in mail.
    pub hostname: Option<String>,
    /// The domain to take mail for.
    pub domain: Option<String>,
}

/// Writes it, unless something is there already.
pub fn run(wish: &Wish) -> ExitCode {
    match write(wish) {
        Ok(text) => terminal::print(&text),
        Err(error) => terminal::fail(exit::FAILURE, error),
    }
}

/// The ports of a root's and of anybody else's server: mx, submission, submissions.
fn ports(privileged: bool) -> [u16; 3] {
    if privileged { [25, 587, 465] } else { [2525, 2587, 2465] }
}

fn write(wish: &Wish) -> Result<String, String> {
    let hostname = wish.hostname.clone().unwrap_or_else(system_hostname);
    let domain = wish.domain.clone().unwrap_or_else(|| match hostname.split_once('.') {
        Some((_, rest)) if rest.contains('.') => rest.to_owned(),
        _ => hostname.clone(),
    });
    let file = wish.dir.join("portreeve.toml");
    let (cert, key) = (wish.dir.join("tls/cert.pem"), wish.dir.join("tls/key.pem"));
    for path in [&file, &cert, &key] {
        if path.exists() {
            return Err(format!("{}: is there already; nothing was written", path.display()));
        }
    }
    let root = rustix::process::geteuid().is_root();
    let text = configuration(&hostname, &domain, root);
    // What we write ourselves must be right, whatever was given as a name.
    let (_, report) = crate::config::parse(&file, &text);
    if report.has_errors() {
        return Err(format!("with these names the file would be wrong:\n{}", report.render(terminal::color())));
    }
    // No secret lies in this folder itself, and the server's user must be able to pass it.
    std::fs::create_dir_all(&wish.dir).map_err(|error| format!("{}: {error}", wish.dir.display()))?;
    files::private_folder(&wish.dir.join("tls"))?;
    certificate(&cert, &key, &[&hostname])?;
    files::write(&file, text.as_bytes(), 0o644)?;

    let mut to = String::new();
    let (program, shown) = (program(), file.display());
    let _ = writeln!(to, "wrote {shown}");
    let _ = writeln!(to, "wrote {} and its key, self-signed: replace them by real ones", cert.display());
    let _ = writeln!(to, "next:");
    if root && link::ids::Ids::lookup("portreeve", None).is_err() {
        let _ = writeln!(to, "  {CREATE_USER}");
    }
    let _ = writeln!(to, "  {program} user add --config {shown} you@{domain}");
    let _ = writeln!(to, "  {program} check --config {shown}");
    let _ = writeln!(to, "  {program} serve --config {shown}");
    Ok(to)
}

/// How a system gets the user that children run as.
pub const CREATE_USER: &str = "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin portreeve";

/// How we were started, so that printed commands work when pasted.
pub fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "portreeve".into())
}

/// Makes a certificate for `names` that nobody trusts yet.
pub fn certificate(cert: &Path, key: &Path, names: &[&str]) -> Result<(), String> {
    let made = tls::self_signed(names, 365).map_err(|error| error.to_string())?;
    files::write(key, made.key_pem.as_bytes(), 0o600)?;
    files::write(cert, made.certificate_pem.as_bytes(), 0o644)
}

fn configuration(hostname: &str, domain: &str, root: bool) -> String {
    let [mx, submission, submissions] = ports(root);
    let why_ports = if root {
        ""
    } else {
        "# Ports below 1024 need root (or CAP_NET_BIND_SERVICE); these are the usual ones with 2000 added.\n"
    };
    format!(
        "# Portreeve on {hostname}. `portreeve config reference` explains every option.\n\
         \n\
         hostname = \"{hostname}\"\n\
         \n\
         [process]\n\
         # Sockets, users, spool and secrets; made with mode 0700.\n\
         state_dir = \"state\"\n\
         \n\
         # Self-signed to begin with: put real files here. They are watched; no restart is needed.\n\
         [[tls.certificate]]\n\
         cert = \"tls/cert.pem\"\n\
         key = \"tls/key.pem\"\n\
         \n\
         {why_ports}\
         # Others deliver mail for our domain here; users who log in may write anywhere.\n\
         [[listener]]\n\
         role = \"mx\"\n\
         bind = [\"0.0.0.0:{mx}\", \"[::]:{mx}\"]\n\
         domains = [\"{domain}\"]\n\
         \n\
         # Users submit mail here: STARTTLS, then AUTH.\n\
         [[listener]]\n\
         role = \"submission\"\n\
         bind = [\"0.0.0.0:{submission}\", \"[::]:{submission}\"]\n\
         domains = [\"{domain}\"]\n\
         \n\
         # The same with TLS from the first octet.\n\
         [[listener]]\n\
         role = \"submissions\"\n\
         bind = [\"0.0.0.0:{submissions}\", \"[::]:{submissions}\"]\n\
         domains = [\"{domain}\"]\n\
         \n\
         # Mail for our users: one Maildir each.\n\
         [[route]]\n\
         domain = \"{domain}\"\n\
         kind = \"maildir\"\n\
         path = \"mail/%d/%n\"\n\
         \n\
         # Mail for other domains waits in one Maildir. To send it to the hosts that they name, write instead\n\
         # kind = \"mx\"; through a relay: kind = \"smtp\", to = [\"relay.example.net:587\"], tls = \"required\",\n\
         # user = \"…\" and password_file = \"…\".\n\
         [[route]]\n\
         domain = \"*\"\n\
         kind = \"maildir\"\n\
         path = \"mail/outbound\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_passes_check() {
        let dir = std::env::temp_dir().join(format!("portreeve-init-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let wish = |domain: &str| Wish {
            dir: dir.clone(),
            hostname: Some("mail.init.test".into()),
            domain: Some(domain.into()),
        };
        assert!(write(&wish("a\"b")).unwrap_err().contains("would be wrong"));
        assert!(!dir.exists());
        let said = write(&wish("init.test")).unwrap();
        assert!(said.contains("user add --config") && said.contains("you@init.test"), "{said}");
        assert!(write(&wish("init.test")).unwrap_err().contains("is there already; nothing was written"));

        let file = dir.join("portreeve.toml");
        for root in [false, true] {
            let text = configuration("mail.init.test", "init.test", root);
            let (config, report) = crate::config::parse(&file, &text);
            assert!(report.findings.is_empty(), "{}", report.render(false));
            let ports: Vec<u16> = config.unwrap().listeners.iter().map(|l| l.bind[0].port()).collect();
            assert_eq!(ports, ports_of(root));
        }
        // On this host only what it lacks may stand against it: the user, the libraries beside a test, ports.
        let (_, report) = crate::check::all(&file, crate::check::Occasion::Check);
        for finding in report.findings {
            let lacking = ["process.user", "plugins.load", "listener.bind"].contains(&finding.key.as_str());
            let warning = finding.severity == crate::report::Severity::Warning;
            assert!(lacking || warning, "{finding:?}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn ports_of(root: bool) -> Vec<u16> {
        ports(root).to_vec()
    }
}
