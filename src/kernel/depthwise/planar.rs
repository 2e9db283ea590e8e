//! Depthwise convolution of planar images: vectors run along a row, the weights of
//! a channel are broadcast.
//!
//! A vector of columns goes down the rows. The outputs that the window covers stay in
//! registers, as do the weights of a small one, so that each input row is read once. Sums
//! take the taps row by row, from left to right.
//!
//! A tap outside the image leaves a sum as it is, bit for bit: its weight is -0 there and
//! what it reads +0, so that it adds -0.

use core::ops::Range;

use super::small;
use crate::activation::{Finish, Finishing};
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
    /// How its channels are packed.
    pub(crate) tail: Tail,
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

/// The input channel that an output channel is made of.
#[inline(always)]
pub(super) fn source(channel: usize, multiplier: usize) -> usize {
    // To divide takes as long as a row.
    if multiplier == 1 { channel } else { channel / multiplier }
}

impl Args<'_> {
    /// The plane that an output channel is made of.
    #[inline(always)]
    pub(super) fn plane(&self, channel: usize) -> *const f32 {
        let channel = source(channel, self.packed.multiplier);
        self.input.wrapping_add(channel * self.input_plane)
    }

    /// A channel's first tap, which the others follow a vector apart, and its bias.
    #[inline(always)]
    pub(super) fn weights<S: Lanes>(&self, channel: usize) -> [*const f32; 2] {
        let PackedDepthwise { channels, taps, ref weights, ref bias, .. } = *self.packed;
        let vector = channel / S::LANES;
        let lane = channel - self.tail.channels(vector, channels, S::LANES).start;
        [
            weights.as_ptr().wrapping_add(vector * taps * S::LANES + lane),
            bias.as_ptr().wrapping_add(vector * S::LANES + lane),
        ]
    }
}

/// Whether a window is faster along rows than where planes are turned into pixels: to turn
/// them is the same work for any window, and rows should fill half a vector.
pub(crate) fn is_fast<S: Lanes>(window: &Placed) -> bool {
    let Placed { kernel, dilation, output, .. } = *window;
    kernel == [3, 3] && dilation == [1, 1] && output.width > S::LANES / 2
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
    if small::fits::<S>(window)
        && dense
        && rows == (0..window.output.height)
        && columns == (0..window.output.width)
    {
        // SAFETY: passed on.
        return unsafe { small::planes(s, args, channels) };
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

/// The most vectors of columns that are taken by turns.
const COLUMNS: usize = 8;

/// f32 of a plane that is large, and the output rows that a vector of columns goes through
/// there before the next one does: what they share should still be near, and rows some
/// power of two apart have few places in the first level.
const LARGE: usize = 16384;
const BAND: usize = 16;

/// f32 between what is read and what is asked for: the same row of later columns, or where
/// there are none, of the next channel's.
const AHEAD: usize = 64;

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
                let lanes = S::LANES.min(right - left);
                let mut strip = [Column::none(s); COLUMNS];
                // The last one overlaps the one before.
                for (column, at) in (left..right).step_by(S::LANES).zip(&mut strip) {
                    *at = Column::new::<K, ST>(s, args.window, column.min(right - lanes), lanes);
                }
                let planes = Planes::<S, K, ST> {
                    s,
                    args,
                    channels: channels.clone(),
                    rows: rows.clone(),
                    columns: columns.clone(),
                    zero: s.splat(core::hint::black_box(0.0)),
                    strip: &strip[..(right - left).div_ceil(S::LANES)],
                };
                args.finish.in_registers(s, planes);
            }
        },
    );
}

/// Which taps of a vector of columns are outside the image.
mod edge {
    /// None, and the vector is whole.
    pub(super) const NONE: u8 = 0;
    /// Any: what they read is masked.
    pub(super) const MASKED: u8 = 1;
    /// One to the left, to the right, or both, of a 3x3 window with stride 1: the vector of
    /// the middle tap is shifted, which was faster than masked loads.
    pub(super) const LEFT: u8 = 2;
    pub(super) const RIGHT: u8 = 3;
    pub(super) const BOTH: u8 = 4;

