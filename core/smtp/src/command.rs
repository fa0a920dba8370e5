//! The table of verbs: what each needs before it means anything, and whether it ends a pipelined group.

/// A command verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verb {
    Ehlo,
    Helo,
    Mail,
    Rcpt,
    Data,
    Bdat,
    Rset,
    Noop,
    Vrfy,
    Expn,
    Help,
    Quit,
    Auth,
    StartTls,
    Etrn,
    Unknown,
}

/// What a verb needs.
pub(crate) struct Row {
    /// Answered 530 until TLS where TLS is required (RFC 3207 §4).
    pub needs_tls: bool,
    /// Answered 530 until AUTH where AUTH is required (RFC 4954 §6).
    pub needs_auth: bool,
    /// Still means something after a failed BDAT (RFC 3030 §2).
    pub mends: bool,
    /// Does nothing for the mail; too many of them end the session.
    pub idle: bool,
}

#[rustfmt::skip]
const VERBS: &[Row] = &[
    /* EHLO     */ Row { needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    /* HELO     */ Row { needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    /* MAIL     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    /* RCPT     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    /* DATA     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    /* BDAT     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    /* RSET     */ Row { needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    /* NOOP     */ Row { needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    /* VRFY     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    /* EXPN     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    /* HELP     */ Row { needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    /* QUIT     */ Row { needs_tls: false, needs_auth: false, mends: true,  idle: false },
    /* AUTH     */ Row { needs_tls: true,  needs_auth: false, mends: false, idle: false },
    /* STARTTLS */ Row { needs_tls: false, needs_auth: false, mends: false, idle: false },
    /* ETRN     */ Row { needs_tls: false, needs_auth: false, mends: false, idle: false },
    /* unknown  */ Row { needs_tls: false, needs_auth: false, mends: false, idle: false },
];

impl Verb {
    pub(crate) fn row(self) -> &'static Row {
        // The table is in the order of the enum.
        &VERBS[self as usize]
    }
}

/// Four letters as a number, so that a verb is found by one comparison of words.
const fn word(letters: &[u8; 4]) -> u32 {
    u32::from_be_bytes(*letters)
}

/// Folds case: of all octets only the two forms of a letter become its upper-case one.
const FOLD: u32 = 0xdfdf_dfdf;

/// Splits a line into verb and arguments. Arguments lose the spaces around them: RFC 5321 §4.1.1 asks
/// to tolerate trailing ones.
pub(crate) fn parse(line: &[u8]) -> (Verb, &[u8]) {
    const EHLO: u32 = word(b"EHLO");
    const HELO: u32 = word(b"HELO");
    const MAIL: u32 = word(b"MAIL");
    const RCPT: u32 = word(b"RCPT");
    const DATA: u32 = word(b"DATA");
    const BDAT: u32 = word(b"BDAT");
    const RSET: u32 = word(b"RSET");
    const NOOP: u32 = word(b"NOOP");
    const VRFY: u32 = word(b"VRFY");
    const EXPN: u32 = word(b"EXPN");
    const HELP: u32 = word(b"HELP");
    const QUIT: u32 = word(b"QUIT");
    const AUTH: u32 = word(b"AUTH");
    const ETRN: u32 = word(b"ETRN");
    const STAR: u32 = word(b"STAR");
    const TTLS: u32 = word(b"TTLS");
    let Some((four, mut rest)) = line.split_first_chunk::<4>() else { return (Verb::Unknown, line) };
    let verb = match word(four) & FOLD {
        EHLO => Verb::Ehlo,
        HELO => Verb::Helo,
        MAIL => Verb::Mail,
        RCPT => Verb::Rcpt,
        DATA => Verb::Data,
        BDAT => Verb::Bdat,
        RSET => Verb::Rset,
        NOOP => Verb::Noop,
        VRFY => Verb::Vrfy,
        EXPN => Verb::Expn,
        HELP => Verb::Help,
        QUIT => Verb::Quit,
        AUTH => Verb::Auth,
        ETRN => Verb::Etrn,
        STAR => match rest.split_first_chunk::<4>() {
            Some((four, after)) if word(four) & FOLD == TTLS => {
                rest = after;
                Verb::StartTls
            }
            _ => return (Verb::Unknown, line),
        },
        _ => return (Verb::Unknown, line),
    };
    match rest {
        [] => (verb, rest),
        [b' ', ..] => (verb, rest.trim_ascii()),
        _ => (Verb::Unknown, line),
    }
}

/// Whether this is the start of an HTTP request: a browser that somebody else's page sent here
/// (cross-protocol attacks, CONTRACT B12).
pub(crate) fn is_http(line: &[u8]) -> bool {
    [&b"GET "[..], b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"Host:"]
        .iter()
        .any(|prefix| line.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_found_in_any_case_and_has_its_row() {
        let names = [
            "EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT", "AUTH",
            "STARTTLS", "ETRN",
        ];
        for (i, name) in names.into_iter().enumerate() {
            for line in [format!("{name} x "), format!("{} x", name.to_ascii_lowercase())] {
                let (verb, args) = parse(line.as_bytes());
                assert_eq!((verb as usize, args), (i, &b"x"[..]), "{line}");
            }
        }
        assert_eq!(VERBS.len(), names.len() + 1);
        // RFC 4954 §6 and RFC 3207 §4: what passes before.
        let passes = |verb: Verb| !verb.row().needs_auth;
        assert!(
            [Verb::Ehlo, Verb::Helo, Verb::Noop, Verb::Rset, Verb::Quit, Verb::Auth, Verb::StartTls].map(passes)
                == [true; 7]
        );
        assert!(
            [Verb::Mail, Verb::Rcpt, Verb::Data, Verb::Bdat, Verb::Vrfy, Verb::Expn, Verb::Help].map(passes)
                == [false; 7]
        );
    }

    #[test]
    fn a_verb_ends_at_a_space() {
        for line in [&b"NOOPS"[..], b"NOO", b"", b"STARTTL", b"STARTTLSX", b"\x0e\x4f\x4f\x50", b"noop\tx", b"MAIL\0"] {
            assert_eq!(parse(line).0, Verb::Unknown, "{line:?}");
        }
        assert_eq!(parse(b"starttls").0, Verb::StartTls);
    }
}
