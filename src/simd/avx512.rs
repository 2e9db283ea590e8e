//! AVX-512: 16 lanes, 32 registers.

use core::arch::asm;
use core::arch::x86_64::{__m512, _MM_HINT_T1, _mm_prefetch};
use core::hint::black_box;

use super::avx2::transpose_8x8;
use super::{Index, Lanes, MAX_VECTORS, TABLE};

pulp::simd_type! {
    /// Proof that the CPU has AVX-512 F and VL, with AVX2 and FMA.
    pub(crate) struct Avx512 {
        avx: "avx",
        avx2: "avx2",
        fma: "fma",
        avx512f: "avx512f",
        avx512vl: "avx512vl",
    }
}

cpufeatures::new!(has_avx512, "avx", "avx2", "fma", "avx512f", "avx512vl");

impl Avx512 {
    /// The token, where the CPU and the operating system can run it.
    pub(crate) fn detect() -> Option<Self> {
        // SAFETY: `has_avx512` asks for the same features, name for name.
        has_avx512::get().then(|| unsafe { Self::new_unchecked() })
    }

    /// A mask whose first `n` lanes are set.
    #[inline(always)]
    fn first(n: usize) -> u16 {
        (u32::MAX >> (32 - n.clamp(1, 16))) as u16
    }
}

// SAFETY: the token is made only by `detect`; masked moves touch no lane whose
// mask is clear.
unsafe impl Lanes for Avx512 {
    type V = __m512;
    type Mask = u16;
    type Narrow = super::Avx2;
    const LANES: usize = 16;
    const NAME: &'static str = "avx512";
    const REGISTERS: usize = 32;
    const POINTWISE_ROWS: [usize; MAX_VECTORS] = [14, 12, 9, 0];
    const POINTWISE_HALVED_ROWS: [usize; MAX_VECTORS] = [14, 12, 9, 0];
    const POINTWISE_VECTORS: usize = 2;
    const STEPS_APART: bool = true;
    const LAST_STEPS: usize = 3;
    const HALVES: bool = true;
    const SPLATS_TWO: bool = true;
    const LOOKS_UP: bool = true;
    const SPLICES: bool = true;
    const BLOCK: usize = 8;
    const DEPTHWISE_TILES: [[usize; 2]; 5] = [[2, 7], [2, 7], [2, 7], [2, 7], [2, 7]];

