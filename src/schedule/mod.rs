//! How a block is cut into tiles, and why.

mod caches;
mod cost;

use alloc::format;
use alloc::string::String;

use crate::buffer::ALIGN;
use crate::kernel::bottleneck::{Tile, Turned};
use crate::layout::{Arrangement, Layout, Strides};
use crate::shape::Placed;
pub use caches::Caches;
pub(crate) use cost::Core;

/// How a block is scheduled. The result is the same bit for bit.
///
/// Squeeze-and-excite needs the mean of a whole image before anything is scaled: the depthwise
/// output of the image is kept meanwhile, or computed twice. It has no unfused schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// Whichever the planner expects to be faster.
    #[default]
    Auto,
    /// The expanded tensor exists only as a tile in the second-level cache. Before a gate the
    /// depthwise output is computed twice, unless a band of the image's whole rows does not fit
    /// there.
    Fused,
    /// As `Fused`, with a tile of the caller's choice: at least one output row
    /// and one channel, rounded to what the kernels take and cut to the block.
    Tiled {
        /// Output rows in a band.
        rows: usize,
        /// Expanded channels in a slab.
        channels: usize,
    },
    /// Stage after stage, the expanded tensor whole in scratch memory; as `Auto` with a gate.
    Unfused,
}

/// What a plan may be told besides the shape.
///
/// ```
/// use mbconv::{Caches, PlanOptions, Schedule};
///
/// let options = PlanOptions::new()
///     .schedule(Schedule::Fused)
///     .caches(Caches { l2: 1 << 20, ..Caches::detect() });
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    pub(crate) schedule: Schedule,
    pub(crate) caches: Caches,
    pub(crate) threads: usize,
    pub(crate) flush_denormals: bool,
    pub(crate) input: Arrangement,
    pub(crate) output: Arrangement,
}

impl PlanOptions {
    /// [`Schedule::Auto`] with the detected caches, for one thread, dense NHWC.
    pub fn new() -> Self {
        Self {
            schedule: Schedule::Auto,
            caches: Caches::detect(),
            threads: 1,
            flush_denormals: false,
            input: Arrangement::Dense(Layout::Nhwc),
            output: Arrangement::Dense(Layout::Nhwc),
        }
    }

    /// Sets the schedule of a block; single layers ignore it.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets the cache sizes to plan for.
    #[must_use]
    pub fn caches(mut self, caches: Caches) -> Self {
        self.caches = caches;
        self
    }

    /// Sets into how many tasks of equal work a plan is cut, as far as its shape
    /// allows: as many as threads are to run it through `run_with`, at least 1
    /// and at most 256. Each takes scratch memory of its own. The result is the
    /// same bit for bit.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the layout of input and output; [`Layout::Nhwc`] unless set. The result
    /// is the same bit for bit.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        self.input_layout(layout).output_layout(layout)
    }

    /// Sets the layout of the input, a dense tensor.
    #[must_use]
    pub fn input_layout(mut self, layout: Layout) -> Self {
        self.input = Arrangement::Dense(layout);
        self
    }

    /// Sets the layout of the output, a dense tensor, and of a residual that is
    /// given beside the input.
    #[must_use]
    pub fn output_layout(mut self, layout: Layout) -> Self {
        self.output = Arrangement::Dense(layout);
        self
    }

    /// Sets where the elements of the input lie, and with that its layout. The
    /// slice then holds at least the last element, counted from the first.
    #[must_use]
    pub fn input_strides(mut self, strides: Strides) -> Self {
        self.input = Arrangement::Strided(strides);
        self
    }

    /// As [`input_strides`](Self::input_strides), of the output and of a residual
    /// that is given beside the input.
    #[must_use]
    pub fn output_strides(mut self, strides: Strides) -> Self {
        self.output = Arrangement::Strided(strides);
        self
    }

    /// Sets whether runs count denormal numbers, which are below 1.2e-38 and slow
    /// on many CPUs, as zero: in what they read as well as in what they compute.
    /// Off unless set. The control register (MXCSR on x86-64, FPCR on aarch64) is
    /// changed on the thread of each task and restored when that ends; on other
    /// architectures nothing is changed. Rust promises nothing about arithmetic under these bits:
    /// `docs/safety.md` says what this rests on.
    #[must_use]
    pub fn flush_denormals(mut self, flush: bool) -> Self {
        self.flush_denormals = flush;
        self
    }
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A block's shape, as far as its schedule depends on it.
pub(crate) struct Problem<'a> {
    pub(crate) window: &'a Placed,
    /// Whether there is an expanded tensor besides the depthwise output.
    pub(crate) expand: bool,
    /// Whether the depthwise output is between two stages.
    pub(crate) project: bool,
    /// Channels that the expansion sums over, of the depthwise convolution, of the output.
    pub(crate) c_in: usize,
    pub(crate) channels: usize,
    pub(crate) c_out: usize,
    /// Channels between the depthwise convolution and the projection, 0 if none.
    pub(crate) hidden: usize,
    /// Vectors of the widest expand panel: no slab is narrower.
    pub(crate) panel: usize,
    pub(crate) core: Core,
    pub(crate) turned: Turned<'a>,
    /// Whether it goes from planes to planes, with nothing turned.
    pub(crate) planes: bool,
    /// Whether in both rows follow each other as pixels do, channels last.
    pub(crate) flat: bool,
}

