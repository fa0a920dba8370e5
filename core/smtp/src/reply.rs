//! Every reply that a session can give, with a stable rule id for logs and the manual.

use crate::host::SessionId;

/// One reply line. Texts are constant; the few with a parameter are written by their own functions.
#[derive(Debug)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// Code, enhanced code (RFC 3463) and text, without CRLF.
    pub line: &'static str,
    /// Stable id in logs and the manual.
    pub rule: &'static str,
    /// A decision of policy: the session id is appended, so that a user's screenshot finds the log.
    pub policy: bool,
}

impl Reply {
    /// Appends it to `out`, with CRLF.
    pub(crate) fn write(&self, session: SessionId, out: &mut Vec<u8>) {
        out.extend_from_slice(self.line.as_bytes());
        if self.policy {
            out.extend_from_slice(b" [");
            out.extend_from_slice(&session.text());
            out.push(b']');
        }
        out.extend_from_slice(b"\r\n");
    }
}

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident = $code:literal $rest:literal $rule:literal $($policy:ident)?;)*) => {
        $($(#[$doc])* pub static $name: Reply = Reply {
            code: $code, line: concat!($code, " ", $rest), rule: $rule, policy: replies!(@ $($policy)?),
        };)*
        /// All of them, for the manual.
        pub static ALL: &[&Reply] = &[$(&$name),*];
    };
    (@ policy) => { true };
    (@) => { false };
}

