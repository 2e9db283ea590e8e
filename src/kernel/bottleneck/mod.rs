//! The block's schedule: expand, depthwise and project taken tile by tile.
//!
//! A tile is a band of output rows by a slab of expanded channels. The expanded
//! slab lives in a ring of rows, of which each is computed once and stays until
//! no later band reads it; the depthwise output lives in a band. Both are
//! `[channel vector][row][column][lane]`, so that the depthwise tile walks
//! memory straight on. When a slab is not all channels, the output holds the
//! partial sums from slab to slab.
//!
//! An image too wide for the cache is taken in strips of columns. Planes are turned
//! on the way: the input rows that a band needs go into a ring of rows with channels
//! last, and the band's output rows come out of another buffer.

mod excite;
mod planes;
mod stages;
mod tasks;

use core::ops::{Range, RangeInclusive};

use crate::activation::Activation;
use crate::kernel::parts::{Axis, share};
use crate::layout::View;
use crate::pack::{PackedDepthwise, PackedNorm, PackedPointwise, Panel};
use crate::shape::Placed;
use crate::simd::Lanes;
pub(crate) use tasks::Run;

/// The size of a tile and of the two buffers that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Output rows that are taken at a time.
    pub(crate) rows: usize,
    /// Output rows that the band holds: as many, or all.
    pub(crate) band: usize,
    /// Output columns of a strip.
    pub(crate) columns: usize,
    /// Channel vectors in a slab.
    pub(crate) vectors: usize,
    /// Rows of the ring that holds the expanded slab.
    pub(crate) ring: usize,
    /// Vectors of hidden channels in a slab; 0 in a block without them. The slab of
    /// depthwise channels is then all of them.
    pub(crate) hidden: usize,
}

/// How a block is cut into tasks. Where one task reads what others have written,
/// the cut has phases: all tasks of one end before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Output rows of the whole batch. A task has a tile of its own, and the
    /// expanded rows that two of them need are computed by both.
    Rows,
    /// Image by image: input rows, expanded, then output rows. The expanded tensor is whole.
    Expanded,
    /// Image by image: channels, up to the depthwise output, then the projection
    /// along this axis.
    Channels(Axis),
    /// Image by image: channels, up to the depthwise output and its means; the gate's
    /// two stages, by their channels; then output rows. The depthwise output is kept, and
    /// scaled with the gate, or computed again.
    Pooled { kept: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) by: By,
    pub(crate) tasks: usize,
}

impl Cut {
    /// How often the tasks are run.
    pub(crate) fn phases(&self, batch: usize) -> usize {
        match self.by {
            By::Rows => 1,
            _ => self.phases_of_an_image() * batch,
        }
    }

    fn phases_of_an_image(&self) -> usize {
        if matches!(self.by, By::Pooled { .. }) { 4 } else { 2 }
    }

    /// How many buffers of each kind of [`Buffers`] there are: one for each task or one
    /// for all.
    pub(crate) fn buffers(&self) -> [usize; 4] {
        let each = self.tasks;
        match self.by {
            By::Rows => [each, each, each, 0],
            By::Expanded => [1, each, each, 0],
            By::Channels(_) => [each, 1, 1, 0],
            By::Pooled { kept: true } => [each, 1, each, 1],
            By::Pooled { kept: false } => [each, each, each, 1],
        }
    }

    /// Whether the band has all rows of all vectors, for all tasks.
    pub(crate) fn has_whole_band(&self) -> bool {
        matches!(self.by, By::Channels(_) | By::Pooled { kept: true })
    }

    /// Whether the ring has all rows of all vectors, for all tasks.
    pub(crate) fn has_whole_ring(&self) -> bool {
        self.by == By::Expanded
    }

    /// f32 of a tile's ring and band, of `all` vectors where tasks share them.
    pub(crate) fn tile_elements(
        &self,
        tile: &Tile,
        window: &Placed,
        all: usize,
        lanes: usize,
    ) -> [usize; 2] {
        let of = |whole| Tile { vectors: if whole { all } else { tile.vectors }, ..*tile };
        [
            of(self.has_whole_ring()).ring_elements(window, lanes),
            of(self.has_whole_band()).band_elements(lanes),
        ]
    }
}

