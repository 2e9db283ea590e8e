//! Small models, built with tract's own operations, and their outputs.

#![allow(dead_code, reason = "not every test that shares this module uses all of it")]

#[path = "../../../../examples/support/deviation.rs"]
mod deviation;

use deviation::Deviation;
use mbconv_tract::{Part, Report, fuse};
use tract_core::internal::*;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::math::{add, max, min};
use tract_core::ops::nn::DataFormat;

/// Of an output, relative to its largest.
const TOLERANCE: f64 = 1e-5;

/// A model in the making, with random weights.
#[derive(Clone)]
pub struct Net {
    pub model: TypedModel,
    seed: u32,
}

/// A convolution's geometry; 1x1 with padding that keeps the image's size.
#[derive(Clone)]
pub struct Spec {
    pub kernel: usize,
    pub stride: usize,
    pub group: usize,
    pub padding: PaddingSpec,
    pub format: DataFormat,
}

impl Spec {
    pub fn pointwise() -> Self {
        let (padding, format) = (PaddingSpec::Valid, DataFormat::NCHW);
        Self { kernel: 1, stride: 1, group: 1, padding, format }
    }

    pub fn window(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, padding: PaddingSpec::SameUpper, ..Self::pointwise() }
    }

    pub fn depthwise(channels: usize, kernel: usize, stride: usize) -> Self {
        Self { group: channels, ..Self::window(kernel, stride) }
    }

    pub fn format(self, format: DataFormat) -> Self {
        Self { format, ..self }
    }
}

/// Numbers between -1 and 1.
pub fn random(seed: &mut u32, shape: &[usize]) -> TractResult<Tensor> {
    let numbers: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_shape(shape, &numbers)
}

impl Net {
    /// A model of one input.
    pub fn new(shape: impl Into<ShapeFact>) -> TractResult<(Self, OutletId)> {
        let mut net = Self { model: TypedModel::default(), seed: 1 };
        let x = net.model.add_source("x", f32::fact(shape))?;
        Ok((net, x))
    }

    pub fn of(model: TypedModel) -> Self {
        Self { model, seed: 1 }
    }

    pub fn source(&mut self, shape: &[TDim]) -> TractResult<OutletId> {
        self.model.add_source("x", f32::fact(shape))
    }

    pub fn constant(&mut self, name: &str, shape: &[usize]) -> TractResult<OutletId> {
        let value = random(&mut self.seed, shape)?;
        self.model.add_const(name, value)
    }

    /// A number, in the rank of `like`.
    pub fn scalar(&mut self, name: &str, value: f32, like: OutletId) -> TractResult<OutletId> {
        let rank = self.model.outlet_fact(like)?.rank();
        self.model.add_const(name, Tensor::from_shape(&vec![1; rank], &[value])?)
    }

