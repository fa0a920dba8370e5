//! OAUTHBEARER (RFC 7628): a GS2 header, then fields, one of which has the bearer token.
//!
//! ```text
//! client-resp = (gs2-header kvsep *kvpair kvsep) / kvsep
//! kvpair      = key "=" value kvsep        key = 1*ALPHA, value = *(VCHAR / SP / HTAB / CR / LF), kvsep = %x01
//! ```
//!
//! The identity is what the token says, never what the header says: that is only whom to act as. A refused
//! token is answered with JSON as final data, which the host wrote; the client answers it with one more 0x01.

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Settings, flag};

use crate::bearer;
use crate::gs2::{self, Flag};

/// The OAUTHBEARER mechanism.
pub struct OauthBearer {
    /// Further names of ours that clients may have connected to.
    hosts: Vec<String>,
}

impl Mechanism for OauthBearer {
    const META: Meta = Meta {
        name: c"OAUTHBEARER",
        config_schema: Some(
            c"{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"hosts\":{\"type\":\"array\",\
              \"items\":{\"type\":\"string\"},\"examples\":[[\"smtp.example.com\"]],\"description\":\"Names beside \
              the server's own and the one asked for in TLS that a client may say it connected to\"}}}",
        ),
        // Not ONE_ROUNDTRIP: a refusal has one more.
        flags: flag::CLIENT_FIRST | flag::PLAINTEXT | flag::NEEDS_TLS | flag::UTF8 | flag::POD_STATE,
        needs: &[EffectKind::VerifyToken],
        strength: 45,
        message_octets_max: 16_384,
        output_octets_max: bearer::OUTPUT_OCTETS_MAX,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = ();

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["hosts"])?;
        Ok(Self { hosts: settings.list("hosts")?.into_iter().map(str::to_owned).collect() })
    }

    fn step(&self, _: &mut (), mut cx: Cx<'_>) -> Result<Done, Bad> {
        let message = match cx.event() {
            Event::Start { initial: None } => return cx.challenge(),
            Event::Start { initial: Some(message) } | Event::Message(message) => message,
            Event::Outcome(outcome) => return bearer::conclude(&outcome, br#"{"status":"invalid_token"}"#, cx),
            Event::Resume => return Err(Bad::INTERNAL),
        };
        // RFC 7628 §3.1: what a client sends after a failure, sent too early.
        if message == [KVSEP] {
            return Err(Bad::CREDENTIALS.because("no token at all"));
        }
        let response = Response::parse(message)?;
        // RFC 7628 §3.2: what is known otherwise MUST match.
        if let Some(host) = response.host
            && !self.is_ours(host, &cx)
        {
            // RFC 7628 §3.2.2. Not `invalid_token`: with another token it would be no better.
            cx.put(br#"{"status":"invalid_request"}"#)?;
            return cx.fail(Bad::CREDENTIALS.because("the client means another host; ours are in the setting `hosts`"));
        }
        let token = cx.part(response.token)?;
        let authzid = gs2::name_part(&mut cx, response.authzid)?;
        let (mut fields, mut length) = ([0; FIELDS_OCTETS_MAX], 0);
        response.beside(|octets| {
            if let Some(room) = fields.get_mut(length..length + octets.len()) {
                room.copy_from_slice(octets);
                length += octets.len();
            }
        });
        let fields = cx.put_part(fields.get(..length).unwrap_or_default())?;
        cx.perform(Effect::VerifyToken { token, authzid, fields })
    }
}

impl OauthBearer {
    /// The name that the client asked for in TLS is what it connected to, as far as it knows. That says
    /// nothing about who it is, but neither does this field.
    fn is_ours(&self, host: &[u8], cx: &Cx<'_>) -> bool {
        let known = self.hosts.iter().map(String::as_bytes).chain([cx.server_name(), cx.sni()]);
        !host.is_empty() && known.into_iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

const KVSEP: u8 = 1;
const HOST_OCTETS_MAX: usize = 255;
/// `host=` name, kvsep, `port=` number.
const FIELDS_OCTETS_MAX: usize = 5 + HOST_OCTETS_MAX + 1 + 5 + 5;
const _: () = assert!(gs2::NAME_OCTETS_MAX + FIELDS_OCTETS_MAX <= bearer::OUTPUT_OCTETS_MAX as usize);

struct Response<'a> {
    authzid: &'a [u8],
    token: &'a [u8],
    host: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
}

impl<'a> Response<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Bad> {
        const FAULT: Bad = Bad::MALFORMED.because("the fields are not in the form of RFC 7628 section 3.1");
        let (header, rest) = gs2::header(message)?;
        if let Flag::Required(_) = header.flag {
            return Err(Bad::CHANNEL_BINDING.because("p=, but OAUTHBEARER has no channel binding"));
        }
        let [KVSEP, pairs @ .., KVSEP] = rest else { return Err(FAULT) };
        let (mut auth, mut host, mut port) = (None, None, None);
        let mut pairs = pairs;
        while !pairs.is_empty() {
            let end = pairs.iter().position(|octet| *octet == KVSEP).ok_or(FAULT)?;
            let (pair, after) = pairs.split_at(end);
            pairs = after.get(1..).unwrap_or_default();
            let equals = pair.iter().position(|octet| *octet == b'=').ok_or(FAULT)?;
            let (key, value) = (pair.get(..equals).unwrap_or_default(), pair.get(equals + 1..).unwrap_or_default());
            let in_key = |octet: &u8| octet.is_ascii_alphabetic();
            let in_value = |octet: &u8| matches!(octet, 0x20..=0x7e | b'\t' | b'\r' | b'\n');
            if key.is_empty() || !key.iter().all(in_key) || !value.iter().all(in_value) {
                return Err(FAULT);
            }
            let known = match key {
                b"auth" => &mut auth,
                b"host" => &mut host,
                b"port" => &mut port,
                // RFC 7628 §3.1: unknown ones MUST be ignored.
                _ => continue,
            };
            if known.replace(value).is_some() {
                return Err(Bad::MALFORMED.because("auth, host or port twice"));
            }
        }
        let token = bearer::token(auth.ok_or(Bad::MALFORMED.because("no field `auth`"))?)?;
        if host.is_some_and(|host| host.len() > HOST_OCTETS_MAX) {
            return Err(Bad::MALFORMED.because("host longer than 255 octets"));
        }
        if !port.is_none_or(is_port) {
            return Err(Bad::MALFORMED.because("port is no number from 1 to 65535 without leading zeros"));
        }
        Ok(Self { authzid: header.authzid, token, host, port })
    }

    /// `host` and `port` as the client sent them: the host knows which port this is.
    fn beside(&self, mut put: impl FnMut(&[u8])) {
        if let Some(host) = self.host {
            put(b"host=");
            put(host);
        }
        if let Some(port) = self.port {
            put(if self.host.is_some() { b"\x01port=" } else { b"port=" });
            put(port);
        }
    }
}

