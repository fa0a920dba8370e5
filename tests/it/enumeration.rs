//! Whether somebody exists cannot be found out: users and ghosts get the same octets, salts that stay, and
//! iterations and salts that are distributed alike; bearers of tokens learn nothing of others. `PORTREEVE_LONG=1` asks
//! for all 600 names, and compares times.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bare::DOMAIN;
use crate::runners::Client;
use crate::server::{Options, Server};
use crate::tokens::{ISS, Signer, bearer, dial, now, oauthbearer, xoauth2};

const MECHANISMS: [&str; 6] = ["SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2"];
/// As many users as ghosts.
const NAMES: usize = 300;

/// Users with keys of two kinds, as where the default was raised once; no password fits any of them.
fn users() -> String {
    let line = |n: usize| {
        let key = |octet: u8| STANDARD.encode([octet.wrapping_add(n as u8); 32]);
        let salt: Vec<u8> = (0..if n.is_multiple_of(5) { 12 } else { 16 }).map(|at: u8| at ^ n as u8).collect();
        let iterations = if n.is_multiple_of(5) { 6_000 } else { 4_096 };
        format!("{}:{{SCRAM-SHA-256}}{iterations},{},{},{}\n", user(n), STANDARD.encode(salt), key(3), key(9))
    };
    (0..NAMES).map(line).collect()
}

fn user(n: usize) -> String {
    format!("person{n}@{DOMAIN}")
}

fn ghost(n: usize) -> String {
    format!("nobody{n}@{DOMAIN}")
}

/// Whose tokens the instances believe.
static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);

/// An instance of the fleet: its own folder, the same users and the same secrets.
fn instance() -> Server {
    let listener = "cleartext_auth_nets = [\"127.0.0.0/8\"]".to_owned();
    let listener = listener + "\npublic_port = 587";
    let tables = format!(
        "\n[[tokens.issuer]]\nkind = \"jwt\"\nissuer = \"{ISS}\"\naudience = [\"smtp.demo.test\"]\nkeys = \"keys\"\n\
         algorithms = [\"EdDSA\"]\nscope = \"mail\"\n"
    );
    let mut server = Server::prepare(Options { mechanisms: MECHANISMS.to_vec(), listener, ..Options::default() });
    fs::write(server.path("keys"), SIGNER.key_set()).expect("the issuer's keys");
    server.write_config(&(server.config() + &tables));
    fs::write(server.path("state/auth/users"), users()).expect("the users file");
    let secrets = server.path("state/secrets");
    fs::create_dir_all(&secrets).expect("a folder");
    // Fixed, so that the statistics below are the same in every run.
    for (name, octet) in [("decoy", 0x5a), ("accounts", 0x33)] {
        fs::write(secrets.join(name), [octet; 32]).expect("a secret");
        let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(secrets.join(name), private).expect("private");
    }
    server.run();
    server
}

/// Salt and iterations, as anybody is told them.
fn server_first(client: &mut Client, name: &str) -> (String, u32) {
    let reply = client.auth("SCRAM-SHA-256", &format!("n,,n={name},r=nonce"));
    let challenge = reply.trim_end().strip_prefix("334 ").unwrap_or_else(|| panic!("{name}: {reply}"));
    let challenge = String::from_utf8(STANDARD.decode(challenge).expect("base64")).expect("text");
    assert!(client.ask("*").starts_with("501 "));
    let part = |lead: &str| challenge.split(',').find_map(|part| part.strip_prefix(lead)).expect("an attribute");
    (part("s=").to_owned(), part("i=").parse().expect("a number"))
}

fn all(server: &Server) -> BTreeMap<String, (String, u32)> {
    let names: Vec<String> = (0..NAMES).flat_map(|n| [user(n), ghost(n)]).collect();
    let mut told = BTreeMap::new();
    for names in names.chunks(5) {
        let mut client = Client::connect(server.mx());
        for name in names {
            told.insert(name.clone(), server_first(&mut client, name));
        }
    }
    told
}

