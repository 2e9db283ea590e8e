//! The pointwise tile: `MR` pixels by `NV` vectors of output channels, held in
//! registers while the input channels stream past. Or the other way around: `MR`
//! output channels by `NV` vectors of pixels.

mod steps;

use core::ops::Range;

use crate::activation::{Activation, Finish, each};
use crate::buffer::LINE;
use crate::kernel::activate::{Addend, Stored, activate};
use crate::pack::{PackedPointwise, Panel, pixel_vectors};
use crate::simd::{K_STEP, Lanes, fills_registers};

/// How the last vector of a panel is filled.
mod tail {
    /// All its lanes exist: output channels or, with the sides swapped, pixels.
    pub(super) const WHOLE: u8 = 0;
    /// As whole, on a CPU that computes a vector in halves: each multiply-add broadcasts its own
    /// input from memory. Of pixels: what is beside them is asked for.
    pub(super) const OWN: u8 = 1;
    /// Some do, and nothing beyond them may be touched.
    pub(super) const NARROW: u8 = 2;
    /// At most half do: it serves two rows at once, one in each half.
    pub(super) const HALVED: u8 = 3;
    /// As halved, on a CPU that multiplies half a vector for half the price: it serves one
    /// row, and each multiply-add broadcasts its own input. Not of pixels.
    pub(super) const LOW: u8 = 4;

    /// Whether some lanes do not exist.
    pub(super) const fn is_cut(tail: u8) -> bool {
        tail >= NARROW
    }

    /// Whether each multiply-add broadcasts its own input.
    pub(super) const fn is_own(tail: u8) -> bool {
        matches!(tail, OWN | LOW)
    }

    /// Whether steps go one by one, not in groups.
    pub(super) const fn is_by_step(tail: u8) -> bool {
        is_half(tail) || is_own(tail)
    }

    /// Whether at most half the lanes exist.
    pub(super) const fn is_half(tail: u8) -> bool {
        tail >= HALVED
    }
}

/// Where a run of tiles starts its sums.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// From the bias: `NV` whole vectors, or one of each row, where rows are output channels.
    Bias(*const f32),
    /// From what the output holds: the sum over the channels before. Storing a
    /// partial sum and taking it up again changes no bit of it.
    Partial,
}

/// What happens to the sums before they are stored, or in a pass over what was stored.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    finish: Finish,
    residual: Addend,
}

impl Epilogue {
    /// Nothing: more channels follow.
    pub(crate) const NONE: Self = Self { finish: Finish::KEEP, residual: Addend::NONE };

    /// The same from another row and column on.
    fn skip(self, row: usize, column: usize) -> Self {
        let residual = self.residual;
        Self { residual: residual.skip(row * residual.row + column), ..self }
    }

    pub(crate) fn new(activation: Activation, residual: Addend) -> Self {
        // Strides of nothing are none: it stays null however far a cursor moves it.
        let residual = if residual.start.is_null() { Addend::NONE } else { residual };
        // Both are rare.
        let finish = match (activation, residual.start.is_null()) {
            (Activation::Identity, _) | (_, true) => activation.finish(),
            (_, false) => activation.finish_in_a_pass(),
        };
        Self { finish, residual }
    }
}

/// One panel's work. Strides are in f32.
#[derive(Clone, Copy)]
pub(crate) struct Args {
    /// Input: pixel `r`, channel `k` is at
    /// `r * a_row + (k / LANES) * a_block + k % LANES`.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_block: usize,
    /// Input channels to sum over.
    pub(crate) k: usize,
    /// Runs of so many channels before these, whose inputs are neighbours; from run to run
    /// the input moves on by `a_run`.
    pub(crate) runs_before: usize,
    pub(crate) a_run: usize,
    /// The panel's packed weights, from the first of those channels on, for all runs.
    pub(crate) b: *const f32,
    /// 0, or where pixels are the vectors and output channels the rows: f32 from the pixels
    /// of a channel, which are in `b` then, to those of the next. The packed weights are in
    /// `a`: of row `r` for channel `k` at `k * a_row + r`. A last vector of pixels is read as
    /// wide as it exists.
    pub(crate) b_row: usize,
    /// How many times the panel's vectors of pixels there are side by side, which a tile goes
    /// through before the next one; else 1.
    pub(crate) across: usize,
    pub(crate) ahead: Ahead,
    /// Output: pixel `r`, vector `v` is at `r * c_row + v * c_vector`.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) c_vector: usize,
    /// Lanes of the panel's last vector that exist in the output, at least 1.
    pub(crate) last_lanes: usize,
    /// Lanes of the panel's last vector that belong to one pixel: half of them
    /// where the panel is halved, so that the others serve the next pixel. A
    /// variable, since LLVM turns a blend by a constant mask into a shuffle, and
    /// these compete with multiply-adds.
    pub(crate) pixel_lanes: usize,
    pub(crate) start: Start,
    pub(crate) epilogue: Epilogue,
}

