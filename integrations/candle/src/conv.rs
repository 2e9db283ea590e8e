//! Convolutions as candle holds them, and what mbconv takes of them.

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use candle_nn::{BatchNorm, Conv2d, Conv2dConfig, Linear};
use mbconv::{
    Activation, ChannelAxis, ConvParams, DepthwiseParams, Padding, PointwiseParams, fold_batch_norm,
};

/// A convolution of candle's with the batch normalisation and the activation that follow it.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{Conv2dConfig, VarBuilder, batch_norm, conv2d_no_bias};
/// use mbconv_candle::{Activation, Conv, DepthwiseConv2d};
///
/// # fn main() -> candle_core::Result<()> {
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let config = Conv2dConfig { padding: 1, groups: 32, ..Default::default() };
/// let conv = Conv::new(conv2d_no_bias(32, 32, 3, config, vb.pp("conv"))?)
///     .norm(batch_norm(32, 1e-5, vb.pp("bn"))?)
///     .activation(Activation::Relu6);
/// let layer = DepthwiseConv2d::new(&conv)?;
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Conv {
    conv: Conv2d,
    norm: Option<BatchNorm>,
    activation: Activation,
}

impl Conv {
    /// A convolution alone, with its bias where it has one.
    pub fn new(conv: Conv2d) -> Self {
        Self { conv, norm: None, activation: Activation::Identity }
    }

    /// A linear layer over the channels: a 1x1 convolution.
    ///
    /// # Errors
    ///
    /// When its weights are not a matrix.
    pub fn linear(linear: &Linear) -> Result<Self> {
        let (c_out, c_in) = linear.weight().dims2()?;
        let weight = linear.weight().reshape((c_out, c_in, 1, 1))?;
        Ok(Self::new(Conv2d::new(weight, linear.bias().cloned(), Conv2dConfig::default())))
    }

    /// Adds the normalisation of its output, with its running statistics.
    #[must_use]
    pub fn norm(mut self, norm: BatchNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Sets the activation at the end.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Weights with their axes in the order `axes`, among which 0 is the output channel, and the
    /// bias: both with the normalisation folded into them.
    fn folded(&self, axes: [usize; 4], channel: ChannelAxis) -> Result<[Vec<f32>; 2]> {
        let mut weights = numbers(&self.conv.weight().permute(axes)?)?;
        let channels = self.conv.weight().dim(0)?;
        let mut bias = match self.conv.bias() {
            Some(bias) => numbers(bias)?,
            None => vec![0.0; channels],
        };
        if let Some(norm) = &self.norm {
            let [scale, shift] = match norm.weight_and_bias() {
                Some((weight, bias)) => [numbers(weight)?, numbers(bias)?],
                None => [vec![1.0; channels], vec![0.0; channels]],
            };
            let norm = mbconv::BatchNorm {
                scale: &scale,
                shift: &shift,
                mean: &numbers(norm.running_mean())?,
                variance: &numbers(norm.running_var())?,
                epsilon: norm.eps() as f32,
            };
            fold_batch_norm(&norm, channel, &mut weights, &mut bias).map_err(Error::wrap)?;
        }
        Ok([weights, bias])
    }
}

/// On the CPU, in f32, in the order of the axes.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A convolution's weights in mbconv's order.
pub(crate) struct Weights {
    /// Output channels, input channels of a group, rows, columns.
    dims: [usize; 4],
    config: Conv2dConfig,
    weights: Vec<f32>,
    bias: Vec<f32>,
    activation: Activation,
}

impl Weights {
    /// Of a convolution over all channels: `[c_out][rows][columns][c_in]`.
    pub(crate) fn of_full(conv: &Conv) -> Result<Self> {
        Self::new(conv, [0, 2, 3, 1], ChannelAxis::First)
    }

    /// Of a depthwise convolution: `[rows][columns][channels][multiplier]`.
    pub(crate) fn of_depthwise(conv: &Conv) -> Result<Self> {
        Self::new(conv, [2, 3, 0, 1], ChannelAxis::Last)
    }

    fn new(conv: &Conv, axes: [usize; 4], channel: ChannelAxis) -> Result<Self> {
        let dims = conv.conv.weight().dims4()?.into();
        let [weights, bias] = conv.folded(axes, channel)?;
        let (config, activation) = (*conv.conv.config(), conv.activation);
        Ok(Self { dims, config, weights, bias, activation })
    }

    /// Of input and output.
    pub(crate) fn channels(&self) -> [usize; 2] {
        [self.dims[1] * self.config.groups, self.dims[0]]
    }

    /// Whether each output is a sum over one pixel.
    pub(crate) fn is_pointwise(&self) -> bool {
        let Conv2dConfig { padding, stride, groups, .. } = self.config;
        self.dims[2..] == [1, 1] && (padding, stride, groups) == (0, 1, 1)
    }

    pub(crate) fn pointwise(&self) -> Result<PointwiseParams<'_>> {
        let [c_out, c_in, ..] = self.dims;
        if !self.is_pointwise() {
            bail!("mbconv: not a pointwise convolution: {}", self.describe())
        }
        let params = PointwiseParams::new(c_in, c_out, &self.weights);
        Ok(params.bias(&self.bias).activation(self.activation))
    }

    pub(crate) fn depthwise(&self) -> Result<DepthwiseParams<'_>> {
        let ([c_out, c_in, height, width], channels) = (self.dims, self.config.groups);
        if c_in != 1 || !c_out.is_multiple_of(channels) {
            bail!("mbconv: not a depthwise convolution: {}", self.describe())
        }
        let Conv2dConfig { padding, stride, dilation, .. } = self.config;
        Ok(DepthwiseParams::new(channels, [height, width], &self.weights)
            .multiplier(c_out / channels)
            .stride([stride; 2])
            .dilation([dilation; 2])
            .padding(Padding::uniform(padding))
            .bias(&self.bias)
            .activation(self.activation))
    }

    /// A convolution over all channels.
    pub(crate) fn full(&self) -> Result<ConvParams<'_>> {
        let [c_out, c_in, height, width] = self.dims;
        if self.config.groups != 1 {
            bail!("mbconv: not a convolution over all channels: {}", self.describe())
        }
        let Conv2dConfig { padding, stride, dilation, .. } = self.config;
        Ok(ConvParams::new(c_in, c_out, [height, width], &self.weights)
            .stride([stride; 2])
            .dilation([dilation; 2])
            .padding(Padding::uniform(padding))
            .bias(&self.bias)
            .activation(self.activation))
    }

    fn describe(&self) -> String {
        let Conv2dConfig { padding, stride, groups, .. } = self.config;
        format!("weights {:?}, padding {padding}, stride {stride}, groups {groups}", self.dims)
    }
}
