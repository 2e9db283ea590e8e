//! Classifies a photo with EfficientNet-Lite0 on ImageNet's 1000 classes.
//!
//! `cargo run --release --example classify -- PHOTO [--weights DIR] [--isa ISA]
//! [--schedule auto|fused|unfused|ROWSxCHANNELS]`, after `python3
//! examples/fetch_efficientnet_lite0.py`. PHOTO is a JPEG, a PNG or a `.rgb` of
//! 224 x 224 x 3 bytes.

#[path = "support/efficientnet_lite0.rs"]
mod efficientnet_lite0;
#[path = "support/options.rs"]
mod options;
#[path = "support/timing.rs"]
mod timing;

use core::error::Error;
use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use efficientnet_lite0::network::{IMAGE, SIDE};
use efficientnet_lite0::{load, normalise};
use image::imageops::FilterType;
use mbconv::{Isa, Schedule};
use timing::interleaved;

const USAGE: &str = "\
usage: classify PHOTO [--weights DIR] [--isa ISA] [--schedule auto|fused|unfused|ROWSxCHANNELS]";
const CRATE: &str = env!("CARGO_MANIFEST_DIR");
const RUNS: usize = 15;

struct Options {
    photo: PathBuf,
    weights: Option<PathBuf>,
    isa: Isa,
    schedule: Schedule,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        let (mut photo, mut weights, mut isa) = (None, None, None);
        let mut schedule = Schedule::Auto;
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{} takes a value", argument.display()));
            match argument.to_str() {
                Some("--weights") => weights = Some(PathBuf::from(value()?)),
                Some("--isa") => isa = Some(Isa::from_name(&value()?.to_string_lossy())?),
                Some("--schedule") => schedule = options::schedule(&value()?.to_string_lossy())?,
                Some(option) if option.starts_with('-') => Err(format!("no option {option}"))?,
                _ if photo.is_none() => photo = Some(PathBuf::from(argument)),
                _ => Err("more than one photo")?,
            }
        }
        let isa = isa.map_or_else(Isa::detect, Ok)?;
        Ok(Self { photo: photo.ok_or("no photo")?, weights, isa, schedule })
    }
}

/// A file of the network, or how to get it.
fn fetched(name: &str, weights: Option<&Path>) -> Result<Vec<u8>, String> {
    let default = Path::new(CRATE).join("target/efficientnet-lite0");
    let path = weights.unwrap_or(&default).join(name);
    std::fs::read(&path).map_err(|error| {
        let out = weights.map_or(String::new(), |dir| format!(" --out {}", dir.display()));
        format!(
            "{}: {error}\nfetch the network first:\n    \
             python3 {CRATE}/examples/fetch_efficientnet_lite0.py{out}",
            path.display()
        )
    })
}

/// The middle of the photo as 224 x 224 RGB.
fn pixels(photo: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    if photo.extension().is_some_and(|extension| extension == "rgb") {
        let rgb = std::fs::read(photo)?;
        if rgb.len() != IMAGE {
            Err(format!("{} bytes, not {SIDE} x {SIDE} x 3", rgb.len()))?;
        }
        return Ok(rgb);
    }
    let side = SIDE as u32;
    let mut photo = image::open(photo)?;
    if (photo.width(), photo.height()) != (side, side) {
        photo = photo.resize_to_fill(side, side, FilterType::CatmullRom);
    }
    Ok(photo.into_rgb8().into_raw())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - largest).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn classify(options: &Options) -> Result<(), Box<dyn Error>> {
    let &Options { isa, schedule, .. } = options;
    let weights = fetched("efficientnet_lite0.safetensors", options.weights.as_deref())?;
    let labels = fetched("imagenet_labels.json", options.weights.as_deref())?;
    let labels: Vec<String> = serde_json::from_slice(&labels)?;
    let image = pixels(&options.photo)
        .map_err(|error| format!("{}: {error}", options.photo.display()))
        .map(|rgb| normalise(&rgb))?;

    let mut network = load(&weights, isa, schedule)?;
    let mut classes: Vec<(f64, &String)> =
        softmax(network.run(&image)?).into_iter().zip(&labels).collect();
    classes.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (probability, label) in classes.iter().take(5) {
        writeln!(stdout(), "{:>6.2}%  {label}", 100.0 * probability)?;
    }

    let mut failed = Ok(());
    let us = interleaved(RUNS, 0.0, &mut [&mut || failed = network.run(&image).map(drop)])[0];
    failed?;
    writeln!(
        stdout(),
        "{:.2} ms on {isa}, one thread, median of {RUNS}: from normalised pixels to logits",
        us / 1e3
    )?;
    Ok(())
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("classify: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = classify(&options) {
        eprintln!("classify: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
