//! Talking to whoever started the program.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::cli::exit;

/// Whether colour is wanted on standard error: a terminal, and no `NO_COLOR` (no-color.org).
pub fn color() -> bool {
    io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints to standard output; a reader that went away (`| head`) is no failure.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says what went wrong and returns the code to exit with.
pub fn fail(code: u8, text: impl std::fmt::Display) -> ExitCode {
    let (paint, plain) = if color() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(io::stderr(), "{paint}portreeve:{plain} {text}");
    ExitCode::from(code)
}

/// Says something that somebody should know.
pub fn warn(text: impl std::fmt::Display) {
    let (paint, plain) = if color() { ("\x1b[33m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(io::stderr(), "{paint}warning:{plain} {text}");
}

/// The longest password taken, octets.
const PASSWORD_OCTETS_MAX: u64 = 1024;

/// A password: one line of standard input, or asked for on the terminal (twice when it is a new one).
pub fn password(from_stdin: bool, new: bool) -> Result<Zeroizing<String>, ExitCode> {
    let failed = |error: io::Error| fail(exit::FAILURE, format!("cannot read the password: {error}"));
    if from_stdin {
        let mut line = Zeroizing::new(String::with_capacity(PASSWORD_OCTETS_MAX as usize + 2));
        let stdin = io::stdin().lock();
        io::Read::take(stdin, PASSWORD_OCTETS_MAX + 2).read_line(&mut line).map_err(failed)?;
        let end = line.trim_end_matches(['\r', '\n']).len();
        line.truncate(end);
        return checked(line);
    }
    if !io::stdin().is_terminal() {
        let text = "no terminal to ask for the password; give it with --password-stdin";
        return Err(fail(exit::FAILURE, text));
    }
    let first = Zeroizing::new(rpassword::prompt_password("Password: ").map_err(failed)?);
    if new {
        let second = Zeroizing::new(rpassword::prompt_password("Again: ").map_err(failed)?);
        if *first != *second {
            return Err(fail(exit::FAILURE, "the two passwords differ; nothing was changed"));
        }
    }
    checked(first)
}

fn checked(password: Zeroizing<String>) -> Result<Zeroizing<String>, ExitCode> {
    if password.is_empty() {
        Err(fail(exit::FAILURE, "the password is empty; nothing was changed"))
    } else if password.len() as u64 > PASSWORD_OCTETS_MAX {
        Err(fail(exit::FAILURE, "the password is longer than 1024 octets; nothing was changed"))
    } else if password.contains('\0') {
        Err(fail(exit::FAILURE, "the password holds a NUL, which no mechanism can carry; nothing was changed"))
    } else {
        Ok(password)
    }
}
