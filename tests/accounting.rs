//! What operations and plans say of themselves: FLOP, bytes, output shapes, the
//! schedule in words; and the folding of batch normalisation.

mod common;

use common::{Rng, isas};
use mbconv::{
    BatchNorm, BottleneckParams, Caches, ChannelAxis, Depthwise, DepthwiseParams,
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
        let rng = &mut Rng::new(seed);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
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
