//! The layers and blocks of MobileNetV2-224, in FLOP per second.
//!
//! `cargo bench -- pointwise`, `-- depthwise`, `-- bottleneck`; `MBCONV_ISA`
//! narrows the instruction set.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

#[path = "../examples/support/random.rs"]
mod random;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mbconv::{
    Activation::Relu6, BottleneckParams, Depthwise, DepthwiseParams, InvertedBottleneck, Padding,
    PlanOptions, Pointwise, PointwiseParams, Schedule, Shape,
};
use random::Random;

/// Side, input, expanded and output channels, stride: the distinct blocks.
const BLOCKS: [[usize; 5]; 12] = [
    [112, 32, 32, 16, 1],
    [112, 16, 96, 24, 2],
    [56, 24, 144, 24, 1],
    [56, 24, 144, 32, 2],
    [28, 32, 192, 32, 1],
    [28, 32, 192, 64, 2],
    [14, 64, 384, 64, 1],
    [14, 64, 384, 96, 1],
    [14, 96, 576, 96, 1],
    [14, 96, 576, 160, 2],
    [7, 160, 960, 160, 1],
    [7, 160, 960, 320, 1],
];

fn pointwise(c: &mut Criterion) {
    let mut group = c.benchmark_group("pointwise");
    let random = &mut Random::new(1);
    let mut seen = Vec::new();
    for [side, c_in, c_mid, c_out, stride] in BLOCKS {
        let layers = [(side, c_in, c_mid), (side.div_ceil(stride), c_mid, c_out)];
        for layer @ (side, k, n) in layers {
            if k == n || seen.contains(&layer) {
                continue;
            }
            seen.push(layer);
            let (shape, weights) = (Shape::new(1, side, side), random.vec(k * n, 0.1));
            let op = Pointwise::new(&PointwiseParams::new(k, n, &weights)).expect("valid");
            let plan = op.plan(shape).expect("valid");
            let (x, mut y) = (random.vec(side * side * k, 1.0), vec![0.0; side * side * n]);
            group.throughput(Throughput::Elements(op.flops(shape).expect("valid")));
            let id = BenchmarkId::new(plan.kernel_name(), format!("{side}x{side}x{k}-{n}"));
            group.bench_function(id, |b| b.iter(|| plan.run(&x, &mut y)));
        }
    }
}

fn depthwise(c: &mut Criterion) {
    let mut group = c.benchmark_group("depthwise");
    let random = &mut Random::new(2);
    for (kernel, strides) in [(3, &[1, 2][..]), (5, &[1, 2]), (7, &[1])] {
        for (side, channels) in [(112, 96), (56, 144), (28, 192), (14, 576), (7, 960)] {
            for &stride in strides {
                let (shape, weights) =
                    (Shape::new(1, side, side), random.vec(kernel * kernel * channels, 0.3));
                let params = DepthwiseParams::new(channels, [kernel; 2], &weights)
                    .stride([stride; 2])
                    .padding(Padding::uniform(kernel / 2))
                    .activation(Relu6);
                let op = Depthwise::new(&params).expect("valid");
                let plan = op.plan(shape).expect("valid");
                let output = plan.output_shape().elements(channels).expect("valid");
                let (x, mut y) = (random.vec(side * side * channels, 1.0), vec![0.0; output]);
                group.throughput(Throughput::Elements(op.flops(shape).expect("valid")));
                let id = BenchmarkId::new(plan.kernel_name(), format!("{side}x{side}x{channels}"));
                group.bench_function(id, |b| b.iter(|| plan.run(&x, &mut y)));
            }
        }
    }
}

fn bottleneck(c: &mut Criterion) {
    let mut group = c.benchmark_group("bottleneck");
    let random = &mut Random::new(3);
    for [side, c_in, c_mid, c_out, stride] in BLOCKS {
        let shape = Shape::new(1, side, side);
        let expand = random.vec(c_in * c_mid, 0.2);
        let depthwise = random.vec(9 * c_mid, 0.3);
        let project = random.vec(c_mid * c_out, 0.1);
        let params = BottleneckParams::new(
            DepthwiseParams::new(c_mid, [3, 3], &depthwise)
                .stride([stride; 2])
                .padding(Padding::uniform(1))
                .activation(Relu6),
            PointwiseParams::new(c_mid, c_out, &project),
        )
        .residual(stride == 1 && c_in == c_out);
        let params = if c_mid > c_in {
            params.expand(PointwiseParams::new(c_in, c_mid, &expand).activation(Relu6))
        } else {
            params
        };
        let op = InvertedBottleneck::new(&params).expect("valid");
        let x = random.vec(side * side * c_in, 1.0);
        for schedule in [Schedule::Fused, Schedule::Unfused] {
            let options = PlanOptions::new().schedule(schedule);
            let plan = op.plan_with(shape, &options).expect("valid");
            let output = plan.output_shape().elements(c_out).expect("valid");
            let (mut y, mut scratch) = (vec![0.0; output], plan.scratch());
            group.throughput(Throughput::Elements(op.flops(shape).expect("valid")));
            let name = format!("{side}x{side} {c_in}-{c_mid}-{c_out} s{stride}");
            let id = BenchmarkId::new(plan.kernel_name(), name);
            group.bench_function(id, |b| b.iter(|| plan.run(&x, &mut y, &mut scratch)));
        }
    }
}

criterion_group!(benches, pointwise, depthwise, bottleneck);
criterion_main!(benches);
