//! Denormal numbers are kept, unless a plan is asked to flush them.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod common;

use common::{Pool, isas};
use mbconv::{
    BottleneckParams, Depthwise, DepthwiseParams, InvertedBottleneck, PlanOptions, Pointwise,
    PointwiseParams, Serial, Shape,
};

/// The largest denormal number.
const TINY: f32 = 1.175_494_2e-38;

#[test]
fn inputs_are_flushed_when_asked() {
    let shape = Shape::new(1, 3, 3);
    let (x, mut y) = ([TINY; 9], [f32::NAN; 9]);
    let (pointwise, depthwise) =
        (PointwiseParams::new(1, 1, &[1.0]), DepthwiseParams::new(1, [1, 1], &[1.0]));
    let block = BottleneckParams::new(depthwise, pointwise).expand(pointwise);
    for isa in isas() {
        for (flush, expected) in [(false, [TINY; 9]), (true, [0.0; 9])] {
            let options = PlanOptions::new().flush_denormals(flush);
            let op = Pointwise::with_isa(&pointwise, isa).unwrap();
            op.plan_with(shape, &options).unwrap().run(&x, &mut y).unwrap();
            assert_eq!(y, expected, "{isa}");
            let op = Depthwise::with_isa(&depthwise, isa).unwrap();
            op.plan_with(shape, &options).unwrap().run(&x, &mut y).unwrap();
            assert_eq!(y, expected, "{isa}");

            let op = InvertedBottleneck::with_isa(&block, isa).unwrap();
            let plan = op.plan_with(shape, &options.threads(3)).unwrap();
            plan.run_with(&Serial, &x, &mut y, &mut plan.scratch()).unwrap();
            assert_eq!(y, expected, "{isa}");
            // Each thread has a register of its own.
            plan.run_with(&Pool::Threads, &x, &mut y, &mut plan.scratch()).unwrap();
            assert_eq!(y, expected, "{isa}");
        }
        // The caller's thread is as it was.
        assert!(std::hint::black_box(TINY) * std::hint::black_box(0.5) > 0.0);
    }
}

/// So is what becomes denormal on the way.
#[test]
fn results_are_flushed_when_asked() {
    let shape = Shape::new(1, 1, 1);
    let layer = PointwiseParams::new(1, 1, &[0.5]);
    for isa in isas() {
        let op = Pointwise::with_isa(&layer, isa).unwrap();
        for (flush, expected) in [(false, f32::MIN_POSITIVE / 2.0), (true, 0.0)] {
            let mut y = [f32::NAN];
            let options = PlanOptions::new().flush_denormals(flush);
            let plan = op.plan_with(shape, &options).unwrap();
            plan.run(&[f32::MIN_POSITIVE], &mut y).unwrap();
            assert_eq!(y, [expected], "{isa}");
        }
    }
}
