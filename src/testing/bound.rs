//! How far from the reference a kernel may be.

use core::fmt;

use alloc::vec::Vec;

use crate::activation::Activation;
use crate::error::Result;
use crate::params::{
    BottleneckParams, ConvNextParams, ConvParams, DepthwiseParams, First, LayerNormParams,
    PointwiseParams, Residual, SqueezeExciteParams,
};
use crate::reference;
use crate::shape::Shape;

/// The largest error that f32 may show against the [mod@reference], for each element.
///
/// A sum of `K` products adds at most `(K + 4) * eps * sum |a| |b|` (Higham 2002, 3.1),
/// and as many of the smallest denormal number, to what its inputs already carry through
/// it. An activation stretches an error by its steepest slope and adds 8 roundings. Each
/// stage of a block is such a step. Where a sum of magnitudes overflows or is NaN there is
/// no bound.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Sums of the inputs' magnitudes.
    magnitude: Vec<f32>,
    error: Vec<f32>,
}

impl Bound {
    /// Of a 1x1 convolution; the arguments are [`reference::pointwise`]'s.
    ///
    /// # Errors
    ///
    /// As of the reference.
    pub fn pointwise(
        params: &PointwiseParams<'_>,
        shape: Shape,
        input: &[f32],
        residual: Option<&[f32]>,
    ) -> Result<Self> {
        let bound = Self::of_input(input).after_pointwise(params, shape)?;
        Ok(match residual {
            Some(residual) => bound.plus(residual),
            None => bound,
        })
    }

    /// Of a depthwise convolution; the arguments are [`reference::depthwise`]'s.
    ///
    /// # Errors
    ///
    /// As of the reference.
    pub fn depthwise(params: &DepthwiseParams<'_>, shape: Shape, input: &[f32]) -> Result<Self> {
        Self::of_input(input).after_depthwise(params, shape)
    }

    /// Of a block; the arguments are [`reference::bottleneck`]'s.
    ///
    /// # Errors
    ///
    /// As of the reference.
    pub fn bottleneck(params: &BottleneckParams<'_>, shape: Shape, input: &[f32]) -> Result<Self> {
        params.validate()?;
        let mut bound = Self::of_input(input);
        let mut middle = shape;
        match &params.first {
            Some(First::Expand(expand)) => bound = bound.after_pointwise(expand, shape)?,
            Some(First::Stem(stem)) => {
                bound = bound.after_conv(stem, shape)?;
                middle = stem.window.place(shape)?.output;
            }
            None => {}
        }
        bound = bound.after_depthwise(&params.depthwise, middle)?;
        let output = params.depthwise.window.place(middle)?.output;
        if let Some(excite) = &params.excite {
            bound = bound.after_excite(excite, output)?;
        }
        if let Some(project) = &params.project {
            bound = bound.after_pointwise(project, output)?;
        }
        Ok(if params.residual { bound.plus(input) } else { bound })
    }

    /// Of a ConvNeXt block; the arguments are [`reference::convnext`]'s.
    ///
    /// A norm divides by what its input makes of it, so its bound is taken from the
    /// input's values; there is none where the input is hardly known better than its
    /// spread, or where squares of its distances from their mean overflow when summed.
    ///
    /// # Errors
    ///
    /// As of the reference.
    pub fn convnext(params: &ConvNextParams<'_>, shape: Shape, input: &[f32]) -> Result<Self> {
        params.validate()?;
        let output = params.depthwise.window.place(shape)?.output;
        let mut middle = Self::of_input(input).after_depthwise(&params.depthwise, shape)?;
        if let Some(excite) = &params.excite {
            middle = middle.after_excite(excite, output)?;
        }
        if let Some(norm) = &params.norm {
            middle = middle.after_norm(norm, &before_norm(params, shape, input)?);
        }
        let hidden = middle.clone().after_pointwise(&params.expand, output)?;
        let bound = params.with_project(|project| hidden.after_pointwise(project, output))?;
        Ok(match params.residual {
            None => bound,
            Some(Residual::Input) => bound.plus(input),
            Some(Residual::Depthwise) => {
                let mut bound = bound.plus(&middle.magnitude);
                bound.error.iter_mut().zip(&middle.error).for_each(|(e, m)| *e += m);
                bound
            }
        })
    }

    /// The bounds, in the order of the output.
    pub fn errors(&self) -> &[f32] {
        &self.error
    }

    /// Whether `actual` keeps the bound; `expected` is what the reference gives.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] at the first element that does not, NaN where the reference has a
    /// number among them.
    pub fn check(&self, expected: &[f32], actual: &[f32]) -> Result<(), Mismatch> {
        compare(expected, actual, |i, e, a| {
            let within = e == a || (e - a).abs() <= self.error[i] || self.error[i].is_nan();
            (within || self.error[i] == f32::INFINITY, self.error[i])
        })
    }

    fn of_input(input: &[f32]) -> Self {
        Self { magnitude: abs(input), error: input.iter().map(|_| 0.0).collect() }
    }

