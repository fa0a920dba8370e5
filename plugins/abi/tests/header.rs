//! The C header and its Rust mirror are one ABI: each C and C++ compiler of the machine must accept the
//! header without a warning and agree with Rust about every size, offset and constant. What was frozen
//! stays frozen: `layout-1.0.txt` is the golden file of the first release.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_plugin_abi as abi;

macro_rules! constants {
    ($( $c:ident = $rust:expr ),* $(,)?) => { &[ $( (stringify!($c), $rust as u64) ),* ] };
}

const CONSTANTS: &[(&str, u64)] = constants! {
    PRV_MAGIC = abi::MAGIC, PRV_ABI_MAJOR = abi::ABI_MAJOR, PRV_ABI_MINOR = abi::ABI_MINOR,
    PRV_NAME_MAX = abi::NAME_MAX, PRV_STATE_MAX = abi::STATE_MAX, PRV_ALIGN_MAX = abi::ALIGN_MAX,
    PRV_MESSAGE_MAX = abi::MESSAGE_MAX, PRV_OUTPUT_MAX = abi::OUTPUT_MAX, PRV_STEPS_MAX = abi::STEPS_MAX,
    PRV_DIAG_MAX = abi::DIAG_MAX, PRV_NOTE_TYPE = abi::NOTE_TYPE, PRV_NOTE_MAX = abi::NOTE_MAX,
    PRV_R_NONE = abi::region::NONE, PRV_R_MSG = abi::region::MSG, PRV_R_OUT = abi::region::OUT,
    PRV_R_STATE = abi::region::STATE,
    PRV_EV_START = abi::event::START, PRV_EV_MESSAGE = abi::event::MESSAGE, PRV_EV_RESULT = abi::event::RESULT,
    PRV_EV_RESUME = abi::event::RESUME,
    PRV_ACT_CHALLENGE = abi::action::CHALLENGE, PRV_ACT_SUCCESS = abi::action::SUCCESS,
    PRV_ACT_FAIL = abi::action::FAIL, PRV_ACT_OFFLOAD = abi::action::OFFLOAD,
    PRV_ACT_VERIFY_PASSWORD = abi::action::VERIFY_PASSWORD, PRV_ACT_FETCH_KEY = abi::action::FETCH_KEY,
    PRV_ACT_VERIFY_TOKEN = abi::action::VERIFY_TOKEN, PRV_ACT_VERIFY_EXTERNAL = abi::action::VERIFY_EXTERNAL,
    PRV_ACT_CHANNEL_BINDING = abi::action::CHANNEL_BINDING, PRV_ACT_BACKEND_CALL = abi::action::BACKEND_CALL,
    PRV_OK = abi::status::OK, PRV_DENIED = abi::status::DENIED, PRV_TEMPFAIL = abi::status::TEMPFAIL,
    PRV_UNSUPPORTED = abi::status::UNSUPPORTED, PRV_TRANSITION = abi::status::TRANSITION,
    PRV_EXPIRED = abi::status::EXPIRED,
    PRV_FAIL_CREDENTIALS = abi::fail::CREDENTIALS, PRV_FAIL_MALFORMED = abi::fail::MALFORMED,
    PRV_FAIL_TEMPORARY = abi::fail::TEMPORARY, PRV_FAIL_AUTHZ = abi::fail::AUTHZ,
    PRV_FAIL_TOO_WEAK = abi::fail::TOO_WEAK, PRV_FAIL_NEED_TLS = abi::fail::NEED_TLS,
    PRV_FAIL_TRANSITION = abi::fail::TRANSITION, PRV_FAIL_CBINDING = abi::fail::CBINDING,
    PRV_FAIL_EXPIRED = abi::fail::EXPIRED, PRV_FAIL_INTERNAL = abi::fail::INTERNAL,
    PRV_K_CLEARTEXT = abi::key::CLEARTEXT, PRV_K_SCRAM_SHA1 = abi::key::SCRAM_SHA1,
    PRV_K_SCRAM_SHA256 = abi::key::SCRAM_SHA256, PRV_K_SCRAM_SHA512 = abi::key::SCRAM_SHA512,
    PRV_K_DIGEST_MD5_HA1 = abi::key::DIGEST_MD5_HA1, PRV_K_CRAM_MD5_CTX = abi::key::CRAM_MD5_CTX,
    PRV_CB_TLS_EXPORTER = abi::binding::TLS_EXPORTER,
    PRV_CB_TLS_SERVER_END_POINT = abi::binding::TLS_SERVER_END_POINT,
    PRV_C_TLS = abi::conn::TLS, PRV_C_CLIENT_CERT = abi::conn::CLIENT_CERT,
    PRV_C_CB_SIBLING = abi::conn::CB_SIBLING, PRV_C_HAS_IR = abi::conn::HAS_IR,
    PRV_OUT_FINAL_DATA = abi::out_flag::FINAL_DATA, PRV_OUT_SELF_ASSERTED = abi::out_flag::SELF_ASSERTED,
    PRV_M_CLIENT_FIRST = abi::mech_flag::CLIENT_FIRST, PRV_M_SERVER_FIRST = abi::mech_flag::SERVER_FIRST,
    PRV_M_PLAINTEXT = abi::mech_flag::PLAINTEXT, PRV_M_NEEDS_TLS = abi::mech_flag::NEEDS_TLS,
    PRV_M_NEEDS_CERT = abi::mech_flag::NEEDS_CERT, PRV_M_CHANNEL_BIND = abi::mech_flag::CHANNEL_BIND,
    PRV_M_MUTUAL = abi::mech_flag::MUTUAL, PRV_M_ANONYMOUS = abi::mech_flag::ANONYMOUS,
    PRV_M_OBSOLETE = abi::mech_flag::OBSOLETE, PRV_M_ALLOW_NUL = abi::mech_flag::ALLOW_NUL,
    PRV_M_ENTROPY = abi::mech_flag::ENTROPY, PRV_M_POD_STATE = abi::mech_flag::POD_STATE,
    PRV_M_SELF_ASSERTS = abi::mech_flag::SELF_ASSERTS, PRV_M_OFFLOAD_ALL = abi::mech_flag::OFFLOAD_ALL,
    PRV_M_ONE_ROUNDTRIP = abi::mech_flag::ONE_ROUNDTRIP, PRV_M_UTF8 = abi::mech_flag::UTF8,
    PRV_M_MAY_OFFLOAD = abi::mech_flag::MAY_OFFLOAD,
    PRV_KV_TEXT = abi::kv::TEXT, PRV_KV_NUMBER = abi::kv::NUMBER, PRV_KV_BOOL = abi::kv::BOOL,
    PRV_KV_NULL = abi::kv::NULL,
    PRV_LOG_ERROR = abi::log::ERROR, PRV_LOG_WARNING = abi::log::WARNING, PRV_LOG_INFO = abi::log::INFO,
    PRV_LOG_DEBUG = abi::log::DEBUG, PRV_B_BLOCKING = abi::B_BLOCKING,
};

