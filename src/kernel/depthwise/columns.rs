//! The columns of planes in vectors: which of their taps are inside the image.

use core::ops::Range;

use crate::shape::Placed;
use crate::simd::Lanes;

/// The widest window with instances of its own.
const WIDEST: usize = 7;

/// More vectors than can have taps outside the image: on either side fewer than [`WIDEST`]
/// columns do, and the last vector may overlap the one before.
const EDGES: usize = 8;

/// Which taps of a vector of columns are outside the image.
pub(super) mod edge {
    /// None, and the vector is whole.
    pub(crate) const NONE: u8 = 0;
    /// Any: what they read is masked.
    pub(crate) const MASKED: u8 = 1;
    /// Any, of the only vector there is.
    pub(crate) const ALONE: u8 = 2;
    /// Those of the first tap in a row, or of the last one, of a 3x3 window with stride 1, and the
    /// vector is whole: with all taps masked 14x14x576 took 1.3 times as long on AVX2.
    pub(crate) const LEFT: u8 = 3;
    pub(crate) const RIGHT: u8 = 4;

    /// Whether all lanes of such a vector exist.
    pub(crate) const fn is_whole(edge: u8) -> bool {
        matches!(edge, NONE | LEFT | RIGHT)
    }

    /// Whether what tap column `kx` of `k` reads is masked.
    pub(super) const fn is_masked(edge: u8, kx: usize, k: usize) -> bool {
        match edge {
            NONE => false,
            LEFT => kx == 0,
            RIGHT => kx + 1 == k,
            _ => true,
        }
    }
}

/// The columns that are asked for, in vectors.
pub(super) struct Columns<S: Lanes> {
    pub(super) all: Range<usize>,
    /// Of each vector.
    pub(super) lanes: usize,
    /// The whole vectors with all taps inside the image; the others come before and behind.
    pub(super) inner: Range<usize>,
    edges: [Column<S>; EDGES],
    outer: usize,
}

impl<S: Lanes> Columns<S> {
    /// Under a `K` x `K` window with both strides `ST`; `K = 0` is any window, which knows no edge.
    #[inline(always)]
    pub(super) fn new<const K: usize, const ST: usize>(
        s: S,
        window: &Placed,
        all: Range<usize>,
    ) -> Self {
        let (vectors, lanes) = (all.len().div_ceil(S::LANES), S::LANES.min(all.len()));
        let none = Column { first: 0, edge: edge::NONE, masks: Masks::none(s) };
        let mut new = Self { all, lanes, inner: 0..vectors, edges: [none; EDGES], outer: 0 };
        if K > 0 {
            let whole = window.whole(1);
            let is_inner = |&i: &usize| {
                lanes == S::LANES && whole.start <= new.at(i) && new.at(i) + lanes <= whole.end
            };
            let start = (0..vectors).find(is_inner).unwrap_or(vectors);
            let end = (start..vectors).rfind(is_inner).map_or(start, |last| last + 1);
            new.inner = start..end;
            for i in (0..start).chain(end..vectors) {
                new.edges[new.outer] = Column::new::<K, ST>(s, window, new.at(i), lanes);
                new.outer += 1;
            }
        }
        new
    }

    /// The vectors with taps outside the image.
    #[inline(always)]
    pub(super) fn edges(&self) -> &[Column<S>] {
        &self.edges[..self.outer]
    }

    /// The vector with taps outside the image, if there is no other.
    #[inline(always)]
    pub(super) fn alone(&self) -> Option<&Column<S>> {
        match self.edges() {
            [column] if self.inner.is_empty() => Some(column),
            _ => None,
        }
    }

    /// The first column of a vector; the last one overlaps the one before.
    #[inline(always)]
    pub(super) fn at(&self, vector: usize) -> usize {
        (self.all.start + vector * S::LANES).min(self.all.end - self.lanes)
    }
}

/// A vector of columns with taps outside the image.
#[derive(Clone, Copy)]
pub(super) struct Column<S: Lanes> {
    /// Its first column.
    pub(super) first: usize,
    /// One of [`edge`].
    pub(super) edge: u8,
    pub(super) masks: Masks<S>,
}

/// Which of a vector's columns have a tap inside the image: the same in all rows and channels.
#[derive(Clone, Copy)]
pub(super) struct Masks<S: Lanes> {
    pub(super) taps: [Tap<S>; WIDEST],
    middle: Middle<S>,
}