    fn after_pointwise(self, params: &PointwiseParams<'_>, shape: Shape) -> Result<Self> {
        let weights = abs(params.weights);
        let bias = params.bias.map(abs);
        self.stage(params.c_in, params.activation, |x, carried| {
            let bias = if carried { None } else { bias.as_deref() };
            let (weights, activation) = (&weights[..], Activation::Identity);
            let params = PointwiseParams { weights, bias, activation, ..*params };
            reference::pointwise(&params, shape, x, None)
        })
    }

    fn after_depthwise(self, params: &DepthwiseParams<'_>, shape: Shape) -> Result<Self> {
        let weights = abs(params.weights);
        let bias = params.bias.map(abs);
        let [height, width] = params.window.kernel;
        self.stage(height.saturating_mul(width), params.activation, |x, carried| {
            let bias = if carried { None } else { bias.as_deref() };
            let (weights, activation) = (&weights[..], Activation::Identity);
            let params = DepthwiseParams { weights, bias, activation, ..*params };
            reference::depthwise(&params, shape, x)
        })
    }

    fn after_conv(self, params: &ConvParams<'_>, shape: Shape) -> Result<Self> {
        let weights = abs(params.weights);
        let bias = params.bias.map(abs);
        // A 1x1 depthwise convolution of ones leaves it as it is.
        let ones = alloc::vec![1.0; params.c_out];
        let as_it_is = DepthwiseParams::new(params.c_out, [1, 1], &ones);
        let [height, width] = params.window.kernel;
        self.stage(height * width * params.c_in, params.activation, |x, carried| {
            let bias = if carried { None } else { bias.as_deref() };
            let (weights, activation) = (&weights[..], Activation::Identity);
            let stem = ConvParams { weights, bias, activation, ..*params };
            reference::bottleneck(&BottleneckParams::without_project(as_it_is).stem(stem), shape, x)
        })
    }

    /// The channels of each image times a gate, which is made of their means.
    fn after_excite(mut self, params: &SqueezeExciteParams<'_>, shape: Shape) -> Result<Self> {
        let channels = params.reduce.c_in;
        let pixels = shape.height * shape.width;
        let mean = |x: &[f32]| -> Vec<f32> {
            let images = x.chunks_exact(pixels * channels);
            let mean = |image: &[f32], c: usize| {
                image.iter().skip(c).step_by(channels).sum::<f32>() / pixels as f32
            };
            images.flat_map(|image| (0..channels).map(move |c| mean(image, c))).collect()
        };
        let (eps, tiny) = (f32::EPSILON, f32::from_bits(1));
        let magnitude = mean(&self.magnitude);
        let own = |m: &f32| (pixels as f32 + 4.0) * (eps * m + tiny);
        let error = mean(&self.error).iter().zip(&magnitude).map(|(e, m)| e + own(m)).collect();
        let images = Shape::new(shape.batch, 1, 1);
        let gate = Self { magnitude, error }
            .after_pointwise(&params.reduce, images)?
            .after_pointwise(&params.expand, images)?;
        for (i, (m, e)) in self.magnitude.iter_mut().zip(&mut self.error).enumerate() {
            let at = i / (pixels * channels) * channels + i % channels;
            let (gate, off) = (gate.magnitude[at], gate.error[at]);
            *e = *m * off + *e * (gate + off) + 2.0 * (eps * *m * gate + tiny);
            *m *= gate;
        }
        Ok(self)
    }

    /// Each pixel over its channels, whose values are `x`.
    fn after_norm(self, params: &LayerNormParams<'_>, x: &[f32]) -> Self {
        let channels = params.weight.len();
        let (eps, count) = (f64::from(f32::EPSILON), channels as f64);
        let (mut magnitude, mut error) = (Vec::new(), Vec::new());
        for (x, carried) in x.chunks_exact(channels).zip(self.error.chunks_exact(channels)) {
            let x = || x.iter().map(|&x| f64::from(x));
            let carried = || carried.iter().map(|&e| f64::from(e));
            let mean = x().sum::<f64>() / count;
            let variance = x().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
            let deviation = libm::sqrt(variance + f64::from(params.epsilon));
            // By as much the mean and the deviation can be off.
            let off = carried().sum::<f64>() / count + carried().fold(0.0, f64::max);
            let known = off < deviation / 4.0 && 2.0 * count * variance < f64::from(f32::MAX);
            for ((x, e), (&w, &b)) in x().zip(carried()).zip(params.weight.iter().zip(params.bias))
            {
                let (w, b) = (f64::from(w).abs(), f64::from(b).abs());
                let z = (x - mean).abs() / deviation;
                let stretched = (e + off + z * off) / (deviation - off);
                let own = eps * ((count + 12.0) * z + 8.0);
                let bound = w * (stretched + own) + 4.0 * eps * (w * z + b);
                magnitude.push((w * z + b) as f32);
                error.push(if known { bound as f32 } else { f32::INFINITY });
            }
        }
        Self { magnitude, error }
    }

