//! A network namespace of one's own, for runs with very many connections: nobody else's ports and addresses are
//! touched.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::ground::output;

/// Becomes this program again, with `--inside`, in a namespace of its own. Returns only when that fails.
pub fn enter() -> String {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return error.to_string(),
    };
    let error = Command::new("unshare").arg("--net").arg(own).args(std::env::args().skip(1)).arg("--inside").exec();
    format!("unshare: {error}; this needs root and util-linux")
}

/// Sets it up, from inside: a loopback device, more ports for each source address, and room for those who wait to be
/// accepted.
pub fn set_up() -> Result<(), String> {
    output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for (name, value) in [("ipv4/ip_local_port_range", "1024 65000"), ("core/somaxconn", "65535")] {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, value).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}
