//! Any block, with an expansion, a stem or neither, from and into any layout.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mbconv::{
    BottleneckParams, ConvParams, DepthwiseParams, InvertedBottleneck, PointwiseParams, reference,
};
use mbconv_fuzz::{Act, Below, Data, Extent, Gate, Options, Window};

#[derive(Debug, Arbitrary)]
struct Input {
    extent: Extent,
    c_mid: Below<70>,
    first: First,
    window: Window,
    gate: Option<Below<6>>,
    project: Option<Below<70>>,
    residual: bool,
    acts: [Act; 3],
    options: Options,
    data: Data,
}

#[derive(Debug, Arbitrary)]
enum First {
    None,
    Expand { c_in: Below<70> },
    Stem { c_in: Below<6>, window: Window },
}

fuzz_target!(|input: Input| {
    let (c_mid, shape) = (input.c_mid.get(), input.extent.shape());
    let (c_in, patch) = match &input.first {
        First::None => (c_mid, 0),
        First::Expand { c_in } => (c_in.get(), 1),
        First::Stem { c_in, window } => (c_in.get(), window.kernel().iter().product()),
    };
    let c_out = input.project.map_or(c_mid, Below::get);
    let [height, width] = input.window.kernel();
    let mut tensor = input.data.tensors();
    let (depthwise, bias) = (tensor(height * width * c_mid), tensor(c_mid));
    let (first, project) = (tensor(patch * c_in * c_mid), tensor(c_mid * c_out));
    let x = tensor(shape.batch * shape.height * shape.width * c_in);

    let gate = input.gate.map(|reduced| Gate::new(c_mid, reduced.get(), &mut tensor));

    let acts = input.acts.map(Into::into);
    let depthwise = DepthwiseParams::new(c_mid, [height, width], &depthwise);
    let depthwise = input.window.of_depthwise(depthwise).bias(&bias).activation(acts[1]);
    let params = if input.project.is_some() {
        let project = PointwiseParams::new(c_mid, c_out, &project).activation(acts[2]);
        BottleneckParams::new(depthwise, project)
    } else {
        BottleneckParams::without_project(depthwise)
    };
    let params = params.residual(input.residual);
    let params = match &gate {
        None => params,
        Some(gate) => params.squeeze_excite(gate.params()),
    };
    let params = match &input.first {
        First::None => params,
        First::Expand { .. } => {
            let expand = PointwiseParams::new(c_in, c_mid, &first).bias(&bias);
            params.expand(expand.activation(acts[0]))
        }
        First::Stem { window, .. } => {
            let stem = ConvParams::new(c_in, c_mid, window.kernel(), &first);
            params.stem(window.of_stem(stem).bias(&bias).activation(acts[0]))
        }
    };

    let expected = reference::bottleneck(&params, shape, &x);
    input.options.check(&expected, (shape, &x), [c_in, c_out], |isa, options| {
        InvertedBottleneck::with_isa(&params, isa)?.plan_with(shape, options)
    });
});
