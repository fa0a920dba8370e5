//! CONTRACT C5: messages that end before their end leave nothing, neither in a mailbox nor in the spool.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::crash::until;
use crate::server::{Options, PATIENCE, Server, alone, free_address, output};

/// Files of the spool that belong to a message.
fn bodies(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            count += bodies(&path);
        } else if path.extension().is_some_and(|extension| extension == "body") {
            count += 1;
        }
    }
    count
}

/// How a message ends early.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The client is gone, in the text or in the middle of a command.
    Gone,
    /// The same with a reset of the connection.
    Reset,
    /// `RSET` between two chunks of BDAT.
    Rset,
    /// Larger than it may be.
    Oversize,
    /// `QUIT` between two chunks.
    Quit,
}

const ENDS: [End; 5] = [End::Gone, End::Reset, End::Rset, End::Oversize, End::Quit];

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads until a reply begins with this, at the start of a line.
fn read_until(stream: &mut TcpStream, code: &str) -> io::Result<String> {
    let mut text = String::new();
    let wanted = format!("{code} ");
    let mut buffer = [0; 4096];
    loop {
        if text.split("\r\n").any(|line| line.starts_with(&wanted)) {
            return Ok(text);
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other(format!("closed after {text:?}"))),
            octets => text.push_str(&String::from_utf8_lossy(&buffer[..octets])),
        }
    }
}

/// One message that does not come to its end, cut at a place by chance.
fn abort(address: SocketAddr, number: u64) -> io::Result<()> {
    let chance = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let mut stream = connect(address)?;
    let start = "EHLO c.example\r\nMAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\n";
    let end = ENDS[(number % ENDS.len() as u64) as usize];
    // Most are small; some go to a file of their own.
    let octets = if number.is_multiple_of(40) { 400_000 } else { 200 + chance as usize % 9000 };
    let text = "Subject: never\r\n\r\n".to_owned() + &"all of this is thrown away\r\n".repeat(octets / 28);
    match end {
        End::Gone | End::Reset => {
            stream.write_all(format!("{start}DATA\r\n").as_bytes())?;
            if number.is_multiple_of(3) {
                read_until(&mut stream, "354")?;
            }
            // Up to the last octet before the one that would make it a message.
            let whole = format!("{text}.\r\n");
            let cut = chance as usize % whole.len();
            stream.write_all(&whole.as_bytes()[..cut])?;
            if matches!(end, End::Reset) {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            }
        }
        End::Rset | End::Quit => {
            let cut = 1 + chance as usize % (text.len() - 1);
            let (first, second) = text.split_at(cut);
            let last = if matches!(end, End::Rset) { "RSET\r\nQUIT\r\n" } else { "QUIT\r\n" };
            let second = second.get(..second.len() / 2).unwrap_or_default();
            let all = format!("{start}BDAT {}\r\n{first}BDAT {}\r\n{second}{last}", first.len(), second.len());
            stream.write_all(all.as_bytes())?;
            read_until(&mut stream, "221")?;
        }
        End::Oversize => {
            // More than is announced as the most, and nothing announced: found out on the way.
            stream.write_all(format!("{start}DATA\r\n").as_bytes())?;
            read_until(&mut stream, "354")?;
            let line = [b'x'; 998];
            let mut sent = 0;
            while sent <= SIZE_MAX {
                // The server may have had enough.
                if stream.write_all(&line).and_then(|()| stream.write_all(b"\r\n")).is_err() {
                    return Ok(());
                }
                sent += 1000;
            }
            let _ = stream.write_all(b".\r\nQUIT\r\n");
            let _ = read_until(&mut stream, "552");
        }
    }
    Ok(())
}

/// `limits.max_size` of the listener for oversize ones, the smallest that there is; large ones that are cut come to
/// the other listener, where they would fit.
const SIZE_MAX: usize = 64 << 10;
const ABORTS: u64 = 10_000;

#[test]
fn ten_thousand_messages_that_end_early_leave_nothing() {
    let _one = alone();
    let tables =
        "\n[limits]\nmax_sessions = 20000\n\n[timeouts]\ndata_grace = \"1s\"\nmin_rate = \"1MiB\"\n".to_owned();
    let mut server = Server::prepare(Options { tables, ..Options::default() });
    // The second mx listener takes little.
    let address = server.mx();
    let small = free_address();
    let listener = format!(
        "\n[[listener]]\nname = \"small\"\nrole = \"mx\"\nbind = [\"{small}\"]\ndomains = [\"demo.test\"]\n\
         exempt_nets = [\"127.0.0.0/8\"]\nlimits.max_size = \"{SIZE_MAX}\"\n"
    );
    server.write_config(&(server.config() + &listener));
    server.run();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= ABORTS {
                        return;
                    }
                    let oversize = matches!(ENDS[(number % ENDS.len() as u64) as usize], End::Oversize);
                    let address = if oversize { small } else { address };
                    abort(address, number).unwrap_or_else(|error| panic!("abort {number}: {error}"));
                }
            });
        }
        // Beside them: those who fall silent inside a message, small and large, until their time is over.
        for octets in [10, 5000, 300_000, 700_000] {
            scope.spawn(move || {
                let mut stream = connect(address).expect("a connection");
                let start = "EHLO c.example\r\nMAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\nDATA\r\n";
                stream.write_all(start.as_bytes()).expect("sent");
                read_until(&mut stream, "354").expect("354");
                stream.write_all(&"0123456789abcde\r\n".repeat(octets / 17).into_bytes()).expect("sent");
                let said = read_until(&mut stream, "421").expect("the server loses its patience");
                assert!(said.contains("421 4.4.2"), "{said}");
            });
        }
    });
    let spool = server.path("state/spool");
    until("nothing of them on the disk", &server, || bodies(&spool) == 0);
    // One that is whole, behind all of them: what comes is that one alone.
    let mut stream = connect(address).expect("a connection");
    let all = "EHLO c.example\r\nMAIL FROM:<a@far.example>\r\nRCPT TO:<alice@demo.test>\r\nDATA\r\nSubject: whole\r\n\r\nx\r\n.\r\nQUIT\r\n";
    stream.write_all(all.as_bytes()).expect("sent");
    read_until(&mut stream, "221").expect("its end");
    let stored = server.mail("alice", 1);
    assert!(stored.len() == 1 && String::from_utf8_lossy(&stored[0]).contains("Subject: whole"));
    let (status, said) = output(&mut server.command(&["queue", "stats", "--json"]));
    assert!(status.success() && said.contains("\"messages\": 0"), "{said}");
    // And when the server has ended and begun again, the spool holds nothing at all of those who came before.
    server.signal(Signal::TERM);
    server.wait();
    server.run();
    until("an empty spool", &server, || std::fs::read_dir(&spool).is_ok_and(|entries| entries.count() == 0));
    assert_eq!(server.mail("alice", 1).len(), 1);
}
