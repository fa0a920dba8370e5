//! Whom we may load: this machine, and others only when told so twice.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

/// What permits other targets than loopback.
#[derive(Clone, Debug, Default)]
pub struct Permission {
    /// A flag was given.
    pub remote: bool,
    /// A file that names the hosts, one per line.
    pub file: Option<PathBuf>,
}

/// The address of a target that may be loaded.
pub(crate) fn resolve(target: &str, permission: &Permission) -> Result<SocketAddr, String> {
    if target.is_empty() {
        return Err("no target: --target HOST:PORT".to_owned());
    }
    let addresses: Vec<SocketAddr> =
        target.to_socket_addrs().map_err(|error| format!("{target}: {error}; a target is HOST:PORT"))?.collect();
    let Some(first) = addresses.first() else { return Err(format!("{target}: has no address")) };
    if addresses.iter().all(|address| address.ip().is_loopback()) {
        return Ok(*first);
    }
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host).trim_matches(['[', ']']);
    let how = format!(
        "{host}: not this machine. A load test of somebody's server needs their word; with it, say so twice: \
         --remote, and --permitted FILE with the line {host}"
    );
    let (true, Some(file)) = (permission.remote, &permission.file) else { return Err(how) };
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    if text.lines().any(|line| line.trim().eq_ignore_ascii_case(host)) {
        Ok(*first)
    } else {
        Err(format!("{}: does not name {host}. {how}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_loaded_only_when_told_twice() {
        let dir = std::env::temp_dir().join(format!("portreeve-load-permitted-{}", std::process::id()));
        std::fs::write(&dir, "# ours\n192.0.2.7\n").unwrap();
        let file = Some(dir.clone());
        for (target, remote, file, expect) in [
            ("192.0.2.7:25", false, None, "say so twice"),
            ("192.0.2.7:25", true, None, "say so twice"),
            ("192.0.2.7:25", false, file.clone(), "say so twice"),
            ("192.0.2.8:25", true, file.clone(), "does not name 192.0.2.8"),
            ("192.0.2.7:25", true, file, ""),
            ("127.0.0.1:25", false, None, ""),
        ] {
            let outcome = resolve(target, &Permission { remote, file });
            assert_eq!(outcome.as_ref().err().is_some_and(|error| error.contains(expect)), !expect.is_empty());
            assert_eq!(outcome.is_ok(), expect.is_empty(), "{target}: {outcome:?}");
        }
        std::fs::remove_file(dir).unwrap();
    }
}
