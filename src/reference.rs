//! The naive truth: plain loops in f64, no cleverness.
//!
//! The operations are tested against these functions, and so can be anybody
//! else's kernels. Inputs and outputs are f32; everything between, also from
//! stage to stage of a block, is f64.

use alloc::vec;
use alloc::vec::Vec;

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::params::{
    BottleneckParams, ConvNextParams, ConvParams, DepthwiseParams, First, LayerNormParams, Names,
    PointwiseParams, Residual, SqueezeExciteParams, check_residual,
};
use crate::shape::{Placed, Shape};

/// 1x1 convolution of an NHWC tensor, plus `residual` after the activation.
///
/// `input` is `shape` with the layer's input channels; the result is `shape`
/// with its output channels, as is `residual`.
///
/// # Errors
///
/// As for [`Pointwise`](crate::Pointwise).
///
/// ```
/// use mbconv::{PointwiseParams, Shape, reference};
///
/// let layer = PointwiseParams::new(2, 1, &[10.0, 1.0]).bias(&[0.5]);
/// let y = reference::pointwise(&layer, Shape::new(1, 1, 2), &[1.0, 2.0, 3.0, 4.0], None)?;
/// assert_eq!(y, [12.5, 34.5]);
/// # Ok::<(), mbconv::Error>(())
/// ```
pub fn pointwise(
    params: &PointwiseParams<'_>,
    shape: Shape,
    input: &[f32],
    residual: Option<&[f32]>,
) -> Result<Vec<f32>> {
    params.validate(&Names::ALONE)?;
    check("input", shape.elements(params.c_in)?, input)?;
    let mut y = pointwise_f64(params, &widen(input));
    if let Some(residual) = residual {
        check("residual", shape.elements(params.c_out)?, residual)?;
        add(&mut y, residual);
    }
    Ok(narrow(&y))
}

/// Depthwise convolution of an NHWC tensor.
///
/// # Errors
///
/// As for [`Depthwise`](crate::Depthwise).
///
/// ```
/// use mbconv::{DepthwiseParams, Padding, Shape, reference};
///
/// let layer = DepthwiseParams::new(1, [1, 3], &[1.0, 1.0, 1.0])
///     .padding(Padding::Explicit { top: 0, bottom: 0, left: 1, right: 1 });
/// let y = reference::depthwise(&layer, Shape::new(1, 1, 3), &[1.0, 2.0, 4.0])?;
/// assert_eq!(y, [3.0, 7.0, 6.0]);
/// # Ok::<(), mbconv::Error>(())
/// ```
pub fn depthwise(params: &DepthwiseParams<'_>, shape: Shape, input: &[f32]) -> Result<Vec<f32>> {
    params.validate()?;
    check("input", shape.elements(params.channels)?, input)?;
    Ok(narrow(&depthwise_f64(params, shape, &widen(input))?))
}

/// A whole inverted bottleneck on an NHWC tensor.
///
/// # Errors
///
/// As for [`InvertedBottleneck`](crate::InvertedBottleneck).
pub fn bottleneck(params: &BottleneckParams<'_>, shape: Shape, input: &[f32]) -> Result<Vec<f32>> {
    params.validate()?;
    check("input", shape.elements(params.c_in())?, input)?;
    let x = widen(input);
    let (expanded, middle) = match &params.first {
        None => (x, shape),
        Some(First::Expand(expand)) => (pointwise_f64(expand, &x), shape),
        Some(First::Stem(stem)) => (conv_f64(stem, shape, &x)?, stem.window.place(shape)?.output),
    };
    let mut y = depthwise_f64(&params.depthwise, middle, &expanded)?;
    if let Some(excite) = &params.excite {
        excite_f64(excite, shape.batch, &mut y);
    }
    if let Some(project) = &params.project {
        y = pointwise_f64(project, &y);
    }
    if params.residual {
        let output = params.depthwise.window.place(middle)?.output;
        let (c_in, c_out) = (params.c_in(), params.c_out());
        check_residual((shape, c_in), (output, c_out))?;
        add(&mut y, input);
    }
    Ok(narrow(&y))
}

/// A whole ConvNeXt block on an NHWC tensor.
///
/// # Errors
///
/// As for [`ConvNextBlock`](crate::ConvNextBlock).
pub fn convnext(params: &ConvNextParams<'_>, shape: Shape, input: &[f32]) -> Result<Vec<f32>> {
    params.validate()?;
    check("input", shape.elements(params.depthwise.channels)?, input)?;
    let mut middle = depthwise_f64(&params.depthwise, shape, &widen(input))?;
    if let Some(excite) = &params.excite {
        excite_f64(excite, shape.batch, &mut middle);
    }
    if let Some(norm) = &params.norm {
        normalise_f64(norm, &mut middle);
    }
    let hidden = pointwise_f64(&params.expand, &middle);
    let mut y = params.with_project(|project| pointwise_f64(project, &hidden));
    match params.residual {
        None => {}
        Some(Residual::Depthwise) => y.iter_mut().zip(&middle).for_each(|(y, m)| *y += m),
        Some(Residual::Input) => {
            let output = params.depthwise.window.place(shape)?.output;
            check_residual((shape, params.depthwise.channels), (output, params.project.c_out))?;
            add(&mut y, input);
        }
    }
    Ok(narrow(&y))
}

