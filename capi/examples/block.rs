//! What `block.c` and `block.cpp` compute, through the Rust interface: a block of MobileNetV2 on
//! one thread and as two tasks. Prints the checksum of each output.

use mbconv::{
    Activation::Relu6, BottleneckParams, DepthwiseParams, InvertedBottleneck, Padding, PlanOptions,
    PointwiseParams, Shape,
};

const SIDE: usize = 28;
const C: usize = 32;
const EXPANDED: usize = 192;

/// Numbers in [-1, 1) that are the same in every language.
fn fill(seed: &mut u32, len: usize) -> Vec<f32> {
    let mut next = || {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*seed >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// FNV-1a over the bits of all numbers.
fn checksum(numbers: &[f32]) -> u64 {
    let bytes = numbers.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn main() -> mbconv::Result<()> {
    let seed = &mut 2018;
    let [expand, depthwise, project] =
        [EXPANDED * C, 9 * EXPANDED, C * EXPANDED].map(|n| fill(seed, n));
    let (bias, x) = (fill(seed, EXPANDED), fill(seed, SIDE * SIDE * C));
    let block = BottleneckParams::new(
        DepthwiseParams::new(EXPANDED, [3, 3], &depthwise)
            .padding(Padding::uniform(1))
            .activation(Relu6),
        PointwiseParams::new(EXPANDED, C, &project),
    )
    .expand(PointwiseParams::new(C, EXPANDED, &expand).bias(&bias).activation(Relu6))
    .residual(true);
    let op = InvertedBottleneck::new(&block)?;
    for threads in [1, 2] {
        let options = PlanOptions::new().threads(threads);
        let plan = op.plan_with(Shape::new(1, SIDE, SIDE), &options)?;
        let mut y = vec![0.0; plan.output_len()];
        plan.run(&x, &mut y, &mut plan.scratch())?;
        println!("{threads} {:016x}", checksum(&y));
    }
    Ok(())
}
