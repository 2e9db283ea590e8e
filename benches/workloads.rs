//! The lists of the `bench` example under criterion, in FLOP per second: a group
//! for each, blocks both fused and unfused.
//!
//! `cargo bench -- mobilenet_v2`, `-- pointwise` and so on; `MBCONV_ISA` narrows
//! the instruction set.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

#[path = "../examples/support/workloads.rs"]
mod workloads;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mbconv::{Isa, Schedule, Scratch};
use workloads::layers::Loaded;
use workloads::lists;
use workloads::random::Random;

fn all(c: &mut Criterion) {
    let isa = Isa::detect().expect("MBCONV_ISA names an instruction set of this CPU");
    for (name, list) in lists::all() {
        let mut group = c.benchmark_group(name);
        for workload in list {
            let random = &mut Random::new(1);
            let schedules = match workload.kind.is_block() {
                true => &[Schedule::Fused, Schedule::Unfused][..],
                false => &[Schedule::Auto],
            };
            let loaded = Loaded::new(workload, random);
            let operation = loaded.operation(isa).expect("valid");
            let mut plans = Vec::new();
            for &schedule in schedules {
                let plan = loaded.plan(&operation, schedule).expect("valid");
                plans.push((plan.kernel_name(), plan));
            }
            // Squeeze-and-excite has one way only.
            plans.dedup_by(|a, b| a.0 == b.0);
            for (kernel, plan) in plans {
                let (x, mut y) = (random.vec(plan.input_len(), 1.0), vec![0.0; plan.output_len()]);
                let mut scratch = Scratch::new(plan.scratch_bytes());
                group.throughput(Throughput::Elements(plan.flops()));
                let id = BenchmarkId::new(kernel, &loaded.workload.name);
                group.bench_function(id, |b| b.iter(|| plan.run(&x, &mut y, &mut scratch)));
            }
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
