//! Blocks large enough that tasks share what they make: by each cut, the bits of one task.

mod common;

use std::collections::BTreeSet;

use common::configuration::Configuration;
use common::placement::Placement;
use common::{Pool, check_bits, isas};
use mbconv::testing::{Data, First, Form, Random, Window};
use mbconv::{
    Activation::{Gelu, Identity, Relu6},
    Caches, InvertedBottleneck, Layout, Padding, PlanOptions, Schedule, Shape,
};

/// What a plan says of a cut by which tasks share a buffer, and a block that takes it for so
/// many threads: its images, channels, depthwise window and what is before it.
type Case = (&'static str, usize, Shape, [usize; 3], Window, First);

fn cases() -> [Case; 8] {
    const EXPANDED: &str = "expanded first";
    const CHANNELS: &str = "by channels";
    let (same, none) = (Padding::SameUpper, Padding::uniform(0));
    let window = |kernel: usize, stride: usize, dilation: usize, padding| Window {
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        padding,
    };
    let [plain, large, strided] =
        [[3, 1, 1], [5, 1, 1], [3, 2, 1]].map(|[k, s, d]| window(k, s, d, same));
    let (cropped, dilated) = (window(5, 2, 1, none), window(3, 1, 2, same));
    let [halved, whole] = [2, 1].map(|stride| First::Stem(window(5, stride, 1, same)));
    let expand = First::Expand;
    [
        (EXPANDED, 2, Shape::new(1, 14, 14), [64, 200, 64], plain, expand),
        (EXPANDED, 4, Shape::new(2, 12, 9), [300, 260, 120], large, expand),
        // The last row and column are not read.
        (EXPANDED, 3, Shape::new(1, 14, 12), [90, 360, 24], cropped, expand),
        (EXPANDED, 3, Shape::new(1, 13, 10), [80, 70, 80], dilated, expand),
        (EXPANDED, 2, Shape::new(1, 26, 23), [4, 70, 20], large, halved),
        (EXPANDED, 5, Shape::new(1, 12, 13), [4, 70, 4], large, whole),
        (CHANNELS, 2, Shape::new(1, 3, 3), [160, 480, 160], plain, expand),
        (CHANNELS, 4, Shape::new(2, 1, 10), [160, 480, 33], strided, expand),
    ]
}

#[test]
fn what_tasks_share_changes_no_bit() {
    let random = &mut Random::new(23);
    let dense = |layout| Placement { layout, slack: None };
    let gaps = |layout| Placement { layout, slack: Some([3, 0, 5, 1]) };
    for (cut, threads, shape, c, window, first) in cases() {
        let by_channels = cut == "by channels";
        let places = match by_channels {
            true => vec![dense(Layout::Nhwc)],
            false => vec![dense(Layout::Nchw), gaps(Layout::Nhwc)],
        };
        let pairs = places.iter().flat_map(|x| places.iter().map(move |y| (x, y)));
        for project in [true, false] {
            // There are no channels to cut without a projection, nor in planes.
            if by_channels && !project {
                continue;
            }
            let schedule = if project { Schedule::Auto } else { Schedule::Unfused };
            let c_out = if project { c[2] } else { c[1] };
            let residual = project && c[0] == c[2] && window.stride == [1; 2];
            let form = Form { c, first, window, gate: None, project, residual };
            let block = form.block(random, Data::Ordinary, [Relu6, Gelu, Identity]);
            let x = Data::Ordinary.tensor(3, shape.elements(c[0]).unwrap());
            for isa in isas() {
                let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
                let plain = op.plan(shape).unwrap();
                let after = plain.output_shape();
                let mut expected = vec![f32::NAN; plain.output_len()];
                plain.run(&x, &mut expected, &mut plain.scratch()).unwrap();
                for (i, (&input, &output)) in pairs.clone().enumerate() {
                    let pool = [Pool::Threads, Pool::Backwards, Pool::TooOften, Pool::Never][i % 4];
                    let caches = Caches::default();
                    let configuration =
                        Configuration { input, output, schedule, caches, threads, pool };
                    let options = configuration.options((shape, c[0]), (after, c_out));
                    let plan = op.plan_with(shape, &options).unwrap();
                    let context = format!("{isa} {input:?} {output:?} {}", plan.explain());
                    assert!(plan.explain().contains(cut), "{context}");
                    let x = input.place(shape, c[0], &x);
                    let mut y = output.empty(after, c_out);
                    plan.run_with(&pool, &x, &mut y, &mut plan.scratch()).unwrap();
                    let y = output.collect(&context, after, c_out, &y);
                    check_bits(&context, &expected, &y);
                }
            }
        }
    }
}

/// However little the expanded rows leave of L2 to the rest of a tile.
#[test]
fn what_is_left_is_enough() {
    let random = &mut Random::new(29);
    let [(_, threads, shape, c, window, first), ..] = cases();
    let form = Form { c, first, window, gate: None, project: true, residual: true };
    let block = form.block(random, Data::Ordinary, [Relu6, Gelu, Identity]);
    let x = Data::Ordinary.tensor(5, shape.elements(c[0]).unwrap());
    for isa in isas() {
        let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
        let plain = op.plan(shape).unwrap();
        let mut expected = vec![f32::NAN; plain.output_len()];
        plain.run(&x, &mut expected, &mut plain.scratch()).unwrap();
        let mut sizes = BTreeSet::new();
        for kib in 64..512 {
            let caches = Caches { l2: kib << 10, ..Caches::default() };
            let options = PlanOptions::new().caches(caches).threads(threads);
            let plan = op.plan_with(shape, &options).unwrap();
            if !plan.explain().contains("expanded first") {
                continue;
            }
            sizes.insert(plan.tile_bytes());
            let mut y = vec![f32::NAN; expected.len()];
            plan.run(&x, &mut y, &mut plan.scratch()).unwrap();
            check_bits(&format!("{isa} {}", plan.explain()), &expected, &y);
        }
        assert!(sizes.len() > 4, "{isa}: {sizes:?}");
    }
}
