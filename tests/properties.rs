//! Every operation against the reference, on random shapes, on every
//! instruction set.

mod common;

use std::mem::MaybeUninit;

use common::{
    Block, Bound, Fill, Form, Layer, Rng, Window, activation_for, any_fill, channels, check_bits,
    check_exact, isas, multiplier, window,
};
use mbconv::{
    Activation, Depthwise, Error, InvertedBottleneck, Padding, PlanOptions, Pointwise, Schedule,
    Shape, reference,
};
use proptest::prelude::*;

fn shape() -> impl Strategy<Value = Shape> {
    (1usize..=3, 1usize..=19, 1usize..=19).prop_map(|(n, h, w)| Shape::new(n, h, w))
}

proptest! {
    #[test]
    fn pointwise(
        (fill, act) in any_fill().prop_flat_map(|f| (Just(f), activation_for(f))),
        shape in shape(),
        c_in in channels(),
        c_out in channels(),
        residual: bool,
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let layer = Layer::new(rng, fill, c_in * c_out, c_out, act);
        let params = layer.pointwise(c_in, c_out);
        let x = fill.vec(rng, shape.elements(c_in).unwrap());
        let r = fill.vec(rng, shape.elements(c_out).unwrap());
        let expected = reference::pointwise(&params, shape, &x, residual.then_some(&r)).unwrap();
        let mut bound = Bound::exact(&x).pointwise(&layer, c_in, c_out, shape);
        if residual {
            bound = bound.residual(&r);
        }
        for isa in isas() {
            let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = vec![f32::NAN; expected.len()];
            if residual {
                plan.run_residual(&x, &r, &mut y).unwrap();
            } else {
                plan.run(&x, &mut y).unwrap();
            }
            match fill {
                Fill::Integer => check_exact(&plan.kernel_name(), &expected, &y),
                Fill::Real => bound.check(&plan.kernel_name(), &expected, &y),
            }
        }
    }

    #[test]
    fn depthwise(
        (fill, act) in any_fill().prop_flat_map(|f| (Just(f), activation_for(f))),
        shape in shape(),
        c in channels(),
        multiplier in multiplier(),
        window in window(),
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let taps = window.kernel[0] * window.kernel[1];
        let layer = Layer::new(rng, fill, taps * c * multiplier, c * multiplier, act);
        let params = layer.depthwise(c, &window);
        let x = fill.vec(rng, shape.elements(c).unwrap());
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
        let bound = Bound::exact(&x).depthwise(&layer, c, &window, shape);
        for isa in isas() {
            let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = vec![f32::NAN; expected.len()];
            plan.run(&x, &mut y).unwrap();
            match fill {
                Fill::Integer => check_exact(&plan.kernel_name(), &expected, &y),
                Fill::Real => bound.check(&plan.kernel_name(), &expected, &y),
            }
        }
    }

    #[test]
    fn bottleneck(
        (fill, acts) in any_fill()
            .prop_flat_map(|f| (Just(f), proptest::array::uniform3(activation_for(f)))),
        shape in shape(),
        form in Form::any(),
        tile in (1usize..=20, 1usize..=100),
        seed: u64,
    ) {
        let rng = &mut Rng::new(seed);
        let block = Block::new(rng, fill, &form, acts);
        let params = block.params();
        let x = fill.vec(rng, shape.elements(form.c[0]).unwrap());
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
        let (rows, channels) = tile;
        for isa in isas() {
            let op = InvertedBottleneck::with_isa(&params, isa).unwrap();
            let mut first: Option<Vec<f32>> = None;
            for schedule in
                [Schedule::Unfused, Schedule::Fused, Schedule::Tiled { rows, channels }, Schedule::Auto]
            {
                let options = PlanOptions::new().schedule(schedule);
                let plan = op.plan_with(shape, &options).unwrap();
                let context = format!("{} {}", plan.kernel_name(), plan.explain());
                let mut y = vec![f32::NAN; expected.len()];
                let mut scratch = plan.scratch();
                // NaN, should anything be read before it is written.
                scratch.fill(MaybeUninit::new(0xff));
                plan.run(&x, &mut y, &mut scratch).unwrap();
                match (fill, &first) {
                    // One result, bit for bit, whatever the schedule.
                    (_, Some(first)) => check_bits(&context, first, &y),
                    (Fill::Integer, None) => check_exact(&context, &expected, &y),
                    (Fill::Real, None) => {
                        block.bound(shape, plan.output_shape(), &x).check(&context, &expected, &y);
                    }
                }
                first.get_or_insert(y);
            }
        }
    }
}

/// Every count of channels up to two vectors and one, as tails come.
#[test]
fn channel_tails() {
    let rng = &mut Rng::new(1);
    let shape = Shape::new(1, 5, 6);
    let window =
        Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], padding: Padding::uniform(1) };
    for isa in isas() {
        for c in 1..=2 * isa.lanes() + 1 {
            let layer = Layer::new(rng, Fill::Integer, 9 * c, c, Activation::Relu6);
            let x = Fill::Integer.vec(rng, 30 * c);
            let params = layer.depthwise(c, &window);
            let mut y = vec![0.0; 30 * c];
            let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            plan.run(&x, &mut y).unwrap();
            check_exact("depthwise", &reference::depthwise(&params, shape, &x).unwrap(), &y);

            for c_out in 1..=2 * isa.lanes() + 1 {
                let layer = Layer::new(rng, Fill::Integer, c * c_out, c_out, Activation::Relu6);
                let params = layer.pointwise(c, c_out);
                let mut y = vec![0.0; 30 * c_out];
                let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
                plan.run(&x, &mut y).unwrap();
                let expected = reference::pointwise(&params, shape, &x, None).unwrap();
                check_exact("pointwise", &expected, &y);
            }
        }
    }
}
