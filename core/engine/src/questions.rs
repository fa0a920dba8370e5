//! Questions to the directory process: who is this, does that mailbox exist, may she send as that?
//!
//! Each shard has a link of its own in its own poll, so that no thread stands between a question and its
//! answer. Questions of one turn leave in one packet. A question's id is a slab token, so an answer that
//! comes too late finds nobody.
//!
//! When the link is lost (the directory died or was replaced), questions wait for a new one and are asked
//! again there; after [`LOST_MS_MAX`] they, and all new ones, get the temporary answer (DECISIONS B1).

use std::sync::Arc;

use link::directory::{ANSWER, Answer, IdentityFields, QUESTION, Question};
use link::{Link, Outbox, Received, frames};
use sasl::{Secret, Status};
use smtp::host::{Account, Identity, Outcome, Permission, RecipientOutcome, SaslOutcome, ScramLayout};
use telemetry::Histogram;

use crate::cache::{Addresses, Passwords, Tag};
use crate::slab::{GenSlab, Token};
use crate::watch::Watch;

/// One shard's side of the conversation with the directory.
pub struct Questions {
    link: Option<Link>,
    outbox: Outbox,
    pending: GenSlab<Pending>,
    pending_max: usize,
    /// When the link was lost.
    lost_ms: Option<u64>,
    packet: Vec<u8>,
}

/// A question that has no answer yet.
struct Pending {
    session: Token,
    asked: Asked,
    /// To ask again on a new link. May hold a password.
    payload: Secret,
    /// The directory's epoch when it was asked.
    epoch: u64,
    asked_ms: u64,
}

/// What is to be done with the answer.
pub enum Asked {
    /// A password; a good answer is remembered under the tag.
    Password(Tag),
    /// A key, or whatever else is not remembered.
    Key,
    /// A certificate.
    External,
    /// A bearer token.
    Token,
    /// Whom a mechanism has proven by itself.
    Asserted,
    /// A mailbox.
    Recipient(Box<str>),
    /// A sender's right.
    Sender(Arc<Identity>, Box<str>),
}

impl Asked {
    /// The answer when there is none.
    pub fn temporary(&self) -> Outcome {
        match self {
            Self::Password(_) | Self::Key | Self::External | Self::Token | Self::Asserted => {
                Outcome::Sasl(sasl_outcome(Status::Temporary))
            }
            Self::Recipient(_) => Outcome::Recipient(RecipientOutcome::Temporary),
            Self::Sender(..) => Outcome::Sender(Permission::Temporary),
        }
    }
}

/// Where good answers are kept.
pub struct Memory<'a> {
    pub passwords: &'a Passwords,
    pub addresses: &'a mut Addresses,
    pub watch: &'a Watch,
    pub now_ms: u64,
}

impl Questions {
    /// Over `link`; without one it starts as if it had just been lost.
    pub fn new(link: Option<Link>, pending_max: usize, now_ms: u64) -> Self {
        Self {
            lost_ms: link.is_none().then_some(now_ms),
            link,
            outbox: Outbox::new(OUTBOX_OCTETS_MAX),
            pending: GenSlab::default(),
            pending_max,
            packet: Vec::new(),
        }
    }

    /// The link, to be polled.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Asks. The `Err` is the answer when the question cannot even wait.
    pub fn ask(
        &mut self,
        session: Token,
        question: &Question<'_>,
        asked: Asked,
        epoch: u64,
        now_ms: u64,
    ) -> Result<Token, Outcome> {
        if self.pending.len() >= self.pending_max || self.is_given_up(now_ms) {
            return Err(asked.temporary());
        }
        // Sized once: a buffer that grows leaves copies of the password behind.
        let mut payload = Secret::new(Vec::with_capacity(octets_max(question)));
        question.encode(payload.buffer());
        let id = self.pending.insert(Pending { session, asked, payload, epoch, asked_ms: now_ms });
        if self.link.is_some() && !self.say(id) {
            let refused = self.pending.remove(id).map(|pending| pending.asked.temporary());
            return Err(refused.unwrap_or(Outcome::Elapsed));
        }
        Ok(id)
    }

    /// Forgets the question of `session` that stands at `index`; what it would have been answered with for
    /// want of an answer.
    pub fn forget(&mut self, session: Token, index: u32) -> Option<Outcome> {
        if self.pending.at_mut(index)?.session != session {
            return None;
        }
        let id = self.pending.token_at(index)?;
        self.pending.remove(id).map(|pending| pending.asked.temporary())
    }

