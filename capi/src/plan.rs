//! Plans: an operation for images of one shape, ready to run.

use std::ffi::{CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use mbconv::{
    BottleneckPlan, DepthwisePlan, Error, Executor, PlanOptions, PointwisePlan, Serial, Shape,
};

use crate::memory::{self, check_apart, extent, floats, free, give, handle, uninit};
use crate::op::{self, Op};
use crate::options::Options;
use crate::status::{Failure, Result, Status, guard};

/// An operation for images of one shape.
pub struct Plan {
    kind: Kind,
    output: Shape,
    explanation: CString,
}

enum Kind {
    Pointwise(PointwisePlan),
    Depthwise(DepthwisePlan),
    Block(Box<BottleneckPlan>),
}

/// Runs a task; `tasks` is what `mbconv_parallel` was given.
pub type RunTask = unsafe extern "C" fn(tasks: *mut c_void, number: usize);

/// A pool of threads of the caller's: calls `run_task(tasks, i)` once with each `i` below `n_tasks`,
/// on any threads, and returns when all calls have returned. `context` is what the run was given.
///
/// What it does not call for runs on the run's own thread afterwards. After it has returned,
/// `run_task` must not be called any more, and nothing may be thrown or jumped out of it.
pub type Parallel = Option<
    unsafe extern "C" fn(
        context: *mut c_void,
        n_tasks: usize,
        run_task: RunTask,
        tasks: *mut c_void,
    ),
>;

/// What the pointer `tasks` points to.
type Tasks<'a> = &'a (dyn Fn(usize) + Sync);

unsafe extern "C" fn run_task(tasks: *mut c_void, number: usize) {
    // SAFETY: made in `Pool::run`, which has not returned.
    let run = unsafe { *tasks.cast_const().cast::<Tasks<'_>>() };
    // A panic may not unwind through C. The run finds that the task is not done, and panics.
    let _ = catch_unwind(AssertUnwindSafe(|| run(number)));
}

struct Pool {
    parallel: unsafe extern "C" fn(*mut c_void, usize, RunTask, *mut c_void),
    context: *mut c_void,
}

impl Executor for Pool {
    fn run(&self, n_tasks: usize, tasks: Tasks<'_>) {
        let tasks = (&raw const tasks).cast_mut().cast();
        // SAFETY: the caller's own function, which keeps to what `Parallel` says.
        unsafe { (self.parallel)(self.context, n_tasks, run_task, tasks) }
    }
}

impl Plan {
    fn of_block(plan: BottleneckPlan) -> (Kind, Shape, String) {
        let output = plan.output_shape();
        let text = format!("{}: {}", plan.kernel_name(), plan.explain());
        (Kind::Block(Box::new(plan)), output, text)
    }

    fn new(op: &Op, shape: Shape, options: &PlanOptions) -> Result<Self> {
        let (kind, output, explanation) = match &op.0 {
            op::Kind::Pointwise(op) => {
                let plan = op.plan_with(shape, options)?;
                let name = plan.kernel_name();
                (Kind::Pointwise(plan), shape, name)
            }
            op::Kind::Depthwise(op) => {
                let plan = op.plan_with(shape, options)?;
                let (output, name) = (plan.output_shape(), plan.kernel_name());
                (Kind::Depthwise(plan), output, name)
            }
            op::Kind::Block(op) => Self::of_block(op.plan_with(shape, options)?),
            op::Kind::ConvNext(op) => Self::of_block(op.plan_with(shape, options)?),
        };
        // No name has a zero byte.
        Ok(Self { kind, output, explanation: CString::new(explanation).unwrap_or_default() })
    }

    fn run(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        residual: Option<&[f32]>,
        output: &mut [MaybeUninit<f32>],
        scratch: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        match &self.kind {
            Kind::Pointwise(plan) => plan.run_uninit(executor, input, residual, output),
            Kind::Depthwise(plan) => plan.run_uninit(executor, input, output),
            Kind::Block(plan) => plan.run_uninit(executor, input, output, scratch),
        }
        .map(drop)
    }

    /// As [`Plan::run`], where the output has gaps, which are initialised.
    fn run_around_gaps(
        &self,
        executor: &dyn Executor,
        input: &[f32],
        residual: Option<&[f32]>,
        output: &mut [f32],
        scratch: &mut [MaybeUninit<u8>],
    ) -> mbconv::Result<()> {
        match (&self.kind, residual) {
            (Kind::Pointwise(plan), Some(residual)) => {
                plan.run_residual_with(executor, input, residual, output)
            }
            (Kind::Pointwise(plan), None) => plan.run_with(executor, input, output),
            (Kind::Depthwise(plan), _) => plan.run_with(executor, input, output),
            (Kind::Block(plan), _) => plan.run_with(executor, input, output, scratch),
        }
    }

    fn scratch_bytes(&self) -> usize {
        match &self.kind {
            Kind::Block(plan) => plan.scratch_bytes(),
            _ => 0,
        }
    }
}

/// Plans an operation for `batch` images of `height` x `width` pixels. `options` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_new(
    op: *const Op,
    batch: usize,
    height: usize,
    width: usize,
    options: *const Options,
    plan: *mut *mut Plan,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(plan, || {
            let options = options.as_ref().map_or_else(PlanOptions::new, |options| options.0);
            Plan::new(handle(op, "op")?, Shape::new(batch, height, width), &options)
        })
    })
}