/// Pearson's statistic of two groups, and how many kinds there are.
fn chi_square(kinds: impl Iterator<Item = (bool, usize)>) -> (f64, usize) {
    let mut counts: BTreeMap<usize, [f64; 2]> = BTreeMap::new();
    kinds.for_each(|(ghost, kind)| counts.entry(kind).or_default()[usize::from(ghost)] += 1.0);
    let sums = counts.values().fold([0.0, 0.0], |sums: [f64; 2], row| [sums[0] + row[0], sums[1] + row[1]]);
    let statistic = counts
        .values()
        .flat_map(|row| (0..2).map(move |group| (row[group], row[0] + row[1], group)))
        .map(|(seen, both, group)| {
            let expected = both * sums[group] / (sums[0] + sums[1]);
            (seen - expected).powi(2) / expected
        })
        .sum();
    (statistic, counts.len())
}

/// What the statistic exceeds by chance in one of a hundred cases, for one and more degrees of freedom.
const ONE_PERCENT: [f64; 4] = [6.635, 9.210, 11.345, 13.277];

#[test]
fn salts_stay_and_are_distributed_alike() {
    let mut server = instance();
    let told = all(&server);
    let other = instance();
    assert!(all(&other) == told, "the other node says something else");
    for _ in 0..2 {
        server.signal(rustix::process::Signal::TERM);
        server.wait();
        server.run();
        assert!(all(&server) == told, "a restart changed something");
    }
    let is_ghost = |name: &str| name.starts_with("nobody");
    for (what, kinds) in [
        ("iterations", told.iter().map(|(name, (_, i))| (is_ghost(name), *i as usize)).collect::<Vec<_>>()),
        ("salt octets", told.iter().map(|(name, (salt, _))| (is_ghost(name), salt.len())).collect()),
    ] {
        let (statistic, count) = chi_square(kinds.into_iter());
        println!("{what}: chi-square {statistic:.3} with {count} kinds");
        // Users have two kinds of keys; a third one would be a ghost's own.
        assert_eq!(count, 2, "{what}");
        assert!(statistic < ONE_PERCENT[count - 2], "{what}: {statistic}");
    }
    // The statistic would notice: this is what it says when ghosts have the default only.
    let (statistic, _) = chi_square(told.iter().map(|(name, (_, i))| {
        let ghost = is_ghost(name);
        (ghost, if ghost { 4_096 } else { *i as usize })
    }));
    assert!(statistic > 3.0 * ONE_PERCENT[0], "{statistic}");
}

/// The last reply of a failed login.
fn failure(client: &mut Client, mechanism: &str, name: &str) -> Vec<String> {
    let first = match mechanism {
        "PLAIN" => client.auth("PLAIN", &format!("\0{name}\0not the password")),
        "LOGIN" => client.auth("LOGIN", name),
        _ => client.ask("AUTH CRAM-MD5"),
    };
    let second = first.starts_with("334 ").then(|| match mechanism {
        "LOGIN" => client.ask(&STANDARD.encode("not the password")),
        _ => client.ask(&STANDARD.encode(format!("{name} {:032x}", 7))),
    });
    match (mechanism, second) {
        // Each challenge of CRAM-MD5 is another one.
        ("CRAM-MD5", Some(second)) => vec![second],
        (_, Some(second)) => vec![first, second],
        (_, None) => vec![first],
    }
}

#[test]
fn failures_are_the_same_octets() {
    let server = instance();
    let long = std::env::var_os("PORTREEVE_LONG").is_some();
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5"] {
        // A few are enough to notice: there is one right answer.
        let count = if long { NAMES } else { 6 };
        let mut seen = None;
        for n in 0..count {
            let mut client = Client::connect(server.mx());
            for name in [user(n), ghost(n)] {
                let replies = failure(&mut client, mechanism, &name);
                assert!(replies.last().is_some_and(|last| last.starts_with("535 ") || last.starts_with("454 ")));
                let expected = seen.get_or_insert_with(|| replies.clone());
                assert_eq!(*expected, replies, "{mechanism}: {name}");
            }
        }
    }
}

