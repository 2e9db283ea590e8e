//! What mbconv does to an ONNX model in tract.
//!
//! `cargo run --release --example speedup -- MODEL.onnx [--threads N] [--set SYMBOL=N]...`
//! prints the report of the pass, the time of each node afterwards, how far the outputs are
//! from plain tract's on random input, and the medians of both, measured in turn.

#[path = "../../../examples/support/deviation.rs"]
mod deviation;
#[path = "../../../examples/support/timing.rs"]
mod timing;

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

use deviation::Deviation;
use mbconv_tract::fuse;
use timing::{interleaved, median};
use tract_core::internal::*;
use tract_core::plan::eval;
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::InferenceModelExt;

const USAGE: &str = "usage: speedup MODEL.onnx [--threads N] [--set SYMBOL=N]...";
const ROUNDS: usize = 31;

#[derive(Default)]
struct Options {
    model: String,
    threads: usize,
    symbols: Vec<(String, i64)>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> TractResult<Self> {
        let mut options = Self { threads: 1, ..Self::default() };
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().with_context(|| format!("{argument} takes a value"));
            match &*argument {
                "--threads" => options.threads = value()?.parse()?,
                "--set" => {
                    let value = value()?;
                    let (symbol, n) = value.split_once('=').context("--set SYMBOL=N")?;
                    options.symbols.push((symbol.to_owned(), n.parse()?));
                }
                option if option.starts_with('-') => bail!("no option {option}"),
                _ if options.model.is_empty() => options.model = argument,
                _ => bail!("more than one model"),
            }
        }
        ensure!(!options.model.is_empty(), "no model");
        ensure!(options.threads > 0, "no threads");
        Ok(options)
    }
}

/// Numbers between -1 and 1 for each input.
fn inputs(model: &TypedModel) -> TractResult<TVec<TValue>> {
    let mut seed = 1u32;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensor = |outlet: &OutletId| {
        let fact = model.outlet_fact(*outlet)?;
        ensure!(fact.datum_type == f32::datum_type(), "an input is {:?}", fact.datum_type);
        let shape = fact.shape.as_concrete();
        let shape = shape.with_context(|| format!("an input is {:?}: --set a size", fact.shape))?;
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| random()).collect();
        Ok(Tensor::from_shape(shape, &numbers)?.into_tvalue())
    };
    model.input_outlets()?.iter().map(tensor).collect()
}

/// The median of each node in milliseconds, in the order of evaluation.
fn node_times(
    state: &mut TypedSimpleState,
    inputs: &TVec<TValue>,
) -> TractResult<Vec<(usize, f64)>> {
    let mut order = vec![];
    let mut times: HashMap<usize, Vec<f64>> = HashMap::new();
    for _ in 0..ROUNDS {
        order.clear();
        state.run_plan_with_eval(inputs.clone(), |context, state, node, inputs| {
            let start = Instant::now();
            let outputs = eval(context, state, node, inputs);
            order.push(node.id);
            times.entry(node.id).or_default().push(start.elapsed().as_secs_f64() * 1e3);
            outputs
        })?;
    }
    Ok(order.into_iter().map(|id| (id, times.get_mut(&id).map_or(0.0, |t| median(t)))).collect())
}

fn speedup(options: &Options) -> TractResult<()> {
    let mut out = stdout().lock();
    let mut model = tract_onnx::onnx().model_for_path(&options.model)?.into_typed()?;
    let symbols = options.symbols.iter();
    let symbols = symbols.map(|(name, n)| (model.symbols.sym(name), n.to_dim())).collect();
    model = model.set_symbols(&symbols)?.into_decluttered()?;
    if options.threads > 1 {
        set_default_executor(Executor::multithread(options.threads));
    }

    let inputs = inputs(&model)?;
    let mut plain = model.clone().into_optimized()?.into_runnable()?.spawn()?;
    let report = fuse(&mut model)?;
    writeln!(out, "{report}\n")?;
    let fused = model.into_optimized()?.into_runnable()?;
    let stages: HashMap<&str, &str> =
        report.replaced.iter().map(|replaced| (&*replaced.name, &*replaced.stages)).collect();
    let mut fused = fused.spawn()?;

    for (i, (y, expected)) in
        fused.run(inputs.clone())?.iter().zip(plain.run(inputs.clone())?).enumerate()
    {
        let elements = |tensor: &TValue| -> TractResult<Vec<f32>> {
            Ok(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let Deviation { absolute, relative } =
            Deviation::between(&elements(&expected)?, &elements(y)?);
        writeln!(out, "output {i}: off by {absolute:.1e}, {relative:.1e} of the largest")?;
    }

    writeln!(out, "\n      ms  node")?;
    let nodes = node_times(&mut fused, &inputs)?;
    let all: f64 = nodes.iter().map(|(_, ms)| ms).sum();
    for (id, ms) in nodes {
        let node = fused.model().node(id);
        let stages = stages.get(&*node.name);
        if stages.is_some() || ms >= all / 100.0 {
            let operation = stages.map_or_else(|| node.op.name().into_owned(), |s| (*s).to_owned());
            writeln!(out, "{ms:8.3}  {}: {operation}", node.name)?;
        }
    }

    let mut failed = Ok(());
    let us = interleaved(
        ROUNDS,
        0.0,
        &mut [&mut || failed = plain.run(inputs.clone()).map(drop), &mut || {
            drop(fused.run(inputs.clone()))
        }],
    );
    failed?;
    writeln!(
        out,
        "\n{:.2} ms before, {:.2} ms after: {:.2} times as fast; {} thread(s), medians of {ROUNDS}",
        us[0] / 1e3,
        us[1] / 1e3,
        us[0] / us[1],
        options.threads
    )?;
    Ok(())
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("speedup: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = speedup(&options) {
        eprintln!("speedup: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
