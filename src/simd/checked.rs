//! Debug builds: every address that a kernel loads from or stores to is looked up
//! in the memory that its task was given. A release build knows none of this.

use core::cell::Cell;
use core::ops::Range;

use super::{Index, K_STEP, Lanes, MAX_LANES, MAX_VECTORS, TABLE};

/// The most pieces of memory that a task has.
const MOST: usize = 24;

/// Where f32 may be read and, with `writable`, written: addresses from `start` to
/// before `end`.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    writable: bool,
}

impl Piece {
    const NONE: Self = Self { start: 0, end: 0, writable: false };

    fn new(p: *const f32, len: usize, writable: bool) -> Self {
        let start = p.addr();
        Self { start, end: start + len * size_of::<f32>(), writable }
    }
}

/// What a task may touch.
pub(crate) struct Memory {
    /// None where the kernel does not say.
    pieces: Option<[Piece; MOST]>,
    len: usize,
    /// What the kernel has on its stack.
    local: Cell<Piece>,
}

impl Memory {
    /// Nothing is known, so nothing is checked.
    pub(crate) fn unknown() -> Self {
        Self { pieces: None, len: 0, local: Cell::new(Piece::NONE) }
    }

    pub(crate) fn none() -> Self {
        Self { pieces: Some([Piece::NONE; MOST]), ..Self::unknown() }
    }

    /// And what is read here.
    pub(crate) fn reads(self, p: *const f32, len: usize) -> Self {
        self.and(Piece::new(p, len, false))
    }

    /// And what is read and written here.
    pub(crate) fn writes(self, p: *mut f32, len: usize) -> Self {
        self.and(Piece::new(p, len, true))
    }

    pub(crate) fn slices<'a>(self, slices: impl IntoIterator<Item = &'a [f32]>) -> Self {
        slices.into_iter().fold(self, |memory, slice| memory.reads(slice.as_ptr(), slice.len()))
    }

    fn and(mut self, piece: Piece) -> Self {
        if let Some(pieces) = &mut self.pieces {
            pieces[self.len] = piece;
            self.len += 1;
        }
        self
    }

    #[inline(never)]
    #[allow(clippy::panic, reason = "a debug assertion")]
    fn check(&self, p: *const f32, len: usize, write: bool) {
        let Some(pieces) = &self.pieces else { return };
        let (start, end) = (p.addr(), p.addr().wrapping_add(len * size_of::<f32>()));
        let local = self.local.get();
        let fits = |piece: &Piece| {
            piece.start <= start && start <= end && end <= piece.end && (piece.writable || !write)
        };
        if len > 0 && !pieces[..self.len].iter().chain([&local]).any(fits) {
            let what = if write { "writes" } else { "reads" };
            panic!("the kernel {what} {len} f32 at {start:#x}, outside the memory of its task");
        }
    }

    /// `len` f32 in each of some rows, `step` apart.
    #[inline(never)]
    fn check_rows(&self, p: *const f32, [rows, step]: [usize; 2], len: usize, write: bool) {
        (0..rows).for_each(|row| self.check(p.wrapping_add(row * step), len, write));
    }
}

/// A token that checks every address.
#[derive(Clone, Copy)]
pub(crate) struct Checked<'m, S> {
    s: S,
    memory: &'m Memory,
}

impl<'m, S: Lanes> Checked<'m, S> {
    pub(crate) fn new(s: S, memory: &'m Memory) -> Self {
        Self { s, memory }
    }

    /// The lanes of a mask lie between the first and the last one.
    #[inline(always)]
    fn check_lanes(self, p: *const f32, lanes: u32) {
        if lanes != 0 {
            let first = lanes.trailing_zeros() as usize;
            let end = (u32::BITS - lanes.leading_zeros()) as usize;
            self.memory.check(p.wrapping_add(first), end - first, false);
        }
    }
}

/// A mask and, as bits, its lanes.
#[derive(Clone, Copy)]
pub(crate) struct Mask<M> {
    mask: M,
    lanes: u32,
}

/// What only computes.
macro_rules! arithmetic {
    ($($name:ident($($operand:ident),+);)*) => {$(
        #[inline(always)]
        fn $name(self, $($operand: S::V),+) -> S::V {
            self.s.$name($($operand),+)
        }
    )*};
}

