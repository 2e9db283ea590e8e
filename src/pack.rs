//! Weights in the order in which the kernels read them.

use core::ops::Range;

use alloc::vec::Vec;

use crate::buffer::AlignedBuf;
use crate::params::{DepthwiseParams, LayerNormParams, PointwiseParams};
use crate::simd::{Kernel, Lanes, fills_registers};

/// A stripe of output channels that one run of pointwise tiles computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panel {
    /// Its first vector of output channels.
    pub(crate) first: usize,
    /// Its width in vectors.
    pub(crate) vectors: usize,
    /// Whether its last vector has channels in its lower half only and holds
    /// their weights and bias twice, for two pixels at a time.
    pub(crate) halved: bool,
}

impl Panel {
    /// The panel of output channels from vector `first` on, of `channels` in all.
    fn of_channels<S: Lanes>(s: S, first: usize, channels: usize, tail: Tail) -> Self {
        // Where each multiply-add broadcasts its own input, tiles of one vector are fast.
        let singles = s.narrow().is_some() && channels.is_multiple_of(S::LANES);
        Self::new::<S>(first, channels, tail, S::POINTWISE_VECTORS, singles)
    }

    /// The panel of pixels from vector `first` on, of `pixels` in all.
    pub(crate) fn of_pixels<S: Lanes>(first: usize, pixels: usize) -> Self {
        Self::new::<S>(first, pixels, Tail::Zeros, pixel_vectors::<S>(), false)
    }

    /// Of the preferred width; but wider by a vector, or narrower, rather than leave a single one
    /// over.
    fn new<S: Lanes>(
        first: usize,
        channels: usize,
        tail: Tail,
        preferred: usize,
        singles: bool,
    ) -> Self {
        let left = channels.div_ceil(S::LANES) - first;
        let wider = S::POINTWISE_ROWS.get(preferred).is_some_and(|&rows| rows > 0);
        let vectors = if singles || left != preferred + 1 {
            left.min(preferred)
        } else if wider {
            left
        } else {
            left.div_ceil(2)
        };
        let half = tail == Tail::Zeros && (1..=S::LANES / 2).contains(&(channels % S::LANES));
        let halved = half && vectors == left && S::POINTWISE_HALVED_ROWS[vectors - 1] > 0;
        Self { first, vectors, halved }
    }

    /// Lanes of the last vector that one pixel has.
    pub(crate) fn pixel_lanes<S: Lanes>(&self) -> usize {
        if self.halved { S::LANES / 2 } else { S::LANES }
    }
}

/// The width in vectors of most panels of pixels: that of channels, or a vector less where such a
/// tile [fills all registers](fills_registers), which one of pixels cannot.
pub(crate) const fn pixel_vectors<S: Lanes>() -> usize {
    let vectors = S::POINTWISE_VECTORS;
    vectors - fills_registers::<S>([S::POINTWISE_ROWS[vectors - 1], vectors]) as usize
}

/// Cuts `c_out` output channels into panels.
fn panels<S: Lanes>(s: S, c_out: usize, tail: Tail) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut first = 0;
    while first < c_out.div_ceil(S::LANES) {
        let panel = Panel::of_channels(s, first, c_out, tail);
        panels.push(panel);
        first += panel.vectors;
    }
    panels
}

/// A 1x1 convolution's weights: panel after panel, in a panel `[c_in][vectors][lane]`.
/// Lanes without a channel have weight and bias zero, or in a halved panel what the lower half has.
pub(crate) struct PackedPointwise {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) panels: Vec<Panel>,
    pub(crate) weights: AlignedBuf,
    pub(crate) bias: AlignedBuf,
}

/// Packs for the instruction set it is dispatched to.
pub(crate) struct PackPointwise<'p>(pub(crate) &'p PointwiseParams<'p>, pub(crate) Tail);

impl Kernel for PackPointwise<'_> {
    type Output = PackedPointwise;

    fn run<S: Lanes>(self, s: S) -> PackedPointwise {
        let Self(&PointwiseParams { c_in, c_out, weights, bias, .. }, tail) = self;
        let vectors = c_out.div_ceil(S::LANES);
        let panels = panels(s, c_out, tail);
        let mut packed = AlignedBuf::zeroed(vectors * S::LANES * c_in);
        let mut packed_bias = AlignedBuf::zeroed(vectors * S::LANES);
        for &Panel { first, vectors, halved } in &panels {
            for v in 0..vectors {
                let lanes = tail.channels(first + v, c_out, S::LANES);
                let twice = halved && v + 1 == vectors;
                for k in 0..c_in {
                    let at = (first * c_in + k * vectors + v) * S::LANES;
                    let vector = &mut packed[at..][..S::LANES];
                    for (o, slot) in lanes.clone().zip(&mut *vector) {
                        *slot = weights[o * c_in + k];
                    }
                    if twice {
                        double::<S>(vector);
                    }
                }
                let vector = &mut packed_bias[(first + v) * S::LANES..][..S::LANES];
                if let Some(bias) = bias {
                    vector[..lanes.len()].copy_from_slice(&bias[lanes]);
                }
                if twice {
                    double::<S>(vector);
                }
            }
        }
        PackedPointwise { c_in, c_out, panels, weights: packed, bias: packed_bias }
    }
}