    pub fn wire(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.model.wire_node(name, op, inputs)?[0])
    }

    /// `x op number`
    pub fn with_scalar(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        x: OutletId,
        number: f32,
    ) -> TractResult<OutletId> {
        let number = self.scalar(&format!("{name}.number"), number, x)?;
        self.wire(name, op, &[x, number])
    }

    pub fn conv_with(
        &mut self,
        name: &str,
        x: OutletId,
        c_out: usize,
        spec: Spec,
        kernel: OutletId,
    ) -> TractResult<OutletId> {
        let shape = self.model.outlet_fact(x)?.shape.clone();
        let c_in = spec.format.shape(shape.to_tvec())?.c().to_usize()?;
        let bias = self.constant(&format!("{name}.bias"), &[c_out])?;
        let pool = PoolSpec::new(
            spec.format,
            tvec!(spec.kernel; 2),
            spec.padding,
            None,
            Some(tvec!(spec.stride; 2)),
            c_in,
            c_out,
        );
        let conv = Conv::new(pool, KernelFormat::OIHW, spec.group, None);
        self.wire(name, conv, &[x, kernel, bias])
    }

    pub fn conv(
        &mut self,
        name: &str,
        x: OutletId,
        c_out: usize,
        spec: Spec,
    ) -> TractResult<OutletId> {
        let shape = self.model.outlet_fact(x)?.shape.clone();
        let c_in = spec.format.shape(shape.to_tvec())?.c().to_usize()?;
        let shape = [c_out, c_in / spec.group, spec.kernel, spec.kernel];
        let kernel = self.constant(&format!("{name}.kernel"), &shape)?;
        self.conv_with(name, x, c_out, spec, kernel)
    }

    pub fn relu6(&mut self, name: &str, x: OutletId) -> TractResult<OutletId> {
        let x = self.with_scalar(&format!("{name}.lo"), max(), x, 0.0)?;
        self.with_scalar(name, min(), x, 6.0)
    }

    /// An inverted bottleneck from 8 to 8 channels with ReLU6, named by `name` and the stage.
    pub fn block(
        &mut self,
        name: &str,
        x: OutletId,
        stride: usize,
        residual: bool,
    ) -> TractResult<OutletId> {
        let y = self.conv(&format!("{name}.expand"), x, 24, Spec::pointwise())?;
        let y = self.relu6(&format!("{name}.expand.act"), y)?;
        let y = self.conv(&format!("{name}.dw"), y, 24, Spec::depthwise(24, 3, stride))?;
        let y = self.relu6(&format!("{name}.dw.act"), y)?;
        let y = self.conv(&format!("{name}.project"), y, 8, Spec::pointwise())?;
        if residual { self.wire(&format!("{name}.add"), add(), &[y, x]) } else { Ok(y) }
    }

    /// Ends the model, checks that the pass changes no output by more than rounding, for the
    /// model as it is and decluttered, and gives the report of the latter.
    pub fn check(self, outputs: &[OutletId]) -> TractResult<Report> {
        let shape = self
            .model
            .outlet_fact(self.model.inputs[0])?
            .shape
            .as_concrete()
            .map(<[usize]>::to_vec);
        let shape = shape.context("a concrete shape")?;
        self.check_shapes(outputs, &[&shape])
    }

    pub fn check_shapes(
        mut self,
        outputs: &[OutletId],
        shapes: &[&[usize]],
    ) -> TractResult<Report> {
        self.model.select_output_outlets(outputs)?;
        let decluttered = self.model.clone().into_decluttered()?;
        let mut report = None;
        for mut model in [self.model, decluttered] {
            let plain = model.clone().into_optimized()?.into_runnable()?;
            report = Some(fuse(&mut model)?);
            let fused = model.into_optimized()?.into_runnable()?;
            let mut state = fused.spawn()?;
            for shape in shapes {
                let x = random(&mut 7, shape)?.into_tvalue();
                let expected = plain.run(tvec!(x.clone()))?;
                // The second run finds the first one's plan and scratch memory.
                for run in [state.run(tvec!(x.clone()))?, fused.run(tvec!(x.clone()))?] {
                    for (y, expected) in run.iter().zip(&expected) {
                        close(y, expected)?;
                    }
                }
            }
        }
        report.context("two models")
    }
}

/// Within rounding, relative to the largest.
pub fn close(y: &Tensor, expected: &Tensor) -> TractResult<()> {
    ensure!(y.shape() == expected.shape(), "{:?} is not {:?}", y.shape(), expected.shape());
    let (y, expected) = (y.try_as_plain_ram()?, expected.try_as_plain_ram()?);
    let error = Deviation::between(expected.as_slice()?, y.as_slice()?).relative;
    ensure!(error <= TOLERANCE, "off by {error:e} of the largest");
    Ok(())
}

/// Blocks, depthwise and pointwise convolutions replaced, convolutions left.
pub fn counts(report: &Report) -> [usize; 4] {
    let count = |part: Part| report.replaced.iter().filter(|r| r.part == part).count();
    [count(Part::Block), count(Part::Depthwise), count(Part::Pointwise), report.left.len()]
}
