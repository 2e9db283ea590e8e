//! A loop of nothing but multiply-adds: what the core can do at best.

use crate::simd::{Kernel, Lanes};

/// Chains that run side by side: more than latency times pipes of any core.
const CHAINS: usize = 12;

/// Runs `self.0` steps of [`CHAINS`] multiply-adds; gives the FLOP done.
pub(crate) struct MultiplyAdds(pub(crate) u64);

impl Kernel for MultiplyAdds {
    type Output = u64;

    fn run<S: Lanes>(self, s: S) -> u64 {
        s.enter(
            #[inline(always)]
            || {
                let factor = core::hint::black_box(0.999_999_f32);
                let (a, b) = (s.splat(factor), s.splat(1.0 - factor));
                let mut acc = [s.splat(1.0); CHAINS];
                for _ in 0..self.0 {
                    for x in &mut acc {
                        *x = s.mul_add(*x, a, b);
                    }
                }
                let sum = acc.into_iter().reduce(|x, y| s.add(x, y)).unwrap_or(a);
                core::hint::black_box(s.to_array(sum));
            },
        );
        2 * self.0 * (CHAINS * S::LANES) as u64
    }
}
