//! Sessions that follow a script: idle ones, streams that wait for no reply, and the rude.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::content::{NAME, header, numbered, sender, tail};
use crate::dialogue::{Measure, Notes, Then, Trouble};
use crate::plan::{Kind, Scenario, Tls};
use crate::sizes::Random;

/// What must come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// These codes, in this order.
    Codes(Vec<u16>),
    /// One reply of 400 or more; or the server closes.
    Refusal,
    /// Nothing is waited for: the connection is reset.
    Nothing,
}

/// One exchange.
pub struct Step {
    stage: &'static str,
    send: Vec<u8>,
    expect: Expect,
    then_tls: bool,
    /// From sending to the first reply.
    measure: Option<Measure>,
    /// Octets of the message that the first reply takes.
    message_octets: u64,
}

/// The steps of a connection.
pub struct Script {
    steps: Vec<Step>,
    /// Then the connection is held: so many seconds, or to the end of the run.
    hold: Option<Option<f64>>,
}

/// Where a session stands in its script.
pub struct Progress {
    script: Arc<Script>,
    step: usize,
    replies: usize,
    since: Instant,
    /// A NOOP of a held session is on its way.
    noop: bool,
}

impl Script {
    fn new() -> Self {
        let mut script = Self { steps: Vec::new(), hold: None };
        script.step("greeting", b"", &[220]).measure = Some(Measure::Greeting);
        script
    }

    fn step(&mut self, stage: &'static str, send: &[u8], codes: &[u16]) -> &mut Step {
        self.push(stage, send, Expect::Codes(codes.to_vec()))
    }

    fn push(&mut self, stage: &'static str, send: &[u8], expect: Expect) -> &mut Step {
        self.steps.push(Step { stage, send: send.to_vec(), expect, then_tls: false, measure: None, message_octets: 0 });
        self.steps.last_mut().expect("pushed just now")
    }

    fn hello(&mut self, scenario: &Scenario) {
        let hello = format!("{} {NAME}\r\n", if scenario.lmtp { "LHLO" } else { "EHLO" });
        self.step("EHLO", hello.as_bytes(), &[250]);
        if scenario.tls == Tls::Starttls {
            self.step("STARTTLS", b"STARTTLS\r\n", &[220]).then_tls = true;
            self.step("EHLO", hello.as_bytes(), &[250]);
        }
    }

    fn login(&mut self, scenario: &Scenario, user: u32) {
        let Some(name) = &scenario.user else { return };
        let (name, password) = (numbered(name, user), &scenario.password);
        let mechanism = scenario.mechanism.as_deref().unwrap_or("PLAIN").to_ascii_uppercase();
        let response = match mechanism.as_str() {
            "XOAUTH2" => format!("user={name}\x01auth=Bearer {password}\x01\x01"),
            // RFC 7628 §3.1
            "OAUTHBEARER" => {
                let name = name.replace('=', "=3D").replace(',', "=2C");
                format!("n,a={name},\x01auth=Bearer {password}\x01\x01")
            }
            "EXTERNAL" => name,
            _ => format!("\0{name}\0{password}"),
        };
        let line = format!("AUTH {mechanism} {}\r\n", STANDARD.encode(response));
        self.step("AUTH", line.as_bytes(), &[235]).measure = Some(Measure::Login);
    }

    /// The end of each message travels with the beginning of the next (RFC 2920).
    fn stream(&mut self, scenario: &Scenario, user: u32, text: &[u8]) {
        let from = sender(scenario, user);
        let body = if scenario.eight_bit { " BODY=8BITMIME" } else { "" };
        let mut envelope = format!("MAIL FROM:<{from}>{body}\r\n").into_bytes();
        for n in 0..scenario.recipients {
            envelope.extend_from_slice(format!("RCPT TO:<{}>\r\n", numbered(&scenario.to, n)).as_bytes());
        }
        envelope.extend_from_slice(b"DATA\r\n");
        let mut codes = vec![250; 1 + scenario.recipients as usize];
        codes.push(354);
        self.step("MAIL", &envelope, &codes);
        let mut random = Random(u64::from(user) + 1);
        for left in (0..scenario.per_connection).rev() {
            let mut message = header(scenario, &from, u64::from(left), random.bits());
            let octets = (scenario.size.draw(&mut random) as usize).saturating_sub(message.len()).max(2);
            message.extend_from_slice(tail(text, octets));
            let message_octets = message.len() as u64;
            message.extend_from_slice(b".\r\n");
            let mut expect = vec![250];
            if left > 0 {
                message.extend_from_slice(&envelope);
                expect.extend_from_slice(&codes);
            }
            let step = self.step("end of message", &message, &expect);
            (step.measure, step.message_octets) = (Some(Measure::Message), message_octets);
        }
    }