/// One line per size, offset and constant, as Rust sees them.
fn as_rust_sees_it() -> String {
    let mut text = String::new();
    for (name, size, fields) in abi::LAYOUT {
        writeln!(text, "{name} {size}").unwrap();
        for (field, offset) in *fields {
            writeln!(text, "{name}.{} {offset}", field.trim_start_matches("r#")).unwrap();
        }
    }
    for (name, value) in CONSTANTS {
        writeln!(text, "{name} {value}").unwrap();
    }
    text
}

/// A program that prints the same lines, as a C compiler sees them, and uses every macro and helper.
fn c_program() -> String {
    let mut c = String::from(
        "#include \"portreeve_plugin.h\"\n#include <stdio.h>\n\
         PRV_NOTE(\"{\\\"abi\\\":\\\"1.0\\\"}\");\n\
         const prv_plugin *portreeve_plugin_v1(const prv_host *h, char *e, size_t n) { (void)h; (void)e; (void)n; return NULL; }\n\
         int main(void) {\n  prv_entry_fn entry = portreeve_plugin_v1;\n  if (entry(NULL, NULL, 0)) return 1;\n  \
         if (PRV_NEED(PRV_ACT_FETCH_KEY) != 2 || PRV_CB_BIT(PRV_CB_TLS_SERVER_END_POINT) != 4) return 2;\n  \
         if (!prv_ct_eq(\"ab\", \"ab\", 2) || prv_ct_eq(\"ab\", \"ac\", 2)) return 3;\n",
    );
    for (name, _, fields) in abi::LAYOUT {
        writeln!(c, "  printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for (field, _) in *fields {
            let field = field.trim_start_matches("r#");
            writeln!(c, "  printf(\"{name}.{field} %zu\\n\", offsetof({name}, {field}));").unwrap();
        }
    }
    for (name, _) in CONSTANTS {
        writeln!(c, "  printf(\"{name} %llu\\n\", (unsigned long long)({name}));").unwrap();
    }
    c.push_str("  return 0;\n}\n");
    c
}

