//! `InvertedBottleneck`: the whole block in one pass.

use core::mem::MaybeUninit;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use crate::activation::Activation;
use crate::buffer::{ALIGN, Scratch, Shared};
use crate::error::{Error, Result};
use crate::executor::{Executor, Serial, for_each};
use crate::isa::Isa;
use crate::kernel::bottleneck::{Block, By, Cut, Run, Stage, Tile, Turned};
use crate::layout::View;
use crate::pack::{PackDepthwise, PackPointwise, PackedDepthwise, PackedPointwise, Tail};
use crate::params::{BottleneckParams, First, PointwiseParams};
use crate::schedule::{Core, Decision, PlanOptions, Problem, Schedule};
use crate::shape::{Placed, Shape, Window};
use crate::split::{self, Work};

/// An inverted bottleneck with its weights packed for one instruction set.
///
/// ```
/// use mbconv::{
///     Activation, BottleneckParams, DepthwiseParams, InvertedBottleneck, Padding,
///     PointwiseParams, Shape,
/// };
///
/// let (c, t) = (8, 6); // channels, expansion
/// let (expand, depthwise, project) = (vec![0.1; t * c * c], vec![0.1; 9 * t * c], vec![0.1; t * c * c]);
/// let block = BottleneckParams::new(
///     DepthwiseParams::new(t * c, [3, 3], &depthwise)
///         .padding(Padding::uniform(1))
///         .activation(Activation::Relu6),
///     PointwiseParams::new(t * c, c, &project),
/// )
/// .expand(PointwiseParams::new(c, t * c, &expand).activation(Activation::Relu6))
/// .residual(true);
///
/// let shape = Shape::new(1, 14, 14);
/// let plan = InvertedBottleneck::new(&block)?.plan(shape)?;
/// let (x, mut y) = (vec![1.0; 14 * 14 * c], vec![0.0; 14 * 14 * c]);
/// plan.run(&x, &mut y, &mut plan.scratch())?;
/// println!("{}", plan.explain());
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone)]
pub struct InvertedBottleneck(Arc<Inner>);

struct Inner {
    isa: Isa,
    /// The expansion, or the stem over its patches.
    expand: Option<(PackedPointwise, Activation)>,
    stem: Option<Window>,
    c_in: usize,
    depthwise: PackedDepthwise,
    depthwise_activation: Activation,
    window: Window,
    project: Option<(PackedPointwise, Activation)>,
    residual: bool,
}

/// A depthwise convolution and a 1x1 one after it, of which MobileNetV1 is made
/// (Howard et al. 2017): an [`InvertedBottleneck`] without expansion.
///
/// ```
/// use mbconv::{
///     Activation::Relu6, BottleneckParams, ConvParams, DepthwiseParams, DepthwiseSeparable,
///     Padding, PointwiseParams, Shape,
/// };
///
/// // MobileNetV1's first layers: 3x3 of stride 2 over RGB, then 32 to 64 channels.
/// let (stem, depthwise, project) = ([0.1; 32 * 27], [0.1; 9 * 32], [0.1; 64 * 32]);
/// let block = BottleneckParams::new(
///     DepthwiseParams::new(32, [3, 3], &depthwise).padding(Padding::SameUpper).activation(Relu6),
///     PointwiseParams::new(32, 64, &project).activation(Relu6),
/// );
/// let stem = ConvParams::new(3, 32, [3, 3], &stem)
///     .stride([2, 2])
///     .padding(Padding::SameUpper)
///     .activation(Relu6);
/// let plan = DepthwiseSeparable::new(&block.stem(stem))?.plan(Shape::new(1, 32, 32))?;
/// let (image, mut y) = ([0.5; 32 * 32 * 3], [0.0; 16 * 16 * 64]);
/// plan.run(&image, &mut y, &mut plan.scratch())?;
/// # Ok::<(), mbconv::Error>(())
/// ```
pub type DepthwiseSeparable = InvertedBottleneck;

