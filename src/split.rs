//! Into which tasks work is cut, and why.
//!
//! The tasks of a cut are about equal, so the largest one is what it costs,
//! together with what is computed twice, fetched from other cores, and waited for.

use core::ops::Range;

use alloc::format;

use crate::error::{Error, Result};
use crate::executor::MOST_TASKS;
use crate::kernel::bottleneck::{By, Cut, Tile};
use crate::kernel::parts::{Axis, Parts, share};
use crate::pack::Panel;
use crate::schedule::{Caches, Core, Decision, PlanOptions, Problem, Schedule, parts};
use crate::shape::{Placed, Shape};

// Costs are counted in multiply-adds of vectors, of which a core does about 8 in
// a nanosecond.
/// A vector that another core has written: between cores that share a cache, where it
/// takes 1.5 ns, and such as do not, 18 ns.
const TRANSFER: u64 = 36;
/// A vector of weights, which every task reads for itself.
const WEIGHTS: u64 = 4;
/// To hand out tasks once more and wait for all of them: half a microsecond.
const PHASE: u64 = 4000;

/// The number of tasks that the options ask for.
pub(crate) fn tasks(options: &PlanOptions) -> Result<usize> {
    match options.threads {
        0 => Err(Error::ZeroSize { what: "threads" }),
        threads => Ok(threads.min(MOST_TASKS)),
    }
}

/// A pointwise layer: its pixels, unless panels are cheaper.
pub(crate) fn pointwise([pixels, c_in]: [usize; 2], panels: &[Panel], tasks: usize) -> Parts {
    let total = [pixels, panels.len()];
    cheaper(total, tasks, |pixels, part| projection(pixels, c_in, &panels[part])).1
}

/// A depthwise layer: rows of the whole batch, unless channel vectors are cheaper.
pub(crate) fn depthwise(rows: usize, vectors: usize, tasks: usize) -> Parts {
    cheaper([rows, vectors], tasks, |rows, vectors| product([rows, vectors.len()])).1
}

/// The cut whose largest task costs least, and that cost; ties go to pixels.
fn cheaper(
    total: [usize; 2],
    tasks: usize,
    cost: impl Fn(usize, Range<usize>) -> u64,
) -> (u64, Parts) {
    let [pixels, channels] = [Axis::Pixels, Axis::Channels].map(|axis| {
        let parts = Parts { axis, tasks: tasks.min(total[axis as usize]) };
        let costs = (0..parts.tasks).map(|task| {
            let [pixels, channels] = parts.ranges(task, total);
            cost(pixels.len(), channels)
        });
        (costs.max().unwrap_or(0), parts)
    });
    if channels.0 < pixels.0 { channels } else { pixels }
}

/// Some pixels by some panels of a 1x1 convolution.
fn projection(pixels: usize, c_in: usize, panels: &[Panel]) -> u64 {
    let vectors: usize = panels.iter().map(|panel| panel.vectors).sum();
    product([pixels, c_in, vectors]) + WEIGHTS.saturating_mul(product([c_in, vectors]))
}

fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    // Clipped so that a few of them can be added.
    sizes.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64)).min(u64::MAX >> 10)
}

/// A block, as far as its cut depends on it.
pub(crate) struct Work<'a> {
    pub(crate) problem: Problem<'a>,
    /// Panels of the expansion; none where there is none.
    pub(crate) expand: &'a [Panel],
    pub(crate) project: &'a [Panel],
    /// f32 of the channels' means and the gate made of them, 0 if there is none.
    pub(crate) pooled: usize,
}

