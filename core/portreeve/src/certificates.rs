//! Certificates on their way from files to workers.
//!
//! Workers may not read keys: whoever may (the supervisor's start, `check`, a reload) reads, checks and
//! encodes the sets of all listeners, and workers decode them and swap. The code is the same everywhere.

use std::io::Read as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use link::codec::{Put, Reader};
use tls::{Certificate, CertificateSet, Pem};
use zeroize::Zeroizing;

use crate::config::{ClientCert, Config, Listener};
use crate::report::Report;

/// Largest PEM file, octets.
const FILE_OCTETS_MAX: u64 = 1 << 20;

/// The certificates of all listeners, by position; `None` where there is no TLS.
pub type Sets = Vec<Option<CertificateSet>>;

/// How dates are judged: an expired certificate is better than none when the server starts, but no reason
/// to throw a good one away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dates {
    /// Warn.
    Lenient,
    /// Refuse.
    Strict,
}

/// Reads and checks all files. What is wrong goes to `report`; the sets are there when nothing is.
pub fn read(config: &Config, dates: Dates, report: &mut Report) -> Option<Sets> {
    let now = unix_seconds();
    let before = report.findings.len();
    let mut files = Vec::new();
    for certificate in &config.certificates {
        let written = &certificate.written;
        let (cert_span, key_span) = (written.span("tls.certificate[].cert"), written.span("tls.certificate[].key"));
        let chain = pem(&certificate.cert).map_err(|cause| {
            let remedy = "put the PEM file there, or correct the path";
            report.error(Some(cert_span.clone()), "tls.certificate.cert", cause, remedy);
        });
        let key = pem(&certificate.key).map_err(|cause| {
            let remedy =
                "put the PEM file there, or correct the path; it must be readable for whoever starts the server";
            report.error(Some(key_span.clone()), "tls.certificate.key", cause, remedy);
        });
        let (Ok(chain), Ok(key)) = (chain, key) else { continue };
        warn_if_readable(&certificate.key, key_span, report);
        match parse(&certificate.cert, &chain, &certificate.key, &key) {
            Err(error) => {
                let (cause, remedy) = halves(&error);
                report.error(Some(cert_span), "tls.certificate.cert", cause, remedy);
            }
            Ok(parsed) => {
                if let Err(error) = parsed.check_dates(now) {
                    let (cause, remedy) = halves(&error.to_string());
                    match dates {
                        Dates::Strict => report.error(Some(cert_span), "tls.certificate.cert", cause, remedy),
                        Dates::Lenient => report.warning(Some(cert_span), "tls.certificate.cert", cause, remedy),
                    }
                }
                files.push((chain, key));
            }
        }
    }
    if files.len() != config.certificates.len()
        || report.findings[before..].iter().any(|finding| finding.severity == crate::report::Severity::Error)
    {
        return None;
    }
    let mut sets = Sets::new();
    for listener in &config.listeners {
        let mut chosen = Vec::new();
        for &index in &listener.certificates {
            let (certificate, (chain, key)) = (&config.certificates[index], &files[index]);
            chosen.push(parse(&certificate.cert, chain, &certificate.key, key).ok()?);
        }
        if listener.tls == smtp::listener::Tls::Off || chosen.is_empty() {
            sets.push(None);
            continue;
        }
        warn_if_unnamed(config, listener, &chosen, report);
        sets.push(CertificateSet::new(chosen).ok());
    }
    Some(sets)
}

/// Reads and checks the files of `client_ca`, by position of the listener; workers cannot read them.
pub fn client_authorities(config: &Config, report: &mut Report) -> Option<Vec<Option<String>>> {
    let mut bundles = Vec::new();
    let mut failed = false;
    for listener in &config.listeners {
        let asked = listener.client_cert != ClientCert::Off;
        let Some(path) = listener.client_ca.as_deref().filter(|_| asked) else {
            bundles.push(None);
            continue;
        };
        let span = || Some(listener.written.span("listener[].client_ca"));
        let name = path.display().to_string();
        match pem(path) {
            Err(cause) => {
                failed = true;
                let remedy = "put the PEM file there, or correct the path";
                report.error(span(), "listener.client_ca", cause, remedy);
            }
            Ok(octets) => match tls::check_authorities(Pem { file: &name, octets: &octets }) {
                Ok(()) => bundles.push(Some(String::from_utf8_lossy(&octets).into_owned())),
                Err(error) => {
                    failed = true;
                    let (cause, remedy) = halves(&error.to_string());
                    report.error(span(), "listener.client_ca", cause, remedy);
                }
            },
        }
    }
    (!failed).then_some(bundles)
}

fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Whether two files are a certificate and its key, valid now.
pub fn usable(cert: &Path, key: &Path) -> bool {
    let parsed = pem(cert).and_then(|chain| parse(cert, &chain, key, &pem(key)?));
    parsed.is_ok_and(|parsed| parsed.check_dates(unix_seconds()).is_ok())
}

fn parse(cert: &Path, chain: &[u8], key_path: &Path, key: &[u8]) -> Result<Certificate, String> {
    let (cert, key_path) = (cert.display().to_string(), key_path.display().to_string());
    Certificate::from_pem(Pem { file: &cert, octets: chain }, Pem { file: &key_path, octets: key })
        .map_err(|error| error.to_string())
}

fn pem(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let told = |error: std::io::Error| format!("{}: {}", path.display(), plain(&error));
    let mut octets = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(told)?;
    file.take(FILE_OCTETS_MAX + 1).read_to_end(&mut octets).map_err(told)?;
    if octets.len() as u64 > FILE_OCTETS_MAX {
        return Err(format!("{}: is larger than 1 MiB, which no certificate is", path.display()));
    }
    Ok(octets)
}

/// The system's words without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// An error of the kind `file: cause; remedy` in two.
pub fn halves(text: &str) -> (String, String) {
    match text.rsplit_once("; ") {
        Some((cause, remedy)) => (cause.to_owned(), remedy.to_owned()),
        None => (text.to_owned(), "look at the file".to_owned()),
    }
}

fn warn_if_readable(key: &Path, span: std::ops::Range<usize>, report: &mut Report) {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata(key).is_ok_and(|meta| meta.mode() & 0o007 != 0) {
        let cause = format!("{}: everybody on this host may read the private key", key.display());
        report.warning(Some(span), "tls.certificate.key", cause, format!("chmod o= {}", key.display()));
    }
}

fn warn_if_unnamed(config: &Config, listener: &Listener, chosen: &[Certificate], report: &mut Report) {
    let hostname = config.hostname_of(listener);
    let parent = hostname.split_once('.').map(|(_, parent)| format!("*.{parent}")).unwrap_or_default();
    let named = chosen.iter().any(|c| c.names().iter().any(|name| *name == hostname || *name == parent));
    if !named {
        report.warning(
            Some(listener.written.header.clone()),
            "listener.certificates",
            format!("no certificate of the listener {:?} names {hostname}", listener.name),
            "clients that check names will refuse it: get one that does, or correct `hostname`",
        );
    }
}

/// The sets as octets for a sealed file. They hold private keys.
pub fn encode(sets: &Sets) -> Zeroizing<Vec<u8>> {
    let encoded: Vec<_> = sets.iter().map(|set| set.as_ref().map(CertificateSet::encode)).collect();
    let room = encoded.iter().flatten().map(|octets| octets.len() + 8).sum::<usize>() + 8 * sets.len() + 8;
    let mut to = Zeroizing::new(Vec::with_capacity(room));
    to.put_u32(encoded.len() as u32);
    for octets in &encoded {
        to.put_bytes(octets.as_ref().map(|octets| octets.as_slice()).unwrap_or_default());
    }
    to
}