/// What a tap column meets.
#[derive(Clone, Copy)]
pub(super) struct Tap<S: Lanes> {
    /// The lanes whose tap is inside the image, and whether that is all.
    pub(super) inside: S::Mask,
    pub(super) all: bool,
    /// What is read for them: of a second vector with stride 2.
    read: [S::Mask; 2],
}

/// What is read of a row under a 3x3 window with stride 2: the two vectors from the middle tap on
/// have all that it and the tap to its right meet. What the tap to its left meets is the latter
/// shifted or, where parts are [not in order](in_order), parted from vectors of its own.
#[derive(Clone, Copy)]
struct Middle<S: Lanes> {
    /// The lanes inside the image.
    read: [S::Mask; 2],
    /// The same of the vectors that begin a column before or, where the right tap's are shifted,
    /// of one that ends there, the last lane.
    left: [S::Mask; 2],
}

impl<S: Lanes> Masks<S> {
    #[inline(always)]
    pub(super) fn none(s: S) -> Self {
        let no = s.mask(|_| false);
        let taps = [Tap { inside: no, all: false, read: [no; 2] }; WIDEST];
        Self { taps, middle: Middle { read: [no; 2], left: [no; 2] } }
    }

    /// What the taps of a row meet, of which the first begins at `line`, or where rows are
    /// [parted](parts) the middle one; zeros outside.
    ///
    /// # Safety
    /// The row is valid for reading where it is inside the image.
    #[inline(always)]
    pub(super) unsafe fn row<const K: usize, const ST: usize, const EDGE: u8>(
        &self,
        s: S,
        line: *const f32,
    ) -> [S::V; K] {
        let mut x = [s.splat(0.0); K];
        if const { parts(K, ST) } {
            // SAFETY: passed on.
            let parted = unsafe { self.middle.taps(s, line, EDGE != edge::NONE) };
            for (x, parted) in x.iter_mut().zip(parted) {
                *x = parted;
            }
            return x;
        }
        for (kx, (x, tap)) in x.iter_mut().zip(&self.taps).enumerate() {
            // SAFETY: passed on.
            let read = |skip: usize, i: usize| unsafe {
                let p = line.wrapping_add(kx + skip);
                if edge::is_masked(EDGE, kx, K) { s.load_masked(p, tap.read[i]) } else { s.load(p) }
            };
            let low = read(0, 0);
            *x = if ST == 1 { low } else { s.even(low, read(S::LANES - 1, 1)) };
        }
        x
    }
}

impl<S: Lanes> Column<S> {
    #[inline(always)]
    fn new<const K: usize, const ST: usize>(
        s: S,
        window: &Placed,
        first: usize,
        lanes: usize,
    ) -> Self {
        let half = S::LANES / 2;
        let whole = |kx: usize| inside(window, first, lanes, kx) == (0..S::LANES);
        let edge = match [whole(0), whole(1), whole(2)] {
            [false, true, true] if const { has_sides(K, ST) } => edge::LEFT,
            [true, true, false] if const { has_sides(K, ST) } => edge::RIGHT,
            _ => edge::MASKED,
        };
        let mut masks = Masks::none(s);
        if const { parts(K, ST) } {
            masks.middle = Middle::new(s, window, first);
        }
        for (kx, at) in masks.taps.iter_mut().take(K).enumerate() {
            let span = inside(window, first, lanes, kx);
            // The weights are of the lanes as they are parted.
            let of = |lane: usize| if const { parts(K, ST) } { S::PART[lane] } else { lane };
            let has = |lane: usize| span.contains(&lane);
            *at = Tap {
                inside: s.mask(|lane| has(of(lane))),
                all: span == (0..lanes),
                read: [
                    s.mask(|i| if ST == 1 { has(i) } else { i % 2 == 0 && has(i / 2) }),
                    s.mask(|i| ST == 2 && i % 2 == 1 && has(half + i / 2)),
                ],
            };
        }
        Self { first, edge, masks }
    }
}

/// Whether two vectors of a row are parted into even and odd columns for all taps.
pub(super) const fn parts(k: usize, stride: usize) -> bool {
    k == 3 && stride == 2
}

/// Whether vectors of which one tap alone is outside the image have instances of their own.
pub(super) const fn has_sides(k: usize, stride: usize) -> bool {
    k == 3 && stride == 1
}

/// Whether parts are in order, so that they can be shifted.
const fn in_order<S: Lanes>() -> bool {
    let mut lane = 0;
    while lane < S::LANES && S::PART[lane] == lane {
        lane += 1;
    }
    lane == S::LANES
}

