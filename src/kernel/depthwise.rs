//! The depthwise tile: one vector of channels, a few neighbouring output
//! columns of one row, held in registers while the taps go by.
//!
//! Borders are never padded in memory. A tile that touches one skips the input
//! columns outside the image, rows outside it are left out of the loop over
//! tap rows; every output still sums its taps in the same order.

use core::ops::Range;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::activation::Activation;
use crate::pack::PackedDepthwise;
use crate::shape::Placed;
use crate::simd::{Kernel, Lanes};

/// Some channel vectors of one image. Strides are in f32.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    pub(crate) window: &'a Placed,
    /// Input: row `y`, column `x`, vector `v` is at
    /// `(y % ring) * input_row + x * input_column + v * input_vector`.
    pub(crate) input: *const f32,
    pub(crate) input_row: usize,
    pub(crate) input_column: usize,
    pub(crate) input_vector: usize,
    /// Rows of the input's buffer, which may be fewer than the image has.
    pub(crate) ring: usize,
    /// Output, at the first row asked for, with strides likewise.
    pub(crate) output: *mut f32,
    pub(crate) output_row: usize,
    pub(crate) output_column: usize,
    pub(crate) output_vector: usize,
    /// The packed weights and bias of the first vector.
    pub(crate) weights: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) vectors: usize,
    /// Vectors that a tile's columns are computed for before the next tile's: 1
    /// where a vector's columns lie together, more where vectors do.
    pub(crate) block: usize,
    /// Channels of the last vector that exist in input and output, at least 1.
    pub(crate) input_lanes: usize,
    pub(crate) output_lanes: usize,
    pub(crate) activation: Activation,
}

/// The most input rows and columns that a tile reads.
const MAX_LINES: usize = 9;
const MAX_COLUMNS: usize = 21;

/// Computes the output rows `rows`.
///
/// # Safety
/// The pointers of `args` are valid for those rows, for every input row they
/// read and for all columns and vectors of both, `input_lanes` and
/// `output_lanes` wide; the output overlaps nothing else, and no other thread
/// touches it.
pub(crate) unsafe fn rows<S: Lanes>(s: S, args: &Args<'_>, rows: Range<usize>) {
    let window = args.window;
    let run = match (window.kernel, window.stride, window.dilation) {
        ([3, 3], [1, 1], [1, 1]) => run::<S, 3, 1, false>,
        ([3, 3], [2, 2], [1, 1]) => run::<S, 3, 2, false>,
        ([5, 5], [1, 1], [1, 1]) => run::<S, 5, 1, false>,
        ([5, 5], [2, 2], [1, 1]) => run::<S, 5, 2, false>,
        ([7, 7], [1, 1], [1, 1]) => run::<S, 7, 1, false>,
        ([7, 7], [2, 2], [1, 1]) => run::<S, 7, 2, false>,
        _ => run::<S, 0, 0, false>,
    };
    let narrow = args.input_lanes.min(args.output_lanes) < S::LANES;
    let whole = args.vectors - usize::from(narrow);
    // SAFETY: passed on; the instance fits the window, and only the last vector
    // may be narrow.
    unsafe {
        run(s, args, 0..whole, rows.clone());
        if narrow {
            self::run::<S, 0, 0, true>(s, args, whole..args.vectors, rows);
        }
    }
}

/// The rows and columns of the largest tile of a `K` x `K` window with strides
/// `ST`; `K = 0` is any window.
const fn largest<S: Lanes, const K: usize, const ST: usize>() -> [usize; 2] {
    match (K, ST) {
        (0, _) => [1, 7],
        (3, _) => S::DEPTHWISE_TILES[0],
        (5, _) => S::DEPTHWISE_TILES[1],
        (7, 1) => S::DEPTHWISE_TILES[2],
        // Too rare to build the larger ones.
        _ => [1, S::DEPTHWISE_TILES[2][1]],
    }
}

/// Whether the input columns of a tile's row fit the registers beside its outputs
/// and a weight for each of its rows.
const fn row_fits<S: Lanes>(k: usize, stride: usize, rows: usize, columns: usize) -> bool {
    rows * columns + (columns - 1) * stride + k + rows <= S::REGISTERS
}

/// Where a row of tiles reads and writes.
struct Rows {
    output: *mut f32,
    /// The input rows that the tiles read, null outside the image; for `K = 0`
    /// unused.
    lines: [*const f32; MAX_LINES],
    /// For `K = 0`: the tap rows inside the image, and the row of the input's
    /// buffer that the first of them reads.
    taps: Range<usize>,
    slot: usize,
}

