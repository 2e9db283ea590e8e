//! The pointwise tile: `MR` pixels by `NV` vectors of output channels, held in
//! registers while the input channels stream past.

use crate::activation::Activation;
use crate::pack::PackedPointwise;
use crate::simd::{K_STEP, Kernel, Lanes};

/// Where a run of tiles starts its sums.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// From the bias, `NV` whole vectors.
    Bias(*const f32),
    /// From what the output holds: the sum over the channels before. Storing a
    /// partial sum and taking it up again changes no bit of it.
    Partial,
}

/// What happens to the sums when the last input channel is in.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    pub(crate) activation: Activation,
    /// Added after the activation; null where there is none. In the output's
    /// layout, with rows `residual_row` apart.
    pub(crate) residual: *const f32,
    pub(crate) residual_row: usize,
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
    /// The panel's packed weights, from the first of those channels on.
    pub(crate) b: *const f32,
    /// Output: pixel `r`, vector `v` is at `r * c_row + v * c_vector`.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) c_vector: usize,
    /// Lanes of the panel's last vector that exist in the output, at least 1.
    pub(crate) last_lanes: usize,
    pub(crate) start: Start,
    /// None: more channels follow, the raw sums are stored.
    pub(crate) epilogue: Option<Epilogue>,
}

impl Args {
    /// The same work from `rows` pixels further on.
    ///
    /// # Safety
    /// The work is valid for at least `rows` pixels.
    unsafe fn skip(mut self, rows: usize) -> Self {
        // SAFETY: inside, or one past the end of, what the caller vouches for.
        unsafe {
            self.a = self.a.add(rows * self.a_row);
            self.c = self.c.add(rows * self.c_row);
            if let Some(epilogue) = self.epilogue.as_mut().filter(|e| !e.residual.is_null()) {
                epilogue.residual = epilogue.residual.add(rows * epilogue.residual_row);
            }
        }
        self
    }
}

/// Computes one panel of `nv` vectors for `m` pixels.
///
/// Cuts the pixels into the fewest tiles of nearly equal height, so that no
/// small rest is left over.
///
/// # Safety
/// The pointers of `args` are valid at `m` pixels, `k` channels and `nv`
/// vectors (the last one `last_lanes` wide in output and residual); the output
/// overlaps nothing else, and no other thread touches it.
pub(crate) unsafe fn panel<S: Lanes>(s: S, args: &Args, nv: usize, m: usize) {
    if m == 0 {
        return;
    }
    let tiles = m.div_ceil(S::POINTWISE_ROWS[nv - 1]);
    let (rows, taller) = (m / tiles, m % tiles);
    // SAFETY: taller * (rows + 1) + (tiles - taller) * rows = m pixels in all.
    unsafe {
        if taller > 0 {
            select::<S>(rows + 1, nv)(s, args, taller);
        }
        let rest = args.skip(taller * (rows + 1));
        select::<S>(rows, nv)(s, &rest, tiles - taller);
    }
}

type Run<S> = unsafe fn(S, &Args, usize);

