"""Files are written as everywhere in the project; see `hal.files`."""

from hal.files import require_writable, write_text

__all__ = ["require_writable", "write_text"]
