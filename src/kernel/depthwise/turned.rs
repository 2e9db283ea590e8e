//! Depthwise convolution where planes are turned into pixels, or pixels into planes.

use core::ops::Range;

use super::{Args, Layer, planar, rows, small};
use crate::buffer::Local;
use crate::kernel::parts::Axis;
use crate::kernel::transpose::transpose;
use crate::layout::View;
use crate::pack::PackedDepthwise;
use crate::shape::Placed;
use crate::simd::Lanes;

/// Inputs, and outputs, of as many vectors of channels as are turned at a time: some
/// vectors, since they share the set-up of a tile.
const PIXELS: usize = 8192;

/// Outputs that wait to be turned, in the first-level cache.
const TURNED: usize = 4096;
/// The most columns of these.
const TURNED_COLUMNS: usize = 64;

/// How planes are taken when they are turned into pixels.
#[derive(Clone, Copy)]
pub(super) struct Bands {
    /// Output rows at a time, and the input rows of their ring.
    rows: usize,
    ring: usize,
    /// Vectors of channels at a time.
    vectors: usize,
}

impl Layer<'_> {
    /// How planes of inputs are turned into pixels; none where they are computed as
    /// they are.
    pub(super) fn by_pixels<S: Lanes>(&self) -> Option<Bands> {
        let Placed { input, output, .. } = *self.window;
        let PackedDepthwise { channels, multiplier, .. } = *self.packed;
        let turned = self.input_view.is_planar()
            && multiplier == 1
            && channels >= S::LANES
            && !planar::is_fast::<S>(self.window)
            && !self.by_small_planes::<S>();
        let bands = |rows| {
            let ring = self.window.reach(0, rows);
            let largest = (ring * input.width).max(rows * output.width);
            Bands { rows, ring, vectors: PIXELS / (largest * S::LANES) }
        };
        // The most rows that fit; none where not even one does.
        let mut fitting = (1..=output.height).rev().map(bands).filter(|bands| bands.vectors > 0);
        if turned { fitting.next() } else { None }
    }

    /// Whether planes are so small that they are spelled out, out of planes and into planes.
    fn by_small_planes<S: Lanes>(&self) -> bool {
        let Self { window, input_view, output_view, parts, .. } = self;
        let dense = [input_view, output_view]
            .iter()
            .all(|view| view.is_planar() && view.row == window.output.width);
        small::fits::<S>(window) && dense && (parts.tasks == 1 || parts.axis == Axis::Channels)
    }

    /// From planes, some vectors of channels at a time: a ring of input rows holds them
    /// as pixels; outputs that are planes are computed as pixels, a few rows at a time,
    /// and turned back.
    ///
    /// # Safety
    /// As for [`Run::new`](super::Run::new), for these vectors and rows of one image; the
    /// bands are the layer's.
    pub(super) unsafe fn pixels<S: Lanes>(
        &self,
        s: S,
        Bands { rows: band, ring, vectors: together }: Bands,
        vectors: Range<usize>,
        rows: Range<usize>,
    ) {
        let mut buffer = Local::<{ 2 * PIXELS }>::uninit();
        let turned = buffer.as_mut_ptr();
        s.lend(turned, 2 * PIXELS);
        let tile = turned.wrapping_add(PIXELS);
        let (x, y) = (self.input_view, self.output_view);
        let [wide, width] = [self.window.input.width, self.window.output.width];
        // How many of some rows lie one behind the other.
        let dense = |view: View, width: usize, n| if view.row == width { n } else { 1 };
        for first in vectors.clone().step_by(together) {
            let vectors = first..(first + together).min(vectors.end);
            let mut args = Args {
                input: turned.cast_const(),
                input_row: wide * S::LANES,
                input_column: S::LANES,
                input_vector: ring * wide * S::LANES,
                input_overlap: 0,
                ring,
                ..self.channels_last::<S>(self.window, vectors.clone())
            };
            if y.is_planar() {
                args = Args {
                    output: tile,
                    output_row: width * S::LANES,
                    output_column: S::LANES,
                    output_vector: band * width * S::LANES,
                    output_overlap: 0,
                    ..args
                };
            }
            // The first plane of each vector, and where its pixels are.
            let each = |view: View, step: usize| {
                vectors.clone().enumerate().map(move |(i, vector)| {
                    let channels = self.packed.lanes_of::<S>(vector);
                    (channels.start * view.channel, i * step)
                })
            };
            let mut next = 0;
            for top in rows.clone().step_by(band) {
                let rows = top..(top + band).min(rows.end);
                let inputs = self.window.input_rows(rows.clone());
                next = next.max(inputs.start);
                // SAFETY: rows of the images, of the ring and of the tile.
                unsafe {
                    while next < inputs.end {
                        let slot = next % ring;
                        let count = dense(x, wide, (inputs.end - next).min(ring - slot));
                        for (plane, at) in each(x, args.input_vector) {
                            let from = self.input.add(plane + x.at(0, next, 0));
                            let to = turned.add(at + slot * args.input_row);
                            let matrix = [S::LANES, count * wide];
                            transpose(s, (from, x.channel), (to, S::LANES), matrix);
                        }
                        next += count;
                    }
                    if !y.is_planar() {
                        args.output = self.output.add(y.at(0, top, 0) + first * S::LANES);
                        self::rows(s, &args, rows);
                        continue;
                    }
                    self::rows(s, &args, rows.clone());
                    let count = dense(y, width, rows.len());
                    for (plane, at) in each(y, args.output_vector) {
                        for i in (0..rows.len()).step_by(count) {
                            let from = tile.add(at + i * args.output_row).cast_const();
                            let to = self.output.add(plane + y.at(0, top + i, 0));
                            let matrix = [count * width, S::LANES];
                            transpose(s, (from, S::LANES), (to, y.channel), matrix);
                        }
                    }
                }
            }
        }
    }

    /// From one layout into the other: a vector of channels at a time, a few pixels
    /// are computed in the input's layout, then turned.
    ///
    /// # Safety
    /// As for [`Run::new`](super::Run::new), for these vectors and rows of one image.
    pub(super) unsafe fn turned<S: Lanes>(&self, s: S, vectors: Range<usize>, rows: Range<usize>) {
        let mut tile = Local::<TURNED>::uninit();
        let tile = tile.as_mut_ptr();
        s.lend(tile, TURNED);
        let output = self.output_view;
        let width = self.window.output.width;
        let pixels = TURNED / S::LANES;
        let across = width.min(TURNED_COLUMNS);
        for top in rows.clone().step_by(pixels / across) {
            let rows = top..(top + pixels / across).min(rows.end);
            for left in (0..width).step_by(across) {
                let columns = left..(left + across).min(width);
                let (across, size) = (columns.len(), rows.len() * columns.len());
                // Rows that follow each other as pixels do go as one.
                let (lines, pixels) = match output.row == across * output.pixel {
                    true => (1, size),
                    false => (rows.len(), across),
                };
                let (strip, first) = self.window.strip(columns.clone());
                for vector in vectors.clone() {
                    let channels = self.packed.lanes_of::<S>(vector);
                    let start = channels.start * output.channel + output.at(0, top, left);
                    // SAFETY: the tile holds these rows and columns of a vector.
                    unsafe {
                        let line = |i: usize| self.output.add(start + i * output.row);
                        if self.input_view.is_planar() {
                            let args = planar::Args {
                                output: tile,
                                output_plane: size,
                                output_row: across,
                                ..self.planar()
                            };
                            let channels = channels.clone();
                            planar::planes(s, &args, channels, rows.clone(), columns.clone());
                        } else {
                            let args = self.channels_last::<S>(&strip, vector..vector + 1);
                            let args = Args {
                                input: args.input.wrapping_add(first * args.input_column),
                                input_overlap: 0,
                                output: tile,
                                output_row: across * S::LANES,
                                output_column: S::LANES,
                                output_overlap: 0,
                                ..args
                            };
                            self.vectors(s, &args, channels.start, rows.clone());
                        }
                        for i in 0..lines {
                            if self.input_view.is_planar() {
                                let from = (tile.add(i * pixels).cast_const(), size);
                                let matrix = [channels.len(), pixels];
                                transpose(s, from, (line(i), output.pixel), matrix);
                            } else {
                                let from = tile.add(i * pixels * S::LANES).cast_const();
                                let matrix = [pixels, channels.len()];
                                transpose(s, (from, S::LANES), (line(i), output.channel), matrix);
                            }
                        }
                    }
                }
            }
        }
    }
}
