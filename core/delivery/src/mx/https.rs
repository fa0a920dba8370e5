//! One small file over HTTPS: what fetching an MTA-STS policy takes of HTTP/1.1, and nothing more.
//!
//! Everything is bounded: the time as a whole, the head, the body. A redirect is a failure (RFC 8461 §3.3), and so is a
//! body that ends before its time: who can cut a connection must not be able to cut a policy.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tls::{ClientSession, ClientTls};

use crate::connection::Ending;

/// Suggested by RFC 8461 §3.3.
const BODY_OCTETS_MAX: usize = 64 << 10;
const HEAD_OCTETS_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
const CONNECT_PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Between looks whether the service ends.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const NOT_IN_TIME: &str = "no whole answer in time";

/// Gets `https://{host}{path}` from one of these addresses.
pub(crate) fn get(
    host: &str,
    path: &str,
    addresses: &[SocketAddr],
    tls: &ClientTls,
    until: Instant,
    ending: &Ending,
) -> Result<Vec<u8>, String> {
    let mut trouble = "it has no address".to_owned();
    for address in addresses {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || ending.has_begun() {
            break;
        }
        match TcpStream::connect_timeout(address, left.min(CONNECT_PATIENCE_MAX)) {
            // Whoever answers, answers for the host.
            Ok(stream) => return exchange(host, path, stream, tls, until, ending),
            Err(error) => trouble = format!("connect to {address}: {error}"),
        }
    }
    Err(trouble)
}

fn exchange(
    host: &str,
    path: &str,
    mut stream: TcpStream,
    tls: &ClientTls,
    until: Instant,
    ending: &Ending,
) -> Result<Vec<u8>, String> {
    let _ = stream.set_nodelay(true);
    let (mut out, mut plain) = (Vec::new(), Vec::new());
    let mut session = ClientSession::connect(tls, host, &mut out).map_err(|error| format!("TLS: {error}"))?;
    let mut asked = false;
    let mut closed = false;
    let mut octets = vec![0; 16 << 10];
    loop {
        if !asked && !session.is_handshaking() {
            asked = true;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: portreeve\r\nConnection: close\r\n\r\n");
            session.send(request.as_bytes(), &mut out).map_err(|error| format!("TLS: {error}"))?;
        }
        write(&mut stream, &out, until, ending)?;
        out.clear();
        if let Some(body) = read_answer(&plain, closed)? {
            session.close(&mut out);
            let _ = write(&mut stream, &out, until, ending);
            return Ok(body);
        }
        let read = read(&mut stream, &mut octets, until, ending)?;
        if read == 0 {
            return Err("the connection ended before the answer did".to_owned());
        }
        let received = session.receive(octets.get(..read).unwrap_or_default(), &mut plain, &mut out);
        closed = match received {
            Ok(open) => !open,
            Err(error) => {
                let _ = write(&mut stream, &out, until, ending);
                return Err(format!("TLS: {error}"));
            }
        };
    }
}

/// How long to wait before the next look.
fn left(until: Instant, ending: &Ending) -> Result<Duration, String> {
    let left = until.saturating_duration_since(Instant::now());
    if ending.has_begun() {
        return Err("delivery ends".to_owned());
    }
    if left.is_zero() { Err(NOT_IN_TIME.to_owned()) } else { Ok(left.clamp(Duration::from_millis(1), LOOK_EVERY)) }
}