    /// Sends what was asked during this turn. What does not fit goes when the link is writable again.
    pub fn flush(&mut self, now_ms: u64) -> Result<(), Lost> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.outbox.is_empty() {
            return Ok(());
        }
        match self.outbox.flush(link) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.lose(now_ms)),
        }
    }

    /// Takes what the directory answered and appends who is to be told what.
    pub fn receive(&mut self, memory: &mut Memory<'_>, answers: &mut Vec<(Token, Outcome)>) -> Result<(), Lost> {
        let mut packet = std::mem::take(&mut self.packet);
        let end = loop {
            let Some(link) = &self.link else { break Ok(()) };
            match link.receive(&mut packet) {
                Ok(Received::Packet { .. }) => {}
                Ok(Received::WouldBlock) => break Ok(()),
                Ok(Received::Closed) | Err(_) => break Err(self.lose(memory.now_ms)),
            }
            // An unknown kind is skipped; a packet that is none ends the trust in this link.
            let mut bad = false;
            for frame in frames(&packet) {
                match frame {
                    Ok(frame) if frame.kind == ANSWER => match Answer::decode(frame.payload) {
                        Ok(answer) => self.answer(Token::from_word(frame.id), answer, memory, answers),
                        Err(_) => bad = true,
                    },
                    Ok(_) => {}
                    Err(_) => bad = true,
                }
            }
            link::wipe(&mut packet);
            if bad {
                break Err(self.lose(memory.now_ms));
            }
        };
        self.packet = packet;
        end
    }

    /// A new link; asks everything again that has no answer.
    pub fn connect(&mut self, link: Link) {
        self.link = Some(link);
        self.lost_ms = None;
        self.outbox = Outbox::new(OUTBOX_OCTETS_MAX);
        for id in self.pending.tokens() {
            // What does not fit stays without answer until its session's deadline.
            self.say(id);
        }
    }

    /// When [`Questions::give_up`] has to be called.
    pub fn give_up_at(&self) -> Option<u64> {
        if self.pending.is_empty() {
            return None;
        }
        self.lost_ms.map(|lost| lost + LOST_MS_MAX)
    }

    /// Answers everything for want of a directory, when that has been gone for too long.
    pub fn give_up(&mut self, now_ms: u64, answers: &mut Vec<(Token, Outcome)>) {
        if self.is_given_up(now_ms) {
            for id in self.pending.tokens() {
                if let Some(pending) = self.pending.remove(id) {
                    answers.push((pending.session, pending.asked.temporary()));
                }
            }
        }
    }

    fn is_given_up(&self, now_ms: u64) -> bool {
        self.lost_ms.is_some_and(|lost| now_ms >= lost + LOST_MS_MAX)
    }

    fn lose(&mut self, now_ms: u64) -> Lost {
        self.link = None;
        self.lost_ms = Some(now_ms);
        Lost
    }

    /// Puts a pending question into the outbox; `false` when that is full.
    fn say(&mut self, id: Token) -> bool {
        let Some(pending) = self.pending.get_mut(id) else { return false };
        let payload = pending.payload.expose();
        self.outbox.push(QUESTION, id.word(), |to| to.extend_from_slice(payload)).is_ok()
    }

    fn answer(&mut self, id: Token, answer: Answer<'_>, memory: &mut Memory<'_>, answers: &mut Vec<(Token, Outcome)>) {
        let Some(Pending { session, asked, epoch, asked_ms, .. }) = self.pending.remove(id) else { return };
        memory.watch.observe(Histogram::QuestionMicros, memory.now_ms.saturating_sub(asked_ms) * 1000);
        let outcome = match (answer, asked) {
            (Answer::Sasl { status, doomed, account, identity, data, scram }, Asked::Password(tag)) => {
                let outcome = sasl_answer(status, doomed, account, identity, data, scram);
                if let (Status::Ok, false, Account::Good, Some(identity)) =
                    (outcome.status, outcome.doomed, outcome.account, &outcome.identity)
                {
                    memory.passwords.keep(tag, Arc::clone(identity), memory.now_ms);
                }
                Outcome::Sasl(outcome)
            }
            (
                Answer::Sasl { status, doomed, account, identity, data, scram },
                Asked::Key | Asked::External | Asked::Token | Asked::Asserted,
            ) => Outcome::Sasl(sasl_answer(status, doomed, account, identity, data, scram)),
            (Answer::Recipient { status, mailbox }, Asked::Recipient(address)) => Outcome::Recipient(match status {
                0 => {
                    memory.addresses.keep_mailbox(address, mailbox, epoch);
                    RecipientOutcome::Exists { mailbox: mailbox.into() }
                }
                1 => RecipientOutcome::Unknown,
                _ => RecipientOutcome::Temporary,
            }),
            (Answer::Sender { status }, Asked::Sender(identity, address)) => Outcome::Sender(match status {
                0 => {
                    memory.addresses.keep_granted(&identity.name, address, epoch);
                    Permission::Granted
                }
                1 => Permission::Denied,
                _ => Permission::Temporary,
            }),
            // An answer of another kind than the question: as good as none.
            (_, asked) => asked.temporary(),
        };
        answers.push((session, outcome));
    }
}

