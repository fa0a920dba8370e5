//! The other end of the admin socket: `portreeve status` and `portreeve reload`.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Largest answer, octets.
const ANSWER_OCTETS_MAX: u64 = 16 << 20;

/// Asks the running server.
pub fn ask(socket: &Path, command: &str) -> Result<Value, String> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!(
                "{place}: no server answers; start it with `portreeve serve`, or name its configuration with --config"
            )
        }
        io::ErrorKind::PermissionDenied => format!("{place}: not permitted; be root or the server's user"),
        _ => format!("{place}: {error}"),
    })?;
    let talk = |error: io::Error| format!("{place}: {error}; is the server stuck?");
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(talk)?;
    stream.write_all(format!("{}\n", json!({ "command": command })).as_bytes()).map_err(talk)?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, ANSWER_OCTETS_MAX)).read_line(&mut line).map_err(talk)?;
    if line.is_empty() {
        return Err(format!("{place}: the server ended before it answered"));
    }
    serde_json::from_str(&line).map_err(|error| format!("{place}: the answer is no JSON: {error}"))
}

/// One edition of a library that has a process of its own, on a line.
pub fn edition(edition: &Value) -> String {
    let word = |name: &str| edition[name].as_str().unwrap_or("none").to_owned();
    format!(
        "  {} edition {} {}, {} deaths in the last minute, sandbox: {}\n",
        word("role"),
        edition["generation"],
        word("state"),
        edition["deaths"],
        word("sandbox")
    )
}

/// `status` for people.
pub fn render_status(answer: &Value) -> String {
    let mut to = String::new();
    let (about, status) = (&answer["about"], &answer["status"]);
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let _ = writeln!(to, "portreeve {}, configuration {}", word(&about["version"]), word(&about["config"]));
    if about["data_loss_allowed"] == json!(true) {
        let _ = writeln!(to, "WARNING: this server may lose acknowledged mail (allow_data_loss)");
    }
    for listener in about["listeners"].as_array().into_iter().flatten() {
        let binds: Vec<String> = listener["bind"].as_array().into_iter().flatten().map(word).collect();
        let _ = writeln!(
            to,
            "listener    {:<12} {:<12} {}",
            word(&listener["name"]),
            word(&listener["role"]),
            binds.join(" ")
        );
    }
    for process in answer["supervisor"]["processes"].as_array().into_iter().flatten() {
        let generation = process["generation"].as_u64().filter(|&generation| generation > 0);
        let generation = generation.map(|number| format!("  generation {number}")).unwrap_or_default();
        let _ = writeln!(
            to,
            "process     {:<12} pid {:<8} {:<9} for {} s{generation}",
            word(&process["role"]),
            process["pid"],
            word(&process["state"]),
            process["seconds"]
        );
    }
    for edition in answer["supervisor"]["libraries"].as_array().into_iter().flatten() {
        let _ = write!(to, "library     {:<10}{}", word(&edition["id"]), self::edition(edition));
    }
    for (mechanism, cause) in answer["supervisor"]["quarantine"].as_object().into_iter().flatten() {
        let _ = writeln!(to, "QUARANTINE  {mechanism}: {}; mend it, then `portreeve reload`", word(cause));
    }
    for (name, value) in status["totals"].as_object().into_iter().flatten() {
        match value {
            Value::Number(number) if number.as_i64() != Some(0) => {
                let _ = writeln!(to, "{name:<40} {number}");
            }
            Value::Object(summary) if summary["count"] != json!(0) => {
                let _ = writeln!(
                    to,
                    "{name:<40} {} times, p50 {} p99 {} max {}",
                    summary["count"], summary["p50"], summary["p99"], summary["max"]
                );
            }
            _ => {}
        }
    }
    to
}
