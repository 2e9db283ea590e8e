//! Depthwise convolution: an image's rows cut into tiles.
//!
//! Borders are never padded in memory. Tiles that touch one are instances of their
//! own, which skip the rows and columns outside the image; the others know nothing
//! of borders.

mod columns;
pub(crate) mod planar;
mod small;
mod tile;
mod turned;

use core::ops::Range;

use crate::activation::{Activation, Finish};
use crate::buffer::LINE;
use crate::kernel::activate::{Addend, Stored, activate};
use crate::kernel::parts::{Parts, by_image, share};
use crate::layout::{Layout, View};
use crate::pack::PackedDepthwise;
use crate::shape::Placed;
#[cfg(debug_assertions)]
use crate::simd::Memory;
use crate::simd::{Index, Kernel, Lanes};
use tile::{Instance, Lines, Steps, Walk, largest, select};

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
    /// Vectors that are computed for a row of tiles before the next row.
    pub(crate) block: usize,
    /// f32 by which the last vector stands nearer to the one before than a step.
    pub(crate) input_overlap: usize,
    pub(crate) output_overlap: usize,
    /// Channels of the last vector that exist in input and output, at least 1.
    pub(crate) input_lanes: usize,
    pub(crate) output_lanes: usize,
    /// Where not both are whole: the input channel of each lane.
    pub(crate) index: Index,
    pub(crate) finish: Finish,
}

impl Args<'_> {
    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// The same for some of the vectors.
    fn of_vectors<S: Lanes>(&self, vectors: Range<usize>) -> Self {
        let Range { start, end } = vectors;
        let mut overlap = [0; 2];
        if end == self.vectors {
            overlap = [self.input_overlap, self.output_overlap];
        }
        let mut back = [0; 2];
        // Alone it has no step that is shorter.
        if end - start == 1 {
            core::mem::swap(&mut back, &mut overlap);
        }
        let [input_overlap, output_overlap] = overlap;
        Self {
            input: self.input.wrapping_add(start * self.input_vector).wrapping_sub(back[0]),
            output: self.output.wrapping_add(start * self.output_vector).wrapping_sub(back[1]),
            weights: self.weights.wrapping_add(start * self.taps() * S::LANES),
            bias: self.bias.wrapping_add(start * S::LANES),
            vectors: end - start,
            input_overlap,
            output_overlap,
            ..*self
        }
    }
}

/// The size and horizontal stride of the instance that computes a window: of at
/// most as many rows as columns of taps, which are neighbours or, with stride 1,
/// become it; 0 for any other.
fn instance(window: &Placed) -> [usize; 2] {
    let Placed { kernel: [height, width], stride: [_, stride], dilation, .. } = *window;
    match (width, stride) {
        (3 | 5 | 7, 1) if height <= width => [width, 1],
        (3 | 5 | 7, 2) if height <= width && dilation[1] == 1 => [width, 2],
        _ => [0, 0],
    }
}

/// The rows and columns of the window's largest tile.
pub(crate) fn largest_tile<S: Lanes>(window: &Placed) -> [usize; 2] {
    let [size, stride] = instance(window);
    let [rows, columns] = largest::<S>(size, stride);
    // Rows of other windows do not share their input rows as a tile has them.
    let square = (window.kernel, window.stride, window.dilation[0]) == ([size; 2], [stride; 2], 1);
    [if square { rows } else { 1 }, columns]
}

/// The index of lanes `skip` and on, of which `times` in a row take the same of
/// `channels` channels.
pub(crate) fn index(channels: usize, times: usize, skip: usize) -> Index {
    core::array::from_fn(|lane| ((skip + lane) / times).min(channels - 1) as i32)
}

