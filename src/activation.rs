//! Activations: what each one means, as a scalar and as a vector.

use crate::error::{Error, Result};
use crate::simd::Lanes;

/// A function applied to each output of a stage.
///
/// NaN stays NaN under every one of them. The sign of a zero result is not part
/// of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `x`
    #[default]
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)` (Howard et al. 2017, MobileNets).
    Relu6,
    /// `min(max(x, lo), hi)`; the bounds may be infinite.
    Clamp {
        /// Lower bound.
        lo: f32,
        /// Upper bound, at least `lo`.
        hi: f32,
    },
    /// `x` for `x >= 0`, else `slope * x`.
    LeakyRelu {
        /// Finite slope of the negative side.
        slope: f32,
    },
    /// `x * min(max(x + 3, 0), 6) / 6` (Howard et al. 2019, MobileNetV3, 5.2).
    HardSwish,
    /// `min(max(alpha * x + beta, 0), 1)`, as ONNX defines it.
    HardSigmoid {
        /// Finite slope.
        alpha: f32,
        /// Finite offset.
        beta: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x / (1 + exp(-x))`, also called Swish (Ramachandran et al. 2017).
    Silu,
}

/// An activation as the kernels tell them apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish {
    /// Nothing: a linear layer.
    Keep,
    /// Two instructions on each register before it is stored.
    Clamp([f32; 2]),
    /// Too long for that: in a pass over what was stored.
    Apply(Activation),
}

impl Activation {
    /// The activation of one number.
    pub fn apply(self, x: f32) -> f32 {
        self.apply_f64(f64::from(x)) as f32
    }

    /// The definition.
    pub(crate) fn apply_f64(self, x: f64) -> f64 {
        // Comparisons that are false for NaN keep it.
        let clamp = |x: f64, lo: f64, hi: f64| {
            if x < lo {
                lo
            } else if x > hi {
                hi
            } else {
                x
            }
        };
        match self {
            Self::Identity => x,
            Self::Relu => clamp(x, 0.0, f64::INFINITY),
            Self::Relu6 => clamp(x, 0.0, 6.0),
            Self::Clamp { lo, hi } => clamp(x, f64::from(lo), f64::from(hi)),
            Self::LeakyRelu { slope } => {
                if x < 0.0 {
                    f64::from(slope) * x
                } else {
                    x
                }
            }
            Self::HardSwish => x * clamp(x + 3.0, 0.0, 6.0) / 6.0,
            Self::HardSigmoid { alpha, beta } => {
                clamp(f64::from(alpha) * x + f64::from(beta), 0.0, 1.0)
            }
            Self::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Self::Silu => x / (1.0 + libm::exp(-x)),
        }
    }

    pub(crate) fn validate(self) -> Result<()> {
        let valid = match self {
            // False for NaN on either side.
            Self::Clamp { lo, hi } => lo <= hi,
            Self::LeakyRelu { slope } => slope.is_finite(),
            Self::HardSigmoid { alpha, beta } => alpha.is_finite() && beta.is_finite(),
            _ => true,
        };
        if valid { Ok(()) } else { Err(Error::InvalidActivation(self)) }
    }

    /// What a kernel does with its sums.
    pub(crate) fn finish(self) -> Finish {
        match self {
            Self::Identity => Finish::Keep,
            Self::Relu => Finish::Clamp([0.0, f32::INFINITY]),
            Self::Relu6 => Finish::Clamp([0.0, 6.0]),
            Self::Clamp { lo, hi } => Finish::Clamp([lo, hi]),
            _ => Finish::Apply(self),
        }
    }

    /// The activation of a vector.
    #[inline(always)]
    pub(crate) fn apply_lanes<S: Lanes>(self, s: S, x: S::V) -> S::V {
        let clamp = |x, lo, hi| s.min(s.splat(hi), s.max(s.splat(lo), x));
        match self {
            Self::Identity => x,
            Self::Relu => s.max(s.splat(0.0), x),
            Self::Relu6 => clamp(x, 0.0, 6.0),
            Self::Clamp { lo, hi } => clamp(x, lo, hi),
            Self::LeakyRelu { slope } => {
                let zero = s.splat(0.0);
                s.mul_add(s.splat(slope), s.min(zero, x), s.max(zero, x))
            }
            Self::HardSwish => {
                let gate = clamp(s.add(x, s.splat(3.0)), 0.0, 6.0);
                s.mul(s.mul(x, gate), s.splat(1.0 / 6.0))
            }
            Self::HardSigmoid { alpha, beta } => {
                clamp(s.mul_add(s.splat(alpha), x, s.splat(beta)), 0.0, 1.0)
            }
            Self::Sigmoid => s.div(s.splat(1.0), one_plus_exp_neg(s, x)),
            Self::Silu => s.div(x, one_plus_exp_neg(s, x)),
        }
    }
}

#[inline(always)]
fn one_plus_exp_neg<S: Lanes>(s: S, x: S::V) -> S::V {
    s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x)))
}

/// `exp(x)`, to about one unit in the last place; 0 and infinity beyond the
/// range of f32, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite 1980: `ln 2` in two
/// parts, so that `r` loses nothing), then the Taylor polynomial of `exp(r)`
/// to the 7th degree, whose remainder is below half a unit.
#[inline(always)]
fn exp<S: Lanes>(s: S, x: S::V) -> S::V {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let round = |v| s.sub(s.add(v, s.splat(ROUND)), s.splat(ROUND));

    // Past these exp is 0 or infinite in f32.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.0), x));
    let n = round(s.mul(x, s.splat(core::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HI), x);
    let r = s.mul_add(n, s.splat(-LN2_LO), r);

    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }

    // 2^n in two factors: n reaches 128 and -150, an exponent only 127 and -126.
    // 2^23 + 127 + n has n's biased exponent in its lowest bits.
    let pow2 = |n| s.shift_to_exponent(s.add(n, s.splat(8_388_608.0 + 127.0)));
    let half = round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, pow2(half)), pow2(s.sub(n, half)))
}
