//! The modules against candle's own layers, on small shapes.

#[path = "../examples/support/plain.rs"]
mod plain;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::ops::sigmoid;
use candle_nn::{Conv2dConfig, VarBuilder, conv2d, layer_norm, linear};
use mbconv_candle::{
    Activation, BlockConfig, Conv, ConvNextBlock, DepthwiseConv2d, InvertedBottleneck,
    PointwiseConv2d,
};
use plain::{Plain, PlainBlock, Seeded, deviation};

const TOLERANCE: f32 = 1e-5;

fn image(c: usize, h: usize, w: usize) -> Tensor {
    Seeded::tensor((2, c, h, w), "image", [-1.0, 1.0]).unwrap()
}

fn assert_close(expected: &Tensor, actual: &Tensor) {
    assert_eq!(expected.dims(), actual.dims());
    let deviation = deviation(expected, actual).unwrap();
    assert!(deviation <= TOLERANCE, "off by {deviation}");
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

fn pointwise(c: [usize; 2], relu6: bool, vb: &VarBuilder<'_>, names: [&str; 2]) -> Plain {
    Plain::load(c, 1, Conv2dConfig::default(), relu6, vb, names).unwrap()
}

fn depthwise(
    c: usize,
    kernel: usize,
    stride: usize,
    vb: &VarBuilder<'_>,
    names: [&str; 2],
) -> Plain {
    let config = Conv2dConfig { padding: kernel / 2, stride, groups: c, ..Default::default() };
    Plain::load([c; 2], kernel, config, true, vb, names).unwrap()
}

#[test]
fn pointwise_is_candles() -> Result<()> {
    let plain = pointwise([7, 12], true, &Seeded::builder(), ["conv", "bn"]);
    let layer = PointwiseConv2d::new(&plain.conv())?;
    let x = image(7, 5, 6);
    assert_close(&plain.forward(&x)?, &layer.forward(&x)?);
    Ok(())
}

#[test]
fn depthwise_is_candles() -> Result<()> {
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (7, 2)] {
        let plain = depthwise(20, kernel, stride, &Seeded::builder(), ["conv", "bn"]);
        let layer = DepthwiseConv2d::new(&plain.conv())?;
        let x = image(20, 9, 11);
        assert_close(&plain.forward(&x)?, &layer.forward(&x)?);
    }
    Ok(())
}

#[test]
fn a_bias_dilation_and_several_filters_for_a_channel() -> Result<()> {
    for channels in [1, 6] {
        let config =
            Conv2dConfig { dilation: 2, padding: 2, groups: channels, ..Default::default() };
        let conv = conv2d(channels, 3 * channels, 3, config, Seeded::builder())?;
        let layer = DepthwiseConv2d::new(&Conv::new(conv.clone()))?;
        let x = image(channels, 8, 7);
        assert_close(&conv.forward(&x)?, &layer.forward(&x)?);
    }
    Ok(())
}

#[test]
fn blocks_by_either_librarys_names() -> Result<()> {
    let vb = Seeded::builder();
    for (c_in, c_expanded, c_out, kernel, stride) in
        [(8, 24, 8, 3, 1), (8, 40, 12, 5, 2), (16, 16, 8, 3, 1), (16, 16, 16, 3, 1)]
    {
        let config = BlockConfig::new(c_in, c_expanded, c_out).kernel(kernel).stride(stride);
        let x = image(c_in, 10, 9);
        let names: [[[&str; 2]; 3]; 2] = match c_in == c_expanded {
            false => [
                [["conv.0.0", "conv.0.1"], ["conv.1.0", "conv.1.1"], ["conv.2", "conv.3"]],
                [["conv_pw", "bn1"], ["conv_dw", "bn2"], ["conv_pwl", "bn3"]],
            ],
            true => [
                [["", ""], ["conv.0.0", "conv.0.1"], ["conv.1", "conv.2"]],
                [["", ""], ["conv_dw", "bn1"], ["conv_pw", "bn2"]],
            ],
        };
        let blocks = [
            InvertedBottleneck::torchvision(&config, vb.clone())?,
            InvertedBottleneck::timm(&config, vb.clone())?,
        ];
        for (block, [expand, filter, project]) in blocks.iter().zip(names) {
            let mut layers = vec![
                depthwise(c_expanded, kernel, stride, &vb, filter),
                pointwise([c_expanded, c_out], false, &vb, project),
            ];
            if c_in != c_expanded {
                layers.insert(0, pointwise([c_in, c_expanded], true, &vb, expand));
            }
            let plain = PlainBlock { layers, residual: stride == 1 && c_in == c_out };
            assert_close(&plain.forward(&x)?, &block.forward(&x)?);
        }
    }
    Ok(())
}

