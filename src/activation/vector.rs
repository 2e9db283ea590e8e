//! The activations that are too long for a tile's epilogue, as vectors.
//!
//! SiLU and both forms of GELU are `max(x, 0) - u t(u)` with `u = |x|` and a
//! tail `t` that falls from 1/2 to 0: below zero that is `x t(-x)` with no
//! cancellation, above it the tail only corrects `x`. So each needs its tail
//! alone, to a few units in the last place however small it gets, which asks
//! that the exponential know its argument beyond an f32.

use super::table::{GELU_END, GELU_TAIL, STEP};
use crate::simd::{Lanes, Several};

/// `x` for `x >= 0`, else `slope * x`.
#[inline(always)]
pub(super) fn leaky_relu<S: Lanes, const N: usize>(
    s: Several<S, N>,
    x: [S::V; N],
    slope: f32,
) -> [S::V; N] {
    let zero = s.splat(0.0);
    s.mul_add(s.splat(slope), s.min(zero, x), s.max(zero, x))
}

/// `min(max(alpha * x + beta, 0), 1)`.
#[inline(always)]
pub(super) fn hard_sigmoid<S: Lanes, const N: usize>(
    s: Several<S, N>,
    x: [S::V; N],
    alpha: f32,
    beta: f32,
) -> [S::V; N] {
    s.clamp(s.mul_add(s.splat(alpha), x, s.splat(beta)), 0.0, 1.0)
}

/// `exp(x)`; 0 and infinity beyond the range of f32.
#[inline(always)]
pub(super) fn exp<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    // Past these exp is 0 or infinite in f32.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.0), x));
    Exp::new(s, x).value(s)
}

/// `1 / (1 + exp(-x))`, below zero as `exp(x) / (1 + exp(x))`.
#[inline(always)]
pub(super) fn sigmoid<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    const POW2_100: f32 = 1.267_650_6e30;
    let e = exp(s, s.neg(s.abs(x)));
    // 1 above zero, e below; between 0 and 2^-100 e is 1.
    let step = s.min(s.splat(1.0), s.mul(s.splat(POW2_100), x));
    s.div(s.max(e, step), s.add(s.splat(1.0), e))
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn silu<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    less_tail(
        s,
        x,
        110.0,
        #[inline(always)]
        |u| {
            let e = Exp::new(s, s.neg(u));
            e.times(s, s.div(u, s.add(s.splat(1.0), e.value(s))))
        },
    )
}

/// `x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))`.
#[inline(always)]
pub(super) fn gelu_tanh<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    // The exponent is SCALE u (u^2 + 1 / 0.044715), each constant in two parts;
    // the sum with OFFSET[0], which has few bits, loses only what is added again.
    const SCALE: [f32; 2] = [-0.071_354_814, -2.398_832_4e-9];
    const OFFSET: [f32; 2] = [22.375, -0.011_139_998];
    less_tail(
        s,
        x,
        10.875,
        #[inline(always)]
        |u| {
            let (square, lost) = product(s, u, u);
            let sum = s.add(square, s.splat(OFFSET[0]));
            let rounded = s.sub(square, s.sub(sum, s.splat(OFFSET[0])));
            let lost = s.add(s.add(rounded, lost), s.splat(OFFSET[1]));
            let (cube, rounded) = product(s, u, sum);
            let lost = s.mul_add(u, lost, rounded);
            let (z, rounded) = product(s, cube, s.splat(SCALE[0]));
            let lost = s.mul_add(lost, s.splat(SCALE[0]), rounded);
            let lost = s.mul_add(cube, s.splat(SCALE[1]), lost);
            let e = Exp::of_scaled(s, 1.0, z, Some(lost));
            e.times(s, s.div(u, s.add(s.splat(1.0), e.value(s))))
        },
    )
}

/// `x Phi(x)`, with the distribution function of the normal distribution; its tail by a table
/// of polynomials.
#[inline(always)]
pub(super) fn gelu_by_table<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    less_tail(
        s,
        x,
        GELU_END,
        #[inline(always)]
        |u| {
            // The sum has no bits below a step: it is rounded to one, and its lowest bits
            // count them.
            let round = s.splat(12_582_912.0 * STEP);
            let step = s.add(u, round);
            let rest = s.sub(u, s.sub(step, round));
            let [first, others @ ..] = GELU_TAIL.coefficients();
            let mut sum = s.lookup(first, step);
            for table in others {
                sum = s.mul_add(sum, rest, s.lookup(table, step));
            }
            sum
        },
    )
}

