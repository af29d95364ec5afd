//! Bytes as what a caller shows: token, name, certificate.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("token").read)(bytes));
