//! One row for each way to misuse a layer, a plan or a run: the error and the
//! numbers in its message.

mod common;

use common::isas;
use mbconv::{
    Activation, BatchNorm, BottleneckParams, ChannelAxis, ConvParams, Depthwise, DepthwiseParams,
    Error, InvertedBottleneck, Isa, Layout, Padding, PlanOptions, Pointwise, PointwiseParams,
    Result, Serial, Shape, Strides, fold_batch_norm, reference,
};

/// The error that a call must give.
#[track_caller]
fn expect<T>(result: Result<T>, expected: Error, message: &str) {
    match result {
        Ok(_) => panic!("no error, expected {expected:?}"),
        Err(error) => {
            assert_eq!(error, expected);
            assert!(error.to_string().contains(message), "{error:?} says {error}, not {message}");
        }
    }
}

const HUGE: usize = usize::MAX / 2;
const ZERO_THREADS: Error = Error::ZeroSize { what: "threads" };

fn no_threads() -> PlanOptions {
    PlanOptions::new().threads(0)
}

#[test]
fn pointwise() {
    let w = [0.0; 6];
    let new = |params: &PointwiseParams<'_>| Pointwise::new(params).map(drop);
    let layer = |c_in, c_out| PointwiseParams::new(c_in, c_out, &w);
    expect(new(&layer(0, 2)), Error::ZeroSize { what: "input channels" }, "is 0");
    expect(new(&layer(2, 0)), Error::ZeroSize { what: "output channels" }, "is 0");
    let overflow = Error::Overflow { what: "pointwise weights" };
    expect(new(&layer(HUGE, 4)), overflow, "pointwise weights");
    let length = Error::Length { what: "pointwise weights", expected: 8, actual: 6 };
    expect(new(&layer(2, 4)), length, "length 6, the shapes ask for 8");
    let length = Error::Length { what: "pointwise bias", expected: 3, actual: 2 };
    expect(new(&layer(2, 3).bias(&[0.0; 2])), length, "length 2, the shapes ask for 3");
    for activation in [
        Activation::Clamp { lo: 2.0, hi: 1.0 },
        Activation::Clamp { lo: f32::NEG_INFINITY, hi: f32::NAN },
        Activation::LeakyRelu { slope: f32::INFINITY },
        Activation::HardSigmoid { alpha: f32::NAN, beta: 0.0 },
    ] {
        // NaN parameters are not equal to themselves, so by pattern.
        let error = new(&layer(2, 3).activation(activation)).unwrap_err();
        assert!(matches!(error, Error::InvalidActivation(_)), "{error:?}");
        assert!(error.to_string().contains(&format!("{activation:?}")), "{error}");
    }

    let op = Pointwise::new(&layer(2, 3)).unwrap();
    for (shape, what) in [
        (Shape::new(0, 1, 1), "batch"),
        (Shape::new(1, 0, 1), "height"),
        (Shape::new(1, 1, 0), "width"),
    ] {
        expect(op.plan(shape).map(drop), Error::ZeroSize { what }, what);
        expect(op.flops(shape), Error::ZeroSize { what }, what);
    }
    let shape = Shape::new(HUGE, 2, 3);
    expect(op.plan(shape).map(drop), Error::Overflow { what: "tensor" }, "tensor");

    let shape = Shape::new(1, 2, 2);
    expect(op.plan_with(shape, &no_threads()).map(drop), ZERO_THREADS, "threads is 0");
    let plan = op.plan(shape).unwrap();
    let (x, r) = ([0.0; 8], [0.0; 12]);
    for n in [0, 7, 9] {
        let length = Error::Length { what: "input", expected: 8, actual: n };
        expect(plan.run(&vec![0.0; n], &mut [0.0; 12]), length, &n.to_string());
        let length = Error::Length { what: "output", expected: 12, actual: n };
        expect(plan.run(&x, &mut vec![0.0; n]), length, &n.to_string());
        let length = Error::Length { what: "residual", expected: 12, actual: n };
        expect(plan.run_residual(&x, &r[..n], &mut [0.0; 12]), length, &n.to_string());
    }
    let length = Error::Length { what: "input", expected: 8, actual: 12 };
    expect(reference::pointwise(&layer(2, 3), Shape::new(1, 2, 2), &r, None), length, "12");
}

