//! What the targets share: arbitrary windows, data, layouts and options, small
//! enough for the naive reference, and the comparison with it. Zeros stay possible
//! everywhere, for the errors.

use std::iter;
use std::mem::MaybeUninit;
use std::thread::Builder;

use arbitrary::Arbitrary;
use mbconv::{
    Activation, BottleneckPlan, Caches, ConvParams, DepthwiseParams, DepthwisePlan, Error,
    Executor, Isa, Layout, Padding, PlanOptions, PointwiseParams, PointwisePlan, Result, Schedule,
    Shape, SqueezeExciteParams, Strides,
};

/// A number below `LIMIT`.
#[derive(Debug, Clone, Copy)]
pub struct Below<const LIMIT: u8>(u8);

impl<const LIMIT: u8> Below<LIMIT> {
    pub fn get(self) -> usize {
        self.0.into()
    }
}

impl<'a, const LIMIT: u8> Arbitrary<'a> for Below<LIMIT> {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(u8::arbitrary(u)? % LIMIT))
    }
    fn size_hint(_: usize) -> (usize, Option<usize>) {
        (1, Some(1))
    }
}

#[derive(Debug, Arbitrary)]
pub struct Extent {
    batch: Below<3>,
    height: Below<12>,
    width: Below<24>,
}

impl Extent {
    pub fn shape(&self) -> Shape {
        Shape::new(self.batch.get(), self.height.get(), self.width.get())
    }
}

#[derive(Debug, Arbitrary)]
pub struct Window {
    kernel: [Below<10>; 2],
    stride: [Below<5>; 2],
    dilation: [Below<4>; 2],
    padding: Pad,
}

#[derive(Debug, Arbitrary)]
enum Pad {
    SameUpper,
    SameLower,
    Explicit([Below<12>; 4]),
}

impl Window {
    pub fn kernel(&self) -> [usize; 2] {
        self.kernel.map(Below::get)
    }

    pub fn of_depthwise<'a>(&self, layer: DepthwiseParams<'a>) -> DepthwiseParams<'a> {
        layer
            .stride(self.stride.map(Below::get))
            .dilation(self.dilation.map(Below::get))
            .padding(self.padding())
    }

    pub fn of_stem<'a>(&self, layer: ConvParams<'a>) -> ConvParams<'a> {
        layer
            .stride(self.stride.map(Below::get))
            .dilation(self.dilation.map(Below::get))
            .padding(self.padding())
    }

    fn padding(&self) -> Padding {
        match self.padding {
            Pad::SameUpper => Padding::SameUpper,
            Pad::SameLower => Padding::SameLower,
            Pad::Explicit(sides) => {
                let [top, bottom, left, right] = sides.map(Below::get);
                Padding::Explicit { top, bottom, left, right }
            }
        }
    }
}

/// Activations that keep integers integers.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Act {
    Identity,
    Relu,
    Relu6,
    Clamp,
    Wrong,
}

impl From<Act> for Activation {
    fn from(act: Act) -> Self {
        match act {
            Act::Identity => Self::Identity,
            Act::Relu => Self::Relu,
            Act::Relu6 => Self::Relu6,
            Act::Clamp => Self::Clamp { lo: -3.0, hi: 4.0 },
            Act::Wrong => Self::Clamp { lo: 1.0, hi: -1.0 },
        }
    }
}

/// Small integers, of which every sum is exact in f32, and on request what is none.
#[derive(Debug, Arbitrary)]
pub struct Data {
    hostile: bool,
    bytes: Vec<u8>,
}

impl Data {
    /// Gives tensors of so many f32, one after the other.
    pub fn tensors(&self) -> impl FnMut(usize) -> Vec<f32> {
        let mut bytes = self.bytes.iter().chain(iter::once(&3)).cycle();
        move |len| bytes.by_ref().take(len).map(|&byte| self.number(byte)).collect()
    }

    fn number(&self, byte: u8) -> f32 {
        match byte {
            252 if self.hostile => f32::INFINITY,
            253 if self.hostile => f32::NEG_INFINITY,
            254 if self.hostile => f32::NAN,
            255 => -0.0,
            _ => f32::from(byte % 3) - 1.0,
        }
    }
}

/// Squeeze-and-excite whose result is exact: no mean is one, so its weights are 0.
pub struct Gate {
    channels: [usize; 2],
    reduce: Vec<f32>,
    expand: Vec<f32>,
    bias: [Vec<f32>; 2],
}

