"""What a model is measured by: what each measure is called and needs, and how it is taken.

Importing this imports no torch; what measures is in the modules beside.
"""

from .kinds import MEASURES, Measure

__all__ = ["MEASURES", "Measure"]
