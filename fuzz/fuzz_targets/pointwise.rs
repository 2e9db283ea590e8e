//! Any 1x1 convolution, from and into any layout.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mbconv::{Pointwise, PointwiseParams, reference};
use mbconv_fuzz::{Act, Below, Data, Extent, Options, WithResidual};

#[derive(Debug, Arbitrary)]
struct Input {
    extent: Extent,
    c_in: Below<70>,
    c_out: Below<70>,
    act: Act,
    residual: bool,
    options: Options,
    data: Data,
}

fuzz_target!(|input: Input| {
    let (c_in, c_out, shape) = (input.c_in.get(), input.c_out.get(), input.extent.shape());
    let pixels = shape.batch * shape.height * shape.width;
    let mut tensor = input.data.tensors();
    let (weights, bias, x) = (tensor(c_in * c_out), tensor(c_out), tensor(pixels * c_in));
    let residual = input.residual.then(|| tensor(pixels * c_out));
    let residual = residual.as_deref();
    let params = PointwiseParams::new(c_in, c_out, &weights);
    let params = params.bias(&bias).activation(input.act.into());

    let expected = reference::pointwise(&params, shape, &x, residual);
    input.options.check(&expected, (shape, &x), [c_in, c_out], |isa, options| {
        let plan = Pointwise::with_isa(&params, isa)?.plan_with(shape, options)?;
        Ok(WithResidual { plan, shape, c_out, residual })
    });
});
