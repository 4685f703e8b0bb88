#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = (hop3_fuzz::find("frames").body)(data);
});