/// Computes the output rows `rows`.
///
/// # Safety
/// The pointers of `args` are valid for those rows, for every input row they
/// read and for all columns and vectors of both, `input_lanes` and
/// `output_lanes` wide; the output overlaps nothing else, and no other thread
/// touches it.
pub(crate) unsafe fn rows<S: Lanes>(s: S, args: &Args<'_>, rows: Range<usize>) {
    let Placed { input, output, kernel, dilation: [_, dilation], .. } = *args.window;
    // A column of taps is a row of them in the turned image. A ring is not turned.
    if kernel[1] == 1 && kernel[0] > 1 && args.ring >= input.height && !rows.is_empty() {
        let (window, first) = args.window.turned(&rows);
        if instance(&window) != [0, 0] {
            let args = Args {
                window: &window,
                input: args.input.wrapping_add(first * args.input_row),
                input_row: args.input_column,
                input_column: args.input_row,
                ring: window.input.height,
                output_row: args.output_column,
                output_column: args.output_row,
                ..*args
            };
            // SAFETY: passed on; the same pixels under other names.
            return unsafe { self::rows(s, &args, 0..window.output.height) };
        }
    }
    if dilation == 1 || instance(args.window) == [0, 0] {
        // SAFETY: passed on.
        return unsafe { neighbours(s, args, rows) };
    }
    for phase in 0..dilation.min(output.width) {
        let (window, column) = args.window.phase(phase);
        // Distances beyond the image have one tap in it, and no step.
        let args = Args {
            window: &window,
            input: args.input.wrapping_add(column * args.input_column),
            input_column: dilation.wrapping_mul(args.input_column),
            output: args.output.wrapping_add(phase * args.output_column),
            output_column: dilation.wrapping_mul(args.output_column),
            ..*args
        };
        // SAFETY: passed on; the columns of all phases are those of the window.
        unsafe { neighbours(s, &args, rows.clone()) };
    }
}