/// What [`encode`] wrote.
pub fn decode(octets: &[u8]) -> Result<Sets, String> {
    let mut from = Reader::new(octets);
    let damaged = |bad: link::BadPacket| format!("certificates from the supervisor: {bad}");
    let mut sets = Sets::new();
    for _ in 0..from.u32().map_err(damaged)? {
        let set = from.bytes().map_err(damaged)?;
        sets.push(match set {
            [] => None,
            set => Some(CertificateSet::decode(set).map_err(|error| error.to_string())?),
        });
    }
    from.end().map_err(damaged)?;
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Severity;

    fn setup(name: &str) -> (std::path::PathBuf, Config) {
        let dir = std::env::temp_dir().join(format!("portreeve-certificates-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        crate::files::private_folder(&dir).unwrap();
        for host in ["a", "b"] {
            let (cert, key) = (dir.join(format!("{host}.pem")), dir.join(format!("{host}.key")));
            crate::init::certificate(&cert, &key, &[&format!("{host}.test")]).unwrap();
        }
        let text = "hostname = \"a.test\"\n\
                    [[tls.certificate]]\ncert = \"a.pem\"\nkey = \"a.key\"\n\
                    [[tls.certificate]]\ncert = \"b.pem\"\nkey = \"b.key\"\n\
                    [[route]]\nkind = \"maildir\"\npath = \"m\"\n\
                    [[listener]]\nrole = \"mx\"\nbind = [\"127.0.0.1:25\"]\ndomains = [\"a.test\"]\n\
                    [[listener]]\nrole = \"submission\"\nbind = [\"127.0.0.1:587\"]\ncertificates = [\"b\"]\nhostname = \"b.test\"\n\
                    [[listener]]\nname = \"plain\"\nrole = \"mx\"\nbind = [\"127.0.0.1:26\"]\ntls = \"off\"\nauth = \"off\"\ndomains = [\"a.test\"]\n";
        let (config, report) = crate::config::parse(&dir.join("portreeve.toml"), text);
        assert!(report.findings.is_empty(), "{}", report.render(false));
        (dir, config.unwrap())
    }

    fn findings(config: &Config, dates: Dates) -> (Option<Sets>, Vec<String>) {
        let mut report = Report::new(config.file.clone(), config.text.clone());
        let sets = read(config, dates, &mut report);
        let rendered = report.findings.iter().map(|f| {
            let line = f.span.as_ref().map_or(0, |span| report.position(span.start).0);
            let word = if f.severity == Severity::Error { "error" } else { "warning" };
            format!("{line} {word} {}; {}", f.cause, f.remedy)
        });
        (sets, rendered.collect())
    }

    #[test]
    fn each_listener_gets_its_set_and_octets_bring_it_back() {
        let (dir, config) = setup("sets");
        let (sets, told) = findings(&config, Dates::Strict);
        assert_eq!(told, Vec::<String>::new());
        let names = |sets: &Sets| -> Vec<Vec<String>> {
            sets.iter()
                .map(|set| set.iter().flat_map(|set| set.certificates()).flat_map(|c| c.names().to_vec()).collect())
                .collect()
        };
        let sets = sets.unwrap();
        assert_eq!(names(&sets), [vec!["a.test", "b.test"], vec!["b.test"], vec![]]);
        let octets = encode(&sets);
        assert_eq!(names(&decode(&octets).unwrap()), names(&sets));
        for cut in 0..octets.len() {
            assert!(decode(&octets[..cut]).is_err(), "{cut}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_can_be_wrong_with_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, config) = setup("wrong");
        let key = dir.join("a.key");
        let good = std::fs::read(&key).unwrap();
        std::fs::copy(dir.join("b.key"), &key).unwrap();
        let (sets, told) = findings(&config, Dates::Strict);
        assert!(sets.is_none() && told[0].starts_with("3 error") && told[0].contains("a.key"), "{told:?}");
        std::fs::write(&key, &good[..good.len() / 2]).unwrap();
        assert!(findings(&config, Dates::Strict).0.is_none());
        std::fs::remove_file(&key).unwrap();
        let (sets, told) = findings(&config, Dates::Strict);
        assert!(sets.is_none() && told[0].starts_with("4 error") && told[0].contains("No such file"), "{told:?}");
        std::fs::write(&key, &good).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o604)).unwrap();
        let (sets, told) = findings(&config, Dates::Strict);
        assert!(sets.is_some() && told[0].starts_with("4 warning") && told[0].contains("chmod o= "), "{told:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
