//! Depthwise convolution of planar images: vectors run along a row, the weights of
//! a channel are broadcast.
//!
//! A tile is one vector of columns by up to seven rows of outputs, so that what is
//! loaded of an input row meets several of them. Taps outside the image are left
//! out lane by lane; sums take the taps row by row, from left to right.

use core::ops::Range;

use super::pairs;
use crate::activation::Finish;
use crate::kernel::activate::{Addend, Stored, activate};
use crate::pack::{PackedDepthwise, Tail};
use crate::shape::Placed;
use crate::simd::Lanes;

/// The widest window with instances of its own.
const WIDEST: usize = 7;

/// The planes of one image. Strides are in f32.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    pub(crate) window: &'a Placed,
    pub(crate) packed: &'a PackedDepthwise,
    /// Input: channel `c`, row `y`, column `x` is at
    /// `c * input_plane + y * input_row + x`.
    pub(crate) input: *const f32,
    pub(crate) input_plane: usize,
    pub(crate) input_row: usize,
    /// Output, at the first channel, row and column asked for, with strides likewise.
    pub(crate) output: *mut f32,
    pub(crate) output_plane: usize,
    pub(crate) output_row: usize,
    pub(crate) finish: Finish,
}

impl Args<'_> {
    /// The plane that an output channel is made of.
    #[inline(always)]
    pub(super) fn plane(&self, channel: usize) -> *const f32 {
        // To divide takes as long as a row.
        let channel = match self.packed.multiplier {
            1 => channel,
            multiplier => channel / multiplier,
        };
        self.input.wrapping_add(channel * self.input_plane)
    }

    /// A channel's first tap, which the others follow a vector apart, and its bias.
    #[inline(always)]
    pub(super) fn weights<S: Lanes>(&self, channel: usize) -> [*const f32; 2] {
        let PackedDepthwise { channels, taps, ref weights, ref bias, .. } = *self.packed;
        let vector = channel / S::LANES;
        let lane = channel - Tail::Overlap.channels(vector, channels, S::LANES).start;
        [
            weights.as_ptr().wrapping_add(vector * taps * S::LANES + lane),
            bias.as_ptr().wrapping_add(vector * S::LANES + lane),
        ]
    }
}

/// Computes the output rows `rows` and columns `columns` of the channels `channels`.
///
/// # Safety
/// The pointers of `args` are valid for those channels, rows and columns and for
/// what they read; the output overlaps nothing else, and no other thread touches it.
pub(crate) unsafe fn planes<S: Lanes>(
    s: S,
    args: &Args<'_>,
    channels: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let window = args.window;
    let dense = [args.input_row, args.output_row] == [window.output.width; 2];
    if pairs::fits::<S>(window)
        && dense
        && rows == (0..window.output.height)
        && columns == (0..window.output.width)
    {
        // SAFETY: passed on.
        return unsafe { pairs::planes(s, args, channels) };
    }
    let run = match (window.kernel, window.stride, window.dilation) {
        ([3, 3], [1, 1], [1, 1]) => run::<S, 3, 1>,
        ([3, 3], [2, 2], [1, 1]) => run::<S, 3, 2>,
        ([5, 5], [1, 1], [1, 1]) => run::<S, 5, 1>,
        ([5, 5], [2, 2], [1, 1]) => run::<S, 5, 2>,
        ([7, 7], [1, 1], [1, 1]) => run::<S, 7, 1>,
        _ => run::<S, 0, 0>,
    };
    // SAFETY: passed on; the instance fits the window.
    unsafe { run(s, args, channels, rows, columns) }
}

/// Columns that a row is taken through at a time, in vectors.
const COLUMNS: usize = 8;

