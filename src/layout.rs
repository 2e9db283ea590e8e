//! Where the elements of a tensor lie.

use crate::error::{Error, Result};
use crate::shape::{Shape, elements};

/// The order of a tensor's axes, the outermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// `[batch][height][width][channels]`: TensorFlow's.
    #[default]
    Nhwc,
    /// `[batch][channels][height][width]`: PyTorch's and ONNX's.
    Nchw,
}

/// The distances between the elements of a tensor, in f32, so that a crop or some
/// channels of a larger tensor need no copy. What a slice holds between them is
/// neither read nor written. The stride of an axis with one element is not looked at.
///
/// ```
/// use mbconv::{Depthwise, DepthwiseParams, PlanOptions, Shape, Strides};
///
/// // Columns 1 and 2 of a row of 4 pixels that have 2 channels.
/// let row = [9.0, 9.0, 1.0, 10.0, 2.0, 20.0, 9.0, 9.0];
/// let crop = Strides::Nhwc { batch: 8, row: 8, pixel: 2 };
/// let layer = DepthwiseParams::new(2, [1, 2], &[1.0; 4]);
/// let options = PlanOptions::new().input_strides(crop);
/// let plan = Depthwise::new(&layer)?.plan_with(Shape::new(1, 1, 2), &options)?;
/// let mut y = [0.0; 2];
/// plan.run(&row[2..], &mut y)?;
/// assert_eq!(y, [3.0, 30.0]);
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strides {
    /// The channels of a pixel lie together.
    Nhwc {
        /// From image to image.
        batch: usize,
        /// From row to row.
        row: usize,
        /// From pixel to pixel.
        pixel: usize,
    },
    /// The pixels of a channel's row lie together.
    Nchw {
        /// From image to image.
        batch: usize,
        /// From channel to channel.
        plane: usize,
        /// From row to row.
        row: usize,
    },
}

/// A tensor's strides as a plan was asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Arrangement {
    Dense(Layout),
    Strided(Strides),
}

/// Where a tensor's elements are, checked: element `(n, y, x, c)` is at
/// `n * batch + y * row + x * pixel + c * channel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) layout: Layout,
    pub(crate) batch: usize,
    pub(crate) row: usize,
    pub(crate) pixel: usize,
    pub(crate) channel: usize,
    /// From the first element to behind the last.
    pub(crate) len: usize,
    /// How many of these are elements.
    elements: usize,
    /// Whether a slice may not be longer.
    exact: bool,
}

impl Arrangement {
    /// The view of a tensor of `shape`; `what` names it in errors.
    ///
    /// # Errors
    ///
    /// Those of [`Shape::elements`]; [`Error::Stride`] when elements would share
    /// a place; [`Error::Overflow`].
    pub(crate) fn view(&self, what: &'static str, shape: Shape, channels: usize) -> Result<View> {
        let count = shape.elements(channels)?;
        let Shape { batch, height, width } = shape;
        // Outermost first: size and stride, as far as it is given.
        let (layout, axes) = match *self {
            Self::Dense(Layout::Nhwc) => {
                (Layout::Nhwc, [(batch, None), (height, None), (width, None), (channels, None)])
            }
            Self::Dense(Layout::Nchw) => {
                (Layout::Nchw, [(batch, None), (channels, None), (height, None), (width, None)])
            }
            Self::Strided(Strides::Nhwc { batch: n, row, pixel }) => (
                Layout::Nhwc,
                [(batch, Some(n)), (height, Some(row)), (width, Some(pixel)), (channels, None)],
            ),
            Self::Strided(Strides::Nchw { batch: n, plane, row }) => (
                Layout::Nchw,
                [(batch, Some(n)), (channels, Some(plane)), (height, Some(row)), (width, None)],
            ),
        };
        let overflow = Error::Overflow { what };
        // What lies within a step of the axis is the least that its stride may be.
        let mut strides = [0; 4];
        let mut extent = 1usize;
        for (stride, &(size, given)) in strides.iter_mut().zip(&axes).rev() {
            // With one element there is no step.
            *stride = given.filter(|_| size > 1).unwrap_or(extent);
            if *stride < extent {
                return Err(Error::Stride { what, stride: *stride, extent });
            }
            extent = (size - 1)
                .checked_mul(*stride)
                .and_then(|n| n.checked_add(extent))
                .ok_or(overflow.clone())?;
        }
        let len = elements(what, &[extent])?;
        let [batch, row, pixel, channel] = match layout {
            Layout::Nhwc => strides,
            Layout::Nchw => [strides[0], strides[2], strides[3], strides[1]],
        };
        let exact = matches!(self, Self::Dense(_));
        Ok(View { layout, batch, row, pixel, channel, len, elements: count, exact })
    }
}

impl View {
    pub(crate) fn is_planar(&self) -> bool {
        self.layout == Layout::Nchw
    }

    /// Whether channels come last and rows of `width` pixels follow each other as
    /// these do.
    pub(crate) fn is_flat(&self, width: usize) -> bool {
        !self.is_planar() && self.row == width * self.pixel
    }

    /// # Errors
    ///
    /// Those of [`check`](Self::check); [`Error::Gaps`] when a run would not initialise all of
    /// `len` f32.
    pub(crate) fn check_gapless(&self, what: &'static str, len: usize) -> Result<()> {
        self.check(what, len)?;
        if len > self.elements { Err(Error::Gaps { len, elements: self.elements }) } else { Ok(()) }
    }

    /// The offset of a pixel's first channel.
    pub(crate) fn at(&self, image: usize, row: usize, column: usize) -> usize {
        image * self.batch + row * self.row + column * self.pixel
    }

    /// `shape` with as many axes as possible made one, so that all strides hold on:
    /// rows that follow each other as pixels do become one row, images likewise.
    pub(crate) fn flatten(shape: Shape, views: [&Self; 2]) -> Shape {
        let Shape { batch, height, width } = shape;
        if height > 1 && !views.iter().all(|view| view.row == width * view.pixel) {
            return shape;
        }
        let pixels = height * width;
        if batch > 1 && !views.iter().all(|view| view.batch == pixels * view.pixel) {
            return Shape::new(batch, 1, pixels);
        }
        Shape::new(1, 1, batch * pixels)
    }

    /// # Errors
    ///
    /// [`Error::Length`] when a slice of `actual` f32 does not hold the tensor.
    pub(crate) fn check(&self, what: &'static str, actual: usize) -> Result<()> {
        if actual == self.len || actual > self.len && !self.exact {
            Ok(())
        } else {
            Err(Error::Length { what, expected: self.len, actual })
        }
    }
}
