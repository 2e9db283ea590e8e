//! The workloads of the benches: lines are read or refused, never a panic, and
//! the lists are the networks that they say.

#[path = "../examples/support/workloads.rs"]
mod workloads;

use mbconv::Activation::{Gelu, HardSwish, Identity, Relu, Relu6};
use mbconv::{Error as Refusal, Isa, Schedule, Scratch};
use workloads::layers::Loaded;
use workloads::random::Random;
use workloads::{Error, Kind, Workload, lists};

fn parse(line: &str) -> Workload {
    Workload::parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn lines_are_read() {
    let block = parse("mbv2_b1 ir 112 16 96 24 2 1");
    assert_eq!((block.name.as_str(), block.kind), ("mbv2_b1", Kind::Bottleneck));
    assert_eq!((block.side, block.c, block.stride, block.kernel), (112, [16, 96, 24], 2, 3));
    assert_eq!((block.activations, block.residual), ([Relu6, Identity], false));

    let depthwise = parse("  dw7s1_56x96\tdw 56 96 96 96 1 7 ");
    assert_eq!((depthwise.kind, depthwise.kernel), (Kind::Depthwise, 7));
    assert_eq!((depthwise.activations, depthwise.residual), ([Identity; 2], false));
    assert_eq!(parse("x dw 56 96 96 96 1 1").kernel, 1);

    let pointwise = parse("pw_56x24x144 pw 56 24 24 144 1 1");
    assert_eq!((pointwise.kind, pointwise.activations), (Kind::Pointwise, [Identity; 2]));

    assert!(parse("x ir 14 8 48 8 1 5").residual);
    assert!(!parse("x ir 14 8 48 8 2 5").residual);
    assert!(parse("x ds 14 8 8 8 1 3").residual);
    assert_eq!(parse("x ir 14 8 48 8 1 5 hardswish").activations, [HardSwish, Identity]);
    assert_eq!(parse("x cnx 14 8 8 8 1 7").activations, [Gelu, Identity]);
    assert_eq!(parse("x cnx 14 8 8 8 1 7 identity").activations, [Identity; 2]);
    // Expansion by 1 is an expansion all the same.
    assert_eq!(parse("x ir 14 8 8 8 1 3").kind, Kind::Bottleneck);
}

#[test]
fn wrong_lines_are_refused() {
    for line in [
        "",
        "x",
        "x ir 112 16 96 24 2",
        "x ir 112 16 96 24 2 1 1",
        "x ir 112 16 96 24 2 1 relu relu",
        "x dw 14 8 8 8 1 3 relu",
        "x ir 112 16 96 24 2 -1",
        "x ir 1.5 16 96 24 2 1",
        "x ir 112 16 96 24 2 18446744073709551616",
        "x cnx 56 96 many 96 1 1",
        "x ds 14 8 16 8 1 3",
        "x dw 14 8 8 16 1 3",
        "x st 14 4 16 16 1 1",
        "x pw 14 8 16 16 1 1",
        "x pw 14 8 8 16 2 1",
        "x pw 14 8 8 16 1 3",
    ] {
        match Workload::parse(line) {
            Err(Error::Malformed(why)) => assert!(!why.is_empty()),
            other => panic!("{line:?}: {other:?}"),
        }
    }
    for kind in ["trivial", "IR"] {
        match Workload::parse(&format!("x {kind} 56 96 96 96 1 1")) {
            Err(Error::Unsupported { kind: found, .. }) => assert_eq!(found, kind),
            other => panic!("{kind}: {other:?}"),
        }
    }
}

/// Whatever the numbers are, a line is refused with an error or runs.
#[test]
fn sizes_are_judged_by_the_crate() {
    let sizes = [0, 1, 3, 8, 1 << 20, usize::MAX / 4, usize::MAX];
    let isa = Isa::detect().expect("an ISA");
    let mut ran = 0;
    for kind in ["ir", "ds", "dw", "pw"] {
        // Two of the six numbers at a time are unusual.
        for (i, j) in (0..6).flat_map(|i| (0..=i).map(move |j| (i, j))) {
            for (a, b) in sizes.iter().flat_map(|&a| sizes.map(|b| (a, b))) {
                let mut n = [5, 8, 8, 8, 1, 1];
                (n[i], n[j]) = (a, b);
                let [side, c_in, c_exp, c_out, stride, kernel] = n;
                let line = format!("x {kind} {side} {c_in} {c_exp} {c_out} {stride} {kernel}");
                let workload = match Workload::parse(&line) {
                    Ok(workload) => workload,
                    Err(Error::Refused(Refusal::ZeroSize { .. })) => {
                        assert!(n.contains(&0), "{line}");
                        continue;
                    }
                    Err(_) => continue,
                };
                // Large but allowed: not in a test.
                if n.contains(&(1 << 20)) {
                    continue;
                }
                run(workload, isa).unwrap_or_else(|error| panic!("{line}: {error}"));
                ran += 1;
            }
        }
    }
    assert!(ran > 500, "{ran} ran");
}

fn run(workload: Workload, isa: Isa) -> mbconv::Result<()> {
    let random = &mut Random::new(1);
    let schedules = if workload.kind.is_block() {
        &[Schedule::Auto, Schedule::Tiled { rows: 2, channels: usize::MAX }][..]
    } else {
        &[Schedule::Auto]
    };
    let loaded = Loaded::new(workload, random);
    let operation = loaded.operation(isa)?;
    assert!(loaded.panel(isa)? > 0);
    for &schedule in schedules {
        let plan = loaded.plan(&operation, schedule)?;
        let x = random.vec(plan.input_len(), 1.0);
        let mut y = vec![f32::NAN; plan.output_len()];
        plan.run(&x, &mut y, &mut Scratch::new(plan.scratch_bytes()))?;
        assert!(y.iter().all(|y| y.is_finite()));
        assert!(loaded.bytes(&operation, &plan) >= 4 * (x.len() + y.len()));
    }
    Ok(())
}

#[test]
fn lists_name_each_workload_once() {
    let all = lists::all();
    let counts: Vec<_> = all.iter().map(|(name, list)| (*name, list.len())).collect();
    assert_eq!(
        counts,
        [
            ("mobilenet_v1", 9),
            ("mobilenet_v2", 12),
            ("mobilenet_v3_large", 12),
            ("efficientnet_lite0", 12),
            ("mnasnet_a1", 12),
            ("pp_lcnet", 9),
            ("convnext_t", 4),
            ("stems", 5),
            ("pointwise", 8),
            ("depthwise", 16),
        ]
    );
    let mut names: Vec<_> = all.into_iter().flat_map(|(_, list)| list).map(|w| w.name).collect();
    let total = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), total);
}

