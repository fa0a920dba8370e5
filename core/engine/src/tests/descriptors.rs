//! CONTRACT C14: running out of descriptors. The server is a process of its own, so that its limit is not
//! the client's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::mx;
use super::rig::{Plan, Rig, await_that, dial};

const CHILD: &str = "PORTREEVE_TEST_DESCRIPTORS";
/// Descriptors that sessions can have.
const FREE: u64 = 40;

/// The server. Not a test of its own: ends at once unless it was started by the one below.
#[test]
fn server() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let rig = Rig::start(Plan { shards: 1, ..mx() });
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + FREE), maximum: old.maximum }).unwrap();
    println!("\nlistens {}", rig.address);
    std::io::stdout().flush().unwrap();
    // Until the parent is done.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

#[test]
fn everybody_is_served_once_descriptors_are_back() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::descriptors::server", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address: SocketAddr = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("listens ").map(|address| address.parse().unwrap()))
        .unwrap();
    let clients: Vec<TcpStream> = (0..FREE + 9).map(|_| dial(address)).collect();
    let greeted = |clients: &[TcpStream]| -> usize {
        let is_greeted = |stream: &&TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut [0; 3]).is_ok_and(|octets| octets == 3)
        };
        clients.iter().filter(is_greeted).count()
    };
    // All descriptors are in use, and some clients wait. (The reserve is kept, so a few less than FREE.)
    await_that("exhaustion", || greeted(&clients) >= FREE as usize - 5);
    let waiting = |clients: &[TcpStream]| clients.len() - greeted(clients);
    let before = cpu_ticks(&child);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(700) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // 5 % of 0.7 s would be 3.5 ticks of 10 ms; one for what ran before.
    assert!(cpu_ticks(&child) - before <= 4, "spins: {} ticks", cpu_ticks(&child) - before);
    assert!(waiting(&clients) >= 5, "{} wait", waiting(&clients));

    // Descriptors come back; no new connection comes. Everybody is greeted soon.
    let (leaving, staying): (Vec<_>, Vec<_>) =
        clients.into_iter().partition(|stream| stream.peek(&mut [0; 3]).is_ok_and(|octets| octets == 3));
    let waiting = staying.len();
    drop(leaving);
    let started = Instant::now();
    await_that("greetings", || greeted(&staying) == waiting);
    assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    for mut stream in staying {
        let mut reply = [0; 3];
        stream.set_nonblocking(false).unwrap();
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"220");
    }

    // Exhausted for longer: somebody who waits is told 421.
    let mut clients: Vec<TcpStream> = (0..FREE + 9).map(|_| dial(address)).collect();
    let mut told = false;
    await_that("a 421", || {
        for stream in &mut clients {
            let mut reply = [0; 3];
            stream.set_nonblocking(true).unwrap();
            told |= stream.peek(&mut reply).is_ok() && &reply == b"421";
        }
        told
    });
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// User and system time of the process, in ticks of 10 ms.
fn cpu_ticks(child: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
