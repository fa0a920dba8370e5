//! Frames in a packet, and the queue of those that wait for the socket.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::PACKET_OCTETS_MAX;
use crate::socket::{FDS_MAX, Link};

/// `u32 length, u16 kind, u64 question id`.
pub const FRAME_HEAD_OCTETS: usize = 14;

/// Largest payload of one frame.
pub const FRAME_PAYLOAD_OCTETS_MAX: usize = PACKET_OCTETS_MAX - FRAME_HEAD_OCTETS;

/// One thing said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What kind of thing; unknown ones are counted and skipped.
    pub kind: u16,
    /// Ties an answer to its question; 0 where there is no question.
    pub id: u64,
    /// The thing.
    pub payload: &'a [u8],
}

/// What arrived does not follow the form. The two processes disagree, or the other one is hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPacket {
    /// It ends before it should.
    Short,
    /// It goes on after it should have ended.
    Trailing,
    /// A value that the named field cannot have.
    Value(&'static str),
    /// A descriptor should have come with it, or none should have.
    Descriptors,
}

impl fmt::Display for BadPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("link: packet ends too early"),
            Self::Trailing => f.write_str("link: octets after the end of a message"),
            Self::Value(field) => write!(f, "link: impossible value in a message: {field}"),
            Self::Descriptors => f.write_str("link: wrong number of descriptors with a message"),
        }
    }
}

impl std::error::Error for BadPacket {}

impl From<BadPacket> for io::Error {
    fn from(bad: BadPacket) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, bad)
    }
}

/// The frames of a packet. Ends after the first error: what follows it cannot be found.
pub fn frames(packet: &[u8]) -> Frames<'_> {
    Frames { rest: packet }
}

/// See [`frames`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BadPacket>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = first_frame(self.rest);
        self.rest = match &frame {
            Ok((_, rest)) => rest,
            Err(_) => &[],
        };
        Some(frame.map(|(frame, _)| frame))
    }
}

fn first_frame(packet: &[u8]) -> Result<(Frame<'_>, &[u8]), BadPacket> {
    let mut head = crate::codec::Reader::new(packet);
    let octets = head.u32()?;
    let kind = head.u16()?;
    let id = head.u64()?;
    let octets = usize::try_from(octets).map_err(|_| BadPacket::Short)?;
    let (payload, rest) = head.rest().split_at_checked(octets).ok_or(BadPacket::Short)?;
    Ok((Frame { kind, id, payload }, rest))
}

/// The frame was not taken: it is larger than a packet, or the queue holds its fill because the other
/// process is slow or dead. Answer "temporary" to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("link: the other process does not take what is sent to it")
    }
}

impl std::error::Error for Full {}

/// Frames waiting to be sent; several share a packet, so that one turn of an event loop costs one send.
/// Passwords pass through it: its buffers are wiped.
pub struct Outbox {
    packets: VecDeque<Packet>,
    octets: usize,
    octets_max: usize,
    /// The payload that is being written.
    payload: Vec<u8>,
    /// The buffer of a packet that was sent.
    spare: Vec<u8>,
}

/// Larger buffers are not kept.
const SPARE_OCTETS_MAX: usize = 32 << 10;

struct Packet {
    octets: Vec<u8>,
    /// Descriptors belong to the packet's only frame.
    fds: Vec<OwnedFd>,
}

impl Outbox {
    /// A queue that holds at most `octets_max`.
    pub fn new(octets_max: usize) -> Outbox {
        Outbox { packets: VecDeque::new(), octets: 0, octets_max, payload: Vec::new(), spare: Vec::new() }
    }

