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
    /// The octets of the verb, upper case.
    pub name: &'static [u8],
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
    Row { name: b"EHLO",      needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    Row { name: b"HELO",      needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    Row { name: b"MAIL",      needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    Row { name: b"RCPT",      needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    Row { name: b"DATA",      needs_tls: true,  needs_auth: true,  mends: false, idle: false },
    Row { name: b"BDAT",      needs_tls: true,  needs_auth: true,  mends: true,  idle: false },
    Row { name: b"RSET",      needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    Row { name: b"NOOP",      needs_tls: false, needs_auth: false, mends: true,  idle: true  },
    Row { name: b"VRFY",      needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    Row { name: b"EXPN",      needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    Row { name: b"HELP",      needs_tls: true,  needs_auth: true,  mends: false, idle: true  },
    Row { name: b"QUIT",      needs_tls: false, needs_auth: false, mends: true,  idle: false },
    Row { name: b"AUTH",      needs_tls: true,  needs_auth: false, mends: false, idle: false },
    Row { name: b"STARTTLS",  needs_tls: false, needs_auth: false, mends: false, idle: false },
    Row { name: b"ETRN",      needs_tls: false, needs_auth: false, mends: false, idle: false },
    Row { name: b"",          needs_tls: false, needs_auth: false, mends: false, idle: false },
];

impl Verb {
    pub(crate) fn row(self) -> &'static Row {
        // The table is in the order of the enum; a test holds it to that.
        &VERBS[self as usize]
    }
}

/// Splits a line into verb and arguments. Arguments lose the spaces around them: RFC 5321 §4.1.1 asks
/// to tolerate trailing ones.
pub(crate) fn parse(line: &[u8]) -> (Verb, &[u8]) {
    let verb = match line.first_chunk::<4>().map(|four| u32::from_be_bytes(*four) & 0xdfdf_dfdf) {
        Some(four) => match &four.to_be_bytes() {
            b"EHLO" => Verb::Ehlo,
            b"HELO" => Verb::Helo,
            b"MAIL" => Verb::Mail,
            b"RCPT" => Verb::Rcpt,
            b"DATA" => Verb::Data,
            b"BDAT" => Verb::Bdat,
            b"RSET" => Verb::Rset,
            b"NOOP" => Verb::Noop,
            b"VRFY" => Verb::Vrfy,
            b"EXPN" => Verb::Expn,
            b"HELP" => Verb::Help,
            b"QUIT" => Verb::Quit,
            b"AUTH" => Verb::Auth,
            b"ETRN" => Verb::Etrn,
            b"STAR" => Verb::StartTls,
            _ => Verb::Unknown,
        },
        None => Verb::Unknown,
    };
    // The mask above also folds some non-letters; the whole verb is compared before it counts.
    let name = verb.row().name;
    match line.split_at_checked(name.len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(name) && rest.first().is_none_or(|&b| b == b' ') => {
            (verb, rest.trim_ascii())
        }
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
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in VERBS.iter().enumerate().filter(|(_, row)| !row.name.is_empty()) {
            let mut line = row.name.to_ascii_lowercase();
            line.extend_from_slice(b" x ");
            let (verb, args) = parse(&line);
            assert_eq!((verb as usize, args), (i, &b"x"[..]));
        }
    }

    #[test]
    fn a_verb_ends_at_a_space() {
        for line in [&b"NOOPS"[..], b"NOO", b"", b"STARTTL", b"STARTTLSX", b"\x0e\x4f\x4f\x50", b"noop\tx", b"MAIL\0"] {
            assert_eq!(parse(line).0, Verb::Unknown, "{line:?}");
        }
        assert_eq!(parse(b"starttls").0, Verb::StartTls);
    }
}
