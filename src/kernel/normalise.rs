//! LayerNorm over the channels of some pixels, in place (Ba, Kiros and Hinton 2016).
//!
//! `(x - mean) / sqrt(variance + epsilon) * weight + bias` in two passes over what
//! lies in a cache, and a third that writes. The mean of all `x` is only an estimate:
//! the second pass also sums the distances from it, whose mean corrects it and the
//! variance (Chan, Golub and LeVeque 1983, section 3), so that a mean far from zero
//! costs no accuracy.

use crate::pack::PackedNorm;
use crate::simd::{Lanes, MAX_LANES};

/// Normalises `pixels` pixels of `channels` channels.
///
/// # Safety
/// Vector `v` of pixel `p` is at `band + v * plane + p * LANES`, valid for whole
/// vectors, and nobody else touches it; the norm is of so many channels and packed
/// for this instruction set.
pub(crate) unsafe fn normalise<S: Lanes>(
    s: S,
    norm: &PackedNorm,
    channels: usize,
    (band, plane): (*mut f32, usize),
    pixels: usize,
) {
    s.enter(
        #[inline(always)]
        || {
            // SAFETY: passed on. Each pixel takes three registers.
            unsafe {
                if S::REGISTERS >= 32 {
                    by_pixels::<S, 8>(s, norm, channels, (band, plane), pixels);
                } else {
                    by_pixels::<S, 4>(s, norm, channels, (band, plane), pixels);
                }
            }
        },
    );
}

/// `N` pixels at a time.
///
/// # Safety
/// As for [`normalise`].
#[inline(always)]
unsafe fn by_pixels<S: Lanes, const N: usize>(
    s: S,
    norm: &PackedNorm,
    channels: usize,
    (band, plane): (*mut f32, usize),
    pixels: usize,
) {
    let vectors = channels.div_ceil(S::LANES);
    let count = channels as f32;
    for first in (0..pixels).step_by(N) {
        // Where fewer are left, the last one is taken more than once: all are loaded
        // before any is stored.
        let at = |v: usize, i: usize| {
            band.wrapping_add(v * plane + (first + i).min(pixels - 1) * S::LANES)
        };
        // SAFETY: a vector of a pixel.
        let load = |v: usize, i: usize| unsafe { s.load(at(v, i)) };
        let lanes = |v: usize| (channels - v * S::LANES).min(S::LANES);
        let zero = s.splat(0.0);

        let mut sums = [zero; N];
        for v in 0..vectors {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.join(load(v, i), zero, lanes(v)));
            }
        }
        // Not by `map`, behind which an intrinsic may be called.
        let mut mean = sums;
        for mean in &mut mean {
            *mean = s.splat(total(s, *mean) / count);
        }

        let (mut sums, mut squares) = ([zero; N], [zero; N]);
        for v in 0..vectors {
            for (i, (sum, square)) in sums.iter_mut().zip(&mut squares).enumerate() {
                let x = s.join(s.sub(load(v, i), mean[i]), zero, lanes(v));
                *sum = s.add(*sum, x);
                *square = s.mul_add(x, x, *square);
            }
        }
        let mut rest = [zero; N];
        let mut scale = [zero; N];
        for i in 0..N {
            let more = total(s, sums[i]) / count;
            let variance = total(s, squares[i]) / count - more * more;
            rest[i] = s.splat(more);
            scale[i] = s.splat(1.0 / libm::sqrtf(variance + norm.epsilon));
        }

        for v in 0..vectors {
            // SAFETY: the packed norm has whole vectors.
            let [weight, bias] =
                [&norm.weight, &norm.bias].map(|x| unsafe { s.load(x.as_ptr().add(v * S::LANES)) });
            let mut y = [zero; N];
            for (i, y) in y.iter_mut().enumerate() {
                let x = s.sub(s.sub(load(v, i), mean[i]), rest[i]);
                *y = s.mul_add(s.mul(x, scale[i]), weight, bias);
            }
            for (i, &y) in y.iter().enumerate() {
                // SAFETY: a vector of a pixel.
                unsafe { s.store(at(v, i), y) };
            }
        }
    }
}

/// The sum of all lanes, halves first.
#[inline(always)]
fn total<S: Lanes>(s: S, x: S::V) -> f32 {
    let mut lanes = s.to_array(x);
    let mut n = MAX_LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}