impl Args {
    /// What a panel adds for some input channels, from the bias on where these are the first: all
    /// but where inputs and outputs are, and what becomes of the sums. Pixels are the rows; they
    /// and the output's vectors are taken to be dense.
    pub(crate) fn of_panel<S: Lanes>(
        packed: &PackedPointwise,
        panel: &Panel,
        channels: Range<usize>,
    ) -> Self {
        let PackedPointwise { c_in, c_out, weights, bias, .. } = packed;
        let [first, width] = [panel.first, panel.vectors].map(|vectors| vectors * S::LANES);
        let weights = |first| weights.as_ptr().wrapping_add(first * c_in + channels.start * width);
        Self {
            a: core::ptr::null(),
            a_row: 0,
            a_block: S::LANES,
            k: channels.len(),
            runs_before: 0,
            a_run: 0,
            b: weights(first),
            b_row: 0,
            across: 1,
            ahead: Ahead::piece(weights(first + width), width * channels.len()),
            c: core::ptr::null_mut(),
            c_row: 0,
            c_vector: S::LANES,
            last_lanes: (c_out - first).min(width) - (width - S::LANES),
            pixel_lanes: panel.pixel_lanes::<S>(),
            start: match channels.start {
                0 => Start::Bias(bias.as_ptr().wrapping_add(first)),
                _ => Start::Partial,
            },
            epilogue: Epilogue::NONE,
        }
    }

    fn tail<S: Lanes>(&self, s: S) -> u8 {
        let own = s.narrow().is_some();
        match (self.pixel_lanes < S::LANES, self.last_lanes < S::LANES) {
            (true, _) if own && self.b_row == 0 => tail::LOW,
            (true, _) => tail::HALVED,
            (false, true) => tail::NARROW,
            (false, false) if own => tail::OWN,
            (false, false) => tail::WHOLE,
        }
    }
}

/// Cache lines that are needed when the panel is done. Its tiles ask for them, a few at
/// a time: all at once they would keep the loads waiting.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const f32,
    lines: usize,
}

impl Ahead {
    pub(crate) const NONE: Self = Self { start: core::ptr::null(), lines: 0 };

    /// Of weights that are there: a tile always asks.
    fn nothing(args: &Args) -> Self {
        Self { start: args.b, ..Self::NONE }
    }

    /// `len` f32 in one piece.
    pub(crate) fn piece(start: *const f32, len: usize) -> Self {
        Self { start, lines: len.div_ceil(LINE) }
    }
}

/// The pointers that move from tile to tile.
#[derive(Clone, Copy)]
struct Cursor {
    a: *const f32,
    /// Where pixels are the vectors.
    b: *const f32,
    c: *mut f32,
    residual: *const f32,
    /// Where each row has its own.
    bias: *const f32,
    /// What is still to be asked for.
    ahead: Ahead,
}

impl Cursor {
    fn new(args: &Args, ahead: Ahead) -> Self {
        let residual = args.epilogue.residual.start;
        let bias = match args.start {
            Start::Bias(bias) => bias,
            Start::Partial => core::ptr::null(),
        };
        Self { a: args.a, b: args.b, c: args.c, residual, bias, ahead }.asked(args, 0)
    }

