//! Work cut into tasks of nearly equal size.

use core::ops::Range;

/// Along what the work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Pixels, or rows of them.
    Pixels,
    /// Output channels, in whole vectors or panels.
    Channels,
}

/// The cut of a single layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) axis: Axis,
    pub(crate) tasks: usize,
}

impl Parts {
    /// What a task computes of `pixels` (or rows) and `channels` (or panels).
    pub(crate) fn ranges(&self, task: usize, [pixels, channels]: [usize; 2]) -> [Range<usize>; 2] {
        match self.axis {
            Axis::Pixels => [share(pixels, self.tasks, task), 0..channels],
            Axis::Channels => [0..pixels, share(channels, self.tasks, task)],
        }
    }
}

/// Part `task` of `tasks` of `0..total`; the first ones are one longer where
/// `total` does not divide.
pub(crate) fn share(total: usize, tasks: usize, task: usize) -> Range<usize> {
    let (length, longer) = (total / tasks, total % tasks);
    let start = task * length + task.min(longer);
    start..start + length + usize::from(task < longer)
}

/// Rows counted through a batch of images, image by image.
pub(crate) fn by_image(
    rows: Range<usize>,
    height: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = rows.start;
    core::iter::from_fn(move || {
        let (image, top) = (at / height, at % height);
        let part = top..height.min(top + rows.end - at);
        at += part.len();
        (!part.is_empty()).then_some((image, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for total in 0..20 {
            for tasks in 1..8 {
                let mut end = 0;
                for task in 0..tasks {
                    let share = share(total, tasks, task);
                    assert_eq!(share.start, end);
                    assert!(share.len().abs_diff(total / tasks) <= 1);
                    end = share.end;
                }
                assert_eq!(end, total);
            }
        }
    }

    #[test]
    fn rows_are_found_in_their_images() {
        for (start, end) in (0..12).flat_map(|start| (start..=12).map(move |end| (start, end))) {
            let mut at = start;
            for (image, rows) in by_image(start..end, 4) {
                assert_eq!(image * 4 + rows.start, at);
                assert!(!rows.is_empty() && rows.end <= 4);
                at += rows.len();
            }
            assert_eq!(at, end);
        }
    }
}
