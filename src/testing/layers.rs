//! Layers that own their weights.

use crate::activation::Activation;
use crate::params::{
    BottleneckParams, ConvNextParams, ConvParams, DepthwiseParams, LayerNormParams,
    PointwiseParams, Residual, SqueezeExciteParams,
};
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

/// The two convolutions of squeeze-and-excite, as [`SqueezeExciteParams`] has them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of SqueezeExciteParams")]
pub struct Gate {
    pub reduce: PointwiseLayer,
    pub expand: PointwiseLayer,
}

impl Gate {
    /// A gate of `channels` with `squeezed` between its stages, ReLU and a sigmoid, soft
    /// or hard.
    pub fn new(random: &mut Random, data: Data, channels: usize, squeezed: usize) -> Self {
        let mut layer = |c, activation| PointwiseLayer::new(random, data, c, activation);
        let reduce = layer([channels, squeezed], Activation::Relu);
        let mut expand = layer([squeezed, channels], Activation::Sigmoid);
        if random.below(2) == 0 {
            expand.activation = Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
        }
        Self { reduce, expand }
    }

    /// The gate, with its weights lent.
    pub fn params(&self) -> SqueezeExciteParams<'_> {
        SqueezeExciteParams::new(self.reduce.params(), self.expand.params())
    }
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
    /// Channels between the stages of squeeze-and-excite; only with a projection.
    pub gate: Option<usize>,
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
        let gate = self.gate.map(|squeezed| Gate::new(random, data, c_mid, squeezed));
        let project =
            self.project.then(|| PointwiseLayer::new(random, data, [c_mid, c_out], project));
        Block { expand, stem, depthwise, gate, project, residual: self.residual }
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
    /// Squeeze-and-excite after it.
    pub gate: Option<Gate>,
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
        let mut params = params.residual(self.residual);
        if let Some(gate) = &self.gate {
            params = params.squeeze_excite(gate.params());
        }
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

/// A LayerNorm's weights, as [`LayerNormParams`] has them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of LayerNormParams")]
pub struct Norm {
    pub weight: Numbers,
    pub bias: Numbers,
    pub epsilon: f32,
}

/// A block in ConvNeXt's order, as [`ConvNextParams`] describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of ConvNextParams")]
pub struct ConvNext {
    pub depthwise: DepthwiseLayer,
    pub gate: Option<Gate>,
    pub norm: Option<Norm>,
    pub expand: PointwiseLayer,
    pub project: PointwiseLayer,
    pub scale: Option<Numbers>,
    pub residual: Option<Residual>,
}

impl ConvNext {
    /// The three convolutions of a block: channels of the depthwise one, hidden and
    /// output channels. The projection has no activation.
    pub fn new(
        random: &mut Random,
        data: Data,
        [channels, hidden, c_out]: [usize; 3],
        window: Window,
        [depthwise, expand]: [Activation; 2],
    ) -> Self {
        Self {
            depthwise: DepthwiseLayer::new(random, data, [channels, 1], window, depthwise),
            gate: None,
            norm: None,
            expand: PointwiseLayer::new(random, data, [channels, hidden], expand),
            project: PointwiseLayer::new(random, data, [hidden, c_out], Activation::Identity),
            scale: None,
            residual: None,
        }
    }

    /// The block, with its weights lent.
    pub fn params(&self) -> ConvNextParams<'_> {
        let params = ConvNextParams::new(
            self.depthwise.params(),
            self.expand.params(),
            self.project.params(),
        );
        let norm = self.norm.as_ref();
        ConvNextParams {
            excite: self.gate.as_ref().map(Gate::params),
            norm: norm.map(|norm| LayerNormParams::new(&norm.weight, &norm.bias, norm.epsilon)),
            scale: self.scale.as_deref(),
            residual: self.residual,
            ..params
        }
    }
}
