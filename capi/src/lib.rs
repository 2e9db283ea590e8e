//! The C interface of `mbconv`, of which `include/mbconv.h` is made.
//!
//! The rules for its callers stand at the head of the header, and each `SAFETY` comment here that
//! names them relies on nothing else.

#![allow(
    clippy::missing_safety_doc,
    reason = "the rules are the same for all functions and stand in the header"
)]

mod block;
mod layer;
mod memory;
mod op;
mod options;
mod plan;
mod status;
#[cfg(test)]
mod tests;

/// What this header describes. It changes only when a program compiled against an older one
/// would go wrong.
pub const MBCONV_ABI_VERSION: u32 = 1;

/// The `MBCONV_ABI_VERSION` of the library that is running.
#[unsafe(no_mangle)]
pub extern "C" fn mbconv_abi_version() -> u32 {
    MBCONV_ABI_VERSION
}