/// The same; its tail is `Phi(-u) = exp(-u^2 / 2) R(u)`, where `R` is half of
/// `erfcx(u / sqrt 2)`. With `b = u / (u + K)`, which goes from 0 to 1, `u R` is
/// `b` times a polynomial of `2 b - 1` (Shepherd and Laframboise 1981), relative
/// minimax error 2.3e-8; what rounding does to `b` nearly cancels.
#[inline(always)]
pub(super) fn gelu_by_exp<S: Lanes, const N: usize>(s: Several<S, N>, x: [S::V; N]) -> [S::V; N] {
    const K: f32 = 2.890_625;
    const TAIL: [f32; 9] = [
        -3.215_746e-4,
        -6.979_758_6e-4,
        0.001_794_459_1,
        0.005_522_86,
        -0.013_803_236,
        -0.033_359_237,
        0.209_531_59,
        -0.494_670_93,
        0.724_905_97,
    ];
    less_tail(
        s,
        x,
        14.75,
        #[inline(always)]
        |u| {
            let (square, lost) = product(s, u, u);
            let e = Exp::of_scaled(s, -0.5, square, Some(lost));
            let b = s.div(u, s.add(u, s.splat(K)));
            let half_w = s.sub(b, s.splat(0.5));
            e.times(s, s.mul(b, polynomial(s, TAIL, 2.0, half_w)))
        },
    )
}

/// `max(x, 0) - tail(|x|)`, where the tail is 0 in f32 from `end` on.
#[inline(always)]
fn less_tail<S: Lanes, const N: usize>(
    s: Several<S, N>,
    x: [S::V; N],
    end: f32,
    tail: impl FnOnce([S::V; N]) -> [S::V; N],
) -> [S::V; N] {
    let u = s.min(s.splat(end), s.abs(x));
    s.sub(s.max(s.splat(0.0), x), tail(u))
}

/// `a * b` and what its rounding lost.
#[inline(always)]
fn product<S: Lanes, const N: usize>(
    s: Several<S, N>,
    a: [S::V; N],
    b: [S::V; N],
) -> ([S::V; N], [S::V; N]) {
    let product = s.mul(a, b);
    (product, s.product_error(a, b, product))
}

/// A polynomial of `scale x`, coefficients of the highest power first. The scale goes
/// into them: a power of two, which rounds nothing.
#[inline(always)]
fn polynomial<S: Lanes, const N: usize, const D: usize>(
    s: Several<S, N>,
    coefficients: [f32; D],
    scale: f32,
    x: [S::V; N],
) -> [S::V; N] {
    let scaled = |i: usize| s.splat((i + 1..D).fold(coefficients[i], |c, _| c * scale));
    let mut sum = scaled(0);
    for i in 1..D {
        // What the last two steps lose is hardly scaled down by later ones.
        let near = i + 2 >= D;
        let c = scaled(i);
        sum = if near { s.mul_add_near(sum, x, c) } else { s.mul_add(sum, x, c) };
    }
    sum
}

/// An exponential `(1 + slope r) 2^n`, not yet rounded to an f32. A scale of the
/// argument is in the slope.
struct Exp<S: Lanes, const N: usize> {
    slope: [S::V; N],
    r: [S::V; N],
    n: [S::V; N],
}

impl<S: Lanes, const N: usize> Exp<S, N> {
    /// `exp(x)`, for `|x| < 120`.
    #[inline(always)]
    fn new(s: Several<S, N>, x: [S::V; N]) -> Self {
        Self::of_scaled(s, 1.0, x, None)
    }

    /// `exp(scale (x + lost))`, for `|scale x| < 120`, a `lost` that is small beside `x`
    /// and a power of two, which costs nothing.
    ///
    /// With a scale of 1, `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite 1980: `ln 2` in two
    /// parts, so that `r` loses nothing), then a polynomial of `r`, relative
    /// minimax error 3.1e-9.
    #[inline(always)]
    fn of_scaled(s: Several<S, N>, scale: f32, x: [S::V; N], lost: Option<[S::V; N]>) -> Self {
        const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        const SLOPE: [f32; 6] =
            [0.001_381_454, 0.008_368_745, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0];
        // Adding and subtracting 1.5 * 2^23 rounds to an integer.
        let round = s.splat(12_582_912.0);
        let n = s.sub(s.mul_add(x, s.splat(scale * core::f32::consts::LOG2_E), round), round);
        let r = s.mul_add(n, s.splat(-LN2[0] / scale), x);
        let mut r = s.mul_add(n, s.splat(-LN2[1] / scale), r);
        if let Some(lost) = lost {
            r = s.add(r, lost);
        }
        Self { slope: polynomial(s, SLOPE.map(|c| c * scale), scale, r), r, n }
    }

    #[inline(always)]
    fn value(&self, s: Several<S, N>) -> [S::V; N] {
        s.scale(s.mul_add(self.slope, self.r, s.splat(1.0)), self.n)
    }

    /// `a` times it: as a correction of `a`, which rounds less.
    #[inline(always)]
    fn times(&self, s: Several<S, N>, a: [S::V; N]) -> [S::V; N] {
        s.scale(s.mul_add(a, s.mul(self.slope, self.r), a), self.n)
    }
}