    /// Whether all lanes of such a vector exist.
    pub(super) const fn is_whole(edge: u8) -> bool {
        matches!(edge, NONE | LEFT | RIGHT)
    }
}

/// A vector of columns: what is the same in all rows and channels.
#[derive(Clone, Copy)]
struct Column<S: Lanes> {
    /// Its first column, and how many it has.
    column: usize,
    lanes: usize,
    /// One of [`edge`].
    edge: u8,
    taps: [Tap<S>; WIDEST],
    middle: Middle<S>,
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

/// Where the middle tap of a 3x3 window with stride 2 begins in a row, two vectors of which
/// have all that it and the tap to its right meet; what the tap to its left meets is the
/// latter shifted, since each load for it would be two, and turned besides.
#[derive(Clone, Copy)]
struct Middle<S: Lanes> {
    start: usize,
    /// The lanes inside the image.
    read: [S::Mask; 2],
    /// Of a vector that ends to the left of them: the last lane, if that is inside.
    before: S::Mask,
}

impl<S: Lanes> Column<S> {
    #[inline(always)]
    fn none(s: S) -> Self {
        let no = s.mask(|_| false);
        let taps = [Tap { inside: no, all: false, read: [no; 2] }; WIDEST];
        let middle = Middle { start: 0, read: [no; 2], before: no };
        Self { column: 0, lanes: 0, edge: edge::MASKED, taps, middle }
    }

    #[inline(always)]
    fn new<const K: usize, const ST: usize>(
        s: S,
        window: &Placed,
        column: usize,
        lanes: usize,
    ) -> Self {
        let half = S::LANES / 2;
        let spans: [_; K] = core::array::from_fn(|kx| inside(window, column, lanes, kx));
        let (whole, all) = (lanes == S::LANES, |span: &Range<usize>| *span == (0..lanes));
        let Placed { before, input, output, .. } = window;
        let sides = [column == 0, column + lanes == output.width];
        let shifts = const { shifts(K, ST) } && before[1] == 1 && input.width == output.width;
        let edge = match sides {
            _ if K > 0 && whole && spans.iter().all(all) => edge::NONE,
            [true, true] if shifts => edge::BOTH,
            [true, false] if shifts && whole => edge::LEFT,
            [false, true] if shifts && whole => edge::RIGHT,
            _ => edge::MASKED,
        };
        let mut new = Self { column, lanes, edge, ..Self::none(s) };
        if const { parts(K, ST) } {
            new.middle = Middle::new(s, window, column);
        }
        for (at, span) in new.taps.iter_mut().zip(&spans) {
            let has = |lane: usize| span.contains(&lane);
            *at = Tap {
                inside: s.mask(has),
                all: all(span),
                read: [
                    s.mask(|i| if ST == 1 { has(i) } else { i % 2 == 0 && has(i / 2) }),
                    s.mask(|i| ST == 2 && i % 2 == 1 && has(half + i / 2)),
                ],
            };
        }
        new
    }
}

/// Whether two vectors of a row are parted into even and odd columns for all taps.
const fn parts(k: usize, stride: usize) -> bool {
    k == 3 && stride == 2
}

/// Whether the vector of the middle tap may be shifted for those beside it.
const fn shifts(k: usize, stride: usize) -> bool {
    k == 3 && stride == 1
}

impl<S: Lanes> Middle<S> {
    #[inline(always)]
    fn new(s: S, window: &Placed, column: usize) -> Self {
        let Placed { before, input, .. } = window;
        let start = 2 * column + 1;
        let inside = |at: usize| (before[1]..before[1] + input.width).contains(&at);
        // Not by `map`, behind which an intrinsic would be called.
        let read = |first: usize| s.mask(|lane| inside(start + first + lane));
        let read = [read(0), read(S::LANES)];
        let before_it = s.mask(|lane| lane == S::LANES - 1 && inside(start - 1));
        Self { start: start.wrapping_sub(before[1]), read, before: before_it }
    }