    /// The same from `rows` pixels further on; at the end of the pixels the
    /// pointers are past theirs and no longer used.
    #[inline(always)]
    fn skip(self, args: &Args, rows: usize) -> Self {
        Self {
            a: self.a.wrapping_add(rows * if args.b_row == 0 { args.a_row } else { 1 }),
            c: self.c.wrapping_add(rows * args.c_row),
            residual: self.residual.wrapping_add(rows * args.epilogue.residual.row),
            bias: self.bias.wrapping_add(rows),
            ..self
        }
    }

    /// The same from `vectors` vectors of pixels further on.
    #[inline(always)]
    fn beside<S: Lanes>(self, args: &Args, vectors: usize) -> Self {
        Self {
            b: self.b.wrapping_add(vectors * S::LANES),
            c: self.c.wrapping_add(vectors * args.c_vector),
            residual: self.residual.wrapping_add(vectors * args.epilogue.residual.vector),
            ..self
        }
    }

    /// The same without lines that have been asked for.
    #[inline(always)]
    fn asked(self, args: &Args, n: usize) -> Self {
        let Ahead { start, lines } = self.ahead;
        let ahead = if n < lines {
            Ahead { start: start.wrapping_add(n * LINE), lines: lines - n }
        } else {
            Ahead::nothing(args)
        };
        Self { ahead, ..self }
    }
}

/// Computes one panel of `nv` vectors for `m` pixels: in the fewest tiles of nearly equal height,
/// so that no small rest is left over.
///
/// # Safety
/// The pointers of `args` are valid at `m` pixels, `k` channels and `nv`
/// vectors (the last one `last_lanes` wide in output and residual), and `across` times as many
/// where these are pixels; the output overlaps nothing else, and no other thread touches it.
pub(crate) unsafe fn panel<S: Lanes>(s: S, args: &Args, nv: usize, m: usize) {
    if m == 0 {
        return;
    }
    // Asked once: rows and instance must be of one kind of tile.
    let (tail, swapped) = (args.tail(s), args.b_row > 0);
    let tiles = m.div_ceil(most_rows::<S>(nv, tail, swapped));
    // So many are a row taller, and come before the others.
    let (rows, taller) = (m / tiles, m % tiles);
    // SAFETY: taller * (rows + 1) + (tiles - taller) * rows are all pixels.
    unsafe {
        // One tile alone would ask for a part only, and be slower for it.
        let ahead = if tiles == 1 { Ahead::NONE } else { args.ahead };
        let mut at = Cursor::new(args, ahead);
        if taller > 0 {
            select([rows + 1, nv], tail, swapped)(s, args, at, taller);
            let lines = taller * lines_of_a_tile::<S>(nv, tail, args.k);
            at = at.skip(args, taller * (rows + 1)).asked(args, lines);
        }
        select([rows, nv], tail, swapped)(s, args, at, tiles - taller);
    }
    let stored = || Stored {
        output: args.c,
        row: args.c_row,
        vector: args.c_vector,
        pixels: m,
        vectors: nv * args.across,
        last_lanes: args.last_lanes,
        residual: args.epilogue.residual,
    };
    // SAFETY: the pixels just written and their residual.
    unsafe { activate(s, &args.epilogue.finish, stored) };
}

/// f32 of pixels as vectors beside which weights and outputs pass through the first-level cache.
pub(crate) const NEAR: usize = 5120;

/// Planes into planes: output channels as rows, pixels as vectors. Strides are in f32.
pub(crate) struct Planes<'a> {
    pub(crate) packed: &'a PackedPointwise,
    /// The input channels that are summed, from `input` on; sums go on from what the output
    /// holds where they are not the first ones.
    pub(crate) channels: Range<usize>,
    pub(crate) input: *const f32,
    pub(crate) input_plane: usize,
    /// Output channel 0, as the epilogue's residual is of it, which has planes of its own.
    pub(crate) output: *mut f32,
    pub(crate) output_plane: usize,
    pub(crate) epilogue: Epilogue,
}

