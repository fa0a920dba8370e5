//! engine
#![forbid(unsafe_code)]

mod budget;
mod cache;
mod connection;
mod doors;
mod entropy;
mod host;
mod inbox;
mod questions;
mod setup;
mod shard;
mod slab;
mod watch;
mod wheel;
mod worker;

#[cfg(test)]
mod tests;

pub use setup::{Bounds, Deadlines, Notice, Port, Setup, Socket};
pub use worker::{Handle, StartError, Stats, Worker};
