#![forbid(unsafe_code)]
mod config;
mod options;
mod report;
mod values;
fn main() {}