impl Planes<'_> {
    /// Computes some panels for `pixels` pixels, which lie one behind the other.
    ///
    /// # Safety
    /// The pointers are valid for these pixels and channels; the output overlaps nothing
    /// else, and no other thread touches it.
    pub(crate) unsafe fn run<S: Lanes>(&self, s: S, panels: &[Panel], pixels: usize) {
        let vectors = pixels.div_ceil(S::LANES);
        // So many that their inputs stay near, for each panel: what it writes is then in a few
        // planes, and long enough there to be foreseen. With many registers tiles have so many rows
        // that few come back, for which the second level is near enough.
        let near = if S::REGISTERS < 32 { NEAR } else { 4 * NEAR };
        let together = (near / (self.channels.len() * S::LANES)).max(1);
        let mut done = 0;
        while done < vectors {
            let block = done..vectors.min(done + together);
            // Where there are no panels.
            done = block.end;
            for panel in panels {
                // SAFETY: passed on.
                done = unsafe { self.panel(s, panel, block.clone(), pixels) };
            }
        }
    }

    /// One panel for some vectors of the pixels, and as many more as its last tile is wide; gives
    /// where it has ended.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn panel<S: Lanes>(
        &self,
        s: S,
        panel: &Panel,
        vectors: Range<usize>,
        pixels: usize,
    ) -> usize {
        let c_out = self.packed.c_out;
        let [first, size] = [panel.first, panel.vectors].map(|n| n * S::LANES);
        let of_pixels = Args::of_panel::<S>(self.packed, panel, self.channels.clone());
        let mut args = Args {
            a: of_pixels.b,
            a_row: size,
            a_block: 0,
            b_row: self.input_plane,
            ahead: Ahead::NONE,
            c_row: self.output_plane,
            ..of_pixels
        };
        // For one or two parts it gains nothing.
        let side_by_side = vectors.len() > 2 * pixel_vectors::<S>();
        let mut done = vectors.start;
        while done < vectors.end {
            let part = Panel::of_pixels::<S>(done, pixels);
            let parts = core::iter::successors(Some(part), |part| {
                let next = part.first + part.vectors;
                (side_by_side && next < vectors.end).then(|| Panel::of_pixels::<S>(next, pixels))
            });
            let is_whole = |part: &Panel| (part.first + part.vectors) * S::LANES <= pixels;
            let alike = |other: &Panel| other.vectors == part.vectors && is_whole(other);
            args.across = parts.take_while(alike).count().max(1);
            let (start, width) = (done * S::LANES, part.vectors * S::LANES);
            args.b = self.input.wrapping_add(start);
            args.c = self.output.wrapping_add(first * self.output_plane + start);
            args.last_lanes = width.min(pixels - start) - (width - S::LANES);
            args.pixel_lanes = part.pixel_lanes::<S>();
            args.epilogue = self.epilogue.skip(first, start);
            done += args.across * part.vectors;
            // SAFETY: passed on, for some of the pixels and channels.
            unsafe { self::panel(s, &args, part.vectors, size.min(c_out - first)) };
        }
        done
    }
}

/// The most rows of a tile.
const fn most_rows<S: Lanes>(nv: usize, tail: u8, swapped: bool) -> usize {
    let rows = match tail {
        tail::HALVED => S::POINTWISE_HALVED_ROWS[nv - 1],
        _ => S::POINTWISE_ROWS[nv - 1],
    };
    // Where pixels are the vectors, nothing keeps the loads in the order that this would need.
    let rows = if swapped && fills_registers::<S>([rows, nv]) { rows - 1 } else { rows };
    match tail {
        // LLVM spills in larger ones.
        tail::HALVED if swapped && nv == 3 && rows > 7 => 7,
        // The mask by which pixels are read wants a register.
        tail::NARROW if swapped && S::REGISTERS < 32 => rows.saturating_sub(1),
        _ => rows,
    }
}

type Run<S> = unsafe fn(S, &Args, Cursor, usize);

/// The lines that a tile of `nv` vectors asks for at a time: four tiles ask for as many
/// as they read weights. Not of one vector, which loads as often as it multiplies.
const fn lines_at_a_time<S: Lanes>(nv: usize) -> usize {
    if nv == 1 { 0 } else { (2 * K_STEP * nv * S::LANES / LINE).div_ceil(4) }
}

