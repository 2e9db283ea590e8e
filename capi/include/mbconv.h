/*
 * The C interface of mbconv: SIMD kernels for the inverted bottleneck of mobile networks.
 *
 * Describe layers, and blocks of them, build an operation, make a plan for a shape, run it often,
 * free each. The rules for all functions:
 *
 * - Those that can fail return a status. When it is not MBCONV_STATUS_OK nothing has been written
 *   but the message of mbconv_last_error(). No Rust panic leaves a function.
 * - A handle was given by this library and has not been freed. A null handle is an error where one
 *   is needed, and nothing to free.
 * - An array is as long as its length says. Arrays are copied, but for those of a run, which are
 *   used in place and not kept.
 * - A handle is used by one thread at a time, but behind a pointer to const by any number. Each run
 *   of a plan at the same time needs scratch memory of its own.
 *
 * Made by cbindgen: `MBCONV_HEADER=write cargo test --test header`.
 */

#ifndef MBCONV_H
#define MBCONV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What this header describes. It changes only when a program compiled against an older one
// would go wrong.
#define MBCONV_ABI_VERSION 1

// How a call ended.
enum mbconv_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // All is done.
  MBCONV_STATUS_OK = 0,
  // A pointer is null that must not be.
  MBCONV_STATUS_NULL_POINTER = 1,
  // A value is none of those that the argument can have, arrays overlap or are not aligned, or
  // a setting does not exist for this kind of layer.
  MBCONV_STATUS_INVALID_ARGUMENT = 2,
  // A size is zero or too large, or sizes do not fit each other.
  MBCONV_STATUS_INVALID_SHAPE = 3,
  // An array does not have the length that the shapes give.
  MBCONV_STATUS_INVALID_LENGTH = 4,
  // The instruction set is not known, or this CPU or build cannot run it.
  MBCONV_STATUS_ISA_UNAVAILABLE = 5,
  // A bug in this library; what arrays hold is not specified then.
  MBCONV_STATUS_INTERNAL = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_status mbconv_status;
#else
typedef int32_t mbconv_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A function applied to each output of a layer.
enum mbconv_activation
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `x`
  MBCONV_ACTIVATION_IDENTITY = 0,
  // `max(x, 0)`
  MBCONV_ACTIVATION_RELU = 1,
  // `min(max(x, 0), 6)`
  MBCONV_ACTIVATION_RELU6 = 2,
  // `min(max(x, a), b)`
  MBCONV_ACTIVATION_CLAMP = 3,
  // `x` for `x >= 0`, else `a * x`
  MBCONV_ACTIVATION_LEAKY_RELU = 4,
  // `x * min(max(x + 3, 0), 6) / 6`
  MBCONV_ACTIVATION_HARD_SWISH = 5,
  // `min(max(a * x + b, 0), 1)`
  MBCONV_ACTIVATION_HARD_SIGMOID = 6,
  // `exp(x)`
  MBCONV_ACTIVATION_EXP = 7,
  // `1 / (1 + exp(-x))`
  MBCONV_ACTIVATION_SIGMOID = 8,
  // `x / (1 + exp(-x))`
  MBCONV_ACTIVATION_SILU = 9,
  // `x / 2 * (1 + erf(x / sqrt(2)))`
  MBCONV_ACTIVATION_GELU = 10,
  // The approximation of GELU by tanh.
  MBCONV_ACTIVATION_GELU_TANH = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_activation mbconv_activation;
#else
typedef int32_t mbconv_activation;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Padding that follows from the size of the image.
enum mbconv_padding
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // TensorFlow's `SAME`: an odd pixel is at the end.
  MBCONV_PADDING_SAME_UPPER = 0,
  // An odd pixel is at the beginning.
  MBCONV_PADDING_SAME_LOWER = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_padding mbconv_padding;
