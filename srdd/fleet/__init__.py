"""Many devices, one probe: which of them computes something else?"""
