//! What a child does to begin, and how it hears from the supervisor afterwards.
//!
//! ```no_run
//! // At the very start of main:
//! if let Some(role) = supervisor::child::requested(std::env::args_os()) {
//!     let startup = supervisor::child::start(role.unwrap(), "build 1").unwrap();
//!     // … build what the role needs from `startup`, then:
//!     startup.supervisor.ready().unwrap();
//! }
//! ```

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use link::ids::Ids;
use link::message::{Message, messages};
use link::{BadPacket, LINK_VERSION, Link, Received, Role, sealed, sys};
use rustix::event::PollFlags;
use telemetry::{Board, Slot};

use crate::process::runs_library;

/// The internal subcommand.
pub const ROLE_ARGUMENT: &str = "__role";

/// What this process was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// Its role.
    pub role: Role,
    /// Whom it is to become before it reads anything.
    pub ids: Option<Ids>,
}

/// Looks for the internal subcommand on the command line.
pub fn requested(arguments: impl IntoIterator<Item = OsString>) -> Option<Result<Requested, String>> {
    let mut arguments = arguments.into_iter().skip_while(|argument| argument != ROLE_ARGUMENT).skip(1);
    let role = arguments.next()?;
    let ids = arguments.next();
    let role = role.to_str().and_then(Role::from_name).filter(|role| *role != Role::Supervisor);
    let Some(role) = role else { return Some(Err(format!("{ROLE_ARGUMENT}: unknown role"))) };
    Some(match ids {
        None => Ok(Requested { role, ids: None }),
        Some(ids) => match ids.to_str().and_then(parse_ids) {
            Some(ids) => Ok(Requested { role, ids: Some(ids) }),
            None => Err(format!("{ROLE_ARGUMENT}: expected uid:gid:group,group")),
        },
    })
}

pub(crate) fn ids_argument(ids: &Ids) -> String {
    let mut text = format!("{}:{}:", ids.uid, ids.gid);
    for (i, group) in ids.groups.iter().enumerate() {
        let _ = write!(text, "{}{group}", if i == 0 { "" } else { "," });
    }
    text
}

fn parse_ids(text: &str) -> Option<Ids> {
    let mut parts = text.split(':');
    let (uid, gid, groups) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    let groups = groups.split(',').filter(|group| !group.is_empty()).map(|group| group.parse().ok());
    Some(Ids { uid, gid, groups: groups.collect::<Option<_>>()? })
}

/// Everything that the supervisor sent before Start.
pub struct Startup {
    /// This process' role.
    pub role: Role,
    /// The resolved configuration, JSON.
    pub configuration: Vec<u8>,
    /// Everybody's numbers.
    pub board: Board,
    /// Our own.
    pub slot: Slot,
    /// The table of limits (a worker only) and our row in it: [`limits::Table::attach`].
    pub limits: Option<(OwnedFd, usize)>,
    /// Secrets that the nodes of a fleet share; empty when there are none. A backend-host gets the settings of its
    /// back ends instead.
    pub secrets: Vec<u8>,
    /// Vetted mechanism libraries (a worker, a mechanism-host).
    pub plugins: Vec<Plugin>,
    /// Certificates and keys, in the program's own form (a worker only).
    pub certificates: Vec<u8>,
    /// Session-ticket keys, newest first (a worker only).
    pub ticket_keys: Vec<u8>,
    /// Listening sockets (a worker only).
    pub listeners: Vec<Listener>,
    /// Links to other processes that were there before us.
    pub peers: Vec<Peer>,
    /// Links to mechanism-hosts (a worker), to backend-hosts (the directory).
    pub runners: Vec<Runner>,
    /// Mechanisms in quarantine (a worker only).
    pub quarantine: Vec<String>,
    /// The way back.
    pub supervisor: Supervisor,
}

/// A link to another process.
#[derive(Debug)]
pub struct Peer {
    /// What the other process is.
    pub role: Role,
    /// Which shard of the worker it is for; 0 where there is one for all.
    pub shard: usize,
    /// The other process' number.
    pub instance: u32,
    /// Our end.
    pub link: Link,
}

