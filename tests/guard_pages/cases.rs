//! Every operation with its memory at the edge, and the edge itself.

use core::fmt::Debug;
use core::ops::Range;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, io};

use mbconv::testing::{
    Data, PointwiseLayer, blocks, convnexts, depthwise_layers, pointwise_layers, shapes,
};
use mbconv::{ConvNextBlock, Depthwise, Error, InvertedBottleneck, Isa, Pointwise, Scratch};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::common::configuration::Configuration;
use crate::common::{check_bits, in_a_child, isas};
use crate::guarded::{Edge, Guarded};

#[global_allocator]
static GUARDED: Guarded = Guarded;

/// From a seed that is printed.
fn config() -> ProptestConfig {
    static SEED: OnceLock<u64> = OnceLock::new();
    let mut config = ProptestConfig { max_global_rejects: u32::MAX, ..crate::common::config(100) };
    if config.rng_seed == RngSeed::Random {
        let seed = SEED.get_or_init(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let seed = now.map_or(0, |now| now.as_nanos() as u64);
            // Straight to the stream: the test harness would lose it with the process.
            let _ = writeln!(io::stdout(), "guard_pages: PROPTEST_RNG_SEED={seed}");
            seed
        });
        config.rng_seed = RngSeed::Fixed(*seed);
    }
    config
}

/// Runs a case on every instruction set with memory at every edge; all give one result.
fn at_every_edge(case: &dyn Debug, run: impl Fn(Isa, Edge) -> Vec<f32>) {
    let trace = env::var_os("MBCONV_TRACE").is_some();
    for isa in isas() {
        let mut first: Option<Vec<f32>> = None;
        for edge in Edge::ALL {
            if trace {
                let _ = writeln!(io::stderr(), "{isa} {edge:?}: {case:?}");
            }
            edge.set();
            let y = run(isa, edge);
            check_bits(&format!("{isa} {edge:?}"), first.as_deref().unwrap_or(&y), &y);
            first.get_or_insert(y);
        }
    }
}

/// Memory of which some `bytes` lie at the edge, those ahead of its end at any alignment.
fn scratch(bytes: usize, edge: Edge) -> (Scratch, Range<usize>) {
    let scratch = Scratch::new(bytes + 1);
    let start = match edge {
        Edge::End => scratch.len() - bytes,
        Edge::Start => 0,
        Edge::Shifted => 1,
    };
    (scratch, start..start + bytes)
}

/// Strided slices end with their last element.
fn tight(mut configuration: Configuration) -> Configuration {
    for place in [&mut configuration.input, &mut configuration.output] {
        place.slack.iter_mut().for_each(|slack| slack[3] = 0);
    }
    configuration
}

