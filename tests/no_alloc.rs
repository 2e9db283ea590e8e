//! `run` allocates nothing, on no thread.
//!
//! Alone in its binary: the allocator counts for the whole process, so there is
//! one test.

#![allow(unsafe_code, reason = "a counting allocator")]

mod common;
#[path = "../examples/support/pool.rs"]
mod pool;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::isas;
use mbconv::testing::{Data, First, Form, Random, Window};
use mbconv::{
    Activation, Depthwise, Executor, InvertedBottleneck, Padding, PlanOptions, Pointwise, Schedule,
    Serial, Shape,
};
use pool::Pool;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// What tasks have allocated.
static BY_TASKS: AtomicUsize = AtomicUsize::new(0);

/// Counts for each task on the thread that runs it.
struct Counted<'a>(&'a dyn Executor);

impl Executor for Counted<'_> {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        self.0.run(n_tasks, &|i| {
            let before = ALLOCATIONS.get();
            run_task(i);
            BY_TASKS.fetch_add(ALLOCATIONS.get() - before, Ordering::Relaxed);
        });
    }
}

struct Counting;

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn counted(what: &str, run: impl FnOnce()) {
    let before = ALLOCATIONS.get();
    run();
    assert_eq!(ALLOCATIONS.get() - before, 0, "{what} allocates");
    assert_eq!(BY_TASKS.load(Ordering::Relaxed), 0, "{what} allocates in a task");
}

#[test]
fn run_allocates_nothing() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");

    let pool = Pool::new(3);
    pool.run(3, &|_| ()); // locks may allocate when they are first used
    for (executor, threads) in [(&Serial as &dyn Executor, 1), (&Serial, 3), (&pool, 3)] {
        for layout in [mbconv::Layout::Nhwc, mbconv::Layout::Nchw] {
            run_all(&Counted(executor), PlanOptions::new().threads(threads).layout(layout));
        }
    }
    #[cfg(feature = "rayon")]
    {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let options = PlanOptions::new().threads(3);
        pool.install(|| run_all(&Counted(&mbconv::Rayon::new()), options));
        pool.install(|| run_all(&Counted(&mbconv::Rayon::in_pool(&pool)), options));
    }
}

fn run_all(executor: &dyn Executor, options: PlanOptions) {
    let (random, data) = (&mut Random::new(7), Data::Ordinary);
    let shape = Shape::new(2, 9, 11);
    let c = [5, 30, 7];
    let window =
        Window { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], padding: Padding::SameUpper };
    let form = Form { c, first: First::Expand, window, gate: None, project: true, residual: false };
    for act in [Activation::Relu6, Activation::Silu] {
        let block = form.block(random, data, [act, act, Activation::Identity]);
        let expand = block.expand.as_ref().unwrap();
        let x = data.tensor(1, shape.elements(c[0]).unwrap());
        let mut middle = vec![0.0; shape.elements(c[1]).unwrap()];
        for isa in isas() {
            let op = Pointwise::with_isa(&expand.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            let run = || plan.run_with(executor, &x, &mut middle).unwrap();
            counted(&plan.kernel_name(), run);

            let op = Depthwise::with_isa(&block.depthwise.params(), isa).unwrap();
            let plan = op.plan_with(shape, &options).unwrap();
            let mut y = vec![0.0; plan.output_shape().elements(c[1]).unwrap()];
            let run = || plan.run_with(executor, &middle, &mut y).unwrap();
            counted(&plan.kernel_name(), run);

            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            for schedule in [Schedule::Fused, Schedule::Unfused] {
                let plan = op.plan_with(shape, &options.schedule(schedule)).unwrap();
                let mut y = vec![0.0; plan.output_shape().elements(c[2]).unwrap()];
                let mut scratch = plan.scratch();
                let run = || plan.run_with(executor, &x, &mut y, &mut scratch).unwrap();
                counted(&plan.kernel_name(), run);
            }
        }
    }
}
