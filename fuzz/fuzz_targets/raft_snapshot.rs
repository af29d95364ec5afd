//! Bytes as the file of a snapshot.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("raft_snapshot").read)(bytes));
