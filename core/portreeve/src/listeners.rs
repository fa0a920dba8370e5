//! From a listener of the configuration to one that sessions use.

use std::sync::Arc;

use plugin_host::{Registry, RemoteLibrary};
use policy::{Recipients, RolePolicy, Settings};
use sasl::{Mechanism, MechanismName, Traits, flag};
use smtp::listener::{AuthOffer, Limits, Listener};

use crate::backends::{self, Outside};
use crate::config::{self, Config};

/// Makes it, with mechanisms of the loaded libraries.
pub fn build(
    config: &Config,
    listener: &config::Listener,
    registry: &Registry,
    runners: &[Arc<RemoteLibrary>],
    outside: &[Outside],
) -> Result<Listener, String> {
    let mut offered = Vec::new();
    if listener.auth != AuthOffer::Off && listener.mechanisms_auto {
        offered = possible(config, listener, registry, runners, outside)?;
    } else if listener.auth != AuthOffer::Off {
        for name in &listener.mechanisms {
            let told = |why: String| format!("listener {:?}: {why}", listener.name);
            let name = MechanismName::parse(name.as_bytes()).ok_or_else(|| told(format!("{name} is no mechanism")))?;
            let mut remote = runners.iter().flat_map(|library| &library.mechanisms);
            if let Some(mechanism) = remote.find(|mechanism| *sasl::Mechanism::name(&***mechanism) == name) {
                offered.push(Arc::clone(mechanism) as Arc<dyn sasl::Mechanism>);
                continue;
            }
            let mechanism = registry.mechanism(&name, config.settings(name.as_str()));
            let mechanism = mechanism.map_err(|error| told(error.to_string()))?;
            // What nobody here can verify is not offered.
            let library = registry.list().into_iter().find(|one| one.mechanisms.iter().any(|it| it.name == name));
            let library = library.map(|library| library.id).unwrap_or_default();
            if mechanism.traits().needs & !backends::served(config, &listener.backend, &library, outside) == 0 {
                offered.push(mechanism);
            }
        }
    }
    strongest_first(&mut offered);
    let limits = &config.limits;
    Ok(Listener {
        name: listener.name.clone(),
        role: listener.role,
        hostname: config.hostname_of(listener),
        ports: listener.bind.iter().map(|bind| bind.port()).chain(listener.public_port).collect(),
        tls: listener.tls,
        require_tls: listener.require_tls,
        require_auth: listener.require_auth,
        auth: listener.auth,
        anonymous: listener.anonymous,
        mechanisms: offered,
        limits: Limits {
            line_octets_max: limits.max_line,
            sasl_line_octets_max: limits.sasl_line_octets_max,
            message_octets_max: listener.max_size,
            anonymous_octets_max: limits.anonymous_size,
            recipients_max: listener.max_rcpt,
            messages_max: limits.max_messages,
            errors_max: limits.max_errors,
            idle_commands_max: limits.max_idle_commands,
            auth_failures_max: limits.auth_failures,
            received_max: limits.max_received,
            ..Limits::default()
        },
        sender_envelope: listener.identity_envelope,
        sender_header: listener.identity_header,
        fixups: listener.fixups,
        hide_client: listener.hide_client,
        trust_auth_param_from: listener.trust_auth_param_from.clone(),
        starttls_trailing: listener.starttls_trailing,
        sync_violation: listener.sync_violation,
        chunking: listener.chunking,
        smtputf8: listener.smtputf8,
        data_loss: config.loses_data(),
        policy: Box::new(RolePolicy::new(Settings {
            role: listener.role,
            domains: listener.domains.clone(),
            recipients: if listener.any_recipient { Recipients::Any } else { Recipients::Directory },
            sender_envelope: listener.identity_envelope,
            sender_header: listener.identity_header,
        })),
    })
}

/// Clients take the first that they know (RFC 4954 §3 leaves the order to us). What runs in another process says
/// how strong it is later: it stays behind the one that the operator wrote before it.
fn strongest_first(mechanisms: &mut Vec<Arc<dyn sasl::Mechanism>>) {
    let mut strength = u32::MAX;
    let mut keyed: Vec<_> = std::mem::take(mechanisms)
        .into_iter()
        .map(|mechanism| {
            strength = if mechanism.runner().is_none() { mechanism.traits().strength } else { strength };
            (std::cmp::Reverse(strength), mechanism)
        })
        .collect();
    keyed.sort_by_key(|(strength, _)| *strength);
    mechanisms.extend(keyed.into_iter().map(|(_, mechanism)| mechanism));
}

/// Every mechanism that the listener's back end can serve, strongest first. Historic ones and those that grant no
/// identity are offered only when they are named.
fn possible(
    config: &Config,
    listener: &config::Listener,
    registry: &Registry,
    runners: &[Arc<RemoteLibrary>],
    outside: &[Outside],
) -> Result<Vec<Arc<dyn Mechanism>>, String> {
    const BY_NAME: u32 = flag::OBSOLETE | flag::ANONYMOUS | flag::SELF_ASSERTS;
    let serves = |library: &str, traits: &Traits| {
        traits.flags & BY_NAME == 0
            && traits.needs & !backends::served(config, &listener.backend, library, outside) == 0
    };
    let mut offered: Vec<Arc<dyn Mechanism>> = Vec::new();
    for library in registry.list() {
        // Those of a process are below.
        for one in library.mechanisms.iter().filter(|one| serves(&library.id, &one.traits)) {
            let made = registry.mechanism(&one.name, config.settings(one.name.as_str()));
            offered.push(made.map_err(|error| format!("listener {:?}: {error}", listener.name))?);
        }
    }
    for library in runners {
        // What has not described itself yet is not offered before the next reload.
        let known = library.mechanisms.iter().filter(|one| one.traits().steps_max > 0);
        let known = known.filter(|one| serves(&library.id, one.traits()));
        offered.extend(known.map(|one| Arc::clone(one) as Arc<dyn Mechanism>));
    }
    offered.sort_by_key(|one| (std::cmp::Reverse(one.traits().strength), one.name().as_str().to_owned()));
    Ok(offered)
}
