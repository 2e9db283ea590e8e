//! Reads one convolution of a typed model, with all that belongs to it.

use mbconv::{Activation, ConvParams, DepthwiseParams, Padding, PointwiseParams};
use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math::{Add, Div, Mul, Sub};
use tract_core::ops::nn::DataFormat;

use crate::activation::{self, constant};
use crate::report::Reason;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pointwise,
    Depthwise,
    /// Any other that is not grouped.
    Full,
}

/// A convolution, the arithmetic by channel after it, folded into its weights, and its
/// activation.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) kind: Kind,
    /// The axes of its input and output: decluttering has products drop a batch of one.
    pub(crate) from: DataFormat,
    pub(crate) to: DataFormat,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    dilation: [usize; 2],
    padding: Padding,
    /// What tract computes output sizes with; a pointwise layer keeps them.
    pub(crate) pool: Option<PoolSpec>,
    /// In mbconv's order for the kind.
    weights: Vec<f32>,
    bias: Vec<f32>,
    pub(crate) activation: Activation,
    pub(crate) input: OutletId,
    pub(crate) output: OutletId,
    pub(crate) nodes: Vec<usize>,
}

impl Layer {
    /// `None` when the node is no convolution.
    pub(crate) fn read(model: &TypedModel, node: &TypedNode) -> Option<Result<Self, Reason>> {
        let layer = if let Some(conv) = node.op_as::<Conv>() {
            Self::of_conv(model, node, conv)
        } else {
            Self::of_einsum(model, node, node.op_as::<EinSum>()?)?
        };
        Some(layer.map(|layer| layer.with_what_follows(model)))
    }

    fn of_conv(model: &TypedModel, node: &TypedNode, conv: &Conv) -> Result<Self, Reason> {
        let pool = &conv.pool_spec;
        let types = node.inputs.iter().map(|input| model.outlet_fact(*input));
        let types = types.chain([Ok(&node.outputs[0].fact)]).filter_map(TractResult::ok);
        if let Some(fact) = types.filter(|fact| fact.datum_type != f32::datum_type()).last() {
            return Err(Reason::DatumType(fact.datum_type));
        }
        if conv.q_params.is_some() {
            return Err(Reason::DatumType(node.outputs[0].fact.datum_type));
        }
        let axes = |axes: &[usize]| <[usize; 2]>::try_from(axes).ok();
        let (Some(kernel), Some(stride), Some(dilation)) =
            (axes(&pool.kernel_shape), axes(&pool.strides()), axes(&pool.dilations()))
        else {
            return Err(Reason::Rank(pool.rank()));
        };
        let padding = match &pool.padding {
            PaddingSpec::Valid => Padding::VALID,
            PaddingSpec::SameUpper => Padding::SameUpper,
            PaddingSpec::SameLower => Padding::SameLower,
            PaddingSpec::Explicit(before, after) => Padding::Explicit {
                top: before[0],
                bottom: after[0],
                left: before[1],
                right: after[1],
            },
            PaddingSpec::ExplicitOnnxPool(..) => return Err(Reason::Padding),
        };
        let (c_in, c_out) = (conv.input_channels(), conv.output_channels());
        let kind = if conv.group == c_in && c_in > 1 && c_out.is_multiple_of(c_in) {
            Kind::Depthwise
        } else if conv.group > 1 {
            return Err(Reason::Grouped { groups: conv.group, channels: c_in });
        } else if kernel == [1, 1] && stride == [1, 1] && padding == Padding::VALID {
            Kind::Pointwise
        } else {
            Kind::Full
        };
        let order = match (kind, conv.kernel_fmt) {
            (Kind::Depthwise, KernelFormat::OIHW) => [2, 3, 0, 1],
            (Kind::Depthwise, KernelFormat::HWIO) => [0, 1, 2, 3],
            (Kind::Depthwise, KernelFormat::OHWI) => [1, 2, 3, 0],
            (_, KernelFormat::OIHW) => [0, 2, 3, 1],
            (_, KernelFormat::HWIO) => [3, 0, 1, 2],
            (_, KernelFormat::OHWI) => [0, 1, 2, 3],
        };
        let weights = permuted(model, node.inputs[1], &order).ok_or(Reason::NotConstant)?;
        let bias = match constant(model, node.inputs[2]) {
            Some([one]) => vec![*one; c_out],
            Some(bias) if bias.len() == c_out => bias.to_vec(),
            _ => return Err(Reason::NotConstant),
        };
        Ok(Self {
            kind,
            from: pool.data_format,
            to: pool.data_format,
            c_in,
            c_out,
            kernel,
            stride,
            dilation,
            padding,
            pool: Some(pool.clone()),
            weights,
            bias,
            activation: Activation::Identity,
            input: node.inputs[0],
            output: node.id.into(),
            nodes: vec![node.id],
        })
    }

