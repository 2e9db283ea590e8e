//! `Depthwise`: a filter of its own for each channel.

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
use crate::kernel::depthwise::{Layer, Run, units};
use crate::kernel::parts::Parts;
use crate::layout::View;
use crate::pack::{PackDepthwise, PackedDepthwise, Tail};
use crate::params::DepthwiseParams;
use crate::schedule::PlanOptions;
use crate::shape::{Placed, Shape, Window, operations};
use crate::split;

/// A depthwise convolution with its weights packed for one instruction set.
///
/// Windows 3, 5 or 7 wide and no taller run on instances of their own where the horizontal
/// stride is 1, or 2 without horizontal dilation; so do most columns of as many taps. All others
/// run vectorised too, with their taps in a loop, and so does a [channel
/// multiplier](DepthwiseParams::multiplier).
///
/// ```
/// use mbconv::{Depthwise, DepthwiseParams, Padding, Shape};
///
/// let weights = [1.0; 9]; // [3][3][channels = 1]
/// let layer = DepthwiseParams::new(1, [3, 3], &weights).padding(Padding::uniform(1));
/// let plan = Depthwise::new(&layer)?.plan(Shape::new(1, 2, 2))?;
/// let mut y = [0.0; 4];
/// plan.run(&[1.0, 2.0, 3.0, 4.0], &mut y)?;
/// assert_eq!(y, [10.0; 4]);
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone)]
pub struct Depthwise(Arc<Inner>);

impl fmt::Debug for Depthwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { isa, packed, window, activation } = &*self.0;
        f.debug_struct("Depthwise")
            .field("channels", &(packed.channels / packed.multiplier))
            .field("multiplier", &packed.multiplier)
            .field("window", window)
            .field("activation", activation)
            .field("isa", isa)
            .finish_non_exhaustive()
    }
}

struct Inner {
    isa: Isa,
    packed: PackedDepthwise,
    window: Window,
    activation: Activation,
}

impl Depthwise {
    /// Packs the layer for the instruction set that [`Isa::detect`] gives.
    ///
    /// # Errors
    ///
    /// What [`Isa::detect`] gives; [`Error::ZeroSize`](crate::Error::ZeroSize),
    /// [`Error::Overflow`](crate::Error::Overflow) or
    /// [`Error::Length`](crate::Error::Length) when sizes and slices do not fit
    /// each other; [`Error::PaddingTooLarge`](crate::Error::PaddingTooLarge);
    /// [`Error::InvalidActivation`](crate::Error::InvalidActivation).
    pub fn new(params: &DepthwiseParams<'_>) -> Result<Self> {
        Self::with_isa(params, Isa::detect()?)
    }

    /// Packs the layer for `isa`.
    ///
    /// # Errors
    ///
    /// As for [`Depthwise::new`], without those of detection.
    pub fn with_isa(params: &DepthwiseParams<'_>, isa: Isa) -> Result<Self> {
        params.validate()?;
        let packed = isa.dispatch(PackDepthwise(params, Tail::Overlap));
        let (window, activation) = (params.window, params.activation);
        Ok(Self(Arc::new(Inner { isa, packed, window, activation })))
    }

    /// Plans for images of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSize`](crate::Error::ZeroSize) or
    /// [`Error::Overflow`](crate::Error::Overflow) when the shape is empty or
    /// too large; [`Error::EmptyOutput`](crate::Error::EmptyOutput) when the
    /// kernel does not fit the padded image.
    pub fn plan(&self, shape: Shape) -> Result<DepthwisePlan> {
        self.plan_with(shape, &PlanOptions::new())
    }

    /// As [`Depthwise::plan`], for the caches and threads that `options` name.
    ///
    /// # Errors
    ///
    /// As for [`Depthwise::plan`]; [`Error::ZeroSize`](crate::Error::ZeroSize) for
    /// zero threads; [`Error::Stride`](crate::Error::Stride) when elements overlap.
    pub fn plan_with(&self, shape: Shape, options: &PlanOptions) -> Result<DepthwisePlan> {
        let PackedDepthwise { channels, multiplier, .. } = self.0.packed;
        let input = options.input.view("input", shape, channels / multiplier)?;
        let window = self.0.window.place(shape)?;
        let output = options.output.view("output", window.output, channels)?;
        // The band's input rows fill half of L2.
        let row = shape.width * (channels / multiplier) * size_of::<f32>();
        let rows = (options.caches.l2 / 2 / row).saturating_sub(window.kernel[0]);
        let band = (rows / window.stride[0]).max(1);
        let flops = self.flops(shape)?;
        let tasks = split::tasks(options)?;
        let Shape { batch, height, .. } = window.output;
        let parts = split::depthwise(batch * height, units(channels, self.0.isa.lanes()), tasks);
        let flush = options.flush_denormals;
        Ok(DepthwisePlan { op: self.clone(), window, input, output, flops, band, parts, flush })
    }

