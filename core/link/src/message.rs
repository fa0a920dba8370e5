//! What the supervisor and a child say to each other. Frame kinds 0x0001 to 0x00ff.
//!
//! ```text
//! child → supervisor   Hello                                               first, always
//! supervisor → child   Config, Board, Limits, Secrets, Plugin…, Certificates, TicketKeys,
//!                      Listener…, Peer…, Runner…, Quarantine…, Start       start-up, ends with Start
//! child → supervisor   Ready                                               it serves
//! supervisor → child   Peer, Runner, Quarantine, Certificates, TicketKeys, Drain, Stop   at any time afterwards
//! worker → supervisor  Quarantine, Stuck                                   about mechanisms; Quarantine goes on to all
//! directory → supervisor  Stuck                                            about a backend-host
//! host → supervisor    Sandbox                                             before Ready
//! child → supervisor   Drained                                             nothing left to do; it will exit
//! any child → control  Event                                               over a Peer link
//! control → supervisor AdminRequest;  back: AdminAnswer with its frame id
//! ```
//!
//! Messages that come with a descriptor travel alone in their packet.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::codec::{Put, Reader};
use crate::{BadPacket, Frame, Frames, frames};

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// Starts and watches the others; parses no client octet.
    Supervisor = 0,
    /// SMTP sessions.
    Worker = 1,
    /// Credentials, recipients, sender rights.
    Directory = 2,
    /// Hands the spool on.
    Delivery = 3,
    /// Admin socket, metrics, log writer.
    Control = 4,
    /// Third-party mechanisms.
    MechanismHost = 5,
    /// Third-party credential back ends.
    BackendHost = 6,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 7] = [
        Self::Supervisor,
        Self::Worker,
        Self::Directory,
        Self::Delivery,
        Self::Control,
        Self::MechanismHost,
        Self::BackendHost,
    ];

    /// Its name on the command line, in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Worker => "worker",
            Self::Directory => "directory",
            Self::Delivery => "delivery",
            Self::Control => "control",
            Self::MechanismHost => "mechanism-host",
            Self::BackendHost => "backend-host",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Role> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The role with this number.
    pub fn from_number(number: u8) -> Option<Role> {
        Self::ALL.into_iter().find(|role| *role as u8 == number)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that supervisor and child say. No `Debug`: some hold secrets; [`Message::name`] is for logs.
#[derive(Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Who speaks. The first message of a child.
    Hello {
        /// [`crate::LINK_VERSION`] of the sender.
        link_version: u16,
        /// Which build; both ends of a fresh start are the same binary.
        build_id: &'a str,
        /// Its role.
        role: Role,
    },
    /// With a sealed memfd: the resolved configuration as JSON.
    Config,
    /// With the telemetry pages; the child's slot.
    Board {
        /// Which slot is the child's.
        slot: u32,
    },
    /// With the table of limits; the worker's row.
    Limits {
        /// Which row is the worker's.
        row: u32,
    },
    /// With a listening socket.
    Listener {
        /// Position in the configuration.
        listener: u16,
        /// Which of the listener's sockets; shard `s` of a worker takes those it is told.
        socket: u16,
        /// Which shard of the receiver is to accept from it.
        shard: u16,
        /// What it is bound to.
        address: SocketAddr,
    },
    /// With an end of a link to another process.
    Peer {
        /// What the other process is.
        role: Role,
        /// Which shard of the worker this link belongs to; 0 where there is one for all.
        shard: u16,
        /// The other process' number, unique while the supervisor lives. A new instance replaces the old link.
        instance: u32,
    },
    /// With a sealed memfd: a vetted mechanism library.
    Plugin {
        /// Its id in the configuration.
        id: &'a str,
        /// Where it came from, for messages.
        origin: &'a str,
    },
    /// With an end of a link to a mechanism-host or, for the directory, to a backend-host. The newest generation
    /// that has described itself serves new exchanges.
    Runner {
        /// The library's id.
        id: &'a str,
        /// Which shard of the worker this link belongs to.
        shard: u16,
        /// Which edition of the library.
        generation: u32,
    },
    /// A mechanism that must not be offered any more, or (`over`) may be again. From a worker: please tell all.
    Quarantine {
        /// Its name.
        mechanism: &'a str,
        /// Why, for the operator.
        cause: &'a str,
        /// It is over.
        over: bool,
    },
    /// From a worker or the directory: a process that runs a library does not answer any more; please end it.
    Stuck {
        /// The library's id.
        id: &'a str,
        /// Which edition of it.
        generation: u32,
    },
    /// A mechanism-host says how it is locked up.
    Sandbox {
        /// What is in force, for the operator.
        text: &'a str,
    },
    /// With a sealed memfd: the certificates of all listeners. Replaces earlier ones.
    Certificates,
    /// Keys for session tickets, newest first. Replaces earlier ones.
    TicketKeys(&'a [u8]),
    /// What nodes of a fleet share: decoy secret and the like.
    Secrets(&'a [u8]),
    /// Start-up messages are complete.
    Start,
    /// The child serves.
    Ready,
    /// Accept nothing new; finish. Afterwards say [`Message::Drained`] and exit.
    Drain {
        /// After so many seconds idle sessions are closed and later everything.
        seconds: u32,
    },
    /// Nothing left to do.
    Drained,
    /// Exit now.
    Stop,
    /// The child cannot go on and says why, before it exits.
    Failed {
        /// For the operator: thing, cause, remedy.
        text: &'a str,
    },
    /// A log or audit event, encoded by `telemetry::Event`.
    Event(&'a [u8]),
    /// Control asks for what only the supervisor can do.
    AdminRequest(AdminRequest<'a>),
    /// The answer, with the request's frame id.
    AdminAnswer {
        /// Whether it was done.
        ok: bool,
        /// For the operator, or JSON for the program.
        text: &'a str,
    },
}

/// What an administrator may ask of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminRequest<'a> {
    /// Processes and generations, as JSON.
    Status,
    /// Read the configuration again; a new generation if it is good.
    Reload,
    /// Drain everything and exit.
    Drain {
        /// As in [`Message::Drain`].
        seconds: u32,
    },
    /// Whatever the program itself understands.
    Other(&'a str),
}

impl<'a> Message<'a> {
    /// The frame kind.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Hello { .. } => 0x01,
            Self::Config => 0x02,
            Self::Board { .. } => 0x03,
            Self::Limits { .. } => 0x04,
            Self::Listener { .. } => 0x05,
            Self::Peer { .. } => 0x06,
            Self::Plugin { .. } => 0x07,
            Self::Certificates => 0x08,
            Self::TicketKeys(_) => 0x09,
            Self::Secrets(_) => 0x0a,
            Self::Start => 0x0b,
            Self::Runner { .. } => 0x0c,
            Self::Quarantine { .. } => 0x0d,
            Self::Sandbox { .. } => 0x0e,
            Self::Stuck { .. } => 0x0f,
            Self::Ready => 0x10,
            Self::Drain { .. } => 0x11,
            Self::Drained => 0x12,
            Self::Stop => 0x13,
            Self::Failed { .. } => 0x14,
            Self::Event(_) => 0x20,
            Self::AdminRequest(_) => 0x30,
            Self::AdminAnswer { .. } => 0x31,
        }
    }

    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Config => "config",
            Self::Board { .. } => "board",
            Self::Limits { .. } => "limits",
            Self::Listener { .. } => "listener",
            Self::Peer { .. } => "peer",
            Self::Plugin { .. } => "plugin",
            Self::Certificates => "certificates",
            Self::TicketKeys(_) => "ticket-keys",
            Self::Secrets(_) => "secrets",
            Self::Start => "start",
            Self::Runner { .. } => "runner",
            Self::Quarantine { .. } => "quarantine",
            Self::Sandbox { .. } => "sandbox",
            Self::Stuck { .. } => "stuck",
            Self::Ready => "ready",
            Self::Drain { .. } => "drain",
            Self::Drained => "drained",
            Self::Stop => "stop",
            Self::Failed { .. } => "failed",
            Self::Event(_) => "event",
            Self::AdminRequest(_) => "admin-request",
            Self::AdminAnswer { .. } => "admin-answer",
        }
    }

    /// Whether a descriptor comes with it.
    pub fn wants_fd(&self) -> bool {
        matches!(
            self,
            Self::Config
                | Self::Board { .. }
                | Self::Limits { .. }
                | Self::Listener { .. }
                | Self::Peer { .. }
                | Self::Plugin { .. }
                | Self::Runner { .. }
                | Self::Certificates
        )
    }

    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Hello { link_version, build_id, role } => {
                to.put_u16(*link_version);
                to.put_str(build_id);
                to.put_u8(*role as u8);
            }
            Self::Board { slot: number } | Self::Limits { row: number } | Self::Drain { seconds: number } => {
                to.put_u32(*number);
            }
            Self::Listener { listener, socket, shard, address } => {
                to.put_u16(*listener);
                to.put_u16(*socket);
                to.put_u16(*shard);
                to.put_socket_address(*address);
            }
            Self::Peer { role, shard, instance } => {
                to.put_u8(*role as u8);
                to.put_u16(*shard);
                to.put_u32(*instance);
            }
            Self::Plugin { id, origin } => {
                to.put_str(id);
                to.put_str(origin);
            }
            Self::Runner { id, shard, generation } => {
                to.put_str(id);
                to.put_u16(*shard);
                to.put_u32(*generation);
            }
            Self::Quarantine { mechanism, cause, over } => {
                to.put_str(mechanism);
                to.put_str(cause);
                to.put_bool(*over);
            }
            Self::Sandbox { text } => to.put_str(text),
            Self::Stuck { id, generation } => {
                to.put_str(id);
                to.put_u32(*generation);
            }
            Self::TicketKeys(octets) | Self::Secrets(octets) | Self::Event(octets) => to.extend_from_slice(octets),
            Self::Failed { text } => to.put_str(text),
            Self::AdminRequest(request) => match request {
                AdminRequest::Status => to.put_u8(0),
                AdminRequest::Reload => to.put_u8(1),
                AdminRequest::Drain { seconds } => {
                    to.put_u8(2);
                    to.put_u32(*seconds);
                }
                AdminRequest::Other(text) => {
                    to.put_u8(3);
                    to.put_str(text);
                }
            },
            Self::AdminAnswer { ok, text } => {
                to.put_bool(*ok);
                to.put_str(text);
            }
            Self::Config | Self::Certificates | Self::Start | Self::Ready | Self::Drained | Self::Stop => {}
        }
    }

    /// Reads a frame; `None` for a kind that this version does not know.
    pub fn decode(frame: &Frame<'a>) -> Result<Option<Self>, BadPacket> {
        let mut from = Reader::new(frame.payload);
        let message = match frame.kind {
            0x01 => Self::Hello { link_version: from.u16()?, build_id: from.str()?, role: role(from.u8()?)? },
            0x02 => Self::Config,
            0x03 => Self::Board { slot: from.u32()? },
            0x04 => Self::Limits { row: from.u32()? },
            0x05 => Self::Listener {
                listener: from.u16()?,
                socket: from.u16()?,
                shard: from.u16()?,
                address: from.socket_address()?,
            },
            0x06 => Self::Peer { role: role(from.u8()?)?, shard: from.u16()?, instance: from.u32()? },
            0x07 => Self::Plugin { id: from.str()?, origin: from.str()? },
            0x08 => Self::Certificates,
            0x09 => return Ok(Some(Self::TicketKeys(frame.payload))),
            0x0a => return Ok(Some(Self::Secrets(frame.payload))),
            0x0b => Self::Start,
            0x0c => Self::Runner { id: from.str()?, shard: from.u16()?, generation: from.u32()? },
            0x0d => Self::Quarantine { mechanism: from.str()?, cause: from.str()?, over: from.bool()? },
            0x0e => Self::Sandbox { text: from.str()? },
            0x0f => Self::Stuck { id: from.str()?, generation: from.u32()? },
            0x10 => Self::Ready,
            0x11 => Self::Drain { seconds: from.u32()? },
            0x12 => Self::Drained,
            0x13 => Self::Stop,
            0x14 => Self::Failed { text: from.str()? },
            0x20 => return Ok(Some(Self::Event(frame.payload))),
            0x30 => Self::AdminRequest(match from.u8()? {
                0 => AdminRequest::Status,
                1 => AdminRequest::Reload,
                2 => AdminRequest::Drain { seconds: from.u32()? },
                3 => AdminRequest::Other(from.str()?),
                _ => return Err(BadPacket::Value("admin request")),
            }),
            0x31 => Self::AdminAnswer { ok: from.bool()?, text: from.str()? },
            _ => return Ok(None),
        };
        from.end()?;
        Ok(Some(message))
    }
}

