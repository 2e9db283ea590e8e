//! Blocks: layers that follow each other.

use alloc::vec::Vec;

use super::{ConvParams, DepthwiseParams, Names, PointwiseParams, check_length};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// What comes before a block's depthwise convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) enum First<'a> {
    Expand(PointwiseParams<'a>),
    Stem(ConvParams<'a>),
}

/// An inverted bottleneck: expand 1x1, depthwise, project 1x1, and the input
/// added to the result where asked (Sandler et al. 2018, MobileNetV2, section 3).
///
/// The paper's projection is linear; give `project` an activation only where a
/// network has one. Parts can be left out or be another: a network's stem in the
/// place of the expansion, no expansion, no projection.
#[derive(Debug, Clone, Copy)]
pub struct BottleneckParams<'a> {
    pub(crate) first: Option<First<'a>>,
    pub(crate) depthwise: DepthwiseParams<'a>,
    pub(crate) excite: Option<SqueezeExciteParams<'a>>,
    pub(crate) project: Option<PointwiseParams<'a>>,
    pub(crate) residual: bool,
}

impl<'a> BottleneckParams<'a> {
    /// A block without expansion: MobileNetV2's first, MobileNetV1's all.
    pub fn new(depthwise: DepthwiseParams<'a>, project: PointwiseParams<'a>) -> Self {
        Self { project: Some(project), ..Self::without_project(depthwise) }
    }

    /// A block that ends with the depthwise convolution: for networks that have
    /// something between it and the projection.
    pub fn without_project(depthwise: DepthwiseParams<'a>) -> Self {
        Self { first: None, depthwise, excite: None, project: None, residual: false }
    }

    /// Puts a 1x1 convolution before the depthwise one. The depthwise padding
    /// is of its output: zeros, whatever the activation makes of zero.
    #[must_use]
    pub fn expand(mut self, expand: PointwiseParams<'a>) -> Self {
        self.first = Some(First::Expand(expand));
        self
    }

    /// Puts a full convolution before the depthwise one, in the place of an
    /// expansion: a network's stem and first block in one.
    #[must_use]
    pub fn stem(mut self, stem: ConvParams<'a>) -> Self {
        self.first = Some(First::Stem(stem));
        self
    }

    /// Scales the depthwise output by a gate made of its means, before the projection:
    /// MobileNetV3's and EfficientNet's block.
    #[must_use]
    pub fn squeeze_excite(mut self, excite: SqueezeExciteParams<'a>) -> Self {
        self.excite = Some(excite);
        self
    }

    /// Adds the block's input to its output.
    #[must_use]
    pub fn residual(mut self, residual: bool) -> Self {
        self.residual = residual;
        self
    }

    pub(crate) fn c_in(&self) -> usize {
        match &self.first {
            None => self.depthwise.channels,
            Some(First::Expand(expand)) => expand.c_in,
            Some(First::Stem(stem)) => stem.c_in,
        }
    }

    pub(crate) fn c_out(&self) -> usize {
        self.project.map_or(self.depthwise.channels, |project| project.c_out)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let given = match &self.first {
            None => self.depthwise.channels,
            Some(First::Expand(expand)) => {
                expand.validate(&Names::EXPAND)?;
                expand.c_out
            }
            Some(First::Stem(stem)) => {
                stem.validate()?;
                stem.c_out
            }
        };
        join("depthwise", given, self.depthwise.channels)?;
        validate_in_block(&self.depthwise)?;
        if let Some(excite) = &self.excite {
            excite.validate(self.depthwise.channels)?;
        }
        if let Some(project) = &self.project {
            join("project", self.depthwise.channels, project.c_in)?;
            project.validate(&Names::PROJECT)?;
            if self.residual { join("residual", project.c_out, self.c_in()) } else { Ok(()) }
        } else if self.residual {
            Err(Error::ResidualWithoutProject)
        } else if self.excite.is_some() {
            Err(Error::ExciteWithoutProject)
        } else {
            Ok(())
        }
    }
}

