"""The statistical probes: pure functions from a layer's inputs and outputs, on the host in float64, to numbers."""
