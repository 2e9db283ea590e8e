//! The built-in lists: the distinct blocks of networks at 224 x 224, their stems,
//! and layers alone.

use mbconv::Activation::{self, Gelu, HardSigmoid, HardSwish, Identity, Relu, Relu6, Sigmoid};

use super::{Kind, Workload};

/// A network's blocks, each row once. They start at 112 x 112 pixels.
struct Network {
    name: &'static str,
    /// Of the blocks' names.
    prefix: &'static str,
    /// Channels that the stem gives.
    stem: usize,
    /// Of the projection.
    outer: Activation,
    /// Whether equal shapes at both ends are added.
    residual: bool,
    /// Of squeeze-and-excite.
    gate: Activation,
    /// Rows under their activation: kernel, expanded channels (those of the
    /// input: no expansion), output channels, channels between the stages of
    /// squeeze-and-excite (0: there is none), stride, repeats.
    stages: &'static [(Activation, &'static [[usize; 6]])],
}

const HARD: Activation = HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };

const NETWORKS: [Network; 6] = [
    // Howard et al. 2017, table 1; relu6 as in the authors' code.
    Network {
        name: "mobilenet_v1",
        prefix: "mbv1",
        stem: 32,
        outer: Relu6,
        residual: false,
        gate: HARD,
        stages: &[(
            Relu6,
            &[
                [3, 32, 64, 0, 1, 1],
                [3, 64, 128, 0, 2, 1],
                [3, 128, 128, 0, 1, 1],
                [3, 128, 256, 0, 2, 1],
                [3, 256, 256, 0, 1, 1],
                [3, 256, 512, 0, 2, 1],
                [3, 512, 512, 0, 1, 5],
                [3, 512, 1024, 0, 2, 1],
                [3, 1024, 1024, 0, 1, 1],
            ],
        )],
    },
    // Sandler et al. 2018, table 2.
    Network {
        name: "mobilenet_v2",
        prefix: "mbv2",
        stem: 32,
        outer: Identity,
        residual: true,
        gate: HARD,
        stages: &[(
            Relu6,
            &[
                [3, 32, 16, 0, 1, 1],
                [3, 96, 24, 0, 2, 1],
                [3, 144, 24, 0, 1, 1],
                [3, 144, 32, 0, 2, 1],
                [3, 192, 32, 0, 1, 2],
                [3, 192, 64, 0, 2, 1],
                [3, 384, 64, 0, 1, 3],
                [3, 384, 96, 0, 1, 1],
                [3, 576, 96, 0, 1, 2],
                [3, 576, 160, 0, 2, 1],
                [3, 960, 160, 0, 1, 2],
                [3, 960, 320, 0, 1, 1],
            ],
        )],
    },
    // Howard et al. 2019, table 1.
    Network {
        name: "mobilenet_v3_large",
        prefix: "mbv3",
        stem: 16,
        outer: Identity,
        residual: true,
        gate: HARD,
        stages: &[
            (
                Relu,
                &[
                    [3, 16, 16, 0, 1, 1],
                    [3, 64, 24, 0, 2, 1],
                    [3, 72, 24, 0, 1, 1],
                    [5, 72, 40, 24, 2, 1],
                    [5, 120, 40, 32, 1, 2],
                ],
            ),
            (
                HardSwish,
                &[
                    [3, 240, 80, 0, 2, 1],
                    [3, 200, 80, 0, 1, 1],
                    [3, 184, 80, 0, 1, 2],
                    [3, 480, 112, 120, 1, 1],
                    [3, 672, 112, 168, 1, 1],
                    [5, 672, 160, 168, 2, 1],
                    [5, 960, 160, 240, 1, 2],
                ],
            ),
        ],
    },
    // Tan and Le 2019, table 1, as EfficientNet-Lite (Liu 2020) has it.
    Network {
        name: "efficientnet_lite0",
        prefix: "lite0",
        stem: 32,
        outer: Identity,
        residual: true,
        gate: HARD,
        stages: &[(
            Relu6,
            &[
                [3, 32, 16, 0, 1, 1],
                [3, 96, 24, 0, 2, 1],
                [3, 144, 24, 0, 1, 1],
                [5, 144, 40, 0, 2, 1],
                [5, 240, 40, 0, 1, 1],
                [3, 240, 80, 0, 2, 1],
                [3, 480, 80, 0, 1, 2],
                [5, 480, 112, 0, 1, 1],
                [5, 672, 112, 0, 1, 2],
                [5, 672, 192, 0, 2, 1],
                [5, 1152, 192, 0, 1, 3],
                [3, 1152, 320, 0, 1, 1],
            ],
        )],
    },
    // Tan et al. 2019, figure 7.
    Network {
        name: "mnasnet_a1",
        prefix: "mnas",
        stem: 32,
        outer: Identity,
        residual: true,
        gate: Sigmoid,
        stages: &[(
            Relu,
            &[
                [3, 32, 16, 0, 1, 1],
                [3, 96, 24, 0, 2, 1],
                [3, 144, 24, 0, 1, 1],
                [5, 72, 40, 6, 2, 1],
                [5, 120, 40, 10, 1, 2],
                [3, 240, 80, 0, 2, 1],
                [3, 480, 80, 0, 1, 3],
                [3, 480, 112, 20, 1, 1],
                [3, 672, 112, 28, 1, 1],
                [5, 672, 160, 28, 2, 1],
                [5, 960, 160, 40, 1, 2],
                [3, 960, 320, 0, 1, 1],
            ],
        )],
    },
    // Cui et al. 2021 (PP-LCNet): both layers of a block have the activation.
    Network {
        name: "pp_lcnet",
        prefix: "lcnet",
        stem: 16,
        outer: HardSwish,
        residual: false,
        gate: HARD,
        stages: &[(
            HardSwish,
            &[
                [3, 16, 32, 0, 1, 1],
                [3, 32, 64, 0, 2, 1],
                [3, 64, 64, 0, 1, 1],
                [3, 64, 128, 0, 2, 1],
                [3, 128, 128, 0, 1, 1],
                [3, 128, 256, 0, 2, 1],
                [5, 256, 256, 0, 1, 5],
                [5, 256, 512, 64, 2, 1],
                [5, 512, 512, 128, 1, 1],
            ],
        )],
    },
];