/// The instance for tiles of `mr` pixels by `nv` vectors: the table of all
/// pointwise kernels.
fn select<S: Lanes>(mr: usize, nv: usize) -> Run<S> {
    macro_rules! table {
        ($($mr:literal)*) => {
            match (mr, nv) {
                $(($mr, 1) => run::<S, $mr, 1>,)*
                $(($mr, 2) => run::<S, $mr, 2>,)*
                $(($mr, 3) => run::<S, $mr, 3>,)*
                $(($mr, 4) => run::<S, $mr, 4>,)*
                _ => unreachable!("no pointwise tile is {mr} x {nv}"),
            }
        };
    }
    table!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// `tiles` tiles of `MR` pixels, one below the other.
///
/// # Safety
/// As for [`panel`], with `m = tiles * MR`.
unsafe fn run<S: Lanes, const MR: usize, const NV: usize>(s: S, args: &Args, tiles: usize) {
    // Instances that no panel asks for are empty.
    if const { MR > S::POINTWISE_ROWS[NV - 1] } {
        return;
    }
    s.enter(
        #[inline(always)]
        || {
            let mut args = *args;
            for _ in 0..tiles {
                // SAFETY: the caller vouches for `tiles` tiles.
                unsafe {
                    tile::<S, MR, NV>(s, &args);
                    args = args.skip(MR);
                }
            }
        },
    );
}

/// # Safety
/// As for [`panel`], with `m = MR` and `nv = NV`.
#[inline(always)]
unsafe fn tile<S: Lanes, const MR: usize, const NV: usize>(s: S, args: &Args) {
    let whole = args.last_lanes == S::LANES;
    // The last vector may be narrower in the output, where nothing may be
    // touched beyond its end.
    let at = |r: usize, v: usize| args.c.wrapping_add(r * args.c_row + v * args.c_vector);
    let narrow = |v: usize| v == NV - 1 && !whole;

    // SAFETY: every address is of a pixel r < MR, a vector v < NV and a channel
    // below k, which the caller vouches for; narrow vectors go by last_lanes.
    unsafe {
        let mut acc: [[S::V; NV]; MR] = match args.start {
            Start::Bias(bias) => {
                let row = core::array::from_fn(|v| s.load(bias.add(v * S::LANES)));
                [row; MR]
            }
            Start::Partial => core::array::from_fn(|r| {
                core::array::from_fn(|v| {
                    if narrow(v) {
                        s.load_first(at(r, v), args.last_lanes)
                    } else {
                        s.load(at(r, v))
                    }
                })
            }),
        };

        let (mut a, mut b) = (args.a, args.b);
        for _ in 0..args.k / S::LANES {
            for step in 0..S::LANES / K_STEP {
                s.rank_update(&mut acc, a.add(step * K_STEP), args.a_row, b);
                b = b.add(K_STEP * NV * S::LANES);
            }
            a = a.add(args.a_block);
        }
        for k in 0..args.k % S::LANES {
            s.rank_one(&mut acc, a.add(k), args.a_row, b);
            b = b.add(NV * S::LANES);
        }

        let bounds = args.epilogue.and_then(|e| e.activation.bounds());
        if let (Some(epilogue), Some([lo, hi])) = (args.epilogue, bounds) {
            let (lo, hi) = (s.splat(lo), s.splat(hi));
            for row in &mut acc {
                for x in row {
                    *x = s.min(hi, s.max(lo, *x));
                }
            }
            if !epilogue.residual.is_null() {
                for (r, row) in acc.iter_mut().enumerate() {
                    for (v, x) in row.iter_mut().enumerate() {
                        let p = epilogue.residual.add(r * epilogue.residual_row + v * S::LANES);
                        let residual =
                            if narrow(v) { s.load_first(p, args.last_lanes) } else { s.load(p) };
                        *x = s.add(*x, residual);
                    }
                }
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (v, &x) in row.iter().enumerate() {
                if narrow(v) {
                    s.store_first(at(r, v), x, args.last_lanes);
                } else {
                    s.store(at(r, v), x);
                }
            }
        }
        if let (Some(epilogue), None) = (args.epilogue, bounds) {
            activate(s, args, &epilogue, MR, NV);
        }
    }
}

/// The activations that are not a clamp: over the tile just written, which is
/// in the first-level cache, rather than unrolled into every instance.
///
/// # Safety
/// As for [`panel`].
#[inline(never)]
unsafe fn activate<S: Lanes>(s: S, args: &Args, epilogue: &Epilogue, mr: usize, nv: usize) {
    s.enter(
        #[inline(always)]
        || {
            for r in 0..mr {
                for v in 0..nv {
                    let lanes = if v == nv - 1 { args.last_lanes } else { S::LANES };
                    // SAFETY: pixel r, vector v and its lanes are the caller's.
                    unsafe {
                        let p = args.c.add(r * args.c_row + v * args.c_vector);
                        let mut x = epilogue.activation.apply_lanes(s, s.load_first(p, lanes));
                        if !epilogue.residual.is_null() {
                            let q = epilogue.residual.add(r * epilogue.residual_row + v * S::LANES);
                            x = s.add(x, s.load_first(q, lanes));
                        }
                        s.store_first(p, x, lanes);
                    }
                }
            }
        },
    );
}

/// A whole 1x1 convolution over NHWC pixels.
pub(crate) struct Layer<'a> {
    packed: &'a PackedPointwise,
    activation: Activation,
    pixels: usize,
    block: usize,
    input: *const f32,
    residual: *const f32,
    output: *mut f32,
}

impl<'a> Layer<'a> {
    /// `pixels` pixels, taken `block` at a time through all panels, so that
    /// their inputs stay in a cache.
    ///
    /// # Safety
    /// `input` is valid for `pixels` pixels of `c_in` channels, `output` and, if
    /// it is not null, `residual` for as many of `c_out`; the output overlaps
    /// nothing and no other thread touches it; `packed` is for the instruction
    /// set that this is dispatched to.
    pub(crate) unsafe fn new(
        packed: &'a PackedPointwise,
        activation: Activation,
        [pixels, block]: [usize; 2],
        input: *const f32,
        residual: *const f32,
        output: *mut f32,
    ) -> Self {
        Self { packed, activation, pixels, block, input, residual, output }
    }
}

impl Kernel for Layer<'_> {
    type Output = ();

    fn run<S: Lanes>(self, s: S) {
        let PackedPointwise { c_in, c_out, panels, weights, bias } = self.packed;
        let (c_in, c_out) = (*c_in, *c_out);
        for start in (0..self.pixels).step_by(self.block) {
            let pixels = self.block.min(self.pixels - start);
            for panel in panels {
                let first = panel.first * S::LANES;
                let width = panel.vectors * S::LANES;
                // SAFETY: `new` has vouched for all pixels and channels; first
                // is below c_out, and the last vector is cut to it.
                unsafe {
                    let args = Args {
                        a: self.input.add(start * c_in),
                        a_row: c_in,
                        a_block: S::LANES,
                        k: c_in,
                        b: weights.as_ptr().add(first * c_in),
                        c: self.output.add(start * c_out + first),
                        c_row: c_out,
                        c_vector: S::LANES,
                        last_lanes: (c_out - first).min(width) - (width - S::LANES),
                        start: Start::Bias(bias.as_ptr().add(first)),
                        epilogue: Some(Epilogue {
                            activation: self.activation,
                            residual: if self.residual.is_null() {
                                self.residual
                            } else {
                                self.residual.add(start * c_out + first)
                            },
                            residual_row: c_out,
                        }),
                    };
                    self::panel(s, &args, panel.vectors, pixels);
                }
            }
        }
    }
}
