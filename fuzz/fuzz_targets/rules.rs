//! Bytes as a rules file.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("rules").read)(bytes));
