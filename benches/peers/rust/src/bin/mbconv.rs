//! mbconv itself, and what the machine can do at best.

#[path = "../../../../../examples/support/efficientnet_lite0.rs"]
mod efficientnet_lite0;

#[path = "../../../../../examples/support/pool.rs"]
mod pool;

use std::hint::black_box;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use efficientnet_lite0::network::Network;

use mbconv::{
    Activation, BottleneckParams, BottleneckPlan, ConvNextBlock, ConvNextParams, Depthwise,
    DepthwiseParams, DepthwisePlan, InvertedBottleneck, Isa, LayerNormParams, Padding, PlanOptions,
    Pointwise, PointwiseParams, PointwisePlan, Residual, Schedule, Scratch, Shape,
    SqueezeExciteParams, measure_peak,
};
use mbconv_peers::{Case, Engine, Result, Unsupported, serve, threads};
use pool::Pool;
use pulp::{Arch, Simd, WithSimd};

enum Plan {
    Pointwise(PointwisePlan),
    Depthwise(DepthwisePlan),
    Block(Box<BottleneckPlan>, Scratch),
    Network(Box<Network>),
}

struct Mbconv {
    plan: Plan,
    pool: Pool,
    input: Tensor,
    output: Tensor,
}

/// f32 that start on a cache line, as the tensors of engines do.
struct Tensor {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Tensor {
    fn new(values: &[f32]) -> Self {
        const LINE: usize = 64;
        let len = values.len();
        let memory = vec![0.0; len + LINE / size_of::<f32>()];
        let start = memory.as_ptr().align_offset(LINE);
        let mut tensor = Self { memory, start, len };
        tensor.copy_from_slice(values);
        tensor
    }
}

impl Deref for Tensor {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for Tensor {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..][..self.len]
    }
}

/// The tensors of a layer.
struct Layer {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn load(case: &Case, name: &str, weights: &str) -> Result<Self> {
        let weights = case.tensor(&format!("{name}.{weights}"))?;
        Ok(Self { weights, bias: case.tensor(&format!("{name}.b"))? })
    }

    fn pointwise(&self, c_in: usize, c_out: usize) -> PointwiseParams<'_> {
        PointwiseParams::new(c_in, c_out, &self.weights).bias(&self.bias)
    }

    fn depthwise(&self, case: &Case, channels: usize) -> DepthwiseParams<'_> {
        DepthwiseParams::new(channels, [case.kernel; 2], &self.weights)
            .bias(&self.bias)
            .stride([case.stride; 2])
            .padding(Padding::uniform(case.kernel / 2))
    }
}

impl Plan {
    fn load(case: &Case) -> Result<(Self, usize)> {
        let shape = Shape::new(1, case.side, case.side);
        let options = PlanOptions::new().threads(threads());
        Ok(match case.kind.as_str() {
            "pw" => {
                let layer = Layer::load(case, "pointwise", "w")?;
                let op = Pointwise::new(&layer.pointwise(case.c_in, case.c_out))?;
                let plan = op.plan_with(shape, &options)?;
                let len = plan.output_len();
                (Self::Pointwise(plan), len)
            }
            "dw" => {
                let layer = Layer::load(case, "depthwise", "w.hwc")?;
                let plan = Depthwise::new(&layer.depthwise(case, case.c_exp))?
                    .plan_with(shape, &options)?;
                let len = plan.output_len();
                (Self::Depthwise(plan), len)
            }
            "ir" | "sep" => Self::block(bottleneck(case)?.plan_with(shape, &options)?),
            "cnx" => Self::block(convnext(case)?.plan_with(shape, &options)?),
            "net" if threads() > 1 => {
                return Err(Unsupported("the example's network runs on one thread".into()).into());
            }
            "net" => {
                let weights = std::fs::read(case.path("model.safetensors"))?;
                let network = efficientnet_lite0::load(&weights, Isa::detect()?, Schedule::Auto)?;
                (Self::Network(Box::new(network)), case.c_out)
            }
            _ => return Err(case.unsupported()),
        })
    }

    fn block(plan: BottleneckPlan) -> (Self, usize) {
        let (len, scratch) = (plan.output_len(), plan.scratch());
        (Self::Block(Box::new(plan), scratch), len)
    }
}

