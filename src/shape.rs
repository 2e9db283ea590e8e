//! Shapes, padding and the arithmetic of a convolution's output, all checked.

use core::ops::Range;

use crate::error::{Error, Result};

/// The extent of a batch of images; the channels belong to the operation.
///
/// A tensor of this shape with `c` channels holds `batch * height * width * c`
/// f32 in NHWC order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
}

impl Shape {
    /// A batch of `batch` images of `height` x `width` pixels.
    pub const fn new(batch: usize, height: usize, width: usize) -> Self {
        Self { batch, height, width }
    }

    /// Elements of a tensor of this shape with `channels` channels.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`] when a size is zero, [`Error::Overflow`] when the
    /// tensor's bytes exceed `isize::MAX`.
    pub fn elements(&self, channels: usize) -> Result<usize> {
        let sizes = [
            ("batch", self.batch),
            ("height", self.height),
            ("width", self.width),
            ("channels", channels),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::ZeroSize { what });
        }
        elements("tensor", &sizes.map(|(_, n)| n))
    }
}

/// The product of sizes, provided that so many f32 fit the address space.
pub(crate) fn elements(what: &'static str, sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))
        .filter(|&n| n <= isize::MAX as usize / size_of::<f32>())
        .ok_or(Error::Overflow { what })
}

/// Twice the product of multiply-adds' counts: the floating-point operations.
pub(crate) fn operations(counts: &[usize]) -> Result<u64> {
    counts
        .iter()
        .try_fold(2u64, |product, &n| product.checked_mul(n as u64))
        .ok_or(Error::Overflow { what: "operations" })
}

/// Zeros around an image, in pixels.
///
/// With `e = dilation * (kernel - 1) + 1` the kernel's extent along an axis,
/// the output size is `(input + before + after - e) / stride + 1`, rounded
/// down. A padded tap contributes nothing, whatever its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Padding {
    /// Four sides, each less than the kernel's extent.
    Explicit {
        /// Rows above.
        top: usize,
        /// Rows below.
        bottom: usize,
        /// Columns on the left.
        left: usize,
        /// Columns on the right.
        right: usize,
    },
    /// The output has `ceil(input / stride)` pixels; of the
    /// `n = max(0, (output - 1) * stride + e - input)` padded ones `floor(n / 2)`
    /// are before, so that the odd one is at the end. TensorFlow's `SAME`, ONNX's
    /// `SAME_UPPER`. With stride 2 it pads an even image by one pixel less at
    /// the beginning than PyTorch's `padding = (e - 1) / 2`.
    SameUpper,
    /// As [`Padding::SameUpper`] with `ceil(n / 2)` before: the odd one is at the
    /// beginning. ONNX's `SAME_LOWER`.
    SameLower,
}

impl Padding {
    /// No padding: the output has `floor((input - e) / stride) + 1` pixels.
    /// TensorFlow's and ONNX's `VALID`.
    pub const VALID: Self = Self::uniform(0);

    /// The same padding on all four sides: PyTorch's `padding=n`.
    pub const fn uniform(n: usize) -> Self {
        Self::Explicit { top: n, bottom: n, left: n, right: n }
    }
}

/// The geometry of a sliding window: kernel, stride, dilation and padding, each
/// `[vertical, horizontal]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    pub(crate) padding: Padding,
}

/// A window laid over images of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) input: Shape,
    pub(crate) output: Shape,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Padding before the image: top, left.
    pub(crate) before: [usize; 2],
}

impl Window {
    /// The kernel's extent along each axis, dilation included.
    fn extent(&self) -> Result<[usize; 2]> {
        let axis = |i: usize| {
            (self.kernel[i] - 1)
                .checked_mul(self.dilation[i])
                .and_then(|n| n.checked_add(1))
                .filter(|&n| n <= isize::MAX as usize / size_of::<f32>())
                .ok_or(Error::Overflow { what: "dilated kernel" })
        };
        Ok([axis(0)?, axis(1)?])
    }

    /// All that can be checked without an input.
    pub(crate) fn validate(&self) -> Result<()> {
        let sizes = [
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::ZeroSize { what });
        }
        let extent = self.extent()?;
        if let Padding::Explicit { top, bottom, left, right } = self.padding {
            for (side, padding, kernel) in [
                ("top", top, extent[0]),
                ("bottom", bottom, extent[0]),
                ("left", left, extent[1]),
                ("right", right, extent[1]),
            ] {
                if padding >= kernel {
                    return Err(Error::PaddingTooLarge { side, padding, kernel });
                }
            }
        }
        Ok(())
    }

    /// Lays the window over images of `input` extent.
    pub(crate) fn place(&self, input: Shape) -> Result<Placed> {
        let extent = self.extent()?;
        let explicit = match self.padding {
            Padding::Explicit { top, bottom, left, right } => Some([[top, bottom], [left, right]]),
            Padding::SameUpper | Padding::SameLower => None,
        };
        let axis = |i: usize, name: &'static str, size: usize| -> Result<(usize, usize)> {
            let (kernel, stride) = (extent[i], self.stride[i]);
            let [before, after] = match explicit {
                Some(sides) => sides[i],
                None => {
                    // (ceil(size / stride) - 1) * stride < size, so this fits.
                    let covered = (size.div_ceil(stride) - 1) * stride;
                    let total = (covered + kernel).saturating_sub(size);
                    match self.padding {
                        Padding::SameLower => [total.div_ceil(2), total / 2],
                        _ => [total / 2, total.div_ceil(2)],
                    }
                }
            };
            let padded = size
                .checked_add(before)
                .and_then(|n| n.checked_add(after))
                .filter(|&n| n <= isize::MAX as usize)
                .ok_or(Error::Overflow { what: "padded input" })?;
            if padded < kernel {
                return Err(Error::EmptyOutput { axis: name, padded, kernel });
            }
            Ok(((padded - kernel) / stride + 1, before))
        };
        input.elements(1)?;
        let (height, top) = axis(0, "height", input.height)?;
        let (width, left) = axis(1, "width", input.width)?;
        Ok(Placed {
            input,
            output: Shape::new(input.batch, height, width),
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            before: [top, left],
        })
    }
}

