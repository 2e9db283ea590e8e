//! A workload with its weights, and what is built of them.

use core::mem::MaybeUninit;

use mbconv::{
    Activation, BottleneckParams, BottleneckPlan, ConvNextBlock, ConvNextParams, ConvParams,
    Depthwise, DepthwiseParams, DepthwisePlan, Executor, InvertedBottleneck, Isa, LayerNormParams,
    Padding, PlanOptions, Pointwise, PointwiseParams, PointwisePlan, Residual, Schedule, Serial,
    SqueezeExciteParams,
};

use super::random::Random;
use super::{Kind, Workload};

/// The weights of a layer: uniform, scaled so that activations keep their size.
#[derive(Default)]
pub(crate) struct Layer {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    pub(crate) fn new(random: &mut Random, fan_in: usize, channels: usize) -> Self {
        let scale = (6.0 / fan_in as f32).sqrt();
        let weights = random.vec(fan_in * channels, scale);
        Self { weights, bias: random.vec(channels, 0.1) }
    }

    pub(crate) fn pointwise(&self, c_in: usize, c_out: usize) -> PointwiseParams<'_> {
        PointwiseParams::new(c_in, c_out, &self.weights).bias(&self.bias)
    }

    /// The 3x3 convolution of stride 2 that networks begin with, over RGB.
    pub(crate) fn stem(&self, c_out: usize) -> ConvParams<'_> {
        ConvParams::new(3, c_out, [3; 2], &self.weights)
            .bias(&self.bias)
            .stride([2; 2])
            .padding(Padding::SameUpper)
    }
}

/// Values under the window of [`Layer::stem`].
pub(crate) const STEM: usize = 3 * 3 * 3;

/// A workload with its weights; a layer that its kind does not have is empty.
pub(crate) struct Loaded {
    pub(crate) workload: Workload,
    expand: Layer,
    depthwise: Layer,
    excite: [Layer; 2],
    norm: Layer,
    project: Layer,
    scale: Vec<f32>,
}

impl Loaded {
    pub(crate) fn new(workload: Workload, random: &mut Random) -> Self {
        let [c_in, c_mid, c_out] = workload.c;
        let taps = workload.kernel * workload.kernel;
        let mut loaded = Self::bare(workload);
        let kind = loaded.workload.kind;
        match kind {
            Kind::Bottleneck => loaded.expand = Layer::new(random, c_in, c_mid),
            Kind::Stem => loaded.expand = Layer::new(random, STEM, c_mid),
            Kind::ConvNext => {
                loaded.expand = Layer::new(random, c_in, 4 * c_in);
                loaded.norm = Layer::new(random, 1, c_in);
                loaded.scale = random.vec(c_out, 1.0);
            }
            _ => {}
        }
        if let Some((squeezed, _)) = loaded.workload.excite {
            let [reduce, expand] = [[c_mid, squeezed], [squeezed, c_mid]];
            loaded.excite = [reduce, expand].map(|[c_in, c_out]| Layer::new(random, c_in, c_out));
        }
        if kind != Kind::Pointwise {
            loaded.depthwise = Layer::new(random, taps, c_mid);
        }
        if kind != Kind::Depthwise {
            let c_in = loaded.workload.projected();
            loaded.project = Layer::new(random, c_in, c_out);
        }
        loaded
    }

    /// Without any weights: no operation can be built of it.
    pub(super) fn bare(workload: Workload) -> Self {
        let [expand, depthwise, project, norm] = Default::default();
        let (excite, scale) = Default::default();
        Self { workload, expand, depthwise, excite, norm, project, scale }
    }

