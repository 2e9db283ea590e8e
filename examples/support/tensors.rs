//! Layers of f32 out of safetensors files.
#![allow(dead_code, reason = "each program uses its part")]

use mbconv::{ConvParams, DepthwiseParams, PointwiseParams};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

/// A safetensors file in memory, its header checked.
pub(crate) struct TensorFile<'a> {
    header: Metadata,
    data: &'a [u8],
}

impl<'a> TensorFile<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        // The header follows its own length, 8 bytes.
        Ok(Self { header, data: &bytes[8 + length..] })
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The tensor of that name, which must have `N` axes.
    pub(crate) fn tensor<const N: usize>(&self, name: &str) -> Result<Tensor<N>, String> {
        let (shape, data) = self.numbers(name)?;
        let shape = shape
            .try_into()
            .map_err(|_| format!("tensor {name} is {shape:?}, it must have {N} axes"))?;
        Ok(Tensor { shape, data })
    }

    /// The tensor of that name, whatever its shape.
    pub(crate) fn numbers(&self, name: &str) -> Result<(&[usize], Vec<f32>), String> {
        let info = self.header.info(name).ok_or_else(|| format!("tensor {name} is missing"))?;
        if info.dtype != Dtype::F32 {
            return Err(format!("tensor {name} is {:?}, not F32", info.dtype));
        }
        let (start, end) = info.data_offsets;
        let (bytes, _) = self.data[start..end].as_chunks();
        Ok((&info.shape, bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    /// The tensors `name.weight` and `name.bias`.
    pub(crate) fn layer<const N: usize>(&self, name: &str) -> Result<Layer<N>, String> {
        Ok(Layer {
            weight: self.tensor(&format!("{name}.weight"))?,
            bias: self.tensor(&format!("{name}.bias"))?,
        })
    }
}

/// Numbers in C order.
pub(crate) struct Tensor<const N: usize> {
    pub(crate) shape: [usize; N],
    pub(crate) data: Vec<f32>,
}

/// A convolution's weights with `N` axes, and its bias.
pub(crate) struct Layer<const N: usize> {
    pub(crate) weight: Tensor<N>,
    pub(crate) bias: Tensor<1>,
}

impl Layer<2> {
    /// `[c_out][c_in]`
    pub(crate) fn params(&self) -> PointwiseParams<'_> {
        let [c_out, c_in] = self.weight.shape;
        PointwiseParams::new(c_in, c_out, &self.weight.data).bias(&self.bias.data)
    }
}

impl Layer<3> {
    /// `[kernel height][kernel width][channels]`
    pub(crate) fn params(&self) -> DepthwiseParams<'_> {
        let [height, width, channels] = self.weight.shape;
        DepthwiseParams::new(channels, [height, width], &self.weight.data).bias(&self.bias.data)
    }
}

impl Layer<4> {
    /// `[c_out][kernel height][kernel width][c_in]`
    pub(crate) fn params(&self) -> ConvParams<'_> {
        let [c_out, height, width, c_in] = self.weight.shape;
        ConvParams::new(c_in, c_out, [height, width], &self.weight.data).bias(&self.bias.data)
    }
}
