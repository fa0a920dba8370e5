//! What a connection says and what it expects to hear.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A user and a password.
pub struct Login {
    pub user: String,
    pub password: String,
}

/// One exchange: octets to send, then the reply codes that must come back.
pub struct Step {
    pub stage: &'static str,
    pub send: Vec<u8>,
    pub expect: Vec<u16>,
    /// TLS begins after the replies.
    pub then_tls: bool,
}

/// The steps of a connection.
pub struct Script {
    pub steps: Vec<Step>,
    /// TLS before the greeting.
    pub implicit_tls: bool,
    starttls: bool,
}

impl Script {
    pub fn new(implicit_tls: bool, starttls: bool) -> Self {
        let mut script = Self { steps: Vec::new(), implicit_tls, starttls };
        script.step("greeting", b"", &[220]);
        script
    }

    fn step(&mut self, stage: &'static str, send: &[u8], expect: &[u16]) {
        self.steps.push(Step { stage, send: send.to_vec(), expect: expect.to_vec(), then_tls: false });
    }

    pub fn hello(&mut self) {
        self.step("ehlo", b"EHLO load.example\r\n", &[250]);
        if self.starttls {
            self.steps.push(Step {
                stage: "starttls",
                send: b"STARTTLS\r\n".to_vec(),
                expect: vec![220],
                then_tls: true,
            });
            self.step("ehlo", b"EHLO load.example\r\n", &[250]);
        }
    }

    pub fn login(&mut self, login: &Login) {
        let response = STANDARD.encode(format!("\0{}\0{}", login.user, login.password));
        self.step("auth", format!("AUTH PLAIN {response}\r\n").as_bytes(), &[235]);
    }

    /// `count` messages: the end of each travels with the beginning of the next (RFC 2920).
    pub fn messages(&mut self, from: &str, to: &str, size: usize, count: usize) {
        let envelope = format!("MAIL FROM:<{from}>\r\nRCPT TO:<{to}>\r\nDATA\r\n").into_bytes();
        let mut body =
            format!("From: <{from}>\r\nTo: <{to}>\r\nSubject: load\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n")
                .into_bytes();
        body.extend_from_slice(b"Message-ID: <load@load.example>\r\n\r\n");
        while body.len() < size {
            let line = b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz\r\n";
            let room = size - body.len();
            let start = line.len().saturating_sub(room.max(2));
            body.extend_from_slice(&line[start..]);
        }
        body.extend_from_slice(b".\r\n");
        self.step("mail", &envelope, &[250, 250, 354]);
        for left in (0..count).rev() {
            if left == 0 {
                self.step("data", &body, &[250]);
            } else {
                self.step("data", &[&body[..], &envelope].concat(), &[250, 250, 250, 354]);
            }
        }
    }

    pub fn quit(&mut self) {
        self.step("quit", b"QUIT\r\n", &[221]);
    }
}
