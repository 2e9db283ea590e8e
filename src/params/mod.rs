//! A layer as its user holds it: shapes and borrowed weights, before packing.

mod block;

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::shape::{Padding, Window, elements};
pub use block::{BottleneckParams, ConvNextParams, LayerNormParams, Residual, SqueezeExciteParams};
pub(crate) use block::{First, check_residual};

fn check_length(what: &'static str, expected: usize, slice: &[f32]) -> Result<()> {
    if slice.len() == expected {
        Ok(())
    } else {
        Err(Error::Length { what, expected, actual: slice.len() })
    }
}

fn check_nonzero(what: &'static str, n: usize) -> Result<()> {
    if n == 0 { Err(Error::ZeroSize { what }) } else { Ok(()) }
}

/// What errors call the sizes and slices of a 1x1 convolution.
pub(crate) struct Names {
    inputs: &'static str,
    outputs: &'static str,
    weights: &'static str,
    bias: &'static str,
}

macro_rules! names {
    ($name:literal) => {
        Names {
            inputs: concat!($name, " input channels"),
            outputs: concat!($name, " output channels"),
            weights: concat!($name, " weights"),
            bias: concat!($name, " bias"),
        }
    };
}

impl Names {
    pub(crate) const ALONE: Self = names!("pointwise");
    pub(crate) const EXPAND: Self = names!("expand");
    pub(crate) const PROJECT: Self = names!("project");
    pub(crate) const SQUEEZE: Self = names!("squeeze");
    pub(crate) const EXCITE: Self = names!("excite");
}

/// A 1x1 convolution: `y[o] = act(bias[o] + sum_i weights[o][i] * x[i])` at
/// each pixel.
#[derive(Debug, Clone, Copy)]
pub struct PointwiseParams<'a> {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) weights: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}

impl<'a> PointwiseParams<'a> {
    /// `weights` is `[c_out][c_in]`: PyTorch's and ONNX's order with the two
    /// trailing ones dropped. No bias, no activation.
    pub fn new(c_in: usize, c_out: usize, weights: &'a [f32]) -> Self {
        Self { c_in, c_out, weights, bias: None, activation: Activation::Identity }
    }

    /// Adds a bias, `[c_out]`.
    #[must_use]
    pub fn bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applies an activation to the sum.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    pub(crate) fn validate(&self, names: &Names) -> Result<()> {
        check_nonzero(names.inputs, self.c_in)?;
        check_nonzero(names.outputs, self.c_out)?;
        let expected = elements(names.weights, &[self.c_out, self.c_in])?;
        check_length(names.weights, expected, self.weights)?;
        if let Some(bias) = self.bias {
            check_length(names.bias, self.c_out, bias)?;
        }
        self.activation.validate()
    }
}

/// A depthwise convolution: each channel is convolved with a filter of its own,
/// or with several.
#[derive(Debug, Clone, Copy)]
pub struct DepthwiseParams<'a> {
    pub(crate) channels: usize,
    pub(crate) multiplier: usize,
    pub(crate) window: Window,
    pub(crate) weights: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}

impl<'a> DepthwiseParams<'a> {
    /// `kernel` is `[height, width]`, `weights` is
    /// `[kernel height][kernel width][channels]`: TensorFlow's order;
    /// PyTorch's `[channels][1][height][width]` is its transpose. Stride 1,
    /// no dilation, no padding, no bias, no activation.
    pub fn new(channels: usize, kernel: [usize; 2], weights: &'a [f32]) -> Self {
        Self {
            channels,
            multiplier: 1,
            window: Window { kernel, stride: [1, 1], dilation: [1, 1], padding: Padding::VALID },
            weights,
            bias: None,
            activation: Activation::Identity,
        }
    }

    /// Gives each input channel `multiplier` filters: output channel `o` is a
    /// convolution of input channel `o / multiplier`. Weights are
    /// `[kernel height][kernel width][channels][multiplier]` then, which is
    /// TensorFlow's order, and the bias `[channels][multiplier]`. A block's
    /// depthwise convolution has one filter for each channel.
    #[must_use]
    pub fn multiplier(mut self, multiplier: usize) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets the stride, `[vertical, horizontal]`.
    #[must_use]
    pub fn stride(mut self, stride: [usize; 2]) -> Self {
        self.window.stride = stride;
        self
    }

    /// Sets the distance between taps, `[vertical, horizontal]`.
    #[must_use]
    pub fn dilation(mut self, dilation: [usize; 2]) -> Self {
        self.window.dilation = dilation;
        self
    }

    /// Sets the padding.
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> Self {
        self.window.padding = padding;
        self
    }

    /// Adds a bias, `[channels]`, one for each filter.
    #[must_use]
    pub fn bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applies an activation to the sum.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_nonzero("channels", self.channels)?;
        check_nonzero("channel multiplier", self.multiplier)?;
        self.window.validate()?;
        let [height, width] = self.window.kernel;
        let sizes = [height, width, self.channels, self.multiplier];
        let expected = elements("depthwise weights", &sizes)?;
        check_length("depthwise weights", expected, self.weights)?;
        if let Some(bias) = self.bias {
            check_length("depthwise bias", self.channels * self.multiplier, bias)?;
        }
        self.activation.validate()
    }
}

/// A full convolution: each output channel sums over a window of all input
/// channels. It is the stem of a network, for images of a few channels.
#[derive(Debug, Clone, Copy)]
pub struct ConvParams<'a> {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) window: Window,
    pub(crate) weights: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}

impl<'a> ConvParams<'a> {
    /// `kernel` is `[height, width]`, `weights` is
    /// `[c_out][kernel height][kernel width][c_in]`: TensorFlow Lite's order;
    /// PyTorch's is `[c_out][c_in][height][width]`. Stride 1, no dilation, no
    /// padding, no bias, no activation.
    pub fn new(c_in: usize, c_out: usize, kernel: [usize; 2], weights: &'a [f32]) -> Self {
        Self {
            c_in,
            c_out,
            window: Window { kernel, stride: [1, 1], dilation: [1, 1], padding: Padding::VALID },
            weights,
            bias: None,
            activation: Activation::Identity,
        }
    }

    /// Sets the stride, `[vertical, horizontal]`.
    #[must_use]
    pub fn stride(mut self, stride: [usize; 2]) -> Self {
        self.window.stride = stride;
        self
    }

    /// Sets the distance between taps, `[vertical, horizontal]`.
    #[must_use]
    pub fn dilation(mut self, dilation: [usize; 2]) -> Self {
        self.window.dilation = dilation;
        self
    }

    /// Sets the padding.
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> Self {
        self.window.padding = padding;
        self
    }

    /// Adds a bias, `[c_out]`.
    #[must_use]
    pub fn bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applies an activation to the sum.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_nonzero("stem input channels", self.c_in)?;
        check_nonzero("stem output channels", self.c_out)?;
        self.window.validate()?;
        let [height, width] = self.window.kernel;
        let expected = elements("stem weights", &[self.c_out, height, width, self.c_in])?;
        check_length("stem weights", expected, self.weights)?;
        if let Some(bias) = self.bias {
            check_length("stem bias", self.c_out, bias)?;
        }
        self.activation.validate()
    }

    /// The same sums as a 1x1 convolution, over all that a window holds.
    pub(crate) fn over_patches(&self) -> PointwiseParams<'a> {
        let &Self { c_in, c_out, window: Window { kernel, .. }, weights, bias, activation } = self;
        let c_in = kernel[0] * kernel[1] * c_in;
        PointwiseParams { c_in, c_out, weights, bias, activation }
    }
}
