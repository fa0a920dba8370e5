//! One end of a packet socket between two of our processes.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, socketpair,
    sockopt::socket_type,
};

use crate::{PACKET_OCTETS_MAX, sys};

/// Most descriptors in one packet.
pub const FDS_MAX: usize = 16;

/// One end of a SOCK_SEQPACKET pair: packets keep their borders, arrive in order, and the end of the
/// other process is seen as [`Received::Closed`]. Non-blocking, close-on-exec.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// What [`Link::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A packet; its octets are in the caller's buffer.
    Packet {
        /// Descriptors that came with it, close-on-exec.
        fds: Vec<OwnedFd>,
    },
    /// Nothing now.
    WouldBlock,
    /// The other end is gone and everything it sent has been read.
    Closed,
}

impl Link {
    /// Two ends that are connected to each other.
    pub fn pair() -> io::Result<(Link, Link)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Link { fd: a }, Link { fd: b }))
    }

    /// Takes over a descriptor that came from elsewhere; it must be a packet socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Link> {
        if socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "link: the descriptor is no packet socket"));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Link { fd })
    }

    /// Sends one packet. `WouldBlock` when the peer is slow; then nothing of it was sent.
    pub fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        // An empty packet would look like the end of the stream to the receiver.
        if packet.is_empty() || packet.len() > PACKET_OCTETS_MAX || fds.len() > FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "link: packet empty or too large"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        loop {
            match rustix::net::sendmsg(&self.fd, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // The kernel is out of socket memory for a moment: the same as a slow peer.
                Err(rustix::io::Errno::NOBUFS) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one packet into `into`, whose old content is lost.
    pub fn receive(&self, into: &mut Vec<u8>) -> io::Result<Received> {
        sys::receive_packet(self.fd.as_fd(), into)
    }

    /// Another descriptor for the same end, so that one thread may read while another writes.
    pub fn try_clone(&self) -> io::Result<Link> {
        Ok(Link { fd: self.fd.try_clone()? })
    }

    /// Waits until the socket is ready for `events` (or closed), for threads that have nothing else to wait
    /// for; `false` when `timeout` passed first.
    pub fn wait(&self, events: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.fd, events)], left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> OwnedFd {
        link.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_borders_and_the_end_is_seen() {
        let (here, there) = Link::pair().unwrap();
        let mut packet = Vec::new();
        assert!(matches!(there.receive(&mut packet).unwrap(), Received::WouldBlock));
        here.send(b"one", &[]).unwrap();
        here.send(&vec![7; PACKET_OCTETS_MAX], &[]).unwrap();
        drop(here);
        assert!(matches!(there.receive(&mut packet).unwrap(), Received::Packet { fds } if fds.is_empty()));
        assert_eq!(packet, b"one");
        assert!(matches!(there.receive(&mut packet).unwrap(), Received::Packet { .. }));
        assert_eq!(packet, vec![7; PACKET_OCTETS_MAX]);
        assert!(matches!(there.receive(&mut packet).unwrap(), Received::Closed));
        assert!(packet.is_empty());
    }

    #[test]
    fn who_ends_without_having_read_is_heard_to_the_end() {
        let (here, there) = Link::pair().unwrap();
        here.send(b"never read", &[]).unwrap();
        there.send(b"last words", &[]).unwrap();
        drop(there);
        let mut packet = Vec::new();
        assert!(matches!(here.receive(&mut packet).unwrap(), Received::Packet { .. }));
        assert_eq!(packet, b"last words");
        assert!(matches!(here.receive(&mut packet).unwrap(), Received::Closed));
    }

    /// A stranger's library may have taken over the process at the other end.
    #[test]
    fn descriptors_of_an_empty_packet_are_closed() {
        let (here, there) = Link::pair().unwrap();
        let (kept, sent) = Link::pair().unwrap();
        let fds = [sent.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(&there.fd, &[IoSlice::new(b"")], &mut ancillary, SendFlags::empty()).unwrap();
        there.send(b"x", &[]).unwrap();
        drop(sent);
        let mut packet = Vec::new();
        assert!(matches!(here.receive(&mut packet).unwrap(), Received::Packet { fds } if fds.is_empty()));
        assert!(matches!(kept.receive(&mut packet).unwrap(), Received::Closed), "somebody has its other end");
    }

    #[test]
    fn a_slow_peer_is_would_block_and_size_is_bounded() {
        let (here, there) = Link::pair().unwrap();
        let packet = vec![0; 50_000];
        let error = (0..100).find_map(|_| here.send(&packet, &[]).err()).expect("the socket's buffer is finite");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(there.receive(&mut Vec::new()).is_ok());
        assert_eq!(here.send(&[], &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let large = vec![0; PACKET_OCTETS_MAX + 1];
        assert_eq!(here.send(&large, &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn descriptors_arrive_close_on_exec() {
        let (here, there) = Link::pair().unwrap();
        let memory = crate::sealed::create("test", b"content").unwrap();
        let fds = vec![memory.as_fd(); FDS_MAX];
        here.send(b"x", &fds).unwrap();
        let mut packet = Vec::new();
        let Received::Packet { fds } = there.receive(&mut packet).unwrap() else { panic!("a packet was sent") };
        assert_eq!(fds.len(), FDS_MAX);
        for fd in fds {
            assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            assert_eq!(crate::sealed::read(fd.as_fd()).unwrap(), b"content");
        }
    }

    #[test]
    fn only_a_packet_socket_becomes_a_link() {
        assert!(Link::from_fd(crate::sealed::create("test", b"").unwrap()).is_err());
        let (here, _there) = Link::pair().unwrap();
        assert!(Link::from_fd(here.into()).is_ok());
    }
}
