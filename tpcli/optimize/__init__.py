"""From aims (so fast, so little lost) to a pooled model, and a promise that was checked.

Importing this imports no torch; the work is in the modules beside.
"""

from .options import Aims

__all__ = ["Aims"]
