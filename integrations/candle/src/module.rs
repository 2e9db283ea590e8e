//! The modules, and where their weights are found.

use candle_core::{Error, Module, Result, Tensor, bail};
use candle_nn::{
    Conv2dConfig, LayerNorm, VarBuilder, batch_norm, conv2d, conv2d_no_bias, layer_norm, linear,
};
use mbconv::{
    Activation, BottleneckParams, ConvNextParams, LayerNormParams, Residual, SqueezeExciteParams,
};

use crate::conv::{Conv, Weights, numbers};
use crate::layer::Layer;

/// A 1x1 convolution of stride 1.
#[derive(Clone)]
pub struct PointwiseConv2d(Layer<mbconv::Pointwise>);

impl PointwiseConv2d {
    /// Packs the convolution.
    ///
    /// # Errors
    ///
    /// When it is not 1x1 with stride 1, no padding and one group, or what mbconv refuses.
    pub fn new(conv: &Conv) -> Result<Self> {
        let weights = Weights::of_full(conv)?;
        let op = mbconv::Pointwise::new(&weights.pointwise()?).map_err(Error::wrap)?;
        Ok(Self(Layer::new(op, weights.channels())))
    }
}

/// A depthwise convolution: as many groups as input channels.
#[derive(Clone)]
pub struct DepthwiseConv2d(Layer<mbconv::Depthwise>);

impl DepthwiseConv2d {
    /// Packs the convolution; a channel may have several filters.
    ///
    /// # Errors
    ///
    /// When it is not depthwise, or what mbconv refuses: padding that is not less than the kernel.
    pub fn new(conv: &Conv) -> Result<Self> {
        let weights = Weights::of_depthwise(conv)?;
        let op = mbconv::Depthwise::new(&weights.depthwise()?).map_err(Error::wrap)?;
        Ok(Self(Layer::new(op, weights.channels())))
    }
}

/// The parts of an inverted bottleneck.
#[derive(Debug, Clone)]
pub struct BottleneckConvs {
    /// The 1x1 expansion, or a convolution over all channels (a network's stem) in its place.
    pub first: Option<Conv>,
    /// The filter of each channel.
    pub depthwise: Conv,
    /// Two 1x1 convolutions that make a gate of the channels' means, each with its activation.
    pub squeeze_excite: Option<[Conv; 2]>,
    /// The 1x1 projection.
    pub project: Conv,
    /// Whether the input is added to the output.
    pub residual: bool,
}

/// An inverted bottleneck in one pass.
#[derive(Clone)]
pub struct InvertedBottleneck(Layer<mbconv::InvertedBottleneck>);

impl InvertedBottleneck {
    /// Packs the block.
    ///
    /// # Errors
    ///
    /// When a convolution is not what its place asks for, channels do not fit each other, or what
    /// mbconv refuses.
    pub fn new(convs: &BottleneckConvs) -> Result<Self> {
        let first = convs.first.as_ref().map(Weights::of_full).transpose()?;
        let depthwise = Weights::of_depthwise(&convs.depthwise)?;
        let excite = match &convs.squeeze_excite {
            Some([reduce, expand]) => Some([Weights::of_full(reduce)?, Weights::of_full(expand)?]),
            None => None,
        };
        let project = Weights::of_full(&convs.project)?;
        let mut block = BottleneckParams::new(depthwise.depthwise()?, project.pointwise()?);
        if let Some(first) = &first {
            block = match first.is_pointwise() {
                true => block.expand(first.pointwise()?),
                false => block.stem(first.full()?),
            };
        }
        if let Some([reduce, expand]) = &excite {
            let excite = SqueezeExciteParams::new(reduce.pointwise()?, expand.pointwise()?);
            block = block.squeeze_excite(excite);
        }
        let block = block.residual(convs.residual);
        let op = mbconv::InvertedBottleneck::new(&block).map_err(Error::wrap)?;
        let [c_in, _] = first.as_ref().unwrap_or(&depthwise).channels();
        let [_, c_out] = project.channels();
        Ok(Self(Layer::new(op, [c_in, c_out])))
    }

    /// Loads a block by torchvision's names: `conv.0.0`, `conv.0.1` and so on below a
    /// `features.N` of its MobileNetV2.
    ///
    /// # Errors
    ///
    /// When a tensor is missing or has another shape, and those of [`InvertedBottleneck::new`].
    pub fn torchvision(config: &BlockConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let vb = vb.pp("conv");
        if config.expands() {
            let names = [["0.0", "0.1"], ["1.0", "1.1"], ["2", "3"]];
            config.load(&vb, Some(names[0]), names[1], names[2])
        } else {
            config.load(&vb, None, ["0.0", "0.1"], ["1", "2"])
        }
    }

