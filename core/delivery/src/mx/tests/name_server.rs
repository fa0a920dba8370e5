//! A name server that says what a test wants, right or wrong, over UDP and TCP.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hickory_resolver::proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;

/// What it says to one question.
#[derive(Clone)]
pub(crate) enum Says {
    /// These records, whosever they are.
    Records(Vec<Record>),
    /// Over UDP that it does not fit, and the records over TCP.
    Truncated(Vec<Record>),
    Code(ResponseCode),
    /// Octets that are no DNS over UDP, and the records over TCP.
    GarbageThen(Vec<Record>),
    /// Octets that are no DNS, either way.
    Garbage,
    /// An answer to another question.
    Astray(Vec<Record>),
    Nothing,
    Silence,
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.").replace("..", ".")).unwrap()
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 60, data)
}

pub(crate) fn mx(owner: &str, preference: u16, host: &str) -> Record {
    record(owner, RData::MX(MX::new(preference, name(host))))
}

pub(crate) fn a(owner: &str, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(four) => RData::A(A(four)),
        IpAddr::V6(six) => RData::AAAA(AAAA(six)),
    };
    record(owner, data)
}

pub(crate) fn cname(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

pub(crate) fn txt(owner: &str, parts: &[&str]) -> Record {
    record(owner, RData::TXT(TXT::new(parts.iter().map(|&part| part.to_owned()).collect())))
}

#[derive(Default)]
struct Script {
    zone: Mutex<HashMap<(Name, RecordType), Says>>,
    asked: Mutex<Vec<String>>,
    over_tcp: AtomicUsize,
    over: AtomicBool,
}

/// Ends with its handle.
pub(crate) struct NameServer {
    script: Arc<Script>,
    pub(crate) address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        // The same port for both, which the system picks.
        let (tcp, udp) = (0..100)
            .find_map(|_| {
                let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
                let udp = UdpSocket::bind(tcp.local_addr().ok()?).ok()?;
                Some((tcp, udp))
            })
            .expect("a free port");
        let address = tcp.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let (by_udp, by_tcp) = (script.clone(), script.clone());
        let threads = vec![
            std::thread::spawn(move || {
                let mut octets = [0; 4096];
                while let Ok((length, peer)) = udp.recv_from(&mut octets) {
                    if by_udp.over.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Some(answer) = by_udp.answer(&octets[..length], false) {
                        let _ = udp.send_to(&answer, peer);
                    }
                }
            }),
            std::thread::spawn(move || {
                for stream in tcp.incoming().map_while(Result::ok) {
                    if by_tcp.over.load(Ordering::SeqCst) {
                        return;
                    }
                    let script = by_tcp.clone();
                    std::thread::spawn(move || {
                        serve(&script, &stream);
                        let _ = stream.shutdown(Shutdown::Both);
                    });
                }
            }),
        ];
        Self { script, address, threads }
    }

    /// From now on.
    pub(crate) fn say(&self, owner: &str, kind: RecordType, says: Says) {
        self.script.zone.lock().insert((name(owner).to_lowercase(), kind), says);
    }

    /// The right records, each under its own name and kind.
    pub(crate) fn hold(&self, records: &[Record]) {
        let mut zone = self.script.zone.lock();
        for record in records {
            let key = (record.name.to_lowercase(), record.record_type());
            match zone.entry(key).or_insert_with(|| Says::Records(Vec::new())) {
                Says::Records(known) => known.push(record.clone()),
                other => *other = Says::Records(vec![record.clone()]),
            }
        }
    }

    /// Questions for this name and kind so far.
    pub(crate) fn asked(&self, question: &str) -> usize {
        self.script.asked.lock().iter().filter(|asked| *asked == question).count()
    }

    pub(crate) fn over_tcp(&self) -> usize {
        self.script.over_tcp.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.script.over.store(true, Ordering::SeqCst);
        let _ = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"end", self.address));
        let _ = TcpStream::connect(self.address);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn serve(script: &Script, mut stream: &TcpStream) -> Option<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut octets = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut octets).ok()?;
        script.over_tcp.fetch_add(1, Ordering::SeqCst);
        let answer = script.answer(&octets, true)?;
        stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).ok()?;
        stream.write_all(&answer).ok()?;
    }
}

impl Script {
    fn answer(&self, octets: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(octets).ok()?;
        let query = question.queries.first()?.clone();
        let key = (query.name().to_lowercase(), query.query_type());
        self.asked.lock().push(format!("{} {}", key.0.to_ascii().trim_end_matches('.'), key.1));
        let says = self.zone.lock().get(&key).cloned();
        // A name that has something of another kind exists.
        let says = says.unwrap_or_else(|| {
            let zone = self.zone.lock();
            let alias = zone.get(&(key.0.clone(), RecordType::CNAME)).cloned();
            let exists = zone.keys().any(|(name, _)| *name == key.0);
            alias.unwrap_or(if exists { Says::Nothing } else { Says::Code(ResponseCode::NXDomain) })
        });
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        answer.add_query(query);
        match says {
            Says::Truncated(_) if !tcp => answer.metadata.truncation = true,
            Says::GarbageThen(_) if !tcp => return Some(b"no answer at all, but many octets of nothing".to_vec()),
            Says::Garbage => return Some(b"no answer at all, but many octets of nothing".to_vec()),
            Says::Records(records) | Says::Truncated(records) | Says::GarbageThen(records) => {
                answer.add_answers(records);
            }
            Says::Astray(records) => {
                answer.queries = vec![Query::query(name("elsewhere.example"), key.1)];
                answer.add_answers(records);
            }
            Says::Code(code) => answer.metadata.response_code = code,
            Says::Nothing => {}
            Says::Silence => return None,
        }
        Some(answer.to_vec().unwrap())
    }
}
