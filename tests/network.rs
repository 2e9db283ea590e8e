//! EfficientNet-Lite0 with its real weights on real photos, against what its
//! own PyTorch model gives in f64.

mod common;
#[path = "../examples/support/deviation.rs"]
mod deviation;
#[path = "../examples/support/efficientnet_lite0.rs"]
mod efficientnet_lite0;

use core::error::Error;
use std::io::Write;
use std::path::Path;
use std::{env, fs, io};

use deviation::Deviation;
use efficientnet_lite0::tensors::TensorFile;
use efficientnet_lite0::{load, normalise};
use mbconv::Schedule;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/efficientnet-lite0");
/// The first has every layer's output on record.
const PHOTOS: [&str; 6] = ["chelsea", "astronaut", "china", "coffee", "flower", "rocket"];
const SCHEDULES: [Schedule; 3] = [Schedule::Fused, Schedule::Unfused, Schedule::Auto];
/// Of a logit; the largest are about 11.
const LOGIT_TOLERANCE: f64 = 1e-4;
/// Of a layer's output, relative to its largest.
const LAYER_TOLERANCE: f64 = 2e-5;

fn image(photo: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    Ok(normalise(&fs::read(format!("{DATA}/photos/{photo}_224.rgb"))?))
}

/// The class of the largest logit.
fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[test]
fn agrees_with_pytorch() -> Result<(), Box<dyn Error>> {
    let data = Path::new(DATA);
    if !data.exists() {
        // Straight to the stream: the test harness would keep a println back.
        writeln!(io::stdout(), "skipped: {DATA} is absent")?;
        return Ok(());
    }
    let weights = fs::read(data.join("efficientnet_lite0.safetensors"))?;
    let logits = fs::read(data.join("golden_logits.safetensors"))?;
    let logits = TensorFile::parse(&logits)?;
    let layers = fs::read(data.join("golden_chelsea_activations.safetensors"))?;
    let layers = TensorFile::parse(&layers)?;
    // For emulators.
    let quick = env::var_os("MBCONV_QUICK").is_some();
    let (photos, schedules) =
        if quick { (&PHOTOS[..1], &SCHEDULES[..1]) } else { (&PHOTOS[..], &SCHEDULES[..]) };

    for isa in common::isas() {
        for &schedule in schedules {
            let mut network = load(&weights, isa, schedule)?;
            let mut seen = 0;
            network.run_observed(&image(PHOTOS[0])?, |stage, output| {
                let (_, expected) = layers.numbers(&stage.to_string()).expect("on record");
                let error = Deviation::between(&expected, output).relative;
                let context = format!("{stage} on {isa}, {schedule:?}");
                assert!(error <= LAYER_TOLERANCE, "{context}: off by {error:e}");
                seen += 1;
            })?;
            assert_eq!(seen, 17, "16 blocks, pooled");
            for photo in photos {
                let output = network.run(&image(photo)?)?;
                let (_, expected) = logits.numbers(&format!("{photo}.logits"))?;
                let error = Deviation::between(&expected, output).absolute;
                let context = format!("{photo} on {isa}, {schedule:?}");
                assert!(error <= LOGIT_TOLERANCE, "{context}: off by {error:e}");
                assert_eq!(top(&expected), top(output), "{context}");
            }
        }
    }
    Ok(())
}
