// What the simulated runtime knows: its devices, its memory, its settings. Shared by the files of this folder.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace cann_stub {

constexpr int kMaxDevices = 16;
constexpr std::size_t kMiB = std::size_t{1} << 20;

inline int environment_int(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::atoi(text) : otherwise;
}

// Devices that this process sees, after ASCEND_RT_VISIBLE_DEVICES.
int visible_devices();

// The calling thread's device, or -1 before the first aclrtSetDevice.
int current_device();

inline std::size_t device_bytes() {
  static const std::size_t bytes = environment_int("NPU_SIM_MEMORY_MIB", 8192) * kMiB;
  return bytes;
}

std::size_t used_bytes(int device);

}  // namespace cann_stub

// NPU_SIM_TRACE=1 shows the settings that torch_npu makes, one a line.
#define CANN_STUB_TRACE(...)                                            \
  do {                                                                  \
    static const bool on = cann_stub::environment_int("NPU_SIM_TRACE", 0); \
    if (on) {                                                           \
      std::fprintf(stderr, "[cann stub] " __VA_ARGS__);                 \
      std::fputc('\n', stderr);                                         \
    }                                                                   \
  } while (false)
