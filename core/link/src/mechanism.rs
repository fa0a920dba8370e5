//! What a worker's shard and a mechanism-host say to each other. Frame kinds 0x0300 to 0x03ff.
//!
//! ```text
//! host → shard   Description                     once, when a link is new: what the library offers
//! shard → host   Step   (frame id = question)    one step of one exchange
//! host → shard   Answer (frame id = question)
//! shard → host   Finish                          an exchange is over; its state is wiped
//! host → shard   Words                           a line that the library logged
//! ```
//!
//! A shard closes the link when it starts nothing on it any more: a host whose links are all closed may go.
//! Numbers are those of the plugin ABI; `sasl` and `plugin-host` know what they mean.

use std::net::IpAddr;

use crate::BadPacket;
use crate::codec::{Put, Reader};

/// Frame kind of a [`Step`].
pub const STEP: u16 = 0x0300;
/// Frame kind of an [`Answer`].
pub const ANSWER: u16 = 0x0301;
/// Frame kind of the end of an exchange; its payload is the exchange's number.
pub const FINISH: u16 = 0x0302;
/// Frame kind of a [`Description`].
pub const DESCRIPTION: u16 = 0x0303;
/// Frame kind of a line of the library's log: level, then text.
pub const WORDS: u16 = 0x0304;

/// One step. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Step<'a> {
    /// The exchange, in numbers of the shard.
    pub exchange: u64,
    /// Names the session in diagnostics.
    pub session: u64,
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Fresh random octets, when the mechanism wants them.
    pub entropy: &'a [u8],
    /// What happened.
    pub event: Event<'a>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new exchange.
    Start {
        /// The mechanism's name.
        mechanism: &'a str,
        /// The initial response, when there is one.
        initial: Option<&'a [u8]>,
        /// The connection.
        facts: Facts<'a>,
    },
    /// The client's next response.
    Message(&'a [u8]),
    /// The effect that was asked for has ended.
    Outcome {
        /// Which one.
        effect: u32,
        /// How.
        status: u32,
        /// Its place in the ledger.
        proof: u32,
        /// Key, error and the like.
        data: &'a [u8],
        /// SCRAM keys.
        scram: Option<Scram<'a>>,
    },
}

/// What is kept of a password for SCRAM (RFC 5802 §3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scram<'a> {
    /// How often it was hashed.
    pub iterations: u32,
    /// With what.
    pub salt: &'a [u8],
    /// StoredKey.
    pub stored_key: &'a [u8],
    /// ServerKey.
    pub server_key: &'a [u8],
}

/// The connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Inside TLS.
    pub tls: bool,
    /// Its version.
    pub tls_version: u16,
    /// With a verified client certificate.
    pub client_certificate: bool,
    /// The -PLUS sibling was offered.
    pub plus_offered: bool,
    /// Channel bindings that can be had.
    pub channel_bindings: u32,
    /// Our name.
    pub server_name: &'a str,
    /// The client.
    pub client_ip: IpAddr,
    /// The listener.
    pub listener: &'a str,
    /// What the client called us in TLS.
    pub sni: &'a str,
}

/// An answer, as numbers and octets. No `Debug`: it may hold a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// What the mechanism wants.
    pub action: u32,
    /// Proof, class, kind.
    pub arg: u32,
    /// There is final data.
    pub last: bool,
    /// The octets that go with it.
    pub parts: [&'a [u8]; 3],
}

/// What a library offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description<'a> {
    /// Its mechanisms.
    pub mechanisms: Vec<Described<'a>>,
}

/// A mechanism as its library declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// Its name.
    pub name: &'a str,
    /// Flags.
    pub flags: u32,
    /// Effects.
    pub needs: u64,
    /// Position in the EHLO list.
    pub strength: u32,
    /// Longest client message.
    pub message_octets_max: u32,
    /// Longest output.
    pub output_octets_max: u32,
    /// Most steps.
    pub steps_max: u32,
    /// The sibling without channel binding; empty when it is none.
    pub plus_of: &'a str,
}

