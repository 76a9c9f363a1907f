"""Host replay: give each module's captured input to a clean copy on the host, and compare within the rounding
error.
"""
