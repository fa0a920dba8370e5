//! Listening sockets and the lock that says whose they are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    _file: File,
}

impl Lock {
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
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(explain)?;
        Ok(Lock { _file: file })
    }
}
