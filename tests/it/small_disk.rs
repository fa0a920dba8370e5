//! CONTRACT C11, C12: the spool on a small file system of its own (a tmpfs in a mount namespace of the server's) that
//! is filled and emptied.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::crash::{delivered, message, until};
use crate::server::{Options, PATIENCE, Server, alone};

/// Whether this system lets us; where CI=true it must.
fn permitted() -> bool {
    let there = rustix::process::geteuid().is_root()
        && std::process::Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    assert!(there || std::env::var("CI").as_deref() != Ok("true"), "a mount namespace needs root");
    if !there {
        eprintln!("SKIPPED: a mount namespace needs root");
    }
    there
}

/// A server whose spool lies on a tmpfs with these options, with these lines under `[spool]`.
fn start(disk: &str, spool: &str) -> Server {
    let mut server = Server::prepare(Options { spool_disk: Some(disk.to_owned()), ..Options::default() });
    let text = server.config();
    let usual = "min_free = \"1MiB\"\nmin_free_percent = 0\n";
    assert!(text.contains(usual));
    server.write_config(&text.replace(usual, spool));
    server.run();
    server
}

/// The spool as the server sees it.
fn spool(server: &Server) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", server.pid().as_raw_nonzero(), server.path("state/spool").display()))
}

/// A client that asks line by line.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.mx()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut client = Self(BufReader::new(stream));
        assert!(client.reply().starts_with("220"));
        assert!(client.ask("EHLO client.example\r\n").starts_with("250"));
        client
    }

    fn ask(&mut self, text: &str) -> String {
        self.0.get_mut().write_all(text.as_bytes()).expect("sent");
        self.reply()
    }

    fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a reply");
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Sends one message, as far as it goes: the last reply, and whether that was before any of its octets.
    fn send(&mut self, number: u64) -> (String, bool) {
        for command in ["MAIL FROM:<a@far.example>\r\n", "RCPT TO:<alice@demo.test>\r\n", "DATA\r\n"] {
            let reply = self.ask(command);
            if !reply.starts_with("250") && !reply.starts_with("354") {
                self.ask("RSET\r\n");
                return (reply, true);
            }
        }
        (self.ask(&format!("{}.\r\n", message(number))), false)
    }
}

/// Takes room until the file system has no more than this left.
fn fill(file: &mut File, server: &Server, leave: u64) {
    let room = || {
        let room = rustix::fs::statvfs(spool(server)).expect("the tmpfs");
        room.f_bavail * room.f_frsize
    };
    let block = vec![1; 64 << 10];
    while room() > leave {
        let octets = block.len().min((room() - leave) as usize);
        if file.write_all(&block[..octets]).is_err() {
            return;
        }
    }
}

#[test]
fn below_the_floors_mail_is_refused_before_its_data() {
    if !permitted() {
        return;
    }
    let server = start("size=16m,nr_inodes=200", "min_free = \"2MiB\"\nmin_free_percent = 10\n");
    let mut client = Client::connect(&server);
    assert!(client.send(1).0.starts_with("250 2.0.0"));
    let filler = spool(&server).join("filler");
    // Octets, then inodes.
    for round in 0..2 {
        if round == 0 {
            let mut file = File::create(&filler).expect("a file");
            fill(&mut file, &server, 1 << 20);
        } else {
            fs::create_dir(&filler).expect("a folder");
            for number in 0.. {
                let room = rustix::fs::statvfs(spool(&server)).expect("the tmpfs");
                if room.f_favail < room.f_files / 10 {
                    break;
                }
                File::create(filler.join(number.to_string())).expect("a file");
            }
        }
        // The room is looked at once a second.
        until("a refusal", &server, || client.send(2 + round).0.starts_with("452"));
        let (reply, early) = client.send(2 + round);
        assert!(reply.starts_with("452 4.3.1") && early, "round {round}: {reply}");
        if round == 0 {
            fs::remove_file(&filler).expect("our own file");
        } else {
            fs::remove_dir_all(&filler).expect("our own folder");
        }
        until("room again", &server, || client.send(4).0.starts_with("250 2.0.0"));
    }
}

/// Without floors the disk is really full: at a segment, at a body, at a name. 452, and the session goes on.
#[test]
fn a_disk_that_is_filled_and_emptied_under_load_loses_nothing() {
    if !permitted() {
        return;
    }
    let _one = alone();
    let server = start("size=8m,nr_inodes=400", "min_free = 0\nmin_free_percent = 0\n");
    let (ledger, next) = (Mutex::new(BTreeSet::new()), AtomicU64::new(0));
    let (refused, rounds) = (AtomicU64::new(0), AtomicU64::new(0));
    const MESSAGES: u64 = 1000;
    const ROUNDS: u64 = 4;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::connect(&server);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= MESSAGES && rounds.load(Ordering::Relaxed) >= ROUNDS {
                        break;
                    }
                    let (reply, _) = client.send(number);
                    if reply.starts_with("250 2.0.0") {
                        ledger.lock().expect("not poisoned").insert(number);
                    } else {
                        assert!(reply.starts_with("452 4.3.1"), "message {number}: {reply}\n{}", server.log());
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let filler = spool(&server).join("filler");
        for round in 0..ROUNDS {
            let acknowledged = || ledger.lock().expect("not poisoned").len();
            let so_far = acknowledged();
            until(&format!("mail in round {round}"), &server, || acknowledged() >= so_far + 20);
            let before = refused.load(Ordering::Relaxed);
            let mut file = File::create(&filler).expect("a file");
            // What delivery frees meanwhile is taken, too.
            until(&format!("refusals in round {round}"), &server, || {
                fill(&mut file, &server, 0);
                refused.load(Ordering::Relaxed) >= before + 20
            });
            fs::remove_file(&filler).expect("our own file");
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    });
    let ledger = ledger.into_inner().expect("not poisoned");
    println!("{} acknowledged, {} refused for want of room", ledger.len(), refused.into_inner());
    until("delivery of what was acknowledged", &server, || {
        let found = delivered(&server);
        ledger.iter().all(|number| found.contains_key(number))
    });
    let found = delivered(&server);
    assert!(found.keys().all(|number| ledger.contains(number)), "what was refused was delivered");
}
