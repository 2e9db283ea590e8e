//! mbconv's kernels as [candle](https://github.com/huggingface/candle) modules, for inference in
//! f32 on CPUs.
//!
//! [`InvertedBottleneck`], [`ConvNextBlock`], [`DepthwiseConv2d`] and [`PointwiseConv2d`] are made of candle's own
//! convolutions and batch normalisations ([`Conv`]), or loaded from a `VarBuilder` by the names
//! that torchvision and timm use ([`BlockConfig`]). Batch normalisations are folded, activations
//! fused, weights packed once; plans are made at the first input of each shape and kept.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::VarBuilder;
//! use mbconv_candle::{BlockConfig, InvertedBottleneck};
//!
//! # fn main() -> candle_core::Result<()> {
//! // features.2 of torchvision's MobileNetV2; zeros stand for a file here.
//! let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
//! let config = BlockConfig::new(16, 96, 24).stride(2);
//! let block = InvertedBottleneck::torchvision(&config, vb.pp("features.2"))?;
//! let x = Tensor::ones((1, 16, 112, 112), DType::F32, &Device::Cpu)?;
//! assert_eq!(block.forward(&x)?.dims4()?, (1, 24, 56, 56));
//! # Ok(())
//! # }
//! ```
//!
//! # What can be relied on
//!
//! - Inputs are `[batch, channels, height, width]`. Those whose channels or whose columns lie
//!   together are read where they are, with whatever strides the other axes have: crops, slices of
//!   channels, channels-last views. Others are copied first.
//! - Outputs are contiguous. With `channels_last(true)` they are a view of channels-last memory,
//!   which the next of these modules reads faster.
//! - A run is cut into as many tasks as candle has threads (`CANDLE_NUM_THREADS`, else
//!   `RAYON_NUM_THREADS`) and goes to candle's pool. The result is the same bit for bit for any number.
//! - There is no backward pass: `backward` through one of these modules is an error, never a
//!   gradient that is missing.
//! - Another element type or device is an error. Weights of other types are converted.

#![warn(unreachable_pub, clippy::unwrap_used)]

mod conv;
mod layer;
mod module;

pub use conv::Conv;
pub use mbconv::Activation;
pub use module::{
    BlockConfig, BottleneckConvs, ConvNextBlock, DepthwiseConv2d, InvertedBottleneck,
    PointwiseConv2d,
};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
