//! Planar 3x3 depthwise convolution of maps of 7x7 or 8x8, as networks end with, so small that
//! one vector holds a row: each plane is spelled out, with all its sums in registers.
//!
//! The rows of such a plane follow each other. Where two fill a vector, any two neighbours are
//! one load and two rows of outputs one store: a plane of 7 x 7 takes four vectors in the place
//! of seven.

use core::hint::black_box;
use core::ops::Range;

use super::planar::{Args, source};
use crate::activation::Finishing;
use crate::kernel::activate::{Addend, Stored, activate};
use crate::shape::Placed;
use crate::simd::Lanes;

/// Whether an instruction set takes planes this way: its vectors hold a row, or a pair.
const fn is_taken<S: Lanes>() -> bool {
    S::LANES == 8 || S::SPLICES
}

/// Whether a window's planes are taken this way, if their rows follow each other.
pub(super) fn fits<S: Lanes>(window: &Placed) -> bool {
    let Placed { kernel, stride, dilation, before, input, output, .. } = *window;
    let same = [input.height, input.width] == [output.height, output.width];
    is_taken::<S>()
        && same
        && [kernel, stride, dilation, before] == [[3; 2], [1; 2], [1; 2], [1; 2]]
        && matches!([output.height, output.width], [7, 7] | [8, 8])
}

/// Computes all rows and columns of the channels `channels`.
///
/// # Safety
/// As for [`planar::planes`](super::planar::planes), for a window that [`fits`] and rows
/// that follow each other on both sides.
pub(super) unsafe fn planes<S: Lanes>(s: S, args: &Args<'_>, channels: Range<usize>) {
    if !const { is_taken::<S>() } {
        return;
    }
    // SAFETY: passed on.
    unsafe {
        match (args.window.output.height, s.narrow()) {
            (7, Some(narrow)) => rows::<S, S::Narrow, 7>(s, narrow, args, channels),
            (_, Some(narrow)) => rows::<S, S::Narrow, 8>(s, narrow, args, channels),
            (7, None) if S::SPLICES => pairs::<S, 7>(s, args, channels),
            (_, None) if S::SPLICES => pairs::<S, 8>(s, args, channels),
            (7, None) => rows::<S, S, 7>(s, s, args, channels),
            (_, None) => rows::<S, S, 8>(s, s, args, channels),
        }
    }
}

/// Where a channel is.
struct Plane {
    input: *const f32,
    output: *mut f32,
    /// Its first tap, which the others follow a vector of the packed width apart, and its bias.
    weights: [*const f32; 2],
    /// Whether it must keep to its output: what lies beyond others is still to come, and to
    /// store a part of a vector takes AMD's cores ten times as long.
    alone: bool,
}

/// Hands each channel to `run`; `last` is how many lanes of `lanes` their last vectors have.
#[inline(always)]
fn each<S: Lanes>(
    args: &Args<'_>,
    channels: Range<usize>,
    side: usize,
    [last, lanes]: [usize; 2],
    run: impl Fn(&Plane),
) {
    // Or they would be fetched again for each channel.
    let Args { input, input_plane, output_plane, .. } = *args;
    let multiplier = args.packed.multiplier;
    let size = side * side;
    let cut = if output_plane == size { (lanes - last).div_ceil(size) } else { usize::MAX };
    let mut output = args.output;
    let mut first = channels.start;
    while first < channels.end {
        // Of the same vector.
        let count = (S::LANES - first % S::LANES).min(channels.end - first);
        let weights = args.weights::<S>(first);
        for i in 0..count {
            let weights = [weights[0].wrapping_add(i), weights[1].wrapping_add(i)];
            let channel = first + i;
            let alone = channels.end - channel <= cut;
            let input = input.wrapping_add(source(channel, multiplier) * input_plane);
            run(&Plane { input, output, weights, alone });
            output = output.wrapping_add(output_plane);
        }
        first += count;
    }
}

impl Plane {
    /// Bias and taps, which are packed for `S`.
    ///
    /// # Safety
    /// As for [`planes`].
    #[inline(always)]
    unsafe fn weights<S: Lanes, N: Lanes>(&self, s: N) -> (N::V, [[N::V; 3]; 3]) {
        let [packed, bias] = self.weights;
        // SAFETY: taps and bias of this channel.
        let splat = |p: *const f32| unsafe { s.splat(s.read(p)) };
        let bias = splat(bias);
        let mut w = [[bias; 3]; 3];
        for (ky, w) in w.iter_mut().enumerate() {
            for (kx, w) in w.iter_mut().enumerate() {
                *w = splat(packed.wrapping_add((3 * ky + kx) * S::LANES));
            }
        }
        (bias, w)
    }
}

