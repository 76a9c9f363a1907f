"""Files are written as everywhere in the project; see `hal.files`."""

from hal.files import require_outputs, require_writable, write_text, write_texts

__all__ = ["require_outputs", "require_writable", "write_text", "write_texts"]
