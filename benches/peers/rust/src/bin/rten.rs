//! rten on the ONNX models.

use std::hint::black_box;
use std::sync::Arc;

use mbconv_peers::{Case, Engine, Result, serve, threads};
use rten::{Model, ModelOptions, RunOptions, ThreadPool};
use rten_tensor::{AsView, Tensor};

struct Rten {
    model: Model,
    input: Tensor<f32>,
    options: RunOptions,
}

impl Engine for Rten {
    const LAYOUT: &str = "nchw";

    fn load(case: &Case) -> Result<Self> {
        let shape = [1, case.c_in, case.side, case.side];
        let pool = Arc::new(ThreadPool::with_num_threads(threads()));
        Ok(Self {
            model: ModelOptions::with_all_ops()
                .prepack_weights(true)
                .load_file(case.path("model.onnx"))?,
            input: Tensor::from_data(&shape, case.tensor("x.nchw")?),
            options: RunOptions::default().with_thread_pool(Some(pool)),
        })
    }

    fn run(&mut self) -> Result<()> {
        black_box(self.model.run_one(self.input.view().into(), Some(self.options.clone()))?);
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let output = self.model.run_one(self.input.view().into(), Some(self.options.clone()))?;
        let output: Tensor<f32> = output.try_into()?;
        Ok(output.to_vec())
    }
}

fn main() -> std::io::Result<()> {
    serve::<Rten>()
}