/// As [`rows`], where taps are neighbours or there is no instance for the window.
unsafe fn neighbours<S: Lanes>(s: S, args: &Args<'_>, rows: Range<usize>) {
    let run = match instance(args.window) {
        [3, 1] => run::<S, 3, 1, false>,
        [3, _] => run::<S, 3, 2, false>,
        [5, 1] => run::<S, 5, 1, false>,
        [5, _] => run::<S, 5, 2, false>,
        [7, 1] => run::<S, 7, 1, false>,
        [7, _] => run::<S, 7, 2, false>,
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

/// Tiles of equal width in a row.
struct Strip {
    /// Columns of a tile, and the first one's first.
    columns: usize,
    column: usize,
    tiles: usize,
    /// The tiles that touch neither the left nor the right border.
    inside: Range<usize>,
}

impl Strip {
    /// All columns: tiles of 7, as the maps of most networks divide, or of 4; then one of
    /// what is left over. Constants, since this is done for each few rows of a block.
    fn cut(window: &Placed, widest: usize) -> [Self; 2] {
        let width = window.output.width;
        if widest >= 7 && width.is_multiple_of(7) {
            Self::of::<7>(window)
        } else {
            Self::of::<4>(window)
        }
    }

    fn of<const COLUMNS: usize>(window: &Placed) -> [Self; 2] {
        let width = window.output.width;
        let (tiles, rest) = (width / COLUMNS, width % COLUMNS);
        // Tile i is inside where its outputs from i * COLUMNS on are.
        let whole = window.whole(1);
        let start = whole.start.div_ceil(COLUMNS).min(tiles);
        let end = (whole.end / COLUMNS).clamp(start, tiles);
        let column = tiles * COLUMNS;
        let rest_inside = rest > 0 && whole.start <= column && width <= whole.end;
        [
            Self { columns: COLUMNS, column: 0, tiles, inside: start..end },
            Self { columns: rest, column, tiles: rest.min(1), inside: 0..rest_inside.into() },
        ]
    }

    /// From tile `i` on, `count` of them, `step` apart, for all vectors.
    fn walk<S: Lanes>(&self, args: &Args<'_>, [i, count, step]: [usize; 3]) -> Walk {
        let window = args.window;
        let stride = window.stride[1];
        let along = Steps {
            count: args.vectors,
            input: args.input_vector,
            column: 0,
            output: args.output_vector,
            weights: args.taps() * S::LANES,
            bias: S::LANES,
            overlap: [args.input_overlap, args.output_overlap],
        };
        let column = self.column + i * self.columns;
        // The first tap may lie to the left of the image: hence wrapping.
        let tap = (column * stride).wrapping_sub(window.before[1]);
        // Strides beyond the image have one tile, and no step.
        let columns = step * self.columns;
        let inputs = columns.wrapping_mul(stride);
        let across = Steps {
            count,
            input: inputs.wrapping_mul(args.input_column),
            column: inputs,
            output: columns * args.output_column,
            weights: 0,
            bias: 0,
            overlap: [0; 2],
        };
        // Whichever way is longer goes inside; but the vectors of an image's pixel go
        // together, so that a cache line that two of them share is used up while it is
        // near.
        let image = [args.input_vector, args.output_vector].contains(&S::LANES);
        let together = image && along.count * S::LANES > LINE;
        let (outer, inner) =
            if together || along.count >= count { (across, along) } else { (along, across) };
        Walk {
            input: tap.wrapping_mul(args.input_column),
            column: tap,
            output: column * args.output_column,
            outer,
            inner,
        }
    }
}

/// The walks that make a row of tiles, each with its instance.
type Walks<S> = [Option<(Instance<S>, Walk)>; 4];

/// All tiles of a row, `count` outputs high; `whole` where all of its input rows are there.
fn walks<S: Lanes, const K: usize, const ST: usize, const NARROW: bool>(
    args: &Args<'_>,
    strips: &[Strip; 2],
    count: usize,
    whole: bool,
) -> Walks<S> {
    let mut walks = [None; 4];
    let mut len = 0;
    for strip in strips.iter().filter(|strip| strip.tiles > 0) {
        let mut add = |instance, tiles: [usize; 3]| {
            if tiles[1] > 0 {
                walks[len] = Some((instance, strip.walk::<S>(args, tiles)));
                len += 1;
            }
        };
        let Range { start, end } = strip.inside.clone();
        match select::<S, K, ST, NARROW>(count, strip.columns) {
            (edge, Some(inner)) if whole && start < end => {
                match (start, strip.tiles - end) {
                    (1, 1) => add(edge, [0, 2, end]),
                    (left, right) => {
                        add(edge, [0, left, 1]);
                        add(edge, [end, right, 1]);
                    }
                }
                add(inner, [start, end - start, 1]);
            }
            (edge, _) => add(edge, [0, strip.tiles, 1]),
        }
    }
    walks
}

/// Rows of tiles for a window of at most `K` rows of `K` neighbouring taps with
/// horizontal stride `ST`; `K = 0` is any window. `NARROW` is for a vector that is not whole.
///
/// # Safety
/// As for [`rows`], for some of the vectors, whole but with `NARROW`.
unsafe fn run<S: Lanes, const K: usize, const ST: usize, const NARROW: bool>(
    s: S,
    args: &Args<'_>,
    vectors: Range<usize>,
    rows: Range<usize>,
) {
    let window = args.window;
    let [tallest, widest] = if K == 0 { largest::<S>(0, 0) } else { largest_tile::<S>(window) };
    let strips = Strip::cut(window, widest);
    let any_inside = strips.iter().any(|strip| !strip.inside.is_empty());
    let blocks = vectors.len().div_ceil(args.block);
    // Of the tallest tiles and of the lowest, whose rows are whole or not.
    let mut known = [[None; 2]; 2];
    let mut shape = [0; 3];
    for block in 0..blocks {
        let Range { start, end } = share(vectors.len(), blocks, block);
        let args = &args.of_vectors::<S>(vectors.start + start..vectors.start + end);
        let before = shape;
        shape = [args.vectors, args.input_overlap, args.output_overlap];
        if shape != before {
            known = [[None; 2]; 2];
        }
        let mut row = rows.start;
        while row < rows.end {
            let count = if rows.end - row >= tallest { tallest } else { 1 };
            let output = args.output.wrapping_add((row - rows.start) * args.output_row);
            let lines = Lines::new::<K, ST>(args, row, count, output);
            let whole = lines.whole && any_inside;
            let walks = known[usize::from(count < tallest)][usize::from(whole)]
                .get_or_insert_with(|| walks::<S, K, ST, NARROW>(args, &strips, count, whole));
            for (instance, walk) in walks.iter().flatten() {
                // SAFETY: these rows and vectors are the caller's, and so are the
                // columns: tiles * columns + rest make the output's width; tiles of inner
                // instances read only rows and columns inside.
                unsafe { instance(s, args, &lines, walk) };
            }
            // SAFETY: the rows just written.
            unsafe { activate_rows::<S, NARROW>(s, args, output, count) }
            row += count;
        }
    }
}

/// Applies a long activation, if there is one, to `count` rows of outputs at `output`.
///
/// # Safety
/// The rows are among the output's, as [`rows`] has it, and hold sums.
unsafe fn activate_rows<S: Lanes, const NARROW: bool>(
    s: S,
    args: &Args<'_>,
    output: *mut f32,
    count: usize,
) {
    let lanes = if NARROW { args.output_lanes } else { S::LANES };
    let width = args.window.output.width;
    // Rows that follow each other are one long one.
    let (lines, pixels) = match args.output_row == width * args.output_column {
        true => (1, count * width),
        false => (count, width),
    };
    for line in 0..lines {
        let stored = || Stored {
            output: output.wrapping_add(line * args.output_row),
            row: args.output_column,
            vector: args.output_vector,
            pixels,
            vectors: args.vectors,
            // What two vectors share is there once.
            last_lanes: lanes - args.output_overlap,
            residual: Addend::NONE,
        };
        // SAFETY: passed on.
        unsafe { activate(s, &args.finish, stored) }
    }
}

/// One task of a depthwise convolution.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) packed: &'a PackedDepthwise,
    pub(crate) activation: Activation,
    pub(crate) window: &'a Placed,
    /// Output rows that are taken at a time through all channels, so that the
    /// cache lines which channel vectors share are still there for the next.
    pub(crate) band: usize,
    pub(crate) parts: Parts,
    pub(crate) input: *const f32,
    pub(crate) input_view: View,
    pub(crate) output: *mut f32,
    pub(crate) output_view: View,
}

/// The pointers of a [`Layer`] are valid, and the task's part of the output is its
/// alone.
pub(crate) struct Run<'a> {
    layer: Layer<'a>,
    task: usize,
}