#[test]
fn depthwise() {
    let w = [0.0; 18];
    let new = |params: &DepthwiseParams<'_>| Depthwise::new(params).map(drop);
    let layer = |c, kernel| DepthwiseParams::new(c, kernel, &w);
    expect(new(&layer(0, [3, 3])), Error::ZeroSize { what: "channels" }, "is 0");
    expect(new(&layer(2, [0, 3])), Error::ZeroSize { what: "kernel height" }, "is 0");
    expect(new(&layer(2, [3, 0])), Error::ZeroSize { what: "kernel width" }, "is 0");
    for (stride, dilation, what) in [
        ([0, 1], [1, 1], "vertical stride"),
        ([1, 0], [1, 1], "horizontal stride"),
        ([1, 1], [0, 1], "vertical dilation"),
        ([1, 1], [1, 0], "horizontal dilation"),
    ] {
        let params = layer(2, [3, 3]).stride(stride).dilation(dilation);
        expect(new(&params), Error::ZeroSize { what }, what);
    }
    let zero = Error::ZeroSize { what: "channel multiplier" };
    expect(new(&layer(2, [3, 3]).multiplier(0)), zero, "channel multiplier");
    let length = Error::Length { what: "depthwise weights", expected: 36, actual: 18 };
    expect(new(&layer(2, [3, 3]).multiplier(2)), length, "length 18, the shapes ask for 36");
    let overflow = Error::Overflow { what: "depthwise weights" };
    expect(new(&layer(2, [3, 3]).multiplier(HUGE)), overflow, "depthwise weights");
    let length = Error::Length { what: "depthwise bias", expected: 2, actual: 1 };
    expect(new(&layer(1, [3, 3]).multiplier(2).bias(&[0.0])), length, "length 1");
    let length = Error::Length { what: "depthwise weights", expected: 27, actual: 18 };
    expect(new(&layer(3, [3, 3])), length, "length 18, the shapes ask for 27");
    let overflow = Error::Overflow { what: "depthwise weights" };
    expect(new(&layer(2, [1 << 20, HUGE >> 10])), overflow, "depthwise weights");
    let overflow = Error::Overflow { what: "dilated kernel" };
    expect(new(&layer(2, [3, 3]).dilation([HUGE, 1])), overflow, "dilated kernel");
    let length = Error::Length { what: "depthwise bias", expected: 2, actual: 3 };
    expect(new(&layer(2, [3, 3]).bias(&[0.0; 3])), length, "length 3");
    for (side, padding) in [
        ("top", Padding::Explicit { top: 5, bottom: 0, left: 0, right: 0 }),
        ("bottom", Padding::Explicit { top: 0, bottom: 5, left: 0, right: 0 }),
        ("left", Padding::Explicit { top: 0, bottom: 0, left: 5, right: 0 }),
        ("right", Padding::Explicit { top: 0, bottom: 0, left: 0, right: 5 }),
    ] {
        let params = layer(2, [3, 3]).dilation([2, 2]).padding(padding);
        let error = Error::PaddingTooLarge { side, padding: 5, kernel: 5 };
        expect(new(&params), error, &format!("{side} is 5"));
    }

    let op = Depthwise::new(&layer(2, [3, 3]).padding(Padding::Explicit {
        top: 1,
        bottom: 0,
        left: 0,
        right: 0,
    }));
    let op = op.unwrap();
    let empty = Error::EmptyOutput { axis: "height", padded: 2, kernel: 3 };
    expect(op.plan(Shape::new(1, 1, 9)).map(drop), empty, "padded height 2, kernel 3");
    let empty = Error::EmptyOutput { axis: "width", padded: 2, kernel: 3 };
    expect(op.plan(Shape::new(1, 9, 2)).map(drop), empty, "padded width 2, kernel 3");
    let shape = Shape::new(1, HUGE, HUGE);
    expect(op.plan(shape).map(drop), Error::Overflow { what: "tensor" }, "tensor");

    let shape = Shape::new(1, 3, 4);
    expect(op.plan_with(shape, &no_threads()).map(drop), ZERO_THREADS, "threads is 0");
    let plan = op.plan(shape).unwrap();
    assert_eq!(plan.output_shape(), Shape::new(1, 2, 2));
    let length = Error::Length { what: "input", expected: 24, actual: 23 };
    expect(plan.run(&[0.0; 23], &mut [0.0; 8]), length, "23");
    let length = Error::Length { what: "output", expected: 8, actual: 9 };
    expect(plan.run(&[0.0; 24], &mut [0.0; 9]), length, "9");
}

