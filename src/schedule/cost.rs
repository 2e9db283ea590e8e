//! What a schedule costs: an estimate in cycles of one core.
//!
//! Arithmetic is what the kernels' loops take over the register tiles that a
//! band's pixels and rows are cut into. Data is what they wait for: each stream of
//! bytes pays by the distance of its reuse, which is how many other bytes go by
//! before a byte is used again. What every schedule pays alike is left out: to
//! read the input and the weights for the first time, to write the output.
//!
//! The constants were fitted to the times of tests/data on a Zen 5 core, all
//! tiles of all blocks on two instruction sets; cycles of data lie between that
//! core's, whose third level is fast, and those of a core with 29 GB/s beyond L2.

use super::{Caches, Problem};
use crate::isa::Isa;
use crate::kernel::bottleneck::Tile;
use crate::kernel::depthwise;
use crate::shape::Placed;
use crate::simd::{Kernel, Lanes, MAX_VECTORS};

/// Vector multiply-adds that start in a cycle, and the cycles until a sum takes
/// its next one.
const MULTIPLY_ADDS: f64 = 2.0;
const LATENCY: f64 = 4.0;

/// Cycles of a pointwise panel's call, of a tile, of each step of a tile along
/// the input channels beyond its multiply-adds, and of an output vector's
/// activation and store.
const PANEL: f64 = 160.0;
const TILE: f64 = 4.0;
const STEP: f64 = 0.3;
const OUTPUT: f64 = 0.4;

/// Cycles of a row of depthwise tiles, of a tile, and of an input or weight that
/// a tile loads.
const TILE_ROW: f64 = 20.0;
const WINDOW: f64 = 1.0;
const LOAD: f64 = 0.25;

/// Cycles of a vector of columns of a plane, and of each of its outputs beyond the taps.
const COLUMN: f64 = 40.0;
const ROW: f64 = 1.5;

/// Cycles of a number that is turned from a plane or into one.
const TURN: f64 = 0.3;

/// The part of a cache that surely keeps its lines; beyond its size none stay.
const KEPT: f64 = 0.6;
/// Cycles that a byte takes more for each level that has lost it.
const MISSED: [f64; 3] = [1.0 / 160.0, 1.0 / 40.0, 1.0 / 16.0];

/// An estimate in cycles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) arithmetic: f64,
    pub(crate) data: f64,
}

impl Cost {
    pub(crate) fn cycles(&self) -> f64 {
        self.arithmetic + self.data
    }
}

/// What of an instruction set the estimate depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Core {
    /// Lanes of a channel vector.
    pub(crate) lanes: usize,
    /// Vectors of most pointwise panels.
    pub(crate) panel: usize,
    /// The most rows of a pointwise tile, by its vectors less one.
    pub(crate) pointwise: [usize; MAX_VECTORS],
    /// Rows and columns of the window's largest depthwise tile.
    pub(crate) depthwise: [usize; 2],
    /// Whether planes are taken along their rows.
    pub(crate) along_rows: bool,
}

impl Core {
    pub(crate) fn new(isa: Isa, window: &Placed) -> Self {
        struct Ask<'a>(&'a Placed);
        impl Kernel for Ask<'_> {
            type Output = Core;
            fn run<S: Lanes>(self, _: S) -> Core {
                Core {
                    lanes: S::LANES,
                    panel: S::POINTWISE_VECTORS,
                    pointwise: S::POINTWISE_ROWS,
                    depthwise: depthwise::largest_tile::<S>(self.0),
                    along_rows: depthwise::planar::is_fast::<S>(self.0),
                }
            }
        }
        isa.dispatch(Ask(window))
    }

    /// A pointwise stage that sums over `k` channels, for `vectors` vectors of
    /// outputs at `pixels` pixels.
    fn pointwise(&self, k: f64, vectors: f64, pixels: usize) -> f64 {
        let width = (vectors as usize).clamp(1, self.panel);
        let tiles = pixels.div_ceil(self.pointwise[width - 1]) as f64;
        let outputs = pixels as f64 / tiles * width as f64;
        let step = (outputs / MULTIPLY_ADDS).max(LATENCY) + STEP;
        vectors / width as f64 * (PANEL + tiles * (TILE + step * k + outputs * OUTPUT))
    }

    /// A depthwise stage for `rows` rows of outputs of one vector.
    fn depthwise(&self, window: &Placed, rows: usize) -> f64 {
        let width = window.output.width;
        let [tall, wide] = self.depthwise;
        let wide = if width.is_multiple_of(wide) { wide } else { wide.min(4) };
        let tiles = width as f64 / wide as f64;
        let [height, taps] = [window.kernel[0], window.kernel[0] * window.kernel[1]];
        let row = |rows: usize| {
            // In floats: strides may be far beyond the image.
            let [down, across] = window.stride.map(|n| n as f64);
            let columns = (wide - 1) as f64 * across + window.kernel[1] as f64;
            let loads = ((rows - 1) as f64 * down + height as f64) * columns + taps as f64;
            let outputs = (rows * wide) as f64;
            let sums = outputs * (taps as f64 / MULTIPLY_ADDS + OUTPUT);
            TILE_ROW + tiles * (WINDOW + sums + loads * LOAD)
        };
        (rows / tall) as f64 * row(tall) + (rows % tall) as f64 * row(1)
    }

    /// The same along the rows of as many planes.
    fn planes(&self, window: &Placed, rows: usize) -> f64 {
        let Placed { output, kernel, stride, .. } = *window;
        let columns = (self.lanes * output.width.div_ceil(self.lanes)) as f64;
        let live = kernel[0].div_ceil(stride[0]);
        let taps = (kernel[0] * kernel[1]) as f64;
        columns * (COLUMN + (rows + live - 1) as f64 * (taps / MULTIPLY_ADDS + ROW))
    }
}