#else
typedef int32_t mbconv_padding;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// In which order a block has its layers.
enum mbconv_order
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // MobileNet's: expand 1x1, depthwise, squeeze-and-excite, project 1x1. A full convolution (a
  // network's stem) may be in the place of the expansion; all but depthwise may be left out.
  MBCONV_ORDER_INVERTED = 0,
  // ConvNeXt's: depthwise, squeeze-and-excite, norm, expand 1x1, project 1x1, scale. Expansion and
  // projection are always there.
  MBCONV_ORDER_CONVNEXT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_order mbconv_order;
#else
typedef int32_t mbconv_order;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What is added to a block's output.
enum mbconv_residual
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Nothing.
  MBCONV_RESIDUAL_NONE = 0,
  // The block's input.
  MBCONV_RESIDUAL_INPUT = 1,
  // What the expansion takes, in ConvNeXt's order.
  MBCONV_RESIDUAL_DEPTHWISE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_residual mbconv_residual;
#else
typedef int32_t mbconv_residual;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The order of a tensor's axes, the outermost first.
enum mbconv_layout
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `[batch][height][width][channels]`
  MBCONV_LAYOUT_NHWC = 0,
  // `[batch][channels][height][width]`
  MBCONV_LAYOUT_NCHW = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_layout mbconv_layout;
#else
typedef int32_t mbconv_layout;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How a block is scheduled. The result is the same bit for bit.
enum mbconv_schedule
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Whichever should be faster.
  MBCONV_SCHEDULE_AUTO = 0,
  // The expanded tensor exists only as a tile in the cache.
  MBCONV_SCHEDULE_FUSED = 1,
  // Stage after stage, the expanded tensor whole in scratch memory.
  MBCONV_SCHEDULE_UNFUSED = 2,
  // As `FUSED`, with a tile of the caller's choice.
  MBCONV_SCHEDULE_TILED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mbconv_schedule mbconv_schedule;
#else
typedef int32_t mbconv_schedule;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Layers that follow each other.
typedef struct mbconv_block mbconv_block;

// A layer with its weights: a 1x1, depthwise or full convolution.
typedef struct mbconv_layer mbconv_layer;

// A 1x1 or depthwise convolution or a block, packed for an instruction set. Plans of it may
// outlive it.
typedef struct mbconv_op mbconv_op;

// What a plan is made with: one thread, dense NHWC and an automatic schedule unless set.
typedef struct mbconv_options mbconv_options;

// An operation for images of one shape.
typedef struct mbconv_plan mbconv_plan;

// Runs a task; `tasks` is what `mbconv_parallel` was given.
typedef void (*mbconv_run_task)(void *tasks, size_t number);

// A pool of threads of the caller's: calls `run_task(tasks, i)` once with each `i` below `n_tasks`,
// on any threads, and returns when all calls have returned. `context` is what the run was given.
//
// What it does not call for runs on the run's own thread afterwards. After it has returned,
// `run_task` must not be called any more, and nothing may be thrown or jumped out of it.
typedef void (*mbconv_parallel)(void *context, size_t n_tasks, mbconv_run_task run_task, void *tasks);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The `MBCONV_ABI_VERSION` of the library that is running.
uint32_t mbconv_abi_version(void);

// Describes a block of one layer; `order` is an `mbconv_order`. Layers given here and below are
// copied.
mbconv_status mbconv_block_new(int32_t order, const mbconv_layer *depthwise, mbconv_block **block);

// Sets the expansion, a 1x1 convolution, or in MobileNet's order a full one in its place.
mbconv_status mbconv_block_set_expand(mbconv_block *block, const mbconv_layer *expand);

// Sets the projection, a 1x1 convolution.
mbconv_status mbconv_block_set_project(mbconv_block *block, const mbconv_layer *project);

// Scales the depthwise output by a gate made of its means: `reduce` takes them, `expand` gives the
// factors; both are 1x1 convolutions, each with its activation.
mbconv_status mbconv_block_set_squeeze_excite(mbconv_block *block,
                                              const mbconv_layer *reduce,
                                              const mbconv_layer *expand);

