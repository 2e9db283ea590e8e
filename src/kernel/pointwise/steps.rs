//! What a pointwise tile sums: the steps along the input channels, in their order.

use core::sync::atomic::{Ordering, compiler_fence};

use super::{Args, groups_rest, last_steps, lines_at_a_time, tail};
use crate::buffer::LINE;
use crate::simd::{K_STEP, Lanes, end_row, load_all};

/// Pixels by vectors of output channels, run by run.
///
/// # Safety
/// As for [`panel`](super::panel), for `MR` pixels from `a` on.
#[inline(always)]
pub(super) unsafe fn of_rows<S: Lanes, const MR: usize, const NV: usize, const TAIL: u8>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    args: &Args,
    mut a: *const f32,
    mut ahead: *const f32,
) {
    let mut b = args.b;
    let last = last_steps::<S>(NV, TAIL, args.k);
    let steps = args.k - last;
    let by_step = const { tail::is_by_step(TAIL) };
    // Or it would be read, and the mask made of it, again in each step.
    let half = args.pixel_lanes;
    // SAFETY: every address is of a pixel r < MR and a channel below k of a run, or of
    // that channel's NV vectors of weights.
    unsafe {
        macro_rules! one_step {
            ($a:expr, $b:expr) => {
                if S::STEPS_APART {
                    compiler_fence(Ordering::SeqCst);
                }
                let b = load_all::<S, NV>(s, $b);
                if tail::is_own(TAIL) {
                    rank_one_own(s, acc, TAIL == tail::LOW, $a, args.a_row, &b);
                } else {
                    rank_one_halved(s, acc, half, S::STEPS_APART, $a, args.a_row, &b);
                }
            };
        }
        macro_rules! steps {
            ($n:expr) => {
                for k in 0..$n {
                    if by_step {
                        one_step!(a.add(k), b);
                    } else {
                        row_by_row(
                            s,
                            acc,
                            1,
                            |r, _| a.wrapping_add(r * args.a_row + k),
                            |_, v| s.load(b.add(v * S::LANES)),
                        );
                    }
                    b = b.add(NV * S::LANES);
                }
            };
        }
        for _ in 0..args.runs_before {
            steps!(args.k);
            a = a.wrapping_add(args.a_run);
        }
        let (blocks, rest) = (steps / S::LANES, steps % S::LANES);
        let grouped = const { groups_rest(NV, TAIL) };
        let in_groups = if grouped { rest - rest % K_STEP } else { 0 };
        for block in 0..blocks + usize::from(grouped) {
            let is_rest = grouped && block == blocks;
            for group in 0..if is_rest { in_groups } else { S::LANES } / K_STEP {
                // In every group it would make AVX-512 spill when compiled for Sapphire Rapids.
                if group % 2 == 0 {
                    for _ in 0..const { lines_at_a_time::<S>(NV) } {
                        s.prefetch(ahead);
                        ahead = ahead.wrapping_add(LINE);
                    }
                }
                let a = a.add(group * K_STEP);
                if const { TAIL == tail::HALVED && MR <= 6 } {
                    // Unrolled, LLVM loads ahead into the registers that are left, and spills.
                    let end = s.elsewhere(a.add(K_STEP));
                    let mut a = a;
                    while a != end {
                        one_step!(a, b);
                        a = a.add(1);
                        b = b.add(NV * S::LANES);
                    }
                    continue;
                }
                if by_step {
                    for k in 0..K_STEP {
                        one_step!(a.add(k), b.add(k * NV * S::LANES));
                    }
                } else {
                    s.rank_update(acc, a, args.a_row, b);
                }
                b = b.add(K_STEP * NV * S::LANES);
            }
            if !is_rest {
                a = a.wrapping_add(args.a_block);
            }
        }
        a = a.add(in_groups);
        let rest = rest - in_groups;
        steps!(rest);
        if last > 0 {
            let a = a.add(rest);
            row_by_row(
                s,
                acc,
                S::LAST_STEPS,
                |r, k| a.wrapping_add(r * args.a_row + k),
                |k, v| s.load(b.add((k * NV + v) * S::LANES)),
            );
        }
    }
}

