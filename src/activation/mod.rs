//! Activations: what each one means, as a scalar and as a vector.

mod table;
mod vector;

use crate::error::{Error, Result};
use crate::simd::{Lanes, Several};

/// A function applied to each output of a stage.
///
/// NaN stays NaN under every one of them; at an infinity each gives its limit.
/// The sign of a zero result is not part of the contract.
///
/// Those with an exponential are within these distances of the true value, in
/// units of the last place (of f32, subnormal results included), for every f32
/// and on every instruction set; a test goes through all of them:
///
/// | `Exp` | `Sigmoid` | `Silu` | `Gelu` | `GeluTanh` |
/// |---|---|---|---|---|
/// | 1.25 | 2.5 | 3 | 4 | 3.25 |
///
/// On AVX-512, where it comes from tables, `Gelu` may be off by more below -5, where it lies
/// between 0 and -1.5e-6, but then by no more than 2e-13 in absolute terms.
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
    /// `exp(x)`
    Exp,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x / (1 + exp(-x))`, also called Swish (Ramachandran et al. 2017).
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt(2)))` (Hendrycks and Gimpel 2016).
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`, the same
    /// paper's approximation of `Gelu`; no kernel is faster with it.
    GeluTanh,
}

/// An activation as the kernels tell them apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish {
    in_registers: InRegisters,
    /// What is too long for that: in a pass over what was stored.
    pub(crate) in_a_pass: Option<Activation>,
}

/// What becomes of each register before it is stored. No more than three, which are told apart by
/// comparisons: a jump through a table costs a short tile some cycles.
#[derive(Debug, Clone, Copy)]
enum InRegisters {
    /// Nothing: a linear layer.
    Keep,
    /// Two instructions.
    Clamp([f32; 2]),
    /// Five.
    HardSwish,
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
        // Where a factor is 0 already, so that minus infinity makes no NaN.
        let from = |lo: f64| clamp(x, lo, f64::INFINITY);
        match self {
            Self::Identity => x,
            Self::Relu => from(0.0),
            Self::Relu6 => clamp(x, 0.0, 6.0),
            Self::Clamp { lo, hi } => clamp(x, f64::from(lo), f64::from(hi)),
            Self::LeakyRelu { slope } => {
                if x < 0.0 {
                    f64::from(slope) * x
                } else {
                    x
                }
            }
            Self::HardSwish => from(-3.0) * clamp(x + 3.0, 0.0, 6.0) / 6.0,
            Self::HardSigmoid { alpha, beta } => {
                clamp(f64::from(alpha) * x + f64::from(beta), 0.0, 1.0)
            }
            Self::Exp => libm::exp(x),
            Self::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Self::Silu => from(-1e3) / (1.0 + libm::exp(-x)),
            Self::Gelu => from(-1e3) * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2) / 2.0,
            Self::GeluTanh => {
                // tanh(y) = 1 - 2 / (1 + exp(2 y)), and sqrt(8 / pi).
                let twice = 1.595_769_121_605_730_7 * (x + 0.044_715 * x * x * x);
                from(-1e3) / (1.0 + libm::exp(-twice))
            }
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
        let in_registers = match self {
            Self::Identity => InRegisters::Keep,
            Self::Relu => InRegisters::Clamp([0.0, f32::INFINITY]),
            Self::Relu6 => InRegisters::Clamp([0.0, 6.0]),
            Self::Clamp { lo, hi } => InRegisters::Clamp([lo, hi]),
            Self::HardSwish => InRegisters::HardSwish,
            _ => return self.finish_in_a_pass(),
        };
        Finish { in_registers, in_a_pass: None }
    }

    /// The same in a pass, however short.
    pub(crate) fn finish_in_a_pass(self) -> Finish {
        Finish { in_a_pass: Some(self), ..Finish::KEEP }
    }

    /// Runs a pass that applies it, from an arm for each long activation: the pass is compiled
    /// for that one alone, without optimisation too.
    #[inline(always)]
    pub(crate) fn in_a_pass<S: Lanes>(self, pass: impl Pass<S>) {
        // A vector and what is needed of it later take some three registers, the constants the
        // others; `$few` vectors at a time where there are but 16: what was fastest.
        macro_rules! run {
            ($few:literal, $apply:expr) => {
                if const { S::REGISTERS >= 32 } {
                    pass.run::<6>($apply)
                } else {
                    pass.run::<$few>($apply)
                }
            };
        }
        match self {
            Self::Exp => run!(4, vector::exp),
            Self::Sigmoid => run!(4, vector::sigmoid),
            Self::Silu => run!(3, vector::silu),
            Self::Gelu => {
                if const { S::LOOKS_UP } {
                    // The tables stay in registers.
                    pass.run::<2>(vector::gelu_by_table);
                } else {
                    run!(3, vector::gelu_by_exp);
                }
            }
            Self::GeluTanh => run!(2, vector::gelu_tanh),
            Self::LeakyRelu { slope } => run!(
                4,
                #[inline(always)]
                |s, x| vector::leaky_relu(s, x, slope)
            ),
            Self::HardSigmoid { alpha, beta } => run!(
                4,
                #[inline(always)]
                |s, x| vector::hard_sigmoid(s, x, alpha, beta)
            ),
            // Short ones, which come here where a residual follows.
            Self::Identity | Self::Relu | Self::Relu6 | Self::Clamp { .. } | Self::HardSwish => {
                pass.run::<2>(
                    #[inline(always)]
                    |s, mut x| {
                        self.finish().in_registers(s.0, InPlace(&mut x));
                        x
                    },
                );
            }
        }
    }
}

/// A pass over vectors that were stored, some at a time.
pub(crate) trait Pass<S: Lanes> {
    fn run<const N: usize>(self, apply: impl Fn(Several<S, N>, [S::V; N]) -> [S::V; N]);
}

/// Work whose vectors are finished in registers.
pub(crate) trait Finishing<S: Lanes> {
    fn run(self, finish: impl Fn(S::V) -> S::V);
}

impl Finish {
    /// Nothing.
    pub(crate) const KEEP: Self = Self { in_registers: InRegisters::Keep, in_a_pass: None };

    /// Whether a tile stores its sums as they are, and nothing comes after.
    #[inline(always)]
    pub(crate) fn is_keep(&self) -> bool {
        matches!(self.in_registers, InRegisters::Keep) && self.in_a_pass.is_none()
    }

    /// Runs `work` with what becomes of a sum before it is stored.
    #[inline(always)]
    pub(crate) fn in_registers<S: Lanes>(self, s: S, work: impl Finishing<S>) {
        match self.in_registers {
            InRegisters::Keep => work.run(
                #[inline(always)]
                |x| x,
            ),
            InRegisters::Clamp([lo, hi]) => {
                let (lo, hi) = (s.splat(lo), s.splat(hi));
                work.run(
                    #[inline(always)]
                    |x| s.min(hi, s.max(lo, x)),
                );
            }
            // The gate first, so that nothing overflows.
            InRegisters::HardSwish => {
                let (lo, three, six) = (s.splat(-3.0), s.splat(3.0), s.splat(6.0));
                let sixth = s.splat(1.0 / 6.0);
                work.run(
                    #[inline(always)]
                    |x| {
                        let x = s.max(lo, x);
                        let gate = s.min(six, s.add(x, three));
                        s.mul(x, s.mul(gate, sixth))
                    },
                );
            }
        }
    }

    /// Hands each vector of a tile's sums to `f`, finished in registers.
    #[inline(always)]
    pub(crate) fn each<S: Lanes, const C: usize, const R: usize>(
        self,
        s: S,
        sums: &[[S::V; C]; R],
        f: impl FnMut(usize, usize, S::V),
    ) {
        self.in_registers(s, Each { sums, f });
    }
}

/// Vectors that are finished where they are.
struct InPlace<'a, V>(&'a mut [V]);

impl<S: Lanes> Finishing<S> for InPlace<'_, S::V> {
    #[inline(always)]
    fn run(self, finish: impl Fn(S::V) -> S::V) {
        for x in self.0 {
            *x = finish(*x);
        }
    }
}

struct Each<'a, V, F, const C: usize, const R: usize> {
    sums: &'a [[V; C]; R],
    f: F,
}

impl<S: Lanes, F, const C: usize, const R: usize> Finishing<S> for Each<'_, S::V, F, C, R>
where
    F: FnMut(usize, usize, S::V),
{
    #[inline(always)]
    fn run(self, finish: impl Fn(S::V) -> S::V) {
        each(self.sums, finish, self.f);
    }
}

/// Hands each vector of a tile's sums to `f`, finished, and when the next row's are too: a store
/// should not wait.
#[inline(always)]
pub(crate) fn each<V: Copy, const C: usize, const R: usize>(
    sums: &[[V; C]; R],
    finish: impl Fn(V) -> V,
    mut f: impl FnMut(usize, usize, V),
) {
    // Spelled out, since a loop of this size does not always unroll, and the array
    // would stay in memory.
    macro_rules! rows {
        ($($r:literal)*) => {
            let mut row = sums[0];
            for c in 0..C {
                row[c] = finish(row[c]);
            }
            $(if const { $r < R } {
                let mut next = sums[$r];
                for c in 0..C {
                    next[c] = finish(next[c]);
                }
                for c in 0..C {
                    f($r - 1, c, row[c]);
                }
                row = next;
            })*
            for c in 0..C {
                f(R - 1, c, row[c]);
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}
