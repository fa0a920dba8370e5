//! What is wanted from outside: by signals, and by other threads through a [`Handle`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Tells a running supervisor what to do, from another thread.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    wake: Arc<UnixStream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Reload,
    Drain,
    Kill,
}

impl Handle {
    /// As SIGHUP.
    pub fn reload(&self) {
        self.give(Order::Reload);
    }

    /// As SIGTERM.
    pub fn drain(&self) {
        self.give(Order::Drain);
    }

    /// As a second SIGINT.
    pub fn kill(&self) {
        self.give(Order::Kill);
    }

    fn give(&self, order: Order) {
        // Both fail only when the supervisor has ended, which is what the order was for or overtakes it.
        let _ = self.orders.send(order);
        let _ = (&*self.wake).write(&[0]);
    }
}

/// Where orders arrive.
pub struct Orders {
    received: mpsc::Receiver<Order>,
    wake: UnixStream,
    signals: Option<SignalDelivery<UnixStream, SignalOnly>>,
    interrupts: u32,
}

impl Orders {
    /// With the signals of this process, if they are to be obeyed.
    pub fn new(signals: bool) -> io::Result<(Orders, Handle)> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let signals = match signals {
            true => {
                let (read, write) = UnixStream::pair()?;
                Some(SignalDelivery::with_pipe(read, write, SignalOnly, [SIGHUP, SIGTERM, SIGINT])?)
            }
            false => None,
        };
        let (orders, received) = mpsc::channel();
        Ok((Orders { received, wake, signals, interrupts: 0 }, Handle { orders, wake: Arc::new(waker) }))
    }

    /// Readable when there is one.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signals = self.signals.as_ref().map(|signals| signals.get_read().as_fd());
        signals.into_iter().chain([self.wake.as_fd()])
    }

    /// All that have arrived.
    pub fn take(&mut self) -> Vec<Order> {
        while matches!(self.wake.read(&mut [0; 64]), Ok(n) if n > 0) {}
        let mut orders: Vec<Order> = self.received.try_iter().collect();
        for signal in self.signals.iter_mut().flat_map(SignalDelivery::pending) {
            orders.push(match signal {
                SIGHUP => Order::Reload,
                SIGINT => {
                    self.interrupts += 1;
                    // Who presses Ctrl-C again does not want to wait any more.
                    if self.interrupts > 1 { Order::Kill } else { Order::Drain }
                }
                _ => Order::Drain,
            });
        }
        orders
    }
}
