//! The instructions: one trait, one file for each instruction set.
//!
//! This is the only place that names `core::arch`. A value of a type that
//! implements [`Lanes`] is a token: it can be had only where the CPU was asked
//! and said yes, so holding one is the proof that its instructions may run.

#![allow(unsafe_code, reason = "this module wraps the vector instructions")]

use core::ops::Range;
use core::sync::atomic::{Ordering, compiler_fence};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(debug_assertions)]
mod checked;
mod denormals;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod portable;
mod several;

#[cfg(all(target_arch = "x86_64", feature = "testing"))]
pub(crate) use self::avx512::datapath::assume_half_units;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::{avx2::Avx2, avx512::Avx512};
#[cfg(debug_assertions)]
pub(crate) use checked::{Checked, Memory};
pub(crate) use denormals::FlushDenormals;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;
pub(crate) use several::Several;

/// The most vectors that a pointwise tile is wide.
pub(crate) const MAX_VECTORS: usize = 4;

/// The most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;
/// Each number in its place.
pub(crate) const IN_ORDER: [usize; MAX_LANES] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Entries of a table that [`Lanes::lookup`] takes.
pub(crate) const TABLE: usize = 32;

/// For each lane the element that it takes.
pub(crate) type Index = [i32; MAX_LANES];

/// How many steps along the input channels [`Lanes::rank_update`] takes at once.
pub(crate) const K_STEP: usize = 4;

/// A work item that is generic over the instruction set.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Lanes>(self, simd: S) -> Self::Output;

    /// All that it may touch.
    #[cfg(debug_assertions)]
    fn memory<S: Lanes>(&self) -> Memory {
        Memory::unknown()
    }
}

/// Runs a kernel; in debug builds every address that it goes to is checked.
#[inline(always)]
pub(crate) fn run<S: Lanes, K: Kernel>(simd: S, kernel: K) -> K::Output {
    #[cfg(debug_assertions)]
    let (memory, simd) = (&kernel.memory::<S>(), simd);
    #[cfg(debug_assertions)]
    let simd = Checked::new(simd, memory);
    kernel.run(simd)
}

/// A vector of `LANES` f32 and what the kernels do with it.
///
/// # Safety
///
/// An implementor is a token that exists only where the CPU has the
/// instructions its methods use, and partial and indexed moves touch no byte of the
/// f32 that they leave out.
pub(crate) unsafe trait Lanes: Copy {
    /// The register.
    type V: Copy;
    /// Some lanes of it.
    type Mask: Copy;
    /// An instruction set of half its width, if it holds one; itself otherwise.
    type Narrow: Lanes;
    /// f32 lanes in `V`.
    const LANES: usize;
    /// The name in kernel names and in `MBCONV_ISA`.
    const NAME: &'static str;
    /// Vector registers.
    const REGISTERS: usize;
    /// Pointwise tiles: entry `v - 1` is the most rows that a tile of `v`
    /// vectors keeps in registers without a spill; 0 where such a tile is not
    /// used.
    const POINTWISE_ROWS: [usize; MAX_VECTORS];
    /// The same for tiles whose last vector serves two pixels, one in each half,
    /// since it has at most half a vector of channels.
    const POINTWISE_HALVED_ROWS: [usize; MAX_VECTORS] = [0; MAX_VECTORS];
    /// The width in vectors of most pointwise panels.
    const POINTWISE_VECTORS: usize;
    /// Whether the compiler must keep the loads of a pointwise step behind the
    /// step before. Where it moves them to the front they can push accumulators
    /// onto the stack (AVX-512's 13 x 2: 84 moves to and fro, 0 with this); where
    /// it does not, this only ties its hands.
    const STEPS_APART: bool = false;
    /// Steps at the end of a pointwise tile that are taken row by row, so that its sums
    /// are ready one after the other. Where a store and the third operand of a
    /// multiply-add want the same port (Zen: a store costs as much as two multiply-adds),
    /// a store whose register is just being written needs none; but they go one by one.
    const LAST_STEPS: usize = 0;
    /// Whether [`mul_add_low`](Self::mul_add_low) is an instruction.
    const HALVES: bool = false;
    /// Whether [`splat_two`](Self::splat_two) loads once.
    const SPLATS_TWO: bool = false;
    /// Whether [`lookup`](Self::lookup) is an instruction.
    const LOOKS_UP: bool = false;
    /// Which number of its part each lane of [`parts`](Self::parts) has.
    const PART: [usize; MAX_LANES] = IN_ORDER;
    /// Whether [`splice`](Self::splice) is an instruction.
    const SPLICES: bool = false;
    /// Rows and columns of the blocks that [`transpose`](Self::transpose) takes, at
    /// most `LANES`.
    const BLOCK: usize;
    /// Depthwise tiles of 3x3 windows with stride 1 and 2, 5x5 with 1 and 2, and
    /// 7x7: the rows (1 or 2) and columns of outputs that stay in registers.
    const DEPTHWISE_TILES: [[usize; 2]; 5];

