//! AVX2 with FMA: 8 lanes, 16 registers.

use core::arch::asm;
use core::arch::x86_64::{__m256, __m256i, _MM_HINT_T1, _mm_prefetch};
use core::hint::black_box;

use pulp::core_arch::x86::Avx;

use super::{Index, Lanes, MAX_LANES, MAX_VECTORS};

pulp::simd_type! {
    /// Proof that the CPU has AVX2 and FMA.
    pub(crate) struct Avx2 {
        pub(super) avx: "avx",
        pub(super) avx2: "avx2",
        pub(super) fma: "fma",
    }
}

cpufeatures::new!(has_avx2, "avx", "avx2", "fma");

impl Avx2 {
    /// The token, where the CPU and the operating system can run it.
    pub(crate) fn detect() -> Option<Self> {
        // SAFETY: `has_avx2` asks for the same features, name for name.
        has_avx2::get().then(|| unsafe { Self::new_unchecked() })
    }

    /// A mask whose first `n` lanes are set.
    #[inline(always)]
    fn first(self, n: usize) -> __m256i {
        const EDGE: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        let n = n.min(8);
        // SAFETY: 8 - n + 8 <= 16 entries.
        unsafe { self.avx._mm256_loadu_si256(EDGE.as_ptr().add(8 - n).cast()) }
    }
}

/// Transposes 8 x 8: four rows within the halves of registers, then halves of those with the
/// others'.
///
/// # Safety
/// As for [`Lanes::transpose`] with blocks of 8.
#[inline(always)]
pub(super) unsafe fn transpose_8x8(
    avx: Avx,
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
) {
    // SAFETY: eight f32 of a row below 8.
    let row = |r: usize| unsafe { avx._mm256_loadu_ps(from.add(r * from_row)) };
    let upper = columns(avx, [row(0), row(1), row(2), row(3)]);
    let lower = columns(avx, [row(4), row(5), row(6), row(7)]);
    for i in 0..4 {
        let (x, y) = (upper[i], lower[i]);
        // SAFETY: eight f32 of a row below 8.
        unsafe {
            avx._mm256_storeu_ps(to.add(i * to_row), avx._mm256_permute2f128_ps::<0x20>(x, y));
            avx._mm256_storeu_ps(
                to.add((i + 4) * to_row),
                avx._mm256_permute2f128_ps::<0x31>(x, y),
            );
        }
    }
}

