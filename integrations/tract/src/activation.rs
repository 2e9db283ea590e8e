//! Activations, one node or written out as several.

use mbconv::Activation;
use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Div, Exp, Max, Min, Mul, Sub};
use tract_core::ops::nn::gelu_exact::GeluExact;
use tract_core::ops::nn::silu::Silu;
use tract_core::ops::nn::{GeluApproximate, HardSwish, LeakyRelu, Sigmoid};

/// What follows a value: an activation, the nodes that write it out, and where its
/// result is. `Identity`, no nodes and the value itself where nothing is recognised.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) activation: Activation,
    pub(crate) nodes: Vec<usize>,
    pub(crate) output: OutletId,
}

/// `min(max(a * x + b, lo), hi)`, in f64 so that the order of the constants leaves no trace.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ramp {
    a: f64,
    b: f64,
    lo: f64,
    hi: f64,
}

/// What a node computes as a function of `x`, the value that the activation is of.
/// Products with constants, sums and clamps stay within it, in whatever order an
/// exporter wrote them.
#[derive(Debug, Clone, Copy)]
enum Form {
    Ramp(Ramp),
    /// `x` times a ramp of it.
    Gated(Ramp),
    Named(Activation),
}

impl Ramp {
    const X: Self = Self { a: 1.0, b: 0.0, lo: f64::NEG_INFINITY, hi: f64::INFINITY };

    fn plus(self, c: f64) -> Self {
        Self { a: self.a, b: self.b + c, lo: self.lo + c, hi: self.hi + c }
    }

    fn times(self, c: f64) -> Option<Self> {
        let (lo, hi) = if c < 0.0 { (self.hi, self.lo) } else { (self.lo, self.hi) };
        let ramp = Self { a: self.a * c, b: self.b * c, lo: lo * c, hi: hi * c };
        (c != 0.0 && c.is_finite()).then_some(ramp)
    }

    fn at_least(self, c: f64) -> Self {
        Self { lo: self.lo.max(c), hi: self.hi.max(c), ..self }
    }

    fn at_most(self, c: f64) -> Self {
        Self { lo: self.lo.min(c), hi: self.hi.min(c), ..self }
    }

    /// `k` of `k * x`.
    fn slope(self) -> Option<f64> {
        (Self { a: 1.0, ..self } == Self::X).then_some(self.a)
    }
}

impl Form {
    fn with_scalar(self, op: &TypedBinOp, scalar: f64, scalar_first: bool) -> Option<Self> {
        let ramp = match self {
            Self::Ramp(ramp) | Self::Gated(ramp) => ramp,
            Self::Named(_) => return None,
        };
        let factor = if op.0.is::<Mul>() {
            Some(scalar)
        } else {
            (op.0.is::<Div>() && !scalar_first).then(|| scalar.recip())
        };
        if let Some(factor) = factor {
            let ramp = ramp.times(factor)?;
            return Some(match self {
                Self::Gated(_) => Self::Gated(ramp),
                _ => Self::Ramp(ramp),
            });
        }
        if matches!(self, Self::Gated(_)) {
            return None;
        }
        Some(Self::Ramp(if op.0.is::<Add>() {
            ramp.plus(scalar)
        } else if op.0.is::<Sub>() && scalar_first {
            ramp.times(-1.0)?.plus(scalar)
        } else if op.0.is::<Sub>() {
            ramp.plus(-scalar)
        } else if op.0.is::<Max>() {
            ramp.at_least(scalar)
        } else if op.0.is::<Min>() {
            ramp.at_most(scalar)
        } else {
            return None;
        }))
    }

