//! What each task of a block does, by the way that the block is cut.

use core::ops::Range;

use super::stages::At;
use super::{Block, By};
#[cfg(debug_assertions)]
use super::{Tile, Turned};
use crate::kernel::activate::Addend;
use crate::kernel::parts::{Axis, Parts, by_image, share};
#[cfg(debug_assertions)]
use crate::simd::Memory;
use crate::simd::{Kernel, Lanes};

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

    #[cfg(debug_assertions)]
    fn memory<S: Lanes>(&self) -> Memory {
        let Block { expand, depthwise, excite, hidden, project, tile, window, .. } = &self.block;
        let Block { input, input_view, output, output_view, buffers, planes, .. } = self.block;
        let turned = Turned {
            stem: self.block.stem.as_ref(),
            c_in: (input_view.is_planar() && !planes).then_some(self.block.c_in),
            c_out: (output_view.is_planar() && !planes).then(|| self.block.c_out()),
        };
        let all = self.block.vectors::<S>();
        let [ring, band] = self.block.cut.tile_elements(tile, window, all, S::LANES);
        let pooled = excite.map_or(0, |excite| {
            Tile::pooled_elements(depthwise.channels, excite.reduce.packed.c_out, S::LANES)
        });
        let norm = hidden.and_then(|hidden| hidden.norm);
        let stages = [*expand, hidden.map(|hidden| hidden.expand), *project]
            .into_iter()
            .chain(excite.iter().flat_map(|excite| [Some(excite.reduce), Some(excite.expand)]))
            .flatten();
        Memory::none()
            .reads(input, input_view.len)
            .slices(stages.flat_map(|stage| [&stage.packed.weights[..], &stage.packed.bias]))
            .slices([&depthwise.weights[..], &depthwise.bias])
            .slices(norm.iter().flat_map(|norm| [&norm.weight[..], &norm.bias]))
            .writes(output, output_view.len)
            .writes(buffers.expanded, expand.map_or(0, |_| ring) + tile.hidden_elements(S::LANES))
            .writes(buffers.band, project.map_or(0, |_| band))
            .writes(buffers.turned, tile.turned_elements(window, &turned))
            .writes(buffers.pooled, pooled)
    }

    fn run<S: Lanes>(self, s: S) {
        let Self { block, phase, task } = self;
        let phases = block.cut.phases_of_an_image();
        let (image, phase) = (phase / phases, phase % phases);
        // SAFETY: `Run::new` has vouched for the task's part of every image.
        unsafe {
            match (block.cut.by, phase) {
                (By::Rows, _) => block.rows(s, task),
                (By::Expanded, 0) => block.image(image).expanded(s, task),
                (By::Expanded, _) => block.image(image).rest(s, task),
                (_, 0) => block.image(image).channels(s, task),
                (By::Channels(axis), _) => block.image(image).pixels(s, task, axis),
                (By::Pooled { .. }, 1) => block.reduce(s, task),
                (By::Pooled { .. }, 2) => block.excite(s, task),
                (By::Pooled { .. }, _) => block.image(image).rest(s, task),
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
            // SAFETY: the image's rows are the task's.
            unsafe { self.image(image).bands(s, &rows) };
        }
    }

    /// Some output rows of an image from the input on.
    unsafe fn bands<S: Lanes>(&self, s: S, rows: &Range<usize>) {
        let width = self.window.output.width;
        for left in (0..width).step_by(self.tile.columns) {
            let strip = self.strip(left..(left + self.tile.columns).min(width));
            let mut first = 0;
            while first < self.vectors::<S>() {
                let slab = self.slab(first, self.vectors::<S>());
                first = slab.end;
                // SAFETY: passed on.
                unsafe { strip.run_slab(s, slab, rows.clone()) };
            }
        }
    }

    /// Rows of an image from the input to the depthwise input.
    unsafe fn expanded<S: Lanes>(&self, s: S, task: usize) {
        let Some(expand) = &self.expand else { return };
        let needed = self.window.input_rows(0..self.window.output.height);
        let own = share(needed.len(), self.cut.tasks, task);
        let own = needed.start + own.start..needed.start + own.end;
        let planar = self.input_view.is_planar();
        // As many as are turned at a time.
        let together = if planar { self.tile.rows } else { own.len().max(1) };
        let slab = 0..self.vectors::<S>();
        for top in own.clone().step_by(together) {
            let rows = top..(top + together).min(own.end);
            // SAFETY: the rows are the task's, and so are its turned pixels.
            unsafe {
                if planar {
                    self.turn_input(s, self.rows_to_expand(rows.clone()));
                }
                self.expand_slab(s, expand, &slab, rows);
            }
        }
    }

    /// Channels of an image from the input to the depthwise output and, where there is a
    /// gate, its sums.
    unsafe fn channels<S: Lanes>(&self, s: S, task: usize) {
        let height = self.window.output.height;
        let planar = self.input_view.is_planar();
        let whole = self.cut.has_whole_band();
        // SAFETY: the vectors are the task's, and so are its turned pixels.
        unsafe {
            if planar && whole {
                self.turn_input(s, self.image_rows(0..height));
            }
            let own = self.own_vectors::<S>(task);
            let mut first = own.start;
            while first < own.end {
                let slab = self.slab(first, own.end);
                first = slab.end;
                // The ring begins anew with each slab.
                let mut done_to = 0;
                for top in (0..height).step_by(self.tile.rows) {
                    let rows = top..(top + self.tile.rows).min(height);
                    let new = self.new_rows(&rows, &mut done_to);
                    if planar && !whole {
                        self.turn_input(s, self.rows_to_turn(&rows, &new));
                    }
                    if let Some(expand) = &self.expand {
                        self.expand_slab(s, expand, &slab, new);
                    }
                    self.depthwise_band(s, &slab, rows.clone());
                    self.pool(s, &slab, rows);
                }
            }
        }
    }

    /// The projection of an image's whole band: some pixels, or some output channels.
    unsafe fn pixels<S: Lanes>(&self, s: S, task: usize, axis: Axis) {
        let output = self.window.output;
        let Some(stage) = &self.project else { return };
        let panels = &stage.packed.panels;
        let parts = Parts { axis, tasks: self.cut.tasks };
        let [pixels, part] = parts.ranges(task, [output.height * output.width, panels.len()]);
        let slab = 0..self.vectors::<S>();
        let at = At {
            band: self.buffers.band.wrapping_add(pixels.start * S::LANES),
            plane: self.band_plane::<S>(),
            output: self.output.wrapping_add(pixels.start * self.output_view.pixel),
            output_pixel: self.output_view.pixel,
            residual: match self.residual {
                None => Addend::NONE,
                Some(_) => Addend {
                    start: self.input.wrapping_add(pixels.start * self.input_view.pixel),
                    row: self.input_view.pixel,
                    vector: S::LANES,
                },
            },
        };
        // SAFETY: the band is complete; pixels and channels are the task's, and rows
        // follow each other as pixels do, or there would be no such cut.
        unsafe { self.project(s, stage, &at, &slab, pixels.len(), &panels[part]) };
    }

    /// Output rows of an image, when its gate or what is expanded is known.
    unsafe fn rest<S: Lanes>(&self, s: S, task: usize) {
        let slab = 0..self.vectors::<S>();
        let all = share(self.window.output.height, self.cut.tasks, task);
        if !self.cut.has_whole_band() {
            // SAFETY: the rows are the task's; a ring that tasks share is complete.
            return unsafe { self.bands(s, &all) };
        }
        for top in all.clone().step_by(self.tile.rows) {
            let rows = top..(top + self.tile.rows).min(all.end);
            // SAFETY: the band is complete, and the rows are the task's.
            unsafe {
                self.finish_rows(s, &slab, rows.clone());
                if self.output_view.is_planar() {
                    self.turn_output::<S, true>(s, rows, 0..self.c_out());
                }
            }
        }
    }

    /// All bands of one slab of some output rows.
    ///
    /// # Safety
    /// As for [`Run::new`], for an image's rows.
    unsafe fn run_slab<S: Lanes>(&self, s: S, slab: Range<usize>, all: Range<usize>) {
        // One band has all rows, so its turned pixels are there for all slabs.
        let once = all.len() <= self.tile.rows;
        let (first, last) = (slab.start == 0, slab.end == self.vectors::<S>());
        let mut done_to = 0;
        let mut top = all.start;
        while top < all.end {
            let rows = top..(top + self.tile.rows).min(all.end);
            let new = self.new_rows(&rows, &mut done_to);
            // SAFETY: rows and slab are within the block's.
            unsafe {
                if let (true, Some(project)) = (self.planes, &self.project) {
                    self.planes(s, project, &slab, rows.clone());
                    top = rows.end;
                    continue;
                }
                if self.input_view.is_planar() && (first || !once) {
                    self.turn_input(s, self.rows_to_turn(&rows, &new));
                }
                match self.expansion() {
                    Some(expand) => self.expand_slab(s, expand, &slab, new),
                    None => self.fetch_input(s, new),
                }
                self.depthwise_band(s, &slab, rows.clone());
                self.scale(s, &slab, rows.clone());
                if self.output_view.is_planar() {
                    let channels = match self.project {
                        None => self.lanes::<S>(&slab),
                        Some(_) => 0..self.c_out(),
                    };
                    if self.project.is_some() && !first && !once {
                        self.turn_output::<S, false>(s, rows.clone(), channels.clone());
                    }
                    self.finish_rows(s, &slab, rows.clone());
                    if self.project.is_none() || last || !once {
                        self.turn_output::<S, true>(s, rows.clone(), channels);
                    }
                } else {
                    self.finish_rows(s, &slab, rows.clone());
                }
            }
            top = rows.end;
        }
    }
}
