//! The operations: build once, plan for a shape, run often.

pub(crate) mod block;
pub(crate) mod bottleneck;
pub(crate) mod convnext;
pub(crate) mod depthwise;
pub(crate) mod pointwise;
