//! What the tests share: data, the error bound, the instruction sets to cover.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::env;

use mbconv::{
    Activation, BottleneckParams, ConvParams, Depthwise, DepthwiseParams, Executor, Isa, Layout,
    Padding, PlanOptions, PointwiseParams, Shape, Strides, reference,
};
use proptest::prelude::*;

/// The instruction sets to test: all that this CPU has, or the one that
/// `MBCONV_ISA` names. Prints them once per test binary; `MBCONV_REQUIRE_ISA`
/// turns the absence of one into a failure.
pub fn isas() -> Vec<Isa> {
    let forced = env::var("MBCONV_ISA").ok();
    let isas: Vec<Isa> =
        Isa::available().filter(|isa| forced.as_deref().is_none_or(|f| f == isa.name())).collect();
    let names: Vec<&str> = isas.iter().map(|isa| isa.name()).collect();
    assert!(!names.is_empty(), "MBCONV_ISA={forced:?} cannot be run here");
    if let Ok(required) = env::var("MBCONV_REQUIRE_ISA") {
        assert!(names.contains(&required.as_str()), "{required} is required, there is {names:?}");
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    // Straight to the stream: the test harness would keep a println back.
    ONCE.call_once(|| {
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), "mbconv: ISAs covered: {}", names.join(", "));
    });
    isas
}

/// A small generator (SplitMix64), so that a seed is a test case.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// The data of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Uniform in [-1, 1).
    Real,
    /// Integers so small that every sum is exact: results must match bit for bit.
    Integer,
}

impl Fill {
    pub fn vec(self, rng: &mut Rng, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| match self {
                Self::Real => rng.float(),
                Self::Integer => rng.below(5) as f32 - 2.0,
            })
            .collect()
    }
}

/// A layer that owns its weights.
#[derive(Debug, Clone)]
pub struct Layer {
    pub weights: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub activation: Activation,
}

impl Layer {
    pub fn new(rng: &mut Rng, fill: Fill, weights: usize, bias: usize, act: Activation) -> Self {
        let bias = (rng.below(4) > 0).then(|| fill.vec(rng, bias));
        Self { weights: fill.vec(rng, weights), bias, activation: act }
    }

    pub fn pointwise(&self, c_in: usize, c_out: usize) -> PointwiseParams<'_> {
        let params = PointwiseParams::new(c_in, c_out, &self.weights).activation(self.activation);
        match &self.bias {
            Some(bias) => params.bias(bias),
            None => params,
        }
    }

    pub fn conv(&self, c_in: usize, c_out: usize, window: &Window) -> ConvParams<'_> {
        let params = ConvParams::new(c_in, c_out, window.kernel, &self.weights)
            .stride(window.stride)
            .dilation(window.dilation)
            .padding(window.padding)
            .activation(self.activation);
        match &self.bias {
            Some(bias) => params.bias(bias),
            None => params,
        }
    }

    /// The channel multiplier is told by the number of weights.
    pub fn depthwise(&self, channels: usize, window: &Window) -> DepthwiseParams<'_> {
        let taps = window.kernel[0] * window.kernel[1];
        let params = DepthwiseParams::new(channels, window.kernel, &self.weights)
            .stride(window.stride)
            .dilation(window.dilation)
            .padding(window.padding)
            .multiplier(self.weights.len() / (taps * channels))
            .activation(self.activation);
        match &self.bias {
            Some(bias) => params.bias(bias),
            None => params,
        }
    }

    fn abs(&self) -> Self {
        let abs = |v: &Vec<f32>| v.iter().map(|x| x.abs()).collect();
        Self {
            weights: abs(&self.weights),
            bias: self.bias.as_ref().map(abs),
            activation: Activation::Identity,
        }
    }

    fn without_bias(&self) -> Self {
        Self { bias: None, ..self.clone() }
    }
}

/// Kernel, stride, dilation and padding.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub padding: Padding,
}

impl Window {
    /// What comes out of images of `shape`, which are not too small.
    pub fn output(&self, shape: Shape) -> Shape {
        let weights = vec![0.0; self.kernel[0] * self.kernel[1]];
        let params = DepthwiseParams::new(1, self.kernel, &weights)
            .stride(self.stride)
            .dilation(self.dilation)
            .padding(self.padding);
        Depthwise::new(&params).unwrap().plan(shape).unwrap().output_shape()
    }
}

