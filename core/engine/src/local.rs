//! What belongs to one shard and is used while a session speaks.

use crate::cache::Addresses;
use crate::connection::Held;
use crate::entropy::Entropy;
use crate::now::Now;
use crate::passing::Passing;
use crate::questions::Questions;
use crate::steps::Steps;
use crate::watch::Watch;

/// Of one shard.
pub struct Local {
    pub now: Now,
    pub number: usize,
    pub questions: Questions,
    pub steps: Steps,
    pub passing: Passing,
    pub addresses: Addresses,
    pub entropy: Entropy,
    pub spool: spool::Port,
    pub watch: Watch,
    /// Scratch for encoded envelopes.
    pub envelope: Vec<u8>,
    /// How long the effect that just became pending may take, milliseconds.
    pub effect_ms: u64,
    /// What was just taken is not a message's content: it may have been a password, wherever it came.
    pub secret: bool,
    /// There was a SASL message in it.
    pub authenticated: bool,
    /// Messages of this turn wait in the spool for the word to commit them.
    pub queued: bool,
    pub session_base: u64,
    /// Boxes that connections gave back.
    #[allow(clippy::vec_box, reason = "the boxes themselves go back and forth between shard and connection")]
    pub spare: Vec<Box<Held>>,
}

impl Local {
    /// A SASL message was taken: what was read is wiped, and so is the stack.
    pub fn heard_credentials(&mut self) {
        (self.secret, self.authenticated) = (true, true);
    }
}
