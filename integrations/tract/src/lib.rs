//! [`mbconv`] in [tract](tract_core): a pass over a typed model that puts fused inverted
//! bottlenecks in the place of convolutions.
//!
//! [`fuse`] looks for 1x1 -> depthwise -> 1x1 chains, with the activations between them and
//! the addition of the block's input, and makes each one node; depthwise and 1x1
//! convolutions that stand alone become one node each, a network's first convolution goes
//! into the block after it. The rest of the model stays as it is, and the [`Report`] says
//! what was replaced, what was not, and why.
//!
//! ```
//! use tract_core::internal::*;
//! # fn load() -> TractResult<TypedModel> {
//! #     let mut model = TypedModel::default();
//! #     let x = model.add_source("x", f32::fact([1, 2, 4, 4]))?;
//! #     model.select_output_outlets(&[x])?;
//! #     Ok(model)
//! # }
//!
//! let mut model: TypedModel = load()?.into_decluttered()?;
//! let report = mbconv_tract::fuse(&mut model)?;
//! println!("{report}");
//! let runnable = model.into_optimized()?.into_runnable()?;
//! # Ok::<(), TractError>(())
//! ```
//!
//! Shapes may hold symbols: an operation is planned for the shapes that it sees. A run takes
//! its threads from tract's executor (`tract_linalg::multithread`), and after the first one an
//! operation allocates nothing but its output.

mod activation;
mod chain;
mod layer;
mod op;
mod report;

use std::collections::{HashMap, HashSet};

use chain::Chain;
use tract_core::internal::*;
use tract_core::model::translator::{IntoTranslator, Translate};
use tract_core::transform::ModelTransform;

pub use report::{Left, Part, Reason, Replaced, Report};

/// Replaces what mbconv can do in `model`, which should be decluttered: batch
/// normalisations are folded then, and constants are known.
///
/// # Errors
///
/// Those of tract on a model that is not consistent. What mbconv cannot do is no error: it
/// stays, and the report names it.
pub fn fuse(model: &mut TypedModel) -> TractResult<Report> {
    let (chains, report) = chain::find(model)?;
    let mut rewrite = Rewrite::default();
    for chain in chains {
        let last = *chain.nodes.last().context("a chain has nodes")?;
        rewrite.inner.extend(&chain.nodes);
        rewrite.chains.insert(last, chain);
    }
    *model = rewrite.translate_model(model)?;
    model.compact()?;
    Ok(report)
}

/// [`fuse`] by the name `mbconv` among tract's transforms. The report goes to the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mbconv;

impl ModelTransform for Mbconv {
    fn name(&self) -> StaticName {
        "mbconv".into()
    }

    fn transform(&self, model: &mut TypedModel) -> TractResult<()> {
        let report = fuse(model)?;
        log::info!("{report}");
        Ok(())
    }
}

register_simple_model_transform!("mbconv", Mbconv);

/// The model with each chain as one node.
#[derive(Debug, Default)]
struct Rewrite {
    /// By their last nodes.
    chains: HashMap<usize, Chain>,
    inner: HashSet<usize>,
}

impl Translate<TypedFact, Box<dyn TypedOp>, TypedFact, Box<dyn TypedOp>> for Rewrite {
    fn translate_node(
        &self,
        source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        if let Some(Chain { op, inputs, .. }) = self.chains.get(&node.id) {
            let inputs: TVec<OutletId> = inputs.iter().map(|input| mapping[input]).collect();
            target.wire_node(&node.name, op.clone(), &inputs)
        } else if self.inner.contains(&node.id) {
            Ok(tvec!())
        } else {
            IntoTranslator.translate_node(source, node, target, mapping)
        }
    }
}