impl Gate {
    pub fn new(channels: usize, reduced: usize, mut tensor: impl FnMut(usize) -> Vec<f32>) -> Self {
        Self {
            channels: [channels, reduced],
            reduce: vec![0.0; channels * reduced],
            expand: tensor(channels * reduced),
            bias: [tensor(reduced), tensor(channels)],
        }
    }

    pub fn params(&self) -> SqueezeExciteParams<'_> {
        let [channels, reduced] = self.channels;
        let reduce = PointwiseParams::new(channels, reduced, &self.reduce).bias(&self.bias[0]);
        let expand = PointwiseParams::new(reduced, channels, &self.expand).bias(&self.bias[1]);
        SqueezeExciteParams::new(reduce, expand)
    }
}

/// Where a tensor is kept. Slack is what strides have over their least, and the slice
/// over the last element; without it the tensor is dense.
#[derive(Debug, Arbitrary)]
pub struct Place {
    planar: bool,
    slack: Option<[Below<6>; 4]>,
}

/// What lies between a tensor's elements. It must stay.
const GAP: f32 = 1234.5;

impl Place {
    fn layout(&self) -> Layout {
        if self.planar { Layout::Nchw } else { Layout::Nhwc }
    }

    /// The strides of batch, row, pixel and channel, and the slice's length.
    fn strides(&self, shape: Shape, channels: usize) -> ([usize; 4], usize) {
        let Shape { batch, height, width } = shape;
        // From the innermost axis outwards.
        let sizes = match self.planar {
            false => [channels, width, height, batch],
            true => [width, height, channels, batch],
        };
        let [a, b, c, end] = self.slack.map_or([0; 4], |slack| slack.map(Below::get));
        let (mut strides, mut extent) = ([1; 4], 1);
        for ((stride, size), slack) in strides.iter_mut().zip(sizes).zip([0, a, b, c]) {
            *stride = extent + slack;
            extent += size.saturating_sub(1) * *stride;
        }
        let [a, b, c, d] = strides;
        (if self.planar { [d, b, a, c] } else { [d, c, b, a] }, extent + end)
    }

    /// The options with this place for the input or the output.
    fn apply<const OUTPUT: bool>(
        &self,
        options: PlanOptions,
        shape: Shape,
        channels: usize,
    ) -> PlanOptions {
        let ([batch, row, pixel, plane], _) = self.strides(shape, channels);
        let strides = match self.planar {
            false => Strides::Nhwc { batch, row, pixel },
            true => Strides::Nchw { batch, plane, row },
        };
        match (self.slack, OUTPUT) {
            (None, false) => options.input_layout(self.layout()),
            (None, true) => options.output_layout(self.layout()),
            (Some(_), false) => options.input_strides(strides),
            (Some(_), true) => options.output_strides(strides),
        }
    }

    /// Each element's place, in the order of a dense NHWC tensor.
    fn places(&self, shape: Shape, channels: usize) -> impl Iterator<Item = usize> {
        let ([n, y, x, c], _) = self.strides(shape, channels);
        let Shape { batch, height, width } = shape;
        (0..batch * height * width * channels).map(move |i| {
            let (pixel, channel) = (i / channels, i % channels);
            let (row, column) = (pixel / width, pixel % width);
            row / height * n + row % height * y + column * x + channel * c
        })
    }

    /// A dense NHWC tensor, or nothing but gaps, put where it belongs.
    fn place(&self, shape: Shape, channels: usize, dense: &[f32], gap: f32) -> Vec<f32> {
        let mut slice = vec![gap; self.strides(shape, channels).1];
        for (place, &x) in self.places(shape, channels).zip(dense) {
            slice[place] = x;
        }
        slice
    }
}

/// How a plan is made and run.
#[derive(Debug, Arbitrary)]
pub struct Options {
    input: Place,
    output: Place,
    threads: Below<5>,
    schedule: Order,
    l2: u16,
    flush: bool,
}

#[derive(Debug, Arbitrary)]
enum Order {
    Auto,
    Fused,
    Unfused,
    Tiled { rows: u8, channels: u8 },
}

/// A plan of any operation.
pub trait Plan {
    fn output(&self) -> Shape;
    /// `place` is where the output is.
    fn run(&self, x: &[f32], y: &mut [f32], place: &Place) -> Result<()>;
}

