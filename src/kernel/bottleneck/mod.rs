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

mod stages;

use core::ops::Range;

use self::stages::At;
use crate::activation::Activation;
use crate::kernel::parts::{Axis, Parts, by_image, share};
use crate::layout::View;
use crate::pack::{PackedDepthwise, PackedPointwise, Tail};
use crate::shape::Placed;
use crate::simd::{Kernel, Lanes};

/// The size of a tile and of the two buffers that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Output rows in a band.
    pub(crate) rows: usize,
    /// Output columns of a strip.
    pub(crate) columns: usize,
    /// Channel vectors in a slab.
    pub(crate) vectors: usize,
    /// Rows of the ring that holds the expanded slab.
    pub(crate) ring: usize,
    /// Whether the depthwise convolution follows each expanded panel at once
    /// (fused) or waits for the whole slab (unfused).
    pub(crate) interleaved: bool,
}

/// How a block is cut into tasks. Where one task reads what others have written,
/// the cut has phases: all tasks of one end before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Output rows of the whole batch. A task has a tile of its own, and the
    /// expanded rows that two of them need are computed by both.
    Rows,
    /// Image by image: channels, up to the depthwise output, then the projection
    /// along this axis.
    Channels(Axis),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) by: By,
    pub(crate) tasks: usize,
}

impl Cut {
    /// How often the tasks are run.
    pub(crate) fn phases(&self, batch: usize) -> usize {
        if self.by == By::Rows { 1 } else { 2 * batch }
    }

    /// How many rings, bands and buffers for turned pixels there are: one for each
    /// task or one for all.
    pub(crate) fn buffers(&self) -> [usize; 3] {
        match self.by {
            By::Rows => [self.tasks; 3],
            By::Channels(_) => [self.tasks, 1, 1],
        }
    }
}

/// A pointwise stage, its panels in order.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) packed: &'a PackedPointwise,
    pub(crate) activation: Activation,
}

/// A block ready to run on some images.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) window: Placed,
    pub(crate) expand: Option<Stage<'a>>,
    /// Where the expansion is a stem: its window over the image. The other window
    /// is over what it gives.
    pub(crate) stem: Option<Placed>,
    pub(crate) depthwise: &'a PackedDepthwise,
    pub(crate) depthwise_activation: Activation,
    /// None: the depthwise convolution writes the output, there is no band.
    pub(crate) project: Option<Stage<'a>>,
    /// Whether the input is added to the output, and which of its columns to the
    /// first one.
    pub(crate) residual: Option<usize>,
    pub(crate) tile: Tile,
    pub(crate) cut: Cut,
    pub(crate) input: *const f32,
    pub(crate) input_view: View,
    pub(crate) output: *mut f32,
    pub(crate) output_view: View,
    /// The task's ring, [`Tile::ring_elements`] long, and its band,
    /// [`Tile::band_elements`] or, where all tasks share it, as long for all vectors.
    pub(crate) expanded: *mut f32,
    pub(crate) band: *mut f32,
    /// Turned pixels, [`Tile::turned_elements`] long.
    pub(crate) turned: *mut f32,
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
        self.vectors * self.rows * self.columns * lanes
    }

    /// f32 of the turned pixels: the ring of input rows, then the band of output rows.
    pub(crate) fn turned_elements(&self, window: &Placed, turned: &Turned<'_>) -> usize {
        let [rows, columns] = [self.ring, window.reach(1, self.columns)];
        let [rows, columns] = match turned.stem {
            None => [rows, columns],
            Some(stem) => [stem.reach(0, rows), stem.reach(1, columns)],
        };
        turned.c_in.map_or(0, |c_in| rows * columns * c_in)
            + turned.c_out.map_or(0, |c_out| self.rows * self.columns * c_out)
    }
}

/// One task of a block. The pointers of the [`Block`] are valid for its shapes,
/// and what the task writes is its alone.
pub(crate) struct Run<'a> {
    block: Block<'a>,
    phase: usize,
    task: usize,
}

impl<'a> Run<'a> {
    /// # Safety
    /// Input and output are valid for the window's shapes with the stages'
    /// channels, the buffers as their fields say, one for each task or for all as
    /// [`Cut::buffers`] has it; neither output nor buffers overlap anything or are
    /// touched by anybody else; no two runs of a phase have the same task, and
    /// those of the phases before have ended; the stages are packed for the
    /// instruction set that this is dispatched to.
    pub(crate) unsafe fn new(block: Block<'a>, phase: usize, task: usize) -> Self {
        Self { block, phase, task }
    }
}