// Sets the layer normalisation of ConvNeXt's order: a weight and a bias for each channel.
mbconv_status mbconv_block_set_norm(mbconv_block *block,
                                    const float *weight,
                                    const float *bias,
                                    size_t channels,
                                    float epsilon);

// Sets the factor of each channel of ConvNeXt's output.
mbconv_status mbconv_block_set_scale(mbconv_block *block, const float *scale, size_t channels);

// Sets what is added to the output, an `mbconv_residual`.
mbconv_status mbconv_block_set_residual(mbconv_block *block, int32_t residual);

// Frees a block's description; operations built of it live on.
void mbconv_block_free(mbconv_block *block);

// Describes a 1x1 convolution. `weights` is `[c_out][c_in]`. No bias, no activation.
mbconv_status mbconv_layer_pointwise(size_t c_in,
                                     size_t c_out,
                                     const float *weights,
                                     size_t weights_len,
                                     mbconv_layer **layer);

// Describes a depthwise convolution with `multiplier` filters for each channel (1 in a block).
// `weights` is `[kernel_height][kernel_width][channels][multiplier]`. Stride and dilation 1, no
// padding, no bias, no activation.
mbconv_status mbconv_layer_depthwise(size_t channels,
                                     size_t multiplier,
                                     size_t kernel_height,
                                     size_t kernel_width,
                                     const float *weights,
                                     size_t weights_len,
                                     mbconv_layer **layer);

// Describes a full convolution, which is a network's stem: a block's first layer in the place of
// the expansion. `weights` is `[c_out][kernel_height][kernel_width][c_in]`. Stride and dilation 1,
// no padding, no bias, no activation.
mbconv_status mbconv_layer_conv(size_t c_in,
                                size_t c_out,
                                size_t kernel_height,
                                size_t kernel_width,
                                const float *weights,
                                size_t weights_len,
                                mbconv_layer **layer);

// Sets the bias, one for each output channel.
mbconv_status mbconv_layer_set_bias(mbconv_layer *layer, const float *bias, size_t bias_len);

// Sets the activation, an `mbconv_activation`; `a` and `b` are its parameters where it has some.
mbconv_status mbconv_layer_set_activation(mbconv_layer *layer,
                                          int32_t activation,
                                          float a,
                                          float b);

// Sets the stride.
mbconv_status mbconv_layer_set_stride(mbconv_layer *layer, size_t vertical, size_t horizontal);

// Sets the distance between taps.
mbconv_status mbconv_layer_set_dilation(mbconv_layer *layer, size_t vertical, size_t horizontal);

// Sets the zeros around an image, in pixels.
mbconv_status mbconv_layer_set_padding(mbconv_layer *layer,
                                       size_t top,
                                       size_t bottom,
                                       size_t left,
                                       size_t right);

// Sets padding, an `mbconv_padding`, that follows from the size of the image.
mbconv_status mbconv_layer_set_same_padding(mbconv_layer *layer, int32_t padding);

// Folds the batch normalisation that follows the layer into its weights and bias: four arrays
// with one number for each output channel, and epsilon. Weights are those given, a bias is set before.
mbconv_status mbconv_layer_fold_batch_norm(mbconv_layer *layer,
                                           const float *scale,
                                           const float *shift,
                                           const float *mean,
                                           const float *variance,
                                           size_t channels,
                                           float epsilon);

// Frees a layer; operations built of it live on.
void mbconv_layer_free(mbconv_layer *layer);

// Builds a 1x1 or depthwise convolution.
//
// `isa` is `"avx512"`, `"avx2"`, `"neon"` or `"portable"`, or null for the best that this CPU has
// or the environment variable `MBCONV_ISA` names.
mbconv_status mbconv_op_layer(const mbconv_layer *layer, const char *isa, mbconv_op **op);

// Builds a block; `isa` is as for `mbconv_op_layer`.
mbconv_status mbconv_op_block(const mbconv_block *block, const char *isa, mbconv_op **op);

// Frees an operation; its plans live on.
void mbconv_op_free(mbconv_op *op);

// Makes options.
mbconv_status mbconv_options_new(mbconv_options **options);