#[test]
fn lists_agree_with_lines() {
    let all: Vec<_> = lists::all().into_iter().flat_map(|(_, list)| list).collect();
    for line in [
        "mbv2_stem st 224 3 32 16 1 3",
        "mbv2_b1 ir 112 16 96 24 2 1",
        "mbv2_b3 ir 56 24 144 32 2 1",
        "mbv2_b7 ir 14 64 384 96 1 1",
        "mbv2_b11 ir 7 160 960 320 1 1",
        "dw3s2_56x144 dw 56 144 144 144 2 3",
        "pw_7x320x1280 pw 7 320 320 1280 1 1",
    ] {
        let workload = parse(line);
        assert!(all.contains(&workload), "{line}");
    }
}

/// Input channels and side, then per block: layers of the blocks add up to what
/// the papers say of the whole network with stem, head and classifier.
#[test]
fn networks_have_their_published_size() -> mbconv::Result<()> {
    let isa = Isa::from_name("portable")?;
    // Blocks, channels of the stem, multiply-adds of head and classifier, and
    // millions of all: in the papers' tables. Lite0 is EfficientNet-B0 but for
    // squeeze-and-excitation. What the lists leave out is below 5 %.
    for (name, blocks, stem, head, published) in [
        ("mobilenet_v1", 13, 32, 1024 * 1000, 569.0),
        ("mobilenet_v2", 17, 32, 49 * 320 * 1280 + 1280 * 1000, 300.0),
        ("mobilenet_v3_large", 15, 16, 49 * 160 * 960 + 960 * 1280 + 1280 * 1000, 219.0),
        ("efficientnet_lite0", 16, 32, 49 * 320 * 1280 + 1280 * 1000, 390.0),
        ("mnasnet_a1", 16, 32, 49 * 320 * 1280 + 1280 * 1000, 312.0),
        ("pp_lcnet", 13, 16, 512 * 1280 + 1280 * 1000, 161.0),
    ] {
        let list = lists::list(name).expect("a list");
        assert_eq!(list.iter().map(|row| row.repeats).sum::<usize>(), blocks, "{name}");
        let (mut macs, mut before) = (112 * 112 * 27 * stem + head, None);
        for row in list {
            let Workload { side, stride, c: [c_in, _, c_out], repeats, .. } = row;
            assert_eq!((side, c_in), before.unwrap_or((112, stem as usize)), "{}", row.name);
            before = Some((side.div_ceil(stride), c_out));
            assert!(repeats == 1 || (stride == 1 && c_in == c_out), "{} repeats", row.name);
            let loaded = Loaded::new(row, &mut Random::new(1));
            let plan = loaded.plan(&loaded.operation(isa)?, Schedule::Unfused)?;
            macs += repeats as u64 * plan.flops() / 2;
        }
        assert_eq!(before.map(|(side, _)| side), Some(7), "{name}");
        let ratio = macs as f64 / 1e6 / published;
        assert!((0.95..1.01).contains(&ratio), "{name}: {ratio}");
    }
    Ok(())
}

