//! Listening sockets and the lock that says whose they are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, Protocol, Socket, Type};

use crate::plan::Listener;

/// A bound address.
#[derive(Debug)]
pub struct Bound {
    /// The listener's name.
    pub name: String,
    /// What was asked for.
    pub asked: SocketAddr,
    /// What it is; differs when port 0 was asked for.
    pub address: SocketAddr,
    pub(crate) sockets: Vec<TcpListener>,
}

/// How long children of one who was killed may hold what we need.
pub const LAST_ONES_MAX: Duration = Duration::from_secs(2);
/// Between looks whether they have gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// All listening sockets. Their number per address is fixed: a socket that leaves a SO_REUSEPORT group takes
/// the connections queued on it to the grave.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) per_address: usize,
    backlog: i32,
    pub(crate) bound: Vec<Bound>,
}

impl Sockets {
    pub(crate) fn new(per_address: usize, backlog: i32) -> Sockets {
        Sockets { per_address: per_address.max(1), backlog, bound: Vec::new() }
    }

    /// Binds what is not bound yet. On error nothing has changed.
    pub(crate) fn bind(&mut self, listeners: &[Listener]) -> Result<(), String> {
        let before = self.bound.len();
        for listener in listeners {
            if self.find(listener).is_some() {
                continue;
            }
            match self.bind_one(listener) {
                Ok(bound) => self.bound.push(bound),
                Err(error) => {
                    self.bound.truncate(before);
                    return Err(explain(listener, &error));
                }
            }
        }
        Ok(())
    }

    /// The same at a start. After somebody was killed, addresses are waited for: its children follow it, and have
    /// the sockets until then.
    pub(crate) fn bind_first(&mut self, listeners: &[Listener], after_a_kill: bool) -> Result<(), String> {
        let until = Instant::now() + if after_a_kill { LAST_ONES_MAX } else { Duration::ZERO };
        loop {
            match self.bind(listeners) {
                Err(_) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                bound => return bound,
            }
        }
    }

    /// Closes what no listener wants any more. Workers that still have those sockets empty their queues.
    pub(crate) fn keep(&mut self, listeners: &[Listener]) {
        self.bound.retain(|bound| listeners.iter().any(|listener| bound.serves(listener)));
    }

    pub(crate) fn find(&self, listener: &Listener) -> Option<&Bound> {
        self.bound.iter().find(|bound| bound.serves(listener))
    }

    fn bind_one(&self, listener: &Listener) -> io::Result<Bound> {
        // SO_REUSEPORT lets a second program of the same user take half of the connections without an
        // error. Without it the kernel says whether anybody listens there.
        if listener.address.port() != 0 {
            self.socket(listener.address, false)?;
        }
        let mut sockets: Vec<TcpListener> = Vec::with_capacity(self.per_address);
        let mut address = listener.address;
        for _ in 0..self.per_address {
            let socket: TcpListener = self.socket(address, true)?.into();
            address = socket.local_addr()?;
            sockets.push(socket);
        }
        Ok(Bound { name: listener.name.clone(), asked: listener.address, address, sockets })
    }

    fn socket(&self, address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Else connections that ended a moment ago would keep the port for a minute.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Both pass to every accepted connection.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        if reuse_port {
            socket.listen(self.backlog)?;
        }
        Ok(socket)
    }
}

impl Bound {
    fn serves(&self, listener: &Listener) -> bool {
        self.asked == listener.address && (self.asked.port() != 0 || self.name == listener.name)
    }
}

fn explain(listener: &Listener, error: &io::Error) -> String {
    let (name, address, port) = (&listener.name, listener.address, listener.address.port());
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program, or another portreeve, listens there; `ss -ltnp 'sport = :{port}'` names it; \
             stop it or give the listener another address"
        ),
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE; \
             start as root (children drop their rights) or use ports such as 2525 and 2587"
            .to_owned(),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; correct it, or use 0.0.0.0 or [::]".to_owned()
        }
        _ => "see the cause above".to_owned(),
    };
    format!("listener {name}: {address}: {error}: {remedy}")
}

/// The lock in the state directory: one supervisor at a time. Held until dropped, or until the process ends
/// in whatever way.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// The last one who had it was killed: its children may have its sockets for a moment yet.
    pub after_a_kill: bool,
}

impl Drop for Lock {
    /// Says that this was an orderly end.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

impl Lock {
    /// Whether the last one who had it was killed, and nobody has it now: its children may have its sockets for a moment
    /// yet, [`LAST_ONES_MAX`] at the most.
    pub fn is_left_behind(state_directory: &Path) -> bool {
        let left = File::open(state_directory.join("portreeve.lock"));
        left.is_ok_and(|file| {
            file.metadata().is_ok_and(|file| file.len() > 0)
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        })
    }

    /// Takes the lock or says who has it.
    pub fn take(state_directory: &Path) -> Result<Lock, String> {
        let path: PathBuf = state_directory.join("portreeve.lock");
        let explain = |error: io::Error| format!("{}: {error}", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o755).create(state_directory).map_err(explain)?;
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let mut file = open.map_err(explain)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.take(20).read_to_string(&mut pid);
                return Err(format!(
                    "{}: another portreeve (process {}) already serves from this directory; stop it, or choose \
                     another state directory",
                    path.display(),
                    pid.trim().parse::<u32>().map_or_else(|_| "unknown".to_owned(), |pid| pid.to_string()),
                ));
            }
            Err(error) => return Err(explain(error.into())),
        }
        let after_a_kill = file.metadata().is_ok_and(|file| file.len() > 0);
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(explain)?;
        Ok(Lock { file, after_a_kill })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(taken: &TcpListener) -> [Listener; 1] {
        [Listener { name: "one".to_owned(), address: taken.local_addr().unwrap() }]
    }

    #[test]
    fn after_a_kill_an_address_is_waited_for_and_otherwise_not() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = addresses(&taken);
        assert!(Sockets::new(1, 8).bind_first(&listeners, false).unwrap_err().contains("listens there"));
        let waits = std::thread::spawn(move || Sockets::new(1, 8).bind_first(&listeners, true));
        let until = Instant::now() + 5 * LOOK_EVERY;
        while Instant::now() < until {
            assert!(!waits.is_finished(), "it waits as long as the address is taken");
            std::thread::yield_now();
        }
        drop(taken);
        waits.join().unwrap().unwrap();
        // Whoever stays is named.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Sockets::new(1, 8).bind_first(&addresses(&taken), true).unwrap_err().contains("listens there"));
    }

    #[test]
    fn the_lock_tells_a_kill_from_an_orderly_end() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        assert!(!lock.after_a_kill);
        assert!(Lock::take(folder.path()).unwrap_err().contains(&std::process::id().to_string()));
        drop(lock);
        assert!(!Lock::take(folder.path()).unwrap().after_a_kill);
        assert!(!Lock::is_left_behind(folder.path()));
        // What is left of somebody who could not tidy up.
        fs::write(folder.path().join("portreeve.lock"), "12345\n").unwrap();
        assert!(Lock::is_left_behind(folder.path()));
        let lock = Lock::take(folder.path()).unwrap();
        assert!(lock.after_a_kill && !Lock::is_left_behind(folder.path()), "somebody serves");
    }
}
