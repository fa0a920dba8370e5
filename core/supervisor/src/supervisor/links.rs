//! Links between children: made here, handed to both ends. Which there are is the crate's second picture.

use std::io;

use link::message::Message;
use link::{Link, Role};

use crate::process::{Phase, Process};

/// The links that one process has to another whom it asks.
enum Links {
    /// So many, as equals.
    Peers(u16),
    /// To a library that it asks by the library's name.
    Library,
}

/// Makes the links that two processes have to each other, if any, and gives each its ends.
pub fn connect(one: &mut Process, other: &mut Process) -> io::Result<()> {
    let (asker, asked, links) = match (between(one, other), between(other, one)) {
        (Some(links), _) => (one, other, links),
        (_, Some(links)) => (other, one, links),
        (None, None) => return Ok(()),
    };
    if asker.phase == Phase::Stopping || asked.phase == Phase::Stopping {
        return Ok(());
    }
    match links {
        Links::Peers(count) => {
            for shard in 0..count {
                let (for_asker, for_asked) = Link::pair()?;
                say_peer(asker, asked, shard, for_asker);
                say_peer(asked, asker, shard, for_asked);
            }
        }
        // One that finishes its exchanges gets no new ones.
        Links::Library if asked.phase == Phase::Draining => {}
        Links::Library => {
            let id = asked.outfit.library.clone().unwrap_or_default();
            for shard in 0..asker.outfit.shards.max(1) {
                let (for_asker, for_asked) = Link::pair()?;
                let runner = Message::Runner { id: &id, shard, generation: asked.post.generation };
                asker.say(&runner, Some(for_asker.into()));
                say_peer(asked, asker, shard, for_asked);
            }
        }
    }
    Ok(())
}

fn between(asker: &Process, asked: &Process) -> Option<Links> {
    match (asker.role(), asked.role()) {
        (Role::Worker, Role::Directory | Role::Delivery) => Some(Links::Peers(asker.outfit.shards)),
        (Role::Worker | Role::Directory | Role::Delivery, Role::Control) => Some(Links::Peers(1)),
        (Role::Worker, Role::MechanismHost) | (Role::Directory, Role::BackendHost) => Some(Links::Library),
        _ => None,
    }
}

/// Gives a process its end of a link to another.
fn say_peer(to: &mut Process, other: &Process, shard: u16, end: Link) {
    to.say(&Message::Peer { role: other.role(), shard, instance: other.outfit.instance }, Some(end.into()));
}