    /// Loads a block by timm's names, below a `blocks.I.J` of its MobileNets, EfficientNets and
    /// MNASNets: `conv_pw`, `bn1`, `conv_dw`, `bn2`, `conv_pwl`, `bn3`, or without expansion
    /// `conv_dw`, `bn1`, `conv_pw`, `bn2`; squeeze-and-excite `se.conv_reduce`, `se.conv_expand`.
    ///
    /// # Errors
    ///
    /// When the block has a squeeze-and-excite part that `config` has not, a tensor is missing or
    /// has another shape, and those of [`InvertedBottleneck::new`].
    pub fn timm(config: &BlockConfig, vb: VarBuilder<'_>) -> Result<Self> {
        if config.squeeze_excite.is_none() && vb.contains_tensor("se.conv_reduce.weight") {
            bail!("mbconv: {} has a squeeze-and-excite part, the config has none", vb.prefix())
        }
        if config.expands() {
            config.load(&vb, Some(["conv_pw", "bn1"]), ["conv_dw", "bn2"], ["conv_pwl", "bn3"])
        } else {
            config.load(&vb, None, ["conv_dw", "bn1"], ["conv_pw", "bn2"])
        }
    }
}

/// The sizes of a block whose weights are loaded by name. Each convolution is without bias and has
/// a batch normalisation; the activation follows the first two.
#[derive(Debug, Clone, Copy)]
pub struct BlockConfig {
    c_in: usize,
    c_expanded: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    activation: Activation,
    squeeze_excite: Option<(usize, [Activation; 2])>,
    residual: bool,
    epsilon: f64,
}

impl BlockConfig {
    /// MobileNetV2's block: 3x3, stride 1, ReLU6, epsilon 1e-5, padding of half the kernel, a residual
    /// where stride and channels allow it. As in both libraries there is no expansion where
    /// `c_expanded` is `c_in`.
    pub fn new(c_in: usize, c_expanded: usize, c_out: usize) -> Self {
        let (activation, epsilon) = (Activation::Relu6, 1e-5);
        Self {
            c_in,
            c_expanded,
            c_out,
            kernel: 3,
            stride: 1,
            activation,
            squeeze_excite: None,
            residual: true,
            epsilon,
        }
    }

    /// Sets rows and columns of the depthwise kernel.
    #[must_use]
    pub fn kernel(mut self, kernel: usize) -> Self {
        self.kernel = kernel;
        self
    }

    /// Sets the stride of the depthwise convolution.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the activation after the first two convolutions.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Adds squeeze-and-excite with `reduced` channels in the middle, the activation there and the
    /// gate's: `Relu` and `HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }` in MobileNetV3, `Silu` and
    /// `Sigmoid` in EfficientNet. By timm's names only.
    #[must_use]
    pub fn squeeze_excite(
        mut self,
        reduced: usize,
        activation: Activation,
        gate: Activation,
    ) -> Self {
        self.squeeze_excite = Some((reduced, [activation, gate]));
        self
    }

    /// Sets whether the input is added where stride and channels allow it.
    #[must_use]
    pub fn residual(mut self, residual: bool) -> Self {
        self.residual = residual;
        self
    }

    /// Sets what keeps the normalisations' roots from zero: 1e-3 in models ported from TensorFlow.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    fn expands(&self) -> bool {
        self.c_expanded != self.c_in
    }

    /// Each name pair is of a convolution and its normalisation.
    fn load(
        &self,
        vb: &VarBuilder<'_>,
        expand: Option<[&str; 2]>,
        depthwise: [&str; 2],
        project: [&str; 2],
    ) -> Result<InvertedBottleneck> {
        let &Self { c_in, c_expanded, c_out, kernel, stride, activation, epsilon, .. } = self;
        let conv = |c: [usize; 2], kernel, config, [conv, norm]: [&str; 2]| {
            let conv = Conv::new(conv2d_no_bias(c[0], c[1], kernel, config, vb.pp(conv))?);
            Ok::<_, Error>(conv.norm(batch_norm(c[1], epsilon, vb.pp(norm))?))
        };
        let pointwise = Conv2dConfig::default();
        let window = Conv2dConfig { padding: kernel / 2, stride, groups: c_expanded, ..pointwise };
        let first = expand
            .map(|names| conv([c_in, c_expanded], 1, pointwise, names))
            .transpose()?
            .map(|expand| expand.activation(activation));
        let depthwise = conv([c_expanded; 2], kernel, window, depthwise)?.activation(activation);
        let squeeze_excite = match self.squeeze_excite {
            Some((reduced, [activation, gate])) => {
                let vb = vb.pp("se");
                let reduce = conv2d(c_expanded, reduced, 1, pointwise, vb.pp("conv_reduce"))?;
                let expand = conv2d(reduced, c_expanded, 1, pointwise, vb.pp("conv_expand"))?;
                Some([Conv::new(reduce).activation(activation), Conv::new(expand).activation(gate)])
            }
            None => None,
        };
        InvertedBottleneck::new(&BottleneckConvs {
            first,
            depthwise,
            squeeze_excite,
            project: conv([c_expanded, c_out], 1, pointwise, project)?,
            residual: self.residual && stride == 1 && c_in == c_out,
        })
    }
}