#[test]
fn bottleneck() {
    let w = [0.0; 100];
    let expand = |c_in, c_out| PointwiseParams::new(c_in, c_out, &w[..c_in * c_out]);
    let depthwise = |c| DepthwiseParams::new(c, [3, 3], &w[..9 * c]).padding(Padding::uniform(1));
    let new = |params: &BottleneckParams<'_>| InvertedBottleneck::new(params).map(drop);

    let params = BottleneckParams::new(depthwise(4), expand(4, 2)).expand(expand(2, 3));
    let error = Error::ChannelMismatch { stage: "depthwise", given: 3, taken: 4 };
    expect(new(&params), error, "takes 4 channels, the stage before it gives 3");
    let multiplied = DepthwiseParams::new(2, [3, 3], &w[..36]).multiplier(2);
    let params = BottleneckParams::new(multiplied, expand(4, 2));
    let error = Error::MultiplierInBlock { multiplier: 2 };
    expect(new(&params), error.clone(), "multiplier is 2");
    let shape = Shape::new(1, 3, 3);
    expect(reference::bottleneck(&params, shape, &[0.0; 18]), error, "multiplier is 2");
    let params = BottleneckParams::new(depthwise(4), expand(5, 2)).expand(expand(2, 4));
    let error = Error::ChannelMismatch { stage: "project", given: 4, taken: 5 };
    expect(new(&params), error, "takes 5 channels, the stage before it gives 4");

    let shape = Shape::new(1, 4, 4);
    let error = Error::ResidualShape { input: [4, 4, 2], output: [4, 4, 3] };
    let params = BottleneckParams::new(depthwise(4), expand(4, 3)).expand(expand(2, 4));
    let residual = params.residual(true);
    let op = InvertedBottleneck::new(&residual).unwrap();
    expect(op.plan(shape).map(drop), error.clone(), "4x4x2 and 4x4x3");
    expect(reference::bottleneck(&residual, shape, &[0.0; 32]), error, "4x4x2 and 4x4x3");

    let op = InvertedBottleneck::new(&params).unwrap();
    let huge = Shape::new(1, 1 << 30, 1 << 30);
    assert!(matches!(op.plan(huge), Err(Error::Overflow { .. })));
    expect(op.plan_with(shape, &no_threads()).map(drop), ZERO_THREADS, "threads is 0");
    let plan = op.plan(shape).unwrap();
    let mut scratch = plan.scratch();
    let length = Error::Length { what: "input", expected: 32, actual: 31 };
    expect(plan.run(&[0.0; 31], &mut [0.0; 48], &mut scratch), length, "31");
    let length = Error::Length { what: "output", expected: 48, actual: 47 };
    expect(plan.run(&[0.0; 32], &mut [0.0; 47], &mut scratch), length, "47");
    let (expected, actual) = (plan.scratch_bytes(), plan.scratch_bytes() - 1);
    let length = Error::Length { what: "scratch", expected, actual };
    let run = plan.run(&[0.0; 32], &mut [0.0; 48], &mut scratch[..actual]);
    expect(run, length, &actual.to_string());

    // Two tasks ask for more scratch than one; more than there can be are cut off.
    let options = PlanOptions::new().threads(2);
    let two = op.plan_with(shape, &options).unwrap();
    let expected = two.scratch_bytes();
    assert!(expected > plan.scratch_bytes());
    let length = Error::Length { what: "scratch", expected, actual };
    let run = two.run_with(&Serial, &[0.0; 32], &mut [0.0; 48], &mut scratch[..actual]);
    expect(run, length, &actual.to_string());
    assert!(op.plan_with(shape, &options.threads(usize::MAX)).is_ok());
}

