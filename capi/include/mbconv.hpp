// The C++ interface of mbconv, C++17: handles that free themselves, exceptions in place of codes.
// mbconv.h says what each function does.
#ifndef MBCONV_HPP
#define MBCONV_HPP

#include <array>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "mbconv.h"

namespace mbconv {

using Activation = mbconv_activation;
using Layout = mbconv_layout;
using Order = mbconv_order;
using Padding = mbconv_padding;
using Residual = mbconv_residual;
using Schedule = mbconv_schedule;

// A call that failed, with its status and message.
class Error : public std::runtime_error {
 public:
  explicit Error(mbconv_status status) : std::runtime_error(mbconv_last_error()), status_(status) {}
  mbconv_status status() const noexcept { return status_; }

 private:
  mbconv_status status_;
};

// Floats that live elsewhere: made of a vector, an array or a pointer and a length.
template <class T>
struct Span {
  T *data;
  std::size_t size;

  Span(T *start, std::size_t len) : data(start), size(len) {}
  template <class Container>
  Span(Container &container) : data(container.data()), size(container.size()) {}
};
using Floats = Span<const float>;
using MutableFloats = Span<float>;
using Scratch = std::vector<unsigned char>;

namespace detail {

inline void check(mbconv_status status) {
  if (status != MBCONV_STATUS_OK) throw Error(status);
}

// One length goes through C for all of them.
inline void check_equal(std::size_t size, std::initializer_list<std::size_t> others) {
  for (std::size_t other : others) {
    if (other != size) throw std::invalid_argument("arrays with a number for each channel differ in length");
  }
}

template <class T, void (*FREE)(T *)>
struct Free {
  void operator()(T *handle) const noexcept { FREE(handle); }
};

template <class T, void (*FREE)(T *)>
using Handle = std::unique_ptr<T, Free<T, FREE>>;

// What goes through C as the context of a run: the caller's pool and what it threw.
template <class Pool>
struct Call {
  Pool &pool;
  std::exception_ptr thrown;

  static void parallel(void *context, std::size_t n_tasks, mbconv_run_task run_task,
                       void *tasks) noexcept {
    auto &call = *static_cast<Call *>(context);
    try {
      call.pool(n_tasks, [=](std::size_t number) { run_task(tasks, number); });
    } catch (...) {
      call.thrown = std::current_exception();
    }
  }
};

}  // namespace detail

// A convolution with its weights; the setters can be chained.
class Layer {
 public:
  static Layer pointwise(std::size_t c_in, std::size_t c_out, Floats weights) {
    mbconv_layer *layer;
    detail::check(mbconv_layer_pointwise(c_in, c_out, weights.data, weights.size, &layer));
    return Layer(layer);
  }
  static Layer depthwise(std::size_t channels, std::array<std::size_t, 2> kernel, Floats weights,
                         std::size_t multiplier = 1) {
    mbconv_layer *layer;
    detail::check(mbconv_layer_depthwise(channels, multiplier, kernel[0], kernel[1], weights.data,
                                         weights.size, &layer));
    return Layer(layer);
  }
  static Layer conv(std::size_t c_in, std::size_t c_out, std::array<std::size_t, 2> kernel,
                    Floats weights) {
    mbconv_layer *layer;
    detail::check(mbconv_layer_conv(c_in, c_out, kernel[0], kernel[1], weights.data, weights.size,
                                    &layer));
    return Layer(layer);
  }

  Layer &bias(Floats bias) {
    detail::check(mbconv_layer_set_bias(get(), bias.data, bias.size));
    return *this;
  }
  Layer &activation(Activation activation, float a = 0, float b = 0) {
    detail::check(mbconv_layer_set_activation(get(), activation, a, b));
    return *this;
  }
  Layer &stride(std::size_t vertical, std::size_t horizontal) {
    detail::check(mbconv_layer_set_stride(get(), vertical, horizontal));
    return *this;
  }
  Layer &dilation(std::size_t vertical, std::size_t horizontal) {
    detail::check(mbconv_layer_set_dilation(get(), vertical, horizontal));
    return *this;
  }
  Layer &padding(std::size_t top, std::size_t bottom, std::size_t left, std::size_t right) {
    detail::check(mbconv_layer_set_padding(get(), top, bottom, left, right));
    return *this;
  }
  Layer &padding(Padding same) {
    detail::check(mbconv_layer_set_same_padding(get(), same));
    return *this;
  }
  // Each array has a number for each output channel.
  Layer &fold_batch_norm(Floats scale, Floats shift, Floats mean, Floats variance, float epsilon) {
    detail::check_equal(scale.size, {shift.size, mean.size, variance.size});
    detail::check(mbconv_layer_fold_batch_norm(get(), scale.data, shift.data, mean.data,
                                               variance.data, scale.size, epsilon));
    return *this;
  }

  mbconv_layer *get() const noexcept { return handle_.get(); }

