//! Octets become lines. What is no line is thrown away to its end, and answered exactly once.
//!
//! ```text
//! octets ─► whole, clean            ─► Line: a command, or a response of an exchange
//!        ─► CR, LF or NUL of its own ─► NoLine, at once; after a lone LF what goes on is thrown away without a word
//!        ─► too long                ─► NoLine, at its end: until then it is thrown away as it comes
//!        ─► not all there           ─► Partial
//! ```

use crate::line::{self, Scan};
use crate::listener::Limits;
use crate::reply::{self, Reply};

/// Where a session stands in the lines of its client.
#[derive(Default)]
pub(super) struct Lines {
    /// The input before this position is known to hold no LF.
    scanned: u32,
    skipping: Option<Skipping>,
}

/// A line that is being thrown away.
struct Skipping {
    /// The last octet of it was a CR.
    cr: bool,
    /// What is said at its end; `None`: it was said already.
    owed: Option<Kind>,
}

/// Lines that carry SASL have limits and replies of their own (RFC 4954 §4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command,
    Auth,
}

/// What stands at the front of the input; `wire`: so many of its octets are used.
pub(super) enum Taken<'a> {
    Line {
        line: &'a [u8],
        wire: usize,
    },
    /// Not a line, whatever it looks like.
    NoLine {
        reply: &'static Reply,
        wire: usize,
    },
    /// Octets of a line that is being thrown away.
    Nothing {
        wire: usize,
    },
    /// Its end has not come.
    Partial {
        wire: usize,
    },
}

impl Lines {
    /// Takes what stands at the front of `input`; within an exchange every line is a response.
    pub(super) fn take<'a>(&mut self, input: &'a [u8], in_exchange: bool, limits: &Limits) -> Taken<'a> {
        if let Some(skipping) = &mut self.skipping {
            let (wire, ended) = line::skip(input, &mut skipping.cr);
            if !ended {
                return Taken::Partial { wire };
            }
            let owed = skipping.owed;
            self.skipping = None;
            return match owed {
                Some(kind) => Taken::NoLine { reply: kind.too_long(), wire },
                None => Taken::Nothing { wire },
            };
        }
        let kind = Kind::of(input, in_exchange);
        let scanned = std::mem::take(&mut self.scanned);
        match line::first(input, scanned as usize, kind.octets_max(limits)) {
            Scan::Line { line, wire } => Taken::Line { line, wire },
            Scan::Dirty { wire } => Taken::NoLine { reply: kind.dirty(), wire },
            Scan::BareLf { wire } => {
                // Told at once, although the line goes on: somebody who types into a raw connection sees why.
                self.skipping = Some(Skipping { cr: false, owed: None });
                Taken::NoLine { reply: kind.dirty(), wire }
            }
            Scan::TooLong { wire, ended: true } => Taken::NoLine { reply: kind.too_long(), wire },
            Scan::TooLong { wire, ended: false } => {
                // More may stand behind it, when it was a lone LF that showed the length.
                let last = wire.checked_sub(1).and_then(|at| input.get(at));
                self.skipping = Some(Skipping { cr: last == Some(&b'\r'), owed: Some(kind) });
                Taken::Nothing { wire }
            }
            Scan::Partial => {
                self.scanned = input.len() as u32;
                Taken::Partial { wire: 0 }
            }
        }
    }
}

impl Kind {
    fn of(input: &[u8], in_exchange: bool) -> Self {
        let auth = in_exchange || input.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"AUTH "));
        if auth { Self::Auth } else { Self::Command }
    }

    fn octets_max(self, limits: &Limits) -> usize {
        match self {
            Self::Command => limits.line_octets_max,
            Self::Auth => limits.sasl_line_octets_max,
        }
    }

    fn too_long(self) -> &'static Reply {
        match self {
            Self::Command => &reply::LINE_TOO_LONG,
            Self::Auth => &reply::AUTH_LINE_TOO_LONG,
        }
    }

    fn dirty(self) -> &'static Reply {
        match self {
            Self::Command => &reply::BARE_CONTROL,
            Self::Auth => &reply::AUTH_LINE_DIRTY,
        }
    }
}
