//! What a listener's connections have in common.

use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, NamedGroup};

use crate::certificate::Pem;
use crate::client_certificate::Verifier;
use crate::error::CertificateError;
use crate::provider;
use crate::secret::Told;
use crate::store::CertificateStore;
use crate::ticket::{TicketKeys, Tickets};

/// The lowest TLS version that a listener speaks (RFC 8996: nothing older than 1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246, and 1.3.
    #[default]
    Tls12,
    /// RFC 8446 only.
    Tls13,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Default)]
pub enum ClientAuth<'a> {
    /// No.
    #[default]
    Off,
    /// Yes, but nobody is refused for want of one that verifies.
    Request {
        /// Authorities that issue to clients; without them every certificate is presented, none verified.
        authorities: Option<Pem<'a>>,
    },
    /// The handshake fails without one that verifies.
    Require {
        /// Authorities that issue to clients.
        authorities: Pem<'a>,
    },
}

/// What an operator chose for a listener.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// Role and name of the listener. Tickets pass between listeners, processes and nodes that agree in it.
    pub service: &'a str,
    /// The lowest version spoken.
    pub min_version: Version,
    /// Whether a ticket is sent (one) and honoured. Without one, a client that does not set TCP_NODELAY
    /// may wait 40 ms for its own delayed acknowledgement, since the server has nothing else to say.
    pub tickets: bool,
    /// Whether TLS 1.2 clients must know the extended master secret (RFC 7627). Some old mail servers do not.
    pub require_ems: bool,
    /// Whether the hybrid group X25519MLKEM768 is offered, where the cryptographic library has it.
    pub post_quantum: bool,
    /// Client certificates.
    pub client_auth: ClientAuth<'a>,
    /// Whether connections note what SASL exchanges can be bound to, see [`crate::TlsSession::channel_binding`].
    pub channel_binding: bool,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            service: "",
            min_version: Version::Tls12,
            tickets: true,
            require_ems: true,
            post_quantum: true,
            client_auth: ClientAuth::Off,
            channel_binding: false,
        }
    }
}

/// The TLS side of a listener; all its connections share it.
#[derive(Debug)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) channel_binding: bool,
}

impl ServerTls {
    /// Makes it; `certificates` and `keys` may be replaced at any time afterwards.
    pub fn new(
        settings: &Settings<'_>,
        certificates: Arc<CertificateStore>,
        keys: Arc<TicketKeys>,
    ) -> Result<Self, CertificateError> {
        let mut provider = provider::default_provider();
        if !settings.post_quantum {
            provider.kx_groups.retain(|group| !POST_QUANTUM.contains(&group.name()));
        }
        // Stable: behind it the order is the library's.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let versions: &[_] = match settings.min_version {
            Version::Tls12 => &[&TLS13, &TLS12],
            Version::Tls13 => &[&TLS13],
        };
        let (verifier, asks): (Arc<dyn rustls::server::danger::ClientCertVerifier>, _) = match settings.client_auth {
            ClientAuth::Off => (WebPkiClientVerifier::no_client_auth(), "off"),
            ClientAuth::Request { authorities } => {
                (Arc::new(Verifier::new(provider.clone(), authorities, false)?), "request")
            }
            ClientAuth::Require { authorities } => {
                (Arc::new(Verifier::new(provider.clone(), Some(authorities), true)?), "require")
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| CertificateError::Settings { cause: error.to_string() })?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificates);

        // RFC 7301: rustls answers `no_application_protocol` when a client offers others only, and takes no offense
        // at a client that offers none. So a browser cannot be made to talk to us in another's name.
        config.alpn_protocols = vec![b"smtp".to_vec()];
        config.require_ems = settings.require_ems;
        // OpenSSL and rustls put AES-256 first by habit, and SHA-384 comes with it: a quarter of a handshake's time (bench
        // `handshake`) for a key that nobody can guess either way. Who wants AES-256 offers nothing less.
        config.ignore_client_order = true;
        // No memory of sessions: several processes share a port, and tickets serve them all.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = usize::from(settings.tickets);
        if settings.tickets {
            // Who resumes is not asked for a certificate. So when asking for one is switched on, tickets of
            // the time before must not count.
            config.ticketer =
                Arc::new(Tickets::new(keys, format!("{}\nclient certificates: {asks}", settings.service)));
        }
        // What a client sends before its Finished can be replayed (RFC 8446 §8): AUTH must not be.
        config.max_early_data_size = 0;
        // An open TLS 1.3 connection is ours (`record.rs`): rustls hands its keys over.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Told { exporter: settings.channel_binding });
        Ok(Self { config: Arc::new(config), channel_binding: settings.channel_binding })
    }
}

const POST_QUANTUM: [NamedGroup; 2] = [NamedGroup::X25519MLKEM768, NamedGroup::secp256r1MLKEM768];
