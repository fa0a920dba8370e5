//! A loaded mechanism as `sasl::Mechanism`: everything that it says is checked here before it counts.

use portreeve_plugin_abi::{self as abi, action, out_flag, region};
use sasl::{
    ChannelBinding, Effect, Event, FailureClass, Input, KeyKind, Mechanism, MechanismName, Proof, State, Step, Traits,
    flag,
};

use crate::ffi::{self, Bound};
use crate::gate::{Fault, Gate};

/// A mechanism that runs inside this process.
pub(crate) struct Inline {
    name: MechanismName,
    traits: Traits,
    bound: Bound,
    /// One octet behind the mechanism's state is ours when there is a state to be begun and dropped.
    marker: Option<usize>,
    /// It has declared that it may take long.
    offloads: bool,
    gate: Gate,
}

/// What is behind the state: whether a step has run, and so whether `drop_state` has something to drop.
const BEGUN: u8 = 0xb1;

impl Inline {
    pub fn new(name: MechanismName, mut traits: Traits, bound: Bound, offloads: bool, gate: Gate) -> Self {
        let marker = (bound.state_octets() > 0 || bound.drops_state()).then_some(bound.state_octets());
        traits.state_octets = marker.map_or(0, |at| at + 1);
        Self { name, traits, bound, marker, offloads, gate }
    }

    /// What the mechanism declared not to want: it never sees it.
    fn refuses(&self, input: &Input<'_>) -> Option<&'static str> {
        let has = |bit: u32| self.traits.flags & bit != 0;
        let message = match input.event {
            Event::Start { initial: true } if has(flag::SERVER_FIRST) => {
                return Some("an initial response, but the server speaks first");
            }
            Event::Start { initial: true } | Event::Message => input.message,
            _ => return None,
        };
        if message.len() > self.traits.message_octets_max {
            Some("message longer than the mechanism takes")
        } else if !has(flag::ALLOW_NUL) && message.contains(&0) {
            Some("NUL in the message")
        } else if has(flag::UTF8) && std::str::from_utf8(message).is_err() {
            Some("message is not UTF-8")
        } else {
            None
        }
    }

    /// Marks the state as begun at START; false when the steps come out of order.
    fn begin(&self, state: &mut [u8], event: &Event<'_>) -> bool {
        let Some(at) = self.marker else { return true };
        match (state.get_mut(at), event) {
            (Some(marker @ 0), Event::Start { .. }) => {
                *marker = BEGUN;
                true
            }
            (Some(&mut BEGUN), Event::Message | Event::Outcome(_) | Event::Resume) => true,
            _ => false,
        }
    }
}

impl Mechanism for Inline {
    fn name(&self) -> &MechanismName {
        &self.name
    }

    fn traits(&self) -> &Traits {
        &self.traits
    }

    fn step<'a>(&'a self, state: &'a mut State, input: Input<'a>, scratch: &'a mut [u8]) -> Step<'a> {
        if let Some(cause) = self.refuses(&input) {
            return failure(FailureClass::Malformed, cause);
        }
        let state = ffi::octets(state);
        if state.len() < self.traits.state_octets || scratch.len() < self.traits.output_octets_max {
            return failure(FailureClass::Internal, "the host gave too little state or scratch");
        }
        if !self.begin(state, &input.event) {
            return failure(FailureClass::Internal, "the host stepped an exchange that has not begun, or twice");
        }
        let started = ffi::ticks();
        let resumes = matches!(input.event, Event::Resume);
        let out = self.bound.step(state, &input, scratch);
        if out.action == action::OFFLOAD && self.offloads && !resumes {
            return Step::Offload;
        }
        // Where nobody waits a step may take its time; whoever took it there has a watch of its own.
        if !resumes && self.traits.flags & flag::OFFLOAD_ALL == 0 {
            self.gate.stepped(&self.name, started);
        }
        if out.action == action::FAIL && out.arg == abi::fail::INTERNAL {
            self.gate.fault(&self.name, Fault::Broken);
        }
        let areas = Areas { message: input.message, scratch, state: state.get(..self.bound.state_octets()) };
        match self.read(&out, &areas) {
            Ok(step) => step,
            Err(cause) => {
                self.gate.fault(&self.name, Fault::Broken);
                failure(FailureClass::Internal, cause)
            }
        }
    }

    fn is_available(&self) -> bool {
        self.gate.is_open()
    }

    fn set_available(&self, available: bool) {
        self.gate.set_open(available);
    }

    fn quarantine(&self) {
        self.gate.fault(&self.name, Fault::Bypass);
    }

