//! A network of inverted bottlenecks on this crate's operations, batch 1: blocks, of
//! which the first has the stem, a 1x1 head, the mean over all pixels, a classifier.

use core::{fmt, mem};

use mbconv::{
    BottleneckParams, BottleneckPlan, Error::Length, InvertedBottleneck, Isa, PlanOptions,
    Pointwise, PointwiseParams, PointwisePlan, Schedule, Scratch, Shape,
};

/// Rows and columns of the image.
pub(crate) const SIDE: usize = 224;
/// Values of the RGB image.
pub(crate) const IMAGE: usize = SIDE * SIDE * 3;

/// A tensor on the way through the network; displays as its name in the golden files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Block(usize),
    Pooled,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(n) => write!(f, "blocks.{n}"),
            Self::Pooled => f.write_str("pooled"),
        }
    }
}

/// The layers of a network.
pub(crate) struct Layers<'a> {
    /// From the image on.
    pub(crate) blocks: Vec<BottleneckParams<'a>>,
    pub(crate) head: PointwiseParams<'a>,
    pub(crate) classifier: PointwiseParams<'a>,
}

/// The network with its plans and all the memory that a run takes.
pub(crate) struct Network {
    blocks: Vec<BottleneckPlan>,
    head: PointwisePlan,
    classifier: PointwisePlan,
    scratch: Scratch,
    tensors: Tensors,
}

impl Network {
    /// Packs and plans the layers.
    pub(crate) fn new(layers: &Layers<'_>, isa: Isa, schedule: Schedule) -> mbconv::Result<Self> {
        let options = PlanOptions::new().schedule(schedule);
        let pointwise = |params: &PointwiseParams<'_>, shape| {
            Pointwise::with_isa(params, isa)?.plan_with(shape, &options)
        };
        let mut shape = Shape::new(1, SIDE, SIDE);
        let mut blocks = Vec::with_capacity(layers.blocks.len());
        for params in &layers.blocks {
            let plan = InvertedBottleneck::with_isa(params, isa)?.plan_with(shape, &options)?;
            shape = plan.output_shape();
            blocks.push(plan);
        }
        let head = pointwise(&layers.head, shape)?;
        let classifier = pointwise(&layers.classifier, Shape::new(1, 1, 1))?;

        let lengths = blocks.iter().map(BottleneckPlan::output_len);
        let longest =
            lengths.chain([head.output_len(), classifier.output_len()]).fold(0, usize::max);
        let bytes = blocks.iter().map(BottleneckPlan::scratch_bytes).fold(0, usize::max);
        let (scratch, tensors) = (Scratch::new(bytes), Tensors::new(longest));
        Ok(Self { blocks, head, classifier, scratch, tensors })
    }

    /// Floating-point operations of a run.
    #[allow(dead_code, reason = "not every program that shares this module counts")]
    pub(crate) fn flops(&self) -> u64 {
        let blocks = self.blocks.iter().map(BottleneckPlan::flops).sum::<u64>();
        blocks + self.head.flops() + self.classifier.flops()
    }

    /// The logits of an image. Allocates nothing.
    pub(crate) fn run(&mut self, image: &[f32]) -> mbconv::Result<&[f32]> {
        self.run_observed(image, |_, _| ())
    }

    /// As [`Network::run`], and shows what each stage gives.
    pub(crate) fn run_observed(
        &mut self,
        image: &[f32],
        mut observe: impl FnMut(Stage, &[f32]),
    ) -> mbconv::Result<&[f32]> {
        if image.len() != IMAGE {
            return Err(Length { what: "image", expected: IMAGE, actual: image.len() });
        }
        let Self { blocks, head, classifier, scratch, tensors } = self;
        for (n, block) in blocks.iter().enumerate() {
            let y = tensors.step(block.output_len(), |x, y| {
                block.run(if n == 0 { image } else { x }, y, scratch)
            })?;
            observe(Stage::Block(n), y);
        }
        tensors.step(head.output_len(), |x, y| head.run(x, y))?;
        let y = tensors.step(classifier.input_len(), |x, y| {
            pool(x, y);
            Ok(())
        })?;
        observe(Stage::Pooled, y);
        tensors.step(classifier.output_len(), |x, y| classifier.run(x, y))
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

/// The mean over all pixels.
fn pool(x: &[f32], mean: &mut [f32]) {
    let pixels = x.len() / mean.len();
    mean.fill(0.0);
    for pixel in x.chunks_exact(mean.len()) {
        for (m, v) in mean.iter_mut().zip(pixel) {
            *m += v;
        }
    }
    for m in mean {
        *m /= pixels as f32;
    }
}