/// The largest error that f32 may show against the f64 reference, element by
/// element: each stage adds `(K + 4) * eps * sum |a||b|` (Higham 2002, 3.1) to
/// what its inputs already carry, and an activation stretches the error by its
/// Lipschitz constant and adds a few roundings.
pub struct Bound {
    magnitude: Vec<f32>,
    error: Vec<f32>,
}

impl Bound {
    pub fn exact(input: &[f32]) -> Self {
        let magnitude = input.iter().map(|x| x.abs()).collect();
        Self { magnitude, error: vec![0.0; input.len()] }
    }

    pub fn pointwise(self, layer: &Layer, c_in: usize, c_out: usize, shape: Shape) -> Self {
        let sum = |layer: &Layer, x: &[f32]| {
            reference::pointwise(&layer.pointwise(c_in, c_out), shape, x, None).unwrap()
        };
        self.stage(layer, c_in, sum)
    }

    pub fn depthwise(self, layer: &Layer, c: usize, window: &Window, shape: Shape) -> Self {
        let sum = |layer: &Layer, x: &[f32]| {
            reference::depthwise(&layer.depthwise(c, window), shape, x).unwrap()
        };
        self.stage(layer, window.kernel[0] * window.kernel[1], sum)
    }

    /// The convolution alone: a 1x1 depthwise one of ones leaves it as it is.
    pub fn conv(
        self,
        layer: &Layer,
        c_in: usize,
        c_out: usize,
        window: &Window,
        shape: Shape,
    ) -> Self {
        let ones = vec![1.0; c_out];
        let sum = |layer: &Layer, x: &[f32]| {
            let block =
                BottleneckParams::without_project(DepthwiseParams::new(c_out, [1, 1], &ones))
                    .stem(layer.conv(c_in, c_out, window));
            reference::bottleneck(&block, shape, x).unwrap()
        };
        self.stage(layer, window.kernel[0] * window.kernel[1] * c_in, sum)
    }

    fn stage(self, layer: &Layer, k: usize, sum: impl Fn(&Layer, &[f32]) -> Vec<f32>) -> Self {
        let abs = layer.abs();
        let magnitude = sum(&abs, &self.magnitude);
        let carried = sum(&abs.without_bias(), &self.error);
        let (stretch, offset) = match layer.activation {
            Activation::HardSwish => (1.5, 0.0),
            Activation::Silu | Activation::Gelu | Activation::GeluTanh => (1.2, 0.0),
            Activation::HardSigmoid { alpha, beta } => (alpha.abs(), beta.abs()),
            Activation::LeakyRelu { slope } => (slope.abs().max(1.0), 0.0),
            Activation::Clamp { lo, hi } => {
                (1.0, lo.abs().min(f32::MAX).max(if hi.is_finite() { hi.abs() } else { 0.0 }))
            }
            Activation::Sigmoid => (0.25, 1.0),
            _ => (1.0, 0.0),
        };
        let offset = if f32::is_finite(offset) && offset < 1e30 { offset } else { 0.0 };
        let (k, eps) = (k as f32, f32::EPSILON);
        let error = magnitude
            .iter()
            .zip(&carried)
            .map(|(m, c)| stretch * (c + (k + 4.0) * eps * m) + 8.0 * eps * (stretch * m + offset))
            .collect();
        let magnitude = magnitude.iter().map(|m| stretch.max(1.0) * m + offset).collect();
        Self { magnitude, error }
    }

    pub fn residual(mut self, residual: &[f32]) -> Self {
        for ((m, e), r) in self.magnitude.iter_mut().zip(&mut self.error).zip(residual) {
            *m += r.abs();
            *e += 2.0 * f32::EPSILON * *m;
        }
        self
    }

    /// Panics at the first element that is off.
    pub fn check(&self, context: &str, expected: &[f32], actual: &[f32]) {
        assert_eq!(expected.len(), actual.len(), "{context}: length");
        for (i, (e, a)) in expected.iter().zip(actual).enumerate() {
            assert!(
                (e - a).abs() <= self.error[i],
                "{context}: element {i} is {a}, expected {e} within {}",
                self.error[i]
            );
        }
    }
}

