//! A block without an expansion, from planes to planes: nothing is turned.

use core::ops::Range;

use super::{Block, Source, Stage};
use crate::kernel::activate::Addend;
use crate::kernel::depthwise::planar;
use crate::kernel::pointwise::{Epilogue, Planes};
use crate::simd::Lanes;

impl Block<'_> {
    /// A band of output rows: the slab's channels row by row into planes as long as the band,
    /// which are projected.
    ///
    /// # Safety
    /// As for [`Run::new`](super::Run::new), for an image's rows.
    pub(super) unsafe fn planes<S: Lanes>(
        &self,
        s: S,
        stage: &Stage<'_>,
        slab: &Range<usize>,
        rows: Range<usize>,
    ) {
        let (x, y) = (self.input_view, self.output_view);
        let width = self.window.output.width;
        let size = rows.len() * width;
        let channels = self.lanes::<S>(slab);
        let args = planar::Args {
            window: &self.window,
            packed: self.depthwise,
            input: self.input,
            input_plane: x.channel,
            input_row: x.row,
            output: self.buffers.band,
            output_plane: size,
            output_row: width,
            finish: self.depthwise_activation.finish(),
        };
        // SAFETY: the image's rows, and as many of the band.
        unsafe { planar::planes(s, &args, channels.clone(), rows.clone(), 0..width) };
        let last = channels.end == stage.packed.c_in;
        let flat = y.row == width && (self.residual.is_none() || x.row == width);
        let together = if flat { rows.len() } else { 1 };
        for (i, row) in rows.enumerate().step_by(together) {
            let residual = match self.residual {
                Some(Source::Input(first)) => Addend {
                    start: self.input.wrapping_add(row * x.row + first),
                    row: x.channel,
                    vector: S::LANES,
                },
                _ => Addend::NONE,
            };
            let project = Planes {
                packed: stage.packed,
                channels: channels.clone(),
                input: self.buffers.band.wrapping_add(i * width),
                input_plane: size,
                output: self.output.wrapping_add(row * y.row),
                output_plane: y.channel,
                epilogue: match last {
                    true => Epilogue::new(stage.activation, residual),
                    false => Epilogue::NONE,
                },
            };
            // SAFETY: the band's pixels and channels; output rows of the task.
            unsafe { project.run(s, &stage.packed.panels, together * width) };
        }
    }
}
