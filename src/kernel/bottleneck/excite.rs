//! Squeeze-and-excite: the means of all channels, their gate, and what it scales (Hu et
//! al. 2018, section 3).
//!
//! The means are of a whole image, so the depthwise output is kept until they are
//! there. Safety is as for [`Run::new`](super::Run::new), in the phases of
//! [`By::Pooled`](super::By::Pooled).

use core::ops::Range;

use super::{Block, Stage};
use crate::kernel::activate::Addend;
use crate::kernel::parts::share;
use crate::kernel::pointwise;
use crate::pack::Panel;
use crate::simd::Lanes;

/// Sums that run side by side: a pixel belongs to one by its number.
const SUMS: usize = 8;

impl Block<'_> {
    /// The means of some vectors of the band.
    pub(super) unsafe fn pool<S: Lanes>(&self, s: S, vectors: Range<usize>) {
        if self.excite.is_none() {
            return;
        }
        let output = self.window.output;
        let pixels = output.height * output.width;
        s.enter(
            #[inline(always)]
            || {
                for vector in vectors.clone() {
                    let band = self.buffers.band.wrapping_add(vector * self.band_plane::<S>());
                    let mut sums = [s.splat(0.0); SUMS];
                    // SAFETY: pixels of the image.
                    let load = |pixel| unsafe { s.load(band.add(pixel * S::LANES)) };
                    let whole = pixels - pixels % SUMS;
                    for first in (0..whole).step_by(SUMS) {
                        for (i, sum) in sums.iter_mut().enumerate() {
                            *sum = s.add(*sum, load(first + i));
                        }
                    }
                    for (pixel, sum) in (whole..pixels).zip(&mut sums) {
                        *sum = s.add(*sum, load(pixel));
                    }
                    let mut n = SUMS;
                    while n > 1 {
                        n /= 2;
                        for i in 0..n {
                            sums[i] = s.add(sums[i], sums[i + n]);
                        }
                    }
                    let mean = s.div(sums[0], s.splat(pixels as f32));
                    // SAFETY: there is a mean for each lane of the band.
                    unsafe { s.store(self.buffers.pooled.add(vector * S::LANES), mean) };
                }
            },
        );
    }

    /// The gate's first stage: some of its channels.
    pub(super) unsafe fn reduce<S: Lanes>(&self, s: S, task: usize) {
        let Some(excite) = &self.excite else { return };
        let channels = self.vectors::<S>() * S::LANES;
        let [means, middle] = [0, 2 * channels].map(|at| self.buffers.pooled.wrapping_add(at));
        let panels = &excite.reduce.packed.panels;
        for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
            // SAFETY: all means are there, the panel is the task's.
            unsafe { one_pixel(s, &excite.reduce, panel, means, middle) };
        }
    }

    /// Its second stage, of some channels, which are scaled with it.
    pub(super) unsafe fn excite<S: Lanes>(&self, s: S, task: usize) {
        let Some(excite) = &self.excite else { return };
        let channels = self.vectors::<S>() * S::LANES;
        let [gate, middle] =
            [channels, 2 * channels].map(|at| self.buffers.pooled.wrapping_add(at));
        let panels = &excite.expand.packed.panels;
        let output = self.window.output;
        let pixels = output.height * output.width;
        for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
            // SAFETY: the gate's first stage is done, the panel's channels are the task's.
            unsafe {
                one_pixel(s, &excite.expand, panel, middle, gate);
                for vector in panel.first..panel.first + panel.vectors {
                    let band = self.buffers.band.add(vector * self.band_plane::<S>());
                    scale(s, band, pixels, gate.add(vector * S::LANES));
                }
            }
        }
    }
}

/// A panel of a stage at one pixel, whose vectors are side by side.
unsafe fn one_pixel<S: Lanes>(
    s: S,
    stage: &Stage<'_>,
    panel: &Panel,
    from: *const f32,
    to: *mut f32,
) {
    let args = pointwise::Args {
        a: from,
        a_block: S::LANES,
        epilogue: Some(pointwise::Epilogue {
            finish: stage.activation.finish(),
            residual: Addend::NONE,
        }),
        ..stage.whole::<S>(panel, to.wrapping_add(panel.first * S::LANES), S::LANES)
    };
    // SAFETY: passed on.
    unsafe { pointwise::panel(s, &args, panel.vectors, 1) };
}

/// Multiplies `pixels` vectors by one.
unsafe fn scale<S: Lanes>(s: S, band: *mut f32, pixels: usize, gate: *const f32) {
    s.enter(
        #[inline(always)]
        || {
            // SAFETY: vectors of the band, and one of the gate.
            unsafe {
                let gate = s.load(gate);
                for pixel in 0..pixels {
                    let at = band.add(pixel * S::LANES);
                    s.store(at, s.mul(s.load(at), gate));
                }
            }
        },
    );
}
