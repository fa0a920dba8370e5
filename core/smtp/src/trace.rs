//! Header lines that we put before a message: Received (RFC 5321 §4.4), Date, Message-ID.

use std::net::IpAddr;

use crate::envelope::Envelope;
use crate::host::Context;
use crate::id::QueueId;
use crate::path;

/// RFC 5322 §3.3 date-time in UTC, so that nobody needs a time-zone file: `Sat, 21 Nov 2026 01:05:57 +0000`.
pub fn write_date(unix_ms: u64, to: &mut Vec<u8>) {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970 (Hinnant's algorithm, years counted from March).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month as usize];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = write!(to, "{weekday}, {day} {month} {year} {hour:02}:{minute:02}:{second:02} +0000");
}

/// The protocol keyword of RFC 3848 and RFC 6531 §4.3: S (TLS) comes before A (AUTH).
pub fn with_protocol(extended: bool, smtputf8: bool, tls: bool, authenticated: bool) -> &'static str {
    match (extended, smtputf8, tls, authenticated) {
        (false, ..) => "SMTP",
        (_, false, false, false) => "ESMTP",
        (_, false, true, false) => "ESMTPS",
        (_, false, false, true) => "ESMTPA",
        (_, false, true, true) => "ESMTPSA",
        (_, true, false, false) => "UTF8SMTP",
        (_, true, true, false) => "UTF8SMTPS",
        (_, true, false, true) => "UTF8SMTPA",
        (_, true, true, true) => "UTF8SMTPSA",
    }
}

/// What the client called itself and how.
pub(crate) struct Greeted<'a> {
    pub name: &'a str,
    pub extended: bool,
    pub authenticated: bool,
}

/// Appends the Received line.
pub(crate) fn write_received(
    greeted: &Greeted<'_>,
    id: QueueId,
    envelope: &Envelope,
    cx: &Context<'_>,
    to: &mut Vec<u8>,
) {
    let listener = cx.listener;
    to.extend_from_slice(b"Received: from ");
    if listener.hide_client && greeted.authenticated {
        // Not the fact of the submission, only its place is withheld. RFC 2606 §2 keeps `.invalid` free.
        to.extend_from_slice(b"client.invalid (address withheld)");
    } else {
        write_client(greeted.name, cx.peer.ip, to);
    }
    to.extend_from_slice(b"\r\n\tby ");
    to.extend_from_slice(listener.hostname.as_bytes());
    to.extend_from_slice(b" (Portreeve) with ");
    let with = with_protocol(greeted.extended, envelope.smtputf8, cx.tls.is_some(), greeted.authenticated);
    to.extend_from_slice(with.as_bytes());
    to.extend_from_slice(b"\r\n\tid ");
    to.extend_from_slice(&id.text());
    // With several recipients the line would tell each of the others (RFC 5321 §7.6).
    let mut recipients = envelope.recipients();
    if let (Some(only), None) = (recipients.next(), recipients.next()) {
        to.extend_from_slice(b"\r\n\tfor <");
        to.extend_from_slice(only.address.as_bytes());
        to.push(b'>');
    }
    if let Some(tls) = cx.tls {
        // RFC 8314 §4.3; it is part of Opt-info and so comes after `for`.
        to.extend_from_slice(b"\r\n\ttls ");
        to.extend_from_slice(tls.cipher.as_bytes());
        if !tls.group.is_empty() {
            to.extend_from_slice(b" group ");
            to.extend_from_slice(tls.group.as_bytes());
        }
    }
    to.extend_from_slice(b";\r\n\t");
    write_date(cx.unix_ms, to);
    to.extend_from_slice(b"\r\n");
}

/// `name ([address])`; a name that is no domain or literal is not repeated (CONTRACT C35).
fn write_client(name: &str, ip: IpAddr, to: &mut Vec<u8>) {
    let literal = |to: &mut Vec<u8>| {
        use std::io::Write;
        // Writing to a Vec cannot fail.
        let _ = match ip {
            IpAddr::V4(ip) => write!(to, "[{ip}]"),
            IpAddr::V6(ip) => write!(to, "[IPv6:{ip}]"),
        };
    };
    if name.is_ascii() && (path::is_domain(name) || path::is_literal(name)) {
        to.extend_from_slice(name.as_bytes());
    } else {
        literal(to);
    }
    to.extend_from_slice(b" (");
    literal(to);
    to.push(b')');
}

/// Appends Date and Message-ID where they are missing (RFC 6409 §8.2, §8.3).
pub(crate) fn write_fixups(date: bool, message_id: bool, id: QueueId, cx: &Context<'_>, to: &mut Vec<u8>) {
    if date {
        to.extend_from_slice(b"Date: ");
        write_date(cx.unix_ms, to);
        to.extend_from_slice(b"\r\n");
    }
    if message_id {
        to.extend_from_slice(b"Message-ID: <");
        to.extend_from_slice(&id.text());
        to.push(b'@');
        to.extend_from_slice(cx.listener.hostname.as_bytes());
        to.extend_from_slice(b">\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix, text) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (1_795_223_157, "Sat, 21 Nov 2026 01:05:57 +0000"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 +0000"),
            (4_107_542_400, "Mon, 1 Mar 2100 00:00:00 +0000"),
        ] {
            let mut date = Vec::new();
            write_date(unix * 1000 + 999, &mut date);
            assert_eq!(String::from_utf8(date).unwrap(), text);
        }
    }
}
