//! `InvertedBottleneck`: the whole block in one pass.

use alloc::sync::Arc;
use core::fmt;

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::isa::Isa;
use crate::op::block::{BottleneckPlan, Packed, PackedStage};
use crate::pack::{PackDepthwise, Tail};
use crate::params::{BottleneckParams, First, Residual};
use crate::schedule::PlanOptions;
use crate::shape::Shape;

/// An inverted bottleneck with its weights packed for one instruction set.
///
/// ```
/// use mbconv::{
///     Activation, BottleneckParams, DepthwiseParams, InvertedBottleneck, Padding,
///     PointwiseParams, Shape,
/// };
///
/// let (c, t) = (8, 6); // channels, expansion
/// let (expand, depthwise, project) = (vec![0.1; t * c * c], vec![0.1; 9 * t * c], vec![0.1; t * c * c]);
/// let block = BottleneckParams::new(
///     DepthwiseParams::new(t * c, [3, 3], &depthwise)
///         .padding(Padding::uniform(1))
///         .activation(Activation::Relu6),
///     PointwiseParams::new(t * c, c, &project),
/// )
/// .expand(PointwiseParams::new(c, t * c, &expand).activation(Activation::Relu6))
/// .residual(true);
///
/// let shape = Shape::new(1, 14, 14);
/// let plan = InvertedBottleneck::new(&block)?.plan(shape)?;
/// let (x, mut y) = (vec![1.0; 14 * 14 * c], vec![0.0; 14 * 14 * c]);
/// plan.run(&x, &mut y, &mut plan.scratch())?;
/// println!("{}", plan.explain());
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone)]
pub struct InvertedBottleneck(Arc<Packed>);

impl fmt::Debug for InvertedBottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(f, "InvertedBottleneck")
    }
}

/// A depthwise convolution and a 1x1 one after it, of which MobileNetV1 is made
/// (Howard et al. 2017): an [`InvertedBottleneck`] without expansion.
///
/// ```
/// use mbconv::{
///     Activation::Relu6, BottleneckParams, ConvParams, DepthwiseParams, DepthwiseSeparable,
///     Padding, PointwiseParams, Shape,
/// };
///
/// // MobileNetV1's first layers: 3x3 of stride 2 over RGB, then 32 to 64 channels.
/// let (stem, depthwise, project) = ([0.1; 32 * 27], [0.1; 9 * 32], [0.1; 64 * 32]);
/// let block = BottleneckParams::new(
///     DepthwiseParams::new(32, [3, 3], &depthwise).padding(Padding::SameUpper).activation(Relu6),
///     PointwiseParams::new(32, 64, &project).activation(Relu6),
/// );
/// let stem = ConvParams::new(3, 32, [3, 3], &stem)
///     .stride([2, 2])
///     .padding(Padding::SameUpper)
///     .activation(Relu6);
/// let plan = DepthwiseSeparable::new(&block.stem(stem))?.plan(Shape::new(1, 32, 32))?;
/// let (image, mut y) = ([0.5; 32 * 32 * 3], [0.0; 16 * 16 * 64]);
/// plan.run(&image, &mut y, &mut plan.scratch())?;
/// # Ok::<(), mbconv::Error>(())
/// ```
pub type DepthwiseSeparable = InvertedBottleneck;

impl InvertedBottleneck {
    /// Packs the block for the instruction set that [`Isa::detect`] gives.
    ///
    /// # Errors
    ///
    /// What [`Isa::detect`] gives; those of [`Pointwise::new`](crate::Pointwise::new)
    /// and [`Depthwise::new`](crate::Depthwise::new) for each stage;
    /// [`Error::ChannelMismatch`] when neighbouring stages differ, or ends that a residual
    /// joins; [`Error::MultiplierInBlock`] when the depthwise convolution has one;
    /// [`Error::ResidualWithoutProject`]; [`Error::ExciteWithoutProject`].
    pub fn new(params: &BottleneckParams<'_>) -> Result<Self> {
        Self::with_isa(params, Isa::detect()?)
    }

    /// Packs the block for `isa`.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::new`], without those of detection.
    pub fn with_isa(params: &BottleneckParams<'_>, isa: Isa) -> Result<Self> {
        params.validate()?;
        let tail = if params.project.is_some() { Tail::Zeros } else { Tail::Overlap };
        let (expand, stem) = match &params.first {
            None => (None, None),
            Some(First::Expand(expand)) => (Some(PackedStage::new(isa, expand, tail)), None),
            Some(First::Stem(stem)) => {
                (Some(PackedStage::new(isa, &stem.over_patches(), tail)), Some(stem.window))
            }
        };
        let project = params.project.as_ref();
        Ok(Self(Arc::new(Packed {
            isa,
            expand,
            stem,
            c_in: params.c_in(),
            depthwise: isa.dispatch(PackDepthwise(&params.depthwise, tail)),
            depthwise_activation: params.depthwise.activation,
            window: params.depthwise.window,
            excite: params.excite.as_ref().map(|excite| PackedStage::pair(isa, excite)),
            norm: None,
            hidden: None,
            project: project.map(|project| PackedStage::new(isa, project, Tail::Zeros)),
            residual: params.residual.then_some(Residual::Input),
        })))
    }

    /// Plans for images of `shape`, with the schedule that should be fastest.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`] or [`Error::Overflow`] when the shape is empty or any
    /// tensor of the block too large; [`Error::EmptyOutput`] when the stem's or the
    /// depthwise kernel does not fit its padded input; [`Error::ResidualShape`] when
    /// a residual is asked and input and output differ.
    pub fn plan(&self, shape: Shape) -> Result<BottleneckPlan> {
        self.plan_with(shape, &PlanOptions::new())
    }

    /// As [`InvertedBottleneck::plan`], with a schedule, caches and threads of
    /// the caller's choice.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan`]; [`Error::ZeroSize`] for zero threads;
    /// [`Error::Stride`] when elements overlap.
    pub fn plan_with(&self, shape: Shape, options: &PlanOptions) -> Result<BottleneckPlan> {
        self.0.plan(shape, options)
    }

    /// Floating-point operations for images of `shape`: two per multiply-add,
    /// padded taps counted too, as is usual. For stride 1 and `c_in = c_out`
    /// with expansion `t` and a `K` x `K` kernel these are
    /// `2 * t * c_in * H * W * (2 * c_in + K * K)`.
    ///
    /// # Errors
    ///
    /// As for [`InvertedBottleneck::plan`].
    pub fn flops(&self, shape: Shape) -> Result<u64> {
        self.0.flops(shape)
    }

    /// Bytes of all weights and biases, without the padding of packing.
    pub fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }
}