/// A pointwise stage, its panels in order.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) packed: &'a PackedPointwise,
    pub(crate) activation: Activation,
}

/// What a ConvNeXt block has before its projection: the depthwise output is
/// normalised, and expanded slab by slab into a tile of a band's pixels by some
/// hidden channels, which is projected at once.
#[derive(Clone, Copy)]
pub(crate) struct Hidden<'a> {
    pub(crate) norm: Option<&'a PackedNorm>,
    pub(crate) expand: Stage<'a>,
}

/// A gate between the depthwise convolution and what follows: the means of all
/// channels go through two 1x1 convolutions, whose result scales the channels.
#[derive(Clone, Copy)]
pub(crate) struct Excite<'a> {
    pub(crate) reduce: Stage<'a>,
    pub(crate) expand: Stage<'a>,
}

/// What is added to the output.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// The input; and which of its columns to the first one of the output.
    Input(usize),
    /// What the hidden channels are made of.
    Depthwise,
}

/// A block ready to run on some images.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) window: Placed,
    /// Channels of the input.
    pub(crate) c_in: usize,
    pub(crate) expand: Option<Stage<'a>>,
    /// Where the expansion is a stem: its window over the image. The other window
    /// is over what it gives.
    pub(crate) stem: Option<Placed>,
    pub(crate) depthwise: &'a PackedDepthwise,
    pub(crate) depthwise_activation: Activation,
    /// The cut is [`By::Pooled`] then.
    pub(crate) excite: Option<Excite<'a>>,
    pub(crate) hidden: Option<Hidden<'a>>,
    /// None: the depthwise convolution writes the output, there is no band.
    pub(crate) project: Option<Stage<'a>>,
    pub(crate) residual: Option<Source>,
    pub(crate) tile: Tile,
    pub(crate) cut: Cut,
    /// Whether rows of planes are convolved and projected as they are: there is nothing
    /// between the two, and the cut is [`By::Rows`].
    pub(crate) planes: bool,
    pub(crate) input: *const f32,
    pub(crate) input_view: View,
    pub(crate) output: *mut f32,
    pub(crate) output_view: View,
    pub(crate) buffers: Buffers,
}

/// The memory between the stages, a task's own or that of all.
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    /// The expanded slab's ring, [`Tile::ring_elements`] long or, where all tasks share it,
    /// as long for all vectors; or the hidden slab, [`Tile::hidden_elements`]. No block has both.
    pub(crate) expanded: *mut f32,
    /// The depthwise output, [`Tile::band_elements`] or, where all tasks share it, as
    /// long for all vectors.
    pub(crate) band: *mut f32,
    /// Turned pixels, [`Tile::turned_elements`] long.
    pub(crate) turned: *mut f32,
    /// For each vector of depthwise channels [`SUMS`](excite::SUMS) of sums, the first of
    /// which becomes the mean; behind them the gate, in whole vectors, and what is
    /// between its stages.
    pub(crate) pooled: *mut f32,
}

/// Input rows with channels last: the image, or the ring of those that were turned.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) pixel: usize,
    /// How many there are before the first place is used again.
    pub(crate) ring: usize,
}

impl Rows {
    pub(crate) fn at(&self, row: usize) -> *const f32 {
        self.start.wrapping_add(row % self.ring * self.row)
    }

    /// Whether rows follow each other `row` apart.
    pub(crate) fn unbroken(&self, rows: RangeInclusive<usize>) -> bool {
        rows.start() / self.ring == rows.end() / self.ring
    }

    /// How many of the rows `rows`, from the first on, follow each other as pixels do.
    fn together(&self, rows: &Range<usize>, width: usize) -> usize {
        if self.row == width * self.pixel {
            rows.len().min(self.ring - rows.start % self.ring)
        } else {
            rows.len().min(1)
        }
    }
}

