//! Memory between two pages that nobody may touch.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::null_mut;
use std::alloc::{GlobalAlloc, System};
use std::cell::Cell;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;

/// At which of the two pages memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// It ends where the page behind begins.
    End,
    /// It begins where the page before ends.
    Start,
    /// It begins one element later: what is on a cache line else, is not.
    Shifted,
}

impl Edge {
    pub const ALL: [Self; 3] = [Self::End, Self::Start, Self::Shifted];

    /// Has this thread's memory lie so from now on.
    pub fn set(self) {
        EDGE.set(self);
    }

    /// Whether `slice` lies so, to the byte.
    pub fn has<T>(self, slice: &[T]) -> bool {
        let range = slice.as_ptr_range();
        match self {
            Self::End => range.end.addr().is_multiple_of(page_size()),
            Self::Start => range.start.addr().is_multiple_of(page_size()),
            Self::Shifted => range.start.addr() % page_size() == size_of::<T>(),
        }
    }
}

thread_local! {
    static EDGE: Cell<Edge> = const { Cell::new(Edge::End) };
}

/// An allocator that puts what is aligned like f32 or like a cache line between two
/// such pages: tensors, weights, and what operations pack of them. The rest is the
/// system's.
pub struct Guarded;

const F32: usize = align_of::<f32>();
const LINE: usize = 64;

fn is_guarded(layout: Layout) -> bool {
    matches!(layout.align(), F32 | LINE)
}

// SAFETY: memory of its own for each allocation, of at least its size and aligned as
// asked: pages are, and sizes are multiples of these alignments. What is given back is
// found by the layout alone.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_guarded(layout) {
            // SAFETY: as the caller's.
            return unsafe { System.alloc(layout) };
        }
        let (page, edge) = (page_size(), EDGE.get());
        let before = if edge == Edge::Shifted && layout.align() == F32 { F32 } else { 0 };
        let bytes = (before + layout.size()).next_multiple_of(page);
        let offset = if edge == Edge::End { bytes - layout.size() } else { before };
        // SAFETY: new pages, of which all but the first and the last are opened.
        unsafe {
            let (none, private) = (ProtFlags::empty(), MapFlags::PRIVATE);
            let Ok(start) = mmap_anonymous(null_mut(), bytes + 2 * page, none, private) else {
                return null_mut();
            };
            let start = start.cast::<u8>().add(page);
            match mprotect(start.cast(), bytes, MprotectFlags::READ | MprotectFlags::WRITE) {
                Ok(()) => start.add(offset),
                Err(_) => null_mut(),
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if !is_guarded(layout) {
            // SAFETY: as the caller's.
            return unsafe { System.dealloc(memory, layout) };
        }
        let page = page_size();
        // Wherever it lies, it begins in its first page.
        let before = memory.addr() % page;
        let bytes = (before + layout.size()).next_multiple_of(page) + 2 * page;
        // SAFETY: the pages that `alloc` has mapped for this memory.
        let unmapped = unsafe { munmap(memory.sub(before + page).cast::<c_void>(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