/// Side, input and output channels.
const POINTWISE: [[usize; 3]; 8] = [
    [56, 24, 144],
    [56, 144, 24],
    [28, 192, 32],
    [14, 96, 576],
    [14, 576, 96],
    [7, 160, 960],
    [7, 960, 160],
    [7, 320, 1280],
];

/// Kernel, stride, side, channels.
const DEPTHWISE: [[usize; 4]; 16] = [
    [3, 1, 112, 96],
    [3, 1, 56, 144],
    [3, 1, 28, 192],
    [3, 1, 14, 576],
    [3, 1, 7, 960],
    [3, 2, 112, 96],
    [3, 2, 56, 144],
    [5, 1, 28, 240],
    [5, 1, 14, 672],
    [5, 1, 7, 1152],
    [5, 2, 56, 144],
    [5, 2, 14, 672],
    [7, 1, 56, 96],
    [7, 1, 28, 192],
    [7, 1, 14, 384],
    [7, 1, 7, 768],
];

impl Network {
    fn blocks(&self) -> Vec<Workload> {
        let (mut blocks, mut c_in, mut side) = (Vec::new(), self.stem, 112);
        for &(inner, rows) in self.stages {
            for &[kernel, c_mid, c_out, squeezed, stride, repeats] in rows {
                blocks.push(Workload {
                    name: format!("{}_b{}", self.prefix, blocks.len()),
                    kind: if c_mid == c_in { Kind::Separable } else { Kind::Bottleneck },
                    side,
                    c: [c_in, c_mid, c_out],
                    stride,
                    kernel,
                    activations: [inner, self.outer],
                    residual: self.residual && stride == 1 && c_in == c_out,
                    excite: (squeezed > 0).then_some((squeezed, self.gate)),
                    repeats,
                });
                c_in = c_out;
                side = side.div_ceil(stride);
            }
        }
        blocks
    }

    /// The stem and the first block in one.
    fn start(&self) -> Option<Workload> {
        let first = self.blocks().into_iter().next()?;
        let (name, kind, [_, c_mid, c_out]) =
            (format!("{}_stem", self.prefix), Kind::Stem, first.c);
        Some(Workload { name, kind, side: 224, c: [3, c_mid, c_out], residual: false, ..first })
    }
}

/// The stems, but for MobileNetV3's, which has an activation of its own.
fn stems() -> Vec<Workload> {
    let networks = NETWORKS.iter().filter(|network| network.stages.len() == 1);
    networks.filter_map(Network::start).collect()
}

/// A layer alone, without activation.
fn layer(name: String, kind: Kind, side: usize, c: [usize; 3], window: [usize; 2]) -> Workload {
    let [kernel, stride] = window;
    let (activations, residual, excite, repeats) = ([Identity; 2], false, None, 1);
    Workload { name, kind, side, c, stride, kernel, activations, residual, excite, repeats }
}

fn pointwise() -> Vec<Workload> {
    let workload = |[side, c_in, c_out]: [usize; 3]| {
        let name = format!("pw_{side}x{c_in}x{c_out}");
        layer(name, Kind::Pointwise, side, [c_in, c_in, c_out], [1, 1])
    };
    POINTWISE.map(workload).into()
}

fn depthwise() -> Vec<Workload> {
    let workload = |[kernel, stride, side, c]: [usize; 4]| {
        let name = format!("dw{kernel}s{stride}_{side}x{c}");
        layer(name, Kind::Depthwise, side, [c; 3], [kernel, stride])
    };
    DEPTHWISE.map(workload).into()
}

/// The stages of ConvNeXt-T (Liu et al. 2022, table 9).
fn convnext() -> Vec<Workload> {
    let workload = |[side, c, repeats]: [usize; 3]| {
        let name = format!("cnx_{side}x{c}");
        let layer = layer(name, Kind::ConvNext, side, [c; 3], [7, 1]);
        Workload { activations: [Gelu, Identity], residual: true, repeats, ..layer }
    };
    [[56, 96, 3], [28, 192, 3], [14, 384, 9], [7, 768, 3]].map(workload).into()
}

/// Every list with its name.
pub(crate) fn all() -> Vec<(&'static str, Vec<Workload>)> {
    let networks = NETWORKS.iter().map(|network| (network.name, network.blocks()));
    let others = [
        ("convnext_t", convnext()),
        ("stems", stems()),
        ("pointwise", pointwise()),
        ("depthwise", depthwise()),
    ];
    networks.chain(others).collect()
}

/// The list of that name.
pub(crate) fn list(name: &str) -> Option<Vec<Workload>> {
    all().into_iter().find(|(known, _)| *known == name).map(|(_, list)| list)
}
