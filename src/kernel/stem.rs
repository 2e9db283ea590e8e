//! The stem: a full convolution of few channels, in the place of an expansion.
//!
//! In NHWC the inputs under a row of taps lie one after the other, and those of
//! the next pixel a stride further on: a 1x1 convolution of the image itself, whose
//! pixels overlap. So each tap row is a run of the pointwise tile, and where the runs are
//! of equal length one pass of the tile takes them all; else each takes up the partial
//! sums of the one before. Nothing is copied, and taps outside the image are left out.

use crate::kernel::bottleneck::Rows;
use crate::kernel::pointwise;
use crate::shape::Placed;
use crate::simd::Lanes;

/// Computes row `row` of the stem's output, for one panel of `nv` vectors.
///
/// `args` says where the results go and what happens to them; its `b` is the
/// panel's packed weights from the first tap on. `image` has the rows of the window's input that are
/// needed, of `c_in` channels.
///
/// # Safety
/// `image` is valid for those rows; else as for [`pointwise::panel`] with
/// the row's pixels, and `b` for all taps.
pub(crate) unsafe fn row<S: Lanes>(
    s: S,
    window: &Placed,
    c_in: usize,
    image: &Rows,
    row: usize,
    args: &pointwise::Args,
    nv: usize,
) {
    let [_, kernel_width] = window.kernel;
    let (width, whole, rows) = (window.output.width, window.whole(1), window.taps(0, row));
    // The first tap's input, which may lie outside: hence wrapping.
    let top = (row * window.stride[0]).wrapping_sub(window.before[0]);
    let mut column = 0;
    while column < width {
        // Pixels that touch a border go one by one.
        let pixels = if whole.contains(&column) { whole.end - column } else { 1 };
        let taps = window.taps(1, column);
        let left = (column * window.stride[1]).wrapping_sub(window.before[1]);
        // Neighbouring taps are one run, taps apart a run each; whole rows of taps follow
        // each other.
        let dense = window.dilation[1] == 1 && image.pixel == c_in;
        let run = if dense { taps.len().max(1) } else { 1 };
        let in_row = taps.len().div_ceil(run);
        let y = |ky: usize| top.wrapping_add(ky * window.dilation[0]);
        let (runs, before) = match rows.len() * in_row {
            runs if runs > 0
                && run == kernel_width
                && image.unbroken(y(rows.start)..=y(rows.end - 1)) =>
            {
                (1, runs - 1)
            }
            runs => (runs, 0),
        };
        // Where all taps are outside, the bias alone.
        for i in 0..runs.max(1) {
            let (ky, kx) = match runs {
                0 => (0, 0),
                _ => (rows.start + i / in_row, taps.start + i % in_row * run),
            };
            let x = left.wrapping_add(kx * window.dilation[1]);
            let tap = (ky * kernel_width + kx) * c_in;
            let args = pointwise::Args {
                a: image.at(y(ky)).wrapping_add(x.wrapping_mul(image.pixel)),
                a_row: window.stride[1].wrapping_mul(image.pixel),
                a_block: S::LANES,
                k: if runs == 0 { 0 } else { run * c_in },
                runs_before: before,
                a_run: window.dilation[0].wrapping_mul(image.row),
                b: args.b.wrapping_add(tap * nv * S::LANES),
                c: args.c.wrapping_add(column * args.c_row),
                start: if i == 0 { args.start } else { pointwise::Start::Partial },
                epilogue: if i + 1 == runs.max(1) {
                    args.epilogue
                } else {
                    pointwise::Epilogue::NONE
                },
                ..*args
            };
            // SAFETY: these pixels' taps from (ky, kx) on are inside the image.
            unsafe { pointwise::panel(s, &args, nv, pixels) };
        }
        column += pixels;
    }
}