/// A `K` x `K` window with both strides `ST`; `K = 0` is any window.
unsafe fn run<S: Lanes, const K: usize, const ST: usize>(
    s: S,
    args: &Args<'_>,
    channels: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    s.enter(
        #[inline(always)]
        || {
            for left in columns.clone().step_by(COLUMNS * S::LANES) {
                let right = columns.end.min(left + COLUMNS * S::LANES);
                let window = args.window;
                let mut strip = [Column::none(s); COLUMNS];
                for (column, at) in (left..right).step_by(S::LANES).zip(&mut strip) {
                    let lanes = S::LANES.min(right - column);
                    *at = Column::new::<K, ST>(s, window, column, lanes);
                }
                let strip = &strip[..(right - left).div_ceil(S::LANES)];
                for channel in channels.clone() {
                    let plane = Plane {
                        args,
                        input: args.plane(channel),
                        output: args.output.wrapping_add(
                            (channel - channels.start) * args.output_plane + left - columns.start,
                        ),
                        channel,
                        rows: rows.clone(),
                        strip,
                        // Rows in one piece, without anything between.
                        dense: if columns.len() == args.output_row && columns == (left..right) {
                            rows.len() * args.output_row
                        } else {
                            0
                        },
                    };
                    // SAFETY: the channels, rows and columns are the caller's.
                    unsafe { plane.run::<K, ST>(s) }
                }
            }
        },
    );
}

/// A vector of columns: what is the same in all rows and channels.
#[derive(Clone, Copy)]
struct Column<S: Lanes> {
    /// Its first column, and how many it has.
    column: usize,
    lanes: usize,
    /// Whether it is a whole vector with all taps inside the image.
    whole: bool,
    taps: [Tap<S>; WIDEST],
    middle: Middle<S>,
}

/// What a line's vectors are made of where they are shifted: all that its middle tap
/// meets, and what is to the left and to the right of that.
#[derive(Clone, Copy)]
struct Middle<S: Lanes> {
    /// Where the vectors begin in the row: before it if need be.
    start: usize,
    /// The lanes inside the image; of a second vector with stride 2.
    read: [S::Mask; 2],
    /// Two columns inside the image: the neighbours, where they are.
    beside: [usize; 2],
}

/// What a tap column meets.
#[derive(Clone, Copy)]
struct Tap<S: Lanes> {
    /// The lanes whose tap is inside the image, and whether that is all.
    inside: S::Mask,
    all: bool,
    /// What is read for them: of a second vector with stride 2.
    read: [S::Mask; 2],
}

impl<S: Lanes> Column<S> {
    #[inline(always)]
    fn none(s: S) -> Self {
        let no = s.mask(|_| false);
        let taps = [Tap { inside: no, all: false, read: [no; 2] }; WIDEST];
        let middle = Middle { start: 0, read: [no; 2], beside: [0; 2] };
        Self { column: 0, lanes: 0, whole: false, taps, middle }
    }

    #[inline(always)]
    fn new<const K: usize, const ST: usize>(
        s: S,
        window: &Placed,
        column: usize,
        lanes: usize,
    ) -> Self {
        let half = S::LANES / 2;
        let span = |kx: usize| inside(window, column, lanes, kx);
        let tap = |kx: usize| {
            let span = span(kx);
            let has = |lane: usize| span.contains(&lane);
            Tap {
                inside: s.mask(has),
                all: span == (0..lanes),
                read: [
                    s.mask(|i| if ST == 1 { has(i) } else { i % 2 == 0 && has(i / 2) }),
                    s.mask(|i| ST == 2 && i % 2 == 1 && has(half + i / 2)),
                ],
            }
        };
        let whole = K > 0 && lanes == S::LANES && (0..K).all(|kx| span(kx) == (0..lanes));
        let mut new = Self { column, lanes, whole, ..Self::none(s) };
        if const { shifts::<S>(K, ST) } {
            new.middle = Middle::new::<ST>(s, window, column);
        }
        if !whole {
            for (kx, at) in new.taps.iter_mut().enumerate().take(K) {
                *at = tap(kx);
            }
        }
        new
    }
}

impl<S: Lanes> Middle<S> {
    #[inline(always)]
    fn new<const ST: usize>(s: S, window: &Placed, column: usize) -> Self {
        let Placed { before, input, .. } = window;
        let start = column * ST + 1;
        let inside = |i: usize| (before[1]..before[1] + input.width).contains(&(start + i));
        let read = [s.mask(inside), s.mask(|lane| inside(S::LANES + lane))];
        let beside = [start - 1, start + S::LANES * ST];
        let beside = beside.map(|i| i.saturating_sub(before[1]).min(input.width - 1));
        Self { start: start.wrapping_sub(before[1]), read, beside }
    }

