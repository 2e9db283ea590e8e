//! One row for each way to misuse a layer, a plan or a run: the error, its message,
//! and in that every number of the error.

mod common;

use core::mem::MaybeUninit;

use common::isas;
use mbconv::{
    Activation, BatchNorm, BottleneckParams, ChannelAxis, ConvNextBlock, ConvNextParams,
    ConvParams, Depthwise, DepthwiseParams, Error, InvertedBottleneck, Isa, LayerNormParams,
    Layout, Padding, PlanOptions, Pointwise, PointwiseParams, Residual, Result, Serial, Shape,
    SqueezeExciteParams, Strides, fold_batch_norm, reference,
};

/// The error that a call must give.
#[track_caller]
fn expect<T>(result: Result<T>, expected: Error, message: &str) {
    match result {
        Ok(_) => panic!("no error, expected {expected:?}"),
        Err(error) => {
            assert_eq!(error, expected);
            assert!(error.to_string().contains(message), "{error:?} says {error}, not {message}");
            tells_its_numbers(&error);
        }
    }
}

#[track_caller]
fn tells_its_numbers(error: &Error) {
    let numbers = |text: &str| -> Vec<String> {
        let parts = text.split(|c: char| !c.is_ascii_digit());
        parts.filter(|part| !part.is_empty()).map(String::from).collect()
    };
    let told = numbers(&error.to_string());
    for number in numbers(&format!("{error:?}")) {
        assert!(told.contains(&number), "{error:?} says {error}, without {number}");
    }
}