/// What was decided.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) tile: Tile,
    pub(crate) fused: bool,
    pub(crate) why: String,
}

/// What fused must gain over an unfused block that fits L2: the estimate is no
/// better than this, and where both fit, fused has lost more than it has gained.
const MARGIN: f64 = 1.02;

impl Problem<'_> {
    pub(crate) fn decide(&self, options: &PlanOptions) -> Decision {
        let caches = &options.caches;
        // Three quarters of L2, of which scratch memory loses a little to alignment.
        let budget = (caches.l2 / 4 * 3).saturating_sub(3 * ALIGN);
        let whole = self.unfused();
        let tile = match options.schedule {
            Schedule::Tiled { rows, channels } => {
                let vectors = channels.max(1).div_ceil(self.core.lanes);
                Tile { columns: self.columns(budget), ..self.tile(rows.max(1), vectors) }
            }
            _ => self.cheapest(caches, budget),
        };
        let cycles = |tile| self.cost(tile, caches).cycles();
        let (fused, unfused) = (cycles(&tile), cycles(&whole));
        let choice = match options.schedule {
            Schedule::Unfused => false,
            Schedule::Fused | Schedule::Tiled { .. } => true,
            Schedule::Auto => self.bytes(&whole) > budget || fused * MARGIN < unfused,
        };
        let asked = if options.schedule == Schedule::Auto { "" } else { "as asked, " };
        let [fused, unfused] = [fused, unfused].map(|cycles| cycles / 1e3);
        if choice {
            let why = format!("{asked}estimated {fused:.0} kcycles, unfused {unfused:.0}");
            Decision { tile, fused: true, why }
        } else {
            let why = format!("{asked}estimated {unfused:.0} kcycles, fused {fused:.0}");
            Decision { tile: whole, fused: false, why }
        }
    }

    /// Bytes of the tile's ring and band.
    pub(crate) fn bytes(&self, tile: &Tile) -> usize {
        let lanes = self.core.lanes;
        let ring = if self.expand { tile.ring_elements(self.window, lanes) } else { 0 };
        let band = if self.project { tile.band_elements(lanes) } else { 0 };
        let turned = tile.turned_elements(self.window, &self.turned);
        (ring + band + tile.hidden_elements(lanes) + turned) * size_of::<f32>()
    }

    /// Channel vectors of the depthwise convolution.
    pub(crate) fn vectors(&self) -> usize {
        self.channels.div_ceil(self.core.lanes)
    }

    /// Vectors that are cut into slabs: of the hidden channels, or the depthwise ones.
    fn slab_vectors(&self) -> usize {
        if self.hidden > 0 { self.hidden.div_ceil(self.core.lanes) } else { self.vectors() }
    }

    /// The tile with slabs of so many vectors.
    fn with_slab(&self, tile: Tile, vectors: usize) -> Tile {
        if self.hidden > 0 {
            Tile { vectors: self.vectors(), hidden: vectors, ..tile }
        } else {
            Tile { vectors, hidden: 0, ..tile }
        }
    }

    fn unfused(&self) -> Tile {
        let tile = Tile {
            rows: self.window.output.height,
            band: self.window.output.height,
            columns: self.window.output.width,
            ring: self.window.input.height,
            vectors: 0,
            hidden: 0,
        };
        self.with_slab(tile, self.slab_vectors())
    }

    /// The fused tile of these rows and vectors, cut to the block.
    fn tile(&self, rows: usize, vectors: usize) -> Tile {
        let rows = rows.min(self.window.output.height);
        let vectors = vectors.max(self.panel).min(self.slab_vectors());
        let ring = self.window.reach(0, rows);
        let tile = Tile { rows, band: rows, ring, ..self.unfused() };
        self.with_slab(tile, vectors)
    }

    /// Output columns of a strip: all, unless an image is so wide that no tile fits
    /// which has the two rows of a depthwise tile.
    fn columns(&self, budget: usize) -> usize {
        let width = self.window.output.width;
        let fits = |&columns: &usize| self.bytes(&Tile { columns, ..self.tile(2, 1) }) <= budget;
        if fits(&width) { width } else { parts(width, width).find(fits).unwrap_or(1) }
    }

    /// The cheapest of the fused tiles that take at most `budget` bytes; the
    /// smallest of all where none does.
    fn cheapest(&self, caches: &Caches, budget: usize) -> Tile {
        let (height, columns) = (self.window.output.height, self.columns(budget));
        let panels = self.slab_vectors().div_ceil(self.core.panel);
        // Bytes by rows of a slab of one vector, at least and then exactly.
        let row = columns * self.core.lanes * size_of::<f32>();
        let tallest = budget / row;
        let tile = |rows, vectors| Tile { columns, ..self.tile(rows, vectors) };
        // Depthwise tiles take rows in pairs.
        let heights = parts(height, tallest).flat_map(|rows| [rows, rows.next_multiple_of(2)]);
        let tiles = heights.flat_map(|rows| {
            let bytes = |vectors| self.bytes(&self.with_slab(tile(rows, 1), vectors));
            let (fixed, with_one) = (bytes(0), bytes(1));
            // Without a stage before and after there is nothing to keep.
            let vectors = budget.saturating_sub(fixed).checked_div(with_one - fixed);
            let vectors = vectors.unwrap_or(self.slab_vectors());
            parts(panels, vectors.div_ceil(self.core.panel))
                .map(move |panels| tile(rows, panels * self.core.panel))
        });
        tiles
            .filter(|tile| self.bytes(tile) <= budget)
            .map(|tile| (self.cost(&tile, caches).cycles(), tile))
            .min_by(|(a, _), (b, _)| a.total_cmp(b))
            .map_or_else(|| tile(1, 1), |(_, tile)| tile)
    }
}

