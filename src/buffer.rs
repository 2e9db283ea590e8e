//! Memory that starts on a cache line, and memory that tasks share.

#![allow(unsafe_code, reason = "views memory as another type, and from several threads")]

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};

use alloc::vec;
use alloc::vec::Vec;

/// Bytes that every buffer starts at a multiple of.
pub(crate) const ALIGN: usize = 64;
pub(crate) const LINE: usize = ALIGN / size_of::<f32>();

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

// SAFETY: an array of f32 that fills its alignment: no padding, every bit
// pattern valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// f32 that start on a cache line.
pub(crate) struct AlignedBuf(Vec<Line>);

impl AlignedBuf {
    /// At least `len` zeros; a whole number of cache lines.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(vec![Line([0.0; LINE]); len.div_ceil(LINE)])
    }
}

impl Deref for AlignedBuf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Working memory for a plan's `run`, for those who have none of their own.
///
/// It is only bytes: any `&mut [MaybeUninit<u8>]` of
/// [`scratch_bytes`](crate::BottleneckPlan::scratch_bytes) serves as well, at
/// any alignment, and may be shared by all plans that do not run at the same
/// time.
///
/// ```
/// let mut scratch = mbconv::Scratch::new(1000);
/// assert!(scratch.len() >= 1000);
/// ```
#[derive(Default)]
pub struct Scratch(Vec<MaybeUninit<Line>>);

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").field("len", &self.len()).finish()
    }
}

impl Scratch {
    /// At least `bytes` bytes that start on a cache line.
    pub fn new(bytes: usize) -> Self {
        Self(vec![MaybeUninit::uninit(); bytes.div_ceil(ALIGN)])
    }
}

impl Deref for Scratch {
    type Target = [MaybeUninit<u8>];
    fn deref(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: the lines' own memory, as bytes that need not be initialised.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * ALIGN) }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * ALIGN) }
    }
}

/// A slice, initialised or not, of which every task writes its own part.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a pointer to exclusively borrowed memory; whoever writes through it
// answers for the parts being disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn uninit(slice: &'a mut [MaybeUninit<T>]) -> Self {
        Self { start: slice.as_mut_ptr().cast(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// # Safety
    /// Every element has been written, or was initialised from the start, and no
    /// task is left that uses the pointer.
    pub(crate) unsafe fn assume_init(self) -> &'a mut [T] {
        // SAFETY: the slice that `self` was made of, which it borrows exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// `N` f32 on the stack that start on a cache line.
#[repr(C, align(64))]
pub(crate) struct Local<const N: usize>([MaybeUninit<f32>; N]);

impl<const N: usize> Local<N> {
    #[inline(always)]
    pub(crate) fn uninit() -> Self {
        Self([const { MaybeUninit::uninit() }; N])
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