/// Scales the channels of each image by a gate made of their means.
fn excite_f64(params: &SqueezeExciteParams<'_>, batch: usize, x: &mut [f64]) {
    let channels = params.reduce.c_in;
    let image = x.len() / batch;
    for image in x.chunks_exact_mut(image) {
        let mut means = vec![0.0; channels];
        for pixel in image.chunks_exact(channels) {
            means.iter_mut().zip(pixel).for_each(|(mean, x)| *mean += x);
        }
        let pixels = (image.len() / channels) as f64;
        means.iter_mut().for_each(|mean| *mean /= pixels);
        let gate = pointwise_f64(&params.expand, &pointwise_f64(&params.reduce, &means));
        for pixel in image.chunks_exact_mut(channels) {
            pixel.iter_mut().zip(&gate).for_each(|(x, gate)| *x *= gate);
        }
    }
}

/// Normalises each pixel over its channels.
fn normalise_f64(params: &LayerNormParams<'_>, x: &mut [f64]) {
    let channels = params.weight.len();
    for pixel in x.chunks_exact_mut(channels) {
        let mean = pixel.iter().sum::<f64>() / channels as f64;
        let variance = pixel.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / channels as f64;
        let scale = 1.0 / libm::sqrt(variance + f64::from(params.epsilon));
        for (x, (&w, &b)) in pixel.iter_mut().zip(params.weight.iter().zip(params.bias)) {
            *x = (*x - mean) * scale * f64::from(w) + f64::from(b);
        }
    }
}

fn pointwise_f64(params: &PointwiseParams<'_>, input: &[f64]) -> Vec<f64> {
    let mut output = Vec::with_capacity(input.len() / params.c_in * params.c_out);
    for pixel in input.chunks_exact(params.c_in) {
        for (o, filter) in params.weights.chunks_exact(params.c_in).enumerate() {
            let sum = pixel.iter().zip(filter).map(|(&x, &w)| x * f64::from(w)).sum::<f64>();
            output.push(finish(params.activation, params.bias, o, sum));
        }
    }
    output
}

fn depthwise_f64(params: &DepthwiseParams<'_>, shape: Shape, input: &[f64]) -> Result<Vec<f64>> {
    let placed = params.window.place(shape)?;
    let (c_in, channels) = (params.channels, params.channels * params.multiplier);
    let [kernel_h, kernel_w] = placed.kernel;
    let mut output = Vec::with_capacity(placed.output.elements(channels)?);
    for n in 0..shape.batch {
        for oy in 0..placed.output.height {
            for ox in 0..placed.output.width {
                for c in 0..channels {
                    let mut sum = 0.0;
                    for ky in 0..kernel_h {
                        for kx in 0..kernel_w {
                            if let Some(pixel) = pixel_at(&placed, n, [oy, ox], [ky, kx]) {
                                let weight = params.weights[(ky * kernel_w + kx) * channels + c];
                                let x = input[pixel * c_in + c / params.multiplier];
                                sum += x * f64::from(weight);
                            }
                        }
                    }
                    output.push(finish(params.activation, params.bias, c, sum));
                }
            }
        }
    }
    Ok(output)
}

fn conv_f64(params: &ConvParams<'_>, shape: Shape, input: &[f64]) -> Result<Vec<f64>> {
    let placed = params.window.place(shape)?;
    let (c_in, [kernel_h, kernel_w]) = (params.c_in, placed.kernel);
    let mut output = Vec::with_capacity(placed.output.elements(params.c_out)?);
    for n in 0..shape.batch {
        for oy in 0..placed.output.height {
            for ox in 0..placed.output.width {
                let filters = params.weights.chunks_exact(kernel_h * kernel_w * c_in);
                for (o, filter) in filters.enumerate() {
                    let mut sum = 0.0;
                    for ky in 0..kernel_h {
                        for kx in 0..kernel_w {
                            if let Some(pixel) = pixel_at(&placed, n, [oy, ox], [ky, kx]) {
                                for c in 0..c_in {
                                    let weight = filter[(ky * kernel_w + kx) * c_in + c];
                                    sum += input[pixel * c_in + c] * f64::from(weight);
                                }
                            }
                        }
                    }
                    output.push(finish(params.activation, params.bias, o, sum));
                }
            }
        }
    }
    Ok(output)
}

/// The pixel of image `n` on which a tap of an output falls: None in the padding.
fn pixel_at(placed: &Placed, n: usize, out: [usize; 2], tap: [usize; 2]) -> Option<usize> {
    let Shape { height, width, .. } = placed.input;
    let at = |axis: usize, size: usize| {
        (out[axis] * placed.stride[axis] + tap[axis] * placed.dilation[axis])
            .checked_sub(placed.before[axis])
            .filter(|&i| i < size)
    };
    Some((n * height + at(0, height)?) * width + at(1, width)?)
}

fn finish(activation: Activation, bias: Option<&[f32]>, channel: usize, sum: f64) -> f64 {
    activation.apply_f64(sum + bias.map_or(0.0, |bias| f64::from(bias[channel])))
}

fn check(what: &'static str, expected: usize, slice: &[f32]) -> Result<()> {
    if slice.len() == expected {
        Ok(())
    } else {
        Err(Error::Length { what, expected, actual: slice.len() })
    }
}

fn add(y: &mut [f64], residual: &[f32]) {
    for (y, &r) in y.iter_mut().zip(residual) {
        *y += f64::from(r);
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}