#[test]
fn stem() {
    let w = [0.0; 100];
    let depthwise = |c| DepthwiseParams::new(c, [3, 3], &w[..9 * c]).padding(Padding::uniform(1));
    let stem = |c_in: usize, c_out: usize| {
        ConvParams::new(c_in, c_out, [3, 3], &w[..9 * c_in * c_out]).padding(Padding::uniform(1))
    };
    let block = |stem| BottleneckParams::without_project(depthwise(4)).stem(stem);
    let new = |stem| InvertedBottleneck::new(&block(stem)).map(drop);

    expect(new(stem(0, 4)), Error::ZeroSize { what: "stem input channels" }, "is 0");
    expect(new(stem(1, 0)), Error::ZeroSize { what: "stem output channels" }, "is 0");
    let zero = Error::ZeroSize { what: "vertical stride" };
    expect(new(stem(1, 4).stride([0, 1])), zero, "is 0");
    let length = Error::Length { what: "stem weights", expected: 108, actual: 100 };
    expect(new(ConvParams::new(3, 4, [3, 3], &w)), length, "length 100, the shapes ask for 108");
    let overflow = Error::Overflow { what: "stem weights" };
    expect(new(ConvParams::new(HUGE, 4, [3, 3], &w)), overflow, "stem weights");
    let length = Error::Length { what: "stem bias", expected: 4, actual: 3 };
    expect(new(stem(2, 4).bias(&w[..3])), length, "length 3");
    let error = Error::PaddingTooLarge { side: "top", padding: 3, kernel: 3 };
    expect(new(stem(2, 4).padding(Padding::uniform(3))), error, "top is 3");
    let error = new(stem(2, 4).activation(Activation::LeakyRelu { slope: f32::NAN })).unwrap_err();
    assert!(matches!(error, Error::InvalidActivation(_)), "{error:?}");
    let error = Error::ChannelMismatch { stage: "depthwise", given: 3, taken: 4 };
    expect(new(stem(2, 3)), error, "takes 4 channels, the stage before it gives 3");

    let residual = block(stem(2, 4)).residual(true);
    let error = Error::ResidualWithoutProject;
    expect(InvertedBottleneck::new(&residual).map(drop), error.clone(), "without projection");
    let shape = Shape::new(1, 4, 4);
    expect(reference::bottleneck(&residual, shape, &[0.0; 32]), error, "without projection");
    let project = PointwiseParams::new(4, 2, &w[..8]);
    let residual =
        BottleneckParams::new(depthwise(4), project).stem(stem(2, 4).stride([2, 2])).residual(true);
    let error = Error::ResidualShape { input: [4, 4, 2], output: [2, 2, 2] };
    let op = InvertedBottleneck::new(&residual).unwrap();
    expect(op.plan(shape).map(drop), error.clone(), "4x4x2 and 2x2x2");
    expect(reference::bottleneck(&residual, shape, &[0.0; 32]), error, "4x4x2 and 2x2x2");

    let op = InvertedBottleneck::new(&block(stem(2, 4).padding(Padding::VALID))).unwrap();
    let error = Error::EmptyOutput { axis: "width", padded: 2, kernel: 3 };
    expect(op.plan(Shape::new(1, 3, 2)).map(drop), error, "padded width 2, kernel 3");
    let plan = op.plan(shape).unwrap();
    assert_eq!(plan.output_shape(), Shape::new(1, 2, 2));
    let length = Error::Length { what: "input", expected: 32, actual: 64 };
    expect(plan.run(&[0.0; 64], &mut [0.0; 16], &mut plan.scratch()), length, "64");
}