    /// A product with a matrix over the channels of an image: what decluttering makes of
    /// a 1x1 convolution. `None` for every other sum of products.
    fn of_einsum(
        model: &TypedModel,
        node: &TypedNode,
        op: &EinSum,
    ) -> Option<Result<Self, Reason>> {
        let [one, other] = node.inputs[..] else { return None };
        let rank = |value: OutletId| model.outlet_fact(value).map(|fact| fact.rank()).ok();
        let (slot, input, matrix) = match (rank(one)?, rank(other)?) {
            (3 | 4, 2) => (0, one, other),
            (2, 3 | 4) => (1, other, one),
            _ => return None,
        };
        let (x, w) = (InOut::In(slot), InOut::In(1 - slot));
        let (mut contracted, mut produced, mut others) = (None, None, vec![]);
        for axis in op.axes.iter_all_axes() {
            match (axis.interface(x), axis.interface(w), axis.interface(InOut::Out(0))) {
                ([at], [in_matrix], []) => contracted = Some((*at, *in_matrix)),
                ([], [in_matrix], [at]) => produced = Some((*at, *in_matrix)),
                (from @ ([] | [_]), [], to @ ([] | [_])) => others.push((from.first(), to.first())),
                _ => return None,
            }
        }
        let ((i_at, i_axis), (o_at, o_axis)) = (contracted?, produced?);
        let from = data_format(rank(input)?, i_at)?;
        let to = data_format(rank(node.id.into())?, o_at)?;
        let is_one = |value: OutletId| model.outlet_fact(value).is_ok_and(|f| f.shape[0].is_one());
        let in_place = |axes: &(Option<&usize>, Option<&usize>)| match axes {
            (Some(x), Some(y)) => *x + to.h_axis() == *y + from.h_axis(),
            (Some(0), None) => from.has_n() && !to.has_n() && is_one(input),
            (None, Some(0)) => to.has_n() && !from.has_n() && is_one(node.id.into()),
            _ => false,
        };
        if from.c_is_last() != to.c_is_last() || !others.iter().all(in_place) {
            return None;
        }
        let types = [input, matrix, node.id.into()].map(|value| model.outlet_fact(value).ok());
        let mut types = types.into_iter().flatten().map(|fact| fact.datum_type);
        if let Some(other) = types.find(|dt| *dt != f32::datum_type()) {
            return Some(Err(Reason::DatumType(other)));
        }
        let shape = &model.outlet_fact(matrix).ok()?.shape;
        let size = |axis: usize| shape[axis].to_usize().ok();
        let (c_in, c_out) = (size(i_axis)?, size(o_axis)?);
        let Some(weights) = permuted(model, matrix, &[o_axis, i_axis]) else {
            return Some(Err(Reason::NotConstant));
        };
        Some(Ok(Self {
            kind: Kind::Pointwise,
            from,
            to,
            c_in,
            c_out,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            padding: Padding::VALID,
            pool: None,
            weights,
            bias: vec![0.0; c_out],
            activation: Activation::Identity,
            input,
            output: node.id.into(),
            nodes: vec![node.id],
        }))
    }

    /// Takes up what comes after the convolution, as long as nothing else reads it.
    fn with_what_follows(mut self, model: &TypedModel) -> Self {
        loop {
            let found = activation::after(model, self.output);
            if !found.nodes.is_empty() {
                self.activation = found.activation;
                self.output = found.output;
                self.nodes.extend(found.nodes);
                return self;
            }
            let Some(reader) = only_reader(model, self.output) else { return self };
            if self.fold(model, model.node(reader.node)).is_none() {
                return self;
            }
            self.output = reader.node.into();
            self.nodes.push(reader.node);
        }
    }