impl Kernel for Run<'_> {
    type Output = ();

    fn run<S: Lanes>(self, s: S) {
        let Self { block, phase, task } = self;
        let (image, first) = (phase / 2, phase.is_multiple_of(2));
        // SAFETY: `Run::new` has vouched for the task's part of every image.
        unsafe {
            match block.cut.by {
                By::Rows => block.rows(s, task),
                By::Channels(_) if first => block.channels(s, image, task),
                By::Channels(axis) => block.pixels(s, image, task, axis),
            }
        }
    }
}

/// The tasks. Safety is as for [`Run::new`].
impl Block<'_> {
    /// Output rows from the input on.
    unsafe fn rows<S: Lanes>(&self, s: S, task: usize) {
        let output = self.window.output;
        let rows = share(output.batch * output.height, self.cut.tasks, task);
        for (image, rows) in by_image(rows, output.height) {
            let image = self.image(image);
            for left in (0..output.width).step_by(self.tile.columns) {
                let strip = image.strip(left..(left + self.tile.columns).min(output.width));
                let mut first = 0;
                while first < self.vectors::<S>() {
                    let slab = self.slab(first, self.vectors::<S>());
                    first = slab.end;
                    // SAFETY: the image's rows are the task's.
                    unsafe { strip.run_slab(s, slab, rows.clone()) };
                }
            }
        }
    }

    /// Channels from the input to the band of all channels and rows.
    unsafe fn channels<S: Lanes>(&self, s: S, image: usize, task: usize) {
        let window = self.window;
        let rows = 0..window.output.height;
        let needed = window.input_rows(rows.clone());
        let image = self.image(image);
        // The band from the slab on; its ring begins anew with each slab.
        let at = |slab: &Range<usize>| Self {
            band: self
                .band
                .wrapping_add(slab.start * self.tile.rows * window.output.width * S::LANES),
            ..image
        };
        // SAFETY: the vectors are the task's.
        unsafe {
            let Some(expand) = &self.expand else {
                let slab = share(self.vectors::<S>(), self.cut.tasks, task);
                if !slab.is_empty() {
                    at(&slab).depthwise_band(s, &slab, slab.clone(), rows);
                }
                return;
            };
            let panels = &expand.packed.panels;
            for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
                let slab = panel.first..panel.first + panel.vectors;
                image.expand_panel(s, expand, &slab, panel, needed.clone());
                at(&slab).depthwise_band(s, &slab, slab.clone(), rows.clone());
            }
        }
    }

    /// The projection of the whole band: some pixels, or some output channels.
    unsafe fn pixels<S: Lanes>(&self, s: S, image: usize, task: usize, axis: Axis) {
        let output = self.window.output;
        let Some(stage) = &self.project else { return };
        let panels = &stage.packed.panels;
        let parts = Parts { axis, tasks: self.cut.tasks };
        let [pixels, part] = parts.ranges(task, [output.height * output.width, panels.len()]);
        let slab = 0..self.vectors::<S>();
        let image = self.image(image);
        let at = At {
            band: self.band.wrapping_add(pixels.start * S::LANES),
            output: image.output.wrapping_add(pixels.start * self.output_view.pixel),
            output_pixel: self.output_view.pixel,
            residual: image.input.wrapping_add(pixels.start * self.input_view.pixel),
            residual_pixel: self.input_view.pixel,
        };
        // SAFETY: the band is complete; pixels and channels are the task's, and rows
        // follow each other as pixels do, or there would be no such cut.
        unsafe { image.project(s, stage, &at, &slab, pixels.len(), &panels[part]) };
    }
}

