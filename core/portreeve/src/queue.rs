//! `portreeve queue …`: the operator's view of what waits, and hand in it.
//!
//! Delivery answers on a socket of its own, `run/queue.sock`: one JSON object per line, one answer per line,
//! mode 0600. It alone knows what waits, and its service does what is asked between two turns of its loop, so
//! all of this is safe while mail flows.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use delivery::{Answer, Entry, EntryState, Filter, Handle, Request};
use serde_json::{Value, json};
use smtp::id::QueueId;

use crate::cli::{FilterArg, QueueCommand, exit};
use crate::config::{self, Config};
use crate::terminal;

/// Where delivery answers.
pub fn socket(config: &Config) -> PathBuf {
    config.process.state_dir.join("run/queue.sock")
}

/// Longest request, octets.
const REQUEST_OCTETS_MAX: u64 = 256 << 10;
/// Who says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// For an answer. The service gives one between two turns.
const ANSWER_PATIENCE: Duration = Duration::from_secs(40);

// ------------------------------------------------------------------------------------------ delivery's side

/// Answers whoever connects, one after the other, as long as the process lives.
pub fn serve(listener: &UnixListener, handle: &Handle) {
    for stream in listener.incoming() {
        match stream {
            // Who asked may have gone.
            Ok(stream) => drop(answer_one(&stream, handle)),
            // Too few descriptors just now, say.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn answer_one(stream: &UnixStream, handle: &Handle) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_OCTETS_MAX)).read_line(&mut line)?;
    let answer = match understand(&line) {
        Err(error) => json!({"ok": false, "error": error}),
        Ok(request) => match handle.queue(request) {
            Some(answer) => tell(&answer),
            None => json!({"ok": false, "error": "delivery is ending; ask again in a moment"}),
        },
    };
    let mut stream = stream;
    stream.write_all(format!("{answer}\n").as_bytes())
}

fn understand(line: &str) -> Result<Request, String> {
    let request: Value = serde_json::from_str(line).map_err(|error| format!("not a JSON line: {error}"))?;
    let filter = || -> Result<Filter, String> {
        let from = &request["filter"];
        let text = |key: &str| from[key].as_str().map(str::to_owned);
        let ids = from["ids"].as_array().into_iter().flatten();
        let ids = ids.map(|id| {
            id.as_str()
                .and_then(QueueId::parse)
                .ok_or_else(|| format!("{id} is no message id; they have 26 characters"))
        });
        Ok(Filter {
            ids: ids.collect::<Result<_, _>>()?,
            sender: text("sender"),
            recipient: text("recipient"),
            domain: text("domain"),
            older_ms: from["older_ms"].as_u64(),
        })
    };
    Ok(match request["command"].as_str() {
        Some("list") => {
            let limit = request["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
            Request::List(filter()?, limit.unwrap_or(100).min(10_000))
        }
        Some("show") => {
            let ids = filter()?.ids;
            Request::Show(*ids.first().ok_or("which message?")?)
        }
        Some("hold") => Request::Hold(filter()?),
        Some("release") => Request::Release(filter()?),
        Some("retry") => Request::Retry(filter()?),
        Some("remove") => Request::Remove(filter()?),
        Some("stats") => Request::Stats,
        other => return Err(format!("unknown command {other:?}")),
    })
}

fn tell(answer: &Answer) -> Value {
    match answer {
        Answer::Entries(entries, matched) => {
            let messages: Vec<_> = entries.iter().map(entry).collect();
            json!({"ok": true, "matched": matched, "messages": messages})
        }
        Answer::Shown(shown, header) => {
            let mut message = entry(shown);
            message["header"] = json!(String::from_utf8_lossy(header));
            json!({"ok": true, "message": message})
        }
        Answer::Unknown => json!({"ok": false, "error": "no such message waits: delivered, on its way, or never here"}),
        Answer::Changed(changed) => json!({"ok": true, "changed": changed}),
        Answer::Failed(changed, error) => json!({"ok": false, "changed": changed, "error": error}),
        Answer::Stats(summary) => json!({
            "ok": true,
            "messages": summary.messages,
            "trying": summary.trying,
            "waiting": summary.waiting,
            "queued": summary.queued,
            "held": summary.held,
            "octets": summary.octets,
            "oldest_seconds": summary.oldest_unix_ms.map(age),
            "domains": summary.domains,
        }),
    }
}

fn entry(entry: &Entry) -> Value {
    let (state, next) = match entry.state {
        EntryState::Trying => ("trying", None),
        EntryState::Waiting(seconds) => ("waiting", Some(seconds)),
        EntryState::Queued => ("queued", None),
        EntryState::Held => ("held", None),
    };
    let recipients = entry.recipients.iter();
    let recipients =
        recipients.map(|to| json!({"address": to.address, "route": to.route, "reason": to.reason})).collect::<Vec<_>>();
    json!({
        "id": entry.id.to_string(),
        "accepted_unix_ms": entry.unix_ms,
        "age_seconds": age(entry.unix_ms),
        "octets": entry.octets,
        "sender": entry.sender,
        "attempts": entry.attempts,
        "state": state,
        "next_seconds": next,
        "recipients": recipients,
    })
}

fn age(unix_ms: u64) -> u64 {
    crate::control::unix_ms().saturating_sub(unix_ms) / 1000
}

// ------------------------------------------------------------------------------------------ the command

/// Runs `portreeve queue …`.
pub fn command(command: &QueueCommand) -> ExitCode {
    let (config, request, json) = match command {
        QueueCommand::List { config, filter, limit, json } => {
            (config, json!({"command": "list", "filter": filter_of(filter, &[]), "limit": limit}), *json)
        }
        QueueCommand::Show { config, id, json } => (config, json!({"command": "show", "filter": {"ids": [id]}}), *json),
        QueueCommand::Stats { config, json } => (config, json!({"command": "stats"}), *json),
        QueueCommand::Hold(which) => return change("hold", which),
        QueueCommand::Release(which) => return change("release", which),
        QueueCommand::Retry(which) => return change("retry", which),
        QueueCommand::Remove(which) => return change("remove", which),
    };
    match ask(&config.file(), &request) {
        Err(code) => code,
        Ok(answer) if json => terminal::print(&format!("{answer:#}\n")),
        Ok(answer) => terminal::print(&match command {
            QueueCommand::Show { .. } => render_message(&answer["message"]),
            QueueCommand::Stats { .. } => render_stats(&answer),
            _ => render_list(&answer),
        }),
    }
}

fn change(name: &str, which: &crate::cli::WhichArg) -> ExitCode {
    let filter = filter_of(&which.filter, &which.ids);
    if filter.as_object().is_none_or(serde_json::Map::is_empty) && !which.all {
        let why = format!(
            "queue {name}: which messages? Name ids, a filter (--from, --to, --domain, --older-than), or --all"
        );
        return terminal::fail(2, why);
    }
    match ask(&which.config.file(), &json!({"command": name, "filter": filter})) {
        Err(code) => code,
        Ok(answer) if which.json => terminal::print(&format!("{answer:#}\n")),
        Ok(answer) => match answer["changed"].as_u64() {
            Some(0) | None => {
                terminal::fail(exit::FAILURE, format!("queue {name}: no message fits; nothing is changed"))
            }
            Some(1) => terminal::print(&format!("{name}: 1 message\n")),
            Some(changed) => terminal::print(&format!("{name}: {changed} messages\n")),
        },
    }
}

fn filter_of(filter: &FilterArg, ids: &[String]) -> Value {
    let mut to = serde_json::Map::new();
    let mut put = |key: &str, value: Option<Value>| value.map(|value| to.insert(key.to_owned(), value));
    put("ids", (!ids.is_empty()).then(|| json!(ids)));
    put("sender", filter.from.as_ref().map(|from| json!(from.trim_matches(['<', '>']))));
    put("recipient", filter.to.as_ref().map(|to| json!(to)));
    put("domain", filter.domain.as_ref().map(|domain| json!(domain)));
    put("older_ms", filter.older_than.map(|age| json!(age.as_millis() as u64)));
    Value::Object(to)
}

fn ask(file: &Path, request: &Value) -> Result<Value, ExitCode> {
    let (config, report) = config::load(file);
    let Some(config) = config else {
        eprint!("{}", report.render(terminal::color()));
        return Err(ExitCode::from(exit::CONFIGURATION));
    };
    let socket = socket(&config);
    let place = socket.display();
    let fail = |why: String| Err(terminal::fail(exit::FAILURE, format!("{place}: {why}")));
    let mut stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) => {
            return fail(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "no server answers; start it with `portreeve serve`, or name its configuration with --config".into()
                }
                io::ErrorKind::PermissionDenied => "not permitted; be root or the server's user".into(),
                _ => error.to_string(),
            });
        }
    };
    let mut line = String::new();
    let talked = stream
        .set_read_timeout(Some(ANSWER_PATIENCE))
        .and_then(|()| stream.write_all(format!("{request}\n").as_bytes()))
        .and_then(|()| BufReader::new(stream).read_line(&mut line));
    if let Err(error) = talked {
        return fail(format!("{error}; is delivery stuck?"));
    }
    let answer: Value = match serde_json::from_str(&line) {
        Ok(answer) => answer,
        Err(_) => return fail("delivery ended before it answered; ask again".into()),
    };
    if answer["ok"] == true {
        Ok(answer)
    } else {
        fail(answer["error"].as_str().unwrap_or("no reason given").to_owned())
    }
}

