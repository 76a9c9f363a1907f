// One boxed kernel that computes any aten operator on the host and puts it under torch_npu's name.
#pragma once

#include <string>
#include <vector>

namespace npu_sim {

// Replace torch_npu's kernels of these aten operators; returns how many.
int64_t install_kernels(const std::vector<std::string>& names);

}  // namespace npu_sim
