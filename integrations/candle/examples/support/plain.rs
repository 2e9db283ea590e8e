//! Layers by candle's own operations, and seeded weights under any name.

use candle_core::{DType, Device, Module, ModuleT, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{BatchNorm, Conv2d, Conv2dConfig, Init, VarBuilder, batch_norm, conv2d_no_bias};
use mbconv_candle::{Activation, BottleneckConvs, Conv};

/// A convolution, its batch normalisation, and ReLU6 or nothing.
pub struct Plain {
    conv: Conv2d,
    norm: BatchNorm,
    relu6: bool,
}

impl Plain {
    /// `c` is of input and output; `names` of the convolution and the normalisation.
    pub fn load(
        c: [usize; 2],
        kernel: usize,
        config: Conv2dConfig,
        relu6: bool,
        vb: &VarBuilder<'_>,
        names: [&str; 2],
    ) -> Result<Self> {
        let conv = conv2d_no_bias(c[0], c[1], kernel, config, vb.pp(names[0]))?;
        Ok(Self { conv, norm: batch_norm(c[1], 1e-5, vb.pp(names[1]))?, relu6 })
    }

    /// The same for mbconv.
    pub fn conv(&self) -> Conv {
        let activation = if self.relu6 { Activation::Relu6 } else { Activation::Identity };
        Conv::new(self.conv.clone()).norm(self.norm.clone()).activation(activation)
    }
}

impl Module for Plain {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.norm.forward_t(&self.conv.forward(x)?, false)?;
        if self.relu6 { y.clamp(0f32, 6f32) } else { Ok(y) }
    }
}

/// Layers one after the other, and the input added.
pub struct PlainBlock {
    pub layers: Vec<Plain>,
    pub residual: bool,
}

impl PlainBlock {
    /// The same for mbconv.
    pub fn convs(&self) -> BottleneckConvs {
        let convs: Vec<Conv> = self.layers.iter().map(Plain::conv).collect();
        let [first @ .., depthwise, project] = &convs[..] else { panic!("two layers at least") };
        BottleneckConvs {
            first: first.first().cloned(),
            depthwise: depthwise.clone(),
            squeeze_excite: None,
            project: project.clone(),
            residual: self.residual,
        }
    }
}

impl Module for PlainBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        for layer in &self.layers {
            y = layer.forward(&y)?;
        }
        if self.residual { y + x } else { Ok(y) }
    }
}

/// Tensors of any name and shape, the same in every run, of sizes that keep a network's numbers
/// about as large as its input's.
pub struct Seeded;

impl Seeded {
    pub fn builder() -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self), DType::F32, Device::Cpu)
    }

    /// Numbers from `low` to `high` that depend on the name only.
    pub fn tensor(shape: impl Into<Shape>, name: &str, [low, high]: [f32; 2]) -> Result<Tensor> {
        let shape = shape.into();
        let mut state = name
            .bytes()
            .fold(2018u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            low + (high - low) * (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let numbers: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu)
    }
}

impl SimpleBackend for Seeded {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor> {
        let range = match (shape.dims(), name.rsplit('.').next()) {
            ([_, inputs @ ..], Some("weight")) if !inputs.is_empty() => {
                let scale = (3.0 / inputs.iter().product::<usize>() as f32).sqrt();
                [-scale, scale]
            }
            (_, Some("weight" | "running_var")) => [0.5, 1.5],
            _ => [-0.5, 0.5],
        };
        Self::tensor(shape, name, range)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: a shape is needed")
    }

    /// Whatever is asked for; no layer here has a squeeze-and-excite part.
    fn contains_tensor(&self, name: &str) -> bool {
        !name.contains("se.")
    }
}

/// The largest difference, divided by the largest number.
pub fn deviation(expected: &Tensor, actual: &Tensor) -> Result<f32> {
    let largest = expected.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let difference = (expected - actual)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(difference / largest)
}
