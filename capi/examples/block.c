/* A block of MobileNetV2, on one thread and on two of its own. Prints the checksum of each output:
 * the same as block.rs. */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mbconv.h"

enum { SIDE = 28, C = 32, EXPANDED = 192, PIXELS = SIDE * SIDE };

/* Ends the program with the library's message when a call has failed. */
static void check(mbconv_status status) {
  if (status != MBCONV_STATUS_OK) {
    fprintf(stderr, "mbconv: %s\n", mbconv_last_error());
    exit(1);
  }
}

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes);
  if (memory == NULL) {
    fprintf(stderr, "no memory\n");
    exit(1);
  }
  return memory;
}

/* Numbers in [-1, 1) that are the same in every language. */
static float *fill(uint32_t *seed, size_t len) {
  float *numbers = allocate(len * sizeof *numbers);
  for (size_t i = 0; i < len; i++) {
    *seed = *seed * 1664525u + 1013904223u;
    numbers[i] = (float)(*seed >> 8) / 8388608.0f - 1.0f;
  }
  return numbers;
}

/* FNV-1a over the bits of all numbers. */
static uint64_t checksum(const float *numbers, size_t len) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < len; i++) {
    uint32_t bits;
    memcpy(&bits, &numbers[i], sizeof bits);
    for (int byte = 0; byte < 4; byte++) {
      hash = (hash ^ (bits >> 8 * byte & 0xff)) * 0x100000001b3u;
    }
  }
  return hash;
}

/* Task 1 of a run, for a second thread. */
struct task {
  mbconv_run_task run;
  void *tasks;
};

static void *second(void *argument) {
  const struct task *task = argument;
  task->run(task->tasks, 1);
  return NULL;
}

/* The smallest pool that serves: a thread for each run. What does not start is left to the library. */
static void two_threads(void *context, size_t n_tasks, mbconv_run_task run_task, void *tasks) {
  struct task task = {run_task, tasks};
  pthread_t thread;
  int started = n_tasks > 1 && pthread_create(&thread, NULL, second, &task) == 0;
  run_task(tasks, 0);
  if (started) {
    pthread_join(thread, NULL);
  }
  ++*(int *)context;
}

static mbconv_op *build(uint32_t *seed) {
  const size_t lengths[] = {EXPANDED * C, 9 * EXPANDED, C * EXPANDED};
  float *expand_weights = fill(seed, lengths[0]);
  float *depthwise_weights = fill(seed, lengths[1]);
  float *project_weights = fill(seed, lengths[2]);
  float *bias = fill(seed, EXPANDED);
  mbconv_layer *expand, *depthwise, *project;
  mbconv_block *block;
  mbconv_op *op;

  check(mbconv_layer_pointwise(C, EXPANDED, expand_weights, lengths[0], &expand));
  check(mbconv_layer_set_bias(expand, bias, EXPANDED));
  check(mbconv_layer_set_activation(expand, MBCONV_ACTIVATION_RELU6, 0, 0));
  check(mbconv_layer_depthwise(EXPANDED, 1, 3, 3, depthwise_weights, lengths[1], &depthwise));
  check(mbconv_layer_set_padding(depthwise, 1, 1, 1, 1));
  check(mbconv_layer_set_activation(depthwise, MBCONV_ACTIVATION_RELU6, 0, 0));
  check(mbconv_layer_pointwise(EXPANDED, C, project_weights, lengths[2], &project));
  check(mbconv_block_new(MBCONV_ORDER_INVERTED, depthwise, &block));
  check(mbconv_block_set_expand(block, expand));
  check(mbconv_block_set_project(block, project));
  check(mbconv_block_set_residual(block, MBCONV_RESIDUAL_INPUT));
  check(mbconv_op_block(block, NULL, &op));

  mbconv_block_free(block);
  mbconv_layer_free(expand);
  mbconv_layer_free(depthwise);
  mbconv_layer_free(project);
  free(expand_weights);
  free(depthwise_weights);
  free(project_weights);
  free(bias);
  return op;
}

int main(void) {
  uint32_t seed = 2018;
  mbconv_op *op = build(&seed);
  float *x = fill(&seed, PIXELS * C);
  int calls = 0;

  for (size_t threads = 1; threads <= 2; threads++) {
    mbconv_options *options;
    mbconv_plan *plan;
    check(mbconv_options_new(&options));
    check(mbconv_options_set_threads(options, threads));
    check(mbconv_plan_new(op, 1, SIDE, SIDE, options, &plan));
    mbconv_options_free(options);

    size_t len = mbconv_plan_output_len(plan);
    size_t scratch_bytes = mbconv_plan_scratch_bytes(plan);
    float *y = allocate(len * sizeof *y);
    void *scratch = allocate(scratch_bytes);
    check(mbconv_plan_run_with(plan, threads > 1 ? two_threads : NULL, &calls, x, PIXELS * C, NULL, 0, y,
                               len, scratch, scratch_bytes));
    fprintf(stderr, "%s\n", mbconv_plan_explain(plan));
    printf("%zu %016" PRIx64 "\n", threads, checksum(y, len));

    /* Errors come with their numbers. */
    if (mbconv_plan_run(plan, x, 1, y, len, scratch, scratch_bytes) != MBCONV_STATUS_INVALID_LENGTH) {
      return 1;
    }
    fprintf(stderr, "as it should be: %s\n", mbconv_last_error());
    free(scratch);
    free(y);
    mbconv_plan_free(plan);
  }
  mbconv_op_free(op);
  free(x);
  return calls > 0 ? 0 : 1;
}