/// Planes whose rows are a vector of `N` each, by weights that are packed for `S`, whose bits an
/// activation has.
///
/// # Safety
/// As for [`planes`].
unsafe fn rows<S: Lanes, N: Lanes, const SIDE: usize>(
    whole: S,
    s: N,
    args: &Args<'_>,
    channels: Range<usize>,
) {
    // As the whole set, which may have more registers.
    whole.enter(
        #[inline(always)]
        || {
            let rows = Rows::<S, N, SIDE> {
                whole,
                s,
                args,
                channels,
                // Not known to the compiler, which would blend by them.
                inside: black_box(s.mask(|lane| lane < SIDE)),
                left: black_box(s.mask(|lane| 0 < lane && lane < SIDE)),
                right: black_box(s.mask(|lane| lane + 1 < SIDE)),
            };
            args.finish.in_registers(s, rows);
        },
    );
}

struct Rows<'a, S: Lanes, N: Lanes, const SIDE: usize> {
    whole: S,
    s: N,
    args: &'a Args<'a>,
    channels: Range<usize>,
    /// The lanes of a row, and those whose left or right tap is inside.
    inside: N::Mask,
    left: N::Mask,
    right: N::Mask,
}

impl<S: Lanes, N: Lanes, const SIDE: usize> Finishing<N> for Rows<'_, S, N, SIDE> {
    #[inline(always)]
    fn run(self, finish: impl Fn(N::V) -> N::V) {
        each::<S>(
            self.args,
            self.channels.clone(),
            SIDE,
            [SIDE, N::LANES],
            #[inline(always)]
            // SAFETY: the channels are the caller's.
            |plane| unsafe { self.plane(plane, &finish) },
        );
    }
}

/// Safety is as for [`planes`].
impl<S: Lanes, N: Lanes, const SIDE: usize> Rows<'_, S, N, SIDE> {
    #[inline(always)]
    unsafe fn plane(&self, plane: &Plane, finish: impl Fn(N::V) -> N::V) {
        let Self { whole, s, args, inside, left, right, .. } = *self;
        let Plane { input, output, alone, .. } = *plane;
        // SAFETY: passed on.
        let (bias, mut w) = unsafe { plane.weights::<S, N>(s) };
        // A tap outside adds -0, which changes no bit: +0 times this.
        for w in &mut w {
            w[0] = s.select(left, w[0], s.splat(-0.0));
            w[2] = s.select(right, w[2], s.splat(-0.0));
        }
        // One more than rows, which nothing is added to.
        let mut acc = [bias; 9];
        macro_rules! rows {
            ($($y:literal)*) => {$(
                if const { $y < SIDE } {
                    let line = input.wrapping_add($y * SIDE);
                    // What the lanes beside a row get is not kept.
                    for kx in 0..3 {
                        let (p, last) = (line.wrapping_add(kx).wrapping_sub(1), $y + 1 == SIDE);
                        // SAFETY: the masks keep to the plane where a vector would not.
                        let x = unsafe {
                            match kx {
                                0 if $y == 0 || last => s.load_masked(p, left),
                                0 => s.load_cut(p, left),
                                1 if last => s.load_masked(p, inside),
                                1 => s.load(p),
                                _ if last => s.load_masked(p, right),
                                _ => s.load_cut(p, right),
                            }
                        };
                        if $y > 0 {
                            acc[$y - 1] = s.mul_add(x, w[2][kx], acc[$y - 1]);
                        }
                        acc[$y] = s.mul_add(x, w[1][kx], acc[$y]);
                        if $y + 1 < SIDE {
                            acc[$y + 1] = s.mul_add(x, w[0][kx], acc[$y + 1]);
                        }
                    }
                    if $y > 0 {
                        let sum = finish(acc[$y - 1]);
                        // SAFETY: a row, and the beginning of the next one.
                        unsafe { s.store(output.wrapping_add(($y - 1) * SIDE), sum) };
                    }
                }
            )*};
        }
        rows!(0 1 2 3 4 5 6 7);
        let last = output.wrapping_add((SIDE - 1) * SIDE);
        let sum = finish(acc[SIDE - 1]);
        // SAFETY: the lanes of a row, or a vector that ends in what is still to be computed.
        unsafe {
            if alone {
                s.store_first(last, sum, SIDE);
            } else {
                s.store(last, sum);
            }
        }
        let stored = || Stored {
            output,
            row: SIDE,
            vector: S::LANES,
            pixels: SIDE,
            vectors: 1,
            last_lanes: SIDE,
            residual: Addend::NONE,
        };
        // SAFETY: the rows just written.
        unsafe { activate(whole, &args.finish, stored) }
    }
}

/// Pairs of output rows: all of a plane.
const PAIRS: usize = 4;

/// The lanes of a line, which is two neighbouring rows, of which one may be outside the
/// image.
#[derive(Clone, Copy)]
struct Line<S: Lanes> {
    read: S::Mask,
    /// Those whose tap is inside, for each tap column.
    taps: [S::Mask; 3],
}

impl<S: Lanes> Line<S> {
    #[inline(always)]
    fn new(s: S, side: usize, rows: [bool; 2]) -> Self {
        let inside =
            |lane: usize| lane < side && rows[0] || side <= lane && lane < 2 * side && rows[1];
        let except = |column: usize| {
            black_box(s.mask(|lane| inside(lane) && lane != column && lane != side + column))
        };
        // Not known to the compiler, which would blend by them.
        let read = black_box(s.mask(inside));
        Self { read, taps: [except(0), read, except(side - 1)] }
    }
}