impl Rows {
    #[inline(always)]
    fn new<const K: usize, const ST: usize>(
        args: &Args<'_>,
        row: usize,
        count: usize,
        output: *mut f32,
    ) -> Self {
        let window = args.window;
        let (height, before) = (window.input.height, window.before[0]);
        let top = row * window.stride[0];
        if K == 0 {
            // Tap rows inside: 0 <= top + ky * dilation - before < height.
            let dilation = window.dilation[0];
            let end = (height + before).saturating_sub(top);
            let taps = before.saturating_sub(top).div_ceil(dilation)
                ..end.div_ceil(dilation).min(window.kernel[0]);
            let slot = (top + taps.start * dilation).wrapping_sub(before) % args.ring;
            return Self { output, lines: [core::ptr::null(); MAX_LINES], taps, slot };
        }
        let mut slot = top.saturating_sub(before) % args.ring;
        let lines = core::array::from_fn(|i| {
            let inside = i < (count - 1) * ST + K && (before..height + before).contains(&(top + i));
            if !inside {
                return core::ptr::null();
            }
            let line = args.input.wrapping_add(slot * args.input_row);
            slot = if slot + 1 == args.ring { 0 } else { slot + 1 };
            line
        });
        Self { output, lines, taps: 0..0, slot: 0 }
    }
}

/// Rows of tiles for a `K` x `K` window with both strides `ST`; `K = 0` is any
/// window. `NARROW` is for a vector that is not whole.
unsafe fn run<S: Lanes, const K: usize, const ST: usize, const NARROW: bool>(
    s: S,
    args: &Args<'_>,
    vectors: Range<usize>,
    rows: Range<usize>,
) {
    let width = args.window.output.width;
    let [tallest, widest] = const { largest::<S, K, ST>() };
    // Tiles of 7 columns, as the maps of most networks divide, else of 4; then
    // what is left over.
    let columns = if widest >= 7 && width.is_multiple_of(7) { 7 } else { 4 };
    let (tiles, rest) = (width / columns, width % columns);
    for first in vectors.clone().step_by(args.block) {
        let vectors = first..(first + args.block).min(vectors.end);
        let mut row = rows.start;
        while row < rows.end {
            let count = if rows.end - row >= tallest { tallest } else { 1 };
            let output = args.output.wrapping_add((row - rows.start) * args.output_row);
            let line = Rows::new::<K, ST>(args, row, count, output);
            // SAFETY: these rows and vectors are the caller's, and so are the columns:
            // tiles * columns + rest make the output's width.
            unsafe {
                if tiles > 0 {
                    let strip = select::<S, K, ST, NARROW>(count, columns);
                    strip(s, args, &line, vectors.clone(), 0, tiles);
                }
                if rest > 0 {
                    let strip = select::<S, K, ST, NARROW>(count, rest);
                    strip(s, args, &line, vectors.clone(), width - rest, 1);
                }
            }
            row += count;
        }
    }
}