#[test]
fn a_stem_in_the_place_of_the_expansion() -> Result<()> {
    let vb = Seeded::builder();
    let config = Conv2dConfig { padding: 1, stride: 2, ..Default::default() };
    for c_in in [1, 3] {
        let layers = vec![
            Plain::load([c_in, 16], 3, config, true, &vb, ["stem", "bn0"])?,
            depthwise(16, 3, 1, &vb, ["conv_dw", "bn1"]),
            pointwise([16, 8], false, &vb, ["conv_pw", "bn2"]),
        ];
        let x = image(c_in, 12, 14);
        let plain = PlainBlock { layers, residual: false };
        let block = InvertedBottleneck::new(&plain.convs())?;
        assert_close(&plain.forward(&x)?, &block.forward(&x)?);
    }
    Ok(())
}

#[test]
fn squeeze_and_excite() -> Result<()> {
    let vb = Seeded::builder();
    let config =
        BlockConfig::new(8, 24, 8).squeeze_excite(6, Activation::Relu, Activation::Sigmoid);
    let block = InvertedBottleneck::timm(&config, vb.clone())?;
    let x = image(8, 9, 7);
    let y = pointwise([8, 24], true, &vb, ["conv_pw", "bn1"]).forward(&x)?;
    let y = depthwise(24, 3, 1, &vb, ["conv_dw", "bn2"]).forward(&y)?;
    let mean = y.mean_keepdim((2, 3))?;
    let reduce = conv2d(24, 6, 1, Conv2dConfig::default(), vb.pp("se.conv_reduce"))?;
    let expand = conv2d(6, 24, 1, Conv2dConfig::default(), vb.pp("se.conv_expand"))?;
    let gate = sigmoid(&expand.forward(&reduce.forward(&mean)?.relu()?)?)?;
    let y =
        pointwise([24, 8], false, &vb, ["conv_pwl", "bn3"]).forward(&y.broadcast_mul(&gate)?)?;
    assert_close(&(y + &x)?, &block.forward(&x)?);
    Ok(())
}

#[test]
fn convnext_by_either_librarys_names() -> Result<()> {
    let (vb, c, x) = (Seeded::builder(), 12, image(12, 9, 8));
    let cases = [
        (
            ConvNextBlock::torchvision(c, vb.clone())?,
            ["block.0", "block.2", "block.3", "block.5"],
            vb.get((c, 1, 1), "layer_scale")?,
        ),
        (
            ConvNextBlock::timm(c, vb.clone())?,
            ["conv_dw", "norm", "mlp.fc1", "mlp.fc2"],
            vb.get(c, "gamma")?.reshape((c, 1, 1))?,
        ),
    ];
    for (block, names, scale) in cases {
        let [filter, norm, expand, project] = names.map(|name| vb.pp(name));
        let window = Conv2dConfig { padding: 3, groups: c, ..Default::default() };
        let y = conv2d(c, c, 7, window, filter)?.forward(&x)?.permute((0, 2, 3, 1))?;
        let y = layer_norm(c, 1e-6, norm)?.forward(&y.contiguous()?)?;
        let y = linear(c, 4 * c, expand)?.forward(&y)?.gelu_erf()?;
        let y = linear(4 * c, c, project)?.forward(&y)?.permute((0, 3, 1, 2))?;
        let expected = (y.contiguous()?.broadcast_mul(&scale)? + &x)?;
        assert_close(&expected, &block.forward(&x)?);
    }
    Ok(())
}