    /// What the three taps meet in a row of the image.
    ///
    /// # Safety
    /// The row is valid for reading.
    #[inline(always)]
    unsafe fn taps(&self, s: S, row: *const f32, edge: bool) -> [S::V; 3] {
        let first = row.wrapping_add(self.start);
        // SAFETY: the masks, or the lack of an edge, keep the loads to columns inside the image.
        unsafe {
            let (before, low, high) = if edge {
                (
                    s.load_masked(first.wrapping_sub(S::LANES), self.before),
                    s.load_masked(first, self.read[0]),
                    s.load_masked(first.wrapping_add(S::LANES), self.read[1]),
                )
            } else {
                (s.splat(s.read(first.sub(1))), s.load(first), s.load(first.add(S::LANES)))
            };
            let [even, odd] = s.parts(low, high);
            [s.shift_up(before, odd), even, odd]
        }
    }
}

/// The lanes whose column for tap column `kx` is inside the image.
#[inline(always)]
fn inside(window: &Placed, column: usize, lanes: usize, kx: usize) -> Range<usize> {
    let Placed { stride, dilation, before, input, .. } = window;
    let first = column * stride[1] + kx * dilation[1];
    let reach = |limit: usize| limit.saturating_sub(first).div_ceil(stride[1]).min(lanes);
    reach(before[1])..reach(before[1] + input.width)
}

/// Some vectors of columns of some channels' planes.
struct Planes<'a, S: Lanes, const K: usize, const ST: usize> {
    s: S,
    args: &'a Args<'a>,
    channels: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Not known to the compiler, which would shift it in by a slower instruction.
    zero: S::V,
    strip: &'a [Column<S>],
}