    /// The token of half the width, on a CPU that computes a vector in halves, so that a half
    /// alone costs half.
    #[inline(always)]
    fn narrow(self) -> Option<Self::Narrow> {
        None
    }

    /// Runs `f` compiled for this instruction set: the one boundary across
    /// which target features change. All of `f` must be `inline(always)`. On x86 what `f`
    /// refers to is hidden from the compiler: by default the boundary does it, but where a
    /// `target-cpu` leaves none, LLVM knows that nothing writes to a kernel's arguments,
    /// reads all of them before its first tile, and spills.
    fn enter<R>(self, f: impl FnOnce() -> R) -> R;

    fn splat(self, x: f32) -> Self::V;
    /// The same address, of which the compiler does not know that it is the same: what is read
    /// at both is read twice, each time by who takes it.
    #[inline(always)]
    fn elsewhere(self, p: *const f32) -> *const f32 {
        p
    }
    /// `x`, computed before anything is loaded that the program loads after it.
    #[inline(always)]
    fn before(self, x: Self::V) -> Self::V {
        x
    }
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `-x`: a part of the multiply-add that takes it, where there is one.
    #[inline(always)]
    fn neg(self, x: Self::V) -> Self::V {
        self.sub(self.splat(-0.0), x)
    }
    /// `|x|`
    #[inline(always)]
    fn abs(self, x: Self::V) -> Self::V {
        self.max(self.neg(x), x)
    }
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The same in the lower half; what the upper half is does not matter.
    #[inline(always)]
    fn mul_add_low(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.mul_add(a, b, c)
    }
    /// `a * b + c`, rounded once but for a little, also where
    /// [`mul_add`](Self::mul_add) rounds twice; all of them finite and not tiny.
    #[inline(always)]
    fn mul_add_near(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.mul_add(a, b, c)
    }
    /// `a * b - product`, exactly, where `product` is `a * b` rounded, neither
    /// tiny nor huge.
    #[inline(always)]
    fn product_error(self, a: Self::V, b: Self::V, product: Self::V) -> Self::V {
        self.mul_add(a, b, self.neg(product))
    }
    /// The larger lane; NaN wherever `x` is NaN, provided that `bound` is not.
    fn max(self, bound: Self::V, x: Self::V) -> Self::V;
    /// The smaller lane; NaN wherever `x` is NaN, provided that `bound` is not.
    fn min(self, bound: Self::V, x: Self::V) -> Self::V;
    /// The first `n` lanes of `low` and the others of `high`, `0 < n <= LANES`.
    fn join(self, low: Self::V, high: Self::V, n: usize) -> Self::V;
    /// The upper half of the lanes below the lower half.
    fn swap_halves(self, x: Self::V) -> Self::V;
    /// Each lane's bits shifted left by 23: moves an integer from the low end
    /// of the mantissa into the exponent.
    fn shift_to_exponent(self, x: Self::V) -> Self::V;

    /// `x * 2^n`, rounded once, for whole `n` from -252 to 254 and a normal `x`
    /// near 1.
    #[inline(always)]
    fn scale(self, x: Self::V, n: Self::V) -> Self::V {
        // In two factors, since an exponent goes from -126 to 127 only; adding and
        // subtracting 1.5 * 2^23 rounds to an integer. 2^23 + 127 + n has n's
        // biased exponent in its lowest bits.
        let round = self.splat(12_582_912.0);
        let half = self.sub(self.mul_add(n, self.splat(0.5), round), round);
        let pow2 = |n| self.shift_to_exponent(self.add(n, self.splat(8_388_608.0 + 127.0)));
        self.mul(self.mul(x, pow2(half)), pow2(self.sub(n, half)))
    }

    /// `table[i]`, where `i` is the number in the five lowest bits of a lane.
    #[inline(always)]
    fn lookup(self, table: &[f32; TABLE], i: Self::V) -> Self::V {
        let entries = self.to_array(i).map(|i| table[i.to_bits() as usize % TABLE]);
        // SAFETY: the array holds at least `LANES`.
        unsafe { self.load(entries.as_ptr()) }
    }

