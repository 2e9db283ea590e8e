//! Every operation against the reference, on random shapes and any data, on every
//! instruction set: the same numbers where sums are exact, else within the bound, of the
//! reference and of each other.

mod common;

use std::mem::MaybeUninit;

use common::placement::Placement;
use common::{check, check_bits, config, isas, of_any_data};
use mbconv::testing::{
    Bound, Data, DepthwiseLayer, First, Form, PointwiseLayer, Random, Window, blocks, convnexts,
    depthwise_layers, pointwise_layers, same_numbers, shapes,
};
use mbconv::{
    Activation, BottleneckPlan, ConvNextBlock, Depthwise, Error, InvertedBottleneck, Layout,
    Padding, PlanOptions, Pointwise, Result, Schedule, Shape, reference,
};
use proptest::prelude::*;

/// The truth and how a result may differ from it.
struct Judge {
    expected: Vec<f32>,
    /// None where it may not.
    bound: Option<Bound>,
    /// What the first instruction set gave.
    first: Option<Vec<f32>>,
}

impl Judge {
    fn new(expected: Vec<f32>, data: Data, bound: impl FnOnce() -> Result<Bound>) -> Self {
        let bound = (!data.is_exact()).then(|| bound().unwrap());
        Self { expected, bound, first: None }
    }

    fn judge(&mut self, context: &str, actual: &[f32]) {
        match &self.bound {
            None => check(context, same_numbers(&self.expected, actual)),
            Some(bound) => {
                check(context, bound.check(&self.expected, actual));
                let first = self.first.get_or_insert_with(|| actual.to_vec());
                check(&format!("{context}, of the first"), bound.check(first, actual));
            }
        }
    }

    /// One result, bit for bit, whatever the schedule.
    fn judge_all(
        &mut self,
        (rows, channels): (usize, usize),
        plan: impl Fn(&PlanOptions) -> BottleneckPlan,
        x: &[f32],
    ) {
        let tiled = Schedule::Tiled { rows, channels };
        let mut first: Option<Vec<f32>> = None;
        for schedule in [Schedule::Unfused, Schedule::Fused, tiled, Schedule::Auto] {
            let plan = plan(&PlanOptions::new().schedule(schedule));
            let context = format!("{} {}", plan.kernel_name(), plan.explain());
            let mut y = self.empty();
            let mut scratch = plan.scratch();
            // NaN, should anything be read before it is written.
            scratch.fill(MaybeUninit::new(0xff));
            plan.run(x, &mut y, &mut scratch).unwrap();
            match &first {
                Some(first) => check_bits(&context, first, &y),
                None => self.judge(&context, &y),
            }
            first.get_or_insert(y);
        }
    }

    fn empty(&self) -> Vec<f32> {
        vec![1234.5; self.expected.len()]
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn pointwise(
        (data, layer) in of_any_data(pointwise_layers),
        shape in shapes(3, 19),
        residual: bool,
        seed: u64,
    ) {
        let PointwiseLayer { c_in, c_out, .. } = layer;
        let params = layer.params();
        let x = data.tensor(seed, shape.elements(c_in).unwrap());
        let r = data.tensor(!seed, shape.elements(c_out).unwrap());
        let r = residual.then_some(&*r);
        let expected = reference::pointwise(&params, shape, &x, r).unwrap();
        let mut judge = Judge::new(expected, data, || Bound::pointwise(&params, shape, &x, r));
        for isa in isas() {
            let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = judge.empty();
            match r {
                Some(r) => plan.run_residual(&x, r, &mut y).unwrap(),
                None => plan.run(&x, &mut y).unwrap(),
            }
            judge.judge(&plan.kernel_name(), &y);
        }
    }

    #[test]
    fn depthwise(
        (data, layer) in of_any_data(depthwise_layers),
        shape in shapes(3, 19),
        seed: u64,
    ) {
        let params = layer.params();
        let x = data.tensor(seed, shape.elements(layer.channels).unwrap());
        let expected = match reference::depthwise(&params, shape, &x) {
            Ok(expected) => expected,
            Err(error) => {
                prop_assert!(matches!(error, Error::EmptyOutput { .. }), "{error}");
                for isa in isas() {
                    let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape);
                    prop_assert_eq!(plan.err(), Some(error.clone()));
                }
                return Ok(());
            }
        };
        let mut judge = Judge::new(expected, data, || Bound::depthwise(&params, shape, &x));
        for isa in isas() {
            let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = judge.empty();
            plan.run(&x, &mut y).unwrap();
            judge.judge(&plan.kernel_name(), &y);
        }
    }