// SAFETY: as sound as the token within, which does all the work.
unsafe impl<'m, S: Lanes> Lanes for Checked<'m, S> {
    type V = S::V;
    type Mask = Mask<S::Mask>;
    type Narrow = Checked<'m, S::Narrow>;
    const LANES: usize = S::LANES;
    const NAME: &'static str = S::NAME;
    const REGISTERS: usize = S::REGISTERS;
    const POINTWISE_ROWS: [usize; MAX_VECTORS] = S::POINTWISE_ROWS;
    const POINTWISE_HALVED_ROWS: [usize; MAX_VECTORS] = S::POINTWISE_HALVED_ROWS;
    const POINTWISE_VECTORS: usize = S::POINTWISE_VECTORS;
    const STEPS_APART: bool = S::STEPS_APART;
    const LAST_STEPS: usize = S::LAST_STEPS;
    const HALVES: bool = S::HALVES;
    const LOOKS_UP: bool = S::LOOKS_UP;
    const PART: [usize; MAX_LANES] = S::PART;
    const SPLICES: bool = S::SPLICES;
    const BLOCK: usize = S::BLOCK;
    const DEPTHWISE_TILES: [[usize; 2]; 5] = S::DEPTHWISE_TILES;

    #[inline(always)]
    fn narrow(self) -> Option<Self::Narrow> {
        Some(Checked { s: self.s.narrow()?, memory: self.memory })
    }
    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        self.s.enter(f)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> S::V {
        self.s.splat(x)
    }
    #[inline(always)]
    fn before(self, x: S::V) -> S::V {
        self.s.before(x)
    }
    #[inline(always)]
    fn elsewhere(self, p: *const f32) -> *const f32 {
        self.s.elsewhere(p)
    }
    arithmetic! {
        add(a, b);
        sub(a, b);
        neg(x);
        abs(x);
        mul(a, b);
        div(a, b);
        mul_add(a, b, c);
        mul_add_low(a, b, c);
        mul_add_near(a, b, c);
        product_error(a, b, product);
        max(bound, x);
        min(bound, x);
        swap_halves(x);
        shift_to_exponent(x);
        scale(x, n);
        even(low, high);
        shift_up(before, x);
        shift_down(x, after);
    }
    #[inline(always)]
    fn join(self, low: S::V, high: S::V, n: usize) -> S::V {
        self.s.join(low, high, n)
    }

