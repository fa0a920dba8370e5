//! The delivery process. (written when core/delivery lands)
use std::process::ExitCode;
use supervisor::child::Startup;
pub fn run(startup: Startup) -> ExitCode { super::give_up(&startup.supervisor, "not there yet") }