fn scratch_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("abi-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

const COMPILERS: [(&str, &str, &str); 4] =
    [("gcc", "c11", "c"), ("clang", "c11", "c"), ("g++", "c++17", "cc"), ("clang++", "c++17", "cc")];

#[test]
fn every_compiler_agrees_with_rust() {
    let dir = scratch_dir("living");
    let expected = as_rust_sees_it();
    let mut compiled = Vec::new();
    for (compiler, language, suffix) in COMPILERS {
        if Command::new(compiler).arg("--version").output().is_err() {
            continue;
        }
        let source = dir.join(format!("{compiler}.{suffix}"));
        std::fs::write(&source, c_program()).unwrap();
        let program = dir.join(compiler);
        let build = Command::new(compiler)
            .args([&format!("-std={language}"), "-Wall", "-Wextra", "-pedantic", "-Werror", "-I"])
            .arg(env!("CARGO_MANIFEST_DIR"))
            .arg("-o")
            .args([&program, &source])
            .output()
            .unwrap();
        assert!(build.status.success(), "{compiler}: {}", String::from_utf8_lossy(&build.stderr));
        let run = Command::new(&program).output().unwrap();
        assert!(run.status.success(), "{compiler}: {:?}", run.status);
        for (c, rust) in std::str::from_utf8(&run.stdout).unwrap().lines().zip(expected.lines()) {
            assert_eq!(c, rust, "{compiler} (left) and Rust (right) disagree");
        }
        assert_eq!(std::str::from_utf8(&run.stdout).unwrap(), expected, "{compiler}");
        compiled.push(compiler);
    }
    std::fs::remove_dir_all(dir).unwrap();
    assert!(!compiled.is_empty(), "no C compiler found: install gcc or clang");
}

/// Structs and constants of the header that the lists above forgot would go unchecked.
#[test]
fn nothing_of_the_header_is_left_out() {
    for line in abi::HEADER.lines() {
        if let Some(name) = line.strip_prefix("typedef struct ").and_then(|rest| rest.split([' ', '{']).next()) {
            assert!(abi::LAYOUT.iter().any(|(c, ..)| *c == name), "{name} has no Rust mirror");
        }
    }
    let not_numbers = [
        "PRV_NEED",
        "PRV_CB_BIT",
        "PRV_KV_AT",
        "PRV_EXPORT",
        "PRV_NOTE",
        "PRV_NOTE_OWNER",
        "PRV_ACT_",
        "PRV_M_",
        "PRV_OUT_",
    ];
    for name in abi::HEADER.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("PRV_")) {
        let known = not_numbers.contains(&name) || CONSTANTS.iter().any(|(c, _)| *c == name);
        assert!(known, "{name} is not compared");
    }
}

/// The header of each minor that was released, and the sizes, offsets and constants that it had.
fn frozen() -> Vec<(PathBuf, String)> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let minors = std::fs::read_dir(home).unwrap().flatten().map(|entry| entry.path());
    let minors = minors.filter(|path| path.join("portreeve_plugin.h").is_file());
    let golden = |path: PathBuf| {
        let minor = path.file_name().unwrap().to_str().unwrap().trim_start_matches('v').to_owned();
        let golden = std::fs::read_to_string(home.join(format!("layout-{minor}.txt"))).unwrap();
        (path, golden)
    };
    minors.map(golden).collect()
}

/// Plugins are built with the header of their time: it stays as good as it was.
#[cfg(target_pointer_width = "64")]
#[test]
fn frozen_headers_compile_and_say_what_they_said() {
    let dir = scratch_dir("frozen");
    let frozen = frozen();
    assert!(frozen.iter().any(|(path, _)| path.ends_with("v1.0")));
    for (path, golden) in frozen {
        assert!(golden.lines().count() > 200, "the golden file is incomplete");
        let mut c = String::from("#include \"portreeve_plugin.h\"\n#include <stdio.h>\nint main(void) {\n");
        for line in golden.lines() {
            let name = line.split(' ').next().unwrap();
            let value = match name.split_once('.') {
                Some((structure, field)) => format!("offsetof({structure}, {field})"),
                None if name.starts_with("prv_") => format!("sizeof({name})"),
                None => name.to_owned(),
            };
            writeln!(c, "  printf(\"{name} %llu\\n\", (unsigned long long)({value}));").unwrap();
        }
        c.push_str("  return 0;\n}\n");
        for (compiler, language, suffix) in COMPILERS {
            if Command::new(compiler).arg("--version").output().is_err() {
                continue;
            }
            let source = dir.join(format!("frozen-{compiler}.{suffix}"));
            std::fs::write(&source, &c).unwrap();
            let program = dir.join(format!("frozen-{compiler}"));
            let build = Command::new(compiler)
                .args([&format!("-std={language}"), "-Wall", "-Wextra", "-pedantic", "-Werror", "-I"])
                .arg(&path)
                .arg("-o")
                .args([&program, &source])
                .output()
                .unwrap();
            assert!(build.status.success(), "{compiler}: {}", String::from_utf8_lossy(&build.stderr));
            let run = Command::new(&program).output().unwrap();
            assert_eq!(std::str::from_utf8(&run.stdout).unwrap(), golden, "{compiler}, {}", path.display());
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// A later minor appends: what a plugin of an earlier one wrote lies where the host looks for it.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_living_header_only_appends() {
    let now = as_rust_sees_it();
    let now: std::collections::BTreeMap<&str, u64> = now.lines().map(name_and_value).collect();
    for (path, golden) in frozen() {
        for (name, then) in golden.lines().map(name_and_value) {
            let path = path.display();
            let now = *now.get(name).unwrap_or_else(|| panic!("{path} has {name}, and it may not go"));
            let may_grow = name == "PRV_ABI_MINOR" || (name.starts_with("prv_") && !name.contains('.'));
            assert!(now == then || (may_grow && now > then), "{path}: {name} was {then} and is {now}");
        }
    }
}

#[cfg(target_pointer_width = "64")]
fn name_and_value(line: &str) -> (&str, u64) {
    let (name, value) = line.split_once(' ').unwrap();
    (name, value.parse().unwrap())
}
