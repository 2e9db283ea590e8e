//! The stages of a tile: what is turned, expanded, filtered, normalised, projected.
//!
//! Safety of all of them is as for [`Run::new`](super::Run::new), for the rows and
//! vectors that they are given.

use core::hint::black_box;
use core::ops::Range;

use super::{Block, Hidden, Rows, Source, Stage, panels_end};
use crate::buffer::LINE;
use crate::kernel::activate::Addend;
use crate::kernel::normalise::normalise;
use crate::kernel::transpose::transpose;
use crate::kernel::{depthwise, pointwise, stem};
use crate::layout::View;
use crate::pack::Panel;
use crate::simd::Lanes;

/// f32 of an input row, of all vectors together, that depthwise tiles of a ring go along before the
/// next rows: with fewer, to set up rows counts, and with more, rows leave the first level.
const ROW: usize = 1024;
/// Vectors that they take together at least.
const TOGETHER: usize = 2;

/// Where a run of pixels is in the band, or among the hidden channels, in the output,
/// whose pixels are so far apart, and in what is added to it.
pub(super) struct At {
    pub(super) band: *const f32,
    pub(super) plane: usize,
    pub(super) output: *mut f32,
    pub(super) output_pixel: usize,
    pub(super) residual: Addend,
}

impl Stage<'_> {
    /// Whole vectors of a panel at `c`, summed over all channels, but for the input.
    pub(super) fn whole<S: Lanes>(
        &self,
        panel: &Panel,
        c: *mut f32,
        c_vector: usize,
    ) -> pointwise::Args {
        pointwise::Args {
            c,
            c_row: S::LANES,
            c_vector,
            last_lanes: S::LANES,
            epilogue: pointwise::Epilogue::new(self.activation, Addend::NONE),
            ..pointwise::Args::of_panel::<S>(self.packed, panel, 0..self.packed.c_in)
        }
    }
}

