//! What operations and plans say of themselves: FLOP, bytes, output shapes, the
//! schedule in words; and the folding of batch normalisation.

mod common;

use common::isas;
use mbconv::testing::Random;
use mbconv::{
    BatchNorm, BottleneckParams, Caches, ChannelAxis, ConvParams, Depthwise, DepthwiseParams,
    InvertedBottleneck, Padding, PlanOptions, Pointwise, PointwiseParams, Schedule, Shape,
    fold_batch_norm, reference,
};
use proptest::prelude::*;

/// The multiply-adds of a stride 1 block with as many channels out as in:
/// `t * c * H * W * (2 * c + K * K)`.
#[test]
fn flops_and_weights_follow_the_formula() {
    let (c, t, k, h, w) = (12, 6, 5, 9, 11);
    let (pointwise, depthwise) = (vec![0.0; t * c * c], vec![0.0; k * k * t * c]);
    let params = BottleneckParams::new(
        DepthwiseParams::new(t * c, [k, k], &depthwise).padding(Padding::uniform(k / 2)),
        PointwiseParams::new(t * c, c, &pointwise),
    )
    .expand(PointwiseParams::new(c, t * c, &pointwise));
    let shape = Shape::new(3, h, w);
    for isa in isas() {
        let op = InvertedBottleneck::with_isa(&params, isa).unwrap();
        let macs = 3 * t * c * h * w * (2 * c + k * k);
        assert_eq!(op.flops(shape).unwrap(), 2 * macs as u64);
        let weights = 2 * t * c * c + k * k * t * c;
        let biases = t * c + t * c + c;
        assert_eq!(op.weight_bytes(), 4 * (weights + biases));

        let op = Pointwise::with_isa(&PointwiseParams::new(c, t * c, &pointwise), isa).unwrap();
        assert_eq!(op.flops(shape).unwrap(), 2 * (3 * h * w * c * t * c) as u64);
        assert_eq!(op.weight_bytes(), 4 * (c + 1) * t * c);
        let op = Depthwise::with_isa(&DepthwiseParams::new(t * c, [k, k], &depthwise), isa);
        let op = op.unwrap();
        assert_eq!(op.flops(shape).unwrap(), 2 * (3 * (h - 4) * (w - 4) * t * c * k * k) as u64);
        assert_eq!(op.weight_bytes(), 4 * (k * k + 1) * t * c);
    }
}

/// The stem and the first block of MobileNetV2, with and without its projection.
#[test]
fn a_stem_and_a_missing_projection_are_counted() {
    let (stem, depthwise, project) = (vec![0.0; 32 * 27], vec![0.0; 9 * 32], vec![0.0; 16 * 32]);
    let stem = ConvParams::new(3, 32, [3, 3], &stem).stride([2, 2]).padding(Padding::SameUpper);
    let depthwise = DepthwiseParams::new(32, [3, 3], &depthwise).padding(Padding::SameUpper);
    let project = PointwiseParams::new(32, 16, &project);
    let shape = Shape::new(2, 224, 224);
    for isa in isas() {
        for (params, per_pixel, weights, c_out) in [
            (BottleneckParams::new(depthwise, project), 32 * (27 + 9 + 16), 32 * 38 + 33 * 16, 16),
            (BottleneckParams::without_project(depthwise), 32 * (27 + 9), 32 * 38, 32),
        ] {
            let op = InvertedBottleneck::with_isa(&params.stem(stem), isa).unwrap();
            let plan = op.plan(shape).unwrap();
            assert_eq!(plan.flops(), 2 * 2 * 112 * 112 * per_pixel);
            assert_eq!(op.weight_bytes(), 4 * weights);
            assert_eq!(plan.output_shape(), Shape::new(2, 112, 112));
            assert_eq!(plan.input_len(), 2 * 224 * 224 * 3);
            assert_eq!(plan.output_len(), 2 * 112 * 112 * c_out);
            assert_eq!(plan.expanded_bytes(), 2 * 112 * 112 * 32 * 4);
        }
    }
}

