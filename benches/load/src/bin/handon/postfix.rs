//! Postfix from the system's package, in a folder of its own: loopback, a port that was free, mail thrown away.
//!
//! It takes mail without login or TLS, which is in its favour; its processes stay alive between messages, as on a
//! busy server.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve_load::ground::{Running, free_ports, output};
use portreeve_load::process;

/// It runs; stopped when dropped.
pub struct Postfix {
    /// Where it listens.
    pub address: SocketAddr,
    dir: PathBuf,
    master: u32,
    /// The program that waits for its end.
    running: Option<Running>,
}

/// Services that a relay needs: name, program, private, wake-up, most processes.
const SERVICES: [(&str, &str, &str, &str, &str); 11] = [
    ("cleanup", "cleanup", "n", "-", "0"),
    ("qmgr", "qmgr", "n", "300", "1"),
    ("rewrite", "trivial-rewrite", "-", "-", "-"),
    ("bounce", "bounce", "-", "-", "0"),
    ("defer", "bounce", "-", "-", "0"),
    ("trace", "bounce", "-", "-", "0"),
    ("proxymap", "proxymap", "-", "-", "-"),
    ("discard", "discard", "-", "-", "-"),
    ("error", "error", "-", "-", "-"),
    ("retry", "error", "-", "-", "-"),
    ("anvil", "anvil", "-", "-", "1"),
];

impl Postfix {
    /// Starts it below `parent`; returns when it greets.
    pub fn start(parent: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "postfix: its master process needs root; run this as root, or with --without postfix".to_owned()
            );
        }
        if output(Command::new("/usr/sbin/postconf").arg("mail_version")).is_err() {
            return Err(
                "postfix: not installed (`apt-get install postfix`); or leave it out with --without postfix".to_owned()
            );
        }
        let said = |error: std::io::Error| format!("postfix: {error}");
        let dir = parent.join("postfix");
        // Its processes become other users, and must be able to walk here.
        std::fs::set_permissions(parent, PermissionsExt::from_mode(0o755)).map_err(said)?;
        for folder in ["", "etc", "queue", "data"] {
            std::fs::create_dir(dir.join(folder)).map_err(said)?;
        }
        output(Command::new("chown").arg("postfix").arg(dir.join("data")))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports()?[0]));
        let path = dir.display();
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {path}/queue\ndata_directory = {path}/data\n\
             maillog_file = {path}/log\nmaillog_file_prefixes = {path}\nmyhostname = mail.bench.test\nmydestination =\n\
             mynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n\
             default_transport = discard:\nrelay_transport = discard:\nsmtpd_peername_lookup = no\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\nsmtpd_client_connection_count_limit = 0\n\
             smtpd_client_connection_rate_limit = 0\nmax_idle = 1h\nmax_use = 1000000\n\
             default_process_limit = 100\nin_flow_delay = 0\n"
        );
        std::fs::write(dir.join("etc/main.cf"), main).map_err(said)?;
        let mut master = format!("{address} inet n - n - - smtpd\n");
        for (name, program, private, wake, most) in SERVICES {
            master += &format!("{name} unix {private} - n {wake} {most} {program}\n");
        }
        master += "postlog unix-dgram n - n - 1 postlogd\n";
        std::fs::write(dir.join("etc/master.cf"), master).map_err(said)?;
        let log = std::fs::File::create(dir.join("stderr")).map_err(said)?;
        let mut start = Command::new("/usr/sbin/postfix");
        start.arg("-c").arg(dir.join("etc")).arg("start-fg").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut postfix = Self { address, dir, master: 0, running: Some(Running::start(&mut start)?) };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > until {
                return Err(format!("postfix: does not greet within 30 s\n{}", postfix.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = std::fs::read_to_string(postfix.dir.join("queue/pid/master.pid")).map_err(said)?;
        postfix.master = pid.trim().parse().map_err(|_| format!("postfix: {pid:?} is no process id"))?;
        Ok(postfix)
    }

    /// Processor time of all of it so far: of those that live, and of those that have ended.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.master)).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        // Fields 16 and 17 of proc(5), counted behind the name: of children that were waited for.
        let ticks: u64 = fields.iter().skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let second = rustix::param::clock_ticks_per_second().max(1);
        process::usage(self.master).cpu + Duration::from_micros(ticks * 1_000_000 / second)
    }

    /// Whether nothing is in its queue.
    pub fn is_empty(&self) -> bool {
        ["incoming", "active", "maildrop", "deferred"].iter().all(|name| is_empty(&self.dir.join("queue").join(name)))
    }

    /// Messages that it has handed on.
    pub fn sent(&self) -> u64 {
        self.log().matches("status=sent").count() as u64
    }

    /// What it says.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("log") + &read("stderr")
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().all(|entry| {
        let path = entry.path();
        path.is_dir() && is_empty(&path)
    })
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = output(Command::new("/usr/sbin/postfix").arg("-c").arg(self.dir.join("etc")).arg("stop"));
        drop(self.running.take());
    }
}