    #[test]
    fn bottleneck(
        (data, block) in of_any_data(blocks),
        shape in shapes(3, 19),
        tile in (1usize..=20, 1usize..=100),
        seed: u64,
    ) {
        let params = block.params();
        let x = data.tensor(seed, shape.elements(block.c_in()).unwrap());
        let expected = match reference::bottleneck(&params, shape, &x) {
            Ok(expected) => expected,
            Err(error) => {
                prop_assert!(matches!(error, Error::EmptyOutput { .. }), "{error}");
                for isa in isas() {
                    let plan = InvertedBottleneck::with_isa(&params, isa).unwrap().plan(shape);
                    prop_assert_eq!(plan.err(), Some(error.clone()));
                }
                return Ok(());
            }
        };
        let mut judge = Judge::new(expected, data, || Bound::bottleneck(&params, shape, &x));
        for isa in isas() {
            let op = InvertedBottleneck::with_isa(&params, isa).unwrap();
            judge.judge_all(tile, |options| op.plan_with(shape, options).unwrap(), &x);
        }
    }
}

proptest! {
    #![proptest_config(config(200))]


    #[test]
    fn convnext(
        (data, block) in of_any_data(convnexts),
        shape in shapes(3, 15),
        tile in (1usize..=20, 1usize..=100),
        seed: u64,
    ) {
        let params = block.params();
        let x = data.tensor(seed, shape.elements(block.depthwise.channels).unwrap());
        let expected = match reference::convnext(&params, shape, &x) {
            Ok(expected) => expected,
            Err(error) => {
                prop_assert!(matches!(error, Error::EmptyOutput { .. }), "{error}");
                for isa in isas() {
                    let plan = ConvNextBlock::with_isa(&params, isa).unwrap().plan(shape);
                    prop_assert_eq!(plan.err(), Some(error.clone()));
                }
                return Ok(());
            }
        };
        let mut judge = Judge::new(expected, data, || Bound::convnext(&params, shape, &x));
        for isa in isas() {
            let op = ConvNextBlock::with_isa(&params, isa).unwrap();
            judge.judge_all(tile, |options| op.plan_with(shape, options).unwrap(), &x);
        }
    }
}

/// Every count of channels up to two vectors and one, as tails come.
#[test]
fn channel_tails() {
    let (random, data, act) = (&mut Random::new(1), Data::Integer, Activation::Relu6);
    let shape = Shape::new(1, 5, 6);
    let window =
        Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], padding: Padding::uniform(1) };
    for isa in isas() {
        for c in 1..=2 * isa.lanes() + 1 {
            let layer = DepthwiseLayer::new(random, data, [c, 1], window, act);
            let x = data.tensor(c as u64, 30 * c);
            let params = layer.params();
            let mut y = vec![0.0; 30 * c];
            let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            plan.run(&x, &mut y).unwrap();
            let expected = reference::depthwise(&params, shape, &x).unwrap();
            check("depthwise", same_numbers(&expected, &y));

            for c_out in 1..=2 * isa.lanes() + 1 {
                let layer = PointwiseLayer::new(random, data, [c, c_out], act);
                let params = layer.params();
                let mut y = vec![0.0; 30 * c_out];
                let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
                plan.run(&x, &mut y).unwrap();
                let expected = reference::pointwise(&params, shape, &x, None).unwrap();
                check("pointwise", same_numbers(&expected, &y));
            }
        }
    }
}

/// Taps as far apart as they can be: all but one of an axis are outside any image.
#[test]
fn taps_far_apart() {
    let (random, data, act) = (&mut Random::new(3), Data::Integer, Activation::Relu6);
    let shape = Shape::new(1, 3, 3);
    let far = |kernel: [usize; 2]| Window {
        kernel,
        stride: [1, 1],
        dilation: kernel.map(|k| if k > 1 { 1 << 59 } else { 1 }),
        padding: Padding::SameUpper,
    };
    let kernels = (1..=3).flat_map(|height| (1..=3).map(move |width| [height, width]));
    for window in kernels.map(far) {
        for (first, project) in [
            (First::None, false),
            (First::None, true),
            (First::Expand, true),
            (First::Stem(window), true),
        ] {
            let c = if first == First::None { [20, 20, 5] } else { [3, 20, 5] };
            let form = Form { c, first, window, gate: None, project, residual: false };
            let block = form.block(random, data, [act; 3]);
            let (params, x) = (block.params(), data.tensor(7, 9 * c[0]));
            let expected = reference::bottleneck(&params, shape, &x).unwrap();
            let layer = block.depthwise.params();
            let y = data.tensor(7, 9 * c[1]);
            let alone = reference::depthwise(&layer, shape, &y).unwrap();
            for isa in isas() {
                let op = InvertedBottleneck::with_isa(&params, isa).unwrap();
                Judge::new(expected.clone(), data, || unreachable!()).judge_all(
                    (2, 8),
                    |options| op.plan_with(shape, options).unwrap(),
                    &x,
                );
                for layout in [Layout::Nhwc, Layout::Nchw] {
                    let (options, placement) =
                        (PlanOptions::new().layout(layout), Placement { layout, slack: None });
                    let plan = Depthwise::with_isa(&layer, isa).unwrap().plan_with(shape, &options);
                    let mut z = placement.empty(shape, c[1]);
                    plan.unwrap().run(&placement.place(shape, c[1], &y), &mut z).unwrap();
                    let context = format!("{isa} {window:?} {layout:?}");
                    let z = placement.collect(&context, shape, c[1], &z);
                    check(&context, same_numbers(&alone, &z));
                }
            }
        }
    }
}
