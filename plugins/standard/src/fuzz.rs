//! What fuzzers call.

use portreeve_plugin_sdk::abi::fail;
use portreeve_plugin_sdk::testing::{Answer, Exchange};
use portreeve_plugin_sdk::{EffectKind, Mechanism as _, Settings};

use crate::OauthBearer;

/// Fuzz entry: `octets` as a client's OAUTHBEARER message. It becomes a question exactly when another reading of RFC
/// 7628 §3.1, written apart from the first, says so and names no other server; then token, authzid, host and port are
/// what it says.
pub fn fuzz_oauthbearer(octets: &[u8]) {
    let Ok(mechanism) = OauthBearer::configure(&Settings::default()) else { panic!("it needs no settings") };
    let mut exchange = Exchange::new(mechanism);
    let ours = exchange.server_name.to_ascii_lowercase();
    let read = read(octets);
    let is_ours = |read: &Read| read.host.as_ref().is_none_or(|host| host.to_ascii_lowercase() == ours.as_bytes());
    match (exchange.start(Some(octets)), read) {
        (Answer::Effect { kind: EffectKind::VerifyToken, authzid, data, data2, .. }, Some(read)) if is_ours(&read) => {
            let named = |name: &str, value: Option<Vec<u8>>| value.map(|value| [name.as_bytes(), &value].concat());
            let fields: Vec<Vec<u8>> =
                [named("host=", read.host), named("port=", read.port)].into_iter().flatten().collect();
            assert_eq!((data, authzid, data2), (read.token, read.authzid, fields.join(&1)));
        }
        (Answer::Failure { class: fail::MALFORMED | fail::CREDENTIALS | fail::CBINDING, data: None, .. }, None) => {}
        // Another server is meant. That is looked at before the authzid is.
        (Answer::Failure { class: fail::CREDENTIALS, data: Some(_), .. }, read)
            if read.as_ref().is_none_or(|read| !is_ours(read)) => {}
        (answer, read) => panic!("{answer:?}, but it is read as {read:?}"),
    }
}

#[derive(Debug)]
struct Read {
    token: Vec<u8>,
    authzid: Vec<u8>,
    host: Option<Vec<u8>>,
    port: Option<Vec<u8>>,
}

fn read(octets: &[u8]) -> Option<Read> {
    let commas: Vec<usize> = (0..octets.len()).filter(|at| octets.get(*at) == Some(&b',')).take(2).collect();
    let [first, second] = commas[..] else { return None };
    let (flag, authzid, rest) = (octets.get(..first)?, octets.get(first + 1..second)?, octets.get(second + 1..)?);
    if flag != b"n" && flag != b"y" {
        return None;
    }
    let authzid = if authzid.is_empty() { Vec::new() } else { name(authzid.strip_prefix(b"a=")?)? };
    let pairs = rest.strip_prefix(b"\x01")?.strip_suffix(b"\x01")?;
    let mut found: [Vec<&[u8]>; 3] = Default::default();
    if !pairs.is_empty() {
        for pair in pairs.strip_suffix(b"\x01")?.split(|octet| *octet == 1) {
            let key: Vec<u8> = pair.iter().copied().take_while(|octet| *octet != b'=').collect();
            let value = pair.get(key.len() + 1..)?;
            let in_value = |octet: &u8| octet.is_ascii_graphic() || b" \t\r\n".contains(octet);
            if key.is_empty() || !key.iter().all(u8::is_ascii_alphabetic) || !value.iter().all(in_value) {
                return None;
            }
            if let Some(at) = ["auth", "host", "port"].iter().position(|known| known.as_bytes() == key) {
                found.get_mut(at)?.push(value);
            }
        }
    }
    let [auth, host, port] = &found;
    let [credentials] = auth[..] else { return None };
    let text = std::str::from_utf8(credentials).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    let body = token.trim_end_matches('=');
    let in_token = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    if !scheme.eq_ignore_ascii_case("bearer") || body.is_empty() || !body.chars().all(in_token) {
        return None;
    }
    if host.len() > 1 || port.len() > 1 || host.iter().any(|host| host.len() > 255) {
        return None;
    }
    let is_port = |port: &&[u8]| (1..=u16::MAX).any(|number| number.to_string().as_bytes() == *port);
    if !port.iter().all(is_port) {
        return None;
    }
    let one = |values: &[&[u8]]| values.first().map(|value| value.to_vec());
    Some(Read { token: token.into(), authzid, host: one(host), port: one(port) })
}

/// A saslname without its escapes (RFC 5802 §7).
fn name(raw: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut pieces = raw.split(|octet| *octet == b'=');
    name.extend_from_slice(pieces.next()?);
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        name.push(match code {
            b"2C" => b',',
            b"3D" => b'=',
            _ => return None,
        });
        name.extend_from_slice(rest);
    }
    (!raw.is_empty() && raw.len() <= 512 && !raw.contains(&0)).then_some(name)
}
