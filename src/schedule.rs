//! How a block is cut into tiles, and why.

use alloc::format;
use alloc::string::String;

use crate::kernel::bottleneck::Tile;
use crate::shape::Placed;

/// The data caches of one core that a plan counts on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// First level.
    pub l1: usize,
    /// Second level: the fused schedule keeps its tile here.
    pub l2: usize,
}

impl Default for Caches {
    /// What most cores of the last ten years have at least: 32 KiB and 256 KiB.
    fn default() -> Self {
        Self { l1: 32 << 10, l2: 256 << 10 }
    }
}

impl Caches {
    /// The sizes that the operating system tells (Linux sysfs, with the `std`
    /// feature), else the default. Read once per process.
    pub fn detect() -> Self {
        #[cfg(feature = "std")]
        {
            static CACHES: std::sync::OnceLock<Caches> = std::sync::OnceLock::new();
            *CACHES.get_or_init(|| Self::read_sysfs().unwrap_or_default())
        }
        #[cfg(not(feature = "std"))]
        Self::default()
    }

    #[cfg(feature = "std")]
    fn read_sysfs() -> Option<Self> {
        let mut caches = Self { l1: 0, l2: 0 };
        for entry in std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()? {
            let path = entry.ok()?.path();
            let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size"))
            else {
                continue;
            };
            let kib: usize = size.trim().strip_suffix('K')?.parse().ok()?;
            match (level.trim(), kind.trim()) {
                ("1", "Data" | "Unified") => caches.l1 = kib << 10,
                ("2", "Data" | "Unified") => caches.l2 = kib << 10,
                _ => {}
            }
        }
        (caches.l1 > 0 && caches.l2 > 0).then_some(caches)
    }
}

/// How an inverted bottleneck is scheduled. The result is the same bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// Whichever the planner expects to be faster.
    #[default]
    Auto,
    /// The expanded tensor exists only as a tile in the second-level cache.
    Fused,
    /// As `Fused`, with a tile of the caller's choice: at least one output row
    /// and one channel, rounded to what the kernels take and cut to the block.
    Tiled {
        /// Output rows in a band.
        rows: usize,
        /// Expanded channels in a slab.
        channels: usize,
    },
    /// Stage after stage, the expanded tensor whole in scratch memory.
    Unfused,
}

/// What a plan may be told besides the shape.
///
/// ```
/// use mbconv::{Caches, PlanOptions, Schedule};
///
/// let options = PlanOptions::new()
///     .schedule(Schedule::Fused)
///     .caches(Caches { l1: 64 << 10, l2: 1 << 20 });
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    pub(crate) schedule: Schedule,
    pub(crate) caches: Caches,
    pub(crate) threads: usize,
    pub(crate) flush_denormals: bool,
}

