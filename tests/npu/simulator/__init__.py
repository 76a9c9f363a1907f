"""A simulated Ascend NPU: the unmodified torch_npu wheel, over a stub of CANN and arithmetic done on the host."""
