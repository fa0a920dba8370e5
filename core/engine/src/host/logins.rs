//! What a SASL mechanism asks: a remembered password is answered at once, the connection's own facts too, all else by
//! the directory, which holds the users file and asks the back ends of libraries.
//!
//! ```text
//! login ─► ChannelBinding: the TLS of this connection
//!       ─► a back end of a library: ask_outside  ─┐
//!       ─► the users file: ask_users ─────────────┴► VerifyPassword: remembered? ─► the directory
//! ```

use link::directory::{CertificateFields, Question};
use sasl::{EffectKind, Status};
use smtp::host::Outcome;
use telemetry::Counter;
use tls::ClientIdentity;

use super::TurnHost;
use crate::cache::Tag;
use crate::questions::{Asked, sasl_outcome};

impl<'a> TurnHost<'a> {
    pub(super) fn login(&mut self, mechanism: &str, effect: sasl::Effect<'_>) -> Option<Outcome> {
        self.local.heard_credentials();
        match (effect, &self.port.backend) {
            (sasl::Effect::ChannelBinding { kind }, _) => Some(self.channel_binding(kind)),
            (effect, Some(backend)) => self.ask_outside(backend, mechanism, effect),
            // A mechanism may call the back end of its own library wherever it is offered.
            (effect @ sasl::Effect::BackendCall { .. }, None) => self.ask_outside("", mechanism, effect),
            (effect, None) => self.ask_users(mechanism, effect),
        }
    }

    /// Who is it that a mechanism has proven by itself?
    pub(super) fn assertion(&mut self, mechanism: &str, authcid: &[u8], authzid: &[u8]) -> Option<Outcome> {
        self.local.secret = true;
        let (listener, client_ip) = (&*self.port.listener.name, self.peer.ip);
        self.ask(&Question::Asserted { listener, client_ip, mechanism, authcid, authzid }, Asked::Asserted)
    }

    fn channel_binding(&self, kind: sasl::ChannelBinding) -> Outcome {
        let binding = self.tls.and_then(|tls| tls.session.channel_binding(crate::connection::binding(kind)));
        let status = if binding.is_some() { Status::Ok } else { Status::Unsupported };
        let mut outcome = sasl_outcome(status);
        outcome.data.set(binding.unwrap_or_default());
        Outcome::Sasl(outcome)
    }

    /// Asks the users file.
    fn ask_users(&mut self, mechanism: &str, effect: sasl::Effect<'_>) -> Option<Outcome> {
        let (listener, client_ip) = (&*self.port.listener.name, self.peer.ip);
        match effect {
            sasl::Effect::VerifyPassword { authcid, authzid, password } => {
                let question = Question::VerifyPassword { listener, client_ip, mechanism, authcid, authzid, password };
                let tag = self.shared.passwords.tag("", mechanism, authcid, authzid, password);
                self.remembered(tag).or_else(|| self.ask(&question, Asked::Password(tag)))
            }
            sasl::Effect::FetchKey { kind, authcid, authzid, realm } => {
                let kind = kind as u32;
                let question = Question::FetchKey { listener, client_ip, mechanism, kind, authcid, authzid, realm };
                self.ask(&question, Asked::Key)
            }
            sasl::Effect::VerifyExternal { authzid } => {
                let Some(certificate) = self.certificate() else { return refused(Status::Denied) };
                let certificate = CertificateFields {
                    spki_sha256: &certificate.spki_sha256,
                    mail: certificate.mail.iter().map(String::as_str).collect(),
                    uris: certificate.uris.iter().map(String::as_str).collect(),
                    common_names: certificate.common_names.iter().map(String::as_str).collect(),
                };
                let question = Question::VerifyExternal { listener, client_ip, mechanism, authzid, certificate };
                self.ask(&question, Asked::External)
            }
            // The port that a client says it connected to was compared with ours by the session.
            sasl::Effect::VerifyToken { token, authzid, fields: _ } => {
                let question = Question::VerifyToken { listener, client_ip, mechanism, authzid, token };
                self.ask(&question, Asked::Token)
            }
            // Neither is a question about users.
            sasl::Effect::BackendCall { .. } | sasl::Effect::ChannelBinding { .. } => refused(Status::Unsupported),
        }
    }

