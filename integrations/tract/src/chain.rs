//! Which layers become one operation.

use mbconv::{BottleneckParams, Depthwise, Error, InvertedBottleneck, Pointwise};
use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::math::Add;
use tract_core::ops::nn::DataFormat;

use crate::activation::constant;
use crate::layer::{Kind, Layer, only_reader};
use crate::op::{Fused, Packed};
use crate::report::{Left, Part, Reason, Replaced, Report};

/// Images have few channels; over more of them a full convolution is not a stem.
const STEM_CHANNELS: usize = 4;

/// One operation and what it stands for.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) op: Fused,
    pub(crate) inputs: TVec<OutletId>,
    /// The last one gives the output.
    pub(crate) nodes: Vec<usize>,
}

/// Everything in `model` that mbconv can do.
pub(crate) fn find(model: &TypedModel) -> TractResult<(Vec<Chain>, Report)> {
    let mut search = Search { model, layers: vec![], used: vec![], found: vec![], left: vec![] };
    let order = model.eval_order()?;
    for node in order.iter().map(|id| model.node(*id)) {
        match Layer::read(model, node) {
            None => {}
            Some(Ok(layer)) => search.layers.push(layer),
            Some(Err(reason)) => search.left.push(Left { name: node.name.clone(), reason }),
        }
    }
    search.used = vec![false; search.layers.len()];
    let all = |kind: Kind| {
        let of_kind = |i: &usize| search.layers[*i].kind == kind;
        (0..search.layers.len()).filter(of_kind).collect::<Vec<_>>()
    };
    let (depthwise, pointwise, full) =
        (all(Kind::Depthwise), all(Kind::Pointwise), all(Kind::Full));
    depthwise.into_iter().for_each(|i| search.around(i));
    for i in pointwise {
        // Over a tensor of three axes, channels last, it is a linear layer of a sequence.
        let layer = &search.layers[i];
        let linear = layer.pool.is_none() && layer.from == DataFormat::HWC;
        if !search.used[i] && !linear {
            search.pointwise(i);
        }
    }
    for i in full {
        let Layer { kernel, c_in: channels, .. } = search.layers[i];
        if !search.used[i] {
            search.leave(i, Reason::Full { kernel, channels });
        }
    }
    let Search { mut found, left, .. } = search;
    let place =
        |(chain, _): &(Chain, Replaced)| order.iter().position(|id| chain.nodes.last() == Some(id));
    found.sort_by_key(place);
    let (mut chains, replaced): (Vec<Chain>, _) = found.into_iter().unzip();
    put_channels_last(model, &mut chains);
    Ok((chains, Report { replaced, left }))
}

/// Has the channels last in all values that go from one chain to others and nowhere else:
/// nothing is turned between them then (EfficientNet-Lite0 on Zen 5: 4.35 ms -> 4.15 ms).
fn put_channels_last(model: &TypedModel, chains: &mut [Chain]) {
    let last = |format: DataFormat| match format.has_n() {
        true => DataFormat::NHWC,
        false => DataFormat::HWC,
    };
    for i in 0..chains.len() {
        let Some(value) = chains[i].nodes.last().map(|node| OutletId::from(*node)) else {
            continue;
        };
        // What is added to an output has its order, so that the two would turn together.
        let takes = |chain: &Chain| *chain.inputs == [value];
        let readers = model.outlet_successors(value);
        let inside = readers.iter().all(|reader| {
            chains.iter().any(|chain| takes(chain) && chain.nodes.contains(&reader.node))
        });
        if inside && chains[i].inputs.len() == 1 && !model.outputs.contains(&value) {
            chains[i].op.to = last(chains[i].op.to);
            for chain in chains.iter_mut().filter(|chain| takes(chain)) {
                chain.op.from = last(chain.op.from);
            }
        }
    }
}

struct Search<'m> {
    model: &'m TypedModel,
    /// In the order of evaluation.
    layers: Vec<Layer>,
    used: Vec<bool>,
    found: Vec<(Chain, Replaced)>,
    left: Vec<Left>,
}

