//! The tile itself: one vector of channels, one or two rows of a few neighbouring
//! outputs, held in registers while the taps go by.
//!
//! Every output starts from its bias and sums its taps row by row, from left to
//! right, in whichever tile and whichever loop it is computed.

use core::ops::Range;
use core::sync::atomic::{Ordering, compiler_fence};

use super::Args;
use crate::shape::Placed;
use crate::simd::Lanes;

/// The most input rows and columns that a tile reads.
const MAX_LINES: usize = 8;
const MAX_COLUMNS: usize = 19;

/// The rows and columns of the largest tile of a `k` x `k` window with both strides
/// `stride`; `k = 0` is any window.
pub(super) const fn largest<S: Lanes>(k: usize, stride: usize) -> [usize; 2] {
    match (k, stride) {
        (0, _) => [1, 7],
        (3, 1) => S::DEPTHWISE_TILES[0],
        (3, _) => S::DEPTHWISE_TILES[1],
        (5, 1) => S::DEPTHWISE_TILES[2],
        (5, _) => S::DEPTHWISE_TILES[3],
        (_, 1) => S::DEPTHWISE_TILES[4],
        // Too rare to build larger ones.
        _ => [1, 4],
    }
}

/// Whether the input columns of a tile's row fit the registers beside its outputs
/// and a weight for each of its rows. Larger windows want some slack, or the
/// compiler spills; with stride 2 a column meets too few taps to be worth holding.
const fn row_fits<S: Lanes>(k: usize, stride: usize, rows: usize, columns: usize) -> bool {
    stride == 1 && rows * columns + columns - 1 + k + rows + (k - 3) / 2 <= S::REGISTERS
}

/// Where a row of tiles writes, and the input rows that it reads.
pub(super) struct Lines {
    pub(super) output: *mut f32,
    /// Null outside the image or the window; for `K = 0` unused.
    pub(super) lines: [*const f32; MAX_LINES],
    /// Whether all of a tile's rows are there.
    pub(super) whole: bool,
    /// For `K = 0`: the tap rows inside the image, and the row of the input's
    /// buffer that the first of them reads.
    pub(super) taps: Range<usize>,
    pub(super) slot: usize,
}

impl Lines {
    /// For output rows `row` and, where `count` is 2, the next.
    pub(super) fn new<const K: usize, const ST: usize>(
        args: &Args<'_>,
        row: usize,
        count: usize,
        output: *mut f32,
    ) -> Self {
        let window = args.window;
        let (height, before) = (window.input.height, window.before[0]);
        let top = row * window.stride[0];
        let mut lines = [core::ptr::null(); MAX_LINES];
        if K == 0 {
            let taps = window.taps(0, row);
            let slot = (top + taps.start * window.dilation[0]).wrapping_sub(before) % args.ring;
            return Self { output, lines, whole: true, taps, slot };
        }
        let rows = (count - 1) * ST + window.kernel[0];
        let mut whole = window.kernel[0] == K;
        // The row of the image, and of its buffer: divided once, not for each.
        let mut y = top.wrapping_sub(before);
        let mut slot = None;
        for line in lines.iter_mut().take(rows) {
            if y < height {
                let at = slot.unwrap_or(y);
                let at = if at < args.ring { at } else { at % args.ring };
                *line = args.input.wrapping_add(at * args.input_row);
                slot = Some(at + window.dilation[0]);
            } else {
                whole = false;
            }
            y = y.wrapping_add(window.dilation[0]);
        }
        Self { output, lines, whole, taps: 0..0, slot: 0 }
    }
}

/// A tile: its first tap from the start of a line and in columns of the image, which it
/// may lie to the left of, its output, weights and bias.
#[derive(Clone, Copy)]
struct At {
    input: usize,
    column: usize,
    output: *mut f32,
    weights: *const f32,
    bias: *const f32,
}

/// Neighbours in a row, or the vectors of the same columns, in steps of equal size in
/// f32 and columns.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) count: usize,
    pub(super) input: usize,
    pub(super) column: usize,
    pub(super) output: usize,
    pub(super) weights: usize,
    pub(super) bias: usize,
    /// By how much the last step in input and output is shorter.
    pub(super) overlap: [usize; 2],
}

