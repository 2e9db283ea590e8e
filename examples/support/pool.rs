//! A pool of threads for benchmarks: while there is work to come they spin, as
//! those of other libraries do, and the caller is one of them.
#![allow(unsafe_code, reason = "lends its threads a closure that lives as long as the call")]
#![allow(dead_code, reason = "each program uses its part")]

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use mbconv::Executor;

/// Turns of the loop that a thread waits in before it sleeps: some tenth of a
/// millisecond.
const SPINS: usize = 1 << 12;

/// The tasks of a call.
type Job = (usize, &'static (dyn Fn(usize) + Sync));

/// What the caller writes and the workers wait for, in one piece: a cache line takes up
/// to a third of a microsecond from core to core, whatever it brings.
#[repr(align(128))]
struct Call {
    /// Counts the calls; a new one wakes the workers.
    round: AtomicUsize,
    job: UnsafeCell<Job>,
}

/// What the workers write and the caller waits for.
#[repr(align(128))]
#[derive(Default)]
struct Answers {
    /// How often a worker has been done with a job.
    done: AtomicUsize,
}

struct State {
    call: Call,
    answers: Answers,
    ended: AtomicBool,
}

// SAFETY: the job changes only when the workers are done with the one before, and they
// read it only when the round has changed after it.
unsafe impl Sync for State {}

pub(crate) struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// One call at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// `threads` in all, so that `threads - 1` are started.
    pub(crate) fn new(threads: usize) -> Self {
        let call = Call { round: AtomicUsize::new(0), job: UnsafeCell::new((0, &|_| ())) };
        let ended = AtomicBool::new(false);
        let state = Arc::new(State { call, answers: Answers::default(), ended });
        let start = |first: usize| {
            let state = state.clone();
            thread::spawn(move || work(&state, first, threads))
        };
        Self { workers: (1..threads).map(start).collect(), turn: Mutex::new(()), state }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn wake(&self) {
        self.state.call.round.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());
    }
}

impl Executor for Pool {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        /// Waits for the workers, also when a task panics.
        struct Wait<'a>(&'a State, usize);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                while self.0.answers.done.load(Ordering::Acquire) != self.1 {
                    spin_loop();
                }
            }
        }

        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &*self.state;
        // SAFETY: `Wait` keeps this call until no worker uses the closure.
        let job: &'static (dyn Fn(usize) + Sync) = unsafe { core::mem::transmute(run_task) };
        // SAFETY: no worker reads it, since all are done with the last one.
        unsafe { *state.call.job.get() = (n_tasks, job) };
        let done = state.answers.done.load(Ordering::Relaxed);
        let _wait = Wait(state, done.wrapping_add(self.workers.len()));
        self.wake();
        (0..n_tasks).step_by(self.threads()).for_each(run_task);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.wake();
        for worker in self.workers.drain(..) {
            // What a task has panicked with was said when it did.
            let _ = worker.join();
        }
    }
}

/// A worker's life: every `step`-th task of each job, from `first` on.
fn work(state: &State, first: usize, step: usize) {
    struct Done<'a>(&'a AtomicUsize);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Release);
        }
    }

    let mut round = 0;
    loop {
        let mut spins = 0;
        while state.call.round.load(Ordering::Acquire) == round {
            spins += 1;
            if spins < SPINS { spin_loop() } else { thread::park() }
        }
        round += 1;
        if state.ended.load(Ordering::Relaxed) {
            return;
        }
        let _done = Done(&state.answers.done);
        // SAFETY: it was written before the round, and stays until all are done.
        let (n_tasks, run_task) = unsafe { *state.call.job.get() };
        (first..n_tasks).step_by(step).for_each(run_task);
    }
}