impl Search<'_> {
    /// Makes the depthwise layer and its neighbours one operation.
    fn around(&mut self, depthwise: usize) {
        let mut limits = vec![];
        if let Some(chain) = self.block(depthwise, &mut limits) {
            return self.push(Part::Block, chain, limits);
        }
        let layer = &self.layers[depthwise];
        match Depthwise::new(&layer.depthwise()).map(Packed::Depthwise) {
            Ok(packed) => match self.chain(packed, &[depthwise], None, "") {
                Ok(chain) => self.push(Part::Depthwise, chain, limits),
                Err(error) => self.leave(depthwise, Reason::Refused(error)),
            },
            Err(error) => self.leave(depthwise, Reason::Refused(error)),
        }
    }

    fn block(&self, depthwise: usize, limits: &mut Vec<Reason>) -> Option<(Chain, Vec<usize>)> {
        let mut note = |linked: Result<usize, Reason>| linked.map_err(|r| limits.push(r)).ok();
        let (before, after) = (note(self.before(depthwise)), note(self.after(depthwise)));
        let stages: Vec<usize> = [before, Some(depthwise), after].into_iter().flatten().collect();
        if stages.len() == 1 {
            return None;
        }
        let layers = &self.layers;
        let depthwise = layers[depthwise].depthwise();
        let mut params = match after {
            Some(after) => BottleneckParams::new(depthwise, layers[after].pointwise()),
            None => BottleneckParams::without_project(depthwise),
        };
        params = match before.map(|before| &layers[before]) {
            Some(stem) if stem.kind == Kind::Full => params.stem(stem.full()),
            Some(expand) => params.expand(expand.pointwise()),
            None => params,
        };
        let input = layers[stages[0]].input;
        let added = after.and_then(|after| {
            self.residual(layers[after].output, input).map_err(|r| limits.extend(r)).ok()
        });
        let packed = InvertedBottleneck::new(&params.residual(added.is_some())).map(Packed::Block);
        let note = if added.is_some() { ", + input" } else { "" };
        let chain = packed.and_then(|packed| self.chain(packed, &stages, added, note));
        chain.map_err(|error| limits.push(Reason::Refused(error))).ok()
    }

    /// The layer before a depthwise one, where the two can be one operation.
    fn before(&self, depthwise: usize) -> Result<usize, Reason> {
        let value = self.layers[depthwise].input;
        let neighbour = self.layers.iter().position(|layer| layer.output == value);
        let before = self.joined(depthwise, value, value.node, neighbour)?;
        let Layer { kind, kernel, c_in: channels, .. } = self.layers[before];
        match kind {
            Kind::Full if channels > STEM_CHANNELS => Err(Reason::Full { kernel, channels }),
            _ => Ok(before),
        }
    }

    /// The pointwise layer after a depthwise one, where the two can be one operation.
    fn after(&self, depthwise: usize) -> Result<usize, Reason> {
        let value = self.layers[depthwise].output;
        let node = self.model.outlet_successors(value).first().map_or(value.node, |to| to.node);
        let neighbour = self.layers.iter().position(|layer| layer.input == value);
        let after = self.joined(depthwise, value, node, neighbour)?;
        match self.layers[after].kind {
            Kind::Pointwise => Ok(after),
            _ => Err(self.stranger(node)),
        }
    }

    /// The neighbour on the other side of `value`, if there is a layer and it is free to
    /// be joined. `node` is the one to name if not.
    fn joined(
        &self,
        depthwise: usize,
        value: OutletId,
        node: usize,
        neighbour: Option<usize>,
    ) -> Result<usize, Reason> {
        let Layer { c_in, c_out, from: format, .. } = self.layers[depthwise];
        if c_in != c_out {
            return Err(Reason::Refused(Error::MultiplierInBlock { multiplier: c_out / c_in }));
        }
        let name = |node: usize| self.model.node(node).name.clone();
        if self.model.outputs.contains(&value) {
            return Err(Reason::Output { node: name(value.node) });
        }
        if only_reader(self.model, value).is_none() {
            let readers = self.model.outlet_successors(value).len();
            return Err(Reason::Shared { node: name(value.node), readers });
        }
        let neighbour = neighbour.ok_or_else(|| self.stranger(node))?;
        let layer = &self.layers[neighbour];
        let side = if layer.output == value { layer.to } else { layer.from };
        if layer.kind == Kind::Depthwise {
            Err(self.stranger(node))
        } else if self.used[neighbour] {
            Err(Reason::Taken { node: name(layer.output.node) })
        } else if side != format {
            Err(Reason::Format { node: name(layer.output.node) })
        } else {
            Ok(neighbour)
        }
    }

    fn stranger(&self, node: usize) -> Reason {
        let node = self.model.node(node);
        Reason::Neighbour { node: node.name.clone(), op: node.op.name().into_owned() }
    }

    /// The node that adds `input` to `output`, if that is what becomes of it; why not, if
    /// it is nearly so.
    fn residual(&self, output: OutletId, input: OutletId) -> Result<usize, Option<Reason>> {
        let (node, other) = self.sum(output).ok_or(None)?;
        let name = self.model.node(node).name.clone();
        if other != input {
            return Err(Some(Reason::Residual { node: name }));
        }
        if !self.same_shape(input, output) {
            let shape =
                |value| self.model.outlet_fact(value).map(|fact| format!("{:?}", fact.shape));
            let (input, output) =
                (shape(input).map_err(|_| None)?, shape(output).map_err(|_| None)?);
            return Err(Some(Reason::ResidualShape { node: name, input, output }));
        }
        Ok(node)
    }

    /// The node that adds another value to `value`, and that value; unless the other has it
    /// already.
    fn sum(&self, value: OutletId) -> Option<(usize, OutletId)> {
        let reader = only_reader(self.model, value)?;
        let node = self.model.node(reader.node);
        let other = *node.inputs.get(1 - reader.slot)?;
        let is_sum = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Add>());
        let is_free = !self.found.iter().any(|(chain, _)| chain.nodes.contains(&node.id));
        (is_sum && is_free && constant(self.model, other).is_none()).then_some((node.id, other))
    }

    fn same_shape(&self, one: OutletId, other: OutletId) -> bool {
        let fact = |value| self.model.outlet_fact(value).ok();
        fact(one).zip(fact(other)).is_some_and(|(one, other)| {
            (&one.shape, one.datum_type) == (&other.shape, other.datum_type)
        })
    }

    /// Makes a pointwise layer an operation, and what is added to its output.
    fn pointwise(&mut self, pointwise: usize) {
        let layer = &self.layers[pointwise];
        let sum = self.sum(layer.output).filter(|(_, other)| self.same_shape(layer.output, *other));
        let note = if sum.is_some() { ", + another value" } else { "" };
        let packed = Pointwise::new(&layer.pointwise()).map(Packed::Pointwise);
        let chain = packed
            .and_then(|packed| self.chain(packed, &[pointwise], sum.map(|(node, _)| node), note));
        match chain {
            Ok((mut chain, stages)) => {
                chain.inputs.extend(sum.map(|(_, other)| other));
                self.push(Part::Pointwise, (chain, stages), vec![]);
            }
            Err(error) => self.leave(pointwise, Reason::Refused(error)),
        }
    }

    /// The operation of some layers, one after the other, and a node behind them.
    fn chain(
        &self,
        packed: Packed,
        stages: &[usize],
        last: Option<usize>,
        note: &str,
    ) -> mbconv::Result<(Chain, Vec<usize>)> {
        let layers: Vec<&Layer> = stages.iter().map(|i| &self.layers[*i]).collect();
        let (first, end) = (layers[0], layers[layers.len() - 1]);
        let pools = layers.iter().filter_map(|layer| layer.pool.clone()).collect();
        let names: Vec<String> = layers.iter().map(|layer| layer.to_string()).collect();
        let names = names.join(", ") + note;
        let op = Fused::new(packed, [first.from, end.to], end.c_out, pools, names);
        let shape = self.model.outlet_fact(first.input).ok().map(|fact| &fact.shape);
        if let Some(shape) = shape.and_then(|shape| shape.as_concrete()) {
            op.check(shape)?;
        }
        let nodes = layers.iter().flat_map(|layer| &layer.nodes).copied().chain(last).collect();
        Ok((Chain { op, inputs: tvec!(first.input), nodes }, stages.to_vec()))
    }

    fn push(&mut self, part: Part, (chain, stages): (Chain, Vec<usize>), limits: Vec<Reason>) {
        let nodes: Vec<String> =
            chain.nodes.iter().map(|id| self.model.node(*id).name.clone()).collect();
        let name = nodes.last().cloned().unwrap_or_default();
        let stages_in_words = chain.op.stages().to_owned();
        self.found.push((chain, Replaced { name, part, stages: stages_in_words, nodes, limits }));
        stages.into_iter().for_each(|i| self.used[i] = true);
    }

    fn leave(&mut self, layer: usize, reason: Reason) {
        let name = self.model.node(self.layers[layer].nodes[0]).name.clone();
        self.left.push(Left { name, reason });
        self.used[layer] = true;
    }
}