/// The link to the directory is gone.
#[derive(Debug)]
pub struct Lost;

/// An outcome with nothing but a status.
pub fn sasl_outcome(status: Status) -> SaslOutcome {
    SaslOutcome { status, doomed: false, identity: None, data: Secret::default(), scram: None, account: Account::Good }
}

fn sasl_answer(
    status: u8,
    doomed: bool,
    account: u8,
    identity: Option<IdentityFields<'_>>,
    data: &[u8],
    scram: Option<link::directory::Scram>,
) -> SaslOutcome {
    let status = match status {
        0 => Status::Ok,
        1 => Status::Denied,
        3 => Status::Unsupported,
        4 => Status::Transition,
        5 => Status::Expired,
        _ => Status::Temporary,
    };
    let identity = identity.map(|fields| {
        Arc::new(Identity {
            name: fields.name.into(),
            senders: fields.senders.into_iter().map(Box::from).collect(),
            message_octets_max: fields.message_octets_max,
            recipients_max: fields.recipients_max,
            epoch: fields.epoch,
        })
    });
    let mut secret = Secret::default();
    secret.set(data);
    SaslOutcome {
        status,
        doomed,
        identity,
        data: secret,
        scram: scram.map(|scram| ScramLayout {
            iterations: scram.iterations,
            salt_octets: scram.salt_octets,
            hash_octets: scram.hash_octets,
        }),
        account: match account {
            0 => Account::Good,
            1 => Account::Disabled,
            _ => Account::TooWeak,
        },
    }
}

/// An upper bound of the encoded question.
fn octets_max(question: &Question<'_>) -> usize {
    const FIXED: usize = 64;
    FIXED
        + match question {
            Question::VerifyPassword { listener, mechanism, authcid, authzid, password, .. } => {
                listener.len() + mechanism.len() + authcid.len() + authzid.len() + password.len()
            }
            Question::FetchKey { listener, mechanism, authcid, authzid, realm, .. } => {
                listener.len() + mechanism.len() + authcid.len() + authzid.len() + realm.len()
            }
            Question::VerifyExternal { listener, mechanism, authzid, certificate, .. } => {
                let names = certificate.names().map(|name| name.len() + 4).sum::<usize>();
                listener.len() + mechanism.len() + authzid.len() + certificate.spki_sha256.len() + names
            }
            Question::VerifyToken { listener, mechanism, authzid, token, .. } => {
                listener.len() + mechanism.len() + authzid.len() + token.len()
            }
            Question::Asserted { listener, mechanism, authcid, authzid, .. } => {
                listener.len() + mechanism.len() + authcid.len() + authzid.len()
            }
            Question::Backend { backend, effect } => backend.len() + effect.octets_max(),
            Question::Recipient { address } => address.len(),
            Question::Sender { identity, address } => identity.len() + address.len(),
        }
}

