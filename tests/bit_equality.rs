//! One result, bit for bit: whatever schedule, tile, caches, number of tasks and
//! executor, on every instruction set, whatever the data.

#![allow(unsafe_code, reason = "reads what a run has initialised")]

mod common;

use std::mem::MaybeUninit;

use common::configuration::Configuration;
use common::placement::Placement;
use common::{check_bits, config, isas, of_any_data};
use mbconv::testing::{
    Data, DepthwiseLayer, PointwiseLayer, Random, Window, blocks, convnexts, depthwise_layers,
    pointwise_layers, shapes,
};
use mbconv::{
    Activation, BottleneckPlan, ConvNextBlock, Depthwise, Error, InvertedBottleneck, Layout,
    Padding, PlanOptions, Pointwise, Result, Schedule, Shape,
};
use proptest::prelude::*;

/// Where a run can write.
enum Output<'a> {
    Initialised(&'a mut [f32]),
    Uninitialised(&'a mut [MaybeUninit<f32>]),
}

/// What `run` gives twice, as dense NHWC: on memory that nobody has initialised or,
/// where gaps are to be watched, on what has values.
fn output(
    placement: Placement,
    (shape, channels): (Shape, usize),
    mut run: impl FnMut(Output<'_>) -> Result<()>,
) -> Vec<f32> {
    let mut memory = placement.empty(shape, channels);
    let dense = placement.slack.is_none();
    let mut uninit = vec![MaybeUninit::uninit(); if dense { memory.len() } else { 0 }];
    let mut once = || {
        if dense {
            run(Output::Uninitialised(&mut uninit)).unwrap();
            // SAFETY: `run` has passed.
            memory = uninit.iter().map(|x| unsafe { x.assume_init() }).collect();
        } else {
            run(Output::Initialised(&mut memory)).unwrap();
        }
        placement.collect("output", shape, channels, &memory)
    };
    let first = once();
    check_bits("the second run", &first, &once());
    first
}

proptest! {
    #![proptest_config(config(700))]

    #[test]
    fn pointwise(
        configuration in Configuration::any(),
        (data, layer) in of_any_data(pointwise_layers),
        shape in shapes(3, 15),
        residual: bool,
        seed: u64,
    ) {
        let PointwiseLayer { c_in, c_out, .. } = layer;
        let x = data.tensor(seed, shape.elements(c_in).unwrap());
        let r = data.tensor(!seed, shape.elements(c_out).unwrap());
        let r = residual.then_some(&*r);
        for isa in isas() {
            let op = Pointwise::with_isa(&layer.params(), isa).unwrap();
            let plain = op.plan(shape).unwrap();
            let mut expected = vec![f32::NAN; plain.output_len()];
            match r {
                Some(r) => plain.run_residual(&x, r, &mut expected),
                None => plain.run(&x, &mut expected),
            }
            .unwrap();
            let ends = [(shape, c_in), (shape, c_out)];
            let Configuration { input, output, pool, .. } = configuration;
            let plan = op.plan_with(shape, &configuration.options(ends[0], ends[1])).unwrap();
            let x = input.place(shape, c_in, &x);
            let r = r.map(|r| output.place(shape, c_out, r));
            let y = self::output(output, ends[1], |y| match (y, &r) {
                (Output::Uninitialised(y), r) => {
                    plan.run_uninit(&pool, &x, r.as_deref(), y).map(drop)
                }
                (Output::Initialised(y), Some(r)) => plan.run_residual_with(&pool, &x, r, y),
                (Output::Initialised(y), None) => plan.run_with(&pool, &x, y),
            });
            check_bits(&plan.kernel_name(), &expected, &y);
        }
    }

    #[test]
    fn depthwise(
        configuration in Configuration::any(),
        (data, layer) in of_any_data(depthwise_layers),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let (c, outputs) = (layer.channels, layer.channels * layer.multiplier);
        let x = data.tensor(seed, shape.elements(c).unwrap());
        for isa in isas() {
            let op = Depthwise::with_isa(&layer.params(), isa).unwrap();
            let plain = match op.plan(shape) {
                Err(Error::EmptyOutput { .. }) => return Ok(()),
                plan => plan.unwrap(),
            };
            let mut expected = vec![f32::NAN; plain.output_len()];
            plain.run(&x, &mut expected).unwrap();
            let ends = [(shape, c), (plain.output_shape(), outputs)];
            let Configuration { input, output, pool, .. } = configuration;
            let plan = op.plan_with(shape, &configuration.options(ends[0], ends[1])).unwrap();
            let x = input.place(shape, c, &x);
            let y = self::output(output, ends[1], |y| match y {
                Output::Uninitialised(y) => plan.run_uninit(&pool, &x, y).map(drop),
                Output::Initialised(y) => plan.run_with(&pool, &x, y),
            });
            check_bits(&plan.kernel_name(), &expected, &y);
        }
    }

    #[test]
    fn bottleneck(
        configuration in Configuration::any(),
        (data, block) in of_any_data(blocks),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let c = [block.c_in(), block.c_out()];
        let x = data.tensor(seed, shape.elements(c[0]).unwrap());
        for isa in isas() {
            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            one_result(configuration, shape, c, &x, |options| op.plan_with(shape, options));
        }
    }

    #[test]
    fn convnext(
        configuration in Configuration::any(),
        (data, block) in of_any_data(convnexts),
        shape in shapes(3, 15),
        seed: u64,
    ) {
        let c = [block.depthwise.channels, block.project.c_out];
        let x = data.tensor(seed, shape.elements(c[0]).unwrap());
        for isa in isas() {
            let op = ConvNextBlock::with_isa(&block.params(), isa).unwrap();
            one_result(configuration, shape, c, &x, |options| op.plan_with(shape, options));
        }
    }
}

/// Holds a block's plan as configured against the plain one.
fn one_result(
    configuration: Configuration,
    shape: Shape,
    [c_in, c_out]: [usize; 2],
    x: &[f32],
    plan: impl Fn(&PlanOptions) -> Result<BottleneckPlan>,
) {
    let plain = match plan(&PlanOptions::new().schedule(Schedule::Unfused)) {
        Err(Error::EmptyOutput { .. }) => return,
        plan => plan.unwrap(),
    };
    let mut expected = vec![f32::NAN; plain.output_len()];
    plain.run(x, &mut expected, &mut plain.scratch()).unwrap();
    let ends = [(shape, c_in), (plain.output_shape(), c_out)];
    let Configuration { input, output, pool, .. } = configuration;
    let plan = plan(&configuration.options(ends[0], ends[1])).unwrap();
    let mut scratch = plan.scratch();
    let x = input.place(shape, c_in, x);
    let y = self::output(output, ends[1], |y| match y {
        Output::Uninitialised(y) => plan.run_uninit(&pool, &x, y, &mut scratch).map(drop),
        Output::Initialised(y) => plan.run_with(&pool, &x, y, &mut scratch),
    });
    let context = format!("{} {}", plan.kernel_name(), plan.explain());
    check_bits(&context, &expected, &y);
}

/// Sizes at which layers that are turned go in several parts: many channels, and
/// rows of more vectors than are looked at together.
#[test]
fn large_layers_in_every_layout() {
    let (random, data) = (&mut Random::new(11), Data::Ordinary);
    let (dense, gaps) = (None, Some([3, 0, 5, 1]));
    let places = [(Layout::Nhwc, dense), (Layout::Nchw, dense), (Layout::Nhwc, gaps)]
        .into_iter()
        .chain([(Layout::Nchw, gaps)])
        .map(|(layout, slack)| Placement { layout, slack });
    let pairs: Vec<_> = places.clone().flat_map(|x| places.clone().map(move |y| (x, y))).collect();
    for (shape, c_in, c_out) in [
        (Shape::new(1, 7, 7), 600, 190),
        (Shape::new(2, 4, 40), 300, 23),
        (Shape::new(1, 3, 150), 5, 350),
    ] {
        let layer = PointwiseLayer::new(random, data, [c_in, c_out], Activation::Silu);
        let x = data.tensor(1, shape.elements(c_in).unwrap());
        let r = data.tensor(2, shape.elements(c_out).unwrap());
        for isa in isas() {
            let op = Pointwise::with_isa(&layer.params(), isa).unwrap();
            let mut expected = vec![f32::NAN; r.len()];
            op.plan(shape).unwrap().run_residual(&x, &r, &mut expected).unwrap();
            for (input, output) in &pairs {
                let options = input.input(PlanOptions::new(), shape, c_in);
                let options = output.output(options, shape, c_out);
                let plan = op.plan_with(shape, &options).unwrap();
                let (x, r) = (input.place(shape, c_in, &x), output.place(shape, c_out, &r));
                let mut y = output.empty(shape, c_out);
                plan.run_residual(&x, &r, &mut y).unwrap();
                let context = format!("{} {input:?} {output:?}", plan.kernel_name());
                check_bits(&context, &expected, &output.collect(&context, shape, c_out, &y));
            }
        }
    }
    for (shape, c, kernel, stride) in [
        (Shape::new(1, 9, 150), 19, 3, 1),
        (Shape::new(1, 9, 150), 19, 3, 2),
        (Shape::new(1, 131, 130), 3, 3, 1),
        (Shape::new(1, 131, 130), 17, 3, 2),
        (Shape::new(1, 12, 90), 5, 5, 2),
        (Shape::new(1, 12, 90), 33, 7, 1),
        (Shape::new(1, 30, 40), 37, 5, 1),
        (Shape::new(1, 31, 40), 37, 5, 2),
        (Shape::new(2, 7, 7), 200, 7, 1),
    ] {
        let padding = Padding::SameUpper;
        let window = Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1, 1], padding };
        let layer = DepthwiseLayer::new(random, data, [c, 1], window, Activation::Relu6);
        let x = data.tensor(3, shape.elements(c).unwrap());
        depthwise_in_every_layout(&layer, shape, &x, &pairs, 1);
    }
}

