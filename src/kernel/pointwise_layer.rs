//! A whole 1x1 convolution, from either layout into either.
//!
//! Pixels are rows of the pointwise tile and output channels its vectors, or, where
//! planes are written, pixels its vectors and output channels its rows: planes of inputs
//! are then read as they are. What does not lie as the tile wants it goes through a buffer
//! of a few pixels: the input, some channels at a time, while the output holds the partial
//! sums, and pixels of planes that do not fill their vectors.

use core::ops::Range;

use crate::activation::Activation;
use crate::buffer::{LINE, Local};
use crate::kernel::activate::Addend;
use crate::kernel::parts::{Parts, by_image, share};
use crate::kernel::pointwise::{Ahead, Args, Epilogue, NEAR, Planes, Start, panel};
use crate::kernel::transpose::transpose;
use crate::layout::View;
use crate::pack::{PackedPointwise, Panel, Tail};
use crate::shape::Shape;
#[cfg(debug_assertions)]
use crate::simd::Memory;
use crate::simd::{Kernel, Lanes};

/// f32 of the buffer for what is turned. A first-level cache holds half of that or less, but the
/// more pixels at a time, the fewer lines of planes does one piece share with the next.
const BUFFER: usize = 16384;
/// Channels of it that are enough for what is turned to be used often; more would
/// leave too few pixels for whole tiles.
const CHANNELS: usize = 160;

/// One task of a 1x1 convolution.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) packed: &'a PackedPointwise,
    pub(crate) activation: Activation,
    /// With both views' axes made one where they can be.
    pub(crate) shape: Shape,
    /// Pixels that are taken at a time through all panels, so that their inputs stay
    /// in a cache.
    pub(crate) block: usize,
    pub(crate) parts: Parts,
    pub(crate) input: *const f32,
    pub(crate) input_view: View,
    /// In the output's view; null where there is none.
    pub(crate) residual: *const f32,
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
    /// Input, output and, if it is not null, residual are valid for the views of the
    /// shape with the packed channels; the output overlaps nothing and nobody touches
    /// it but runs of other tasks of the same parts; the weights are packed for the
    /// instruction set that this is dispatched to.
    pub(crate) unsafe fn new(layer: Layer<'a>, task: usize) -> Self {
        Self { layer, task }
    }
}

impl Kernel for Run<'_> {
    type Output = ();

    #[cfg(debug_assertions)]
    fn memory<S: Lanes>(&self) -> Memory {
        let Layer { packed, input, residual, output, .. } = self.layer;
        let (read, written) = (self.layer.input_view.len, self.layer.output_view.len);
        Memory::none()
            .reads(input, read)
            .reads(residual, if residual.is_null() { 0 } else { written })
            .slices([&packed.weights[..], &packed.bias])
            .writes(output, written)
    }

    fn run<S: Lanes>(self, s: S) {
        let layer = self.layer;
        let Shape { batch, height, width } = layer.shape;
        let all = &layer.packed.panels;
        let [pixels, panels] = layer.parts.ranges(self.task, [batch * height * width, all.len()]);
        for (row, pixels) in by_image(pixels, width) {
            let (image, row) = (row / height, row % height);
            let [x, y] = [layer.input_view, layer.output_view].map(|view| view.at(image, row, 0));
            let layer = Layer {
                input: layer.input.wrapping_add(x),
                residual: if layer.residual.is_null() {
                    layer.residual
                } else {
                    layer.residual.wrapping_add(y)
                },
                output: layer.output.wrapping_add(y),
                ..layer
            };
            let panels = &all[panels.clone()];
            // SAFETY: `new` has vouched for all pixels and channels.
            unsafe {
                if layer.output_view.is_planar() {
                    let rest = pixels.start + as_vectors::<S>(pixels.len());
                    layer.pixel_vectors(s, pixels.start..rest, panels);
                    layer.turned(s, rest..pixels.end, panels);
                } else if layer.input_view.is_planar() {
                    layer.turned(s, pixels, panels);
                } else {
                    for start in pixels.clone().step_by(layer.block) {
                        let pixels = start..(start + layer.block).min(pixels.end);
                        for panel in panels {
                            layer.panel(s, panel, pixels.clone());
                        }
                    }
                }
            }
        }
    }
}

/// How many of a plane's pixels are taken as vectors: all where that fills them well, else
/// those that fill whole ones. With few registers all or none: a tile of pixels is slower than
/// one of channels then, and what the others need to be turned is not much less than for all.
fn as_vectors<S: Lanes>(pixels: usize) -> usize {
    let whole = pixels / S::LANES * S::LANES;
    if S::REGISTERS < 32 {
        return if whole == pixels { pixels } else { 0 };
    }
    if 10 * pixels >= 9 * pixels.next_multiple_of(S::LANES) { pixels } else { whole }
}