/// Floats that the input of a run has; at least, where it is strided. 0 for a null plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_input_len(plan: *const Plan) -> usize {
    // SAFETY: the rules of the header.
    unsafe { plan.as_ref() }.map_or(0, |plan| match &plan.kind {
        Kind::Pointwise(plan) => plan.input_len(),
        Kind::Depthwise(plan) => plan.input_len(),
        Kind::Block(plan) => plan.input_len(),
    })
}

/// Floats that the output of a run has; at least, where it is strided. 0 for a null plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_output_len(plan: *const Plan) -> usize {
    // SAFETY: the rules of the header.
    unsafe { plan.as_ref() }.map_or(0, |plan| match &plan.kind {
        Kind::Pointwise(plan) => plan.output_len(),
        Kind::Depthwise(plan) => plan.output_len(),
        Kind::Block(plan) => plan.output_len(),
    })
}

/// Gives rows and columns of an output image. Either place may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_output_size(
    plan: *const Plan,
    height: *mut usize,
    width: *mut usize,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        let Shape { height: rows, width: columns, .. } = handle(plan, "plan")?.output;
        for (place, size) in [(height, rows), (width, columns)] {
            if !place.is_null() {
                place.write(size);
            }
        }
        Ok(())
    })
}

/// Bytes of scratch memory that a run needs, at any alignment: 0 but for blocks, and for a null
/// plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_scratch_bytes(plan: *const Plan) -> usize {
    // SAFETY: the rules of the header.
    unsafe { plan.as_ref() }.map_or(0, Plan::scratch_bytes)
}

/// The kernel that runs, and for a block how it is scheduled and why, in words. The text is the
/// plan's and ends with it; empty for a null plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_explain(plan: *const Plan) -> *const c_char {
    // SAFETY: the rules of the header.
    unsafe { plan.as_ref() }.map_or(c"".as_ptr(), |plan| plan.explanation.as_ptr())
}

/// Runs a plan on the calling thread. Allocates nothing.
///
/// Output and scratch memory overlap neither each other nor the input, and need not be initialised;
/// but where the output has gaps between its elements, these are, and stay as they are. `scratch`
/// may be null where a plan needs none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_run(
    plan: *const Plan,
    input: *const f32,
    input_len: usize,
    output: *mut f32,
    output_len: usize,
    scratch: *mut c_void,
    scratch_bytes: usize,
) -> Status {
    // SAFETY: the rules of the header.
    unsafe {
        mbconv_plan_run_with(
            plan,
            None,
            ptr::null_mut(),
            input,
            input_len,
            ptr::null(),
            0,
            output,
            output_len,
            scratch,
            scratch_bytes,
        )
    }
}

/// As `mbconv_plan_run`, on the threads of `parallel`; null is the calling thread. It is called once,
/// or for each image of the batch twice, with squeeze-and-excite four times. The result is the same
/// bit for bit.
///
/// `residual`, of the output's shape, is added to the output of a 1x1 convolution after its activation;
/// null for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_run_with(
    plan: *const Plan,
    parallel: Parallel,
    context: *mut c_void,
    input: *const f32,
    input_len: usize,
    residual: *const f32,
    residual_len: usize,
    output: *mut f32,
    output_len: usize,
    scratch: *mut c_void,
    scratch_bytes: usize,
) -> Status {
    // SAFETY: the rules of the header; that nothing written is shared is checked before references exist.
    guard(|| unsafe {
        let plan = handle(plan, "plan")?;
        check_apart(
            &[extent(output, output_len), extent(scratch.cast::<u8>(), scratch_bytes)],
            &[extent(input, input_len), extent(residual, residual_len)],
        )?;
        let input = floats(input, input_len, "input")?;
        let residual = match residual.is_null() {
            true => None,
            false => Some(floats(residual, residual_len, "residual")?),
        };
        if residual.is_some() && !matches!(plan.kind, Kind::Pointwise(_)) {
            return Err(Failure::Argument(
                "only a 1x1 convolution takes a residual beside its input",
            ));
        }
        let output = uninit(output, output_len, "output")?;
        let scratch = memory::scratch(scratch, scratch_bytes)?;
        let pool = parallel.map(|parallel| Pool { parallel, context });
        let executor = pool.as_ref().map_or(&Serial as &dyn Executor, |pool| pool);
        match plan.run(executor, input, residual, output, scratch) {
            Err(Error::Gaps { .. }) => {
                // Which are initialised here: the caller's promise.
                let output = &mut *(&raw mut *output as *mut [f32]);
                Ok(plan.run_around_gaps(executor, input, residual, output, scratch)?)
            }
            result => Ok(result?),
        }
    })
}

/// Frees a plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_plan_free(plan: *mut Plan) {
    // SAFETY: the rules of the header.
    unsafe { free(plan) }
}
