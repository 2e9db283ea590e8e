//! candle's own operations, as a model written on it would call them. Its
//! threads are those of `RAYON_NUM_THREADS`.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use mbconv_peers::{Case, Engine, Result, Unsupported, serve};

/// A convolution with its bias.
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: usize,
    groups: usize,
    relu6: bool,
}

impl Conv {
    fn pointwise(case: &Case, name: &str, [c_in, c_out]: [usize; 2], relu6: bool) -> Result<Self> {
        let weight = tensor(case, &format!("{name}.w"), &[c_out, c_in, 1, 1])?;
        let bias = tensor(case, &format!("{name}.b"), &[1, c_out, 1, 1])?;
        Ok(Self { weight, bias, stride: 1, padding: 0, groups: 1, relu6 })
    }

    fn depthwise(case: &Case, relu6: bool) -> Result<Self> {
        let (c, k) = (case.c_exp, case.kernel);
        let weight = tensor(case, "depthwise.w.chw", &[c, 1, k, k])?;
        let bias = tensor(case, "depthwise.b", &[1, c, 1, 1])?;
        Ok(Self { weight, bias, stride: case.stride, padding: k / 2, groups: c, relu6 })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = x.conv2d(&self.weight, self.padding, self.stride, 1, self.groups)?;
        let y = y.broadcast_add(&self.bias)?;
        if self.relu6 { y.clamp(0f32, 6f32) } else { Ok(y) }
    }
}

fn tensor(case: &Case, name: &str, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(case.tensor(name)?, shape, &Device::Cpu)?)
}

struct Candle {
    layers: Vec<Conv>,
    residual: bool,
    input: Tensor,
}

impl Candle {
    fn forward(&self) -> candle_core::Result<Tensor> {
        let mut y = self.input.clone();
        for layer in &self.layers {
            y = layer.forward(&y)?;
        }
        if self.residual { y + &self.input } else { Ok(y) }
    }
}

impl Engine for Candle {
    const LAYOUT: &str = "nchw";

    fn load(case: &Case) -> Result<Self> {
        let &Case { side, c_in, c_exp, c_out, .. } = case;
        let layers = match case.kind.as_str() {
            "ir" if case.activation != "relu6" => {
                return Err(Unsupported("only blocks with relu6 are written for it".into()).into());
            }
            "ir" => vec![
                Conv::pointwise(case, "expand", [c_in, c_exp], true)?,
                Conv::depthwise(case, true)?,
                Conv::pointwise(case, "project", [c_exp, c_out], false)?,
            ],
            "dw" => vec![Conv::depthwise(case, false)?],
            "pw" => vec![Conv::pointwise(case, "pointwise", [c_in, c_out], false)?],
            _ => return Err(case.unsupported()),
        };
        let input = tensor(case, "x.nchw", &[1, c_in, side, side])?;
        Ok(Self { layers, residual: case.kind == "ir" && case.residual(), input })
    }

    fn run(&mut self) -> Result<()> {
        black_box(self.forward()?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(self.forward()?.flatten_all()?.to_vec1()?)
    }
}

fn main() -> std::io::Result<()> {
    serve::<Candle>()
}