/// Columns `i` of four rows, each above column `i + 4`.
#[inline(always)]
fn columns(avx: Avx, [a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let low = [avx._mm256_unpacklo_ps(a, b), avx._mm256_unpacklo_ps(c, d)];
    let high = [avx._mm256_unpackhi_ps(a, b), avx._mm256_unpackhi_ps(c, d)];
    [
        avx._mm256_shuffle_ps::<0x44>(low[0], low[1]),
        avx._mm256_shuffle_ps::<0xee>(low[0], low[1]),
        avx._mm256_shuffle_ps::<0x44>(high[0], high[1]),
        avx._mm256_shuffle_ps::<0xee>(high[0], high[1]),
    ]
}

/// `x`, after which come the loads that the program has after it.
#[inline]
#[target_feature(enable = "avx2")]
fn before(mut x: __m256) -> __m256 {
    // SAFETY: there is no instruction in it; it could touch memory, so that no load passes it.
    unsafe { asm!("/* {} */", inout(ymm_reg) x, options(nostack, preserves_flags)) };
    x
}

// SAFETY: the token is made by `detect`, or of what a wider token proves; masked moves
// touch no lane whose mask is clear.
unsafe impl Lanes for Avx2 {
    type V = __m256;
    type Mask = __m256i;
    type Narrow = Self;
    const LANES: usize = 8;
    const NAME: &'static str = "avx2";
    const REGISTERS: usize = 16;
    // Two numbers of either vector by turns.
    const PART: [usize; MAX_LANES] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const POINTWISE_ROWS: [usize; MAX_VECTORS] = [5, 6, 4, 0];
    const POINTWISE_VECTORS: usize = 3;
    const BLOCK: usize = 8;
    const DEPTHWISE_TILES: [[usize; 2]; 5] = [[2, 4], [2, 4], [1, 7], [1, 7], [1, 7]];

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        self.vectorize(black_box(f))
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a hint, which no address makes fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        self.avx._mm256_set1_ps(x)
    }
    #[inline(always)]
    fn before(self, x: __m256) -> __m256 {
        // SAFETY: the token is proof of AVX2.
        unsafe { before(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_add_ps(a, b)
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_sub_ps(a, b)
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_mul_ps(a, b)
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_div_ps(a, b)
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.fma._mm256_fmadd_ps(a, b, c)
    }
    // x86 max and min return their second operand when either is NaN.
    #[inline(always)]
    fn max(self, bound: __m256, x: __m256) -> __m256 {
        self.avx._mm256_max_ps(bound, x)
    }
    #[inline(always)]
    fn min(self, bound: __m256, x: __m256) -> __m256 {
        self.avx._mm256_min_ps(bound, x)
    }
    #[inline(always)]
    fn join(self, low: __m256, high: __m256, n: usize) -> __m256 {
        let mask = self.avx._mm256_castsi256_ps(self.first(n));
        self.avx._mm256_blendv_ps(high, low, mask)
    }
    #[inline(always)]
    fn swap_halves(self, x: __m256) -> __m256 {
        self.avx._mm256_permute2f128_ps::<0x01>(x, x)
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: __m256) -> __m256 {
        let bits = self.avx._mm256_castps_si256(x);
        self.avx._mm256_castsi256_ps(self.avx2._mm256_slli_epi32::<23>(bits))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for 8 f32.
        unsafe { self.avx._mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller vouches for 8 f32.
        unsafe { self.avx._mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: the mask keeps the load to the n lanes the caller vouches for.
        unsafe { self.avx._mm256_maskload_ps(p, self.first(n)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: the mask keeps the store to the n lanes the caller vouches for.
        unsafe { self.avx._mm256_maskstore_ps(p, self.first(n), v) }
    }
    #[inline(always)]
    unsafe fn load_indexed(self, p: *const f32, n: usize, index: &Index) -> __m256 {
        // SAFETY: as for `load_first`; an index has at least 8 entries.
        unsafe {
            let index = self.avx._mm256_loadu_si256(index.as_ptr().cast());
            self.avx2._mm256_permutevar8x32_ps(self.load_first(p, n), index)
        }
    }

    #[inline(always)]
    fn mask(self, lane: impl Fn(usize) -> bool) -> __m256i {
        let lanes: [i32; 8] = core::array::from_fn(|i| if lane(i) { -1 } else { 0 });
        // SAFETY: eight numbers of an array of eight.
        unsafe { self.avx._mm256_loadu_si256(lanes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn select(self, mask: __m256i, yes: __m256, no: __m256) -> __m256 {
        self.avx._mm256_blendv_ps(no, yes, self.avx._mm256_castsi256_ps(mask))
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: the mask keeps the load to the lanes the caller vouches for.
        unsafe { self.avx._mm256_maskload_ps(p, mask) }
    }
    #[inline(always)]
    unsafe fn load_cut(self, p: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: passed on.
        let x = unsafe { self.load(p) };
        self.avx._mm256_and_ps(x, self.avx._mm256_castsi256_ps(mask))
    }

    #[inline(always)]
    fn even(self, low: __m256, high: __m256) -> __m256 {
        self.in_order(self.avx._mm256_shuffle_ps::<0b11_01_10_00>(low, high))
    }
    #[inline(always)]
    fn parts(self, low: __m256, high: __m256) -> [__m256; 2] {
        [
            self.avx._mm256_shuffle_ps::<0b10_00_10_00>(low, high),
            self.avx._mm256_shuffle_ps::<0b11_01_11_01>(low, high),
        ]
    }
    #[inline(always)]
    fn in_order(self, part: __m256) -> __m256 {
        let pairs = self.avx._mm256_castps_pd(part);
        self.avx._mm256_castpd_ps(self.avx2._mm256_permute4x64_pd::<0b11_01_10_00>(pairs))
    }
    #[inline(always)]
    fn shift_up(self, before: __m256, x: __m256) -> __m256 {
        let below = self.avx._mm256_permute2f128_ps::<0x21>(before, x);
        let [x, below] = [x, below].map(|x| self.avx._mm256_castps_si256(x));
        self.avx._mm256_castsi256_ps(self.avx2._mm256_alignr_epi8::<12>(x, below))
    }
    #[inline(always)]
    fn shift_down(self, x: __m256, after: __m256) -> __m256 {
        let above = self.avx._mm256_permute2f128_ps::<0x21>(x, after);
        let [x, above] = [x, above].map(|x| self.avx._mm256_castps_si256(x));
        self.avx._mm256_castsi256_ps(self.avx2._mm256_alignr_epi8::<4>(above, x))
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: passed on.
        unsafe { transpose_8x8(self.avx, from, from_row, to, to_row) }
    }
}
