"""MLP Jacobians between SAEs: how latents before an MLP move latents after it."""

from gossamer.jacobian.entries import How
from gossamer.jacobian.jacobian import jacobian_of_weights, jacobian_tables, mlp_jacobian
from gossamer.jacobian.over import JacobianReport, jacobian_over
from gossamer.jacobian.products import JacobianTables
from gossamer.jacobian.response import Measured, measure_jacobian, sweeps
from gossamer.jacobian.result import Above, Entry, Jacobian, Sweep

__all__ = [
    "Above",
    "Entry",
    "How",
    "Jacobian",
    "JacobianReport",
    "JacobianTables",
    "Measured",
    "Sweep",
    "jacobian_of_weights",
    "jacobian_over",
    "jacobian_tables",
    "measure_jacobian",
    "mlp_jacobian",
    "sweeps",
]
