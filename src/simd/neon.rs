//! NEON (Advanced SIMD) on aarch64: 4 lanes, 32 registers.

use core::arch::aarch64::{
    float32x4_t, uint32x4_t, vaddq_f32, vbslq_f32, vcltq_u32, vcombine_f32, vdivq_f32, vdupq_n_f32,
    vdupq_n_u32, vextq_f32, vfmaq_f32, vfmaq_laneq_f32, vget_high_f32, vget_low_f32, vld1q_f32,
    vld1q_lane_f32, vld1q_u32, vmaxq_f32, vminq_f32, vmulq_f32, vreinterpretq_f32_u32,
    vreinterpretq_u32_f32, vshlq_n_u32, vst1q_f32, vst1q_lane_f32, vsubq_f32, vtrn1q_f32,
    vtrn2q_f32, vuzp1q_f32, vuzp2q_f32,
};

use super::{K_STEP, Lanes, MAX_VECTORS};

/// Proof that the target has NEON: it is part of every aarch64 build that
/// compiles this file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    /// The token; NEON is a baseline feature here, so there is nothing to ask.
    pub(crate) fn detect() -> Option<Self> {
        Some(Self(()))
    }
}

/// The lanes that `has` names, zeros in the others. Lane by lane into a register: a copy of
/// unknown length would be a call, an array would be on the stack.
///
/// # Safety
/// `p + i` is valid for reading for each of these lanes.
#[inline(always)]
unsafe fn load_lanes(p: *const f32, has: impl Fn(usize) -> bool) -> float32x4_t {
    // SAFETY: the lanes the caller vouches for; NEON is enabled.
    unsafe {
        let mut v = vdupq_n_f32(0.0);
        if has(0) {
            v = vld1q_lane_f32::<0>(p, v);
        }
        if has(1) {
            v = vld1q_lane_f32::<1>(p.wrapping_add(1), v);
        }
        if has(2) {
            v = vld1q_lane_f32::<2>(p.wrapping_add(2), v);
        }
        if has(3) {
            v = vld1q_lane_f32::<3>(p.wrapping_add(3), v);
        }
        v
    }
}

/// Lanes as numbers, for moves, and as bits, for selects.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    lanes: [bool; 4],
    bits: uint32x4_t,
}