/// What is turned on the way in and out, if anything.
#[derive(Clone, Copy)]
pub(crate) struct Turned<'a> {
    pub(crate) stem: Option<&'a Placed>,
    /// The channels of input and output where these are planar.
    pub(crate) c_in: Option<usize>,
    pub(crate) c_out: Option<usize>,
}

impl Tile {
    /// f32 of the expanded slab's ring.
    pub(crate) fn ring_elements(&self, window: &Placed, lanes: usize) -> usize {
        self.vectors * self.ring * window.reach(1, self.columns) * lanes
    }

    /// f32 of the depthwise output's band.
    pub(crate) fn band_elements(&self, lanes: usize) -> usize {
        self.vectors * self.band * self.columns * lanes
    }

    /// f32 of the hidden slab.
    pub(crate) fn hidden_elements(&self, lanes: usize) -> usize {
        self.hidden * self.rows * self.columns * lanes
    }

    /// f32 of the gate's buffer, for `channels` depthwise channels and `squeezed` between
    /// its stages.
    pub(crate) fn pooled_elements(channels: usize, squeezed: usize, lanes: usize) -> usize {
        let [channels, squeezed] = [channels, squeezed].map(|n| n.next_multiple_of(lanes));
        (excite::SUMS + 1) * channels + squeezed
    }

    /// f32 of the turned pixels: the ring of input rows, then the band of output rows.
    pub(crate) fn turned_elements(&self, window: &Placed, turned: &Turned<'_>) -> usize {
        let [rows, columns] = [window.reach(0, self.band), window.reach(1, self.columns)];
        let [rows, columns] = match turned.stem {
            None => [rows, columns],
            Some(stem) => [stem.reach(0, rows), stem.reach(1, columns)],
        };
        turned.c_in.map_or(0, |c_in| rows * columns * c_in)
            + turned.c_out.map_or(0, |c_out| self.rows * self.columns * c_out)
    }
}

