// Functions that torch_npu's library links but that no simulated operator needs. Those of the older graph
// interface (aclop*) compile and launch kernels; reaching one means that an operator is not simulated,
// so they say their name and fail. The profiler's hooks (Msprof*) are called at start-up and do nothing.
// No header is included: only the names matter, and the arguments are never read.
#include <cstdio>

#define SUCCEEDS(name) \
  extern "C" long name() { return 0; }

#define FAILS(name)                                                                              \
  extern "C" int name() {                                                                        \
    std::fputs("the simulated CANN has no " #name ": this operator is not simulated\n", stderr); \
    return 500004; /* ACL_ERROR_FEATURE_UNSUPPORTED */                                           \
  }

FAILS(aclopCompileAndExecute)
FAILS(aclopCompileAndExecuteV2)
FAILS(aclrtBinaryGetFunction)
FAILS(aclrtBinaryLoadFromData)
FAILS(aclrtGetFunctionAddr)
FAILS(rtDevBinaryRegister)
FAILS(rtFunctionRegister)
FAILS(rtGetC2cCtrlAddr)
FAILS(rtKernelLaunch)

SUCCEEDS(aclopCreateAttr)
SUCCEEDS(aclopDestroyAttr)
SUCCEEDS(aclopSetAttrBool)
SUCCEEDS(aclopSetAttrDataType)
SUCCEEDS(aclopSetAttrFloat)
SUCCEEDS(aclopSetAttrInt)
SUCCEEDS(aclopSetAttrListBool)
SUCCEEDS(aclopSetAttrListFloat)
SUCCEEDS(aclopSetAttrListInt)
SUCCEEDS(aclopSetAttrListListInt)
SUCCEEDS(aclopSetAttrString)
SUCCEEDS(aclCreateDataBuffer)
SUCCEEDS(aclCreateTensorDesc)
SUCCEEDS(aclDestroyDataBuffer)
SUCCEEDS(aclDestroyTensorDesc)
SUCCEEDS(aclGetTensorDescDimV2)
SUCCEEDS(aclGetTensorDescFormat)
SUCCEEDS(aclGetTensorDescNumDims)
SUCCEEDS(aclGetTensorDescType)
SUCCEEDS(aclSetTensorDescName)
SUCCEEDS(aclSetTensorFormat)
SUCCEEDS(aclSetTensorPlaceMent)
SUCCEEDS(aclSetTensorShape)
SUCCEEDS(aclmdlInitDump)
SUCCEEDS(aclmdlSetDump)
SUCCEEDS(aclmdlFinalizeDump)
SUCCEEDS(HcclSetConfig)
SUCCEEDS(MsprofGetHashId)
SUCCEEDS(MsprofRegisterCallback)
SUCCEEDS(MsprofReportAdditionalInfo)
SUCCEEDS(MsprofReportApi)
SUCCEEDS(MsprofReportCompactInfo)
SUCCEEDS(MsprofSysCycleTime)