    /// What the three taps meet in a row of the image; with `EDGE` anything in lanes
    /// outside.
    ///
    /// # Safety
    /// The row is valid for reading.
    #[inline(always)]
    unsafe fn taps<const ST: usize, const EDGE: bool>(&self, s: S, row: *const f32) -> [S::V; 3] {
        // SAFETY: the masks, or the lack of an edge, keep the loads to columns inside the image,
        // and so are those beside.
        unsafe {
            let load = |i: usize| {
                let p = row.wrapping_add(self.start).wrapping_add(i * S::LANES);
                if EDGE { s.load_masked(p, self.read[i]) } else { s.load(p) }
            };
            let beside = |i: usize| s.splat(s.read(row.add(self.beside[i])));
            let (left, right) = (beside(0), beside(1));
            if ST == 1 {
                let x = load(0);
                [s.shift_up(left, x), x, s.shift_down(x, right)]
            } else {
                let [even, odd] = s.parts(load(0), load(1));
                [s.shift_up(left, odd), even, odd]
            }
        }
    }
}

/// Whether what the taps of a `k` x `k` window meet is shifted in registers rather than
/// loaded for each: with stride 2 each load is two, and turned besides.
const fn shifts<S: Lanes>(k: usize, stride: usize) -> bool {
    k == 3 && (stride == 2 || S::SHIFTS)
}

/// The lanes whose column for tap column `kx` is inside the image.
#[inline(always)]
fn inside(window: &Placed, column: usize, lanes: usize, kx: usize) -> Range<usize> {
    let Placed { stride, dilation, before, input, .. } = window;
    let first = column * stride[1] + kx * dilation[1];
    let reach = |limit: usize| limit.saturating_sub(first).div_ceil(stride[1]).min(lanes);
    reach(before[1])..reach(before[1] + input.width)
}

/// One channel's plane.
struct Plane<'a, S: Lanes> {
    args: &'a Args<'a>,
    input: *const f32,
    /// At the first row and column.
    output: *mut f32,
    channel: usize,
    rows: Range<usize>,
    strip: &'a [Column<S>],
    /// How many f32 from `output` on are all rows', one behind the other.
    dense: usize,
}

