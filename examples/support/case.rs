//! Block cases: one file, one block, one expected output.
//!
//! A case is a safetensors file. Its metadata key `case` holds a JSON object:
//! `kind`, `stride` `[y, x]`, `padding` `[top, bottom, left, right]`, `residual` or
//! `residual_from_depthwise`, `act_expand`, `act_depthwise`, `act_project`,
//! `layernorm_eps`, `se` with `act_reduce` and `gate`. Its f32 tensors are
//! `input` `[h, w, c]`, `expected` `[h, w, c]` and what the kind has of
//! `expand.weight` `[c_exp, c_in]`, `depthwise.weight` `[kh, kw, c_exp]`,
//! `project.weight` `[c_out, c_exp]`, `se.reduce.weight` `[r, c]`, `se.expand.weight`
//! `[c, r]`, `norm.weight` `[c]`, each with a `.bias`, and `layer_scale` `[c_out]`.

pub(crate) mod layout;
mod tensors;

use core::error;
use core::fmt;

use layout::{Layouts, arranged, channels_last};
use mbconv::{
    Activation, BottleneckParams, BottleneckPlan, ConvNextBlock, ConvNextParams, Depthwise,
    DepthwisePlan, Executor, InvertedBottleneck, Isa, LayerNormParams, Padding, PlanOptions,
    Residual, Shape, SqueezeExciteParams,
};
use serde_json::{Map, Value};
use tensors::{Layer, Tensor, TensorFile};

/// Why a file is not a case.
#[derive(Debug)]
pub(crate) struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for Error {}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Self(why)
    }
}

/// A block, an input and the output that it must give.
pub(crate) struct Case {
    pub(crate) kind: String,
    input: Tensor<3>,
    expand: Option<Layer<2>>,
    depthwise: Layer<3>,
    excite: Option<[Layer<2>; 2]>,
    norm: Option<Layer<1>>,
    project: Option<Layer<2>>,
    scale: Option<Tensor<1>>,
    settings: Settings,
    expected: Tensor<3>,
}

/// What a case gave.
pub(crate) struct Run {
    /// The name of the kernel that ran.
    pub(crate) kernel: String,
    pub(crate) output: Vec<f32>,
}

enum Plan {
    Block(Box<BottleneckPlan>),
    Depthwise(Box<DepthwisePlan>),
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
        let (kind, settings) = Settings::parse(text)?;
        let convnext = kind == "convnext";
        let (has_expand, has_project) = match kind.as_str() {
            "depthwise_separable" => (false, true),
            "depthwise_only" => (false, false),
            _ => (true, true),
        };
        let layer = |name| file.layer::<2>(name);
        let case = Self {
            input: file.tensor("input")?,
            expand: has_expand.then(|| layer("expand")).transpose()?,
            depthwise: file.layer("depthwise")?,
            excite: match settings.gate {
                Some(_) => Some([layer("se.reduce")?, layer("se.expand")?]),
                None => None,
            },
            norm: convnext.then(|| file.layer("norm")).transpose()?,
            project: has_project.then(|| layer("project")).transpose()?,
            scale: convnext.then(|| file.tensor("layer_scale")).transpose()?,
            expected: file.tensor("expected")?,
            kind,
            settings,
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
        let before = self.expand.as_ref().filter(|_| !self.is_depthwise_first());
        let c_in = before.map_or(channels, |expand| expand.weight.shape[1]);
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
        let Settings { activations, stride, padding, .. } = self.settings;
        let [act_expand, act_depthwise, act_project] = activations;
        let depthwise =
            self.depthwise.params().stride(stride).padding(padding).activation(act_depthwise);
        let Some(project) = &self.project else {
            let op = Depthwise::with_isa(&depthwise, isa)?;
            return Ok(Plan::Depthwise(Box::new(op.plan_with(shape, options)?)));
        };
        let project = project.params().activation(act_project);
        let excite = self.excite.as_ref().zip(self.settings.gate).map(|(stages, gate)| {
            let [reduce, expand] = stages;
            let [reduce, expand] = [(reduce, gate[0]), (expand, gate[1])]
                .map(|(stage, activation)| stage.params().activation(activation));
            SqueezeExciteParams::new(reduce, expand)
        });
        let expand = self.expand.as_ref().map(|expand| expand.params().activation(act_expand));
        let plan = match expand {
            Some(expand) if self.is_depthwise_first() => {
                let mut block = ConvNextParams::new(depthwise, expand, project);
                if let Some(excite) = excite {
                    block = block.squeeze_excite(excite);
                }
                if let Some(Layer { weight, bias }) = &self.norm {
                    let epsilon = self.settings.epsilon;
                    block = block.norm(LayerNormParams::new(&weight.data, &bias.data, epsilon));
                }
                if let Some(scale) = &self.scale {
                    block = block.scale(&scale.data);
                }
                if let Some(residual) = self.settings.residual {
                    block = block.residual(residual);
                }
                ConvNextBlock::with_isa(&block, isa)?.plan_with(shape, options)?
            }
            _ => {
                let residual = self.settings.residual.is_some();
                let mut block = BottleneckParams::new(depthwise, project).residual(residual);
                if let Some(expand) = expand {
                    block = block.expand(expand);
                }
                if let Some(excite) = excite {
                    block = block.squeeze_excite(excite);
                }
                InvertedBottleneck::with_isa(&block, isa)?.plan_with(shape, options)?
            }
        };
        Ok(Plan::Block(Box::new(plan)))
    }