// Sets into how many tasks a plan is cut: as many as threads are to run it, 1 to 256.
mbconv_status mbconv_options_set_threads(mbconv_options *options, size_t threads);

// Sets the layouts of input and output, each an `mbconv_layout`.
mbconv_status mbconv_options_set_layout(mbconv_options *options, int32_t input, int32_t output);

// Sets where the elements of the input lie: `layout`, an `mbconv_layout`, and the strides of its
// first three axes, in floats. The elements of the fourth lie together.
mbconv_status mbconv_options_set_input_strides(mbconv_options *options,
                                               int32_t layout,
                                               size_t batch,
                                               size_t second,
                                               size_t third);

// As `mbconv_options_set_input_strides`, of the output and of a residual given beside the input.
mbconv_status mbconv_options_set_output_strides(mbconv_options *options,
                                                int32_t layout,
                                                size_t batch,
                                                size_t second,
                                                size_t third);

// Sets the schedule of a block, an `mbconv_schedule`. `rows` of outputs by `channels` of the
// expansion is the tile of `TILED`; other schedules ignore them.
mbconv_status mbconv_options_set_schedule(mbconv_options *options,
                                          int32_t schedule,
                                          size_t rows,
                                          size_t channels);

// Sets whether runs count denormal numbers as zero.
mbconv_status mbconv_options_set_flush_denormals(mbconv_options *options, bool flush);

// Frees options; plans made with them live on.
void mbconv_options_free(mbconv_options *options);

// Plans an operation for `batch` images of `height` x `width` pixels. `options` may be null.
mbconv_status mbconv_plan_new(const mbconv_op *op,
                              size_t batch,
                              size_t height,
                              size_t width,
                              const mbconv_options *options,
                              mbconv_plan **plan);

// Floats that the input of a run has; at least, where it is strided. 0 for a null plan.
size_t mbconv_plan_input_len(const mbconv_plan *plan);

// Floats that the output of a run has; at least, where it is strided. 0 for a null plan.
size_t mbconv_plan_output_len(const mbconv_plan *plan);

// Gives rows and columns of an output image. Either place may be null.
mbconv_status mbconv_plan_output_size(const mbconv_plan *plan, size_t *height, size_t *width);

// Bytes of scratch memory that a run needs, at any alignment: 0 but for blocks, and for a null
// plan.
size_t mbconv_plan_scratch_bytes(const mbconv_plan *plan);

// The kernel that runs, and for a block how it is scheduled and why, in words. The text is the
// plan's and ends with it; empty for a null plan.
const char *mbconv_plan_explain(const mbconv_plan *plan);

// Runs a plan on the calling thread. Allocates nothing.
//
// Output and scratch memory overlap neither each other nor the input, and need not be initialised;
// but where the output has gaps between its elements, these are, and stay as they are. `scratch`
// may be null where a plan needs none.
mbconv_status mbconv_plan_run(const mbconv_plan *plan,
                              const float *input,
                              size_t input_len,
                              float *output,
                              size_t output_len,
                              void *scratch,
                              size_t scratch_bytes);

// As `mbconv_plan_run`, on the threads of `parallel`; null is the calling thread. It is called once,
// or for each image of the batch twice, with squeeze-and-excite four times. The result is the same
// bit for bit.
//
// `residual`, of the output's shape, is added to the output of a 1x1 convolution after its activation;
// null for none.
mbconv_status mbconv_plan_run_with(const mbconv_plan *plan,
                                   mbconv_parallel parallel,
                                   void *context,
                                   const float *input,
                                   size_t input_len,
                                   const float *residual,
                                   size_t residual_len,
                                   float *output,
                                   size_t output_len,
                                   void *scratch,
                                   size_t scratch_bytes);

// Frees a plan.
void mbconv_plan_free(mbconv_plan *plan);

// The message of the last call of this thread that failed, in UTF-8 and with the numbers that are
// wrong; empty when none has. It stays valid until the next call that fails on this thread.
const char *mbconv_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MBCONV_H */
