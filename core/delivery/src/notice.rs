//! Delivery status notifications (RFC 3461, RFC 3464; RFC 6533 for addresses beyond ASCII).
//!
//! A notice goes to a sender who had logged in, and to nobody else: the sender of other mail is whatever a
//! stranger wrote, and a notice to it would be spam that we send (CONTRACT C28). It has a null reverse-path,
//! so no notice is ever sent about a notice.
//!
//! It goes into the spool like any other message, written by delivery itself, and is durable before the
//! recipients that it tells about are settled. A crash in between sends it twice, never not at all.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use smtp::client::Enhanced;
use smtp::envelope::{Body, Envelope, Notify, Recipient, Ret};
use smtp::id::QueueId;
use smtp::param::{XTEXT_OCTETS_MAX, decode_xtext};
use spool::{Completions, Entry, Port, Trouble as SpoolTrouble, Writer};

use crate::route::{Mail, Trouble};

/// A message up to this is returned whole when RET=FULL asks for it; of others the header is.
const RETURNED_OCTETS_MAX: u64 = 1 << 20;
/// The most of a header that is returned.
const HEADER_OCTETS_MAX: usize = 64 << 10;

/// What became of a recipient.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It is in the mailbox.
    Delivered,
    /// Given to a host that sends no notices.
    Relayed(Box<str>),
    /// It has to wait, until this time at the most, milliseconds since 1970.
    Delayed(Trouble, u64),
    /// It will not be delivered.
    Failed(Trouble),
}

/// Why nobody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTold {
    /// NOTIFY says so.
    Unwanted,
    /// It is a notice itself, or the like.
    NullSender,
    /// The sender is what a stranger wrote.
    Stranger,
}

/// Whether the sender hears of this.
pub(crate) fn wanted(envelope: &Envelope, notify: Notify, fate: &Fate) -> Result<(), NotTold> {
    // RFC 3461 §4.1: without NOTIFY it is for failures, and may be for delays.
    let (bit, unasked) = match fate {
        Fate::Failed(_) => (Notify::FAILURE, true),
        Fate::Delayed(..) => (Notify::DELAY, true),
        Fate::Delivered | Fate::Relayed(_) => (Notify::SUCCESS, false),
    };
    if notify.0 & bit.0 == 0 && !(unasked && notify.0 == 0) {
        return Err(NotTold::Unwanted);
    }
    match (envelope.reverse_path(), envelope.identity()) {
        (None, _) => Err(NotTold::NullSender),
        (Some(_), None) => Err(NotTold::Stranger),
        (Some(_), Some(_)) => Ok(()),
    }
}

