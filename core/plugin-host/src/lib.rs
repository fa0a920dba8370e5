//! Takes mechanism libraries into service: finds them, vets them without running them, loads a sealed copy
//! with libloading, shakes hands over the C ABI, and adapts each mechanism to [`sasl::Mechanism`].
//!
//! ```text
//! supervisor   resolve(id) → file → vet: owners, pin, ELF note → sealed memfd ──┐ over link
//! worker                                            Registry::load(id, fd) ←────┘
//!                                                   Registry::mechanism(name, settings) → Arc<dyn Mechanism>
//! ```
//!
//! The supervisor executes nothing of a plugin; the worker opens no file. A library is never unmapped. What a
//! mechanism answers is numbers and offsets until `adapter` has checked them: an unknown action, an offset out
//! of bounds or an effect that was not declared becomes an internal failure of that exchange. An identity that it
//! asserts itself is passed on as such, and the session judges it. Mechanisms that may take long (OFFLOAD) are refused
//! in a worker: they need a process of their own, which has the same registry and answers over links ([`Host`]); the worker then holds a
//! [`RemoteLibrary`] and nothing of the library itself. Faults are counted per mechanism ([`Fault`]); too many
//! within a minute put it into quarantine.
//!
//! ```no_run
//! use plugin_host::{Demands, Registry, Terms, resolve, vet};
//! use sasl::MechanismName;
//!
//! # fn main() -> Result<(), plugin_host::LoadError> {
//! let found = resolve("standard", &[])?; // or in the directories of plugins.path first
//! let vetted = vet(&found.path, &Demands { ownership: found.ownership(), sha256: None })?;
//!
//! let mut registry = Registry::new();
//! registry.load("standard", vetted.fd, &vetted.path, Terms::default())?;
//! let plain = registry.mechanism(&MechanismName::parse(b"PLAIN").expect("a name"), "")?;
//! assert_eq!(plain.traits().state_octets, 0);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)] // ffi.rs is the exception

mod adapter;
mod backend;
mod error;
mod exchange;
#[allow(unsafe_code, reason = "the foreign edge: the only file of this crate with unsafe code")]
mod ffi;
mod gate;
mod note;
mod numbered;
mod peers;
mod pool;
mod registry;
mod remote;
mod resolve;
pub mod schema;
mod serve;
mod serve_backends;
mod vet;
mod watch;

pub use backend::Backend;
pub use error::{LoadError, Unfit};
pub use exchange::wire_facts;
pub use ffi::{Entry, LogLine};
pub use gate::{Complain, Complaint, Fault};
pub use note::{Note, NotedBackend, OWN_BACKEND, PanicStrategy, bits, is_backend_name};
pub use pool::{Pool, THREADS};
pub use registry::{Listed, ListedBackend, ListedMechanism, Registry, Terms, flatten};
pub use remote::{Remote, RemoteLibrary};
pub use resolve::{Found, resolve};
pub use serve::{Host, OFFLOAD_MS_MAX, STEP_MS_MAX};
pub use serve_backends::{BackendHost, PARALLEL_MAX};
pub use vet::{Demands, Inspection, Ownership, Vetted, inspect, parse_sha256, vet};
pub use watch::Watch;