/// A block of MobileNetV2 or V3, or without its expansion.
fn bottleneck(case: &Case) -> Result<InvertedBottleneck> {
    let &Case { c_in, c_exp, c_out, squeezed, .. } = case;
    let activation = match case.activation.as_str() {
        "relu" => Activation::Relu,
        "relu6" => Activation::Relu6,
        "hardswish" => Activation::HardSwish,
        other => return Err(format!("no activation {other}").into()),
    };
    let depthwise = Layer::load(case, "depthwise", "w.hwc")?;
    let project = Layer::load(case, "project", "w")?;
    let mut params = BottleneckParams::new(
        depthwise.depthwise(case, c_exp).activation(activation),
        project.pointwise(c_exp, c_out),
    )
    .residual(case.residual());
    let expand;
    if case.kind == "ir" {
        expand = Layer::load(case, "expand", "w")?;
        params = params.expand(expand.pointwise(c_in, c_exp).activation(activation));
    }
    let excite;
    if squeezed > 0 {
        excite = [Layer::load(case, "se.reduce", "w")?, Layer::load(case, "se.expand", "w")?];
        let gate = Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
        params = params.squeeze_excite(SqueezeExciteParams::new(
            excite[0].pointwise(c_exp, squeezed).activation(Activation::Relu),
            excite[1].pointwise(squeezed, c_exp).activation(gate),
        ));
    }
    Ok(InvertedBottleneck::new(&params)?)
}

fn convnext(case: &Case) -> Result<ConvNextBlock> {
    const EPSILON: f32 = 1e-6;
    let &Case { c_in, c_exp, c_out, .. } = case;
    let depthwise = Layer::load(case, "depthwise", "w.hwc")?;
    let norm = Layer::load(case, "norm", "w")?;
    let expand = Layer::load(case, "expand", "w")?;
    let project = Layer::load(case, "project", "w")?;
    let scale = case.tensor("scale.w")?;
    let mut params = ConvNextParams::new(
        depthwise.depthwise(case, c_in),
        expand.pointwise(c_in, c_exp).activation(Activation::Gelu),
        project.pointwise(c_exp, c_out),
    )
    .norm(LayerNormParams::new(&norm.weights, &norm.bias, EPSILON))
    .scale(&scale);
    if case.residual() {
        params = params.residual(Residual::Input);
    }
    Ok(ConvNextBlock::new(&params)?)
}

impl Engine for Mbconv {
    const LAYOUT: &str = "nhwc";

    fn load(case: &Case) -> Result<Self> {
        let (plan, len) = Plan::load(case)?;
        let input = Tensor::new(&case.tensor("x.nhwc")?);
        let output = Tensor::new(&vec![0.0; len]);
        Ok(Self { plan, pool: Pool::new(threads()), input, output })
    }

    fn run(&mut self) -> Result<()> {
        let (pool, x, y) = (&self.pool, &self.input, &mut self.output);
        match &mut self.plan {
            Plan::Pointwise(plan) => plan.run_with(pool, x, y)?,
            Plan::Depthwise(plan) => plan.run_with(pool, x, y)?,
            Plan::Block(plan, scratch) => plan.run_with(pool, x, y, scratch)?,
            Plan::Network(network) => y.copy_from_slice(network.run(x)?),
        }
        black_box(y);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        self.output.fill(f32::NAN);
        self.run()?;
        Ok(self.output.to_vec())
    }

    fn isa() -> String {
        Isa::detect().map_or("none".into(), |isa| isa.name().into())
    }

    fn command(name: &str) -> Result<String> {
        match name {
            "peak" => Ok(measure_peak(Isa::detect()?).to_string()),
            // Some second-level caches have 256 KiB, some last-level ones 64 MiB.
            "bandwidth" => Ok(format!("{} {}", read(128 << 10, 1000), read(256 << 20, 1))),
            _ => Err(format!("no command {name}").into()),
        }
    }
}

/// The best GB/s of reading `bytes` over and over on one thread.
fn read(bytes: usize, passes: usize) -> f64 {
    let data = vec![1.0f32; bytes / size_of::<f32>()];
    let arch = Arch::new();
    let pass = || {
        let start = Instant::now();
        for _ in 0..passes {
            black_box(arch.dispatch(Sum(black_box(&data))));
        }
        (bytes * passes) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..3).map(|_| pass()).fold(0.0, f64::max)
}

/// The sum of some numbers, by the widest loads there are: narrower ones are slower than
/// a second-level cache.
struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        const CHAINS: usize = 8;
        let mut sums = [simd.splat_f32s(0.0); CHAINS];
        for chunk in S::as_simd_f32s(self.0).0.as_chunks::<CHAINS>().0 {
            for (sum, &value) in sums.iter_mut().zip(chunk) {
                *sum = simd.add_f32s(*sum, value);
            }
        }
        let sum = sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b));
        simd.reduce_sum_f32s(sum)
    }
}

fn main() -> std::io::Result<()> {
    serve::<Mbconv>()
}
