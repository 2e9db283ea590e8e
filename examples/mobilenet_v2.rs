//! MobileNetV2 at 224 x 224 with seeded weights: every block fused and unfused
//! on the best instruction set, checked against the reference and timed.
//!
//! `cargo run --release --example mobilenet_v2`; `MBCONV_ISA` narrows the
//! instruction set. Exits with 1 when a block is off.

#[path = "support/deviation.rs"]
mod deviation;
#[path = "support/network.rs"]
mod network;
#[path = "support/timing.rs"]
mod timing;
#[path = "support/workloads.rs"]
mod workloads;

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use deviation::Deviation;
use indicatif::{ProgressBar, ProgressStyle};
use mbconv::{
    Activation::Relu6, BottleneckPlan, InvertedBottleneck, Isa, PlanOptions, Pointwise, Schedule,
    Shape, measure_peak, reference,
};
use network::{IMAGE, Layers, Network};
use timing::interleaved;
use workloads::layers::{Layer, Loaded, STEM};
use workloads::random::Random;
use workloads::{Workload, lists};

/// Relative to the largest output of a block.
const TOLERANCE: f64 = 2e-5;
const ROUNDS: usize = 21;
const SLICE_US: f64 = 2000.0;

/// The 17 blocks.
fn network(random: &mut Random) -> Vec<Loaded> {
    let rows = lists::list("mobilenet_v2").unwrap_or_default();
    rows.iter()
        .flat_map(|row| core::iter::repeat_n(row, row.repeats))
        .map(|row| Loaded::new(row.clone(), random))
        .collect()
}

/// What the table says of a block.
struct Row {
    name: String,
    auto: BottleneckPlan,
    fused_us: f64,
    unfused_us: f64,
    gflops: f64,
    error: f64,
}

fn measure(block: &Loaded, isa: Isa, input: &[f32]) -> Result<Row, Box<dyn Error>> {
    let (params, shape) = (block.block(), block.workload.shape());
    let op = InvertedBottleneck::with_isa(&params, isa)?;
    let plan = |schedule| op.plan_with(shape, &PlanOptions::new().schedule(schedule));
    let (auto, fused, unfused) =
        (plan(Schedule::Auto)?, plan(Schedule::Fused)?, plan(Schedule::Unfused)?);

    let expected = reference::bottleneck(&params, shape, input)?;
    let mut output = vec![0.0; expected.len()];
    let mut error = 0.0f64;
    for plan in [&fused, &unfused] {
        output.fill(f32::NAN);
        plan.run(input, &mut output, &mut plan.scratch())?;
        error = error.max(Deviation::between(&expected, &output).relative);
    }

    let (mut scratch, mut other) = (fused.scratch(), unfused.scratch());
    let mut output2 = output.clone();
    let mut failed = Ok(());
    let mut run_fused = || failed = fused.run(input, &mut output, &mut scratch);
    let mut failed2 = Ok(());
    let mut run_unfused = || failed2 = unfused.run(input, &mut output2, &mut other);
    let times = interleaved(ROUNDS, SLICE_US, &mut [&mut run_fused, &mut run_unfused]);
    failed?;
    failed2?;
    let best = if auto.is_fused() { times[0] } else { times[1] };
    let Workload { side, stride, c: [c_in, c_mid, c_out], .. } = block.workload;
    Ok(Row {
        name: format!("{side}x{side} {c_in}-{c_mid}-{c_out} s{stride}"),
        gflops: op.flops(shape)? as f64 / best / 1e3,
        auto,
        fused_us: times[0],
        unfused_us: times[1],
        error,
    })
}

/// A 1x1 layer alone: pixels, input and output channels, microseconds, GFLOP/s.
type PointwiseRow = ([usize; 3], f64, f64);