fn uninit<T: Copy>(len: usize) -> Vec<MaybeUninit<T>> {
    vec![MaybeUninit::uninit(); len]
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
    expect(new(&layer(0, 2)), Error::ZeroSize { what: "pointwise input channels" }, "is 0");
    expect(new(&layer(2, 0)), Error::ZeroSize { what: "pointwise output channels" }, "is 0");
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
        Activation::LeakyRelu { slope: f32::NAN },
        Activation::HardSigmoid { alpha: f32::NAN, beta: 0.0 },
        Activation::HardSigmoid { alpha: 0.2, beta: f32::NEG_INFINITY },
        Activation::Clamp { lo: f32::NAN, hi: 6.0 },
    ] {
        // NaN parameters are not equal to themselves, so by pattern.
        let error = new(&layer(2, 3).activation(activation)).unwrap_err();
        assert!(matches!(error, Error::InvalidActivation(_)), "{error:?}");
        assert!(error.to_string().contains(&format!("{activation:?}")), "{error}");
        tells_its_numbers(&error);
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
        let length = Error::Length { what: "residual", expected: 12, actual: n };
        expect(
            plan.run_uninit(&Serial, &x, Some(&r[..n]), &mut uninit(12)),
            length,
            &n.to_string(),
        );
        let length = Error::Length { what: "input", expected: 8, actual: n };
        expect(
            plan.run_uninit(&Serial, &r[..n], None, &mut uninit(12)),
            length.clone(),
            &n.to_string(),
        );
        expect(plan.run_with(&Serial, &r[..n], &mut [0.0; 12]), length, &n.to_string());
    }
    let length = Error::Length { what: "output", expected: 12, actual: 11 };
    expect(plan.run_uninit(&Serial, &x, None, &mut uninit(11)), length, "length 11");
    let length = Error::Length { what: "output", expected: 12, actual: 13 };
    expect(plan.run_uninit(&Serial, &x, None, &mut uninit(13)), length, "length 13");
    let length = Error::Length { what: "input", expected: 8, actual: 12 };
    expect(reference::pointwise(&layer(2, 3), shape, &r, None), length, "12");
    let length = Error::Length { what: "residual", expected: 12, actual: 8 };
    expect(reference::pointwise(&layer(2, 3), shape, &x, Some(&x)), length, "length 8");
    let zero = Error::ZeroSize { what: "pointwise input channels" };
    expect(reference::pointwise(&layer(0, 3), shape, &x, None), zero, "is 0");
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
    let length = Error::Length { what: "input", expected: 24, actual: 25 };
    expect(plan.run_with(&Serial, &[0.0; 25], &mut [0.0; 8]), length.clone(), "25");
    expect(plan.run_uninit(&Serial, &[0.0; 25], &mut uninit(8)), length, "25");
    let length = Error::Length { what: "output", expected: 8, actual: 7 };
    expect(plan.run_uninit(&Serial, &[0.0; 24], &mut uninit(7)), length, "7");
    let length = Error::Length { what: "output", expected: 8, actual: 9 };
    expect(plan.run_uninit(&Serial, &[0.0; 24], &mut uninit(9)), length, "9");
    let error = new(&layer(2, [3, 3]).activation(Activation::Clamp { lo: 2.0, hi: 1.0 }));
    let clamp = Error::InvalidActivation(Activation::Clamp { lo: 2.0, hi: 1.0 });
    expect(error, clamp, "lo: 2.0, hi: 1.0");

    for (shape, what) in [
        (Shape::new(0, 3, 3), "batch"),
        (Shape::new(1, 0, 3), "height"),
        (Shape::new(1, 3, 0), "width"),
    ] {
        expect(op.plan(shape).map(drop), Error::ZeroSize { what }, what);
        expect(op.flops(shape), Error::ZeroSize { what }, what);
    }
    let empty = Error::EmptyOutput { axis: "width", padded: 2, kernel: 3 };
    expect(op.flops(Shape::new(1, 9, 2)), empty.clone(), "padded width 2, kernel 3");
    let valid = layer(2, [3, 3]);
    expect(reference::depthwise(&valid, Shape::new(1, 9, 2), &[0.0; 36]), empty, "width 2");
    let length = Error::Length { what: "input", expected: 24, actual: 23 };
    expect(reference::depthwise(&valid, Shape::new(1, 3, 4), &[0.0; 23]), length, "length 23");
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
    let error = Error::ChannelMismatch { stage: "residual", given: 3, taken: 2 };
    let params = BottleneckParams::new(depthwise(4), expand(4, 3)).expand(expand(2, 4));
    let residual = params.residual(true);
    expect(new(&residual), error.clone(), "residual takes 2 channels");
    expect(reference::bottleneck(&residual, shape, &[0.0; 32]), error, "before it gives 3");

    // What is wrong with a stage is wrong with the block.
    let wrong =
        |expand, depthwise, project| new(&BottleneckParams::new(depthwise, project).expand(expand));
    let zero = Error::ZeroSize { what: "expand input channels" };
    expect(wrong(PointwiseParams::new(0, 4, &w), depthwise(4), expand(4, 2)), zero, "is 0");
    let zero = Error::ZeroSize { what: "kernel width" };
    let flat = DepthwiseParams::new(4, [3, 0], &w);
    expect(wrong(expand(2, 4), flat, expand(4, 2)), zero, "is 0");
    let length = Error::Length { what: "project weights", expected: 8, actual: 100 };
    let long = PointwiseParams::new(4, 2, &w);
    expect(wrong(expand(2, 4), depthwise(4), long), length, "length 100");
    let length = Error::Length { what: "depthwise bias", expected: 4, actual: 3 };
    expect(wrong(expand(2, 4), depthwise(4).bias(&w[..3]), expand(4, 2)), length, "length 3");
    let slope = Activation::LeakyRelu { slope: f32::INFINITY };
    let error = Error::InvalidActivation(slope);
    expect(wrong(expand(2, 4).activation(slope), depthwise(4), expand(4, 2)), error, "inf");
    let error = Error::ResidualWithoutProject;
    let residual = BottleneckParams::without_project(depthwise(4)).residual(true);
    expect(new(&residual), error, "without projection");

    let op = InvertedBottleneck::new(&params).unwrap();
    let (huge, overflow) = (Shape::new(1, 1 << 30, 1 << 30), Error::Overflow { what: "tensor" });
    expect(op.plan(huge).map(drop), overflow.clone(), "tensor");
    expect(op.flops(Shape::new(1, HUGE, HUGE)), overflow, "tensor");
    for (shape, what) in [
        (Shape::new(0, 3, 3), "batch"),
        (Shape::new(1, 0, 3), "height"),
        (Shape::new(1, 3, 0), "width"),
    ] {
        expect(op.plan(shape).map(drop), Error::ZeroSize { what }, what);
        expect(op.flops(shape), Error::ZeroSize { what }, what);
    }
    // Each tensor fits the address space, all together do not.
    let same = [0.0; 16 * 16];
    let wide = DepthwiseParams::new(16, [1, 1], &same[..16]);
    let wide = BottleneckParams::new(wide, PointwiseParams::new(16, 16, &same));
    let op_16 = InvertedBottleneck::new(&wide).unwrap();
    let huge = Shape::new(1, 1, isize::MAX as usize / 64);
    expect(op_16.plan(huge).map(drop), Error::Overflow { what: "scratch" }, "scratch");
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

    let (x, y) = ([0.0; 32], [0.0; 48]);
    let length = Error::Length { what: "scratch", expected, actual };
    expect(
        plan.run_uninit(&Serial, &x, &mut uninit(48), &mut scratch[..actual]),
        length,
        &actual.to_string(),
    );
    let length = Error::Length { what: "scratch", expected, actual: 0 };
    expect(plan.run(&x, &mut y.clone(), &mut []), length, "length 0");
    let length = Error::Length { what: "input", expected: 32, actual: 48 };
    expect(plan.run_uninit(&Serial, &y, &mut uninit(48), &mut scratch), length, "length 48");
    let length = Error::Length { what: "output", expected: 48, actual: 47 };
    expect(plan.run_uninit(&Serial, &x, &mut uninit(47), &mut scratch), length, "length 47");
    let length = Error::Length { what: "output", expected: 48, actual: 49 };
    expect(plan.run_uninit(&Serial, &x, &mut uninit(49), &mut scratch), length, "length 49");
    let length = Error::Length { what: "input", expected: 32, actual: 48 };
    expect(reference::bottleneck(&params, shape, &y), length, "length 48");

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

