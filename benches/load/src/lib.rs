//! What `portreeve-load` and `ratios` share: what a server costs, as /proc tells it.
#![forbid(unsafe_code)]

pub mod process;
