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
use crate::kernel::{depthwise, pointwise};
use crate::pack::{PackedDepthwise, PackedPointwise};
use crate::shape::Placed;
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

/// A pointwise stage, its panels in order.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) packed: &'a PackedPointwise,
    pub(crate) activation: Activation,
}

/// A block ready to run on some images.
pub(crate) struct Block<'a> {
    pub(crate) window: &'a Placed,
    pub(crate) expand: Option<Stage<'a>>,
    pub(crate) depthwise: &'a PackedDepthwise,
    pub(crate) depthwise_activation: Activation,
    pub(crate) project: Stage<'a>,
    pub(crate) residual: bool,
    pub(crate) tile: Tile,
    /// NHWC images.
    pub(crate) input: *const f32,
    pub(crate) output: *mut f32,
    /// The ring and the band, [`Tile::ring_elements`] and
    /// [`Tile::band_elements`] long.
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

/// The pointers of a [`Block`] are valid for its shapes, the output and the two
/// buffers are its alone.
pub(crate) struct Run<'a>(Block<'a>);

impl<'a> Run<'a> {
    /// # Safety
    /// Input and output are valid for the window's shapes with the stages'
    /// channels, the buffers as their fields say; neither output nor buffers
    /// overlap anything or are touched by another thread; the stages are packed
    /// for the instruction set that this is dispatched to.
    pub(crate) unsafe fn new(block: Block<'a>) -> Self {
        Self(block)
    }
}

impl Kernel for Run<'_> {
    type Output = ();

    fn run<S: Lanes>(self, s: S) {
        let block = self.0;
        let (input, output) = (block.window.input, block.window.output);
        let c_in = block.c_in();
        let vectors = block.depthwise.channels.div_ceil(S::LANES);
        for image in 0..input.batch {
            // SAFETY: `Run::new` has vouched for every image.
            unsafe {
                let x = block.input.add(image * input.height * input.width * c_in);
                let c_out = block.project.packed.c_out;
                let y = block.output.add(image * output.height * output.width * c_out);
                let mut first = 0;
                while first < vectors {
                    let slab = block.slab(first, vectors);
                    block.run_slab(s, x, y, slab.clone());
                    first = slab.end;
                }
            }
        }
    }
}

impl Block<'_> {
    fn c_in(&self) -> usize {
        self.expand.map_or(self.depthwise.channels, |expand| expand.packed.c_in)
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

    /// All bands of one slab of one image.
    ///
    /// # Safety
    /// `x` and `y` are an image's input and output; else as for [`Run::new`].
    unsafe fn run_slab<S: Lanes>(&self, s: S, x: *const f32, y: *mut f32, slab: Range<usize>) {
        let window = self.window;
        let mut expanded_to = 0;
        let mut top = 0;
        while top < window.output.height {
            let rows = top..(top + self.tile.rows).min(window.output.height);
            let needed = window.input_rows(rows.clone());
            let new = needed.start.max(expanded_to)..needed.end.max(expanded_to);
            expanded_to = new.end;
            // SAFETY: rows and slab are within the block's.
            unsafe {
                match &self.expand {
                    None => self.depthwise_band(s, x, &slab, slab.clone(), rows.clone()),
                    Some(expand) => {
                        let panels = expand.packed.panels.iter();
                        let panels = panels.filter(|p| slab.contains(&p.first));
                        for panel in panels.clone() {
                            self.expand_panel(s, expand, x, &slab, panel, new.clone());
                            if self.tile.interleaved {
                                let vectors = panel.first..panel.first + panel.vectors;
                                self.depthwise_band(s, x, &slab, vectors, rows.clone());
                            }
                        }
                        if !self.tile.interleaved {
                            self.depthwise_band(s, x, &slab, slab.clone(), rows.clone());
                        }
                    }
                }
                self.project_band(s, x, y, &slab, rows.clone());
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
        panel: &crate::pack::Panel,
        new: Range<usize>,
    ) {
        let width = self.window.input.width;
        let plane = self.tile.ring * width * S::LANES;
        let c_in = stage.packed.c_in;
        let mut row = new.start;
        while row < new.end {
            // As many rows as lie together in the ring.
            let slot = row % self.tile.ring;
            let rows = (self.tile.ring - slot).min(new.end - row);
            // SAFETY: input rows below the image's height; ring rows below
            // tile.ring; the slab's vectors; whole vectors of packed weights.
            unsafe {
                let args = pointwise::Args {
                    a: x.add(row * width * c_in),
                    a_row: c_in,
                    a_block: S::LANES,
                    k: c_in,
                    b: stage.packed.weights.as_ptr().add(panel.first * S::LANES * c_in),
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
                pointwise::panel(s, &args, panel.vectors, rows * width);
            }
            row += rows;
        }
    }

    /// Convolves the channel vectors `vectors` of the slab into the band.
    unsafe fn depthwise_band<S: Lanes>(
        &self,
        s: S,
        x: *const f32,
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
        // SAFETY: the slab's vectors, in ring and band or in the image.
        unsafe {
            let ring = depthwise::Args {
                window,
                input: self.expanded.wrapping_add((first - slab.start) * plane).cast_const(),
                input_row: width * S::LANES,
                input_column: S::LANES,
                input_vector: plane,
                ring: self.tile.ring,
                output: self.band.add((first - slab.start) * self.tile.rows * band_row),
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
                input_lanes: S::LANES,
                output_lanes: S::LANES,
                finish: self.depthwise_activation.finish(),
            };
            let args = match self.expand {
                Some(_) => ring,
                // Without expansion the input is the image itself, whose last
                // vector may be narrow.
                None => depthwise::Args {
                    input: x.add(first * S::LANES),
                    input_row: width * channels,
                    input_column: channels,
                    input_vector: S::LANES,
                    ring: window.input.height,
                    block: vectors.len(),
                    input_lanes: S::LANES.min(channels - (vectors.end - 1) * S::LANES),
                    ..ring
                },
            };
            depthwise::rows(s, &args, rows);
        }
    }

    /// Adds the slab's share to the output rows `rows`; the last slab finishes them.
    unsafe fn project_band<S: Lanes>(
        &self,
        s: S,
        x: *const f32,
        y: *mut f32,
        slab: &Range<usize>,
        rows: Range<usize>,
    ) {
        let window = self.window;
        let packed = self.project.packed;
        let (c_in, c_out) = (packed.c_in, packed.c_out);
        let width = window.output.width;
        let channels = slab.start * S::LANES..(slab.end * S::LANES).min(c_in);
        let last = channels.end == c_in;
        for panel in &packed.panels {
            let first = panel.first * S::LANES;
            // SAFETY: the band's rows and vectors; output pixels and channels
            // below the image's; with a residual, input and output are of one shape.
            unsafe {
                let args = pointwise::Args {
                    a: self.band,
                    a_row: S::LANES,
                    a_block: self.tile.rows * width * S::LANES,
                    k: channels.len(),
                    b: packed
                        .weights
                        .as_ptr()
                        .add(first * c_in + channels.start * panel.vectors * S::LANES),
                    c: y.add(rows.start * width * c_out + first),
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
                        finish: self.project.activation.finish(),
                        residual: if self.residual {
                            x.add(rows.start * width * c_out + first)
                        } else {
                            core::ptr::null()
                        },
                        residual_row: c_out,
                    }),
                };
                pointwise::panel(s, &args, panel.vectors, rows.len() * width);
            }
        }
    }
}
