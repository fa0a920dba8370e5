//! What docs/plugin-abi.md says of rules and sizes is what the code says.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap()
}

#[test]
fn the_reference_has_every_rule() {
    let page = page("plugin-abi.md");
    for rule in conformance::rules::RULES {
        assert!(page.contains(&format!("\n| {} | {} |\n", rule.id, rule.what)), "{}: {}", rule.id, rule.what);
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn the_reference_has_every_size() {
    let page = page("plugin-abi.md");
    for (name, size, _) in portreeve_plugin_abi::LAYOUT {
        assert!(page.contains(&format!("| `{name}` | {size} |")), "{name} has {size} octets");
    }
}

#[test]
fn links_lead_somewhere() {
    for name in ["plugin-abi.md", "mechanisms.md", "threat-model.md"] {
        for link in page(name).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(if path.is_empty() {
                name
            } else {
                path
            });
            assert!(file.exists(), "{name}: {link}");
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(file).unwrap().to_lowercase().replace(' ', "-");
                assert!(text.contains(&format!("#-{anchor}\n")), "{name}: {link}");
            }
        }
    }
}
