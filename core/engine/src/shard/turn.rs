//! A connection's turn: octets in, the session, replies out, until there is nothing left to do or the share is used up.
//!
//! ```text
//! turn     unsent?  send it first; while it does not leave, nothing is read
//!          pending? wait: one effect at a time, replies keep their order
//!          input    kept whole lines → `feed`, else one read → `feed`, TLS in between (`encrypted`)
//!          again    until a short read, an effect, or the share is used up; then the run queue
//! feed     session.receive, all replies of the batch in one write (`output`), the rest is kept (`held`)
//! resume   an effect has ended: session.complete, then what was kept, then a turn
//! ```

use mio::event::Event;
use rustix::io::Errno;
use smtp::host::{Context, Outcome};
use smtp::{Farewell, Next, Phase, Session};
use telemetry::{Counter, Gauge};

use super::Shard;
use super::output::Sent;
use crate::connection::{Clock, Pending, Stage, flag, session_id};
use crate::host::TurnHost;
use crate::slab::Token;

/// What a read gave.
pub(super) enum Read {
    Octets(usize),
    Nothing,
    End,
}

impl Shard {
    pub(super) fn event(&mut self, token: Token, event: &Event) {
        // Whoever had the slot before may have left an event in this batch.
        let Some(slot) = self.slots.get_mut(token) else { return };
        if event.is_readable() || event.is_read_closed() {
            slot.set(flag::READABLE);
        }
        if event.is_read_closed() {
            slot.set(flag::READ_CLOSED);
        }
        if event.is_error() {
            // A reset: nobody will read a reply. A commit that was handed over goes on by itself.
            slot.set(flag::GONE);
        }
        self.guarded(token, |shard| shard.turn(token));
    }

    /// Does what can be done for a connection now, as far as its share of a turn goes.
    pub(super) fn turn(&mut self, token: Token) {
        let mut octets = 0;
        loop {
            let Some(slot) = self.slots.get_mut(token) else { return };
            if slot.has(flag::GONE) {
                return self.close(token, "lost");
            }
            if slot.is_unsent() {
                match self.send_unsent(token) {
                    Sent::All => continue,
                    Sent::Blocked => return self.arm(token),
                    Sent::Gone => return self.close(token, "lost"),
                }
            }
            match slot.stage {
                Stage::Closing => return self.shut(token),
                Stage::Linger => return self.linger(token),
                Stage::Handshake | Stage::Open => {}
            }
            if slot.has(flag::START_TLS) {
                slot.clear(flag::START_TLS);
                (slot.stage, slot.clock, slot.started) = (Stage::Handshake, Clock::Handshake, self.local.now.tick);
            }
            if slot.pending != Pending::None || slot.has(flag::SINK_FULL) {
                return;
            }
            if slot.has(flag::INPUT) {
                let mut input = self.take_input(token);
                self.feed(token, &input, None);
                sasl::wipe_all(&mut input);
                continue;
            }
            if slot.has(flag::EOF) {
                return self.close(token, "client");
            }
            if !slot.has(flag::READABLE) {
                break;
            }
            if self.drain.is_some() && slot.stage == Stage::Open && slot.is_idle() {
                self.farewell(token, Farewell::Shutdown);
                continue;
            }
            let handshake = slot.stage == Stage::Handshake;
            if octets >= TURN_OCTETS || (handshake && self.handshakes >= HANDSHAKES_MAX) {
                self.queue(token);
                break;
            }
            self.handshakes += usize::from(handshake);
            let read = self.read(token);
            if std::mem::take(&mut self.local.authenticated) {
                // A password passed through functions whose frames are gone and still lie there.
                zeroize::zeroize_stack::<STACK_OCTETS>();
            }
            match read {
                Read::Octets(more) => octets += more,
                Read::Nothing => {}
                Read::End => return self.close(token, "lost"),
            }
        }
        self.arm(token);
    }

    /// One read, and everything that follows from it.
    #[inline(never)]
    fn read(&mut self, token: Token) -> Read {
        let mut input = std::mem::take(&mut self.input);
        if input.len() != INPUT_OCTETS {
            input = vec![0; INPUT_OCTETS];
        }
        let result = self.read_into(token, &mut input);
        self.input = input;
        result
    }

