// Device memory of the simulated CANN runtime: host memory with a limit for each device.
// It is filled with 0xFF, so that reading what nobody wrote gives NaN instead of a lucky zero.
#include "state.hpp"

#include <sys/mman.h>

#include <array>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "acl/acl.h"

namespace {

constexpr int kPoison = 0xFF;
constexpr std::size_t kAlignment = 512;
constexpr int kHost = -1;

struct Block {
  std::size_t bytes;
  int device;
};

std::mutex mutex;
std::unordered_map<void*, Block> blocks;
std::array<std::size_t, cann_stub::kMaxDevices> used{};

int device_for_allocation() { return cann_stub::current_device() < 0 ? 0 : cann_stub::current_device(); }

bool reserve(int device, std::size_t bytes) {
  if (device == kHost) return true;
  if (used[device] + bytes > cann_stub::device_bytes()) return false;
  used[device] += bytes;
  return true;
}

void release(const Block& block) {
  if (block.device != kHost) used[block.device] -= block.bytes;
}

aclError allocate(void** pointer, std::size_t bytes, int device) {
  const std::lock_guard<std::mutex> guard(mutex);
  if (!reserve(device, bytes)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  if (posix_memalign(pointer, kAlignment, bytes != 0 ? bytes : kAlignment) != 0) {
    release({bytes, device});
    return ACL_ERROR_RT_MEMORY_ALLOCATION;
  }
  std::memset(*pointer, kPoison, bytes);
  blocks[*pointer] = {bytes, device};
  return ACL_SUCCESS;
}

aclError deallocate(void* pointer) {
  const std::lock_guard<std::mutex> guard(mutex);
  const auto found = blocks.find(pointer);
  if (found == blocks.end()) return ACL_ERROR_RT_PARAM_INVALID;
  release(found->second);
  blocks.erase(found);
  std::free(pointer);
  return ACL_SUCCESS;
}

}  // namespace

namespace cann_stub {

std::size_t used_bytes(int device) {
  const std::lock_guard<std::mutex> guard(mutex);
  return used[device];
}

}  // namespace cann_stub

extern "C" {

aclError aclrtMalloc(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return allocate(pointer, bytes, device_for_allocation());
}

aclError aclrtMallocAlign32(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return allocate(pointer, bytes, device_for_allocation());
}

aclError aclrtFree(void* pointer) { return deallocate(pointer); }
aclError aclrtMallocHost(void** pointer, size_t bytes) { return allocate(pointer, bytes, kHost); }
aclError aclrtMallocHostWithCfg(void** pointer, uint64_t bytes, aclrtMallocConfig*) {
  return allocate(pointer, bytes, kHost);
}
aclError aclrtFreeHost(void* pointer) { return deallocate(pointer); }

aclError aclrtHostRegister(void* pointer, uint64_t, aclrtHostRegisterType, void** device_pointer) {
  *device_pointer = pointer;
  return ACL_SUCCESS;
}

aclError aclrtHostUnregister(void*) { return ACL_SUCCESS; }

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  *total = cann_stub::device_bytes();
  *free = *total - cann_stub::used_bytes(device_for_allocation());
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind) {
  std::memcpy(to, from, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind, aclrtStream) {
  std::memcpy(to, from, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemcpyAsyncWithCondition(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind,
                                       aclrtStream) {
  std::memcpy(to, from, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemset(void* to, size_t, int32_t value, size_t bytes) {
  std::memset(to, value, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void* to, size_t, int32_t value, size_t bytes, aclrtStream) {
  std::memset(to, value, bytes);
  return ACL_SUCCESS;
}

// Virtual memory, used when the allocator's expandable segments are on.

aclError aclrtReserveMemAddress(void** address, size_t bytes, size_t, void*, uint64_t) {
  void* reserved = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  *address = reserved;
  return ACL_SUCCESS;
}

// The size is not passed in and torch_npu reserves once a segment: the address range stays until exit.
aclError aclrtReleaseMemAddress(void*) { return ACL_SUCCESS; }

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp*, uint64_t) {
  const std::lock_guard<std::mutex> guard(mutex);
  const int device = device_for_allocation();
  if (!reserve(device, bytes)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  *handle = reinterpret_cast<aclrtDrvMemHandle>(new Block{bytes, device});
  return ACL_SUCCESS;
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  const std::lock_guard<std::mutex> guard(mutex);
  auto* block = reinterpret_cast<Block*>(handle);
  release(*block);
  delete block;
  return ACL_SUCCESS;
}

aclError aclrtMapMem(void* address, size_t bytes, size_t, aclrtDrvMemHandle, uint64_t) {
  if (mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  std::memset(address, kPoison, bytes);
  return ACL_SUCCESS;
}

aclError aclrtUnmapMem(void*) { return ACL_SUCCESS; }

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle, aclrtMemHandleType, uint64_t, uint64_t*) {
  return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

aclError aclrtMemImportFromShareableHandle(uint64_t, int32_t, aclrtDrvMemHandle*) {
  return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

aclError aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) { return ACL_ERROR_RT_FEATURE_NOT_SUPPORT; }

}  // extern "C"