impl Block<'_> {
    fn vectors<S: Lanes>(&self) -> usize {
        self.depthwise.channels.div_ceil(S::LANES)
    }

    /// The block at one image of the batch.
    fn image(&self, image: usize) -> Self {
        Self {
            input: self.input.wrapping_add(self.input_view.at(image, 0, 0)),
            output: self.output.wrapping_add(self.output_view.at(image, 0, 0)),
            ..*self
        }
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
            residual: self.residual.map(|_| columns.start - first),
            input: self.input.wrapping_add(self.input_view.at(0, 0, first)),
            output: self.output.wrapping_add(self.output_view.at(0, 0, columns.start)),
            ..*self
        }
    }

    /// The window over the image.
    fn first_window(&self) -> &Placed {
        self.stem.as_ref().unwrap_or(&self.window)
    }

    /// The input's rows, channels last.
    fn input_rows(&self) -> Rows {
        if self.input_view.is_planar() {
            let pixel = self.c_in();
            let row = self.first_window().input.width * pixel;
            let ring = self.stem.map_or(self.tile.ring, |stem| stem.reach(0, self.tile.ring));
            Rows { start: self.turned, row, pixel, ring }
        } else {
            let View { row, pixel, .. } = self.input_view;
            Rows { start: self.input, row, pixel, ring: self.first_window().input.height }
        }
    }

    fn c_in(&self) -> usize {
        let taps = self.stem.map_or(1, |stem| stem.kernel[0] * stem.kernel[1]);
        self.expand.map_or(self.depthwise.channels, |expand| expand.packed.c_in / taps)
    }

    fn c_out(&self) -> usize {
        self.project.map_or(self.depthwise.channels, |project| project.packed.c_out)
    }

    /// How the channels are packed.
    fn tail(&self) -> Tail {
        if self.project.is_some() { Tail::Zeros } else { Tail::Overlap }
    }

    /// The slab from vector `first` on: as many whole expand panels as fit a
    /// tile, which is at least as wide as any panel.
    fn slab(&self, first: usize, vectors: usize) -> Range<usize> {
        let limit = (first + self.tile.vectors).min(vectors);
        let end = self.expand.map_or(limit, |expand| {
            let ends = expand.packed.panels.iter().map(|p| p.first + p.vectors);
            ends.take_while(|&end| end <= limit).last().unwrap_or(limit)
        });
        first..end
    }

    /// All bands of one slab of some output rows.
    ///
    /// # Safety
    /// As for [`Run::new`], for an image's rows.
    unsafe fn run_slab<S: Lanes>(&self, s: S, slab: Range<usize>, all: Range<usize>) {
        // One band has all rows, so its turned pixels are there for all slabs.
        let once = all.len() <= self.tile.rows;
        let (first, last) = (slab.start == 0, slab.end == self.vectors::<S>());
        let mut expanded_to = 0;
        let mut top = all.start;
        while top < all.end {
            let rows = top..(top + self.tile.rows).min(all.end);
            let needed = self.window.input_rows(rows.clone());
            let new = needed.start.max(expanded_to)..needed.end.max(expanded_to);
            expanded_to = new.end;
            // SAFETY: rows and slab are within the block's.
            unsafe {
                if self.input_view.is_planar() && (first || !once) {
                    match &self.stem {
                        None => self.turn_input(s, new.clone()),
                        Some(stem) => self.turn_input(s, stem.input_rows(needed)),
                    }
                }
                match &self.expand {
                    None => self.depthwise_band(s, &slab, slab.clone(), rows.clone()),
                    Some(expand) => {
                        let panels = expand.packed.panels.iter();
                        let panels = panels.filter(|p| slab.contains(&p.first));
                        for panel in panels.clone() {
                            self.expand_panel(s, expand, &slab, panel, new.clone());
                            if self.tile.interleaved {
                                let vectors = panel.first..panel.first + panel.vectors;
                                self.depthwise_band(s, &slab, vectors, rows.clone());
                            }
                        }
                        if !self.tile.interleaved {
                            self.depthwise_band(s, &slab, slab.clone(), rows.clone());
                        }
                    }
                }
                if self.output_view.is_planar() {
                    let channels = match self.project {
                        None => self.lanes::<S>(&slab),
                        Some(_) => 0..self.c_out(),
                    };
                    if self.project.is_some() && !first && !once {
                        self.turn_output::<S, false>(s, rows.clone(), channels.clone());
                    }
                    self.project_rows(s, &slab, rows.clone());
                    if self.project.is_none() || last || !once {
                        self.turn_output::<S, true>(s, rows.clone(), channels);
                    }
                } else {
                    self.project_rows(s, &slab, rows.clone());
                }
            }
            top = rows.end;
        }
    }
}
