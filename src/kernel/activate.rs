//! The activations that are too long for a tile's epilogue.

use crate::activation::{Finish, Pass};
use crate::simd::{Lanes, Several};

/// What is added to outputs after the activation. Strides are in f32.
#[derive(Clone, Copy)]
pub(crate) struct Addend {
    /// Pixel `r`, vector `v` is at `r * row + v * vector`; null where there is none.
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) vector: usize,
}

impl Addend {
    pub(crate) const NONE: Self = Self { start: core::ptr::null(), row: 0, vector: 0 };

    /// The same from an offset on.
    #[inline(always)]
    pub(crate) fn skip(self, offset: usize) -> Self {
        if self.start.is_null() {
            self
        } else {
            Self { start: self.start.wrapping_add(offset), ..self }
        }
    }
}

/// Pixels by channel vectors that were just stored. Strides are in f32.
#[derive(Clone, Copy)]
pub(crate) struct Stored {
    /// Pixel `r`, vector `v` is at `r * row + v * vector`.
    pub(crate) output: *mut f32,
    pub(crate) row: usize,
    pub(crate) vector: usize,
    pub(crate) pixels: usize,
    pub(crate) vectors: usize,
    /// Lanes of the last vector that exist, at least 1.
    pub(crate) last_lanes: usize,
    pub(crate) residual: Addend,
}

/// Applies an activation that is left to a pass to what is still in a cache near the core, rather
/// than unrolled into every instance of a tile.
///
/// # Safety
/// The pointers are valid as [`Stored`] says, and nobody else touches the output.
#[inline(always)]
pub(crate) unsafe fn activate<S: Lanes>(s: S, finish: &Finish, stored: impl FnOnce() -> Stored) {
    if finish.in_a_pass.is_some() {
        // SAFETY: passed on.
        unsafe { activate_in_a_pass(s, finish, &stored()) }
    }
}

/// # Safety
/// As for [`activate`].
#[inline(never)]
unsafe fn activate_in_a_pass<S: Lanes>(s: S, finish: &Finish, stored: &Stored) {
    // Read here: as an argument it would be copied by vectors ahead of a tile's sums.
    let Some(activation) = finish.in_a_pass else { return };
    activation.in_a_pass(OverStored { s, stored });
}

/// Pixels of which [`activate`] was told that they are there.
struct OverStored<'a, S> {
    s: S,
    stored: &'a Stored,
}

impl<S: Lanes> Pass<S> for OverStored<'_, S> {
    #[inline(always)]
    fn run<const N: usize>(self, apply: impl Fn(Several<S, N>, [S::V; N]) -> [S::V; N]) {
        let Self { s, stored } = self;
        s.enter(
            #[inline(always)]
            || {
                // SAFETY: as `activate` was told.
                unsafe { by_pixels(s, stored, apply) }
            },
        );
    }
}

/// `N` pixels at a time.
///
/// # Safety
/// As for [`activate`].
#[inline(always)]
unsafe fn by_pixels<S: Lanes, const N: usize>(
    s: S,
    stored: &Stored,
    apply: impl Fn(Several<S, N>, [S::V; N]) -> [S::V; N],
) {
    let &Stored { output, row, vector, pixels, vectors, last_lanes, residual } = stored;
    for v in 0..vectors {
        let lanes = if v + 1 == vectors { last_lanes } else { S::LANES };
        // SAFETY: called for vector v of a pixel.
        let load = |p: *const f32| unsafe {
            if lanes == S::LANES { s.load(p) } else { s.load_first(p, lanes) }
        };
        for first in (0..pixels).step_by(N) {
            // Where fewer are left, the last one is taken more than once: all are
            // loaded before any is stored.
            let pixel = |i: usize| (first + i).min(pixels - 1);
            let at = |i: usize| output.wrapping_add(pixel(i) * row + v * vector);
            let mut x = [s.splat(0.0); N];
            for (i, x) in x.iter_mut().enumerate() {
                *x = load(at(i));
            }
            x = apply(Several(s), x);
            if !residual.start.is_null() {
                for (i, x) in x.iter_mut().enumerate() {
                    let at = pixel(i) * residual.row + v * residual.vector;
                    *x = s.add(*x, load(residual.start.wrapping_add(at)));
                }
            }
            for (i, &x) in x.iter().enumerate() {
                // SAFETY: vector v of a pixel.
                unsafe {
                    if lanes == S::LANES {
                        s.store(at(i), x);
                    } else {
                        s.store_first(at(i), x, lanes);
                    }
                }
            }
        }
    }
}