/// Makes the notice: its envelope and the whole message.
pub(crate) fn make(
    mail: &Mail<'_>,
    about: &[(Recipient<'_>, Fate)],
    hostname: &str,
    id: QueueId,
    now_ms: u64,
) -> io::Result<(Envelope, Vec<u8>)> {
    let failed = about.iter().any(|(_, fate)| matches!(fate, Fate::Failed(_)));
    let delayed = about.iter().any(|(_, fate)| matches!(fate, Fate::Delayed(..)));
    let sender = mail.envelope.reverse_path().unwrap_or_default();
    let whole = failed && mail.envelope.ret == Some(Ret::Full) && mail.body_octets() <= RETURNED_OCTETS_MAX;
    let returned = returned(mail, whole)?;
    let utf8 = !sender.is_ascii() || about.iter().any(|(to, _)| !to.address.is_ascii());
    let eight_bit = utf8 || !returned.is_ascii();

    let mut text = Text(Vec::new());
    text.0.extend_from_slice(b"Date: ");
    smtp::trace::write_date(now_ms, &mut text.0);
    text.0.extend_from_slice(b"\r\n");
    text.line(&["From: Mail Delivery System <MAILER-DAEMON@", hostname, ">"]);
    text.line(&["To: <", sender, ">"]);
    let subject = match (failed, delayed) {
        (true, _) => "Undelivered mail returned to sender",
        (false, true) => "Delayed mail (still being tried)",
        (false, false) => "Successful mail delivery report",
    };
    text.line(&["Subject: ", subject]);
    text.line(&["Message-ID: <", &id.to_string(), "@", hostname, ">"]);
    text.line(&["Auto-Submitted: auto-replied"]);
    text.line(&["MIME-Version: 1.0"]);
    // Unguessable from outside, so no returned message can end its part.
    let boundary = format!("=_{id}");
    text.line(&["Content-Type: multipart/report; report-type=delivery-status; boundary=\"", &boundary, "\""]);
    text.line(&["Content-Transfer-Encoding: ", if eight_bit { "8bit" } else { "7bit" }]);
    text.line(&[""]);

    text.line(&["--", &boundary]);
    text.line(&["Content-Type: text/plain; charset=utf-8"]);
    text.line(&["Content-Transfer-Encoding: ", if utf8 { "8bit" } else { "7bit" }]);
    text.line(&[""]);
    text.line(&["This is the mail server ", hostname, "."]);
    for (group, head) in [
        (0, "Your message could not be delivered to these recipients. It will not be tried again."),
        (
            1,
            "Your message could not be delivered to these recipients yet. You need not do anything: it is tried again.",
        ),
        (2, "Your message was delivered to these recipients, or given to a server that sends no reports."),
    ] {
        let of = |fate: &Fate| match fate {
            Fate::Failed(_) => 0,
            Fate::Delayed(..) => 1,
            Fate::Delivered | Fate::Relayed(_) => 2,
        };
        let mut these = about.iter().filter(|(_, fate)| of(fate) == group).peekable();
        if these.peek().is_some() {
            text.line(&[""]);
            text.line(&[head]);
            text.line(&[""]);
        }
        for (to, fate) in these {
            match fate {
                Fate::Failed(trouble) | Fate::Delayed(trouble, _) => {
                    text.line(&["  <", to.address, ">"]);
                    text.line(&["      ", trouble.said.as_deref().unwrap_or(&trouble.text)]);
                }
                Fate::Relayed(host) => text.line(&["  <", to.address, "> (relayed to ", host, ")"]),
                Fate::Delivered => text.line(&["  <", to.address, ">"]),
            }
        }
    }
    text.line(&[""]);

    text.line(&["--", &boundary]);
    // RFC 6533 §3: the global form where addresses are not ASCII.
    let (kind, address_type) = if utf8 { ("global-", "utf-8") } else { ("", "rfc822") };
    text.line(&["Content-Type: message/", kind, "delivery-status"]);
    if utf8 {
        text.line(&["Content-Transfer-Encoding: 8bit"]);
    }
    text.line(&[""]);
    text.line(&["Reporting-MTA: dns; ", hostname]);
    let mut buffer = [0; XTEXT_OCTETS_MAX];
    if let Some(envid) = mail.envelope.envid().and_then(|xtext| decode_xtext(xtext, &mut buffer)) {
        text.line(&["Original-Envelope-Id: ", envid]);
    }
    text.0.extend_from_slice(b"Arrival-Date: ");
    smtp::trace::write_date(mail.unix_ms(), &mut text.0);
    text.0.extend_from_slice(b"\r\n");
    for (to, fate) in about {
        text.line(&[""]);
        if let Some((kind, xtext)) = to.orcpt.and_then(|orcpt| orcpt.split_once(';'))
            && let Some(address) = decode_xtext(xtext, &mut buffer)
        {
            text.line(&["Original-Recipient: ", kind, "; ", address]);
        }
        text.line(&["Final-Recipient: ", address_type, "; ", to.address]);
        match fate {
            Fate::Delivered => {
                text.line(&["Action: delivered"]);
                text.line(&["Status: 2.0.0"]);
            }
            Fate::Relayed(host) => {
                text.line(&["Action: relayed"]);
                text.line(&["Status: 2.0.0"]);
                text.line(&["Remote-MTA: dns; ", host]);
            }
            Fate::Failed(trouble) | Fate::Delayed(trouble, _) => {
                let delayed = matches!(fate, Fate::Delayed(..));
                text.line(&["Action: ", if delayed { "delayed" } else { "failed" }]);
                // RFC 3463 §3: what may still come right is 4.y.z.
                let class = if delayed { 4 } else { trouble.status.class };
                text.line(&["Status: ", &Enhanced { class, ..trouble.status }.to_string()]);
                if let Some(host) = &trouble.remote {
                    text.line(&["Remote-MTA: dns; ", host]);
                }
                match &trouble.said {
                    Some(said) => text.line(&["Diagnostic-Code: smtp; ", said]),
                    None => text.line(&["Diagnostic-Code: X-Portreeve; ", &trouble.text]),
                }
                if let Fate::Delayed(_, until_ms) = fate {
                    text.0.extend_from_slice(b"Will-Retry-Until: ");
                    smtp::trace::write_date(*until_ms, &mut text.0);
                    text.0.extend_from_slice(b"\r\n");
                }
            }
        }
    }
    text.line(&[""]);

    text.line(&["--", &boundary]);
    let kind = match (whole, utf8) {
        (true, false) => "message/rfc822",
        (true, true) => "message/global",
        (false, false) => "text/rfc822-headers",
        (false, true) => "message/global-headers",
    };
    text.line(&["Content-Type: ", kind]);
    if !returned.is_ascii() {
        text.line(&["Content-Transfer-Encoding: 8bit"]);
    }
    text.line(&[""]);
    text.0.extend_from_slice(&returned);
    if !returned.ends_with(b"\r\n") {
        text.0.extend_from_slice(b"\r\n");
    }
    text.line(&["--", &boundary, "--"]);

    let mut envelope = Envelope::default();
    envelope.set_reverse_path(None);
    envelope.smtputf8 = utf8;
    envelope.body = if eight_bit { Body::EightBitMime } else { Body::SevenBit };
    // Where its domain is ours the sender's mailbox is the account's that it was sent from.
    let mailbox = mail.envelope.identity().unwrap_or_default();
    envelope.push(Recipient { address: sender, mailbox, orcpt: None, notify: Notify::NEVER });
    Ok((envelope, text.0))
}

/// The message, or its header.
fn returned(mail: &Mail<'_>, whole: bool) -> io::Result<Vec<u8>> {
    let mut octets = mail.prepend().to_vec();
    let most = if whole { usize::MAX } else { octets.len() + HEADER_OCTETS_MAX };
    mail.body(&mut |part| {
        let room = most.saturating_sub(octets.len());
        octets.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
        Ok(())
    })?;
    if !whole {
        let blank = octets.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 2);
        // Without an end of the header, at the end of a line.
        let line = || octets.windows(2).rposition(|two| two == b"\r\n").map(|at| at + 2);
        let end = blank.or_else(line).unwrap_or(0);
        octets.truncate(end);
    }
    Ok(octets)
}

/// Lines with CRLF; nothing in a part becomes a line end.
struct Text(Vec<u8>);

impl Text {
    fn line(&mut self, parts: &[&str]) {
        let mut octet = [0; 4];
        for c in parts.iter().flat_map(|part| part.chars()).take(900) {
            let c = if c.is_control() { '?' } else { c };
            self.0.extend_from_slice(c.encode_utf8(&mut octet).as_bytes());
        }
        self.0.extend_from_slice(b"\r\n");
    }
}

/// Where notices are written: a writer of the spool like a worker's.
pub(crate) struct Postbox {
    port: Port,
    waiting: Arc<Waiting>,
    _writer: Writer,
}

#[derive(Default)]
struct Waiting {
    room: parking_lot::Condvar,
    full: Mutex<()>,
}

impl Completions for Waiting {
    /// Every commit here is waited for.
    fn done(&self, _: u64, _: Result<(), SpoolTrouble>) {}

    fn room(&self) {
        let _full = self.full.lock();
        self.room.notify_all();
    }
}

impl Postbox {
    pub(crate) fn new(writer: Writer) -> Self {
        let waiting = Arc::new(Waiting::default());
        Self { port: writer.port(waiting.clone()), waiting, _writer: writer }
    }

    /// Writes a message and waits until it is durable.
    pub(crate) fn post(&self, id: QueueId, envelope: &Envelope, message: &[u8]) -> Result<(), String> {
        let refused = |trouble| match trouble {
            SpoolTrouble::NoSpace => "no room on the spool's disk".to_owned(),
            SpoolTrouble::Temporary => "the spool's disk failed".to_owned(),
        };
        let mut entry = self.begin(id, message.len() as u64).map_err(refused)?;
        self.append(&mut entry, message);
        self.commit(entry, envelope, b"").map_err(refused)
    }

    /// Makes room for a message of so many octets.
    pub(crate) fn begin(&self, id: QueueId, octets: u64) -> Result<Entry, SpoolTrouble> {
        self.port.begin(id, Some(octets))
    }

    /// Takes a part of it.
    pub(crate) fn append(&self, entry: &mut Entry, part: &[u8]) {
        let mut rest = part;
        while !rest.is_empty() {
            let taken = entry.append(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if taken == 0 {
                let mut full = self.waiting.full.lock();
                // What was told before we listened is found by trying again.
                self.waiting.room.wait_for(&mut full, std::time::Duration::from_millis(20));
            }
        }
    }

    /// Waits until it is durable.
    pub(crate) fn commit(&self, entry: Entry, envelope: &Envelope, prepend: &[u8]) -> Result<(), SpoolTrouble> {
        let mut octets = Vec::new();
        envelope.encode(&mut octets);
        self.port.commit_now(entry, &octets, prepend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(sender: Option<&str>, identity: Option<&str>) -> Envelope {
        let mut envelope = Envelope::default();
        envelope.set_reverse_path(sender);
        identity.into_iter().for_each(|identity| envelope.set_identity(identity));
        envelope
    }

    #[test]
    fn who_is_told() {
        let failed = Fate::Failed(Trouble::own(Enhanced::new(5, 0, 0), "x"));
        let delayed = Fate::Delayed(Trouble::own(Enhanced::new(4, 0, 0), "x"), 0);
        let known = envelope(Some("a@b.example"), Some("a"));
        for (notify, fate, expect) in [
            (Notify(0), &failed, Ok(())),
            (Notify(0), &Fate::Delivered, Err(NotTold::Unwanted)),
            (Notify::NEVER, &failed, Err(NotTold::Unwanted)),
            (Notify::SUCCESS, &failed, Err(NotTold::Unwanted)),
            (Notify::SUCCESS, &Fate::Relayed("h".into()), Ok(())),
            (Notify(6), &failed, Ok(())),
            (Notify::DELAY, &failed, Err(NotTold::Unwanted)),
            (Notify::DELAY, &delayed, Ok(())),
            (Notify(0), &delayed, Ok(())),
            (Notify::FAILURE, &delayed, Err(NotTold::Unwanted)),
            (Notify::NEVER, &delayed, Err(NotTold::Unwanted)),
        ] {
            assert_eq!(wanted(&known, notify, fate), expect, "{notify:?} {fate:?}");
        }
        let never =
            [(envelope(None, Some("a")), NotTold::NullSender), (envelope(Some("a@b"), None), NotTold::Stranger)];
        for (envelope, why) in never {
            assert_eq!(wanted(&envelope, Notify(0), &failed), Err(why));
            assert_eq!(wanted(&envelope, Notify::SUCCESS, &Fate::Delivered), Err(why));
            assert_eq!(wanted(&envelope, Notify::DELAY, &delayed), Err(why));
        }
    }

    #[test]
    fn nothing_that_comes_from_outside_makes_a_line() {
        let mut text = Text(Vec::new());
        text.line(&["Diagnostic-Code: smtp; 550 a\r\nBcc: x", "\u{85}\u{0}"]);
        assert_eq!(text.0, "Diagnostic-Code: smtp; 550 a??Bcc: x??\r\n".as_bytes());
    }
}
