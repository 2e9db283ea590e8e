//! `ConvNextBlock`: the inverted bottleneck with its depthwise convolution first.

use alloc::sync::Arc;
use core::fmt;

use crate::error::Result;
use crate::isa::Isa;
use crate::op::block::{BottleneckPlan, Packed, PackedStage};
use crate::pack::{PackDepthwise, PackedNorm, Tail};
use crate::params::{ConvNextParams, PointwiseParams};
use crate::schedule::PlanOptions;
use crate::shape::Shape;

/// A block in ConvNeXt's order with its weights packed for one instruction set.
///
/// A band of rows at a time is filtered, normalised while it is in the cache, and
/// taken through the wide middle slab by slab: of that there is only a tile, of the
/// band's pixels by some of its channels.
///
/// ```
/// use mbconv::{
///     Activation, ConvNextBlock, ConvNextParams, DepthwiseParams, LayerNormParams, Padding,
///     PointwiseParams, Residual, Shape,
/// };
///
/// let c = 8; // channels
/// let (depthwise, ones, zeros) = (vec![0.1; 49 * c], vec![1.0; c], vec![0.0; c]);
/// let (expand, project, scale) = (vec![0.1; 4 * c * c], vec![0.1; 4 * c * c], vec![1e-6; c]);
/// let block = ConvNextParams::new(
///     DepthwiseParams::new(c, [7, 7], &depthwise).padding(Padding::uniform(3)),
///     PointwiseParams::new(c, 4 * c, &expand).activation(Activation::Gelu),
///     PointwiseParams::new(4 * c, c, &project),
/// )
/// .norm(LayerNormParams::new(&ones, &zeros, 1e-6))
/// .scale(&scale)
/// .residual(Residual::Input);
///
/// let plan = ConvNextBlock::new(&block)?.plan(Shape::new(1, 14, 14))?;
/// let (x, mut y) = (vec![1.0; 14 * 14 * c], vec![0.0; 14 * 14 * c]);
/// plan.run(&x, &mut y, &mut plan.scratch())?;
/// println!("{}", plan.explain());
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone)]
pub struct ConvNextBlock(Arc<Packed>);

impl fmt::Debug for ConvNextBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(f, "ConvNextBlock")
    }
}

impl ConvNextBlock {
    /// Packs the block for the instruction set that [`Isa::detect`] gives.
    ///
    /// # Errors
    ///
    /// What [`Isa::detect`] gives; those of [`Pointwise::new`](crate::Pointwise::new)
    /// and [`Depthwise::new`](crate::Depthwise::new) for each stage;
    /// [`Error::ChannelMismatch`](crate::Error::ChannelMismatch) when neighbouring
    /// stages differ, or ends that a residual joins;
    /// [`Error::Length`](crate::Error::Length) of norm or scale;
    /// [`Error::InvalidEpsilon`](crate::Error::InvalidEpsilon);
    /// [`Error::ScaledActivation`](crate::Error::ScaledActivation);
    /// [`Error::MultiplierInBlock`](crate::Error::MultiplierInBlock).
    pub fn new(params: &ConvNextParams<'_>) -> Result<Self> {
        Self::with_isa(params, Isa::detect()?)
    }

    /// Packs the block for `isa`.
    ///
    /// # Errors
    ///
    /// As for [`ConvNextBlock::new`], without those of detection.
    pub fn with_isa(params: &ConvNextParams<'_>, isa: Isa) -> Result<Self> {
        params.validate()?;
        let pack = |stage: &PointwiseParams<'_>| PackedStage::new(isa, stage, Tail::Zeros);
        Ok(Self(Arc::new(Packed {
            isa,
            expand: None,
            stem: None,
            c_in: params.depthwise.channels,
            depthwise: isa.dispatch(PackDepthwise(&params.depthwise, Tail::Zeros)),
            depthwise_activation: params.depthwise.activation,
            window: params.depthwise.window,
            excite: params.excite.as_ref().map(|excite| PackedStage::pair(isa, excite)),
            norm: params.norm.as_ref().map(PackedNorm::new),
            hidden: Some(pack(&params.expand)),
            project: Some(params.with_project(pack)),
            residual: params.residual,
        })))
    }

    /// Plans for images of `shape`, with the tile that should be fastest.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan`](crate::InvertedBottleneck::plan).
    pub fn plan(&self, shape: Shape) -> Result<BottleneckPlan> {
        self.plan_with(shape, &PlanOptions::new())
    }

    /// As [`ConvNextBlock::plan`], with a schedule, caches, layouts and threads of the
    /// caller's choice.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan_with`](crate::InvertedBottleneck::plan_with).
    pub fn plan_with(&self, shape: Shape, options: &PlanOptions) -> Result<BottleneckPlan> {
        self.0.plan(shape, options)
    }

    /// Floating-point operations of the convolutions for images of `shape`: two per
    /// multiply-add, padded taps counted too, as is usual. For stride 1 and an
    /// expansion by 4 with a `K` x `K` kernel these are
    /// `2 * channels * H * W * (8 * channels + K * K)`.
    ///
    /// # Errors
    ///
    /// As for [`ConvNextBlock::plan`].
    pub fn flops(&self, shape: Shape) -> Result<u64> {
        self.0.flops(shape)
    }

    /// Bytes of all weights and biases, without the padding of packing; the scale is
    /// in the projection's.
    pub fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }
}
