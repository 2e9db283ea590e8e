//! Timing as the example programs do it: variants in turn, medians.

use std::time::Instant;

/// Times the variants in turn, `rounds` times after one round that is not
/// counted, so that a drift of the clock meets all of them; gives each one's
/// median in microseconds.
///
/// Each variant is called as often in a round as fills about `slice`
/// microseconds.
pub(crate) fn interleaved(
    rounds: usize,
    slice: f64,
    variants: &mut [&mut dyn FnMut()],
) -> Vec<f64> {
    let once = |run: &mut dyn FnMut(), calls: usize| {
        let start = Instant::now();
        for _ in 0..calls {
            run();
        }
        start.elapsed().as_secs_f64() * 1e6 / calls as f64
    };
    let calls: Vec<usize> = variants
        .iter_mut()
        .map(|run| {
            once(*run, 1); // touches all memory
            (slice / once(*run, 1)).ceil().max(1.0) as usize
        })
        .collect();
    let mut times = vec![Vec::with_capacity(rounds); variants.len()];
    for _ in 0..rounds {
        for ((run, times), &calls) in variants.iter_mut().zip(&mut times).zip(&calls) {
            times.push(once(*run, calls));
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