/// ConvNeXt's block in one pass: depthwise, layer normalisation over the channels, expand,
/// activation, project, scale, and the input added.
#[derive(Clone)]
pub struct ConvNextBlock(Layer<mbconv::ConvNextBlock>);

impl ConvNextBlock {
    /// Packs the block. `scale` has a number for each channel; a projection that is scaled has no
    /// activation.
    ///
    /// # Errors
    ///
    /// When a convolution is not what its place asks for, the normalisation does not subtract the
    /// mean, channels do not fit each other, or what mbconv refuses.
    pub fn new(
        depthwise: &Conv,
        norm: &LayerNorm,
        expand: &Conv,
        project: &Conv,
        scale: Option<&Tensor>,
    ) -> Result<Self> {
        if !norm.remove_mean() {
            bail!("mbconv: the normalisation does not subtract the mean, which is not supported")
        }
        let depthwise = Weights::of_depthwise(depthwise)?;
        let (expand, project) = (Weights::of_full(expand)?, Weights::of_full(project)?);
        let weight = numbers(norm.weight())?;
        let bias = match norm.bias() {
            Some(bias) => numbers(bias)?,
            None => vec![0.0; weight.len()],
        };
        let scale = scale.map(numbers).transpose()?;
        let block =
            ConvNextParams::new(depthwise.depthwise()?, expand.pointwise()?, project.pointwise()?);
        let mut block = block
            .norm(LayerNormParams::new(&weight, &bias, norm.eps() as f32))
            .residual(Residual::Input);
        if let Some(scale) = &scale {
            block = block.scale(scale);
        }
        let op = mbconv::ConvNextBlock::new(&block).map_err(Error::wrap)?;
        let ([c_in, _], [_, c_out]) = (depthwise.channels(), project.channels());
        Ok(Self(Layer::new(op, [c_in, c_out])))
    }

    /// Loads a block of `channels` by torchvision's names: `block.0`, `block.2`, `block.3`, `block.5`
    /// and `layer_scale` below a `features.I.J` of its ConvNeXt.
    ///
    /// # Errors
    ///
    /// When a tensor is missing or has another shape, and those of [`ConvNextBlock::new`].
    pub fn torchvision(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let scale = vb.get((channels, 1, 1), "layer_scale")?;
        Self::load(channels, &vb.pp("block"), ["0", "2", "3", "5"], &scale)
    }

    /// Loads a block of `channels` by timm's names: `conv_dw`, `norm`, `mlp.fc1`, `mlp.fc2` and
    /// `gamma` below a `stages.I.blocks.J` of its ConvNeXt.
    ///
    /// # Errors
    ///
    /// As for [`ConvNextBlock::torchvision`].
    pub fn timm(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let scale = vb.get(channels, "gamma")?;
        Self::load(channels, &vb, ["conv_dw", "norm", "mlp.fc1", "mlp.fc2"], &scale)
    }

    fn load(c: usize, vb: &VarBuilder<'_>, names: [&str; 4], scale: &Tensor) -> Result<Self> {
        let [depthwise, norm, expand, project] = names.map(|name| vb.pp(name));
        let window = Conv2dConfig { padding: 3, groups: c, ..Default::default() };
        let expand = Conv::linear(&linear(c, 4 * c, expand)?)?.activation(Activation::Gelu);
        Self::new(
            &Conv::new(conv2d(c, c, 7, window, depthwise)?),
            &layer_norm(c, 1e-6, norm)?,
            &expand,
            &Conv::linear(&linear(4 * c, c, project)?)?,
            Some(scale),
        )
    }
}

/// What every module has.
macro_rules! module {
    ($module:ident) => {
        impl $module {
            /// Sets whether outputs are views of channels-last memory, which the next of these
            /// modules reads faster; they are contiguous unless set.
            #[must_use]
            pub fn channels_last(self, channels_last: bool) -> Self {
                Self(self.0.channels_last(channels_last))
            }
        }

        impl Module for $module {
            fn forward(&self, x: &Tensor) -> Result<Tensor> {
                self.0.forward(x)
            }
        }
    };
}

module!(PointwiseConv2d);
module!(DepthwiseConv2d);
module!(InvertedBottleneck);
module!(ConvNextBlock);