/// Output channels by vectors of pixels, which are read where they are: a plane, or what was
/// turned, for each step.
///
/// # Safety
/// As for [`panel`](super::panel), for `MR` output channels from `a` and pixels from `b` on.
#[inline(always)]
pub(super) unsafe fn of_planes<S: Lanes, const MR: usize, const NV: usize, const TAIL: u8>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    args: &Args,
    mut a: *const f32,
    mut b: *const f32,
) {
    // Or they would be fetched again in each step.
    let (a_row, b_row) = (args.a_row, args.b_row);
    let exist = s.mask(|lane| lane < args.last_lanes);
    let last = if tail::is_cut(TAIL) { 0 } else { last_steps::<S>(NV, TAIL, args.k) };
    let steps = args.k - last;
    // SAFETY: every address is of a channel's NV vectors of pixels, the last one as wide as
    // it exists, or of a channel below k of row r < MR of the weights.
    unsafe {
        macro_rules! step {
            ($($times:literal)*) => {$(
                let _ = $times;
                if S::STEPS_APART {
                    compiler_fence(Ordering::SeqCst);
                }
                // What is beside these pixels, if there is more: others are slower with this.
                if TAIL == tail::OWN {
                    for line in 0..(NV * S::LANES).div_ceil(LINE) {
                        s.prefetch(b.wrapping_add(NV * S::LANES + line * LINE));
                    }
                }
                let mut x = [s.splat(0.0); NV];
                for v in 0..NV {
                    let p = b.wrapping_add(v * S::LANES);
                    let cut = tail::is_cut(TAIL) && v == NV - 1;
                    x[v] = if cut { s.load_masked(p, exist) } else { s.load(p) };
                }
                if TAIL == tail::HALVED {
                    x[NV - 1] = s.join(x[NV - 1], s.swap_halves(x[NV - 1]), args.pixel_lanes);
                    rank_one_halved(s, acc, args.pixel_lanes, false, a, 1, &x);
                } else {
                    for r in 0..MR {
                        let w = s.splat(s.read(a.wrapping_add(r)));
                        for v in 0..NV {
                            acc[r][v] = s.mul_add(x[v], w, acc[r][v]);
                        }
                    }
                }
                a = a.wrapping_add(a_row);
                b = b.wrapping_add(b_row);
            )*};
        }
        for _ in 0..steps / K_STEP {
            step!(1 2 3 4);
        }
        for _ in 0..steps % K_STEP {
            step!(1);
        }
        if last > 0 {
            row_by_row(
                s,
                acc,
                S::LAST_STEPS,
                |r, k| a.wrapping_add(r + k * a_row),
                |k, v| s.load(b.wrapping_add(k * b_row + v * S::LANES)),
            );
        }
    }
}

/// Some steps of a tile, at most `K_STEP`, of one row after the other; `a` is where a row's
/// number of a step is, `load` gives a step's vector.
///
/// # Safety
/// `a` is valid for reading for `MR` rows and `steps` steps.
#[inline(always)]
unsafe fn row_by_row<S: Lanes, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    steps: usize,
    a: impl Fn(usize, usize) -> *const f32,
    load: impl Fn(usize, usize) -> S::V,
) {
    let held = (steps + MR) * NV < S::REGISTERS;
    let mut weights = [[s.splat(0.0); NV]; K_STEP];
    if held {
        for k in 0..steps {
            for v in 0..NV {
                weights[k][v] = load(k, v);
            }
        }
    }
    for r in 0..MR {
        // Or the loads would move to the front, and spill.
        compiler_fence(Ordering::SeqCst);
        for k in 0..steps {
            // SAFETY: passed on.
            let x = unsafe { s.splat(s.read(a(r, k))) };
            for v in 0..NV {
                let w = if held { weights[k][v] } else { load(k, v) };
                acc[r][v] = s.mul_add(x, w, acc[r][v]);
            }
        }
        end_row::<S, MR, NV>(s, &mut acc[r]);
    }
}

/// One step of [`Lanes::rank_update`] of the weights `b`, each multiply-add with an input that it
/// broadcasts by itself; with `low` the last vector's only in the lower half.
///
/// # Safety
/// `a` is valid for reading at each of `MR` rows.
#[inline(always)]
unsafe fn rank_one_own<S: Lanes, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    low: bool,
    a: *const f32,
    a_row: usize,
    b: &[S::V; NV],
) {
    // There are no such tiles of four vectors.
    let (second, third) = (s.elsewhere(a), s.elsewhere(a));
    for r in 0..MR {
        for v in 0..NV {
            let a = match v {
                0 => a,
                1 => second,
                _ => third,
            };
            // SAFETY: row r < MR of `a`.
            let x = unsafe { s.splat(s.read(a.wrapping_add(r * a_row))) };
            acc[r][v] = if low && v == NV - 1 {
                s.mul_add_low(x, b[v], acc[r][v])
            } else {
                s.mul_add(x, b[v], acc[r][v])
            };
        }
    }
}

/// One step of [`Lanes::rank_update`] of the weights `b`, whose last vector holds what half a
/// vector has twice: it meets two rows at once, and `acc[r][NV - 1]` with even `r` holds row `r`
/// below row `r + 1`. `apart`: the loads of two rows stay behind the two before.
///
/// # Safety
/// `a` is valid for reading at each of `MR` rows.
#[inline(always)]
unsafe fn rank_one_halved<S: Lanes, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    half: usize,
    apart: bool,
    a: *const f32,
    a_row: usize,
    b: &[S::V; NV],
) {
    // SAFETY: row r < MR of `a`.
    unsafe {
        for r in (0..MR).step_by(2) {
            if apart {
                compiler_fence(Ordering::SeqCst);
            }
            let x = s.splat(s.read(a.add(r * a_row)));
            let mut both = x;
            for v in 0..NV - 1 {
                acc[r][v] = s.mul_add(x, b[v], acc[r][v]);
            }
            if r + 1 < MR {
                let x = s.splat(s.read(a.add((r + 1) * a_row)));
                both = s.join(both, x, half);
                for v in 0..NV - 1 {
                    acc[r + 1][v] = s.mul_add(x, b[v], acc[r + 1][v]);
                }
            }
            acc[r][NV - 1] = s.mul_add(both, b[NV - 1], acc[r][NV - 1]);
        }
    }
}
