//! Block cases: one file, one block, one expected output.
//!
//! A case is a safetensors file. Its metadata key `case` holds a JSON object:
//! `kind`, `stride` `[y, x]`, `padding` `[top, bottom, left, right]`, `residual`,
//! `act_expand`, `act_depthwise`, `act_project`, `se`. Its f32 tensors are
//! `input` `[h, w, c]`, `expected` `[h, w, c]` and what the kind has of
//! `expand.weight` `[c_exp, c_in]`, `depthwise.weight` `[kh, kw, c_exp]`,
//! `project.weight` `[c_out, c_exp]`, each with a `.bias`.

pub(crate) mod layout;
mod tensors;

use core::error;
use core::fmt;

use layout::{Layouts, arranged, channels_last};
use mbconv::{
    Activation, BottleneckParams, BottleneckPlan, Depthwise, DepthwisePlan, Executor,
    InvertedBottleneck, Isa, Padding, PlanOptions, Shape,
};
use serde_json::{Map, Value};
use tensors::{Layer, Tensor, TensorFile};

/// Why a file cannot be run.
#[derive(Debug)]
pub(crate) enum Error {
    /// It is not a case.
    Malformed(String),
    /// It is a case of something that this crate does not have.
    Unsupported { kind: String, what: &'static str },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => f.write_str(why),
            Self::Unsupported { what, .. } => write!(f, "unsupported: {what}"),
        }
    }
}

impl error::Error for Error {}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Self::Malformed(why)
    }
}

/// A block, an input and the output that it must give.
pub(crate) struct Case {
    pub(crate) kind: String,
    input: Tensor<3>,
    expand: Option<Layer<2>>,
    depthwise: Layer<3>,
    project: Option<Layer<2>>,
    /// After expand, depthwise, project.
    activations: [Activation; 3],
    stride: [usize; 2],
    padding: Padding,
    residual: bool,
    expected: Tensor<3>,
}

/// What a case gave.
pub(crate) struct Run {
    /// The name of the kernel that ran.
    pub(crate) kernel: String,
    pub(crate) output: Vec<f32>,
}

enum Plan {
    Block(BottleneckPlan),
    Depthwise(DepthwisePlan),
}

impl Plan {
    fn output_shape(&self) -> Shape {
        match self {
            Self::Block(plan) => plan.output_shape(),
            Self::Depthwise(plan) => plan.output_shape(),
        }
    }
}