/// Planes whose rows go two to a vector.
///
/// # Safety
/// As for [`planes`].
unsafe fn pairs<S: Lanes, const SIDE: usize>(s: S, args: &Args<'_>, channels: Range<usize>) {
    s.enter(
        #[inline(always)]
        || {
            let pairs = Pairs::<S, SIDE> {
                s,
                args,
                channels,
                above: Line::new(s, SIDE, [false, true]),
                both: Line::new(s, SIDE, [true; 2]),
                last: Line::new(s, SIDE, [true, SIDE == 2 * PAIRS]),
                below: Line::new(s, SIDE, [true, false]),
            };
            args.finish.in_registers(s, pairs);
        },
    );
}

struct Pairs<'a, S: Lanes, const SIDE: usize> {
    s: S,
    args: &'a Args<'a>,
    channels: Range<usize>,
    /// The line above the image and its first row, two rows inside, those of the last pair, and,
    /// if it has two, the last row and the line below.
    above: Line<S>,
    both: Line<S>,
    last: Line<S>,
    below: Line<S>,
}

impl<S: Lanes, const SIDE: usize> Finishing<S> for Pairs<'_, S, SIDE> {
    #[inline(always)]
    fn run(self, finish: impl Fn(S::V) -> S::V) {
        each::<S>(
            self.args,
            self.channels.clone(),
            SIDE,
            [Self::LAST_LANES, S::LANES],
            #[inline(always)]
            // SAFETY: the channels are the caller's.
            |plane| unsafe { self.plane(plane, &finish) },
        );
    }
}

/// Safety is as for [`planes`].
impl<S: Lanes, const SIDE: usize> Pairs<'_, S, SIDE> {
    /// Lanes of the last pair.
    const LAST_LANES: usize = (SIDE - 2 * (PAIRS - 1)) * SIDE;

    #[inline(always)]
    unsafe fn plane(&self, plane: &Plane, finish: impl Fn(S::V) -> S::V) {
        let Self { s, args, ref above, ref both, ref last, ref below, .. } = *self;
        let pair = 2 * SIDE;
        let Plane { input, output, alone, .. } = *plane;
        // SAFETY: passed on.
        let (bias, w) = unsafe { plane.weights::<S, S>(s) };
        let mut acc = [bias; PAIRS];
        // SAFETY: the masks keep to rows inside the image.
        let load = |i: usize, read| unsafe { s.load_masked(input.wrapping_add(i * pair), read) };
        // Those between go from register to register: hardly a load would not straddle two
        // cache lines, and count twice.
        let x = [load(0, both.read), load(1, both.read), load(2, both.read), load(3, last.read)];
        let between = |i: usize| s.splice(x[i], x[(i + 1) % PAIRS], SIDE);
        let taps = |x: S::V| [s.shift_up(x, x), x, s.shift_down(x, x)];
        // What the pairs meet with the first row of taps, and with the second.
        let outer = s.splice(x[0], x[0], SIDE);
        let first = [taps(outer), taps(between(0)), taps(between(1)), taps(between(2))];
        let second = [taps(x[0]), taps(x[1]), taps(x[2]), taps(x[3])];
        // By turns, or a sum would wait for itself. What the lanes beside a pair and below a
        // plane get is not stored.
        macro_rules! row {
            ($ky:literal, $($r:literal: $x:expr, $line:expr;)*) => {
                for kx in 0..3 {$(
                    let sum = s.mul_add($x[kx], w[$ky][kx], acc[$r]);
                    acc[$r] = s.select($line.taps[kx], sum, acc[$r]);
                )*}
            };
        }
        row!(0, 0: first[0], above; 1: first[1], both; 2: first[2], both; 3: first[3], both;);
        row!(1, 0: second[0], both; 1: second[1], both; 2: second[2], both; 3: second[3], both;);
        row!(2, 0: first[1], both; 1: first[2], both; 2: first[3], both;);
        if SIDE == 2 * PAIRS {
            let third = taps(between(3));
            row!(2, 3: third, below;);
        }
        let at = |r: usize| output.wrapping_add(r * pair);
        for (r, &sum) in acc.iter().enumerate() {
            let lanes = if r + 1 < PAIRS { pair } else { Self::LAST_LANES };
            // SAFETY: the lanes of a pair, or vectors that end in what is still to be computed.
            unsafe {
                if alone {
                    s.store_first(at(r), finish(sum), lanes);
                } else {
                    s.store(at(r), finish(sum));
                }
            }
        }
        for (first, pixels) in [(0, PAIRS - 1), (PAIRS - 1, 1)] {
            let stored = || Stored {
                output: at(first),
                row: pair,
                vector: S::LANES,
                pixels,
                vectors: 1,
                last_lanes: if first == 0 { pair } else { Self::LAST_LANES },
                residual: Addend::NONE,
            };
            // SAFETY: the pairs just written.
            unsafe { activate(s, &args.finish, stored) }
        }
    }
}