impl<'a> Run<'a> {
    /// # Safety
    /// Input and output are valid for the views of the window's shapes with the
    /// packed channels; the output overlaps nothing and nobody touches it but runs
    /// of other tasks of the same parts; the weights are packed for the instruction
    /// set that this is dispatched to.
    pub(crate) unsafe fn new(layer: Layer<'a>, task: usize) -> Self {
        Self { layer, task }
    }
}

impl Kernel for Run<'_> {
    type Output = ();

    #[cfg(debug_assertions)]
    fn memory<S: Lanes>(&self) -> Memory {
        let Layer { packed, input, output, .. } = self.layer;
        Memory::none()
            .reads(input, self.layer.input_view.len)
            .slices([&packed.weights[..], &packed.bias])
            .writes(output, self.layer.output_view.len)
    }

    fn run<S: Lanes>(self, s: S) {
        let Layer { packed, window, band, parts, input_view, output_view, .. } = self.layer;
        let output = window.output;
        let total = units(packed.channels, S::LANES);
        let [rows, mut vectors] = parts.ranges(self.task, [output.batch * output.height, total]);
        if vectors.is_empty() {
            return;
        }
        if vectors.end == total {
            vectors.end = packed.channels.div_ceil(S::LANES);
        }
        let bands = self.layer.by_pixels::<S>();
        for (image, rows) in by_image(rows, output.height) {
            let layer = Layer {
                input: self.layer.input.wrapping_add(image * input_view.batch),
                output: self.layer.output.wrapping_add(image * output_view.batch),
                ..self.layer
            };
            // SAFETY: `new` has vouched for all rows and channels.
            unsafe {
                if let Some(bands) = bands {
                    layer.pixels(s, bands, vectors.clone(), rows);
                    continue;
                }
                match (input_view.layout, output_view.layout) {
                    (Layout::Nhwc, Layout::Nhwc) => {
                        for top in rows.clone().step_by(band) {
                            let first = output_view.at(0, top, 0) + vectors.start * S::LANES;
                            let args = Args {
                                output: layer.output.add(first),
                                ..layer.channels_last::<S>(window, vectors.clone())
                            };
                            let rows = top..(top + band).min(rows.end);
                            layer.vectors(s, &args, vectors.start * S::LANES, rows);
                        }
                    }
                    (Layout::Nchw, Layout::Nchw) => {
                        let channels =
                            vectors.start * S::LANES..(vectors.end * S::LANES).min(packed.channels);
                        let first =
                            channels.start * output_view.channel + output_view.at(0, rows.start, 0);
                        let args = planar::Args {
                            output: layer.output.add(first),
                            output_plane: output_view.channel,
                            output_row: output_view.row,
                            ..layer.planar()
                        };
                        planar::planes(s, &args, channels, rows, 0..output.width);
                    }
                    (Layout::Nchw, Layout::Nhwc) | (Layout::Nhwc, Layout::Nchw) => {
                        layer.turned(s, vectors.clone(), rows);
                    }
                }
            }
        }
    }
}

