//! tract on the ONNX models.

use std::hint::black_box;
use std::sync::Arc;

use mbconv_peers::{Case, Engine, Result, serve, threads};
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

struct Tract {
    plan: Arc<TypedRunnableModel>,
    input: TValue,
}

impl Engine for Tract {
    const LAYOUT: &str = "nchw";

    fn load(case: &Case) -> Result<Self> {
        let shape = [1, case.c_in, case.side, case.side];
        let plan = tract_onnx::onnx()
            .model_for_path(case.path("model.onnx"))?
            .with_input_fact(0, f32::fact(shape).into())?
            .into_optimized()?
            .into_runnable()?;
        Ok(Self { plan, input: Tensor::from_shape(&shape, &case.tensor("x.nchw")?)?.into() })
    }

    fn run(&mut self) -> Result<()> {
        black_box(self.plan.run(tvec!(self.input.clone()))?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let outputs = self.plan.run(tvec!(self.input.clone()))?;
        Ok(outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }
}

fn main() -> std::io::Result<()> {
    if threads() > 1 {
        set_default_executor(Executor::multithread(threads()));
    }
    serve::<Tract>()
}
