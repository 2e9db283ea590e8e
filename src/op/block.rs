//! A block with its stages packed, and the plan that runs it.

use core::fmt;
use core::mem::MaybeUninit;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use crate::activation::Activation;
use crate::buffer::{ALIGN, Scratch, Shared};
use crate::error::{Error, Result};
use crate::executor::{Executor, Serial, for_each};
use crate::isa::Isa;
use crate::kernel::bottleneck::{
    Block, Buffers, By, Cut, Excite, Hidden, Run, Source, Stage, Tile, Turned,
};
use crate::layout::View;
use crate::pack::{PackPointwise, PackedDepthwise, PackedNorm, PackedPointwise, Panel, Tail};
use crate::params::{PointwiseParams, Residual, SqueezeExciteParams, check_residual};
use crate::schedule::{Core, Decision, PlanOptions, Problem, Schedule};
use crate::shape::{Placed, Shape, Window, operations};
use crate::split::{self, Work};

/// The stages of a block, packed for one instruction set.
pub(crate) struct Packed {
    pub(crate) isa: Isa,
    /// The expansion, or the stem over its patches.
    pub(crate) expand: Option<PackedStage>,
    pub(crate) stem: Option<Window>,
    pub(crate) c_in: usize,
    pub(crate) depthwise: PackedDepthwise,
    pub(crate) depthwise_activation: Activation,
    pub(crate) window: Window,
    /// The gate's two stages.
    pub(crate) excite: Option<[PackedStage; 2]>,
    pub(crate) norm: Option<PackedNorm>,
    /// The expansion where it follows the depthwise convolution.
    pub(crate) hidden: Option<PackedStage>,
    pub(crate) project: Option<PackedStage>,
    pub(crate) residual: Option<Residual>,
}

/// A pointwise stage, packed.
pub(crate) struct PackedStage {
    packed: PackedPointwise,
    activation: Activation,
}

impl PackedStage {
    pub(crate) fn new(isa: Isa, params: &PointwiseParams<'_>, tail: Tail) -> Self {
        let packed = isa.dispatch(PackPointwise(params, tail));
        Self { packed, activation: params.activation }
    }

    /// Of a gate.
    pub(crate) fn pair(isa: Isa, params: &SqueezeExciteParams<'_>) -> [Self; 2] {
        [&params.reduce, &params.expand].map(|stage| Self::new(isa, stage, Tail::Zeros))
    }

    fn lend(&self) -> Stage<'_> {
        Stage { packed: &self.packed, activation: self.activation }
    }
}

/// The panels of a stage; none where there is no stage.
fn panels(stage: Option<&PackedStage>) -> &[Panel] {
    stage.map_or(&[], |stage| &stage.packed.panels)
}

