//! One result, bit for bit: whatever schedule, tile, caches, number of tasks and
//! executor, on every instruction set.

#![allow(unsafe_code, reason = "reads what a run has initialised")]

mod common;

use std::mem::MaybeUninit;

use common::{
    Block, Fill, Form, Layer, Placement, Pool, Rng, Window, any_activation, channels, check_bits,
    isas, multiplier, pool, window,
};
use mbconv::{
    Activation, Caches, Depthwise, Error, InvertedBottleneck, Layout, Padding, PlanOptions,
    Pointwise, Result, Schedule, Shape,
};
use proptest::prelude::*;

/// How a plan is made and run, if not plainly.
#[derive(Debug, Clone, Copy)]
struct Configuration {
    input: Placement,
    output: Placement,
    schedule: Schedule,
    caches: Caches,
    threads: usize,
    pool: Pool,
}

impl Configuration {
    fn any() -> impl Strategy<Value = Self> {
        let schedule = prop_oneof![
            3 => Just(Schedule::Auto),
            1 => Just(Schedule::Fused),
            1 => Just(Schedule::Unfused),
            2 => (1usize..=20, 1usize..=100)
                .prop_map(|(rows, channels)| Schedule::Tiled { rows, channels }),
        ];
        // L2 from where little fits to where everything does.
        let caches =
            (10u32..=22).prop_map(|bits| Caches { l1: 1 << 12, l2: 1 << bits, l3: 1 << 20 });
        let places = (Placement::any(), Placement::any());
        (places, schedule, caches, 1usize..=8, pool()).prop_map(
            |((input, output), schedule, caches, threads, pool)| Self {
                input,
                output,
                schedule,
                caches,
                threads,
                pool,
            },
        )
    }

    /// For these shapes and channels of input and output.
    fn options(&self, input: (Shape, usize), output: (Shape, usize)) -> PlanOptions {
        let options =
            PlanOptions::new().schedule(self.schedule).caches(self.caches).threads(self.threads);
        let options = self.input.input(options, input.0, input.1);
        self.output.output(options, output.0, output.1)
    }
}

/// As many as a run of these tests needs to have seen, unless fewer are asked for.
fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default().cases
    } else {
        700
    };
    ProptestConfig { cases, ..ProptestConfig::default() }
}

fn shape() -> impl Strategy<Value = Shape> {
    (1usize..=3, 1usize..=15, 1usize..=15).prop_map(|(n, h, w)| Shape::new(n, h, w))
}

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
    #![proptest_config(config())]

    #[test]
    fn pointwise(
        configuration in Configuration::any(),
        act in any_activation(),
        shape in shape(),
        c in [channels(), channels()],
        residual: bool,
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let [c_in, c_out] = c;
        let layer = Layer::new(rng, Fill::Real, c_in * c_out, c_out, act);
        let x = Fill::Real.vec(rng, shape.elements(c_in).unwrap());
        let r = Fill::Real.vec(rng, shape.elements(c_out).unwrap());
        let r = residual.then_some(&*r);
        for isa in isas() {
            let op = Pointwise::with_isa(&layer.pointwise(c_in, c_out), isa).unwrap();
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
                (Output::Initialised(y), Some(r)) => plan.run_residual(&x, r, y),
                (Output::Initialised(y), None) => plan.run_with(&pool, &x, y),
            });
            check_bits(&plan.kernel_name(), &expected, &y);
        }
    }

    #[test]
    fn depthwise(
        configuration in Configuration::any(),
        act in any_activation(),
        shape in shape(),
        c in channels(),
        multiplier in multiplier(),
        window in window(),
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let outputs = c * multiplier;
        let taps = window.kernel[0] * window.kernel[1];
        let layer = Layer::new(rng, Fill::Real, taps * outputs, outputs, act);
        let x = Fill::Real.vec(rng, shape.elements(c).unwrap());
        for isa in isas() {
            let op = Depthwise::with_isa(&layer.depthwise(c, &window), isa).unwrap();
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
        acts in proptest::array::uniform3(any_activation()),
        shape in shape(),
        form in Form::any(),
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let block = Block::new(rng, Fill::Real, &form, acts);
        let x = Fill::Real.vec(rng, shape.elements(form.c[0]).unwrap());
        for isa in isas() {
            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            let unfused = PlanOptions::new().schedule(Schedule::Unfused);
            let plain = match op.plan_with(shape, &unfused) {
                Err(Error::EmptyOutput { .. }) => return Ok(()),
                plan => plan.unwrap(),
            };
            let mut expected = vec![f32::NAN; plain.output_len()];
            plain.run(&x, &mut expected, &mut plain.scratch()).unwrap();
            let c_out = if form.project { form.c[2] } else { form.c[1] };
            let ends = [(shape, form.c[0]), (plain.output_shape(), c_out)];
            let Configuration { input, output, pool, .. } = configuration;
            let plan = op.plan_with(shape, &configuration.options(ends[0], ends[1])).unwrap();
            let mut scratch = plan.scratch();
            let x = input.place(shape, form.c[0], &x);
            let y = self::output(output, ends[1], |y| match y {
                Output::Uninitialised(y) => {
                    plan.run_uninit(&pool, &x, y, &mut scratch).map(drop)
                }
                Output::Initialised(y) => plan.run_with(&pool, &x, y, &mut scratch),
            });
            let context = format!("{} {}", plan.kernel_name(), plan.explain());
            check_bits(&context, &expected, &y);
        }
    }
}

/// Sizes at which layers that are turned go in several parts: many channels, and
/// rows of more vectors than are looked at together.
#[test]
fn large_layers_in_every_layout() {
    let rng = &mut Rng::new(11);
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
        let layer = Layer::new(rng, Fill::Real, c_in * c_out, c_out, Activation::Silu);
        let x = Fill::Real.vec(rng, shape.elements(c_in).unwrap());
        let r = Fill::Real.vec(rng, shape.elements(c_out).unwrap());
        for isa in isas() {
            let op = Pointwise::with_isa(&layer.pointwise(c_in, c_out), isa).unwrap();
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
        (Shape::new(1, 12, 90), 5, 5, 2),
        (Shape::new(1, 12, 90), 33, 7, 1),
    ] {
        let padding = Padding::SameUpper;
        let window = Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1, 1], padding };
        let layer = Layer::new(rng, Fill::Real, kernel * kernel * c, c, Activation::Relu6);
        let x = Fill::Real.vec(rng, shape.elements(c).unwrap());
        for isa in isas() {
            let op = Depthwise::with_isa(&layer.depthwise(c, &window), isa).unwrap();
            let plan = op.plan(shape).unwrap();
            let mut expected = vec![f32::NAN; plan.output_len()];
            plan.run(&x, &mut expected).unwrap();
            let after = plan.output_shape();
            for (input, output) in &pairs {
                let options = input.input(PlanOptions::new(), shape, c);
                let options = output.output(options, after, c);
                let plan = op.plan_with(shape, &options).unwrap();
                let mut y = output.empty(after, c);
                plan.run(&input.place(shape, c, &x), &mut y).unwrap();
                let context = format!("{} {input:?} {output:?}", plan.kernel_name());
                check_bits(&context, &expected, &output.collect(&context, after, c, &y));
            }
        }
    }
}
