//! `Pointwise`: the 1x1 convolution.

use core::fmt;
use core::mem::MaybeUninit;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use crate::activation::Activation;
use crate::buffer::Shared;
use crate::error::Result;
use crate::executor::{Executor, Serial, for_each};
use crate::isa::Isa;
use crate::kernel::parts::Parts;
use crate::kernel::pointwise_layer::{Layer, Run};
use crate::layout::View;
use crate::pack::{PackPointwise, PackedPointwise, Tail};
use crate::params::{Names, PointwiseParams};
use crate::schedule::PlanOptions;
use crate::shape::{Shape, operations};
use crate::simd::{Kernel, Lanes};
use crate::split;

/// A 1x1 convolution with its weights packed for one instruction set.
///
/// ```
/// use mbconv::{Activation, Pointwise, PointwiseParams, Shape};
///
/// let weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [c_out = 2][c_in = 3]
/// let layer = PointwiseParams::new(3, 2, &weights).activation(Activation::Relu);
/// let plan = Pointwise::new(&layer)?.plan(Shape::new(1, 1, 1))?;
/// let mut y = [0.0; 2];
/// plan.run(&[1.0, 1.0, 1.0], &mut y)?;
/// assert_eq!(y, [6.0, 15.0]);
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone)]
pub struct Pointwise(Arc<Inner>);

impl fmt::Debug for Pointwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { isa, packed, activation } = &*self.0;
        f.debug_struct("Pointwise")
            .field("c_in", &packed.c_in)
            .field("c_out", &packed.c_out)
            .field("activation", activation)
            .field("isa", isa)
            .finish_non_exhaustive()
    }
}

struct Inner {
    isa: Isa,
    packed: PackedPointwise,
    activation: Activation,
}

impl Pointwise {
    /// Packs the layer for the instruction set that [`Isa::detect`] gives.
    ///
    /// # Errors
    ///
    /// What [`Isa::detect`] gives; [`Error::ZeroSize`](crate::Error::ZeroSize),
    /// [`Error::Overflow`](crate::Error::Overflow) or
    /// [`Error::Length`](crate::Error::Length) when sizes and slices do not fit
    /// each other; [`Error::InvalidActivation`](crate::Error::InvalidActivation).
    pub fn new(params: &PointwiseParams<'_>) -> Result<Self> {
        Self::with_isa(params, Isa::detect()?)
    }

    /// Packs the layer for `isa`.
    ///
    /// # Errors
    ///
    /// As for [`Pointwise::new`], without those of detection.
    pub fn with_isa(params: &PointwiseParams<'_>, isa: Isa) -> Result<Self> {
        params.validate(&Names::ALONE)?;
        let packed = isa.dispatch(PackPointwise(params, Tail::Zeros));
        Ok(Self(Arc::new(Inner { isa, packed, activation: params.activation })))
    }

    /// Plans for images of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`](crate::Error::ZeroSize) or
    /// [`Error::Overflow`](crate::Error::Overflow) when the shape is empty or
    /// too large.
    pub fn plan(&self, shape: Shape) -> Result<PointwisePlan> {
        self.plan_with(shape, &PlanOptions::new())
    }

    /// As [`Pointwise::plan`], for the caches and threads that `options` name.
    ///
    /// # Errors
    ///
    /// As for [`Pointwise::plan`]; [`Error::ZeroSize`](crate::Error::ZeroSize) for
    /// zero threads; [`Error::Stride`](crate::Error::Stride) when elements overlap.
    pub fn plan_with(&self, shape: Shape, options: &PlanOptions) -> Result<PointwisePlan> {
        let PackedPointwise { c_in, c_out, weights, panels, .. } = &self.0.packed;
        let input = options.input.view("input", shape, *c_in)?;
        let output = options.output.view("output", shape, *c_out)?;
        let pixels = shape.elements(1)?;
        let flat = View::flatten(shape, [&input, &output]);
        // With all weights in L1, a few pixels at a time keep output rows
        // together; else as many pixels as L2 holds share each panel's trip.
        let caches = options.caches;
        let budget =
            if size_of_val(&weights[..]) <= caches.l1 / 2 { caches.l1 / 4 } else { caches.l2 / 4 };
        // A multiple of every usual tile's height.
        let block = (budget / size_of::<f32>() / c_in).next_multiple_of(84).max(84);
        let flops = self.flops(shape)?;
        let tasks = split::tasks(options)?;
        let parts = split::pointwise([pixels, *c_in], panels, tasks);
        let (op, flush) = (self.clone(), options.flush_denormals);
        Ok(PointwisePlan { op, shape, flat, input, output, flops, block, parts, flush })
    }

    /// Floating-point operations for images of `shape`: two per multiply-add.
    ///
    /// # Errors
    ///
    /// As for [`Pointwise::plan`].
    pub fn flops(&self, shape: Shape) -> Result<u64> {
        operations(&[shape.elements(self.0.packed.c_in)?, self.0.packed.c_out])
    }

    /// Bytes of weights and bias, without the padding of packing.
    pub fn weight_bytes(&self) -> usize {
        let PackedPointwise { c_in, c_out, .. } = &self.0.packed;
        (c_in + 1) * c_out * size_of::<f32>()
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }
}