fn role(number: u8) -> Result<Role, BadPacket> {
    Role::from_number(number).ok_or(BadPacket::Value("role"))
}

/// The messages of a packet, each with its frame id and its descriptor. Unknown kinds are skipped and
/// counted; ends after the first error.
pub fn messages(packet: &[u8], fds: Vec<OwnedFd>) -> Messages<'_> {
    Messages { frames: frames(packet), fds: fds.into_iter(), unknown: 0 }
}

/// See [`messages`].
pub struct Messages<'a> {
    frames: Frames<'a>,
    fds: std::vec::IntoIter<OwnedFd>,
    /// Frames of unknown kind so far.
    pub unknown: u64,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<(u64, Message<'a>, Option<OwnedFd>), BadPacket>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let frame = match self.frames.next()? {
                Ok(frame) => frame,
                Err(bad) => return Some(Err(bad)),
            };
            let bad = match Message::decode(&frame) {
                Ok(None) => {
                    self.unknown += 1;
                    continue;
                }
                Ok(Some(message)) if !message.wants_fd() => return Some(Ok((frame.id, message, None))),
                Ok(Some(message)) => match self.fds.next() {
                    Some(fd) => return Some(Ok((frame.id, message, Some(fd)))),
                    None => BadPacket::Descriptors,
                },
                Err(bad) => bad,
            };
            self.frames = frames(&[]);
            return Some(Err(bad));
        }
    }
}

#[cfg(test)]
mod tests;
