//! A step's answer with its octets: how a mechanism in another process answers (`runner = "process"`).

use crate::{ChannelBinding, Effect, EffectKind, FailureClass, KeyKind, Proof, Secret, Step, Traits};

/// A [`Step`] as numbers and octets, numbered as in the plugin ABI.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    /// 1 challenge, 2 success, 3 failure, 4 offload, 16 and above: an [`EffectKind`]; 5, which is no action of the
    /// ABI: a success that the mechanism itself asserts.
    pub action: u32,
    /// Proof of a success, class of a failure, kind of key or channel binding.
    pub arg: u32,
    /// A success or a failure has final data.
    pub last: bool,
    /// What is sent or asked; authcid, service, fields or diagnosis; authzid.
    pub parts: [&'a [u8]; 3],
}

impl<'a> From<&Step<'a>> for Flat<'a> {
    fn from(step: &Step<'a>) -> Self {
        let flat = |action: u32, arg: u32, parts| Flat { action, arg, last: false, parts };
        match *step {
            Step::Challenge(data) => flat(1, 0, [data, b"", b""]),
            Step::Success { proof, data } => {
                Flat { last: data.is_some(), ..flat(2, proof.0, [data.unwrap_or_default(), b"", b""]) }
            }
            Step::Failure { class, data, diagnosis } => {
                Flat { last: data.is_some(), ..flat(3, class as u32, [data.unwrap_or_default(), diagnosis, b""]) }
            }
            Step::Offload => flat(4, 0, [b""; 3]),
            Step::Asserted { authcid, authzid, data } => {
                Flat { last: data.is_some(), ..flat(5, 0, [data.unwrap_or_default(), authcid, authzid]) }
            }
            Step::Effect(effect) => {
                let (arg, parts) = match effect {
                    Effect::VerifyPassword { authcid, authzid, password } => (0, [password, authcid, authzid]),
                    Effect::FetchKey { kind, authcid, authzid, realm } => (kind as u32, [realm, authcid, authzid]),
                    Effect::VerifyToken { token, authzid, fields } => (0, [token, fields, authzid]),
                    Effect::VerifyExternal { authzid } => (0, [&b""[..], b"", authzid]),
                    Effect::ChannelBinding { kind } => (kind as u32, [&b""[..]; 3]),
                    Effect::BackendCall { service, request } => (0, [request, service, b""]),
                };
                flat(effect.kind() as u32, arg, parts)
            }
        }
    }
}

impl<'a> Flat<'a> {
    /// The step; `None` when the numbers mean nothing.
    pub fn step(&self) -> Option<Step<'a>> {
        let [data, second, authzid] = self.parts;
        let last = self.last.then_some(data);
        Some(match self.action {
            1 => Step::Challenge(data),
            2 => Step::Success { proof: Proof(self.arg), data: last },
            3 => Step::Failure { class: FailureClass::from_abi(self.arg)?, data: last, diagnosis: second },
            4 => Step::Offload,
            5 => Step::Asserted { authcid: second, authzid, data: last },
            effect => Step::Effect(match EffectKind::from_abi(effect)? {
                EffectKind::VerifyPassword => Effect::VerifyPassword { authcid: second, authzid, password: data },
                EffectKind::FetchKey => {
                    Effect::FetchKey { kind: KeyKind::from_abi(self.arg)?, authcid: second, authzid, realm: data }
                }
                EffectKind::VerifyToken => Effect::VerifyToken { token: data, authzid, fields: second },
                EffectKind::VerifyExternal => Effect::VerifyExternal { authzid },
                EffectKind::ChannelBinding => Effect::ChannelBinding { kind: ChannelBinding::from_abi(self.arg)? },
                EffectKind::BackendCall => Effect::BackendCall { service: second, request: data },
            }),
        })
    }
}

/// A [`Step`] that owns its octets; they are wiped with it.
pub struct OwnedStep {
    action: u32,
    arg: u32,
    last: bool,
    octets: Secret,
    lengths: [usize; 3],
}

