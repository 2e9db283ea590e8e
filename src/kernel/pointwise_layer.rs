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
use crate::kernel::pointwise::{Args, Epilogue, NEAR, Planes, panel};
use crate::kernel::transpose::transpose;
use crate::layout::View;
use crate::pack::{PackedPointwise, Panel, pixel_vectors};
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
                    let row = layer.input_view.pixel;
                    for start in pixels.clone().step_by(layer.block) {
                        let pixels = start..(start + layer.block).min(pixels.end);
                        let from = (layer.input.wrapping_add(start * row), row);
                        for panel in panels {
                            let channels = 0..layer.packed.c_in;
                            layer.panel(s, panel, channels, pixels.clone(), from, None);
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
    /// The epilogue with what is added to the output at `offset`.
    fn epilogue<S: Lanes>(&self, offset: usize, row: usize) -> Epilogue {
        let residual = Addend { start: self.residual, row, vector: S::LANES };
        Epilogue::new(self.activation, residual.skip(offset))
    }

    /// What a panel adds for some input channels of some pixels, which are rows, so far apart,
    /// from `a` on: to the output or, given where and how far apart, to whole vectors elsewhere.
    unsafe fn panel<S: Lanes>(
        &self,
        s: S,
        panel: &Panel,
        channels: Range<usize>,
        pixels: Range<usize>,
        (a, a_row): (*const f32, usize),
        elsewhere: Option<(*mut f32, usize)>,
    ) {
        let last = channels.end == self.packed.c_in;
        let args = Args { a, a_row, ..Args::of_panel::<S>(self.packed, panel, channels) };
        let args = match elsewhere {
            None => {
                let row = self.output_view.pixel;
                let offset = pixels.start * row + panel.first * S::LANES;
                let epilogue = self.epilogue::<S>(offset, row);
                Args { c: self.output.wrapping_add(offset), c_row: row, epilogue, ..args }
            }
            Some((c, c_row)) => {
                let epilogue = Epilogue::new(self.activation, Addend::NONE);
                Args { c, c_row, last_lanes: S::LANES, epilogue, ..args }
            }
        };
        let epilogue = if last { args.epilogue } else { Epilogue::NONE };
        // SAFETY: passed on.
        unsafe { self::panel(s, &Args { epilogue, ..args }, panel.vectors, pixels.len()) }
    }

    /// Pixels as rows, with planes turned on either side.
    unsafe fn turned<S: Lanes>(&self, s: S, pixels: Range<usize>, panels: &[Panel]) {
        let PackedPointwise { c_in, c_out, .. } = *self.packed;
        let [x, y] = [self.input_view, self.output_view].map(|view| view.is_planar());
        let mut buffer = Local::<BUFFER>::uninit();
        let buffer = buffer.as_mut_ptr();
        s.lend(buffer, BUFFER);
        // Each side has half of the buffer, or all of it.
        let half = if x && y { BUFFER / 2 } else { BUFFER };
        let buffers = [buffer, buffer.wrapping_add(BUFFER - half)];
        let most = |planar, channels: usize| match planar {
            true => half / channels.next_multiple_of(S::LANES).min(CHANNELS),
            false => usize::MAX,
        };
        let most = most(x, c_in).min(most(y, c_out));
        // In blocks that are turned at once.
        let blocks = pixels.len().div_ceil(S::BLOCK);
        let chunks = blocks.div_ceil(most / S::BLOCK);
        for chunk in 0..chunks {
            let part = share(blocks, chunks, chunk);
            let [start, end] = [part.start, part.end].map(|n| pixels.start + n * S::BLOCK);
            let pixels = start..end.min(pixels.end);
            // Channels that the buffers hold of so many pixels, in whole vectors.
            let fit = half / pixels.len() / S::LANES;
            let mut rest = panels;
            while let Some(first) = rest.first() {
                let fits = |panel: &&Panel| !y || panel.first + panel.vectors - first.first <= fit;
                let group;
                (group, rest) = rest.split_at(rest.iter().take_while(fits).count());
                // SAFETY: pixels and channels of the layer, as many as the buffers hold.
                unsafe { self.turned_panels(s, group, pixels.clone(), buffers, fit * S::LANES) };
            }
        }
    }

    /// Some panels by way of buffers, of which each side that is turned has one for so many
    /// channels of the pixels.
    unsafe fn turned_panels<S: Lanes>(
        &self,
        s: S,
        panels: &[Panel],
        pixels: Range<usize>,
        [inputs, outputs]: [*mut f32; 2],
        most: usize,
    ) {
        let PackedPointwise { c_in, c_out, .. } = *self.packed;
        let (x, y) = (self.input_view, self.output_view);
        let Some((first, last)) = panels.first().zip(panels.last()) else { return };
        let first = first.first * S::LANES;
        let end = ((last.first + last.vectors) * S::LANES).min(c_out);
        let k_step = if x.is_planar() { most } else { c_in };
        // SAFETY: passed on.
        unsafe {
            for k in (0..c_in).step_by(k_step) {
                let channels = k..(k + k_step).min(c_in);
                let depth = channels.len();
                let mut from = (self.input.add(pixels.start * x.pixel + k * x.channel), x.pixel);
                if x.is_planar() {
                    transpose(s, (from.0, x.channel), (inputs, depth), [depth, pixels.len()]);
                    from = (inputs, depth);
                }
                for panel in panels {
                    // What is beyond the last channel is not turned.
                    let elsewhere = (outputs.wrapping_add(panel.first * S::LANES - first), most);
                    let elsewhere = y.is_planar().then_some(elsewhere);
                    self.panel(s, panel, channels.clone(), pixels.clone(), from, elsewhere);
                }
            }
            if y.is_planar() {
                let offset = first * y.channel + pixels.start;
                let to = self.output.add(offset);
                let size = [pixels.len(), end - first];
                transpose(s, (outputs, most), (to, y.channel), size);
                if !self.residual.is_null() {
                    let residual = self.residual.add(offset);
                    add(s, (residual, to), y.channel, [end - first, pixels.len()]);
                }
            }
        }
    }

    /// Whether pixels that start a line in one plane do so in all.
    fn shares_lines(&self) -> bool {
        self.input_view.channel.is_multiple_of(LINE)
    }

    /// The first of some planes' pixels that starts a line, if there is one in all of them: vectors
    /// from there on straddle none. With many registers 28x28, 192 -> 32 took longer so.
    fn lead<S: Lanes>(&self, pixels: &Range<usize>) -> usize {
        let start = self.input.wrapping_add(pixels.start).addr() / size_of::<f32>();
        let lead = start.next_multiple_of(LINE) - start;
        let is_worth = S::REGISTERS < 32 && self.shares_lines() && lead < pixels.len();
        pixels.start + if is_worth { lead } else { 0 }
    }

    /// In how many parts of the channels planes are summed: the lines that a tile's vectors are on,
    /// one more where they do not start on one, should stay near. With many registers layers cut so
    /// took longer.
    fn plane_parts<S: Lanes>(&self) -> usize {
        if S::REGISTERS >= 32 {
            return 1;
        }
        let width = pixel_vectors::<S>() * S::LANES;
        let lines = width.div_ceil(LINE) + usize::from(!self.shares_lines());
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
            let (lead, parts) = (self.lead::<S>(&pixels), self.plane_parts::<S>());
            let pieces = [pixels.start..lead, lead..pixels.end];
            for pixels in pieces.into_iter().filter(|pixels| !pixels.is_empty()) {
                for i in 0..parts {
                    let part = part(pixels.start, share(c_in, parts, i));
                    // SAFETY: pixels and channels of the layer.
                    unsafe { part.run(s, panels, pixels.len()) };
                }
            }
            return;
        }
        // Parts are rounded up to whole vectors.
        let mut buffer = Local::<{ 2 * NEAR }>::uninit();
        let buffer = buffer.as_mut_ptr();
        s.lend(buffer, 2 * NEAR);
        let mut first = 0;
        while first < pixels.len().div_ceil(S::LANES) {
            let vectors = Panel::of_pixels::<S>(first, pixels.len()).vectors;
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
