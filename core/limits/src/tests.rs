use super::*;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

fn v4(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(n))
}

fn v6(net: u64, host: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(u128::from(net) << 64 | u128::from(host)))
}

/// xorshift: the same sequence at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn attach(table: &Table, row: usize) -> Table {
    Table::attach(table.as_fd().try_clone_to_owned().unwrap(), row).unwrap()
}

#[test]
fn one_client_is_an_address_or_a_64() {
    assert_eq!(prefix("::ffff:192.0.2.1".parse().unwrap()), v4(0xc000_0201));
    assert_eq!(prefix("2001:db8:1:2:3:4:5:6".parse().unwrap()), "2001:db8:1:2::".parse::<IpAddr>().unwrap());
    let table = Table::create(1).unwrap();
    let config = Config { per_prefix_max: 1, ..Config::mx() };
    let _ = table.try_connect(&config, v6(7, 1), 0).unwrap();
    assert_eq!(table.try_connect(&config, v6(7, 2), 0), Err(Refusal::Prefix));
    let _ = table.try_connect(&config, v6(8, 1), 0).unwrap();
    let _ = table.try_connect(&config, v4(1), 0).unwrap();
    assert_eq!(table.try_connect(&config, v6(0, 0xffff_0000_0001), 0), Err(Refusal::Prefix), "mapped is IPv4");
    // Another group counts apart.
    let _ = table.try_connect(&Config { group: 1, ..config }, v4(1), 0).unwrap();
}

/// Random connects and disconnects of two workers against a plain reference: the table never admits what the
/// reference would not, and never refuses what it would admit.
#[test]
fn sessions_follow_the_reference() {
    let table = Table::create(6).unwrap();
    let workers = [attach(&table, 1), attach(&table, 5)];
    let config = Config { sessions_max: 60, per_prefix_max: 5, ..Config::mx() };
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut open: Vec<(usize, IpAddr, Ticket)> = Vec::new();
    let mut refused = [0; 2];
    for step in 0..200_000u64 {
        if random.below(2) == 0 && !open.is_empty() {
            let (worker, _, ticket) = open.swap_remove(random.below(open.len() as u64) as usize);
            workers[worker].disconnect(ticket);
        } else {
            let (worker, ip) = (random.below(2) as usize, v4(random.below(30) as u32));
            let expected = if open.len() == 60 {
                Some(Refusal::Total)
            } else if open.iter().filter(|(_, other, _)| *other == ip).count() == 5 {
                Some(Refusal::Prefix)
            } else {
                None
            };
            match workers[worker].try_connect(&config, ip, step) {
                Ok(ticket) => {
                    assert_eq!(expected, None);
                    open.push((worker, ip, ticket));
                }
                Err(refusal) => {
                    assert_eq!(Some(refusal), expected);
                    refused[usize::from(refusal == Refusal::Prefix)] += 1;
                }
            }
        }
        // Once in a while a worker dies and the supervisor takes its sessions back.
        if random.below(5000) == 0 {
            let dead = random.below(2) as usize;
            table.clear_row([1, 5][dead]);
            open.retain(|(worker, _, _)| *worker != dead);
        }
        assert_eq!(table.sessions(), open.len() as u64);
    }
    assert!(refused.iter().all(|&n| n > 100), "{refused:?}: the limits were not reached");
}

