//! A packed operation as a candle op: where the input lies, which plan, which threads.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::utils::barrier_pool;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, bail};
use mbconv::{Executor, PlanOptions, Scratch, Strides};

/// Plans that a layer keeps: those of the shapes it met last.
const MOST_PLANS: usize = 16;

/// An operation of mbconv, as far as this crate calls it.
pub(crate) trait Operation: Send + Sync + 'static {
    const NAME: &'static str;
    type Plan: Send + Sync;

    fn plan(&self, shape: mbconv::Shape, options: &PlanOptions) -> mbconv::Result<Self::Plan>;
    fn output_shape(plan: &Self::Plan) -> mbconv::Shape;
    fn scratch_bytes(plan: &Self::Plan) -> usize;
    fn run(
        plan: &Self::Plan,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()>;
}

/// Both kinds of block have one kind of plan.
macro_rules! block_operation {
    ($op:ident, $name:literal) => {
        impl Operation for mbconv::$op {
            const NAME: &'static str = $name;
            type Plan = mbconv::BottleneckPlan;

            fn plan(
                &self,
                shape: mbconv::Shape,
                options: &PlanOptions,
            ) -> mbconv::Result<Self::Plan> {
                self.plan_with(shape, options)
            }

            fn output_shape(plan: &Self::Plan) -> mbconv::Shape {
                plan.output_shape()
            }

            fn scratch_bytes(plan: &Self::Plan) -> usize {
                plan.scratch_bytes()
            }

            fn run(
                plan: &Self::Plan,
                executor: &dyn Executor,
                input: &[f32],
                output: &mut [f32],
                scratch: &mut [MaybeUninit<u8>],
            ) -> mbconv::Result<()> {
                plan.run_with(executor, input, output, scratch)
            }
        }
    };
}

block_operation!(InvertedBottleneck, "mbconv inverted bottleneck");
block_operation!(ConvNextBlock, "mbconv ConvNeXt block");

impl Operation for mbconv::Depthwise {
    const NAME: &'static str = "mbconv depthwise convolution";
    type Plan = mbconv::DepthwisePlan;

    fn plan(&self, shape: mbconv::Shape, options: &PlanOptions) -> mbconv::Result<Self::Plan> {
        self.plan_with(shape, options)
    }

    fn output_shape(plan: &Self::Plan) -> mbconv::Shape {
        plan.output_shape()
    }

    fn scratch_bytes(_: &Self::Plan) -> usize {
        0
    }

    fn run(
        plan: &Self::Plan,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
        _: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        plan.run_with(executor, input, output)
    }
}

impl Operation for mbconv::Pointwise {
    const NAME: &'static str = "mbconv pointwise convolution";
    type Plan = (mbconv::PointwisePlan, mbconv::Shape);

    fn plan(&self, shape: mbconv::Shape, options: &PlanOptions) -> mbconv::Result<Self::Plan> {
        Ok((self.plan_with(shape, options)?, shape))
    }

    fn output_shape((_, shape): &Self::Plan) -> mbconv::Shape {
        *shape
    }

    fn scratch_bytes(_: &Self::Plan) -> usize {
        0
    }

    fn run(
        (plan, _): &Self::Plan,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
        _: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        plan.run_with(executor, input, output)
    }
}

/// The pool of candle's own kernels: its threads spin between calls, which come every tenth of a
/// millisecond.
struct CandleThreads;

impl Executor for CandleThreads {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        match n_tasks {
            1 => run_task(0),
            _ => barrier_pool().execute_chunked(n_tasks, |tasks| tasks.for_each(run_task)),
        }
    }
}

