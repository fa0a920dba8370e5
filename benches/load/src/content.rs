//! The messages that are sent: names by number, header and body.

use std::sync::Arc;

use crate::plan::Scenario;

/// Our name in EHLO.
pub(crate) const NAME: &str = "load.example";

/// A user's name, a recipient's address: `{n}` is a number.
pub(crate) fn numbered(pattern: &str, n: u32) -> String {
    pattern.replace("{n}", &n.to_string())
}

/// Text that bodies are cut from: its end fits any size.
pub(crate) fn text(scenario: &Scenario) -> Arc<[u8]> {
    let line: &[u8] = if scenario.eight_bit || scenario.smtputf8 {
        "0123456789 äöü ß abcdefghijklmnop 0123456789 äöü ß abcdefghijklmnop 012345\r\n".as_bytes()
    } else {
        b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz\r\n"
    };
    let octets = if scenario.kind.sends_mail() { scenario.size.octets_max() as usize } else { 0 };
    line.repeat(octets / line.len() + 1).into()
}

/// The last `octets` of the text, or a few less: neither half a line end nor half a character comes first.
pub(crate) fn tail(text: &[u8], octets: usize) -> &[u8] {
    let mut start = text.len() - octets.min(text.len());
    while text.get(start).is_some_and(|&octet| octet == b'\n' || octet & 0xc0 == 0x80) {
        start += 1;
    }
    &text[start..]
}

pub(crate) fn header(scenario: &Scenario, from: &str, n: u64, salt: u64) -> Vec<u8> {
    let subject = if scenario.smtputf8 { "Prüfung" } else { "load" };
    let mime = if scenario.eight_bit || scenario.smtputf8 {
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    } else {
        ""
    };
    format!(
        "From: <{from}>\r\nTo: <{}>\r\nSubject: {subject}\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n{mime}\
         Message-ID: <{salt:x}.{n}@{NAME}>\r\n\r\n",
        numbered(&scenario.to, 0),
    )
    .into_bytes()
}

pub(crate) fn sender(scenario: &Scenario, user: u32) -> String {
    let pattern = scenario.from.as_deref().or(scenario.user.as_deref()).unwrap_or("load@load.example");
    numbered(pattern, user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Kind;

    #[test]
    fn texts_begin_and_end_whole() {
        let mut scenario = Scenario::new(Kind::Submit);
        scenario.eight_bit = true;
        let text = text(&scenario);
        for octets in 2..=4096 {
            let tail = tail(&text, octets);
            assert!(octets - tail.len() <= 2 && tail.ends_with(b"\r\n"), "{octets}");
            let tail = std::str::from_utf8(tail).unwrap();
            assert!(!tail.starts_with('\n') && !tail.replace("\r\n", "").contains(['\r', '\n']), "{octets}");
        }
    }
}
