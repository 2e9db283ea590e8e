//! Strategies for proptest.

use proptest::array::{uniform2, uniform3};
use proptest::prelude::*;
use proptest::sample::select;

use crate::activation::Activation;
use crate::params::Residual;
use crate::shape::{Padding, Shape};

use super::data::{Data, Random};
use super::layers::{
    Block, ConvNext, DepthwiseLayer, First, Form, Gate, Norm, PointwiseLayer, Window,
};

/// Up to `batch` images of up to `side` x `side` pixels.
pub fn shapes(batch: usize, side: usize) -> impl Strategy<Value = Shape> {
    (1..=batch, 1..=side, 1..=side).prop_map(|(n, h, w)| Shape::new(n, h, w))
}

/// Channel counts around every multiple of usual vectors' lanes, up to 100.
pub fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..=33, 1 => 34usize..=100]
}

/// Channel multipliers of a depthwise layer, mostly 1.
pub fn multipliers() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(1usize), 1 => 2usize..=5, 1 => 15usize..=17]
}

/// Any data, each kind as often as others.
pub fn data() -> impl Strategy<Value = Data> {
    select(&Data::ALL)
}

/// Activations that go with the data: those that keep integers integers where it is
/// exact, else all that have a steepest slope.
pub fn activations(data: Data) -> impl Strategy<Value = Activation> {
    const EXACT: usize = 5;
    const ALL: [Activation; EXACT + 7] = [
        Activation::Identity,
        Activation::Relu,
        Activation::Relu6,
        Activation::Clamp { lo: -3.0, hi: 4.0 },
        Activation::Clamp { lo: 1.0, hi: f32::INFINITY },
        Activation::LeakyRelu { slope: 0.1 },
        Activation::HardSwish,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Sigmoid,
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
    ];
    select(if data.is_exact() { &ALL[..EXACT] } else { &ALL })
}

/// Windows: the usual squares, rows, columns and others, with strides up to 4, dilations
/// up to 3, and paddings as large as may be.
pub fn windows() -> impl Strategy<Value = Window> {
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

/// Channels between the stages of squeeze-and-excite, in a quarter of the cases.
fn gates() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![3 => Just(None), 1 => (1usize..=40).prop_map(Some)]
}

/// Forms of a block: with expansion, stem or neither, with or without projection and
/// residual.
pub fn forms() -> impl Strategy<Value = Form> {
    let first = prop_oneof![
        2 => Just(First::None),
        4 => Just(First::Expand),
        3 => windows().prop_map(First::Stem),
    ];
    let project = prop_oneof![3 => Just(true), 1 => Just(false)];
    (uniform3(channels()), first, windows(), gates(), project, any::<bool>()).prop_map(
        |(c, first, window, gate, project, add)| {
            let gate = gate.filter(|_| project);
            let mut form = Form { c, first, window, gate, project, residual: add && project };
            fit(&mut form);
            form
        },
    )
}

/// Makes one part go with the others.
fn fit(form: &mut Form) {
    match form.first {
        First::None => form.c[0] = form.c[1],
        First::Expand => {}
        First::Stem(_) => form.c[0] = form.c[0] % 5 + 1,
    }
    if form.residual {
        // Equal shapes: SAME padding, stride 1, as many channels out as in.
        let stem = match &mut form.first {
            First::Stem(window) => Some(window),
            _ => None,
        };
        for window in stem.into_iter().chain([&mut form.window]) {
            window.stride = [1, 1];
            window.padding = Padding::SameUpper;
        }
        form.c[2] = form.c[0];
    }
}

/// 1x1 convolutions of up to 100 channels.
pub fn pointwise_layers(data: Data) -> impl Strategy<Value = PointwiseLayer> {
    (channels(), channels(), activations(data), any::<u64>()).prop_map(
        move |(c_in, c_out, activation, seed)| {
            PointwiseLayer::new(&mut Random::new(seed), data, [c_in, c_out], activation)
        },
    )
}

/// Depthwise convolutions of up to 100 channels and any [window](windows).
pub fn depthwise_layers(data: Data) -> impl Strategy<Value = DepthwiseLayer> {
    (channels(), multipliers(), windows(), activations(data), any::<u64>()).prop_map(
        move |(channels, multiplier, window, activation, seed)| {
            let random = &mut Random::new(seed);
            DepthwiseLayer::new(random, data, [channels, multiplier], window, activation)
        },
    )
}

/// Blocks of any [form](forms), but for gates where the data are exact.
pub fn blocks(data: Data) -> impl Strategy<Value = Block> {
    (forms(), uniform3(activations(data)), any::<u64>()).prop_map(
        move |(mut form, activations, seed)| {
            form.gate = form.gate.filter(|_| !data.is_exact());
            form.block(&mut Random::new(seed), data, activations)
        },
    )
}

/// Blocks in ConvNeXt's order, with any of its parts, but for gates and norms where the
/// data are exact.
pub fn convnexts(data: Data) -> impl Strategy<Value = ConvNext> {
    let residual =
        prop_oneof![Just(None), Just(Some(Residual::Input)), Just(Some(Residual::Depthwise))];
    let parts = (gates(), any::<[bool; 2]>(), residual);
    let activations = uniform2(activations(data));
    (uniform3(channels()), windows(), activations, parts, any::<u64>()).prop_map(
        move |(mut c, mut window, activations, (gate, [norm, scale], residual), seed)| {
            let random = &mut Random::new(seed);
            if residual.is_some() {
                c[2] = c[0];
            }
            if residual == Some(Residual::Input) {
                window.stride = [1, 1];
                window.padding = Padding::SameUpper;
            }
            let mut block = ConvNext::new(random, data, c, window, activations);
            if !data.is_exact() {
                block.gate = gate.map(|squeezed| Gate::new(random, data, c[0], squeezed));
                block.norm = norm.then(|| Norm {
                    weight: data.weights(random, c[0]),
                    bias: data.weights(random, c[0]),
                    epsilon: 1e-6,
                });
            }
            block.scale = scale.then(|| data.weights(random, c[2]));
            block.residual = residual;
            block
        },
    )
}
