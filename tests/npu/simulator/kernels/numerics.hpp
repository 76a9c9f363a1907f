// The ways in which a 910B's arithmetic can differ from the host's, each behind a switch.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>
#include <unordered_set>
#include <vector>

namespace npu_sim {

struct Numerics {
  bool hf32_matmul = false;      // round float32 inputs of matrix products to 11 stored mantissa bits
  bool hf32_conv = false;        // the same for convolutions
  bool reorder = false;          // sum products, sums and means in the opposite order
  bool saturate = false;         // write the largest number for inf and zero for nan
  bool flush_subnormal = false;  // write zero for float32 results below 2^-126
  bool gelu_tanh = true;         // gelu ignores `approximate` and takes the tanh form
  std::unordered_set<std::string> unsupported;  // operators that raise, as "aten::name"
};

Numerics& numerics();

bool* find_switch(const std::string& name);

// Apply the switches that concern an operator's arguments, already on the host, at the end of `stack`.
void adjust_inputs(const c10::FunctionSchema& schema, torch::jit::Stack& stack);

// Apply the switches that concern a result, in place.
void adjust_output(at::Tensor& result);

at::Tensor round_to_hf32(const at::Tensor& tensor);

}  // namespace npu_sim
