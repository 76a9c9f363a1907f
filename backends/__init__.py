"""The built-in backends: the only place that names a vendor's module."""
