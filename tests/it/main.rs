//! Tests of Portreeve as a whole; `src/lib.rs` lists what is where.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a test binary has no reader of documentation")]

mod aborts;
mod assertions;
mod backends;
mod bare;
mod client_certificates;
mod clients;
mod crash;
mod cyrus;
mod dialog;
mod direct;
mod enumeration;
mod fuzz;
mod gssapi;
mod hop;
mod kerberos;
mod kills;
mod load;
mod measures;
mod mechanisms;
mod model;
mod next_hops;
mod offers;
mod parked;
mod pass_through;
mod published;
mod replies;
mod runners;
mod scram;
mod secrets;
mod server;
mod servers_as_clients;
mod shim;
mod small_disk;
mod soak;
mod splits;
mod tidy;
mod tokens;
mod wire;
