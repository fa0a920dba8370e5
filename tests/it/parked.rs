//! Exchanges that wait for their client cost little memory, and all of them end well. The long form, 100,000 of
//! them, is `target/release/parked` of portreeve-load.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Pid;

use crate::runners::Client;
use crate::scram::{Hash, Proof};
use crate::server::{Options, Server};

/// So many at a time.
const PARKED: usize = 2_000;
/// What one may cost, octets.
const OCTETS_MAX: u64 = 1024;

/// Memory that a process has for itself.
fn private_octets(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero())).expect("our own child");
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let private = text.lines().filter(|line| line.starts_with("Private_")).filter_map(kib);
    private.sum::<u64>() * 1024
}

#[test]
fn two_thousand_exchanges_wait_in_a_kilobyte_each_and_all_end_well() {
    let listener = "cleartext_auth_nets = [\"127.0.0.0/8\"]".to_owned();
    let mut server =
        Server::prepare(Options { mechanisms: vec!["SCRAM-SHA-256", "PLAIN"], listener, ..Options::default() });
    let key = Hash::Sha256.stored("secret");
    fs::write(server.path("state/auth/users"), format!("alice@demo.test:{key}\n")).expect("the users file");
    server.run();
    let workers = server.processes()["worker"].clone();
    let octets = || workers.iter().map(|pid| private_octets(*pid)).sum::<u64>();
    let mut clients: Vec<Client> = Vec::new();
    let mut proof = Proof::new(Hash::Sha256, "alice@demo.test", "secret");
    // One of each first: code, tables and buffers that are there once.
    for _ in 0..8 {
        let mut client = Client::connect(server.mx());
        let challenge = client.ask(&proof.auth());
        assert!(client.ask(&proof.answer(&challenge)).starts_with("334 "));
        assert!(client.ask("").starts_with("235 "));
    }
    for _ in 0..PARKED {
        clients.push(Client::connect(server.mx()));
    }
    let idle = octets();
    let challenges: Vec<String> = clients.iter_mut().map(|client| client.ask(&proof.auth())).collect();
    let parked = octets();
    let each = parked.saturating_sub(idle) / PARKED as u64;
    println!("{PARKED} exchanges after the challenge: {each} octets each");
    assert!(each <= OCTETS_MAX, "{each} octets each: {idle} idle, {parked} parked");
    // Less than its state cannot be: then something else was measured.
    assert!(each >= 256, "{each} octets each: {idle} idle, {parked} parked");
    for (client, challenge) in clients.iter_mut().zip(&challenges) {
        let last = client.ask(&proof.answer(challenge));
        let last = last.trim_end().strip_prefix("334 ").unwrap_or_else(|| panic!("{last}"));
        assert!(STANDARD.decode(last).is_ok_and(|octets| octets.starts_with(b"v=")), "{last}");
        assert!(client.ask("").starts_with("235 "));
    }
}
