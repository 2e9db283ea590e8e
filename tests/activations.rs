//! The activations with an exponential against f64, in units of the last place:
//! one f32 of every sixteen here, all of them by
//!
//! `MBCONV_EVERY=1 cargo test --release --test activations heavy -- --nocapture`

mod common;

use std::thread;

use common::isas;
use mbconv::{Activation, Depthwise, DepthwiseParams, Isa, Shape};

/// How far each may be off: the table in the documentation of `Activation`.
const BOUNDS: [(Activation, f64); 5] = [
    (Activation::Exp, 1.25),
    (Activation::Sigmoid, 2.5),
    (Activation::Silu, 3.0),
    (Activation::Gelu, 4.0),
    (Activation::GeluTanh, 3.25),
];

/// What else it may be off in absolute terms, by the same documentation.
fn slack(activation: Activation, isa: Isa) -> f64 {
    match (activation, isa.name()) {
        (Activation::Gelu, "avx512") => 2e-13,
        _ => 0.0,
    }
}

/// Numbers that one run of a plan takes.
const CHUNK: usize = 4096;

fn truth(activation: Activation, x: f64) -> f64 {
    let logistic = |z: f64| 1.0 / (1.0 + libm::exp(-z));
    match activation {
        Activation::Exp => libm::exp(x),
        Activation::Sigmoid => logistic(x),
        // Below -200 all of them are 0 in f32.
        _ if x < -200.0 => 0.0,
        Activation::Silu => x * logistic(x),
        Activation::Gelu => x * 0.5 * libm::erfc(-x / core::f64::consts::SQRT_2),
        Activation::GeluTanh => {
            let slope = 2.0 * libm::sqrt(2.0 / core::f64::consts::PI);
            x * logistic(slope * x * (1.0 + 0.044_715 * x * x))
        }
        other => unreachable!("{other:?} has no exponential"),
    }
}

/// The distance of `y` from `truth` in units of the last place of an f32 there.
fn distance(y: f32, truth: f64) -> f64 {
    if y.is_nan() || truth.is_nan() {
        return if y.is_nan() && truth.is_nan() { 0.0 } else { f64::INFINITY };
    }
    // What rounds to infinity, and infinity itself.
    if truth.abs() >= f64::from(f32::MAX) * (1.0 + f64::from(f32::EPSILON) / 4.0) {
        return if f64::from(y) == truth.signum() * f64::INFINITY { 0.0 } else { f64::INFINITY };
    }
    let exponent = ((truth.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-126);
    (f64::from(y) - truth).abs() * f64::from_bits(((1023 + 23 - exponent) as u64) << 52)
}

/// The worst of some numbers: its distance, and which it is.
type Worst = (f64, f32);

/// The worst of every `step`th f32 from `first` on, for each instruction set.
fn worst(activation: Activation, isas: &[Isa], first: u64, step: u64, count: u64) -> Vec<Worst> {
    let weights = [1.0; CHUNK];
    let params = DepthwiseParams::new(CHUNK, [1, 1], &weights).activation(activation);
    let shape = Shape::new(1, 1, 1);
    let plan = |&isa| Depthwise::with_isa(&params, isa).unwrap().plan(shape).unwrap();
    let plans: Vec<_> = isas.iter().map(plan).collect();
    let mut worst = vec![(0.0, 0.0); isas.len()];
    let (mut x, mut y) = (vec![0.0; CHUNK], vec![0.0; CHUNK]);
    for chunk in 0..count.div_ceil(CHUNK as u64) {
        for (i, x) in x.iter_mut().enumerate() {
            *x = f32::from_bits((first + (chunk * CHUNK as u64 + i as u64) * step) as u32);
        }
        let truths: Vec<f64> = x.iter().map(|&x| truth(activation, x.into())).collect();
        for ((plan, &isa), worst) in plans.iter().zip(isas).zip(&mut worst) {
            let slack = slack(activation, isa);
            plan.run(&x, &mut y).unwrap();
            for ((&x, &y), &truth) in x.iter().zip(&y).zip(&truths) {
                let distance = distance(y, truth);
                let near = (f64::from(y) - truth).abs() <= slack;
                if !near && distance > worst.0 {
                    *worst = (distance, x);
                }
            }
        }
    }
    worst
}

fn check(step: u64) {
    let isas = isas();
    let threads = thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let count = (1 << 32) / step / threads;
    let mut failures = Vec::new();
    for (activation, bound) in BOUNDS {
        let parts: Vec<Vec<Worst>> = thread::scope(|scope| {
            let isas = &isas;
            let part =
                |i| scope.spawn(move || worst(activation, isas, i * count * step, step, count));
            let parts: Vec<_> = (0..threads).map(part).collect();
            parts.into_iter().map(|part| part.join().unwrap()).collect()
        });
        for (i, isa) in isas.iter().enumerate() {
            let (distance, x) =
                parts.iter().map(|part| part[i]).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            println!("{activation:?} {isa}: {distance:.3} ULP at {x:e}");
            if distance > bound {
                failures.push(format!("{activation:?} {isa}: {distance} ULP at {x:e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Every sixteenth f32, or every so many as `MBCONV_EVERY` says.
#[test]
fn many_heavy() {
    let every = std::env::var("MBCONV_EVERY").map_or(16, |n| n.parse().expect("a number"));
    check(every);
}

/// For where the others take too long.
#[test]
fn a_few() {
    check(65_537);
}

/// Where an activation has reached its limits it stays there, and no NaN is made.
#[test]
fn limits() {
    let far = [20.0, 110.0, 1e4, 1e30, f32::MAX, f32::INFINITY];
    for isa in isas() {
        for (activation, _) in BOUNDS {
            let x: Vec<f32> =
                far.iter().flat_map(|&x| [x, -10.0 * x]).chain([f32::NAN, 0.0]).collect();
            let weights = vec![1.0; x.len()];
            let params = DepthwiseParams::new(x.len(), [1, 1], &weights).activation(activation);
            let plan =
                Depthwise::with_isa(&params, isa).unwrap().plan(Shape::new(1, 1, 1)).unwrap();
            let mut y = vec![0.0; x.len()];
            plan.run(&x, &mut y).unwrap();
            for (&x, &y) in x.iter().zip(&y) {
                if x.is_nan() {
                    assert!(y.is_nan(), "{activation:?} {isa}: {y}");
                    continue;
                }
                let limit = match (activation, x > 0.0) {
                    (Activation::Exp, _) if x.abs() == 20.0 => continue,
                    (Activation::Exp | Activation::Sigmoid, false) if x == 0.0 => continue,
                    (Activation::Exp, true) => f32::INFINITY,
                    (Activation::Sigmoid, true) => 1.0,
                    (_, true) => x,
                    (_, false) => 0.0,
                };
                assert_eq!(y, limit, "{activation:?} {isa}: {x}");
            }
        }
    }
}
