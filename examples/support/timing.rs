//! Timing as the example programs do it: variants in turn, medians.
#![allow(dead_code, reason = "each program uses its part")]

use core::hint::black_box;
use std::fs;
use std::time::Instant;

/// Times the variants in turn, `rounds` times after one round that is not
/// counted, so that a drift of the clock meets all of them; gives each one's
/// median in microseconds.
///
/// Each variant is called as often in a round as fills about `slice`
/// microseconds, and once before, uncounted; once in all where `slice` is 0.
pub(crate) fn interleaved(
    rounds: usize,
    slice: f64,
    variants: &mut [&mut dyn FnMut()],
) -> Vec<f64> {
    let mut variants: Vec<_> = variants.iter_mut().map(|run| move |_| run()).collect();
    let mut variants: Vec<_> =
        variants.iter_mut().map(|run| run as &mut dyn FnMut(usize)).collect();
    let mut times = samples(rounds, slice, &mut || (), &mut variants);
    times.iter_mut().map(|times| median(times)).collect()
}

/// As [`interleaved`], and gives each variant's times of all rounds. A variant
/// is told the round; `before` runs ahead of each measurement, untimed.
pub(crate) fn samples(
    rounds: usize,
    slice: f64,
    before: &mut dyn FnMut(),
    variants: &mut [&mut dyn FnMut(usize)],
) -> Vec<Vec<f64>> {
    let mut once = |run: &mut dyn FnMut(usize), round: usize, calls: usize| {
        before();
        if slice > 0.0 {
            run(round); // the first after another variant took 1 to 4 % longer
        }
        let start = Instant::now();
        for _ in 0..calls {
            run(round);
        }
        start.elapsed().as_secs_f64() * 1e6 / calls as f64
    };
    let calls: Vec<usize> = variants
        .iter_mut()
        .map(|run| {
            once(*run, 0, 1); // touches all memory
            (slice / once(*run, 0, 1)).ceil().max(1.0) as usize
        })
        .collect();
    let mut times = vec![Vec::with_capacity(rounds); variants.len()];
    for round in 0..rounds {
        for ((run, times), &calls) in variants.iter_mut().zip(&mut times).zip(&calls) {
            times.push(once(*run, round, calls));
        }
    }
    times
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is said of a variant's times, in their unit.
#[derive(Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    /// From the 10th to the 90th percentile, relative to the median.
    pub(crate) spread: f64,
}

impl Summary {
    pub(crate) fn of(times: &mut [f64]) -> Self {
        let median = median(times); // sorts
        let percentile = |p: usize| times[((times.len() - 1) * p + 50) / 100];
        Self { median, min: times[0], spread: (percentile(90) - percentile(10)) / median }
    }
}

/// Memory to walk over, so that whatever the caches held is in none of them.
pub(crate) struct Flush(Vec<f32>);

impl Flush {
    /// Three times the largest cache, but at least 64 MiB.
    pub(crate) fn new() -> Self {
        let bytes = (3 * largest_cache().unwrap_or(0)).max(64 << 20);
        Self(vec![0.0; bytes / size_of::<f32>()])
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    /// Writes to every cache line.
    pub(crate) fn run(&mut self) {
        self.0.iter_mut().step_by(64 / size_of::<f32>()).for_each(|x| *x += 1.0);
        black_box(&mut self.0);
    }
}

/// As Linux tells it.
fn largest_cache() -> Option<usize> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.filter_map(|cache| {
        let size = fs::read_to_string(cache.ok()?.path().join("size")).ok()?;
        size.trim().strip_suffix('K')?.parse::<usize>().ok()
    });
    sizes.max().map(|kib| kib << 10)
}
