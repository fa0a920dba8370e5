//! What the loop sleeps for: an order, a word or the end of a child, room in a link that was full, or a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Supervisor;
use crate::process::Process;

impl<H> Supervisor<H> {
    pub(super) fn wait(&self) -> io::Result<()> {
        let now = Instant::now();
        let deadlines = self.processes.iter().filter_map(Process::deadline);
        let until = deadlines.chain(self.backoffs.next_end(now)).fold(self.next_second, Instant::min);
        let left = Timespec::try_from(until.saturating_duration_since(now)).ok();

        let mut interest: Vec<(BorrowedFd<'_>, PollFlags)> = Vec::new();
        interest.extend(self.orders.fds().map(|fd| (fd, PollFlags::IN)));
        for process in self.processes.iter() {
            interest.push((process.ended(), PollFlags::IN));
            if let Some(link) = process.link() {
                let out = if process.has_more_to_send() { PollFlags::OUT } else { PollFlags::empty() };
                interest.push((link.as_fd(), PollFlags::IN | out));
            }
        }
        let mut fds: Vec<_> = interest.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