/// Checks that a block whose input is added to its output keeps the shape.
pub(crate) fn check_residual(input: (Shape, usize), output: (Shape, usize)) -> Result<()> {
    let size = |(shape, channels): (Shape, usize)| [shape.height, shape.width, channels];
    if input == output {
        Ok(())
    } else {
        Err(Error::ResidualShape { input: size(input), output: size(output) })
    }
}

/// Checks that a stage takes the channels that the one before it gives.
fn join(stage: &'static str, given: usize, taken: usize) -> Result<()> {
    if given == taken { Ok(()) } else { Err(Error::ChannelMismatch { stage, given, taken }) }
}

fn validate_in_block(depthwise: &DepthwiseParams<'_>) -> Result<()> {
    depthwise.validate()?;
    match depthwise.multiplier {
        1 => Ok(()),
        multiplier => Err(Error::MultiplierInBlock { multiplier }),
    }
}

/// Squeeze-and-excite: the mean of each channel over the image goes through two 1x1
/// convolutions, and what they give scales the channels (Hu et al. 2018,
/// Squeeze-and-Excitation Networks, section 3; with a hard gate in Howard et al. 2019,
/// section 5.3).
///
/// ```
/// use mbconv::{
///     Activation, BottleneckParams, DepthwiseParams, InvertedBottleneck, Padding,
///     PointwiseParams, Shape, SqueezeExciteParams,
/// };
///
/// let (c, squeezed) = (16, 4);
/// let (depthwise, project, gate) = ([0.1; 9 * 16], [0.1; 16 * 16], [0.1; 16 * 4]);
/// let gate = SqueezeExciteParams::new(
///     PointwiseParams::new(c, squeezed, &gate).activation(Activation::Relu),
///     PointwiseParams::new(squeezed, c, &gate).activation(Activation::Sigmoid),
/// );
/// let block = BottleneckParams::new(
///     DepthwiseParams::new(c, [3, 3], &depthwise).padding(Padding::uniform(1)),
///     PointwiseParams::new(c, c, &project),
/// )
/// .squeeze_excite(gate);
/// let plan = InvertedBottleneck::new(&block)?.plan(Shape::new(1, 14, 14))?;
/// # let _ = plan;
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SqueezeExciteParams<'a> {
    pub(crate) reduce: PointwiseParams<'a>,
    pub(crate) expand: PointwiseParams<'a>,
}

impl<'a> SqueezeExciteParams<'a> {
    /// `reduce` takes the channels' means and has the activation between, `expand`
    /// gives the channels' factors and has the gate's: `Sigmoid` or `HardSigmoid`.
    pub fn new(reduce: PointwiseParams<'a>, expand: PointwiseParams<'a>) -> Self {
        Self { reduce, expand }
    }

    fn validate(&self, channels: usize) -> Result<()> {
        join("squeeze", channels, self.reduce.c_in)?;
        self.reduce.validate(&Names::SQUEEZE)?;
        join("excite", self.reduce.c_out, self.expand.c_in)?;
        self.expand.validate(&Names::EXCITE)?;
        join("scaled depthwise", self.expand.c_out, channels)
    }
}