    /// The expansion, or the stem over its patches.
    pub(crate) fn expand(&self) -> Option<PointwiseParams<'_>> {
        let Workload { kind, c: [c_in, c_mid, _], activations: [inner, _], .. } = self.workload;
        let (c_in, c_out) = match kind {
            Kind::Bottleneck => (c_in, c_mid),
            Kind::Stem => (STEM, c_mid),
            Kind::ConvNext => (c_in, 4 * c_in),
            _ => return None,
        };
        Some(self.expand.pointwise(c_in, c_out).activation(inner))
    }

    /// TensorFlow's SAME, which has the output extent of PyTorch's `padding=k/2`
    /// and fits every image.
    pub(crate) fn depthwise(&self) -> DepthwiseParams<'_> {
        let Workload { kind, kernel, stride, c, activations, .. } = self.workload;
        let activation = match kind {
            Kind::ConvNext => Activation::Identity,
            _ => activations[0],
        };
        DepthwiseParams::new(c[1], [kernel; 2], &self.depthwise.weights)
            .bias(&self.depthwise.bias)
            .stride([stride; 2])
            .padding(Padding::SameUpper)
            .activation(activation)
    }

    pub(crate) fn project(&self) -> PointwiseParams<'_> {
        let Workload { c: [_, _, c_out], activations: [_, outer], .. } = self.workload;
        self.project.pointwise(self.workload.projected(), c_out).activation(outer)
    }

    pub(crate) fn block(&self) -> BottleneckParams<'_> {
        let mut params = BottleneckParams::new(self.depthwise(), self.project())
            .residual(self.workload.residual);
        if let Some((squeezed, gate)) = self.workload.excite {
            let [reduce, expand] = &self.excite;
            let channels = self.workload.c[1];
            params = params.squeeze_excite(SqueezeExciteParams::new(
                reduce.pointwise(channels, squeezed).activation(Activation::Relu),
                expand.pointwise(squeezed, channels).activation(gate),
            ));
        }
        let Workload { kind, c, activations: [inner, _], .. } = self.workload;
        match self.expand() {
            Some(_) if kind == Kind::Stem => params.stem(self.expand.stem(c[1]).activation(inner)),
            Some(expand) => params.expand(expand),
            None => params,
        }
    }

    pub(crate) fn convnext(&self) -> Option<ConvNextParams<'_>> {
        let expand = self.expand().filter(|_| self.workload.kind == Kind::ConvNext)?;
        let params = ConvNextParams::new(self.depthwise(), expand, self.project())
            .norm(LayerNormParams::new(&self.norm.weights, &self.norm.bias, 1e-6))
            .scale(&self.scale);
        Some(if self.workload.residual { params.residual(Residual::Input) } else { params })
    }

    pub(crate) fn operation(&self, isa: Isa) -> mbconv::Result<Operation> {
        if let Some(params) = self.convnext() {
            return Ok(Operation::ConvNext(ConvNextBlock::with_isa(&params, isa)?));
        }
        Ok(match self.workload.kind {
            Kind::Bottleneck | Kind::Separable | Kind::Stem | Kind::ConvNext => {
                Operation::Block(InvertedBottleneck::with_isa(&self.block(), isa)?)
            }
            Kind::Depthwise => Operation::Depthwise(Depthwise::with_isa(&self.depthwise(), isa)?),
            Kind::Pointwise => Operation::Pointwise(Pointwise::with_isa(&self.project(), isa)?),
        })
    }

    pub(crate) fn plan(&self, operation: &Operation, schedule: Schedule) -> mbconv::Result<Plan> {
        self.plan_with(operation, &PlanOptions::new().schedule(schedule))
    }

    pub(crate) fn plan_with(
        &self,
        operation: &Operation,
        options: &PlanOptions,
    ) -> mbconv::Result<Plan> {
        let shape = self.workload.shape();
        Ok(match operation {
            Operation::Block(op) => Plan::Block(Box::new(op.plan_with(shape, options)?)),
            Operation::ConvNext(op) => Plan::Block(Box::new(op.plan_with(shape, options)?)),
            Operation::Depthwise(op) => Plan::Depthwise(op.plan_with(shape, options)?),
            Operation::Pointwise(op) => Plan::Pointwise(op.plan_with(shape, options)?),
        })
    }

    /// Bytes that a run must move: input, output and weights once each, and
    /// what an unfused block has between its stages written and read.
    pub(crate) fn bytes(&self, operation: &Operation, plan: &Plan) -> usize {
        let weights = match operation {
            Operation::Block(op) => op.weight_bytes(),
            Operation::ConvNext(op) => op.weight_bytes(),
            Operation::Depthwise(op) => op.weight_bytes(),
            Operation::Pointwise(op) => op.weight_bytes(),
        };
        let between = match plan {
            Plan::Block(plan) if !plan.is_fused() => {
                let [_, c_mid, c_out] = self.workload.c;
                let depthwise = plan.output_len() / c_out * c_mid * size_of::<f32>();
                2 * (plan.expanded_bytes() + depthwise)
            }
            _ => 0,
        };
        (plan.input_len() + plan.output_len()) * size_of::<f32>() + weights + between
    }

    /// Expanded channels of a panel, which no slab cuts: the width of the expand
    /// kernel's tile, as its name says.
    pub(crate) fn panel(&self, isa: Isa) -> mbconv::Result<usize> {
        let Some(expand) = self.expand() else { return Ok(isa.lanes()) };
        let name = Pointwise::with_isa(&expand, isa)?.plan(self.workload.shape())?.kernel_name();
        let tile = name.split('_').find_map(|part| part.split_once('x'));
        Ok(tile.and_then(|(_, width)| width.parse().ok()).unwrap_or(isa.lanes()))
    }
}

/// The operation of a workload, weights packed.
pub(crate) enum Operation {
    Block(InvertedBottleneck),
    ConvNext(ConvNextBlock),
    Depthwise(Depthwise),
    Pointwise(Pointwise),
}

/// Its plan.
pub(crate) enum Plan {
    Block(Box<BottleneckPlan>),
    Depthwise(DepthwisePlan),
    Pointwise(PointwisePlan),
}

impl Plan {
    pub(crate) fn input_len(&self) -> usize {
        match self {
            Self::Block(plan) => plan.input_len(),
            Self::Depthwise(plan) => plan.input_len(),
            Self::Pointwise(plan) => plan.input_len(),
        }
    }

    pub(crate) fn output_len(&self) -> usize {
        match self {
            Self::Block(plan) => plan.output_len(),
            Self::Depthwise(plan) => plan.output_len(),
            Self::Pointwise(plan) => plan.output_len(),
        }
    }

    pub(crate) fn flops(&self) -> u64 {
        match self {
            Self::Block(plan) => plan.flops(),
            Self::Depthwise(plan) => plan.flops(),
            Self::Pointwise(plan) => plan.flops(),
        }
    }

    /// Single layers take none.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self {
            Self::Block(plan) => plan.scratch_bytes(),
            Self::Depthwise(_) | Self::Pointwise(_) => 0,
        }
    }

    pub(crate) fn kernel_name(&self) -> String {
        match self {
            Self::Block(plan) => plan.kernel_name(),
            Self::Depthwise(plan) => plan.kernel_name(),
            Self::Pointwise(plan) => plan.kernel_name(),
        }
    }

    pub(crate) fn run(
        &self,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        self.run_with(&Serial, input, output, scratch)
    }

    pub(crate) fn run_with(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        match self {
            Self::Block(plan) => plan.run_with(executor, input, output, scratch),
            Self::Depthwise(plan) => plan.run_with(executor, input, output),
            Self::Pointwise(plan) => plan.run_with(executor, input, output),
        }
    }
}