/// Equal as numbers, element by element; NaN equals NaN.
pub fn check_exact(context: &str, expected: &[f32], actual: &[f32]) {
    assert_eq!(expected.len(), actual.len(), "{context}: length");
    for (i, (e, a)) in expected.iter().zip(actual).enumerate() {
        assert!(e == a || (e.is_nan() && a.is_nan()), "{context}: element {i} is {a}, not {e}");
    }
}

/// Equal bit for bit.
pub fn check_bits(context: &str, expected: &[f32], actual: &[f32]) {
    assert_eq!(expected.len(), actual.len(), "{context}: length");
    for (i, (e, a)) in expected.iter().zip(actual).enumerate() {
        assert_eq!(e.to_bits(), a.to_bits(), "{context}: element {i} is {a}, not {e}");
    }
}

pub fn any_activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        exact_activation(),
        Just(Activation::LeakyRelu { slope: 0.1 }),
        Just(Activation::HardSwish),
        Just(Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }),
        Just(Activation::Sigmoid),
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
    ]
}

/// Those that keep integers integers.
pub fn exact_activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Identity),
        Just(Activation::Relu),
        Just(Activation::Relu6),
        Just(Activation::Clamp { lo: -3.0, hi: 4.0 }),
        Just(Activation::Clamp { lo: 1.0, hi: f32::INFINITY }),
    ]
}

pub fn any_fill() -> impl Strategy<Value = Fill> {
    prop_oneof![Just(Fill::Real), Just(Fill::Integer)]
}

/// An activation that goes with the data.
pub fn activation_for(fill: Fill) -> BoxedStrategy<Activation> {
    match fill {
        Fill::Real => any_activation().boxed(),
        Fill::Integer => exact_activation().boxed(),
    }
}

/// Channel multipliers of a depthwise layer, mostly none.
pub fn multiplier() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(1usize), 1 => 2usize..=5, 1 => 15usize..=17]
}

/// Channel counts around every multiple of the vector widths.
pub fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..=33, 1 => 34usize..=100]
}

pub fn window() -> impl Strategy<Value = Window> {
    let kernel = prop_oneof![
        3 => Just([3usize, 3]),
        2 => Just([5, 5]),
        2 => Just([7, 7]),
        1 => Just([1, 7]),
        1 => (1usize..=7).prop_map(|n| [n, 1]),
        1 => (1usize..=7, 1usize..=3).prop_map(|(n, k)| [n, 2 * k + 1]),
        1 => Just([2, 2]),
        1 => Just([9, 9]),
        1 => [1usize..=4, 1usize..=4],
    ];
    let stride =
        prop_oneof![3 => Just([1usize, 1]), 2 => Just([2, 2]), 1 => [1usize..=4, 1usize..=4]];
    let dilation = prop_oneof![4 => Just([1usize, 1]), 1 => [1usize..=3, 1usize..=3]];
    (kernel, stride, dilation).prop_flat_map(|(kernel, stride, dilation)| {
        let extent = |i: usize| dilation[i] * (kernel[i] - 1) + 1;
        let (h, w) = (extent(0), extent(1));
        let padding = prop_oneof![
            4 => (0..h, 0..h, 0..w, 0..w).prop_map(|(top, bottom, left, right)| {
                Padding::Explicit { top, bottom, left, right }
            }),
            1 => Just(Padding::SameUpper),
            1 => Just(Padding::SameLower),
        ];
        padding.prop_map(move |padding| Window { kernel, stride, dilation, padding })
    })
}

/// A whole block that owns its weights.
#[derive(Debug, Clone)]
pub struct Block {
    /// Input, depthwise and output channels.
    pub c: [usize; 3],
    /// Of a full convolution in the place of the expansion.
    pub stem: Option<Window>,
    pub expand: Option<Layer>,
    pub depthwise: Layer,
    pub project: Option<Layer>,
    pub window: Window,
    pub residual: bool,
}

/// What comes before a block's depthwise convolution.
#[derive(Debug, Clone, Copy)]
pub enum First {
    None,
    Expand,
    Stem(Window),
}