impl Case {
    /// Reads a file. What it returns runs: shapes and settings fit each other.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let file = TensorFile::parse(bytes)?;
        let text = file.metadata("case").ok_or_else(|| String::from("no metadata key `case`"))?;
        let Settings { kind, activations, stride, padding, residual } = Settings::parse(text)?;
        let [has_expand, has_project] = match kind.as_str() {
            "inverted_residual" => [true, true],
            "depthwise_separable" => [false, true],
            _ => [false, false],
        };
        let case = Self {
            input: file.tensor("input")?,
            expand: has_expand.then(|| file.layer("expand")).transpose()?,
            depthwise: file.layer("depthwise")?,
            project: has_project.then(|| file.layer("project")).transpose()?,
            expected: file.tensor("expected")?,
            kind,
            activations,
            stride,
            padding,
            residual,
        };
        case.check()?;
        Ok(case)
    }

    /// Lets a plan check the stages, then compares both ends with it.
    fn check(&self) -> Result<(), String> {
        let plan = Isa::from_name("portable")
            .and_then(|isa| self.plan(isa, &PlanOptions::new()))
            .map_err(|error| error.to_string())?;
        let [height, width, _] = self.input.shape;
        let output = plan.output_shape();
        let channels = self.depthwise.weight.shape[2];
        let c_in = self.expand.as_ref().map_or(channels, |expand| expand.weight.shape[1]);
        let c_out = self.project.as_ref().map_or(channels, |project| project.weight.shape[0]);
        for (name, given, taken) in [
            ("input", self.input.shape, [height, width, c_in]),
            ("expected", self.expected.shape, [output.height, output.width, c_out]),
        ] {
            if given != taken {
                return Err(format!("tensor {name} is {given:?}, the block has {taken:?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn expected(&self) -> &[f32] {
        &self.expected.data
    }

    pub(crate) fn run(
        &self,
        executor: &dyn Executor,
        isa: Isa,
        options: &PlanOptions,
        layouts: Layouts,
    ) -> mbconv::Result<Run> {
        let channels = |tensor: &Tensor<3>| tensor.shape[2];
        let input = arranged(layouts.input, &self.input.data, channels(&self.input));
        let mut output = vec![f32::NAN; self.expected.data.len()];
        let kernel = match self.plan(isa, &layouts.set(*options))? {
            Plan::Block(plan) => {
                plan.run_with(executor, &input, &mut output, &mut plan.scratch())?;
                plan.kernel_name()
            }
            Plan::Depthwise(plan) => {
                plan.run_with(executor, &input, &mut output)?;
                plan.kernel_name()
            }
        };
        let output = channels_last(layouts.output, &output, channels(&self.expected));
        Ok(Run { kernel, output })
    }

    fn plan(&self, isa: Isa, options: &PlanOptions) -> mbconv::Result<Plan> {
        let [height, width, _] = self.input.shape;
        let shape = Shape::new(1, height, width);
        let [act_expand, act_depthwise, act_project] = self.activations;
        let depthwise = self
            .depthwise
            .params()
            .stride(self.stride)
            .padding(self.padding)
            .activation(act_depthwise);
        let Some(project) = &self.project else {
            let op = Depthwise::with_isa(&depthwise, isa)?;
            return Ok(Plan::Depthwise(op.plan_with(shape, options)?));
        };
        let mut block = BottleneckParams::new(depthwise, project.params().activation(act_project))
            .residual(self.residual);
        if let Some(expand) = &self.expand {
            block = block.expand(expand.params().activation(act_expand));
        }
        Ok(Plan::Block(InvertedBottleneck::with_isa(&block, isa)?.plan_with(shape, options)?))
    }
}

/// What the metadata says.
struct Settings {
    kind: String,
    activations: [Activation; 3],
    stride: [usize; 2],
    padding: Padding,
    residual: bool,
}

impl Settings {
    fn parse(text: &str) -> Result<Self, Error> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("`case`: {error}"))?;
        let get = |key: &str| json.get(key).unwrap_or(&Value::Null);
        let wrong = |key: &str| format!("`{key}` is {}", get(key));

        let kind = get("kind").as_str().ok_or_else(|| wrong("kind"))?.to_owned();
        let unsupported = |what| Error::Unsupported { kind: kind.clone(), what };
        match kind.as_str() {
            "inverted_residual" | "depthwise_separable" | "depthwise_only" => {}
            "convnext" => return Err(unsupported("convnext")),
            "dw_mlp" => return Err(unsupported("dw_mlp")),
            _ => return Err(wrong("kind").into()),
        }
        match get("se") {
            Value::Null => {}
            Value::Object(_) => return Err(unsupported("squeeze-and-excitation")),
            _ => return Err(wrong("se").into()),
        }
        let activation = |key| match get(key) {
            Value::Null => Ok(Activation::Identity),
            Value::String(name) => match name.as_str() {
                "relu" => Ok(Activation::Relu),
                "relu6" => Ok(Activation::Relu6),
                "hardswish" => Ok(Activation::HardSwish),
                "silu" => Ok(Activation::Silu),
                "gelu_erf" => Err(unsupported("gelu_erf")),
                _ => Err(wrong(key).into()),
            },
            _ => Err(wrong(key).into()),
        };
        let activations =
            [activation("act_expand")?, activation("act_depthwise")?, activation("act_project")?];
        let stride = sizes(get("stride")).ok_or_else(|| wrong("stride"))?;
        let [top, bottom, left, right] = sizes(get("padding")).ok_or_else(|| wrong("padding"))?;
        let residual = match get("residual") {
            Value::Null => false,
            // A depthwise convolution alone has none.
            Value::Bool(residual) if !residual || kind != "depthwise_only" => *residual,
            _ => return Err(wrong("residual").into()),
        };
        let padding = Padding::Explicit { top, bottom, left, right };
        Ok(Self { kind, activations, stride, padding, residual })
    }
}

/// An array of `N` sizes.
fn sizes<const N: usize>(value: &Value) -> Option<[usize; N]> {
    let sizes = value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok());
    sizes.collect::<Option<Vec<_>>>()?.try_into().ok()
}
