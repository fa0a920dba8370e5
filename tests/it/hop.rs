//! A next hop of ours: a small SMTP or LMTP server that tells the test how far it is, and does what the test wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Where in the dialogue; before the reply is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Greeting,
    Hello,
    Mail,
    Rcpt,
    Data,
    /// Two lines of the message have come.
    Body,
    /// The whole message has come.
    End,
    /// The whole message was taken, and that was said.
    Said,
}

/// All of them, in their order.
pub const STEPS: [Step; 8] =
    [Step::Greeting, Step::Hello, Step::Mail, Step::Rcpt, Step::Data, Step::Body, Step::End, Step::Said];

/// What it does there.
pub enum Act {
    /// What a good server does.
    Good,
    /// This reply.
    Say(&'static str),
    /// The connection ends without a word.
    Close,
}

/// A message that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub from: String,
    pub to: Vec<String>,
    pub text: String,
}

type Script = dyn Fn(Step, &Taken) -> Act + Send + Sync;

/// Runs until it is dropped.
pub struct Hop {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hop {
    pub fn start(lmtp: bool, script: impl Fn(Step, &Taken) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (taken, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (its, end, script): (_, _, Arc<Script>) = (taken.clone(), over.clone(), Arc::new(script));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (its, script) = (its.clone(), script.clone());
                std::thread::spawn(move || serve(stream, lmtp, &*script, &its));
            }
        });
        Self { address, taken, over, thread: Some(thread) }
    }

    /// What was taken so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn serve(stream: TcpStream, lmtp: bool, script: &Script, taken: &Mutex<Vec<Taken>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut now = Taken { from: String::new(), to: Vec::new(), text: String::new() };
    // `Some(true)`: the good reply was given.
    let say = |stream: &mut BufReader<TcpStream>, step, now: &Taken, good: &str| {
        let (reply, good) = match script(step, now) {
            Act::Good => (good, true),
            Act::Say(other) => (other, false),
            Act::Close => return None,
        };
        stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).ok()?;
        Some(good)
    };
    say(&mut stream, Step::Greeting, &now, "220 hop.example ESMTP")?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        let address = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        match line.get(..4).unwrap_or_default() {
            "EHLO" | "LHLO" => {
                say(&mut stream, Step::Hello, &now, "250-hop.example\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES")?;
            }
            "HELO" => stream.get_mut().write_all(b"250 hop.example\r\n").ok()?,
            "MAIL" => {
                now = Taken { from: address, to: Vec::new(), text: String::new() };
                say(&mut stream, Step::Mail, &now, "250 2.1.0 Ok")?;
            }
            "RCPT" => {
                now.to.push(address);
                if !say(&mut stream, Step::Rcpt, &now, "250 2.1.5 Ok")? {
                    now.to.pop();
                }
            }
            "DATA" if now.to.is_empty() => stream.get_mut().write_all(b"554 5.5.1 nobody\r\n").ok()?,
            "DATA" => {
                if !say(&mut stream, Step::Data, &now, "354 go on")? {
                    continue;
                }
                let mut lines = 0;
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).ok()? == 0 {
                        return None;
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    now.text += line.strip_prefix('.').unwrap_or(&line);
                    lines += 1;
                    if lines == 2 && matches!(script(Step::Body, &now), Act::Close) {
                        return None;
                    }
                }
                for to in now.to.clone().into_iter().take(if lmtp { usize::MAX } else { 1 }) {
                    let part = if lmtp { Taken { to: vec![to], ..now.clone() } } else { now.clone() };
                    // Locked before it is said: whoever has heard it finds it.
                    let mut all = taken.lock().unwrap_or_else(PoisonError::into_inner);
                    if say(&mut stream, Step::End, &part, "250 2.0.0 taken")? {
                        all.push(part);
                    }
                }
                if matches!(script(Step::Said, &now), Act::Close) {
                    return None;
                }
            }
            "RSET" | "NOOP" => stream.get_mut().write_all(b"250 2.0.0 Ok\r\n").ok()?,
            "QUIT" => return stream.get_mut().write_all(b"221 2.0.0 bye\r\n").ok(),
            _ => stream.get_mut().write_all(b"500 5.5.2 what?\r\n").ok()?,
        }
    }
}