/// How long questions wait for a new directory.
pub const LOST_MS_MAX: u64 = 2_000;
/// Unsent questions of a shard.
const OUTBOX_OCTETS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        passwords: Passwords,
        addresses: Addresses,
        watch: Watch,
        answers: Vec<(Token, Outcome)>,
    }

    impl Bench {
        fn new() -> Self {
            let slot = telemetry::Board::create(1).unwrap().slot(0).unwrap();
            Self {
                passwords: Passwords::new(1000).unwrap(),
                addresses: Addresses::new(8),
                watch: Watch::new(slot.clone(), telemetry::EventSender::new(1024, slot)),
                answers: Vec::new(),
            }
        }

        fn receive(&mut self, questions: &mut Questions) -> Result<(), Lost> {
            let mut memory =
                Memory { passwords: &self.passwords, addresses: &mut self.addresses, watch: &self.watch, now_ms: 5 };
            questions.receive(&mut memory, &mut self.answers)
        }
    }

    fn asks(questions: &mut Questions, session: u64, address: &str, now_ms: u64) -> Result<Token, Outcome> {
        let asked = Asked::Recipient(address.into());
        questions.ask(Token::from_word(session), &Question::Recipient { address }, asked, 9, now_ms)
    }

    fn heard(link: &Link) -> Vec<(u64, Vec<u8>)> {
        let (mut packet, mut all) = (Vec::new(), Vec::new());
        while let Received::Packet { .. } = link.receive(&mut packet).unwrap() {
            all.extend(frames(&packet).map(|frame| frame.unwrap()).map(|frame| (frame.id, frame.payload.to_vec())));
        }
        all
    }

    fn say(link: &Link, id: u64, answer: &Answer<'_>) {
        let mut outbox = Outbox::new(1 << 16);
        outbox.push(ANSWER, id, |to| answer.encode(to)).unwrap();
        assert!(outbox.flush(link).unwrap());
    }

    #[test]
    fn a_good_answer_is_kept_and_a_late_one_finds_nobody() {
        let (here, there) = Link::pair().unwrap();
        let mut bench = Bench::new();
        let mut questions = Questions::new(Some(here), 10, 0);
        let first = asks(&mut questions, 1, "bob@demo.test", 0).unwrap_or_else(|_| panic!("asked"));
        let second = asks(&mut questions, 2, "eve@demo.test", 0).unwrap_or_else(|_| panic!("asked"));
        questions.flush(0).unwrap();
        assert_eq!(heard(&there).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [first.word(), second.word()]);
        assert!(questions.forget(Token::from_word(2), second.index()).is_some());
        say(&there, second.word(), &Answer::Recipient { status: 0, mailbox: "eve" });
        say(&there, first.word(), &Answer::Recipient { status: 0, mailbox: "bob" });
        say(&there, first.word(), &Answer::Recipient { status: 1, mailbox: "" });
        bench.receive(&mut questions).unwrap();
        assert_eq!(bench.answers.len(), 1);
        assert_eq!(bench.answers[0].0, Token::from_word(1));
        assert_eq!(bench.addresses.mailbox("bob@demo.test", 9), Some("bob"));
        assert_eq!(bench.addresses.mailbox("eve@demo.test", 9), None);
    }

    #[test]
    fn a_lost_link_is_waited_for_and_then_not() {
        let (here, there) = Link::pair().unwrap();
        let mut bench = Bench::new();
        let mut questions = Questions::new(Some(here), 10, 0);
        let id = asks(&mut questions, 1, "bob@demo.test", 0).unwrap_or_else(|_| panic!("asked"));
        drop(there);
        bench.receive(&mut questions).unwrap_err();
        assert!(asks(&mut questions, 2, "eve@demo.test", 100).is_ok(), "waits for a new link");

        let (here, there) = Link::pair().unwrap();
        questions.connect(here);
        questions.flush(200).unwrap();
        let again = heard(&there);
        assert_eq!((again.len(), again[0].0), (2, id.word()), "asked again");

        drop(there);
        bench.receive(&mut questions).unwrap_err();
        assert_eq!(questions.give_up_at(), Some(5 + LOST_MS_MAX));
        questions.give_up(4 + LOST_MS_MAX, &mut bench.answers);
        assert!(bench.answers.is_empty());
        questions.give_up(5 + LOST_MS_MAX, &mut bench.answers);
        let temporary =
            |(_, outcome): &(Token, Outcome)| matches!(outcome, Outcome::Recipient(RecipientOutcome::Temporary));
        assert!(bench.answers.len() == 2 && bench.answers.iter().all(temporary));
        assert!(asks(&mut questions, 3, "bob@demo.test", 10_000).is_err(), "no waiting any more");
    }

    #[test]
    fn questions_are_bounded() {
        let (here, _there) = Link::pair().unwrap();
        let mut questions = Questions::new(Some(here), 3, 0);
        let refused = (0..5).filter(|&n| asks(&mut questions, n, "bob@demo.test", 0).is_err()).count();
        assert_eq!(refused, 2);
    }

    #[test]
    fn a_directory_that_talks_nonsense_is_left() {
        let (here, there) = Link::pair().unwrap();
        let mut questions = Questions::new(Some(here), 3, 0);
        there.send(b"nonsense", &[]).unwrap();
        Bench::new().receive(&mut questions).unwrap_err();
        assert!(questions.link().is_none());
    }

    #[test]
    fn an_encoded_question_fits_the_buffer_made_for_it() {
        let question = Question::VerifyPassword {
            listener: "submission",
            client_ip: [0u16; 8].into(),
            mechanism: "PLAIN",
            authcid: b"a",
            authzid: b"b",
            password: b"c",
        };
        let mut payload = Vec::new();
        question.encode(&mut payload);
        assert!(payload.len() <= octets_max(&question));
    }
}