/// A link to a mechanism-host.
#[derive(Debug)]
pub struct Runner {
    /// The library's id.
    pub id: String,
    /// Which of our shards it is for.
    pub shard: usize,
    /// Which edition of the library.
    pub generation: u32,
    /// Our end.
    pub link: Link,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Which listener of the configuration.
    pub listener: usize,
    /// Which of our shards accepts from it.
    pub shard: usize,
    /// What it is bound to.
    pub address: SocketAddr,
    /// The socket: non-blocking, listening.
    pub socket: TcpListener,
}

/// A vetted mechanism library.
#[derive(Debug)]
pub struct Plugin {
    /// Its id in the configuration.
    pub id: String,
    /// Where it came from.
    pub origin: String,
    /// Its content, a sealed memfd.
    pub library: OwnedFd,
}

/// What the supervisor says later.
#[derive(Debug)]
pub enum Later {
    /// A link to a process that is new; replaces the link to its predecessor.
    Peer(Peer),
    /// A link to a mechanism-host that is new.
    Runner(Runner),
    /// A mechanism must not be offered any more, or may be again.
    Quarantine {
        /// Its name.
        mechanism: String,
        /// It may be again.
        over: bool,
    },
    /// The configuration changed (never sent to workers). Apply it, or finish and exit with 0: then the
    /// supervisor starts the role again with it.
    Configuration(Vec<u8>),
    /// New certificates.
    Certificates(Vec<u8>),
    /// New session-ticket keys, newest first.
    TicketKeys(Vec<u8>),
    /// Accept nothing new (first empty the listening sockets' queues), say 421 to idle sessions at their next
    /// command or after so many seconds, finish transactions, then call [`Supervisor::drained`] and exit.
    Drain {
        /// When idle sessions are closed.
        seconds: u32,
    },
    /// Exit now. Also what is heard when the supervisor is gone.
    Stop,
    /// To control's request with this id.
    AdminAnswer {
        /// The request's id.
        id: u64,
        /// Whether it was done.
        ok: bool,
        /// For the administrator.
        text: String,
    },
}

/// Gives up rights, takes descriptor 3, says hello and collects the start-up messages. Everything that
/// follows in this process happens without the rights that the supervisor has.
pub fn start(requested: Requested, build_id: &str) -> Result<Startup, String> {
    let refuse = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    sys::raise_descriptor_limit().map_err(refuse("raising the limit of descriptors"))?;
    if let Some(ids) = &requested.ids {
        sys::drop_privileges(ids).map_err(refuse("giving up rights"))?;
    }
    sys::harden().map_err(refuse("hardening the process"))?;
    let link = sys::inherited_link().map_err(|error| error.to_string())?;
    let supervisor = Supervisor { link, unknown: 0 };
    let hello = Message::Hello { link_version: LINK_VERSION, build_id, role: requested.role };
    supervisor.say(&hello).map_err(refuse("greeting the supervisor"))?;
    collect(requested.role, supervisor)
}