    /// Folds arithmetic with a constant for each channel, a bias or a batch normalisation,
    /// into weights and bias.
    fn fold(&mut self, model: &TypedModel, node: &TypedNode) -> Option<()> {
        let op = node.op_as::<TypedBinOp>()?;
        let slot = node.inputs.iter().position(|input| *input == self.output)?;
        let other = *node.inputs.get(1 - slot)?;
        let values = constant(model, other)?;
        let (x, y) = (model.outlet_fact(self.output).ok()?, &node.outputs[0].fact);
        let h_axis = self.to.h_axis();
        let c_axis = if self.to.c_is_last() { h_axis + 2 } else { h_axis - 1 };
        let by_channel = values.len() == 1
            || values.len() == self.c_out
                && model.outlet_fact(other).ok()?.shape[c_axis].to_usize().ok()? == self.c_out;
        if !by_channel || (&x.shape, x.datum_type) != (&y.shape, y.datum_type) {
            return None;
        }
        let of = |channel: usize| if values.len() == 1 { values[0] } else { values[channel] };
        type Affine = fn(f32) -> (f32, f32); // scale and shift, of the constant
        let affine: Affine = if op.0.is::<Add>() {
            |c| (1.0, c)
        } else if op.0.is::<Mul>() {
            |c| (c, 0.0)
        } else if op.0.is::<Sub>() && slot == 0 {
            |c| (1.0, -c)
        } else if op.0.is::<Sub>() {
            |c| (-1.0, c)
        } else if op.0.is::<Div>() && slot == 0 {
            |c| (c.recip(), 0.0)
        } else {
            return None;
        };
        let filters = self.weights.len() / self.c_out;
        for (i, weight) in self.weights.iter_mut().enumerate() {
            let channel = if self.kind == Kind::Depthwise { i % self.c_out } else { i / filters };
            *weight *= affine(of(channel)).0;
        }
        for (channel, bias) in self.bias.iter_mut().enumerate() {
            let (scale, shift) = affine(of(channel));
            *bias = *bias * scale + shift;
        }
        Some(())
    }

    pub(crate) fn pointwise(&self) -> PointwiseParams<'_> {
        PointwiseParams::new(self.c_in, self.c_out, &self.weights)
            .bias(&self.bias)
            .activation(self.activation)
    }

    pub(crate) fn depthwise(&self) -> DepthwiseParams<'_> {
        DepthwiseParams::new(self.c_in, self.kernel, &self.weights)
            .multiplier(self.c_out / self.c_in)
            .stride(self.stride)
            .dilation(self.dilation)
            .padding(self.padding)
            .bias(&self.bias)
            .activation(self.activation)
    }

    pub(crate) fn full(&self) -> ConvParams<'_> {
        ConvParams::new(self.c_in, self.c_out, self.kernel, &self.weights)
            .stride(self.stride)
            .dilation(self.dilation)
            .padding(self.padding)
            .bias(&self.bias)
            .activation(self.activation)
    }
}

impl core::fmt::Display for Layer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [h, w] = self.kernel;
        match self.kind {
            Kind::Pointwise => write!(f, "pointwise {}->{}", self.c_in, self.c_out)?,
            Kind::Depthwise => write!(f, "depthwise {h}x{w} of {}", self.c_out)?,
            Kind::Full => write!(f, "conv {h}x{w} {}->{}", self.c_in, self.c_out)?,
        }
        if self.stride != [1, 1] {
            write!(f, " stride {}", self.stride[0])?;
        }
        match self.activation {
            Activation::Identity => Ok(()),
            activation => write!(f, " {activation:?}"),
        }
    }
}

/// The order of axes in which the channels are axis `c_axis`.
fn data_format(rank: usize, c_axis: usize) -> Option<DataFormat> {
    match (rank, c_axis) {
        (4, 1) => Some(DataFormat::NCHW),
        (4, 3) => Some(DataFormat::NHWC),
        (3, 0) => Some(DataFormat::CHW),
        (3, 2) => Some(DataFormat::HWC),
        _ => None,
    }
}

/// The reader of a value that has no other and that the model does not give out.
pub(crate) fn only_reader(model: &TypedModel, value: OutletId) -> Option<InletId> {
    match model.outlet_successors(value) {
        [reader] if !model.outputs.contains(&value) => Some(*reader),
        _ => None,
    }
}

/// The numbers of an f32 constant with its axes in another order.
fn permuted(model: &TypedModel, value: OutletId, order: &[usize]) -> Option<Vec<f32>> {
    constant(model, value)?;
    let tensor = Tensor::clone(model.outlet_fact(value).ok()?.konst.as_ref()?);
    let tensor = tensor.permute_axes(order).ok()?;
    Some(tensor.as_plain_ram()?.as_slice::<f32>().ok()?.to_vec())
}
