//! Planar 3x3 depthwise convolution of maps so small that two rows fill a vector.
//!
//! The rows of such a plane follow each other, so that any two neighbours are one load
//! and two rows of outputs one store: a plane of 7 x 7 takes four vectors in the place of
//! seven.

use core::ops::Range;

use super::planar::Args;
use crate::activation::Finish;
use crate::kernel::activate::{Addend, Stored, activate};
use crate::shape::Placed;
use crate::simd::Lanes;

/// Pairs of output rows: all of a plane.
const PAIRS: usize = 4;

/// Whether a window's planes are taken this way, if their rows follow each other.
pub(super) fn fits<S: Lanes>(window: &Placed) -> bool {
    let Placed { kernel, stride, dilation, before, input, output, .. } = *window;
    let small = 2 * output.width <= S::LANES && output.height.div_ceil(2) == PAIRS;
    let same = [input.height, input.width] == [output.height, output.width];
    S::SPLICES
        && small
        && same
        && [kernel, stride, dilation, before] == [[3; 2], [1; 2], [1; 2], [1; 2]]
}

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
    fn new(s: S, width: usize, rows: [bool; 2]) -> Self {
        let inside = |lane: usize| lane < 2 * width && rows[lane / width];
        let tap =
            |kx: usize| s.mask(|lane| inside(lane) && (1..=width).contains(&(lane % width + kx)));
        Self { read: s.mask(inside), taps: [tap(0), tap(1), tap(2)] }
    }
}

/// Computes all rows and columns of the channels `channels`.
///
/// # Safety
/// As for [`planar::planes`](super::planar::planes), for a window that [`fits`] and rows
/// that follow each other on both sides.
pub(super) unsafe fn planes<S: Lanes>(s: S, args: &Args<'_>, channels: Range<usize>) {
    s.enter(
        #[inline(always)]
        || {
            let &Args { window, output, output_plane, ref finish, .. } = args;
            let [height, width] = [window.output.height, window.output.width];
            let size = height * width;
            let line = |rows| Line::new(s, width, rows);
            let lines = [
                line([false, true]),
                line([true; 2]),
                line([true, 7 < height]),
                line([7 < height, false]),
            ];
            let last_lanes = size - 2 * (PAIRS - 1) * width;
            let mut channel = channels.start;
            while channel < channels.end {
                let [weights, bias] = args.weights::<S>(channel);
                // Of the same vector.
                let count = (S::LANES - channel % S::LANES).min(channels.end - channel);
                for i in 0..count {
                    let channel = channel + i;
                    let to = (channel - channels.start) * output_plane;
                    let plane = Plane {
                        input: args.plane(channel),
                        output: output.wrapping_add(to),
                        width,
                        last_lanes,
                        weights: weights.wrapping_add(i),
                        bias: bias.wrapping_add(i),
                        finish,
                    };
                    // Planes from this one on that lie in one piece, all still to be computed.
                    let planes = if output_plane == size { channels.end - channel } else { 1 };
                    let alone = planes * size < 2 * (PAIRS - 1) * width + S::LANES;
                    // SAFETY: the channels are the caller's.
                    unsafe { plane.run(s, &lines, alone) }
                }
                channel += count;
            }
        },
    );
}

/// One channel's plane.
struct Plane<'a> {
    input: *const f32,
    output: *mut f32,
    width: usize,
    /// Lanes of the last pair.
    last_lanes: usize,
    /// Of its lane, a vector's taps apart.
    weights: *const f32,
    bias: *const f32,
    finish: &'a Finish,
}

/// Safety is as for [`planes`].
impl Plane<'_> {
    #[inline(always)]
    unsafe fn run<S: Lanes>(&self, s: S, [first, both, last, below]: &[Line<S>; 4], alone: bool) {
        // SAFETY: taps and bias of this channel.
        let splat = |p: *const f32| unsafe { s.splat(s.read(p)) };
        let mut w = [[s.splat(0.0); 3]; 3];
        for (ky, w) in w.iter_mut().enumerate() {
            for (kx, w) in w.iter_mut().enumerate() {
                *w = splat(self.weights.wrapping_add((3 * ky + kx) * S::LANES));
            }
        }
        let mut acc = [splat(self.bias); PAIRS];
        // SAFETY: the masks keep to rows inside the image.
        let load = |i: usize, read| unsafe {
            s.load_masked(self.input.wrapping_add(2 * i * self.width), read)
        };
        // Those between go from register to register: hardly a load would not straddle two
        // cache lines, and count twice.
        let x = [load(0, both.read), load(1, both.read), load(2, both.read), load(3, last.read)];
        let between = |i: usize| s.splice(x[i], x[(i + 1) % PAIRS], self.width);
        // Line `i` is rows `i - 1` and `i`, and what pair `r` meets with its tap row `i - 2 r`.
        macro_rules! line {
            ($i:literal, $x:expr, $taps:expr, $($r:literal)*) => {{
                let x = $x;
                let x = [s.shift_up(x, x), x, s.shift_down(x, x)];
                $(for kx in 0..3 {
                    let sum = s.mul_add(x[kx], w[$i - 2 * $r][kx], acc[$r]);
                    // What the lanes beside a pair and below a plane get is not stored.
                    acc[$r] = match kx == 1 && $i > 0 && $i < 2 * PAIRS {
                        true => sum,
                        false => s.select($taps.taps[kx], sum, acc[$r]),
                    };
                })*
            }};
        }
        line!(0, s.splice(x[0], x[0], self.width), first, 0);
        line!(1, x[0], both, 0);
        line!(2, between(0), both, 0 1);
        line!(3, x[1], both, 1);
        line!(4, between(1), both, 1 2);
        line!(5, x[2], both, 2);
        line!(6, between(2), both, 2 3);
        line!(7, x[3], both, 3);
        if self.last_lanes > self.width {
            line!(8, between(3), below, 3);
        }

        let pair = 2 * self.width;
        let lanes = |r: usize| if r + 1 < PAIRS { pair } else { self.last_lanes };
        let mut rows = [[s.splat(0.0)]; PAIRS];
        for (row, &x) in rows.iter_mut().zip(&acc) {
            row[0] = x;
        }
        let output = |r: usize| self.output.wrapping_add(r * pair);
        // To store a part of a vector takes AMD's cores ten times as long: whole ones, where
        // what lies beyond is still to come.
        if alone {
            // SAFETY: the lanes of a pair.
            self.finish.each(s, &rows, |r, [x]| unsafe { s.store_first(output(r), x, lanes(r)) });
        } else {
            // SAFETY: the vectors end in planes that this call still has to compute.
            self.finish.each(s, &rows, |r, [x]| unsafe { s.store(output(r), x) });
        }
        if let Finish::Apply(_) = self.finish {
            for (first, pixels) in [(0, PAIRS - 1), (PAIRS - 1, 1)] {
                let stored = Stored {
                    output: self.output.wrapping_add(first * pair),
                    row: pair,
                    vector: S::LANES,
                    pixels,
                    vectors: 1,
                    last_lanes: lanes(first),
                    residual: Addend::NONE,
                };
                // SAFETY: the pairs just written.
                unsafe { activate(s, self.finish, &stored) }
            }
        }
    }
}
