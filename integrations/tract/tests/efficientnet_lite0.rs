//! EfficientNet-Lite0 from its ONNX file on real photos, against what its own PyTorch model
//! gives in f64.

#[path = "../../../examples/support/deviation.rs"]
mod deviation;

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;

use deviation::Deviation;
use mbconv_tract::{Part, fuse};
use safetensors::SafeTensors;
use tract_core::internal::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::InferenceModelExt;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/efficientnet-lite0");
const PHOTOS: [&str; 6] = ["chelsea", "astronaut", "china", "coffee", "flower", "rocket"];
const SIDE: usize = 224;
/// Of a logit; the largest are about 11.
const TOLERANCE: f64 = 1e-4;

/// What the network takes, `[1][3][224][224]`, from rows of 8-bit RGB.
fn image(photo: &str) -> TractResult<TValue> {
    let rgb = fs::read(format!("{DATA}/photos/{photo}_224.rgb"))?;
    let planes: Vec<f32> = (0..3)
        .flat_map(|c| rgb.iter().skip(c).step_by(3))
        .map(|v| (f32::from(*v) - 127.0) / 128.0)
        .collect();
    Ok(Tensor::from_shape(&[1, 3, SIDE, SIDE], &planes)?.into_tvalue())
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[test]
fn agrees_with_pytorch() -> TractResult<()> {
    let data = Path::new(DATA);
    if !data.exists() {
        // Straight to the stream: the test harness would keep a println back.
        writeln!(stdout(), "skipped: {DATA} is absent")?;
        return Ok(());
    }
    let golden = fs::read(data.join("golden_logits.safetensors"))?;
    let golden = SafeTensors::deserialize(&golden)?;
    let model = tract_onnx::onnx().model_for_path(data.join("efficientnet_lite0.onnx"))?;
    let mut model = model.into_typed()?.into_decluttered()?;
    let report = fuse(&mut model)?;
    let blocks: Vec<_> =
        report.replaced.iter().filter(|replaced| replaced.part == Part::Block).collect();
    assert_eq!(blocks.len(), 16, "{report}");
    // Those of stride 1 and equal channels, and the stem in the first.
    let with_input = blocks.iter().filter(|block| block.stages.ends_with(", + input"));
    assert_eq!(with_input.count(), 9, "{report}");
    assert!(blocks[0].stages.starts_with("conv 3x3 3->32 stride 2 Relu6"), "{report}");
    assert!(report.left.is_empty(), "{report}");

    let runnable = model.into_optimized()?.into_runnable()?;
    for executor in [Executor::SingleThread, Executor::multithread(2)] {
        for photo in PHOTOS {
            let run = || runnable.run(tvec!(image(photo)?));
            let logits = multithread_tract_scope(executor.clone(), run)?;
            let logits = logits[0].try_as_plain_ram()?;
            let logits = logits.as_slice::<f32>()?;
            let expected: Vec<f32> = golden
                .tensor(&format!("{photo}.logits"))?
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            let error = Deviation::between(&expected, logits).absolute;
            assert!(error <= TOLERANCE, "{photo}, {executor:?}: off by {error:e}");
            assert_eq!(top(&expected), top(logits), "{photo}, {executor:?}");
        }
    }
    Ok(())
}
