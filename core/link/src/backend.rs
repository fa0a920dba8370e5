//! What the directory and a process that runs back ends of a library say to each other. Frame kinds 0x0400 to
//! 0x04ff.
//!
//! ```text
//! host → directory   Description                    once, when the link is new: what the library offers
//! directory → host   Call   (frame id = call)       one effect
//! host → directory   Reply  (frame id = call)
//! host → directory   Words                          a line that the library logged: level as frame id, then text
//! ```
//!
//! Numbers are those of the plugin ABI. What a host says comes from a stranger's code: the directory takes
//! nothing of it for granted.

use std::net::IpAddr;

use crate::BadPacket;
use crate::codec::{Put, Reader};

/// Frame kind of a [`Call`].
pub const CALL: u16 = 0x0400;
/// Frame kind of a [`Reply`].
pub const REPLY: u16 = 0x0401;
/// Frame kind of a [`Description`].
pub const DESCRIPTION: u16 = 0x0402;
/// Frame kind of a line of the library's log.
pub const WORDS: u16 = 0x0403;

/// One effect for a back end. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Call<'a> {
    /// The back end's name.
    pub backend: &'a str,
    /// When nobody wants the answer any more, milliseconds since 1970.
    pub deadline_ms: u64,
    /// What is asked.
    pub effect: Effect<'a>,
}

/// What a mechanism asked for, and on which connection; the same from worker to directory and from there to
/// the back end. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Effect<'a> {
    /// Which: `PRV_ACT_*`.
    pub effect: u32,
    /// Kind of key.
    pub arg: u32,
    /// `PRV_C_*`.
    pub conn_flags: u32,
    /// As on the wire; 0 outside TLS.
    pub tls_version: u16,
    /// The session in our logs.
    pub session: u64,
    /// The client.
    pub client_ip: IpAddr,
    /// SASL name.
    pub mechanism: &'a str,
    /// Listener's name in the configuration.
    pub listener: &'a str,
    /// What the client called us in TLS.
    pub sni: &'a str,
    /// Who the client claims to be.
    pub authcid: &'a [u8],
    /// Whom it wants to act as; empty: itself.
    pub authzid: &'a [u8],
    /// Password, token, realm, request, key of a certificate.
    pub data: &'a [u8],
    /// Fields beside a token, names in a certificate.
    pub data2: &'a [u8],
    /// BACKEND_CALL: whom the mechanism asked for.
    pub service: &'a [u8],
}

/// A back end's answer. No `Debug`: it may hold a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// `PRV_OK` and so on; [`BROKEN`] when the library broke its contract.
    pub status: u32,
    /// There is such a user, such a key.
    pub found: bool,
    /// Of a SCRAM key.
    pub iterations: u32,
    /// Whose credential it is, in the back end's words.
    pub identity: &'a [u8],
    /// Key, reply, error.
    pub data: &'a [u8],
    /// Of a SCRAM key.
    pub salt: &'a [u8],
    /// Of a SCRAM key.
    pub stored_key: &'a [u8],
    /// Of a SCRAM key.
    pub server_key: &'a [u8],
    /// For the log.
    pub diagnosis: &'a [u8],
}

/// [`Reply::status`] of an answer that the ABI forbids.
pub const BROKEN: u32 = u32::MAX;

/// What a library offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description<'a> {
    /// Its back ends.
    pub backends: Vec<Described<'a>>,
}

/// A back end as its library declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// Its name.
    pub name: &'a str,
    /// The effects that it serves.
    pub provides: u64,
    /// Calls at a time.
    pub parallel: u32,
}

impl<'a> Call<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_str(self.backend);
        to.put_u64(self.deadline_ms);
        self.effect.encode(to);
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let (backend, deadline_ms) = (from.str()?, from.u64()?);
        let effect = Effect::decode(&mut from)?;
        from.end()?;
        Ok(Self { backend, deadline_ms, effect })
    }
}

