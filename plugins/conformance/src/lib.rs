//! The conformance kit behind `portreeve plugin check`.
#![deny(unsafe_code)] // sandbox.rs is the exception

pub mod client;
pub mod event;
pub mod rules;
#[allow(unsafe_code, reason = "the unsafe edge: the only file of this crate with unsafe code")]
pub mod sandbox;
pub mod world;
pub mod explore;
pub mod vectors;
pub mod child;
pub mod job;
mod schema;
pub mod check;
pub mod process;
pub mod script;
pub mod trace;
pub mod scaffold;
pub mod fuzz;
pub mod wire;