/// Planes that are spelled out, with every kind of activation, and others of their size.
#[test]
fn planes_of_short_rows() {
    let random = &mut Random::new(13);
    let planar = Placement { layout: Layout::Nchw, slack: None };
    let sizes = (6..=9).flat_map(|height| (1..=9).map(move |width| (height, width)));
    let activations = [Activation::Identity, Activation::Relu6, Activation::Gelu];
    for (i, (height, width)) in sizes.enumerate() {
        let activations = match height == width {
            true => &activations[..],
            false => &activations[i % 3..][..1],
        };
        for (&activation, data) in activations.iter().flat_map(|a| Data::ALL.map(|data| (a, data)))
        {
            let c = [1, 5, 16, 21, 40][(i + data as usize) % 5];
            let shape = Shape::new(1 + i % 2, height, width);
            let padding = Padding::uniform(1);
            let window = Window { kernel: [3; 2], stride: [1; 2], dilation: [1; 2], padding };
            let multiplier = 1 + (i + data as usize) % 2;
            let layer = DepthwiseLayer::new(random, data, [c, multiplier], window, activation);
            let x = data.tensor(7, shape.elements(c).unwrap());
            for threads in [1, 3] {
                depthwise_in_every_layout(&layer, shape, &x, &[(planar, planar)], threads);
            }
        }
    }
}

