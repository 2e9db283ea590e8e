//! Matrices turned around: what stands between planar and channels-last pixels.

use crate::simd::Lanes;

/// `to[c * to_row + r] = from[r * from_row + c]` for `rows` by `columns`.
///
/// Blocks go through registers, as wide ones as fit, of which the last may overlap the
/// one before; what is narrower than any goes number by number.
///
/// # Safety
/// `from` is valid for reading `columns` f32 in each of `rows` rows, `to` for
/// writing `rows` f32 in each of `columns` rows; they do not overlap.
pub(crate) unsafe fn transpose<S: Lanes>(
    s: S,
    (from, from_row): (*const f32, usize),
    (to, to_row): (*mut f32, usize),
    [rows, columns]: [usize; 2],
) {
    // Along the longer side: planes, far apart, are read or written on and on.
    let (outer, inner) = match rows >= columns {
        true => ((columns, 1, to_row), (rows, from_row, 1)),
        false => ((rows, from_row, 1), (columns, 1, to_row)),
    };
    let fits = |block: &usize| *block <= rows.min(columns);
    let block = [S::WIDE_BLOCK, S::BLOCK].into_iter().find(fits).unwrap_or(1);
    let starts = move |n: usize| (0..n).step_by(block).map(move |i| i.min(n - block));
    s.enter(
        // What it borrowed would be read again after each store.
        #[inline(always)]
        move || {
            for i in starts(outer.0) {
                let (from, to) = (from.wrapping_add(i * outer.1), to.wrapping_add(i * outer.2));
                for j in starts(inner.0) {
                    let (from, to) = (from.wrapping_add(j * inner.1), to.wrapping_add(j * inner.2));
                    // SAFETY: rows and columns of the matrix.
                    unsafe {
                        if block == 1 {
                            s.write(to, s.read(from));
                        } else if block == S::WIDE_BLOCK {
                            s.transpose_wide(from, from_row, to, to_row);
                        } else {
                            s.transpose(from, from_row, to, to_row);
                        }
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::isa::Isa;
    use crate::simd::Kernel;

    struct Turn<'a> {
        from: &'a [f32],
        to: &'a mut [f32],
        row: [usize; 2],
        size: [usize; 2],
    }

    impl Kernel for Turn<'_> {
        type Output = ();
        fn run<S: Lanes>(self, s: S) {
            let (from, to) = (self.from.as_ptr(), self.to.as_mut_ptr());
            // SAFETY: the test has made them long enough.
            unsafe { transpose(s, (from, self.row[0]), (to, self.row[1]), self.size) }
        }
    }

    #[test]
    fn every_size_and_nothing_besides() {
        for isa in Isa::available() {
            for rows in 1..=36 {
                for columns in 1..=36 {
                    let row = [columns + rows % 3, rows + columns % 3];
                    // Not one f32 longer than is read or written.
                    let from: Vec<f32> =
                        (0..(rows - 1) * row[0] + columns).map(|i| i as f32).collect();
                    let mut to = vec![-1.0; (columns - 1) * row[1] + rows];
                    isa.dispatch(Turn { from: &from, to: &mut to, row, size: [rows, columns] });
                    for (i, &x) in to.iter().enumerate() {
                        let (column, r) = (i / row[1], i % row[1]);
                        let expected = if r < rows { from[r * row[0] + column] } else { -1.0 };
                        assert_eq!(x, expected, "{isa} {rows}x{columns} at {column}, {r}");
                    }
                }
            }
        }
    }
}
