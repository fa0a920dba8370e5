//! Criterion benches, one per layer: `cargo bench -p benches`. Figures are kept in `benches/record/`.
#![forbid(unsafe_code)]
