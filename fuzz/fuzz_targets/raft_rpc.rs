//! Bytes as what a peer sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("raft_rpc").read)(bytes));