/// The steps that a tile of `nv` vectors takes row by row: not where they would be in
/// two blocks of the input's channels, nor where rows share a vector, which is slower, nor
/// with half vectors, where LLVM would keep the sums in memory.
fn last_steps<S: Lanes>(nv: usize, tail: u8, k: usize) -> usize {
    const { assert!(S::LAST_STEPS <= K_STEP) }
    let in_block = match k % S::LANES {
        0 if k > 0 => S::LANES,
        rest => rest,
    };
    if nv > 1 && !tail::is_half(tail) && in_block >= S::LAST_STEPS { S::LAST_STEPS } else { 0 }
}

/// Whether the steps that do not fill a vector go in groups, too, as far as they fill some: in other
/// tiles LLVM would spill.
const fn groups_rest(nv: usize, tail: u8) -> bool {
    nv > 1 && !tail::is_by_step(tail)
}

/// The lines that a tile of `nv` vectors asks for when it sums over `k` channels.
fn lines_of_a_tile<S: Lanes>(nv: usize, tail: u8, k: usize) -> usize {
    let steps = k - last_steps::<S>(nv, tail, k);
    let rest = if groups_rest(nv, tail) { steps % S::LANES } else { 0 };
    let groups = |steps: usize| (steps / K_STEP).div_ceil(2);
    (steps / S::LANES * groups(S::LANES) + groups(rest)) * lines_at_a_time::<S>(nv)
}

