//! Each server with a configuration of its own, in a folder of its own, on loopback, as its documentation says that
//! a small one is made: one port, STARTTLS with the same certificate, one user for AUTH PLAIN, mail for
//! `bench.test` from anybody, and as little as it permits behind the queue.

mod aiosmtpd;
mod exim;
mod haraka;
mod opensmtpd;
mod postfix;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_load::ground::{Ground, output};

use crate::packages::Packages;

/// Everybody that can be measured, in the order of the table.
pub const NAMES: [&str; 6] = ["portreeve", "postfix", "exim", "opensmtpd", "haraka", "aiosmtpd"];

/// Gets its process and its program.
pub type OnceUp = fn(u32, &Path) -> Result<(), String>;

/// A server that is ready to be started.
pub struct Prepared {
    /// With its version.
    pub name: String,
    /// Stays in the foreground.
    pub command: Command,
    /// Where mail goes, and logins.
    pub ports: [u16; 2],
    /// What its documentation or source says is on disk before the 250 that takes a message.
    pub durable: &'static str,
    /// What becomes of the message then.
    pub then: &'static str,
    /// What a login is checked against.
    pub password: &'static str,
    /// To be done once it answers.
    pub once_up: Option<OnceUp>,
}

/// What all have in common.
pub struct Place<'a> {
    /// Folder of this server.
    pub folder: PathBuf,
    pub port: u16,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub user: &'static str,
    pub password: &'static str,
    pub packages: &'a Packages,
}

impl Place<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.file(name);
        let told = |error: std::io::Error| format!("{}: {error}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(told)?;
        }
        fs::write(&path, text).map_err(told)?;
        Ok(path)
    }

    fn make(&self, name: &str, mode: u32, owner: Option<&str>) -> Result<PathBuf, String> {
        let path = self.file(name);
        let told = |error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir_all(&path).map_err(told)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(told)?;
        if let Some(owner) = owner {
            output(Command::new("chown").arg(owner).arg(&path))?;
        }
        Ok(path)
    }

    /// The machine's users and groups and some more, for a program whose users are built in.
    fn users(&self, names: &[&str]) -> Result<[PathBuf; 2], String> {
        let (mut users, mut groups) = (String::new(), String::new());
        for (n, name) in names.iter().enumerate() {
            let id = 64_500 + n;
            users += &format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
            groups += &format!("{name}:x:{id}:\n");
        }
        let known = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        Ok([
            self.write("passwd", &(known("/etc/passwd")? + &users))?,
            self.write("group", &(known("/etc/group")? + &groups))?,
        ])
    }
}

fn needs_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root to be started".to_owned()) }
}

/// Makes everything that `name` needs.
pub fn prepare(name: &str, place: &Place<'_>, ground: &Ground) -> Result<Prepared, String> {
    match name {
        "portreeve" => portreeve(ground),
        "postfix" => postfix::prepare(place),
        "exim" => exim::prepare(place),
        "opensmtpd" => opensmtpd::prepare(place),
        "haraka" => haraka::prepare(place),
        "aiosmtpd" => aiosmtpd::prepare(place),
        other => Err(format!("{other}: known are {}", NAMES.join(", "))),
    }
}

fn portreeve(ground: &Ground) -> Result<Prepared, String> {
    let mut command = Command::new(ground.bin.join("portreeve"));
    command.args(["serve", "--config"]).arg(ground.configuration());
    Ok(Prepared {
        name: ground.build.split(';').next().unwrap_or("portreeve").trim().replace("portreeve", "Portreeve"),
        command,
        ports: [ground.ports[0], ground.ports[1]],
        durable: "message and envelope, appended to a segment; one fdatasync for all that wait",
        then: "delivery reads and discards it",
        password: "a salted key, verified passwords cached in memory",
        once_up: None,
    })
}
