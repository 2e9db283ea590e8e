//! What a call says of itself: a code, and a message for people.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All is done.
    Ok = 0,
    /// A pointer is null that must not be.
    NullPointer = 1,
    /// A value is none of those that the argument can have, arrays overlap or are not aligned, or
    /// a setting does not exist for this kind of layer.
    InvalidArgument = 2,
    /// A size is zero or too large, or sizes do not fit each other.
    InvalidShape = 3,
    /// An array does not have the length that the shapes give.
    InvalidLength = 4,
    /// The instruction set is not known, or this CPU or build cannot run it.
    IsaUnavailable = 5,
    /// A bug in this library; what arrays hold is not specified then.
    Internal = 6,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Null(&'static str),
    Value { what: &'static str, value: i32 },
    Argument(&'static str),
    Refused(mbconv::Error),
}

pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

impl From<mbconv::Error> for Failure {
    fn from(error: mbconv::Error) -> Self {
        Self::Refused(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null(what) => write!(f, "{what} is null"),
            Self::Value { what, value } => write!(f, "no {what} has the value {value}"),
            Self::Argument(why) => f.write_str(why),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl Failure {
    fn status(&self) -> Status {
        use mbconv::Error;
        match self {
            Self::Null(_) => Status::NullPointer,
            Self::Value { .. } | Self::Argument(_) => Status::InvalidArgument,
            Self::Refused(error) => match error {
                Error::Length { .. } => Status::InvalidLength,
                Error::InvalidActivation(_)
                | Error::ScaledActivation(_)
                | Error::InvalidEpsilon { .. } => Status::InvalidArgument,
                Error::UnknownIsa { .. } | Error::IsaUnavailable { .. } => Status::IsaUnavailable,
                _ => Status::InvalidShape,
            },
        }
    }
}

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// Runs a call so that neither an error nor a panic leaves it.
pub(crate) fn guard(call: impl FnOnce() -> Result) -> Status {
    let (status, message) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => (failure.status(), failure.to_string()),
        Err(_) => (Status::Internal, String::from("a bug in mbconv: it has panicked")),
    };
    // A name given by the caller may stand in it, which had no zero byte. A thread that is ending
    // has no place for messages any more.
    let message = CString::new(message).unwrap_or_default();
    let _ = MESSAGE.try_with(|last| last.replace(message));
    status
}

/// The message of the last call of this thread that failed, in UTF-8 and with the numbers that are
/// wrong; empty when none has. It stays valid until the next call that fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn mbconv_last_error() -> *const c_char {
    MESSAGE.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(guard(|| panic!("as intended")), Status::Internal);
        assert_eq!(guard(|| Ok(())), Status::Ok);
    }
}
