//! How far numbers are from what was expected.

/// The largest `|actual - expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Deviation {
    pub(crate) absolute: f64,
    /// Divided by the largest `|expected|`.
    pub(crate) relative: f64,
}

impl Deviation {
    /// Infinite when the lengths differ or anything is NaN.
    pub(crate) fn between(expected: &[f32], actual: &[f32]) -> Self {
        let largest = expected.iter().fold(0.0, |m: f64, e| m.max(f64::from(e.abs())));
        let differences = expected.iter().zip(actual).map(|(e, a)| f64::from(*a) - f64::from(*e));
        let start = if expected.len() == actual.len() { 0.0 } else { f64::INFINITY };
        let absolute =
            differences.fold(start, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d.abs()) });
        let relative = if absolute == 0.0 { 0.0 } else { absolute / largest };
        Self { absolute, relative: if relative.is_nan() { f64::INFINITY } else { relative } }
    }
}
