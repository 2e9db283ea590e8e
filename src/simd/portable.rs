//! The fallback: `wide`'s four lanes, as the target's baseline compiles them
//! (SSE2, wasm simd128, NEON, or plain arrays).

use bytemuck::cast;
use wide::{f32x4, i32x4};

use super::{Lanes, MAX_VECTORS};

/// Any CPU will do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

// SAFETY: no instruction beyond the target's baseline is used; the partial
// moves go lane by lane.
unsafe impl Lanes for Portable {
    type V = f32x4;
    type Mask = [bool; 4];
    type Narrow = Self;
    const LANES: usize = 4;
    const NAME: &'static str = "portable";
    const REGISTERS: usize = 16;
    const POINTWISE_ROWS: [usize; MAX_VECTORS] = [8, 4, 3, 0];
    const POINTWISE_VECTORS: usize = 2;
    const BLOCK: usize = 4;
    const DEPTHWISE_TILES: [[usize; 2]; 5] = [[1, 4]; 5];

    // `wide` chooses its instructions when it is compiled, so there is no
    // feature to enter.
    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32x4 {
        f32x4::splat(x)
    }
    #[inline(always)]
    fn add(self, a: f32x4, b: f32x4) -> f32x4 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x4, b: f32x4) -> f32x4 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x4, b: f32x4) -> f32x4 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x4, b: f32x4) -> f32x4 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32x4, b: f32x4, c: f32x4) -> f32x4 {
        a.mul_add(b, c)
    }
    // The product's error and the sum's (Knuth 1969: `TwoSum`), added at the end.
    #[inline(always)]
    fn mul_add_near(self, a: f32x4, b: f32x4, c: f32x4) -> f32x4 {
        let product = a * b;
        let sum = product + c;
        let part = sum - product;
        let lost = (product - (sum - part)) + (c - part);
        sum + (lost + self.product_error(a, b, product))
    }
    // `mul_add` may round twice here. Dekker 1971: products of halves are exact.
    #[inline(always)]
    fn product_error(self, a: f32x4, b: f32x4, product: f32x4) -> f32x4 {
        let halves = |x: f32x4| {
            let high: f32x4 = cast(cast::<f32x4, i32x4>(x) & i32x4::splat(!0xfff));
            (high, x - high)
        };
        let ((a, a_low), (b, b_low)) = (halves(a), halves(b));
        ((a * b - product) + a * b_low + a_low * b) + a_low * b_low
    }
    // Spelled out: what `wide` promises for NaN differs by target.
    #[inline(always)]
    fn max(self, bound: f32x4, x: f32x4) -> f32x4 {
        x.simd_lt(bound).select(bound, x)
    }
    #[inline(always)]
    fn min(self, bound: f32x4, x: f32x4) -> f32x4 {
        x.simd_gt(bound).select(bound, x)
    }
    #[inline(always)]
    fn join(self, low: f32x4, high: f32x4, n: usize) -> f32x4 {
        let (low, high) = (low.to_array(), high.to_array());
        f32x4::new(core::array::from_fn(|i| if i < n { low[i] } else { high[i] }))
    }
    #[inline(always)]
    fn swap_halves(self, x: f32x4) -> f32x4 {
        let [a, b, c, d] = x.to_array();
        f32x4::new([c, d, a, b])
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: f32x4) -> f32x4 {
        cast(cast::<f32x4, i32x4>(x) << 23)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32x4 {
        // SAFETY: the caller vouches for 4 f32.
        f32x4::new(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32x4) {
        // SAFETY: the caller vouches for 4 f32.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v.to_array()) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> f32x4 {
        let mut lanes = [0.0f32; 4];
        // SAFETY: n.min(4) f32 are within both the caller's memory and `lanes`.
        unsafe { core::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(4)) };
        f32x4::new(lanes)
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: f32x4, n: usize) {
        // SAFETY: n.min(4) f32 are within both the caller's memory and the array.
        unsafe { core::ptr::copy_nonoverlapping(v.to_array().as_ptr(), p, n.min(4)) };
    }

    #[inline(always)]
    fn mask(self, lane: impl Fn(usize) -> bool) -> [bool; 4] {
        core::array::from_fn(lane)
    }
    #[inline(always)]
    fn select(self, mask: [bool; 4], yes: f32x4, no: f32x4) -> f32x4 {
        let (yes, no) = (yes.to_array(), no.to_array());
        f32x4::new(core::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] }))
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, mask: [bool; 4]) -> f32x4 {
        // SAFETY: lanes of the mask only.
        let lane = |i| if mask[i] { unsafe { *p.wrapping_add(i) } } else { 0.0 };
        f32x4::new(core::array::from_fn(lane))
    }

    #[inline(always)]
    fn even(self, low: f32x4, high: f32x4) -> f32x4 {
        let ([a, _, b, _], [_, c, _, d]) = (low.to_array(), high.to_array());
        f32x4::new([a, b, c, d])
    }

    #[inline(always)]
    fn parts(self, low: f32x4, high: f32x4) -> [f32x4; 2] {
        let ([a, b, c, d], [e, f, g, h]) = (low.to_array(), high.to_array());
        [f32x4::new([a, c, e, g]), f32x4::new([b, d, f, h])]
    }
    #[inline(always)]
    fn shift_up(self, before: f32x4, x: f32x4) -> f32x4 {
        let ([_, _, _, first], [a, b, c, _]) = (before.to_array(), x.to_array());
        f32x4::new([first, a, b, c])
    }
    #[inline(always)]
    fn shift_down(self, x: f32x4, after: f32x4) -> f32x4 {
        let ([_, b, c, d], [last, ..]) = (x.to_array(), after.to_array());
        f32x4::new([b, c, d, last])
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: rows and columns below 4.
        unsafe {
            let rows = core::array::from_fn(|i| self.load(from.add(i * from_row)));
            for (i, column) in f32x4::transpose(rows).into_iter().enumerate() {
                self.store(to.add(i * to_row), column);
            }
        }
    }
}
