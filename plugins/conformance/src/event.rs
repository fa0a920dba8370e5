//! What goes into a step and what comes out of it, as plain data: copied, compared, written into traces.

use portreeve_plugin_abi::{action, conn, event, fail, status};
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The exchange begins, with or without an initial response.
    Start(Option<Octets>),
    /// The client answers a challenge.
    Message(Octets),
    /// The effect that was asked for has ended.
    Result(Outcome),
    /// After OFFLOAD.
    Resume,
}

impl Event {
    /// Its number in the ABI.
    pub fn number(&self) -> u32 {
        match self {
            Self::Start(_) => event::START,
            Self::Message(_) => event::MESSAGE,
            Self::Result(_) => event::RESULT,
            Self::Resume => event::RESUME,
        }
    }

    /// What the client said with it.
    pub fn message(&self) -> Option<&[u8]> {
        match self {
            Self::Start(Some(message)) | Self::Message(message) => Some(&message.0),
            _ => None,
        }
    }
}

/// How an effect ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which effect.
    pub effect: u32,
    /// `prv_status`.
    pub status: u32,
    /// Its line in the host's ledger.
    pub handle: u32,
    /// Key, binding, JSON, reply.
    pub data: Octets,
    /// For the SCRAM key kinds.
    pub scram: Option<ScramKey>,
}

/// Stored SCRAM keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScramKey {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt.
    pub salt: Octets,
    /// StoredKey.
    pub stored_key: Octets,
    /// ServerKey.
    pub server_key: Octets,
}

/// The connection, constant during an exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// `PRV_C_*` without HAS_IR.
    pub conn_flags: u32,
    /// `PRV_CB_BIT` mask.
    pub cb_types: u32,
    /// Our name.
    pub server_name: String,
    /// Four or 16 octets.
    pub client_ip: Octets,
    /// The listener's name.
    pub listener: String,
    /// Name asked for in TLS.
    pub sni: String,
    /// As on the wire.
    pub tls_version: u32,
    /// The only clock.
    pub unix_ms: u64,
}

impl Default for Facts {
    /// Inside TLS 1.3, with a client certificate and without channel binding.
    fn default() -> Self {
        Self {
            conn_flags: conn::TLS | conn::CLIENT_CERT,
            cb_types: 0,
            server_name: "mail.example.com".into(),
            client_ip: Octets(vec![192, 0, 2, 1]),
            listener: "submission".into(),
            sni: "mail.example.com".into(),
            tls_version: 0x0304,
            unix_ms: 1_700_000_000_000,
        }
    }
}

/// Everything that one step is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// What happened.
    pub event: Event,
    /// 64 octets, or none.
    pub entropy: Octets,
}

/// A step's answer after the checks that the host makes, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// `prv_action`.
    pub action: u32,
    /// Failure class, key kind, binding type.
    pub arg: u32,
    /// `PRV_OUT_*`.
    pub flags: u32,
    /// What proved the identity.
    pub handle: u32,
    /// Claimed identity.
    pub authcid: Octets,
    /// Asked-for identity.
    pub authzid: Octets,
    /// Challenge, password, token, request, final data.
    pub data: Octets,
    /// Fields, service.
    pub data2: Octets,
    /// For the audit log.
    pub diag: Octets,
}

impl Answer {
    /// Its action by name.
    pub fn name(&self) -> String {
        match self.action {
            action::CHALLENGE => "CHALLENGE".into(),
            action::SUCCESS => "SUCCESS".into(),
            action::FAIL => format!("FAIL {}", class_name(self.arg)),
            action::OFFLOAD => "OFFLOAD".into(),
            number => effect_name(number).to_owned(),
        }
    }

    /// With all that it says.
    pub fn in_full(&self) -> String {
        let mut text = self.name();
        for (name, octets) in [
            ("authcid", &self.authcid),
            ("authzid", &self.authzid),
            ("data", &self.data),
            ("data2", &self.data2),
            ("diag", &self.diag),
        ] {
            if !octets.0.is_empty() {
                text += &format!(" {name} {octets}");
            }
        }
        text
    }

    /// Whether it asks for an effect.
    pub fn is_effect(&self) -> bool {
        self.action >= action::VERIFY_PASSWORD
    }

    /// What must be the same with a decoy: everything but the content.
    pub fn shape(&self) -> (u32, u32, u32, [usize; 4]) {
        let lengths = [&self.authcid, &self.authzid, &self.data, &self.data2].map(|octets| octets.0.len());
        (self.action, self.arg, self.flags, lengths)
    }
}

/// Effects by number.
pub fn effect_name(number: u32) -> &'static str {
    action::EFFECTS.iter().find(|(_, known)| *known == number).map_or("an unknown action", |(name, _)| name)
}

/// Failure classes by number.
pub fn class_name(number: u32) -> &'static str {
    CLASSES.iter().find(|(_, known)| *known == number).map_or("an unknown class", |(name, _)| name)
}

/// Failure classes.
pub const CLASSES: [(&str, u32); 10] = [
    ("CREDENTIALS", fail::CREDENTIALS),
    ("MALFORMED", fail::MALFORMED),
    ("TEMPORARY", fail::TEMPORARY),
    ("AUTHZ", fail::AUTHZ),
    ("TOO_WEAK", fail::TOO_WEAK),
    ("NEED_TLS", fail::NEED_TLS),
    ("TRANSITION", fail::TRANSITION),
    ("CBINDING", fail::CBINDING),
    ("EXPIRED", fail::EXPIRED),
    ("INTERNAL", fail::INTERNAL),
];

/// Statuses of effects.
pub const STATUSES: [(&str, u32); 6] = [
    ("OK", status::OK),
    ("DENIED", status::DENIED),
    ("TEMPFAIL", status::TEMPFAIL),
    ("UNSUPPORTED", status::UNSUPPORTED),
    ("TRANSITION", status::TRANSITION),
    ("EXPIRED", status::EXPIRED),
];

/// Octets: base64 in JSON, readable for people.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Octets(pub Vec<u8>);

impl From<&[u8]> for Octets {
    fn from(octets: &[u8]) -> Self {
        Self(octets.to_vec())
    }
}

impl From<&str> for Octets {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Octets {
    fn from(octets: Vec<u8>) -> Self {
        Self(octets)
    }
}

impl std::fmt::Display for Octets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", shown(&self.0))
    }
}

impl std::fmt::Debug for Octets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", shown(&self.0))
    }
}

impl Serialize for Octets {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&base64(&self.0))
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        unbase64(&text).map(Self).ok_or_else(|| serde::de::Error::custom("not base64"))
    }
}

/// Standard base64.
pub fn base64(octets: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.encode(octets)
}

/// Standard base64, strict.
pub fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.decode(text).ok()
}

/// Octets between quotes, as `plugin run` takes them; long ones are cut.
pub fn shown(octets: &[u8]) -> String {
    let (head, cut) = if octets.len() > 200 { (octets.get(..180).unwrap_or_default(), true) } else { (octets, false) };
    let mut text = String::from("\"");
    for octet in head {
        match octet {
            b'"' | b'\\' => text.extend(['\\', char::from(*octet)]),
            b'\n' => text += "\\n",
            b'\r' => text += "\\r",
            0x20..=0x7e => text.push(char::from(*octet)),
            _ => text += &format!("\\x{octet:02x}"),
        }
    }
    text.push('"');
    if cut {
        text += &format!("… ({} octets)", octets.len());
    }
    text
}