type Strip<S> = unsafe fn(S, &Args<'_>, &Rows, Range<usize>, usize, usize);

/// The instance for tiles of `rows` by `columns` outputs: the table of all
/// depthwise kernels.
fn select<S: Lanes, const K: usize, const ST: usize, const NARROW: bool>(
    rows: usize,
    columns: usize,
) -> Strip<S> {
    macro_rules! table {
        ($($columns:literal)*) => {
            match (rows, columns) {
                $((1, $columns) => strip::<S, K, ST, NARROW, 1, $columns>,)*
                $((2, $columns) => strip::<S, K, ST, NARROW, 2, $columns>,)*
                _ => unreachable!("no depthwise tile is {rows} x {columns}"),
            }
        };
    }
    table!(1 2 3 4 7)
}

/// `tiles` tiles of `R` rows and `C` columns side by side, from `column` on, for
/// some vectors.
///
/// # Safety
/// As for [`rows`].
unsafe fn strip<
    S: Lanes,
    const K: usize,
    const ST: usize,
    const NARROW: bool,
    const R: usize,
    const C: usize,
>(
    s: S,
    args: &Args<'_>,
    rows: &Rows,
    vectors: Range<usize>,
    column: usize,
    tiles: usize,
) {
    // Instances larger than a tile gets are empty.
    if const { R > largest::<S, K, ST>()[0] || C > largest::<S, K, ST>()[1] } {
        return;
    }
    let window = args.window;
    let (left, right) = (window.before[1], window.before[1] + window.input.width);
    let whole = K > 0
        && row_fits::<S>(K, ST, R, C)
        && rows.lines[..(R - 1) * ST + K].iter().all(|line| !line.is_null());
    s.enter(
        #[inline(always)]
        || {
            for i in 0..tiles {
                let column = column + i * C;
                let inside = column * ST >= left && (column + C - 1) * ST + K <= right;
                let vectors = vectors.clone();
                // SAFETY: the caller vouches for `tiles` tiles.
                unsafe {
                    if whole && inside {
                        tile::<S, K, ST, NARROW, R, C, false>(s, args, rows, vectors, column);
                    } else {
                        tile::<S, K, ST, NARROW, R, C, true>(s, args, rows, vectors, column);
                    }
                }
            }
        },
    );
}

/// `R` rows of `C` outputs from `column` on, for some vectors.
///
/// # Safety
/// As for [`rows`].
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
    rows: &Rows,
    vectors: Range<usize>,
    column: usize,
) {
    let window = args.window;
    let taps = window.kernel[0] * window.kernel[1];
    let stride_x = if K == 0 { window.stride[1] } else { ST };
    // Columns are counted from the tile's first tap, which may lie to the left of
    // the image; hence pointers formed without `add`.
    let (first, left) = (column * stride_x, window.before[1]);
    let inside = left.saturating_sub(first)..(window.input.width + left).saturating_sub(first);
    let corner = first.wrapping_sub(left).wrapping_mul(args.input_column);
    let bounds = args.activation.bounds();
    let (lo, hi) = bounds.map_or((0.0, 0.0), |[lo, hi]| (lo, hi));
    let (lo, hi) = (s.splat(lo), s.splat(hi));
    let (output_row, output_column) = (args.output_row, args.output_column);

    for vector in vectors {
        let offset = corner.wrapping_add(vector * args.input_vector);
        // SAFETY: bias and weights are packed in whole vectors, `taps` of them to
        // each vector of channels.
        let (bias, weights) = unsafe {
            let weights = args.weights.add(vector * taps * S::LANES);
            (s.load(args.bias.add(vector * S::LANES)), weights)
        };
        let mut acc = [[bias; C]; R];
        // SAFETY: the rows are inside the image or null; columns outside are skipped.
        unsafe {
            if K == 0 {
                any_window::<S, NARROW, C>(s, args, rows, offset, &inside, weights, &mut acc[0]);
            } else {
                macro_rules! lines {
                    ($($line:literal)*) => {$(
                        if const { K > 0 && $line < (R - 1) * ST + K } {
                            let input = rows.lines[$line].wrapping_add(offset);
                            let step = args.input_column;
                            if const { !EDGE && row_fits::<S>(K, ST, R, C) } {
                                line::<S, K, ST, R, C, $line>(s, input, step, weights, &mut acc);
                            } else if !rows.lines[$line].is_null() {
                                edge_line::<S, K, ST, R, C, $line>(s, input, step, &inside, weights, &mut acc);
                            }
                        }
                    )*};
                }
                lines!(0 1 2 3 4 5 6 7 8);
            }
        }

        let output =
            rows.output.wrapping_add(column * args.output_column + vector * args.output_vector);
        let at = |r: usize, c: usize| output.wrapping_add(r * output_row + c * output_column);
        for (r, row) in acc.iter().enumerate() {
            for (c, &acc) in row.iter().enumerate() {
                let y = if bounds.is_some() { s.min(hi, s.max(lo, acc)) } else { acc };
                // SAFETY: this row and column of the tile are among the output's.
                unsafe {
                    if NARROW {
                        s.store_first(at(r, c), y, args.output_lanes);
                    } else {
                        s.store(at(r, c), y);
                    }
                }
            }
        }
        if bounds.is_none() {
            let lanes = if NARROW { args.output_lanes } else { S::LANES };
            for r in 0..R {
                // SAFETY: the pixels just written.
                unsafe { activate(s, args, at(r, 0), C, lanes) }
            }
        }
    }
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
    let w: [[S::V; K]; R] = core::array::from_fn(|r| {
        core::array::from_fn(|kx| match tap_row(r) {
            // SAFETY: tap (ky, kx) is one of K * K.
            Some(ky) => unsafe { s.load(weights.add((ky * K + kx) * S::LANES)) },
            None => s.splat(0.0),
        })
    });
    // Spelled out, since a loop of this size does not always unroll.
    macro_rules! columns {
        ($($x:literal)*) => {$(
            // Padding is less than the kernel: only the first K - 1 columns can be
            // left of the image, only those past the last output's first tap right.
            if const { $x < (C - 1) * ST + K }
                && ($x + 1 >= K || $x >= inside.start)
                && ($x < (C - 1) * ST + 1 || $x < inside.end)
            {
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
    columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20);
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
    rows: &Rows,
    offset: usize,
    inside: &Range<usize>,
    weights: *const f32,
    acc: &mut [S::V; C],
) {
    let Placed { kernel, stride, dilation, .. } = *args.window;
    let all_inside =
        inside.start == 0 && inside.end > (C - 1) * stride[1] + (kernel[1] - 1) * dilation[1];
    let mut slot = rows.slot;
    for ky in rows.taps.clone() {
        let input = args.input.wrapping_add(slot * args.input_row).wrapping_add(offset);
        for kx in 0..kernel[1] {
            // SAFETY: one of the window's taps.
            let w = unsafe { s.load(weights.add((ky * kernel[1] + kx) * S::LANES)) };
            for (c, acc) in acc.iter_mut().enumerate() {
                let x = c * stride[1] + kx * dilation[1];
                if all_inside || inside.contains(&x) {
                    let p = input.wrapping_add(x * args.input_column);
                    // SAFETY: `p` is a pixel inside the image, valid for input_lanes.
                    let x = unsafe {
                        if NARROW { s.load_first(p, args.input_lanes) } else { s.load(p) }
                    };
                    *acc = s.mul_add(x, w, *acc);
                }
            }
        }
        slot += dilation[0];
        if slot >= args.ring {
            slot %= args.ring;
        }
    }
}

/// The activations that are not a clamp, over the tile just written.
///
/// # Safety
/// `output` is valid for `columns` pixels of `lanes` channels.
#[inline(never)]
unsafe fn activate<S: Lanes>(
    s: S,
    args: &Args<'_>,
    output: *mut f32,
    columns: usize,
    lanes: usize,
) {
    s.enter(
        #[inline(always)]
        || {
            for i in 0..columns {
                // SAFETY: i < columns.
                unsafe {
                    let p = output.add(i * args.output_column);
                    let x = s.load_first(p, lanes);
                    s.store_first(p, args.activation.apply_lanes(s, x), lanes);
                }
            }
        },
    );
}

/// A whole depthwise convolution over NHWC images.
pub(crate) struct Layer<'a> {
    packed: &'a PackedDepthwise,
    activation: Activation,
    window: &'a Placed,
    band: usize,
    input: *const f32,
    output: *mut f32,
}

impl<'a> Layer<'a> {
    /// Takes `band` output rows at a time through all channels, so that the
    /// cache lines which channel vectors share are still there for the next.
    ///
    /// # Safety
    /// `input` and `output` are valid for the window's shapes with the packed
    /// channels; the output overlaps nothing and no other thread touches it;
    /// `packed` is for the instruction set that this is dispatched to.
    pub(crate) unsafe fn new(
        packed: &'a PackedDepthwise,
        activation: Activation,
        window: &'a Placed,
        band: usize,
        input: *const f32,
        output: *mut f32,
    ) -> Self {
        Self { packed, activation, window, band, input, output }
    }
}

impl Kernel for Layer<'_> {
    type Output = ();

    fn run<S: Lanes>(self, s: S) {
        let &PackedDepthwise { channels, ref weights, ref bias, .. } = self.packed;
        let (input, output) = (self.window.input, self.window.output);
        for image in 0..input.batch {
            for top in (0..output.height).step_by(self.band) {
                let rows = top..(top + self.band).min(output.height);
                let vectors = channels.div_ceil(S::LANES);
                let lanes = channels - (vectors - 1) * S::LANES;
                // SAFETY: `new` has vouched for all rows and channels.
                unsafe {
                    let image_in = image * input.height * input.width * channels;
                    let row_out = (image * output.height + top) * output.width * channels;
                    let args = Args {
                        window: self.window,
                        input: self.input.add(image_in),
                        input_row: input.width * channels,
                        input_column: channels,
                        input_vector: S::LANES,
                        ring: input.height,
                        output: self.output.add(row_out),
                        output_row: output.width * channels,
                        output_column: channels,
                        output_vector: S::LANES,
                        weights: weights.as_ptr(),
                        bias: bias.as_ptr(),
                        vectors,
                        block: vectors,
                        input_lanes: lanes,
                        output_lanes: lanes,
                        activation: self.activation,
                    };
                    self::rows(s, &args, rows);
                }
            }
        }
    }
}
