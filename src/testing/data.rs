//! The numbers that tests compute with.

use core::fmt;
use core::ops::Deref;

use alloc::vec::Vec;

/// A small generator (SplitMix64), so that a seed is a test case.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Less than `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// What numbers tensors and weights hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// Uniform in [-1, 1).
    Ordinary,
    /// Integers so small that every sum is exact: results must be [the same
    /// numbers](super::same_numbers) as the reference's.
    Integer,
    /// Neighbours of opposite sign whose sum is some thousand times smaller than they
    /// are.
    Cancelling,
    /// Magnitudes from 1e-30 to 1e30 side by side, and denormal numbers; weights at most
    /// 1, so that no sum of theirs overflows.
    Wide,
    /// As [`Data::Integer`], with NaN, both infinities and -0 here and there. Results
    /// must be the same numbers, NaN where the reference has NaN.
    Special,
}

impl Data {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Ordinary, Self::Integer, Self::Cancelling, Self::Wide, Self::Special];

    /// Whether sums of such numbers, and clamps of them, are exact.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Integer | Self::Special)
    }

    /// `len` numbers of a tensor.
    pub fn tensor(self, seed: u64, len: usize) -> Vec<f32> {
        let random = &mut Random::new(seed);
        (0..len).map(|i| self.number(random, i, false)).collect()
    }

    /// `len` weights.
    pub(super) fn weights(self, random: &mut Random, len: usize) -> Numbers {
        Numbers((0..len).map(|i| self.number(random, i, true)).collect())
    }

    /// Number `i` of a tensor or of weights.
    fn number(self, random: &mut Random, i: usize, weight: bool) -> f32 {
        match self {
            Self::Ordinary => random.float(),
            Self::Integer => random.below(5) as f32 - 2.0,
            Self::Cancelling => {
                let x = 1e3 + random.float();
                if weight || i.is_multiple_of(2) { x } else { -x }
            }
            Self::Wide => {
                let most = if weight { 1.0 } else { 1e30 };
                random.float() * [most, 1.0, 1e-10, 1e-30, 1e-39][random.below(5)]
            }
            Self::Special => match random.below(60) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3..=6 => -0.0,
                _ => Self::Integer.number(random, i, weight),
            },
        }
    }
}

/// Numbers that a test prints only the first of.
#[derive(Clone, PartialEq)]
pub struct Numbers(pub Vec<f32>);

impl Deref for Numbers {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        match self.get(..SHOWN) {
            Some(first) if self.len() > SHOWN => write!(f, "{} of {first:?}...", self.len()),
            _ => write!(f, "{:?}", self.0),
        }
    }
}
