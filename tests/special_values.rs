//! NaN, infinities and padded taps: the written rule, in the reference and in
//! every kernel.

mod common;

use common::placement::Placement;
use common::{check_exact, isas};
use mbconv::testing::{Data, Random};
use mbconv::{
    Activation, BottleneckParams, ConvNextBlock, ConvNextParams, ConvParams, Depthwise,
    DepthwiseParams, InvertedBottleneck, LayerNormParams, Layout, Padding, PlanOptions, Pointwise,
    PointwiseParams, Schedule, Shape, reference,
};

const SPECIAL: [f32; 12] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1e-40,
    -1e-40,
    f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
    -3.0,
    6.0,
];

const ACTIVATIONS: [Activation; 12] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu6,
    Activation::Clamp { lo: -1.0, hi: 2.0 },
    Activation::LeakyRelu { slope: 0.1 },
    Activation::HardSwish,
    Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Activation::Sigmoid,
    Activation::Silu,
    Activation::Exp,
    Activation::Gelu,
    Activation::GeluTanh,
];

/// `slack` is the absolute error that an activation may show besides.
fn close(context: &str, slack: f32, expected: &[f32], actual: &[f32]) {
    for (i, (e, a)) in expected.iter().zip(actual).enumerate() {
        let same = e == a || (e.is_nan() && a.is_nan());
        let near = (e - a).abs() <= 1e-6 * e.abs() + slack;
        assert!(same || near, "{context}: element {i} is {a}, expected {e}");
    }
}

/// The activations alone: through an identity layer.
#[test]
fn activations() {
    let dense: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.03).collect();
    let x: Vec<f32> = SPECIAL.iter().copied().chain(dense).collect();
    let shape = Shape::new(1, 1, x.len());
    for activation in ACTIVATIONS {
        let params = PointwiseParams::new(1, 1, &[1.0]).activation(activation);
        let expected = reference::pointwise(&params, shape, &x, None).unwrap();
        for (x, y) in x.iter().zip(&expected) {
            assert_eq!(x.is_nan(), y.is_nan(), "{activation:?}({x}) = {y}");
        }
        for isa in isas() {
            let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = vec![0.0; x.len()];
            plan.run(&x, &mut y).unwrap();
            let slack = match (activation, isa.name()) {
                (Activation::HardSigmoid { .. }, _) => 1e-7,
                // What its documentation allows.
                (Activation::Gelu, "avx512") => 2e-13,
                _ => 1e-38,
            };
            close(&format!("{isa} {activation:?}"), slack, &expected, &y);
        }
    }
}

/// A padded tap contributes nothing, whatever its weight; a tap inside does.
#[test]
fn padded_taps_contribute_nothing() {
    let shape = Shape::new(1, 4, 9);
    for (kernel, last) in [3, 5, 7].into_iter().flat_map(|k| [(k, false), (k, true)]) {
        for weight in [f32::NAN, f32::INFINITY] {
            for c in [1, 4, 8, 16, 19] {
                // Only a corner tap, which in the first or last pixel is padding, is special.
                let mut weights = vec![1.0; kernel * kernel * c];
                let corner = if last { weights.len() - c } else { 0 };
                weights[corner..][..c].fill(weight);
                let params = DepthwiseParams::new(c, [kernel; 2], &weights)
                    .padding(Padding::uniform(kernel / 2));
                let x = vec![1.0; 36 * c];
                let expected = reference::depthwise(&params, shape, &x).unwrap();
                let padded = if last { expected.len() - 1 } else { 0 };
                assert!(expected[padded].is_finite());
                let project = vec![1.0; c];
                let expand: Vec<f32> =
                    (0..c * c).map(|i| f32::from(u8::from(i / c == i % c))).collect();
                let block = BottleneckParams::new(params, PointwiseParams::new(c, 1, &project))
                    .expand(PointwiseParams::new(c, c, &expand));
                let whole = reference::bottleneck(&block, shape, &x).unwrap();
                for isa in isas() {
                    let op = Depthwise::with_isa(&params, isa).unwrap();
                    for layout in [Layout::Nhwc, Layout::Nchw] {
                        // All inputs are alike, so any layout has them.
                        let options = PlanOptions::new().layout(layout);
                        let plan = op.plan_with(shape, &options).unwrap();
                        let mut y = vec![0.0; x.len()];
                        plan.run(&x, &mut y).unwrap();
                        let place = Placement { layout, slack: None };
                        let y = place.collect("depthwise", shape, c, &y);
                        check_exact(&plan.kernel_name(), &expected, &y);
                    }
                    let op = InvertedBottleneck::with_isa(&block, isa).unwrap();
                    for schedule in [Schedule::Fused, Schedule::Unfused] {
                        let options = PlanOptions::new().schedule(schedule);
                        let plan = op.plan_with(shape, &options).unwrap();
                        let mut y = vec![0.0; whole.len()];
                        plan.run(&x, &mut y, &mut plan.scratch()).unwrap();
                        check_exact(&plan.kernel_name(), &whole, &y);
                    }
                }
            }
        }
    }
}

