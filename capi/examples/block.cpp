// What block.c computes, in C++: handles free themselves, errors are exceptions.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "mbconv.hpp"

namespace {

constexpr std::size_t SIDE = 28, C = 32, EXPANDED = 192, PIXELS = SIDE * SIDE;

// Numbers in [-1, 1) that are the same in every language.
std::vector<float> fill(std::uint32_t &seed, std::size_t len) {
  std::vector<float> numbers(len);
  for (float &x : numbers) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return numbers;
}

// FNV-1a over the bits of all numbers.
std::uint64_t checksum(const std::vector<float> &numbers) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (float x : numbers) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    for (int byte = 0; byte < 4; byte++) hash = (hash ^ (bits >> 8 * byte & 0xff)) * 0x100000001b3u;
  }
  return hash;
}

// Threads that live as long as the run.
template <class RunTask>
void threads(std::size_t n_tasks, RunTask run_task) {
  std::vector<std::thread> others;
  for (std::size_t i = 1; i < n_tasks; i++) others.emplace_back(run_task, i);
  run_task(0);
  for (auto &other : others) other.join();
}

mbconv::Op build(std::uint32_t &seed) {
  const auto expand_weights = fill(seed, EXPANDED * C), depthwise_weights = fill(seed, 9 * EXPANDED),
             project_weights = fill(seed, C * EXPANDED), bias = fill(seed, EXPANDED);
  auto expand = mbconv::Layer::pointwise(C, EXPANDED, expand_weights);
  expand.bias(bias).activation(MBCONV_ACTIVATION_RELU6);
  auto depthwise = mbconv::Layer::depthwise(EXPANDED, {3, 3}, depthwise_weights);
  depthwise.padding(1, 1, 1, 1).activation(MBCONV_ACTIVATION_RELU6);
  const auto project = mbconv::Layer::pointwise(EXPANDED, C, project_weights);
  auto block = mbconv::Block(MBCONV_ORDER_INVERTED, depthwise);
  block.expand(expand).project(project).residual(MBCONV_RESIDUAL_INPUT);
  return mbconv::Op(block);
}

}  // namespace

int main() try {
  std::uint32_t seed = 2018;
  const auto op = build(seed);
  const auto x = fill(seed, PIXELS * C);
  for (std::size_t n = 1; n <= 2; n++) {
    const auto plan = op.plan(1, SIDE, SIDE, mbconv::Options().threads(n));
    std::vector<float> y(plan.output_len());
    auto scratch = plan.scratch();
    plan.run_with([](auto n_tasks, auto run_task) { threads(n_tasks, run_task); }, x, y, scratch);
    std::printf("%zu %016" PRIx64 "\n", n, checksum(y));
    try {
      plan.run({x.data(), 1}, y, scratch);
      return 1;
    } catch (const mbconv::Error &error) {
      std::fprintf(stderr, "as it should be: %s\n", error.what());
    }
  }
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
