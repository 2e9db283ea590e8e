//! Operations: layers packed for an instruction set.

use std::ffi::c_char;

use mbconv::{ConvNextBlock, Depthwise, InvertedBottleneck, Isa, Pointwise};

use crate::block::Block;
use crate::layer::{Layer, Params};
use crate::memory::{free, give, handle, text};
use crate::status::{Failure, Result, Status, guard};

/// A 1x1 or depthwise convolution or a block, packed for an instruction set. Plans of it may
/// outlive it.
pub struct Op(pub(crate) Kind);

pub(crate) enum Kind {
    Pointwise(Pointwise),
    Depthwise(Depthwise),
    Block(InvertedBottleneck),
    ConvNext(ConvNextBlock),
}

/// # Safety
/// As for [`text`].
unsafe fn isa(name: *const c_char) -> Result<Isa> {
    // SAFETY: as the caller promises.
    match unsafe { text(name) }? {
        Some(name) => Ok(Isa::from_name(name)?),
        None => Ok(Isa::detect()?),
    }
}

/// Builds a 1x1 or depthwise convolution.
///
/// `isa` is `"avx512"`, `"avx2"`, `"neon"` or `"portable"`, or null for the best that this CPU has
/// or the environment variable `MBCONV_ISA` names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_op_layer(
    layer: *const Layer,
    isa: *const c_char,
    op: *mut *mut Op,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe {
        give(op, || {
            let isa = self::isa(isa)?;
            Ok(Op(match handle(layer, "layer")?.params() {
                Params::Pointwise(params) => Kind::Pointwise(Pointwise::with_isa(&params, isa)?),
                Params::Depthwise(params) => Kind::Depthwise(Depthwise::with_isa(&params, isa)?),
                Params::Conv(_) => {
                    return Err(Failure::Argument(
                        "a full convolution is only a block's first layer",
                    ));
                }
            }))
        })
    })
}

/// Builds a block; `isa` is as for `mbconv_op_layer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_op_block(
    block: *const Block,
    isa: *const c_char,
    op: *mut *mut Op,
) -> Status {
    // SAFETY: the rules of the header.
    guard(|| unsafe { give(op, || Ok(Op(handle(block, "block")?.pack(self::isa(isa)?)?))) })
}

/// Frees an operation; its plans live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbconv_op_free(op: *mut Op) {
    // SAFETY: the rules of the header.
    unsafe { free(op) }
}
