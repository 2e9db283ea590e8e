//! A kernel of one's own, property-tested with `mbconv::testing`, which finds the bug in
//! it and prints the smallest case that shows it:
//!
//! `cargo run --example property_test`

use std::error::Error;

use mbconv::testing::{Bound, Data, PointwiseLayer, pointwise_layers, shapes};
use mbconv::{Shape, reference};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

type Kernel = fn(&PointwiseLayer, &[f32]) -> Vec<f32>;
type Case = (Shape, PointwiseLayer, u64);

/// The kernel under test: a 1x1 convolution that sums four channels at a time, and what
/// is left one by one from `rest` on, which should be 0.
fn convolve(layer: &PointwiseLayer, input: &[f32], rest: usize) -> Vec<f32> {
    let mut output = Vec::new();
    for pixel in input.chunks_exact(layer.c_in) {
        for (o, filter) in layer.weights.chunks_exact(layer.c_in).enumerate() {
            let mut sums = [0.0; 4];
            let (xs, ws) = (pixel.chunks_exact(4), filter.chunks_exact(4));
            let left = xs.remainder().iter().zip(ws.remainder()).skip(rest);
            let left: f32 = left.map(|(x, w)| x * w).sum();
            for (x, w) in xs.zip(ws) {
                for i in 0..4 {
                    sums[i] += x[i] * w[i];
                }
            }
            let bias = layer.bias.as_ref().map_or(0.0, |bias| bias[o]);
            output.push(layer.activation.apply(sums.iter().sum::<f32>() + left + bias));
        }
    }
    output
}

/// Runs the kernel on random layers and images.
fn test(kernel: Kernel, data: Data) -> Result<(), Box<TestError<Case>>> {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = (shapes(2, 9), pointwise_layers(data), any::<u64>());
    let result = TestRunner::new(config).run(&cases, |(shape, layer, seed)| {
        let params = layer.params();
        let x = data.tensor(seed, shape.elements(layer.c_in)?);
        let expected = reference::pointwise(&params, shape, &x, None)?;
        let bound = Bound::pointwise(&params, shape, &x, None)?;
        bound.check(&expected, &kernel(&layer, &x))?;
        Ok(())
    });
    result.map_err(Box::new)
}

fn main() -> Result<(), Box<dyn Error>> {
    for data in [Data::Ordinary, Data::Integer, Data::Cancelling, Data::Wide] {
        test(|layer, x| convolve(layer, x, 0), data)?;
        println!("{data:?}: the right kernel passes");
        match test(|layer, x| convolve(layer, x, 1), data).map_err(|error| *error) {
            Err(TestError::Fail(why, (shape, layer, seed))) => {
                println!("{data:?}: the wrong one does not: {why}");
                println!("  the smallest case: {shape:?}, {layer:?}, input of seed {seed}");
            }
            other => return Err(format!("the bug was not found: {other:?}").into()),
        }
    }
    Ok(())
}
