// The simulated device's memory is host memory, so an npu tensor can be read and written as a cpu tensor.
#pragma once

#include <ATen/ATen.h>

namespace npu_sim {

inline bool on_npu(const at::Tensor& tensor) { return tensor.defined() && tensor.device().is_privateuseone(); }

// A cpu tensor over the same memory; `tensor` itself when it is not on the npu.
at::Tensor host_view(const at::Tensor& tensor);

// A new tensor on `device` with the values of the cpu tensor `host`, strides included.
at::Tensor copy_to_device(const at::Tensor& host, c10::Device device);

}  // namespace npu_sim
