//! The interface as a C program meets it.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

use mbconv::{ConvNextParams, DepthwiseParams, LayerNormParams, PointwiseParams, Shape, reference};

use crate::block::*;
use crate::layer::*;
use crate::op::*;
use crate::options::*;
use crate::plan::*;
use crate::status::*;

/// Small integers: sums of them are exact.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7 % 5) as f32 - 2.0).collect()
}

fn message() -> String {
    // SAFETY: the library's own text, read before the next call.
    unsafe { CStr::from_ptr(mbconv_last_error()) }.to_str().unwrap().to_owned()
}

/// What a constructor gives.
fn made<T>(make: impl FnOnce(*mut *mut T) -> Status) -> *mut T {
    let mut handle = null_mut();
    let status = make(&mut handle);
    assert_eq!(status, Status::Ok, "{}", message());
    handle
}

fn pointwise(c_in: usize, c_out: usize) -> *mut Layer {
    let weights = numbers(c_in * c_out);
    // SAFETY: the array and the place for the handle are valid.
    made(|layer| unsafe {
        mbconv_layer_pointwise(c_in, c_out, weights.as_ptr(), weights.len(), layer)
    })
}

fn depthwise(channels: usize) -> *mut Layer {
    let weights = numbers(9 * channels);
    // SAFETY: as above.
    let layer = made(|layer| unsafe {
        mbconv_layer_depthwise(channels, 1, 3, 3, weights.as_ptr(), weights.len(), layer)
    });
    // SAFETY: a handle.
    assert_eq!(unsafe { mbconv_layer_set_padding(layer, 1, 1, 1, 1) }, Status::Ok);
    layer
}

/// The output of an operation for one image of 5 x 4, and of a plan for two threads.
fn run(op: *const Op, input: &[f32]) -> Vec<f32> {
    // SAFETY: handles, and arrays with their lengths.
    unsafe {
        let options = made(|options| mbconv_options_new(options));
        assert_eq!(mbconv_options_set_threads(options, 2), Status::Ok);
        let plan = made(|plan| mbconv_plan_new(op, 1, 5, 4, options, plan));
        mbconv_options_free(options);
        assert_eq!(mbconv_plan_input_len(plan), input.len());
        let mut scratch = vec![0u8; mbconv_plan_scratch_bytes(plan)];
        let mut outputs = [(); 2].map(|()| vec![f32::NAN; mbconv_plan_output_len(plan)]);
        for (output, parallel) in outputs.iter_mut().zip([None, Some(backwards as _)]) {
            let status = mbconv_plan_run_with(
                plan,
                parallel,
                null_mut(),
                input.as_ptr(),
                input.len(),
                null(),
                0,
                output.as_mut_ptr(),
                output.len(),
                scratch.as_mut_ptr().cast(),
                scratch.len(),
            );
            assert_eq!(status, Status::Ok, "{}", message());
        }
        mbconv_plan_free(plan);
        let [serial, parallel] = outputs;
        assert_eq!(serial, parallel);
        serial
    }
}

/// A pool that runs some tasks twice, some that do not exist, and leaves some out.
unsafe extern "C" fn backwards(_: *mut c_void, n: usize, run: RunTask, tasks: *mut c_void) {
    for i in [n, n - 1, n - 1, usize::MAX] {
        // SAFETY: the library's function with its own pointer, before this returns.
        unsafe { run(tasks, i) }
    }
}

#[test]
fn layers_and_blocks_are_those_of_the_crate() {
    let (c, expanded, shape, x) = (3, 10, Shape::new(1, 5, 4), numbers(5 * 4 * 3));
    let [w_expand, w_depthwise, w_project] =
        [numbers(c * expanded), numbers(9 * c), numbers(expanded * c)];
    let expand = PointwiseParams::new(c, expanded, &w_expand).activation(mbconv::Activation::Relu);
    let filter = DepthwiseParams::new(c, [3, 3], &w_depthwise).padding(mbconv::Padding::uniform(1));
    let project = PointwiseParams::new(expanded, c, &w_project);
    let (ones, halves) = ([1.0; 3], [0.5; 3]);
    let block = ConvNextParams::new(filter, expand, project)
        .norm(LayerNormParams::new(&ones, &halves, 1e-6))
        .scale(&halves)
        .residual(mbconv::Residual::Input);

    // SAFETY: handles that live until they are freed, and arrays with their lengths.
    unsafe {
        let layers = [pointwise(c, expanded), depthwise(c), pointwise(expanded, c)];
        let relu = mbconv_layer_set_activation(layers[0], Activation::Relu as i32, 0.0, 0.0);
        assert_eq!(relu, Status::Ok);

        let ops = [layers[0], layers[1]]
            .map(|layer| made(|op| mbconv_op_layer(layer, c"portable".as_ptr(), op)));
        assert_eq!(run(ops[0], &x), reference::pointwise(&expand, shape, &x, None).unwrap());
        assert_eq!(run(ops[1], &x), reference::depthwise(&filter, shape, &x).unwrap());

        let described = made(|block| mbconv_block_new(Order::Convnext as i32, layers[1], block));
        for status in [
            mbconv_block_set_expand(described, layers[0]),
            mbconv_block_set_project(described, layers[2]),
            mbconv_block_set_norm(described, ones.as_ptr(), halves.as_ptr(), 3, 1e-6),
            mbconv_block_set_scale(described, halves.as_ptr(), 3),
            mbconv_block_set_residual(described, Residual::Input as i32),
        ] {
            assert_eq!(status, Status::Ok);
        }
        let op = made(|op| mbconv_op_block(described, null(), op));
        let expected = reference::convnext(&block, shape, &x).unwrap();
        for (y, e) in run(op, &x).iter().zip(expected) {
            assert!((y - e).abs() <= 1e-4 * e.abs().max(1.0), "{y}, not {e}");
        }

        layers.into_iter().for_each(|layer| mbconv_layer_free(layer));
        ops.into_iter().for_each(|op| mbconv_op_free(op));
        mbconv_op_free(op);
        mbconv_block_free(described);
    }
}

