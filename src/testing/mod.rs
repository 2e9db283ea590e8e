//! Property tests of kernels (feature `testing`): what to feed them, and how far from
//! the [reference](crate::reference) they may be.
//!
//! This crate's own tests are made of it; it serves any kernel that computes one of
//! these layers.
//!
//! - Strategies for [proptest]: [`shapes`], [`windows`], [`activations`], and whole
//!   layers with their weights, [`pointwise_layers`], [`depthwise_layers`],
//!   [`blocks`] and [`convnexts`]. A layer's numbers follow from a seed, so that it is its sizes that
//!   shrink. A layer owns its weights and lends them, as `params()`.
//! - [`Data`]: the numbers of weights and tensors, ordinary ones and such that show
//!   what is wrong.
//! - [`Bound`]: the largest error that a sum in f32 can have, element by element;
//!   [`same_numbers`] and [`same_bits`] where there must be none. Their error passes
//!   through `?` in a proptest.
//! - `assume_half_units`, on x86-64: what is chosen by the width of AVX-512's units.
//!
//! ```
//! use mbconv::testing::{Bound, Data, depthwise_layers, shapes};
//! use mbconv::{Depthwise, Error, reference};
//! use proptest::prelude::*;
//! use proptest::test_runner::TestRunner;
//!
//! let data = Data::Ordinary;
//! let cases = (shapes(2, 9), depthwise_layers(data), any::<u64>());
//! let mut runner = TestRunner::new(ProptestConfig::with_cases(20));
//! runner.run(&cases, |(shape, layer, seed)| {
//!     let params = layer.params();
//!     let x = data.tensor(seed, shape.elements(layer.channels)?);
//!     let expected = match reference::depthwise(&params, shape, &x) {
//!         Err(Error::EmptyOutput { .. }) => return Err(TestCaseError::reject("too small")),
//!         expected => expected?,
//!     };
//!     // The kernel under test:
//!     let mut y = vec![0.0; expected.len()];
//!     Depthwise::new(&params)?.plan(shape)?.run(&x, &mut y)?;
//!
//!     Bound::depthwise(&params, shape, &x)?.check(&expected, &y)?;
//!     Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bound;
mod data;
mod layers;
mod strategies;

pub use bound::{Bound, Mismatch, same_bits, same_numbers};
pub use data::{Data, Numbers, Random};
pub use layers::{
    Block, ConvLayer, ConvNext, DepthwiseLayer, First, Form, Gate, Norm, PointwiseLayer, Window,
};
pub use strategies::{
    activations, blocks, channels, convnexts, data, depthwise_layers, forms, multipliers,
    pointwise_layers, shapes, windows,
};

/// Has whatever runs from now on, in all threads, take the units of AVX-512 for 256 bits wide,
/// as Zen 4's are, or for 512. Only speed depends on it, no bit of a result.
///
/// ```
/// use mbconv::testing::{assume_half_units, same_bits};
/// use mbconv::{Pointwise, PointwiseParams, Shape};
///
/// let weights = [0.5; 3 * 24];
/// let plan = Pointwise::new(&PointwiseParams::new(3, 24, &weights))?.plan(Shape::new(1, 2, 2))?;
/// let run = |half| {
///     assume_half_units(half);
///     let mut y = vec![0.0; plan.output_len()];
///     plan.run(&[1.0; 12], &mut y).map(|()| y)
/// };
/// same_bits(&run(false)?, &run(true)?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(target_arch = "x86_64")]
pub fn assume_half_units(half: bool) {
    crate::simd::assume_half_units(half);
}