/// A [`Pointwise`] for images of one shape.
#[derive(Clone)]
pub struct PointwisePlan {
    op: Pointwise,
    shape: Shape,
    /// With as many axes as possible made one.
    flat: Shape,
    input: View,
    output: View,
    flops: u64,
    block: usize,
    parts: Parts,
    flush: bool,
}

impl PointwisePlan {
    /// f32 that the input of a run has; at least, where it is strided.
    pub fn input_len(&self) -> usize {
        self.input.len
    }

    /// f32 that the output of a run has; at least, where it is strided.
    pub fn output_len(&self) -> usize {
        self.output.len
    }

    /// Floating-point operations of a run: two per multiply-add.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// The extent of the output, which is the input's.
    pub fn output_shape(&self) -> Shape {
        self.shape
    }

    /// Into how many tasks a run is cut: more threads than that are of no use to it.
    pub fn tasks(&self) -> usize {
        self.parts.tasks
    }

    /// Convolves `input`, `[batch][height][width][c_in]`, into `output`,
    /// `[batch][height][width][c_out]`, or as the options have it. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) when a slice does not fit the shape.
    pub fn run(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.run_with(&Serial, input, output)
    }

    /// As [`PointwisePlan::run`], on the threads of `executor`.
    ///
    /// # Errors
    ///
    /// As for [`PointwisePlan::run`].
    pub fn run_with(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.run_all(executor, input, None, Shared::new(output)).map(drop)
    }

    /// As [`PointwisePlan::run`], and adds `residual`, which has the output's
    /// shape, after the activation.
    ///
    /// # Errors
    ///
    /// As for [`PointwisePlan::run`].
    pub fn run_residual(&self, input: &[f32], residual: &[f32], output: &mut [f32]) -> Result<()> {
        self.run_residual_with(&Serial, input, residual, output)
    }

    /// As [`PointwisePlan::run_residual`], on the threads of `executor`.
    ///
    /// ```
    /// use mbconv::{Pointwise, PointwiseParams, Serial, Shape};
    ///
    /// let plan = Pointwise::new(&PointwiseParams::new(1, 1, &[2.0]))?.plan(Shape::new(1, 1, 2))?;
    /// let mut y = [0.0; 2];
    /// plan.run_residual_with(&Serial, &[1.0, 2.0], &[10.0, 20.0], &mut y)?;
    /// assert_eq!(y, [12.0, 24.0]);
    /// # Ok::<(), mbconv::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`PointwisePlan::run`].
    pub fn run_residual_with(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        residual: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.run_all(executor, input, Some(residual), Shared::new(output)).map(drop)
    }

    /// As [`PointwisePlan::run_with`], and adds `residual` where there is one, into
    /// memory that need not be initialised; gives the output.
    ///
    /// # Errors
    ///
    /// As for [`PointwisePlan::run`]; [`Error::Gaps`](crate::Error::Gaps) when the
    /// output has gaps, which stay uninitialised.
    pub fn run_uninit<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        residual: Option<&[f32]>,
        output: &'o mut [MaybeUninit<f32>],
    ) -> Result<&'o mut [f32]> {
        self.output.check_gapless("output", output.len())?;
        self.run_all(executor, input, residual, Shared::uninit(output))
    }

    #[allow(unsafe_code, reason = "hands checked slices to the kernel")]
    fn run_all<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        residual: Option<&[f32]>,
        output: Shared<'o, f32>,
    ) -> Result<&'o mut [f32]> {
        self.input.check("input", input.len())?;
        self.output.check("output", output.len())?;
        if let Some(residual) = residual {
            self.output.check("residual", residual.len())?;
        }
        let Inner { isa, packed, activation } = &*self.op.0;
        // SAFETY: the slices are as long as their views say, `output` is borrowed
        // exclusively, and `packed` was packed for `isa`. Each task runs once, and
        // together they write the whole output.
        unsafe {
            for_each(executor, self.parts.tasks, self.flush, |task| {
                let layer = Layer {
                    packed,
                    activation: *activation,
                    shape: self.flat,
                    block: self.block,
                    parts: self.parts,
                    input: input.as_ptr(),
                    input_view: self.input,
                    residual: residual.map_or(core::ptr::null(), <[f32]>::as_ptr),
                    output: output.as_mut_ptr(),
                    output_view: self.output,
                };
                isa.dispatch(Run::new(layer, task));
            });
            Ok(output.assume_init())
        }
    }

    /// The kernel that most of the work runs on: operation, element type, tile
    /// of pixels by channels, instruction set.
    pub fn kernel_name(&self) -> String {
        self.op.0.isa.dispatch(Name(&self.op.0.packed))
    }
}

impl fmt::Debug for PointwisePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PointwisePlan")
            .field("op", &self.op)
            .field("shape", &self.shape)
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}

/// The name of the tile that a packed layer's first panel runs on.
struct Name<'a>(&'a PackedPointwise);

impl Kernel for Name<'_> {
    type Output = String;
    fn run<S: Lanes>(self, _: S) -> String {
        let (vectors, halved) =
            self.0.panels.first().map_or((1, false), |panel| (panel.vectors, panel.halved));
        let (rows, columns) = if halved {
            (S::POINTWISE_HALVED_ROWS[vectors - 1], vectors * S::LANES - S::LANES / 2)
        } else {
            (S::POINTWISE_ROWS[vectors - 1], vectors * S::LANES)
        };
        format!("pointwise_f32_{rows}x{columns}_{}", S::NAME)
    }
}
