//! What has been proven in an exchange: each effect that ended well is an entry. A mechanism names an entry by its
//! position, counted from 1; it cannot make one.

use std::sync::Arc;

use sasl::Proof;

use crate::host::{Account, Identity, SaslOutcome};

#[derive(Default)]
pub(super) struct Ledger(Vec<Entry>);

/// A proof.
pub(super) struct Entry {
    /// The user does not exist; what was proven is only that the client knows the decoy, which cannot be.
    pub doomed: bool,
    pub identity: Option<Arc<Identity>>,
    pub account: Account,
}

impl Ledger {
    /// An effect has ended well.
    pub(super) fn enter(&mut self, outcome: &SaslOutcome) {
        self.0.push(Entry { doomed: outcome.doomed, identity: outcome.identity.clone(), account: outcome.account });
    }

    /// How the last entry is named.
    pub(super) fn last(&self) -> Proof {
        Proof(self.0.len() as u32)
    }

    pub(super) fn entry(&self, proof: Proof) -> Option<&Entry> {
        (proof.0 as usize).checked_sub(1).and_then(|at| self.0.get(at))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