fn render_list(answer: &Value) -> String {
    let mut to = String::new();
    let messages = answer["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if messages.is_empty() {
        return "Nothing waits.\n".into();
    }
    let _ = writeln!(to, "{:<26}  {:>7}  {:>8}  {:<14}  SENDER", "ID", "AGE", "OCTETS", "NEXT");
    for message in messages {
        let _ = writeln!(
            to,
            "{:<26}  {:>7}  {:>8}  {:<14}  {}",
            message["id"].as_str().unwrap_or_default(),
            span(message["age_seconds"].as_u64().unwrap_or_default()),
            message["octets"],
            next(message),
            address(&message["sender"]),
        );
        for recipient in message["recipients"].as_array().into_iter().flatten() {
            let reason = clean(recipient["reason"].as_str().unwrap_or_default());
            let route = recipient["route"].as_str().unwrap_or("no route");
            let _ = writeln!(to, "    {} ({route}): {reason}", address(&recipient["address"]));
        }
    }
    let (shown, matched) = (messages.len() as u64, answer["matched"].as_u64().unwrap_or_default());
    if shown < matched {
        let _ = writeln!(to, "{} more; --limit shows them", matched - shown);
    }
    to
}

fn render_message(message: &Value) -> String {
    let list = render_list(&json!({"messages": [message], "matched": 1}));
    let header: String =
        message["header"].as_str().unwrap_or_default().lines().map(|line| clean(line) + "\n").collect();
    format!("{list}    attempts {}\n\n{header}", message["attempts"])
}