const DATA: Data = Data::Ordinary;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn pointwise(
        configuration in Configuration::any().prop_map(tight),
        layer in pointwise_layers(DATA),
        shape in shapes(3, 15),
        residual: bool,
        seed: u64,
    ) {
        let Configuration { input, output, pool, .. } = configuration;
        let PointwiseLayer { c_in, c_out, .. } = layer;
        let options = configuration.options((shape, c_in), (shape, c_out));
        at_every_edge(&(configuration, &layer, shape, residual, seed), |isa, edge| {
            let layer = layer.clone();
            let [x, r] = [c_in, c_out].map(|c| DATA.tensor(seed, shape.elements(c).unwrap()));
            let (x, r) = (input.place(shape, c_in, &x), output.place(shape, c_out, &r));
            let mut y = output.empty(shape, c_out);
            let slices = [&layer.weights, &*x, &r, &y].into_iter().chain(layer.bias.as_deref());
            slices.for_each(|slice| assert!(edge.has(slice)));

            let op = Pointwise::with_isa(&layer.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            match residual {
                true => plan.run_residual(&x, &r, &mut y).unwrap(),
                false => plan.run_with(&pool, &x, &mut y).unwrap(),
            }
            output.collect(&plan.kernel_name(), shape, c_out, &y)
        });
    }

    #[test]
    fn depthwise(
        configuration in Configuration::any().prop_map(tight),
        layer in depthwise_layers(DATA),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let Configuration { input, output, pool, .. } = configuration;
        let fits = Depthwise::new(&layer.params()).unwrap().plan(shape);
        prop_assume!(!matches!(fits, Err(Error::EmptyOutput { .. })));
        let after = fits.unwrap().output_shape();
        let (c_in, c_out) = (layer.channels, layer.channels * layer.multiplier);
        let options = configuration.options((shape, c_in), (after, c_out));
        at_every_edge(&(configuration, &layer, shape, seed), |isa, edge| {
            let layer = layer.clone();
            let x = input.place(shape, c_in, &DATA.tensor(seed, shape.elements(c_in).unwrap()));
            let mut y = output.empty(after, c_out);
            let slices = [&layer.weights, &*x, &y].into_iter().chain(layer.bias.as_deref());
            slices.for_each(|slice| assert!(edge.has(slice)));

            let op = Depthwise::with_isa(&layer.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            plan.run_with(&pool, &x, &mut y).unwrap();
            output.collect(&plan.kernel_name(), after, c_out, &y)
        });
    }

    #[test]
    fn bottleneck(
        configuration in Configuration::any().prop_map(tight),
        block in blocks(DATA),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let Configuration { input, output, pool, .. } = configuration;
        let fits = InvertedBottleneck::new(&block.params()).unwrap().plan(shape);
        prop_assume!(!matches!(fits, Err(Error::EmptyOutput { .. })));
        let after = fits.unwrap().output_shape();
        let (c_in, c_out) = (block.c_in(), block.c_out());
        let options = configuration.options((shape, c_in), (after, c_out));
        at_every_edge(&(configuration, &block, shape, seed), |isa, edge| {
            let block = block.clone();
            let x = input.place(shape, c_in, &DATA.tensor(seed, shape.elements(c_in).unwrap()));
            let mut y = output.empty(after, c_out);
            let pointwise = [&block.expand, &block.project].into_iter().flatten();
            let gate = block.gate.iter().flat_map(|gate| [&gate.reduce, &gate.expand]);
            let numbers = pointwise.chain(gate).map(|layer| (&layer.weights, &layer.bias));
            let numbers = numbers.chain(block.stem.iter().map(|layer| (&layer.weights, &layer.bias)));
            let numbers = numbers.chain([(&block.depthwise.weights, &block.depthwise.bias)]);
            let slices = numbers.flat_map(|(weights, bias)| bias.iter().chain([weights]));
            slices.for_each(|slice| assert!(edge.has(slice)));
            assert!(edge.has(&x) && edge.has(&y));

            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            let (mut scratch, range) = scratch(plan.scratch_bytes(), edge);
            let scratch = &mut scratch[range];
            assert!(edge.has(scratch));
            plan.run_with(&pool, &x, &mut y, scratch).unwrap();
            output.collect(&plan.kernel_name(), after, c_out, &y)
        });
    }

    #[test]
    fn convnext(
        configuration in Configuration::any().prop_map(tight),
        block in convnexts(DATA),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let Configuration { input, output, pool, .. } = configuration;
        let fits = ConvNextBlock::new(&block.params()).unwrap().plan(shape);
        prop_assume!(!matches!(fits, Err(Error::EmptyOutput { .. })));
        let after = fits.unwrap().output_shape();
        let (c_in, c_out) = (block.depthwise.channels, block.project.c_out);
        let options = configuration.options((shape, c_in), (after, c_out));
        at_every_edge(&(configuration, &block, shape, seed), |isa, edge| {
            let block = block.clone();
            let x = input.place(shape, c_in, &DATA.tensor(seed, shape.elements(c_in).unwrap()));
            let mut y = output.empty(after, c_out);
            let gate = block.gate.iter().flat_map(|gate| [&gate.reduce, &gate.expand]);
            let pointwise = gate.chain([&block.expand, &block.project]);
            let numbers = pointwise.map(|layer| (&layer.weights, &layer.bias));
            let numbers = numbers.chain([(&block.depthwise.weights, &block.depthwise.bias)]);
            let norm = block.norm.iter().flat_map(|norm| [&norm.weight, &norm.bias]);
            let slices = numbers.flat_map(|(weights, bias)| bias.iter().chain([weights]));
            let slices = slices.chain(norm).chain(&block.scale);
            slices.for_each(|slice| assert!(edge.has(slice)));
            assert!(edge.has(&x) && edge.has(&y));

            let op = ConvNextBlock::with_isa(&block.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            let (mut scratch, range) = scratch(plan.scratch_bytes(), edge);
            let scratch = &mut scratch[range];
            assert!(edge.has(scratch));
            plan.run_with(&pool, &x, &mut y, scratch).unwrap();
            output.collect(&plan.kernel_name(), after, c_out, &y)
        });
    }
}

/// The guard itself: a byte outside is the end of a process.
#[test]
fn a_byte_outside_is_fatal() {
    for edge in ["End", "Start"] {
        let test = "cases::touch_a_byte_outside";
        let Some(child) = in_a_child(test, ("MBCONV_EDGE", edge)) else { continue };
        // SIGSEGV or SIGBUS, or a sanitizer that has caught it.
        let killed = matches!(child.status.signal(), Some(11 | 7 | 10));
        let caught = String::from_utf8_lossy(&child.stderr).contains("AddressSanitizer");
        assert!(killed || caught, "{child:?}");
    }
}

/// What must not be done; only when the test above asks for it.
#[test]
fn touch_a_byte_outside() {
    let Ok(edge) = env::var("MBCONV_EDGE") else { return };
    let at_end = edge == "End";
    if at_end { Edge::End } else { Edge::Start }.set();
    let memory = [0.0f32; 3].to_vec();
    let byte = memory.as_ptr().cast::<u8>();
    let outside = if at_end { byte.wrapping_add(12) } else { byte.wrapping_sub(1) };
    // SAFETY: none; the test above asks that the process ends here.
    println!("{}", unsafe { outside.read_volatile() });
}
