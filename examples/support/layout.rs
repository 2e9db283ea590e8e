//! `--layout` of the example programs.
#![allow(dead_code, reason = "each program uses its part")]

use mbconv::{Layout, PlanOptions};

/// The layouts of input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layouts {
    pub(crate) name: &'static str,
    pub(crate) input: Layout,
    pub(crate) output: Layout,
}

const ALL: [Layouts; 4] = [
    Layouts { name: "nhwc", input: Layout::Nhwc, output: Layout::Nhwc },
    Layouts { name: "nchw", input: Layout::Nchw, output: Layout::Nchw },
    Layouts { name: "nhwc-nchw", input: Layout::Nhwc, output: Layout::Nchw },
    Layouts { name: "nchw-nhwc", input: Layout::Nchw, output: Layout::Nhwc },
];

impl Layouts {
    pub(crate) const NHWC: Self = ALL[0];

    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        ALL.into_iter().find(|known| known.name == name).ok_or_else(|| {
            let names = ALL.map(|known| known.name).join(", ");
            format!("no layout is named {name:?}; there are {names}")
        })
    }

    pub(crate) fn set(self, options: PlanOptions) -> PlanOptions {
        options.input_layout(self.input).output_layout(self.output)
    }
}

/// One image, `[height][width][channels]`, in a layout.
pub(crate) fn arranged(layout: Layout, image: &[f32], channels: usize) -> Vec<f32> {
    match layout {
        Layout::Nhwc => image.to_vec(),
        Layout::Nchw => turned(image, channels),
    }
}

/// The other way around.
pub(crate) fn channels_last(layout: Layout, image: &[f32], channels: usize) -> Vec<f32> {
    match layout {
        Layout::Nhwc => image.to_vec(),
        Layout::Nchw => turned(image, image.len() / channels),
    }
}

/// Rows of `row` f32 as columns.
fn turned(matrix: &[f32], row: usize) -> Vec<f32> {
    (0..row).flat_map(|i| matrix.iter().copied().skip(i).step_by(row)).collect()
}
