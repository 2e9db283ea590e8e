//! Which instruction set runs the kernels.

use core::fmt;

use alloc::string::String;

use crate::error::{Error, Result};
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
use crate::simd::Neon;
use crate::simd::{self, Kernel, Lanes, Portable};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};

/// An instruction set that this CPU can run.
///
/// A value can be had only from the functions below, so it is the proof that
/// the kernels of that set may be called.
///
/// ```
/// use mbconv::Isa;
///
/// let best = Isa::available().next().expect("portable is always there");
/// println!("{best}: {} f32 lanes", best.lanes());
/// assert_eq!(Isa::from_name("portable")?.name(), "portable");
/// # Ok::<(), mbconv::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Isa(Token);

#[derive(Clone, Copy)]
enum Token {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon(Neon),
    Portable(Portable),
}

/// Every instruction set that any build of this crate knows, best first.
const NAMES: [&str; 4] = ["avx512", "avx2", "neon", "portable"];

impl Isa {
    /// The instruction sets that this CPU can run, best first; `portable` is
    /// always the last. The CPU is asked once per process.
    pub fn available() -> impl Iterator<Item = Self> {
        NAMES.iter().filter_map(|name| Self::probe(name))
    }

    /// The instruction set that operations use unless told otherwise: the best
    /// available, or the one that the environment variable `MBCONV_ISA` names
    /// (read at each call, with the `std` feature only).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownIsa`] or [`Error::IsaUnavailable`] when `MBCONV_ISA`
    /// names something else than an instruction set of this CPU.
    pub fn detect() -> Result<Self> {
        #[cfg(feature = "std")]
        if let Some(name) = std::env::var_os("MBCONV_ISA") {
            return Self::from_name(&name.to_string_lossy());
        }
        Ok(Self::best())
    }

    /// The instruction set of that name: `avx512` (its parts F and VL, with AVX2
    /// and FMA), `avx2` (with FMA), `neon` or `portable`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownIsa`] for another name, [`Error::IsaUnavailable`] when
    /// this CPU or this build cannot run it.
    pub fn from_name(name: &str) -> Result<Self> {
        match NAMES.iter().find(|known| **known == name) {
            None => Err(Error::UnknownIsa { name: String::from(name) }),
            Some(known) => Self::probe(known)
                .ok_or_else(|| Error::IsaUnavailable { name: known, best: Self::best().name() }),
        }
    }

    /// `"avx512"`, `"avx2"`, `"neon"` or `"portable"`.
    pub fn name(self) -> &'static str {
        struct Name;
        impl Kernel for Name {
            type Output = &'static str;
            fn run<S: Lanes>(self, _: S) -> &'static str {
                S::NAME
            }
        }
        self.dispatch(Name)
    }

    /// f32 lanes in a vector of this instruction set.
    pub fn lanes(self) -> usize {
        struct Width;
        impl Kernel for Width {
            type Output = usize;
            fn run<S: Lanes>(self, _: S) -> usize {
                S::LANES
            }
        }
        self.dispatch(Width)
    }

    /// Hands the token to generic code: the one place where the instruction set
    /// turns from a value into a type.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(simd) => simd::run(simd, kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(simd) => simd::run(simd, kernel),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Token::Neon(simd) => simd::run(simd, kernel),
            Token::Portable(simd) => simd::run(simd, kernel),
        }
    }

    fn best() -> Self {
        Self::available().next().unwrap_or(Self(Token::Portable(Portable)))
    }

    fn probe(name: &str) -> Option<Self> {
        let token = match name {
            #[cfg(target_arch = "x86_64")]
            "avx512" => Token::Avx512(Avx512::detect()?),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Token::Avx2(Avx2::detect()?),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            "neon" => Token::Neon(Neon::detect()?),
            "portable" => Token::Portable(Portable),
            _ => return None,
        };
        Some(Self(token))
    }
}

impl PartialEq for Isa {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Isa {}

impl core::hash::Hash for Isa {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// `cpufeatures` decides; `pulp` looks by itself and must agree.
    #[test]
    fn both_detectors_agree() {
        assert_eq!(Avx2::detect().is_some(), Avx2::try_new().is_some());
        assert_eq!(Avx512::detect().is_some(), Avx512::try_new().is_some());
    }
}