impl Packed {
    /// As [`InvertedBottleneck::plan_with`](crate::InvertedBottleneck::plan_with).
    pub(crate) fn plan(
        self: &Arc<Self>,
        shape: Shape,
        options: &PlanOptions,
    ) -> Result<BottleneckPlan> {
        let Self { isa, depthwise, c_in, .. } = &**self;
        let (lanes, c_out) = (isa.lanes(), self.c_out());
        let input = options.input.view("input", shape, *c_in)?;
        let (stem, window) = self.place(shape)?;
        let output = options.output.view("output", window.output, c_out)?;
        // All tensors, those between with channels rounded up, as the buffers hold them.
        let channels = depthwise.channels;
        let hidden = self.hidden.as_ref().map_or(0, |hidden| hidden.packed.c_out);
        let [padded, deep] = [channels, hidden].map(|n| n.next_multiple_of(lanes));
        let sizes = [
            shape.elements(*c_in)?,
            window.input.elements(padded)?,
            window.output.elements(padded)?,
            if hidden > 0 { window.output.elements(deep)? } else { 0 },
            window.output.elements(c_out)?,
        ];
        sizes
            .into_iter()
            .try_fold(0usize, |sum, n| sum.checked_add(n))
            .and_then(|n| n.checked_mul(size_of::<f32>()))
            .and_then(|n| n.checked_add(3 * ALIGN))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or(Error::Overflow { what: "scratch" })?;
        if self.residual == Some(Residual::Input) {
            check_residual((shape, *c_in), (window.output, c_out))?;
        }
        let expand = panels(self.expand.as_ref().or(self.hidden.as_ref()));
        let core = Core::new(*isa, &window);
        let between = self.expand.is_some() || self.excite.is_some() || self.hidden.is_some();
        let planar = [&input, &output].map(View::is_planar);
        let planes = planar == [true; 2] && self.project.is_some() && !between && core.along_rows;
        let turned = |side: usize, channels| (planar[side] && !planes).then_some(channels);
        let problem = Problem {
            window: &window,
            expand: self.expand.is_some(),
            c_in: self.expand.as_ref().map_or(*c_in, |expand| expand.packed.c_in),
            project: self.project.is_some(),
            channels,
            hidden,
            c_out,
            panel: expand.iter().map(|panel| panel.vectors).max().unwrap_or(1),
            core,
            turned: Turned { stem: stem.as_ref(), c_in: turned(0, *c_in), c_out: turned(1, c_out) },
            planes,
            flat: input.is_flat(shape.width) && output.is_flat(window.output.width),
        };
        let tasks = split::tasks(options)?;
        let expand = panels(self.expand.as_ref());
        let pooled = self
            .excite
            .as_ref()
            .map_or(0, |[reduce, _]| Tile::pooled_elements(channels, reduce.packed.c_out, lanes));
        let work = Work { problem, expand, project: panels(self.project.as_ref()), pooled };
        let (cut, Decision { tile, fused, why }) = work.cut(options, tasks);
        let buffers = work.buffers(&cut, &tile);
        let plan = BottleneckPlan {
            op: Arc::clone(self),
            stem,
            window,
            input,
            output,
            flops: self.flops(shape)?,
            tile,
            cut,
            planes,
            buffers,
            fused,
            why: why.into(),
            flush: options.flush_denormals,
        };
        // The whole tensors were checked above: each task may take as much.
        plan.pools()
            .iter()
            .try_fold(0usize, |sum, (n, bytes)| n.checked_mul(*bytes)?.checked_add(sum))
            .filter(|&bytes| bytes < isize::MAX as usize - ALIGN)
            .ok_or(Error::Overflow { what: "scratch" })?;
        Ok(plan)
    }

    /// As [`InvertedBottleneck::flops`](crate::InvertedBottleneck::flops).
    pub(crate) fn flops(&self, shape: Shape) -> Result<u64> {
        let (_, window) = self.place(shape)?;
        let [input, output] = [window.input, window.output].map(|shape| shape.elements(1));
        let (input, output) = (input?, output?);
        // Weights are in memory, so that these are small.
        let stage = |stage: &Option<PackedStage>| {
            stage.as_ref().map_or(0, |stage| stage.packed.c_in * stage.packed.c_out)
        };
        let depthwise = self.depthwise.taps * self.depthwise.channels;
        let [expand, hidden, project] = [&self.expand, &self.hidden, &self.project].map(stage);
        // The gate is of one pixel in each image.
        let gate =
            self.excite.as_ref().map_or(0, |[reduce, _]| reduce.packed.c_in * reduce.packed.c_out);
        let before = operations(&[input, expand])?;
        let after = operations(&[output, depthwise + hidden + project])?;
        let gate = operations(&[2, shape.batch, gate])?;
        let sum = before.checked_add(after).and_then(|sum| sum.checked_add(gate));
        sum.ok_or(Error::Overflow { what: "operations" })
    }

    /// Bytes of all weights and biases, without the padding of packing.
    pub(crate) fn weight_bytes(&self) -> usize {
        let pointwise = [&self.expand, &self.hidden, &self.project].into_iter().flatten();
        let pointwise = pointwise.chain(self.excite.iter().flatten());
        let pointwise: usize =
            pointwise.map(|stage| (stage.packed.c_in + 1) * stage.packed.c_out).sum();
        let norm = if self.norm.is_some() { 2 } else { 0 };
        let depthwise = (self.depthwise.taps + 1 + norm) * self.depthwise.channels;
        (pointwise + depthwise) * size_of::<f32>()
    }