/// A large map is fused into a tile that fits three quarters of L2, a small one is
/// not; the words name the sizes and the estimates.
#[test]
fn the_plan_explains_itself() {
    let (expand, depthwise, project) =
        (vec![0.0; 24 * 144], vec![0.0; 9 * 144], vec![0.0; 144 * 24]);
    let params = BottleneckParams::new(
        DepthwiseParams::new(144, [3, 3], &depthwise).padding(Padding::uniform(1)),
        PointwiseParams::new(144, 24, &project),
    )
    .expand(PointwiseParams::new(24, 144, &expand));
    let options =
        PlanOptions::new().caches(Caches { l1: 32 << 10, l2: 512 << 10, ..Caches::default() });
    for isa in isas() {
        let op = InvertedBottleneck::with_isa(&params, isa).unwrap();
        let plan = op.plan_with(Shape::new(1, 56, 56), &options).unwrap();
        assert!(plan.is_fused());
        assert_eq!(plan.expanded_bytes(), 56 * 56 * 144 * 4);
        assert!(plan.tile_bytes() <= 384 << 10, "{}", plan.tile_bytes());
        let words = plan.explain();
        assert!(words.starts_with("fused") && words.contains("1764 KiB expanded"), "{words}");

        let plan = op.plan_with(Shape::new(1, 7, 7), &options).unwrap();
        assert!(!plan.is_fused());
        let words = plan.explain();
        assert!(words.starts_with("unfused (estimated "), "{words}");

        let fused = options.schedule(Schedule::Fused);
        let plan = op.plan_with(Shape::new(1, 7, 7), &fused).unwrap();
        assert!(plan.explain().starts_with("fused (as asked, "), "{}", plan.explain());
        assert!(plan.kernel_name().starts_with("bottleneck_f32_fused_"));
    }
}

/// Input, kernel, dilation, stride; outputs and the padding before for `SameUpper`
/// (TensorFlow's SAME, ONNX's SAME_UPPER) and for `SameLower`; outputs for `VALID`.
type Padded = ([usize; 4], [usize; 2], [usize; 2], usize);
const PADDINGS: [Padded; 16] = [
    // Even and odd sizes with stride 1: symmetric for odd kernels.
    ([6, 3, 1, 1], [6, 1], [6, 1], 4),
    ([7, 3, 1, 1], [7, 1], [7, 1], 5),
    ([7, 5, 1, 1], [7, 2], [7, 2], 3),
    // Even kernels: the odd pixel is where the name says.
    ([6, 2, 1, 1], [6, 0], [6, 1], 5),
    ([6, 4, 1, 1], [6, 1], [6, 2], 3),
    // Stride 2: even sizes are padded on one side only.
    ([224, 3, 1, 2], [112, 0], [112, 1], 111),
    ([225, 3, 1, 2], [113, 1], [113, 1], 112),
    ([112, 5, 1, 2], [56, 1], [56, 2], 54),
    ([15, 5, 1, 2], [8, 2], [8, 2], 6),
    ([7, 2, 1, 2], [4, 0], [4, 1], 3),
    ([8, 2, 1, 2], [4, 0], [4, 0], 4),
    // Dilation counts by its extent: 3 taps, 2 apart, are 5 wide.
    ([7, 3, 2, 1], [7, 2], [7, 2], 3),
    ([8, 3, 2, 2], [4, 1], [4, 2], 2),
    ([9, 2, 3, 1], [9, 1], [9, 2], 6),
    // Strides beyond the kernel: nothing is padded.
    ([7, 1, 1, 2], [4, 0], [4, 0], 4),
    ([10, 2, 1, 4], [3, 0], [3, 0], 3),
];