/// Of all operations alike: they share the checks.
#[test]
fn strides() {
    let op = Pointwise::new(&PointwiseParams::new(3, 3, &[0.0; 9])).unwrap();
    let shape = Shape::new(2, 4, 5);
    let plan = |strides| {
        let options = PlanOptions::new().input_strides(strides);
        op.plan_with(shape, &options).map(|plan| plan.input_len())
    };
    let [batch, row, pixel] = [70, 17, 3];
    assert_eq!(plan(Strides::Nhwc { batch, row, pixel }), Ok(70 + 3 * 17 + 4 * 3 + 3));
    for (strides, stride, extent) in [
        (Strides::Nhwc { batch, row, pixel: 2 }, 2, 3),
        (Strides::Nhwc { batch, row: 14, pixel }, 14, 15),
        (Strides::Nhwc { batch: 65, row, pixel }, 65, 66),
        (Strides::Nhwc { batch: 0, row: 0, pixel: 0 }, 0, 3),
        (Strides::Nchw { batch, plane: 20, row: 4 }, 4, 5),
        (Strides::Nchw { batch, plane: 19, row: 5 }, 19, 20),
        (Strides::Nchw { batch: 59, plane: 20, row: 5 }, 59, 60),
    ] {
        let error = Error::Stride { what: "input", stride, extent };
        expect(plan(strides), error.clone(), &format!("stride of {stride} over"));
        let options = PlanOptions::new().output_strides(strides);
        let error = op.plan_with(shape, &options).map(drop).unwrap_err();
        assert!(matches!(error, Error::Stride { what: "output", .. }), "{error}");
    }
    for row in [HUGE, usize::MAX, isize::MAX as usize / 8] {
        let strides = Strides::Nhwc { batch: usize::MAX, row, pixel };
        expect(plan(strides), Error::Overflow { what: "input" }, "input");
    }

    let strides = Strides::Nhwc { batch: 100, row: 20, pixel: 4 };
    let options = PlanOptions::new().output_strides(strides).input_layout(Layout::Nchw);
    let plan = op.plan_with(shape, &options).unwrap();
    let (x, len) = ([0.0; 120], 100 + 3 * 20 + 4 * 4 + 3);
    assert_eq!(plan.output_len(), len);
    let error = Error::Length { what: "output", expected: len, actual: len - 1 };
    expect(plan.run(&x, &mut vec![0.0; len - 1]), error, "length 178, the shapes ask for 179");
    for more in [0, 5] {
        plan.run(&x, &mut vec![0.0; len + more]).unwrap();
        let mut y = vec![core::mem::MaybeUninit::uninit(); len + more];
        let error = Error::Gaps { len: len + more, elements: 120 };
        expect(plan.run_uninit(&Serial, &x, None, &mut y), error, "only 120 of");
    }
    let error = Error::Length { what: "residual", expected: len, actual: 80 };
    expect(plan.run_residual(&x, &[0.0; 80], &mut vec![0.0; len]), error, "length 80");
    // A dense tensor has its length exactly.
    let error = Error::Length { what: "input", expected: 120, actual: 121 };
    expect(plan.run(&[0.0; 121], &mut vec![0.0; len]), error, "length 121");
}

#[test]
fn batch_norm() {
    let norm = |n: usize| BatchNorm {
        scale: &[1.0; 2],
        shift: &[0.0; 3][..n],
        mean: &[0.0; 2],
        variance: &[1.0; 2],
        epsilon: 0.0,
    };
    let fold = |n, weights: &mut [f32], bias: &mut [f32]| {
        fold_batch_norm(&norm(n), ChannelAxis::First, weights, bias)
    };
    let length = Error::Length { what: "batch norm shift", expected: 2, actual: 3 };
    expect(fold(3, &mut [0.0; 4], &mut [0.0; 2]), length, "3");
    let length = Error::Length { what: "weights", expected: 4, actual: 5 };
    expect(fold(2, &mut [0.0; 5], &mut [0.0; 2]), length, "5");
    expect(fold(2, &mut [], &mut []), Error::ZeroSize { what: "channels" }, "is 0");
}

#[test]
fn isa() {
    let error = Error::UnknownIsa { name: "sse9".into() };
    expect(Isa::from_name("sse9").map(drop), error, "\"sse9\"");
    let here: Vec<&str> = Isa::available().map(Isa::name).collect();
    for name in ["avx512", "avx2", "neon", "portable"] {
        match Isa::from_name(name) {
            Ok(isa) => assert!(here.contains(&name) && isa.name() == name),
            Err(error) => {
                assert!(!here.contains(&name));
                assert_eq!(
                    error,
                    Error::IsaUnavailable { name: error_name(&error), best: here[0] }
                );
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
    assert!(isas().iter().all(|isa| isa.lanes() >= 4));
}

fn error_name(error: &Error) -> &'static str {
    match error {
        Error::IsaUnavailable { name, .. } => name,
        other => panic!("{other:?}"),
    }
}