    /// Whether the expansion follows the depthwise convolution.
    fn is_depthwise_first(&self) -> bool {
        matches!(self.kind.as_str(), "convnext" | "dw_mlp")
    }
}

/// What the metadata says.
#[derive(Clone, Copy)]
struct Settings {
    /// After expand, depthwise, project.
    activations: [Activation; 3],
    /// After the two stages of squeeze-and-excite, where there is one.
    gate: Option<[Activation; 2]>,
    epsilon: f32,
    stride: [usize; 2],
    padding: Padding,
    residual: Option<Residual>,
}

impl Settings {
    /// Gives the kind, too.
    fn parse(text: &str) -> Result<(String, Self), Error> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("`case`: {error}"))?;
        let get = |key: &str| json.get(key).unwrap_or(&Value::Null);
        let wrong = |key: &str| format!("`{key}` is {}", get(key));

        let kind = get("kind").as_str().ok_or_else(|| wrong("kind"))?.to_owned();
        match kind.as_str() {
            "inverted_residual"
            | "depthwise_separable"
            | "depthwise_only"
            | "convnext"
            | "dw_mlp" => {}
            _ => return Err(wrong("kind").into()),
        }
        let activation = |key| activation(get(key)).ok_or_else(|| wrong(key));
        let activations =
            [activation("act_expand")?, activation("act_depthwise")?, activation("act_project")?];
        let gate = match get("se") {
            Value::Null => None,
            Value::Object(_) if kind == "convnext" || kind == "depthwise_only" => {
                return Err(wrong("se").into());
            }
            se => Some(gate(se).ok_or_else(|| wrong("se"))?),
        };
        let epsilon = match get("layernorm_eps") {
            Value::Null if kind != "convnext" => 0.0,
            epsilon => epsilon.as_f64().ok_or_else(|| wrong("layernorm_eps"))? as f32,
        };
        let stride = sizes(get("stride")).ok_or_else(|| wrong("stride"))?;
        let [top, bottom, left, right] = sizes(get("padding")).ok_or_else(|| wrong("padding"))?;
        // Of each kind one, but for a depthwise convolution alone, which has none.
        let (key, source) = match kind.as_str() {
            "dw_mlp" => ("residual_from_depthwise", Residual::Depthwise),
            _ => ("residual", Residual::Input),
        };
        let residual = match get(key) {
            Value::Null => None,
            Value::Bool(residual) if !residual || kind != "depthwise_only" => {
                residual.then_some(source)
            }
            _ => return Err(wrong(key).into()),
        };
        let padding = Padding::Explicit { top, bottom, left, right };
        Ok((kind, Self { activations, gate, epsilon, stride, padding, residual }))
    }
}

fn activation(value: &Value) -> Option<Activation> {
    Some(match value {
        Value::Null => Activation::Identity,
        Value::String(name) => match name.as_str() {
            "relu" => Activation::Relu,
            "relu6" => Activation::Relu6,
            "hardswish" => Activation::HardSwish,
            "silu" => Activation::Silu,
            "gelu_erf" => Activation::Gelu,
            _ => return None,
        },
        _ => return None,
    })
}

/// The activations of squeeze-and-excite's two stages.
fn gate(value: &Value) -> Option<[Activation; 2]> {
    let expand = match value.get("gate")?.as_str()?.split_once(':') {
        None if value["gate"] == "sigmoid" => Activation::Sigmoid,
        Some(("hardsigmoid", numbers)) => {
            let (alpha, beta) = numbers.split_once(',')?;
            Activation::HardSigmoid { alpha: alpha.parse().ok()?, beta: beta.parse().ok()? }
        }
        _ => return None,
    };
    Some([activation(value.get("act_reduce")?)?, expand])
}

/// An array of `N` sizes.
fn sizes<const N: usize>(value: &Value) -> Option<[usize; N]> {
    let sizes = value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok());
    sizes.collect::<Option<Vec<_>>>()?.try_into().ok()
}
