//! A library whose mechanisms run in a process of their own, as a worker sees it: names from the
//! configuration, and what the process says of them. No code of the library is in this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use link::mechanism::{Described, Description};
use portreeve_plugin_abi as abi;
use sasl::{FailureClass, Input, Mechanism, MechanismName, Runner, State, Step, Traits, flag};

use crate::gate::{Complain, Fault, Gate};

/// Different descriptions that one mechanism may have while a worker lives; the same again costs none.
const DESCRIPTIONS_MAX: usize = 64;

/// A library in another process.
pub struct RemoteLibrary {
    /// Its id.
    pub id: String,
    /// Its number among the runners of this worker.
    pub runner: Runner,
    self_asserts: bool,
    /// What its note lists.
    pub mechanisms: Vec<Arc<Remote>>,
}

/// A mechanism in another process. Its traits are what that process said last.
pub struct Remote {
    name: MechanismName,
    runner: Runner,
    /// Whoever reads traits may hold on to them, so that none is ever taken back.
    known: [OnceLock<Traits>; DESCRIPTIONS_MAX],
    /// Which of them holds, counted from 1; 0: none.
    current: AtomicUsize,
    gate: Gate,
}

impl RemoteLibrary {
    /// A library with these mechanisms, none of them described yet. `self_asserts`: the operator believes it who
    /// somebody is.
    pub fn new(
        id: &str,
        runner: Runner,
        names: &[MechanismName],
        self_asserts: bool,
        complain: Option<Complain>,
    ) -> Self {
        let mechanisms = names.iter().map(|name| Arc::new(Remote::new(*name, runner, complain.clone()))).collect();
        Self { id: id.to_owned(), runner, self_asserts, mechanisms }
    }

    /// What its process says. A mechanism that it does not have, or that breaks the bounds of the ABI, is
    /// not offered.
    pub fn describe(&self, description: &Description<'_>) {
        for mechanism in &self.mechanisms {
            let described = description.mechanisms.iter().find(|one| one.name == mechanism.name.as_str());
            let described = described.filter(|one| self.self_asserts || one.flags & flag::SELF_ASSERTS == 0);
            mechanism.describe(described.and_then(traits));
        }
    }
}

impl Remote {
    fn new(name: MechanismName, runner: Runner, complain: Option<Complain>) -> Self {
        Self {
            name,
            runner,
            known: [const { OnceLock::new() }; DESCRIPTIONS_MAX],
            current: AtomicUsize::new(0),
            gate: Gate::new(complain),
        }
    }

    fn describe(&self, traits: Option<Traits>) {
        let position = traits.and_then(|traits| {
            let same = |known: &OnceLock<Traits>| same(known.get_or_init(|| traits.clone()), &traits);
            self.known.iter().position(same)
        });
        self.current.store(position.map_or(0, |at| at + 1), Ordering::Release);
    }

    /// Its answer broke the contract.
    pub fn broken(&self) {
        self.gate.fault(&self.name, Fault::Broken);
    }
}

impl Mechanism for Remote {
    fn name(&self) -> &MechanismName {
        &self.name
    }

    fn traits(&self) -> &Traits {
        static UNKNOWN: Traits = Traits {
            flags: 0,
            needs: 0,
            strength: 0,
            state_octets: 0,
            message_octets_max: 0,
            output_octets_max: 0,
            steps_max: 0,
            plus_of: None,
        };
        let at = self.current.load(Ordering::Acquire).checked_sub(1);
        at.and_then(|at| self.known.get(at)).and_then(OnceLock::get).unwrap_or(&UNKNOWN)
    }

    fn step<'a>(&'a self, _: &'a mut State, _: Input<'a>, _: &'a mut [u8]) -> Step<'a> {
        Step::Failure { class: FailureClass::Internal, data: None, diagnosis: b"it runs elsewhere" }
    }

    fn runner(&self) -> Option<Runner> {
        Some(self.runner)
    }

    fn is_available(&self) -> bool {
        self.current.load(Ordering::Relaxed) > 0 && self.gate.is_open()
    }

    fn set_available(&self, available: bool) {
        self.gate.set_open(available);
    }

    fn quarantine(&self) {
        self.gate.fault(&self.name, Fault::Bypass);
    }
}

/// What a process may say of a mechanism: the bounds are those of the handshake.
fn traits(described: &Described<'_>) -> Option<Traits> {
    let plus_of = match described.plus_of {
        "" => None,
        name => Some(MechanismName::parse(name.as_bytes())?),
    };
    let permitted = (1..=abi::MESSAGE_MAX).contains(&described.message_octets_max)
        && described.output_octets_max <= abi::OUTPUT_MAX + abi::DIAG_MAX
        && (1..=abi::STEPS_MAX).contains(&described.steps_max)
        && described.strength <= 100;
    permitted.then_some(Traits {
        flags: described.flags,
        needs: described.needs,
        strength: described.strength,
        state_octets: 0,
        message_octets_max: described.message_octets_max as usize,
        // Here it only bounds what is taken from the other process.
        output_octets_max: described.output_octets_max as usize,
        steps_max: described.steps_max,
        plus_of,
    })
}

fn same(a: &Traits, b: &Traits) -> bool {
    let of =
        |t: &Traits| (t.flags, t.needs, t.strength, t.message_octets_max, t.output_octets_max, t.steps_max, t.plus_of);
    of(a) == of(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traits_are_what_was_said_last_within_bounds() {
        let name = MechanismName::parse(b"X-A").unwrap();
        let library = RemoteLibrary::new("a", Runner(0), &[name], false, None);
        let remote = &library.mechanisms[0];
        assert!(!remote.is_available());
        let say = |strength, message_octets_max| {
            let described = Described {
                name: "X-A",
                flags: 1,
                needs: 0,
                strength,
                message_octets_max,
                output_octets_max: 8,
                steps_max: 4,
                plus_of: "",
            };
            library.describe(&Description { mechanisms: vec![described] });
        };
        for round in 0..1000 {
            say(round % 3, 100);
            assert!(remote.is_available() && remote.traits().strength == round % 3);
        }
        say(101, 100);
        assert!(!remote.is_available());
        say(1, 100);
        assert!(remote.is_available());
        say(1, 1 << 20);
        assert!(!remote.is_available(), "a megabyte of message is beyond the ABI");
        say(1, 100);
        remote.quarantine();
        assert!(!remote.is_available());
        remote.set_available(true);
        assert!(remote.is_available());
        library.describe(&Description { mechanisms: vec![] });
        assert!(!remote.is_available());
    }
}