/// Crops, slices of channels, channels-last views, what has to be copied: all the same bits.
#[test]
fn strided_inputs() -> Result<()> {
    let block = InvertedBottleneck::timm(&BlockConfig::new(8, 24, 8), Seeded::builder())?;
    let pointwise =
        PointwiseConv2d::new(&pointwise([8, 5], false, &Seeded::builder(), ["conv", "bn"]).conv())?;
    let x = image(24, 12, 10);
    let channels_last = x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?;
    let mut views = Vec::new();
    for x in [&x, &channels_last] {
        let some = x.narrow(1, 5, 8)?;
        views.push(some.narrow(2, 2, 7)?.narrow(3, 1, 6)?);
        views.push(some.narrow(2, 2, 1)?.narrow(0, 1, 1)?);
        views.push(some.transpose(2, 3)?);
        views.push(some);
    }
    views.push(x.narrow(1, 0, 1)?.broadcast_as((2, 8, 12, 10))?);
    for view in views {
        assert!(!view.is_contiguous());
        let dense = view.contiguous()?;
        assert_eq!(bits(&block.forward(&dense)?), bits(&block.forward(&view)?));
        assert_eq!(bits(&pointwise.forward(&dense)?), bits(&pointwise.forward(&view)?));
    }
    Ok(())
}

#[test]
fn channels_last_outputs() -> Result<()> {
    let block = InvertedBottleneck::timm(&BlockConfig::new(8, 24, 8), Seeded::builder())?;
    let x = image(8, 9, 7);
    let y = block.forward(&x)?;
    assert!(y.is_contiguous());
    let view = block.channels_last(true).forward(&x)?;
    assert!(!view.is_contiguous() && view.permute((0, 2, 3, 1))?.is_contiguous());
    assert_eq!(bits(&y), bits(&view));
    Ok(())
}

#[test]
fn more_shapes_than_plans_are_kept() -> Result<()> {
    let plain = depthwise(4, 3, 1, &Seeded::builder(), ["conv", "bn"]);
    let layer = DepthwiseConv2d::new(&plain.conv())?;
    for side in (1..40).chain(1..3) {
        let x = image(4, side, 3);
        assert_close(&plain.forward(&x)?, &layer.forward(&x)?);
    }
    Ok(())
}

fn assert_error<T>(result: Result<T>, words: &str) {
    let error = result.err().expect("an error").to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn errors_say_what_is_wrong() -> Result<()> {
    let block = InvertedBottleneck::timm(&BlockConfig::new(8, 24, 8), Seeded::builder())?;
    assert_error(block.forward(&image(8, 4, 4).to_dtype(DType::F64)?), "f32 only");
    assert_error(block.forward(&image(9, 4, 4)), "9 channels, the layer takes 8");
    assert_error(block.forward(&Tensor::zeros((8, 4), DType::F32, &Device::Cpu)?), "rank");
    assert_error(block.forward(&image(8, 4, 4).narrow(2, 0, 0)?), "height is 0");

    let vb = Seeded::builder();
    let conv =
        |c, k, config| Ok::<_, candle_core::Error>(Conv::new(conv2d(c, 8, k, config, vb.clone())?));
    let full = conv(8, 3, Conv2dConfig::default())?;
    assert_error(PointwiseConv2d::new(&full).map(drop), "not a pointwise convolution");
    assert_error(DepthwiseConv2d::new(&full).map(drop), "not a depthwise convolution");
    let padded = conv(8, 3, Conv2dConfig { padding: 3, groups: 8, ..Default::default() })?;
    assert_error(DepthwiseConv2d::new(&padded).map(drop), "padding top is 3");
    let clamp = padded.activation(Activation::Clamp { lo: 1.0, hi: 0.0 });
    assert_error(DepthwiseConv2d::new(&clamp).map(drop), "padding top is 3");
    Ok(())
}

#[test]
fn a_squeeze_and_excite_part_is_refused() {
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let tensors = [("se.conv_reduce.weight", (2, 8, 1, 1))]
        .map(|(name, shape)| (name.to_owned(), vb.get(shape, name).unwrap()));
    let vb = VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu);
    let block = InvertedBottleneck::timm(&BlockConfig::new(8, 24, 8), vb);
    assert_error(block.map(drop), "squeeze-and-excite");
}

#[test]
fn there_is_no_backward_pass() -> Result<()> {
    let block = InvertedBottleneck::timm(&BlockConfig::new(8, 24, 8), Seeded::builder())?;
    let x = Var::from_tensor(&image(8, 4, 4))?;
    for block in [block.clone().channels_last(true), block] {
        assert_error(block.forward(&x)?.sum_all()?.backward().map(drop), "no backward pass");
    }
    Ok(())
}