/// Repeats the lower half of a vector in its upper half.
fn double<S: Lanes>(vector: &mut [f32]) {
    vector.copy_within(..S::LANES / 2, S::LANES / 2);
}

/// Where the lanes of the last vector are, when the channels do not fill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Its first lanes hold the channels that are left, the others zeros.
    Zeros,
    /// It ends with the last channel and repeats channels of the vector before;
    /// zeros where there are fewer channels than lanes.
    Overlap,
}

impl Tail {
    /// Channels of the last vector that the vector before holds, too.
    pub(crate) fn overlap(self, channels: usize, lanes: usize) -> usize {
        if self == Self::Zeros || channels < lanes {
            0
        } else {
            channels.next_multiple_of(lanes) - channels
        }
    }

    /// The channels of vector `vector`.
    pub(crate) fn channels(self, vector: usize, channels: usize, lanes: usize) -> Range<usize> {
        let end = ((vector + 1) * lanes).min(channels);
        match self {
            Self::Zeros => vector * lanes..end,
            Self::Overlap => end.saturating_sub(lanes)..end,
        }
    }
}

/// A depthwise convolution's weights: `[channel vector][tap][lane]`. Lanes without
/// a channel have weight and bias zero.
pub(crate) struct PackedDepthwise {
    /// Output channels.
    pub(crate) channels: usize,
    /// Of them for each input channel.
    pub(crate) multiplier: usize,
    pub(crate) taps: usize,
    tail: Tail,
    pub(crate) weights: AlignedBuf,
    pub(crate) bias: AlignedBuf,
}

impl PackedDepthwise {
    /// The channels of vector `vector`.
    #[inline(always)]
    pub(crate) fn lanes_of<S: Lanes>(&self, vector: usize) -> Range<usize> {
        self.tail.channels(vector, self.channels, S::LANES)
    }

    /// Channels of the last vector that the vector before holds, too.
    pub(crate) fn overlap<S: Lanes>(&self) -> usize {
        self.tail.overlap(self.channels, S::LANES)
    }
}

/// Packs for the instruction set it is dispatched to.
pub(crate) struct PackDepthwise<'p>(pub(crate) &'p DepthwiseParams<'p>, pub(crate) Tail);

impl Kernel for PackDepthwise<'_> {
    type Output = PackedDepthwise;

    fn run<S: Lanes>(self, _: S) -> PackedDepthwise {
        let Self(&DepthwiseParams { channels, multiplier, window, weights, bias, .. }, tail) = self;
        let channels = channels * multiplier;
        let taps = window.kernel[0] * window.kernel[1];
        let vectors = channels.div_ceil(S::LANES);
        let mut packed = AlignedBuf::zeroed(vectors * taps * S::LANES);
        let mut packed_bias = AlignedBuf::zeroed(vectors * S::LANES);
        for vector in 0..vectors {
            let lanes = tail.channels(vector, channels, S::LANES);
            for tap in 0..taps {
                packed[(vector * taps + tap) * S::LANES..][..lanes.len()]
                    .copy_from_slice(&weights[tap * channels..][lanes.clone()]);
            }
            if let Some(bias) = bias {
                packed_bias[vector * S::LANES..][..lanes.len()].copy_from_slice(&bias[lanes]);
            }
        }
        PackedDepthwise { channels, multiplier, taps, tail, weights: packed, bias: packed_bias }
    }
}

/// A LayerNorm's weights in whole vectors, with zeros behind the last channel.
pub(crate) struct PackedNorm {
    pub(crate) weight: AlignedBuf,
    pub(crate) bias: AlignedBuf,
    pub(crate) epsilon: f32,
}

impl PackedNorm {
    pub(crate) fn new(params: &LayerNormParams<'_>) -> Self {
        // A buffer is a whole number of cache lines, which no vector is wider than.
        let pack = |values: &[f32]| {
            let mut packed = AlignedBuf::zeroed(values.len());
            packed[..values.len()].copy_from_slice(values);
            packed
        };
        let &LayerNormParams { weight, bias, epsilon } = params;
        Self { weight: pack(weight), bias: pack(bias), epsilon }
    }
}