    #[inline(always)]
    fn parts(self, low: S::V, high: S::V) -> [S::V; 2] {
        self.s.parts(low, high)
    }
    #[inline(always)]
    fn in_order(self, part: S::V) -> S::V {
        self.s.in_order(part)
    }
    #[inline(always)]
    fn splice(self, x: S::V, after: S::V, n: usize) -> S::V {
        self.s.splice(x, after, n)
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; TABLE], i: S::V) -> S::V {
        self.s.lookup(table, i)
    }

    #[inline(always)]
    fn to_array(self, x: S::V) -> [f32; MAX_LANES] {
        self.s.to_array(x)
    }

    #[inline(always)]
    fn lend(self, p: *mut f32, len: usize) {
        self.memory.local.set(Piece::new(p, len, true));
    }

    #[inline(always)]
    unsafe fn read(self, p: *const f32) -> f32 {
        self.memory.check(p, 1, false);
        // SAFETY: passed on, here and below.
        unsafe { self.s.read(p) }
    }
    #[inline(always)]
    unsafe fn write(self, p: *mut f32, x: f32) {
        self.memory.check(p, 1, true);
        // SAFETY: passed on.
        unsafe { self.s.write(p, x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> S::V {
        self.memory.check(p, S::LANES, false);
        // SAFETY: passed on.
        unsafe { self.s.load(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: S::V) {
        self.memory.check(p, S::LANES, true);
        // SAFETY: passed on.
        unsafe { self.s.store(p, v) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        self.s.prefetch(p);
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> S::V {
        assert!(n > 0 && n <= S::LANES);
        self.memory.check(p, n, false);
        // SAFETY: passed on.
        unsafe { self.s.load_first(p, n) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: S::V, n: usize) {
        assert!(n > 0 && n <= S::LANES);
        self.memory.check(p, n, true);
        // SAFETY: passed on.
        unsafe { self.s.store_first(p, v, n) }
    }
    #[inline(always)]
    unsafe fn store_low(self, p: *mut f32, v: S::V) {
        self.memory.check(p, S::LANES / 2, true);
        // SAFETY: passed on.
        unsafe { self.s.store_low(p, v) }
    }
    #[inline(always)]
    unsafe fn load_indexed(self, p: *const f32, n: usize, index: &Index) -> S::V {
        assert!(n <= S::LANES && index[..S::LANES].iter().all(|&i| (0..n as i32).contains(&i)));
        self.memory.check(p, n, false);
        // SAFETY: passed on.
        unsafe { self.s.load_indexed(p, n, index) }
    }
    #[inline(always)]
    unsafe fn load_every(self, p: *const f32, step: usize, lanes: Range<usize>) -> S::V {
        if !lanes.is_empty() {
            let first = p.wrapping_add(lanes.start * step);
            self.memory.check(first, (lanes.len() - 1) * step + 1, false);
        }
        // SAFETY: passed on.
        unsafe { self.s.load_every(p, step, lanes) }
    }

    #[inline(always)]
    fn mask(self, lane: impl Fn(usize) -> bool) -> Self::Mask {
        let lanes = (0..S::LANES).fold(0, |lanes, i| lanes | u32::from(lane(i)) << i);
        Mask { mask: self.s.mask(lane), lanes }
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, yes: S::V, no: S::V) -> S::V {
        self.s.select(mask.mask, yes, no)
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, mask: Self::Mask) -> S::V {
        self.check_lanes(p, mask.lanes);
        // SAFETY: passed on.
        unsafe { self.s.load_masked(p, mask.mask) }
    }

    #[inline(always)]
    unsafe fn load_cut(self, p: *const f32, mask: Self::Mask) -> S::V {
        self.memory.check(p, S::LANES, false);
        // SAFETY: passed on.
        unsafe { self.s.load_cut(p, mask.mask) }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        self.memory.check_rows(from, [S::BLOCK, from_row], S::BLOCK, false);
        self.memory.check_rows(to, [S::BLOCK, to_row], S::BLOCK, true);
        // SAFETY: passed on.
        unsafe { self.s.transpose(from, from_row, to, to_row) }
    }

    #[inline(always)]
    unsafe fn rank_update<const MR: usize, const NV: usize>(
        self,
        acc: &mut [[S::V; NV]; MR],
        a: *const f32,
        a_row: usize,
        b: *const f32,
    ) {
        self.memory.check_rows(a, [MR, a_row], K_STEP, false);
        self.memory.check(b, K_STEP * NV * S::LANES, false);
        // SAFETY: passed on.
        unsafe { self.s.rank_update(acc, a, a_row, b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::Kernel;

    /// Copies a slice's last vector, and says that the slices end so much earlier.
    struct CopyLast<'a> {
        from: &'a [f32],
        to: &'a mut [f32],
        beyond: [usize; 2],
    }

    impl Kernel for CopyLast<'_> {
        type Output = ();

        fn memory<S: Lanes>(&self) -> Memory {
            let [from, to] = [self.from.len(), self.to.len()];
            let [read, written] = self.beyond;
            Memory::none()
                .reads(self.from.as_ptr(), from - read)
                .writes(self.to.as_ptr().cast_mut(), to - written)
        }

        fn run<S: Lanes>(self, s: S) {
            let last = self.from.len() - S::LANES;
            // SAFETY: the last vector of both slices.
            unsafe {
                let x = s.load(self.from.as_ptr().add(last));
                s.store(self.to.as_mut_ptr().add(last), x);
            }
        }
    }

    #[test]
    fn one_f32_beyond_its_memory_is_found() {
        extern crate std;
        for isa in Isa::available() {
            for beyond in [[0, 0], [1, 0], [0, 1]] {
                let run = || {
                    let (from, mut to) = ([1.0; 40], [0.0; 40]);
                    isa.dispatch(CopyLast { from: &from, to: &mut to, beyond });
                    assert_eq!(to[39], 1.0);
                };
                assert_eq!(std::panic::catch_unwind(run).is_ok(), beyond == [0, 0], "{isa}");
            }
        }
    }

    #[test]
    fn what_is_read_is_not_written() {
        let x = [0.0; 4];
        let memory = Memory::none().slices([&x[..]]);
        memory.check(x.as_ptr(), 4, false);
        extern crate std;
        let write = core::panic::AssertUnwindSafe(|| memory.check(x.as_ptr(), 1, true));
        assert!(std::panic::catch_unwind(write).is_err());
    }
}
