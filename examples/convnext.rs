//! ConvNeXt-T at 224 x 224 with seeded weights: its 18 blocks in a chain on the best
//! instruction set, each checked against the reference, and a table of the stages.
//!
//! `cargo run --release --example convnext`; `MBCONV_ISA` narrows the instruction
//! set. Exits with 1 when a block is off.

#[path = "support/deviation.rs"]
mod deviation;
#[path = "support/timing.rs"]
mod timing;
#[path = "support/workloads.rs"]
mod workloads;

use std::error::Error;
use std::process::ExitCode;

use deviation::Deviation;
use mbconv::{
    BottleneckPlan, ConvNextBlock, Isa, PlanOptions, Pointwise, PointwisePlan, Schedule, Scratch,
    Shape, measure_peak, reference,
};
use timing::interleaved;
use workloads::layers::{Layer, Loaded};
use workloads::lists;
use workloads::random::Random;

/// Relative to the largest output of a block.
const TOLERANCE: f64 = 2e-5;
const ROUNDS: usize = 21;
const SLICE_US: f64 = 5000.0;
const IMAGE: (usize, usize) = (224, 3);

/// What comes before a stage: squares of pixels, each taken as one pixel of more
/// channels, through a 1x1 convolution. Without the norms beside it.
struct Merge {
    /// Of a square.
    side: usize,
    /// What it gives.
    shape: Shape,
    plan: PointwisePlan,
    patches: Vec<f32>,
    output: Vec<f32>,
}

impl Merge {
    fn new(
        random: &mut Random,
        isa: Isa,
        [before, c_in]: [usize; 2],
        [after, c_out]: [usize; 2],
    ) -> mbconv::Result<Self> {
        let side = before / after;
        let fan_in = side * side * c_in;
        let layer = Layer::new(random, fan_in, c_out);
        let shape = Shape::new(1, after, after);
        let plan = Pointwise::with_isa(&layer.pointwise(fan_in, c_out), isa)?.plan(shape)?;
        let (patches, output) = (vec![0.0; plan.input_len()], vec![0.0; plan.output_len()]);
        Ok(Self { side, shape, plan, patches, output })
    }

    fn run(&mut self, input: &[f32]) -> mbconv::Result<&[f32]> {
        let Self { side, shape, plan, patches, output } = self;
        // A row of a square is one piece.
        let piece = patches.len() / (shape.height * shape.width * *side);
        for (i, from) in input.chunks_exact(piece).enumerate() {
            let (row, column) = (i / shape.width, i % shape.width);
            let square = row / *side * shape.width + column;
            patches[(square * *side + row % *side) * piece..][..piece].copy_from_slice(from);
        }
        plan.run(patches, output)?;
        Ok(output)
    }
}

/// A block of the chain.
struct Block {
    loaded: Loaded,
    plan: BottleneckPlan,
    unfused: BottleneckPlan,
    scratch: Scratch,
    output: Vec<f32>,
}

impl Block {
    fn new(loaded: Loaded, isa: Isa) -> mbconv::Result<Self> {
        let params = loaded.convnext().expect("the list has ConvNeXt's blocks");
        let op = ConvNextBlock::with_isa(&params, isa)?;
        let plan = |schedule| {
            op.plan_with(loaded.workload.shape(), &PlanOptions::new().schedule(schedule))
        };
        let (plan, unfused) = (plan(Schedule::Auto)?, plan(Schedule::Unfused)?);
        let scratch = Scratch::new(plan.scratch_bytes().max(unfused.scratch_bytes()));
        let output = vec![0.0; plan.output_len()];
        Ok(Self { loaded, plan, unfused, scratch, output })
    }

    fn run(&mut self, input: &[f32]) -> mbconv::Result<&[f32]> {
        self.plan.run(input, &mut self.output, &mut self.scratch)?;
        Ok(&self.output)
    }

    /// How far both schedules are from the reference.
    fn error(&mut self, input: &[f32]) -> mbconv::Result<f64> {
        let params = self.loaded.convnext().expect("it was built of them");
        let expected = reference::convnext(&params, self.loaded.workload.shape(), input)?;
        let mut worst = 0.0f64;
        for plan in [&self.unfused, &self.plan] {
            self.output.fill(f32::NAN);
            plan.run(input, &mut self.output, &mut self.scratch)?;
            worst = worst.max(Deviation::between(&expected, &self.output).relative);
        }
        Ok(worst)
    }

