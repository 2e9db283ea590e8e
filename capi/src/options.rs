//! What a plan may be told besides the shape.

use mbconv::{PlanOptions, Strides};

use crate::memory::{free, give, handle_mut};
use crate::status::{Failure, Result, Status, guard};

/// The order of a tensor's axes, the outermost first.
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// `[batch][height][width][channels]`
    Nhwc = 0,
    /// `[batch][channels][height][width]`
    Nchw = 1,
}

impl Layout {
    fn from_value(value: i32) -> Result<Self> {
        match value {
            0 => Ok(Self::Nhwc),
            1 => Ok(Self::Nchw),
            _ => Err(Failure::Value { what: "layout", value }),
        }
    }

    fn dense(self) -> mbconv::Layout {
        match self {
            Self::Nhwc => mbconv::Layout::Nhwc,
            Self::Nchw => mbconv::Layout::Nchw,
        }
    }

    /// From image to image, and to the next of the two axes after it.
    fn strided(self, batch: usize, second: usize, third: usize) -> Strides {
        match self {
            Self::Nhwc => Strides::Nhwc { batch, row: second, pixel: third },
            Self::Nchw => Strides::Nchw { batch, plane: second, row: third },
        }
    }
}

/// How a block is scheduled. The result is the same bit for bit.
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum Schedule {
    /// Whichever should be faster.
    Auto = 0,
    /// The expanded tensor exists only as a tile in the cache.
    Fused = 1,
    /// Stage after stage, the expanded tensor whole in scratch memory.
    Unfused = 2,
    /// As `FUSED`, with a tile of the caller's choice.
    Tiled = 3,
}

/// What a plan is made with: one thread, dense NHWC and an automatic schedule unless set.
pub struct Options(pub(crate) PlanOptions);

/// # Safety
/// As for [`handle_mut`].
unsafe fn set(
    options: *mut Options,
    set: impl FnOnce(PlanOptions) -> Result<PlanOptions>,
) -> Status {
    guard(|| {
        // SAFETY: as the caller promises.
        let options = unsafe { handle_mut(options, "options") }?;
        options.0 = set(options.0)?;
        Ok(())
    })
}

/// Makes options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_new(options: *mut *mut Options) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe { give(options, || Ok(Options(PlanOptions::new()))) })
}

/// Sets into how many tasks a plan is cut: as many as threads are to run it, 1 to 256.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_threads(
    options: *mut Options,
    threads: usize,
) -> Status {
    // SAFETY: the rules of the header.
    unsafe { set(options, |options| Ok(options.threads(threads))) }
}

/// Sets the layouts of input and output, each an `mbconv_layout`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_layout(
    options: *mut Options,
    input: i32,
    output: i32,
) -> Status {
    let set_layouts = |options: PlanOptions| {
        let (input, output) = (Layout::from_value(input)?, Layout::from_value(output)?);
        Ok(options.input_layout(input.dense()).output_layout(output.dense()))
    };
    // SAFETY: the rules of the header.
    unsafe { set(options, set_layouts) }
}

/// Sets where the elements of the input lie: `layout`, an `mbconv_layout`, and the strides of its
/// first three axes, in floats. The elements of the fourth lie together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_input_strides(
    options: *mut Options,
    layout: i32,
    batch: usize,
    second: usize,
    third: usize,
) -> Status {
    let set_strides = |options: PlanOptions| {
        Ok(options.input_strides(Layout::from_value(layout)?.strided(batch, second, third)))
    };
    // SAFETY: the rules of the header.
    unsafe { set(options, set_strides) }
}

/// As `mbconv_options_set_input_strides`, of the output and of a residual given beside the input.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_output_strides(
    options: *mut Options,
    layout: i32,
    batch: usize,
    second: usize,
    third: usize,
) -> Status {
    let set_strides = |options: PlanOptions| {
        Ok(options.output_strides(Layout::from_value(layout)?.strided(batch, second, third)))
    };
    // SAFETY: the rules of the header.
    unsafe { set(options, set_strides) }
}

/// Sets the schedule of a block, an `mbconv_schedule`. `rows` of outputs by `channels` of the
/// expansion is the tile of `TILED`; other schedules ignore them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_schedule(
    options: *mut Options,
    schedule: i32,
    rows: usize,
    channels: usize,
) -> Status {
    let set_schedule = |options: PlanOptions| {
        Ok(options.schedule(match schedule {
            value if value == Schedule::Auto as i32 => mbconv::Schedule::Auto,
            value if value == Schedule::Fused as i32 => mbconv::Schedule::Fused,
            value if value == Schedule::Unfused as i32 => mbconv::Schedule::Unfused,
            value if value == Schedule::Tiled as i32 => mbconv::Schedule::Tiled { rows, channels },
            value => return Err(Failure::Value { what: "schedule", value }),
        }))
    };
    // SAFETY: the rules of the header.
    unsafe { set(options, set_schedule) }
}

/// Sets whether runs count denormal numbers as zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_set_flush_denormals(
    options: *mut Options,
    flush: bool,
) -> Status {
    // SAFETY: the rules of the header.
    unsafe { set(options, |options| Ok(options.flush_denormals(flush))) }
}

/// Frees options; plans made with them live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_options_free(options: *mut Options) {
    // SAFETY: the rules of the header.
    unsafe { free(options) }
}
