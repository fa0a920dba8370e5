//! The few forms that payloads are made of: little-endian integers, lengths before octets, one octet
//! before what may be absent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::BadPacket;

/// Takes a payload apart from front to back.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `payload` from its first octet.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// Octets not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The payload must end here; more is an error, for it would mean that the two sides disagree.
    pub fn end(&self) -> Result<(), BadPacket> {
        if self.rest.is_empty() { Ok(()) } else { Err(BadPacket::Trailing) }
    }

    fn take(&mut self, octets: usize) -> Result<&'a [u8], BadPacket> {
        let (head, rest) = self.rest.split_at_checked(octets).ok_or(BadPacket::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadPacket> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(BadPacket::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// One octet.
    pub fn u8(&mut self) -> Result<u8, BadPacket> {
        self.array::<1>().map(|[octet]| octet)
    }

    /// Two octets.
    pub fn u16(&mut self) -> Result<u16, BadPacket> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four octets.
    pub fn u32(&mut self) -> Result<u32, BadPacket> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight octets.
    pub fn u64(&mut self) -> Result<u64, BadPacket> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen octets.
    pub fn u128(&mut self) -> Result<u128, BadPacket> {
        self.array().map(u128::from_le_bytes)
    }

    /// 0 or 1.
    pub fn bool(&mut self) -> Result<bool, BadPacket> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadPacket::Value("bool")),
        }
    }

    /// A length, then so many octets.
    pub fn bytes(&mut self) -> Result<&'a [u8], BadPacket> {
        let octets = self.u32()?;
        self.take(usize::try_from(octets).map_err(|_| BadPacket::Short)?)
    }

    /// A length, then UTF-8.
    pub fn str(&mut self) -> Result<&'a str, BadPacket> {
        std::str::from_utf8(self.bytes()?).map_err(|_| BadPacket::Value("UTF-8"))
    }

    /// One octet that says whether it is there, then what `read` reads.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, BadPacket>) -> Result<Option<T>, BadPacket> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// A count, then so many of what `read` reads. A count that the rest cannot hold is refused before
    /// anything is reserved for it.
    pub fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, BadPacket>) -> Result<Vec<T>, BadPacket> {
        let count = usize::try_from(self.u32()?).map_err(|_| BadPacket::Short)?;
        if count > self.rest.len() {
            return Err(BadPacket::Short);
        }
        (0..count).map(|_| read(self)).collect()
    }

    /// 4 or 6, then the address.
    pub fn ip(&mut self) -> Result<IpAddr, BadPacket> {
        match self.u8()? {
            4 => self.array::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
            6 => self.array::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
            _ => Err(BadPacket::Value("address family")),
        }
    }

    /// Address, then port.
    pub fn socket_address(&mut self) -> Result<SocketAddr, BadPacket> {
        let ip = self.ip()?;
        Ok(SocketAddr::new(ip, self.u16()?))
    }
}

/// Writes what [`Reader`] reads.
pub trait Put {
    /// One octet.
    fn put_u8(&mut self, value: u8);
    /// Two octets.
    fn put_u16(&mut self, value: u16);
    /// Four octets.
    fn put_u32(&mut self, value: u32);
    /// Eight octets.
    fn put_u64(&mut self, value: u64);
    /// Sixteen octets.
    fn put_u128(&mut self, value: u128);
    /// 0 or 1.
    fn put_bool(&mut self, value: bool);
    /// A length, then the octets.
    fn put_bytes(&mut self, value: &[u8]);
    /// A length, then UTF-8.
    fn put_str(&mut self, value: &str);
    /// One octet that says whether it is there, then what `write` writes.
    fn put_option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T));
    /// A count, then so many of what `write` writes.
    fn put_list<T>(&mut self, values: &[T], write: impl FnMut(&mut Self, &T));
    /// 4 or 6, then the address.
    fn put_ip(&mut self, value: IpAddr);
    /// Address, then port.
    fn put_socket_address(&mut self, value: SocketAddr);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u128(&mut self, value: u128) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_bool(&mut self, value: bool) {
        self.push(u8::from(value));
    }

    /// Nobody here holds 4 GiB; if somebody did, the frame would be too large and refused as a whole.
    fn put_bytes(&mut self, value: &[u8]) {
        self.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.extend_from_slice(value);
    }

    fn put_str(&mut self, value: &str) {
        self.put_bytes(value.as_bytes());
    }

    fn put_option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.put_bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn put_list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.put_u32(u32::try_from(values.len()).unwrap_or(u32::MAX));
        for value in values {
            write(self, value);
        }
    }

    fn put_ip(&mut self, value: IpAddr) {
        match value {
            IpAddr::V4(ip) => {
                self.push(4);
                self.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.push(6);
                self.extend_from_slice(&ip.octets());
            }
        }
    }

    fn put_socket_address(&mut self, value: SocketAddr) {
        self.put_ip(value.ip());
        self.put_u16(value.port());
    }
}