impl<'a> Step<'a> {
    /// What [`Self::encode`] appends at most.
    pub fn octets_max(&self) -> usize {
        /// All that has one length, and the lengths of the rest.
        const FIXED: usize = 128;
        let event = match &self.event {
            Event::Start { mechanism, initial, facts } => {
                let texts = mechanism.len() + facts.server_name.len() + facts.listener.len() + facts.sni.len();
                texts + initial.map_or(0, <[u8]>::len)
            }
            Event::Message(message) => message.len(),
            Event::Outcome { data, scram, .. } => {
                let keys = |key: Scram<'_>| key.salt.len() + key.stored_key.len() + key.server_key.len();
                data.len() + scram.map_or(0, keys)
            }
        };
        FIXED + self.entropy.len() + event
    }

    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u64(self.exchange);
        to.put_u64(self.session);
        to.put_u64(self.unix_ms);
        to.put_bytes(self.entropy);
        match &self.event {
            Event::Start { mechanism, initial, facts } => {
                to.put_u8(0);
                to.put_str(mechanism);
                to.put_option(*initial, |to, initial| to.put_bytes(initial));
                to.put_bool(facts.tls);
                to.put_u16(facts.tls_version);
                to.put_bool(facts.client_certificate);
                to.put_bool(facts.plus_offered);
                to.put_u32(facts.channel_bindings);
                to.put_str(facts.server_name);
                to.put_ip(facts.client_ip);
                to.put_str(facts.listener);
                to.put_str(facts.sni);
            }
            Event::Message(message) => {
                to.put_u8(1);
                to.put_bytes(message);
            }
            Event::Outcome { effect, status, proof, data, scram } => {
                to.put_u8(2);
                to.put_u32(*effect);
                to.put_u32(*status);
                to.put_u32(*proof);
                to.put_bytes(data);
                to.put_option(*scram, |to, scram| {
                    to.put_u32(scram.iterations);
                    [scram.salt, scram.stored_key, scram.server_key].iter().for_each(|part| to.put_bytes(part));
                });
            }
        }
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let (exchange, session, unix_ms) = (from.u64()?, from.u64()?, from.u64()?);
        let entropy = from.bytes()?;
        let event = match from.u8()? {
            0 => Event::Start {
                mechanism: from.str()?,
                initial: from.option(Reader::bytes)?,
                facts: Facts {
                    tls: from.bool()?,
                    tls_version: from.u16()?,
                    client_certificate: from.bool()?,
                    plus_offered: from.bool()?,
                    channel_bindings: from.u32()?,
                    server_name: from.str()?,
                    client_ip: from.ip()?,
                    listener: from.str()?,
                    sni: from.str()?,
                },
            },
            1 => Event::Message(from.bytes()?),
            2 => Event::Outcome {
                effect: from.u32()?,
                status: from.u32()?,
                proof: from.u32()?,
                data: from.bytes()?,
                scram: from.option(|from| {
                    let iterations = from.u32()?;
                    let (salt, stored_key, server_key) = (from.bytes()?, from.bytes()?, from.bytes()?);
                    Ok(Scram { iterations, salt, stored_key, server_key })
                })?,
            },
            _ => return Err(BadPacket::Value("event")),
        };
        from.end()?;
        Ok(Self { exchange, session, unix_ms, entropy, event })
    }
}

impl<'a> Answer<'a> {
    /// What [`Self::encode`] appends.
    pub fn octets(&self) -> usize {
        /// Three numbers, three lengths.
        const FIXED: usize = 4 + 4 + 1 + 3 * 4;
        FIXED + self.parts.iter().map(|part| part.len()).sum::<usize>()
    }

    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u32(self.action);
        to.put_u32(self.arg);
        to.put_bool(self.last);
        self.parts.iter().for_each(|part| to.put_bytes(part));
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let (action, arg, last) = (from.u32()?, from.u32()?, from.bool()?);
        let parts = [from.bytes()?, from.bytes()?, from.bytes()?];
        from.end()?;
        Ok(Self { action, arg, last, parts })
    }
}

impl<'a> Description<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u32(u32::try_from(self.mechanisms.len()).unwrap_or(u32::MAX));
        for one in &self.mechanisms {
            to.put_str(one.name);
            to.put_u32(one.flags);
            to.put_u64(one.needs);
            to.put_u32(one.strength);
            to.put_u32(one.message_octets_max);
            to.put_u32(one.output_octets_max);
            to.put_u32(one.steps_max);
            to.put_str(one.plus_of);
        }
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let mechanisms = from.list(|from| {
            Ok(Described {
                name: from.str()?,
                flags: from.u32()?,
                needs: from.u64()?,
                strength: from.u32()?,
                message_octets_max: from.u32()?,
                output_octets_max: from.u32()?,
                steps_max: from.u32()?,
                plus_of: from.str()?,
            })
        })?;
        from.end()?;
        Ok(Self { mechanisms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_cut_short_it_is_not() {
        let facts = Facts {
            tls: true,
            tls_version: 0x0304,
            client_certificate: false,
            plus_offered: true,
            channel_bindings: 6,
            server_name: "mx.example",
            client_ip: [192, 0, 2, 1].into(),
            listener: "submission",
            sni: "",
        };
        let scram = Scram { iterations: 4096, salt: &[1; 16], stored_key: &[2; 32], server_key: &[3; 32] };
        let events = [
            Event::Start { mechanism: "PLAIN", initial: Some(b"\0a\0b"), facts },
            Event::Start { mechanism: "PLAIN", initial: None, facts },
            Event::Message(b"x"),
            Event::Outcome { effect: 17, status: 0, proof: 1, data: b"key", scram: Some(scram) },
            Event::Outcome { effect: 17, status: 0, proof: 1, data: b"key", scram: None },
        ];
        for event in events {
            let step = Step { exchange: 7, session: 8, unix_ms: 9, entropy: &[3; 64], event };
            let mut octets = Vec::new();
            step.encode(&mut octets);
            assert!(octets.len() <= step.octets_max());
            assert!(Step::decode(&octets) == Ok(step.clone()));
            for end in 0..octets.len() {
                assert!(Step::decode(&octets[..end]).is_err());
            }
        }
        let answer = Answer { action: 17, arg: 3, last: true, parts: [b"a", b"", b"ccc"] };
        let mut octets = Vec::new();
        answer.encode(&mut octets);
        assert_eq!(octets.len(), answer.octets());
        assert!(Answer::decode(&octets) == Ok(answer));
        assert!(Answer::decode(&octets[1..]).is_err());
        let described = Described {
            name: "X-A",
            flags: 1,
            needs: 2,
            strength: 3,
            message_octets_max: 4,
            output_octets_max: 5,
            steps_max: 6,
            plus_of: "",
        };
        let description = Description { mechanisms: vec![described] };
        octets.clear();
        description.encode(&mut octets);
        assert_eq!(Description::decode(&octets), Ok(description));
    }
}