/// The instance for tiles of `mr` pixels by `nv` vectors: the table of all
/// pointwise kernels.
#[allow(clippy::unreachable, reason = "panels and rows are at most as large as `Lanes` says")]
fn select<S: Lanes>([mr, nv]: [usize; 2], tail: u8, swapped: bool) -> Run<S> {
    macro_rules! instance {
        ($mr:literal, $($nv:literal)*) => {
            match (nv, tail, swapped) {
                $(
                    ($nv, tail::WHOLE, false) => run::<S, $mr, $nv, { tail::WHOLE }, false>,
                    ($nv, tail::OWN, false) => run::<S, $mr, $nv, { tail::OWN }, false>,
                    ($nv, tail::NARROW, false) => run::<S, $mr, $nv, { tail::NARROW }, false>,
                    ($nv, tail::HALVED, false) => run::<S, $mr, $nv, { tail::HALVED }, false>,
                    ($nv, tail::LOW, false) => run::<S, $mr, $nv, { tail::LOW }, false>,
                    ($nv, tail::WHOLE, true) => run::<S, $mr, $nv, { tail::WHOLE }, true>,
                    ($nv, tail::OWN, true) => run::<S, $mr, $nv, { tail::OWN }, true>,
                    ($nv, tail::NARROW, true) => run::<S, $mr, $nv, { tail::NARROW }, true>,
                    ($nv, tail::HALVED, true) => run::<S, $mr, $nv, { tail::HALVED }, true>,
                )*
                _ => unreachable!("no pointwise tile is {mr} x {nv}"),
            }
        };
    }
    macro_rules! table {
        ($($mr:literal)*) => {
            match mr {
                $($mr => instance!($mr, 1 2 3 4),)*
                _ => unreachable!("no pointwise tile is {mr} x {nv}"),
            }
        };
    }
    table!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

/// `tiles` tiles of `MR` pixels, one below the other; of as many output channels, where pixels are
/// the vectors, each with those beside it.
///
/// # Safety
/// As for [`panel`], with `m = tiles * MR`.
unsafe fn run<S: Lanes, const MR: usize, const NV: usize, const TAIL: u8, const SWAPPED: bool>(
    s: S,
    args: &Args,
    start: Cursor,
    tiles: usize,
) {
    // Instances that no panel asks for are empty.
    if const { MR > most_rows::<S>(NV, TAIL, SWAPPED) || tail::is_own(TAIL) && !S::HALVES } {
        return;
    }
    s.enter(
        #[inline(always)]
        || {
            let mut at = start;
            let lines = lines_of_a_tile::<S>(NV, TAIL, args.k);
            for _ in 0..tiles {
                let mut beside = at;
                for _ in 0..if SWAPPED { args.across } else { 1 } {
                    // SAFETY: the caller vouches for all tiles.
                    unsafe { tile::<S, MR, NV, TAIL, SWAPPED>(s, args, beside) };
                    if SWAPPED {
                        beside = beside.beside::<S>(args, NV);
                    }
                }
                at = at.skip(args, MR).asked(args, lines);
            }
        },
    );
}

/// # Safety
/// As for [`panel`], with `m = MR` and `nv = NV`.
#[inline(always)]
unsafe fn tile<S: Lanes, const MR: usize, const NV: usize, const TAIL: u8, const SWAPPED: bool>(
    s: S,
    args: &Args,
    at: Cursor,
) {
    // Or they would be fetched again after each store.
    let (c_row, c_vector) = (args.c_row, args.c_vector);
    let c = |r: usize, v: usize| at.c.wrapping_add(r * c_row + v * c_vector);
    let load = |v: usize, p: *const f32| {
        let cut = tail::is_cut(TAIL) && v == NV - 1;
        // SAFETY: `p` is vector v of a pixel of the tile.
        unsafe { if cut { s.load_first(p, args.last_lanes) } else { s.load(p) } }
    };

    // The loops over `acc` are plain and short: each must unroll by itself, or
    // the array stays in memory.
    let mut acc = [[s.splat(0.0); NV]; MR];
    match args.start {
        Start::Bias(_) if SWAPPED => {
            for r in 0..MR {
                // SAFETY: there is a bias for each row.
                let bias = unsafe { s.splat(s.read(at.bias.add(r))) };
                for v in 0..NV {
                    acc[r][v] = bias;
                }
            }
        }
        Start::Bias(bias) => {
            for v in 0..NV {
                // SAFETY: NV whole vectors of packed bias.
                let bias = unsafe { s.load(bias.add(v * S::LANES)) };
                for r in 0..MR {
                    acc[r][v] = bias;
                }
            }
        }
        Start::Partial => {
            for r in 0..MR {
                for v in 0..NV {
                    acc[r][v] = load(v, c(r, v).cast_const());
                }
            }
        }
    }
    if TAIL == tail::HALVED && (SWAPPED || matches!(args.start, Start::Partial)) {
        for r in 1..MR {
            if r % 2 == 1 {
                let upper = s.swap_halves(acc[r][NV - 1]);
                acc[r - 1][NV - 1] = s.join(acc[r - 1][NV - 1], upper, args.pixel_lanes);
            }
        }
    }

    // SAFETY: passed on.
    unsafe {
        if SWAPPED {
            steps::of_planes::<S, MR, NV, TAIL>(s, &mut acc, args, at.a, at.b);
        } else {
            steps::of_rows::<S, MR, NV, TAIL>(s, &mut acc, args, at.a, at.ahead.start);
        }
    }

    if TAIL == tail::HALVED {
        for r in 1..MR {
            if r % 2 == 1 {
                acc[r][NV - 1] = s.swap_halves(acc[r - 1][NV - 1]);
            }
        }
    }
    let Epilogue { finish, residual } = args.epilogue;
    let store = |r: usize, v: usize, x: S::V| {
        let cut = tail::is_cut(TAIL) && v == NV - 1;
        // SAFETY: vector v of pixel r, cut to the lanes that exist.
        unsafe {
            if cut && tail::is_half(TAIL) && args.last_lanes == S::LANES / 2 {
                s.store_low(c(r, v), x);
            } else if cut {
                s.store_first(c(r, v), x, args.last_lanes);
            } else {
                s.store(c(r, v), x);
            }
        }
    };
    if finish.is_keep() && !at.residual.is_null() {
        each(
            &acc,
            |x| x,
            #[inline(always)]
            |r, v, x| {
                let p = at.residual.wrapping_add(r * residual.row + v * residual.vector);
                store(r, v, s.add(x, load(v, p)));
            },
        );
    } else {
        finish.each(s, &acc, store);
    }
}
