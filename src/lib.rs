//! SIMD kernels for the inverted bottleneck of mobile networks.
//!
//! # The idea
//!
//! MobileNetV2's block (Sandler et al. 2018) is thin at both ends and `t` times
//! wider in the middle: a 1x1 convolution expands, a depthwise one filters, a
//! 1x1 one projects back, and the input is added. The wide middle is what
//! leaves the cache when the three run one after the other.
//! [`InvertedBottleneck`] runs them together, band of rows by band of rows, so
//! that the expanded tensor exists only as a tile in the cache; [`Pointwise`]
//! and [`Depthwise`] are the parts alone.
//!
//! # How it is used
//!
//! Describe a layer with the weights as you hold them ([`PointwiseParams`],
//! [`DepthwiseParams`], [`BottleneckParams`]), build the operation once, which
//! checks everything and packs the weights, [`plan`](InvertedBottleneck::plan)
//! it for a [`Shape`], and run the plan often. `run` takes `&self`, allocates
//! nothing and fails only on slices of the wrong length. [`InvertedBottleneck`]
//! has a whole example.
//!
//! # What can be relied on
//!
//! - Tensors are plain slices, NHWC or NCHW ([`Layout`]), dense or with [`Strides`].
//!   Nothing is read or written outside them, not by one byte.
//! - For one instruction set the result is the same bit for bit, whatever the
//!   schedule: fused, unfused, any tile, any batch, any number of tasks.
//! - NaN in an input or weight makes every output that sums it NaN;
//!   activations keep NaN. A padded tap contributes nothing, whatever its
//!   weight. The sign of a zero result and the bits of a NaN are not specified.
//! - Errors are found before any work and hold the numbers ([`Error`]).
//! - Every operation and plan is `Send + Sync` and cheap to clone.
//!
//! # Threads
//!
//! A plan is cut into as many tasks as [`PlanOptions::threads`] says, and
//! `run_with` hands them to an [`Executor`]: five lines over any pool. The crate
//! starts no threads.
//!
//! # Instruction sets
//!
//! [`Isa::detect`] takes the best of AVX-512, AVX2 with FMA, NEON and a portable
//! fallback that this CPU has; the environment variable `MBCONV_ISA` or a
//! `with_isa` constructor narrows it.
//!
//! # Features
//!
//! `std` (default): `MBCONV_ISA`, cache sizes from Linux where no CPUID tells them,
//! `measure_peak`. Without it the crate is `no_std` with `alloc`. `rayon`: the
//! executor `Rayon`. `testing`: the module `testing`, for property tests of kernels.

#![no_std]
#![warn(unreachable_pub, clippy::std_instead_of_core, clippy::unwrap_used)]
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::panic, clippy::unreachable))]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod activation;
mod buffer;
mod error;
mod executor;
mod fold;
mod isa;
mod kernel;
mod layout;
mod op;
mod pack;
mod params;
#[cfg(feature = "std")]
mod peak;
pub mod reference;
mod schedule;
mod shape;
mod simd;
mod split;
#[cfg(feature = "testing")]
pub mod testing;

pub use activation::Activation;
pub use buffer::Scratch;
pub use error::{Error, Result};
#[cfg(feature = "rayon")]
pub use executor::Rayon;
pub use executor::{Executor, Serial};
pub use fold::{BatchNorm, ChannelAxis, fold_batch_norm};
pub use isa::Isa;
pub use layout::{Layout, Strides};
pub use op::block::BottleneckPlan;
pub use op::bottleneck::{DepthwiseSeparable, InvertedBottleneck};
pub use op::convnext::ConvNextBlock;
pub use op::depthwise::{Depthwise, DepthwisePlan};
pub use op::pointwise::{Pointwise, PointwisePlan};
pub use params::{
    BottleneckParams, ConvNextParams, ConvParams, DepthwiseParams, LayerNormParams,
    PointwiseParams, Residual, SqueezeExciteParams,
};
#[cfg(feature = "std")]
pub use peak::measure_peak;
pub use schedule::{Caches, PlanOptions, Schedule};
pub use shape::{Padding, Shape};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those for engines.
#[cfg(doctest)]
#[doc = include_str!("../docs/integrating.md")]
struct Integrating;
