"""What single latents do over a corpus."""

from gossamer.dashboards.board import Dashboard, TriedText
from gossamer.dashboards.dashboard import dashboard
from gossamer.dashboards.examples import Examples

__all__ = ["Dashboard", "Examples", "TriedText", "dashboard"]
