"""What a training run will take of time, memory and traffic: arithmetic, before anything runs."""

from gossamer.plan.collectives import Collective
from gossamer.plan.hardware import HARDWARE, Hardware
from gossamer.plan.parts import Part
from gossamer.plan.plan import Layout, Plan, plan
from gossamer.plan.work import Work

__all__ = ["HARDWARE", "Collective", "Hardware", "Layout", "Part", "Plan", "Work", "plan"]