/// Every operation asks for the strides of both ends.
#[test]
fn strides_of_every_operation() {
    let (shape, w) = (Shape::new(2, 4, 5), [0.0; 9]);
    let (pointwise, depthwise) =
        (PointwiseParams::new(3, 3, &w), DepthwiseParams::new(3, [1, 1], &w[..3]));
    let block = BottleneckParams::new(depthwise, pointwise);
    let pointwise = Pointwise::new(&pointwise).unwrap();
    let depthwise = Depthwise::new(&depthwise).unwrap();
    let block = InvertedBottleneck::new(&block).unwrap();
    type Plan<'a> = &'a dyn Fn(&PlanOptions) -> Result<()>;
    let plans: [Plan<'_>; 3] = [
        &|options| pointwise.plan_with(shape, options).map(drop),
        &|options| depthwise.plan_with(shape, options).map(drop),
        &|options| block.plan_with(shape, options).map(drop),
    ];
    let narrow = Strides::Nhwc { batch: 70, row: 14, pixel: 3 };
    let far = Strides::Nchw { batch: usize::MAX, plane: 20, row: 5 };
    let options = PlanOptions::new();
    for plan in plans {
        for (what, narrow, far) in [
            ("input", options.input_strides(narrow), options.input_strides(far)),
            ("output", options.output_strides(narrow), options.output_strides(far)),
        ] {
            let error = Error::Stride { what, stride: 14, extent: 15 };
            expect(plan(&narrow), error, &format!("the {what} has a stride of 14"));
            expect(plan(&far), Error::Overflow { what }, what);
        }
    }

    // Gaps in the output stay uninitialised, so they are not given out.
    let gaps = options.output_strides(Strides::Nhwc { batch: 80, row: 20, pixel: 4 });
    let (x, len) = ([0.0; 120], 80 + 3 * 20 + 4 * 4 + 3);
    let error = Error::Gaps { len, elements: 120 };
    let plan = depthwise.plan_with(shape, &gaps).unwrap();
    expect(plan.run_uninit(&Serial, &x, &mut uninit(len)), error.clone(), "only 120 of");
    let plan = block.plan_with(shape, &gaps).unwrap();
    let mut scratch = plan.scratch();
    expect(plan.run_uninit(&Serial, &x, &mut uninit(len), &mut scratch), error, "only 120 of");
    let length = Error::Length { what: "output", expected: len, actual: len - 1 };
    expect(plan.run(&x, &mut vec![0.0; len - 1], &mut scratch), length, "length 158");
}

