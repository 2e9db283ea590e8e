//! Where a test keeps a tensor.

use mbconv::{Layout, PlanOptions, Shape, Strides};
use proptest::prelude::*;

use super::check_exact;

/// A layout, what its strides have over their least, and
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
