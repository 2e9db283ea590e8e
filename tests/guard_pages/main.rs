//! Nothing is touched outside the slices, not by one byte: input, residual, weights,
//! bias, scratch and output each end at a page that nobody may touch, then each begin
//! behind one, then 4 bytes later. So does what operations pack.
//!
//! Memory that is touched there ends the process. To find the case, run once more with
//! the seed that the run has printed, one test at a time, each case printed before it
//! runs:
//!
//! `PROPTEST_RNG_SEED=... MBCONV_TRACE=1 cargo test --test guard_pages -- --test-threads=1`
//!
//! `PROPTEST_CASES=5000 cargo test --release --test guard_pages` is the long form.

#![allow(unsafe_code, reason = "an allocator, and a byte that must not be touched")]

#[cfg(unix)]
mod cases;
#[cfg(unix)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(unix)]
mod guarded;

#[cfg(not(unix))]
#[test]
fn nothing_is_tested() {
    println!("SKIPPED guard_pages: pages are mapped as Unix does it");
}
