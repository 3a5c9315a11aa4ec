"""How good an SAE is in its model: one report card for each."""

from gossamer.evaluation.evaluate import evaluate
from gossamer.evaluation.report import Card, Report

__all__ = ["Card", "Report", "evaluate"]
