//! The operations: build once, plan for a shape, run often.

pub(crate) mod bottleneck;
pub(crate) mod depthwise;
pub(crate) mod pointwise;

use crate::error::{Error, Result};

/// `expected` elements or an error that says both numbers.
fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::Length { what, expected, actual }) }
}