    fn quit(&mut self) {
        self.step("QUIT", b"QUIT\r\n", &[221]);
    }

    /// Who has mistyped a password may try again on the same connection (RFC 4954 §9: at least three times), so it is
    /// still there and answers; NOOP needs no login (RFC 4954 §6).
    pub(crate) fn after_refusal() -> Self {
        let mut script = Self { steps: Vec::new(), hold: None };
        script.step("NOOP after 535", b"NOOP\r\n", &[250]);
        script.step("QUIT after 535", b"QUIT\r\n", &[221]);
        script
    }
}

/// A token is said in one line: no machine is needed for it.
fn is_token(mechanism: &str) -> bool {
    ["OAUTHBEARER", "XOAUTH2", "EXTERNAL"].iter().any(|known| known.eq_ignore_ascii_case(mechanism))
}

/// The scripts of a scenario: one of each user or trick.
pub(crate) fn scripts(scenario: &Scenario, text: &[u8]) -> Result<Vec<Arc<Script>>, String> {
    if scenario.kind == Kind::Rude {
        return Ok(tricks(scenario).into_iter().map(Arc::new).collect());
    }
    let scripted = |mechanism: &str| is_token(mechanism) || mechanism.eq_ignore_ascii_case("PLAIN");
    if let Some(mechanism) = scenario.mechanism.as_deref().filter(|mechanism| !scripted(mechanism)) {
        return Err(format!("mechanism {mechanism:?}: idle sessions and streams log in with PLAIN or a token"));
    }
    let users = if scenario.user.is_some() { scenario.users } else { 1 };
    let script = |user| {
        let mut script = Script::new();
        match scenario.kind {
            Kind::Connect => {}
            Kind::Churn => script.quit(),
            Kind::HalfOpen => script.hold = Some(Some(scenario.hold)),
            Kind::Idle => {
                script.hello(scenario);
                script.login(scenario, user);
                script.hold = Some(None);
            }
            _ => {
                script.hello(scenario);
                script.login(scenario, user);
                if scenario.kind.sends_mail() {
                    script.stream(scenario, user, text);
                }
                script.quit();
            }
        }
        Arc::new(script)
    };
    Ok((0..users).map(script).collect())
}

/// What rude clients do, each in turn.
fn tricks(scenario: &Scenario) -> Vec<Script> {
    let mut tricks = Vec::new();
    let mut trick = |stage: &'static str, polite: bool, send: &[u8], expect: Expect| {
        let mut script = Script::new();
        if polite {
            script.hello(scenario);
        }
        script.push(stage, send, expect);
        tricks.push(script);
    };
    let garbage: Vec<u8> = (0..2048_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).chain(*b"\r\n").collect();
    trick("rude: garbage", false, &garbage, Expect::Refusal);
    trick("rude: endless line", false, &[&[b'A'; 100_000][..], b"\r\n"].concat(), Expect::Refusal);
    trick("rude: HTTP", false, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Expect::Refusal);
    trick("rude: no command", true, b"\r\n", Expect::Refusal);
    trick("rude: data without recipient", true, b"DATA\r\n", Expect::Refusal);
    trick("rude: reset in AUTH", true, b"AUTH LOGIN\r\n", Expect::Nothing);
    trick(
        "rude: reset in data",
        true,
        b"MAIL FROM:<a@load.example>\r\nRCPT TO:<b@load.example>\r\nDATA\r\nhalf",
        Expect::Nothing,
    );
    trick("rude: reset", false, b"EH", Expect::Nothing);
    tricks
}

impl Progress {
    pub(crate) fn new(script: Arc<Script>, now: Instant) -> Self {
        Self { script, step: 0, replies: 0, since: now, noop: false }
    }

