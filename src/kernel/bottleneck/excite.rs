//! Squeeze-and-excite: the means of all channels, their gate, and what it scales (Hu et
//! al. 2018, section 3).
//!
//! The means are of a whole image, so the depthwise output is kept until they are
//! there, or computed again. Safety is as for [`Run::new`](super::Run::new), in the phases
//! of [`By::Pooled`](super::By::Pooled).

use core::ops::Range;

use super::{Block, Stage};
use crate::kernel::activate::{Addend, Stored, activate};
use crate::kernel::parts::share;
use crate::pack::{PackedPointwise, Panel};
use crate::simd::Lanes;

/// Sums that run side by side: a pixel belongs to one by its number.
pub(super) const SUMS: usize = 8;

impl Block<'_> {
    /// Adds some rows of some vectors of the band to their sums; after the last row the
    /// first sum is the mean.
    pub(super) unsafe fn pool<S: Lanes>(&self, s: S, vectors: &Range<usize>, rows: Range<usize>) {
        if self.excite.is_none() {
            return;
        }
        let output = self.window.output;
        let [before, pixels] = [rows.start, rows.len()].map(|rows| rows * output.width);
        let (first, last) = (rows.start == 0, rows.end == output.height);
        s.enter(
            #[inline(always)]
            || {
                for vector in vectors.clone() {
                    let band = self.band_at::<S>(vectors, vector, rows.start);
                    let kept = self.buffers.pooled.wrapping_add(vector * SUMS * S::LANES);
                    // The first pixel's sum first.
                    let kept = |i: usize| kept.wrapping_add((before + i) % SUMS * S::LANES);
                    // SAFETY: pixels of the band, and there are sums for each of its lanes.
                    unsafe {
                        let load = |pixel| s.load(band.add(pixel * S::LANES));
                        let mut sums = [s.splat(0.0); SUMS];
                        if !first {
                            for (i, sum) in sums.iter_mut().enumerate() {
                                *sum = s.load(kept(i));
                            }
                        }
                        let whole = pixels - pixels % SUMS;
                        for pixel in (0..whole).step_by(SUMS) {
                            for (i, sum) in sums.iter_mut().enumerate() {
                                *sum = s.add(*sum, load(pixel + i));
                            }
                        }
                        for (pixel, sum) in (whole..pixels).zip(&mut sums) {
                            *sum = s.add(*sum, load(pixel));
                        }
                        for (i, &sum) in sums.iter().enumerate() {
                            s.store(kept(i), sum);
                        }
                        if last {
                            let count = output.height * output.width;
                            mean(s, self.buffers.pooled.add(vector * SUMS * S::LANES), count);
                        }
                    }
                }
            },
        );
    }

    /// The gate, and what is between its stages.
    fn gate<S: Lanes>(&self) -> [*mut f32; 2] {
        let channels = self.vectors::<S>() * S::LANES;
        [SUMS, SUMS + 1].map(|n| self.buffers.pooled.wrapping_add(n * channels))
    }

    /// The gate's first stage: some of its channels.
    pub(super) unsafe fn reduce<S: Lanes>(&self, s: S, task: usize) {
        let Some(excite) = &self.excite else { return };
        let [_, middle] = self.gate::<S>();
        let panels = &excite.reduce.packed.panels;
        let means = (self.buffers.pooled.cast_const(), SUMS * S::LANES);
        for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
            // SAFETY: all means are there, the panel is the task's.
            unsafe { one_pixel(s, &excite.reduce, panel, means, middle) };
        }
    }

    /// Its second stage, of some channels, which are scaled with it if they were kept.
    pub(super) unsafe fn excite<S: Lanes>(&self, s: S, task: usize) {
        let Some(excite) = &self.excite else { return };
        let [gate, middle] = self.gate::<S>();
        let panels = &excite.expand.packed.panels;
        for panel in &panels[share(panels.len(), self.cut.tasks, task)] {
            let vectors = panel.first..panel.first + panel.vectors;
            // SAFETY: the gate's first stage is done, the panel's channels are the task's.
            unsafe {
                one_pixel(s, &excite.expand, panel, (middle, S::LANES), gate);
                if self.cut.has_whole_band() {
                    self.scale(s, &vectors, 0..self.window.output.height);
                }
            }
        }
    }

    /// Scales some rows of some vectors of the band, where there is a gate.
    pub(super) unsafe fn scale<S: Lanes>(&self, s: S, vectors: &Range<usize>, rows: Range<usize>) {
        if self.excite.is_none() {
            return;
        }
        let [gate, _] = self.gate::<S>();
        let pixels = rows.len() * self.window.output.width;
        s.enter(
            #[inline(always)]
            || {
                for vector in vectors.clone() {
                    let band = self.band_at::<S>(vectors, vector, rows.start);
                    // SAFETY: vectors of the band, and one of the gate.
                    unsafe {
                        let gate = s.load(gate.add(vector * S::LANES));
                        for pixel in 0..pixels {
                            let at = band.add(pixel * S::LANES);
                            s.store(at, s.mul(s.load(at), gate));
                        }
                    }
                }
            },
        );
    }
}

