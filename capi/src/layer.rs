//! Layers as they are described, before an operation packs them.

use mbconv::{
    BatchNorm, ChannelAxis, ConvParams, DepthwiseParams, PointwiseParams, fold_batch_norm,
};

use crate::memory::{floats, free, give, handle_mut};
use crate::status::{Failure, Result, Status, guard};

/// A function applied to each output of a layer.
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum Activation {
    /// `x`
    Identity = 0,
    /// `max(x, 0)`
    Relu = 1,
    /// `min(max(x, 0), 6)`
    Relu6 = 2,
    /// `min(max(x, a), b)`
    Clamp = 3,
    /// `x` for `x >= 0`, else `a * x`
    LeakyRelu = 4,
    /// `x * min(max(x + 3, 0), 6) / 6`
    HardSwish = 5,
    /// `min(max(a * x + b, 0), 1)`
    HardSigmoid = 6,
    /// `exp(x)`
    Exp = 7,
    /// `1 / (1 + exp(-x))`
    Sigmoid = 8,
    /// `x / (1 + exp(-x))`
    Silu = 9,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`
    Gelu = 10,
    /// The approximation of GELU by tanh.
    GeluTanh = 11,
}

impl Activation {
    const ALL: [Self; 12] = [
        Self::Identity,
        Self::Relu,
        Self::Relu6,
        Self::Clamp,
        Self::LeakyRelu,
        Self::HardSwish,
        Self::HardSigmoid,
        Self::Exp,
        Self::Sigmoid,
        Self::Silu,
        Self::Gelu,
        Self::GeluTanh,
    ];

    fn with(self, a: f32, b: f32) -> mbconv::Activation {
        use mbconv::Activation as To;
        match self {
            Self::Identity => To::Identity,
            Self::Relu => To::Relu,
            Self::Relu6 => To::Relu6,
            Self::Clamp => To::Clamp { lo: a, hi: b },
            Self::LeakyRelu => To::LeakyRelu { slope: a },
            Self::HardSwish => To::HardSwish,
            Self::HardSigmoid => To::HardSigmoid { alpha: a, beta: b },
            Self::Exp => To::Exp,
            Self::Sigmoid => To::Sigmoid,
            Self::Silu => To::Silu,
            Self::Gelu => To::Gelu,
            Self::GeluTanh => To::GeluTanh,
        }
    }
}

/// Padding that follows from the size of the image.
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum Padding {
    /// TensorFlow's `SAME`: an odd pixel is at the end.
    SameUpper = 0,
    /// An odd pixel is at the beginning.
    SameLower = 1,
}

/// A layer with its weights: a 1x1, depthwise or full convolution.
#[derive(Clone)]
pub struct Layer {
    kind: Kind,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
    activation: mbconv::Activation,
    window: Window,
}

#[derive(Clone, Copy)]
enum Kind {
    Pointwise { c_in: usize, c_out: usize },
    Depthwise { channels: usize, multiplier: usize, kernel: [usize; 2] },
    Conv { c_in: usize, c_out: usize, kernel: [usize; 2] },
}

/// `[vertical, horizontal]`; a 1x1 convolution has none.
#[derive(Clone, Copy)]
struct Window {
    stride: [usize; 2],
    dilation: [usize; 2],
    padding: mbconv::Padding,
}

/// A layer, lent to an operation that is being built.
pub(crate) enum Params<'a> {
    Pointwise(PointwiseParams<'a>),
    Depthwise(DepthwiseParams<'a>),
    Conv(ConvParams<'a>),
}

impl Layer {
    fn new(kind: Kind, weights: &[f32]) -> Self {
        Self {
            kind,
            weights: weights.to_vec(),
            bias: None,
            activation: mbconv::Activation::Identity,
            window: Window { stride: [1, 1], dilation: [1, 1], padding: mbconv::Padding::VALID },
        }
    }

    fn window(&mut self) -> Result<&mut Window> {
        match self.kind {
            Kind::Pointwise { .. } => {
                Err(Failure::Argument("a 1x1 convolution has no stride, dilation or padding"))
            }
            _ => Ok(&mut self.window),
        }
    }

    pub(crate) fn params(&self) -> Params<'_> {
        let Self { kind, weights, bias, activation, window } = self;
        let &Window { stride, dilation, padding } = window;
        // The three kinds have the same setters, but no trait in common.
        macro_rules! set {
            ($kind:ident, $params:expr) => {{
                let params = $params.activation(*activation);
                Params::$kind(match bias {
                    Some(bias) => params.bias(bias),
                    None => params,
                })
            }};
        }
        match *kind {
            Kind::Pointwise { c_in, c_out } => {
                set!(Pointwise, PointwiseParams::new(c_in, c_out, weights))
            }
            Kind::Depthwise { channels, multiplier, kernel } => set!(
                Depthwise,
                DepthwiseParams::new(channels, kernel, weights)
                    .multiplier(multiplier)
                    .stride(stride)
                    .dilation(dilation)
                    .padding(padding)
            ),
            Kind::Conv { c_in, c_out, kernel } => set!(
                Conv,
                ConvParams::new(c_in, c_out, kernel, weights)
                    .stride(stride)
                    .dilation(dilation)
                    .padding(padding)
            ),
        }
    }
}

/// Describes a 1x1 convolution. `weights` is `[c_out][c_in]`. No bias, no activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_pointwise(
    c_in: usize,
    c_out: usize,
    weights: *const f32,
    weights_len: usize,
    layer: *mut *mut Layer,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(layer, || {
            let weights = floats(weights, weights_len, "weights")?;
            Ok(Layer::new(Kind::Pointwise { c_in, c_out }, weights))
        })
    })
}

/// Describes a depthwise convolution with `multiplier` filters for each channel (1 in a block).
/// `weights` is `[kernel_height][kernel_width][channels][multiplier]`. Stride and dilation 1, no
/// padding, no bias, no activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_depthwise(
    channels: usize,
    multiplier: usize,
    kernel_height: usize,
    kernel_width: usize,
    weights: *const f32,
    weights_len: usize,
    layer: *mut *mut Layer,
) -> Status {
    let kernel = [kernel_height, kernel_width];
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(layer, || {
            let weights = floats(weights, weights_len, "weights")?;
            Ok(Layer::new(Kind::Depthwise { channels, multiplier, kernel }, weights))
        })
    })
}

/// Describes a full convolution, which is a network's stem: a block's first layer in the place of
/// the expansion. `weights` is `[c_out][kernel_height][kernel_width][c_in]`. Stride and dilation 1,
/// no padding, no bias, no activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_conv(
    c_in: usize,
    c_out: usize,
    kernel_height: usize,
    kernel_width: usize,
    weights: *const f32,
    weights_len: usize,
    layer: *mut *mut Layer,
) -> Status {
    let kernel = [kernel_height, kernel_width];
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(layer, || {
            let weights = floats(weights, weights_len, "weights")?;
            Ok(Layer::new(Kind::Conv { c_in, c_out, kernel }, weights))
        })
    })
}

/// Sets the bias, one for each output channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_bias(
    layer: *mut Layer,
    bias: *const f32,
    bias_len: usize,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        let layer = handle_mut(layer, "layer")?;
        layer.bias = Some(floats(bias, bias_len, "bias")?.to_vec());
        Ok(())
    })
}

/// Sets the activation, an `mbconv_activation`; `a` and `b` are its parameters where it has some.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_activation(
    layer: *mut Layer,
    activation: i32,
    a: f32,
    b: f32,
) -> Status {
    guard(|| {
        // SAFETY: the rules of the header.
        let layer = unsafe { handle_mut(layer, "layer") }?;
        let known = Activation::ALL.into_iter().find(|&known| known as i32 == activation);
        let known = known.ok_or(Failure::Value { what: "activation", value: activation })?;
        layer.activation = known.with(a, b);
        Ok(())
    })
}

/// Sets the stride.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_stride(
    layer: *mut Layer,
    vertical: usize,
    horizontal: usize,
) -> Status {
    guard(|| {
        // SAFETY: the rules of the header.
        unsafe { handle_mut(layer, "layer") }?.window()?.stride = [vertical, horizontal];
        Ok(())
    })
}

/// Sets the distance between taps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_dilation(
    layer: *mut Layer,
    vertical: usize,
    horizontal: usize,
) -> Status {
    guard(|| {
        // SAFETY: the rules of the header.
        unsafe { handle_mut(layer, "layer") }?.window()?.dilation = [vertical, horizontal];
        Ok(())
    })
}

/// Sets the zeros around an image, in pixels.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_padding(
    layer: *mut Layer,
    top: usize,
    bottom: usize,
    left: usize,
    right: usize,
) -> Status {
    guard(|| {
        let padding = mbconv::Padding::Explicit { top, bottom, left, right };
        // SAFETY: the rules of the header.
        unsafe { handle_mut(layer, "layer") }?.window()?.padding = padding;
        Ok(())
    })
}

/// Sets padding, an `mbconv_padding`, that follows from the size of the image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_set_same_padding(layer: *mut Layer, padding: i32) -> Status {
    guard(|| {
        let padding = match padding {
            value if value == Padding::SameUpper as i32 => mbconv::Padding::SameUpper,
            value if value == Padding::SameLower as i32 => mbconv::Padding::SameLower,
            value => return Err(Failure::Value { what: "padding", value }),
        };
        // SAFETY: the rules of the header.
        unsafe { handle_mut(layer, "layer") }?.window()?.padding = padding;
        Ok(())
    })
}

/// Folds the batch normalisation that follows the layer into its weights and bias: four arrays
/// with one number for each output channel, and epsilon. Weights are those given, a bias is set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_fold_batch_norm(
    layer: *mut Layer,
    scale: *const f32,
    shift: *const f32,
    mean: *const f32,
    variance: *const f32,
    channels: usize,
    epsilon: f32,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        let layer = handle_mut(layer, "layer")?;
        let norm = BatchNorm {
            scale: floats(scale, channels, "scale")?,
            shift: floats(shift, channels, "shift")?,
            mean: floats(mean, channels, "mean")?,
            variance: floats(variance, channels, "variance")?,
            epsilon,
        };
        let axis = match layer.kind {
            Kind::Depthwise { .. } => ChannelAxis::Last,
            _ => ChannelAxis::First,
        };
        let bias = layer.bias.get_or_insert_with(|| vec![0.0; channels]);
        Ok(fold_batch_norm(&norm, axis, &mut layer.weights, bias)?)
    })
}

/// Frees a layer; operations built of it live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_layer_free(layer: *mut Layer) {
    // SAFETY: the rules of the header.
    unsafe { free(layer) }
}
