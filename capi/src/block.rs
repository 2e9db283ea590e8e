//! Blocks as they are described, before an operation packs them.

use mbconv::{
    BottleneckParams, ConvNextBlock, ConvNextParams, InvertedBottleneck, Isa, LayerNormParams,
    PointwiseParams, SqueezeExciteParams,
};

use crate::layer::{Layer, Params};
use crate::memory::{floats, free, give, handle, handle_mut};
use crate::op::Kind;
use crate::status::{Failure, Result, Status, guard};

/// In which order a block has its layers.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// MobileNet's: expand 1x1, depthwise, squeeze-and-excite, project 1x1. A full convolution (a
    /// network's stem) may be in the place of the expansion; all but depthwise may be left out.
    Inverted = 0,
    /// ConvNeXt's: depthwise, squeeze-and-excite, norm, expand 1x1, project 1x1, scale. Expansion and
    /// projection are always there.
    Convnext = 1,
}

/// What is added to a block's output.
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum Residual {
    /// Nothing.
    None = 0,
    /// The block's input.
    Input = 1,
    /// What the expansion takes, in ConvNeXt's order.
    Depthwise = 2,
}

/// Layers that follow each other.
pub struct Block {
    order: Order,
    depthwise: Layer,
    expand: Option<Layer>,
    project: Option<Layer>,
    squeeze_excite: Option<[Layer; 2]>,
    norm: Option<Norm>,
    scale: Option<Vec<f32>>,
    residual: Residual,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

fn pointwise(layer: &Layer) -> Result<PointwiseParams<'_>> {
    match layer.params() {
        Params::Pointwise(params) => Ok(params),
        _ => Err(Failure::Argument("a layer of a block is not a 1x1 convolution")),
    }
}

impl Block {
    pub(crate) fn pack(&self, isa: Isa) -> Result<Kind> {
        let Params::Depthwise(depthwise) = self.depthwise.params() else {
            return Err(Failure::Argument("a block's depthwise layer is not depthwise"));
        };
        let project = self.project.as_ref().map(pointwise).transpose()?;
        let excite = match &self.squeeze_excite {
            Some([reduce, expand]) => {
                Some(SqueezeExciteParams::new(pointwise(reduce)?, pointwise(expand)?))
            }
            None => None,
        };
        if self.order == Order::Convnext {
            let (Some(expand), Some(project)) = (&self.expand, project) else {
                return Err(Failure::Argument(
                    "a block in ConvNeXt's order has an expansion and a projection",
                ));
            };
            let mut block = ConvNextParams::new(depthwise, pointwise(expand)?, project);
            if let Some(excite) = excite {
                block = block.squeeze_excite(excite);
            }
            if let Some(Norm { weight, bias, epsilon }) = &self.norm {
                block = block.norm(LayerNormParams::new(weight, bias, *epsilon));
            }
            if let Some(scale) = &self.scale {
                block = block.scale(scale);
            }
            block = match self.residual {
                Residual::None => block,
                Residual::Input => block.residual(mbconv::Residual::Input),
                Residual::Depthwise => block.residual(mbconv::Residual::Depthwise),
            };
            return Ok(Kind::ConvNext(ConvNextBlock::with_isa(&block, isa)?));
        }
        if self.norm.is_some() || self.scale.is_some() {
            return Err(Failure::Argument(
                "only a block in ConvNeXt's order has a norm or a scale",
            ));
        }
        let mut block = match project {
            Some(project) => BottleneckParams::new(depthwise, project),
            None => BottleneckParams::without_project(depthwise),
        };
        block = match self.expand.as_ref().map(Layer::params) {
            None => block,
            Some(Params::Pointwise(expand)) => block.expand(expand),
            Some(Params::Conv(stem)) => block.stem(stem),
            Some(Params::Depthwise(_)) => {
                return Err(Failure::Argument("a block's expansion is depthwise"));
            }
        };
        if let Some(excite) = excite {
            block = block.squeeze_excite(excite);
        }
        block = match self.residual {
            Residual::None => block,
            Residual::Input => block.residual(true),
            Residual::Depthwise => {
                return Err(Failure::Argument("only ConvNeXt's order has a residual from within"));
            }
        };
        Ok(Kind::Block(InvertedBottleneck::with_isa(&block, isa)?))
    }
}

/// Describes a block of one layer; `order` is an `mbconv_order`. Layers given here and below are
/// copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_new(
    order: i32,
    depthwise: *const Layer,
    block: *mut *mut Block,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(block, || {
            let order = match order {
                value if value == Order::Inverted as i32 => Order::Inverted,
                value if value == Order::Convnext as i32 => Order::Convnext,
                value => return Err(Failure::Value { what: "order", value }),
            };
            Ok(Block {
                order,
                depthwise: handle(depthwise, "depthwise")?.clone(),
                expand: None,
                project: None,
                squeeze_excite: None,
                norm: None,
                scale: None,
                residual: Residual::None,
            })
        })
    })
}

/// Sets the expansion, a 1x1 convolution, or in MobileNet's order a full one in its place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_expand(
    block: *mut Block,
    expand: *const Layer,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        handle_mut(block, "block")?.expand = Some(handle(expand, "expand")?.clone());
        Ok(())
    })
}

/// Sets the projection, a 1x1 convolution.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_project(
    block: *mut Block,
    project: *const Layer,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        handle_mut(block, "block")?.project = Some(handle(project, "project")?.clone());
        Ok(())
    })
}

/// Scales the depthwise output by a gate made of its means: `reduce` takes them, `expand` gives the
/// factors; both are 1x1 convolutions, each with its activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_squeeze_excite(
    block: *mut Block,
    reduce: *const Layer,
    expand: *const Layer,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        let layers = [handle(reduce, "reduce")?.clone(), handle(expand, "expand")?.clone()];
        handle_mut(block, "block")?.squeeze_excite = Some(layers);
        Ok(())
    })
}

/// Sets the layer normalisation of ConvNeXt's order: a weight and a bias for each channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_norm(
    block: *mut Block,
    weight: *const f32,
    bias: *const f32,
    channels: usize,
    epsilon: f32,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        let weight = floats(weight, channels, "weight")?.to_vec();
        let bias = floats(bias, channels, "bias")?.to_vec();
        handle_mut(block, "block")?.norm = Some(Norm { weight, bias, epsilon });
        Ok(())
    })
}

/// Sets the factor of each channel of ConvNeXt's output.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_scale(
    block: *mut Block,
    scale: *const f32,
    channels: usize,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        handle_mut(block, "block")?.scale = Some(floats(scale, channels, "scale")?.to_vec());
        Ok(())
    })
}

/// Sets what is added to the output, an `mbconv_residual`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_set_residual(block: *mut Block, residual: i32) -> Status {
    guard(|| {
        let residual = match residual {
            value if value == Residual::None as i32 => Residual::None,
            value if value == Residual::Input as i32 => Residual::Input,
            value if value == Residual::Depthwise as i32 => Residual::Depthwise,
            value => return Err(Failure::Value { what: "residual", value }),
        };
        // SAFETY: the rules of the header.
        unsafe { handle_mut(block, "block") }?.residual = residual;
        Ok(())
    })
}

/// Frees a block's description; operations built of it live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_block_free(block: *mut Block) {
    // SAFETY: the rules of the header.
    unsafe { free(block) }
}
