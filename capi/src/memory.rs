//! Pointers from C turned into references and back: every check that can be made is made here.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use crate::status::{Failure, Result};

/// # Safety
/// `handle` is null or came from [`give`] and lives for `'a`, unchanged.
pub(crate) unsafe fn handle<'a, T>(handle: *const T, what: &'static str) -> Result<&'a T> {
    // SAFETY: as the caller promises; null is asked for.
    unsafe { handle.as_ref() }.ok_or(Failure::Null(what))
}

/// # Safety
/// `handle` is null or came from [`give`] and lives for `'a`, used by nobody else.
pub(crate) unsafe fn handle_mut<'a, T>(handle: *mut T, what: &'static str) -> Result<&'a mut T> {
    // SAFETY: as the caller promises; null is asked for.
    unsafe { handle.as_mut() }.ok_or(Failure::Null(what))
}

/// Makes a handle of what `make` gives and stores it in `place`, unless that is null.
///
/// # Safety
/// `place` is null or can be written to.
pub(crate) unsafe fn give<T>(place: *mut *mut T, make: impl FnOnce() -> Result<T>) -> Result {
    if place.is_null() {
        return Err(Failure::Null("the place for the result"));
    }
    let made = Box::into_raw(Box::new(make()?));
    // SAFETY: not null, and as the caller promises.
    unsafe { place.write(made) };
    Ok(())
}

/// # Safety
/// `handle` is null or came from [`give`], and is not used any more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: it came from `Box::into_raw`, and this is the last use.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// # Safety
/// `start` is null or begins `len` numbers that live for `'a`, unchanged.
pub(crate) unsafe fn floats<'a>(
    start: *const f32,
    len: usize,
    what: &'static str,
) -> Result<&'a [f32]> {
    check(start, len, what)?;
    // SAFETY: not null, aligned, not too long, and as the caller promises.
    Ok(unsafe { slice::from_raw_parts(start, len) })
}

/// # Safety
/// `start` is null or begins `len` elements that live for `'a`, used by nobody else.
pub(crate) unsafe fn uninit<'a, T>(
    start: *mut T,
    len: usize,
    what: &'static str,
) -> Result<&'a mut [MaybeUninit<T>]> {
    check(start, len, what)?;
    // SAFETY: not null, aligned, not too long, and as the caller promises.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), len) })
}

/// As [`uninit`], of bytes that may be none.
///
/// # Safety
/// As for [`uninit`].
pub(crate) unsafe fn scratch<'a>(
    start: *mut c_void,
    bytes: usize,
) -> Result<&'a mut [MaybeUninit<u8>]> {
    if bytes == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as the caller promises.
    unsafe { uninit(start.cast(), bytes, "scratch") }
}

fn check<T>(start: *const T, len: usize, what: &'static str) -> Result {
    if start.is_null() {
        return Err(Failure::Null(what));
    }
    if !start.is_aligned() {
        return Err(Failure::Argument("an array of float is not aligned for float"));
    }
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(mbconv::Error::Overflow { what }.into()),
    }
}

/// That an array which is written shares no byte with the others: what borrowing holds in Rust.
/// Takes addresses, for it comes before any of them is a reference.
pub(crate) fn check_apart(written: &[Range<usize>], read: &[Range<usize>]) -> Result {
    for (i, one) in written.iter().enumerate() {
        for other in written[i + 1..].iter().chain(read) {
            if one.start < other.end && other.start < one.end {
                return Err(Failure::Argument(
                    "an array that is written overlaps another one of the run",
                ));
            }
        }
    }
    Ok(())
}

/// The addresses of `len` elements.
pub(crate) fn extent<T>(start: *const T, len: usize) -> Range<usize> {
    start.addr()..start.addr().saturating_add(len.saturating_mul(size_of::<T>()))
}

/// # Safety
/// `text` is null or ends with a zero byte and lives for `'a`, unchanged.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and as the caller promises.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some).map_err(|_| Failure::Argument("a name is not UTF-8"))
}
