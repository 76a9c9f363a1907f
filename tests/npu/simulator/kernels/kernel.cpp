#include "kernel.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <memory>
#include <mutex>

#include "host_memory.hpp"
#include "numerics.hpp"

namespace npu_sim {
namespace {

// These take tensors of two devices by design.
const std::unordered_set<std::string> kAcrossDevices = {
    "aten::copy_",
    "aten::_copy_from",
    "aten::_copy_from_and_resize",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_foreach_copy_",
    "aten::equal",
};

// Offsets advance as on A2 and A3: ten values a call, rounded up to a multiple of four.
constexpr uint64_t kOffsetStep = 12;

// A host generator that is a pure function of the npu generator's seed and offset.
at::Generator host_generator(const std::optional<at::Generator>& given, c10::Device device) {
  at::Generator generator =
      given && given->defined() ? *given : at::globalContext().defaultGenerator(device);
  if (generator.device().is_cpu()) return generator;
  const std::lock_guard<std::mutex> lock(generator.mutex());
  const uint64_t offset = generator.get_offset();
  generator.set_offset(offset + kOffsetStep);
  const uint64_t mixed = generator.current_seed() * 0x9E3779B97F4A7C15ull ^ (offset + 1) * 0xBF58476D1CE4E5B9ull;
  return at::make_generator<at::CPUGeneratorImpl>(mixed);
}

bool takes_generator(const c10::Argument& argument) {
  const auto type = argument.type();
  if (type->kind() == c10::TypeKind::GeneratorType) return true;
  return type->kind() == c10::TypeKind::OptionalType &&
         type->castRaw<c10::OptionalType>()->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

template <typename Visit>
void for_each_tensor(const c10::IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const auto& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector()) {
      if (tensor) visit(*tensor);
    }
  }
}

template <typename Change>
void replace_tensors(c10::IValue& value, const Change& change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> changed;
    for (const auto& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    value = changed;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> changed;
    for (const auto& tensor : value.toOptionalTensorVector()) {
      changed.push_back(tensor ? std::optional<at::Tensor>(change(*tensor)) : std::nullopt);
    }
    value = changed;
  }
}

// One call of one operator, from the npu to the host and back.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack& stack)
      : op_(op), schema_(op.schema()), stack_(stack), device_(c10::DeviceType::PrivateUse1, -1) {}

  void run() {
    check_supported();
    find_device();
    move_arguments();
    adjust_inputs(schema_, stack_);
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);
    finish_written();
    move_returns();
  }

 private:
  struct Written {
    at::Tensor npu, host;
    bool may_grow;  // an empty out= tensor takes the size of the result
  };

  c10::IValue* arguments() { return stack_.data() + (stack_.size() - schema_.arguments().size()); }

  void check_supported() {
    TORCH_CHECK_NOT_IMPLEMENTED(!numerics().unsupported.count(schema_.name()), "simulated npu: operator ",
                                schema_.name(), " is not supported on the NPU backend");
  }

  void find_device() {
    const auto* values = arguments();
    std::optional<c10::Device> found;
    std::optional<c10::Device> stranger;
    const auto look = [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return;
      if (!on_npu(tensor)) {
        // A zero-dimensional cpu tensor is a number and may go with any device.
        if (tensor.dim() > 0) stranger = tensor.device();
      } else if (!found) {
        found = tensor.device();
      } else if (*found != tensor.device()) {
        stranger = tensor.device();
      }
    };
    for (size_t i = 0; i < schema_.arguments().size(); ++i) for_each_tensor(values[i], look);
    TORCH_CHECK(!found || !stranger || kAcrossDevices.count(schema_.name()),
                "Expected all tensors to be on the same device, but found at least two devices, ", *found, " and ",
                *stranger, "! (operator ", schema_.name(), ")");
    for (size_t i = 0; i < schema_.arguments().size() && !found; ++i) {
      if (values[i].isDevice() && values[i].toDevice().is_privateuseone()) found = values[i].toDevice();
    }
    if (found) device_ = *found;
  }

  void move_arguments() {
    auto* values = arguments();
    for (size_t i = 0; i < schema_.arguments().size(); ++i) {
      const auto& argument = schema_.arguments()[i];
      const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
      replace_tensors(values[i], [&](const at::Tensor& tensor) { return move_in(tensor, written); });
      if (values[i].isDevice() && values[i].toDevice().is_privateuseone()) values[i] = c10::Device(at::kCPU);
      if (takes_generator(argument)) {
        values[i] = host_generator(
            values[i].isGenerator() ? std::optional<at::Generator>(values[i].toGenerator()) : std::nullopt, device_);
      }
      if (argument.name() == "pin_memory") values[i] = c10::IValue();
    }
  }

  at::Tensor move_in(const at::Tensor& tensor, bool written) {
    if (!on_npu(tensor)) return tensor;
    const bool may_grow = written && tensor.numel() == 0;
    auto host = may_grow ? at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(false))
                         : host_view(tensor);
    inputs_.push_back(tensor);
    if (written) written_.push_back({tensor, host, may_grow});
    return host;
  }

  void finish_written() {
    for (auto& argument : written_) {
      adjust_output(argument.host);
      if (!argument.may_grow) continue;
      if (argument.host.sizes() != argument.npu.sizes()) argument.npu.resize_(argument.host.sizes());
      if (argument.host.numel() != 0) host_view(argument.npu).copy_(argument.host);
    }
  }

  void move_returns() {
    auto* values = stack_.data() + (stack_.size() - schema_.returns().size());
    for (size_t i = 0; i < schema_.returns().size(); ++i) {
      const bool aliases = schema_.returns()[i].alias_info() != nullptr;
      replace_tensors(values[i], [&](const at::Tensor& tensor) { return move_out(tensor, aliases); });
    }
  }

  at::Tensor move_out(at::Tensor tensor, bool aliases) {
    if (!tensor.defined() || on_npu(tensor)) return tensor;
    for (const auto& argument : written_) {
      if (tensor.is_same(argument.host)) return argument.npu;
    }
    if (aliases && tensor.numel() != 0) {
      for (const auto& input : inputs_) {
        if (input.numel() != 0 && tensor.storage().data() == input.data_ptr()) {
          return input.as_strided(tensor.sizes(), tensor.strides(), input.storage_offset() + tensor.storage_offset());
        }
      }
    }
    adjust_output(tensor);
    return copy_to_device(tensor, device_);
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack& stack_;
  c10::Device device_;
  std::vector<at::Tensor> inputs_;
  std::vector<Written> written_;
};

void simulated_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call(op, *stack).run();
}

// The dispatcher warns that a kernel is being replaced, which is the purpose here.
class Quiet : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

int64_t install_kernels(const std::vector<std::string>& names) {
  static std::vector<std::unique_ptr<torch::Library>> libraries;  // registrations last as long as these
  Quiet quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1,
                                                       __FILE__, __LINE__));
  for (const auto& name : names) {
    libraries.back()->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&simulated_kernel>());
  }
  return static_cast<int64_t>(names.size());
}

}  // namespace npu_sim