 private:
  explicit Layer(mbconv_layer *layer) : handle_(layer) {}
  detail::Handle<mbconv_layer, mbconv_layer_free> handle_;
};

// Layers that follow each other; the setters can be chained.
class Block {
 public:
  Block(Order order, const Layer &depthwise) {
    mbconv_block *block;
    detail::check(mbconv_block_new(order, depthwise.get(), &block));
    handle_.reset(block);
  }
  Block &expand(const Layer &layer) {
    detail::check(mbconv_block_set_expand(get(), layer.get()));
    return *this;
  }
  Block &project(const Layer &layer) {
    detail::check(mbconv_block_set_project(get(), layer.get()));
    return *this;
  }
  Block &squeeze_excite(const Layer &reduce, const Layer &expand) {
    detail::check(mbconv_block_set_squeeze_excite(get(), reduce.get(), expand.get()));
    return *this;
  }
  Block &norm(Floats weight, Floats bias, float epsilon) {
    detail::check_equal(weight.size, {bias.size});
    detail::check(mbconv_block_set_norm(get(), weight.data, bias.data, weight.size, epsilon));
    return *this;
  }
  Block &scale(Floats scale) {
    detail::check(mbconv_block_set_scale(get(), scale.data, scale.size));
    return *this;
  }
  Block &residual(Residual residual) {
    detail::check(mbconv_block_set_residual(get(), residual));
    return *this;
  }

  mbconv_block *get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<mbconv_block, mbconv_block_free> handle_;
};

class Options {
 public:
  Options() {
    mbconv_options *options;
    detail::check(mbconv_options_new(&options));
    handle_.reset(options);
  }
  Options &threads(std::size_t threads) {
    detail::check(mbconv_options_set_threads(get(), threads));
    return *this;
  }
  Options &layout(Layout input, Layout output) {
    detail::check(mbconv_options_set_layout(get(), input, output));
    return *this;
  }
  // Of the layout's first three axes, in floats.
  Options &input_strides(Layout layout, std::array<std::size_t, 3> strides) {
    detail::check(
        mbconv_options_set_input_strides(get(), layout, strides[0], strides[1], strides[2]));
    return *this;
  }
  Options &output_strides(Layout layout, std::array<std::size_t, 3> strides) {
    detail::check(
        mbconv_options_set_output_strides(get(), layout, strides[0], strides[1], strides[2]));
    return *this;
  }
  Options &schedule(Schedule schedule, std::size_t rows = 0, std::size_t channels = 0) {
    detail::check(mbconv_options_set_schedule(get(), schedule, rows, channels));
    return *this;
  }
  Options &flush_denormals(bool flush) {
    detail::check(mbconv_options_set_flush_denormals(get(), flush));
    return *this;
  }

  mbconv_options *get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<mbconv_options, mbconv_options_free> handle_;
};

// An operation for images of one shape. Several threads may run it, each with scratch memory.
class Plan {
 public:
  std::size_t input_len() const noexcept { return mbconv_plan_input_len(get()); }
  std::size_t output_len() const noexcept { return mbconv_plan_output_len(get()); }
  std::size_t scratch_bytes() const noexcept { return mbconv_plan_scratch_bytes(get()); }
  Scratch scratch() const { return Scratch(scratch_bytes()); }
  std::string explain() const { return mbconv_plan_explain(get()); }
  std::array<std::size_t, 2> output_size() const {
    std::array<std::size_t, 2> size;
    detail::check(mbconv_plan_output_size(get(), &size[0], &size[1]));
    return size;
  }

  void run(Floats input, MutableFloats output, Span<unsigned char> scratch) const {
    detail::check(mbconv_plan_run(get(), input.data, input.size, output.data, output.size,
                                  scratch.data, scratch.size));
  }

  // On the threads of `pool`, called as pool(n_tasks, run_task): it calls run_task(i) once with each i
  // below n_tasks and returns when all have returned. What it throws comes out of here.
  template <class Pool>
  void run_with(Pool &&pool, Floats input, MutableFloats output, Span<unsigned char> scratch,
                Floats residual = {nullptr, 0}) const {
    detail::Call<std::remove_reference_t<Pool>> call{pool, nullptr};
    auto status = mbconv_plan_run_with(get(), call.parallel, &call, input.data, input.size,
                                       residual.data, residual.size, output.data, output.size,
                                       scratch.data, scratch.size);
    if (call.thrown) std::rethrow_exception(call.thrown);
    detail::check(status);
  }

  mbconv_plan *get() const noexcept { return handle_.get(); }

 private:
  friend class Op;
  explicit Plan(mbconv_plan *plan) : handle_(plan) {}
  detail::Handle<mbconv_plan, mbconv_plan_free> handle_;
};

// A convolution or a block, packed for an instruction set: that of the name, or the best.
class Op {
 public:
  explicit Op(const Layer &layer, const char *isa = nullptr) {
    mbconv_op *op;
    detail::check(mbconv_op_layer(layer.get(), isa, &op));
    handle_.reset(op);
  }
  explicit Op(const Block &block, const char *isa = nullptr) {
    mbconv_op *op;
    detail::check(mbconv_op_block(block.get(), isa, &op));
    handle_.reset(op);
  }

  Plan plan(std::size_t batch, std::size_t height, std::size_t width,
            const Options &options = {}) const {
    mbconv_plan *plan;
    detail::check(mbconv_plan_new(get(), batch, height, width, options.get(), &plan));
    return Plan(plan);
  }

  mbconv_op *get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<mbconv_op, mbconv_op_free> handle_;
};

}  // namespace mbconv

#endif
