//! Whom the processes run as, and what a process may do.

use link::ids::Ids;

use crate::config::Config;
use crate::init::CREATE_USER;

/// Whom children become; `None` when nothing is changed (not started as root, or `user = "root"`).
pub fn ids(config: &Config) -> Result<Option<Ids>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let user = config.process.user.as_deref().unwrap_or("portreeve");
    let ids = Ids::lookup(user, config.process.group.as_deref()).map_err(|error| {
        // The cause without link's remedy: ours names the command and the option.
        let cause = error.split(';').next().unwrap_or(&error);
        format!("{cause}; create it (`{CREATE_USER}`), or write another process.user (\"root\" keeps all rights)")
    })?;
    Ok((ids.uid != 0).then_some(ids))
}

/// Whether we run as root and will stay so.
pub fn stays_root(config: &Config) -> bool {
    rustix::process::geteuid().is_root() && matches!(ids(config), Ok(None))
}

/// The lowest port that we may bind.
pub fn first_port() -> u16 {
    const CAP_NET_BIND_SERVICE: u32 = 10;
    let capable = std::fs::read_to_string("/proc/self/status").ok().is_some_and(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|set| set >> CAP_NET_BIND_SERVICE & 1 == 1)
    });
    if capable {
        return 1;
    }
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}