    fn finish(&self, state: &mut State) {
        let state = ffi::octets(state);
        if let Some(marker) = self.marker.and_then(|at| state.get_mut(at))
            && std::mem::take(marker) == BEGUN
        {
            self.bound.drop_state(state);
        }
    }
}

impl Inline {
    /// From numbers to a step; an error is a broken mechanism.
    fn read<'a>(&self, out: &abi::Out, areas: &Areas<'a>) -> Result<Step<'a>, &'static str> {
        if out.used > out.cap {
            return Err("the mechanism says that it wrote more than there is room");
        }
        if out.flags & !(out_flag::FINAL_DATA | out_flag::SELF_ASSERTED) != 0 {
            return Err("the mechanism set an answer flag that this host does not know");
        }
        let asserted = out.flags & out_flag::SELF_ASSERTED != 0;
        if asserted && out.action != action::SUCCESS {
            return Err("the mechanism asserts an identity without success");
        }
        let area = |slice: abi::Slice| areas.slice(slice, out.used);
        let sent = |slice: abi::Slice| {
            if slice.len > self.bound.output_octets_max() {
                return Err("the mechanism sends more than it declared");
            }
            area(slice)
        };
        let last = || (out.flags & out_flag::FINAL_DATA != 0).then(|| sent(out.data)).transpose();
        Ok(match out.action {
            action::CHALLENGE => Step::Challenge(sent(out.data)?),
            // Whether it may is the session's to judge: that runs where no code of a stranger does.
            action::SUCCESS if asserted => {
                Step::Asserted { authcid: area(out.authcid)?, authzid: area(out.authzid)?, data: last()? }
            }
            action::SUCCESS => Step::Success { proof: Proof(out.handle), data: last()? },
            action::FAIL => {
                let class = failure_class(out.arg).ok_or("the mechanism failed with an unknown class")?;
                let diagnosis = area(out.diag)?;
                let diagnosis = diagnosis.get(..abi::DIAG_MAX as usize).unwrap_or(diagnosis);
                Step::Failure { class, data: last()?, diagnosis }
            }
            action::OFFLOAD => return Err("the mechanism answered OFFLOAD without having declared it, or again"),
            16..=79 if self.traits.needs & action::need(out.action) == 0 => {
                return Err("the mechanism asks for an effect that it did not declare");
            }
            effect => Step::Effect(match effect {
                action::VERIFY_PASSWORD => Effect::VerifyPassword {
                    authcid: area(out.authcid)?,
                    authzid: area(out.authzid)?,
                    password: area(out.data)?,
                },
                action::FETCH_KEY => Effect::FetchKey {
                    kind: KeyKind::from_abi(out.arg).ok_or("the mechanism asks for an unknown kind of key")?,
                    authcid: area(out.authcid)?,
                    authzid: area(out.authzid)?,
                    realm: area(out.data)?,
                },
                action::VERIFY_TOKEN => Effect::VerifyToken {
                    token: area(out.data)?,
                    authzid: area(out.authzid)?,
                    fields: area(out.data2)?,
                },
                action::VERIFY_EXTERNAL => Effect::VerifyExternal { authzid: area(out.authzid)? },
                action::CHANNEL_BINDING => Effect::ChannelBinding {
                    kind: match out.arg {
                        abi::binding::TLS_EXPORTER => ChannelBinding::TlsExporter,
                        abi::binding::TLS_SERVER_END_POINT => ChannelBinding::TlsServerEndPoint,
                        _ => return Err("the mechanism asks for an unknown channel binding"),
                    },
                },
                action::BACKEND_CALL => Effect::BackendCall { service: area(out.data2)?, request: area(out.data)? },
                _ => return Err("the mechanism answered with an unknown action"),
            }),
        })
    }
}

/// Where the slices of an answer may lie.
struct Areas<'a> {
    message: &'a [u8],
    scratch: &'a [u8],
    state: Option<&'a [u8]>,
}

impl<'a> Areas<'a> {
    fn slice(&self, slice: abi::Slice, used: u32) -> Result<&'a [u8], &'static str> {
        let area = match slice.region {
            region::NONE if slice.len == 0 => return Ok(&[]),
            region::MSG => self.message,
            region::OUT => self.scratch.get(..used as usize).unwrap_or_default(),
            region::STATE => self.state.unwrap_or_default(),
            _ => return Err("the mechanism named an unknown region"),
        };
        let start = slice.off as usize;
        let end = start.checked_add(slice.len as usize);
        end.and_then(|end| area.get(start..end)).ok_or("the mechanism named octets outside of its region")
    }
}

fn failure(class: FailureClass, diagnosis: &'static str) -> Step<'static> {
    Step::Failure { class, data: None, diagnosis: diagnosis.as_bytes() }
}

fn failure_class(number: u32) -> Option<FailureClass> {
    Some(match number {
        abi::fail::CREDENTIALS => FailureClass::Credentials,
        abi::fail::MALFORMED => FailureClass::Malformed,
        abi::fail::TEMPORARY => FailureClass::Temporary,
        abi::fail::AUTHZ => FailureClass::Authorization,
        abi::fail::TOO_WEAK => FailureClass::TooWeak,
        abi::fail::NEED_TLS => FailureClass::NeedTls,
        abi::fail::TRANSITION => FailureClass::Transition,
        abi::fail::CBINDING => FailureClass::ChannelBinding,
        abi::fail::EXPIRED => FailureClass::Expired,
        abi::fail::INTERNAL => FailureClass::Internal,
        _ => return None,
    })
}
