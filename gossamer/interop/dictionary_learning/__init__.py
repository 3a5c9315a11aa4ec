"""saprmarks' dictionary_learning: ae.pt, the tensors, and config.json, how they were trained.

What is called a dictionary there is an SAE here. Its seven classes keep their tensors under
different names; which class it is stands in config.json as trainer.dict_class.
"""

from gossamer.interop.dictionary_learning.classes import NAME, is_here
from gossamer.interop.dictionary_learning.reading import read
from gossamer.interop.dictionary_learning.writing import write

__all__ = ["NAME", "is_here", "read", "write"]