impl<'a> Layer<'a> {
    /// All but the output, of a planar image.
    fn planar(&self) -> planar::Args<'a> {
        planar::Args {
            window: self.window,
            packed: self.packed,
            input: self.input,
            input_plane: self.input_view.channel,
            input_row: self.input_view.row,
            output: core::ptr::null_mut(),
            output_plane: 0,
            output_row: 0,
            finish: self.activation.finish(),
        }
    }

    /// All but the output's address, of some vectors of an image whose channels come
    /// last.
    fn channels_last<'w, S: Lanes>(&self, window: &'w Placed, vectors: Range<usize>) -> Args<'w> {
        let packed = self.packed;
        let lanes = packed.channels.min(S::LANES);
        let overlap = if vectors.end == packed.channels.div_ceil(S::LANES) {
            packed.overlap::<S>()
        } else {
            0
        };
        Args {
            window,
            input: self.input,
            input_row: self.input_view.row,
            input_column: self.input_view.pixel,
            input_vector: S::LANES,
            ring: window.input.height,
            output: core::ptr::null_mut(),
            output_row: self.output_view.row,
            output_column: self.output_view.pixel,
            output_vector: S::LANES,
            weights: packed.weights.as_ptr().wrapping_add(vectors.start * S::LANES * packed.taps),
            bias: packed.bias.as_ptr().wrapping_add(vectors.start * S::LANES),
            vectors: vectors.len(),
            block: vectors.len(),
            input_overlap: overlap,
            output_overlap: overlap,
            input_lanes: lanes,
            output_lanes: lanes,
            index: index(lanes, 1, 0),
            finish: self.activation.finish(),
        }
    }

    /// [`rows`] for output channels from `first` on; the input of `args` is at
    /// channel 0.
    ///
    /// # Safety
    /// As for [`rows`].
    unsafe fn vectors<S: Lanes>(&self, s: S, args: &Args<'_>, first: usize, rows: Range<usize>) {
        // SAFETY: passed on.
        unsafe {
            if self.packed.multiplier == 1 {
                let input = args.input.add(first);
                self::rows(s, &Args { input, ..*args }, rows);
            } else {
                multiplied(s, args, [self.packed.multiplier, first], rows);
            }
        }
    }
}

/// Into how many parts channels can be cut: vectors, of which the last two are one
/// part where they overlap.
pub(crate) fn units(channels: usize, lanes: usize) -> usize {
    (channels / lanes).max(1)
}

/// As [`rows`], where each input channel gives `multiplier` outputs: vector by
/// vector from output channel `first` on, whose lanes load the channels that they
/// share. The input is at channel 0.
///
/// # Safety
/// As for [`rows`].
unsafe fn multiplied<S: Lanes>(
    s: S,
    args: &Args<'_>,
    [multiplier, first]: [usize; 2],
    rows: Range<usize>,
) {
    for row in rows.clone() {
        for vector in 0..args.vectors {
            let overlap = if vector + 1 == args.vectors { args.output_overlap } else { 0 };
            let lane = first + vector * S::LANES - overlap;
            let (channel, skip) = (lane / multiplier, lane % multiplier);
            let channels = (skip + args.output_lanes).div_ceil(multiplier);
            let alone = args.of_vectors::<S>(vector..vector + 1);
            let args = Args {
                input: args.input.wrapping_add(channel),
                output: alone.output.wrapping_add((row - rows.start) * args.output_row),
                input_lanes: channels,
                index: index(channels, multiplier, skip),
                ..alone
            };
            // SAFETY: passed on; the lanes' channels are among the input's.
            unsafe { self::rows(s, &args, row..row + 1) }
        }
    }
}
