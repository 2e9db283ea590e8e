//! Any block of ConvNeXt's order, from and into any layout.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mbconv::{
    ConvNextBlock, ConvNextParams, DepthwiseParams, LayerNormParams, PointwiseParams, Residual,
    reference,
};
use mbconv_fuzz::{Act, Below, Data, Extent, Gate, Options, Window};

#[derive(Debug, Arbitrary)]
struct Input {
    extent: Extent,
    channels: Below<70>,
    hidden: Below<70>,
    c_out: Option<Below<70>>,
    window: Window,
    gate: Option<Below<6>>,
    norm: bool,
    scale: bool,
    residual: Option<bool>,
    acts: [Act; 3],
    options: Options,
    data: Data,
}

fuzz_target!(|input: Input| {
    let (channels, hidden, shape) =
        (input.channels.get(), input.hidden.get(), input.extent.shape());
    let c_out = input.c_out.map_or(channels, Below::get);
    let [height, width] = input.window.kernel();
    let mut tensor = input.data.tensors();
    let (depthwise, expand) = (tensor(height * width * channels), tensor(channels * hidden));
    let (project, bias) = (tensor(hidden * c_out), [channels, hidden, c_out].map(&mut tensor));
    let x = tensor(shape.batch * shape.height * shape.width * channels);
    let gate = input.gate.map(|reduced| Gate::new(channels, reduced.get(), &mut tensor));
    // Of a norm only the bias is exact.
    let (norm, scale) = (vec![0.0; channels], tensor(c_out));

    let acts = input.acts.map(Into::into);
    let depthwise = DepthwiseParams::new(channels, [height, width], &depthwise);
    let mut params = ConvNextParams::new(
        input.window.of_depthwise(depthwise).bias(&bias[0]).activation(acts[0]),
        PointwiseParams::new(channels, hidden, &expand).bias(&bias[1]).activation(acts[1]),
        PointwiseParams::new(hidden, c_out, &project).bias(&bias[2]).activation(acts[2]),
    );
    if let Some(gate) = &gate {
        params = params.squeeze_excite(gate.params());
    }
    if input.norm {
        params = params.norm(LayerNormParams::new(&norm, &bias[0], 1e-6));
    }
    if input.scale {
        params = params.scale(&scale);
    }
    if let Some(of_input) = input.residual {
        params = params.residual(if of_input { Residual::Input } else { Residual::Depthwise });
    }

    let expected = reference::convnext(&params, shape, &x);
    input.options.check(&expected, (shape, &x), [channels, c_out], |isa, options| {
        ConvNextBlock::with_isa(&params, isa)?.plan_with(shape, options)
    });
});
