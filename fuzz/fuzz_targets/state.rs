//! Bytes as a machine's state in a snapshot.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("state").read)(bytes));
