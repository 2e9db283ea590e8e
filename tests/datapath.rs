//! AVX-512 on units of 256 bits, as Zen 4 has, and of 512: other ways, the same bits.
#![cfg(target_arch = "x86_64")]

mod common;

use common::{check_bits, isas};
use mbconv::testing::assume_half_units;
use mbconv::{
    Activation, Depthwise, DepthwiseParams, Isa, Layout, Padding, PlanOptions, Pointwise,
    PointwiseParams, Result, Shape,
};

/// What is packed and computed for either width of units. One test, since all tests
/// share what is assumed.
#[test]
fn units_of_either_width_give_the_same_bits() -> Result<()> {
    let Some(isa) = isas().into_iter().find(|isa| isa.name() == "avx512") else {
        println!("SKIPPED: AVX-512 is not among them");
        return Ok(());
    };
    tiles(isa)?;
    planes(isa)
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Holds what `run` writes for either width against each other.
fn compare(context: &str, outputs: usize, run: impl Fn(&mut [f32]) -> Result<()>) -> Result<()> {
    let [whole, half] = [false, true].map(|half| {
        assume_half_units(half);
        let mut y = vec![f32::from_bits(1); outputs];
        run(&mut y).map(|()| y)
    });
    check_bits(context, &whole?, &half?);
    Ok(())
}

/// Pointwise tiles, from any layout to any.
fn tiles(isa: Isa) -> Result<()> {
    // Tiles of each height, and several.
    let shapes = (1..=14).map(|pixels| (1, pixels)).chain([(9, 13)]);
    let sizes = [(1, 1), (3, 8), (16, 24), (40, 40), (17, 5), (144, 24), (30, 71), (20, 112)];
    for ((height, width), (c_in, c_out)) in shapes.flat_map(|shape| sizes.map(|c| (shape, c))) {
        let pixels = height * width;
        let (weights, bias, x) = (numbers(c_in * c_out), numbers(c_out), numbers(pixels * c_in));
        let layer =
            PointwiseParams::new(c_in, c_out, &weights).bias(&bias).activation(Activation::Relu6);
        for input in [Layout::Nhwc, Layout::Nchw] {
            for output in [Layout::Nhwc, Layout::Nchw] {
                let options = PlanOptions::new().input_layout(input).output_layout(output);
                let context = format!("{pixels} x {c_in} to {c_out}, {input:?} to {output:?}");
                compare(&context, pixels * c_out, |y| {
                    let layer = Pointwise::with_isa(&layer, isa)?;
                    layer.plan_with(Shape::new(1, height, width), &options)?.run(&x, y)
                })?;
            }
        }
    }
    Ok(())
}

/// Small planes, which go by rows or by pairs of them, with what a tap outside the image
/// could spoil.
fn planes(isa: Isa) -> Result<()> {
    let special = [-0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1.0];
    let channels = 37;
    let bias = vec![-0.0; channels];
    let options = PlanOptions::new().layout(Layout::Nchw);
    for (height, width) in [7, 8].into_iter().flat_map(|h| (1..12).map(move |w| (h, w))) {
        let size = height * width;
        let (mut taps, mut x) = (numbers(9 * channels), numbers(size * channels));
        for (i, special) in special.into_iter().cycle().take(40).enumerate() {
            taps[i * 83 % (9 * channels)] = special;
            x[i * 197 % (size * channels)] = special;
        }
        for activation in [Activation::Identity, Activation::HardSwish, Activation::Gelu] {
            let layer = DepthwiseParams::new(channels, [3, 3], &taps)
                .bias(&bias)
                .padding(Padding::Explicit { top: 1, bottom: 1, left: 1, right: 1 })
                .activation(activation);
            let context = format!("planes of {height} x {width}, {activation:?}");
            compare(&context, size * channels, |y| {
                let layer = Depthwise::with_isa(&layer, isa)?;
                layer.plan_with(Shape::new(1, height, width), &options)?.run(&x, y)
            })?;
        }
    }
    Ok(())
}
