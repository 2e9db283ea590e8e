//! What is found in small models, what is not, and that outputs stay the same.

mod common;

use common::{Net, Spec, close, counts, random};
use mbconv_tract::{Part, Reason, Report, fuse};
use tract_core::internal::*;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::math::{add, div, max, min, mul, sub, tanh};
use tract_core::ops::nn::{DataFormat, hard_swish, leaky_relu, sigmoid, silu::silu};
use tract_core::ops::nn::{Reduce, Reducer, gelu_exact::gelu_exact};
use tract_core::transform::get_transform;
use tract_linalg::multithread::{Executor, multithread_tract_scope};

const IMAGE: [usize; 4] = [1, 8, 10, 9];

fn stages(report: &Report) -> Vec<&str> {
    report.replaced.iter().map(|replaced| &*replaced.stages).collect()
}

fn limits(report: &Report) -> Vec<&Reason> {
    report.replaced.iter().flat_map(|replaced| &replaced.limits).collect()
}

#[test]
fn blocks_are_one_operation() -> TractResult<()> {
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.block("one", x, 1, true)?;
    let y = net.block("two", y, 2, false)?;
    let report = net.check(&[y])?;
    assert_eq!(counts(&report), [2, 0, 0, 0], "{report}");
    assert_eq!(
        stages(&report),
        [
            "pointwise 8->24 Relu6, depthwise 3x3 of 24 Relu6, pointwise 24->8, + input",
            "pointwise 8->24 Relu6, depthwise 3x3 of 24 stride 2 Relu6, pointwise 24->8",
        ]
    );
    assert_eq!(limits(&report), Vec::<&Reason>::new());
    assert!(report.to_string().ends_with(
        "2 blocks, 0 depthwise and 0 pointwise convolutions replaced, 0 convolutions left"
    ));
    Ok(())
}

#[test]
fn all_axis_orders() -> TractResult<()> {
    use DataFormat::{CHW, HWC, NCHW, NHWC};
    for (format, shape) in
        [(NCHW, &[2, 8, 10, 9][..]), (NHWC, &[2, 10, 9, 8]), (CHW, &[8, 10, 9]), (HWC, &[10, 9, 8])]
    {
        let (mut net, x) = Net::new(shape)?;
        let y = net.conv("expand", x, 24, Spec::pointwise().format(format))?;
        let y = net.relu6("act", y)?;
        let y = net.conv("dw", y, 24, Spec::depthwise(24, 5, 2).format(format))?;
        let y = net.conv("project", y, 16, Spec::pointwise().format(format))?;
        let report = net.check(&[y])?;
        assert_eq!(counts(&report), [1, 0, 0, 0], "{format:?}: {report}");
    }
    Ok(())
}