/// The work of one run of pixels. Safety is as for [`Run::new`].
impl Layer<'_> {
    /// All of a panel but the pointers, for pixels as rows, channels last.
    fn args<S: Lanes>(&self, panel: &Panel) -> Args {
        let PackedPointwise { c_in, c_out, weights, bias, .. } = self.packed;
        let first = panel.first * S::LANES;
        let width = panel.vectors * S::LANES;
        Args {
            a: core::ptr::null(),
            a_row: self.input_view.pixel,
            a_block: S::LANES,
            k: *c_in,
            runs_before: 0,
            a_run: 0,
            b: weights.as_ptr().wrapping_add(first * c_in),
            b_row: 0,
            ahead: Ahead::piece(
                weights.as_ptr().wrapping_add((first + width) * c_in),
                width * c_in,
            ),
            c: core::ptr::null_mut(),
            c_row: self.output_view.pixel,
            c_vector: S::LANES,
            last_lanes: (c_out - first).min(width) - (width - S::LANES),
            pixel_lanes: panel.pixel_lanes::<S>(),
            start: Start::Bias(bias.as_ptr().wrapping_add(first)),
            epilogue: Epilogue::new(self.activation, Addend::NONE),
        }
    }

    /// The epilogue with what is added to the output at `offset`.
    fn epilogue<S: Lanes>(&self, offset: usize, row: usize) -> Epilogue {
        let residual = Addend { start: self.residual, row, vector: S::LANES };
        Epilogue::new(self.activation, residual.skip(offset))
    }

    /// From channels last to channels last.
    unsafe fn panel<S: Lanes>(&self, s: S, panel: &Panel, pixels: Range<usize>) {
        let offset = pixels.start * self.output_view.pixel + panel.first * S::LANES;
        let args = Args {
            a: self.input.wrapping_add(pixels.start * self.input_view.pixel),
            c: self.output.wrapping_add(offset),
            epilogue: self.epilogue::<S>(offset, self.output_view.pixel),
            ..self.args::<S>(panel)
        };
        // SAFETY: passed on.
        unsafe { self::panel(s, &args, panel.vectors, pixels.len()) }
    }

    /// Pixels as rows, with planes turned on either side.
    unsafe fn turned<S: Lanes>(&self, s: S, pixels: Range<usize>, panels: &[Panel]) {
        let PackedPointwise { c_in, c_out, .. } = *self.packed;
        let (x, y) = (self.input_view, self.output_view);
        let mut buffer = Local::<BUFFER>::uninit();
        let buffer = buffer.as_mut_ptr();
        s.lend(buffer, BUFFER);
        // Each side has half of the buffer, or all of it.
        let half = if x.is_planar() && y.is_planar() { BUFFER / 2 } else { BUFFER };
        let outputs = buffer.wrapping_add(BUFFER - half);
        let most = |planar, channels: usize| match planar {
            true => half / channels.next_multiple_of(S::LANES).min(CHANNELS),
            false => usize::MAX,
        };
        let most = most(x.is_planar(), c_in).min(most(y.is_planar(), c_out));
        // In blocks that are turned at once.
        let blocks = pixels.len().div_ceil(S::BLOCK);
        let chunks = blocks.div_ceil(most / S::BLOCK);
        for chunk in 0..chunks {
            let part = share(blocks, chunks, chunk);
            let part = part.start * S::BLOCK..pixels.len().min(part.end * S::BLOCK);
            let (start, pixels) = (pixels.start + part.start, part.len());
            // Channels that the buffers hold of so many pixels, in whole vectors.
            let fit = half / pixels / S::LANES;
            let k_step = if x.is_planar() { fit * S::LANES } else { c_in };
            let mut rest = panels;
            while let Some(first) = rest.first() {
                let fitting = match y.is_planar() {
                    true => {
                        rest.iter().take_while(|p| p.first + p.vectors - first.first <= fit).count()
                    }
                    false => rest.len(),
                };
                let group;
                (group, rest) = rest.split_at(fitting);
                let channels = first.first * S::LANES;
                // SAFETY: pixels and channels of the layer, as many as the buffers hold.
                unsafe {
                    for k in (0..c_in).step_by(k_step) {
                        let depth = k_step.min(c_in - k);
                        let from = self.input.add(start * x.pixel + k * x.channel);
                        if x.is_planar() {
                            transpose(s, (from, x.channel), (buffer, depth), [depth, pixels]);
                        }
                        for panel in group {
                            let offset = start * y.pixel + panel.first * S::LANES;
                            let mut args = self.args::<S>(panel);
                            (args.a, args.a_row) = if x.is_planar() {
                                (buffer.cast_const(), depth)
                            } else {
                                (from, x.pixel)
                            };
                            args.k = depth;
                            args.b = args.b.add(k * panel.vectors * S::LANES);
                            if k > 0 {
                                args.start = Start::Partial;
                            }
                            if y.is_planar() {
                                // In whole vectors; what is beyond the last channel is not
                                // turned.
                                args.c = outputs.add(panel.first * S::LANES - channels);
                                args.c_row = fit * S::LANES;
                                args.last_lanes = S::LANES;
                            } else {
                                args.c = self.output.add(offset);
                                args.epilogue = self.epilogue::<S>(offset, y.pixel);
                            }
                            if k + depth < c_in {
                                args.epilogue = Epilogue::NONE;
                            }
                            self::panel(s, &args, panel.vectors, pixels);
                        }
                    }
                    if y.is_planar() {
                        let end = group.last().map_or(0, |p| p.first + p.vectors) * S::LANES;
                        let size = [pixels, end.min(c_out) - channels];
                        let offset = channels * y.channel + start;
                        let to = self.output.add(offset);
                        transpose(s, (outputs, fit * S::LANES), (to, y.channel), size);
                        if !self.residual.is_null() {
                            let residual = self.residual.add(offset);
                            add(s, (residual, to), y.channel, [size[1], pixels]);
                        }
                    }
                }
            }
        }
    }

    /// In how many parts of the channels planes are summed from a pixel on: the lines that a tile's
    /// vectors are on, one more where they do not start on one, should stay near. With many
    /// registers so few tiles come back to them that partial sums take longer.
    fn plane_parts<S: Lanes>(&self, pixel: usize) -> usize {
        if S::REGISTERS >= 32 {
            return 1;
        }
        let start = self.input.wrapping_add(pixel).addr() / size_of::<f32>();
        let aligned = [start, self.input_view.channel].iter().all(|n| n.is_multiple_of(LINE));
        let width = S::POINTWISE_VECTORS * S::LANES;
        let lines = width.div_ceil(LINE) + usize::from(!aligned);
        (self.packed.c_in * lines * LINE).div_ceil(NEAR)
    }

    /// Pixels as vectors, output channels as rows: planes as they are, pixels turned, some
    /// channels at a time.
    unsafe fn pixel_vectors<S: Lanes>(&self, s: S, pixels: Range<usize>, panels: &[Panel]) {
        let (x, y) = (self.input_view, self.output_view);
        let c_in = self.packed.c_in;
        let part = |start: usize, channels: Range<usize>| Planes {
            packed: self.packed,
            epilogue: match channels.end == c_in {
                true => self.epilogue::<S>(start, y.channel),
                false => Epilogue::NONE,
            },
            input: self.input.wrapping_add(start * x.pixel + channels.start * x.channel),
            channels,
            input_plane: x.channel,
            output: self.output.wrapping_add(start),
            output_plane: y.channel,
        };
        if x.is_planar() {
            let parts = self.plane_parts::<S>(pixels.start);
            for i in 0..parts {
                let part = part(pixels.start, share(c_in, parts, i));
                // SAFETY: pixels and channels of the layer.
                unsafe { part.run(s, panels, pixels.len()) };
            }
            return;
        }
        // Parts are rounded up to whole vectors.
        let mut buffer = Local::<{ 2 * NEAR }>::uninit();
        let buffer = buffer.as_mut_ptr();
        s.lend(buffer, 2 * NEAR);
        let mut first = 0;
        while first < pixels.len().div_ceil(S::LANES) {
            let vectors = Panel::new::<S>(first, pixels.len(), Tail::Zeros).vectors;
            let (start, width) = (pixels.start + first * S::LANES, vectors * S::LANES);
            let pixels = width.min(pixels.end - start);
            first += vectors;
            // Equal parts of the channels, in whole vectors.
            let parts = c_in.div_ceil(NEAR / width);
            let k_step = c_in.div_ceil(parts).next_multiple_of(S::LANES);
            for k in (0..c_in).step_by(k_step) {
                let part = part(start, k..(k + k_step).min(c_in));
                let size = [pixels, part.channels.len()];
                // SAFETY: pixels and channels of the layer, as many as the buffer holds.
                unsafe {
                    transpose(s, (part.input, x.pixel), (buffer, width), size);
                    let turned = Planes { input: buffer, input_plane: width, ..part };
                    turned.run(s, panels, pixels);
                }
            }
        }
    }
}

/// Adds rows, `row` apart on both sides, to others.
///
/// # Safety
/// `from` is valid for reading and `to` for reading and writing `size` f32; they do
/// not overlap.
unsafe fn add<S: Lanes>(
    s: S,
    (from, to): (*const f32, *mut f32),
    row: usize,
    [rows, columns]: [usize; 2],
) {
    s.enter(
        #[inline(always)]
        || {
            for r in 0..rows {
                for column in (0..columns).step_by(S::LANES) {
                    let lanes = S::LANES.min(columns - column);
                    let at = r * row + column;
                    // SAFETY: these lanes of the row.
                    unsafe {
                        let sum = s.add(
                            s.load_first(to.add(at).cast_const(), lanes),
                            s.load_first(from.add(at), lanes),
                        );
                        s.store_first(to.add(at), sum, lanes);
                    }
                }
            }
        },
    );
}