    /// The lanes, and zeros behind them. Not for inner loops.
    #[inline(always)]
    fn to_array(self, x: Self::V) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: the array holds at least `LANES`.
        unsafe { self.store(lanes.as_mut_ptr(), x) };
        lanes
    }

    /// Tells a checking token of memory on the stack, in the place of what was lent
    /// before.
    #[inline(always)]
    fn lend(self, _p: *mut f32, _len: usize) {}

    /// # Safety
    /// `p` is valid for reading.
    #[inline(always)]
    unsafe fn read(self, p: *const f32) -> f32 {
        // SAFETY: passed on.
        unsafe { *p }
    }
    /// # Safety
    /// `p` is valid for writing.
    #[inline(always)]
    unsafe fn write(self, p: *mut f32, x: f32) {
        // SAFETY: passed on.
        unsafe { *p = x }
    }
    /// # Safety
    /// `p` is valid for reading `LANES` f32; no alignment is asked.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `LANES` f32; no alignment is asked.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// `p[0]` in all lanes, and `p[1]`, by one load where the instruction set can.
    ///
    /// # Safety
    /// `p` is valid for reading two f32.
    #[inline(always)]
    unsafe fn splat_two(self, p: *const f32) -> [Self::V; 2] {
        // SAFETY: passed on.
        unsafe { [self.splat(*p), self.splat(*p.add(1))] }
    }
    /// Asks for the cache line at `p`, into the second level; `p` need not be
    /// valid. Nothing where stable Rust has no such instruction.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
    /// Lanes from `n` on are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` f32, `0 < n <= LANES`.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `n` f32, `0 < n <= LANES`.
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize);

    /// The lower half.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES / 2` f32.
    #[inline(always)]
    unsafe fn store_low(self, p: *mut f32, v: Self::V) {
        // SAFETY: passed on.
        unsafe { self.store_first(p, v, Self::LANES / 2) }
    }

    /// Lane `l` is `p[index[l]]`.
    ///
    /// # Safety
    /// `p` is valid for reading `n <= LANES` f32; the first `LANES` entries of
    /// `index` are less than `n`.
    #[inline(always)]
    unsafe fn load_indexed(self, p: *const f32, n: usize, index: &Index) -> Self::V {
        let _ = n;
        let mut lanes = [0.0; MAX_LANES];
        for (lane, &i) in lanes.iter_mut().zip(index).take(Self::LANES) {
            // SAFETY: the caller vouches for each index.
            *lane = unsafe { *p.add(i as usize) };
        }
        // SAFETY: the array holds at least `LANES`.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// Every `step`-th f32, for the lanes `lanes`; the others are zero.
    ///
    /// # Safety
    /// `p + i * step` is valid for reading for each of these lanes.
    #[inline(always)]
    unsafe fn load_every(self, p: *const f32, step: usize, lanes: Range<usize>) -> Self::V {
        let mut x = [0.0; MAX_LANES];
        for i in lanes {
            // SAFETY: lane i is the caller's.
            x[i] = unsafe { *p.wrapping_add(i * step) };
        }
        // SAFETY: the array holds at least `LANES`.
        unsafe { self.load(x.as_ptr()) }
    }

    /// The lanes for which `lane` is true. Not for inner loops.
    fn mask(self, lane: impl Fn(usize) -> bool) -> Self::Mask;
    /// `yes` in the lanes of `mask`, `no` in the others.
    fn select(self, mask: Self::Mask, yes: Self::V, no: Self::V) -> Self::V;
    /// The other lanes are zero.
    ///
    /// # Safety
    /// `p + i` is valid for reading for each lane `i` of `mask`.
    unsafe fn load_masked(self, p: *const f32, mask: Self::Mask) -> Self::V;

    /// The same where all of `p` is valid, which may be faster.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` f32.
    #[inline(always)]
    unsafe fn load_cut(self, p: *const f32, mask: Self::Mask) -> Self::V {
        // SAFETY: passed on.
        self.select(mask, unsafe { self.load(p) }, self.splat(0.0))
    }

    /// The even lanes of `low`, then the odd lanes of `high`: every other f32, where
    /// `high` ends with the last of them.
    fn even(self, low: Self::V, high: Self::V) -> Self::V;

    /// The even lanes of both, and the odd ones: lane `i` has number [`PART[i]`](Self::PART) of
    /// them, since to put them in order is as many instructions as to part them on AVX2.
    fn parts(self, low: Self::V, high: Self::V) -> [Self::V; 2];
    /// A part in order.
    #[inline(always)]
    fn in_order(self, part: Self::V) -> Self::V {
        part
    }

    /// The last lane of `before`, then `x` without its last lane.
    fn shift_up(self, before: Self::V, x: Self::V) -> Self::V;
    /// `x` without its first lane, then the first lane of `after`.
    fn shift_down(self, x: Self::V, after: Self::V) -> Self::V;
    /// The lanes of `x` from `n` on, `n` of them, then those of `after`; `n <= LANES / 2`.
    #[inline(always)]
    fn splice(self, x: Self::V, after: Self::V, n: usize) -> Self::V {
        let (x, after) = (self.to_array(x), self.to_array(after));
        let lane = |i: usize| if i < n { x[i + n] } else { after[i - n] };
        let lanes: [f32; MAX_LANES] = core::array::from_fn(lane);
        // SAFETY: the array holds at least `LANES`.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// `to[c * to_row + r] = from[r * from_row + c]` for `BLOCK` rows and columns.
    ///
    /// # Safety
    /// `from` is valid for reading and `to` for writing `BLOCK` f32 in each of
    /// `BLOCK` rows, which do not overlap.
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize);

    /// `K_STEP` steps of a pointwise tile:
    /// `acc[r][v] += a[r * a_row + k] * b[(k * NV + v) * LANES..]`, `k` ascending.
    ///
    /// # Safety
    /// `a` is valid for reading `K_STEP` f32 at each of `MR` rows `a_row` apart,
    /// `b` for `K_STEP * NV` vectors.
    #[inline(always)]
    unsafe fn rank_update<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[Self::V; NV]; MR],
        a: *const f32,
        a_row: usize,
        b: *const f32,
    ) {
        for k in (0..K_STEP).step_by(2) {
            let (a, b) = (a.wrapping_add(k), b.wrapping_add(k * NV * Self::LANES));
            // A tile of one vector loads as often as it multiplies.
            if NV == 1 && Self::SPLATS_TWO {
                compiler_fence(Ordering::SeqCst);
                // SAFETY: two of the K_STEP steps that the caller vouches for.
                unsafe { two_steps(self, acc, a, a_row, b) };
                continue;
            }
            for i in 0..2 {
                if Self::STEPS_APART || NV == 1 {
                    compiler_fence(Ordering::SeqCst);
                }
                // SAFETY: one of the K_STEP steps that the caller vouches for.
                unsafe { rank_one(self, acc, a.add(i), a_row, b.add(i * NV * Self::LANES)) }
            }
        }
    }
}

