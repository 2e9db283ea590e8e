//! Shapes, windows and strides of any size, up to the whole address space: an error
//! or a plan, never a panic. Nothing is run.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use mbconv::{
    BottleneckParams, Caches, ConvNextBlock, ConvNextParams, ConvParams, Depthwise,
    DepthwiseParams, InvertedBottleneck, Layout, Padding, PlanOptions, Pointwise, PointwiseParams,
    Schedule, Shape, Strides,
};
use mbconv_fuzz::{Below, Gate};

/// Small, near a power of two, or near the end of the address space.
#[derive(Debug, Clone, Copy)]
struct Any(usize);

impl<'a> Arbitrary<'a> for Any {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let (kind, x) = (u8::arbitrary(u)?, u8::arbitrary(u)?);
        let power = 1usize << (x % 64);
        Ok(Self(match kind % 8 {
            0..=3 => x.into(),
            4 => power,
            5 => power - 1,
            6 => usize::MAX - usize::from(x),
            _ => usize::arbitrary(u)?,
        }))
    }
}

#[derive(Debug, Arbitrary)]
struct Window {
    kernel: [Below<6>; 2],
    stride: [Any; 2],
    dilation: [Any; 2],
    padding: Option<[Any; 4]>,
}

impl Window {
    fn parts(&self) -> ([usize; 2], [usize; 2], [usize; 2], Padding) {
        let padding = self.padding.map_or(Padding::SameUpper, |sides| {
            let [top, bottom, left, right] = sides.map(|side| side.0);
            Padding::Explicit { top, bottom, left, right }
        });
        let kernel = self.kernel.map(Below::get);
        (kernel, self.stride.map(|n| n.0), self.dilation.map(|n| n.0), padding)
    }
}

#[derive(Debug, Arbitrary)]
enum Place {
    Nhwc,
    Nchw,
    NhwcStrides([Any; 3]),
    NchwStrides([Any; 3]),
}

#[derive(Debug, Arbitrary)]
struct Input {
    shape: [Any; 3],
    channels: [Below<20>; 3],
    multiplier: Option<Any>,
    window: Window,
    stem: Option<Window>,
    gate: bool,
    project: bool,
    residual: bool,
    input: Place,
    output: Place,
    threads: Any,
    tile: Option<[Any; 2]>,
    caches: [Any; 3],
}

impl Input {
    fn options(&self) -> PlanOptions {
        let schedule = match self.tile {
            Some([rows, channels]) => Schedule::Tiled { rows: rows.0, channels: channels.0 },
            None => Schedule::Auto,
        };
        let [l1, l2, l3] = self.caches.map(|n| n.0);
        let options = PlanOptions::new().threads(self.threads.0).schedule(schedule);
        let options = options.caches(Caches { l1, l2, l3 });
        let strides = |place: &Place| match *place {
            Place::Nhwc => Err(Layout::Nhwc),
            Place::Nchw => Err(Layout::Nchw),
            Place::NhwcStrides([batch, row, pixel]) => {
                Ok(Strides::Nhwc { batch: batch.0, row: row.0, pixel: pixel.0 })
            }
            Place::NchwStrides([batch, plane, row]) => {
                Ok(Strides::Nchw { batch: batch.0, plane: plane.0, row: row.0 })
            }
        };
        let options = match strides(&self.input) {
            Ok(strides) => options.input_strides(strides),
            Err(layout) => options.input_layout(layout),
        };
        match strides(&self.output) {
            Ok(strides) => options.output_strides(strides),
            Err(layout) => options.output_layout(layout),
        }
    }
}

fuzz_target!(|input: Input| {
    let [batch, height, width] = input.shape.map(|n| n.0);
    let (shape, options) = (Shape::new(batch, height, width), input.options());
    let [c_in, c_mid, c_out] = input.channels.map(Below::get);
    let (kernel, stride, dilation, padding) = input.window.parts();

    let weights = vec![0.0; c_in * c_out];
    if let Ok(op) = Pointwise::new(&PointwiseParams::new(c_in, c_out, &weights)) {
        let _ = (op.plan_with(shape, &options), op.flops(shape));
    }
    // Weights for what the multiplier should be; a huge one has too few.
    let multiplier = input.multiplier.map_or(1, |n| n.0);
    let weights = vec![0.0; kernel[0] * kernel[1] * c_mid * multiplier.min(64)];
    let depthwise = DepthwiseParams::new(c_mid, kernel, &weights)
        .stride(stride)
        .dilation(dilation)
        .padding(padding)
        .multiplier(multiplier);
    if let Ok(op) = Depthwise::new(&depthwise) {
        let _ = (op.plan_with(shape, &options), op.flops(shape));
    }

    let gate = Gate::new(c_mid, c_in, |len| vec![0.0; len]);
    let project = vec![0.0; c_mid * c_out];
    let back = PointwiseParams::new(c_out, c_mid, &project);
    let next = ConvNextParams::new(depthwise, PointwiseParams::new(c_mid, c_out, &project), back);
    let next = if input.gate { next.squeeze_excite(gate.params()) } else { next };
    if let Ok(op) = ConvNextBlock::new(&next) {
        let _ = (op.plan_with(shape, &options).map(|plan| plan.explain()), op.flops(shape));
    }
    let params = if input.project {
        BottleneckParams::new(depthwise, PointwiseParams::new(c_mid, c_out, &project))
    } else {
        BottleneckParams::without_project(depthwise)
    };
    let params = params.residual(input.residual);
    let params = if input.gate { params.squeeze_excite(gate.params()) } else { params };
    let first;
    let params = match &input.stem {
        None => {
            first = vec![0.0; c_in * c_mid];
            params.expand(PointwiseParams::new(c_in, c_mid, &first))
        }
        Some(window) => {
            let (kernel, stride, dilation, padding) = window.parts();
            first = vec![0.0; kernel[0] * kernel[1] * c_in * c_mid];
            let stem = ConvParams::new(c_in, c_mid, kernel, &first);
            params.stem(stem.stride(stride).dilation(dilation).padding(padding))
        }
    };
    if let Ok(op) = InvertedBottleneck::new(&params) {
        let _ = (op.plan_with(shape, &options).map(|plan| plan.explain()), op.flops(shape));
    }
});
