//! What an administrator sees of the supervisor, JSON.

use serde_json::{Value, json};

use super::Supervisor;
use super::editions::{Edition, Standing};
use crate::plan::Hooks;
use crate::process::Process;
use crate::sockets::Bound;

impl<H: Hooks> Supervisor<H> {
    pub(super) fn status(&self) -> String {
        let processes: Vec<Value> = self.processes.iter().map(process).collect();
        let listeners: Vec<Value> = self.sockets.bound.iter().map(listener).collect();
        let libraries = self.editions.iter().map(|edition| library(edition, self.processes.holder(edition.post())));
        json!({
            "pid": std::process::id(),
            "generation": self.generation,
            "draining": self.is_stopping(),
            "processes": processes,
            "listeners": listeners,
            "libraries": libraries.collect::<Vec<Value>>(),
            "quarantine": self.quarantine,
        })
        .to_string()
    }
}

fn process(process: &Process) -> Value {
    json!({
        "role": process.role().name(),
        "pid": process.pid(),
        "instance": process.outfit.instance,
        "generation": process.post.generation,
        "state": process.phase.name(),
        "seconds": process.started.elapsed().as_secs(),
    })
}

fn listener(bound: &Bound) -> Value {
    json!({ "name": bound.name, "address": bound.address.to_string(), "sockets": bound.sockets.len() })
}

fn library(edition: &Edition, process: Option<&Process>) -> Value {
    json!({
        "id": edition.plugin.id,
        "runner": "process",
        "generation": edition.number,
        "role": edition.role.name(),
        "mechanisms": edition.mechanisms(),
        "backends": edition.backends(),
        "deaths": edition.deaths(),
        "sandbox": process.map(|process| &process.sandbox),
        "pid": process.map(Process::pid),
        "state": match (edition.standing, process) {
            (Standing::GivenUp, _) => "quarantine",
            (Standing::Leaving, _) => "leaving",
            (_, Some(process)) => process.phase.name(),
            (_, None) => "dead",
        },
    })
}