thread_local! {
    /// One for all layers, so that it stays in the cache from layer to layer; taken while in use.
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// What a plan is made for.
type Key = (mbconv::Shape, Strides);

/// An operation with the plans made of it.
pub(crate) struct Layer<O: Operation>(Arc<Inner<O>>);

struct Inner<O: Operation> {
    op: O,
    channels: [usize; 2],
    channels_last: bool,
    threads: usize,
    /// The one used last comes first.
    plans: Mutex<Vec<(Key, Arc<O::Plan>)>>,
}

impl<O: Operation> Clone for Layer<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: Operation + Clone> Layer<O> {
    /// `channels` are those of input and output.
    pub(crate) fn new(op: O, channels: [usize; 2]) -> Self {
        Self::with(op, channels, false)
    }

    fn with(op: O, channels: [usize; 2], channels_last: bool) -> Self {
        // The caller works, too.
        let (threads, plans) = (barrier_pool().n_workers() + 1, Mutex::default());
        Self(Arc::new(Inner { op, channels, channels_last, threads, plans }))
    }

    pub(crate) fn channels_last(&self, channels_last: bool) -> Self {
        Self::with(self.0.op.clone(), self.0.channels, channels_last)
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match self.plan(x.layout())? {
            Some(_) => x.apply_op1(self.clone())?,
            None => x.contiguous()?.apply_op1(self.clone())?,
        };
        match self.0.channels_last {
            true => y.permute((0, 3, 1, 2)),
            false => Ok(y),
        }
    }

    /// The plan for inputs that lie as `layout` says; none where mbconv cannot read them so.
    fn plan(&self, layout: &Layout) -> Result<Option<Arc<O::Plan>>> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        if channels != self.0.channels[0] {
            let (name, taken) = (O::NAME, self.0.channels[0]);
            bail!("{name}: the input has {channels} channels, the layer takes {taken}")
        }
        let Some(strides) = strides(layout.dims(), layout.stride()) else { return Ok(None) };
        let key = (mbconv::Shape::new(batch, height, width), strides);
        // What is behind the lock is whole even if its holder has panicked.
        let mut plans = self.0.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = plans.iter().position(|(known, _)| *known == key) {
            plans[..=at].rotate_right(1);
        } else {
            let output = match self.0.channels_last {
                true => mbconv::Layout::Nhwc,
                false => mbconv::Layout::Nchw,
            };
            let options = PlanOptions::new()
                .threads(self.0.threads)
                .input_strides(strides)
                .output_layout(output);
            let plan = match self.0.op.plan(key.0, &options) {
                // Elements that share a place, as a broadcast makes them.
                Err(mbconv::Error::Stride { .. }) => return Ok(None),
                plan => plan.map_err(Error::wrap)?,
            };
            plans.truncate(MOST_PLANS - 1);
            plans.insert(0, (key, Arc::new(plan)));
        }
        Ok(Some(plans[0].1.clone()))
    }
}

/// candle's strides of `[batch, channels, height, width]` as mbconv's; none when neither channels
/// nor columns lie together.
fn strides(dims: &[usize], strides: &[usize]) -> Option<Strides> {
    let (&[n, c, h, w], &[sn, sc, sh, sw]) = (dims, strides) else { return None };
    // Innermost first, of which an axis of one element may have any stride.
    let arrange = |axes: [(usize, usize); 4]| {
        let [(size, stride), others @ ..] = axes;
        (size == 1 || stride == 1).then_some(others.map(|(_, stride)| stride))
    };
    let [c, h, w, n] = [(c, sc), (h, sh), (w, sw), (n, sn)];
    let planes = arrange([w, h, c, n]);
    let pixels = || arrange([c, w, h, n]);
    planes
        .map(|[row, plane, batch]| Strides::Nchw { batch, plane, row })
        .or_else(|| pixels().map(|[pixel, row, batch]| Strides::Nhwc { batch, row, pixel }))
}

impl<O: Operation + Clone> CustomOp1 for Layer<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(input) = storage else {
            bail!("{} computes in f32 only; convert the input with to_dtype", O::NAME)
        };
        let Some(plan) = self.plan(layout)? else {
            bail!("{}: the input is neither planar nor channels-last", O::NAME)
        };
        let mbconv::Shape { batch, height, width } = O::output_shape(&plan);
        let channels = self.0.channels[1];
        let mut output = vec![0.0; batch * channels * height * width];
        let mut scratch = SCRATCH.take().unwrap_or_else(|| Scratch::new(0));
        let bytes = O::scratch_bytes(&plan);
        if scratch.len() < bytes {
            scratch = Scratch::new(bytes);
        }
        let input = &input[layout.start_offset()..];
        let result = O::run(&plan, &CandleThreads, input, &mut output, &mut scratch);
        SCRATCH.set(Some(scratch));
        result.map_err(Error::wrap)?;
        let shape = match self.0.channels_last {
            true => Shape::from((batch, height, width, channels)),
            false => Shape::from((batch, channels, height, width)),
        };
        Ok((CpuStorage::F32(output), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        bail!("{} has no backward pass; train with candle_nn's own layers", O::NAME)
    }
}
