//! The module that the other tests are made of: data is what it is said to be, there is
//! a bound wherever one is needed, and what is beyond it is found.

use mbconv::testing::{
    Bound, Data, Mismatch, PointwiseLayer, Random, blocks, depthwise_layers, pointwise_layers,
    same_bits, same_numbers, shapes,
};
use mbconv::{Activation, Error, reference};
use proptest::prelude::*;

#[test]
fn data_is_what_it_is_said_to_be() {
    let of = |data: Data| data.tensor(5, 10_000);
    assert!(of(Data::Ordinary).iter().all(|x| (-1.0..1.0).contains(x)));
    assert!(of(Data::Integer).iter().all(|x| x.fract() == 0.0 && x.abs() <= 2.0));
    let pairs = of(Data::Cancelling);
    assert!(pairs.chunks_exact(2).all(|pair| (pair[0] + pair[1]).abs() * 400.0 < pair[0]));
    let wide = of(Data::Wide);
    assert!(wide.iter().all(|x| x.is_finite()));
    assert!(wide.iter().any(|x| x.abs() > 1e29));
    assert!(wide.iter().any(|x| *x != 0.0 && x.abs() < f32::MIN_POSITIVE));
    let special = of(Data::Special);
    for x in [f32::INFINITY, f32::NEG_INFINITY, 0.0, 2.0] {
        assert!(special.contains(&x), "{x}");
    }
    assert!(special.iter().any(|x| x.is_nan()));
    assert!(special.iter().any(|x| x.to_bits() == (-0.0f32).to_bits()));
    for data in Data::ALL {
        assert!(same_bits(&of(data), &of(data)).is_ok(), "a seed gives the same numbers");
    }
}

#[test]
fn random_numbers_spread() {
    let random = &mut Random::new(0);
    let mean = (0..10_000).map(|_| f64::from(random.float())).sum::<f64>() / 1e4;
    assert!(mean.abs() < 0.02, "{mean}");
    let mut seen = [false; 7];
    (0..200).for_each(|_| seen[random.below(7)] = true);
    assert_eq!(seen, [true; 7]);
}

/// Each element has a bound, and it is kept just so far.
fn is_tight(bound: &Bound, expected: &[f32]) -> Result<(), TestCaseError> {
    prop_assert_eq!(bound.errors().len(), expected.len());
    prop_assert!(bound.errors().iter().all(|e| e.is_finite() && *e > 0.0));
    bound.check(expected, expected)?;
    let i = expected.len() / 2;
    let mut actual = expected.to_vec();
    actual[i] += 2.0 * bound.errors()[i] + expected[i].abs() * f32::EPSILON;
    match bound.check(expected, &actual) {
        Err(Mismatch::Element { index, .. }) => prop_assert_eq!(index, i),
        other => prop_assert!(false, "{other:?}"),
    }
    actual[i] = f32::NAN;
    prop_assert!(bound.check(expected, &actual).is_err());
    Ok(())
}

/// Where the window does not fit there is nothing to bound.
fn or_reject<T>(result: mbconv::Result<T>) -> Result<T, TestCaseError> {
    result.map_err(|error| match error {
        Error::EmptyOutput { .. } => TestCaseError::reject("too small"),
        error => error.into(),
    })
}

const INEXACT: [Data; 3] = [Data::Ordinary, Data::Cancelling, Data::Wide];

proptest! {
    #[test]
    fn there_is_a_bound(
        shape in shapes(2, 9),
        seed: u64,
        (data, (pointwise, (depthwise, block))) in proptest::sample::select(&INEXACT).prop_flat_map(
            |data| (Just(data), (pointwise_layers(data), (depthwise_layers(data), blocks(data)))),
        ),
    ) {
        let (params, len) = (pointwise.params(), shape.elements(pointwise.c_in)?);
        let (x, r) = (data.tensor(seed, len), data.tensor(!seed, shape.elements(pointwise.c_out)?));
        let expected = reference::pointwise(&params, shape, &x, Some(&r))?;
        is_tight(&Bound::pointwise(&params, shape, &x, Some(&r))?, &expected)?;

        let params = depthwise.params();
        let x = data.tensor(seed, shape.elements(depthwise.channels)?);
        let expected = or_reject(reference::depthwise(&params, shape, &x))?;
        is_tight(&Bound::depthwise(&params, shape, &x)?, &expected)?;

        let params = block.params();
        let x = data.tensor(seed, shape.elements(block.c_in())?);
        let expected = or_reject(reference::bottleneck(&params, shape, &x))?;
        is_tight(&Bound::bottleneck(&params, shape, &x)?, &expected)?;
    }
}

#[test]
fn comparisons() {
    let (x, y) = ([1.0, 0.0, f32::NAN], [1.0, -0.0, -f32::NAN]);
    assert_eq!(same_numbers(&x, &y), Ok(()));
    let error = same_bits(&x, &y).unwrap_err();
    assert_eq!(error, Mismatch::Element { index: 1, expected: 0.0, actual: -0.0, bound: 0.0 });
    assert_eq!(error.to_string(), "element 1 is -0e0, expected 0e0 within 0e0");
    let error = same_numbers(&x, &y[..2]).unwrap_err();
    assert_eq!(error.to_string(), "2 elements, not 3");
}

#[test]
fn a_layer_shows_a_few_of_its_numbers() {
    let random = &mut Random::new(1);
    let layer = PointwiseLayer::new(random, Data::Integer, [10, 10], Activation::Identity);
    let text = format!("{layer:?}");
    assert!(text.contains("weights: 100 of [") && text.len() < 300, "{text}");
}
