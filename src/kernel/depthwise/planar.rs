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

use super::columns::{Column, Columns, Masks, edge, has_sides, inside, parts};
use super::small;
use crate::activation::{Finish, Finishing};
use crate::kernel::activate::{Addend, Stored, activate};
use crate::pack::PackedDepthwise;
use crate::shape::Placed;
use crate::simd::Lanes;

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
        let PackedDepthwise { taps, ref weights, ref bias, .. } = *self.packed;
        let vector = channel / S::LANES;
        let lane = channel - self.packed.lanes_of::<S>(vector).start;
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

/// f32 of a plane that is large, and the output rows that a vector of columns goes through
/// there before the next one does: what they share should still be near, and rows some
/// power of two apart have few places in the first level.
const LARGE: usize = 16384;
const BAND: usize = 16;

/// f32 between what is read and what is asked for: the same row of later columns, or where
/// there are none, of the next channel's.
const AHEAD: usize = 64;

/// Whether two vectors of columns go down the rows together. With many registers it was no faster.
const fn in_pairs<S: Lanes>(k: usize, stride: usize) -> bool {
    S::REGISTERS < 32 && k == 3 && stride == 1
}

/// A `K` x `K` window with both strides `ST`; `K = 0` is any window.
///
/// # Safety
/// As for [`planes`], for some columns.
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
            let planes = Planes::<S, K, ST> {
                s,
                args: *args,
                window: *args.window,
                channels: channels.clone(),
                rows: rows.clone(),
                columns: Columns::new::<K, ST>(s, args.window, columns.clone()),
            };
            args.finish.in_registers(s, planes);
        },
    );
}

/// Some rows and columns of some channels' planes.
struct Planes<'a, S: Lanes, const K: usize, const ST: usize> {
    s: S,
    /// Copies: each column would look up what is behind references.
    args: Args<'a>,
    window: Placed,
    channels: Range<usize>,
    rows: Range<usize>,
    columns: Columns<S>,
}

impl<S: Lanes, const K: usize, const ST: usize> Finishing<S> for Planes<'_, S, K, ST> {
    #[inline(always)]
    fn run(self, finish: impl Fn(S::V) -> S::V) {
        let all = self.rows.clone();
        let Placed { input, .. } = self.window;
        let large = input.height * input.width > LARGE;
        let band = if large { BAND } else { all.len().max(1) };
        // SAFETY: `planes` has the caller's word for channels, rows and columns.
        unsafe {
            // What is the same in all channels stays in registers.
            if let Some(&Column { first, masks, .. }) = self.columns.alone() {
                for channel in self.channels.clone() {
                    let rows = all.clone();
                    self.column::<{ edge::ALONE }, 1>(channel, first, &masks, rows, &finish);
                }
                return;
            }
            for channel in self.channels.clone() {
                for top in all.clone().step_by(band) {
                    self.all_columns(channel, top..(top + band).min(all.end), &finish);
                }
            }
        }
    }
}

