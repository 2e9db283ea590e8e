//! mbconv's operations as operations of tract.

use core::fmt;
use core::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use mbconv::{
    BottleneckPlan, Depthwise, DepthwisePlan, InvertedBottleneck, Layout, PlanOptions, Pointwise,
    PointwisePlan, Rayon, Scratch, Serial, Shape,
};
use tract_core::internal::*;
use tract_core::ops::cnn::PoolSpec;
use tract_core::ops::nn::DataFormat;
use tract_linalg::multithread::{Executor, current_tract_executor};

/// A plan is made for each shape that is seen and each number of threads; so many, with
/// their scratch memory, are kept for the next run.
const KEPT: usize = 8;

/// Weights, packed.
pub(crate) enum Packed {
    Block(InvertedBottleneck),
    Depthwise(Depthwise),
    Pointwise(Pointwise),
}

/// An operation of mbconv. Its inputs are the image and, where a pointwise convolution
/// adds something to its output, that.
#[derive(Clone)]
pub(crate) struct Fused {
    pub(crate) from: DataFormat,
    pub(crate) to: DataFormat,
    inner: Arc<Inner>,
}

struct Inner {
    packed: Packed,
    c_out: usize,
    /// The windows that the image's size goes through.
    pools: Vec<PoolSpec>,
    stages: String,
    /// Plans with their scratch memory that no run is using: tract makes a new state for
    /// each `run` of a model, so that what is kept has its place here and not there.
    ready: Mutex<Vec<Ready>>,
}

/// What a plan is made for.
#[derive(Clone, Copy, PartialEq)]
struct Key {
    shape: Shape,
    layouts: [Layout; 2],
    threads: usize,
}

struct Ready {
    key: Key,
    plan: Plan,
}

enum Plan {
    Block(Box<BottleneckPlan>, Scratch),
    Depthwise(DepthwisePlan),
    Pointwise(PointwisePlan),
}

impl Fused {
    pub(crate) fn new(
        packed: Packed,
        [from, to]: [DataFormat; 2],
        c_out: usize,
        pools: Vec<PoolSpec>,
        stages: String,
    ) -> Self {
        let inner = Inner { packed, c_out, pools, stages, ready: Mutex::default() };
        Self { from, to, inner: Arc::new(inner) }
    }

    pub(crate) fn stages(&self) -> &str {
        &self.inner.stages
    }

    /// What mbconv says to an input's shape.
    pub(crate) fn check(&self, input: &[usize]) -> mbconv::Result<()> {
        self.inner.plan(self.key(input, 1)).map(drop)
    }

    fn key(&self, input: &[usize], threads: usize) -> Key {
        let h = self.from.h_axis();
        let batch = if self.from.has_n() { input[0] } else { 1 };
        let shape = Shape::new(batch, input[h], input[h + 1]);
        let layout = |format: DataFormat| match format.c_is_last() {
            true => Layout::Nhwc,
            false => Layout::Nchw,
        };
        Key { shape, layouts: [layout(self.from), layout(self.to)], threads }
    }

    fn output_shape<D: DimLike>(&self, input: &[D]) -> TractResult<TVec<D>> {
        let shape = self.from.shape(input)?;
        ensure!(shape.rank() == 3 + usize::from(self.from.has_n()), "an input of {input:?}");
        let mut hw: TVec<D> = shape.hw_dims().into();
        for pool in &self.inner.pools {
            hw = pool.computed_padding(&hw).into_iter().map(|axis| axis.convoluted).collect();
        }
        let batch = shape.n().cloned().unwrap_or_else(|| 1.into());
        Ok(self.to.from_n_c_hw(batch, self.inner.c_out.into(), hw)?.shape)
    }

    #[allow(unsafe_code, reason = "hands memory to be written to the plan")]
    fn run(&self, inputs: &[TValue]) -> TractResult<Tensor> {
        let executor = current_tract_executor();
        let (threads, executor): (usize, &dyn mbconv::Executor) = match &executor {
            Executor::SingleThread => (1, &Serial),
            Executor::MultiThread(pool) => (pool.current_num_threads(), &Rayon::in_pool(pool)),
            Executor::RayonGlobal => (rayon::current_num_threads(), &Rayon::new()),
        };
        let mut ready = self.inner.take(self.key(inputs[0].shape(), threads))?;
        let input = elements(&inputs[0])?;
        let added = inputs.get(1).map(elements).transpose()?;
        let (mut output, target);
        // SAFETY: f32 that need no drop, seen as memory that need not be initialised until
        // the plan has written all of it; where the plan fails, nothing reads it.
        unsafe {
            output = Tensor::uninitialized::<f32>(&self.output_shape(inputs[0].shape())?)?;
            let start = output.as_ptr_mut::<f32>()?.cast::<MaybeUninit<f32>>();
            target = core::slice::from_raw_parts_mut(start, output.len());
        }
        match &mut ready.plan {
            Plan::Block(plan, scratch) => plan.run_uninit(executor, input, target, scratch)?,
            Plan::Depthwise(plan) => plan.run_uninit(executor, input, target)?,
            Plan::Pointwise(plan) => plan.run_uninit(executor, input, added, target)?,
        };
        self.inner.put(ready);
        Ok(output)
    }
}

impl Inner {
    fn plan(&self, key: Key) -> mbconv::Result<Ready> {
        let [input, output] = key.layouts;
        let options = PlanOptions::new().input_layout(input).output_layout(output);
        let options = options.threads(key.threads);
        let plan = match &self.packed {
            Packed::Block(block) => {
                let plan = block.plan_with(key.shape, &options)?;
                let scratch = plan.scratch();
                Plan::Block(Box::new(plan), scratch)
            }
            Packed::Depthwise(layer) => Plan::Depthwise(layer.plan_with(key.shape, &options)?),
            Packed::Pointwise(layer) => Plan::Pointwise(layer.plan_with(key.shape, &options)?),
        };
        Ok(Ready { key, plan })
    }

    fn take(&self, key: Key) -> mbconv::Result<Ready> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match ready.iter().position(|ready| ready.key == key) {
            Some(at) => Ok(ready.remove(at)),
            None => {
                drop(ready);
                self.plan(key)
            }
        }
    }

    fn put(&self, plan: Ready) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() == KEPT {
            ready.remove(0);
        }
        ready.push(plan);
    }
}

fn elements(tensor: &TValue) -> TractResult<&[f32]> {
    tensor.try_as_plain_ram()?.as_slice::<f32>()
}

impl fmt::Debug for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.stages())
    }
}

/// Two are the same when they share their weights.
impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) && (self.from, self.to) == (other.from, other.to)
    }
}

impl Eq for Fused {}

impl Op for Fused {
    fn name(&self) -> StaticName {
        match self.inner.packed {
            Packed::Block(_) => "MbconvBlock",
            Packed::Depthwise(_) => "MbconvDepthwise",
            Packed::Pointwise(_) => "MbconvPointwise",
        }
        .into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.inner.stages.clone()])
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Fused {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(self.run(&inputs)?.into_tvalue()))
    }
}

impl TypedOp for Fused {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(self.output_shape(&inputs[0].shape)?)))
    }

    as_op!();
}
