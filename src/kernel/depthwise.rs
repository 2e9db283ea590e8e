//! The depthwise tile: one vector of channels, a few neighbouring output
//! columns of one row, held in registers while the taps go by.
//!
//! Borders are never padded in memory. A tile that touches one skips the input
//! columns outside the image, rows outside it are left out of the loop over
//! tap rows; every output still sums its taps in the same order.

use core::ops::Range;

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

/// Computes the output rows `rows`.
///
/// # Safety
/// The pointers of `args` are valid for those rows, for every input row they
/// read and for all columns and vectors of both, `input_lanes` and
/// `output_lanes` wide; the output overlaps nothing else, and no other thread
/// touches it.
pub(crate) unsafe fn rows<S: Lanes>(s: S, args: &Args<'_>, rows: Range<usize>) {
    let window = args.window;
    let run = match (window.kernel, window.stride[1], window.dilation) {
        ([3, 3], 1, [1, 1]) => run::<S, 3, 1, false>,
        ([3, 3], 2, [1, 1]) => run::<S, 3, 2, false>,
        ([5, 5], 1, [1, 1]) => run::<S, 5, 1, false>,
        ([5, 5], 2, [1, 1]) => run::<S, 5, 2, false>,
        ([7, 7], 1, [1, 1]) => run::<S, 7, 1, false>,
        ([7, 7], 2, [1, 1]) => run::<S, 7, 2, false>,
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

/// One row of tiles: where it writes and which tap rows are inside the image.
struct Line {
    output: *mut f32,
    taps: Range<usize>,
    /// Row of the input's buffer that the first of them reads.
    slot: usize,
}

/// Rows of tiles for a `K` x `K` window with horizontal stride `SX`; `K = 0` is
/// any window. `NARROW` is for a vector that is not whole.
unsafe fn run<S: Lanes, const K: usize, const SX: usize, const NARROW: bool>(
    s: S,
    args: &Args<'_>,
    vectors: Range<usize>,
    rows: Range<usize>,
) {
    let window = args.window;
    let width = window.output.width;
    // The widest tile where it divides the row, else tiles of nearly equal width.
    let widest = S::DEPTHWISE_COLUMNS;
    let widest = if width.is_multiple_of(widest) { widest } else { widest.min(7) };
    let tiles = width.div_ceil(widest);
    let (columns, wider) = (width / tiles, width % tiles);
    s.enter(
        #[inline(always)]
        || {
            for first in vectors.clone().step_by(args.block) {
                let vectors = first..(first + args.block).min(vectors.end);
                for row in rows.clone() {
                    // Tap rows inside: 0 <= top + ky * dilation - before < height.
                    let top = row * window.stride[0];
                    let (before, dilation) = (window.before[0], window.dilation[0]);
                    let end = (window.input.height + before).saturating_sub(top);
                    let taps = before.saturating_sub(top).div_ceil(dilation)
                        ..end.div_ceil(dilation).min(window.kernel[0]);
                    let slot = (top + taps.start * dilation).wrapping_sub(before) % args.ring;
                    let output = args.output.wrapping_add((row - rows.start) * args.output_row);
                    let line = Line { output, taps, slot };
                    let mut column = 0;
                    for tile in 0..tiles {
                        let columns = columns + usize::from(tile < wider);
                        // SAFETY: this row and these vectors are the caller's, these
                        // columns are below the output's width.
                        unsafe {
                            let vectors = vectors.clone();
                            select::<S, K, SX, NARROW>(s, args, &line, vectors, column, columns);
                        }
                        column += columns;
                    }
                }
            }
        },
    );
}

/// # Safety
/// As for [`rows`], for one row and `columns` columns from `column` on.
#[inline(always)]
unsafe fn select<S: Lanes, const K: usize, const SX: usize, const NARROW: bool>(
    s: S,
    args: &Args<'_>,
    line: &Line,
    vectors: Range<usize>,
    column: usize,
    columns: usize,
) {
    let window = args.window;
    let extent = (window.kernel[1] - 1) * window.dilation[1] + 1;
    let first = column * window.stride[1];
    let end = (column + columns - 1) * window.stride[1] + extent;
    let inside = first >= window.before[1] && end <= window.input.width + window.before[1];
    macro_rules! table {
        ($($columns:literal)*) => {
            match (columns, inside) {
                $(
                    // Instances wider than a tile gets are empty.
                    ($columns, _) if const { $columns > S::DEPTHWISE_COLUMNS } => {}
                    // Where a loop over taps is spelled out, border tests cost little
                    // and keep the compiler from moving all loads to the front, which
                    // would spill; the loop for any window does without where it can.
                    // SAFETY: as this function's, passed on.
                    ($columns, true) if const { K == 0 } => unsafe {
                        tile::<S, K, SX, NARROW, $columns, false>(s, args, line, vectors, column)
                    },
                    // SAFETY: as this function's, passed on.
                    ($columns, _) => unsafe {
                        tile::<S, K, SX, NARROW, $columns, true>(s, args, line, vectors, column)
                    },
                )*
                _ => {}
            }
        };
    }
    table!(1 2 3 4 5 6 7 14)
}

/// `COLUMNS` outputs of a row from `column` on, for some vectors; `EDGE` where
/// some of their taps may fall beside the image.
///
/// # Safety
/// As for [`select`].
#[inline(always)]
unsafe fn tile<
    S: Lanes,
    const K: usize,
    const SX: usize,
    const NARROW: bool,
    const COLUMNS: usize,
    const EDGE: bool,
>(
    s: S,
    args: &Args<'_>,
    line: &Line,
    vectors: Range<usize>,
    column: usize,
) {
    let window = args.window;
    let kernel_w = if K == 0 { window.kernel[1] } else { K };
    let [dilation_y, dilation_x] = if K == 0 { window.dilation } else { [1, 1] };
    let stride_x = if K == 0 { window.stride[1] } else { SX };

    // Columns are counted from the tile's first tap, which in an edge tile may
    // lie to the left of the image; hence pointers formed without `add`.
    let (first, left) = (column * stride_x, window.before[1]);
    let inside = left.saturating_sub(first)..(window.input.width + left).saturating_sub(first);
    let corner =
        args.input.wrapping_add(first * args.input_column).wrapping_sub(left * args.input_column);
    let load = |p: *const f32| {
        // SAFETY: `p` is a pixel inside the image, valid for input_lanes.
        unsafe { if NARROW { s.load_first(p, args.input_lanes) } else { s.load(p) } }
    };
    let taps = window.kernel[0] * kernel_w;
    let bounds = args.activation.bounds();

    for vector in vectors {
        let corner = corner.wrapping_add(vector * args.input_vector);
        // SAFETY: bias and weights are packed in whole vectors, `taps` of them to
        // each vector of channels.
        let (bias, weight) = unsafe {
            let weights = args.weights.add(vector * taps * S::LANES);
            (s.load(args.bias.add(vector * S::LANES)), move |tap: usize| {
                s.load(weights.add(tap * S::LANES))
            })
        };

        let mut acc = [bias; COLUMNS];
        let mut slot = line.slot;
        for ky in line.taps.clone() {
            let input = corner.wrapping_add(slot * args.input_row);
            if K == 0 {
                for kx in 0..kernel_w {
                    let w = weight(ky * kernel_w + kx);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let tap = i * stride_x + kx * dilation_x;
                        if !EDGE || inside.contains(&tap) {
                            let x = load(input.wrapping_add(tap * args.input_column));
                            *acc = s.mul_add(x, w, *acc);
                        }
                    }
                }
            } else {
                // Each input column is loaded once and meets the outputs it
                // reaches; the row's weights stay in registers.
                let w: [S::V; K] = core::array::from_fn(|kx| weight(ky * K + kx));
                // Spelled out, since a loop of this size does not always unroll.
                macro_rules! columns {
                    ($($tap:literal)*) => {$(
                        if const { $tap < (COLUMNS - 1) * SX + K } {
                            if !EDGE || inside.contains(&$tap) {
                                let x = load(input.wrapping_add($tap * args.input_column));
                                for (kx, &w) in w.iter().enumerate() {
                                    let i = ($tap as usize).wrapping_sub(kx) / SX;
                                    if $tap >= kx && ($tap - kx) % SX == 0 && i < COLUMNS {
                                        acc[i] = s.mul_add(x, w, acc[i]);
                                    }
                                }
                            }
                        }
                    )*};
                }
                columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26
                    27 28 29 30 31 32);
            }
            slot += dilation_y;
            if slot >= args.ring {
                slot %= args.ring;
            }
        }

        let output =
            line.output.wrapping_add(column * args.output_column + vector * args.output_vector);
        let (lo, hi) = bounds.map_or((0.0, 0.0), |[lo, hi]| (lo, hi));
        let (lo, hi) = (s.splat(lo), s.splat(hi));
        for (i, &acc) in acc.iter().enumerate() {
            let y = if bounds.is_some() { s.min(hi, s.max(lo, acc)) } else { acc };
            let p = output.wrapping_add(i * args.output_column);
            // SAFETY: column i of the tile is one of the output's.
            unsafe { if NARROW { s.store_first(p, y, args.output_lanes) } else { s.store(p, y) } }
        }
        if bounds.is_none() {
            let lanes = if NARROW { args.output_lanes } else { S::LANES };
            // SAFETY: the pixels just written.
            unsafe { activate(s, args, output, COLUMNS, lanes) }
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