    /// Writes it as an operation of this name.
    pub(crate) fn debug(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        f.debug_struct(name)
            .field("c_in", &self.c_in)
            .field("channels", &self.depthwise.channels)
            .field("c_out", &self.c_out())
            .field("window", &self.window)
            .field("isa", &self.isa)
            .finish_non_exhaustive()
    }

    fn c_out(&self) -> usize {
        self.project.as_ref().map_or(self.depthwise.channels, |project| project.packed.c_out)
    }

    /// Lays the stem's window, where there is one, over images of `shape`, and the
    /// depthwise window over what it gives.
    fn place(&self, shape: Shape) -> Result<(Option<Placed>, Placed)> {
        let stem = self.stem.map(|stem| stem.place(shape)).transpose()?;
        let window = self.window.place(stem.map_or(shape, |stem| stem.output))?;
        Ok((stem, window))
    }
}

/// An [`InvertedBottleneck`](crate::InvertedBottleneck) or a
/// [`ConvNextBlock`](crate::ConvNextBlock) for images of one shape, with its schedule.
#[derive(Clone)]
pub struct BottleneckPlan {
    op: Arc<Packed>,
    stem: Option<Placed>,
    window: Placed,
    input: View,
    output: View,
    flops: u64,
    tile: Tile,
    cut: Cut,
    /// Whether it goes from planes to planes, with nothing turned.
    planes: bool,
    /// Bytes of one buffer of each kind: ring or hidden slab, band, turned pixels,
    /// means and gate.
    buffers: [usize; 4],
    fused: bool,
    why: Arc<str>,
    flush: bool,
}

impl BottleneckPlan {
    /// f32 that the input of a run has; at least, where it is strided.
    pub fn input_len(&self) -> usize {
        self.input.len
    }

    /// f32 that the output of a run has; at least, where it is strided.
    pub fn output_len(&self) -> usize {
        self.output.len
    }

    /// Floating-point operations of a run: two per multiply-add, padded taps
    /// counted too, as is usual.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// The extent of the output.
    pub fn output_shape(&self) -> Shape {
        self.window.output
    }

    /// Into how many tasks a run is cut: more threads than that are of no use to it.
    pub fn tasks(&self) -> usize {
        self.cut.tasks
    }

    /// Whether the expanded tensor exists only as a tile.
    pub fn is_fused(&self) -> bool {
        self.fused
    }

    /// What was chosen: [`Schedule::Unfused`], or [`Schedule::Tiled`] with the
    /// tile of each task. A plan for one thread that is asked for it is the same, but that a gate
    /// may [keep](Schedule::Fused) what it computed twice.
    pub fn schedule(&self) -> Schedule {
        if self.fused {
            Schedule::Tiled { rows: self.tile.rows, channels: self.tile_channels() }
        } else {
            Schedule::Unfused
        }
    }

    /// Channels of a slab.
    fn tile_channels(&self) -> usize {
        let (vectors, channels) = match &self.op.hidden {
            Some(hidden) => (self.tile.hidden, hidden.packed.c_out),
            None => (self.tile.vectors, self.op.depthwise.channels),
        };
        (vectors * self.op.isa.lanes()).min(channels)
    }

    /// Bytes that the expanded tensor takes when it is whole; 0 for a block
    /// without expansion.
    pub fn expanded_bytes(&self) -> usize {
        let (shape, stage) = match &self.op.hidden {
            Some(hidden) => (self.window.output, Some(hidden)),
            None => (self.window.input, self.op.expand.as_ref()),
        };
        let channels = stage.map_or(0, |stage| stage.packed.c_out);
        shape.batch * shape.height * shape.width * channels * size_of::<f32>()
    }

    /// Bytes of the tiles that stand for it: expanded rows and depthwise output and,
    /// of planes, the pixels that are turned; of all tasks.
    pub fn tile_bytes(&self) -> usize {
        self.cut.buffers().iter().zip(self.buffers).map(|(n, bytes)| n * bytes).sum()
    }