/// Safety is as for [`planes`].
impl<S: Lanes, const K: usize, const ST: usize> Planes<'_, S, K, ST> {
    /// Some rows of a channel, from left to right.
    #[inline(always)]
    unsafe fn all_columns(
        &self,
        channel: usize,
        rows: Range<usize>,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let (inner, edges) = (&self.columns.inner, self.columns.edges());
        let none = Masks::none(self.s);
        let mut outer = edges.iter();
        let mut vectors = 0..inner.len() + edges.len();
        while let Some(i) = vectors.next() {
            let (first, rows) = (self.columns.at(i), rows.clone());
            let beside = inner.contains(&(i + 1)) && self.columns.at(i + 1) == first + S::LANES;
            // SAFETY: passed on.
            unsafe {
                if !inner.contains(&i) {
                    if let Some(column) = outer.next() {
                        self.edge(channel, column, rows, &finish);
                    }
                } else if const { in_pairs::<S>(K, ST) } && beside {
                    self.column::<{ edge::NONE }, 2>(channel, first, &none, rows, &finish);
                    vectors.next();
                } else {
                    self.column::<{ edge::NONE }, 1>(channel, first, &none, rows, &finish);
                }
            }
        }
    }

    /// [`column`](Self::column) by its edge.
    #[inline(always)]
    unsafe fn edge(
        &self,
        channel: usize,
        &Column { first, edge, ref masks }: &Column<S>,
        rows: Range<usize>,
        finish: impl Fn(S::V) -> S::V,
    ) {
        // SAFETY: passed on.
        unsafe {
            match edge {
                edge::LEFT if const { has_sides(K, ST) } => {
                    self.column::<{ edge::LEFT }, 1>(channel, first, masks, rows, finish);
                }
                edge::RIGHT if const { has_sides(K, ST) } => {
                    self.column::<{ edge::RIGHT }, 1>(channel, first, masks, rows, finish);
                }
                _ => self.column::<{ edge::MASKED }, 1>(channel, first, masks, rows, finish),
            }
        }
    }

    /// Some rows of `N` vectors of columns of a channel, one beside the other.
    #[inline(always)]
    unsafe fn column<const EDGE: u8, const N: usize>(
        &self,
        channel: usize,
        first: usize,
        masks: &Masks<S>,
        rows: Range<usize>,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, ref args, ref channels, ref columns, .. } = *self;
        let Args { output_row, output_plane, .. } = *args;
        let at = (channel - channels.start) * output_plane
            + (rows.start - self.rows.start) * output_row
            + first
            - columns.all.start;
        let output = args.output.wrapping_add(at);
        // SAFETY: passed on.
        unsafe {
            if K == 0 {
                self.any_window(channel, first, rows.clone(), output, &finish);
            } else {
                // How many f32 may be written where a vector is not whole: what lies beyond
                // it is still to be computed.
                let size = rows.len() * output_row;
                let planes = if size == output_plane { channels.end - channel } else { 1 };
                let room = match columns.lanes {
                    lanes if lanes == S::LANES => usize::MAX,
                    lanes if lanes == output_row => planes * size,
                    _ => 0,
                };
                let rows = rows.clone();
                self.rows::<EDGE, N>(channel, first, masks, rows, (output, room), &finish);
            }
        }
        let stored = || Stored {
            output,
            row: output_row,
            vector: S::LANES,
            pixels: rows.len(),
            vectors: N,
            last_lanes: columns.lanes,
            residual: Addend::NONE,
        };
        // SAFETY: what was just written.
        unsafe { activate(s, &args.finish, stored) }
    }

    /// From the first row to the last.
    #[inline(always)]
    unsafe fn rows<const EDGE: u8, const N: usize>(
        &self,
        channel: usize,
        first: usize,
        masks: &Masks<S>,
        rows: Range<usize>,
        (mut output, mut room): (*mut f32, usize),
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, ref args, window: Placed { before, input, .. }, .. } = *self;
        // Copies, here and below: each store might change what is behind a reference, as far
        // as the compiler knows.
        let [input_row, output_row] = [args.input_row, args.output_row];
        // Output rows that the window covers at once.
        let live = const { if K == 0 { 1 } else { K.div_ceil(ST) } };
        let masks = *masks;
        let ahead = match first * ST + AHEAD < input.width {
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
            for (kx, tap) in masks.taps.iter().take(K).enumerate() {
                if !tap.all {
                    for w in &mut w {
                        w[kx] = s.select(tap.inside, w[kx], s.splat(-0.0));
                    }
                }
            }
        }
        // The first tap, or the middle one.
        let tap = const { if parts(K, ST) { 1 } else { 0 } };
        let left = (first * ST + tap).wrapping_sub(before[1]);
        let mut y = (rows.start * ST).wrapping_sub(before[0]);
        let mut line = args.plane(channel).wrapping_add(y.wrapping_mul(input_row));
        line = line.wrapping_add(left);
        // `acc[j]` belongs to the output row `j` above.
        let mut acc = [[bias; N]; K];
        for step in 1..rows.len() + live {
            // Spelled out, as all loops over `acc`, or they do not always unroll.
            macro_rules! lines {
                ($($p:literal)*) => {$(
                    if const { $p < ST } {
                        if y < input.height {
                            if EDGE != edge::ALONE {
                                s.prefetch(line.wrapping_add(ahead));
                            }
                            let mut x = [[bias; K]; N];
                            for (n, x) in x.iter_mut().enumerate() {
                                let line = line.wrapping_add(n * S::LANES * ST);
                                // SAFETY: the row is inside.
                                *x = unsafe { masks.row::<K, ST, EDGE>(s, line) };
                            }
                            for kx in 0..K {
                                for j in 0..K.div_ceil(ST) {
                                    if j * ST + $p < K {
                                        let w = w[j * ST + $p][kx];
                                        for n in 0..N {
                                            acc[j][n] = s.mul_add(x[n][kx], w, acc[j][n]);
                                        }
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
                for (n, &sum) in acc[live - 1].iter().enumerate() {
                    let (output, sum) = (output.wrapping_add(n * S::LANES), finish(sum));
                    let sum = if const { parts(K, ST) } { s.in_order(sum) } else { sum };
                    // SAFETY: the lanes of a row, or a vector that ends in what is to come. To
                    // store a part of one takes AMD's cores ten times as long.
                    unsafe {
                        if const { edge::is_whole(EDGE) } || room >= S::LANES {
                            s.store(output, sum);
                        } else {
                            s.store_first(output, sum, self.columns.lanes);
                        }
                    }
                }
                output = output.wrapping_add(output_row);
                room = room.saturating_sub(output_row);
            }
            macro_rules! up {
                ($($j:literal)*) => {$( if const { $j < K } { acc[$j] = acc[$j - 1]; } )*};
            }
            up!(6 5 4 3 2 1);
            acc[0] = [bias; N];
        }
    }

    /// A channel under a window of any kind.
    #[inline(always)]
    unsafe fn any_window(
        &self,
        channel: usize,
        first: usize,
        rows: Range<usize>,
        output: *mut f32,
        finish: impl Fn(S::V) -> S::V,
    ) {
        let Self { s, ref args, .. } = *self;
        let lanes = self.columns.lanes;
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
                    let tap = first * stride[1] + kx * dilation[1];
                    let p = line.wrapping_add(tap.wrapping_sub(before[1]));
                    let inside = inside(args.window, first, lanes, kx);
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
                if lanes == S::LANES {
                    s.store(output, sum);
                } else {
                    s.store_first(output, sum, lanes);
                }
            }
        }
    }
}
