//! The other end of the `lmtp` route: takes everything, keeps nothing, counts. Its processor time is nobody's figure.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server in this process; gone with it.
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    messages: Arc<AtomicU64>,
}

impl Sink {
    /// Starts it.
    pub fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let messages = Arc::new(AtomicU64::new(0));
        let count = messages.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                // A connection that ends early is the other side's affair.
                std::thread::spawn(move || drop(serve(stream, &count)));
            }
        });
        Ok(Self { address, messages })
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, messages: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut input = BufReader::with_capacity(64 << 10, stream);
    let (mut replies, mut line, mut recipients) = (String::from("220 sink LMTP\r\n"), Vec::new(), 0);
    loop {
        // One write for a pipelined group.
        if input.buffer().is_empty() {
            out.write_all(replies.as_bytes())?;
            replies.clear();
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or_default().to_ascii_uppercase().as_slice() {
            b"LHLO" => replies
                .push_str("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE\r\n250 ENHANCEDSTATUSCODES\r\n"),
            b"MAIL" => replies.push_str("250 2.1.0 ok\r\n"),
            b"RCPT" => {
                recipients += 1;
                replies.push_str("250 2.1.5 ok\r\n");
            }
            b"DATA" => {
                replies.push_str("354 go on\r\n");
                if input.buffer().is_empty() {
                    out.write_all(replies.as_bytes())?;
                    replies.clear();
                }
                while line != b".\r\n" {
                    line.clear();
                    if input.read_until(b'\n', &mut line)? == 0 {
                        return Ok(());
                    }
                }
                messages.fetch_add(1, Ordering::SeqCst);
                (0..recipients).for_each(|_| replies.push_str("250 2.0.0 taken\r\n"));
                recipients = 0;
            }
            b"QUIT" => {
                replies.push_str("221 2.0.0 bye\r\n");
                return out.write_all(replies.as_bytes());
            }
            b"RSET" | b"NOOP" => {
                recipients = 0;
                replies.push_str("250 2.0.0 ok\r\n");
            }
            _ => replies.push_str("500 5.5.1 unknown\r\n"),
        }
    }
}