    /// The schedule in words: what was chosen, what it and the other way should
    /// take by the planner's estimate, and in how many bytes.
    pub fn explain(&self) -> String {
        let Tile { rows, columns, ring, .. } = self.tile;
        let strips = match columns < self.window.output.width {
            true => format!(", strips of {columns} columns"),
            false => String::new(),
        };
        let kib = |bytes: usize| bytes.div_ceil(1 << 10);
        let channels = self.tile_channels();
        let (tile, expanded) = (kib(self.tile_bytes()), kib(self.expanded_bytes()));
        // With a gate, of what is kept for it, too.
        let bytes = match expanded > 0 && self.op.excite.is_none() {
            true => format!("{tile} KiB in place of {expanded} KiB expanded"),
            false => format!("{tile} KiB in all"),
        };
        let schedule = if self.fused {
            let over = match &self.op.hidden {
                Some(_) => String::new(),
                None => format!(" over a ring of {ring} rows"),
            };
            format!(
                "fused ({}): bands of {rows} rows x {channels} channels{over}{strips}, {bytes}",
                self.why
            )
        } else {
            format!("unfused ({}): {expanded} KiB expanded, {tile} KiB in all", self.why)
        };
        match (self.cut.tasks, self.cut.by) {
            (1, _) => schedule,
            (tasks, By::Rows) => format!("{schedule}; {tasks} tasks by rows"),
            (tasks, By::Expanded) => {
                format!("{schedule}; {tasks} tasks by rows, all expanded first")
            }
            (tasks, By::Channels(_)) => format!("{schedule}; {tasks} tasks by channels"),
            (tasks, By::Pooled { .. }) => {
                format!("{schedule}; {tasks} tasks by channels, then rows")
            }
        }
    }

    /// How many buffers there are of each kind, and the bytes from one to the next.
    ///
    /// The projection reads a band in strides, which prefetchers carry on beyond
    /// its end by as much again: what lies there had better not be what another
    /// task writes (it took up to 1.7 times as long). Where the task has no ring to
    /// lie there, nothing does.
    fn pools(&self) -> [(usize, usize); 4] {
        let counts = self.cut.buffers();
        let [rings, bands, ..] = counts;
        core::array::from_fn(|kind| {
            let room = if kind == 1 && bands > rings { 2 } else { 1 };
            (counts[kind], self.buffers[kind].next_multiple_of(ALIGN).saturating_mul(room))
        })
    }

    /// Where a task's buffers begin in the scratch memory: its own ones together, the
    /// band ahead of the ring, those that all tasks share behind everything.
    fn offsets(&self, task: usize) -> [usize; 4] {
        let (pools, tasks) = (self.pools(), self.cut.tasks);
        let own = |&kind: &usize| pools[kind].0 == tasks;
        let kinds = [2, 1, 0, 3].into_iter();
        let each: usize = kinds.clone().filter(own).map(|kind| pools[kind].1).sum();
        let mut offsets = [0; 4];
        let [mut next, mut next_of_all] = [task * each, tasks * each];
        for kind in kinds {
            let next = if own(&kind) { &mut next } else { &mut next_of_all };
            offsets[kind] = *next;
            *next += pools[kind].1;
        }
        offsets
    }

    /// Bytes of scratch memory that [`run`](Self::run) asks for: for each task a
    /// tile, or its part of one for all.
    pub fn scratch_bytes(&self) -> usize {
        let bytes: usize = self.pools().iter().map(|(n, bytes)| n * bytes).sum();
        bytes + (ALIGN - 1)
    }

    /// Scratch memory of the right size.
    pub fn scratch(&self) -> Scratch {
        Scratch::new(self.scratch_bytes())
    }

