//! The holdfast command: one file a subcommand.
fn main() {}