impl<S: Lanes> Middle<S> {
    #[inline(always)]
    fn new(s: S, window: &Placed, column: usize) -> Self {
        let Placed { before, input, .. } = window;
        let middle = 2 * column + 1;
        let inside = |at: usize| (before[1]..before[1] + input.width).contains(&at);
        // Not by `map`, behind which an intrinsic would be called.
        let read = |first: usize| s.mask(|lane| inside(first + lane));
        let left = if const { in_order::<S>() } {
            let last = |lane: usize| lane == S::LANES - 1 && inside(middle - 1);
            [s.mask(last), s.mask(|_| false)]
        } else {
            [read(middle - 1), read(middle - 1 + S::LANES)]
        };
        Self { read: [read(middle), read(middle + S::LANES)], left }
    }

    /// What the three taps meet in a row of the image, the middle one from `first` on.
    ///
    /// # Safety
    /// The row is valid for reading.
    #[inline(always)]
    unsafe fn taps(&self, s: S, first: *const f32, edge: bool) -> [S::V; 3] {
        // SAFETY: the masks, or the lack of an edge, keep the loads to columns inside the image.
        let load = |p: *const f32, mask: S::Mask| unsafe {
            if edge { s.load_masked(p, mask) } else { s.load(p) }
        };
        let two = |p: *const f32, masks: [S::Mask; 2]| {
            s.parts(load(p, masks[0]), load(p.wrapping_add(S::LANES), masks[1]))
        };
        let [even, odd] = two(first, self.read);
        let before = first.wrapping_sub(1);
        let left = if const { !in_order::<S>() } {
            two(before, self.left)[0]
        } else if edge {
            s.shift_up(load(first.wrapping_sub(S::LANES), self.left[0]), odd)
        } else {
            // SAFETY: as above.
            s.shift_up(s.splat(unsafe { s.read(before) }), odd)
        };
        [left, even, odd]
    }
}

/// The lanes whose column for tap column `kx` is inside the image.
#[inline(always)]
pub(super) fn inside(window: &Placed, column: usize, lanes: usize, kx: usize) -> Range<usize> {
    let Placed { stride, dilation, before, input, .. } = window;
    let first = column * stride[1] + kx * dilation[1];
    let reach = |limit: usize| limit.saturating_sub(first).div_ceil(stride[1]).min(lanes);
    reach(before[1])..reach(before[1] + input.width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::shape::{Padding, Shape, Window};
    use crate::simd::Kernel;

    /// All paddings of narrow images, under windows of one kind.
    struct Narrow<const K: usize, const ST: usize>;

    impl<const K: usize, const ST: usize> Kernel for Narrow<K, ST> {
        type Output = ();

        fn run<S: Lanes>(self, s: S) {
            for width in 1..4 * S::LANES {
                for (left, right) in (0..K).flat_map(|left| (0..K).map(move |right| (left, right)))
                {
                    let padding = Padding::Explicit { top: 0, bottom: 0, left, right };
                    let window =
                        Window { kernel: [K; 2], stride: [ST; 2], dilation: [1; 2], padding };
                    let Ok(window) = window.place(Shape::new(1, K, width)) else { continue };
                    let all = 0..window.output.width;
                    for start in all.clone().step_by(5) {
                        hold(&Columns::new::<K, ST>(s, &window, start..all.end), &window, K);
                    }
                }
            }
        }
    }

    /// Every column is in a vector, and the inner ones need no mask.
    fn hold<S: Lanes>(columns: &Columns<S>, window: &Placed, k: usize) {
        let Columns { all, lanes, inner, .. } = columns;
        let mut edges = columns.edges().iter();
        let mut next = all.start;
        for i in 0..inner.len() + edges.len() {
            let first = if inner.contains(&i) {
                let whole = |kx| inside(window, columns.at(i), S::LANES, kx) == (0..S::LANES);
                assert!((0..k).all(whole), "{window:?} {i}");
                columns.at(i)
            } else {
                edges.next().map_or(usize::MAX, |column| column.first)
            };
            assert!(first <= next && next < first + lanes, "{window:?} {i}");
            next = first + lanes;
        }
        assert_eq!(next, all.end);
    }

    #[test]
    fn columns_are_all_there() {
        for isa in Isa::available() {
            isa.dispatch(Narrow::<3, 1>);
            isa.dispatch(Narrow::<3, 2>);
            isa.dispatch(Narrow::<5, 1>);
            isa.dispatch(Narrow::<5, 2>);
            isa.dispatch(Narrow::<7, 1>);
        }
    }
}