/// Rows that are less than a vector, just one, some, and some with a rest, whose taps are
/// outside the image on either side, on both or on none.
#[test]
fn planes_along_rows() {
    let random = &mut Random::new(17);
    let planar = Placement { layout: Layout::Nchw, slack: None };
    let widths = (3..20).chain([24, 31, 32, 33, 47, 64, 129]);
    let sides = [(1, 1), (0, 0), (2, 0), (0, 2), (2, 2), (0, 1)];
    for (i, width) in widths.enumerate() {
        for (j, (left, right)) in sides.into_iter().enumerate() {
            let data = Data::ALL[(i + j) % Data::ALL.len()];
            let padding = Padding::Explicit { top: j % 3, bottom: i % 3, left, right };
            for stride in [1, 2] {
                let window =
                    Window { kernel: [3; 2], stride: [stride; 2], dilation: [1; 2], padding };
                let activation =
                    [Activation::Silu, Activation::Relu6, Activation::HardSwish][j % 3];
                let layer = DepthwiseLayer::new(random, data, [18, 1], window, activation);
                let shape = Shape::new(1, 5 + j, width);
                let x = data.tensor(7, shape.elements(18).unwrap());
                for threads in [1, 2] {
                    depthwise_in_every_layout(&layer, shape, &x, &[(planar, planar)], threads);
                }
            }
        }
    }
}

