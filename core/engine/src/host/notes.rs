//! What a session has to tell: numbers on the board, records for the audit trail and the log.

use smtp::host::Note;
use telemetry::{Counter, Event, Histogram, Level};

use super::TurnHost;
use crate::now::Now;

impl TurnHost<'_> {
    pub(super) fn take_note(&mut self, note: Note<'_>) {
        let Now { ms, unix_ms, .. } = self.local.now;
        let watch = &mut self.local.watch;
        match note {
            Note::Reply { code, rule } => {
                watch.add(Counter::replies(code), 1);
                if let Some(counter) = counter_of(code, rule) {
                    watch.add(counter, 1);
                }
            }
            Note::Login { mechanism, authcid, identity, code, reason, diagnosis, ms: took_ms } => {
                watch.observe(Histogram::LoginMicros, took_ms * 1000);
                watch.add(
                    match code {
                        235 => Counter::AuthOk,
                        400..500 => Counter::AuthTemporary,
                        _ => Counter::AuthFailed,
                    },
                    1,
                );
                let mut event = Event::audit("login", unix_ms)
                    .session(self.id.0)
                    .word("listener", &*self.port.listener.name)
                    .word("client", self.peer.ip.to_string())
                    .word("mechanism", mechanism)
                    .untrusted("authcid", authcid)
                    .number("code", code.into())
                    .word("reason", reason);
                if let Some(identity) = identity {
                    event = event.word("identity", identity);
                }
                if !diagnosis.is_empty() {
                    event = event.untrusted("diagnosis", diagnosis);
                }
                watch.tell(&event, ms);
            }
            Note::Anonymous { mechanism, trace } => {
                watch.add(Counter::AuthOk, 1);
                let event = Event::audit("login", unix_ms)
                    .session(self.id.0)
                    .word("listener", &*self.port.listener.name)
                    .word("client", self.peer.ip.to_string())
                    .word("mechanism", mechanism)
                    .word("class", "anonymous")
                    .untrusted("trace", trace)
                    .number("code", 235)
                    .word("reason", "ok");
                watch.tell(&event, ms);
            }
            Note::Accepted { id, octets, recipients, reverse_path } => {
                watch.add(Counter::MessagesAccepted, 1);
                watch.add(Counter::MessageOctets, octets);
                watch.observe(Histogram::MessageOctetsSpread, octets);
                if !watch.wants(Level::Info) {
                    return;
                }
                let event = Event::log("message.accepted", Level::Info, unix_ms)
                    .session(self.id.0)
                    .word("id", id.to_string())
                    .number("octets", octets)
                    .number("recipients", recipients as u64)
                    .untrusted("sender", reverse_path.as_bytes());
                watch.tell(&event, ms);
            }
            Note::Aborted { .. } => watch.add(Counter::MessagesAborted, 1),
            Note::StarttlsTrailing { octets } => watch.add(Counter::StarttlsTrailingOctets, octets as u64),
        }
    }
}

/// What a reply says about recipients and early talkers, by its stable rule.
fn counter_of(code: u16, rule: &str) -> Option<Counter> {
    if rule == "rcpt.ok" {
        return Some(Counter::RecipientsAccepted);
    }
    if rule.starts_with("sync") {
        return Some(Counter::EarlyTalkers);
    }
    (code >= 400 && (rule.starts_with("rcpt.") || rule.starts_with("relay."))).then_some(Counter::RecipientsRefused)
}
