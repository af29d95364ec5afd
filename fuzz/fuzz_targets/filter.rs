//! Bytes as a filter of the list and of the history.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("filter").read)(bytes));
