//! Block cases: the real ones against their expected outputs, and the reader
//! against files that are wrong.

#[path = "../examples/support/case.rs"]
mod case;
mod common;
#[path = "../examples/support/deviation.rs"]
mod deviation;

use core::error::Error;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::{env, fs, io};

use case::Case;
use case::layout::Layouts;
use common::Pool;
use deviation::Deviation;
use mbconv::{Isa, PlanOptions, Schedule, Serial};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/cases");
/// Relative to the largest expected output.
const TOLERANCE: f64 = 2e-5;

#[test]
fn given() -> Result<(), Box<dyn Error>> {
    if !Path::new(DATA).exists() {
        // Straight to the stream: the test harness would keep a println back.
        writeln!(io::stdout(), "skipped: {DATA} is absent")?;
        return Ok(());
    }
    // For emulators.
    let quick = env::var_os("MBCONV_QUICK").is_some();
    let schedules = [Schedule::Fused, Schedule::Unfused, Schedule::Auto];
    let schedules = if quick { &schedules[..1] } else { &schedules };
    let mut cases = 0;
    for entry in fs::read_dir(DATA)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().display().to_string();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let case = Case::parse(&fs::read(&path)?)?;
        for isa in common::isas() {
            for (&schedule, threads) in schedules.iter().zip(1..=3) {
                let options = PlanOptions::new().schedule(schedule).threads(threads);
                for layouts in ["nhwc", "nchw", "nhwc-nchw", "nchw-nhwc"] {
                    let layouts = Layouts::parse(layouts)?;
                    let run = case.run(&Pool::Threads, isa, &options, layouts)?;
                    let error = Deviation::between(case.expected(), &run.output).relative;
                    let (kernel, layouts) = (run.kernel, layouts.name);
                    assert!(error <= TOLERANCE, "{name}, {kernel} {layouts}: {error:e}");
                }
            }
        }
        cases += 1;
    }
    assert!(cases > 0, "{DATA} has no cases");
    Ok(())
}

/// A case in the making: every tensor filled with one number.
#[derive(Clone)]
struct Draft {
    settings: Value,
    tensors: Vec<(&'static str, Vec<usize>, f32)>,
    dtype: Dtype,
}

impl Draft {
    /// Ones in, expanded to two channels of ones; the 3x3 window sums the four
    /// pixels, the projection the channels' halves, and the input makes it 5.
    fn valid() -> Self {
        Self {
            settings: json!({
                "kind": "inverted_residual",
                "act_expand": "relu",
                "act_depthwise": "relu6",
                "act_project": null,
                "se": null,
                "stride": [1, 1],
                "padding": [1, 1, 1, 1],
                "residual": true,
            }),
            tensors: vec![
                ("input", vec![2, 2, 1], 1.0),
                ("expand.weight", vec![2, 1], 1.0),
                ("expand.bias", vec![2], 0.0),
                ("depthwise.weight", vec![3, 3, 2], 1.0),
                ("depthwise.bias", vec![2], 0.0),
                ("project.weight", vec![1, 2], 0.5),
                ("project.bias", vec![1], 0.0),
                ("expected", vec![2, 2, 1], 5.0),
            ],
            dtype: Dtype::F32,
        }
    }

    /// Without expand and project, whose channels are the depthwise ones.
    fn depthwise_only() -> Self {
        let mut draft = Self::valid();
        draft.set("kind", json!("depthwise_only"));
        draft.set("residual", json!(false));
        draft
            .tensors
            .retain(|(name, ..)| !name.starts_with("expand") && !name.starts_with("project"));
        for (name, shape, value) in &mut draft.tensors {
            match *name {
                "input" => shape[2] = 2,
                "expected" => (shape[2], *value) = (2, 4.0),
                _ => {}
            }
        }
        draft
    }

    /// As [`valid`](Self::valid), whose depthwise output is scaled by one half.
    fn excited() -> Self {
        let mut draft = Self::valid();
        draft.set("se", json!({"act_reduce": "relu", "gate": "hardsigmoid:1,0.5"}));
        draft.tensors.extend([
            ("se.reduce.weight", vec![3, 2], 1.0),
            ("se.reduce.bias", vec![3], -4.0),
            ("se.expand.weight", vec![2, 3], 1.0),
            ("se.expand.bias", vec![2], -12.0),
        ]);
        let expected = draft.tensors.iter_mut().find(|(name, ..)| *name == "expected");
        expected.expect("it has one").2 = 3.0;
        draft
    }

    /// The four pixels' sum, twice through two hidden channels.
    fn dw_mlp() -> Self {
        let mut draft = Self::valid();
        draft.set("kind", json!("dw_mlp"));
        draft.set("residual", Value::Null);
        draft.set("residual_from_depthwise", json!(true));
        for (name, shape, value) in &mut draft.tensors {
            match *name {
                "depthwise.weight" => shape[2] = 1,
                "depthwise.bias" => shape[0] = 1,
                "expected" => *value = 8.0,
                _ => {}
            }
        }
        draft
    }

    /// Normalised to the norm's bias, twice that, and the input.
    fn convnext() -> Self {
        let mut draft = Self::dw_mlp();
        draft.set("kind", json!("convnext"));
        draft.set("act_expand", json!("gelu_erf"));
        draft.set("residual", json!(true));
        draft.set("layernorm_eps", json!(1e-6));
        for (name, _, value) in &mut draft.tensors {
            match *name {
                "expected" => *value = 33.0,
                "project.weight" => *value = 1.0,
                _ => {}
            }
        }
        draft.tensors.extend([
            ("norm.weight", vec![1], 1.0),
            ("norm.bias", vec![1], 8.0),
            ("layer_scale", vec![1], 2.0),
        ]);
        draft
    }