/// An activation, its name in the report, and how it is written out.
type Written = (&'static str, fn(&mut Net, OutletId) -> TractResult<OutletId>);

const ACTIVATIONS: [Written; 18] = [
    ("Relu", |n, x| n.with_scalar("a", max(), x, 0.0)),
    ("Relu6", |n, x| n.relu6("a", x)),
    ("Relu6", |n, x| {
        let x = n.with_scalar("a", min(), x, 6.0)?;
        n.with_scalar("b", max(), x, 0.0)
    }),
    ("Clamp { lo: -1.0, hi: 2.0 }", |n, x| {
        let x = n.with_scalar("a", max(), x, -1.0)?;
        n.with_scalar("b", min(), x, 2.0)
    }),
    ("LeakyRelu { slope: 0.1 }", |n, x| n.wire("a", leaky_relu(0.1), &[x])),
    ("HardSwish", |n, x| n.wire("a", hard_swish(), &[x])),
    // x * (relu6(x + 3) / 6), x * relu6(x + 3) / 6, x / 6 * relu6(3 + x)
    ("HardSwish", |n, x| {
        let gate = n.with_scalar("a", add(), x, 3.0)?;
        let gate = n.relu6("b", gate)?;
        let gate = n.with_scalar("c", div(), gate, 6.0)?;
        n.wire("d", mul(), &[x, gate])
    }),
    ("HardSwish", |n, x| {
        let gate = n.with_scalar("a", add(), x, 3.0)?;
        let gate = n.relu6("b", gate)?;
        let y = n.wire("c", mul(), &[gate, x])?;
        n.with_scalar("d", div(), y, 6.0)
    }),
    ("HardSwish", |n, x| {
        let three = n.scalar("three", 3.0, x)?;
        let gate = n.wire("a", add(), &[three, x])?;
        let gate = n.relu6("b", gate)?;
        let sixth = n.with_scalar("c", mul(), x, 1.0 / 6.0)?;
        n.wire("d", mul(), &[sixth, gate])
    }),
    // x * clip(x / 6 + 0.5, 0, 1): x * HardSigmoid(x) as MobileNetV3 is exported.
    ("HardSwish", |n, x| {
        let gate = n.with_scalar("a", mul(), x, 1.0 / 6.0)?;
        let gate = n.with_scalar("b", add(), gate, 0.5)?;
        let gate = n.with_scalar("c", min(), gate, 1.0)?;
        let gate = n.with_scalar("d", max(), gate, 0.0)?;
        n.wire("e", mul(), &[x, gate])
    }),
    ("Silu", |n, x| n.wire("a", silu(), &[x])),
    ("Silu", |n, x| {
        let gate = n.wire("a", sigmoid(), &[x])?;
        n.wire("b", mul(), &[x, gate])
    }),
    ("Silu", |n, x| {
        let gate = n.wire("a", sigmoid(), &[x])?;
        n.wire("b", mul(), &[gate, x])
    }),
    ("Sigmoid", |n, x| n.wire("a", sigmoid(), &[x])),
    ("Gelu", |n, x| n.wire("a", gelu_exact(), &[x])),
    ("HardSigmoid { alpha: 0.2, beta: 1.0 }", |n, x| {
        let x = n.with_scalar("a", mul(), x, -0.2)?;
        let one = n.scalar("one", 1.0, x)?;
        let x = n.wire("b", sub(), &[one, x])?;
        let x = n.with_scalar("c", min(), x, 1.0)?;
        n.with_scalar("d", max(), x, 0.0)
    }),
    // Linear steps that are part of no activation go into weights and bias.
    ("Relu", |n, x| {
        let x = n.with_scalar("a", sub(), x, 0.25)?;
        let x = n.with_scalar("b", div(), x, 3.0)?;
        n.with_scalar("c", max(), x, 0.0)
    }),
    ("", |n, x| n.with_scalar("a", add(), x, 1.0)),
];

#[test]
fn activations_in_one_node_or_several() -> TractResult<()> {
    for (i, (name, write)) in ACTIVATIONS.iter().enumerate() {
        let (mut net, x) = Net::new(IMAGE)?;
        let y = net.conv("expand", x, 24, Spec::pointwise())?;
        let y = write(&mut net, y)?;
        let y = net.conv("dw", y, 24, Spec::depthwise(24, 3, 1))?;
        let y = net.conv("project", y, 8, Spec::pointwise())?;
        let report = net.check(&[y]).with_context(|| format!("{i}: {name}"))?;
        let name = if name.is_empty() { String::new() } else { format!(" {name}") };
        let expected = format!("pointwise 8->24{name}, depthwise 3x3 of 24, pointwise 24->8");
        assert_eq!(stages(&report), [expected], "{i}");
    }
    Ok(())
}

#[test]
fn batch_normalisation_is_folded() -> TractResult<()> {
    let (mut net, mut y) = Net::new(IMAGE)?;
    for (i, (c, spec)) in
        [(24, Spec::pointwise()), (24, Spec::depthwise(24, 3, 1)), (8, Spec::pointwise())]
            .into_iter()
            .enumerate()
    {
        y = net.conv(&format!("{i}"), y, c, spec)?;
        let scale = net.constant(&format!("{i}.scale"), &[1, c, 1, 1])?;
        let shift = net.constant(&format!("{i}.shift"), &[1, c, 1, 1])?;
        y = net.wire(&format!("{i}.bn.scale"), mul(), &[y, scale])?;
        y = net.wire(&format!("{i}.bn.shift"), add(), &[shift, y])?;
        y = net.relu6(&format!("{i}.act"), y)?;
    }
    let report = net.check(&[y])?;
    assert_eq!(
        stages(&report),
        ["pointwise 8->24 Relu6, depthwise 3x3 of 24 Relu6, pointwise 24->8 Relu6"]
    );
    Ok(())
}

#[test]
fn parts_of_a_block() -> TractResult<()> {
    // A stem and MobileNetV1's blocks: a pointwise layer belongs to the block that it ends.
    let (mut net, x) = Net::new([1, 3, 17, 16])?;
    let y = net.conv("stem", x, 8, Spec::window(3, 2))?;
    let y = net.relu6("stem.act", y)?;
    let y = net.conv("dw1", y, 8, Spec::depthwise(8, 3, 1))?;
    let y = net.conv("pw1", y, 16, Spec::pointwise())?;
    let y = net.conv("dw2", y, 16, Spec::depthwise(16, 3, 2))?;
    let y = net.conv("pw2", y, 16, Spec::pointwise())?;
    let report = net.check(&[y])?;
    assert_eq!(
        stages(&report),
        [
            "conv 3x3 3->8 stride 2 Relu6, depthwise 3x3 of 8, pointwise 8->16",
            "depthwise 3x3 of 16 stride 2, pointwise 16->16",
        ]
    );
    assert!(matches!(limits(&report)[..], [Reason::Taken { node }] if node.contains("pw1")));

    // Squeeze and excitation stands between the depthwise layer and the projection.
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("expand", x, 24, Spec::pointwise())?;
    let y = net.relu6("act", y)?;
    let y = net.conv("dw", y, 24, Spec::depthwise(24, 3, 1))?;
    let y = net.relu6("dw.act", y)?;
    let gate = net.wire("pool", Reduce::new(tvec!(2, 3), Reducer::Sum), &[y])?;
    let gate = net.with_scalar("mean", mul(), gate, 1.0 / 90.0)?;
    let gate = net.wire("gate", sigmoid(), &[gate])?;
    let y = net.wire("excite", mul(), &[y, gate])?;
    let y = net.conv("project", y, 8, Spec::pointwise())?;
    let y = net.wire("add", add(), &[x, y])?;
    let report = net.check(&[y])?;
    assert_eq!(
        stages(&report),
        ["pointwise 8->24 Relu6, depthwise 3x3 of 24 Relu6", "pointwise 24->8, + another value",]
    );
    assert!(matches!(limits(&report)[..], [Reason::Shared { readers: 2, .. }]));

    // Alone, and with a channel multiplier.
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("dw", x, 8, Spec::depthwise(8, 7, 1))?;
    let y = net.wire("tanh", tanh(), &[y])?;
    let y = net.conv("pw", y, 16, Spec::pointwise())?;
    let y = net.wire("tanh2", tanh(), &[y])?;
    let y = net.conv("multiplied", y, 32, Spec::depthwise(16, 3, 1))?;
    let report = net.check(&[y])?;
    assert_eq!(
        report.replaced.iter().map(|replaced| replaced.part).collect::<Vec<_>>(),
        [Part::Depthwise, Part::Pointwise, Part::Depthwise]
    );
    Ok(())
}

#[test]
fn symbols_are_planned_when_they_are_known() -> TractResult<()> {
    let model = TypedModel::default();
    let (n, h) = (model.sym("N").to_dim(), model.sym("H").to_dim());
    let mut net = Net::of(model);
    let x = net.source(&[n, 8.to_dim(), h, 9.to_dim()])?;
    let y = net.block("one", x, 1, true)?;
    let y = net.block("two", y, 2, false)?;
    let report = net.check_shapes(&[y], &[&[1, 8, 10, 9], &[3, 8, 7, 9], &[1, 8, 10, 9]])?;
    assert_eq!(counts(&report), [2, 0, 0, 0], "{report}");
    Ok(())
}

#[test]
fn threads_come_from_tract_and_change_no_bit() -> TractResult<()> {
    let (mut net, x) = Net::new([1, 8, 56, 56])?;
    let y = net.block("one", x, 1, true)?;
    let y = net.conv("head", y, 64, Spec::pointwise())?;
    let y = net.wire("tanh", tanh(), &[y])?;
    let y = net.conv("dw", y, 64, Spec::depthwise(64, 3, 1))?;
    let mut model = net.model;
    model.select_output_outlets(&[y])?;
    model.declutter()?;
    fuse(&mut model)?;
    let runnable = model.into_optimized()?.into_runnable()?;
    let x = random(&mut 7, &[1, 8, 56, 56])?.into_tvalue();
    let run = |executor| {
        let run = || runnable.run(tvec!(x.clone()));
        multithread_tract_scope(executor, run)
    };
    let one = run(Executor::SingleThread)?;
    for executor in [Executor::multithread(2), Executor::multithread(3), Executor::RayonGlobal] {
        assert_eq!(run(executor)?, one);
    }
    Ok(())
}

#[test]
fn a_transform_by_name() -> TractResult<()> {
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.block("one", x, 1, true)?;
    let mut model = net.model;
    model.select_output_outlets(&[y])?;
    get_transform("mbconv")?.context("registered")?.transform(&mut model)?;
    let operations: Vec<_> = model.nodes().iter().map(|node| node.op.name()).collect();
    assert_eq!(operations, ["Source", "MbconvBlock"]);
    // The output keeps its name.
    assert_eq!(model.node(model.outputs[0].node).name, "one.add");
    Ok(())
}

#[test]
fn between_operations_channels_are_last() -> TractResult<()> {
    let (mut net, x) = Net::new([3, 8, 10, 9])?;
    let y = net.block("one", x, 2, false)?;
    let y = net.block("two", y, 1, true)?;
    let y = net.block("three", y, 1, true)?;
    net.clone().check(&[y])?;
    let mut model = net.model;
    model.select_output_outlets(&[y])?;
    fuse(&mut model)?;
    let shapes: Vec<_> = model.nodes().iter().map(|node| &node.outputs[0].fact.shape).collect();
    let expected = [[3, 8, 10, 9], [3, 5, 5, 8], [3, 5, 5, 8], [3, 8, 5, 5]];
    assert_eq!(shapes, expected.map(ShapeFact::from_dims).iter().collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_value_with_another_reader_is_kept() -> TractResult<()> {
    let (mut net, x) = Net::new(IMAGE)?;
    let expanded = net.conv("expand", x, 24, Spec::pointwise())?;
    let expanded = net.relu6("act", expanded)?;
    let y = net.conv("dw", expanded, 24, Spec::depthwise(24, 3, 1))?;
    let y = net.conv("project", y, 8, Spec::pointwise())?;
    let parts = ["pointwise 8->24 Relu6", "depthwise 3x3 of 24, pointwise 24->8"];
    let report = net.clone().check(&[y, expanded])?;
    assert_eq!(stages(&report), parts);
    assert_eq!(limits(&report), [&Reason::Output { node: "act".into() }]);

    let other = net.wire("other", tanh(), &[expanded])?;
    let report = net.check(&[y, other])?;
    assert_eq!(stages(&report), parts);
    assert_eq!(limits(&report), [&Reason::Shared { node: "act".into(), readers: 2 }]);
    Ok(())
}

#[test]
fn a_sum_belongs_to_one_of_its_terms() -> TractResult<()> {
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("one", x, 16, Spec::pointwise())?;
    let z = net.conv("two", x, 16, Spec::pointwise())?;
    let y = net.wire("add", add(), &[y, z])?;
    let report = net.check(&[y])?;
    assert_eq!(stages(&report), ["pointwise 8->16", "pointwise 8->16, + another value"]);
    Ok(())
}

#[test]
fn an_unknown_activation_ends_a_block() -> TractResult<()> {
    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("expand", x, 24, Spec::pointwise())?;
    let y = net.wire("act", tanh(), &[y])?;
    let y = net.conv("dw", y, 24, Spec::depthwise(24, 3, 1))?;
    let y = net.wire("act2", tanh(), &[y])?;
    let y = net.conv("project", y, 8, Spec::pointwise())?;
    let report = net.check(&[y])?;
    assert_eq!(counts(&report), [0, 1, 2, 0], "{report}");
    let neighbour = |node: &str| Reason::Neighbour { node: node.into(), op: "Tanh".into() };
    assert_eq!(limits(&report), [&neighbour("act"), &neighbour("act2")]);
    Ok(())
}

#[test]
fn a_residual_of_other_shape_or_origin_is_left() -> TractResult<()> {
    // 1x1 pixels are added to every pixel of the input.
    let (mut net, x) = Net::new([1, 8, 7, 7])?;
    let y = net.conv("expand", x, 24, Spec::pointwise())?;
    let valid = Spec { padding: PaddingSpec::Valid, ..Spec::depthwise(24, 7, 1) };
    let y = net.conv("dw", y, 24, valid)?;
    let y = net.conv("project", y, 8, Spec::pointwise())?;
    let y = net.wire("add", add(), &[x, y])?;
    let report = net.check(&[y])?;
    assert_eq!(counts(&report), [1, 0, 0, 0], "{report}");
    assert!(matches!(limits(&report)[..], [Reason::ResidualShape { .. }]), "{report}");

    let (mut net, x) = Net::new(IMAGE)?;
    let other = net.wire("other", tanh(), &[x])?;
    let y = net.block("block", x, 1, false)?;
    let y = net.wire("add", add(), &[y, other])?;
    let report = net.check(&[y])?;
    assert_eq!(counts(&report), [1, 0, 0, 0], "{report}");
    assert!(matches!(limits(&report)[..], [Reason::Residual { .. }]), "{report}");
    Ok(())
}

#[test]
fn convolutions_that_are_left() -> TractResult<()> {
    let reason = |report: Report| report.left.into_iter().map(|left| left.reason).next();

    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("grouped", x, 8, Spec { group: 2, ..Spec::window(3, 1) })?;
    assert_eq!(reason(net.check(&[y])?), Some(Reason::Grouped { groups: 2, channels: 8 }));

    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("full", x, 8, Spec::window(3, 1))?;
    assert_eq!(reason(net.check(&[y])?), Some(Reason::Full { kernel: [3, 3], channels: 8 }));

    let (mut net, x) = Net::new(IMAGE)?;
    let y = net.conv("full", x, 8, Spec::window(3, 1))?;
    let y = net.conv("dw", y, 8, Spec::depthwise(8, 3, 1))?;
    let y = net.conv("pw", y, 8, Spec::pointwise())?;
    let report = net.check(&[y])?;
    assert_eq!(counts(&report), [1, 0, 0, 1], "{report}");
    assert_eq!(limits(&report), [&Reason::Full { kernel: [3, 3], channels: 8 }]);

    // Kernels that are another input of the model.
    let (mut net, x) = Net::new(IMAGE)?;
    for (i, (shape, spec)) in
        [([8, 8, 1, 1], Spec::pointwise()), ([8, 1, 3, 3], Spec::depthwise(8, 3, 1))]
            .into_iter()
            .enumerate()
    {
        let kernel = net.model.add_source(format!("kernel{i}"), f32::fact(shape))?;
        let y = net.conv_with(&format!("conv{i}"), x, 8, spec, kernel)?;
        let mut model = net.model.clone();
        model.select_output_outlets(&[y])?;
        assert_eq!(reason(fuse(&mut model)?), Some(Reason::NotConstant), "{i}");
    }

    // Padding as large as the kernel.
    let (mut net, x) = Net::new(IMAGE)?;
    let padding = PaddingSpec::Explicit(tvec!(3, 0), tvec!(0, 0));
    let y = net.conv("padded", x, 8, Spec { padding, ..Spec::depthwise(8, 3, 1) })?;
    assert!(matches!(reason(net.check(&[y])?), Some(Reason::Refused(_))));
    Ok(())
}

#[test]
fn other_types_and_ranks_are_left() -> TractResult<()> {
    let pool = |rank: usize| {
        let same = PaddingSpec::SameUpper;
        PoolSpec::new(DataFormat::NCHW, tvec!(3; rank), same, None, None, 8, 8)
    };
    let left = |dt: DatumType, rank: usize, q: Option<DatumType>| -> TractResult<Reason> {
        let mut model = TypedModel::default();
        let mut shape = vec![1, 8];
        shape.resize(2 + rank, 9);
        let x = model.add_source("x", dt.fact(&shape))?;
        let mut kernel = vec![8, 1];
        kernel.resize(2 + rank, 3);
        let mut inputs = tvec!(x);
        inputs.push(model.add_const("kernel", Tensor::zero_dt(dt, &kernel)?)?);
        let bias = if q.is_some() { i32::datum_type() } else { dt };
        inputs.push(model.add_const("bias", Tensor::zero_dt(bias, &[8])?)?);
        if q.is_some() {
            for (i, (zero, scale)) in [(0, 1f32); 3].into_iter().enumerate() {
                inputs.push(model.add_const(format!("zero{i}"), tensor0(zero))?);
                inputs.push(model.add_const(format!("scale{i}"), tensor0(scale))?);
            }
        }
        let y =
            model.wire_node("conv", Conv::new(pool(rank), KernelFormat::OIHW, 8, q), &inputs)?;
        model.select_output_outlets(&y)?;
        let before = model.nodes().len();
        let report = fuse(&mut model)?;
        ensure!(model.nodes().len() == before, "changed");
        Ok(report.left.into_iter().next().context("left")?.reason)
    };
    let f16 = f16::datum_type();
    assert_eq!(left(f16, 2, None)?, Reason::DatumType(f16));
    let i8 = i8::datum_type();
    assert_eq!(left(i8, 2, Some(i8))?, Reason::DatumType(i8));
    assert_eq!(left(f32::datum_type(), 1, None)?, Reason::Rank(1));
    assert_eq!(left(f32::datum_type(), 3, None)?, Reason::Rank(3));
    Ok(())
}

#[test]
fn the_same_numbers_twice() -> TractResult<()> {
    // `close` itself: it tells numbers apart that differ by more than rounding.
    let x = random(&mut 1, &[100])?;
    close(&x, &x)?;
    assert!(close(&random(&mut 2, &[100])?, &x).is_err());
    Ok(())
}
