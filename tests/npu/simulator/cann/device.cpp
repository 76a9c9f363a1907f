// Devices, contexts, versions and process-wide settings of the simulated CANN runtime.
// Compiled against the ACL headers inside the torch_npu wheel, so the compiler checks every signature.
#include "state.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "acl/acl.h"
#include "acl/acl_op_compiler.h"

namespace {

constexpr int64_t kL2Bytes = 192 << 20;  // of an Ascend 910B1, as are the core counts
constexpr int kCubeCores = 24;
constexpr int kVectorCores = 48;
constexpr const char* kCannVersion = "9.1.0";

thread_local int thread_device = -1;
std::array<int64_t, 64> system_options{};
std::array<std::string, 64> compile_options;

// As the runtime reads the variable: ids ascend, and the first one that does not exist ends the list.
int count_visible(const char* list, int physical) {
  std::istringstream stream(list);
  std::string item;
  int count = 0;
  int previous = -1;
  while (std::getline(stream, item, ',')) {
    if (item.empty() || !std::all_of(item.begin(), item.end(), ::isdigit)) break;
    const int id = std::stoi(item);
    if (id <= previous) return 0;
    if (id >= physical) break;
    previous = id;
    ++count;
  }
  return count;
}

}  // namespace

namespace cann_stub {

int visible_devices() {
  static const int physical = std::min(environment_int("NPU_SIM_DEVICES", 1), kMaxDevices);
  const char* list = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  return list == nullptr ? physical : count_visible(list, physical);
}

int current_device() { return thread_device; }

}  // namespace cann_stub

extern "C" {

aclError aclInit(const char*) { return ACL_SUCCESS; }
aclError aclFinalize() { return ACL_SUCCESS; }

const char* aclrtGetSocName() {
  const char* name = std::getenv("NPU_SIM_SOC");
  return name != nullptr ? name : "Ascend910B1";
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = cann_stub::visible_devices();
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= cann_stub::visible_devices()) return ACL_ERROR_RT_INVALID_DEVICEID;
  thread_device = device;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* device) {
  *device = thread_device;
  return thread_device < 0 ? ACL_ERROR_RT_CONTEXT_NULL : ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }

// A context is the device's number plus one, so that it is never null.
aclError aclrtGetCurrentContext(aclrtContext* context) {
  if (thread_device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *context = reinterpret_cast<aclrtContext>(static_cast<intptr_t>(thread_device + 1));
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  thread_device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  if (flags != nullptr) *flags = 0;
  *active = thread_device == device;
  return ACL_SUCCESS;
}

aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t* const logic) {
  *logic = user;
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }

aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  *pid = getpid();
  return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t* value) {
  *value = info == ACL_DEVICE_INFO_AI_CORE_NUM       ? kCubeCores
           : info == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? kVectorCores
                                                     : kL2Bytes;
  return ACL_SUCCESS;
}

aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr attribute, int64_t* value) {
  switch (attribute) {
    case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE: *value = static_cast<int64_t>(cann_stub::device_bytes()); break;
    case ACL_DEV_ATTR_L2_CACHE_SIZE: *value = kL2Bytes; break;
    case ACL_DEV_ATTR_VECTOR_CORE_NUM: *value = kVectorCores; break;
    case ACL_DEV_ATTR_AICORE_CORE_NUM:
    case ACL_DEV_ATTR_CUBE_CORE_NUM: *value = kCubeCores; break;
    default: *value = 0;
  }
  return ACL_SUCCESS;
}

aclError aclrtGetDeviceResLimit(int32_t, aclrtDevResLimitType, uint32_t* value) {
  *value = kCubeCores;
  return ACL_SUCCESS;
}

aclError aclrtSetDeviceResLimit(int32_t, aclrtDevResLimitType, uint32_t) { return ACL_SUCCESS; }
aclError aclrtGetDeviceUtilizationRate(int32_t, aclrtUtilizationInfo*) { return ACL_SUCCESS; }

aclError aclrtSetDeviceSatMode([[maybe_unused]] aclrtFloatOverflowMode mode) {
  CANN_STUB_TRACE("aclrtSetDeviceSatMode %d", static_cast<int>(mode));
  return ACL_SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  CANN_STUB_TRACE("aclrtSetSysParamOpt %d=%ld", static_cast<int>(option), static_cast<long>(value));
  system_options.at(option) = value;
  return ACL_SUCCESS;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  *value = system_options.at(option);
  return ACL_SUCCESS;
}

aclError aclSetCompileopt(aclCompileOpt option, const char* value) {
  CANN_STUB_TRACE("aclSetCompileopt %d=%s", static_cast<int>(option), value);
  compile_options.at(option) = value;
  return ACL_SUCCESS;
}

size_t aclGetCompileoptSize(aclCompileOpt option) { return compile_options.at(option).size() + 1; }

aclError aclGetCompileopt(aclCompileOpt option, char* value, size_t length) {
  std::snprintf(value, length, "%s", compile_options.at(option).c_str());
  return ACL_SUCCESS;
}

aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* version) {
  *version = {};
  std::strcpy(version->version, kCannVersion);
  return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char*, char* version) {
  std::strcpy(version, kCannVersion);
  return ACL_SUCCESS;
}

aclError aclGetCannAttribute(aclCannAttr, int32_t* value) {
  *value = 1;
  return ACL_SUCCESS;
}

aclError aclGetCannAttributeList(const aclCannAttr** list, size_t* count) {
  *list = nullptr;
  *count = 0;
  return ACL_SUCCESS;
}

const char* aclGetRecentErrMsg() { return "simulated CANN"; }
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

}  // extern "C"
