//! `run` allocates nothing.
//!
//! Alone in its binary: the allocator counts for the whole process, so there is
//! one test.

#![allow(unsafe_code, reason = "a counting allocator")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Block, Fill, Layer, Rng, Window, isas};
use mbconv::{
    Activation, Depthwise, InvertedBottleneck, Padding, PlanOptions, Pointwise, Schedule, Shape,
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
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
}

#[test]
fn run_allocates_nothing() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");

    let rng = &mut Rng::new(7);
    let shape = Shape::new(2, 9, 11);
    let c = [5, 30, 7];
    let window =
        Window { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], padding: Padding::SameUpper };
    for act in [Activation::Relu6, Activation::Silu] {
        let block = Block {
            c,
            expand: Some(Layer::new(rng, Fill::Real, c[0] * c[1], c[1], act)),
            depthwise: Layer::new(rng, Fill::Real, 9 * c[1], c[1], act),
            project: Layer::new(rng, Fill::Real, c[1] * c[2], c[2], Activation::Identity),
            window,
            residual: false,
        };
        let expand = block.expand.as_ref().unwrap();
        let x = Fill::Real.vec(rng, shape.elements(c[0]).unwrap());
        let mut middle = vec![0.0; shape.elements(c[1]).unwrap()];
        for isa in isas() {
            let op = Pointwise::with_isa(&expand.pointwise(c[0], c[1]), isa).unwrap();
            let plan = op.plan(shape).unwrap();
            counted(&plan.kernel_name(), || plan.run(&x, &mut middle).unwrap());

            let op = Depthwise::with_isa(&block.depthwise.depthwise(c[1], &window), isa).unwrap();
            let plan = op.plan(shape).unwrap();
            let mut y = vec![0.0; plan.output_shape().elements(c[1]).unwrap()];
            counted(&plan.kernel_name(), || plan.run(&middle, &mut y).unwrap());

            let op = InvertedBottleneck::with_isa(&block.params(), isa).unwrap();
            for schedule in [Schedule::Fused, Schedule::Unfused] {
                let options = PlanOptions::new().schedule(schedule);
                let plan = op.plan_with(shape, &options).unwrap();
                let mut y = vec![0.0; plan.output_shape().elements(c[2]).unwrap()];
                let mut scratch = plan.scratch();
                let run = || plan.run(&x, &mut y, &mut scratch).unwrap();
                counted(&plan.kernel_name(), run);
            }
        }
    }
}
