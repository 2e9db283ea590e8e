//! What can be wrong with a request, with the numbers that are wrong.

use core::fmt;

use alloc::string::String;

use crate::activation::Activation;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why a layer could not be built, planned or run.
///
/// Every check happens before any work: when a call returns an error, no output
/// has been written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least one is zero.
    ZeroSize {
        /// Which size.
        what: &'static str,
    },
    /// A product of sizes does not fit the address space.
    Overflow {
        /// What was being computed.
        what: &'static str,
    },
    /// A slice does not have the length that the shapes give.
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements (bytes for `"scratch"`) that the shapes ask for.
        expected: usize,
        /// Elements (bytes for `"scratch"`) that the slice has.
        actual: usize,
    },
    /// A stride is less than what lies within one step of it, so that elements
    /// would share a place.
    Stride {
        /// Which tensor.
        what: &'static str,
        /// The stride asked for, in f32.
        stride: usize,
        /// From the first element of a step to behind its last.
        extent: usize,
    },
    /// An output with gaps between its elements was to be given out as
    /// initialised.
    Gaps {
        /// f32 from the first element to behind the last.
        len: usize,
        /// The elements among them.
        elements: usize,
    },
    /// Two neighbouring stages disagree on the number of channels.
    ChannelMismatch {
        /// The stage that takes the channels.
        stage: &'static str,
        /// Channels that the stage before gives.
        given: usize,
        /// Channels that the stage takes.
        taken: usize,
    },
    /// The depthwise convolution of a block has a channel multiplier.
    MultiplierInBlock {
        /// The multiplier, which must be 1.
        multiplier: usize,
    },
    /// Explicit padding on a side is not smaller than the (dilated) kernel.
    PaddingTooLarge {
        /// `"top"`, `"bottom"`, `"left"` or `"right"`.
        side: &'static str,
        /// The padding asked for.
        padding: usize,
        /// The kernel's extent along that axis, dilation included.
        kernel: usize,
    },
    /// The padded input is smaller than the kernel, so that no output exists.
    EmptyOutput {
        /// `"height"` or `"width"`.
        axis: &'static str,
        /// Input size with its padding.
        padded: usize,
        /// The kernel's extent along that axis, dilation included.
        kernel: usize,
    },
    /// A residual asks that input and output have one shape.
    ResidualShape {
        /// Height, width and channels of the input.
        input: [usize; 3],
        /// Height, width and channels of the output.
        output: [usize; 3],
    },
    /// A residual is asked of a block without projection.
    ResidualWithoutProject,
    /// Squeeze-and-excite is asked of a block without projection.
    ExciteWithoutProject,
    /// An activation's parameter is NaN, infinite where it must be finite, or
    /// its lower bound is above its upper bound.
    InvalidActivation(
        /// The activation as given.
        Activation,
    ),
    /// A projection that is scaled has an activation, which the scale would have to
    /// follow.
    ScaledActivation(
        /// The activation as given.
        Activation,
    ),
    /// A norm's epsilon is not a positive number.
    InvalidEpsilon {
        /// The epsilon as given.
        epsilon: f32,
    },
    /// No instruction set has this name.
    UnknownIsa {
        /// The name as given.
        name: String,
    },
    /// The instruction set exists, but this CPU, operating system or build
    /// cannot run it.
    IsaUnavailable {
        /// The instruction set asked for.
        name: &'static str,
        /// The best one that can be run.
        best: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroSize { what } => write!(f, "{what} is 0, it must be at least 1"),
            Self::Overflow { what } => write!(f, "{what} does not fit the address space"),
            Self::Length { what, expected, actual } => {
                write!(f, "{what} has length {actual}, the shapes ask for {expected}")
            }
            Self::Stride { what, stride, extent } => {
                write!(f, "the {what} has a stride of {stride} over an extent of {extent}")
            }
            Self::Gaps { len, elements } => {
                write!(f, "only {elements} of the output's {len} elements would be initialised")
            }
            Self::ChannelMismatch { stage, given, taken } => {
                write!(f, "{stage} takes {taken} channels, the stage before it gives {given}")
            }
            Self::MultiplierInBlock { multiplier } => {
                write!(f, "a block's depthwise channel multiplier is {multiplier}, it must be 1")
            }
            Self::PaddingTooLarge { side, padding, kernel } => {
                write!(f, "padding {side} is {padding}, it must be less than the kernel's {kernel}")
            }
            Self::EmptyOutput { axis, padded, kernel } => {
                write!(f, "the output is empty: padded {axis} {padded}, kernel {kernel}")
            }
            Self::ResidualShape { input: [h, w, c], output: [oh, ow, oc] } => {
                write!(f, "a residual joins equal shapes, not {h}x{w}x{c} and {oh}x{ow}x{oc}")
            }
            Self::ResidualWithoutProject => {
                f.write_str("a block without projection cannot have a residual")
            }
            Self::ExciteWithoutProject => {
                f.write_str("a block without projection cannot have squeeze-and-excite")
            }
            Self::InvalidActivation(activation) => {
                write!(f, "{activation:?} has a parameter that is not allowed")
            }
            Self::ScaledActivation(activation) => {
                write!(
                    f,
                    "a projection that is scaled has no activation, this one has {activation:?}"
                )
            }
            Self::InvalidEpsilon { epsilon } => {
                write!(f, "a norm's epsilon is {epsilon}, it must be positive and finite")
            }
            Self::UnknownIsa { name } => {
                write!(f, "no ISA is named {name:?}; there are avx512, avx2, neon and portable")
            }
            Self::IsaUnavailable { name, best } => {
                write!(f, "this CPU or build cannot run {name}; the best it can run is {best}")
            }
        }
    }
}

impl core::error::Error for Error {}
