//! `N` vectors side by side.

use super::{Lanes, TABLE};

/// Arithmetic on `N` vectors at a time: long chains of dependent instructions,
/// as the activations are, take turns instead of waiting for themselves, and
/// share their constants.
#[derive(Clone, Copy)]
pub(crate) struct Several<S, const N: usize>(pub(crate) S);

macro_rules! elementwise {
    ($($name:ident($($operand:ident),+);)*) => {$(
        #[inline(always)]
        pub(crate) fn $name(self, $($operand: [S::V; N]),+) -> [S::V; N] {
            let mut result = self.splat(0.0);
            for i in 0..N {
                result[i] = self.0.$name($($operand[i]),+);
            }
            result
        }
    )*};
}

impl<S: Lanes, const N: usize> Several<S, N> {
    #[inline(always)]
    pub(crate) fn splat(self, x: f32) -> [S::V; N] {
        [self.0.splat(x); N]
    }

    /// `x` kept from `lo` to `hi`; NaN stays.
    #[inline(always)]
    pub(crate) fn clamp(self, x: [S::V; N], lo: f32, hi: f32) -> [S::V; N] {
        self.min(self.splat(hi), self.max(self.splat(lo), x))
    }

    /// An entry of a table for each lane.
    #[inline(always)]
    pub(crate) fn lookup(self, table: &[f32; TABLE], i: [S::V; N]) -> [S::V; N] {
        let mut result = self.splat(0.0);
        for (result, i) in result.iter_mut().zip(i) {
            *result = self.0.lookup(table, i);
        }
        result
    }

    elementwise! {
        add(a, b);
        neg(x);
        abs(x);
        sub(a, b);
        mul(a, b);
        div(a, b);
        mul_add(a, b, c);
        mul_add_near(a, b, c);
        product_error(a, b, product);
        max(bound, x);
        min(bound, x);
        scale(x, n);
    }
}