replies! {
    /// RFC 5321 §4.1.1.9.
    OK = 250 "2.0.0 Ok" "ok";
    /// RFC 5321 §4.1.1.5.
    RESET = 250 "2.0.0 Reset" "rset.ok";
    /// RFC 5321 §4.1.1.2.
    SENDER_OK = 250 "2.1.0 Sender ok" "mail.ok";
    /// RFC 5321 §4.1.1.3.
    RECIPIENT_OK = 250 "2.1.5 Recipient ok" "rcpt.ok";
    /// RFC 3030 §2.
    CHUNK_OK = 250 "2.0.0 Chunk received" "bdat.ok";
    /// RFC 5321 §4.1.1.4.
    START_MAIL_INPUT = 354 "End data with <CR><LF>.<CR><LF>" "data.go";
    /// RFC 5321 §4.1.1.10.
    BYE = 221 "2.0.0 Bye" "quit";
    /// RFC 5321 §3.5.3: neither confirms nor denies.
    CANNOT_VRFY = 252 "2.5.0 Cannot verify; send the mail and see" "vrfy";
    /// RFC 5321 §4.1.1.8.
    HELP = 214 "2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH (RFC 5321, 3207, 4954)" "help";
    /// RFC 3207 §4.
    READY_FOR_TLS = 220 "2.0.0 Ready to start TLS" "starttls.go";
    /// RFC 4954 §4.
    AUTHENTICATED = 235 "2.7.0 Authentication successful" "auth.ok";

    /// RFC 5321 §3.8: we are going down.
    SHUTDOWN = 421 "4.3.2 Service is closing; please try again" "closing.shutdown";
    /// RFC 5321 §4.5.3.2.
    TIMEOUT = 421 "4.4.2 Timeout waiting for input; closing" "closing.timeout";
    /// CONTRACT C24.
    OVERLOAD = 421 "4.3.2 Too busy; please try again later" "closing.overload";
    /// A bug of ours; the session ends, the others go on.
    INTERNAL = 421 "4.3.0 Internal error; closing" "closing.internal";
    /// Bounded patience.
    TOO_MANY_ERRORS = 421 "4.7.0 Too many errors; closing" "closing.errors" policy;
    /// Bounded patience.
    TOO_MANY_IDLE = 421 "4.7.0 Too many commands without mail; closing" "closing.idle" policy;
    /// RFC 4954 §9 allows it after three.
    TOO_MANY_FAILURES = 421 "4.7.0 Too many failed logins; reconnect to try again" "closing.auth" policy;
    /// A connection's channel binding serves one exchange (RFC 9266 §4.1).
    BINDING_SPENT = 421 "4.7.0 Channel binding is used up; reconnect to try again" "closing.binding" policy;
    /// One connection carries so many messages.
    TOO_MANY_MESSAGES = 421 "4.7.0 Enough messages on this connection; reconnect to send more" "closing.messages" policy;
    /// A chunk or message that was refused and goes on without end.
    TOO_MUCH_DATA = 421 "4.7.0 Too much refused data; closing" "closing.data" policy;
    /// A chunk size beyond 64 bits: the stream cannot be followed.
    CHUNK_OVERFLOW = 421 "4.7.0 Chunk size cannot be followed; closing" "closing.chunk" policy;
    /// Not our protocol (cross-protocol request forgery).
    NOT_HTTP = 421 "4.7.0 This is SMTP, not HTTP; closing" "closing.http" policy;

    /// Over a rate.
    MAIL_RATE = 450 "4.7.1 Too many messages; please try again later" "mail.rate" policy;
    /// Over a rate.
    RCPT_RATE = 450 "4.7.1 Too many recipients; please try again later" "rcpt.rate" policy;
    /// Something of ours failed.
    LOCAL_TROUBLE = 451 "4.3.0 Local trouble; please try again later" "trouble";
    /// The directory cannot say.
    DIRECTORY_TROUBLE = 451 "4.3.0 Cannot look this up now; please try again later" "trouble.directory";
    /// DECISIONS H12: the client may have given up; keeping the message would make a twin.
    TOO_LATE = 451 "4.4.5 Could not take the message in time; please send it again" "commit.late";
    /// RFC 1870 §6.1.
    NO_SPACE = 452 "4.3.1 Insufficient storage; please try again later" "space";
    /// RFC 5321 §4.5.3.1.10.
    TOO_MANY_RECIPIENTS = 452 "4.5.3 Too many recipients for one message; send the rest in another" "rcpt.max";
    /// RFC 4954 §4.7.
    AUTH_TROUBLE = 454 "4.7.0 Cannot check the credentials now; please try again later" "auth.temporary";
    /// Over a rate.
    AUTH_RATE = 454 "4.7.0 Too many logins; please try again later" "auth.rate" policy;

    /// RFC 5321 §4.2.4.
    UNKNOWN_COMMAND = 500 "5.5.1 Command unrecognized" "syntax.verb";
    /// RFC 5321 §2.3.8.
    BARE_CONTROL = 500 "5.5.2 Bare CR, LF or NUL in command; lines end with CRLF (RFC 5321 2.3.8)" "syntax.control";
    /// RFC 5321 §4.5.3.1.4.
    LINE_TOO_LONG = 500 "5.5.2 Line too long" "syntax.long";
    /// RFC 4954 §4.
    AUTH_LINE_TOO_LONG = 500 "5.5.6 Authentication exchange line is too long" "auth.long";
    /// NUL, bare CR or LF in an AUTH exchange.
    AUTH_LINE_DIRTY = 500 "5.5.6 Bare CR, LF or NUL in authentication exchange line" "auth.control";
    /// RFC 5321 §4.2.2.
    BAD_SYNTAX = 501 "5.5.4 Syntax error in parameters" "syntax.args";
    /// RFC 5321 §4.1.1.1.
    HELLO_NEEDS_NAME = 501 "5.5.4 Say who you are: EHLO host.example" "hello.name";
    /// RFC 5321 §4.1.1: commands without arguments.
    NO_ARGUMENTS = 501 "5.5.4 No parameters allowed" "syntax.noargs";
    /// RFC 5321 §4.1.1.2.
    BAD_MAIL = 501 "5.5.4 Syntax: MAIL FROM:<address> [parameters]" "mail.syntax";
    /// RFC 5321 §4.1.1.3.
    BAD_RCPT = 501 "5.5.4 Syntax: RCPT TO:<address> [parameters]" "rcpt.syntax";
    /// RFC 3463 §3.2.
    BAD_SENDER = 501 "5.1.7 Bad sender address syntax" "mail.address";
    /// RFC 3463 §3.2.
    BAD_RECIPIENT = 501 "5.1.3 Bad recipient address syntax" "rcpt.address";
    /// RFC 3030 §2.
    BAD_BDAT = 501 "5.5.4 Syntax: BDAT size [LAST]" "bdat.syntax";
    /// RFC 4954 §4.
    BAD_AUTH = 501 "5.5.4 Syntax: AUTH mechanism [initial-response]" "auth.syntax";
    /// RFC 4954 §4.
    BAD_BASE64 = 501 "5.5.2 Cannot decode response (base64)" "auth.base64";
    /// The mechanism's own grammar.
    BAD_AUTH_MESSAGE = 501 "5.5.2 Malformed authentication message" "auth.malformed";
    /// RFC 4954 §4.
    AUTH_CANCELLED = 501 "5.7.0 Authentication cancelled" "auth.cancelled";
    /// RFC 4954 §4: the server speaks first.
    NO_INITIAL_RESPONSE = 501 "5.7.0 This mechanism takes no initial response" "auth.initial";
    /// RFC 5321 §4.2.4.
    NOT_OFFERED = 502 "5.5.1 Command not offered here" "syntax.offered";
    /// RFC 5321 §4.1.4.
    HELLO_FIRST = 503 "5.5.1 Say EHLO first" "order.hello";
    /// RFC 5321 §4.1.4.
    MAIL_FIRST = 503 "5.5.1 MAIL first" "order.mail";
    /// RFC 5321 §4.1.4.
    NESTED_MAIL = 503 "5.5.1 Sender already given; RSET to start again" "order.nested";
    /// RFC 4954 §4.
    AUTH_ORDER = 503 "5.5.1 AUTH is not possible now" "order.auth";
    /// RFC 3207 §4.2 and our own policy after AUTH.
    STARTTLS_ORDER = 503 "5.5.1 STARTTLS is not possible now" "order.starttls";
    /// RFC 3030 §2.
    BDAT_BEGUN = 503 "5.5.1 The message is being sent with BDAT; finish it or RSET" "order.bdat";
    /// RFC 3030 §2: after a failed BDAT.
    BROKEN = 503 "5.5.1 BDAT failed; RSET first" "order.broken";
    /// RFC 4954 §4.
    UNKNOWN_MECHANISM = 504 "5.5.4 Authentication mechanism not offered on this connection" "auth.mechanism";
    /// RFC 4954 §6 has no code for it; RFC 5248 §2.4 registers 5.7.13 as account disabled.
    ACCOUNT_DISABLED = 525 "5.7.13 Account disabled" "auth.disabled" policy;
    /// RFC 3207 §4.
    TLS_FIRST = 530 "5.7.0 Must issue a STARTTLS command first" "order.tls";
    /// RFC 4954 §6.
    AUTH_FIRST = 530 "5.7.0 Authentication required" "order.authenticate";
    /// RFC 4954 §6.
    TOO_WEAK = 534 "5.7.9 Authentication mechanism is too weak" "auth.weak" policy;
    /// RFC 4954 §6; the same octets for every cause.
    BAD_CREDENTIALS = 535 "5.7.8 Authentication credentials invalid" "auth.credentials";
    /// RFC 5321 §4.2.2, RFC 3463 §3.2.
    UNKNOWN_RECIPIENT = 550 "5.1.1 No such recipient here" "rcpt.unknown" policy;
    /// No open relay.
    RELAYING_DENIED = 550 "5.7.1 Relaying denied; authenticate first" "relay.denied" policy;
    /// RFC 6409 §6.1.
    SENDER_NOT_OWNED = 550 "5.7.1 You may not send as this address" "sender.denied" policy;
    /// RFC 6409 §6.3.
    FROM_NOT_OWNED = 550 "5.7.1 You may not send with this address in the From header" "from.denied" policy;
    /// RFC 5321 §4.5.3.1.10 lets a site's policy use 5yz.
    RECIPIENT_QUOTA = 550 "5.7.1 More recipients than your account may address in one message" "rcpt.quota" policy;
    /// RFC 6531 §3.5.
    SENDER_NEEDS_UTF8 = 550 "5.6.7 Sender address needs SMTPUTF8" "mail.utf8";
    /// RFC 6531 §3.5.
    RECIPIENT_NEEDS_UTF8 = 553 "5.6.7 Recipient address needs SMTPUTF8" "rcpt.utf8";
    /// RFC 1870 §6.1.
    TOO_BIG = 552 "5.3.4 Message is larger than allowed" "size";
    /// RFC 2920 §3.1.
    TOO_EARLY = 554 "5.5.0 You spoke before it was your turn; closing" "sync";
    /// RFC 5321 §3.3.
    NO_VALID_RECIPIENTS = 554 "5.5.1 No valid recipients" "data.recipients";
    /// RFC 5321 §2.3.8.
    BARE_IN_MESSAGE = 554 "5.6.0 Bare CR or LF in message (RFC 5321 2.3.8)" "data.bare";
    /// RFC 6409 §4.2.
    UNQUALIFIED_HEADER = 554 "5.6.0 Address in header without a full domain (RFC 6409 4.2)" "header.unqualified";
    /// RFC 5322 §3.6.2.
    BAD_FROM_HEADER = 554 "5.6.0 From header is missing an address or cannot be read" "header.from";
    /// RFC 6409 §4.2 and §6.3 cannot be held beyond what is looked at.
    HEADER_TOO_BIG = 554 "5.6.0 Header is larger than allowed" "header.size";
    /// RFC 6409 §4.2.
    UNQUALIFIED_SENDER = 554 "5.1.7 Sender domain is not fully qualified" "mail.unqualified";
    /// RFC 6409 §4.2.
    UNQUALIFIED_RECIPIENT = 554 "5.1.3 Recipient domain is not fully qualified" "rcpt.unqualified";
    /// RFC 5321 §6.3.
    LOOP = 554 "5.4.6 Too many hops; this message loops" "data.loop";
    /// DECISIONS C8, by choice of the operator.
    STARTTLS_TRAILING = 554 "5.5.0 Octets after STARTTLS; closing" "starttls.trailing";
    /// RFC 5321 §4.1.1.11.
    UNKNOWN_PARAMETER = 555 "5.5.4 Parameter not recognized or not implemented" "param.unknown";
    /// RFC 5321 §4.2.2.
    BAD_PARAMETER = 501 "5.5.4 Bad or repeated parameter" "param.bad";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_well_formed() {
        let mut rules = std::collections::HashSet::new();
        for reply in ALL {
            assert!(reply.line.is_ascii() && reply.line.len() + 20 <= 510, "{}", reply.line);
            assert!(reply.line.starts_with(&reply.code.to_string()));
            assert!(rules.insert(reply.rule), "rule {} twice", reply.rule);
            let class = reply.line.as_bytes()[0];
            // RFC 2034 §4: enhanced codes on 2yz, 4yz, 5yz and of the same class; none on 3yz.
            assert_eq!(class != b'3', reply.line.as_bytes()[4] == class && reply.line.as_bytes()[5] == b'.');
        }
    }
}