/// What each padding makes of a line of 1, 2, 3, ...: where the first tap of the
/// first output falls tells the padding before.
#[test]
fn paddings_have_their_known_values() {
    for ([size, kernel, dilation, stride], upper, lower, valid) in PADDINGS {
        let x: Vec<f32> = (1..=size).map(|x| x as f32).collect();
        for ([outputs, before], padding) in
            [(upper, Padding::SameUpper), (lower, Padding::SameLower), ([valid, 0], Padding::VALID)]
        {
            let outputs_by_tap: Vec<Vec<f32>> = (0..kernel)
                .map(|tap| {
                    let mut weights = vec![0.0; kernel];
                    weights[tap] = 1.0;
                    let line = |kernel| {
                        DepthwiseParams::new(1, kernel, &weights)
                            .dilation([dilation; 2])
                            .stride([stride; 2])
                            .padding(padding)
                    };
                    let wide = Shape::new(1, 1, size);
                    let y = reference::depthwise(&line([1, kernel]), wide, &x).unwrap();
                    // The other axis has the same rule, and so have the kernels.
                    let tall = Shape::new(1, size, 1);
                    assert_eq!(y, reference::depthwise(&line([kernel, 1]), tall, &x).unwrap());
                    for isa in isas() {
                        let op = Depthwise::with_isa(&line([kernel, 1]), isa).unwrap();
                        let plan = op.plan(tall).unwrap();
                        let mut z = vec![0.0; plan.output_len()];
                        plan.run(&x, &mut z).unwrap();
                        assert_eq!(y, z);
                    }
                    y
                })
                .collect();
            for (tap, y) in outputs_by_tap.iter().enumerate() {
                let expected: Vec<f32> = (0..outputs)
                    .map(|o| {
                        let at = (o * stride + tap * dilation).checked_sub(before);
                        at.and_then(|i| x.get(i)).copied().unwrap_or(0.0)
                    })
                    .collect();
                assert_eq!(y, &expected, "{size} {kernel} {dilation} {stride} {padding:?}");
            }
        }
    }
}

proptest! {
    /// SAME covers `ceil(input / stride)` outputs; upper and lower differ in the
    /// side of an odd pixel only.
    #[test]
    fn same_padding(h in 1usize..40, k in 1usize..8, s in 1usize..5) {
        let weights = vec![1.0; k];
        let x = vec![1.0; h];
        let taps = |padding| {
            let params =
                DepthwiseParams::new(1, [k, 1], &weights).stride([s, 1]).padding(padding);
            reference::depthwise(&params, Shape::new(1, h, 1), &x).unwrap()
        };
        let (upper, lower) = (taps(Padding::SameUpper), taps(Padding::SameLower));
        prop_assert_eq!(upper.len(), h.div_ceil(s));
        // On a constant image the one is the mirror of the other.
        prop_assert_eq!(upper.iter().sum::<f32>(), lower.iter().sum::<f32>());
    }

    /// A folded convolution equals the convolution and its normalisation.
    #[test]
    fn batch_norm_folds(c_in in 1usize..9, c in 1usize..9, seed: u64) {
        let random = &mut Random::new(seed);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.float()).collect() };
        let (weights, bias, x) = (draw(c * c_in), draw(c), draw(c_in));
        let (scale, shift, mean) = (draw(c), draw(c), draw(c));
        let variance: Vec<f32> = draw(c).iter().map(|v| v.abs() + 0.1).collect();
        let norm = BatchNorm {
            scale: &scale, shift: &shift, mean: &mean, variance: &variance, epsilon: 1e-3,
        };
        let shape = Shape::new(1, 1, 1);
        let plain = PointwiseParams::new(c_in, c, &weights).bias(&bias);
        let expected: Vec<f32> = reference::pointwise(&plain, shape, &x, None)
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, y)| (y - mean[i]) / (variance[i] + 1e-3).sqrt() * scale[i] + shift[i])
            .collect();
        let close = |y: &[f32]| y.iter().zip(&expected).all(|(y, e)| (y - e).abs() < 1e-4);

        let (mut w, mut b) = (weights.clone(), bias.clone());
        fold_batch_norm(&norm, ChannelAxis::First, &mut w, &mut b).unwrap();
        let folded = PointwiseParams::new(c_in, c, &w).bias(&b);
        prop_assert!(close(&reference::pointwise(&folded, shape, &x, None).unwrap()));

        // The same with the channel last.
        let (mut t, mut b) = (vec![0.0; c * c_in], bias.clone());
        for (i, w) in weights.iter().enumerate() {
            t[i % c_in * c + i / c_in] = *w;
        }
        fold_batch_norm(&norm, ChannelAxis::Last, &mut t, &mut b).unwrap();
        let back: Vec<f32> = (0..c * c_in).map(|i| t[i % c_in * c + i / c_in]).collect();
        prop_assert_eq!(back, w);
    }
}
