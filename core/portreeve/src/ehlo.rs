//! `portreeve check --print-ehlo LISTENER`: what its clients are offered, said by the session itself.

use sasl::ChannelBinding;
use smtp::Session;
use smtp::host::TlsFacts;
use smtp::listener::Tls;
use smtp::testing::World;

use crate::check::Checked;
use crate::config::ClientCert;
use crate::{backends, listeners, plugins};

/// The EHLO reply in clear and inside TLS.
pub fn print(checked: &Checked, name: &str) -> Result<String, String> {
    let config = &checked.config;
    let configured = config.listeners.iter().find(|listener| listener.name == name).ok_or_else(|| {
        let names: Vec<&str> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        format!("no listener is called {name:?}; there are: {}", names.join(", "))
    })?;
    let registry = plugins::load_here(&checked.libraries)?;
    let listener = listeners::build(config, configured, &registry, &[], &backends::outside(&checked.libraries))?;
    let facts = |client_certificate| TlsFacts {
        version: 0x0304,
        cipher: "TLS_AES_128_GCM_SHA256",
        group: "X25519",
        sni: "".into(),
        client_certificate,
        resumed: false,
        channel_bindings: 1 << ChannelBinding::TlsExporter as u32,
    };
    let verifies = configured.client_cert != ClientCert::Off && configured.client_ca.is_some();
    let mut text = String::new();
    for (title, tls) in [
        ("in clear", None),
        ("inside TLS", Some(facts(false))),
        ("inside TLS, with a verified certificate", Some(facts(true))),
    ] {
        let possible = match &tls {
            None => listener.tls != Tls::Implicit,
            Some(tls) => listener.tls != Tls::Off && (verifies || !tls.client_certificate),
        };
        if possible {
            let mut world = World::new();
            world.tls = tls;
            let mut session = Session::new();
            session.greet(&mut world.context(&listener));
            world.clear();
            let _ = session.receive(b"EHLO client.example\r\n", &mut world.context(&listener));
            text.push_str(&format!("{title}:\n{}\n", world.text().replace("\r\n", "\n")));
            session.end(&mut world.context(&listener));
        }
    }
    Ok(text)
}