impl Work<'_> {
    /// How to cut the block, and how to schedule the parts.
    pub(crate) fn cut(&self, options: &PlanOptions, tasks: usize) -> (Cut, Decision) {
        let Placed { output, .. } = *self.problem.window;
        let units = if self.problem.expand { self.expand.len() } else { self.vectors() };
        if self.pooled > 0 {
            let tasks = tasks.min(units.max(output.height));
            let asked = match options.schedule {
                Schedule::Tiled { .. } => *options,
                _ => options.schedule(Schedule::Fused),
            };
            let tile = self.problem.decide(&asked).tile;
            // Sums go along whole rows.
            let kept = tile.columns < output.width
                || options.schedule != Schedule::Fused && self.problem.keeps(&options.caches);
            let (tile, why) = match kept {
                true => (self.pooled_tile(tasks, options), "is kept for the gate"),
                false => (tile, "is computed again after the gate"),
            };
            let kib = self.problem.depthwise_bytes() >> 10;
            let why = format!("the depthwise output, {kib} KiB, {why}");
            return (Cut { by: By::Pooled { kept }, tasks }, Decision { tile, fused: true, why });
        }
        let axis = self.projection(tasks).1.axis;
        let rows = Cut { by: By::Rows, tasks: tasks.min(output.batch * output.height) };
        let expanded = Cut { by: By::Expanded, tasks: tasks.min(output.height) };
        let channels = Cut { by: By::Channels(axis), tasks: tasks.min(units) };
        let expanded = self.problem.expand.then_some(expanded);
        let shared = expanded
            .into_iter()
            .chain([channels])
            .filter(|cut| cut.tasks > 1)
            .map(|cut| match cut.by {
                By::Expanded => (cut, self.expanded_tile(&cut, options)),
                _ => (cut, self.channels_tile(cut.tasks, options)),
            })
            .filter(|(cut, tile)| self.allows(cut, tile, options))
            .map(|(cut, tile)| (self.cost(&cut), cut, tile))
            .min_by_key(|&(cost, ..)| cost);
        match shared {
            Some((cost, cut, tile)) if cost < self.cost(&rows) => {
                let kib = self.bytes_each(&cut, &tile) >> 10;
                let (fused, what) = match cut.by {
                    By::Expanded => (false, "the expanded rows have"),
                    _ => (self.problem.expand, "the tile has"),
                };
                (cut, Decision { tile, fused, why: format!("{what} {kib} KiB in each L2") })
            }
            _ => (rows, self.part(&rows, |part| part.decide(options))),
        }
    }

    /// Bytes of one buffer of each kind: ring or hidden slab, band, turned pixels,
    /// means.
    pub(crate) fn buffers(&self, cut: &Cut, tile: &Tile) -> [usize; 4] {
        let Problem { window, expand, project, turned, core: Core { lanes, .. }, .. } =
            self.problem;
        let [ring, band] = cut.tile_elements(tile, window, self.vectors(), lanes);
        let [ring, band] = [if expand { ring } else { 0 }, if project { band } else { 0 }];
        let (ring, turned) =
            (ring + tile.hidden_elements(lanes), tile.turned_elements(window, &turned));
        [ring, band, turned, self.pooled].map(|n| n * size_of::<f32>())
    }

    /// Whether a cut of which tasks share a buffer goes with the schedule asked for and
    /// leaves half of each core's L2 free.
    fn allows(&self, cut: &Cut, tile: &Tile, options: &PlanOptions) -> bool {
        let problem = &self.problem;
        let (possible, schedule) = match cut.by {
            // There are no strips of what is whole.
            By::Expanded => (tile.columns == problem.window.output.width, Schedule::Unfused),
            // Without projection, channels are not cut: the last vectors overlap in the
            // output; nor with hidden channels, which are made of all.
            _ => (problem.project && problem.hidden == 0 && problem.flat, Schedule::Fused),
        };
        possible
            && [Schedule::Auto, schedule].contains(&options.schedule)
            && self.bytes_each(cut, tile) <= options.caches.l2 / 2
    }

    /// A task's buffers and its share of what is for all.
    fn bytes_each(&self, cut: &Cut, tile: &Tile) -> usize {
        let (bytes, counts) = (self.buffers(cut, tile), cut.buffers());
        let shares =
            counts.iter().zip(bytes).map(|(&count, bytes)| bytes.saturating_mul(count) / cut.tasks);
        shares.fold(0, usize::saturating_add)
    }

    /// The tile of a task that finds all rows expanded: that of a block without expansion, in
    /// what its share of them leaves.
    fn expanded_tile(&self, cut: &Cut, options: &PlanOptions) -> Tile {
        let ring = self.problem.window.input.height;
        let [share, ..] = self.buffers(cut, &Tile { ring, ..self.tile() });
        let left = (options.caches.l2 / 2).saturating_sub(share / cut.tasks);
        // A tile takes three quarters.
        let caches = Caches { l2: left / 3 * 4, ..options.caches };
        let options = options.schedule(Schedule::Fused).caches(caches);
        let tile = self
            .part(cut, |part| Problem { expand: false, panel: 1, ..*part }.decide(&options).tile);
        Tile { ring, ..tile }
    }

    /// All rows, a panel at a time.
    fn tile(&self) -> Tile {
        let Placed { input, output, .. } = *self.problem.window;
        Tile {
            rows: output.height,
            band: output.height,
            columns: output.width,
            vectors: self.problem.panel.min(self.vectors()),
            ring: input.height,
            hidden: 0,
        }
    }

    /// The tile of a task that is cut by channels: all rows, by as many panels of its share
    /// as leave the ring in an eighth of L2, or one.
    fn channels_tile(&self, tasks: usize, options: &PlanOptions) -> Tile {
        let Problem { window, panel, core: Core { lanes, .. }, .. } = self.problem;
        let (all, one) = (self.vectors(), self.tile());
        if !self.problem.expand {
            return Tile { vectors: all, ..one };
        }
        let panels = all.div_ceil(tasks).div_ceil(panel);
        let mut tiles =
            parts(panels, panels).map(|n| Tile { vectors: (n * panel).min(all), ..one });
        let fits = |tile: &Tile| {
            tile.ring_elements(window, lanes) * size_of::<f32>() <= options.caches.l2 / 8
        };
        tiles.find(fits).unwrap_or(one)
    }

    /// The tile of a task whose whole depthwise output is kept: as many rows as leave the
    /// ring in a quarter of L2.
    fn pooled_tile(&self, tasks: usize, options: &PlanOptions) -> Tile {
        let whole = self.channels_tile(tasks, options);
        let window = self.problem.window;
        let of_rows = |rows| Tile { rows, ring: window.reach(0, rows), ..whole };
        match (options.schedule, self.problem.hidden) {
            (Schedule::Tiled { rows, .. }, 0) => of_rows(rows.clamp(1, whole.rows)),
            (_, 0) => {
                let fits = |rows: &usize| {
                    let ring = of_rows(*rows).ring_elements(window, self.problem.core.lanes);
                    !self.problem.expand || ring * size_of::<f32>() <= options.caches.l2 / 4
                };
                of_rows(parts(whole.rows, whole.rows).find(fits).unwrap_or(1))
            }
            _ => {
                let Tile { rows, hidden, .. } = self.problem.decide(options).tile;
                Tile { hidden, ..of_rows(rows) }
            }
        }
    }

    /// The problem of the largest of the tasks that rows are cut into.
    fn part<R>(&self, cut: &Cut, solve: impl FnOnce(&Problem<'_>) -> R) -> R {
        let problem = &self.problem;
        let Placed { input, output, kernel, stride, dilation, .. } = *problem.window;
        let rows = (output.batch * output.height).div_ceil(cut.tasks).min(output.height);
        let extent = (kernel[0] - 1) * dilation[0] + 1;
        let needed = ((rows - 1) * stride[0] + extent).min(input.height);
        let window = Placed {
            input: Shape { height: needed, ..input },
            output: Shape { height: rows, ..output },
            ..*problem.window
        };
        solve(&Problem { window: &window, ..*problem })
    }

    fn vectors(&self) -> usize {
        self.problem.vectors()
    }

    /// How the projection is cut where it is a phase of its own, and its cost.
    fn projection(&self, tasks: usize) -> (u64, Parts) {
        let Shape { height, width, .. } = self.problem.window.output;
        let total = [height * width, self.project.len()];
        cheaper(total, tasks, |pixels, part| {
            projection(pixels, self.problem.channels, &self.project[part])
        })
    }

    /// What the largest task costs.
    fn cost(&self, cut: &Cut) -> u64 {
        let Placed { input, output, kernel, .. } = *self.problem.window;
        let tasks = cut.tasks;
        let each = |total: usize| total.div_ceil(tasks);
        let expand =
            |rows: usize, panels| projection(rows * input.width, self.problem.c_in, panels);
        let depthwise = |rows: usize, vectors: usize| {
            product([rows, output.width, kernel[0] * kernel[1], vectors])
        };
        let finish = |rows: usize| {
            let pixels = rows * output.width;
            depthwise(rows, self.vectors())
                + projection(pixels, self.problem.channels, self.project)
        };
        let transfer = |pixels: usize| TRANSFER * product([pixels, self.vectors()]);
        match cut.by {
            By::Rows => {
                let rows = each(output.batch * output.height);
                let (images, rows) = (rows / output.height, rows % output.height);
                let whole = expand(input.height, self.expand) + finish(output.height);
                let part = match rows {
                    0 => 0,
                    _ => expand(self.needed(rows), self.expand) + finish(rows),
                };
                whole.saturating_mul(images as u64).saturating_add(part).saturating_add(PHASE)
            }
            By::Expanded => {
                let own = each(input.height);
                let fetched = self.needed(each(output.height)).saturating_sub(own);
                let image = expand(own, self.expand)
                    + finish(each(output.height))
                    + transfer(fetched * input.width)
                    + 2 * PHASE;
                image.saturating_mul(output.batch as u64)
            }
            // Not weighed against others.
            By::Pooled { .. } => 0,
            By::Channels(axis) => {
                let pixels = output.height * output.width;
                let parts = (0..tasks).map(|task| {
                    let panels = &self.expand[share(self.expand.len(), tasks, task)];
                    let vectors = match self.expand {
                        [] => share(self.vectors(), tasks, task).len(),
                        _ => panels.iter().map(|panel| panel.vectors).sum(),
                    };
                    expand(input.height, panels) + depthwise(output.height, vectors)
                });
                let fetched = if axis == Axis::Pixels { each(pixels) } else { pixels };
                let image = parts.max().unwrap_or(0)
                    + self.projection(tasks).0
                    + transfer(fetched - fetched / tasks)
                    + 2 * PHASE;
                image.saturating_mul(output.batch as u64)
            }
        }
    }

    /// The input rows that `rows` output rows need, away from the borders if there
    /// are tasks that are.
    fn needed(&self, rows: usize) -> usize {
        let window = self.problem.window;
        let height = window.output.height;
        let parts = [0..rows, rows.min(height)..(2 * rows).min(height)];
        let needed = parts.map(|rows| match rows.is_empty() {
            true => 0,
            false => window.input_rows(rows).len(),
        });
        needed[0].max(needed[1])
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::kernel::bottleneck::Turned;
    use crate::shape::{Padding, Window};

    fn panels(channels: usize) -> Vec<Panel> {
        let vectors = channels.div_ceil(16);
        (0..vectors)
            .step_by(2)
            .map(|first| Panel { first, vectors: 2.min(vectors - first), halved: false })
            .collect()
    }

    /// A 3x3 block, padded, on images of `[batch, side]`, on a core with 1 MiB of L2.
    fn cut(schedule: Schedule, [batch, side]: [usize; 2], c: [usize; 3], tasks: usize) -> Cut {
        let window = Window {
            kernel: [3; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: Padding::uniform(1),
        };
        let window = window.place(Shape::new(batch, side, side)).expect("it fits");
        let [expand, project] = [panels(c[1]), panels(c[2])];
        let problem = Problem {
            window: &window,
            expand: true,
            c_in: c[0],
            project: true,
            channels: c[1],
            hidden: 0,
            c_out: c[2],
            panel: 2,
            core: Core {
                lanes: 16,
                panel: 2,
                pointwise: [14, 12, 9, 0],
                depthwise: [2, 7],
                along_rows: true,
            },
            turned: Turned { stem: None, c_in: None, c_out: None },
            planes: false,
            flat: true,
        };
        let caches = Caches { l1: 48 << 10, l2: 1 << 20, ..Caches::default() };
        let options = PlanOptions::new().caches(caches).schedule(schedule);
        Work { problem, expand: &expand, project: &project, pooled: 0 }.cut(&options, tasks).0
    }

    #[test]
    fn halos_are_weighed_against_waiting() {
        let auto = |size, c, tasks| cut(Schedule::Auto, size, c, tasks);
        // Large maps: the rows computed twice are few.
        assert_eq!(auto([1, 56], [24, 144, 24], 2), Cut { by: By::Rows, tasks: 2 });
        // Smaller ones: one row of 8 would be, so that it is expanded once.
        assert_eq!(auto([1, 14], [64, 384, 64], 2), Cut { by: By::Expanded, tasks: 2 });
        // Where there is little to expand, that is not worth a phase.
        assert_eq!(auto([1, 14], [16, 96, 16], 2), Cut { by: By::Rows, tasks: 2 });
        // Small ones: 4 rows and 3 are no halves.
        let Cut { by, tasks } = auto([1, 7], [160, 960, 320], 2);
        assert!(matches!(by, By::Channels(_)) && tasks == 2, "{by:?}");
        // Whole images have none.
        assert_eq!(auto([2, 7], [160, 960, 320], 2), Cut { by: By::Rows, tasks: 2 });
        // What is asked for comes first.
        assert_eq!(cut(Schedule::Unfused, [1, 7], [160, 960, 320], 2).by, By::Expanded);
        assert_eq!(cut(Schedule::Fused, [1, 14], [64, 384, 64], 2).by, By::Rows);
        let tiled = Schedule::Tiled { rows: 1, channels: 1 };
        assert_eq!(cut(tiled, [1, 7], [160, 960, 320], 16), Cut { by: By::Rows, tasks: 7 });
    }

    #[test]
    fn one_task_is_one_phase() {
        for side in [7, 56] {
            assert_eq!(cut(Schedule::Auto, [3, side], [24, 144, 24], 1).phases(3), 1);
        }
    }

    #[test]
    fn layers_are_cut_where_it_comes_out_even() {
        let [even, odd] = [960, 160].map(panels);
        // 25 and 24 pixels, or 15 panels each with half of the weights.
        assert_eq!(pointwise([49, 160], &even, 2).axis, Axis::Channels);
        // 3 panels and 2.
        assert_eq!(pointwise([49, 960], &odd, 2).axis, Axis::Pixels);
        assert_eq!(pointwise([3136, 24], &panels(144), 2).axis, Axis::Pixels);
        assert_eq!(pointwise([1, 960], &even, 4), Parts { axis: Axis::Channels, tasks: 4 });
        assert_eq!(depthwise(7, 60, 2).axis, Axis::Channels);
        assert_eq!(depthwise(56, 9, 2).axis, Axis::Pixels);
        assert_eq!(depthwise(1, 1, 8).tasks, 1);
    }

    #[test]
    fn nothing_overflows() {
        let huge = usize::MAX / 2;
        assert_eq!(depthwise(huge, huge, MOST_TASKS).tasks, MOST_TASKS);
        assert_eq!(pointwise([huge, huge], &panels(64), MOST_TASKS).tasks, MOST_TASKS);
    }
}