impl InvertedBottleneck {
    /// Packs the block for the instruction set that [`Isa::detect`] gives.
    ///
    /// # Errors
    ///
    /// What [`Isa::detect`] gives; those of [`Pointwise::new`](crate::Pointwise::new)
    /// and [`Depthwise::new`](crate::Depthwise::new) for each stage;
    /// [`Error::ChannelMismatch`] when neighbouring stages differ;
    /// [`Error::MultiplierInBlock`] when the depthwise convolution has one;
    /// [`Error::ResidualWithoutProject`].
    pub fn new(params: &BottleneckParams<'_>) -> Result<Self> {
        Self::with_isa(params, Isa::detect()?)
    }

    /// Packs the block for `isa`.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::new`], without those of detection.
    pub fn with_isa(params: &BottleneckParams<'_>, isa: Isa) -> Result<Self> {
        params.validate()?;
        let tail = if params.project.is_some() { Tail::Zeros } else { Tail::Overlap };
        let pack = |stage: &PointwiseParams<'_>, tail| {
            (isa.dispatch(PackPointwise(stage, tail)), stage.activation)
        };
        let (expand, stem) = match &params.first {
            None => (None, None),
            Some(First::Expand(expand)) => (Some(pack(expand, tail)), None),
            Some(First::Stem(stem)) => (Some(pack(&stem.over_patches(), tail)), Some(stem.window)),
        };
        Ok(Self(Arc::new(Inner {
            isa,
            expand,
            stem,
            c_in: params.c_in(),
            depthwise: isa.dispatch(PackDepthwise(&params.depthwise, tail)),
            depthwise_activation: params.depthwise.activation,
            window: params.depthwise.window,
            project: params.project.as_ref().map(|stage| pack(stage, Tail::Zeros)),
            residual: params.residual,
        })))
    }

    /// Plans for images of `shape`, with the schedule that should be fastest.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`] or [`Error::Overflow`] when the shape is empty or any
    /// tensor of the block too large; [`Error::EmptyOutput`] when the stem's or the
    /// depthwise kernel does not fit its padded input; [`Error::ResidualShape`] when
    /// a residual is asked and input and output differ.
    pub fn plan(&self, shape: Shape) -> Result<BottleneckPlan> {
        self.plan_with(shape, &PlanOptions::new())
    }

    /// As [`InvertedBottleneck::plan`], with a schedule, caches and threads of
    /// the caller's choice.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan`]; [`Error::ZeroSize`] for zero threads;
    /// [`Error::Stride`] when elements overlap.
    pub fn plan_with(&self, shape: Shape, options: &PlanOptions) -> Result<BottleneckPlan> {
        let Inner { isa, expand, depthwise, c_in, .. } = &*self.0;
        let (lanes, c_out) = (isa.lanes(), self.c_out());
        let input = options.input.view("input", shape, *c_in)?;
        let (stem, window) = self.place(shape)?;
        let output = options.output.view("output", window.output, c_out)?;
        // All tensors, those between with channels rounded up, as the buffers hold them.
        let channels = depthwise.channels;
        let padded = channels.next_multiple_of(lanes);
        let ends = [shape.elements(*c_in)?, window.output.elements(c_out)?];
        let between = [window.input.elements(padded)?, window.output.elements(padded)?];
        ends.into_iter()
            .chain(between)
            .try_fold(0usize, |sum, n| sum.checked_add(n))
            .and_then(|n| n.checked_mul(size_of::<f32>()))
            .and_then(|n| n.checked_add(3 * ALIGN))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or(Error::Overflow { what: "scratch" })?;
        if self.0.residual && (shape, *c_in) != (window.output, c_out) {
            return Err(Error::ResidualShape {
                input: [shape.height, shape.width, *c_in],
                output: [window.output.height, window.output.width, c_out],
            });
        }
        let problem = Problem {
            window: &window,
            expand: expand.is_some(),
            c_in: expand.as_ref().map_or(*c_in, |(packed, _)| packed.c_in),
            project: self.0.project.is_some(),
            channels,
            c_out,
            panel: expand
                .iter()
                .flat_map(|(packed, _)| &packed.panels)
                .map(|panel| panel.vectors)
                .max()
                .unwrap_or(1),
            core: Core::new(*isa, &window),
            turned: Turned {
                stem: stem.as_ref(),
                c_in: input.is_planar().then_some(*c_in),
                c_out: output.is_planar().then_some(c_out),
            },
            flat: input.is_flat(shape.width) && output.is_flat(window.output.width),
        };
        let tasks = split::tasks(options)?;
        let panels = expand.as_ref().map_or(&[][..], |(packed, _)| &packed.panels);
        let project = self.0.project.as_ref().map_or(&[][..], |(packed, _)| &packed.panels);
        let work = Work { problem, expand: panels, project };
        let (cut, Decision { tile, fused, why }) = work.cut(options, tasks);
        let buffers = work.buffers(&cut, &tile);
        let (op, flops, flush) = (self.clone(), self.flops(shape)?, options.flush_denormals);
        let plan = BottleneckPlan {
            op,
            stem,
            window,
            input,
            output,
            flops,
            tile,
            cut,
            buffers,
            fused,
            why,
            flush,
        };
        // The whole tensors were checked above: each task may take as much.
        plan.pools()
            .iter()
            .try_fold(0usize, |sum, (n, bytes)| n.checked_mul(*bytes)?.checked_add(sum))
            .filter(|&bytes| bytes < isize::MAX as usize - ALIGN)
            .ok_or(Error::Overflow { what: "scratch" })?;
        Ok(plan)
    }

    /// Floating-point operations for images of `shape`: two per multiply-add,
    /// padded taps counted too, as is usual. For stride 1 and `c_in = c_out`
    /// with expansion `t` and a `K` x `K` kernel these are
    /// `2 * t * c_in * H * W * (2 * c_in + K * K)`.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan`].
    pub fn flops(&self, shape: Shape) -> Result<u64> {
        let Inner { expand, depthwise, project, .. } = &*self.0;
        let (_, window) = self.place(shape)?;
        let output = window.output.elements(depthwise.channels)? as u64;
        let expand = match expand {
            Some((e, _)) => window.input.elements(e.c_in)? as u64 * e.c_out as u64,
            None => 0,
        };
        let project = project.as_ref().map_or(0, |(p, _)| p.c_out as u64);
        Ok(2 * (expand + output * (depthwise.taps as u64 + project)))
    }

    /// Bytes of all weights and biases, without the padding of packing.
    pub fn weight_bytes(&self) -> usize {
        let Inner { expand, depthwise, project, .. } = &*self.0;
        let pointwise = [expand, project].into_iter().flatten();
        let pointwise: usize = pointwise.map(|(p, _)| (p.c_in + 1) * p.c_out).sum();
        (pointwise + (depthwise.taps + 1) * depthwise.channels) * size_of::<f32>()
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    fn c_out(&self) -> usize {
        self.0.project.as_ref().map_or(self.0.depthwise.channels, |(project, _)| project.c_out)
    }

    /// Lays the stem's window, where there is one, over images of `shape`, and the
    /// depthwise window over what it gives.
    fn place(&self, shape: Shape) -> Result<(Option<Placed>, Placed)> {
        let stem = self.0.stem.map(|stem| stem.place(shape)).transpose()?;
        let window = self.0.window.place(stem.map_or(shape, |stem| stem.output))?;
        Ok((stem, window))
    }
}