fn is_port(text: &[u8]) -> bool {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u16>().ok());
    matches!(text, [b'1'..=b'9', ..]) && number.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    fn exchange(hosts: &[&str]) -> Exchange<OauthBearer> {
        Exchange::new(OauthBearer { hosts: hosts.iter().copied().map(String::from).collect() })
    }

    fn start(message: &str) -> Answer {
        exchange(&[]).start(Some(message.as_bytes()))
    }

    fn verify(token: &str, authzid: &str, fields: &str) -> Answer {
        Answer::Effect {
            kind: EffectKind::VerifyToken,
            arg: 0,
            authcid: vec![],
            authzid: authzid.into(),
            data: token.into(),
            data2: fields.into(),
        }
    }

    #[test]
    fn tokens_names_and_fields() {
        for (message, expected) in [
            ("n,,\x01auth=Bearer abc\x01\x01", verify("abc", "", "")),
            ("y,a=we=2Cird=3Duser,\x01auth=bearer abc==\x01\x01", verify("abc==", "we,ird=user", "")),
            (
                "n,a=user@example.com,\x01host=Mail.Example.COM\x01port=587\x01auth=Bearer abc\x01\x01",
                verify("abc", "user@example.com", "host=Mail.Example.COM\x01port=587"),
            ),
            ("n,,\x01port=1\x01auth=Bearer a\x01\x01", verify("a", "", "port=1")),
            ("n,,\x01auth=Bearer a\x01host=mail.example.com\x01\x01", verify("a", "", "host=mail.example.com")),
            // Unknown and reserved keys are ignored, how often they may come.
            ("n,,\x01mthd=POST\x01x=\x01x=a=b \t\r\n\x01auth=Bearer a\x01qs=\x01\x01", verify("a", "", "")),
        ] {
            assert_eq!(start(message), expected, "{message:?}");
        }
        let mut other = exchange(&["smtp.example.com"]);
        let message = b"n,,\x01host=SMTP.example.com\x01auth=Bearer a\x01\x01";
        assert_eq!(other.start(Some(message)), verify("a", "", "host=SMTP.example.com"));
    }

    #[test]
    fn what_is_refused() {
        for (message, class) in [
            ("", fail::MALFORMED),
            ("\x01", fail::CREDENTIALS),
            ("n,,", fail::MALFORMED),
            ("n,,\x01", fail::MALFORMED),
            ("n,,\x01\x01", fail::MALFORMED),
            ("n,,\x01auth=Bearer a\x01", fail::MALFORMED),
            ("n,,\x01auth=Bearer a", fail::MALFORMED),
            ("n,,auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01auth=Bearer a\x01\x01\x01", fail::MALFORMED),
            ("n,,\x01\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01auth=Bearer a\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01host=a\x01host=a\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01Auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01x1=a\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01=a\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01x=ä\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01x=\x7f\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01auth=Basic a\x01\x01", fail::MALFORMED),
            ("n,,\x01auth=\x01\x01", fail::MALFORMED),
            ("n,a=x=,\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("z,,\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("p=tls-exporter,,\x01auth=Bearer a\x01\x01", fail::CBINDING),
            ("n,,\x01port=\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01port=0587\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01port=+587\x01auth=Bearer a\x01\x01", fail::MALFORMED),
            ("n,,\x01port=65536\x01auth=Bearer a\x01\x01", fail::MALFORMED),
        ] {
            let answer = start(message);
            assert!(
                matches!(answer, Answer::Failure { class: found, data: None, .. } if found == class),
                "{message:?}"
            );
        }
        let long = |octets| format!("n,,\x01host={}\x01auth=Bearer a\x01\x01", "x".repeat(octets));
        for message in
            ["n,,\x01host=other.example\x01auth=Bearer a\x01\x01", "n,,\x01host=\x01auth=Bearer a\x01\x01", &long(255)]
        {
            let expected = Answer::Failure {
                class: fail::CREDENTIALS,
                reason: "the client means another host; ours are in the setting `hosts`".into(),
                data: Some(br#"{"status":"invalid_request"}"#.to_vec()),
            };
            assert_eq!(start(message), expected, "{message:?}");
        }
        assert!(matches!(start(&long(256)), Answer::Failure { class: fail::MALFORMED, data: None, .. }));
    }

    #[test]
    fn the_error_of_the_host_is_final_data() {
        let json = br#"{"status":"insufficient_scope","scope":"mail"}"#;
        let plain = br#"{"status":"invalid_token"}"#;
        for (status, said, class, data) in [
            (Status::Denied, &json[..], fail::CREDENTIALS, Some(&json[..])),
            (Status::Expired, json, fail::EXPIRED, Some(json)),
            (Status::Denied, b"", fail::CREDENTIALS, Some(plain)),
            (Status::Denied, &[b'x'; 1024], fail::CREDENTIALS, Some(&[b'x'; 1024])),
            (Status::Denied, &[b'x'; 1025], fail::CREDENTIALS, Some(plain)),
            (Status::Temporary, json, fail::TEMPORARY, None),
            (Status::Unsupported, b"", fail::TEMPORARY, None),
        ] {
            let mut exchange = exchange(&[]);
            assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
            exchange.message(b"n,,\x01auth=Bearer a\x01\x01");
            match exchange.outcome(status, said) {
                Answer::Failure { class: found, data: told, .. } => {
                    assert_eq!((found, told.as_deref()), (class, data), "{status:?}");
                }
                other => panic!("{status:?}: {other:?}"),
            }
        }
        let mut exchange = exchange(&[]);
        exchange.start(Some(b"n,,\x01auth=Bearer a\x01\x01"));
        assert_eq!(exchange.outcome(Status::Ok, b"ignored"), Answer::Success { data: None });
    }

    #[test]
    fn settings() {
        let made = |json, entries: &[(&str, &str)]| OauthBearer::configure(&Settings::of(json, entries));
        assert!(made("", &[]).is_ok_and(|made| made.hosts.is_empty()));
        assert_eq!(made("", &[("hosts.0", "a"), ("hosts.1", "b")]).ok().unwrap().hosts, ["a", "b"]);
        assert!(made("", &[("hosts", "a")]).err().unwrap().contains("hosts"));
        assert!(made("", &[("scope", "mail")]).err().unwrap().contains("scope"));
    }
}