    /// What a stage of `k` products for each sum makes of a bound. `sum` sums
    /// magnitudes, and without the bias what is carried.
    fn stage(
        self,
        k: usize,
        activation: Activation,
        sum: impl Fn(&[f32], bool) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let magnitude = sum(&self.magnitude, false)?;
        let carried = sum(&self.error, true)?;
        let (stretch, offset) = steepness(activation);
        let (k, eps, tiny) = (k as f32, f32::EPSILON, f32::from_bits(1));
        // Neither of two numbers between 0 and 1 is farther from the other. What has
        // overflowed stays so.
        let most = match activation {
            Activation::Sigmoid | Activation::HardSigmoid { .. } => 1.0 + 8.0 * eps,
            _ => f32::INFINITY,
        };
        let error = magnitude.iter().zip(&carried).map(|(m, c)| {
            let own = (k + 4.0) * (eps * m + tiny);
            let error = stretch * (c + own) + 8.0 * (eps * (stretch * m + offset) + tiny);
            let known = error < f32::INFINITY && *m < f32::INFINITY;
            if error > most && known { most } else { error }
        });
        let error = error.collect();
        let magnitude = magnitude.iter().map(|m| stretch.max(1.0) * m + offset);
        let magnitude =
            magnitude.map(|m| if m > most && m < f32::INFINITY { most } else { m }).collect();
        Ok(Self { magnitude, error })
    }

    fn plus(mut self, residual: &[f32]) -> Self {
        for ((m, e), r) in self.magnitude.iter_mut().zip(&mut self.error).zip(residual) {
            *m += r.abs();
            *e += 2.0 * f32::EPSILON * *m;
        }
        self
    }
}

/// The steepest slope of an activation, and how much larger than that slope allows it
/// can be.
fn steepness(activation: Activation) -> (f32, f32) {
    let finite = |bound: f32| if bound.abs() < 1e30 { bound.abs() } else { 0.0 };
    match activation {
        Activation::HardSwish => (1.5, 0.0),
        Activation::Silu | Activation::Gelu | Activation::GeluTanh => (1.2, 0.0),
        Activation::HardSigmoid { alpha, beta } => (alpha.abs(), beta.abs()),
        Activation::LeakyRelu { slope } => (slope.abs().max(1.0), 0.0),
        Activation::Clamp { lo, hi } => (1.0, finite(lo).max(finite(hi))),
        Activation::Sigmoid => (0.25, 1.0),
        // No slope is the steepest.
        Activation::Exp => (f32::INFINITY, 0.0),
        Activation::Identity | Activation::Relu | Activation::Relu6 => (1.0, 0.0),
    }
}

/// What a block normalises: its depthwise output, scaled where there is a gate.
fn before_norm(params: &ConvNextParams<'_>, shape: Shape, input: &[f32]) -> Result<Vec<f32>> {
    let channels = params.depthwise.channels;
    let mut weights = alloc::vec![0.0; channels * channels];
    weights.iter_mut().step_by(channels + 1).for_each(|w| *w = 1.0);
    let as_it_is = PointwiseParams::new(channels, channels, &weights);
    let block = ConvNextParams {
        excite: params.excite,
        ..ConvNextParams::new(params.depthwise, as_it_is, as_it_is)
    };
    reference::convnext(&block, shape, input)
}

fn abs(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

/// Whether all elements are equal as numbers; NaN is equal to NaN, and 0 to -0.
///
/// # Errors
///
/// [`Mismatch`] at the first element that differs.
pub fn same_numbers(expected: &[f32], actual: &[f32]) -> Result<(), Mismatch> {
    compare(expected, actual, |_, e, a| (e == a || (e.is_nan() && a.is_nan()), 0.0))
}

/// Whether all elements are equal bit for bit; NaN is equal to NaN, whatever its bits.
///
/// # Errors
///
/// [`Mismatch`] at the first element that differs.
pub fn same_bits(expected: &[f32], actual: &[f32]) -> Result<(), Mismatch> {
    compare(expected, actual, |_, e, a| {
        (e.to_bits() == a.to_bits() || (e.is_nan() && a.is_nan()), 0.0)
    })
}

fn compare(
    expected: &[f32],
    actual: &[f32],
    close: impl Fn(usize, f32, f32) -> (bool, f32),
) -> Result<(), Mismatch> {
    if expected.len() != actual.len() {
        return Err(Mismatch::Length { expected: expected.len(), actual: actual.len() });
    }
    for (index, (&expected, &actual)) in expected.iter().zip(actual).enumerate() {
        let (fine, bound) = close(index, expected, actual);
        if !fine {
            return Err(Mismatch::Element { index, expected, actual, bound });
        }
    }
    Ok(())
}

/// Where two outputs differ.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Mismatch {
    /// In the number of elements.
    Length {
        /// Elements that there should be.
        expected: usize,
        /// Elements that there are.
        actual: usize,
    },
    /// In an element, the first of them.
    Element {
        /// Its place in the output.
        index: usize,
        /// What the reference has.
        expected: f32,
        /// What the kernel has.
        actual: f32,
        /// How far from each other they may be.
        bound: f32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, actual } => write!(f, "{actual} elements, not {expected}"),
            Self::Element { index, expected, actual, bound } => {
                write!(f, "element {index} is {actual:e}, expected {expected:e} within {bound:e}")
            }
        }
    }
}

impl core::error::Error for Mismatch {}