impl OwnedStep {
    /// Copies an answer into `buffer`, unless its numbers mean nothing or it breaks what `traits` declare: an
    /// undeclared effect, more output than announced, work that was to be finished elsewhere.
    pub fn new(flat: Flat<'_>, traits: &Traits, buffer: Secret) -> Option<Self> {
        let step = flat.step()?;
        let permitted = match &step {
            Step::Offload => false,
            Step::Effect(effect) => traits.needs & effect.kind().need() != 0,
            Step::Challenge(data) => data.len() <= traits.output_octets_max,
            Step::Success { data, .. } | Step::Asserted { data, .. } | Step::Failure { data, .. } => {
                data.is_none_or(|data| data.len() <= traits.output_octets_max)
            }
        };
        permitted.then(|| Self::copy(flat, buffer))
    }

    /// A failure in the host's own words.
    pub fn failure(class: FailureClass, diagnosis: &'static str) -> Self {
        let failure = Step::Failure { class, data: None, diagnosis: diagnosis.as_bytes() };
        Self::copy(Flat::from(&failure), Secret::default())
    }

    fn copy(flat: Flat<'_>, mut octets: Secret) -> Self {
        octets.make_room(flat.parts.iter().map(|part| part.len()).sum());
        flat.parts.iter().for_each(|part| octets.buffer().extend_from_slice(part));
        Self { action: flat.action, arg: flat.arg, last: flat.last, octets, lengths: flat.parts.map(<[u8]>::len) }
    }

    /// Its buffer, wiped, for the next answer.
    pub fn into_buffer(mut self) -> Secret {
        self.octets.wipe();
        self.octets
    }

    /// The step.
    pub fn step(&self) -> Step<'_> {
        let [first, second, _] = self.lengths;
        let octets = self.octets.expose();
        let (data, rest) = octets.split_at_checked(first).unwrap_or_default();
        let (middle, authzid) = rest.split_at_checked(second).unwrap_or_default();
        let flat = Flat { action: self.action, arg: self.arg, last: self.last, parts: [data, middle, authzid] };
        // Checked when it was made.
        let broken = Step::Failure { class: FailureClass::Internal, data: None, diagnosis: b"no step" };
        flat.step().unwrap_or(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MechanismName;

    fn traits() -> Traits {
        Traits {
            flags: 0,
            needs: EffectKind::FetchKey.need(),
            strength: 1,
            state_octets: 0,
            message_octets_max: 10,
            output_octets_max: 4,
            steps_max: 4,
            plus_of: MechanismName::parse(b"X"),
        }
    }

    #[test]
    fn what_is_carried_comes_out_again() {
        let key = Effect::FetchKey { kind: KeyKind::ScramSha256, authcid: b"a", authzid: b"zz", realm: b"" };
        let owned = OwnedStep::new(Flat::from(&Step::Effect(key)), &traits(), Secret::default()).unwrap();
        let Step::Effect(Effect::FetchKey { kind: KeyKind::ScramSha256, authcid: b"a", authzid: b"zz", realm: b"" }) =
            owned.step()
        else {
            panic!()
        };
        let success = Step::Success { proof: Proof(3), data: Some(b"v=x") };
        let owned = OwnedStep::new(Flat::from(&success), &traits(), Secret::default()).unwrap();
        assert!(matches!(owned.step(), Step::Success { proof: Proof(3), data: Some(b"v=x") }));
        let asserted = Step::Asserted { authcid: b"alice", authzid: b"", data: None };
        let owned = OwnedStep::new(Flat::from(&asserted), &traits(), Secret::default()).unwrap();
        assert!(matches!(owned.step(), Step::Asserted { authcid: b"alice", authzid: b"", data: None }));
        let owned = OwnedStep::failure(FailureClass::Temporary, "gone");
        let Step::Failure { class: FailureClass::Temporary, data: None, diagnosis: b"gone" } = owned.step() else {
            panic!()
        };
    }

    #[test]
    fn what_was_not_declared_is_no_answer() {
        let flat = |action, arg, data: &'static [u8]| Flat { action, arg, last: true, parts: [data, b"", b""] };
        for bad in [flat(0, 0, b""), flat(16, 0, b""), flat(17, 99, b""), flat(3, 11, b""), flat(1, 0, b"12345")] {
            assert!(OwnedStep::new(bad, &traits(), Secret::default()).is_none(), "{}", bad.action);
        }
        assert!(OwnedStep::new(flat(4, 0, b""), &traits(), Secret::default()).is_none());
        assert!(OwnedStep::new(flat(2, 1, b"12345"), &traits(), Secret::default()).is_none());
        assert!(OwnedStep::new(flat(1, 0, b"1234"), &traits(), Secret::default()).is_some());
    }
}
