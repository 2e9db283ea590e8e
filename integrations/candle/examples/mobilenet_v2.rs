//! MobileNetV2 at 224 x 224 by torchvision's names, with candle's own layers and with mbconv's:
//! compares the logits, then times both in turn.
//!
//! `RAYON_NUM_THREADS=2 cargo run --release --example mobilenet_v2`; the number of threads is
//! candle's. Exits with 1 when the logits differ.

#[path = "support/plain.rs"]
mod plain;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use candle_core::utils::barrier_pool;
use candle_core::{Module, Result, Tensor};
use candle_nn::{Conv2dConfig, Linear, Sequential, VarBuilder, linear, seq};
use mbconv_candle::{BlockConfig, InvertedBottleneck, PointwiseConv2d};
use plain::{Plain, PlainBlock, Seeded, deviation};

/// Expansion, output channels, blocks, stride of the first (Sandler et al. 2018, table 2).
const BLOCKS: [[usize; 4]; 7] = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
];
const TOLERANCE: f32 = 1e-4;
const ROUNDS: usize = 5;
const SLICE: Duration = Duration::from_millis(200);

/// Input, expanded and output channels and stride of `features.1` and on.
fn blocks() -> impl Iterator<Item = ([usize; 3], usize)> {
    let mut c_in = 32;
    let rows = BLOCKS.into_iter().flat_map(|[expansion, c_out, repeats, stride]| {
        (0..repeats).map(move |i| (expansion, c_out, if i == 0 { stride } else { 1 }))
    });
    rows.map(move |(expansion, c_out, stride)| {
        let c = [c_in, c_in * expansion, c_out];
        c_in = c_out;
        (c, stride)
    })
}

fn stem(vb: &VarBuilder<'_>) -> Result<Plain> {
    let config = Conv2dConfig { padding: 1, stride: 2, ..Default::default() };
    Plain::load([3, 32], 3, config, true, vb, ["features.0.0", "features.0.1"])
}

fn head(vb: &VarBuilder<'_>) -> Result<Plain> {
    Plain::load([320, 1280], 1, Default::default(), true, vb, ["features.18.0", "features.18.1"])
}

fn plain_block(c: [usize; 3], stride: usize, vb: &VarBuilder<'_>) -> Result<PlainBlock> {
    let [c_in, expanded, c_out] = c;
    let pointwise = Conv2dConfig::default();
    let window = Conv2dConfig { padding: 1, stride, groups: expanded, ..pointwise };
    let layers = if c_in == expanded {
        vec![
            Plain::load([c_in; 2], 3, window, true, vb, ["0.0", "0.1"])?,
            Plain::load([c_in, c_out], 1, pointwise, false, vb, ["1", "2"])?,
        ]
    } else {
        vec![
            Plain::load([c_in, expanded], 1, pointwise, true, vb, ["0.0", "0.1"])?,
            Plain::load([expanded; 2], 3, window, true, vb, ["1.0", "1.1"])?,
            Plain::load([expanded, c_out], 1, pointwise, false, vb, ["2", "3"])?,
        ]
    };
    Ok(PlainBlock { layers, residual: stride == 1 && c_in == c_out })
}

fn end(features: Sequential, classifier: &Linear) -> Sequential {
    features.add_fn(|x| x.mean((2, 3))).add(classifier.clone())
}

fn with_candle(vb: &VarBuilder<'_>, classifier: &Linear) -> Result<Sequential> {
    let mut features = seq().add(stem(vb)?);
    for (i, (c, stride)) in blocks().enumerate() {
        features =
            features.add(plain_block(c, stride, &vb.pp(format!("features.{}.conv", i + 1)))?);
    }
    Ok(end(features.add(head(vb)?), classifier))
}

fn with_mbconv(vb: &VarBuilder<'_>, classifier: &Linear) -> Result<Sequential> {
    // The stem goes into the first block, which reads the image.
    let mut first = plain_block([32, 32, 16], 1, &vb.pp("features.1.conv"))?;
    first.layers.insert(0, stem(vb)?);
    let first = InvertedBottleneck::new(&first.convs())?;
    let mut features = seq().add(first.channels_last(true));
    for (i, ([c_in, expanded, c_out], stride)) in blocks().enumerate().skip(1) {
        let config = BlockConfig::new(c_in, expanded, c_out).stride(stride);
        let block = InvertedBottleneck::torchvision(&config, vb.pp(format!("features.{}", i + 1)))?;
        features = features.add(block.channels_last(true));
    }
    Ok(end(features.add(PointwiseConv2d::new(&head(vb)?.conv())?), classifier))
}

/// Milliseconds of a call, the mean of so many as fill [`SLICE`].
fn time(network: &Sequential, image: &Tensor) -> Result<f64> {
    let (start, mut calls) = (Instant::now(), 0);
    while calls == 0 || start.elapsed() < SLICE {
        network.forward(image)?;
        calls += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(calls))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn run() -> Result<bool> {
    let vb = Seeded::builder();
    let classifier = linear(1280, 1000, vb.pp("classifier.1"))?;
    let (candle, mbconv) = (with_candle(&vb, &classifier)?, with_mbconv(&vb, &classifier)?);
    let image = Seeded::tensor((1, 3, 224, 224), "image", [-1.0, 1.0])?;

    let deviation = deviation(&candle.forward(&image)?, &mbconv.forward(&image)?)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        times[0].push(time(&candle, &image)?);
        times[1].push(time(&mbconv, &image)?);
    }
    let [candle, mbconv] = times.map(median);
    println!("MobileNetV2-224, batch 1, {} thread(s)", barrier_pool().n_workers() + 1);
    println!("candle: {candle:.1} ms, mbconv: {mbconv:.2} ms, {:.0} times faster", candle / mbconv);
    println!("largest difference of the logits: {deviation:.1e} of the largest");
    Ok(deviation <= TOLERANCE)
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