/// Eight threads, four prefixes, and 200 others whose slots lie within reach of theirs, so that slots change
/// hands all the time.
#[test]
fn threads_never_exceed_the_limit_and_leave_nothing_behind() {
    let table = Table::create(8).unwrap();
    let config = Config { sessions_max: 1000, per_prefix_max: 3, ..Config::mx() };
    let place = |ip| table.key(config.group, table::prefix_bits(ip)) as usize & (table::PREFIX_SLOTS - 1);
    let near = |ip| (0..4).any(|n| place(ip).abs_diff(place(v4(n))) < PROBES);
    let others: Vec<IpAddr> = (1..).map(|net| v6(net, 0)).filter(|&ip| near(ip)).take(200).collect();
    let inside: HashMap<u32, AtomicU32> = (0..4).map(|n| (n, AtomicU32::new(0))).collect();
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for row in 0..8 {
            let table = attach(&table, row);
            let (config, others, inside, admitted) = (&config, &others, &inside, &admitted);
            scope.spawn(move || {
                let mut random = Random(row as u64 + 99);
                for now in 0..20_000 {
                    let n = random.below(4) as u32;
                    if let Ok(ticket) = table.try_connect(config, v4(n), now) {
                        admitted.fetch_add(1, SeqCst);
                        assert!(inside[&n].fetch_add(1, SeqCst) < 3);
                        inside[&n].fetch_sub(1, SeqCst);
                        table.disconnect(ticket);
                    }
                    for _ in 0..3 {
                        let other = others[random.below(200) as usize];
                        if let Ok(ticket) = table.try_connect(config, other, now) {
                            table.disconnect(ticket);
                        }
                    }
                }
            });
        }
    });
    assert!(admitted.load(SeqCst) > 1000);
    assert_eq!(table.sessions(), 0);
    for n in 0..4 {
        let tickets: Vec<_> = (0..3).map(|_| table.try_connect(&config, v4(n), 0).unwrap()).collect();
        assert_eq!(table.try_connect(&config, v4(n), 0), Err(Refusal::Prefix));
        tickets.into_iter().for_each(|ticket| table.disconnect(ticket));
    }
}

#[test]
fn a_full_table_still_counts_the_total_and_recovers() {
    let table = Table::create(1).unwrap();
    let config = Config { sessions_max: 200_000, per_prefix_max: 1, ..Config::mx() };
    let tickets: Vec<_> = (0..200_000).map(|n| table.try_connect(&config, v6(n, 0), 0).unwrap()).collect();
    assert_eq!(table.try_connect(&config, v4(1), 0), Err(Refusal::Total));
    tickets.into_iter().for_each(|ticket| table.disconnect(ticket));
    assert_eq!(table.sessions(), 0);
    let _ = table.try_connect(&config, v4(1), 0).unwrap();
    assert_eq!(table.try_connect(&config, v4(1), 0), Err(Refusal::Prefix));
}

#[test]
fn a_rate_is_a_bucket_that_refills() {
    let table = Table::create(1).unwrap();
    let config = Config::mx();
    let attempts = |now: u64, n: u32| (0..n).filter(|_| table.auth_attempt(&config, v4(1), now)).count();
    assert_eq!(attempts(1_000_000, 100), 30);
    assert_eq!(attempts(1_001_999, 100), 0);
    assert_eq!(attempts(1_002_000, 100), 1);
    assert_eq!(attempts(1_062_000, 100), 30);
    // Others are not concerned, and 0 is no limit.
    assert!(table.auth_attempt(&config, v4(2), 1_062_000));
    assert!((0..1000).all(|_| table.auth_attempt(&Config { auth_per_minute: 0, ..Config::mx() }, v4(1), 0)));
    // A clock that jumps back locks nobody for longer than a bucket takes.
    assert_eq!(attempts(500, 100), 0);
    assert_eq!(attempts(2_499, 100), 0);
    assert_eq!(attempts(2_500, 100), 1);
}

/// Over any stretch of time no more than a bucket and the refill, and never stuck: whoever waits gets on.
#[test]
fn rates_hold_over_random_times() {
    let mut random = Random(77);
    for per_minute in [1, 7, 30, 600, 100_000, u32::MAX] {
        let table = Table::create(1).unwrap();
        let (mut now, mut permitted) = (1_000, 0u64);
        for _ in 0..5_000 {
            now += random.below(200);
            permitted += u64::from(table.charge(Rate::Message, Subject::Account(5), per_minute, now));
            let elapsed = now - 1_000;
            assert!(permitted <= u64::from(per_minute) + elapsed * u64::from(per_minute) / 59_000 + 1, "{per_minute}");
        }
        assert!(table.charge(Rate::Message, Subject::Account(5), per_minute, now + 61_000));
    }
}