/// A normalisation of each pixel over its channels:
/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`, where the variance is
/// the mean of the squared distances (Ba, Kiros and Hinton 2016, Layer Normalization).
///
/// Its error is a few units in the last place of `|x - mean| / sqrt(variance)`,
/// however far the mean is from zero; the squares of the distances, summed, must not
/// overflow.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormParams<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) epsilon: f32,
}

impl<'a> LayerNormParams<'a> {
    /// `weight` and `bias` are `[channels]`; `epsilon` is positive.
    pub fn new(weight: &'a [f32], bias: &'a [f32], epsilon: f32) -> Self {
        Self { weight, bias, epsilon }
    }

    fn validate(&self, channels: usize) -> Result<()> {
        check_length("norm weight", channels, self.weight)?;
        check_length("norm bias", channels, self.bias)?;
        if self.epsilon > 0.0 && self.epsilon.is_finite() {
            Ok(())
        } else {
            Err(Error::InvalidEpsilon { epsilon: self.epsilon })
        }
    }
}

/// What a [`ConvNextParams`] block adds to its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Residual {
    /// The block's input.
    Input,
    /// What the expansion takes: the depthwise output, scaled where there is a gate and
    /// normalised where there is a norm. RepViT, FastViT and PP-OCR join it so.
    Depthwise,
}

/// A block in ConvNeXt's order: depthwise, LayerNorm, expand 1x1, an activation,
/// project 1x1, a scale for each channel, and the input added (Liu et al. 2022, A
/// ConvNet for the 2020s, section 2; the scale is from Touvron et al. 2021, section 2).
///
/// Norm, scale and residual can be left out: a batch norm is
/// [folded](crate::fold_batch_norm) into the convolution before it.
#[derive(Debug, Clone, Copy)]
pub struct ConvNextParams<'a> {
    pub(crate) depthwise: DepthwiseParams<'a>,
    pub(crate) excite: Option<SqueezeExciteParams<'a>>,
    pub(crate) norm: Option<LayerNormParams<'a>>,
    pub(crate) expand: PointwiseParams<'a>,
    pub(crate) project: PointwiseParams<'a>,
    pub(crate) scale: Option<&'a [f32]>,
    pub(crate) residual: Option<Residual>,
}

impl<'a> ConvNextParams<'a> {
    /// The three convolutions alone.
    pub fn new(
        depthwise: DepthwiseParams<'a>,
        expand: PointwiseParams<'a>,
        project: PointwiseParams<'a>,
    ) -> Self {
        Self { depthwise, excite: None, norm: None, expand, project, scale: None, residual: None }
    }

    /// Scales the depthwise output by a gate made of its means, before the norm, if any.
    #[must_use]
    pub fn squeeze_excite(mut self, excite: SqueezeExciteParams<'a>) -> Self {
        self.excite = Some(excite);
        self
    }

    /// Normalises the depthwise output.
    #[must_use]
    pub fn norm(mut self, norm: LayerNormParams<'a>) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Multiplies the projection's weights and bias by `scale`, `[c_out]`, when they
    /// are packed. The projection has no activation then.
    #[must_use]
    pub fn scale(mut self, scale: &'a [f32]) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Adds a tensor of the block to its output.
    #[must_use]
    pub fn residual(mut self, residual: Residual) -> Self {
        self.residual = Some(residual);
        self
    }

    /// Calls `f` with the projection, its weights and bias scaled.
    pub(crate) fn with_project<R>(&self, f: impl FnOnce(&PointwiseParams<'_>) -> R) -> R {
        let Some(scale) = self.scale else { return f(&self.project) };
        let PointwiseParams { c_in, weights, bias, .. } = self.project;
        let filters = weights.chunks_exact(c_in).zip(scale);
        let weights: Vec<f32> =
            filters.flat_map(|(filter, s)| filter.iter().map(move |w| w * s)).collect();
        let bias: Option<Vec<f32>> =
            bias.map(|bias| bias.iter().zip(scale).map(|(b, s)| b * s).collect());
        f(&PointwiseParams { weights: &weights, bias: bias.as_deref(), ..self.project })
    }

    pub(crate) fn validate(&self) -> Result<()> {
        validate_in_block(&self.depthwise)?;
        let channels = self.depthwise.channels;
        if let Some(excite) = &self.excite {
            excite.validate(channels)?;
        }
        if let Some(norm) = &self.norm {
            norm.validate(channels)?;
        }
        join("expand", channels, self.expand.c_in)?;
        self.expand.validate(&Names::EXPAND)?;
        join("project", self.expand.c_out, self.project.c_in)?;
        self.project.validate(&Names::PROJECT)?;
        if let Some(scale) = self.scale {
            check_length("scale", self.project.c_out, scale)?;
            if self.project.activation != Activation::Identity {
                return Err(Error::ScaledActivation(self.project.activation));
            }
        }
        match self.residual {
            Some(Residual::Input | Residual::Depthwise) => {
                join("residual", self.project.c_out, channels)
            }
            None => Ok(()),
        }
    }
}
