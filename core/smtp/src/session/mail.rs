//! MAIL (RFC 5321 §4.1.1.2): the reverse-path, and who may use it.
//!
//! ```text
//! arguments ─► limits ─► policy ─► Permit ─► Transaction
//!                               ─► Ask: the directory, about the identity's rights (RFC 6409 §6.1)
//! ```

use super::Session;
use super::hello::Hello;
use super::state::{Question, State};
use crate::host::{Allowance, Charge, Context, Effect, Outcome, Permission};
use crate::param;
use crate::path::{self, Path};
use crate::policy::Verdict;
use crate::reply::{self, Reply};
use crate::transaction::Transaction;

impl Session {
    pub(super) fn mail(&mut self, args: &[u8], cx: &mut Context<'_>) {
        if self.hello == Hello::None {
            return self.reply(&reply::HELLO_FIRST, cx);
        }
        if !matches!(self.state, State::Ready) {
            return self.reply(&reply::NESTED_MAIL, cx);
        }
        let mut transaction = Transaction::begin(cx.pools);
        match self.read_mail(args, &mut transaction, cx) {
            Ok(Verdict::Permit) => self.mail_permitted(transaction, cx),
            Ok(Verdict::Refuse(reply)) | Err(reply) => self.mail_refused(transaction, reply, cx),
            Ok(Verdict::Ask) => match self.ask_sender(&transaction.address, cx) {
                Some(outcome) => self.mail_answered(transaction, &outcome, cx),
                None => self.state = State::Asking(Question::Mail, transaction),
            },
        }
    }

    /// Reads the arguments into `transaction`, and says what policy says about them.
    fn read_mail(
        &self,
        args: &[u8],
        transaction: &mut Transaction,
        cx: &mut Context<'_>,
    ) -> Result<Verdict, &'static Reply> {
        let (path, rest) = self.path_argument(args, b"FROM:", &reply::BAD_MAIL, &reply::BAD_SENDER)?;
        let params = param::mail(rest)?;
        let mailbox = match path {
            Path::Null => None,
            Path::Mailbox(mailbox) => Some(mailbox),
            Path::Postmaster => return Err(&reply::BAD_SENDER),
        };
        if path.needs_smtputf8() && !(params.smtputf8 && cx.listener.smtputf8) {
            return Err(&reply::SENDER_NEEDS_UTF8);
        }
        if params.smtputf8 && !cx.listener.smtputf8 {
            return Err(&reply::UNKNOWN_PARAMETER);
        }
        transaction.octets_max = self.octets_max(cx);
        if params.size.is_some_and(|size| size > transaction.octets_max) {
            return Err(&reply::TOO_BIG);
        }
        if self.messages >= cx.listener.limits.messages_max && !cx.peer.exempt {
            return Err(&reply::TOO_MANY_MESSAGES);
        }
        if let Some(mailbox) = mailbox {
            mailbox.write_canonical(&mut transaction.address);
        }
        let envelope = &mut transaction.envelope;
        envelope.size = params.size;
        envelope.body = params.body.unwrap_or_default();
        envelope.smtputf8 = params.smtputf8;
        envelope.ret = params.ret;
        if let Some(envid) = params.envid {
            envelope.set_envid(envid);
        }
        if let Some(auth) = params.auth {
            self.read_auth_param(auth, transaction, cx)?;
        }
        let refused = self.anonymous && cx.host.charge(Charge::AnonymousMessage) == Allowance::Refuse;
        if refused || cx.host.charge(Charge::Message) == Allowance::Refuse {
            return Err(&reply::MAIL_RATE);
        }
        let sender = mailbox.map(|_| &transaction.address[..]);
        Ok(cx.listener.policy.mail(&self.facts(cx), sender))
    }

    /// AUTH= (RFC 4954 §5): always checked, believed only from those that the operator names.
    fn read_auth_param(
        &self,
        xtext: &str,
        transaction: &mut Transaction,
        cx: &Context<'_>,
    ) -> Result<(), &'static Reply> {
        let mut octets = [0; param::XTEXT_OCTETS_MAX];
        let decoded = param::decode_xtext(xtext, &mut octets).ok_or(&reply::BAD_PARAMETER)?;
        if decoded == "<>" {
            return Ok(());
        }
        path::mailbox(decoded).map_err(|_| &reply::BAD_PARAMETER)?;
        let trusted = self.identity.as_ref().is_some_and(|identity| {
            cx.listener.trust_auth_param_from.iter().any(|name| name.eq_ignore_ascii_case(&identity.name))
        });
        if trusted {
            transaction.envelope.set_auth(decoded);
        }
        Ok(())
    }

    pub(super) fn mail_answered(&mut self, transaction: Box<Transaction>, outcome: &Outcome, cx: &mut Context<'_>) {
        match granted(outcome, &reply::SENDER_NOT_OWNED) {
            Ok(()) => self.mail_permitted(transaction, cx),
            Err(reply) => self.mail_refused(transaction, reply, cx),
        }
    }

    fn mail_permitted(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        let Transaction { envelope, address, .. } = &mut *transaction;
        envelope.set_reverse_path((!address.is_empty()).then_some(&address[..]));
        if let Some(identity) = &self.identity {
            envelope.set_identity(&identity.name);
        }
        address.clear();
        self.state = State::Transaction(transaction);
        self.reply(&reply::SENDER_OK, cx);
    }

    fn mail_refused(&mut self, transaction: Box<Transaction>, reply: &'static Reply, cx: &mut Context<'_>) {
        transaction.recycle(cx.pools);
        if reply.code == 421 { self.close(reply, cx) } else { self.reply(reply, cx) }
    }

    /// Asks whether the identity may send as `address`. `None`: the answer comes later.
    pub(super) fn ask_sender(&self, address: &str, cx: &mut Context<'_>) -> Option<Outcome> {
        match &self.identity {
            Some(identity) => cx.host.perform(Effect::Sender { identity, address }),
            // Policy asks only about somebody; nobody may not.
            None => Some(Outcome::Sender(Permission::Denied)),
        }
    }

    /// The path that MAIL and RCPT begin with, behind `keyword`, and what stands behind it.
    pub(super) fn path_argument<'a>(
        &self,
        args: &'a [u8],
        keyword: &[u8],
        bad_keyword: &'static Reply,
        bad_path: &'static Reply,
    ) -> Result<(Path<'a>, &'a [u8]), &'static Reply> {
        let rest = strip_keyword(args, keyword).ok_or(bad_keyword)?;
        let (path, rest) = path::parse(rest).map_err(|_| bad_path)?;
        // Parameters are for those who have said EHLO (RFC 5321 §4.1.1.2).
        if self.hello == Hello::Helo && !rest.trim_ascii().is_empty() {
            return Err(&reply::UNKNOWN_PARAMETER);
        }
        Ok((path, rest))
    }
}

/// The answer about a sender address; `denied` is the reply when it is no.
pub(super) fn granted(outcome: &Outcome, denied: &'static Reply) -> Result<(), &'static Reply> {
    match outcome {
        Outcome::Sender(Permission::Granted) => Ok(()),
        Outcome::Sender(Permission::Denied) => Err(denied),
        _ => Err(&reply::DIRECTORY_TROUBLE),
    }
}

/// `FROM:` or `TO:` in any case. Blanks after the colon are no SMTP, but many senders write them.
fn strip_keyword<'a>(args: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = args.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_ascii_start())
}