    fn every_kind() -> [Self; 5] {
        [Self::valid(), Self::depthwise_only(), Self::excited(), Self::dw_mlp(), Self::convnext()]
    }

    fn set(&mut self, key: &str, value: Value) {
        self.settings[key] = value;
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(Some(self.settings.to_string()))
    }

    fn bytes_with(&self, settings: Option<String>) -> Vec<u8> {
        let data: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product()))
            .collect();
        let views = self.tensors.iter().zip(&data).map(|((name, shape, _), data)| {
            (*name, TensorView::new(self.dtype, shape.clone(), data).expect("the data fits"))
        });
        let metadata = settings.map(|text| HashMap::from([(String::from("case"), text)]));
        safetensors::serialize(views, metadata).expect("a draft serializes")
    }
}

fn run(draft: &Draft) -> Vec<f32> {
    let case = Case::parse(&draft.bytes()).expect("the draft is a case");
    case.run(&Serial, Isa::detect().expect("an ISA"), &PlanOptions::new(), Layouts::NHWC)
        .expect("a case runs")
        .output
}

#[track_caller]
fn is_malformed(bytes: &[u8], what: &str) {
    match Case::parse(bytes) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(case) => panic!("{what}: was read as {}", case.kind),
    }
}

#[test]
fn small_cases_run() {
    for draft in Draft::every_kind() {
        let expected = draft.tensors.iter().find(|(name, ..)| *name == "expected");
        let (_, shape, value) = expected.expect("it has one");
        assert_eq!(run(&draft), vec![*value; shape.iter().product()], "{}", draft.settings);
    }
}

#[test]
fn a_file_of_another_length_is_malformed() {
    let mut bytes = Draft::valid().bytes();
    for length in 0..bytes.len() {
        is_malformed(&bytes[..length], &format!("{length} bytes"));
    }
    bytes.push(0);
    is_malformed(&bytes, "a byte more");
}

#[test]
fn a_changed_byte_never_panics() {
    for draft in [Draft::excited(), Draft::convnext()] {
        let bytes = draft.bytes();
        for i in 0..bytes.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[i] ^= flip;
                if let Ok(case) = Case::parse(&bytes) {
                    case.run(
                        &Serial,
                        Isa::detect().expect("an ISA"),
                        &PlanOptions::new(),
                        Layouts::NHWC,
                    )
                    .expect("a case runs");
                }
            }
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_malformed() {
    for draft in Draft::every_kind() {
        for (i, (name, shape, _)) in draft.tensors.iter().enumerate() {
            let mut changed = draft.clone();
            changed.tensors.remove(i);
            is_malformed(&changed.bytes(), &format!("no {name}"));

            let axes = 0..shape.len();
            let grown = axes.clone().map(|a| changed_axis(shape, a, shape[a] + 1));
            let empty = axes.map(|a| changed_axis(shape, a, 0));
            let extra_axis = [shape.as_slice(), &[1]].concat();
            for wrong in grown.chain(empty).chain([extra_axis, shape[1..].to_vec(), vec![]]) {
                let mut changed = draft.clone();
                changed.tensors[i].1.clone_from(&wrong);
                is_malformed(&changed.bytes(), &format!("{name} is {wrong:?}"));
            }
        }
        // Of F32's size, so that only the type is wrong.
        let integers = Draft { dtype: Dtype::I32, ..draft };
        is_malformed(&integers.bytes(), "i32");
    }
}

fn changed_axis(shape: &[usize], axis: usize, size: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[axis] = size;
    shape
}

#[test]
fn wrong_settings_are_malformed() {
    for (key, values) in [
        ("kind", vec![json!(null), json!(3), json!("bottleneck"), json!(["convnext"])]),
        ("act_expand", vec![json!("swish6"), json!(6), json!([]), json!("")]),
        ("act_depthwise", vec![json!("RELU6"), json!(true)]),
        ("act_project", vec![json!("relu7"), json!({})]),
        ("se", vec![json!(true), json!("relu"), json!([])]),
        ("residual", vec![json!("true"), json!(1), json!([])]),
        (
            "stride",
            vec![
                json!(null),
                json!(1),
                json!([1]),
                json!([1, 1, 1]),
                json!([0, 1]),
                json!([-1, 1]),
                json!([1.5, 1]),
                json!([1, "1"]),
                json!([1e300, 1]),
                json!([2, 1]),
                json!([1, u64::MAX]),
            ],
        ),
        (
            "padding",
            vec![
                json!(null),
                json!("same"),
                json!([1, 1]),
                json!([1, 1, 1, 1, 1]),
                json!([1, 1, 1, -1]),
                json!([3, 1, 1, 1]),
                json!([1, 1, u64::MAX, 1]),
                json!([0, 0, 0, 0]),
                json!([0, 1, 1, 1]),
            ],
        ),
    ] {
        for value in values {
            let mut draft = Draft::valid();
            let what = format!("{key} is {value}");
            draft.set(key, value);
            is_malformed(&draft.bytes(), &what);
        }
    }

    let draft = Draft::valid();
    is_malformed(&draft.bytes_with(None), "no metadata");
    for text in ["", "null", "[]", "3", "\"kind\"", "{", "{}", "{\"kind\":\"inverted_residual\"}"] {
        is_malformed(&draft.bytes_with(Some(text.into())), text);
    }
    let mut draft = Draft::depthwise_only();
    draft.set("residual", json!(true));
    is_malformed(&draft.bytes(), "a residual without a block");
}