// SAFETY: the target feature is enabled for the whole crate; the partial moves
// go lane by lane.
unsafe impl Lanes for Neon {
    type V = float32x4_t;
    type Mask = Mask;
    type Narrow = Self;
    const LANES: usize = 4;
    const NAME: &'static str = "neon";
    const REGISTERS: usize = 32;
    // A row also holds one register of K_STEP inputs for the lane multiply-adds.
    const POINTWISE_ROWS: [usize; MAX_VECTORS] = [8, 8, 7, 5];
    const POINTWISE_VECTORS: usize = 4;
    const BLOCK: usize = 4;
    const DEPTHWISE_TILES: [[usize; 2]; 5] = [[2, 7], [1, 7], [1, 7], [1, 7], [1, 7]];

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: NEON is enabled (see the token); so in every method below.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vfmaq_f32(c, a, b) }
    }
    // FMAX and FMIN give NaN when either operand is NaN.
    #[inline(always)]
    fn max(self, bound: float32x4_t, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vmaxq_f32(bound, x) }
    }
    #[inline(always)]
    fn min(self, bound: float32x4_t, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vminq_f32(bound, x) }
    }
    #[inline(always)]
    fn join(self, low: float32x4_t, high: float32x4_t, n: usize) -> float32x4_t {
        // SAFETY: NEON is enabled; four numbers are read from an array of four.
        unsafe {
            let lane = vld1q_u32([0, 1, 2, 3].as_ptr());
            vbslq_f32(vcltq_u32(lane, vdupq_n_u32(n as u32)), low, high)
        }
    }
    #[inline(always)]
    fn swap_halves(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vextq_f32::<2>(x, x) }
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(x))) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for 4 f32.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the caller vouches for 4 f32.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> float32x4_t {
        // SAFETY: only the n lanes the caller vouches for are read.
        unsafe {
            load_lanes(
                p,
                #[inline(always)]
                |lane| lane < n,
            )
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: float32x4_t, n: usize) {
        // SAFETY: only the n lanes the caller vouches for are written; NEON is enabled.
        unsafe {
            if n > 0 {
                vst1q_lane_f32::<0>(p, v);
            }
            if n > 1 {
                vst1q_lane_f32::<1>(p.add(1), v);
            }
            if n > 2 {
                vst1q_lane_f32::<2>(p.add(2), v);
            }
            if n > 3 {
                vst1q_lane_f32::<3>(p.add(3), v);
            }
        }
    }

    #[inline(always)]
    fn mask(self, lane: impl Fn(usize) -> bool) -> Mask {
        let lanes: [bool; 4] = core::array::from_fn(lane);
        let bits = lanes.map(|lane| if lane { u32::MAX } else { 0 });
        // SAFETY: four u32; NEON is enabled.
        Mask { lanes, bits: unsafe { vld1q_u32(bits.as_ptr()) } }
    }
    #[inline(always)]
    fn select(self, mask: Mask, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vbslq_f32(mask.bits, yes, no) }
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, mask: Mask) -> float32x4_t {
        // SAFETY: only lanes of the mask are read.
        unsafe {
            load_lanes(
                p,
                #[inline(always)]
                |lane| mask.lanes[lane],
            )
        }
    }

    #[inline(always)]
    fn even(self, low: float32x4_t, high: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vuzp1q_f32(low, vextq_f32::<1>(high, high)) }
    }
    #[inline(always)]
    fn parts(self, low: float32x4_t, high: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: NEON is enabled.
        unsafe { [vuzp1q_f32(low, high), vuzp2q_f32(low, high)] }
    }
    #[inline(always)]
    fn shift_up(self, before: float32x4_t, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vextq_f32::<3>(before, x) }
    }
    #[inline(always)]
    fn shift_down(self, x: float32x4_t, after: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is enabled.
        unsafe { vextq_f32::<1>(x, after) }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: rows and columns below 4, which the caller vouches for; NEON is
        // enabled.
        unsafe {
            let [a, b, c, d] = core::array::from_fn(|i| vld1q_f32(from.add(i * from_row)));
            let (ab, cd) = (vtrn1q_f32(a, b), vtrn1q_f32(c, d));
            let (ab2, cd2) = (vtrn2q_f32(a, b), vtrn2q_f32(c, d));
            vst1q_f32(to, vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
            vst1q_f32(to.add(to_row), vcombine_f32(vget_low_f32(ab2), vget_low_f32(cd2)));
            vst1q_f32(to.add(2 * to_row), vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
            vst1q_f32(to.add(3 * to_row), vcombine_f32(vget_high_f32(ab2), vget_high_f32(cd2)));
        }
    }

    // NEON has no broadcast operand, but multiplies by a lane: one load brings
    // K_STEP inputs of a row.
    #[inline(always)]
    unsafe fn rank_update<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[float32x4_t; NV]; MR],
        a: *const f32,
        a_row: usize,
        b: *const f32,
    ) {
        const { assert!(K_STEP == 4) };
        // SAFETY: the caller vouches for K_STEP inputs of each row and K_STEP * NV
        // vectors of b; NEON is enabled.
        unsafe {
            let a: [float32x4_t; MR] = core::array::from_fn(|r| vld1q_f32(a.add(r * a_row)));
            macro_rules! step {
                ($k:literal) => {
                    for v in 0..NV {
                        let w = vld1q_f32(b.add(($k * NV + v) * 4));
                        for r in 0..MR {
                            acc[r][v] = vfmaq_laneq_f32::<$k>(acc[r][v], w, a[r]);
                        }
                    }
                };
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
        }
    }
}