#[test]
fn wrong_arguments_are_statuses() {
    // SAFETY: handles, null where a function checks for it, and arrays with their lengths.
    unsafe {
        let weights = numbers(6);
        let mut layer = null_mut();
        let status = mbconv_layer_pointwise(2, 3, null(), 6, &mut layer);
        assert_eq!((status, message().as_str()), (Status::NullPointer, "weights is null"));
        assert!(layer.is_null());
        let status = mbconv_layer_pointwise(2, 3, weights.as_ptr(), usize::MAX, &mut layer);
        assert_eq!(status, Status::InvalidShape);
        let status = mbconv_layer_pointwise(2, 3, weights.as_ptr(), 6, null_mut());
        assert_eq!(status, Status::NullPointer);
        assert_eq!(mbconv_layer_set_stride(null_mut(), 1, 1), Status::NullPointer);

        let layer = pointwise(2, 3);
        assert_eq!(mbconv_layer_set_stride(layer, 2, 2), Status::InvalidArgument);
        assert_eq!(mbconv_layer_set_activation(layer, 99, 0.0, 0.0), Status::InvalidArgument);
        assert_eq!(message(), "no activation has the value 99");
        assert_eq!(mbconv_layer_set_bias(layer, weights.as_ptr(), 2), Status::Ok);
        let mut op = null_mut();
        assert_eq!(mbconv_op_layer(layer, null(), &mut op), Status::InvalidLength);
        assert_eq!(message(), "pointwise bias has length 2, the shapes ask for 3");
        assert_eq!(mbconv_layer_set_bias(layer, weights.as_ptr(), 3), Status::Ok);
        assert_eq!(mbconv_op_layer(layer, c"mmx".as_ptr(), &mut op), Status::IsaUnavailable);

        let mut block = null_mut();
        assert_eq!(mbconv_block_new(7, layer, &mut block), Status::InvalidArgument);
        let block = made(|block| mbconv_block_new(Order::Inverted as i32, layer, block));
        assert_eq!(mbconv_op_block(block, null(), &mut op), Status::InvalidArgument);
        assert_eq!(message(), "a block's depthwise layer is not depthwise");
        assert!(op.is_null());
        mbconv_block_free(block);

        let op = made(|op| mbconv_op_layer(layer, null(), op));
        let mut plan = null_mut();
        assert_eq!(mbconv_plan_new(op, 1, 0, 4, null(), &mut plan), Status::InvalidShape);
        let plan = made(|plan| mbconv_plan_new(op, 1, 1, 2, null(), plan));
        let mut tensor = [0.0f32; 16];
        let start = tensor.as_mut_ptr();
        let run = |output: *mut f32| mbconv_plan_run(plan, start, 4, output, 6, null_mut(), 0);
        assert_eq!(run(start.add(4)), Status::Ok);
        assert_eq!(run(start.add(3)), Status::InvalidArgument);
        assert_eq!(run(start.byte_add(18)), Status::InvalidArgument);
        assert_eq!(run(null_mut()), Status::NullPointer);
        assert_eq!(mbconv_plan_input_len(null()), 0);

        mbconv_plan_free(plan);
        mbconv_op_free(op);
        mbconv_layer_free(layer);
        mbconv_layer_free(null_mut());
    }
}

/// Into every other channel of a larger tensor: what lies between stays as it is.
#[test]
fn an_output_with_gaps() {
    // SAFETY: handles, and arrays with their lengths.
    unsafe {
        let layer = pointwise(2, 1);
        let op = made(|op| mbconv_op_layer(layer, null(), op));
        let options = made(|options| mbconv_options_new(options));
        let layout = Layout::Nhwc as i32;
        assert_eq!(mbconv_options_set_output_strides(options, layout, 6, 6, 3), Status::Ok);
        let plan = made(|plan| mbconv_plan_new(op, 1, 1, 2, options, plan));
        let (x, mut y) = ([1.0, 2.0, 3.0, 4.0], [9.0; 4]);
        let status = mbconv_plan_run(plan, x.as_ptr(), 4, y.as_mut_ptr(), 4, null_mut(), 0);
        assert_eq!(status, Status::Ok, "{}", message());
        // Weights -2 and 0.
        assert_eq!(y, [-2.0, 9.0, 9.0, -6.0]);
        mbconv_plan_free(plan);
        mbconv_options_free(options);
        mbconv_op_free(op);
        mbconv_layer_free(layer);
    }
}
