//! Entry point for fuzzers: anything may come from a server.

use std::sync::Arc;

use crate::envelope::{Envelope, Notify, Recipient};

use super::*;

/// The octets that the message has.
const BODY: &[u8] = b"Subject: x\r\n\r\n.dot\r\n";
const PASSWORD: &str = "a password that is easily found";

/// A server says `octets`: the first chooses what the client is told and in what pieces the rest comes.
///
/// Panics when the client says something other than lines with CRLF, a password in clear, more than a
/// constant for what it heard, or that a message was taken which it had not sent; or when it goes on after its end.
pub fn fuzz_server(octets: &[u8]) {
    let Some((&choice, octets)) = octets.split_first() else { return };
    let Ok(mut settings) = Settings::new("c.example") else { return };
    if choice & 1 != 0 {
        settings.protocol = Protocol::Lmtp;
    }
    settings.starttls =
        [StartTls::IfOffered, StartTls::Required, StartTls::Never, StartTls::Never][usize::from(choice >> 1 & 3)];
    if choice & 8 != 0 {
        let credentials = Credentials::new("alice", "", PASSWORD).expect("it is constant");
        settings.login = Some(Login::new(Arc::new(credentials)));
    }
    let channel = if choice & 16 != 0 { Channel::Tls } else { Channel::Clear };
    let step = [1, 3, 40, usize::MAX][usize::from(choice >> 5 & 3)];
    let mut client = Client::new(Arc::new(settings), channel, [7; 24]);

    let mut envelope = Envelope::default();
    envelope.set_reverse_path(Some("a@c.example"));
    let to = |address| Recipient { address, mailbox: "", orcpt: None, notify: Notify(0) };
    let recipients = [to("x@s.example"), to("y@s.example"), to("postmaster")];
    let message = Message { envelope: &envelope, recipients: &recipients, octets: BODY.len() as u64 };

    let (mut unread, mut out, mut messages, mut body_left, mut said) = (Vec::new(), Vec::new(), 0, 0, 0);
    for piece in octets.chunks(step.min(octets.len().max(1))) {
        unread.extend_from_slice(piece);
        let (used, mut next) = client.receive(&unread, &mut out);
        assert!(used <= unread.len());
        unread.drain(..used);
        assert!(unread.len() <= 2048, "{} octets are left", unread.len());
        loop {
            next = match next {
                Next::Write => {
                    let piece = BODY.get(BODY.len() - body_left..).unwrap_or_default();
                    let piece = piece.get(..7.min(piece.len())).unwrap_or_default();
                    body_left -= piece.len();
                    client.body(piece, &mut out)
                }
                Next::StartTls => {
                    unread.clear();
                    client.tls_started(&mut out)
                }
                Next::Delivered | Next::Closed if messages > 0 => {
                    for result in client.results() {
                        assert!(result != RecipientResult::Pending);
                        let taken = matches!(result, RecipientResult::Taken(_));
                        assert!(!taken || body_left == 0, "taken, but never sent");
                    }
                    if next == Next::Closed {
                        break;
                    }
                    Next::Ready
                }
                Next::Ready if messages < 3 => {
                    messages += 1;
                    body_left = BODY.len();
                    client.deliver(&message, &mut out)
                }
                Next::Read | Next::Ready | Next::Delivered | Next::Closed => break,
            };
        }
        let text = String::from_utf8_lossy(&out).replace("\r\n", "");
        assert!(!text.contains(['\r', '\n']), "{text:?}");
        assert!(
            channel == Channel::Tls || client.channel() == Channel::Tls || !text.contains("YSBwYXNzd29yZA"),
            "{text:?}"
        );
        said += out.len();
        out.clear();
    }
    // A login, three messages with their commands.
    assert!(said < 4096, "{said} octets in answer to {}", octets.len());
    if let Some(failure) = client.failure() {
        assert!(failure.text.len() <= 512 && !failure.text.contains(char::is_control), "{failure}");
        assert_eq!(client.receive(b"250 Ok\r\n", &mut out), (8, Next::Closed));
        assert!(out.is_empty() && client.quit(&mut out) == Next::Closed && out.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of replies in any order, from a fixed seed; xorshift64*.
    #[test]
    fn servers_for_a_moment() {
        const PARTS: [&[u8]; 22] = [
            b"220 s\r\n",
            b"250 Ok\r\n",
            b"250 Ok\r\n",
            b"250 Ok\r\n",
            b"354 Go\r\n",
            b"550 5.1.1 No\r\n",
            b"421 Bye\r\n",
            b"250-s\r\n250-STARTTLS\r\n250 PIPELINING\r\n",
            b"250-s\r\n250-CHUNKING\r\n250 PIPELINING\r\n",
            b"250-s\r\n250 AUTH PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256\r\n",
            b"250-s\r\n250 AUTH LOGIN\r\n",
            b"334 \r\n",
            b"334 VXNlcg==\r\n",
            b"235 Ok\r\n",
            b"535 No\r\n",
            b"504 No\r\n",
            b"250-",
            b"\r\n",
            b"2",
            b"\n",
            b"\0",
            b"452 4.2.2 Full\r\n",
        ];
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut roll = |sides: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
        };
        for _ in 0..30_000 {
            let mut octets = vec![roll(256) as u8];
            if roll(8) > 0 {
                octets.extend_from_slice(PARTS[0]);
                octets.extend_from_slice(PARTS[7 + roll(4)]);
            }
            for _ in 0..roll(25) {
                octets.extend_from_slice(PARTS[roll(PARTS.len())]);
            }
            if roll(4) == 0 {
                let at = roll(octets.len());
                octets[at] = roll(256) as u8;
            }
            if let Err(cause) = std::panic::catch_unwind(|| fuzz_server(&octets)) {
                eprintln!("input b\"{}\"", octets.escape_ascii());
                std::panic::resume_unwind(cause);
            }
        }
    }
}