    /// Runs the block on `input`, `[batch][height][width][c_in]`, into `output`,
    /// `[batch][height][width][c_out]` with the [output's
    /// extent](Self::output_shape), or as the options have it. `scratch` has at least
    /// [`scratch_bytes`](Self::scratch_bytes) bytes, at any alignment; what it
    /// holds before does not matter. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] when a slice does not fit the shape.
    pub fn run(
        &self,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> Result<()> {
        self.run_with(&Serial, input, output, scratch)
    }

    /// As [`BottleneckPlan::run`], on the threads of `executor`.
    ///
    /// # Errors
    ///
    /// As for [`BottleneckPlan::run`].
    pub fn run_with(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> Result<()> {
        self.run_all(executor, input, Shared::new(output), scratch).map(drop)
    }

    /// As [`BottleneckPlan::run_with`], into memory that need not be initialised;
    /// gives the output.
    ///
    /// # Errors
    ///
    /// As for [`BottleneckPlan::run`]; [`Error::Gaps`] when the output has gaps, which
    /// stay uninitialised.
    pub fn run_uninit<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &'o mut [MaybeUninit<f32>],
        scratch: &mut [MaybeUninit<u8>],
    ) -> Result<&'o mut [f32]> {
        self.output.check_gapless("output", output.len())?;
        self.run_all(executor, input, Shared::uninit(output), scratch)
    }

    #[allow(unsafe_code, reason = "hands checked slices to the kernel")]
    fn run_all<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: Shared<'o, f32>,
        scratch: &mut [MaybeUninit<u8>],
    ) -> Result<&'o mut [f32]> {
        self.input.check("input", input.len())?;
        self.output.check("output", output.len())?;
        let (expected, actual) = (self.scratch_bytes(), scratch.len());
        if actual < expected {
            return Err(Error::Length { what: "scratch", expected, actual });
        }
        let start = scratch.as_ptr().align_offset(ALIGN);
        let scratch = Shared::<u8>::uninit(&mut scratch[start..]);
        let inner = &*self.op;
        let block = |task: usize| {
            let [expanded, band, turned, pooled] =
                self.offsets(task).map(|at| scratch.as_mut_ptr().wrapping_add(at).cast::<f32>());
            Block {
                window: self.window,
                c_in: inner.c_in,
                expand: inner.expand.as_ref().map(PackedStage::lend),
                stem: self.stem,
                depthwise: &inner.depthwise,
                depthwise_activation: inner.depthwise_activation,
                excite: inner.excite.as_ref().map(|[reduce, expand]| Excite {
                    reduce: reduce.lend(),
                    expand: expand.lend(),
                }),
                hidden: inner
                    .hidden
                    .as_ref()
                    .map(|expand| Hidden { norm: inner.norm.as_ref(), expand: expand.lend() }),
                project: inner.project.as_ref().map(PackedStage::lend),
                residual: inner.residual.map(|residual| match residual {
                    Residual::Input => Source::Input(0),
                    Residual::Depthwise => Source::Depthwise,
                }),
                tile: self.tile,
                cut: self.cut,
                planes: self.planes,
                input: input.as_ptr(),
                input_view: self.input,
                output: output.as_mut_ptr(),
                output_view: self.output,
                buffers: Buffers { expanded, band, turned, pooled },
            }
        };
        // SAFETY: input and output are as long as the window's shapes say; of the
        // scratch, at most ALIGN - 1 bytes went to alignment, and what is left holds
        // all rings and bands, aligned; output and scratch are borrowed exclusively;
        // all stages were packed for `isa`. Each task of a phase runs once, the next
        // phase follows when all have ended, and together they write the output.
        unsafe {
            for phase in 0..self.cut.phases(self.window.output.batch) {
                for_each(executor, self.cut.tasks, self.flush, |task| {
                    inner.isa.dispatch(Run::new(block(task), phase, task));
                });
            }
            Ok(output.assume_init())
        }
    }

    /// Names the schedule and the instruction set.
    pub fn kernel_name(&self) -> String {
        let block = if self.op.hidden.is_some() { "convnext" } else { "bottleneck" };
        let schedule = if self.fused { "fused" } else { "unfused" };
        format!("{block}_f32_{schedule}_{}", self.op.isa)
    }
}

impl fmt::Debug for BottleneckPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottleneckPlan")
            .field("kernel", &self.kernel_name())
            .field("output", &self.window.output)
            .field("schedule", &self.explain())
            .finish_non_exhaustive()
    }
}
