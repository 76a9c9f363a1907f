#include "host_memory.hpp"

#include <cstring>

namespace npu_sim {

at::Tensor host_view(const at::Tensor& tensor) {
  if (!on_npu(tensor)) return tensor;
  void* data = tensor.numel() != 0 ? tensor.data_ptr() : nullptr;
  const auto options = tensor.options().device(at::kCPU).pinned_memory(false);
  // The deleter's copy of `tensor` keeps the device memory alive as long as the view.
  auto view = at::from_blob(data, tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
  if (tensor.is_conj()) view = at::_conj(view);
  if (tensor.is_neg()) view = at::_neg_view(view);
  return view;
}

at::Tensor copy_to_device(const at::Tensor& host, c10::Device device) {
  const auto plain = host.is_conj() || host.is_neg() ? host.resolve_conj().resolve_neg() : host;
  auto result = at::empty_strided(plain.sizes(), plain.strides(), plain.options().device(device));
  if (plain.numel() == 0) return result;
  if (plain.is_non_overlapping_and_dense()) {
    std::memcpy(result.data_ptr(), plain.data_ptr(), plain.nbytes());
  } else {
    host_view(result).copy_(plain);
  }
  return result;
}

}  // namespace npu_sim
