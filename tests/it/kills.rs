//! CONTRACT C1 (T3), C4: processes are killed at random times while mail flows, with a ledger of what was acknowledged
//! and, at an LMTP server of our own, a count of what was handed on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::crash::{Load, delivered, until};
use crate::server::{Options, PATIENCE, Server, alone};

/// An LMTP server that counts what it takes by the number in its header.
struct Sink {
    address: SocketAddr,
    taken: Arc<Mutex<BTreeMap<u64, usize>>>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let taken = Arc::new(Mutex::new(BTreeMap::new()));
        let count = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                // A connection ends when the process at its other end is killed.
                std::thread::spawn(move || drop(serve(stream, &count)));
            }
        });
        Self { address, taken }
    }
}

fn serve(stream: TcpStream, taken: &Mutex<BTreeMap<u64, usize>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    let mut say = |text: &str| out.write_all(text.as_bytes());
    say("220 sink LMTP\r\n")?;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or_default() {
            "LHLO" => say("250-sink\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n")?,
            "DATA" => {
                say("354 go on\r\n")?;
                let mut number = None;
                loop {
                    let mut line = String::new();
                    if input.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    number = number.or_else(|| line.strip_prefix("X-Number: ")?.trim().parse().ok());
                }
                // First the note, then the answer: what we have said yes to is counted.
                *taken.lock().expect("not poisoned").entry(number.expect("a number")).or_default() += 1;
                say("250 2.0.0 taken\r\n")?;
            }
            "QUIT" => return say("221 2.0.0 bye\r\n"),
            _ => say("250 2.0.0 ok\r\n")?,
        }
    }
}

/// xorshift64*: the same times again for the same seed, as far as threads allow.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % most
    }
}

/// Kills in all; more of them in a long run.
fn kills() -> u64 {
    std::env::var("PORTREEVE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(24)
}

/// After so many deaths everybody is killed and started again: the supervisor waits longer with each death.
const ROUND: u64 = 4;

/// Kills processes by chance under load; what was acknowledged, and how often delivery died.
fn kill_at_random(server: &mut Server, seed: u64, kills: u64) -> (BTreeSet<u64>, u64) {
    let mut chance = Chance(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9));
    let load = Load::start(server.mx(), 4);
    let mut deliveries_died = 0;
    for kill in 0..kills {
        // A while in which mail flows, then a moment that nobody has chosen.
        let so_far = load.acknowledged();
        let more = chance.below(30) as usize + 1;
        let deadline = Instant::now() + PATIENCE;
        while load.acknowledged() < so_far + more {
            assert!(Instant::now() < deadline, "no mail before kill {kill}, seed {seed}\n{}", server.log());
            server.revive();
            std::thread::sleep(Duration::from_millis(1)); // between two looks, not instead of one
        }
        let moment = Instant::now() + Duration::from_micros(chance.below(20_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        if kill % ROUND == ROUND - 1 {
            let all: Vec<Pid> = server.processes().into_values().flatten().collect();
            let first = chance.below(2) == 0;
            if first {
                server.signal(Signal::KILL);
            }
            for pid in all {
                let _ = kill_process(pid, Signal::KILL); // it may have followed its supervisor already
            }
            if !first {
                server.signal(Signal::KILL);
            }
            server.wait();
            deliveries_died += 1;
            // Those who were killed may hold their locks and ports for a moment yet; a start waits for that.
            server.run();
            continue;
        }
        let role = ["worker", "delivery", "worker", "delivery", "directory", "control"][chance.below(6) as usize];
        deliveries_died += u64::from(role == "delivery");
        let before = server.processes().remove(role).unwrap_or_default();
        for pid in &before {
            let _ = kill_process(*pid, Signal::KILL);
        }
        until(&format!("a new {role} after kill {kill}, seed {seed}"), server, || {
            let now = server.processes().remove(role).unwrap_or_default();
            !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
        });
    }
    server.revive();
    (load.end(), deliveries_died)
}

/// Looks until nothing is missing any more; patient as long as it becomes less.
fn until_none_is_missing(server: &Server, missing: impl Fn() -> usize) {
    let (mut least, mut deadline) = (usize::MAX, Instant::now() + PATIENCE);
    loop {
        let now = missing();
        if now == 0 {
            return;
        }
        if now < least {
            (least, deadline) = (now, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "{now} that were acknowledged are missing\n{}", server.log());
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
}

fn seed() -> u64 {
    std::env::var("PORTREEVE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Into Maildirs: everything arrives, whole, and once, since a file's name tells it from its twin.
#[test]
fn kill_9_at_random_times_loses_nothing_into_maildirs() {
    let _one = alone();
    let mut server = Server::start();
    let (mut acknowledged, mut left) = (0, kills());
    while left > 0 {
        // In parts, so that a long run does not read a hundred thousand files again and again.
        let part = left.min(100);
        left -= part;
        let (ledger, _) = kill_at_random(&mut server, seed() + left, part);
        acknowledged += ledger.len();
        until_none_is_missing(&server, || {
            let found = delivered(&server);
            ledger.iter().filter(|number| !found.contains_key(number)).count()
        });
        let twice: Vec<_> = delivered(&server).into_iter().filter(|&(_, count)| count > 1).collect();
        assert!(twice.is_empty(), "seed {}: delivered more than once: {twice:?}", seed() + left);
        server.signal(Signal::TERM);
        server.wait();
        let folder = server.path("mail/demo.test/alice/new");
        for file in std::fs::read_dir(&folder).expect("a Maildir").flatten() {
            std::fs::remove_file(file.path()).expect("a message of this part");
        }
        server.run();
    }
    println!("{} kills, {acknowledged} acknowledged, all delivered once", kills());
    assert!(acknowledged as u64 >= kills());
}

/// To an LMTP server: everything arrives; a second time only what was in its window when delivery died.
#[test]
fn kill_9_at_random_times_loses_nothing_over_lmtp_and_repeats_little() {
    let _one = alone();
    let sink = Sink::start();
    let mut server = Server::prepare(Options::default());
    let maildir = "kind = \"maildir\"\npath = \"mail/%d/%n\"";
    let hop = format!("kind = \"lmtp\"\nto = [\"{}\"]", sink.address);
    let text = server.config();
    assert!(text.contains(maildir));
    server.write_config(&text.replace(maildir, &hop));
    server.run();
    let (ledger, died) = kill_at_random(&mut server, seed() + 7, kills());
    let missing = || {
        let taken = sink.taken.lock().expect("not poisoned");
        ledger.iter().filter(|number| !taken.contains_key(number)).count()
    };
    until_none_is_missing(&server, missing);
    let taken = sink.taken.lock().expect("not poisoned");
    let twice: usize = taken.values().map(|count| count - 1).sum();
    let most = taken.values().max().copied().unwrap_or(0);
    println!(
        "{} kills, {} acknowledged, delivery died {died} times, {twice} were handed on again, one at most {most} times",
        kills(),
        ledger.len()
    );
    // CONTRACT C4: a message comes again once for each death that fell between its next hop's yes and our durable
    // note of it; at one moment no more messages can be there than there are threads.
    assert!(most as u64 <= died + 1);
    assert!(twice as u64 <= died * IN_FLIGHT_MAX, "{twice} for {died} deaths");
}

/// Attempts that one delivery process makes at the same time here, and outcomes that it has not synced yet.
const IN_FLIGHT_MAX: u64 = 32;
