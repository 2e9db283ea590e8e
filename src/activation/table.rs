//! Tables of short polynomials, for instruction sets that look up in registers.
//!
//! They are computed at compile time from the differential equation of the
//! function, so that no constant stands here that cannot be checked by reading.

use crate::simd::TABLE;

/// Polynomials: table `k` has the coefficient of the power `DEGREE - k` for each
/// interval.
#[repr(align(64))]
pub(super) struct Polynomials([[f32; TABLE]; DEGREE + 1]);

/// The tail's relative error is below 2e-7 up to 5.125 and grows to 3e-6, where the tail is
/// 1e-13.
const DEGREE: usize = 6;

/// The distance between the middles of two intervals; a power of two, so that what is
/// left of a number is exact.
pub(super) const STEP: f32 = 0.25;

/// Where the tail is 0: the middle of the last interval.
pub(super) const GELU_END: f32 = (TABLE - 1) as f32 * STEP;

/// `u Phi(-u)`, with the distribution function of the normal distribution, as polynomials
/// of `u - i STEP`.
pub(super) static GELU_TAIL: Polynomials = gelu_tail();

impl Polynomials {
    pub(super) fn coefficients(&'static self) -> &'static [[f32; TABLE]; DEGREE + 1] {
        &self.0
    }
}

/// Terms of a Taylor series that are enough for f64 over a whole step.
const TERMS: usize = 32;

type Series = [f64; TERMS];

const fn gelu_tail() -> Polynomials {
    // The density and the tail of the normal distribution at 8 (Abramowitz and Stegun
    // 1964, 26.2), from which series lead down to 0: that way errors die out.
    let (mut density, mut tail) = (5.052_271_083_536_893e-15, 6.220_960_574_271_786e-16);
    let mut tables = [[0.0; TABLE]; DEGREE + 1];
    let mut i = TABLE;
    loop {
        let c = i as f64 * STEP as f64;
        // The density's derivative is -u times it, that of the tail the negative density.
        let (mut a, mut q) = ([0.0; TERMS], [0.0; TERMS]);
        (a[0], a[1]) = (density, -c * density);
        q[0] = tail;
        let mut n = 1;
        while n < TERMS {
            q[n] = -a[n - 1] / n as f64;
            if n + 1 < TERMS {
                a[n + 1] = -(c * a[n] + a[n - 1]) / (n + 1) as f64;
            }
            n += 1;
        }
        if i < TABLE - 1 {
            // Times u = c + (u - c).
            let mut product = [0.0; TERMS];
            let mut n = 0;
            while n < TERMS {
                product[n] = c * q[n] + if n > 0 { q[n - 1] } else { 0.0 };
                n += 1;
            }
            let product = economised(product);
            let mut k = 0;
            while k <= DEGREE {
                tables[k][i] = product[DEGREE - k] as f32;
                k += 1;
            }
        }
        if i == 0 {
            break;
        }
        (density, tail) = (one_step_down(&a), one_step_down(&q));
        i -= 1;
    }
    // Half of the distribution is above 0.
    assert!(tail > 0.5 - 1e-13 && tail < 0.5 + 1e-13);
    Polynomials(tables)
}

/// A series at `-STEP`.
const fn one_step_down(series: &Series) -> f64 {
    let (mut sum, mut n) = (0.0, TERMS);
    while n > 0 {
        n -= 1;
        sum = series[n] - STEP as f64 * sum;
    }
    sum
}

/// A series with its powers above `DEGREE` replaced by lower ones, over half a step to
/// either side: from the highest on, less a multiple of a Chebyshev polynomial (Lanczos
/// 1938). The constant stays, so that 0 goes to 0.
const fn economised(mut series: Series) -> Series {
    let mut n = TERMS - 1;
    while n > DEGREE {
        // The coefficients of 2 T_n(x) are those of (2 x)^n, and so on in steps of 2.
        let mut multiple = series[n];
        let mut k = 0;
        while n > 2 * k + 2 {
            let powers = ((n - 2 * k) * (n - 2 * k - 1)) as f64;
            let ratio = powers / (4 * (k + 1) * (n - k - 1)) as f64;
            multiple *= -ratio * (STEP as f64 / 2.0) * (STEP as f64 / 2.0);
            series[n - 2 * k - 2] -= multiple;
            k += 1;
        }
        series[n] = 0.0;
        n -= 1;
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On machines that do not look up, too.
    #[test]
    fn gelus_tail_is_near() {
        for i in 0..TABLE {
            for part in -8..=8 {
                let rest = f64::from(STEP) * f64::from(part) / 16.0;
                let u = i as f64 * f64::from(STEP) + rest;
                let tables = GELU_TAIL.coefficients();
                let tail = tables.iter().fold(0.0, |sum, table| sum * rest + f64::from(table[i]));
                let truth = u * libm::erfc(u * core::f64::consts::FRAC_1_SQRT_2) / 2.0;
                let near = if u <= 5.125 { 2e-7 } else { 3e-6 };
                let off = (tail - truth).abs();
                assert!(
                    off <= near * truth.abs() || u > 7.6 && off < 2e-13,
                    "{u}: {tail}, {truth}"
                );
            }
        }
    }
}
