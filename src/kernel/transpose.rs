//! Matrices turned around: what stands between planar and channels-last pixels.

use core::ops::Range;

use crate::simd::Lanes;

/// `to[c * to_row + r] = from[r * from_row + c]` for `rows` by `columns`.
///
/// Blocks go through registers: wide ones, at the right and at the bottom smaller ones,
/// and what is then left number by number.
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
    let [wide, whole] =
        [S::WIDE_BLOCK, S::BLOCK].map(|block| [rows, columns].map(|n| n / block * block));
    s.enter(
        #[inline(always)]
        || {
            // SAFETY: rows and columns of the matrix.
            unsafe {
                blocks(
                    S::WIDE_BLOCK,
                    [0..wide[0], 0..wide[1]],
                    #[inline(always)]
                    |row, column| {
                        let (p, q) = (row * from_row + column, column * to_row + row);
                        s.transpose_wide(from.add(p), from_row, to.add(q), to_row);
                    },
                );
                for rest in [[0..wide[0], wide[1]..whole[1]], [wide[0]..whole[0], 0..whole[1]]] {
                    blocks(
                        S::BLOCK,
                        rest,
                        #[inline(always)]
                        |row, column| {
                            let (p, q) = (row * from_row + column, column * to_row + row);
                            s.transpose(from.add(p), from_row, to.add(q), to_row);
                        },
                    );
                }
                for (rows, columns) in
                    [(0..whole[0], whole[1]..columns), (whole[0]..rows, 0..columns)]
                {
                    for column in columns {
                        for row in rows.clone() {
                            let x = s.read(from.add(row * from_row + column));
                            s.write(to.add(column * to_row + row), x);
                        }
                    }
                }
            }
        },
    );
}

/// The first row and column of each block, along the longer side: planes, far apart, are
/// read or written on and on.
#[inline(always)]
fn blocks(size: usize, [rows, columns]: [Range<usize>; 2], mut each: impl FnMut(usize, usize)) {
    let along_rows = rows.len() >= columns.len();
    let [outer, inner] = if along_rows { [columns, rows] } else { [rows, columns] };
    for i in outer.step_by(size) {
        for j in inner.clone().step_by(size) {
            let [row, column] = if along_rows { [j, i] } else { [i, j] };
            each(row, column);
        }
    }
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