/// Whoever has a token, good or bad, learns nothing about anybody else.
#[test]
fn bearers_are_told_the_same_about_users_and_ghosts() {
    let server = instance();
    let count = if std::env::var_os("PORTREEVE_LONG").is_some() { NAMES - 1 } else { 3 };
    let own = user(0);
    let good = SIGNER.token(json!({ "email": own }));
    let forged = Signer::new().token(json!({ "email": own }));
    let mut seen: BTreeMap<(&str, &str), (Option<serde_json::Value>, String)> = BTreeMap::new();
    for mechanism in ["OAUTHBEARER", "XOAUTH2"] {
        let message = |name: &str, token: &str| match mechanism {
            "XOAUTH2" => xoauth2(name, token),
            _ => oauthbearer(name, token),
        };
        let (_, end) = bearer(&mut dial(&server), mechanism, &message(&own, &good));
        assert!(end.starts_with("235 "), "{mechanism}: {end}\n{}", server.log());
        for n in 1..=count {
            for name in [user(n), ghost(n)] {
                for (what, token) in [
                    ("no token", "bm90IGEgdG9rZW4=".to_owned()),
                    ("forged", forged.clone()),
                    ("one's own, to act as somebody else", good.clone()),
                    ("expired", SIGNER.token(json!({ "email": name, "exp": now() - 600 }))),
                    ("for something else", SIGNER.token(json!({ "email": name, "scope": "calendar" }))),
                    ("for another service", SIGNER.token(json!({ "email": name, "aud": ["imap.demo.test"] }))),
                ] {
                    let replies = bearer(&mut dial(&server), mechanism, &message(&name, &token));
                    assert!(
                        replies.0.is_some() && replies.1.starts_with("535 5.7.8"),
                        "{mechanism} {what}: {replies:?}"
                    );
                    let expected = seen.entry((mechanism, what)).or_insert_with(|| replies.clone());
                    assert_eq!(*expected, replies, "{mechanism} {what}: {name}");
                }
            }
        }
    }
    // Nor does it tell what was wrong: but for the scope all of it reads the same.
    for mechanism in ["OAUTHBEARER", "XOAUTH2"] {
        let kinds: Vec<_> =
            seen.iter().filter(|((of, what), _)| *of == mechanism && *what != "for something else").collect();
        assert!(kinds.len() == 5 && kinds.windows(2).all(|two| two[0].1 == two[1].1), "{kinds:?}");
    }
}

/// Not in CI: other work on the machine is measured, too.
#[test]
fn failures_take_the_same_time() {
    if std::env::var_os("PORTREEVE_LONG").is_none() {
        return println!("only with PORTREEVE_LONG=1");
    }
    let _alone = crate::server::alone();
    let server = instance();
    let good = SIGNER.token(json!({ "email": user(0) }));
    // A password, and a token of one's own to act as somebody else.
    for mechanism in ["PLAIN", "OAUTHBEARER"] {
        let mut times: [Vec<f64>; 2] = Default::default();
        for round in 0..3 {
            for n in 1..NAMES {
                let (mut client, mut wire) = (Client::connect(server.mx()), dial(&server));
                // Who comes first alternates.
                for ghost_now in [(n + round) % 2 == 0, (n + round) % 2 == 1] {
                    let name = if ghost_now { ghost(n) } else { user(n) };
                    let started = Instant::now();
                    match mechanism {
                        "PLAIN" => drop(failure(&mut client, "PLAIN", &name)),
                        _ => drop(bearer(&mut wire, mechanism, &oauthbearer(&name, &good))),
                    }
                    times[usize::from(ghost_now)].push(started.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        let medians = times.each_mut().map(|times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        println!("{mechanism}: median of a failure: users {:.3} ms, ghosts {:.3} ms", medians[0], medians[1]);
        assert!((medians[0] / medians[1] - 1.0).abs() < 0.05, "{mechanism}: {medians:?}");
    }
}