/// More channels than go through the first-level cache at a time, and planes that start on a cache
/// line or off it: sums in parts.
#[test]
fn planes_of_many_channels() {
    let random = &mut Random::new(23);
    let planar = Placement { layout: Layout::Nchw, slack: None };
    for (c, side) in [([170, 19], 4), ([321, 40], 8), ([700, 700], 4), ([700, 33], 7)] {
        let layer = PointwiseLayer::new(random, Data::Ordinary, c, Activation::Relu6);
        let shape = Shape::new(1, side, side);
        let x = Data::Ordinary.tensor(7, shape.elements(c[0]).unwrap());
        let residual = Data::Ordinary.tensor(8, shape.elements(c[1]).unwrap());
        for isa in isas() {
            let op = Pointwise::with_isa(&layer.params(), isa).unwrap();
            let mut expected = vec![f32::NAN; residual.len()];
            op.plan(shape).unwrap().run_residual(&x, &residual, &mut expected).unwrap();
            let plan = op.plan_with(shape, &PlanOptions::new().layout(Layout::Nchw)).unwrap();
            let [dense, added] =
                [(&x, c[0]), (&residual, c[1])].map(|(t, c)| planar.place(shape, c, t));
            for offset in [0, 1, 8] {
                let mut moved = vec![0.0; dense.len() + 32];
                let start = moved.as_ptr().align_offset(64) + offset;
                moved[start..][..dense.len()].copy_from_slice(&dense);
                let mut y = vec![f32::NAN; expected.len()];
                plan.run_residual(&moved[start..][..dense.len()], &added, &mut y).unwrap();
                let context = format!("{isa} {c:?} {side} from {offset}");
                check_bits(&context, &expected, &planar.collect(&context, shape, c[1], &y));
            }
        }
    }
}

/// Holds a layer in each of these places against dense NHWC.
fn depthwise_in_every_layout(
    layer: &DepthwiseLayer,
    shape: Shape,
    x: &[f32],
    pairs: &[(Placement, Placement)],
    threads: usize,
) {
    let (c, outputs) = (layer.channels, layer.channels * layer.multiplier);
    for isa in isas() {
        let op = Depthwise::with_isa(&layer.params(), isa).unwrap();
        let plan = op.plan(shape).unwrap();
        let mut expected = vec![f32::NAN; plan.output_len()];
        plan.run(x, &mut expected).unwrap();
        let after = plan.output_shape();
        for (input, output) in pairs {
            let options = input.input(PlanOptions::new().threads(threads), shape, c);
            let options = output.output(options, after, outputs);
            let plan = op.plan_with(shape, &options).unwrap();
            let mut y = output.empty(after, outputs);
            plan.run(&input.place(shape, c, x), &mut y).unwrap();
            let context = format!("{} {input:?} {output:?} {shape:?}", plan.kernel_name());
            check_bits(&context, &expected, &output.collect(&context, after, outputs, &y));
        }
    }
}
