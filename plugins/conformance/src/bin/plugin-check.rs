//! The kit without the program around it: `plugin-check FILE [SECONDS]`. The tests of this crate use it.
#![forbid(unsafe_code)]

use conformance::check::{Options, check};

fn main() {
    // A program that uses the kit is its own child.
    if conformance::child::requested() {
        conformance::child::main();
    }
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().expect("a file").into();
    let seconds = arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(2.0);
    let program = std::env::current_exe().expect("a path");
    let options = Options { program, file, mech: None, settings: None, vectors: None, seconds, seed: 1 };
    match check(&options, &mut |told| println!("{}", told.to_json())) {
        Ok(summary) => std::process::exit(i32::from(summary.failed > 0)),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    }
}
