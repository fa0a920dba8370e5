//! What is charged to a limit: an address's prefix, an account, or both.

use std::net::{IpAddr, Ipv6Addr};

use limits::{Rate, Subject};
use smtp::host::{Allowance, Charge};
use telemetry::Counter;

use super::TurnHost;

impl TurnHost<'_> {
    pub(super) fn charged(&mut self, charge: Charge<'_>) -> Allowance {
        let (ip, now_ms) = (self.peer.ip, self.local.now.ms);
        let (limits, config) = (&self.shared.limits, &self.port.limits);
        let exempt = self.peer.exempt;
        let subject = self.account.map_or(Subject::Prefix(ip), Subject::Account);
        let permitted = match charge {
            Charge::AuthAttempt => {
                self.local.heard_credentials();
                self.local.watch.add(Counter::AuthAttempts, 1);
                // What cannot be recorded is not done (DECISIONS C15).
                let permitted = self.local.watch.may_begin() && (exempt || limits.auth_attempt(config, ip, now_ms));
                self.local.watch.add(Counter::AuthLimited, u64::from(!permitted));
                permitted
            }
            Charge::AuthFailure { authcid } if !exempt => {
                let jitter = u32::from_le_bytes(self.local.entropy.take());
                return Allowance::Delay(limits.auth_failed(ip, self.shared.account(authcid), now_ms, jitter));
            }
            Charge::AuthSuccess { authcid } if !exempt => {
                limits.auth_succeeded(ip, self.shared.account(authcid), now_ms);
                true
            }
            Charge::AuthFailure { .. } | Charge::AuthSuccess { .. } => true,
            Charge::Message => {
                let per_minute = config.messages_per_minute;
                self.local.watch.may_begin() && (exempt || limits.charge(Rate::Message, subject, per_minute, now_ms))
            }
            Charge::AnonymousMessage => {
                // Apart from what the same place does by name.
                let subject = Subject::Account(self.shared.account(format!("\0anonymous {}", place(ip)).as_bytes()));
                exempt || limits.charge(Rate::Message, subject, config.anonymous_per_minute, now_ms)
            }
            Charge::Recipient => {
                exempt || limits.charge(Rate::Recipient, subject, config.recipients_per_minute, now_ms)
            }
        };
        if permitted { Allowance::Permit } else { Allowance::Refuse }
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: whoever has one of its addresses has all.
fn place(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !0 << 64)),
        v4 => v4,
    }
}