/// A 1x1 convolution and what is added to its output.
pub struct WithResidual<'a> {
    pub plan: PointwisePlan,
    pub shape: Shape,
    pub c_out: usize,
    pub residual: Option<&'a [f32]>,
}

impl Plan for WithResidual<'_> {
    fn output(&self) -> Shape {
        self.shape
    }
    fn run(&self, x: &[f32], y: &mut [f32], place: &Place) -> Result<()> {
        match self.residual {
            None => self.plan.run_with(&Threads, x, y),
            Some(residual) => {
                let residual = place.place(self.shape, self.c_out, residual, f32::NAN);
                self.plan.run_residual(x, &residual, y)
            }
        }
    }
}

impl Plan for DepthwisePlan {
    fn output(&self) -> Shape {
        self.output_shape()
    }
    fn run(&self, x: &[f32], y: &mut [f32], _: &Place) -> Result<()> {
        self.run_with(&Threads, x, y)
    }
}

impl Plan for BottleneckPlan {
    fn output(&self) -> Shape {
        self.output_shape()
    }
    fn run(&self, x: &[f32], y: &mut [f32], _: &Place) -> Result<()> {
        // Not a byte more than is asked for, and NaN wherever it is not written.
        let mut scratch = vec![MaybeUninit::new(0xff); self.scratch_bytes()];
        self.run_with(&Threads, x, y, &mut scratch)
    }
}

impl Options {
    fn plan_options(&self) -> PlanOptions {
        let schedule = match self.schedule {
            Order::Auto => Schedule::Auto,
            Order::Fused => Schedule::Fused,
            Order::Unfused => Schedule::Unfused,
            Order::Tiled { rows, channels } => {
                Schedule::Tiled { rows: rows.into(), channels: channels.into() }
            }
        };
        let caches = Caches { l2: self.l2.into(), ..Caches::default() };
        PlanOptions::new()
            .threads(self.threads.get())
            .schedule(schedule)
            .caches(caches)
            .flush_denormals(self.flush)
    }

    /// Makes and runs a plan on every instruction set. Where the reference has a
    /// result, it must be the same, NaN for NaN, and gaps stay as they were; where it
    /// has an error, there must be that.
    pub fn check<P: Plan>(
        &self,
        expected: &Result<Vec<f32>>,
        (shape, x): (Shape, &[f32]),
        [c_in, c_out]: [usize; 2],
        plan: impl Fn(Isa, &PlanOptions) -> Result<P>,
    ) {
        for isa in Isa::available() {
            let run = || {
                // The output's strides can be chosen only for a shape that there is.
                let output = plan(isa, &PlanOptions::new())?.output();
                let options = self.input.apply::<false>(self.plan_options(), shape, c_in);
                let options = self.output.apply::<true>(options, output, c_out);
                // NaN in a gap would spread if it were read.
                let x = self.input.place(shape, c_in, x, f32::NAN);
                let mut y = self.output.place(output, c_out, &[], GAP);
                plan(isa, &options)?.run(&x, &mut y, &self.output)?;
                let dense: Vec<f32> = self.output.places(output, c_out).map(|at| y[at]).collect();
                self.output.places(output, c_out).for_each(|at| y[at] = GAP);
                assert!(y.iter().all(|&gap| gap == GAP), "{isa}: wrote between elements");
                Ok(dense)
            };
            match (expected, run()) {
                (Ok(expected), Ok(y)) => {
                    assert_eq!(expected.len(), y.len());
                    for (i, (e, y)) in expected.iter().zip(&y).enumerate() {
                        assert!(e == y || e.is_nan() && y.is_nan(), "{isa}: {i} is {y}, not {e}");
                    }
                }
                // The reference knows no threads.
                (Ok(_), Err(Error::ZeroSize { .. })) if self.threads.get() == 0 => {}
                (expected, result) => assert_eq!(expected, &result, "{isa}"),
            }
        }
    }
}

/// A thread for each task.
struct Threads;

/// Enough for kernels that are compiled without optimisation.
const STACK: usize = 64 << 20;

impl Executor for Threads {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for i in 0..n_tasks {
                let thread = Builder::new().stack_size(STACK);
                thread.spawn_scoped(scope, move || run_task(i)).expect("a thread");
            }
        });
    }
}