    fn stage(&self) -> &'static str {
        match self.script.steps.get(self.step) {
            Some(step) => step.stage,
            None if self.noop => "NOOP",
            None => "idle",
        }
    }

    pub(crate) fn receive(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<(usize, Then), Trouble> {
        let script = Arc::clone(&self.script);
        let mut used = 0;
        loop {
            let reply = take_reply(&received[used..]).map_err(|text| Trouble::new(self.stage(), "protocol", text))?;
            let Some((octets, code)) = reply else { return Ok((used, self.waiting())) };
            used += octets;
            let micros = now.saturating_duration_since(self.since).as_micros() as u64;
            let Some(step) = script.steps.get(self.step) else {
                // Held. What comes is the answer to a NOOP, or goodbye: who says nothing is told so before it is closed.
                if code == 421 && matches!(script.hold, Some(Some(_))) {
                    return Ok((used, Then::Done));
                }
                if !(self.noop && code == 250) {
                    return Err(Trouble::new(self.stage(), &code.to_string(), ""));
                }
                self.noop = false;
                notes.times.push((Measure::Noop, micros));
                continue;
            };
            let wrong =
                |expected: &str| Err(Trouble::new(step.stage, &code.to_string(), format!("instead of {expected}")));
            match &step.expect {
                Expect::Refusal if code >= 400 => return Ok((used, Then::Done)),
                Expect::Refusal => return wrong("a refusal"),
                Expect::Nothing => continue,
                Expect::Codes(codes) => match codes.get(self.replies) {
                    Some(expected) if *expected != code => return wrong(&expected.to_string()),
                    _ => {}
                },
            }
            if self.replies == 0 {
                notes.times.extend(step.measure.map(|measure| (measure, micros)));
                notes.messages += u64::from(step.message_octets > 0);
                notes.message_octets += step.message_octets;
            }
            self.replies += 1;
            if matches!(&step.expect, Expect::Codes(codes) if self.replies < codes.len()) {
                continue;
            }
            let then_tls = step.then_tls;
            // Nothing was asked yet that it could be the answer to (RFC 3207 §4.2 for what stands before TLS).
            if used < received.len() {
                return Err(Trouble::new(step.stage, "protocol", UNASKED));
            }
            (self.step, self.replies) = (self.step + 1, 0);
            if then_tls {
                return Ok((used, Then::StartTls));
            }
            let then = self.speak(out, now);
            if then != Then::Going {
                return Ok((used, then));
            }
        }
    }

    /// Says what the current step says.
    pub(crate) fn speak(&mut self, out: &mut Vec<u8>, now: Instant) -> Then {
        self.since = now;
        let Some(step) = self.script.steps.get(self.step) else { return self.waiting() };
        out.extend_from_slice(&step.send);
        if step.expect == Expect::Nothing { Then::Reset } else { Then::Going }
    }

    /// The connection ended or nothing came for too long.
    pub(crate) fn lost(&self, code: &str, why: &str) -> Result<(), Trouble> {
        match self.script.steps.get(self.step) {
            // A server may get rid of the rude and of those who say nothing.
            Some(step) if step.expect == Expect::Refusal && code == "lost" => Ok(()),
            None if matches!(self.script.hold, Some(Some(_))) && code == "lost" => Ok(()),
            _ => Err(Trouble::new(self.stage(), code, why)),
        }
    }

    /// Says NOOP, when it is held and none is on its way.
    pub(crate) fn noop(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if self.noop || self.waiting() != Then::Held(None) {
            return false;
        }
        out.extend_from_slice(b"NOOP\r\n");
        (self.noop, self.since) = (true, now);
        true
    }

    /// No NOOP is on its way.
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.noop
    }

    pub(crate) fn waiting(&self) -> Then {
        match self.script.steps.get(self.step) {
            Some(_) => Then::Going,
            None => self.script.hold.map_or(Then::Done, Then::Held),
        }
    }
}

/// Octets and code of a whole reply, of one line or of several (RFC 5321 §4.2.1).
pub(crate) fn take_reply(received: &[u8]) -> Result<Option<(usize, u16)>, &'static str> {
    let mut from = 0;
    let mut first = None;
    while let Some(end) = memchr::memchr(b'\n', &received[from..]).map(|at| from + at) {
        let line = received[from..end].strip_suffix(b"\r").ok_or("line without CR")?;
        let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit)).ok_or("not a reply")?;
        let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        if *first.get_or_insert(code) != code {
            return Err("reply whose lines have different codes");
        }
        from = end + 1;
        match line.get(3) {
            Some(b'-') => {}
            None | Some(b' ') => return Ok(Some((from, code))),
            Some(_) => return Err("not a reply"),
        }
    }
    if received.len() > REPLY_OCTETS_MAX { Err("endless reply") } else { Ok(None) }
}

/// What stands behind a reply although no more was asked.
pub(crate) const UNASKED: &str = "octets behind the reply that nobody asked for";
/// Longest reply that is waited for.
const REPLY_OCTETS_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        for (octets, expect) in [
            (&b"220 x\r\nmore"[..], Ok(Some((7, 220)))),
            (b"250-a\r\n250-b\r\n250 c\r\n", Ok(Some((21, 250)))),
            (b"250\r\n", Ok(Some((5, 250)))),
            (b"250-a\r\n", Ok(None)),
            (b"25", Ok(None)),
            (b"250-a\r\n251 b\r\n", Err("reply whose lines have different codes")),
            (b"hello\r\n", Err("not a reply")),
            (b"250x\r\n", Err("not a reply")),
            (b"250 a\n", Err("line without CR")),
        ] {
            assert_eq!(take_reply(octets), expect, "{octets:?}");
        }
        assert!(take_reply(&[b'2'; REPLY_OCTETS_MAX + 1]).is_err());
    }
}
