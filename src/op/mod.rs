//! The operations: build once, plan for a shape, run often.

pub(crate) mod bottleneck;
pub(crate) mod depthwise;
pub(crate) mod pointwise;