    /// Appends a frame whose payload is what `write` puts into the empty vector. On [`Full`] nothing was kept.
    pub fn push(&mut self, kind: u16, id: u64, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Full> {
        self.push_with(kind, id, Vec::new(), write)
    }

    /// As [`Self::push`], with descriptors. They travel with this frame and no other.
    pub fn push_with(
        &mut self,
        kind: u16,
        id: u64,
        fds: Vec<OwnedFd>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        let mut payload = std::mem::take(&mut self.payload);
        write(&mut payload);
        let pushed = self.append(kind, id, fds, payload.len(), |to| to.extend_from_slice(&payload));
        wipe(&mut payload);
        payload.clear();
        self.payload = payload;
        pushed
    }

    /// As [`Self::push`], for a payload that is known to have at most `octets_max`: `write` appends it to the packet
    /// that it leaves with, and never to a buffer that must grow. More octets than that are [`Full`].
    pub fn push_sized(
        &mut self,
        kind: u16,
        id: u64,
        octets_max: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        self.append(kind, id, Vec::new(), octets_max, write)
    }

    fn append(
        &mut self,
        kind: u16,
        id: u64,
        fds: Vec<OwnedFd>,
        octets_max: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        let octets = FRAME_HEAD_OCTETS.saturating_add(octets_max);
        if octets > PACKET_OCTETS_MAX || self.octets + octets > self.octets_max || fds.len() > FDS_MAX {
            return Err(Full);
        }
        let shares = |packet: &Packet| {
            packet.fds.is_empty() && fds.is_empty() && packet.octets.len() + octets <= PACKET_OCTETS_MAX
        };
        if !self.packets.back().is_some_and(shares) {
            let mut packet = std::mem::take(&mut self.spare);
            packet.reserve(octets.max(512));
            self.packets.push_back(Packet { octets: packet, fds });
        }
        let Some(Packet { octets: packet, .. }) = self.packets.back_mut() else { return Err(Full) };
        grow(packet, octets);
        let start = packet.len();
        packet.extend_from_slice(&[0; 4]);
        packet.extend_from_slice(&kind.to_le_bytes());
        packet.extend_from_slice(&id.to_le_bytes());
        write(packet);
        let written = packet.len() - start;
        if written > octets {
            wipe(packet.get_mut(start..).unwrap_or_default());
            packet.truncate(start);
            if start == 0 {
                self.packets.pop_back();
            }
            return Err(Full);
        }
        let length = (written - FRAME_HEAD_OCTETS) as u32;
        if let Some(head) = packet.get_mut(start..start + 4) {
            head.copy_from_slice(&length.to_le_bytes());
        }
        self.octets += written;
        Ok(())
    }

    /// Sends what waits. `true`: all of it; `false`: the socket is full, call again when it is writable.
    pub fn flush(&mut self, link: &Link) -> io::Result<bool> {
        while let Some(packet) = self.packets.front_mut() {
            let fds: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
            match link.send(&packet.octets, &fds) {
                Ok(()) => {
                    self.octets -= packet.octets.len();
                    wipe(&mut packet.octets);
                    if let Some(Packet { mut octets, .. }) = self.packets.pop_front()
                        && octets.capacity() <= SPARE_OCTETS_MAX
                    {
                        octets.clear();
                        self.spare = octets;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Octets that wait.
    pub fn len(&self) -> usize {
        self.octets
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        for packet in &mut self.packets {
            wipe(&mut packet.octets);
        }
    }
}

/// Sets octets to zero, as fast as memory can be set, and so that no compiler leaves it out.
pub fn wipe(octets: &mut [u8]) {
    octets.fill(0);
    zeroize::optimization_barrier(octets);
}

/// Makes room for `more` octets, and leaves no copy behind when the buffer moves.
fn grow(octets: &mut Vec<u8>, more: usize) {
    if octets.capacity() - octets.len() < more {
        let mut larger = Vec::with_capacity((octets.len() + more).max(octets.capacity() * 2));
        larger.extend_from_slice(octets);
        wipe(octets);
        *octets = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Received;

    fn receive_all(link: &Link) -> Vec<(u16, u64, Vec<u8>, usize)> {
        let (mut all, mut packet) = (Vec::new(), Vec::new());
        while let Received::Packet { fds } = link.receive(&mut packet).unwrap() {
            for frame in frames(&packet) {
                let frame = frame.unwrap();
                all.push((frame.kind, frame.id, frame.payload.to_vec(), fds.len()));
            }
        }
        all
    }

    #[test]
    fn frames_share_packets_and_keep_their_order() {
        let (here, there) = Link::pair().unwrap();
        let mut outbox = Outbox::new(1 << 20);
        for i in 0..10u64 {
            outbox.push(5, i, |to| to.resize(30_000, i as u8)).unwrap();
        }
        // 300,000 octets fit neither a packet nor the socket's buffer.
        let mut got = Vec::new();
        while !outbox.flush(&here).unwrap() {
            got.extend(receive_all(&there));
        }
        got.extend(receive_all(&there));
        assert!(outbox.is_empty());
        assert_eq!(outbox.octets, 0);
        assert_eq!(got.len(), 10);
        for (i, (kind, id, payload, fds)) in got.into_iter().enumerate() {
            assert_eq!((kind, id, payload, fds), (5, i as u64, vec![i as u8; 30_000], 0));
        }
    }

    #[test]
    fn descriptors_travel_with_their_frame_only() {
        let (here, there) = Link::pair().unwrap();
        let mut outbox = Outbox::new(1 << 20);
        outbox.push(1, 0, |_| ()).unwrap();
        outbox.push_with(2, 0, vec![crate::sealed::create("x", b"x").unwrap()], |_| ()).unwrap();
        outbox.push(3, 0, |_| ()).unwrap();
        assert!(outbox.flush(&here).unwrap());
        let got: Vec<_> = receive_all(&there).into_iter().map(|(kind, _, _, fds)| (kind, fds)).collect();
        assert_eq!(got, [(1, 0), (2, 1), (3, 0)]);
    }

    #[test]
    fn a_full_outbox_keeps_nothing_of_the_refused_frame() {
        let (here, there) = Link::pair().unwrap();
        let mut outbox = Outbox::new(100);
        outbox.push(1, 1, |to| to.resize(50, 0)).unwrap();
        assert_eq!(outbox.push(1, 2, |to| to.resize(50, 0)), Err(Full));
        assert_eq!(outbox.len(), 64);
        outbox.push(1, 3, |_| ()).unwrap();
        assert!(outbox.flush(&here).unwrap());
        assert_eq!(receive_all(&there).iter().map(|got| got.1).collect::<Vec<_>>(), [1, 3]);
        let mut outbox = Outbox::new(usize::MAX);
        assert_eq!(outbox.push(1, 0, |to| to.resize(FRAME_PAYLOAD_OCTETS_MAX + 1, 0)), Err(Full));
        outbox.push(1, 0, |to| to.resize(FRAME_PAYLOAD_OCTETS_MAX, 0)).unwrap();
        assert!(outbox.flush(&here).unwrap());
    }

    #[test]
    fn a_sized_payload_is_sent_as_it_is_and_never_longer() {
        let (here, there) = Link::pair().unwrap();
        let mut outbox = Outbox::new(200);
        assert_eq!(outbox.push_sized(1, 0, 3, |to| to.extend_from_slice(b"four")), Err(Full));
        assert!(outbox.is_empty());
        outbox.push_sized(1, 1, 9, |to| to.extend_from_slice(b"four")).unwrap();
        assert_eq!(outbox.push_sized(1, 2, 3, |to| to.extend_from_slice(b"four")), Err(Full));
        assert_eq!(outbox.push_sized(1, 3, 190, |_| ()), Err(Full), "what it may have counts before it is written");
        outbox.push_sized(1, 4, 0, |_| ()).unwrap();
        assert_eq!(outbox.len(), 2 * FRAME_HEAD_OCTETS + 4);
        assert!(outbox.flush(&here).unwrap());
        let got: Vec<_> = receive_all(&there).into_iter().map(|(_, id, payload, _)| (id, payload)).collect();
        assert_eq!(got, [(1, b"four".to_vec()), (4, Vec::new())]);
    }

    #[test]
    fn a_cut_packet_is_an_error_once() {
        let (here, there) = Link::pair().unwrap();
        let mut outbox = Outbox::new(1 << 20);
        outbox.push(9, 1, |to| to.extend_from_slice(b"abc")).unwrap();
        let whole = outbox.len();
        outbox.push(9, 2, |to| to.extend_from_slice(b"def")).unwrap();
        assert!(outbox.flush(&here).unwrap());
        let mut packet = Vec::new();
        there.receive(&mut packet).unwrap();
        assert_eq!(packet.len(), 2 * whole);
        for cut in 0..packet.len() {
            let results: Vec<_> = frames(&packet[..cut]).collect();
            let good = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(good, cut / whole, "{cut}");
            assert_eq!(results.len() - good, usize::from(cut % whole != 0), "{cut}");
        }
    }
}
