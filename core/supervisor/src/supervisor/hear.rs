//! What children say, and what comes of it.
//!
//! Only control may ask for something; what a child may not say, or says before it has said who it is, is counted and
//! ignored.

use std::os::fd::OwnedFd;
use std::time::Duration;

use link::message::{AdminRequest, Message, messages};
use link::{LINK_VERSION, Received, Role};
use telemetry::Counter;

use super::Supervisor;
use crate::plan::Hooks;
use crate::process::{Phase, runs_library};

/// Packets read from one child before the others have their turn.
const PACKETS_PER_TURN: usize = 64;

/// An administrator behind a control process.
#[derive(Clone, Copy)]
pub struct Asker {
    instance: u32,
    id: u64,
}

/// What a child said, without its buffers.
enum Said {
    /// It is who we started.
    Hello,
    /// It is another version, another build, or in another role.
    Stranger,
    Ready,
    Drained,
    Failed(String),
    /// A mechanism, and what it did.
    Quarantine(String, String),
    /// A library's id, and the number of its edition.
    Stuck(String, u32),
    Sandbox(String),
    /// A request of an administrator, with its id.
    Asks(u64, Wish),
    Unknown,
    Bad,
    Closed,
}

enum Wish {
    Status,
    Reload,
    Drain(u32),
    Other(String),
}

impl<H: Hooks> Supervisor<H> {
    pub(super) fn hear(&mut self) {
        let mut packet = Vec::new();
        for i in 0..self.processes.len() {
            self.hear_one(i, &mut packet);
        }
    }

    pub(super) fn hear_one(&mut self, i: usize, packet: &mut Vec<u8>) {
        for _ in 0..PACKETS_PER_TURN {
            let process = &self.processes[i];
            let Some(link) = process.link() else { return };
            let said = match link.receive(packet) {
                Ok(Received::WouldBlock) => return,
                Ok(Received::Closed) | Err(_) => vec![Said::Closed],
                Ok(Received::Packet { fds }) => read(packet, fds, process.role(), &self.options.build_id),
            };
            for said in said {
                self.on(i, said);
            }
        }
    }

    fn on(&mut self, i: usize, said: Said) {
        let process = &mut self.processes[i];
        match said {
            Said::Closed => process.hang_up(),
            Said::Unknown => self.slot.add(Counter::LinkUnknown, 1),
            Said::Bad => self.slot.add(Counter::LinkBad, 1),
            Said::Hello => process.greeted = true,
            Said::Stranger => {
                process.failed = Some("it is another version or another build".to_owned());
                process.kill();
            }
            // Nothing else counts before Hello.
            _ if !process.greeted => self.slot.add(Counter::LinkBad, 1),
            Said::Ready => {
                if process.phase == Phase::Starting {
                    process.phase = Phase::Ready;
                    self.on_ready(i);
                }
            }
            Said::Drained => {
                process.phase = Phase::Stopping;
                process.patience(Duration::from_secs(5));
            }
            Said::Failed(text) => process.failed = Some(text),
            Said::Sandbox(text) => process.sandbox = text,
            Said::Quarantine(mechanism, cause) => self.put_in_quarantine(mechanism, cause),
            Said::Stuck(id, edition) => self.end_stuck(&id, edition),
            Said::Asks(id, wish) => {
                let asker = Asker { instance: process.outfit.instance, id };
                self.grant(asker, wish);
            }
        }
    }

    /// Who asks a library knows its id and its edition, not its process.
    fn end_stuck(&mut self, id: &str, edition: u32) {
        let hosts = self.processes.iter_mut().filter(|process| process.post.runs_library());
        for host in hosts.filter(|host| host.post.generation == edition && host.outfit.library.as_deref() == Some(id)) {
            host.failed = Some("it did not answer in time".to_owned());
            host.kill();
        }
    }

    fn grant(&mut self, asker: Asker, wish: Wish) {
        let answer = match wish {
            Wish::Status => Ok(self.status()),
            // Answered when it is done.
            Wish::Reload => return self.reload(Some(asker)),
            Wish::Drain(seconds) => {
                self.begin_drain(seconds);
                Ok("draining".to_owned())
            }
            Wish::Other(request) => self.hooks.admin(&request),
        };
        self.reply(Some(asker), answer);
    }

    /// `None`: nobody asked, a signal did.
    pub(super) fn reply(&mut self, asker: Option<Asker>, answer: Result<String, String>) {
        let Some(asker) = asker else { return };
        if let Some(control) = self.processes.iter_mut().find(|process| process.outfit.instance == asker.instance) {
            let ok = answer.is_ok();
            let text = answer.unwrap_or_else(|text| text);
            control.answer(asker.id, &Message::AdminAnswer { ok, text: clip(&text) }, None);
        }
    }
}

/// Reads a child's packet.
fn read(packet: &[u8], fds: Vec<OwnedFd>, role: Role, build_id: &str) -> Vec<Said> {
    let mut messages = messages(packet, fds);
    let mut all: Vec<Said> = messages
        .by_ref()
        .map(|item| match item {
            Ok((id, message, _)) => said(id, message, role, build_id),
            Err(_) => Said::Bad,
        })
        .collect();
    all.extend((0..messages.unknown).map(|_| Said::Unknown));
    all
}

fn said(id: u64, message: Message<'_>, role: Role, build_id: &str) -> Said {
    match message {
        Message::Hello { link_version, build_id: theirs, role: claimed } => {
            match link_version == LINK_VERSION && theirs == build_id && claimed == role {
                true => Said::Hello,
                false => Said::Stranger,
            }
        }
        Message::Ready => Said::Ready,
        Message::Drained => Said::Drained,
        Message::Failed { text } => Said::Failed(clip(text).to_owned()),
        Message::Quarantine { mechanism, cause, .. } if role == Role::Worker => {
            Said::Quarantine(clip(mechanism).to_owned(), clip(cause).to_owned())
        }
        Message::Stuck { id, generation } if matches!(role, Role::Worker | Role::Directory) => {
            Said::Stuck(id.to_owned(), generation)
        }
        Message::Sandbox { text } if runs_library(role) => Said::Sandbox(clip(text).to_owned()),
        Message::AdminRequest(request) if role == Role::Control => Said::Asks(
            id,
            match request {
                AdminRequest::Status => Wish::Status,
                AdminRequest::Reload => Wish::Reload,
                AdminRequest::Drain { seconds } => Wish::Drain(seconds),
                AdminRequest::Other(text) => Wish::Other(text.to_owned()),
            },
        ),
        _ => Said::Bad,
    }
}

/// What fits a packet with room to spare.
fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(100_000)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}