    /// Asks a back end of a library.
    fn ask_outside(&mut self, backend: &str, mechanism: &str, effect: sasl::Effect<'_>) -> Option<Outcome> {
        let none: &[u8] = b"";
        let kind = effect.kind();
        let names;
        // [authcid, authzid, data, data2, service] as `prv_request` has them.
        let (arg, [authcid, authzid, data, data2, service]) = match effect {
            sasl::Effect::VerifyPassword { authcid, authzid, password } => {
                (0, [authcid, authzid, password, none, none])
            }
            sasl::Effect::FetchKey { kind, authcid, authzid, realm } => {
                (kind as u32, [authcid, authzid, realm, none, none])
            }
            sasl::Effect::VerifyToken { token, authzid, fields } => (0, [none, authzid, token, fields, none]),
            sasl::Effect::VerifyExternal { authzid } => {
                let Some(certificate) = self.certificate() else { return refused(Status::Denied) };
                names = names_of(certificate);
                (0, [none, authzid, &certificate.spki_sha256, &names, none])
            }
            sasl::Effect::BackendCall { service, request } => (0, [none, none, request, none, service]),
            sasl::Effect::ChannelBinding { .. } => return refused(Status::Unsupported),
        };
        // PRV_C_TLS, PRV_C_CLIENT_CERT.
        let facts = self.tls.and_then(|tls| tls.facts.as_ref());
        let certified = facts.is_some_and(|facts| facts.client_certificate);
        let effect = link::backend::Effect {
            effect: kind as u32,
            arg,
            conn_flags: u32::from(self.tls.is_some()) | u32::from(certified) << 1,
            tls_version: facts.map_or(0, |facts| facts.version),
            session: self.id.0,
            client_ip: self.peer.ip,
            mechanism,
            listener: &self.port.listener.name,
            sni: facts.map_or("", |facts| &facts.sni),
            authcid,
            authzid,
            data,
            data2,
            service,
        };
        let question = Question::Backend { backend, effect };
        if kind != EffectKind::VerifyPassword {
            return self.ask(&question, Asked::Key);
        }
        let tag = self.shared.passwords.tag(backend, mechanism, authcid, authzid, data);
        self.remembered(tag).or_else(|| self.ask(&question, Asked::Password(tag)))
    }

    /// What is remembered of a password.
    fn remembered(&mut self, tag: Tag) -> Option<Outcome> {
        let identity = self.shared.passwords.find(tag, self.local.watch.epoch(), self.local.now.ms)?;
        self.local.watch.add(Counter::DirectoryCacheHits, 1);
        let mut outcome = sasl_outcome(Status::Ok);
        outcome.identity = Some(identity);
        Some(Outcome::Sasl(outcome))
    }

    /// What the client's certificate says, where there is a verified one.
    fn certificate(&self) -> Option<&'a ClientIdentity> {
        self.tls.and_then(|tls| tls.session.client_identity())
    }
}

fn refused(status: Status) -> Option<Outcome> {
    Some(Outcome::Sasl(sasl_outcome(status)))
}

/// `kind=name`, each ended by 0x01, as back ends of libraries read them.
fn names_of(certificate: &ClientIdentity) -> Vec<u8> {
    let mut text = Vec::new();
    let all = [("mail", &certificate.mail), ("uri", &certificate.uris), ("cn", &certificate.common_names)];
    for (kind, names) in all {
        // A name with a control character would look like two.
        for name in names.iter().filter(|name| !name.contains(char::is_control)) {
            text.extend_from_slice(format!("{kind}={name}\x01").as_bytes());
        }
    }
    text
}