#[test]
fn threads_share_one_bucket() {
    let table = Table::create(4).unwrap();
    let permitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for row in 0..4 {
            let (table, permitted) = (attach(&table, row), &permitted);
            scope.spawn(move || {
                for _ in 0..1000 {
                    if table.charge(Rate::Connection, Subject::Prefix(v4(9)), 100, 5_000) {
                        permitted.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(permitted.load(SeqCst), 100);
}

/// A flood of other prefixes pushes out clients that have spent nothing, not the one that is deep in debt.
#[test]
fn a_flood_does_not_wash_an_attacker_clean() {
    let table = Table::create(1).unwrap();
    let config = Config::mx();
    while table.auth_attempt(&config, v4(1), 0) {}
    let mut random = Random(5);
    for _ in 0..500_000 {
        table.auth_attempt(&config, v6(random.next(), 0), 0);
    }
    assert!(!table.auth_attempt(&config, v4(1), 0));
}

#[test]
fn failures_cost_time_but_lock_nobody() {
    let table = Table::create(1).unwrap();
    let ip = v4(1);
    // jitter 100 is the middle: 1000 per mille.
    let delays: Vec<u32> = (0..8).map(|i| table.auth_failed(ip, 7, 1000 + i, 100)).collect();
    assert_eq!(delays, [2000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    assert_eq!(table.auth_failed(v4(2), 7, 2000, 100), 2000, "another prefix is another pair");
    assert_eq!(table.auth_failed(ip, 8, 2000, 100), 2000, "another account is another pair");
    table.auth_succeeded(ip, 7, 3000);
    assert_eq!(table.auth_failed(ip, 7, 4000, 100), 2000);
    // An hour without failures is forgotten.
    for _ in 0..5 {
        table.auth_failed(ip, 9, 5000, 100);
    }
    assert_eq!(table.auth_failed(ip, 9, 5000 + 3_600_000, 100), 2000);
    for jitter in [0, 1, 99, 200, 201, u32::MAX] {
        assert!((1800..=2200).contains(&table.auth_failed(v4(3), u64::from(jitter) + 100, 0, jitter)));
    }
}

#[test]
fn an_attacked_account_is_slow_for_strangers_only() {
    let table = Table::create(1).unwrap();
    table.auth_succeeded(v4(1), 7, 1000);
    for n in 0..50 {
        table.auth_failed(v4(100 + n), 7, 2000, 100);
    }
    assert_eq!(table.auth_failed(v4(200), 7, 2000, 100), 30_000);
    assert_eq!(table.auth_failed(v4(1), 7, 2000, 100), 2000);
    assert_eq!(table.auth_failed(v4(1), 7, 1000 + 31 * 24 * 3_600_000, 100), 2000, "the attack is forgotten by then");
}

#[test]
fn known_pairs_outlive_a_flood_of_guesses() {
    let table = Table::create(1).unwrap();
    table.auth_succeeded(v4(1), 7, 1000);
    let mut random = Random(3);
    for now in 0..300_000 {
        table.auth_failed(v4(random.next() as u32), random.next(), 2000 + now, 0);
    }
    for n in 0..50 {
        table.auth_failed(v4(100 + n), 7, 400_000, 100);
    }
    assert_eq!(table.auth_failed(v4(1), 7, 400_000, 100), 2000);
}

#[test]
fn what_is_no_table_is_refused() {
    let words = link::shared::SharedWords::create("x", 100).unwrap();
    assert!(Table::attach(words.as_fd().try_clone_to_owned().unwrap(), 0).is_err());
    let table = Table::create(2).unwrap();
    assert!(Table::attach(table.as_fd().try_clone_to_owned().unwrap(), 2).is_err());
    assert!(Table::create(0).is_err() && Table::create(129).is_err());
    table.clear_row(500);
}

/// A worker that writes nonsense into the shared words spoils the counts, never a process.
#[test]
fn nonsense_in_the_words_is_survived() {
    let table = Table::create(4).unwrap();
    let raw = link::shared::SharedWords::attach(table.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let mut random = Random(11);
    for word in &raw.words()[40..] {
        word.store(random.next() >> random.below(64), SeqCst);
    }
    let config = Config { connections_per_minute: 10, ..Config::mx() };
    for n in 0..10_000 {
        let now = random.next() >> random.below(64);
        if let Ok(ticket) = table.try_connect(&config, v4(n), now) {
            table.disconnect(ticket);
        }
        table.auth_attempt(&config, v4(n), now);
        table.auth_failed(v4(n), u64::from(n), now, n);
        table.auth_succeeded(v4(n), u64::from(n), now);
    }
    (0..4).for_each(|row| table.clear_row(row));
}
