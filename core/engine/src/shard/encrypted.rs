//! Octets of an encrypted connection: the handshake and what follows from it, records into input of the session.
//!
//! Octets are decrypted where they lie. What a handshake says, an alert or a ticket goes out with the replies.

use std::sync::Arc;

use smtp::Farewell;
use smtp::host::TlsFacts;
use telemetry::{Counter, Event, Gauge, Histogram, Level};

use super::Shard;
use super::turn::Read;
use crate::connection::{Clock, Stage, Tls, bindings, flag, session_id};
use crate::slab::Token;

impl Shard {
    pub(super) fn decrypt(&mut self, token: Token, net: &mut [u8], octets: usize) -> Read {
        let shared = Arc::clone(&self.shared);
        let Some(slot) = self.slots.get_mut(token) else { return Read::End };
        let Some(port) = shared.ports.get(usize::from(slot.port)) else { return Read::End };
        if slot.tls.is_none() {
            let session = port.tls.as_ref().and_then(|server| tls::TlsSession::accept(server).ok());
            let Some(session) = session else { return Read::End };
            let began_us = link::monotonic_us();
            slot.tls = Some(Box::new(Tls { session, facts: None, charged: 0, began_us }));
        }
        let (mut plain, mut wire) = (std::mem::take(&mut self.plain), std::mem::take(&mut self.wire));
        plain.clear();
        // Growing it later would leave copies behind: more than this is not decrypted at once.
        let kept = slot.held.as_ref().map_or(0, |held| held.input.len());
        plain.reserve(kept + octets + tls::RECORD_PLAINTEXT_MAX);
        if let Some(held) = &mut slot.held {
            plain.extend_from_slice(&held.input);
            sasl::wipe_all(&mut held.input);
        }
        self.give_back(token);
        let received = match self.slots.get_mut(token).and_then(|slot| slot.tls.as_mut()) {
            Some(tls) => tls.session.receive(net, &mut plain, &mut wire),
            None => Err(tls::TlsError::NotOpen),
        };
        self.wire = wire;
        let state = match received {
            Ok(received) => {
                if received.handshake_done {
                    self.handshake_done(token);
                }
                Some(received.state)
            }
            Err(error) => {
                self.handshake_failed(token, &error);
                None
            }
        };
        if !plain.is_empty() && matches!(state, Some(tls::State::Open | tls::State::PeerClosed)) {
            self.feed(token, &plain, None);
        }
        // Also what stood before a record that is none, and was not given to the session.
        if self.is_secret(token) {
            sasl::wipe(&mut plain);
        }
        // A flight of the handshake, a ticket, an alert; feed() has sent it along with replies.
        self.flush(token);
        if !self.charge_records(token) {
            self.farewell(token, Farewell::Overload);
        }
        self.plain = plain;
        if state == Some(tls::State::PeerClosed)
            && let Some(slot) = self.slots.get_mut(token)
        {
            slot.set(flag::EOF);
            slot.clear(flag::READABLE);
        }
        if state.is_some() { Read::Octets(octets) } else { Read::End }
    }

    fn handshake_done(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let Some(tls) = &mut slot.tls else { return };
        tls.facts = tls.session.facts().map(|facts| TlsFacts {
            version: facts.version,
            cipher: facts.cipher,
            group: facts.group,
            sni: facts.sni.into(),
            client_certificate: facts.client_certificate,
            resumed: facts.resumed,
            channel_bindings: bindings(&tls.session),
        });
        tls.session.forget_name();
        let resumed = tls.facts.as_ref().is_some_and(|facts| facts.resumed);
        let took_us = link::monotonic_us().saturating_sub(tls.began_us);
        (slot.stage, slot.clock, slot.started) = (Stage::Open, Clock::Command, self.local.now.tick);
        let implicit = self
            .shared
            .ports
            .get(usize::from(slot.port))
            .is_some_and(|port| port.listener.tls == smtp::listener::Tls::Implicit);
        let watch = &mut self.local.watch;
        watch.add(Counter::TlsHandshakesOk, 1);
        watch.observe(Histogram::HandshakeMicros, took_us);
        watch.add(Counter::TlsResumed, resumed.into());
        watch.gauge(Gauge::SessionsTls, 1);
        self.with_session(token, |session, cx| if implicit { session.greet(cx) } else { session.tls_started(cx) });
    }

    fn handshake_failed(&mut self, token: Token, error: &tls::TlsError) {
        let now = self.local.now;
        let session = session_id(self.local.session_base, token);
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.stage != Stage::Handshake {
            return;
        }
        self.local.watch.add(Counter::TlsHandshakesFailed, 1);
        let event = Event::log("tls.failed", Level::Info, now.unix_ms)
            .session(session.0)
            .word("client", slot.peer.ip.to_string())
            .untrusted("cause", error.to_string().into_bytes());
        self.local.watch.tell(&event, now.ms);
    }
}