/// An [`InvertedBottleneck`] for images of one shape, with its schedule.
#[derive(Clone)]
pub struct BottleneckPlan {
    op: InvertedBottleneck,
    stem: Option<Placed>,
    window: Placed,
    input: View,
    output: View,
    flops: u64,
    tile: Tile,
    cut: Cut,
    /// Bytes of one ring, of one band, and of one buffer of turned pixels.
    buffers: [usize; 3],
    fused: bool,
    why: String,
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

    /// Whether the expanded tensor exists only as a tile.
    pub fn is_fused(&self) -> bool {
        self.fused
    }

    /// What was chosen: [`Schedule::Unfused`], or [`Schedule::Tiled`] with the
    /// tile of each task. A plan for one thread that is asked for it is the same.
    pub fn schedule(&self) -> Schedule {
        if self.fused {
            Schedule::Tiled { rows: self.tile.rows, channels: self.tile_channels() }
        } else {
            Schedule::Unfused
        }
    }

    /// Channels of a slab.
    fn tile_channels(&self) -> usize {
        (self.tile.vectors * self.op.0.isa.lanes()).min(self.op.0.depthwise.channels)
    }

    /// Bytes that the expanded tensor takes when it is whole; 0 for a block
    /// without expansion.
    pub fn expanded_bytes(&self) -> usize {
        let expanded = self.op.0.expand.as_ref().map_or(0, |(expand, _)| expand.c_out);
        let Shape { batch, height, width } = self.window.input;
        batch * height * width * expanded * size_of::<f32>()
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
        let schedule = if self.fused {
            format!(
                "fused ({}): bands of {rows} rows x {channels} channels over a ring of {ring} \
                 rows{strips}, {tile} KiB in place of {expanded} KiB expanded",
                self.why
            )
        } else {
            format!("unfused ({}): {expanded} KiB expanded, {tile} KiB in all", self.why)
        };
        match (self.cut.tasks, self.cut.by) {
            (1, _) => schedule,
            (tasks, By::Rows) => format!("{schedule}; {tasks} tasks by rows"),
            (tasks, By::Channels(_)) => format!("{schedule}; {tasks} tasks by channels"),
        }
    }