/// Which strides are refused, and which slices.
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
    // Of one image, or one row, the stride is not looked at.
    for shape in [Shape::new(1, 4, 5), Shape::new(1, 1, 5)] {
        for batch in [0, usize::MAX] {
            let row = if shape.height == 1 { batch } else { row };
            let options = PlanOptions::new().input_strides(Strides::Nhwc { batch, row, pixel });
            let plan = op.plan_with(shape, &options).unwrap();
            assert_eq!(plan.input_len(), (shape.height - 1) * row + 5 * pixel);
        }
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
        let mut y = uninit(len + more);
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
fn convnext() {
    let w = [0.0; 100];
    let pointwise = |c_in, c_out| PointwiseParams::new(c_in, c_out, &w[..c_in * c_out]);
    let depthwise = |c| DepthwiseParams::new(c, [3, 3], &w[..9 * c]).padding(Padding::uniform(1));
    let new = |params: &ConvNextParams<'_>| ConvNextBlock::new(params).map(drop);
    let block = ConvNextParams::new(depthwise(4), pointwise(4, 8), pointwise(8, 4));

    for (stage, given, taken, params) in [
        ("expand", 4, 5, ConvNextParams::new(depthwise(4), pointwise(5, 8), pointwise(8, 4))),
        ("project", 8, 7, ConvNextParams::new(depthwise(4), pointwise(4, 8), pointwise(7, 4))),
        ("residual", 3, 4, {
            let params = ConvNextParams::new(depthwise(4), pointwise(4, 8), pointwise(8, 3));
            params.residual(Residual::Depthwise)
        }),
        ("residual", 3, 4, {
            let params = ConvNextParams::new(depthwise(4), pointwise(4, 8), pointwise(8, 3));
            params.residual(Residual::Input)
        }),
    ] {
        let error = Error::ChannelMismatch { stage, given, taken };
        expect(new(&params), error, &format!("{stage} takes {taken} channels"));
    }
    let multiplied = DepthwiseParams::new(2, [3, 3], &w[..36]).multiplier(2);
    let params = ConvNextParams::new(multiplied, pointwise(4, 8), pointwise(8, 4));
    expect(new(&params), Error::MultiplierInBlock { multiplier: 2 }, "multiplier is 2");

    for (what, weight, bias, actual) in
        [("norm weight", &w[..3], &w[..4], 3), ("norm bias", &w[..4], &w[..5], 5)]
    {
        let error = Error::Length { what, expected: 4, actual };
        expect(new(&block.norm(LayerNormParams::new(weight, bias, 1e-6))), error, what);
    }
    for epsilon in [0.0, -0.25, f32::INFINITY] {
        let norm = LayerNormParams::new(&w[..4], &w[..4], epsilon);
        expect(new(&block.norm(norm)), Error::InvalidEpsilon { epsilon }, "epsilon is");
    }
    let norm = LayerNormParams::new(&w[..4], &w[..4], f32::NAN);
    let error = new(&block.norm(norm)).unwrap_err();
    assert!(matches!(error, Error::InvalidEpsilon { .. }), "{error:?}");
    let length = Error::Length { what: "scale", expected: 4, actual: 3 };
    expect(new(&block.scale(&w[..3])), length, "length 3");
    let project = pointwise(8, 4).activation(Activation::Relu6);
    let params = ConvNextParams::new(depthwise(4), pointwise(4, 8), project).scale(&w[..4]);
    expect(new(&params), Error::ScaledActivation(Activation::Relu6), "Relu6");

    let op = ConvNextBlock::new(&block.residual(Residual::Input)).unwrap();
    let shape = Shape::new(1, 4, 4);
    expect(op.plan(Shape::new(1, 0, 4)).map(drop), Error::ZeroSize { what: "height" }, "is 0");
    expect(op.plan_with(shape, &no_threads()).map(drop), ZERO_THREADS, "threads is 0");
    let plan = op.plan(shape).unwrap();
    let (x, mut y, mut scratch) = ([0.0; 64], [0.0; 64], plan.scratch());
    let length = Error::Length { what: "input", expected: 64, actual: 63 };
    expect(plan.run(&x[..63], &mut y, &mut scratch), length, "length 63");
    let length = Error::Length { what: "output", expected: 64, actual: 63 };
    expect(plan.run(&x, &mut y[..63], &mut scratch), length, "length 63");
    let length = Error::Length { what: "scratch", expected: plan.scratch_bytes(), actual: 0 };
    expect(plan.run(&x, &mut y, &mut []), length, "length 0");
    let length = Error::Length { what: "input", expected: 64, actual: 63 };
    expect(reference::convnext(&block, shape, &x[..63]), length, "length 63");
    let error = Error::ResidualShape { input: [4, 4, 4], output: [2, 2, 4] };
    let strided =
        ConvNextParams::new(depthwise(4).stride([2, 2]), pointwise(4, 8), pointwise(8, 4));
    let strided = strided.residual(Residual::Input);
    let op = ConvNextBlock::new(&strided).unwrap();
    expect(op.plan(shape).map(drop), error.clone(), "4x4x4 and 2x2x4");
    expect(reference::convnext(&strided, shape, &x), error, "4x4x4 and 2x2x4");
}

/// Of both kinds of blocks alike.
#[test]
fn squeeze_excite() {
    let w = [0.0; 100];
    let pointwise = |c_in, c_out| PointwiseParams::new(c_in, c_out, &w[..c_in * c_out]);
    let depthwise = DepthwiseParams::new(4, [3, 3], &w[..36]);
    let block = BottleneckParams::new(depthwise, pointwise(4, 2));
    let convnext = ConvNextParams::new(depthwise, pointwise(4, 8), pointwise(8, 4));
    for (stage, given, taken, reduce, expand) in [
        ("squeeze", 4, 5, pointwise(5, 2), pointwise(2, 4)),
        ("excite", 2, 3, pointwise(4, 2), pointwise(3, 4)),
        ("scaled depthwise", 5, 4, pointwise(4, 2), pointwise(2, 5)),
    ] {
        let gate = SqueezeExciteParams::new(reduce, expand);
        let error = Error::ChannelMismatch { stage, given, taken };
        let new = InvertedBottleneck::new(&block.squeeze_excite(gate)).map(drop);
        expect(new, error.clone(), &format!("{stage} takes {taken} channels"));
        let new = ConvNextBlock::new(&convnext.squeeze_excite(gate)).map(drop);
        expect(new, error, &format!("{stage} takes {taken} channels"));
    }
    let gate = SqueezeExciteParams::new(pointwise(4, 2), pointwise(2, 4));
    let block = BottleneckParams::without_project(depthwise).squeeze_excite(gate);
    let new = InvertedBottleneck::new(&block).map(drop);
    expect(new, Error::ExciteWithoutProject, "without projection");
}

#[test]
fn batch_norm() {
    let (two, three) = (&[1.0; 2][..], &[1.0; 3][..]);
    let norm = BatchNorm { scale: two, shift: two, mean: two, variance: two, epsilon: 0.0 };
    let fold = |norm: &BatchNorm<'_>, weights: &mut [f32], bias: &mut [f32]| {
        fold_batch_norm(norm, ChannelAxis::First, weights, bias)
    };
    for (what, norm) in [
        ("batch norm scale", BatchNorm { scale: three, ..norm }),
        ("batch norm shift", BatchNorm { shift: three, ..norm }),
        ("batch norm mean", BatchNorm { mean: three, ..norm }),
        ("batch norm variance", BatchNorm { variance: three, ..norm }),
    ] {
        let length = Error::Length { what, expected: 2, actual: 3 };
        expect(fold(&norm, &mut [0.0; 4], &mut [0.0; 2]), length, what);
    }
    for (expected, actual) in [(4, 5), (2, 1), (2, 0)] {
        let length = Error::Length { what: "weights", expected, actual };
        expect(fold(&norm, &mut vec![0.0; actual], &mut [0.0; 2]), length, "weights");
    }
    expect(fold(&norm, &mut [], &mut []), Error::ZeroSize { what: "channels" }, "is 0");
}

/// `MBCONV_ISA` names what there is not: every way that asks for the instruction set
/// refuses, in a process of its own.
#[cfg(feature = "std")]
#[test]
fn environment() {
    if let Some(child) = common::in_a_child("wrong_environment", ("MBCONV_ISA", "sse9")) {
        assert!(child.status.success(), "{child:?}");
    }
}

/// Only when the test above asks for it.
#[test]
fn wrong_environment() {
    if std::env::var("MBCONV_ISA").as_deref() != Ok("sse9") {
        return;
    }
    let error = Error::UnknownIsa { name: "sse9".into() };
    let w = [0.0; 1];
    let (pointwise, depthwise) =
        (PointwiseParams::new(1, 1, &w), DepthwiseParams::new(1, [1, 1], &w));
    let block = BottleneckParams::new(depthwise, pointwise);
    expect(Isa::detect().map(drop), error.clone(), "\"sse9\"");
    expect(Pointwise::new(&pointwise).map(drop), error.clone(), "\"sse9\"");
    expect(Depthwise::new(&depthwise).map(drop), error.clone(), "\"sse9\"");
    expect(InvertedBottleneck::new(&block).map(drop), error, "\"sse9\"");
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
