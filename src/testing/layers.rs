//! Layers that own their weights.

use crate::activation::Activation;
use crate::params::{BottleneckParams, ConvParams, DepthwiseParams, PointwiseParams};
use crate::shape::Padding;

use super::data::{Data, Numbers, Random};

/// Kernel, stride and dilation, each `[vertical, horizontal]`, and padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Taps.
    pub kernel: [usize; 2],
    /// From output to output.
    pub stride: [usize; 2],
    /// From tap to tap.
    pub dilation: [usize; 2],
    /// Around the image.
    pub padding: Padding,
}

impl Window {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// A 1x1 convolution, as [`PointwiseParams`] describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of PointwiseParams")]
pub struct PointwiseLayer {
    pub c_in: usize,
    pub c_out: usize,
    pub weights: Numbers,
    pub bias: Option<Numbers>,
    pub activation: Activation,
}

impl PointwiseLayer {
    /// A layer with such weights and mostly a bias.
    pub fn new(
        random: &mut Random,
        data: Data,
        [c_in, c_out]: [usize; 2],
        activation: Activation,
    ) -> Self {
        let weights = data.weights(random, c_in * c_out);
        Self { c_in, c_out, weights, bias: bias(random, data, c_out), activation }
    }

    /// The layer, with its weights lent.
    pub fn params(&self) -> PointwiseParams<'_> {
        let params = PointwiseParams::new(self.c_in, self.c_out, &self.weights);
        PointwiseParams { bias: self.bias.as_deref(), ..params.activation(self.activation) }
    }
}

/// A depthwise convolution, as [`DepthwiseParams`] describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of DepthwiseParams")]
pub struct DepthwiseLayer {
    pub channels: usize,
    pub multiplier: usize,
    pub window: Window,
    pub weights: Numbers,
    pub bias: Option<Numbers>,
    pub activation: Activation,
}

impl DepthwiseLayer {
    /// A layer of `channels` and a multiplier, with such weights and mostly a bias.
    pub fn new(
        random: &mut Random,
        data: Data,
        [channels, multiplier]: [usize; 2],
        window: Window,
        activation: Activation,
    ) -> Self {
        let weights = data.weights(random, window.taps() * channels * multiplier);
        let bias = bias(random, data, channels * multiplier);
        Self { channels, multiplier, window, weights, bias, activation }
    }

    /// The layer, with its weights lent.
    pub fn params(&self) -> DepthwiseParams<'_> {
        let window = &self.window;
        let params = DepthwiseParams::new(self.channels, window.kernel, &self.weights)
            .stride(window.stride)
            .dilation(window.dilation)
            .padding(window.padding)
            .multiplier(self.multiplier)
            .activation(self.activation);
        DepthwiseParams { bias: self.bias.as_deref(), ..params }
    }
}

/// A full convolution, as [`ConvParams`] describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of ConvParams")]
pub struct ConvLayer {
    pub c_in: usize,
    pub c_out: usize,
    pub window: Window,
    pub weights: Numbers,
    pub bias: Option<Numbers>,
    pub activation: Activation,
}

impl ConvLayer {
    /// A layer with such weights and mostly a bias.
    pub fn new(
        random: &mut Random,
        data: Data,
        [c_in, c_out]: [usize; 2],
        window: Window,
        activation: Activation,
    ) -> Self {
        let weights = data.weights(random, c_out * window.taps() * c_in);
        Self { c_in, c_out, window, weights, bias: bias(random, data, c_out), activation }
    }

    /// The layer, with its weights lent.
    pub fn params(&self) -> ConvParams<'_> {
        let window = &self.window;
        let params = ConvParams::new(self.c_in, self.c_out, window.kernel, &self.weights)
            .stride(window.stride)
            .dilation(window.dilation)
            .padding(window.padding)
            .activation(self.activation);
        ConvParams { bias: self.bias.as_deref(), ..params }
    }
}

/// Three of four layers have one.
fn bias(random: &mut Random, data: Data, len: usize) -> Option<Numbers> {
    (random.below(4) > 0).then(|| data.weights(random, len))
}

/// What comes before a block's depthwise convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum First {
    None,
    Expand,
    Stem(Window),
}

/// A block without its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Input, depthwise and output channels, of which the first are the second where
    /// nothing comes before the depthwise convolution.
    pub c: [usize; 3],
    /// What comes before the depthwise convolution.
    pub first: First,
    /// The depthwise convolution's.
    pub window: Window,
    /// Whether there is a projection.
    pub project: bool,
    /// Whether the input is added.
    pub residual: bool,
}

impl Form {
    /// A block of this form with such weights.
    pub fn block(&self, random: &mut Random, data: Data, activations: [Activation; 3]) -> Block {
        let [c_in, c_mid, c_out] = self.c;
        let [first, depthwise, project] = activations;
        let expand = matches!(self.first, First::Expand)
            .then(|| PointwiseLayer::new(random, data, [c_in, c_mid], first));
        let stem = match self.first {
            First::Stem(window) => Some(ConvLayer::new(random, data, [c_in, c_mid], window, first)),
            _ => None,
        };
        let depthwise = DepthwiseLayer::new(random, data, [c_mid, 1], self.window, depthwise);
        let project =
            self.project.then(|| PointwiseLayer::new(random, data, [c_mid, c_out], project));
        Block { expand, stem, depthwise, project, residual: self.residual }
    }
}

/// A block, as [`BottleneckParams`] describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Block {
    /// The expansion, where there is one.
    pub expand: Option<PointwiseLayer>,
    /// A full convolution in its place.
    pub stem: Option<ConvLayer>,
    /// The depthwise convolution.
    pub depthwise: DepthwiseLayer,
    /// The projection, where there is one.
    pub project: Option<PointwiseLayer>,
    /// Whether the input is added.
    pub residual: bool,
}

impl Block {
    /// The block, with its weights lent.
    pub fn params(&self) -> BottleneckParams<'_> {
        let depthwise = self.depthwise.params();
        let params = match &self.project {
            Some(project) => BottleneckParams::new(depthwise, project.params()),
            None => BottleneckParams::without_project(depthwise),
        };
        let params = params.residual(self.residual);
        match (&self.expand, &self.stem) {
            (_, Some(stem)) => params.stem(stem.params()),
            (Some(expand), None) => params.expand(expand.params()),
            (None, None) => params,
        }
    }

    /// Channels of the input.
    pub fn c_in(&self) -> usize {
        self.params().c_in()
    }

    /// Channels of the output.
    pub fn c_out(&self) -> usize {
        self.params().c_out()
    }
}
