#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| snapshot::image::fuzzing::headers(bytes));