impl Caches {
    /// Cycles of a byte that is used again after `distance` others.
    fn cycles_per_byte(&self, distance: f64) -> f64 {
        let mut missed = 1.0;
        let mut cycles = 0.0;
        for (size, cost) in [self.l1, self.l2, self.l3].into_iter().zip(MISSED) {
            let over = (distance / size.max(1) as f64 - KEPT) / (1.0 - KEPT);
            missed = over.clamp(0.0, missed);
            cycles += missed * cost;
        }
        cycles
    }
}

impl Problem<'_> {
    /// The cost of one image, or of the part of it that the window is laid over:
    /// then the input rows that neighbours read too count here.
    pub(crate) fn cost(&self, tile: &Tile, caches: &Caches) -> Cost {
        let width = self.window.output.width;
        if tile.columns < width {
            // As if all strips were inside and equally wide.
            let middle = (width - tile.columns) / 2;
            let (window, _) = self.window.strip(middle..middle + tile.columns);
            let Cost { arithmetic, data } = Problem { window: &window, ..*self }.cost(tile, caches);
            let strips = width as f64 / tile.columns as f64;
            return Cost { arithmetic: strips * arithmetic, data: strips * data };
        }
        if self.hidden > 0 {
            return self.hidden_cost(tile, caches);
        }
        let core = &self.core;
        let &Placed { input, output, kernel, .. } = self.window;
        let rows = output.height;
        let [bands, slabs] = [rows.div_ceil(tile.rows), self.vectors().div_ceil(tile.vectors)];
        let pixels = [input, output].map(|shape| shape.height * shape.width);
        let [pixels_in, pixels_out] = pixels.map(|n| n.div_ceil(bands));
        let last = rows - (bands - 1) * tile.rows;

        let [bands, slabs, all] = [bands, slabs, self.vectors()].map(|n| n as f64);
        let [c_in, c_out] = [self.c_in, self.c_out].map(|n| n as f64);
        // Of a slab, of an expand panel, of the output.
        let vectors = all / slabs;
        let panel = vectors.min(core.panel as f64);
        let out = self.c_out.div_ceil(core.lanes) as f64;
        let out_panels = (out / core.panel as f64).max(1.0);

        let expand = if self.expand { core.pointwise(c_in, vectors, pixels_in) } else { 0.0 };
        let band = |rows| match self.planes {
            true => core.planes(self.window, rows),
            false => core.depthwise(self.window, rows),
        };
        let depthwise = (bands - 1.0) * band(tile.rows) + band(last);
        let project = if self.project {
            core.pointwise(vectors * core.lanes as f64, out, pixels_out)
        } else {
            0.0
        };
        // Planes are turned for each slab, unless the turned pixels of one band stay;
        // partial sums out and in again.
        let once = bands == 1.0;
        let turns = [if once { 1.0 } else { slabs }, if once { 1.0 } else { 2.0 * slabs - 1.0 }];
        let image = self.turned.stem.map_or(input, |stem| stem.input);
        let turned = [(image, self.turned.c_in), (output, self.turned.c_out)]
            .map(|(shape, c)| (shape.height * shape.width) as f64 * c.unwrap_or(0) as f64);
        let turned = TURN * (turns[0] * turned[0] + turns[1] * turned[1]);
        let arithmetic = slabs * bands * (expand + project) + all * depthwise + turned;

        // Bytes: of the whole tensors; of a slab's weights; of its buffers; of
        // all that goes by while it is at one band.
        let lane = size_of::<f32>() as f64;
        let vector = lane * core.lanes as f64;
        let [thin_in, wide_in] = [c_in * lane, all * vector].map(|n| n * pixels[0] as f64);
        let [thin_out, wide_out] = [c_out * lane, all * vector].map(|n| n * pixels[1] as f64);
        let expand_weights = if self.expand { c_in * vectors * vector } else { 0.0 };
        let project_weights = if self.project { c_out * vectors * vector } else { 0.0 };
        let taps = (kernel[0] * kernel[1]) as f64;
        let weights = expand_weights + taps * vectors * vector + project_weights;
        let held = self.bytes(tile) as f64;
        let band = wide_out / slabs / rows as f64 * tile.rows as f64;
        let turn = held + weights + (thin_in + thin_out) / bands;
        let pass = held + weights + thin_in + thin_out;

        let mut data = 0.0;
        let mut stream = |bytes: f64, distance| data += bytes * caches.cycles_per_byte(distance);
        // Weights again for each band; outputs as partial sums, from slab to slab.
        stream((bands - 1.0) * slabs * weights, turn);
        if self.project {
            stream(2.0 * (slabs - 1.0) * thin_out, pass);
        }
        if self.expand {
            // The input again for each slab, and within it for each panel.
            stream((slabs - 1.0) * thin_in, pass);
            let near = thin_in / bands + expand_weights * panel / vectors;
            stream((all / panel - slabs) * thin_in, near);
            // The expanded tensor, written and read.
            stream(2.0 * wide_in, held);
        }
        if self.project {
            // The depthwise output, written and read, then again for each panel.
            stream(2.0 * wide_out, if self.expand { held } else { turn });
            stream((out_panels - 1.0) * wide_out, band + project_weights / out_panels);
        }
        Cost { arithmetic, data }
    }

    /// Bytes of the depthwise output of an image.
    pub(crate) fn depthwise_bytes(&self) -> usize {
        let Placed { output, .. } = self.window;
        output.height * output.width * self.vectors() * self.core.lanes * size_of::<f32>()
    }

    /// Whether the depthwise output of an image, which is needed again when all of it has
    /// been seen, is kept rather than computed again.
    pub(crate) fn keeps(&self, caches: &Caches) -> bool {
        let bytes = self.depthwise_bytes() as f64;
        let Placed { input, output, .. } = *self.window;
        let (pixels, vectors) = (input.height * input.width, self.vectors() as f64);
        let expand = match self.expand {
            true => self.core.pointwise(self.c_in as f64, vectors, pixels),
            false => 0.0,
        };
        let again = expand + vectors * self.core.depthwise(self.window, output.height);
        2.0 * bytes * caches.cycles_per_byte(bytes) <= again
    }

    /// The same for a block whose wide middle follows the depthwise convolution.
    fn hidden_cost(&self, tile: &Tile, caches: &Caches) -> Cost {
        let core = &self.core;
        let &Placed { input, output, .. } = self.window;
        let hidden = self.hidden.div_ceil(core.lanes);
        let bands = output.height.div_ceil(tile.rows);
        let slabs = hidden.div_ceil(tile.hidden.max(1));
        let pixels = (output.height * output.width).div_ceil(bands);
        let last = output.height - (bands - 1) * tile.rows;

        let [bands, slabs, hidden, all] = [bands, slabs, hidden, self.vectors()].map(|n| n as f64);
        let out = self.c_out.div_ceil(core.lanes) as f64;
        let vectors = hidden / slabs;
        let expand = core.pointwise(self.channels as f64, vectors, pixels);
        let project = core.pointwise(vectors * core.lanes as f64, out, pixels);
        let depthwise = (bands - 1.0) * core.depthwise(self.window, tile.rows)
            + core.depthwise(self.window, last);
        let turned = [(input, self.turned.c_in), (output, self.turned.c_out)]
            .map(|(shape, c)| (shape.height * shape.width) as f64 * c.unwrap_or(0) as f64);
        let turned = TURN * (turned[0] + turned[1]);
        let arithmetic = bands * slabs * (expand + project) + all * depthwise + turned;

        // Bytes: of the two buffers, of a band's outputs, of a slab's weights.
        let lane = size_of::<f32>() as f64;
        let vector = lane * core.lanes as f64;
        let [band, middle] = [all, vectors].map(|n| n * vector * pixels as f64);
        let thin = self.c_out as f64 * lane * pixels as f64;
        let [expand, project] = [self.channels, self.c_out].map(|n| n as f64 * vectors * vector);
        let held = self.bytes(tile) as f64;

        let mut data = 0.0;
        let mut stream = |bytes: f64, distance| data += bytes * caches.cycles_per_byte(distance);
        // Weights again for each band; outputs as partial sums, from slab to slab.
        stream(
            (bands - 1.0) * slabs * (expand + project),
            slabs * (expand + project) + held + thin,
        );
        stream(2.0 * bands * (slabs - 1.0) * thin, expand + project + middle + thin);
        // The band again for each panel; the middle, written and read for each panel.
        let panels = (hidden / core.panel as f64).max(1.0);
        stream(bands * panels * band, band + expand * slabs / panels);
        let panels = (out / core.panel as f64).max(1.0);
        stream(bands * slabs * middle, middle);
        stream(bands * slabs * panels * middle, middle + project / panels);
        Cost { arithmetic, data }
    }
}
