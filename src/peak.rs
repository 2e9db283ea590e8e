//! What this core can do at best, for benchmarks to compare with.

use std::time::Instant;

use crate::isa::Isa;
use crate::kernel::peak::MultiplyAdds;

/// Measures the peak of `isa` on this thread, in GFLOP/s: the best of a few
/// short runs of a loop of independent multiply-adds, a few milliseconds in all.
///
/// ```
/// let isa = mbconv::Isa::detect()?;
/// assert!(mbconv::measure_peak(isa) > 0.1);
/// # Ok::<(), mbconv::Error>(())
/// ```
pub fn measure_peak(isa: Isa) -> f64 {
    let run = |steps| {
        let start = Instant::now();
        let flops = isa.dispatch(MultiplyAdds(steps));
        flops as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..8).map(|_| run(300_000)).fold(0.0, f64::max)
}