impl PlanOptions {
    /// [`Schedule::Auto`] with the detected caches, for one thread.
    pub fn new() -> Self {
        Self {
            schedule: Schedule::Auto,
            caches: Caches::detect(),
            threads: 1,
            flush_denormals: false,
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

    /// Sets whether runs count denormal numbers, which are below 1.2e-38 and slow
    /// on many CPUs, as zero: in what they read as well as in what they compute.
    /// Off unless set. The control register (MXCSR on x86-64, FPCR on aarch64) is
    /// changed on the thread of each task and restored when that ends; on other
    /// architectures nothing is changed.
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
    /// Channels of the depthwise convolution.
    pub(crate) channels: usize,
    /// Lanes of a channel vector.
    pub(crate) lanes: usize,
    /// Vectors of the widest expand panel: no slab is narrower.
    pub(crate) panel: usize,
    /// Bytes of the block's weights.
    pub(crate) weights: usize,
    /// Bytes of one image's input and output.
    pub(crate) thin: [usize; 2],
}

/// What was decided.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) tile: Tile,
    pub(crate) fused: bool,
    pub(crate) why: String,
}

impl Problem<'_> {
    pub(crate) fn decide(&self, options: &PlanOptions) -> Decision {
        let l2 = options.caches.l2;
        let whole = self.unfused();
        let whole_bytes = self.bytes(&whole);
        let kib = |bytes: usize| bytes.div_ceil(1 << 10);
        match options.schedule {
            Schedule::Unfused => Decision {
                tile: whole,
                fused: false,
                why: format!("as asked; both tensors take {} KiB", kib(whole_bytes)),
            },
            Schedule::Fused => {
                Decision { tile: self.fused(l2), fused: true, why: String::from("as asked") }
            }
            Schedule::Tiled { rows, channels } => Decision {
                tile: self.tile(rows.max(1), channels.max(1).div_ceil(self.lanes)),
                fused: true,
                why: String::from("as asked"),
            },
            Schedule::Auto if whole_bytes <= l2 / 2 => Decision {
                tile: whole,
                fused: false,
                why: format!(
                    "expanded tensor and depthwise output, {} KiB, fit L2 ({} KiB)",
                    kib(whole_bytes),
                    kib(l2)
                ),
            },
            Schedule::Auto => Decision {
                tile: self.fused(l2),
                fused: true,
                why: format!("unfused, {} KiB would leave L2 ({} KiB)", kib(whole_bytes), kib(l2)),
            },
        }
    }

    /// Bytes of the tile's ring and band.
    pub(crate) fn bytes(&self, tile: &Tile) -> usize {
        let ring = if self.expand { tile.ring_elements(self.window, self.lanes) } else { 0 };
        let band = if self.project { tile.band_elements(self.window, self.lanes) } else { 0 };
        (ring + band) * size_of::<f32>()
    }

    fn unfused(&self) -> Tile {
        Tile {
            rows: self.window.output.height,
            vectors: self.channels.div_ceil(self.lanes),
            ring: self.window.input.height,
            interleaved: false,
        }
    }

    /// The fused tile of these rows and vectors, cut to the block.
    fn tile(&self, rows: usize, vectors: usize) -> Tile {
        let whole = self.unfused();
        let rows = rows.min(whole.rows);
        let extent = (self.window.kernel[0] - 1) * self.window.dilation[0] + 1;
        Tile {
            rows,
            vectors: vectors.max(self.panel).min(whole.vectors),
            ring: ((rows - 1) * self.window.stride[0] + extent).min(whole.ring),
            interleaved: true,
        }
    }

    /// The tile that fits half of L2, since input and weights want their share,
    /// and moves the fewest bytes: all weights pass once per band, the input once
    /// per slab, and the output, which holds the partial sums, is read and
    /// written again for each slab after the first.
    ///
    /// Large maps come out as bands of all channels (a line buffer), small ones as
    /// slabs of all rows. Ties go to taller bands. Depthwise tiles take rows in
    /// pairs.
    fn fused(&self, l2: usize) -> Tile {
        let whole = self.unfused();
        let [input, output] = self.thin;
        let heights = (1..=whole.rows).rev().filter(|&r| r == 1 || r % 2 == 0 || r == whole.rows);
        let candidates = heights.filter_map(|rows| {
            let bytes = self.bytes(&Tile { vectors: 1, ..self.tile(rows, 1) });
            let vectors = l2 / 2 / bytes.max(1);
            let slabs = whole.vectors.div_ceil(vectors.clamp(1, whole.vectors));
            let bands = whole.rows.div_ceil(rows);
            let tile = self.tile(rows, whole.vectors.div_ceil(slabs));
            let moved = (bands * self.weights)
                .saturating_add(slabs.saturating_mul(input))
                .saturating_add((2 * slabs - 1).saturating_mul(output));
            (tile.vectors <= vectors).then_some((moved, tile))
        });
        candidates.min_by_key(|&(moved, _)| moved).map_or_else(|| self.tile(1, 1), |(_, tile)| tile)
    }
}
