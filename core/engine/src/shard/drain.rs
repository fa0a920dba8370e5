//! The end of a shard: nobody is accepted any more, idle sessions end after a first time, all after a second.

use smtp::Farewell;

use super::Shard;
use crate::connection::Stage;

/// When whom a drain ends, milliseconds of the machine's clock.
pub(super) struct Drain {
    pub idle_ms: u64,
    pub hard_ms: u64,
}

impl Shard {
    /// Accepts nobody any more. What was begun earlier is not put off: after a stop nobody gets time again, and a worker
    /// that is not well has no more of it because its supervisor drains it, too.
    pub(super) fn drain_by(&mut self, asked: Drain) {
        self.doors.close(self.poll.registry());
        self.drain = Some(match self.drain.take() {
            None => asked,
            Some(earlier) => {
                Drain { idle_ms: earlier.idle_ms.min(asked.idle_ms), hard_ms: earlier.hard_ms.min(asked.hard_ms) }
            }
        });
    }

    /// Ends those whose time after a drain has come.
    pub(super) fn drain_step(&mut self) {
        let now = self.local.now.ms;
        let Some(drain) = &mut self.drain else { return };
        let everybody = now >= drain.hard_ms;
        if !everybody && now < drain.idle_ms {
            return;
        }
        if everybody {
            drain.hard_ms = u64::MAX;
        }
        // Later ones are ended when they become idle: their next command finds the drain.
        drain.idle_ms = if everybody { u64::MAX } else { now + DRAIN_STEP_MS };
        for token in self.slots.tokens() {
            let Some(slot) = self.slots.get_mut(token) else { continue };
            if everybody || (slot.stage == Stage::Open && slot.is_idle()) || slot.stage == Stage::Handshake {
                self.guarded(token, |shard| {
                    shard.farewell(token, Farewell::Shutdown);
                    if everybody { shard.close(token, "shutdown") } else { shard.turn(token) }
                });
            }
        }
    }
}

/// How often idle sessions are looked for during the later part of a drain.
const DRAIN_STEP_MS: u64 = 500;