/// The distinct 1x1 layers of the blocks, each alone.
fn pointwise_rows(blocks: &[Loaded], isa: Isa) -> Result<Vec<PointwiseRow>, Box<dyn Error>> {
    let mut rows: Vec<PointwiseRow> = Vec::new();
    for block in blocks {
        let Workload { side, stride, c: [c_in, c_mid, c_out], .. } = block.workload;
        let expand = block.expand().map(|expand| (side, expand, [c_in, c_mid]));
        let project = (side.div_ceil(stride), block.project(), [c_mid, c_out]);
        for (side, params, [k, n]) in expand.into_iter().chain([project]) {
            let key = [side * side, k, n];
            if rows.iter().any(|row| row.0 == key) {
                continue;
            }
            let shape = Shape::new(1, side, side);
            let op = Pointwise::with_isa(&params, isa)?;
            let plan = op.plan(shape)?;
            let (input, mut output) = (vec![0.5; key[0] * k], vec![0.0; key[0] * n]);
            let mut failed = Ok(());
            let mut run = || failed = plan.run(&input, &mut output);
            let us = interleaved(ROUNDS, SLICE_US, &mut [&mut run])[0];
            failed?;
            rows.push((key, us, op.flops(shape)? as f64 / us / 1e3));
        }
    }
    Ok(rows)
}

/// The whole network, from the image to the logits: GFLOP and milliseconds.
fn whole(blocks: &[Loaded], isa: Isa, random: &mut Random) -> Result<[f64; 2], Box<dyn Error>> {
    let stem = Layer::new(random, STEM, 32);
    let (head, classifier) = (Layer::new(random, 320, 1280), Layer::new(random, 1280, 1000));
    let mut blocks: Vec<_> = blocks.iter().map(Loaded::block).collect();
    blocks[0] = blocks[0].stem(stem.stem(32).activation(Relu6));
    let layers = Layers {
        blocks,
        head: head.pointwise(320, 1280).activation(Relu6),
        classifier: classifier.pointwise(1280, 1000),
    };
    let mut network = Network::new(&layers, isa, Schedule::Auto)?;
    let gflop = network.flops() as f64 / 1e9;
    let image = random.vec(IMAGE, 1.0);
    let mut failed = None;
    let mut run = || failed = network.run(&image).err();
    let us = interleaved(ROUNDS, 5.0 * SLICE_US, &mut [&mut run])[0];
    failed.map_or(Ok([gflop, us / 1e3]), |error| Err(error.into()))
}

fn run() -> Result<bool, Box<dyn Error>> {
    let isa = Isa::detect()?;
    let random = &mut Random::new(2018);
    let blocks = network(random);
    let progress = if std::io::stderr().is_terminal() {
        ProgressBar::new(blocks.len() as u64 + 2)
    } else {
        ProgressBar::hidden()
    };
    progress.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}")?);

    let peak = measure_peak(isa);
    let mut rows = Vec::new();
    for block in &blocks {
        let input = random.vec(block.workload.shape().elements(block.workload.c[0])?, 1.0);
        rows.push(measure(block, isa, &input)?);
        progress.set_message(rows[rows.len() - 1].name.clone());
        progress.inc(1);
    }
    progress.set_message("1x1 layers alone");
    let pointwise = pointwise_rows(&blocks, isa)?;
    progress.inc(1);
    progress.set_message("the whole network");
    let [gflop, ms] = whole(&blocks, isa, random)?;
    let peak = peak.max(measure_peak(isa));
    progress.finish_and_clear();

    println!("mbconv: ISAs covered: {isa}");
    println!("MobileNetV2-224, one thread, {isa}, measured FMA peak {peak:.1} GFLOP/s\n");
    println!(
        "{:<24}{:>9}{:>11}{:>10}{:>7}{:>12}{:>10}  schedule",
        "block", "fused us", "unfused us", "GFLOP/s", "peak", "not written", "max error"
    );
    let mut good = true;
    for row in &rows {
        let kib = if row.auto.is_fused() { row.auto.expanded_bytes() >> 10 } else { 0 };
        println!(
            "{:<24}{:>9.1}{:>11.1}{:>10.1}{:>6.1}%{:>8} KiB{:>10.1e}  {}",
            row.name,
            row.fused_us,
            row.unfused_us,
            row.gflops,
            100.0 * row.gflops / peak,
            kib,
            row.error,
            row.auto.explain(),
        );
        good &= row.error <= TOLERANCE;
    }

    println!("\n{:<24}{:>9}{:>10}{:>7}", "1x1 layer alone", "us", "GFLOP/s", "peak");
    for ([pixels, k, n], us, gflops) in &pointwise {
        let name = format!("{pixels} x {k} -> {n}");
        println!("{name:<24}{us:>9.1}{gflops:>10.1}{:>6.1}%", 100.0 * gflops / peak);
    }

    println!(
        "\nwhole network, one image: {ms:.3} ms, {:.1} GFLOP/s, {:.1}% of peak",
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
