//! Runs exchanges of a mechanism inside a test, without a library and without a server.
//!
//! Time and randomness stand still, so that the same steps give the same octets.

use crate::Mechanism;
use crate::abi::{self, action, conn, event, out_flag, region};
use crate::cx::{EffectKind, ScramKey, Status};
use crate::export::{Bench, Ended, Situation};

/// What a step answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Goes to the client.
    Challenge(Vec<u8>),
    /// Work for the host; fields as in `portreeve_plugin.h`.
    Effect {
        /// Which.
        kind: EffectKind,
        /// Key kind or channel binding.
        arg: u32,
        /// Claimed identity.
        authcid: Vec<u8>,
        /// Asked-for identity.
        authzid: Vec<u8>,
        /// Password, token, realm, request.
        data: Vec<u8>,
        /// Token fields, service.
        data2: Vec<u8>,
    },
    /// Proven.
    Success {
        /// Final data.
        data: Option<Vec<u8>>,
    },
    /// Over.
    Failure {
        /// The number of the class, as in `portreeve_plugin.h` (`PRV_FAIL_…`).
        class: u32,
        /// For the audit log.
        reason: String,
        /// Final data.
        data: Option<Vec<u8>>,
    },
    /// Wants to be resumed elsewhere.
    Offload,
}

/// One exchange. It runs through the functions that the host calls, so that a panic is contained here, too.
pub struct Exchange<M: Mechanism> {
    bench: Bench<M>,
    message: Vec<u8>,
    handle: u32,
    asked: u32,
    /// The 64 octets that each step gets; 0 to 63 unless changed.
    pub entropy: [u8; 64],
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Our own name.
    pub server_name: String,
    /// Set of `1 << ChannelBinding as u32`.
    pub channel_bindings: u32,
    /// Whether the `-PLUS` sibling was advertised.
    pub plus_offered: bool,
}

impl<M: Mechanism> Exchange<M> {
    /// A new exchange, inside TLS.
    pub fn new(mechanism: M) -> Self {
        Self {
            bench: Bench::new(mechanism),
            message: Vec::new(),
            handle: 0,
            asked: 0,
            entropy: std::array::from_fn(|index| index as u8),
            unix_ms: 1_700_000_000_000,
            server_name: String::from("mail.example.com"),
            channel_bindings: 0,
            plus_offered: false,
        }
    }

    /// The exchange begins, with or without an initial response.
    pub fn start(&mut self, initial: Option<&[u8]>) -> Answer {
        self.message = initial.unwrap_or_default().to_vec();
        self.step(event::START, if initial.is_some() { conn::HAS_IR } else { 0 }, None)
    }

    /// The client answers a challenge.
    pub fn message(&mut self, message: &[u8]) -> Answer {
        self.message = message.to_vec();
        self.step(event::MESSAGE, 0, None)
    }

    /// The effect ends.
    pub fn outcome(&mut self, status: Status, data: &[u8]) -> Answer {
        let ended = Ended { effect: self.asked, status: status as u32, handle: self.handle, data, scram: None };
        self.step(event::RESULT, 0, Some(ended))
    }

    /// FETCH_KEY ends with SCRAM keys.
    pub fn scram(&mut self, key: ScramKey<'_>) -> Answer {
        let status = Status::Ok as u32;
        let ended = Ended { effect: self.asked, status, handle: self.handle, data: b"", scram: Some(key) };
        self.step(event::RESULT, 0, Some(ended))
    }

    /// The exchange goes on after [`Answer::Offload`].
    pub fn resume(&mut self) -> Answer {
        self.step(event::RESUME, 0, None)
    }

    fn step(&mut self, event: u32, flags: u32, ended: Option<Ended<'_>>) -> Answer {
        let mut scratch = vec![0; M::META.output_octets_max as usize + abi::DIAG_MAX as usize];
        let situation = Situation {
            event,
            message: &self.message,
            ended,
            entropy: &self.entropy,
            unix_ms: self.unix_ms,
            conn_flags: conn::TLS | flags | if self.plus_offered { conn::CB_SIBLING } else { 0 },
            channel_bindings: self.channel_bindings,
            server_name: self.server_name.as_bytes(),
        };
        let out = self.bench.step(&situation, &mut scratch);
        let of = |slice: abi::Slice| {
            let range = slice.off as usize..slice.off as usize + slice.len as usize;
            match slice.region {
                region::NONE => Vec::new(),
                region::MSG => self.message[range].to_vec(),
                region::OUT => scratch[..out.used as usize][range].to_vec(),
                region::STATE => self.bench.state(range),
                other => panic!("unknown region {other}"),
            }
        };
        let last = || (out.flags & out_flag::FINAL_DATA != 0).then(|| of(out.data));
        match out.action {
            action::CHALLENGE => Answer::Challenge(of(out.data)),
            action::SUCCESS => Answer::Success { data: last() },
            action::FAIL => {
                let reason = String::from_utf8_lossy(&of(out.diag)).into_owned();
                Answer::Failure { class: out.arg, reason, data: last() }
            }
            action::OFFLOAD => Answer::Offload,
            number => {
                let kind = EffectKind::from_abi(number).unwrap_or_else(|| panic!("unknown action {number}"));
                assert!(M::META.needs.contains(&kind), "{kind:?} is not in META.needs: the host would refuse it");
                self.asked = number;
                self.handle += 1;
                let (authcid, authzid) = (of(out.authcid), of(out.authzid));
                Answer::Effect { kind, arg: out.arg, authcid, authzid, data: of(out.data), data2: of(out.data2) }
            }
        }
    }
}
