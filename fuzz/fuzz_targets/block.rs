//! Any block, any shape, on every instruction set and schedule: never a panic,
//! and where the reference gives a result, the same one. The data are small
//! integers, so that results must be equal.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mbconv::{
    Activation, BottleneckParams, Caches, ConvParams, DepthwiseParams, InvertedBottleneck, Isa,
    Padding, PlanOptions, PointwiseParams, Schedule, Shape, reference,
};

#[derive(Debug, Arbitrary)]
struct Input {
    shape: [u8; 3],
    c: [u8; 3],
    kernel: [u8; 2],
    stride: [u8; 2],
    dilation: [u8; 2],
    padding: Option<[u8; 4]>,
    expand: bool,
    /// Kernel, stride, in the place of the expansion.
    stem: Option<[u8; 3]>,
    project: bool,
    residual: bool,
    clamp: bool,
    tile: [u8; 2],
    l2: u16,
    data: Vec<u8>,
}

fuzz_target!(|input: Input| {
    // Small enough for the naive reference; zeros stay possible.
    let [n, h, w] = input.shape.map(|x| usize::from(x % 24));
    let [c_in, c_mid, c_out] = input.c.map(|x| usize::from(x % 70));
    let c_in = if input.expand || input.stem.is_some() { c_in } else { c_mid };
    let [kh, kw] = input.kernel.map(|x| usize::from(x % 10));
    let stride = input.stride.map(|x| usize::from(x % 5));
    let dilation = input.dilation.map(|x| usize::from(x % 4));
    let shape = Shape::new(n % 3, h, w);

    let mut bytes = input.data.iter().cycle();
    let mut fill = |len: usize| -> Vec<f32> {
        (0..len).map(|_| f32::from(bytes.next().unwrap_or(&3) % 5) - 2.0).collect()
    };
    let [stem_h, stem_w, stem_stride] = input.stem.unwrap_or([1; 3]).map(|x| usize::from(x % 6));
    let (expand, depthwise, project) =
        (fill(c_in * c_mid), fill(kh * kw * c_mid), fill(c_mid * c_out));
    let stem = fill(stem_h * stem_w * c_in * c_mid);
    let (bias, x) = (fill(c_mid), fill(shape.batch * h * w * c_in));
    let act = if input.clamp { Activation::Relu6 } else { Activation::Identity };
    let padding = match input.padding {
        Some(sides) => {
            let [top, bottom, left, right] = sides.map(|x| usize::from(x % 12));
            Padding::Explicit { top, bottom, left, right }
        }
        None => Padding::SameUpper,
    };
    let depthwise = DepthwiseParams::new(c_mid, [kh, kw], &depthwise)
        .stride(stride)
        .dilation(dilation)
        .padding(padding)
        .bias(&bias)
        .activation(act);
    let params = if input.project {
        BottleneckParams::new(depthwise, PointwiseParams::new(c_mid, c_out, &project))
    } else {
        BottleneckParams::without_project(depthwise)
    };
    let params = params.residual(input.residual);
    let params = if input.stem.is_some() {
        let stem = ConvParams::new(c_in, c_mid, [stem_h, stem_w], &stem)
            .stride([stem_stride, stem_stride.max(1)])
            .padding(Padding::SameUpper)
            .activation(act);
        params.stem(stem)
    } else if input.expand {
        params.expand(PointwiseParams::new(c_in, c_mid, &expand).activation(act))
    } else {
        params
    };

    let expected = reference::bottleneck(&params, shape, &x);
    let [rows, channels] = input.tile.map(usize::from);
    for isa in Isa::available() {
        for schedule in
            [Schedule::Auto, Schedule::Fused, Schedule::Unfused, Schedule::Tiled { rows, channels }]
        {
            let caches = Caches { l2: usize::from(input.l2), ..Caches::default() };
            let options = PlanOptions::new().schedule(schedule).caches(caches);
            let plan = InvertedBottleneck::with_isa(&params, isa)
                .and_then(|op| op.plan_with(shape, &options));
            let (expected, plan) = match (&expected, plan) {
                (Ok(expected), Ok(plan)) => (expected, plan),
                (Err(expected), Err(error)) => {
                    assert_eq!(expected, &error);
                    continue;
                }
                (expected, plan) => panic!("{expected:?} but {:?}", plan.err()),
            };
            let mut y = vec![f32::NAN; expected.len()];
            plan.run(&x, &mut y, &mut plan.scratch()).expect("the plan was accepted");
            assert_eq!(expected, &y, "{}", plan.explain());
        }
    }
});