/// A block without its weights.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub c: [usize; 3],
    pub first: First,
    pub window: Window,
    pub project: bool,
    pub residual: bool,
}

impl Form {
    pub fn any() -> impl Strategy<Value = Self> {
        let first = prop_oneof![
            2 => Just(First::None),
            4 => Just(First::Expand),
            3 => window().prop_map(First::Stem),
        ];
        let project = prop_oneof![3 => Just(true), 1 => Just(false)];
        let c = proptest::array::uniform3(channels());
        (c, first, window(), project, any::<bool>()).prop_map(|(c, first, window, project, add)| {
            let mut form = Self { c, first, window, project, residual: add && project };
            form.fit();
            form
        })
    }

    /// Makes one part go with the others.
    fn fit(&mut self) {
        match self.first {
            First::None => self.c[0] = self.c[1],
            First::Expand => {}
            First::Stem(_) => self.c[0] = self.c[0] % 5 + 1,
        }
        if self.residual {
            // Equal shapes: SAME padding, stride 1, as many channels out as in.
            let stem = match &mut self.first {
                First::Stem(window) => Some(window),
                _ => None,
            };
            for window in stem.into_iter().chain([&mut self.window]) {
                window.stride = [1, 1];
                window.padding = Padding::SameUpper;
            }
            self.c[2] = self.c[0];
        }
    }
}

impl Block {
    pub fn new(rng: &mut Rng, fill: Fill, form: &Form, acts: [Activation; 3]) -> Self {
        let &Form { c, first, window, project, residual } = form;
        let taps = |window: &Window| window.kernel[0] * window.kernel[1];
        let (stem, inputs) = match first {
            First::Stem(stem) => (Some(stem), c[0] * taps(&stem)),
            _ => (None, c[0]),
        };
        let expand = !matches!(first, First::None);
        Self {
            c,
            stem,
            expand: expand.then(|| Layer::new(rng, fill, inputs * c[1], c[1], acts[0])),
            depthwise: Layer::new(rng, fill, taps(&window) * c[1], c[1], acts[1]),
            project: project.then(|| Layer::new(rng, fill, c[1] * c[2], c[2], acts[2])),
            window,
            residual,
        }
    }

    pub fn params(&self) -> BottleneckParams<'_> {
        let [c_in, c_mid, c_out] = self.c;
        let depthwise = self.depthwise.depthwise(c_mid, &self.window);
        let params = match &self.project {
            Some(project) => BottleneckParams::new(depthwise, project.pointwise(c_mid, c_out)),
            None => BottleneckParams::without_project(depthwise),
        };
        let params = params.residual(self.residual);
        match (&self.expand, &self.stem) {
            (Some(stem), Some(window)) => params.stem(stem.conv(c_in, c_mid, window)),
            (Some(expand), None) => params.expand(expand.pointwise(c_in, c_mid)),
            (None, _) => params,
        }
    }

    pub fn bound(&self, shape: Shape, output: Shape, input: &[f32]) -> Bound {
        let [c_in, c_mid, c_out] = self.c;
        let mut bound = Bound::exact(input);
        let mut middle = shape;
        match (&self.expand, &self.stem) {
            (Some(stem), Some(window)) => {
                bound = bound.conv(stem, c_in, c_mid, window, shape);
                middle = window.output(shape);
            }
            (Some(expand), None) => bound = bound.pointwise(expand, c_in, c_mid, shape),
            (None, _) => {}
        }
        bound = bound.depthwise(&self.depthwise, c_mid, &self.window, middle);
        if let Some(project) = &self.project {
            bound = bound.pointwise(project, c_mid, c_out, output);
        }
        if self.residual { bound.residual(input) } else { bound }
    }
}

/// Executors that keep their word and such that do not: all must give one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// A thread for each task.
    Threads,
    Backwards,
    /// Every task on each of three threads at once, and numbers that are none.
    TooOften,
    Never,
}

