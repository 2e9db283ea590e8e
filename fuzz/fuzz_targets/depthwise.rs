//! Any depthwise convolution, from and into any layout.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mbconv::{Depthwise, DepthwiseParams, reference};
use mbconv_fuzz::{Act, Below, Data, Extent, Options, Window};

#[derive(Debug, Arbitrary)]
struct Input {
    extent: Extent,
    channels: Below<70>,
    multiplier: Option<Below<20>>,
    window: Window,
    act: Act,
    options: Options,
    data: Data,
}

fuzz_target!(|input: Input| {
    let (channels, shape) = (input.channels.get(), input.extent.shape());
    let multiplier = input.multiplier.map_or(1, Below::get);
    let outputs = channels * multiplier;
    let [height, width] = input.window.kernel();
    let mut tensor = input.data.tensors();
    let (weights, bias) = (tensor(height * width * outputs), tensor(outputs));
    let x = tensor(shape.batch * shape.height * shape.width * channels);
    let params = input
        .window
        .of_depthwise(DepthwiseParams::new(channels, [height, width], &weights))
        .multiplier(multiplier)
        .bias(&bias)
        .activation(input.act.into());

    let expected = reference::depthwise(&params, shape, &x);
    input.options.check(&expected, (shape, &x), [channels, outputs], |isa, options| {
        Depthwise::with_isa(&params, isa)?.plan_with(shape, options)
    });
});
