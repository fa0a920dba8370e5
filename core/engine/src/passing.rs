//! Messages whose reply waits for the next hop's: delivery asks the next hop, the session waits.
//!
//! ```text
//! commit → Port::hand_over → a file without a name → question to delivery, the file with it → answer → reply
//! ```
//!
//! Nothing is kept meanwhile: when delivery dies, or answers too late, or the client is gone, nobody has the message
//! but who knows whether the next hop has; that is said as a [`Doubt`]. A question that has not left yet waits a
//! little for a new delivery process; one that has is answered "try again". Once delivery has said that it makes
//! something durable, the session waits for what comes of that, as for any commit.

use link::pass::{ANSWER, Answer, KEEPING, QUESTION, Question};
use link::{Link, Outbox, Received, frames};
use smtp::host::{NextHopReply, Outcome, Trouble};
use smtp::id::QueueId;
use spool::Handed;

use crate::host::committed;
use crate::questions::{LOST_MS_MAX, Lost};
use crate::slab::{GenSlab, Token};

/// One shard's side of the conversation with delivery.
pub struct Passing {
    link: Option<Link>,
    outbox: Outbox,
    asked: GenSlab<Asked>,
    asked_max: usize,
    /// When the link was lost.
    lost_ms: Option<u64>,
    packet: Vec<u8>,
}

struct Asked {
    session: Token,
    id: QueueId,
    unix_ms: u64,
    until_ms: u64,
    stage: Stage,
    /// The session does not wait any more.
    gone: bool,
}

enum Stage {
    /// Its file is being written.
    Filing,
    /// It waits for a link.
    Unsent(Handed),
    /// Delivery has it.
    Sent,
}

/// A next hop may have a message whose client did not hear so, and may send it again.
#[derive(Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The message.
    pub id: QueueId,
    /// For how many recipients; `None`: nobody knows.
    pub taken: Option<u32>,
}

/// What came of a turn.
#[derive(Default)]
pub struct News {
    /// Whose message is being kept: they wait for that, however long it takes.
    pub keeping: Vec<Token>,
    /// Who is to be told what.
    pub answers: Vec<(Token, Outcome)>,
    /// Of these answers: what is in doubt when they are not heard.
    pub unless_heard: Vec<(Token, Doubt)>,
    /// What the operator should know.
    pub doubts: Vec<Doubt>,
}

/// Unsent questions of a shard.
const OUTBOX_OCTETS_MAX: usize = 1 << 20;

impl Passing {
    /// Over `link`; without one it starts as if it had just been lost.
    pub fn new(link: Option<Link>, asked_max: usize, now_ms: u64) -> Self {
        Self {
            lost_ms: link.is_none().then_some(now_ms),
            link,
            outbox: Outbox::new(OUTBOX_OCTETS_MAX),
            asked: GenSlab::default(),
            asked_max,
            packet: Vec::new(),
        }
    }

    /// The link, to be polled.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// A session hands its message over; `None` when too many do, or there is no delivery.
    pub fn begin(&mut self, session: Token, id: QueueId, unix_ms: u64, until_ms: u64, now_ms: u64) -> Option<Token> {
        if self.asked.len() >= self.asked_max || self.is_given_up(now_ms) {
            return None;
        }
        Some(self.asked.insert(Asked { session, id, unix_ms, until_ms, stage: Stage::Filing, gone: false }))
    }

    /// The file is there.
    pub fn handed(&mut self, at: Token, result: Result<Handed, spool::Trouble>, news: &mut News) {
        let Some(asked) = self.asked.get_mut(at) else { return };
        if asked.gone {
            // Nobody has seen it yet, so nothing is in doubt.
            self.asked.remove(at);
            return;
        }
        match result {
            Ok(handed) => {
                asked.stage = Stage::Unsent(handed);
                self.say(at, news);
            }
            Err(trouble) => {
                news.answers.push((asked.session, committed(Err(trouble))));
                self.asked.remove(at);
            }
        }
    }