fn collect(role: Role, supervisor: Supervisor) -> Result<Startup, String> {
    let (mut configuration, mut board, mut limits) = (None, None, None);
    let (mut secrets, mut certificates, mut ticket_keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plugins, mut listeners, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut runners, mut quarantine) = (Vec::new(), Vec::new());
    let mut packet = Vec::new();
    let mut started = false;
    while !started {
        supervisor.link.wait(PollFlags::IN, None).map_err(|error| error.to_string())?;
        let fds = match supervisor.link.receive(&mut packet).map_err(|error| error.to_string())? {
            Received::Packet { fds } => fds,
            Received::WouldBlock => continue,
            Received::Closed => return Err("the supervisor is gone".to_owned()),
        };
        for item in messages(&packet, fds) {
            let (_, message, fd) = item.map_err(|bad| bad.to_string())?;
            let bad = |error: io::Error| format!("message {}: {error}", message.name());
            match (&message, fd) {
                (Message::Config, Some(fd)) => configuration = Some(sealed::read(fd.as_fd()).map_err(bad)?),
                (Message::Certificates, Some(fd)) => certificates = sealed::read(fd.as_fd()).map_err(bad)?,
                (Message::Board { slot }, Some(fd)) => {
                    board = Some((Board::attach(fd).map_err(bad)?, *slot as usize));
                }
                (Message::Limits { row }, Some(fd)) => limits = Some((fd, *row as usize)),
                (Message::Secrets(octets), _) => secrets = octets.to_vec(),
                (Message::TicketKeys(octets), _) => ticket_keys = octets.to_vec(),
                (Message::Plugin { id, origin }, Some(library)) => {
                    plugins.push(Plugin { id: (*id).to_owned(), origin: (*origin).to_owned(), library });
                }
                (Message::Listener { listener, shard, address, .. }, Some(fd)) => listeners.push(Listener {
                    listener: usize::from(*listener),
                    shard: usize::from(*shard),
                    address: *address,
                    socket: TcpListener::from(fd),
                }),
                (Message::Peer { role, shard, instance }, Some(fd)) => {
                    peers.push(peer(*role, *shard, *instance, fd).map_err(bad)?);
                }
                (Message::Runner { id, shard, generation }, Some(fd)) => {
                    runners.push(runner(id, *shard, *generation, fd).map_err(bad)?);
                }
                (Message::Quarantine { mechanism, over: false, .. }, _) => quarantine.push((*mechanism).to_owned()),
                (Message::Start, _) => started = true,
                // Told to go before it began; the caller learns it at its first look.
                (Message::Stop | Message::Drain { .. }, _) => return Err("stopped while starting".to_owned()),
                _ => {}
            }
        }
    }
    let configuration = configuration.ok_or("the supervisor sent no configuration")?;
    // Strangers' code gets no page that others believe in.
    let own = || Board::create(1).map(|board| (board, 0)).ok().filter(|_| runs_library(role));
    let (board, slot) = board.or_else(own).ok_or("the supervisor sent no telemetry board")?;
    let slot = board.slot(slot).ok_or("the telemetry board has no such slot")?;
    Ok(Startup {
        role,
        configuration,
        board,
        slot,
        limits,
        secrets,
        plugins,
        certificates,
        ticket_keys,
        listeners,
        peers,
        runners,
        quarantine,
        supervisor,
    })
}

fn peer(role: Role, shard: u16, instance: u32, fd: OwnedFd) -> io::Result<Peer> {
    Ok(Peer { role, shard: usize::from(shard), instance, link: Link::from_fd(fd)? })
}

fn runner(id: &str, shard: u16, generation: u32, fd: OwnedFd) -> io::Result<Runner> {
    Ok(Runner { id: id.to_owned(), shard: usize::from(shard), generation, link: Link::from_fd(fd)? })
}

/// A child's link to its supervisor. Wait for it in a poll loop (it is [`AsFd`]) or on a thread of its own
/// with [`Supervisor::next`].
#[derive(Debug)]
pub struct Supervisor {
    link: Link,
    unknown: u64,
}

impl Supervisor {
    /// Everything that has arrived, without waiting. Ends with [`Later::Stop`] when the supervisor is gone.
    pub fn receive(&mut self) -> Vec<Later> {
        let (mut all, mut packet) = (Vec::new(), Vec::new());
        loop {
            match self.link.receive(&mut packet) {
                Ok(Received::Packet { fds }) => {
                    let mut messages = messages(&packet, fds);
                    // A message of the supervisor that cannot be read is skipped: it is a bug, but to end
                    // sessions for it would be a worse one.
                    all.extend(messages.by_ref().filter_map(|item| later(item).ok().flatten()));
                    self.unknown += messages.unknown;
                }
                Ok(Received::WouldBlock) => return all,
                Ok(Received::Closed) | Err(_) => {
                    all.push(Later::Stop);
                    return all;
                }
            }
        }
    }

    /// Waits for the next messages; empty when `timeout` passed first.
    pub fn next(&mut self, timeout: Option<Duration>) -> Vec<Later> {
        match self.link.wait(PollFlags::IN, timeout) {
            Ok(_) => self.receive(),
            Err(_) => vec![Later::Stop],
        }
    }