    /// How many buffers there are of each kind, and the bytes from one to the next.
    fn pools(&self) -> [(usize, usize); 3] {
        let counts = self.cut.buffers();
        core::array::from_fn(|i| (counts[i], self.buffers[i].next_multiple_of(ALIGN)))
    }

    /// Where a task's ring and band begin in the scratch memory: each band of a
    /// task ahead of its ring, one that all tasks share behind everything.
    ///
    /// The projection reads a band in strides, which prefetchers carry on beyond
    /// its end by as much again: what lies there had better not be what another
    /// task writes (it took up to 1.7 times as long).
    fn offsets(&self, task: usize) -> [usize; 3] {
        let [(rings, ring), (bands, band), (_, turned)] = self.pools();
        match bands {
            1 => [task * ring, rings * ring, rings * ring + band],
            _ => {
                let start = task * (turned + band + ring);
                [start + turned + band, start + turned, start]
            }
        }
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
        self.output.check_gapless(output.len())?;
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
        let inner = &*self.op.0;
        let block = |task: usize| {
            let [expanded, band, turned] =
                self.offsets(task).map(|at| scratch.as_mut_ptr().wrapping_add(at).cast());
            Block {
                window: self.window,
                expand: inner.expand.as_ref().map(stage),
                stem: self.stem,
                depthwise: &inner.depthwise,
                depthwise_activation: inner.depthwise_activation,
                project: inner.project.as_ref().map(stage),
                residual: inner.residual.then_some(0),
                tile: self.tile,
                cut: self.cut,
                input: input.as_ptr(),
                input_view: self.input,
                output: output.as_mut_ptr(),
                output_view: self.output,
                expanded,
                band,
                turned,
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
        let schedule = if self.fused { "fused" } else { "unfused" };
        format!("bottleneck_f32_{schedule}_{}", self.op.0.isa)
    }
}

fn stage((packed, activation): &(PackedPointwise, Activation)) -> Stage<'_> {
    Stage { packed, activation: *activation }
}
