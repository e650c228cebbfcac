#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| jumpvpn_fuzz::targets::standby_body(input));