    #[inline(always)]
    fn narrow(self) -> Option<super::Avx2> {
        let Self { avx, avx2, fma, .. } = self;
        datapath::is_half().then_some(super::Avx2 { avx, avx2, fma })
    }

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
    fn splat(self, x: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(x)
    }
    #[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read there")]
    #[inline(always)]
    fn elsewhere(self, mut p: *const f32) -> *const f32 {
        // SAFETY: there is no instruction in it.
        unsafe { asm!("/* {} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) };
        p
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_add_ps(a, b)
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_sub_ps(a, b)
    }
    // The ports of multiply-adds have no part in it.
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        self.avx512f._mm512_abs_ps(x)
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_div_ps(a, b)
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    fn mul_add_low(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        let avx512 = self.avx512f;
        let (a, b) = (avx512._mm512_castps512_ps256(a), avx512._mm512_castps512_ps256(b));
        let sum = self.fma._mm256_fmadd_ps(a, b, avx512._mm512_castps512_ps256(c));
        avx512._mm512_zextps256_ps512(sum)
    }
    // x86 max and min return their second operand when either is NaN.
    #[inline(always)]
    fn max(self, bound: __m512, x: __m512) -> __m512 {
        self.avx512f._mm512_max_ps(bound, x)
    }
    #[inline(always)]
    fn min(self, bound: __m512, x: __m512) -> __m512 {
        self.avx512f._mm512_min_ps(bound, x)
    }
    #[inline(always)]
    fn join(self, low: __m512, high: __m512, n: usize) -> __m512 {
        self.avx512f._mm512_mask_blend_ps(Self::first(n), high, low)
    }
    #[inline(always)]
    fn swap_halves(self, x: __m512) -> __m512 {
        self.avx512f._mm512_shuffle_f32x4::<0b01_00_11_10>(x, x)
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: __m512) -> __m512 {
        let bits = self.avx512f._mm512_castps_si512(x);
        self.avx512f._mm512_castsi512_ps(self.avx512f._mm512_slli_epi32::<23>(bits))
    }
    // One instruction for eight.
    #[inline(always)]
    fn scale(self, x: __m512, n: __m512) -> __m512 {
        self.avx512f._mm512_scalef_ps(x, n)
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; TABLE], i: __m512) -> __m512 {
        // SAFETY: twice 16 of the table's 32 f32.
        let [low, high] = [0, 16].map(|i| unsafe { self.load(table.as_ptr().add(i)) });
        let i = self.avx512f._mm512_castps_si512(i);
        self.avx512f._mm512_permutex2var_ps(low, i, high)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for 16 f32.
        unsafe { self.avx512f._mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller vouches for 16 f32.
        unsafe { self.avx512f._mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn splat_two(self, p: *const f32) -> [__m512; 2] {
        // SAFETY: the caller vouches for two f32.
        let two = self.avx512f._mm512_set1_pd(unsafe { p.cast::<f64>().read_unaligned() });
        let two = self.avx512f._mm512_castpd_ps(two);
        [self.avx512f._mm512_moveldup_ps(two), self.avx512f._mm512_movehdup_ps(two)]
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: the mask keeps the load to the n lanes the caller vouches for.
        unsafe { self.avx512f._mm512_maskz_loadu_ps(Self::first(n), p) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: the mask keeps the store to the n lanes the caller vouches for.
        unsafe { self.avx512f._mm512_mask_storeu_ps(p, Self::first(n), v) }
    }
    #[inline(always)]
    unsafe fn store_low(self, p: *mut f32, v: __m512) {
        let low = self.avx512f._mm512_castps512_ps256(v);
        // SAFETY: the caller vouches for 8 f32.
        unsafe { self.avx._mm256_storeu_ps(p, low) }
    }
    #[inline(always)]
    unsafe fn load_indexed(self, p: *const f32, n: usize, index: &Index) -> __m512 {
        // SAFETY: as for `load_first`; an index has 16 entries.
        unsafe {
            let index = self.avx512f._mm512_loadu_epi32(index.as_ptr());
            self.avx512f._mm512_permutexvar_ps(index, self.load_first(p, n))
        }
    }

    #[inline(always)]
    fn mask(self, lane: impl Fn(usize) -> bool) -> u16 {
        (0..16).fold(0, |mask, i| mask | u16::from(lane(i)) << i)
    }
    #[inline(always)]
    fn select(self, mask: u16, yes: __m512, no: __m512) -> __m512 {
        self.avx512f._mm512_mask_blend_ps(mask, no, yes)
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, mask: u16) -> __m512 {
        // SAFETY: the mask keeps the load to the lanes the caller vouches for.
        unsafe { self.avx512f._mm512_maskz_loadu_ps(mask, p) }
    }

    #[inline(always)]
    fn even(self, low: __m512, high: __m512) -> __m512 {
        let lanes = self
            .avx512f
            ._mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
        self.avx512f._mm512_permutex2var_ps(low, lanes, high)
    }

    #[inline(always)]
    fn parts(self, low: __m512, high: __m512) -> [__m512; 2] {
        let even = self
            .avx512f
            ._mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = self
            .avx512f
            ._mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        [even, odd].map(|lanes| self.avx512f._mm512_permutex2var_ps(low, lanes, high))
    }
    #[inline(always)]
    fn shift_up(self, before: __m512, x: __m512) -> __m512 {
        let avx512 = self.avx512f;
        let [before, x] = [before, x].map(|x| avx512._mm512_castps_si512(x));
        avx512._mm512_castsi512_ps(avx512._mm512_alignr_epi32::<15>(x, before))
    }
    #[inline(always)]
    fn shift_down(self, x: __m512, after: __m512) -> __m512 {
        let avx512 = self.avx512f;
        let [x, after] = [x, after].map(|x| avx512._mm512_castps_si512(x));
        avx512._mm512_castsi512_ps(avx512._mm512_alignr_epi32::<1>(after, x))
    }
    #[inline(always)]
    fn splice(self, x: __m512, after: __m512, n: usize) -> __m512 {
        let (avx512, n) = (self.avx512f, n as i32);
        let lane = avx512._mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let from_x = avx512._mm512_add_epi32(lane, avx512._mm512_set1_epi32(n));
        let from_after = avx512._mm512_add_epi32(lane, avx512._mm512_set1_epi32(16 - n));
        let lanes = avx512._mm512_mask_blend_epi32(Self::first(n as usize), from_after, from_x);
        avx512._mm512_permutex2var_ps(x, lanes, after)
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: passed on.
        unsafe { transpose_8x8(self.avx, from, from_row, to, to_row) }
    }
}

/// How wide the units of the CPU are.
pub(super) mod datapath {
    use core::sync::atomic::{AtomicU8, Ordering};

    use raw_cpuid::{CpuIdResult, cpuid};

    const UNKNOWN: u8 = 2;

    /// Asked once: in a virtual machine this is a call of the host.
    static HALF: AtomicU8 = AtomicU8::new(UNKNOWN);

    /// Whether they are of 256 bits.
    pub(super) fn is_half() -> bool {
        match HALF.load(Ordering::Relaxed) {
            UNKNOWN => assume_half_units(says_half(|leaf| cpuid!(leaf))),
            known => known == 1,
        }
    }

    /// Sets what [`is_half`] gives: only speed depends on it.
    pub(crate) fn assume_half_units(half: bool) -> bool {
        HALF.store(half.into(), Ordering::Relaxed);
        half
    }

    /// What AMD's CPUs say of theirs (AMD64 Architecture Programmer's Manual, volume 3,
    /// appendix E, function 8000_001A). Others do not; theirs are taken for 512 bits.
    pub(super) fn says_half(cpuid: impl Fn(u32) -> CpuIdResult) -> bool {
        const LEAF: u32 = 0x8000_001a;
        const FP256: u32 = 1 << 2;
        const FP512: u32 = 1 << 3;
        cpuid(0x8000_0000).eax >= LEAF && cpuid(LEAF).eax & (FP256 | FP512) == FP256
    }
}

#[cfg(test)]
mod tests {
    use raw_cpuid::CpuIdResult;

    use super::datapath::says_half;

    #[test]
    fn widths_are_decoded() {
        let says = |last: u32, widths: u32| {
            says_half(|leaf| {
                let eax = if leaf == 0x8000_0000 { last } else { widths };
                CpuIdResult { eax, ebx: 0, ecx: 0, edx: 0 }
            })
        };
        assert!(says(0x8000_0021, 0b0110), "Zen 4");
        assert!(!says(0x8000_0021, 0b1010), "a CPU with units of 512 bits");
        assert!(!says(0x8000_0008, 0b0110), "a CPU without that leaf");
    }
}
