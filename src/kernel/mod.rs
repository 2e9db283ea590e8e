//! Inner loops, each written once and generic over [`Lanes`](crate::simd::Lanes).
//!
//! Functions here work on raw pointers; the operations establish what those
//! must be valid for, once, before the first tile.

#![allow(unsafe_code, reason = "the kernels walk raw pointers that the operations have checked")]
#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays of sums are more code to compile, and do not always unroll"
)]

pub(crate) mod activate;
pub(crate) mod bottleneck;
pub(crate) mod depthwise;
pub(crate) mod normalise;
pub(crate) mod parts;
#[cfg(feature = "std")]
pub(crate) mod peak;
pub(crate) mod pointwise;
pub(crate) mod pointwise_layer;
pub(crate) mod stem;
pub(crate) mod transpose;