fn is_early(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn read(stream: &mut TcpStream, octets: &mut [u8], until: Instant, ending: &Ending) -> Result<usize, String> {
    loop {
        let left = left(until, ending)?;
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(octets)) {
            Ok(read) => return Ok(read),
            Err(error) if is_early(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn write(stream: &mut TcpStream, mut octets: &[u8], until: Instant, ending: &Ending) -> Result<(), String> {
    while !octets.is_empty() {
        let left = left(until, ending)?;
        match stream.set_write_timeout(Some(left)).and_then(|()| stream.write(octets)) {
            Ok(0) => return Err("the connection takes nothing".to_owned()),
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(error) if is_early(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// The body when `octets` hold the whole answer; `closed`: no more come, and the peer has said so.
pub(crate) fn read_answer(octets: &[u8], closed: bool) -> Result<Option<Vec<u8>>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let head = match answer.parse(octets) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if octets.len() > HEAD_OCTETS_MAX => {
            return Err("the head of its answer is too long".to_owned());
        }
        Ok(httparse::Status::Partial) if closed => return Err("its answer is cut off".to_owned()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its answer is no HTTP: {error}")),
    };
    match answer.code {
        Some(200) => {}
        // RFC 8461 §3.3: not followed.
        Some(code @ 300..=399) => return Err(format!("it answers {code}: redirects are not followed")),
        Some(code) => return Err(format!("it answers {code}")),
        None => return Err("it answers without a code".to_owned()),
    }
    let header = |name: &str| {
        let mut values = answer.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let value = values.next().and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim);
        (value, values.next().is_some())
    };
    // RFC 8461 §3.2: what users can upload is rarely served as plain text.
    let kind = header("content-type").0.unwrap_or_default();
    let media = kind.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("text/plain") {
        return Err(format!("its Content-Type is {:?}, not text/plain", media.chars().take(60).collect::<String>()));
    }
    if header("content-encoding").0.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err("it answers in a coding that was not asked for".to_owned());
    }
    let body = octets.get(head..).unwrap_or_default();
    let (coding, length) = (header("transfer-encoding"), header("content-length"));
    let whole = match (coding, length) {
        ((Some(coding), false), _) if coding.eq_ignore_ascii_case("chunked") => chunks(body)?,
        ((None, _), (Some(length), false)) => {
            let length = length.parse().ok().filter(|_| length.bytes().all(|b| b.is_ascii_digit()));
            let length: usize = length.ok_or("its Content-Length is no number")?;
            if length > BODY_OCTETS_MAX {
                return Err("its policy is too long".to_owned());
            }
            body.get(..length).map(<[u8]>::to_vec)
        }
        ((None, _), (None, _)) => closed.then(|| body.to_vec()),
        _ => return Err("its answer says in no way that we know where it ends".to_owned()),
    };
    match whole {
        Some(whole) if whole.len() > BODY_OCTETS_MAX => Err("its policy is too long".to_owned()),
        Some(whole) => Ok(Some(whole)),
        // Chunks have heads of their own; twice as much is more than enough.
        None if body.len() > 2 * BODY_OCTETS_MAX => Err("its policy is too long".to_owned()),
        None if closed => Err("its answer is cut off".to_owned()),
        None => Ok(None),
    }
}

/// The content of a chunked body once its last chunk is there.
fn chunks(mut body: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut whole = Vec::new();
    loop {
        let bad = || "its answer is no chunked body".to_owned();
        let (head, length) = match httparse::parse_chunk_size(body) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(bad()),
        };
        if length == 0 {
            return Ok(Some(whole));
        }
        let length = usize::try_from(length).ok().filter(|length| whole.len() + length <= BODY_OCTETS_MAX);
        let length = length.ok_or("its policy is too long")?;
        let Some((chunk, rest)) = body.get(head..).and_then(|rest| rest.split_at_checked(length)) else {
            return Ok(None);
        };
        whole.extend_from_slice(chunk);
        body = match rest.get(..2) {
            Some(b"\r\n") => rest.get(2..).unwrap_or_default(),
            Some(_) => return Err(bad()),
            None => return Ok(None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n";

    fn answer(tail: &str, closed: bool) -> Result<Option<String>, String> {
        let text = if tail.starts_with("HTTP") { tail.to_owned() } else { format!("{OK}{tail}") };
        read_answer(text.as_bytes(), closed).map(|body| body.map(|body| String::from_utf8(body).unwrap()))
    }

    #[test]
    fn bodies_end_where_they_say() {
        for (tail, body) in [
            ("Content-Length: 5\r\n\r\nhello", "hello"),
            ("content-length: 5\r\n\r\nhello and more", "hello"),
            ("Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", "hello"),
            ("Content-Length: 0\r\n\r\n", ""),
        ] {
            assert_eq!(answer(tail, false), Ok(Some(body.to_owned())), "{tail:?}");
            // Nothing is believed before it is whole.
            let text = format!("{OK}{tail}");
            let whole = text.len() - if body.len() == 5 && tail.ends_with("more") { 9 } else { 0 };
            let cut = whole - if tail.contains("chunked") { 4 } else { 1 };
            for end in 0..cut {
                assert_eq!(read_answer(&text.as_bytes()[..end], false), Ok(None), "{end}: {tail:?}");
                assert!(read_answer(&text.as_bytes()[..end], true).is_err(), "{end}: {tail:?}");
            }
        }
        assert_eq!(answer("\r\nhello", false), Ok(None));
        assert_eq!(answer("\r\nhello", true), Ok(Some("hello".to_owned())));
    }

    #[test]
    fn anything_but_a_small_plain_200_is_refused() {
        let long = format!("Content-Length: {}\r\n\r\n", 70_000);
        let endless = format!("\r\n{}", "x".repeat(140_000));
        let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", 70_000);
        let head = format!("X: {}", "x".repeat(20_000));
        for (text, part) in [
            ("HTTP/1.1 301 Moved\r\nLocation: https://x/\r\n\r\n", "redirects"),
            ("HTTP/1.1 304 Not Modified\r\n\r\n", "304"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
            ("HTTP/1.1 204 No Content\r\n\r\n", "204"),
            ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "text/html"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "text/plain"),
            ("Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", "coding"),
            ("Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "where it ends"),
            ("Content-Length: +1\r\n\r\nab", "no number"),
            ("Transfer-Encoding: gzip\r\n\r\nab", "where it ends"),
            ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", "chunked"),
            ("Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "chunked"),
            (&long, "too long"),
            (&endless, "too long"),
            (&chunked, "too long"),
            (&head, "too long"),
            ("HTTP/1.1 2\u{0}0 OK\r\n\r\n", "no HTTP"),
        ] {
            let told = answer(text, false);
            assert!(
                told.as_ref().is_err_and(|why| why.contains(part)),
                "{:?}: {told:?}",
                text.get(..60).unwrap_or(text)
            );
        }
    }
}
