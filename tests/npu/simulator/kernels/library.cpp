// What Python sees of the kernels, as torch.ops.npu_sim.*
#include <torch/library.h>

#include "host_memory.hpp"
#include "kernel.hpp"
#include "numerics.hpp"

namespace {

bool* known_switch(const std::string& name) {
  bool* value = npu_sim::find_switch(name);
  TORCH_CHECK_VALUE(value != nullptr, "unknown switch '", name, "'");
  return value;
}

void set_switch(const std::string& name, bool value) { *known_switch(name) = value; }

bool get_switch(const std::string& name) { return *known_switch(name); }

void set_unsupported(const std::vector<std::string>& names) {
  npu_sim::numerics().unsupported = {names.begin(), names.end()};
}

std::vector<std::string> get_unsupported() {
  const auto& names = npu_sim::numerics().unsupported;
  return {names.begin(), names.end()};
}

at::Tensor device_result(at::Tensor host, c10::Device device) {
  npu_sim::adjust_output(host);
  return npu_sim::copy_to_device(host, device);
}

}  // namespace

TORCH_LIBRARY(npu_sim, m) {
  m.def("install_kernels(str[] names) -> int", &npu_sim::install_kernels);
  m.def("set_switch(str name, bool value) -> ()", &set_switch);
  m.def("get_switch(str name) -> bool", &get_switch);
  m.def("set_unsupported(str[] names) -> ()", &set_unsupported);
  m.def("get_unsupported() -> str[]", &get_unsupported);
  m.def("host_view(Tensor(a) tensor) -> Tensor(a)");
  m.def("device_result(Tensor host, Device device) -> Tensor");
  m.def("round_to_hf32(Tensor tensor) -> Tensor", &npu_sim::round_to_hf32);
}

// Registered for the device keys themselves: autograd neither sees nor changes these two.
TORCH_LIBRARY_IMPL(npu_sim, CompositeExplicitAutograd, m) {
  m.impl("host_view", &npu_sim::host_view);
  m.impl("device_result", &device_result);
}
