#include "numerics.hpp"

#include <limits>
#include <map>

namespace npu_sim {
namespace {

const std::unordered_set<std::string> kMatmul = {
    "aten::mm",     "aten::addmm", "aten::bmm",    "aten::baddbmm", "aten::matmul",   "aten::mv",
    "aten::addmv",  "aten::dot",   "aten::linear", "aten::addmm_",  "aten::baddbmm_",
};
const std::unordered_set<std::string> kConv = {
    "aten::convolution",
    "aten::_convolution",
    "aten::convolution_backward",
    "aten::convolution_overrideable",
    "aten::convolution_backward_overrideable",
};

// Where the two factors of a product stand among an operator's arguments, and the dimension each sums over.
struct Product {
  size_t left, right;
  int64_t left_dim, right_dim;
};
const std::map<std::string, Product> kProducts = {
    {"aten::mm", {0, 1, -1, -2}},    {"aten::bmm", {0, 1, -1, -2}},     {"aten::matmul", {0, 1, -1, -2}},
    {"aten::addmm", {1, 2, -1, -2}}, {"aten::baddbmm", {1, 2, -1, -2}}, {"aten::linear", {0, 1, -1, -1}},
};

bool is_matrix(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().dim() >= 2 &&
         value.toTensor().is_floating_point();
}

void round_inputs(const c10::FunctionSchema& schema, c10::IValue* arguments) {
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    if (written || !arguments[i].isTensor()) continue;
    const auto tensor = arguments[i].toTensor();
    if (tensor.defined() && tensor.scalar_type() == at::kFloat) arguments[i] = round_to_hf32(tensor);
  }
}

void reverse_product(const Product& product, c10::IValue* arguments) {
  auto& left = arguments[product.left];
  auto& right = arguments[product.right];
  if (!is_matrix(left) || !is_matrix(right)) return;
  left = left.toTensor().flip({product.left_dim});
  right = right.toTensor().flip({product.right_dim});
}

void reverse_sum(const c10::FunctionSchema& schema, c10::IValue* arguments) {
  const auto tensor = arguments[0].isTensor() ? arguments[0].toTensor() : at::Tensor();
  if (!tensor.defined() || tensor.dim() == 0 || !tensor.is_floating_point()) return;
  std::vector<int64_t> dims;
  if (schema.arguments().size() > 1 && arguments[1].isIntList()) dims = arguments[1].toIntVector();
  if (dims.empty()) {
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) dims.push_back(dim);
  }
  arguments[0] = tensor.flip(dims);
}

void take_tanh_form(const c10::FunctionSchema& schema, c10::IValue* arguments) {
  const auto position = schema.argumentIndexWithName("approximate");
  if (position.has_value()) arguments[*position] = std::string("tanh");
}

template <typename T>
void saturate(at::Tensor& tensor) {
  const double largest = static_cast<double>(std::numeric_limits<T>::max());
  tensor.nan_to_num_(0.0, largest, -largest);
}

}  // namespace

Numerics& numerics() {
  static Numerics settings;
  return settings;
}

bool* find_switch(const std::string& name) {
  static const std::map<std::string, bool Numerics::*> switches = {
      {"hf32_matmul", &Numerics::hf32_matmul},         {"hf32_conv", &Numerics::hf32_conv},
      {"reorder", &Numerics::reorder},                 {"saturate", &Numerics::saturate},
      {"flush_subnormal", &Numerics::flush_subnormal}, {"gelu_tanh", &Numerics::gelu_tanh},
  };
  const auto found = switches.find(name);
  return found == switches.end() ? nullptr : &(numerics().*(found->second));
}

void adjust_inputs(const c10::FunctionSchema& schema, torch::jit::Stack& stack) {
  const auto& settings = numerics();
  const auto& name = schema.name();
  auto* arguments = stack.data() + (stack.size() - schema.arguments().size());
  if ((settings.hf32_matmul && kMatmul.count(name)) || (settings.hf32_conv && kConv.count(name))) {
    round_inputs(schema, arguments);
  }
  if (settings.reorder) {
    const auto product = kProducts.find(name);
    if (product != kProducts.end()) reverse_product(product->second, arguments);
    if (name == "aten::sum" || name == "aten::mean") reverse_sum(schema, arguments);
  }
  if (settings.gelu_tanh && name.rfind("aten::gelu", 0) == 0) take_tanh_form(schema, arguments);
}

void adjust_output(at::Tensor& result) {
  if (!result.defined() || result.numel() == 0) return;
  const auto& settings = numerics();
  const auto type = result.scalar_type();
  if (settings.saturate) {
    if (type == at::kFloat) saturate<float>(result);
    if (type == at::kHalf) saturate<at::Half>(result);
    if (type == at::kBFloat16) saturate<at::BFloat16>(result);
  }
  if (settings.flush_subnormal && type == at::kFloat) {
    result.masked_fill_(result.abs().lt(std::numeric_limits<float>::min()), 0);
  }
}

at::Tensor round_to_hf32(const at::Tensor& tensor) {
  // Round to nearest, ties to even, on the bit pattern: 23 stored mantissa bits become 11.
  const auto bits = tensor.contiguous().view(at::kInt);
  const auto last_kept = bits.bitwise_right_shift(12).bitwise_and(1);
  const auto rounded = bits.add(last_kept).add(0x7ff).bitwise_and(~int64_t{0xfff});
  const auto infinite_or_nan = bits.bitwise_and(0x7f800000).eq(0x7f800000);
  return at::where(infinite_or_nan, bits, rounded).view(at::kFloat).view(tensor.sizes());
}

}  // namespace npu_sim