/// `N` vectors, one behind the other.
///
/// # Safety
/// `p` is valid for reading `N * LANES` f32.
#[allow(clippy::needless_range_loop, reason = "less to compile than an iterator")]
#[inline(always)]
pub(crate) unsafe fn load_all<S: Lanes, const N: usize>(s: S, p: *const f32) -> [S::V; N] {
    let mut all = [s.splat(0.0); N];
    for v in 0..N {
        // SAFETY: one of N.
        all[v] = unsafe { s.load(p.add(v * S::LANES)) };
    }
    all
}

/// Two steps of a pointwise tile of one vector, of which every other row is loaded
/// at once: loads and shuffles share the work.
///
/// # Safety
/// As for [`Lanes::rank_update`], with two steps.
#[inline(always)]
unsafe fn two_steps<S: Lanes, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    a: *const f32,
    a_row: usize,
    b: *const f32,
) {
    // SAFETY: two steps of `b`, row r < MR of `a`.
    unsafe {
        let b = [s.load(b), s.load(b.add(S::LANES))];
        for (r, row) in acc.iter_mut().enumerate() {
            let a = a.add(r * a_row);
            let x = match r % 2 {
                0 => s.splat_two(a),
                _ => [s.splat(*a), s.splat(*a.add(1))],
            };
            row[0] = s.mul_add(x[0], b[0], row[0]);
            row[0] = s.mul_add(x[1], b[1], row[0]);
        }
    }
}

/// One step of a pointwise tile.
///
/// # Safety
/// As for [`Lanes::rank_update`], with one step.
#[inline(always)]
unsafe fn rank_one<S: Lanes, const MR: usize, const NV: usize>(
    s: S,
    acc: &mut [[S::V; NV]; MR],
    a: *const f32,
    a_row: usize,
    b: *const f32,
) {
    // SAFETY: v < NV vectors of `b`, row r < MR of `a`.
    unsafe {
        let b: [S::V; NV] = core::array::from_fn(|v| s.load(b.add(v * S::LANES)));
        // By index LLVM moves AVX2's loads to the front, and spills.
        for (r, row) in acc.iter_mut().enumerate() {
            let x = s.splat(*a.add(r * a_row));
            for (c, &w) in row.iter_mut().zip(&b) {
                *c = s.mul_add(x, w, *c);
            }
            end_row::<S, MR, NV>(s, row);
        }
    }
}