    fn read_into(&mut self, token: Token, input: &mut [u8]) -> Read {
        let Some(slot) = self.slots.get_mut(token) else { return Read::End };
        let encrypted = slot.tls.is_some() || slot.stage == Stage::Handshake;
        let kept = if encrypted { 0 } else { slot.held.as_ref().map_or(0, |held| held.input.len()) };
        let share = if slot.session.phase() == Phase::Data { READ_OCTETS_DATA } else { READ_OCTETS };
        let Some(room) = input.get_mut(kept..kept + share) else { return Read::End };
        let octets = loop {
            match rustix::io::read(&slot.fd, &mut *room) {
                Ok(octets) => break octets,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    slot.clear(flag::READABLE);
                    return Read::Nothing;
                }
                Err(_) => {
                    slot.set(flag::GONE);
                    return Read::End;
                }
            }
        };
        if octets == 0 {
            slot.clear(flag::READABLE);
            slot.set(flag::EOF);
            return Read::Nothing;
        }
        // A short read has emptied the socket: what comes later is a new edge. Only an end that was already
        // reported would not be.
        if octets < share && !slot.has(flag::READ_CLOSED) {
            slot.clear(flag::READABLE);
        }
        self.local.watch.add(Counter::OctetsReceived, octets as u64);
        self.local.secret = slot.session.phase() != Phase::Data;
        if encrypted {
            // Decrypted where it lies.
            let net = input.get_mut(..octets).unwrap_or_default();
            let read = self.decrypt(token, net, octets);
            if self.is_secret(token) {
                sasl::wipe(net);
            }
            return read;
        }
        if kept > 0 {
            let mut piece = self.take_input(token);
            if let Some(front) = input.get_mut(..piece.len()) {
                front.copy_from_slice(&piece);
            }
            sasl::wipe_all(&mut piece);
        }
        let input = input.get_mut(..kept + octets).unwrap_or_default();
        self.feed(token, input, None);
        if self.is_secret(token) {
            sasl::wipe(input);
        }
        Read::Octets(octets)
    }

    /// Whether what was read has to be wiped: all but the content of messages. A client that is out of step says
    /// its password as a command.
    pub(super) fn is_secret(&mut self, token: Token) -> bool {
        let in_message = self.slots.get_mut(token).is_some_and(|slot| slot.session.phase() == Phase::Data);
        self.local.secret || !in_message
    }

    /// Gives `input` to the session, or, after an effect, what `first` says and then `input`; sends all
    /// replies at the end. What the session has not taken is kept.
    pub(super) fn feed(&mut self, token: Token, input: &[u8], first: Option<Next>) {
        let mut used = 0;
        let mut next = match first {
            Some(Next::Read) if !input.is_empty() => self.receive(token, input, &mut used),
            Some(next) => next,
            None => self.receive(token, input, &mut used),
        };
        while next == Next::OutFull && self.flush(token) == Sent::All {
            next = self.receive(token, input, &mut used);
        }
        let rest = input.get(used..).unwrap_or_default();
        let Some(slot) = self.slots.get_mut(token) else { return };
        match next {
            Next::Read => self.keep_input(token, rest, false),
            Next::OutFull => self.keep_input(token, rest, true),
            Next::Pending => {
                if slot.pending == Pending::None {
                    // The session waits for something that nobody does.
                    self.farewell(token, Farewell::Internal);
                } else {
                    self.local.watch.gauge(Gauge::EffectsPending, 1);
                    self.keep_input(token, rest, true);
                    self.arm_effect(token);
                }
            }
            Next::SinkFull => {
                slot.set(flag::SINK_FULL);
                self.sink_full.push(token);
                self.keep_input(token, rest, true);
            }
            // RFC 3207 §6: what came before the handshake is dropped.
            Next::StartTls => slot.set(flag::START_TLS),
            Next::Close => slot.stage = Stage::Closing,
        }
        self.flush(token);
    }

    /// One call of `Session::receive`, and what it means for the deadline.
    fn receive(&mut self, token: Token, input: &[u8], used: &mut usize) -> Next {
        let before = self.out.len();
        let rest = input.get(*used..).unwrap_or_default();
        let Some((octets, next)) = self.with_session(token, |session, cx| session.receive(rest, cx)) else {
            return Next::Close;
        };
        *used += octets;
        self.wind_clock(token, self.out.len() > before);
        next
    }

    /// A pending effect has ended.
    pub(super) fn resume(&mut self, token: Token, outcome: Outcome) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending == Pending::None || slot.stage != Stage::Open {
            return;
        }
        slot.pending = Pending::None;
        self.local.watch.gauge(Gauge::EffectsPending, -1);
        let Some(next) = self.with_session(token, |session, cx| session.complete(outcome, cx)) else { return };
        self.wind_clock(token, true);
        let mut input = self.take_input(token);
        self.feed(token, &input, Some(next));
        sasl::wipe_all(&mut input);
        self.turn(token);
    }

    /// Calls the session with everything that it may look at.
    pub(super) fn with_session<R>(
        &mut self,
        token: Token,
        call: impl FnOnce(&mut Session, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let slot = self.slots.get_mut(token)?;
        let port = self.shared.ports.get(usize::from(slot.port))?;
        let id = session_id(self.local.session_base, token);
        let (now_ms, unix_ms) = (self.local.now.ms, self.local.now.unix_ms);
        let by_account = port.limits.messages_per_minute > 0 || port.limits.recipients_per_minute > 0;
        let identity = slot.session.identity().filter(|_| by_account);
        let account = identity.map(|identity| self.shared.account(identity.name.as_bytes()));
        let mut host = TurnHost {
            shared: &self.shared,
            local: &mut self.local,
            port,
            token,
            id,
            peer: &slot.peer,
            tls: slot.tls.as_deref(),
            account,
            pending: &mut slot.pending,
            question: &mut slot.question,
            held: &mut slot.held,
        };
        let mut cx = Context {
            listener: &port.listener,
            peer: &slot.peer,
            tls: slot.tls.as_ref().and_then(|tls| tls.facts.as_ref()),
            session: id,
            now_ms,
            unix_ms,
            out: &mut self.out,
            pools: &mut self.pools,
            host: &mut host,
        };
        Some(call(&mut slot.session, &mut cx))
    }

    pub(super) fn queue(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if !slot.has(flag::QUEUED) {
            slot.set(flag::QUEUED);
            self.run.push_back(token);
        }
    }
}

/// How deep a login goes; what it leaves on the stack is wiped.
const STACK_OCTETS: usize = 16 * 1024;
/// Octets that one connection may read in a turn before others come.
const TURN_OCTETS: usize = 32 * 1024;
/// One read of message octets.
const READ_OCTETS_DATA: usize = 32 * 1024;
/// One read of commands: what stands behind an effect has to be kept.
const READ_OCTETS: usize = 16 * 1024;
/// Room for a read and everything that may have been kept before it.
pub(super) const INPUT_OCTETS: usize = 96 * 1024;
/// Reads for handshakes in a turn: an RSA signature takes half a millisecond.
const HANDSHAKES_MAX: usize = 16;
