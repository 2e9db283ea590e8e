//! One result, bit for bit: whatever schedule, tile, caches, number of tasks and
//! executor, on every instruction set.

mod common;

use std::mem::MaybeUninit;

use common::{
    Block, Fill, Form, Layer, Pool, Rng, any_activation, channels, check_bits, isas, multiplier,
    pool, window,
};
use mbconv::{
    Caches, Depthwise, Error, InvertedBottleneck, PlanOptions, Pointwise, Result, Schedule, Shape,
};
use proptest::prelude::*;

/// How a plan is made and run, if not plainly.
#[derive(Debug, Clone, Copy)]
struct Configuration {
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
        (schedule, caches, 1usize..=8, pool()).prop_map(|(schedule, caches, threads, pool)| Self {
            schedule,
            caches,
            threads,
            pool,
        })
    }

    fn options(&self) -> PlanOptions {
        PlanOptions::new().schedule(self.schedule).caches(self.caches).threads(self.threads)
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

/// What `run` gives on memory that nobody has initialised, twice.
fn output(
    len: usize,
    mut run: impl FnMut(&mut [MaybeUninit<f32>]) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let mut memory = vec![MaybeUninit::uninit(); len];
    let first = run(&mut memory)?;
    check_bits("the second run", &first, &run(&mut memory)?);
    Ok(first)
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
            let plan = op.plan_with(shape, &configuration.options()).unwrap();
            let y = output(expected.len(), |y| {
                plan.run_uninit(&configuration.pool, &x, r, y).map(|y| y.to_vec())
            });
            check_bits(&plan.kernel_name(), &expected, &y.unwrap());
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
            let plan = op.plan_with(shape, &configuration.options()).unwrap();
            let y = output(expected.len(), |y| {
                plan.run_uninit(&configuration.pool, &x, y).map(|y| y.to_vec())
            });
            check_bits(&plan.kernel_name(), &expected, &y.unwrap());
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
            let plan = op.plan_with(shape, &configuration.options()).unwrap();
            let mut scratch = plan.scratch();
            let y = output(expected.len(), |y| {
                let y = plan.run_uninit(&configuration.pool, &x, y, &mut scratch)?;
                Ok(y.to_vec())
            });
            let context = format!("{} {}", plan.kernel_name(), plan.explain());
            check_bits(&context, &expected, &y.unwrap());
        }
    }
}