    /// Microseconds of both schedules, the plan's own first.
    fn times(&mut self, input: &[f32]) -> mbconv::Result<[f64; 2]> {
        let (mut output, mut scratch) = (self.output.clone(), self.unfused.scratch());
        let (mut failed, mut failed2) = (Ok(()), Ok(()));
        let mut own = || failed = self.plan.run(input, &mut self.output, &mut self.scratch);
        let mut unfused = || failed2 = self.unfused.run(input, &mut output, &mut scratch);
        let times = interleaved(ROUNDS, SLICE_US, &mut [&mut own, &mut unfused]);
        failed?;
        failed2?;
        Ok([times[0], times[1]])
    }
}

type Stage = (Merge, Vec<Block>);

fn stages(random: &mut Random, isa: Isa) -> mbconv::Result<Vec<Stage>> {
    let (mut side, mut channels) = IMAGE;
    let mut stages = Vec::new();
    for row in lists::list("convnext_t").unwrap_or_default() {
        let [before, after] = [[side, channels], [row.side, row.c[0]]];
        let merge = Merge::new(random, isa, before, after)?;
        let blocks: mbconv::Result<_> =
            (0..row.repeats).map(|_| Block::new(Loaded::new(row.clone(), random), isa)).collect();
        stages.push((merge, blocks?));
        [side, channels] = after;
    }
    Ok(stages)
}

/// From the image to the last block's output.
fn chain(stages: &mut [Stage], image: &[f32]) -> mbconv::Result<()> {
    let mut x = image;
    for (merge, blocks) in stages {
        x = merge.run(x)?;
        for block in blocks {
            x = block.run(x)?;
        }
    }
    Ok(())
}

fn run() -> Result<bool, Box<dyn Error>> {
    let isa = Isa::detect()?;
    let random = &mut Random::new(2022);
    let mut stages = stages(random, isa)?;
    let image = random.vec(IMAGE.0 * IMAGE.0 * IMAGE.1, 1.0);
    let mut peak = measure_peak(isa);

    println!("mbconv: ISAs covered: {isa}");
    println!("ConvNeXt-T-224, one thread, {isa}\n");
    println!(
        "{:<14}{:>7}{:>10}{:>12}{:>10}{:>7}{:>13}{:>11}  schedule",
        "stage", "blocks", "block us", "unfused us", "GFLOP/s", "peak", "not written", "max error"
    );
    let (mut good, mut gflop) = (true, 0.0);
    let mut x = image.clone();
    for (merge, blocks) in &mut stages {
        x = merge.run(&x)?.to_vec();
        let mut error = 0.0f64;
        for block in &mut *blocks {
            error = error.max(block.error(&x)?);
            x.copy_from_slice(&block.output);
            gflop += block.plan.flops() as f64 / 1e9;
        }
        let n = blocks.len();
        let Some(block) = blocks.first_mut() else { continue };
        let [us, unfused] = block.times(&x)?;
        peak = peak.max(measure_peak(isa));
        let rate = block.plan.flops() as f64 / us / 1e3;
        let kib = if block.plan.is_fused() { block.plan.expanded_bytes() >> 10 } else { 0 };
        let [side, channels] = [merge.shape.width, block.loaded.workload.c[0]];
        println!(
            "{:<14}{n:>7}{us:>10.1}{unfused:>12.1}{rate:>10.1}{:>6.1}%{kib:>9} KiB{error:>11.1e}  {}",
            format!("{side}x{side} {channels}"),
            100.0 * rate / peak,
            block.plan.explain(),
        );
        good &= error <= TOLERANCE;
    }

    let mut failed = Ok(());
    let mut run = || failed = chain(&mut stages, &image);
    let ms = interleaved(ROUNDS, 20.0 * SLICE_US, &mut [&mut run])[0] / 1e3;
    failed?;
    println!(
        "\nall blocks in a chain, one image: {ms:.2} ms, of blocks {:.1} GFLOP/s, {:.1}% of the \
         measured FMA peak, {peak:.1}",
        gflop / ms * 1e3,
        100.0 * gflop / ms * 1e3 / peak
    );
    println!("check against the reference: {}", if good { "PASS" } else { "FAIL" });
    Ok(good)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
