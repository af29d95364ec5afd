//! Bytes as the configuration file of every role.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| holdfast_cli::read_configuration(bytes));