/// Safety is as for [`planes`].
impl<S: Lanes> Plane<'_, S> {
    #[inline(always)]
    unsafe fn run<const K: usize, const ST: usize>(&self, s: S) {
        let [packed, bias] = self.args.weights::<S>(self.channel);
        // SAFETY: taps and bias of this channel.
        let splat = |p: *const f32| unsafe { s.splat(s.read(p)) };
        let weights: [[S::V; K]; K] = core::array::from_fn(|ky| {
            core::array::from_fn(|kx| splat(packed.wrapping_add((ky * K + kx) * S::LANES)))
        });
        let bias = splat(bias);
        let mut row = self.rows.start;
        while row < self.rows.end {
            let left = self.rows.end - row;
            // SAFETY: these rows are the caller's.
            unsafe {
                row += match K {
                    0 => self.any_window(s, row, packed, bias),
                    // Maps of most networks divide by 7.
                    3 if left >= 7 && S::REGISTERS >= 32 => {
                        self.row::<K, ST, 7>(s, row, &weights, bias)
                    }
                    _ if left >= 4 => self.row::<K, ST, 4>(s, row, &weights, bias),
                    _ if left == 3 => self.row::<K, ST, 3>(s, row, &weights, bias),
                    _ if left == 2 => self.row::<K, ST, 2>(s, row, &weights, bias),
                    _ => self.row::<K, ST, 1>(s, row, &weights, bias),
                };
            }
        }
    }

    /// A row of tiles `R` rows high; returns `R`.
    #[inline(always)]
    unsafe fn row<const K: usize, const ST: usize, const R: usize>(
        &self,
        s: S,
        row: usize,
        weights: &[[S::V; K]; K],
        bias: S::V,
    ) -> usize {
        // From right to left: see `finish`.
        for column in self.strip.iter().rev() {
            let mut acc = [bias; R];
            // SAFETY: the columns are the caller's.
            unsafe {
                if column.whole {
                    self.tile::<K, ST, false, R>(s, row, column, weights, &mut acc);
                } else {
                    self.tile::<K, ST, true, R>(s, row, column, weights, &mut acc);
                }
                self.finish::<R>(s, row, column, &acc);
            }
        }
        R
    }

    /// What the window adds to `R` rows of one vector; `EDGE` where it is not whole
    /// or taps may be outside.
    #[inline(always)]
    unsafe fn tile<const K: usize, const ST: usize, const EDGE: bool, const R: usize>(
        &self,
        s: S,
        row: usize,
        column: &Column<S>,
        weights: &[[S::V; K]; K],
        acc: &mut [S::V; R],
    ) {
        let Placed { before, input, .. } = *self.args.window;
        // Shifted vectors know where they begin.
        let left = match const { shifts::<S>(K, ST) } {
            true => 0,
            false => (column.column * ST).wrapping_sub(before[1]),
        };
        // The input rows inside the image, counted from that of the first tap.
        let top = row * ST;
        let inside = before[0].saturating_sub(top)..(input.height + before[0]).saturating_sub(top);
        let step = self.args.input_row;
        let first = top.wrapping_sub(before[0]).wrapping_mul(step);
        let first = self.input.wrapping_add(first).wrapping_add(left);
        // A copy, since the compiler cannot know that no store changes it.
        let taps: [Tap<S>; K] = core::array::from_fn(|kx| column.taps[kx]);
        let middle = column.middle;
        // Spelled out, since loops of this size do not always unroll.
        macro_rules! lines {
            ($($line:literal)*) => {$(
                if const { $line < (R - 1) * ST + K } && inside.contains(&$line) {
                    let line = first.wrapping_add($line * step);
                    // SAFETY: the row is inside.
                    unsafe {
                        self.line::<K, ST, EDGE, R, $line>(s, line, &taps, &middle, weights, acc);
                    }
                }
            )*};
        }
        lines!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    /// What input row `LINE` of a tile adds to its outputs; `line` is where its first
    /// tap is.
    #[inline(always)]
    unsafe fn line<
        const K: usize,
        const ST: usize,
        const EDGE: bool,
        const R: usize,
        const LINE: usize,
    >(
        &self,
        s: S,
        line: *const f32,
        taps: &[Tap<S>; K],
        middle: &Middle<S>,
        weights: &[[S::V; K]; K],
        acc: &mut [S::V; R],
    ) {
        let shifted = match const { shifts::<S>(K, ST) } {
            // SAFETY: a row inside the image.
            true => unsafe { middle.taps::<ST, EDGE>(s, line) },
            false => [s.splat(0.0); 3],
        };
        macro_rules! taps {
            ($($kx:literal)*) => {$(
                if const { $kx < K } {
                    let tap = &taps[$kx];
                    let x = match const { shifts::<S>(K, ST) } {
                        true => shifted[$kx % 3],
                        // SAFETY: all columns or those in the masks are inside.
                        false => unsafe { load::<S, ST, EDGE>(s, line.wrapping_add($kx), tap) },
                    };
                    // One mask where both are the same.
                    let inside = if ST == 1 { tap.read[0] } else { tap.inside };
                    if EDGE && (S::MASKS_ARE_FREE || !tap.all) {
                        for r in 0..R {
                            if LINE >= r * ST && LINE - r * ST < K {
                                let w = weights[LINE - r * ST][$kx];
                                acc[r] = s.mul_add_masked(x, w, acc[r], inside);
                            }
                        }
                    } else {
                        for r in 0..R {
                            if LINE >= r * ST && LINE - r * ST < K {
                                let w = weights[LINE - r * ST][$kx];
                                acc[r] = s.mul_add(x, w, acc[r]);
                            }
                        }
                    }
                }
            )*};
        }
        taps!(0 1 2 3 4 5 6);
    }

    /// Finishes and stores a tile. A vector that is not whole is stored as if it were
    /// where what lies beyond is the beginning of the next rows, which are still to
    /// come: to store a part of one takes AMD's cores ten times as long.
    #[inline(always)]
    unsafe fn finish<const R: usize>(&self, s: S, row: usize, column: &Column<S>, acc: &[S::V; R]) {
        // Read here: each store might change them, as far as the compiler knows.
        let Args { output_row, finish, .. } = *self.args;
        let lanes = column.lanes;
        let at = (row - self.rows.start) * output_row + column.column - self.strip[0].column;
        let output = self.output.wrapping_add(at);
        // Up to where whole vectors may begin.
        let limit = match lanes == S::LANES {
            true => usize::MAX,
            false => (self.dense + 1).saturating_sub(S::LANES + at),
        };
        let mut rows = [[s.splat(0.0)]; R];
        for (row, &x) in rows.iter_mut().zip(acc) {
            row[0] = x;
        }
        finish.each(s, &rows, |r, [x]| {
            let p = output.wrapping_add(r * output_row);
            // SAFETY: the lanes of a row, or a vector that ends in rows still to come.
            unsafe {
                if r * output_row < limit { s.store(p, x) } else { s.store_first(p, x, lanes) }
            }
        });
        if let Finish::Apply(_) = self.args.finish {
            let stored = Stored {
                output,
                row: output_row,
                vector: S::LANES,
                pixels: R,
                vectors: 1,
                last_lanes: lanes,
                residual: Addend::NONE,
            };
            // SAFETY: the tile just written.
            unsafe { activate(s, &self.args.finish, &stored) }
        }
    }

    /// A row of outputs of a window of any kind; returns 1.
    #[inline(always)]
    unsafe fn any_window(&self, s: S, row: usize, weights: *const f32, bias: S::V) -> usize {
        let window = self.args.window;
        let Placed { kernel, stride, dilation, before, input, .. } = *window;
        for column in self.strip.iter().rev() {
            let mut acc = [bias];
            for ky in 0..kernel[0] {
                let y = (row * stride[0] + ky * dilation[0]).wrapping_sub(before[0]);
                if y >= input.height {
                    continue;
                }
                let line = self.input.wrapping_add(y * self.args.input_row);
                for kx in 0..kernel[1] {
                    let first = column.column * stride[1] + kx * dilation[1];
                    let p = line.wrapping_add(first.wrapping_sub(before[1]));
                    let inside = inside(window, column.column, column.lanes, kx);
                    // SAFETY: one of the taps; the row is inside, and so are the columns
                    // in the range.
                    unsafe {
                        let w = s.splat(s.read(weights.add((ky * kernel[1] + kx) * S::LANES)));
                        acc[0] = if stride[1] == 1 && inside == (0..S::LANES) {
                            s.mul_add(s.load(p), w, acc[0])
                        } else {
                            let x = s.load_every(p, stride[1], inside.clone());
                            s.mul_add_masked(x, w, acc[0], s.mask(|i| inside.contains(&i)))
                        };
                    }
                }
            }
            // SAFETY: the columns are the caller's.
            unsafe { self.finish::<1>(s, row, column, &acc) }
        }
        1
    }
}

/// What the lanes of a vector meet in tap column `tap`, of which `p` is the first.
///
/// # Safety
/// What the tap's masks ask for, or without `EDGE` all of it, is valid for reading.
#[inline(always)]
unsafe fn load<S: Lanes, const ST: usize, const EDGE: bool>(
    s: S,
    p: *const f32,
    tap: &Tap<S>,
) -> S::V {
    // SAFETY: passed on.
    let read = |p: *const f32, i: usize| unsafe {
        if EDGE { s.load_masked(p, tap.read[i]) } else { s.load(p) }
    };
    let low = read(p, 0);
    if ST == 1 { low } else { s.even(low, read(p.wrapping_add(S::LANES - 1), 1)) }
}
