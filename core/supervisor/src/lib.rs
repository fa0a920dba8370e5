//! The process that starts all others, keeps them running and stops them; and what they do to begin.
//!
//! ```text
//! portreeve serve ─ supervisor    binds, keeps every listening socket for ever, parses neither client nor configuration
//!    ├─ directory, delivery, control      one of each, replaced when it dies
//!    └─ worker × P                        a generation; reload starts the next one, then the old one drains
//!
//! Plan    what to run: configuration as JSON, addresses, plugins, certificates (all made elsewhere)
//! Hooks   the program's part: read the configuration again, answer administrators, be told what happens
//! child   the other side: descriptor 3, rights given up, start-up messages, later ones
//! ```
//!
//! | asked to            | by                          | does |
//! |---------------------|-----------------------------|------|
//! | reload              | SIGHUP, an administrator    | a new generation on the same sockets; when all of it is ready the old one drains. Not ready: the old one stays whole |
//! | drain               | SIGTERM, SIGINT, administrator | workers finish, then delivery, directory, control; exit 0 |
//! | stop at once        | a second SIGINT             | kills everything, exit 130 |
//! | (a child dies)      |                             | says of what, starts it again, later each time; gives its links to the others |
//!
//! A child inherits standard error and descriptor 3, its [`link::Link`]; everything else arrives over that.
//! Links between children are made here and handed to both ends:
//!
//! ```text
//! worker shard ── directory      one per shard
//! worker shard ── mechanism-host, directory ── backend-host      to processes that run a library
//! worker ── delivery, worker ── control, directory ── control, delivery ── control      one each
//! ```
//!
//! At most two generations live; a reload that comes while one still drains waits until it is gone.
#![forbid(unsafe_code)]

pub mod child;
mod plan;
mod process;
mod sockets;
mod supervisor;

pub use plan::{Changes, Hooks, Listener, Options, Plan, Plugin};
pub use sockets::{Bound, LAST_ONES_MAX, Lock};
pub use supervisor::{Error, Handle, Supervisor};

#[cfg(test)]
mod tests;
