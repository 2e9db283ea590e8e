//! The block's schedule: expand, depthwise and project taken tile by tile.
//!
//! A tile is a band of output rows by a slab of expanded channels. The expanded
//! slab lives in a ring of rows, of which each is computed once and stays until
//! no later band reads it; the depthwise output lives in a band. Both are
//! `[channel vector][row][column][lane]`, so that the depthwise tile walks
//! memory straight on. When a slab is not all channels, the output holds the
//! partial sums from slab to slab.

use core::ops::Range;

use crate::activation::Activation;
use crate::kernel::parts::{Axis, Parts, by_image, share};
use crate::kernel::{depthwise, pointwise, stem};
use crate::pack::{PackedDepthwise, PackedPointwise, Panel, Tail};
use crate::shape::{Placed, Shape};
use crate::simd::{Kernel, Lanes};

/// The size of a tile and of the two buffers that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Output rows in a band.
    pub(crate) rows: usize,
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

    /// How many rings and bands there are: one for each task or one for all.
    pub(crate) fn buffers(&self) -> [usize; 2] {
        match self.by {
            By::Rows => [self.tasks, self.tasks],
            By::Channels(_) => [self.tasks, 1],
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
    pub(crate) window: &'a Placed,
    pub(crate) expand: Option<Stage<'a>>,
    /// Where the expansion is a stem: its window over the image. The other window
    /// is over what it gives.
    pub(crate) stem: Option<&'a Placed>,
    pub(crate) depthwise: &'a PackedDepthwise,
    pub(crate) depthwise_activation: Activation,
    /// None: the depthwise convolution writes the output, there is no band.
    pub(crate) project: Option<Stage<'a>>,
    pub(crate) residual: bool,
    pub(crate) tile: Tile,
    pub(crate) cut: Cut,
    /// NHWC images.
    pub(crate) input: *const f32,
    pub(crate) output: *mut f32,
    /// The task's ring, [`Tile::ring_elements`] long, and its band,
    /// [`Tile::band_elements`] or, where all tasks share it, as long for all vectors.
    pub(crate) expanded: *mut f32,
    pub(crate) band: *mut f32,
}

impl Tile {
    /// f32 of the expanded slab's ring.
    pub(crate) fn ring_elements(&self, window: &Placed, lanes: usize) -> usize {
        self.vectors * self.ring * window.input.width * lanes
    }

    /// f32 of the depthwise output's band.
    pub(crate) fn band_elements(&self, window: &Placed, lanes: usize) -> usize {
        self.vectors * self.rows * window.output.width * lanes
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
        let vectors = self.vectors::<S>();
        let rows = share(output.batch * output.height, self.cut.tasks, task);
        for (image, rows) in by_image(rows, output.height) {
            let mut first = 0;
            while first < vectors {
                let slab = self.slab(first, vectors);
                first = slab.end;
                // SAFETY: the image's rows are the task's.
                unsafe { self.run_slab(s, self.image(image), slab, rows.clone()) };
            }
        }
    }

    /// Channels from the input to the band of all channels and rows.
    unsafe fn channels<S: Lanes>(&self, s: S, image: usize, task: usize) {
        let window = self.window;
        let rows = 0..window.output.height;
        let needed = window.input_rows(rows.clone());
        let (x, y) = self.image(image);
        // The band from the slab on; its ring begins anew with each slab.
        let at = |slab: &Range<usize>| Self {
            band: self
                .band
                .wrapping_add(slab.start * self.tile.rows * window.output.width * S::LANES),
            ..*self
        };
        // SAFETY: the vectors are the task's.
        unsafe {
            let Some(expand) = &self.expand else {
                let slab = share(self.vectors::<S>(), self.cut.tasks, task);
                if !slab.is_empty() {
                    at(&slab).depthwise_band(s, (x, y), &slab, slab.clone(), rows);
                }
                return;
            };
            let panels = &expand.packed.panels;
            for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
                let slab = panel.first..panel.first + panel.vectors;
                self.expand_panel(s, expand, x, &slab, panel, needed.clone());
                at(&slab).depthwise_band(s, (x, y), &slab, slab.clone(), rows.clone());
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
        let band = self.band.wrapping_add(pixels.start * S::LANES);
        let slab = 0..self.vectors::<S>();
        // SAFETY: the band is complete; pixels and channels are the task's.
        unsafe { self.project(s, self.image(image), band, &slab, pixels, &panels[part]) };
    }
}

impl Block<'_> {
    fn vectors<S: Lanes>(&self) -> usize {
        self.depthwise.channels.div_ceil(S::LANES)
    }

    /// An image's input and output.
    fn image(&self, image: usize) -> (*const f32, *mut f32) {
        let pixels = |shape: Shape| image * shape.height * shape.width;
        let input = self.stem.unwrap_or(self.window).input;
        (
            self.input.wrapping_add(pixels(input) * self.c_in()),
            self.output.wrapping_add(pixels(self.window.output) * self.c_out()),
        )
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
    /// `x` and `y` are an image's input and output; else as for [`Run::new`].
    unsafe fn run_slab<S: Lanes>(
        &self,
        s: S,
        (x, y): (*const f32, *mut f32),
        slab: Range<usize>,
        all: Range<usize>,
    ) {
        let mut expanded_to = 0;
        let mut top = all.start;
        while top < all.end {
            let rows = top..(top + self.tile.rows).min(all.end);
            let needed = self.window.input_rows(rows.clone());
            let new = needed.start.max(expanded_to)..needed.end.max(expanded_to);
            expanded_to = new.end;
            // SAFETY: rows and slab are within the block's.
            unsafe {
                match &self.expand {
                    None => self.depthwise_band(s, (x, y), &slab, slab.clone(), rows.clone()),
                    Some(expand) => {
                        let panels = expand.packed.panels.iter();
                        let panels = panels.filter(|p| slab.contains(&p.first));
                        for panel in panels.clone() {
                            self.expand_panel(s, expand, x, &slab, panel, new.clone());
                            if self.tile.interleaved {
                                let vectors = panel.first..panel.first + panel.vectors;
                                self.depthwise_band(s, (x, y), &slab, vectors, rows.clone());
                            }
                        }
                        if !self.tile.interleaved {
                            self.depthwise_band(s, (x, y), &slab, slab.clone(), rows.clone());
                        }
                    }
                }
                self.project_rows(s, (x, y), &slab, rows.clone());
            }
            top = rows.end;
        }
    }

    /// Expands the input rows `new` into the ring, for one panel of channels.
    unsafe fn expand_panel<S: Lanes>(
        &self,
        s: S,
        stage: &Stage<'_>,
        x: *const f32,
        slab: &Range<usize>,
        panel: &Panel,
        new: Range<usize>,
    ) {
        let width = self.window.input.width;
        let plane = self.tile.ring * width * S::LANES;
        let c_in = stage.packed.c_in;
        let mut row = new.start;
        while row < new.end {
            // As many rows as lie together in the ring.
            let slot = row % self.tile.ring;
            let rows = match self.stem {
                None => (self.tile.ring - slot).min(new.end - row),
                Some(_) => 1,
            };
            // SAFETY: input rows below the image's height; ring rows below
            // tile.ring; the slab's vectors; whole vectors of packed weights.
            unsafe {
                let args = pointwise::Args {
                    a: x.wrapping_add(row * width * c_in),
                    a_row: c_in,
                    a_block: S::LANES,
                    k: c_in,
                    b: stage.packed.weights.as_ptr().add(panel.first * S::LANES * c_in),
                    ahead: panel.vectors * S::LANES * c_in,
                    c: self
                        .expanded
                        .add((panel.first - slab.start) * plane + slot * width * S::LANES),
                    c_row: S::LANES,
                    c_vector: plane,
                    last_lanes: S::LANES,
                    pixel_lanes: panel.pixel_lanes::<S>(),
                    start: pointwise::Start::Bias(
                        stage.packed.bias.as_ptr().add(panel.first * S::LANES),
                    ),
                    epilogue: Some(pointwise::Epilogue {
                        finish: stage.activation.finish(),
                        residual: core::ptr::null(),
                        residual_row: 0,
                    }),
                };
                match self.stem {
                    None => pointwise::panel(s, &args, panel.vectors, rows * width),
                    Some(window) => stem::row(s, window, self.c_in(), x, row, &args, panel.vectors),
                }
            }
            row += rows;
        }
    }

    /// Convolves the channel vectors `vectors` of the slab into the band, or into
    /// the output where no projection follows.
    unsafe fn depthwise_band<S: Lanes>(
        &self,
        s: S,
        (x, y): (*const f32, *mut f32),
        slab: &Range<usize>,
        vectors: Range<usize>,
        rows: Range<usize>,
    ) {
        let window = self.window;
        let channels = self.depthwise.channels;
        let width = window.input.width;
        let band_row = window.output.width * S::LANES;
        let plane = self.tile.ring * width * S::LANES;
        let first = vectors.start;
        // The last vector of an image's pixel overlaps or is narrow; ring and band
        // hold whole vectors.
        let [mut overlap, mut lanes] = [0, S::LANES];
        if vectors.end == channels.div_ceil(S::LANES) {
            overlap = self.tail().overlap(channels, S::LANES);
            if overlap == 0 {
                lanes = channels - (vectors.end - 1) * S::LANES;
            }
        }
        // SAFETY: the slab's vectors, in ring and band or in the image.
        unsafe {
            let mut args = depthwise::Args {
                window,
                input: self.expanded.wrapping_add((first - slab.start) * plane).cast_const(),
                input_row: width * S::LANES,
                input_column: S::LANES,
                input_vector: plane,
                ring: self.tile.ring,
                output: self.band.wrapping_add((first - slab.start) * self.tile.rows * band_row),
                output_row: band_row,
                output_column: S::LANES,
                output_vector: self.tile.rows * band_row,
                weights: self
                    .depthwise
                    .weights
                    .as_ptr()
                    .add(first * self.depthwise.taps * S::LANES),
                bias: self.depthwise.bias.as_ptr().add(first * S::LANES),
                vectors: vectors.len(),
                block: 2,
                input_overlap: 0,
                output_overlap: 0,
                input_lanes: S::LANES,
                output_lanes: S::LANES,
                index: depthwise::index(S::LANES, 1, 0),
                finish: self.depthwise_activation.finish(),
            };
            if self.expand.is_none() {
                args = depthwise::Args {
                    input: x.add(first * S::LANES),
                    input_row: width * channels,
                    input_column: channels,
                    input_vector: S::LANES,
                    input_overlap: overlap,
                    input_lanes: lanes,
                    index: depthwise::index(lanes, 1, 0),
                    ring: window.input.height,
                    block: vectors.len(),
                    ..args
                };
            }
            if self.project.is_none() {
                args = depthwise::Args {
                    output: y.add(rows.start * window.output.width * channels + first * S::LANES),
                    output_row: window.output.width * channels,
                    output_column: channels,
                    output_vector: S::LANES,
                    output_overlap: overlap,
                    output_lanes: lanes,
                    ..args
                };
            }
            depthwise::rows(s, &args, rows);
        }
    }

    /// [`project`](Self::project) for the band's rows and all output channels.
    unsafe fn project_rows<S: Lanes>(
        &self,
        s: S,
        image: (*const f32, *mut f32),
        slab: &Range<usize>,
        rows: Range<usize>,
    ) {
        let width = self.window.output.width;
        let pixels = rows.start * width..rows.end * width;
        let Some(stage) = &self.project else { return };
        // SAFETY: passed on.
        unsafe { self.project(s, image, self.band, slab, pixels, &stage.packed.panels) };
    }

    /// Adds the slab's share to some output pixels, of which `band` has the first;
    /// the last slab finishes them.
    unsafe fn project<S: Lanes>(
        &self,
        s: S,
        (x, y): (*const f32, *mut f32),
        band: *const f32,
        slab: &Range<usize>,
        pixels: Range<usize>,
        panels: &[Panel],
    ) {
        let Some(stage) = &self.project else { return };
        let packed = stage.packed;
        let (c_in, c_out) = (packed.c_in, packed.c_out);
        let channels = slab.start * S::LANES..(slab.end * S::LANES).min(c_in);
        let last = channels.end == c_in;
        for panel in panels {
            let first = panel.first * S::LANES;
            // SAFETY: the band's pixels and vectors; output pixels and channels
            // below the image's; with a residual, input and output are of one shape.
            unsafe {
                let args = pointwise::Args {
                    a: band,
                    a_row: S::LANES,
                    a_block: self.tile.rows * self.window.output.width * S::LANES,
                    k: channels.len(),
                    b: packed
                        .weights
                        .as_ptr()
                        .add(first * c_in + channels.start * panel.vectors * S::LANES),
                    ahead: panel.vectors * S::LANES * c_in,
                    c: y.add(pixels.start * c_out + first),
                    c_row: c_out,
                    c_vector: S::LANES,
                    last_lanes: (c_out - first).min(panel.vectors * S::LANES)
                        - (panel.vectors - 1) * S::LANES,
                    pixel_lanes: panel.pixel_lanes::<S>(),
                    start: if slab.start == 0 {
                        pointwise::Start::Bias(packed.bias.as_ptr().add(first))
                    } else {
                        pointwise::Start::Partial
                    },
                    epilogue: last.then(|| pointwise::Epilogue {
                        finish: stage.activation.finish(),
                        residual: if self.residual {
                            x.add(pixels.start * c_out + first)
                        } else {
                            core::ptr::null()
                        },
                        residual_row: c_out,
                    }),
                };
                pointwise::panel(s, &args, panel.vectors, pixels.len());
            }
        }
    }
}