    /// `self * other`.
    fn product(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Ramp(x), Self::Named(Activation::Sigmoid))
            | (Self::Named(Activation::Sigmoid), Self::Ramp(x)) => {
                (x == Ramp::X).then_some(Self::Named(Activation::Silu))
            }
            (Self::Ramp(one), Self::Ramp(other)) => {
                let (k, gate) = match (one.slope(), other.slope()) {
                    (Some(k), None) => (k, other),
                    (None, Some(k)) => (k, one),
                    _ => return None,
                };
                gate.times(k).map(Self::Gated)
            }
            _ => None,
        }
    }

    fn of(self, op: &ElementWiseOp) -> Option<Self> {
        let Self::Ramp(Ramp::X) = self else { return None };
        Some(Self::Named(if op.0.is::<HardSwish>() {
            Activation::HardSwish
        } else if op.0.is::<Silu>() {
            Activation::Silu
        } else if op.0.is::<Sigmoid>() {
            Activation::Sigmoid
        } else if op.0.is::<GeluExact>() {
            Activation::Gelu
        } else if op.0.is::<Exp>() {
            Activation::Exp
        } else if let Some(leaky) = op.0.downcast_ref::<LeakyRelu>() {
            Activation::LeakyRelu { slope: leaky.alpha }
        } else if let Some(gelu) = op.0.downcast_ref::<GeluApproximate>() {
            // The other form has a square in the place of the cube.
            return (!gelu.fast_impl).then_some(Self::Named(Activation::GeluTanh));
        } else {
            return None;
        }))
    }

    fn activation(self) -> Option<Activation> {
        // Of constants that were rounded to f32, and multiplied.
        let near = |x: f64, y: f64| (x - y).abs() <= 1e-6;
        match self {
            Self::Named(activation) => Some(activation),
            Self::Gated(Ramp { a, b, lo, hi }) => {
                let hard_swish =
                    near(a, 1.0 / 6.0) && near(b, 0.5) && near(lo, 0.0) && near(hi, 1.0);
                hard_swish.then_some(Activation::HardSwish)
            }
            Self::Ramp(Ramp { a: 1.0, b: 0.0, lo, hi }) => Some(match (lo, hi) {
                (f64::NEG_INFINITY, f64::INFINITY) => Activation::Identity,
                (0.0, f64::INFINITY) => Activation::Relu,
                (0.0, 6.0) => Activation::Relu6,
                _ => Activation::Clamp { lo: lo as f32, hi: hi as f32 },
            }),
            Self::Ramp(Ramp { a, b, lo, hi }) => (near(lo, 0.0) && near(hi, 1.0))
                .then_some(Activation::HardSigmoid { alpha: a as f32, beta: b as f32 }),
        }
    }
}

/// The longest activation of `x` whose inner values nothing else reads.
pub(crate) fn after(model: &TypedModel, x: OutletId) -> Found {
    let mut found = Found { activation: Activation::Identity, nodes: vec![], output: x };
    let mut forms = vec![(x, Form::Ramp(Ramp::X))];
    let mut nodes = vec![];
    while let Some((node, form)) = next(model, &forms, &nodes) {
        nodes.push(node.id);
        let output = OutletId::from(node.id);
        let closed = forms.iter().all(|(inner, _)| is_read_only_by(model, *inner, &nodes));
        forms.push((output, form));
        if let Some(activation) = form.activation().filter(|_| closed) {
            found = Found { activation, nodes: nodes.clone(), output };
        }
    }
    found
}

/// A node, not among `seen`, whose inputs all are constants or functions of `x` already.
fn next<'m>(
    model: &'m TypedModel,
    forms: &[(OutletId, Form)],
    seen: &[usize],
) -> Option<(&'m TypedNode, Form)> {
    let form_of = |value: OutletId| forms.iter().find(|(o, _)| *o == value).map(|(_, form)| *form);
    let readers = forms.iter().flat_map(|(value, _)| model.outlet_successors(*value));
    readers.filter(|reader| !seen.contains(&reader.node)).find_map(|reader| {
        let node = model.node(reader.node);
        let form = if let Some(op) = node.op_as::<ElementWiseOp>() {
            form_of(node.inputs[0])?.of(op)?
        } else {
            let op = node.op_as::<TypedBinOp>()?;
            let [one, other] = node.inputs[..] else { return None };
            match (form_of(one), form_of(other)) {
                (Some(one), Some(other)) if op.0.is::<Mul>() => one.product(other)?,
                (Some(form), None) => form.with_scalar(op, scalar(model, other)?, false)?,
                (None, Some(form)) => form.with_scalar(op, scalar(model, one)?, true)?,
                _ => return None,
            }
        };
        let (x, y) = (model.outlet_fact(forms[0].0).ok()?, &node.outputs[0].fact);
        ((&x.shape, x.datum_type) == (&y.shape, y.datum_type)).then_some((node, form))
    })
}

/// Whether all who read a value are among `nodes`.
pub(crate) fn is_read_only_by(model: &TypedModel, value: OutletId, nodes: &[usize]) -> bool {
    !model.outputs.contains(&value)
        && model.outlet_successors(value).iter().all(|reader| nodes.contains(&reader.node))
}

/// The number that all elements of a constant are.
fn scalar(model: &TypedModel, value: OutletId) -> Option<f64> {
    let constant = constant(model, value)?;
    let (first, rest) = constant.split_first()?;
    rest.iter().all(|x| x == first).then(|| f64::from(*first))
}

/// The numbers of an f32 constant.
pub(crate) fn constant(model: &TypedModel, value: OutletId) -> Option<&[f32]> {
    let tensor = model.outlet_fact(value).ok()?.konst.as_ref()?;
    (tensor.datum_type() == f32::datum_type()).then_some(())?;
    tensor.as_plain_ram()?.as_slice::<f32>().ok()
}