impl Placed {
    /// The taps of output `at` along an axis that fall inside the image.
    pub(crate) fn taps(&self, axis: usize, at: usize) -> Range<usize> {
        let size = [self.input.height, self.input.width][axis];
        let (before, dilation) = (self.before[axis], self.dilation[axis]);
        // 0 <= first + tap * dilation - before < size.
        let first = at * self.stride[axis];
        let start = before.saturating_sub(first).div_ceil(dilation).min(self.kernel[axis]);
        let end = (size + before).saturating_sub(first).div_ceil(dilation).min(self.kernel[axis]);
        start..end.max(start)
    }

    /// Every `dilation`-th output of a row from `phase` on, where the horizontal
    /// stride is 1: a window of neighbouring taps over every `dilation`-th column.
    /// Gives the first of those columns, too.
    pub(crate) fn phase(&self, phase: usize) -> (Self, usize) {
        let (dilation, before) = (self.dilation[1], self.before[1]);
        // Output phase + dilation * i reads from phase + dilation * i - before on.
        let first = (phase + dilation - before % dilation) % dilation;
        let every = |size: usize, from: usize| size.saturating_sub(from).div_ceil(dilation);
        let mut window = *self;
        window.input.width = every(self.input.width, first);
        window.output.width = every(self.output.width, phase);
        window.dilation[1] = 1;
        window.before[1] = (before + first - phase) / dilation;
        (window, first)
    }

    /// The output rows `rows` with rows and columns exchanged; gives the first of
    /// the input rows that are left, too.
    pub(crate) fn turned(&self, rows: &Range<usize>) -> (Self, usize) {
        let top = rows.start * self.stride[0];
        let first = top.saturating_sub(self.before[0]);
        let (input, output) = (self.input, self.output);
        let window = Self {
            input: Shape::new(input.batch, input.width, input.height - first),
            output: Shape::new(output.batch, output.width, rows.len()),
            kernel: [self.kernel[1], self.kernel[0]],
            stride: [self.stride[1], self.stride[0]],
            dilation: [self.dilation[1], self.dilation[0]],
            before: [self.before[1], self.before[0].saturating_sub(top)],
        };
        (window, first)
    }

    /// The outputs along an axis whose taps are all inside the image.
    pub(crate) fn whole(&self, axis: usize) -> Range<usize> {
        let size = [self.input.height, self.input.width][axis];
        let outputs = [self.output.height, self.output.width][axis];
        let extent = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
        let start = self.before[axis].div_ceil(self.stride[axis]).min(outputs);
        let last = (self.before[axis] + size).checked_sub(extent);
        let end = last.map_or(0, |last| last / self.stride[axis] + 1);
        start..end.clamp(start, outputs)
    }

    /// The input rows that output rows `rows` read: those inside the image.
    pub(crate) fn input_rows(&self, rows: Range<usize>) -> Range<usize> {
        let extent = (self.kernel[0] - 1) * self.dilation[0] + 1;
        let first = (rows.start * self.stride[0]).saturating_sub(self.before[0]);
        let last = ((rows.end - 1) * self.stride[0] + extent).saturating_sub(self.before[0]);
        first.min(self.input.height)..last.min(self.input.height)
    }

    /// The most inputs along an axis that `outputs` outputs read.
    pub(crate) fn reach(&self, axis: usize, outputs: usize) -> usize {
        let extent = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
        let size = [self.input.height, self.input.width][axis];
        ((outputs - 1) * self.stride[axis] + extent).min(size)
    }

    /// The window over the output columns `columns` alone, and the first of the
    /// input columns that it reads.
    pub(crate) fn strip(&self, columns: Range<usize>) -> (Self, usize) {
        let extent = (self.kernel[1] - 1) * self.dilation[1] + 1;
        let start = columns.start * self.stride[1];
        // Every output has its first tap left of the image's end, its last tap right
        // of its beginning.
        let first = start.saturating_sub(self.before[1]);
        let end = (columns.end - 1) * self.stride[1] + extent - self.before[1];
        let width = end.min(self.input.width) - first;
        let strip = Self {
            input: Shape { width, ..self.input },
            output: Shape { width: columns.len(), ..self.output },
            before: [self.before[0], self.before[1].saturating_sub(start)],
            ..*self
        };
        (strip, first)
    }
}
