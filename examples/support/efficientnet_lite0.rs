//! EfficientNet-Lite0 (Liu 2020: EfficientNet-B0 without squeeze-and-excitation,
//! with relu6) on this crate's operations, batch 1.

pub(crate) mod tensors;

use core::error::Error;
use core::{fmt, mem};

use mbconv::{
    Activation::Relu6, BottleneckParams, BottleneckPlan, Error::Length, InvertedBottleneck, Isa,
    Padding, PlanOptions, Pointwise, PointwiseParams, PointwisePlan, Schedule, Scratch, Shape,
};
use tensors::{Layer, TensorFile};

/// Rows and columns of the image.
pub(crate) const SIDE: usize = 224;
/// Values of the RGB image.
pub(crate) const IMAGE: usize = SIDE * SIDE * 3;
/// Rows and columns after the stem, whose stride is 2.
const STEM_SIDE: usize = SIDE / 2;
/// Values under the stem's 3 x 3 window, and under all of its places.
const PATCH: usize = 3 * 3 * 3;
const PATCHES: usize = STEM_SIDE * STEM_SIDE * PATCH;
/// Of each block's depthwise convolution.
const STRIDES: [usize; 16] = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1];

/// A tensor on the way through the network; displays as its name in the golden files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Stem,
    Block(usize),
    Pooled,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stem => f.write_str("stem"),
            Self::Block(n) => write!(f, "blocks.{n}"),
            Self::Pooled => f.write_str("pooled"),
        }
    }
}

/// The network with its plans and all the memory that a run takes.
pub(crate) struct EfficientNetLite0 {
    stem: Step<PointwisePlan>,
    blocks: Vec<Step<BottleneckPlan>>,
    head: Step<PointwisePlan>,
    pooled: usize,
    classifier: Step<PointwisePlan>,
    scratch: Scratch,
    tensors: Tensors,
}

/// A layer and the length of its output.
struct Step<P> {
    plan: P,
    len: usize,
}

impl EfficientNetLite0 {
    /// Packs and plans the layers of the safetensors file `weights`.
    pub(crate) fn new(
        weights: &[u8],
        isa: Isa,
        schedule: Schedule,
    ) -> Result<Self, Box<dyn Error>> {
        let file = TensorFile::parse(weights)?;
        let options = PlanOptions::new().schedule(schedule);
        let pointwise = |params: &PointwiseParams<'_>, c_out, shape: Shape| -> mbconv::Result<_> {
            let plan = Pointwise::with_isa(params, isa)?.plan_with(shape, &options)?;
            Ok(Step { plan, len: shape.elements(c_out)? })
        };
        let mut shape = Shape::new(1, STEM_SIDE, STEM_SIDE);

        // [c_out][kernel height][kernel width][c_in]: over patches, a 1x1 layer's weights.
        let layer: Layer<4> = file.layer("stem")?;
        let c_out = layer.weight.shape[0];
        let params = PointwiseParams::new(PATCH, c_out, &layer.weight.data)
            .bias(&layer.bias.data)
            .activation(Relu6);
        let stem = pointwise(&params, c_out, shape)?;

        let mut blocks = Vec::with_capacity(STRIDES.len());
        for (n, stride) in STRIDES.into_iter().enumerate() {
            let name = |layer| format!("blocks.{n}.{layer}");
            // The first block works on the stem's channels as they are.
            let expand = (n > 0).then(|| file.layer::<2>(&name("expand"))).transpose()?;
            let depthwise: Layer<3> = file.layer(&name("depthwise"))?;
            let project: Layer<2> = file.layer(&name("project"))?;
            let c_in = expand.as_ref().map_or(depthwise.weight.shape[2], |e| e.weight.shape[1]);
            let c_out = project.weight.shape[0];
            let mut params = BottleneckParams::new(
                depthwise
                    .params()
                    .stride([stride; 2])
                    .padding(Padding::SameUpper)
                    .activation(Relu6),
                project.params(),
            )
            .residual(stride == 1 && c_in == c_out);
            if let Some(expand) = &expand {
                params = params.expand(expand.params().activation(Relu6));
            }
            let plan = InvertedBottleneck::with_isa(&params, isa)?.plan_with(shape, &options)?;
            shape = plan.output_shape();
            blocks.push(Step { plan, len: shape.elements(c_out)? });
        }