/// ConvNeXt's line, short and whole.
#[test]
fn convnext_runs() -> mbconv::Result<()> {
    let row = parse("cnx_56x96 cnx 56 96 96 96 1 1");
    let listed = lists::list("convnext_t").expect("a list");
    assert_eq!(Workload { repeats: 3, ..row.clone() }, listed[0]);
    assert!(Workload::parse("x cnx 56 96 96 96 2 1").is_err());
    let loaded = Loaded::new(row, &mut Random::new(1));
    let isa = Isa::from_name("portable")?;
    let plan = loaded.plan(&loaded.operation(isa)?, Schedule::Auto)?;
    assert_eq!(plan.flops() as usize, 2 * 56 * 56 * 96 * (49 + 8 * 96));
    run(parse("x cnx 9 20 20 20 1 5"), Isa::detect()?)
}

#[test]
fn networks_have_their_activations() {
    let inner = |name: &str| -> Vec<_> {
        lists::list(name).expect("a list").iter().map(|row| row.activations[0]).collect()
    };
    assert_eq!(inner("mobilenet_v3_large"), [[Relu; 5].as_slice(), &[HardSwish; 7]].concat());
    assert_eq!(inner("mnasnet_a1"), [Relu; 12]);
    assert_eq!(inner("efficientnet_lite0"), [Relu6; 12]);
    for (name, activation) in [("mobilenet_v1", Relu6), ("pp_lcnet", HardSwish)] {
        for row in lists::list(name).expect("a list") {
            assert_eq!((row.kind, row.activations), (Kind::Separable, [activation; 2]));
            assert!(!row.residual, "{}", row.name);
        }
    }
}

/// A stem's block is the network's first after a 3x3 convolution of stride 2.
#[test]
fn stems_run() -> mbconv::Result<()> {
    for row in lists::list("stems").expect("a list") {
        assert_eq!((row.side, row.middle(), row.output(), row.c[0]), (224, 112, 112, 3));
        let loaded = Loaded::new(row, &mut Random::new(1));
        let isa = Isa::from_name("portable")?;
        let plan = loaded.plan(&loaded.operation(isa)?, Schedule::Auto)?;
        let [_, c_mid, c_out] = loaded.workload.c;
        assert_eq!(plan.flops() as usize, 2 * 112 * 112 * c_mid * (27 + 9 + c_out));
    }
    for line in ["x st 9 3 20 7 1 3", "x st 8 3 16 16 2 5", "x st 1 3 1 1 1 1"] {
        run(parse(line), Isa::detect()?)?;
    }
    Ok(())
}
