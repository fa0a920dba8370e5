//! Embedded credentials and the directory service: what workers ask about users, and the file that knows.
//!
//! ```text
//! users     the text file in memory: names, secrets, aliases, limits     edit     changes it on disk
//! scheme    stored secrets: parse, check, make                           prep     when two names are the same
//! decoy     keys for users who do not exist                              watch    takes changed content into service
//! directory answers questions                                            pool     checks passwords away from the loop
//! serve     the directory process: a loop over links
//! ```
//!
//! The file is read whole into memory, so a lookup never blocks; what is slow on purpose, hashing, runs in
//! [`pool`]. Whoever edits the file does so under a lock and by rename, beside a running server or without
//! one; a file that is not right is reported with line, cause and remedy and changes nothing.
//!
//! ```
//! use std::sync::Arc;
//! use backend::users::{Options, Users};
//! use zeroize::Zeroizing;
//!
//! let file = "alice@demo.test:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==:aliases=info@demo.test\n";
//! let text = Zeroizing::new(file.as_bytes().to_vec());
//! let users = Users::parse("users".as_ref(), text, &Arc::new(Options::default()))?;
//! assert!(users.user("Alice@Demo.Test").unwrap().verify(b"pencil"));
//! assert_eq!(users.mailbox("info@demo.test").unwrap().name, "alice@demo.test");
//! # Ok::<(), backend::users::BadUsers>(())
//! ```
#![forbid(unsafe_code)]

pub mod decoy;
pub mod directory;
pub mod edit;
pub mod event;
pub mod pool;
pub mod prep;
pub mod scheme;
pub mod serve;
pub mod users;
pub mod watch;
