//! Any bytes as a block case: an error or a run, never a panic.
#![no_main]

#[path = "../../examples/support/case.rs"]
mod case;

use case::layout::Layouts;
use libfuzzer_sys::fuzz_target;
use mbconv::{Isa, PlanOptions, Serial};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(case) = case::Case::parse(bytes) {
        for isa in Isa::available() {
            let _ = case.run(&Serial, isa, &PlanOptions::new(), Layouts::NHWC);
        }
    }
});