/// Keeps what a pointwise tile loads after a row of sums behind it, where it has no register
/// for it before.
#[allow(clippy::needless_range_loop, reason = "less to compile than an iterator")]
#[inline(always)]
pub(crate) fn end_row<S: Lanes, const MR: usize, const NV: usize>(s: S, row: &mut [S::V; NV]) {
    if fills_registers::<S>([MR, NV]) {
        for v in 0..NV {
            row[v] = s.before(row[v]);
        }
    }
}

/// Whether a pointwise tile has a sum, a weight or an input in every register: then the next
/// input must not be loaded before the last is used up.
pub(crate) const fn fills_registers<S: Lanes>([mr, nv]: [usize; 2]) -> bool {
    mr * nv + nv + 1 == S::REGISTERS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    /// Holds what moves lanes against arrays.
    struct Moves;

    impl Kernel for Moves {
        type Output = ();

        fn run<S: Lanes>(self, s: S) {
            let numbers = |first: f32| -> [f32; MAX_LANES] {
                core::array::from_fn(|lane| first + lane as f32)
            };
            let (low, high) = (numbers(0.0), numbers(100.0));
            // SAFETY: the arrays hold at least `LANES`.
            let (x, y) = unsafe { (s.load(low.as_ptr()), s.load(high.as_ptr())) };
            let both = |lane: usize| {
                if lane < S::LANES { low[lane] } else { high[lane - S::LANES] }
            };
            let holds = |name: &str, v: S::V, lane: &dyn Fn(usize) -> f32| {
                let v = s.to_array(v);
                for (i, &x) in v[..S::LANES].iter().enumerate() {
                    assert_eq!(x, lane(i), "{} {name}, lane {i}", S::NAME);
                }
            };
            let half = S::LANES / 2;
            let [even, odd] = s.parts(x, y);
            holds("even", s.even(x, y), &|i| {
                if i < half { low[2 * i] } else { high[2 * (i - half) + 1] }
            });
            holds("parts", even, &|i| both(2 * S::PART[i]));
            holds("parts", odd, &|i| both(2 * S::PART[i] + 1));
            holds("in_order", s.in_order(odd), &|i| both(2 * i + 1));
            holds("shift_up", s.shift_up(x, y), &|i| both(S::LANES - 1 + i));
            holds("shift_down", s.shift_down(x, y), &|i| both(i + 1));
            let sum = s.to_array(s.mul_add_low(s.splat(2.0), x, y));
            let mut stored = numbers(0.5);
            // SAFETY: the array holds at least half a vector.
            unsafe { s.store_low(stored.as_mut_ptr(), y) };
            for i in 0..half {
                assert_eq!([sum[i], stored[i]], [2.0 * low[i] + high[i], high[i]]);
            }
            assert_eq!(stored[half..], numbers(0.5)[half..]);
            holds("swap_halves", s.swap_halves(x), &|i| low[(i + half) % S::LANES]);
            for n in 1..=half {
                holds("join", s.join(x, y, n), &|i| if i < n { low[i] } else { high[i] });
                holds("splice", s.splice(x, y, n), &|i| {
                    if i < n { low[i + n] } else { high[i - n] }
                });
            }
            let is_in = |lane: usize| lane % 3 != 1;
            let some = s.mask(is_in);
            holds("select", s.select(some, x, y), &|i| if is_in(i) { low[i] } else { high[i] });
            // SAFETY: as above.
            let masked = unsafe { s.load_masked(high.as_ptr(), some) };
            holds("load_masked", masked, &|i| if is_in(i) { high[i] } else { 0.0 });
            // SAFETY: as above.
            let cut = unsafe { s.load_cut(high.as_ptr(), some) };
            holds("load_cut", cut, &|i| if is_in(i) { high[i] } else { 0.0 });
            let table: [f32; TABLE] = core::array::from_fn(|i| (i * i) as f32);
            let index: [f32; MAX_LANES] =
                core::array::from_fn(|i| f32::from_bits((5 * i + 64) as u32));
            // SAFETY: as above.
            let found = s.lookup(&table, unsafe { s.load(index.as_ptr()) });
            holds("lookup", found, &|i| table[5 * i % TABLE]);
        }
    }

    #[test]
    fn lanes_move_as_they_should() {
        for isa in Isa::available() {
            isa.dispatch(Moves);
        }
    }
}