impl Steps {
    /// What comes after `at` when `left` more do.
    #[inline(always)]
    fn next(&self, at: At, left: usize) -> At {
        let overlap = if left == 1 { self.overlap } else { [0; 2] };
        At {
            input: at.input.wrapping_add(self.input).wrapping_sub(overlap[0]),
            column: at.column.wrapping_add(self.column),
            output: at.output.wrapping_add(self.output).wrapping_sub(overlap[1]),
            weights: at.weights.wrapping_add(self.weights),
            bias: at.bias.wrapping_add(self.bias),
        }
    }
}

/// Tiles of a row from a first one on, in all `inner` steps for each of the `outer`.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    /// The first one's first tap, as [`At`] has it, and its output from the start of the row.
    pub(super) input: usize,
    pub(super) column: usize,
    pub(super) output: usize,
    pub(super) outer: Steps,
    pub(super) inner: Steps,
}

pub(super) type Instance<S> = unsafe fn(S, &Args<'_>, &Lines, &Walk);

/// The instances for tiles of `rows` by `columns` outputs, anywhere and, if there is one
/// of its own, away from the borders: the table of all depthwise kernels.
#[allow(clippy::unreachable, reason = "tiles are at most as large as `largest`")]
pub(super) fn select<S: Lanes, const K: usize, const ST: usize, const NARROW: bool>(
    rows: usize,
    columns: usize,
) -> (Instance<S>, Option<Instance<S>>) {
    macro_rules! table {
        ($($columns:literal)*) => {
            match (rows, columns) {
                $(
                    (1, $columns) => [
                        walk::<S, K, ST, NARROW, 1, $columns, false>,
                        walk::<S, K, ST, NARROW, 1, $columns, true>,
                    ],
                    (2, $columns) => [
                        walk::<S, K, ST, NARROW, 2, $columns, false>,
                        walk::<S, K, ST, NARROW, 2, $columns, true>,
                    ],
                )*
                _ => unreachable!("no depthwise tile is {rows} x {columns}"),
            }
        };
    }
    let [inner, edge] = table!(1 2 3 4 7);
    (edge, (K > 0 && row_fits::<S>(K, ST, rows, columns)).then_some(inner))
}

/// Tiles of `R` rows and `C` columns; `EDGE` where some rows or columns may be
/// outside the image.
///
/// # Safety
/// As for [`rows`].
unsafe fn walk<
    S: Lanes,
    const K: usize,
    const ST: usize,
    const NARROW: bool,
    const R: usize,
    const C: usize,
    const EDGE: bool,
>(
    s: S,
    args: &Args<'_>,
    lines: &Lines,
    walk: &Walk,
) {
    // Instances that no tile asks for are empty.
    if const {
        let [rows, columns] = largest::<S>(K, ST);
        R > rows || C > columns || !EDGE && (K == 0 || !row_fits::<S>(K, ST, R, C))
    } {
        return;
    }
    s.enter(
        #[inline(always)]
        || {
            // Read here: in each tile it makes LLVM spill inputs.
            let strides = [args.input_column, args.output_row, args.output_column];
            let mut first = At {
                input: walk.input,
                column: walk.column,
                output: lines.output.wrapping_add(walk.output),
                weights: args.weights,
                bias: args.bias,
            };
            for outer in (0..walk.outer.count).rev() {
                let mut at = first;
                for inner in (0..walk.inner.count).rev() {
                    // SAFETY: the caller vouches for all tiles.
                    unsafe { tile::<S, K, ST, NARROW, R, C, EDGE>(s, args, lines, strides, at) };
                    at = walk.inner.next(at, inner);
                }
                first = walk.outer.next(first, outer);
            }
        },
    );
}

/// # Safety
/// As for [`walk`].
#[inline(always)]
unsafe fn tile<
    S: Lanes,
    const K: usize,
    const ST: usize,
    const NARROW: bool,
    const R: usize,
    const C: usize,
    const EDGE: bool,
>(
    s: S,
    args: &Args<'_>,
    lines: &Lines,
    [column, output_row, output_column]: [usize; 3],
    at: At,
) {
    let At { input, weights, .. } = at;
    // Columns from the first tap's that are inside the image.
    let inside = || {
        let first = at.column as isize;
        let end = args.window.input.width as isize - first;
        (-first).max(0) as usize..end.max(0) as usize
    };
    // SAFETY: bias and weights are packed in whole vectors.
    let mut acc = unsafe { [[s.load(at.bias); C]; R] };
    // SAFETY: lines are inside the image or null, columns outside are skipped.
    unsafe {
        if K == 0 {
            let inside = inside();
            any_window::<S, NARROW, C>(s, args, lines, &inside, input, weights, &mut acc[0]);
        } else {
            let inside = if EDGE { inside() } else { 0..usize::MAX };
            macro_rules! lines {
                ($($line:literal)*) => {$(
                    if const { K > 0 && $line < (R - 1) * ST + K } {
                        let line = lines.lines[$line];
                        let p = line.wrapping_add(input);
                        if const { !EDGE } {
                            self::line::<S, K, ST, R, C, $line>(s, p, column, weights, &mut acc);
                        } else if !line.is_null() {
                            edge_line::<S, K, ST, R, C, $line>(s, p, column, &inside, weights, &mut acc);
                        }
                    }
                )*};
            }
            lines!(0 1 2 3 4 5 6 7);
        }
    }

    let output = |r: usize, c: usize| at.output.wrapping_add(r * output_row + c * output_column);
    // Fetched again for each tile, or they would wait on the stack.
    compiler_fence(Ordering::SeqCst);
    args.finish.each(
        s,
        &acc,
        #[inline(always)]
        |r, c, y| {
            // SAFETY: this row and column of the tile are among the output's.
            unsafe {
                if NARROW && args.output_lanes < S::LANES {
                    s.store_first(output(r, c), y, args.output_lanes);
                } else {
                    s.store(output(r, c), y);
                }
            }
        },
    );
}

/// What input row `LINE` of a tile adds to its outputs. Each input column is
/// loaded once and meets the outputs it reaches; the weights of the tap rows stay
/// in registers meanwhile.
///
/// # Safety
/// `input` is column 0 of the row, valid for a vector in each column `inside`,
/// `step` apart; `weights` for `K * K` vectors.
#[inline(always)]
unsafe fn edge_line<
    S: Lanes,
    const K: usize,
    const ST: usize,
    const R: usize,
    const C: usize,
    const LINE: usize,
>(
    s: S,
    input: *const f32,
    step: usize,
    inside: &Range<usize>,
    weights: *const f32,
    acc: &mut [[S::V; C]; R],
) {
    // The tap row with which output row r meets this input row, if any.
    let tap_row = |r: usize| LINE.checked_sub(r * ST).filter(|&ky| ky < K);
    let mut w = [[s.splat(0.0); K]; R];
    for (r, w) in w.iter_mut().enumerate() {
        if let Some(ky) = tap_row(r) {
            for (kx, w) in w.iter_mut().enumerate() {
                // SAFETY: tap (ky, kx) is one of K * K.
                *w = unsafe { s.load(weights.add((ky * K + kx) * S::LANES)) };
            }
        }
    }
    // Spelled out, since a loop of this size does not always unroll.
    macro_rules! columns {
        ($($x:literal)*) => {$(
            // Padding is less than the kernel: only the first K - 1 columns can be
            // left of the image, only those past the last output's first tap right.
            if const { $x < (C - 1) * ST + K }
                && ($x + 1 >= K || $x >= inside.start)
                && ($x < (C - 1) * ST + 1 || $x < inside.end)
            {
                // Or loads move to the front and spill.
                compiler_fence(Ordering::SeqCst);
                // SAFETY: the column is inside.
                let x = unsafe { s.load(input.wrapping_add($x * step)) };
                for r in 0..R {
                    if tap_row(r).is_some() {
                        for kx in 0..K {
                            let c = ($x as usize).wrapping_sub(kx) / ST;
                            if $x >= kx && ($x - kx) % ST == 0 && c < C {
                                acc[r][c] = s.mul_add(x, w[r][kx], acc[r][c]);
                            }
                        }
                    }
                }
            }
        )*};
    }
    columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
}

/// What input row `LINE` of a tile away from the borders adds to its outputs.
///
/// # Safety
/// As for [`edge_line`], with all columns inside.
#[inline(always)]
unsafe fn line<
    S: Lanes,
    const K: usize,
    const ST: usize,
    const R: usize,
    const C: usize,
    const LINE: usize,
>(
    s: S,
    input: *const f32,
    step: usize,
    weights: *const f32,
    acc: &mut [[S::V; C]; R],
) {
    // SAFETY: column x is inside.
    let load = |x: usize| unsafe { s.load(input.wrapping_add(x * step)) };
    compiler_fence(Ordering::SeqCst);
    let xs: [S::V; MAX_COLUMNS] =
        core::array::from_fn(|x| if x < (C - 1) * ST + K { load(x) } else { s.splat(0.0) });
    macro_rules! taps {
        ($($kx:literal)*) => {$(
            if const { $kx < K } {
                compiler_fence(Ordering::SeqCst);
                for r in 0..R {
                    if LINE >= r * ST && LINE - r * ST < K {
                        // SAFETY: one of K * K taps.
                        let w = unsafe { s.load(weights.add(((LINE - r * ST) * K + $kx) * S::LANES)) };
                        for c in 0..C {
                            acc[r][c] = s.mul_add(xs[c * ST + $kx], w, acc[r][c]);
                        }
                    }
                }
            }
        )*};
    }
    taps!(0 1 2 3 4 5 6);
}

/// What a window of any kind adds to a row of outputs, its taps in a loop.
///
/// # Safety
/// The pixels of the tap rows are valid in the columns `inside`, `offset` from
/// where their rows start; `weights` is for all taps.
#[inline(always)]
unsafe fn any_window<S: Lanes, const NARROW: bool, const C: usize>(
    s: S,
    args: &Args<'_>,
    lines: &Lines,
    inside: &Range<usize>,
    offset: usize,
    weights: *const f32,
    acc: &mut [S::V; C],
) {
    let Placed { kernel, stride, dilation, .. } = *args.window;
    // Strides beyond the image have one column, and no step.
    let step = stride[1].wrapping_mul(args.input_column);
    let last = (C - 1) * stride[1];
    let all_inside = inside.start == 0 && last + (kernel[1] - 1) * dilation[1] < inside.end;
    let mut slot = lines.slot;
    for ky in lines.taps.clone() {
        let mut input = args.input.wrapping_add(slot * args.input_row).wrapping_add(offset);
        for kx in 0..kernel[1] {
            // SAFETY: one of the window's taps.
            let w = unsafe { s.load(weights.add((ky * kernel[1] + kx) * S::LANES)) };
            let tap = |c: usize, acc: &mut S::V| {
                let p = input.wrapping_add(c * step);
                // SAFETY: called for pixels inside the image, valid for input_lanes.
                let x = unsafe {
                    if NARROW {
                        s.load_indexed(p, args.input_lanes, &args.index)
                    } else {
                        s.load(p)
                    }
                };
                *acc = s.mul_add(x, w, *acc);
            };
            // Most taps are inside for all columns, and need not ask for each.
            let first = kx * dilation[1];
            if all_inside || inside.start <= first && first + last < inside.end {
                for (c, acc) in acc.iter_mut().enumerate() {
                    tap(c, acc);
                }
            } else {
                for (c, acc) in acc.iter_mut().enumerate() {
                    if inside.contains(&(first + c * stride[1])) {
                        tap(c, acc);
                    }
                }
            }
            input = input.wrapping_add(dilation[1].wrapping_mul(args.input_column));
        }
        slot += dilation[0];
        if slot >= args.ring {
            slot %= args.ring;
        }
    }
}