    /// Floating-point operations for images of `shape`: two per multiply-add,
    /// padded taps counted too, as is usual.
    ///
    /// # Errors
    ///
    /// As for [`Depthwise::plan`].
    pub fn flops(&self, shape: Shape) -> Result<u64> {
        let packed = &self.0.packed;
        let output = self.0.window.place(shape)?.output.elements(packed.channels)?;
        operations(&[output, packed.taps])
    }

    /// Bytes of weights and bias, without the padding of packing.
    pub fn weight_bytes(&self) -> usize {
        (self.0.packed.taps + 1) * self.0.packed.channels * size_of::<f32>()
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }
}

/// A [`Depthwise`] for images of one shape.
#[derive(Clone)]
pub struct DepthwisePlan {
    op: Depthwise,
    window: Placed,
    input: View,
    output: View,
    flops: u64,
    band: usize,
    parts: Parts,
    flush: bool,
}

impl DepthwisePlan {
    /// f32 that the input of a run has; at least, where it is strided.
    pub fn input_len(&self) -> usize {
        self.input.len
    }

    /// f32 that the output of a run has; at least, where it is strided.
    pub fn output_len(&self) -> usize {
        self.output.len
    }

    /// Floating-point operations of a run: two per multiply-add, padded taps
    /// counted too, as is usual.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// The extent of the output.
    pub fn output_shape(&self) -> Shape {
        self.window.output
    }

    /// Into how many tasks a run is cut: more threads than that are of no use to it.
    pub fn tasks(&self) -> usize {
        self.parts.tasks
    }

    /// Convolves `input`, `[batch][height][width][channels]`, into `output`, the
    /// same with the [output's extent](Self::output_shape), or as the options have
    /// it. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) when a slice does not fit the shape.
    pub fn run(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.run_with(&Serial, input, output)
    }

    /// As [`DepthwisePlan::run`], on the threads of `executor`.
    ///
    /// # Errors
    ///
    /// As for [`DepthwisePlan::run`].
    pub fn run_with(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.run_all(executor, input, Shared::new(output)).map(drop)
    }

    /// As [`DepthwisePlan::run_with`], into memory that need not be initialised;
    /// gives the output.
    ///
    /// # Errors
    ///
    /// As for [`DepthwisePlan::run`]; [`Error::Gaps`](crate::Error::Gaps) when the
    /// output has gaps, which stay uninitialised.
    pub fn run_uninit<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: &'o mut [MaybeUninit<f32>],
    ) -> Result<&'o mut [f32]> {
        self.output.check_gapless("output", output.len())?;
        self.run_all(executor, input, Shared::uninit(output))
    }

    #[allow(unsafe_code, reason = "hands checked slices to the kernel")]
    fn run_all<'o>(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        output: Shared<'o, f32>,
    ) -> Result<&'o mut [f32]> {
        self.input.check("input", input.len())?;
        self.output.check("output", output.len())?;
        let Inner { isa, packed, activation, .. } = &*self.op.0;
        // SAFETY: the slices are as long as the window's shapes say, `output` is
        // borrowed exclusively, and `packed` was packed for `isa`. Each task runs
        // once, and together they write the whole output.
        unsafe {
            for_each(executor, self.parts.tasks, self.flush, |task| {
                let layer = Layer {
                    packed,
                    activation: *activation,
                    window: &self.window,
                    band: self.band,
                    parts: self.parts,
                    input: input.as_ptr(),
                    input_view: self.input,
                    output: output.as_mut_ptr(),
                    output_view: self.output,
                };
                isa.dispatch(Run::new(layer, task));
            });
            Ok(output.assume_init())
        }
    }

    /// The kernel that the work runs on: operation, element type, window,
    /// horizontal stride, instruction set.
    pub fn kernel_name(&self) -> String {
        let [h, w] = self.window.kernel;
        format!("depthwise_f32_{h}x{w}s{}_{}", self.window.stride[1], self.op.0.isa)
    }
}

impl fmt::Debug for DepthwisePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DepthwisePlan")
            .field("op", &self.op)
            .field("input", &self.window.input)
            .field("output", &self.window.output)
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}