        let layer: Layer<2> = file.layer("head")?;
        let pooled = layer.weight.shape[0];
        let head = pointwise(&layer.params().activation(Relu6), pooled, shape)?;
        let layer: Layer<2> = file.layer("classifier")?;
        let classifier = pointwise(&layer.params(), layer.weight.shape[0], Shape::new(1, 1, 1))?;

        let lengths = blocks.iter().map(|block| block.len);
        let longest =
            lengths.chain([PATCHES, stem.len, head.len, classifier.len]).fold(0, usize::max);
        let bytes = blocks.iter().map(|block| block.plan.scratch_bytes()).fold(0, usize::max);
        let (scratch, tensors) = (Scratch::new(bytes), Tensors::new(longest));
        Ok(Self { stem, blocks, head, pooled, classifier, scratch, tensors })
    }

    /// The logits of an image, as [`normalise`] gives it. Allocates nothing.
    pub(crate) fn run(&mut self, image: &[f32]) -> mbconv::Result<&[f32]> {
        self.run_observed(image, |_, _| ())
    }

    /// As [`EfficientNetLite0::run`], and shows what each stage gives.
    pub(crate) fn run_observed(
        &mut self,
        image: &[f32],
        mut observe: impl FnMut(Stage, &[f32]),
    ) -> mbconv::Result<&[f32]> {
        if image.len() != IMAGE {
            return Err(Length { what: "image", expected: IMAGE, actual: image.len() });
        }
        let Self { stem, blocks, head, pooled, classifier, scratch, tensors } = self;
        tensors.step(PATCHES, |_, patches| {
            unfold(image, patches);
            Ok(())
        })?;
        observe(Stage::Stem, tensors.step(stem.len, |x, y| stem.plan.run(x, y))?);
        for (n, block) in blocks.iter().enumerate() {
            let y = tensors.step(block.len, |x, y| block.plan.run(x, y, scratch))?;
            observe(Stage::Block(n), y);
        }
        tensors.step(head.len, |x, y| head.plan.run(x, y))?;
        let y = tensors.step(*pooled, |x, y| {
            pool(x, y);
            Ok(())
        })?;
        observe(Stage::Pooled, y);
        tensors.step(classifier.len, |x, y| classifier.plan.run(x, y))
    }
}

/// Two buffers that take turns: each step reads one and writes the other.
struct Tensors {
    x: Vec<f32>,
    y: Vec<f32>,
    /// Of what the last step wrote, which is in `x`.
    len: usize,
}

impl Tensors {
    fn new(longest: usize) -> Self {
        Self { x: vec![0.0; longest], y: vec![0.0; longest], len: 0 }
    }

    fn step(
        &mut self,
        len: usize,
        layer: impl FnOnce(&[f32], &mut [f32]) -> mbconv::Result<()>,
    ) -> mbconv::Result<&[f32]> {
        layer(&self.x[..self.len], &mut self.y[..len])?;
        mem::swap(&mut self.x, &mut self.y);
        self.len = len;
        Ok(&self.x[..len])
    }
}

/// The 3 x 3 patches of the image at stride 2 (im2col). TensorFlow's SAME pads
/// an even side on the right and at the bottom only.
fn unfold(image: &[f32], patches: &mut [f32]) {
    patches.fill(0.0);
    for (i, patch) in patches.chunks_exact_mut(PATCH).enumerate() {
        let (y, x) = (2 * (i / STEM_SIDE), 2 * (i % STEM_SIDE));
        let inside = 3 * (SIDE - x).min(3);
        for (row, taps) in (y..SIDE).zip(patch.chunks_exact_mut(PATCH / 3)) {
            taps[..inside].copy_from_slice(&image[3 * (row * SIDE + x)..][..inside]);
        }
    }
}

/// The mean over all pixels.
fn pool(x: &[f32], mean: &mut [f32]) {
    let pixels = x.len() / mean.len();
    mean.fill(0.0);
    for pixel in x.chunks_exact(mean.len()) {
        for (m, v) in mean.iter_mut().zip(pixel) {
            *m += v / pixels as f32;
        }
    }
}

/// What the network takes, from 8-bit RGB.
pub(crate) fn normalise(rgb: &[u8]) -> Vec<f32> {
    rgb.iter().map(|&v| (f32::from(v) - 127.0) / 128.0).collect()
}
