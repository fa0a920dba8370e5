//! Why something did not work: what the operator reads, what delivery decides by, what a notice quotes.

use std::fmt;

use super::reply::{Enhanced, Reader};

/// What kind of failure it is, hence what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The peer said 4yz, or the like of it is true here: try again later.
    Temporary,
    /// The peer said 5yz, or can never take this message: trying again will not help.
    Permanent,
    /// The peer does not speak the protocol: try again later, perhaps elsewhere.
    Protocol,
    /// The connection ended: try again later.
    Lost,
}

impl Class {
    /// Of a reply that refuses.
    fn of(code: u16) -> Self {
        if code >= 500 { Self::Permanent } else { Self::Temporary }
    }
}

/// How far it had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for the greeting.
    Greeting,
    /// EHLO, HELO or LHLO.
    Hello,
    /// STARTTLS and the handshake.
    StartTls,
    /// AUTH.
    Auth,
    /// Between messages.
    Idle,
    /// RSET.
    Reset,
    /// MAIL, and what is known before it.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA, until 354.
    Data,
    /// Message octets are being sent.
    Message,
    /// The message was sent whole; what the peer did with it is not known before its reply. A connection
    /// lost here may leave a twin behind when the message is sent again.
    Final,
    /// QUIT.
    Quit,
}

impl Stage {
    /// How long a client waits here at least (RFC 5321 §4.5.3.2).
    pub fn patience_seconds(self) -> u32 {
        match self {
            Self::Data => 120,
            Self::Message => 180,
            Self::Final => 600,
            _ => 300,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Hello => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Idle => "idle",
            Self::Reset => "RSET",
            Self::Mail => "MAIL",
            Self::Recipient => "RCPT",
            Self::Data => "DATA",
            Self::Message => "message",
            Self::Final => "end of message",
            Self::Quit => "QUIT",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why something did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// What to do about it.
    pub class: Class,
    /// How far it had come.
    pub stage: Stage,
    /// The peer's code; `None` when the peer did not say it.
    pub code: Option<u16>,
    /// Enhanced code, the peer's or ours.
    pub enhanced: Option<Enhanced>,
    /// The peer's words (one line, bounded, no control characters, otherwise untrusted) or ours.
    pub text: &'a str,
}

impl Failure<'_> {
    /// Whether trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        self.class == Class::Permanent
    }

    /// The status for a delivery status notification (RFC 3464 §2.3.4): always there, and of the class
    /// that [`Failure::class`] says.
    pub fn status(&self) -> Enhanced {
        let class = if self.is_permanent() { 5 } else { 4 };
        match (self.enhanced, self.class) {
            (Some(enhanced), _) => Enhanced { class, ..enhanced },
            (None, Class::Lost) => Enhanced::new(class, 4, 2),
            (None, Class::Protocol) => Enhanced::new(class, 5, 0),
            (None, Class::Temporary | Class::Permanent) => Enhanced::new(class, 0, 0),
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.stage)?;
        if let Some(code) = self.code {
            write!(f, "{code} ")?;
        }
        if let Some(enhanced) = self.enhanced {
            write!(f, "{enhanced} ")?;
        }
        f.write_str(self.text)
    }
}

/// A failure without its text.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) class: Class,
    pub(crate) stage: Stage,
    pub(crate) code: Option<u16>,
    pub(crate) enhanced: Option<Enhanced>,
}

impl Verdict {
    /// The peer's reply says so.
    pub(crate) fn of_reply(reply: &Reader, stage: Stage) -> Self {
        Self { class: Class::of(reply.code), stage, code: Some(reply.code), enhanced: reply.enhanced }
    }

    /// We say so.
    pub(crate) fn own(class: Class, stage: Stage, enhanced: Option<Enhanced>) -> Self {
        Self { class, stage, code: None, enhanced }
    }

    pub(crate) fn with(self, text: &str) -> Failure<'_> {
        let Self { class, stage, code, enhanced } = self;
        Failure { class, stage, code, enhanced, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_for_every_failure() {
        let failure = |class, code, enhanced| Failure { class, stage: Stage::Mail, code, enhanced, text: "x" };
        for (failure, status) in [
            (failure(Class::Permanent, Some(550), Some(Enhanced::new(5, 1, 1))), "5.1.1"),
            (failure(Class::Temporary, Some(552), Some(Enhanced::new(5, 5, 3))), "4.5.3"),
            (failure(Class::Permanent, Some(550), None), "5.0.0"),
            (failure(Class::Lost, None, None), "4.4.2"),
            (failure(Class::Protocol, None, None), "4.5.0"),
        ] {
            assert_eq!(failure.status().to_string(), status);
        }
        let shown = failure(Class::Permanent, Some(550), Some(Enhanced::new(5, 1, 1))).to_string();
        assert_eq!(shown, "MAIL: 550 5.1.1 x");
    }
}