    /// The session that asked at `index` does not wait any more.
    pub fn forget(&mut self, session: Token, index: u32) {
        if let Some(asked) = self.asked.at_mut(index).filter(|asked| asked.session == session) {
            asked.gone = true;
        }
    }

    /// Sends what was asked during this turn. What does not fit goes when the link is writable again.
    pub fn flush(&mut self, now_ms: u64, news: &mut News) -> Result<(), Lost> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.outbox.is_empty() || self.outbox.flush(link).is_ok() {
            return Ok(());
        }
        Err(self.lose(now_ms, news))
    }

    /// Takes what delivery answered.
    pub fn receive(&mut self, now_ms: u64, news: &mut News) -> Result<(), Lost> {
        let mut packet = std::mem::take(&mut self.packet);
        let end = loop {
            let Some(link) = &self.link else { break Ok(()) };
            match link.receive(&mut packet) {
                Ok(Received::Packet { .. }) => {}
                Ok(Received::WouldBlock) => break Ok(()),
                Ok(Received::Closed) | Err(_) => break Err(self.lose(now_ms, news)),
            }
            let mut bad = false;
            for frame in frames(&packet) {
                match frame {
                    Ok(frame) if frame.kind == ANSWER => match Answer::decode(frame.payload) {
                        Ok(answer) => self.answer(Token::from_word(frame.id), answer, news),
                        Err(_) => bad = true,
                    },
                    Ok(frame) if frame.kind == KEEPING => self.keeps(Token::from_word(frame.id), news),
                    Ok(_) => {}
                    Err(_) => bad = true,
                }
            }
            if bad {
                break Err(self.lose(now_ms, news));
            }
        };
        self.packet = packet;
        end
    }

    /// A new link; what has not left yet is asked there.
    pub fn connect(&mut self, link: Link, news: &mut News) {
        self.doubt_what_was_sent(news);
        self.link = Some(link);
        self.lost_ms = None;
        self.outbox = Outbox::new(OUTBOX_OCTETS_MAX);
        for at in self.asked.tokens() {
            self.say(at, news);
        }
    }

    /// When [`Passing::give_up`] has to be called. After that time it is whenever a file has been written, which tells of
    /// itself.
    pub fn give_up_at(&self, now_ms: u64) -> Option<u64> {
        if self.asked.is_empty() || self.is_given_up(now_ms) {
            return None;
        }
        self.lost_ms.map(|lost| lost + LOST_MS_MAX)
    }

    /// Answers what has not left, when there has been no delivery for too long.
    pub fn give_up(&mut self, now_ms: u64, news: &mut News) {
        if !self.is_given_up(now_ms) {
            return;
        }
        for at in self.asked.tokens() {
            // What is being written comes back as unsent, and finds nobody: those are few, and have a deadline.
            if let Some(asked) = self.asked.get_mut(at)
                && matches!(asked.stage, Stage::Unsent(_))
            {
                self.temporary(at, news);
            }
        }
    }

    fn is_given_up(&self, now_ms: u64) -> bool {
        self.lost_ms.is_some_and(|lost| now_ms >= lost + LOST_MS_MAX)
    }

    fn lose(&mut self, now_ms: u64, news: &mut News) -> Lost {
        self.link = None;
        self.lost_ms = Some(now_ms);
        self.doubt_what_was_sent(news);
        Lost
    }

    /// Whoever has these will not answer.
    fn doubt_what_was_sent(&mut self, news: &mut News) {
        for at in self.asked.tokens() {
            if let Some(asked) = self.asked.get_mut(at)
                && matches!(asked.stage, Stage::Sent)
            {
                news.doubts.push(Doubt { id: asked.id, taken: None });
                self.temporary(at, news);
            }
        }
    }

    fn temporary(&mut self, at: Token, news: &mut News) {
        if let Some(asked) = self.asked.remove(at)
            && !asked.gone
        {
            news.answers.push((asked.session, Outcome::Commit(Err(Trouble::Temporary))));
        }
    }

    /// Puts a question into the outbox, its file with it.
    fn say(&mut self, at: Token, news: &mut News) {
        if self.link.is_none() {
            return;
        }
        let Some(asked) = self.asked.get_mut(at) else { return };
        let handed = match std::mem::replace(&mut asked.stage, Stage::Sent) {
            Stage::Unsent(handed) => handed,
            other => return asked.stage = other,
        };
        if asked.gone {
            self.asked.remove(at);
            return;
        }
        let Handed { file, body_octets, envelope_octets, prepend_octets, .. } = handed;
        let Asked { id, unix_ms, until_ms, .. } = *asked;
        let question = Question { id: id.0, unix_ms, until_ms, body_octets, envelope_octets, prepend_octets };
        if self.outbox.push_with(QUESTION, at.word(), vec![file], |to| question.encode(to)).is_err() {
            self.temporary(at, news);
        }
    }

    fn keeps(&mut self, at: Token, news: &mut News) {
        if let Some(asked) = self.asked.get_mut(at)
            && matches!(asked.stage, Stage::Sent)
            && !asked.gone
        {
            news.keeping.push(asked.session);
        }
    }

    fn answer(&mut self, at: Token, answer: Answer<'_>, news: &mut News) {
        // A question that has not left has no answer.
        if !self.asked.get_mut(at).is_some_and(|asked| matches!(asked.stage, Stage::Sent)) {
            return;
        }
        let Some(asked) = self.asked.remove(at) else { return };
        let refused = answer.code >= 400;
        let doubt = (answer.taken > 0).then_some(Doubt { id: asked.id, taken: Some(answer.taken) });
        match doubt {
            Some(doubt) if asked.gone || refused => news.doubts.push(doubt),
            Some(doubt) => news.unless_heard.push((asked.session, doubt)),
            None => {}
        }
        if !asked.gone {
            let reply = NextHopReply { code: answer.code, text: answer.text.into() };
            news.answers.push((asked.session, Outcome::Passed(reply)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn handed(id: u128) -> Handed {
        let file: OwnedFd = link::sealed::create("test", b"bodyenvprep").unwrap();
        Handed { file, id: QueueId(id), body_octets: 4, envelope_octets: 3, prepend_octets: 4 }
    }

    fn begin(passing: &mut Passing, session: u32) -> Token {
        passing.begin(Token::outside(session), QueueId(session.into()), 1, 2, 0).unwrap()
    }

    fn heard(link: &Link) -> Vec<(u64, Question)> {
        let (mut packet, mut questions) = (Vec::new(), Vec::new());
        while let Ok(Received::Packet { fds }) = link.receive(&mut packet) {
            for frame in frames(&packet) {
                let frame = frame.unwrap();
                assert_eq!((frame.kind, fds.len()), (QUESTION, 1));
                questions.push((frame.id, Question::decode(frame.payload).unwrap()));
            }
        }
        questions
    }

    fn say(link: &Link, id: u64, answer: Answer<'_>) {
        let mut outbox = Outbox::new(1 << 16);
        outbox.push(ANSWER, id, |to| answer.encode(to)).unwrap();
        outbox.flush(link).unwrap();
    }

    const OK: Answer<'_> = Answer { code: 250, text: "2.0.0 Ok", taken: 1 };

    #[test]
    fn a_late_answer_finds_nobody_and_is_a_doubt() {
        let (here, there) = Link::pair().unwrap();
        let (mut passing, mut news) = (Passing::new(Some(here), 8, 0), News::default());
        let (kept, left) = (begin(&mut passing, 1), begin(&mut passing, 2));
        passing.handed(kept, Ok(handed(1)), &mut news);
        passing.handed(left, Ok(handed(2)), &mut news);
        passing.flush(0, &mut news).unwrap();
        let questions = heard(&there);
        assert_eq!(questions.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [kept.word(), left.word()]);
        assert_eq!((questions[0].1.id, questions[0].1.body_octets, questions[0].1.until_ms), (1, 4, 2));
        passing.forget(Token::outside(2), left.index());
        // Another session has its place: it does not lose it to the first one's end.
        passing.forget(Token::outside(3), kept.index());
        for (id, _) in &questions {
            say(&there, *id, OK);
            say(&there, *id, OK);
        }
        passing.receive(0, &mut news).unwrap();
        let [(session, Outcome::Passed(reply))] = &news.answers[..] else { panic!("one answer") };
        assert_eq!((*session, reply.code, &*reply.text), (Token::outside(1), 250, "2.0.0 Ok"));
        assert_eq!(news.doubts, [Doubt { id: QueueId(2), taken: Some(1) }]);
    }

    #[test]
    fn what_was_sent_to_a_delivery_that_died_is_in_doubt_and_the_rest_is_asked_again() {
        let (here, there) = Link::pair().unwrap();
        let (mut passing, mut news) = (Passing::new(Some(here), 8, 0), News::default());
        let sent = begin(&mut passing, 1);
        passing.handed(sent, Ok(handed(1)), &mut news);
        passing.flush(0, &mut news).unwrap();
        let (unsent, gone) = (begin(&mut passing, 2), begin(&mut passing, 3));
        drop(there);
        passing.receive(5, &mut news).unwrap_err();
        assert_eq!(news.doubts, [Doubt { id: QueueId(1), taken: None }]);
        assert!(matches!(news.answers[..], [(_, Outcome::Commit(Err(Trouble::Temporary)))]));
        passing.handed(unsent, Ok(handed(2)), &mut news);
        passing.handed(gone, Ok(handed(3)), &mut news);
        passing.forget(Token::outside(3), gone.index());
        let (here, there) = Link::pair().unwrap();
        passing.connect(here, &mut news);
        passing.flush(0, &mut news).unwrap();
        assert_eq!(heard(&there).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [unsent.word()]);
        assert_eq!((news.doubts.len(), news.answers.len(), passing.asked.len()), (1, 1, 1));
    }

    #[test]
    fn without_delivery_nobody_waits_for_long_and_the_number_is_bounded() {
        let (mut passing, mut news) = (Passing::new(None, 2, 10), News::default());
        let one = begin(&mut passing, 1);
        passing.handed(one, Ok(handed(1)), &mut news);
        begin(&mut passing, 2);
        assert!(passing.begin(Token::outside(3), QueueId(3), 1, 2, 10).is_none());
        assert_eq!(passing.give_up_at(0), Some(10 + LOST_MS_MAX));
        passing.give_up(9 + LOST_MS_MAX, &mut news);
        assert!(news.answers.is_empty());
        passing.give_up(10 + LOST_MS_MAX, &mut news);
        assert!(matches!(news.answers[..], [(_, Outcome::Commit(Err(Trouble::Temporary)))]));
        assert!(passing.begin(Token::outside(3), QueueId(3), 1, 2, 10 + LOST_MS_MAX).is_none());
    }

    #[test]
    fn a_delivery_that_talks_nonsense_is_left() {
        let (here, there) = Link::pair().unwrap();
        let (mut passing, mut news) = (Passing::new(Some(here), 2, 0), News::default());
        say(&there, 7, Answer { code: 250, text: "two\r\nlines", taken: 0 });
        passing.receive(0, &mut news).unwrap_err();
        assert!(passing.link().is_none());
    }

    #[test]
    fn what_is_still_being_written_when_delivery_is_given_up_does_not_keep_the_shard_awake() {
        let (mut passing, mut news) = (Passing::new(None, 8, 0), News::default());
        let slow = begin(&mut passing, 1);
        assert_eq!(passing.give_up_at(0), Some(LOST_MS_MAX));
        passing.give_up(LOST_MS_MAX, &mut news);
        assert_eq!(passing.give_up_at(LOST_MS_MAX), None);
        assert!(news.answers.is_empty());
        passing.handed(slow, Ok(handed(1)), &mut news);
        passing.give_up(LOST_MS_MAX + 1, &mut news);
        assert!(matches!(&news.answers[..], [(_, Outcome::Commit(Err(Trouble::Temporary)))]));
    }
}