/// Makes the sums of a vector their mean over `count` pixels, in the place of the first.
///
/// # Safety
/// `sums` is valid for [`SUMS`] vectors.
#[inline(always)]
unsafe fn mean<S: Lanes>(s: S, sums: *mut f32, count: usize) {
    // SAFETY: the sums.
    unsafe {
        let mut sum: [S::V; SUMS] = core::array::from_fn(|i| s.load(sums.add(i * S::LANES)));
        let mut n = SUMS;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                sum[i] = s.add(sum[i], sum[i + n]);
            }
        }
        s.store(sums, s.div(sum[0], s.splat(count as f32)));
    }
}

/// A panel of a stage at one pixel, whose vectors are so far apart.
unsafe fn one_pixel<S: Lanes>(
    s: S,
    stage: &Stage<'_>,
    panel: &Panel,
    from: (*const f32, usize),
    to: *mut f32,
) {
    s.enter(
        #[inline(always)]
        || {
            // SAFETY: passed on, for as many vectors.
            unsafe {
                match panel.vectors {
                    1 => sums::<S, 1>(s, stage, panel.first, from, to),
                    2 => sums::<S, 2>(s, stage, panel.first, from, to),
                    3 => sums::<S, 3>(s, stage, panel.first, from, to),
                    _ => sums::<S, 4>(s, stage, panel.first, from, to),
                }
            }
        },
    );
}

/// Channels whose products go to different sums: one alone would wait for itself.
const CHAINS: usize = 4;

/// `NV` vectors of a stage's channels at one pixel.
#[inline(always)]
unsafe fn sums<S: Lanes, const NV: usize>(
    s: S,
    stage: &Stage<'_>,
    first: usize,
    (from, step): (*const f32, usize),
    to: *mut f32,
) {
    let PackedPointwise { c_in, weights, bias, .. } = stage.packed;
    let (first, finish) = (first * S::LANES, stage.activation.finish());
    let (weights, bias) = (weights.as_ptr().wrapping_add(first * c_in), bias.as_ptr());
    let mut acc = [[s.splat(0.0); NV]; CHAINS];
    // SAFETY: whole vectors of packed weights and bias, channels of the pixel.
    unsafe {
        for (v, sum) in acc[0].iter_mut().enumerate() {
            *sum = s.load(bias.add(first + v * S::LANES));
        }
        let one = |acc: &mut [S::V; NV], k: usize| {
            let x = s.splat(s.read(from.add(k / S::LANES * step + k % S::LANES)));
            for (v, sum) in acc.iter_mut().enumerate() {
                *sum = s.mul_add(x, s.load(weights.add((k * NV + v) * S::LANES)), *sum);
            }
        };
        let whole = c_in - c_in % CHAINS;
        for k in (0..whole).step_by(CHAINS) {
            for (i, acc) in acc.iter_mut().enumerate() {
                one(acc, k + i);
            }
        }
        for k in whole..*c_in {
            one(&mut acc[k - whole], k);
        }
        let mut total = [[s.splat(0.0); NV]];
        for (v, sum) in total[0].iter_mut().enumerate() {
            *sum = s.add(s.add(acc[0][v], acc[1][v]), s.add(acc[2][v], acc[3][v]));
        }
        let to = to.add(first);
        finish.each(
            s,
            &total,
            #[inline(always)]
            |_, v, sum| s.store(to.add(v * S::LANES), sum),
        );
        let stored = || Stored {
            output: to,
            row: 0,
            vector: S::LANES,
            pixels: 1,
            vectors: NV,
            last_lanes: S::LANES,
            residual: Addend::NONE,
        };
        activate(s, &finish, stored);
    }
}