impl Block<'_> {
    fn vectors<S: Lanes>(&self) -> usize {
        self.depthwise.channels.div_ceil(S::LANES)
    }

    /// From one vector of the band to the next.
    fn band_plane<S: Lanes>(&self) -> usize {
        self.tile.band * self.window.output.width * S::LANES
    }

    /// Where the ring has a vector of a slab.
    fn ring_at<S: Lanes>(&self, slab: &Range<usize>, vector: usize) -> *mut f32 {
        let first = if self.cut.has_whole_ring() { 0 } else { slab.start };
        self.buffers.expanded.wrapping_add((vector - first) * self.ring_plane::<S>())
    }

    /// From one vector of the ring to the next.
    fn ring_plane<S: Lanes>(&self) -> usize {
        self.tile.ring * self.window.input.width * S::LANES
    }

    /// Where the band has an output row that is taken as the first of some.
    fn band_row<S: Lanes>(&self, row: usize) -> usize {
        if self.cut.has_whole_band() { row * self.window.output.width * S::LANES } else { 0 }
    }

    /// Where the band has a vector of a slab at an output row that is taken as the first
    /// of some.
    fn band_at<S: Lanes>(&self, slab: &Range<usize>, vector: usize, row: usize) -> *mut f32 {
        let first = if self.cut.has_whole_band() { 0 } else { slab.start };
        let vector = (vector - first) * self.band_plane::<S>();
        self.buffers.band.wrapping_add(vector + self.band_row::<S>(row))
    }

    /// The block at one image of the batch, without input columns that no output reads:
    /// the buffers have no place for them.
    fn image(&self, image: usize) -> Self {
        let image = Self {
            input: self.input.wrapping_add(self.input_view.at(image, 0, 0)),
            output: self.output.wrapping_add(self.output_view.at(image, 0, 0)),
            ..*self
        };
        image.strip(0..self.window.output.width)
    }

    /// The block on some output columns of an image.
    fn strip(&self, columns: Range<usize>) -> Self {
        let (window, first) = self.window.strip(columns.clone());
        let (stem, first) = match self.stem {
            None => (None, first),
            Some(stem) => {
                let (stem, first) = stem.strip(first..first + window.input.width);
                (Some(stem), first)
            }
        };
        Self {
            window,
            stem,
            residual: self.residual.map(|source| match source {
                Source::Input(_) => Source::Input(columns.start - first),
                Source::Depthwise => source,
            }),
            input: self.input.wrapping_add(self.input_view.at(0, 0, first)),
            output: self.output.wrapping_add(self.output_view.at(0, 0, columns.start)),
            ..*self
        }
    }

    /// The rows that are to be expanded for some output rows, when those before are;
    /// keeps account of it.
    fn new_rows(&self, rows: &Range<usize>, done_to: &mut usize) -> Range<usize> {
        let needed = self.window.input_rows(rows.clone());
        let new = needed.start.max(*done_to)..needed.end.max(*done_to);
        *done_to = new.end;
        new
    }

    /// The rows that are to be turned for some output rows, of which `new` are expanded.
    fn rows_to_turn(&self, rows: &Range<usize>, new: &Range<usize>) -> Range<usize> {
        if self.cut.has_whole_ring() {
            // All are expanded, but some are added.
            return match self.residual {
                Some(Source::Input(_)) => rows.clone(),
                _ => 0..0,
            };
        }
        if self.stem.is_some() { self.image_rows(rows.clone()) } else { new.clone() }
    }

    /// The rows of the image that some output rows are made of.
    fn image_rows(&self, rows: Range<usize>) -> Range<usize> {
        self.rows_to_expand(self.window.input_rows(rows))
    }

    /// The rows of the image that some rows of the depthwise input are made of.
    fn rows_to_expand(&self, rows: Range<usize>) -> Range<usize> {
        self.stem.map_or(rows.clone(), |stem| stem.input_rows(rows))
    }

    /// The window over the image.
    fn first_window(&self) -> &Placed {
        self.stem.as_ref().unwrap_or(&self.window)
    }

    /// The input's rows, channels last.
    fn input_rows(&self) -> Rows {
        if self.input_view.is_planar() {
            let pixel = self.c_in;
            let row = self.first_window().input.width * pixel;
            let ring = self.window.reach(0, self.tile.band);
            let ring = self.stem.map_or(ring, |stem| stem.reach(0, ring));
            Rows { start: self.buffers.turned, row, pixel, ring }
        } else {
            let View { row, pixel, .. } = self.input_view;
            Rows { start: self.input, row, pixel, ring: self.first_window().input.height }
        }
    }

    fn c_out(&self) -> usize {
        self.project.map_or(self.depthwise.channels, |project| project.packed.c_out)
    }

    /// The stage that expands a slab; none where all are expanded before.
    fn expansion(&self) -> Option<&Stage<'_>> {
        self.expand.as_ref().filter(|_| !self.cut.has_whole_ring())
    }

    /// A task's vectors where channels are cut: whole expand panels.
    fn own_vectors<S: Lanes>(&self, task: usize) -> Range<usize> {
        let tasks = self.cut.tasks;
        match self.expand {
            None => share(self.vectors::<S>(), tasks, task),
            Some(expand) => {
                let panels = &expand.packed.panels;
                let own = &panels[share(panels.len(), tasks, task)];
                let start = own.first().map_or(0, |panel| panel.first);
                start..own.last().map_or(start, |panel| panel.first + panel.vectors)
            }
        }
    }

    /// The slab from vector `first` on: as many whole expand panels as fit a
    /// tile, which is at least as wide as any panel; or where all are expanded before, as
    /// many vectors.
    fn slab(&self, first: usize, vectors: usize) -> Range<usize> {
        let limit = (first + self.tile.vectors).min(vectors);
        let end = self.expansion().map_or(limit, |expand| panels_end(&expand.packed.panels, limit));
        debug_assert!(end > first, "a slab has vectors, or there would be no end of them");
        first..end
    }
}

/// The end of the last whole panel up to vector `limit`; the limit where none is.
fn panels_end(panels: &[Panel], limit: usize) -> usize {
    let ends = panels.iter().map(|panel| panel.first + panel.vectors);
    ends.take_while(|&end| end <= limit).last().unwrap_or(limit)
}