    /// This process serves.
    pub fn ready(&self) -> io::Result<()> {
        self.say(&Message::Ready)
    }

    /// Nothing is left to do; exit next.
    pub fn drained(&self) -> io::Result<()> {
        self.say(&Message::Drained)
    }

    /// This process cannot go on: thing, cause, remedy. Exit next.
    pub fn failed(&self, text: &str) -> io::Result<()> {
        self.say(&Message::Failed { text })
    }

    /// A mechanism broke what nobody may break: no worker should offer it any more.
    pub fn quarantine(&self, mechanism: &str, cause: &str) -> io::Result<()> {
        self.say(&Message::Quarantine { mechanism, cause, over: false })
    }

    /// A mechanism-host does not answer any more.
    pub fn stuck(&self, id: &str, generation: u32) -> io::Result<()> {
        self.say(&Message::Stuck { id, generation })
    }

    /// How this process is locked up.
    pub fn sandbox(&self, text: &str) -> io::Result<()> {
        self.say(&Message::Sandbox { text })
    }

    /// Frames of a kind that this version does not know.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// The bare link, for a role that speaks more over it (control).
    pub fn into_link(self) -> Link {
        self.link
    }

    /// Few and small messages in a whole life: waiting for room is not waiting for anybody.
    fn say(&self, message: &Message<'_>) -> io::Result<()> {
        let mut outbox = link::Outbox::new(link::PACKET_OCTETS_MAX);
        outbox.push(message.kind(), 0, |to| message.encode(to)).map_err(io::Error::other)?;
        while !outbox.flush(&self.link)? {
            self.link.wait(PollFlags::OUT, None)?;
        }
        Ok(())
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl AsRawFd for Supervisor {
    fn as_raw_fd(&self) -> RawFd {
        self.link.as_raw_fd()
    }
}

type Item<'a> = Result<(u64, Message<'a>, Option<OwnedFd>), BadPacket>;

fn later(item: Item<'_>) -> io::Result<Option<Later>> {
    let (id, message, fd) = item?;
    Ok(Some(match (message, fd) {
        (Message::Peer { role, shard, instance }, Some(fd)) => Later::Peer(peer(role, shard, instance, fd)?),
        (Message::Runner { id, shard, generation }, Some(fd)) => Later::Runner(runner(id, shard, generation, fd)?),
        (Message::Quarantine { mechanism, over, .. }, _) => Later::Quarantine { mechanism: mechanism.to_owned(), over },
        (Message::Config, Some(fd)) => Later::Configuration(sealed::read(fd.as_fd())?),
        (Message::Certificates, Some(fd)) => Later::Certificates(sealed::read(fd.as_fd())?),
        (Message::TicketKeys(octets), _) => Later::TicketKeys(octets.to_vec()),
        (Message::Drain { seconds }, _) => Later::Drain { seconds },
        (Message::Stop, _) => Later::Stop,
        (Message::AdminAnswer { ok, text }, _) => Later::AdminAnswer { id, ok, text: text.to_owned() },
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subcommand_is_found_behind_any_arguments() {
        let ask = |line: &str| requested(line.split(' ').map(OsString::from));
        let ids = Ids { uid: 990, gid: 980, groups: vec![8, 70] };
        assert_eq!(ask("portreeve serve"), None);
        assert_eq!(ask("portreeve __role worker"), Some(Ok(Requested { role: Role::Worker, ids: None })));
        let line = format!("x --y __role mechanism-host {}", ids_argument(&ids));
        assert_eq!(ask(&line), Some(Ok(Requested { role: Role::MechanismHost, ids: Some(ids) })));
        assert_eq!(parse_ids("1:2:"), Some(Ids { uid: 1, gid: 2, groups: vec![] }));
        for bad in ["p __role king", "p __role supervisor", "p __role worker 0", "p __role worker a:b:c"] {
            assert!(ask(bad).unwrap().is_err(), "{bad}");
        }
    }
}
