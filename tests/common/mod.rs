//! What the tests share besides `mbconv::testing`: the instruction sets to cover, the ways
//! to run a plan.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod configuration;
pub mod placement;

use std::env;

use mbconv::testing::{Data, Mismatch, data, same_bits, same_numbers};
use mbconv::{Executor, Isa};
use proptest::prelude::*;

/// The instruction sets to test: all that this CPU has, or the one that
/// `MBCONV_ISA` names. Prints them once per test binary; `MBCONV_REQUIRE_ISA`
/// turns the absence of one into a failure.
pub fn isas() -> Vec<Isa> {
    let forced = env::var("MBCONV_ISA").ok();
    let isas: Vec<Isa> =
        Isa::available().filter(|isa| forced.as_deref().is_none_or(|f| f == isa.name())).collect();
    let names: Vec<&str> = isas.iter().map(|isa| isa.name()).collect();
    assert!(!names.is_empty(), "MBCONV_ISA={forced:?} cannot be run here");
    if let Ok(required) = env::var("MBCONV_REQUIRE_ISA") {
        assert!(names.contains(&required.as_str()), "{required} is required, there is {names:?}");
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    // Straight to the stream: the test harness would keep a println back.
    ONCE.call_once(|| {
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), "mbconv: ISAs covered: {}", names.join(", "));
    });
    isas
}

/// What a test of this binary gives in a process of its own with a variable set; None,
/// and a line that says so, where none can be started, as in an emulator.
pub fn in_a_child(test: &str, (name, value): (&str, &str)) -> Option<std::process::Output> {
    use std::io::Write;
    let child = std::process::Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(name, value)
        .output();
    let why = match child {
        // What an emulator says of a program that it cannot find an interpreter for.
        Ok(child) if child.status.code() == Some(127) => String::from("exit code 127"),
        Ok(child) => return Some(child),
        Err(error) => error.to_string(),
    };
    // Straight to the stream: the test harness would keep a println back.
    let _ = writeln!(std::io::stdout(), "SKIPPED {test}: {why}");
    None
}

/// So many cases of each test, unless others are asked for.
pub fn config(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = if env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { cases };
    ProptestConfig { cases, ..asked }
}

/// Layers of some data.
pub fn of_any_data<S: Strategy>(layers: fn(Data) -> S) -> impl Strategy<Value = (Data, S::Value)> {
    data().prop_flat_map(move |data| (Just(data), layers(data)))
}

/// Panics unless both are equal as numbers, element by element; NaN equals NaN.
#[track_caller]
pub fn check_exact(context: &str, expected: &[f32], actual: &[f32]) {
    check(context, same_numbers(expected, actual));
}

/// Panics unless both are equal bit for bit, but for those of a NaN.
#[track_caller]
pub fn check_bits(context: &str, expected: &[f32], actual: &[f32]) {
    check(context, same_bits(expected, actual));
}

/// Panics where two outputs differ.
#[track_caller]
pub fn check(context: &str, comparison: Result<(), Mismatch>) {
    if let Err(mismatch) = comparison {
        panic!("{context}: {mismatch}");
    }
}

/// Executors that keep their word and such that do not: all must give one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// A thread for each task.
    Threads,
    Backwards,
    /// Every task on each of three threads at once, and numbers that are none.
    TooOften,
    Never,
}

impl Executor for Pool {
    fn run(&self, n_tasks: usize, run_task: &(dyn Fn(usize) + Sync)) {
        let each = || (0..n_tasks).chain([n_tasks, usize::MAX]).for_each(run_task);
        match self {
            Self::Threads => std::thread::scope(|scope| {
                (0..n_tasks).for_each(|i| drop(scope.spawn(move || run_task(i))));
            }),
            Self::Backwards => (0..n_tasks).rev().for_each(run_task),
            Self::TooOften => std::thread::scope(|scope| {
                (0..3).for_each(|_| drop(scope.spawn(each)));
            }),
            Self::Never => {}
        }
    }
}

pub fn pool() -> impl Strategy<Value = Pool> {
    prop_oneof![
        3 => Just(Pool::Threads),
        1 => Just(Pool::Backwards),
        1 => Just(Pool::TooOften),
        1 => Just(Pool::Never),
    ]
}
