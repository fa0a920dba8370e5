//! The conformance kit: what stands behind `portreeve plugin check`, `run`, `fuzz`, `replay`, `vectors` and `new`.
//!
//! ```text
//! parent   check ─ one Job per task ─► process ──► child: sandbox::Library, Bound, Room
//!          fuzz, trace, script, vectors            trial: each rule a method, over exchanges that explore found
//!                                                  world: a host without a server; client: the other side
//! ```
//!
//! A library is a stranger's machine code, so it runs in a child: a new process per task, which is this program again
//! with an argument of its own. It loads the library under a filter that refuses network and writing, and steps it
//! under one that lets through memory, futex, its pipe and exit. Message and input lie on read-only pages, everything
//! between guard pages; a fault makes the child say where and during which event, and the parent knows which rule that
//! is ([`rules`]). Faults of one task hide nothing of the others.
//!
//! The program that uses the kit asks first whether it is such a child:
//!
//! ```no_run
//! if conformance::child::requested() {
//!     conformance::child::main();
//! }
//! let options = conformance::check::Options {
//!     program: std::env::current_exe()?,
//!     file: "libportreeve_standard.so".into(),
//!     mech: Some("PLAIN".into()),
//!     settings: None,
//!     vectors: None,
//!     seconds: 4.0,
//!     seed: 1,
//! };
//! let summary = conformance::check::check(&options, &mut |told| println!("{}", told.to_json()))?;
//! assert_eq!(summary.failed, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)] // sandbox.rs is the exception

mod back_end;
pub mod check;
pub mod child;
pub mod client;
pub mod event;
pub mod explore;
pub mod fuzz;
pub mod job;
pub mod process;
pub mod rules;
#[allow(unsafe_code, reason = "the unsafe edge: the only file of this crate with unsafe code")]
pub mod sandbox;
pub mod scaffold;
mod schema;
pub mod script;
pub mod trace;
mod trial;
pub mod vectors;
pub mod wire;
pub mod world;