impl Executor for Pool {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        let each = || (0..n_tasks).chain([n_tasks, usize::MAX]).for_each(run_task);
        match self {
            Self::Threads => std::thread::scope(|scope| {
                (0..n_tasks).for_each(|i| drop(scope.spawn(move || run_task(i))));
            }),
            Self::Backwards => (0..n_tasks).rev().for_each(run_task),
            Self::TooOften => std::thread::scope(|scope| {
                (0..3).for_each(|_| drop(scope.spawn(each)));
            }),
            Self::Never => {}
        }
    }
}

pub fn pool() -> impl Strategy<Value = Pool> {
    prop_oneof![
        3 => Just(Pool::Threads),
        1 => Just(Pool::Backwards),
        1 => Just(Pool::TooOften),
        1 => Just(Pool::Never),
    ]
}

/// Where a test keeps a tensor: layout, what its strides have over their least, and
/// how much the slice goes on after the last element. Without slack it is dense.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    pub layout: Layout,
    pub slack: Option<[usize; 4]>,
}

/// What lies between elements; it must stay.
const CANARY: f32 = 1234.5;

impl Placement {
    pub const NHWC: Self = Self { layout: Layout::Nhwc, slack: None };

    pub fn any() -> impl Strategy<Value = Self> {
        let slack =
            proptest::option::of(proptest::array::uniform4(prop_oneof![Just(0usize), 1usize..=5,]));
        let layout = prop_oneof![Just(Layout::Nhwc), Just(Layout::Nchw)];
        (layout, slack).prop_map(|(layout, slack)| Self { layout, slack })
    }

    /// The strides of batch, row, pixel and channel, and the slice's length.
    fn strides(&self, shape: Shape, channels: usize) -> ([usize; 4], usize) {
        let Shape { batch, height, width } = shape;
        let sizes = match self.layout {
            Layout::Nhwc => [channels, width, height, batch],
            Layout::Nchw => [width, height, channels, batch],
        };
        let slack = self.slack.unwrap_or_default();
        let (mut strides, mut extent) = ([1; 4], 1);
        for (i, size) in sizes.into_iter().enumerate() {
            strides[i] = extent + if i == 0 { 0 } else { slack[i - 1] };
            extent += (size - 1) * strides[i];
        }
        let [a, b, c, d] = strides;
        let strides = match self.layout {
            Layout::Nhwc => [d, c, b, a],
            Layout::Nchw => [d, b, a, c],
        };
        (strides, extent + slack[3])
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

    fn public(&self, shape: Shape, channels: usize) -> Strides {
        let ([batch, row, pixel, channel], _) = self.strides(shape, channels);
        match self.layout {
            Layout::Nhwc => Strides::Nhwc { batch, row, pixel },
            Layout::Nchw => Strides::Nchw { batch, plane: channel, row },
        }
    }

    pub fn input(&self, options: PlanOptions, shape: Shape, channels: usize) -> PlanOptions {
        match self.slack {
            None => options.input_layout(self.layout),
            Some(_) => options.input_strides(self.public(shape, channels)),
        }
    }

    pub fn output(&self, options: PlanOptions, shape: Shape, channels: usize) -> PlanOptions {
        match self.slack {
            None => options.output_layout(self.layout),
            Some(_) => options.output_strides(self.public(shape, channels)),
        }
    }

    /// A slice for the tensor.
    pub fn empty(&self, shape: Shape, channels: usize) -> Vec<f32> {
        vec![CANARY; self.strides(shape, channels).1]
    }

    /// A dense NHWC tensor put where it belongs.
    pub fn place(&self, shape: Shape, channels: usize, dense: &[f32]) -> Vec<f32> {
        let mut slice = self.empty(shape, channels);
        // NaN in a gap would spread if it were read.
        slice.fill(f32::NAN);
        for (place, &x) in self.places(shape, channels).zip(dense) {
            slice[place] = x;
        }
        slice
    }

    /// The dense NHWC tensor of what stands in `slice`, whose gaps must be untouched.
    pub fn collect(&self, context: &str, shape: Shape, channels: usize, slice: &[f32]) -> Vec<f32> {
        let dense = self.places(shape, channels).map(|place| slice[place]).collect();
        let mut gaps = slice.to_vec();
        self.places(shape, channels).for_each(|place| gaps[place] = CANARY);
        check_exact(&format!("{context}: gaps"), &vec![CANARY; gaps.len()], &gaps);
        dense
    }
}
