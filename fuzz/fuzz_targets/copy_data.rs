//! Bytes as a COPY and its rows.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("copy_data").read)(
    bytes
));
