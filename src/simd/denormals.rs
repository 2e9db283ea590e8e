//! Flush-to-zero, for as long as a guard lives.

/// Where the control register is known, denormal operands and results count as
/// zero on this thread until this is dropped; elsewhere it does nothing.
///
/// Rust, like C without `FENV_ACCESS`, may compute an expression at any time:
/// what the compiler moves out from under the guard, or computes while it
/// compiles, keeps its denormals. The kernels' arithmetic is on what they load
/// behind the guard, which, as an `asm` that may touch memory, no load passes.
pub(crate) struct FlushDenormals(Option<Control>);

impl FlushDenormals {
    /// The guard, or one that does nothing.
    pub(crate) fn set(on: bool) -> Self {
        Self(on.then(|| {
            let before = read();
            write(before | FLUSH);
            before
        }))
    }
}

impl Drop for FlushDenormals {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            write(before);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod control {
    pub(super) type Control = u32;

    /// MXCSR's flush-to-zero and denormals-are-zero.
    pub(super) const FLUSH: Control = 1 << 15 | 1 << 6;

    pub(super) fn read() -> Control {
        let mut control = 0;
        // SAFETY: writes the four bytes of `control`.
        unsafe {
            core::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack, preserves_flags));
        }
        control
    }

    pub(super) fn write(control: Control) {
        // SAFETY: reads the four bytes of `control`, which `read` gave but for
        // FLUSH, so that no reserved bit is set and no exception unmasked.
        unsafe {
            core::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack));
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    pub(super) type Control = u64;

    /// FPCR's flush-to-zero, of operands as well as results.
    pub(super) const FLUSH: Control = 1 << 24;

    pub(super) fn read() -> Control {
        let control;
        // SAFETY: reads a register that every program may read.
        unsafe {
            core::arch::asm!("mrs {}, fpcr", out(reg) control, options(nostack, preserves_flags));
        }
        control
    }

    pub(super) fn write(control: Control) {
        // SAFETY: sets what `read` gave but for FLUSH.
        unsafe {
            core::arch::asm!("msr fpcr, {}", in(reg) control, options(nostack));
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod control {
    pub(super) type Control = u32;
    pub(super) const FLUSH: Control = 0;
    pub(super) fn read() -> Control {
        0
    }
    pub(super) fn write(_: Control) {}
}

use control::{Control, FLUSH, read, write};

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_restored() {
        let before = read();
        drop(FlushDenormals::set(false));
        assert_eq!(read(), before);
        {
            let _guard = FlushDenormals::set(true);
            assert_eq!(read() & FLUSH, FLUSH);
        }
        assert_eq!(read(), before);
        let unwound = std::panic::catch_unwind(|| {
            let _guard = FlushDenormals::set(true);
            panic!("as intended");
        });
        assert!(unwound.is_err());
        assert_eq!(read(), before);
    }
}