/// The same of the taps of a stem.
#[test]
fn padded_stem_taps_contribute_nothing() {
    let (shape, c_in, c) = (Shape::new(1, 6, 9), 3, 19);
    for kernel in [3, 5] {
        for weight in [f32::NAN, f32::INFINITY] {
            // Only the corner tap, which in the first pixel is padding, is special.
            let mut weights = vec![1.0; c * kernel * kernel * c_in];
            for filter in weights.chunks_exact_mut(kernel * kernel * c_in) {
                filter[..c_in].fill(weight);
            }
            let stem = ConvParams::new(c_in, c, [kernel; 2], &weights)
                .stride([2, 2])
                .padding(Padding::uniform(kernel / 2));
            let ones = vec![1.0; c];
            let block = BottleneckParams::without_project(DepthwiseParams::new(c, [1, 1], &ones))
                .stem(stem);
            let x = vec![1.0; 54 * c_in];
            let expected = reference::bottleneck(&block, shape, &x).unwrap();
            assert!(expected[0].is_finite() && !expected[expected.len() - 1].is_finite());
            for isa in isas() {
                let plan = InvertedBottleneck::with_isa(&block, isa).unwrap().plan(shape).unwrap();
                let mut y = vec![0.0; expected.len()];
                plan.run(&x, &mut y, &mut plan.scratch()).unwrap();
                check_exact(&plan.kernel_name(), &expected, &y);
            }
        }
    }
}

/// NaN and infinities in the input reach exactly the outputs that sum them, and
/// a channel's NaN does not leak into its neighbours' lanes.
#[test]
fn special_inputs_propagate() {
    let random = &mut Random::new(3);
    let (shape, c_in, c_out) = (Shape::new(1, 3, 5), 11, 13);
    let weights: Vec<f32> = (0..c_in * c_out).map(|_| random.below(3) as f32 - 1.0).collect();
    let params = PointwiseParams::new(c_in, c_out, &weights).activation(Activation::Relu6);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; 15 * c_in];
        x[7 * c_in + 4] = special;
        let expected = reference::pointwise(&params, shape, &x, None).unwrap();
        for isa in isas() {
            let plan = Pointwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = vec![0.0; expected.len()];
            plan.run(&x, &mut y).unwrap();
            check_exact(&plan.kernel_name(), &expected, &y);
        }
        for multiplier in [1, 2, 3] {
            let weights = vec![1.0; 9 * c_in * multiplier];
            let params = DepthwiseParams::new(c_in, [3, 3], &weights)
                .multiplier(multiplier)
                .padding(Padding::uniform(1));
            let expected = reference::depthwise(&params, shape, &x).unwrap();
            for isa in isas() {
                let plan = Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
                let mut y = vec![0.0; expected.len()];
                plan.run(&x, &mut y).unwrap();
                check_exact(&plan.kernel_name(), &expected, &y);
            }
        }
    }
}

/// Strides far beyond the image leave one output; their products are not formed.
#[test]
fn huge_strides_have_one_output() {
    let (shape, huge) = (Shape::new(1, 3, 3), [usize::MAX / 2; 2]);
    let (weights, ones) = ([1.0; 9], [1.0]);
    let depthwise = DepthwiseParams::new(1, [3, 3], &weights).stride(huge);
    let stem = ConvParams::new(1, 1, [3, 3], &weights).stride(huge);
    let block =
        BottleneckParams::without_project(DepthwiseParams::new(1, [1, 1], &ones)).stem(stem);
    for isa in isas() {
        let plan = Depthwise::with_isa(&depthwise, isa).unwrap().plan(shape).unwrap();
        let mut y = [0.0];
        plan.run(&[1.0; 9], &mut y).unwrap();
        assert_eq!(y, [9.0]);
        let plan = InvertedBottleneck::with_isa(&block, isa).unwrap().plan(shape).unwrap();
        let mut y = [0.0];
        plan.run(&[1.0; 9], &mut y, &mut plan.scratch()).unwrap();
        assert_eq!(y, [9.0]);
    }
}

/// A norm of channels whose mean is ten thousand times their spread loses no more than
/// one around zero: a few units in the last place of what it gives.
#[test]
fn norms_far_from_zero() {
    const C: usize = 100;
    let (ones, zeros) = ([1.0; C], [0.0; C]);
    let identity: Vec<f32> = (0..C * C).map(|i| if i % (C + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let as_it_is = PointwiseParams::new(C, C, &identity);
    let norm = LayerNormParams::new(&ones, &zeros, 1e-6);
    let params =
        ConvNextParams::new(DepthwiseParams::new(C, [1, 1], &ones), as_it_is, as_it_is).norm(norm);
    let shape = Shape::new(1, 3, 7);
    for mean in [0.0, 1.0, -1e4, 1e6] {
        let random = Data::Ordinary.tensor(1, 21 * C);
        let x: Vec<f32> = random.iter().map(|x| mean + 1.7 * x).collect();
        let expected = reference::convnext(&params, shape, &x).unwrap();
        for isa in isas() {
            let plan = ConvNextBlock::with_isa(&params, isa).unwrap().plan(shape).unwrap();
            let mut y = vec![f32::NAN; x.len()];
            plan.run(&x, &mut y, &mut plan.scratch()).unwrap();
            for (e, y) in expected.iter().zip(&y) {
                let bound = 8.0 * f32::EPSILON * (e.abs() + 1.0);
                assert!((e - y).abs() <= bound, "{isa}, mean {mean}: {y} is not {e}");
            }
        }
    }
}
