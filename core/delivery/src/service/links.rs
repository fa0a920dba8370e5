//! What workers say over their links.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use link::pass::{QUESTION, Question};
use link::{Link, Received, frames};
use spool::{Doorbell, Follower};

use super::shared::Shared;
use super::{HURRIED_SCANS, Service};
use crate::event::Event;

/// Packets read from one link in one turn.
const TURN_PACKETS: usize = 64;

impl Service {
    /// Takes what has come; a link that closes has the spool looked at soon.
    pub(super) fn read_links(&mut self) {
        let mut packet = Vec::new();
        let (follower, shared) = (&mut self.follower, &self.shared);
        let before = self.links.len();
        self.links.retain(|link| {
            for _ in 0..TURN_PACKETS {
                match link.receive(&mut packet) {
                    Ok(Received::Packet { fds }) => hear(follower, shared, link, &packet, fds),
                    Ok(Received::WouldBlock) => return true,
                    Ok(Received::Closed) => return false,
                    Err(error) => {
                        shared.events.event(&Event::Link { reason: &error.to_string() });
                        return false;
                    }
                }
            }
            true
        });
        if self.links.len() < before {
            self.hurried = HURRIED_SCANS;
            self.scan_at = Instant::now();
        }
    }
}

/// What a worker says: how far its segment is durable, and what it wants to pass through.
fn hear(follower: &mut Follower, shared: &Shared, link: &Arc<Link>, packet: &[u8], fds: Vec<OwnedFd>) {
    let events = &*shared.events;
    let mut fds = fds.into_iter();
    for frame in frames(packet) {
        match frame {
            Ok(frame) if frame.kind == Doorbell::FRAME_KIND => match Doorbell::decode(frame.payload) {
                Some(bell) => follower.ring(bell),
                None => events.event(&Event::Link { reason: "a doorbell of the wrong length" }),
            },
            Ok(frame) if frame.kind == QUESTION => {
                let question = Question::decode(frame.payload).map_err(|bad| bad.to_string());
                let asked = question.and_then(|question| {
                    let file = fds.next().ok_or("a message came without its file")?;
                    shared.passing.ask(shared, link, frame.id, question, file)
                });
                // Its client is answered by the worker, at its deadline.
                asked.unwrap_or_else(|reason| events.event(&Event::Link { reason: &reason }));
            }
            // A newer worker may say what we do not know yet.
            Ok(_) => {}
            Err(bad) => return events.event(&Event::Link { reason: &bad.to_string() }),
        }
    }
}
