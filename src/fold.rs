//! Batch normalisation folded into the convolution before it.

use crate::error::{Error, Result};

/// The parameters of a batch normalisation in inference, one per channel:
/// `y = scale * (x - mean) / sqrt(variance + epsilon) + shift`
/// (Ioffe and Szegedy 2015, algorithm 2).
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// gamma
    pub scale: &'a [f32],
    /// beta
    pub shift: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub variance: &'a [f32],
    /// What keeps the root from zero: 1e-5 in PyTorch, 1e-3 in TensorFlow.
    pub epsilon: f32,
}

/// Where the output channel stands in a weight tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelAxis {
    /// `[channel][...]`, as in [`PointwiseParams`](crate::PointwiseParams).
    First,
    /// `[...][channel]`, as in [`DepthwiseParams`](crate::DepthwiseParams).
    Last,
}

/// Folds `norm` into the convolution whose output it normalises, so that the
/// convolution alone gives the same result. `bias` has one entry per channel:
/// zeros for a convolution that has none. Computed in f64.
///
/// # Errors
///
/// [`Error::Length`] when `scale`, `shift`, `mean` or `variance` is not as long
/// as `bias`, or the weights are not a multiple of it; [`Error::ZeroSize`] when
/// there is no channel.
///
/// ```
/// use mbconv::{BatchNorm, ChannelAxis, fold_batch_norm};
///
/// let (mut weights, mut bias) = ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0]);
/// let norm = BatchNorm {
///     scale: &[2.0, 1.0],
///     shift: &[0.5, 0.0],
///     mean: &[1.0, 0.0],
///     variance: &[4.0, 1.0],
///     epsilon: 0.0,
/// };
/// fold_batch_norm(&norm, ChannelAxis::First, &mut weights, &mut bias)?;
/// assert_eq!((weights, bias), ([1.0, 2.0, 3.0, 4.0], [-0.5, 0.0]));
/// # Ok::<(), mbconv::Error>(())
/// ```
pub fn fold_batch_norm(
    norm: &BatchNorm<'_>,
    axis: ChannelAxis,
    weights: &mut [f32],
    bias: &mut [f32],
) -> Result<()> {
    let channels = bias.len();
    if channels == 0 {
        return Err(Error::ZeroSize { what: "channels" });
    }
    for (what, slice) in [
        ("batch norm scale", norm.scale),
        ("batch norm shift", norm.shift),
        ("batch norm mean", norm.mean),
        ("batch norm variance", norm.variance),
    ] {
        if slice.len() != channels {
            return Err(Error::Length { what, expected: channels, actual: slice.len() });
        }
    }
    let taps = weights.len() / channels;
    if taps == 0 || !weights.len().is_multiple_of(channels) {
        let expected = taps.max(1) * channels;
        return Err(Error::Length { what: "weights", expected, actual: weights.len() });
    }
    for (c, bias) in bias.iter_mut().enumerate() {
        let deviation = libm::sqrt(f64::from(norm.variance[c]) + f64::from(norm.epsilon));
        let factor = f64::from(norm.scale[c]) / deviation;
        for tap in 0..taps {
            let weight = match axis {
                ChannelAxis::First => &mut weights[c * taps + tap],
                ChannelAxis::Last => &mut weights[tap * channels + c],
            };
            *weight = (f64::from(*weight) * factor) as f32;
        }
        let centred = f64::from(*bias) - f64::from(norm.mean[c]);
        *bias = (centred * factor + f64::from(norm.shift[c])) as f32;
    }
    Ok(())
}
