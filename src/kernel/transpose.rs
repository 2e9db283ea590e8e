//! Matrices turned around: what stands between planar and channels-last pixels.

use crate::simd::Lanes;

/// `to[c * to_row + r] = from[r * from_row + c]` for `rows` by `columns`.
///
/// Blocks go through registers, the last of which may overlap the one before; what is narrower
/// than a block goes number by number.
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
    let down = Side { len: rows, strides: [from_row, 1] };
    let across = Side { len: columns, strides: [1, to_row] };
    let sides = if rows >= columns { [across, down] } else { [down, across] };
    let fits = |block: usize| block <= rows.min(columns);
    s.enter(
        // What it borrowed would be read again after each store.
        #[inline(always)]
        move || {
            if fits(S::BLOCK) {
                blocks(
                    S::BLOCK,
                    sides,
                    (from, to),
                    #[inline(always)]
                    |from, to| {
                        // SAFETY: a block of the matrix.
                        unsafe { s.transpose(from, from_row, to, to_row) }
                    },
                );
            } else {
                blocks(
                    1,
                    sides,
                    (from, to),
                    #[inline(always)]
                    |from, to| {
                        // SAFETY: a number of the matrix.
                        unsafe { s.write(to, s.read(from)) }
                    },
                );
            }
        },
    );
}

/// Numbers along a side of a matrix.
#[derive(Clone, Copy)]
struct Side {
    len: usize,
    /// From one to the next, before and after.
    strides: [usize; 2],
}

/// Hands each block of a matrix to `f`; along the second side inside. Pointers move on, as
/// the product of an index and a stride would take as long as a block.
#[inline(always)]
fn blocks(
    block: usize,
    [outer, inner]: [Side; 2],
    (mut from, mut to): (*const f32, *mut f32),
    f: impl Fn(*const f32, *mut f32),
) {
    // From block i to the next: the last one may overlap the one before.
    let step = |i: usize, Side { len, strides }: Side| {
        let others = (len - 1) / block;
        let n = if i + 1 == others { len - others * block } else { block };
        (n * strides[0], n * strides[1])
    };
    for i in 0..outer.len.div_ceil(block) {
        let (mut x, mut y) = (from, to);
        for j in 0..inner.len.div_ceil(block) {
            f(x, y);
            let (a, b) = step(j, inner);
            (x, y) = (x.wrapping_add(a), y.wrapping_add(b));
        }
        let (a, b) = step(i, outer);
        (from, to) = (from.wrapping_add(a), to.wrapping_add(b));
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