/// The sizes that cut `total` into equal parts, but for the last one: each once,
/// the largest that is not above `most` first. Some sixty are more than are worth
/// a look.
pub(crate) fn parts(total: usize, most: usize) -> impl Iterator<Item = usize> {
    let size = move |parts: usize| total.div_ceil(parts);
    let first = (most > 0).then(|| size(total.div_ceil(most)));
    core::iter::successors(first, move |&last| {
        (last > 1).then(|| size(total.div_ceil(last) + 1).min(last - 1))
    })
    .take(64)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::isa::Isa;
    use crate::shape::{Padding, Shape, Window};

    /// The blocks of a few kinds, on every instruction set.
    fn problems(mut test: impl FnMut(&Problem<'_>)) {
        for (side, [c_in, channels, c_out], stride, kernel) in [
            (112, [16, 96, 24], 2, 3),
            (56, [24, 144, 40], 2, 5),
            (28, [32, 192, 32], 1, 3),
            (15, [112, 672, 112], 1, 5),
            (7, [160, 960, 320], 1, 3),
            (1, [3, 20, 3], 1, 3),
            (300, [1, 1, 1], 3, 1),
        ] {
            let window = Window {
                kernel: [kernel; 2],
                stride: [stride; 2],
                dilation: [1; 2],
                padding: Padding::SameUpper,
            };
            let window = &window.place(Shape::new(1, side, side)).expect("a fitting window");
            for (isa, expand) in Isa::available().flat_map(|isa| [(isa, true), (isa, false)]) {
                let core = Core::new(isa, window);
                let c_in = if expand { c_in } else { channels };
                let panel = core.panel;
                let (turned, flat) = (Turned { stem: None, c_in: None, c_out: None }, true);
                for project in [true, false] {
                    let c_out = if project { c_out } else { channels };
                    // A ConvNeXt block has all that is wide behind the window.
                    let kinds: &[usize] = if expand || !project { &[0] } else { &[0, 4] };
                    for hidden in kinds.iter().map(|t| t * channels) {
                        test(&Problem {
                            window,
                            expand,
                            project,
                            c_in,
                            channels,
                            hidden,
                            c_out,
                            panel,
                            core,
                            turned,
                            planes: false,
                            flat,
                        });
                    }
                }
            }
        }
    }

    #[test]
    fn parts_are_the_equal_cuts() {
        for (total, most) in [(1usize, 1), (7, 7), (14, 9), (56, 56), (112, 30), (5, 0)] {
            let mut cuts: Vec<usize> = (1..=total).map(|n| total.div_ceil(n)).collect();
            cuts.retain(|&size| size <= most);
            cuts.dedup();
            assert_eq!(parts(total, most).collect::<Vec<_>>(), cuts, "{total} {most}");
        }
        assert!(parts(usize::MAX, usize::MAX).all(|size| size > 0));
    }

    /// By the model's own account: a larger cache never makes a tile dearer, and
    /// what is chosen for it is at least as cheap as what was before.
    #[test]
    fn larger_caches_are_never_worse() {
        let sizes = [1, 16 << 10, 100_000, 256 << 10, 1 << 20, 3 << 20, 64 << 20];
        problems(|problem| {
            let cost = |tile: &Tile, caches: &Caches| problem.cost(tile, caches).cycles();
            let (mut last, mut tiles) = (f64::INFINITY, Vec::new());
            for l2 in sizes {
                let caches = Caches { l1: 32 << 10, l2, l3: 2 << 20 };
                let tile = problem.cheapest(&caches, l2 / 4 * 3);
                let now = cost(&tile, &caches);
                assert!(now.is_finite() && now > 0.0 && now <= last, "{l2}: {now} after {last}");
                for larger in [Caches { l1: 64 << 10, ..caches }, Caches { l3: 4 << 20, ..caches }]
                {
                    assert!(cost(&tile, &larger) <= now);
                }
                // Strips are not held against it: they are for what does not fit.
                let whole = |tile: &&Tile| tile.columns == problem.window.output.width;
                tiles.push(tile);
                assert!(tiles.iter().filter(whole).all(|before| cost(before, &caches) >= now));
                last = if whole(&&tile) { now } else { f64::INFINITY };
            }
        });
    }

    /// The multiply-adds alone take as long as they must: the estimate is above,
    /// and not by much where the block is large.
    #[test]
    fn estimates_respect_the_peak() {
        problems(|problem| {
            let &Problem { window, expand, project, c_in, channels, hidden, c_out, core, .. } =
                problem;
            let [input, output] = [window.input, window.output].map(|s| s.height * s.width);
            let taps = window.kernel[0] * window.kernel[1];
            let expand = if expand { input * c_in } else { 0 };
            let summed = match hidden {
                0 if project => c_out * channels,
                0 => 0,
                hidden => hidden * (channels + c_out),
            };
            let sums = channels * (expand + output * taps) + output * summed;
            let peak = sums as f64 / (2 * core.lanes) as f64;
            let cost = problem.cost(&problem.unfused(), &Caches::default());
            assert!(cost.arithmetic > peak, "{cost:?} {peak}");
            let whole_vectors = project && channels % 32 == 0 && c_out % 32 == 0;
            assert!(!whole_vectors || cost.arithmetic < 1.25 * peak, "{cost:?} {peak}");
        });
    }

    /// A part of an image costs less than all of it, but about its share at least.
    #[test]
    fn halos_cost() {
        problems(|problem| {
            let (window, caches) = (problem.window, Caches::default());
            let rows = window.output.height / 2;
            // Hidden channels are behind the window: there is no halo of them.
            if rows >= 2 && problem.hidden == 0 {
                let input = Shape { height: problem.window.reach(0, rows), ..window.input };
                let output = Shape { height: rows, ..window.output };
                let half = Problem { window: &Placed { input, output, ..*window }, ..*problem };
                let [whole, half] =
                    [problem, &half].map(|p| p.cost(&problem.tile(2, 2), &caches).arithmetic);
                let share = rows as f64 / window.output.height as f64 * whole;
                assert!((0.95 * share..whole).contains(&half), "{half} of {whole}");
            }
        });
    }
}