fn render_stats(answer: &Value) -> String {
    let mut to = String::new();
    let oldest = answer["oldest_seconds"].as_u64().map_or("-".to_owned(), span);
    for (name, value) in [
        ("messages in the spool", answer["messages"].to_string()),
        ("being tried", answer["trying"].to_string()),
        ("wait for their next attempt", answer["waiting"].to_string()),
        ("wait for a connection", answer["queued"].to_string()),
        ("held", answer["held"].to_string()),
        ("octets of those that wait", answer["octets"].to_string()),
        ("age of the oldest", oldest),
    ] {
        let _ = writeln!(to, "{name:<28} {value:>10}");
    }
    let mut domains: Vec<_> = answer["domains"].as_object().into_iter().flatten().collect();
    domains.sort_by_key(|(_, count)| std::cmp::Reverse(count.as_u64()));
    for (domain, count) in domains.iter().take(20) {
        let _ = writeln!(to, "recipients at {:<14} {count:>10}", clean(domain));
    }
    to
}

fn next(message: &Value) -> String {
    match (message["state"].as_str(), message["next_seconds"].as_u64()) {
        (Some("waiting"), Some(seconds)) => format!("in {}", span(seconds)),
        (Some("queued"), _) => "when connected".into(),
        (state, _) => state.unwrap_or_default().into(),
    }
}

fn address(value: &Value) -> String {
    format!("<{}>", clean(value.as_str().unwrap_or_default()))
}

/// What others wrote must not steer a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect()
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_what_is_none() {
        let id = "01HF0000000000000000000000";
        let line =
            format!("{{\"command\":\"hold\",\"filter\":{{\"ids\":[\"{id}\"],\"domain\":\"d\",\"older_ms\":5}}}}");
        let Ok(Request::Hold(filter)) = understand(&line) else { panic!("{line}") };
        assert_eq!((filter.ids.len(), filter.domain.as_deref(), filter.older_ms), (1, Some("d"), Some(5)));
        assert!(matches!(understand("{\"command\":\"stats\"}"), Ok(Request::Stats)));
        for bad in ["", "{}", "{\"command\":\"frob\"}", "{\"command\":\"hold\",\"filter\":{\"ids\":[\"x\"]}}"] {
            assert!(understand(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_for_people_has_the_reason_and_no_control_characters() {
        let shown = render_list(&json!({"matched": 3, "messages": [{
            "id": "X", "age_seconds": 200, "octets": 7, "sender": null, "state": "waiting", "next_seconds": 30,
            "recipients": [{"address": "a@b", "route": "smtp", "reason": "550 \u{1b}[2J no"}],
        }]}));
        assert!(shown.contains("<a@b> (smtp): 550 ?[2J no"), "{shown}");
        assert!(shown.contains("in 30s") && shown.contains("3m") && shown.contains("2 more"), "{shown}");
    }
}
