//! A real worker on loopback, by what is asked of it.

mod bounds;
mod connections;
mod deadlines;
mod descriptors;
mod encrypted;
mod logins;
mod messages;
mod next_hops;
pub mod rig;

use smtp::Role;
use smtp::listener::Tls;

use self::rig::Plan;

const MAIL: &str = "MAIL FROM:<x@far.example>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n";
const BODY: &str = "Subject: hello\r\n\r\n..dots\r\nworld\r\n.\r\n";
/// base64 of NUL alice NUL secret.
const ALICE: &str = "AGFsaWNlAHNlY3JldA==";

fn mx() -> Plan {
    Plan::new(Role::Mx, Tls::StartTls)
}
