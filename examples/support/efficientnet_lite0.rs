//! EfficientNet-Lite0 (Liu 2020: EfficientNet-B0 without squeeze-and-excitation,
//! with relu6) from its safetensors file.

pub(crate) mod network;
pub(crate) mod tensors;

use core::error::Error;

use mbconv::{Activation::Relu6, BottleneckParams, Isa, Padding, Schedule};
use network::{Layers, Network};
use tensors::{Layer, TensorFile};

/// Of each block's depthwise convolution.
const STRIDES: [usize; 16] = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1];

/// The weights of a block; the first has no expansion.
struct Block {
    expand: Option<Layer<2>>,
    depthwise: Layer<3>,
    project: Layer<2>,
}

impl Block {
    fn load(file: &TensorFile<'_>, n: usize) -> Result<Self, Box<dyn Error>> {
        let name = |layer| format!("blocks.{n}.{layer}");
        Ok(Self {
            expand: (n > 0).then(|| file.layer(&name("expand"))).transpose()?,
            depthwise: file.layer(&name("depthwise"))?,
            project: file.layer(&name("project"))?,
        })
    }

    fn params(&self, stride: usize) -> BottleneckParams<'_> {
        let depthwise = self
            .depthwise
            .params()
            .stride([stride; 2])
            .padding(Padding::SameUpper)
            .activation(Relu6);
        let params = BottleneckParams::new(depthwise, self.project.params());
        match &self.expand {
            None => params,
            Some(expand) => params
                .expand(expand.params().activation(Relu6))
                .residual(stride == 1 && expand.weight.shape[1] == self.project.weight.shape[0]),
        }
    }
}

/// Packs and plans the network of the safetensors file `weights`.
pub(crate) fn load(
    weights: &[u8],
    isa: Isa,
    schedule: Schedule,
) -> Result<Network, Box<dyn Error>> {
    let file = TensorFile::parse(weights)?;
    let stem: Layer<4> = file.layer("stem")?;
    let blocks =
        (0..STRIDES.len()).map(|n| Block::load(&file, n)).collect::<Result<Vec<_>, _>>()?;
    let (head, classifier): (Layer<2>, Layer<2>) = (file.layer("head")?, file.layer("classifier")?);
    let mut blocks: Vec<_> =
        blocks.iter().zip(STRIDES).map(|(block, stride)| block.params(stride)).collect();
    let stem = stem.params().stride([2; 2]).padding(Padding::SameUpper).activation(Relu6);
    blocks[0] = blocks[0].stem(stem);
    let layers =
        Layers { blocks, head: head.params().activation(Relu6), classifier: classifier.params() };
    Ok(Network::new(&layers, isa, schedule)?)
}

/// What the network takes, from 8-bit RGB.
#[allow(dead_code, reason = "not every program that shares this module has photos")]
pub(crate) fn normalise(rgb: &[u8]) -> Vec<f32> {
    rgb.iter().map(|&v| (f32::from(v) - 127.0) / 128.0).collect()
}