impl<'a> Effect<'a> {
    /// Appends it to a payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u32(self.effect);
        to.put_u32(self.arg);
        to.put_u32(self.conn_flags);
        to.put_u16(self.tls_version);
        to.put_u64(self.session);
        to.put_ip(self.client_ip);
        for text in [self.mechanism, self.listener, self.sni] {
            to.put_str(text);
        }
        for octets in [self.authcid, self.authzid, self.data, self.data2, self.service] {
            to.put_bytes(octets);
        }
    }

    /// Reads it from a payload.
    pub fn decode(from: &mut Reader<'a>) -> Result<Self, BadPacket> {
        Ok(Self {
            effect: from.u32()?,
            arg: from.u32()?,
            conn_flags: from.u32()?,
            tls_version: from.u16()?,
            session: from.u64()?,
            client_ip: from.ip()?,
            mechanism: from.str()?,
            listener: from.str()?,
            sni: from.str()?,
            authcid: from.bytes()?,
            authzid: from.bytes()?,
            data: from.bytes()?,
            data2: from.bytes()?,
            service: from.bytes()?,
        })
    }

    /// An upper bound of its encoded octets.
    pub fn octets_max(&self) -> usize {
        const FIXED: usize = 96;
        let texts = [self.mechanism, self.listener, self.sni].map(str::len);
        let octets = [self.authcid, self.authzid, self.data, self.data2, self.service].map(<[u8]>::len);
        FIXED + texts.iter().chain(&octets).sum::<usize>()
    }
}

impl<'a> Reply<'a> {
    /// With a status and nothing else.
    pub const fn of(status: u32) -> Self {
        Self {
            status,
            found: false,
            iterations: 0,
            identity: b"",
            data: b"",
            salt: b"",
            stored_key: b"",
            server_key: b"",
            diagnosis: b"",
        }
    }

    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u32(self.status);
        to.put_bool(self.found);
        to.put_u32(self.iterations);
        for octets in [self.identity, self.data, self.salt, self.stored_key, self.server_key, self.diagnosis] {
            to.put_bytes(octets);
        }
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let reply = Self {
            status: from.u32()?,
            found: from.bool()?,
            iterations: from.u32()?,
            identity: from.bytes()?,
            data: from.bytes()?,
            salt: from.bytes()?,
            stored_key: from.bytes()?,
            server_key: from.bytes()?,
            diagnosis: from.bytes()?,
        };
        from.end()?;
        Ok(reply)
    }
}

impl<'a> Description<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_list(&self.backends, |to, one| {
            to.put_str(one.name);
            to.put_u64(one.provides);
            to.put_u32(one.parallel);
        });
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let backends =
            from.list(|from| Ok(Described { name: from.str()?, provides: from.u64()?, parallel: from.u32()? }))?;
        from.end()?;
        Ok(Self { backends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_every_cut_is_an_error() {
        let effect = Effect {
            effect: 17,
            arg: 3,
            conn_flags: 1,
            tls_version: 0x0304,
            session: 7,
            client_ip: "2001:db8::1".parse().unwrap(),
            mechanism: "SCRAM-SHA-256",
            listener: "submission",
            sni: "mail.test",
            authcid: b"o'brien\0\n\xff",
            authzid: b"",
            data: b"secret",
            data2: b"",
            service: b"pins",
        };
        let call = Call { backend: "pins", deadline_ms: 9, effect };
        let reply = Reply { found: true, iterations: 4096, salt: b"salt", stored_key: b"12", ..Reply::of(0) };
        let described = Described { name: "pins", provides: 3, parallel: 4 };
        let description = Description { backends: vec![described.clone(), described] };
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        call.encode(&mut a);
        reply.encode(&mut b);
        description.encode(&mut c);
        assert!(a.len() <= call.effect.octets_max());
        assert!(Call::decode(&a).is_ok_and(|same| same == call));
        assert!(Reply::decode(&b).is_ok_and(|same| same == reply));
        assert_eq!(Description::decode(&c), Ok(description));
        assert!((0..a.len()).all(|cut| Call::decode(&a[..cut]).is_err()));
        assert!((0..b.len()).all(|cut| Reply::decode(&b[..cut]).is_err()));
        assert!((0..c.len()).all(|cut| Description::decode(&c[..cut]).is_err()));
    }
}
