//! Who runs the tasks that a plan is cut into.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::simd::FlushDenormals;

/// A pool of threads, as far as a plan's `run_with` needs it.
///
/// Everything that can run a closure on several threads and wait for all of
/// them serves; here threads that live as long as the run:
///
/// ```
/// struct Threads;
///
/// impl mbconv::Executor for Threads {
///     fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
///         std::thread::scope(|scope| {
///             (1..n_tasks).for_each(|i| drop(scope.spawn(move || run_task(i))));
///             run_task(0);
///         });
///     }
/// }
/// # use mbconv::{PlanOptions, Pointwise, PointwiseParams, Shape};
///
/// let layer = PointwiseParams::new(1, 1, &[2.0]);
/// let options = PlanOptions::new().threads(4);
/// let plan = Pointwise::new(&layer)?.plan_with(Shape::new(1, 1, 8), &options)?;
/// let (x, mut y) = ([1.0; 8], [0.0; 8]);
/// plan.run_with(&Threads, &x, &mut y)?;
/// assert_eq!(y, [2.0; 8]);
/// # Ok::<(), mbconv::Error>(())
/// ```
pub trait Executor {
    /// Calls `run_task` once with each number below `n_tasks`, in any order and
    /// on any threads, and returns when all calls have returned. A call
    /// allocates nothing and waits for no other.
    ///
    /// Only speed depends on this being kept: calls too many do nothing, and what
    /// was not called for runs on the caller's thread afterwards. A number that
    /// runs on the same thread each time finds its memory in that core's caches.
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync));
}

/// One task after the other, on the caller's thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

impl Executor for Serial {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        (0..n_tasks).for_each(run_task);
    }
}

/// The threads of a rayon pool (feature `rayon`).
///
/// Called on one of them, a run allocates nothing; from outside, rayon's queue
/// takes some memory now and then, and the work waits until a thread wakes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
/// let executors = [mbconv::Rayon::new(), mbconv::Rayon::in_pool(&pool)];
/// # let _ = executors;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "rayon")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Rayon<'p>(Option<&'p rayon::ThreadPool>);

#[cfg(feature = "rayon")]
impl<'p> Rayon<'p> {
    /// The pool of the current thread: the global one outside of any.
    pub fn new() -> Self {
        Self(None)
    }

    /// This pool.
    pub fn in_pool(pool: &'p rayon::ThreadPool) -> Self {
        Self(Some(pool))
    }
}

#[cfg(feature = "rayon")]
impl Executor for Rayon<'_> {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        // Joins need no memory but the stack.
        fn halve(first: usize, n: usize, run_task: &(dyn Fn(usize) + Sync)) {
            if n > 1 {
                let half = n / 2;
                rayon::join(
                    || halve(first, half, run_task),
                    || halve(first + half, n - half, run_task),
                );
            } else if n == 1 {
                run_task(first);
            }
        }
        match self.0 {
            Some(pool) => pool.install(|| halve(0, n_tasks, run_task)),
            None => halve(0, n_tasks, run_task),
        }
    }
}

/// More tasks than this are not made of one plan.
pub(crate) const MOST_TASKS: usize = 256;

/// Runs `task` once with each number below `n_tasks`, whatever the executor
/// does, and returns when all are done. `flush` is for [`FlushDenormals`].
///
/// A number is claimed before it is run, so that no two calls ever run the same.
///
/// # Panics
///
/// When a task has panicked and the executor has kept that to itself.
pub(crate) fn for_each(
    executor: &dyn Executor,
    n_tasks: usize,
    flush: bool,
    task: impl Fn(usize) + Sync,
) {
    assert!(n_tasks <= MOST_TASKS);
    // Not of 64 bits, which small cores do not have as atomics.
    const BITS: usize = usize::BITS as usize;
    let claimed = [const { AtomicUsize::new(0) }; MOST_TASKS / BITS];
    let done = AtomicUsize::new(0);
    let run = |number: usize| {
        let bit = 1 << (number % BITS);
        if number >= n_tasks || claimed[number / BITS].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
        let _guard = FlushDenormals::set(flush);
        task(number);
        done.fetch_add(1, Ordering::Release);
    };
    executor.run(n_tasks, &run);
    (0..n_tasks).for_each(run);
    // Acquire: what the tasks wrote is there for the caller.
    assert_eq!(done.load(Ordering::Acquire), n_tasks, "a task has panicked");
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// Calls what it likes.
    struct Calls(&'static [usize]);

    impl Executor for Calls {
        fn run(&self, _: usize, run_task: &(dyn Fn(usize) + Sync)) {
            self.0.iter().for_each(|&i| run_task(i));
        }
    }

    #[test]
    fn every_task_runs_once() {
        let executors: [&dyn Executor; 5] =
            [&Serial, &Calls(&[]), &Calls(&[1; 9]), &Calls(&[2, 1, 0]), &Calls(&[usize::MAX, 7])];
        for executor in executors {
            for n in [0, 1, 3] {
                let runs: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                for_each(executor, n, false, |i| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_hidden_panic_comes_out() {
        use core::panic::AssertUnwindSafe;
        use std::panic::catch_unwind;

        struct Quiet;
        impl Executor for Quiet {
            fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
                for i in 0..n_tasks {
                    let _ = catch_unwind(AssertUnwindSafe(|| run_task(i)));
                }
            }
        }
        let run = || for_each(&Quiet, 3, false, |i| assert_ne!(i, 1, "as intended"));
        assert!(catch_unwind(run).is_err());
    }
}
