//! Tests of Portreeve as a whole. Everything is in the test binary `it`:
//!
//! ```text
//! bare, dialog   dialogues (tests/dialogs) against the bare session, with effects at once and late
//! model          every short sequence of commands against a reference model written from the RFCs
//! splits         the same octets cut anywhere; ends of data that are none; STARTTLS injection
//! soak           one verb for ever: bounded memory, no allocation per line
//! server, wire   the same dialogues against the built program, over TCP and TLS
//! clients        swaks, curl, msmtp, smtplib, nodemailer, gsasl, openssl s_client
//! scram          every hash, every channel binding, downgrades, bindings of other connections
//! client_certificates   who gets in by one, and whom EXTERNAL makes of it
//! crash          kill -9 with a ledger, reload under load, EMFILE, bad configuration
//! kills, shim    processes stop at random times and before every operation; system calls are disturbed
//! aborts         messages that end early leave nothing
//! small_disk     the spool on a small file system that is filled and emptied
//! tidy           the layers, where unsafe may stand, what may be cited
//! fuzz           entry points as plain functions, with a short seeded run
//! ```
//!
//! `tests/run` builds, installs the clients and runs everything; `PORTREEVE_LONG=1` runs the long forms.
#![forbid(unsafe_code)]