impl<S: Lanes, const K: usize, const ST: usize> Finishing<S> for Planes<'_, S, K, ST> {
    #[inline(always)]
    fn run(self, finish: impl Fn(S::V) -> S::V) {
        let all = self.rows.clone();
        let Placed { input, .. } = *self.args.window;
        // SAFETY: `planes` has the caller's word for channels, rows and columns.
        unsafe {
            match *self.strip {
                // What is the same in all channels stays in registers.
                [column] if column.edge == edge::BOTH && const { shifts(K, ST) } => {
                    for channel in self.channels.clone() {
                        self.column::<{ edge::BOTH }>(channel, &column, all.clone(), &finish);
                    }
                }
                _ => {
                    let large = input.height * input.width > LARGE;
                    let band = if large { BAND } else { all.len().max(1) };
                    for channel in self.channels.clone() {
                        for top in all.clone().step_by(band) {
                            let rows = top..(top + band).min(all.end);
                            for column in self.strip {
                                self.any_column(channel, column, rows.clone(), &finish);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Safety is as for [`planes`].
impl<S: Lanes, const K: usize, const ST: usize> Planes<'_, S, K, ST> {
    /// [`column`](Self::column) by its edge.
    #[inline(always)]
    unsafe fn any_column(
        &self,
        channel: usize,
        column: &Column<S>,
        rows: Range<usize>,
        finish: impl Fn(S::V) -> S::V,
    ) {
        // SAFETY: passed on.
        unsafe {
            match column.edge {
                edge::NONE => self.column::<{ edge::NONE }>(channel, column, rows, finish),
                edge::LEFT if const { shifts(K, ST) } => {
                    self.column::<{ edge::LEFT }>(channel, column, rows, finish);
                }
                edge::RIGHT if const { shifts(K, ST) } => {
                    self.column::<{ edge::RIGHT }>(channel, column, rows, finish);
                }
                _ => self.column::<{ edge::MASKED }>(channel, column, rows, finish),
            }
        }
    }

    /// Some rows of one vector of columns of a channel.
    #[inline(always)]
    unsafe fn column<const EDGE: u8>(
        &self,
        channel: usize,
        column: &Column<S>,
        rows: Range<usize>,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, args, ref channels, ref columns, .. } = *self;
        let Args { output_row, output_plane, .. } = *args;
        let at = (channel - channels.start) * output_plane
            + (rows.start - self.rows.start) * output_row
            + column.column
            - columns.start;
        let output = args.output.wrapping_add(at);
        // SAFETY: passed on.
        unsafe {
            if K == 0 {
                self.any_window(channel, column, rows.clone(), output, &finish);
            } else {
                // How many f32 may be written where a vector is not whole: what lies beyond
                // it is still to be computed.
                let size = rows.len() * output_row;
                let planes = if size == output_plane { channels.end - channel } else { 1 };
                let room = match column.lanes {
                    lanes if lanes == S::LANES => usize::MAX,
                    lanes if lanes == output_row => planes * size,
                    _ => 0,
                };
                self.rows::<EDGE>(channel, column, rows.clone(), output, room, &finish);
            }
        }
        if let Finish::Apply(_) = args.finish {
            let stored = Stored {
                output,
                row: output_row,
                vector: S::LANES,
                pixels: rows.len(),
                vectors: 1,
                last_lanes: column.lanes,
                residual: Addend::NONE,
            };
            // SAFETY: what was just written.
            unsafe { activate(s, &args.finish, &stored) }
        }
    }

    /// From the first row to the last.
    #[inline(always)]
    unsafe fn rows<const EDGE: u8>(
        &self,
        channel: usize,
        column: &Column<S>,
        rows: Range<usize>,
        mut output: *mut f32,
        mut room: usize,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, args, zero, .. } = *self;
        let Placed { before, input, .. } = *args.window;
        // Copies, here and below: each store might change what is behind a reference, as far
        // as the compiler knows.
        let [input_row, output_row] = [args.input_row, args.output_row];
        // Output rows that the window covers at once.
        let live = const { if K == 0 { 1 } else { K.div_ceil(ST) } };
        let taps: [Tap<S>; K] = core::array::from_fn(|kx| column.taps[kx]);
        let middle = column.middle;
        let ahead = match column.column * ST + AHEAD < input.width {
            true => AHEAD,
            false => args.input_plane.wrapping_sub(input.width.saturating_sub(AHEAD)),
        };
        let [packed, bias] = args.weights::<S>(channel);
        // SAFETY: taps and bias of this channel.
        let splat = |p: *const f32| unsafe { s.splat(s.read(p)) };
        let bias = splat(bias);
        // For each column anew, since few registers would not hold them meanwhile.
        let mut w = [[bias; K]; K];
        for (ky, w) in w.iter_mut().enumerate() {
            for (kx, w) in w.iter_mut().enumerate() {
                *w = splat(packed.wrapping_add((ky * K + kx) * S::LANES));
            }
        }
        if EDGE != edge::NONE {
            for (kx, tap) in taps.iter().enumerate() {
                if !tap.all {
                    for w in &mut w {
                        w[kx] = s.select(tap.inside, w[kx], s.splat(-0.0));
                    }
                }
            }
        }
        let left = match const { parts(K, ST) } {
            true => 0,
            false => (column.column * ST).wrapping_sub(before[1]),
        };
        let mut y = (rows.start * ST).wrapping_sub(before[0]);
        let mut line = args.plane(channel).wrapping_add(y.wrapping_mul(input_row));
        line = line.wrapping_add(left);
        // `acc[j]` belongs to the output row `j` above.
        let mut acc = [bias; K];
        for step in 1..rows.len() + live {
            // Spelled out, as all loops over `acc`, or they do not always unroll.
            macro_rules! lines {
                ($($p:literal)*) => {$(
                    if const { $p < ST } {
                        if y < input.height {
                            if EDGE != edge::BOTH {
                                s.prefetch(line.wrapping_add(ahead));
                            }
                            // SAFETY: the row is inside.
                            let x = unsafe { load::<S, K, ST, EDGE>(s, line, &taps, &middle, zero) };
                            for kx in 0..K {
                                for j in 0..K.div_ceil(ST) {
                                    if j * ST + $p < K {
                                        acc[j] = s.mul_add(x[kx], w[j * ST + $p][kx], acc[j]);
                                    }
                                }
                            }
                        }
                        y = y.wrapping_add(1);
                        line = line.wrapping_add(input_row);
                    }
                )*};
            }
            lines!(0 1);
            if step >= live {
                let sum = finish(acc[live - 1]);
                // SAFETY: the lanes of a row, or a vector that ends in what is to come. To
                // store a part of one takes AMD's cores ten times as long.
                unsafe {
                    if const { edge::is_whole(EDGE) } || room >= S::LANES {
                        s.store(output, sum);
                    } else {
                        s.store_first(output, sum, column.lanes);
                    }
                }
                output = output.wrapping_add(output_row);
                room = room.saturating_sub(output_row);
            }
            macro_rules! up {
                ($($j:literal)*) => {$( if const { $j < K } { acc[$j] = acc[$j - 1]; } )*};
            }
            up!(6 5 4 3 2 1);
            acc[0] = bias;
        }
    }

    /// A channel under a window of any kind.
    #[inline(always)]
    unsafe fn any_window(
        &self,
        channel: usize,
        column: &Column<S>,
        rows: Range<usize>,
        output: *mut f32,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, args, .. } = *self;
        let Placed { kernel, stride, dilation, before, input, .. } = *args.window;
        let [weights, bias] = args.weights::<S>(channel);
        let plane = args.plane(channel);
        for (i, row) in rows.enumerate() {
            // SAFETY: the bias of this channel.
            let mut acc = unsafe { s.splat(s.read(bias)) };
            for ky in 0..kernel[0] {
                let y = (row * stride[0] + ky * dilation[0]).wrapping_sub(before[0]);
                if y >= input.height {
                    continue;
                }
                let line = plane.wrapping_add(y * args.input_row);
                for kx in 0..kernel[1] {
                    let first = column.column * stride[1] + kx * dilation[1];
                    let p = line.wrapping_add(first.wrapping_sub(before[1]));
                    let inside = inside(args.window, column.column, column.lanes, kx);
                    // SAFETY: one of the taps; the row is inside, and so are the columns
                    // in the range.
                    unsafe {
                        let w = s.splat(s.read(weights.add((ky * kernel[1] + kx) * S::LANES)));
                        acc = if stride[1] == 1 && inside == (0..S::LANES) {
                            s.mul_add(s.load(p), w, acc)
                        } else {
                            let x = s.load_every(p, stride[1], inside.clone());
                            s.select(s.mask(|i| inside.contains(&i)), s.mul_add(x, w, acc), acc)
                        };
                    }
                }
            }
            let (output, sum) = (output.wrapping_add(i * args.output_row), finish(acc));
            // SAFETY: the columns are the caller's.
            unsafe {
                if column.lanes == S::LANES {
                    s.store(output, sum);
                } else {
                    s.store_first(output, sum, column.lanes);
                }
            }
        }
    }
}

/// What the taps of a row meet, of which the first begins at `line`; zeros outside.
///
/// # Safety
/// The row is valid for reading where it is inside the image.
#[inline(always)]
unsafe fn load<S: Lanes, const K: usize, const ST: usize, const EDGE: u8>(
    s: S,
    line: *const f32,
    taps: &[Tap<S>; K],
    middle: &Middle<S>,
    zero: S::V,
) -> [S::V; K] {
    let mut x = [s.splat(0.0); K];
    if const { shifts(K, ST) && matches!(EDGE, edge::LEFT | edge::RIGHT | edge::BOTH) } {
        let p = |kx: usize| line.wrapping_add(kx);
        // SAFETY: passed on.
        unsafe {
            let middle = match EDGE {
                edge::BOTH => s.load_masked(p(1), taps[1 % K].read[0]),
                _ => s.load(p(1)),
            };
            let around = [
                if EDGE == edge::RIGHT { s.load(p(0)) } else { s.shift_up(zero, middle) },
                middle,
                if EDGE == edge::LEFT { s.load(p(2)) } else { s.shift_down(middle, zero) },
            ];
            for (x, around) in x.iter_mut().zip(around) {
                *x = around;
            }
        }
        return x;
    }
    if const { parts(K, ST) } {
        // SAFETY: passed on.
        let parted = unsafe { middle.taps(s, line, EDGE != edge::NONE) };
        for (x, parted) in x.iter_mut().zip(parted) {
            *x = parted;
        }
        return x;
    }
    for (kx, (x, tap)) in x.iter_mut().zip(taps).enumerate() {
        // SAFETY: passed on.
        let read = |skip: usize, i: usize| unsafe {
            let p = line.wrapping_add(kx + skip);
            if EDGE == edge::NONE { s.load(p) } else { s.load_masked(p, tap.read[i]) }
        };
        let low = read(0, 0);
        *x = if ST == 1 { low } else { s.even(low, read(S::LANES - 1, 1)) };
    }
    x
}
