//! ANONYMOUS (RFC 4505): the client says that it proves nothing, and may leave a trace text for the log.
//!
//! It asks the host for nothing and names no proof: whether a session without an identity is worth anything
//! here is the operator's decision alone. A host that knows no such permission refuses it.

use portreeve_plugin_sdk::{Bad, Cx, Done, Event, Mechanism, Meta, Settings, flag};

/// The ANONYMOUS mechanism.
pub struct Anonymous;

/// RFC 4505 §2: characters, of up to four octets.
const TRACE_CHARACTERS_MAX: usize = 255;

impl Mechanism for Anonymous {
    const META: Meta = Meta {
        name: c"ANONYMOUS",
        flags: flag::CLIENT_FIRST
            | flag::ANONYMOUS
            | flag::OBSOLETE
            | flag::UTF8
            | flag::POD_STATE
            | flag::ONE_ROUNDTRIP,
        strength: 0,
        message_octets_max: 4 * TRACE_CHARACTERS_MAX as u32,
        steps_max: 2,
        ..Meta::NONE
    };
    type State = ();

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self)
    }

    fn step(&self, _: &mut (), cx: Cx<'_>) -> Result<Done, Bad> {
        match cx.event() {
            Event::Start { initial: None } => cx.challenge(),
            Event::Start { initial: Some(message) } | Event::Message(message) => {
                check(message)?;
                cx.succeed_anonymously()
            }
            Event::Outcome(_) | Event::Resume => Err(Bad::INTERNAL),
        }
    }
}

/// `message = [ email / token ]`: an address, or up to 255 characters without `@` (RFC 4505 §2), none of which
/// the "trace" profile prohibits (§3). Its rule about text in two directions is left to whoever shows the log.
fn check(message: &[u8]) -> Result<(), Bad> {
    let trace = std::str::from_utf8(message).map_err(|_| Bad::MALFORMED.because("the trace text is not UTF-8"))?;
    if trace.chars().count() > TRACE_CHARACTERS_MAX {
        return Err(Bad::MALFORMED.because("the trace text has more than 255 characters"));
    }
    if trace.chars().any(is_prohibited) {
        return Err(Bad::MALFORMED.because("the trace text has a character that is no text (RFC 4505 section 3)"));
    }
    match trace.rsplit_once('@') {
        Some((local, domain)) if local.is_empty() || domain.is_empty() => {
            Err(Bad::MALFORMED.because("the trace text has an @ and is no address"))
        }
        _ => Ok(()),
    }
}

/// RFC 3454 tables C.2.1, C.2.2, C.3, C.4, C.6, C.8, C.9. (C.5 is the surrogates: no UTF-8 has them.)
fn is_prohibited(character: char) -> bool {
    let code = u32::from(character);
    character.is_control()
        || code & 0xfffe == 0xfffe
        || matches!(
            code,
            0x06dd | 0x070f | 0x180e | 0x200c | 0x200d | 0x2028 | 0x2029 | 0x2060..=0x2063 | 0x206a..=0x206f | 0xfeff
                | 0xfff9..=0xfffd | 0x1d173..=0x1d17a // C.2.2
                | 0xe000..=0xf8ff | 0xf0000..=0xffffd | 0x10_0000..=0x10_fffd // C.3
                | 0xfdd0..=0xfdef // C.4
                | 0x0340 | 0x0341 | 0x200e | 0x200f | 0x202a..=0x202e // C.8
                | 0xe0001 | 0xe0020..=0xe007f // C.9
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    #[test]
    fn any_trace_text_will_do() {
        let longest = "\u{1f600}".repeat(255);
        for trace in ["sirhc", "", "jürgen@example.com", "two words", longest.as_str()] {
            assert_eq!(Exchange::new(Anonymous).start(Some(trace.as_bytes())), Answer::Success { data: None });
            let mut exchange = Exchange::new(Anonymous);
            assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
            assert_eq!(exchange.message(trace.as_bytes()), Answer::Success { data: None });
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let too_long = "x".repeat(256);
        for trace in [
            "a\0",
            "a\r\nb",
            "\x7f",
            "\u{85}",
            "\u{200f}x",
            "\u{202e}x",
            "\u{feff}",
            "\u{fffd}",
            "\u{ffff}",
            "\u{e000}",
            "\u{1fffe}",
            "\u{10fffd}",
            "\u{e0001}",
            "@",
            "a@",
            "@b",
            too_long.as_str(),
        ] {
            let answer = Exchange::new(Anonymous).start(Some(trace.as_bytes()));
            assert!(matches!(answer, Answer::Failure { class: fail::MALFORMED, .. }), "{trace:?}: {answer:?}");
        }
        let answer = Exchange::new(Anonymous).start(Some(b"\xff"));
        assert!(matches!(answer, Answer::Failure { class: fail::MALFORMED, .. }));
    }
}