impl Block<'_> {
    /// The channels of some vectors.
    pub(super) fn lanes<S: Lanes>(&self, vectors: &Range<usize>) -> Range<usize> {
        let lanes_of = |vector| self.depthwise.lanes_of::<S>(vector);
        lanes_of(vectors.start).start..lanes_of(vectors.end - 1).end
    }

    /// Turns the input rows `rows` into their ring.
    pub(super) unsafe fn turn_input<S: Lanes>(&self, s: S, rows: Range<usize>) {
        let View { row: step, channel: plane, .. } = self.input_view;
        let (ring, width) = (self.input_rows(), self.first_window().input.width);
        let to_end = if step == width { rows.len() } else { 1 };
        let mut row = rows.start;
        while row < rows.end {
            let together = ring.together(&(row..rows.end), width).min(to_end);
            let from = (self.input.wrapping_add(row * step), plane);
            let to = (ring.at(row).cast_mut(), ring.pixel);
            // SAFETY: rows of the image and of the ring.
            unsafe { transpose(s, from, to, [ring.pixel, together * width]) };
            row += together;
        }
    }

    /// Reads the input rows `rows` once, from end to end, where wide stages may have pushed them
    /// out of the near caches: the depthwise tiles, which go to and fro between rows, wait longer.
    pub(super) unsafe fn fetch_input<S: Lanes>(&self, s: S, rows: Range<usize>) {
        let (input, width) = (self.input_rows(), self.window.input.width);
        // Planes were just turned; pixels with gaps have much between them that is not read.
        if self.hidden.is_none() || self.input_view.is_planar() || input.pixel != self.c_in {
            return;
        }
        for row in rows {
            for at in (0..width * input.pixel).step_by(LINE) {
                // SAFETY: the row is below the image's height, and has so many numbers, since
                // its pixels have no gaps.
                black_box(unsafe { s.read(input.at(row).add(at)) });
            }
        }
    }

    /// Where the output rows of a band are, channels last, and the distances between
    /// rows and pixels.
    pub(super) fn output_rows(&self, rows: &Range<usize>) -> (*mut f32, usize, usize) {
        let View { row, pixel, .. } = self.output_view;
        if self.output_view.is_planar() {
            // Behind the ring of input rows.
            let ring = match self.input_view.is_planar() {
                true => self.input_rows(),
                false => Rows { start: self.buffers.turned, row: 0, pixel: 0, ring: 0 },
            };
            let c_out = self.c_out();
            let start = self.buffers.turned.wrapping_add(ring.ring * ring.row);
            (start, self.window.output.width * c_out, c_out)
        } else {
            (self.output.wrapping_add(rows.start * row), row, pixel)
        }
    }

    /// Turns some channels of the output rows of a band out of their buffer or, where
    /// they are partial sums, back into it.
    pub(super) unsafe fn turn_output<S: Lanes, const OUT: bool>(
        &self,
        s: S,
        rows: Range<usize>,
        channels: Range<usize>,
    ) {
        let View { row: step, channel: plane, .. } = self.output_view;
        let (buffer, row, pixel) = self.output_rows(&rows);
        let width = self.window.output.width;
        let together = if step == width { rows.len() } else { 1 };
        for i in (0..rows.len()).step_by(together) {
            let buffer = buffer.wrapping_add(i * row + channels.start);
            let at = (rows.start + i) * step + channels.start * plane;
            let output = self.output.wrapping_add(at);
            let size = [together * width, channels.len()];
            // SAFETY: rows of the image and of the buffer.
            unsafe {
                if OUT {
                    transpose(s, (buffer, pixel), (output, plane), size);
                } else {
                    transpose(s, (output, plane), (buffer, pixel), [size[1], size[0]]);
                }
            }
        }
    }

    /// Expands the input rows `new` into the ring, for the slab's panels.
    pub(super) unsafe fn expand_slab<S: Lanes>(
        &self,
        s: S,
        stage: &Stage<'_>,
        slab: &Range<usize>,
        new: Range<usize>,
    ) {
        let panels = stage.packed.panels.iter();
        for panel in panels.filter(|panel| slab.contains(&panel.first)) {
            // SAFETY: passed on.
            unsafe { self.expand_panel(s, stage, slab, panel, new.clone()) };
        }
    }

    /// The same for one panel.
    unsafe fn expand_panel<S: Lanes>(
        &self,
        s: S,
        stage: &Stage<'_>,
        slab: &Range<usize>,
        panel: &Panel,
        new: Range<usize>,
    ) {
        let width = self.window.input.width;
        let plane = self.ring_plane::<S>();
        let input = self.input_rows();
        let mut row = new.start;
        while row < new.end {
            // As many rows as lie together in the ring and in the input.
            let slot = row % self.tile.ring;
            let rows = match self.stem {
                None => (self.tile.ring - slot).min(input.together(&(row..new.end), width)),
                Some(_) => 1,
            };
            // SAFETY: input rows below the image's height; ring rows below
            // tile.ring; the slab's vectors.
            unsafe {
                let to = self.ring_at::<S>(slab, panel.first).add(slot * width * S::LANES);
                let args = pointwise::Args {
                    a: input.at(row),
                    a_row: input.pixel,
                    a_block: S::LANES,
                    ..stage.whole::<S>(panel, to, plane)
                };
                match &self.stem {
                    None => pointwise::panel(s, &args, panel.vectors, rows * width),
                    Some(window) => {
                        stem::row(s, window, self.c_in, &input, row, &args, panel.vectors);
                    }
                }
            }
            row += rows;
        }
    }

    /// Convolves the slab into the band, or into the output where no projection follows.
    pub(super) unsafe fn depthwise_band<S: Lanes>(
        &self,
        s: S,
        slab: &Range<usize>,
        rows: Range<usize>,
    ) {
        let window = &self.window;
        let channels = self.depthwise.channels;
        let width = window.input.width;
        let first = slab.start;
        // The last vector of an image's pixel overlaps or is narrow; ring and band
        // hold whole vectors.
        let [mut overlap, mut lanes] = [0, S::LANES];
        if slab.end == channels.div_ceil(S::LANES) {
            overlap = self.depthwise.overlap::<S>();
            if overlap == 0 {
                lanes = channels - (slab.end - 1) * S::LANES;
            }
        }
        // SAFETY: the slab's vectors, in ring and band or in the image.
        unsafe {
            let mut args = depthwise::Args {
                window,
                input: self.ring_at::<S>(slab, first).cast_const(),
                input_row: width * S::LANES,
                input_column: S::LANES,
                input_vector: self.ring_plane::<S>(),
                ring: self.tile.ring,
                output: self.band_at::<S>(slab, first, rows.start),
                output_row: window.output.width * S::LANES,
                output_column: S::LANES,
                output_vector: self.band_plane::<S>(),
                weights: self
                    .depthwise
                    .weights
                    .as_ptr()
                    .add(first * self.depthwise.taps * S::LANES),
                bias: self.depthwise.bias.as_ptr().add(first * S::LANES),
                vectors: slab.len(),
                block: (ROW / (width * S::LANES)).max(TOGETHER),
                input_overlap: 0,
                output_overlap: 0,
                input_lanes: S::LANES,
                output_lanes: S::LANES,
                index: depthwise::index(S::LANES, 1, 0),
                finish: self.depthwise_activation.finish(),
            };
            if self.expand.is_none() {
                let input = self.input_rows();
                args = depthwise::Args {
                    input: input.start.add(first * S::LANES),
                    input_row: input.row,
                    input_column: input.pixel,
                    input_vector: S::LANES,
                    input_overlap: overlap,
                    input_lanes: lanes,
                    index: depthwise::index(lanes, 1, 0),
                    ring: input.ring,
                    block: slab.len(),
                    ..args
                };
            }
            if self.project.is_none() {
                let (output, row, pixel) = self.output_rows(&rows);
                args = depthwise::Args {
                    output: output.add(first * S::LANES),
                    output_row: row,
                    output_column: pixel,
                    output_vector: S::LANES,
                    output_overlap: overlap,
                    output_lanes: lanes,
                    ..args
                };
            }
            depthwise::rows(s, &args, rows);
        }
    }

    /// What follows when the slab's depthwise output of some rows is in the band.
    pub(super) unsafe fn finish_rows<S: Lanes>(
        &self,
        s: S,
        slab: &Range<usize>,
        rows: Range<usize>,
    ) {
        // SAFETY: passed on.
        unsafe {
            match &self.hidden {
                None => {
                    let plane = self.band_plane::<S>();
                    let band = self.buffers.band.wrapping_add(self.band_row::<S>(rows.start));
                    self.project_rows(s, slab, rows, (band, plane));
                }
                Some(hidden) => self.hidden_rows(s, hidden, rows),
            }
        }
    }

    /// From the band of all channels through the hidden channels to the output.
    unsafe fn hidden_rows<S: Lanes>(&self, s: S, hidden: &Hidden<'_>, rows: Range<usize>) {
        let width = self.window.output.width;
        let pixels = rows.len() * width;
        let band = self.buffers.band.wrapping_add(self.band_row::<S>(rows.start));
        let [band_plane, plane] = [self.band_plane::<S>(), self.tile.rows * width * S::LANES];
        let channels = self.depthwise.channels;
        let tile = self.buffers.expanded;
        let panels = &hidden.expand.packed.panels;
        let vectors = panels.last().map_or(0, |panel| panel.first + panel.vectors);
        // SAFETY: the band is complete, the tile holds a slab of its pixels.
        unsafe {
            if let Some(norm) = hidden.norm {
                normalise(s, norm, channels, (band, band_plane), pixels);
            }
            let mut first = 0;
            while first < vectors {
                let limit = (first + self.tile.hidden).min(vectors);
                let slab = first..panels_end(panels, limit);
                for panel in panels.iter().filter(|panel| slab.contains(&panel.first)) {
                    let args = pointwise::Args {
                        a: band,
                        a_row: S::LANES,
                        a_block: band_plane,
                        ..hidden.expand.whole::<S>(
                            panel,
                            tile.add((panel.first - first) * plane),
                            plane,
                        )
                    };
                    pointwise::panel(s, &args, panel.vectors, pixels);
                }
                self.project_rows(s, &slab, rows.clone(), (tile, plane));
                first = slab.end;
            }
        }
    }

    /// [`project`](Self::project) for a band's rows and all output channels.
    unsafe fn project_rows<S: Lanes>(
        &self,
        s: S,
        slab: &Range<usize>,
        rows: Range<usize>,
        (band, plane): (*const f32, usize),
    ) {
        let Some(stage) = &self.project else { return };
        let width = self.window.output.width;
        let input = self.input_rows();
        let (output, step, pixel) = self.output_rows(&rows);
        let mut row = rows.start;
        while row < rows.end {
            // As many rows as lie together.
            let left = row..rows.end;
            let flat = if step == width * pixel { left.len() } else { 1 };
            let count = match self.residual {
                Some(Source::Input(_)) => input.together(&left, width).min(flat),
                _ => flat,
            };
            let pixels = (row - rows.start) * width;
            let residual = match self.residual {
                None => Addend::NONE,
                Some(Source::Input(first)) => Addend {
                    start: input.at(row).wrapping_add(first * input.pixel),
                    row: input.pixel,
                    vector: S::LANES,
                },
                Some(Source::Depthwise) => Addend {
                    start: self
                        .buffers
                        .band
                        .wrapping_add(self.band_row::<S>(rows.start) + pixels * S::LANES),
                    row: S::LANES,
                    vector: self.band_plane::<S>(),
                },
            };
            let at = At {
                band: band.wrapping_add(pixels * S::LANES),
                plane,
                output: output.wrapping_add((row - rows.start) * step),
                output_pixel: pixel,
                residual,
            };
            let panels = &stage.packed.panels;
            // SAFETY: passed on.
            unsafe { self.project(s, stage, &at, slab, count * width, panels) };
            row += count;
        }
    }

    /// Adds the slab's share to some output pixels; the last slab finishes them.
    pub(super) unsafe fn project<S: Lanes>(
        &self,
        s: S,
        stage: &Stage<'_>,
        at: &At,
        slab: &Range<usize>,
        pixels: usize,
        panels: &[Panel],
    ) {
        let c_in = stage.packed.c_in;
        let channels = slab.start * S::LANES..(slab.end * S::LANES).min(c_in);
        for panel in panels {
            // SAFETY: the band's pixels and vectors; output pixels and channels
            // below the image's; with a residual, input and output are of one shape.
            unsafe {
                let args = pointwise::Args {
                    a: at.band,
                    a_row: S::LANES,
                    a_block: at.plane,
                    c: at.output.add(panel.first * S::LANES),
                    c_row: at.output_pixel,
                    epilogue: if channels.end == c_in {
                        let residual = at.residual.skip(panel.first * at.residual.vector);
                        pointwise::Epilogue::new(stage.activation, residual)
                    } else {
                        pointwise::Epilogue::NONE
                    },
                    ..pointwise::Args::of_panel::<S>(stage.packed, panel, channels.clone())
                };
                pointwise::panel(s, &args, panel.vectors, pixels);
            }
        }
    }
}
