//! Images too wide for the cache: strips of columns, within the memory promised.

mod common;

use common::{check_bits, isas};
use mbconv::testing::{Block, Data, First, Form, Random, Window};
use mbconv::{
    Activation::Relu6, Caches, InvertedBottleneck, Layout, Padding, PlanOptions, Schedule, Shape,
};

fn block(c: [usize; 3], kernel: usize, stride: usize, first: First) -> Block {
    let padding = Padding::SameUpper;
    let window = Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1, 1], padding };
    let residual = stride == 1 && c[0] == c[2];
    let form = Form { c, first, window, gate: None, project: true, residual };
    form.block(&mut Random::new(5), Data::Ordinary, [Relu6; 3])
}

/// Scratch memory stays below three quarters of L2, whatever height and width.
#[test]
fn scratch_has_a_limit() {
    let caches = Caches::default();
    let sizes = [1, 7, 56, 224, 1000, 2048, 4096];
    for isa in isas() {
        for kernel in 1..=7 {
            for (c, stride) in [([16, 96, 24], 2), ([24, 144, 24], 1), ([40, 240, 40], 1)] {
                let block = block(c, kernel, stride, First::Expand);
                let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
                for (height, width) in
                    sizes.iter().flat_map(|&h| sizes.iter().map(move |&w| (h, w)))
                {
                    for layout in [Layout::Nhwc, Layout::Nchw] {
                        let options = PlanOptions::new().caches(caches).layout(layout);
                        let plan = op.plan_with(Shape::new(1, height, width), &options).unwrap();
                        assert!(
                            plan.scratch_bytes() <= caches.l2 / 4 * 3,
                            "{isa} {kernel} {height}x{width} {layout:?}: {} bytes, {}",
                            plan.scratch_bytes(),
                            plan.explain()
                        );
                    }
                }
            }
        }
    }
}

/// A gate that is asked to fuse keeps no image of its depthwise output; of its own accord it does
/// where that is cheaper.
#[test]
fn fused_gates_keep_nothing() {
    let caches = Caches::default();
    let padding = Padding::SameUpper;
    let window = Window { kernel: [3; 2], stride: [1; 2], dilation: [1, 1], padding };
    for isa in isas() {
        for (c, first) in [([24, 144, 24], First::Expand), ([144, 144, 24], First::None)] {
            let form = Form { c, first, window, gate: Some(8), project: true, residual: false };
            let block = form.block(&mut Random::new(5), Data::Ordinary, [Relu6; 3]);
            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            let plan = |side, schedule| {
                let options = PlanOptions::new().caches(caches).schedule(schedule);
                op.plan_with(Shape::new(1, side, side), &options).unwrap()
            };
            for side in [28, 56, 112] {
                let plan = plan(side, Schedule::Fused);
                let why = plan.explain();
                assert!(plan.scratch_bytes() <= caches.l2 / 4 * 3, "{isa} {side} {why}");
                assert!(why.contains("computed again"), "{isa} {side} {why}");
            }
            for schedule in [Schedule::Auto, Schedule::Unfused] {
                let why = plan(28, schedule).explain();
                assert!(why.contains("is kept") && why.contains("in all"), "{isa} {why}");
            }
        }
    }
}

/// A strip's borders are only the image's: the same bits as in one piece.
#[test]
fn strips_change_no_bit() {
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (7, 2)] {
        let stem = Window {
            kernel: [3; 2],
            stride: [2; 2],
            dilation: [1; 2],
            padding: Padding::SameUpper,
        };
        for (c, first) in [
            ([8, 40, 8], First::Expand),
            ([40, 40, 12], First::None),
            ([3, 40, 12], First::Stem(stem)),
        ] {
            let block = block(c, kernel, stride, first);
            let shape = Shape::new(1, 11, 301);
            let x = Data::Ordinary.tensor(9, shape.elements(c[0]).unwrap());
            for isa in isas() {
                let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
                let unfused = PlanOptions::new().schedule(Schedule::Unfused);
                let plan = op.plan_with(shape, &unfused).unwrap();
                let mut expected = vec![0.0; plan.output_len()];
                plan.run(&x, &mut expected, &mut plan.scratch()).unwrap();
                // From many strips to none.
                for l2 in [8 << 10, 24 << 10, 64 << 10, 1 << 20] {
                    let caches = Caches { l2, ..Caches::default() };
                    let options = PlanOptions::new().caches(caches).schedule(Schedule::Fused);
                    let plan = op.plan_with(shape, &options).unwrap();
                    let mut y = vec![f32::NAN; expected.len()];
                    plan.run(&x, &mut y, &mut plan.scratch()).unwrap();
                    check_bits(&format!("{isa} {}", plan.explain()), &expected, &y);
                }
            }
        }
    }
}
