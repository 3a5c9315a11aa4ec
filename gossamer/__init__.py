"""Gossamer finds, measures and verifies sparse circuits in language models."""

from gossamer.activations import Store, as_source, harvest
from gossamer.attribution.edges import edges
from gossamer.attribution.effects import L1, Density, Edge, Edges
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.attribution.verify import MeasuredEdge, measure
from gossamer.corpus import Corpus, as_corpus
from gossamer.dashboards import Dashboard, dashboard
from gossamer.edits import Ablate, Detach, Patch, Scale, Set, Steer
from gossamer.errors import FormatError, GossamerError, PromptError, ShapeError, SiteError
from gossamer.evaluation import Card, Report, evaluate
from gossamer.generation.generate import generate
from gossamer.generation.result import Generation, NewToken
from gossamer.jacobian import (
    Jacobian,
    JacobianReport,
    jacobian_of_weights,
    jacobian_over,
    jacobian_tables,
    measure_jacobian,
    mlp_jacobian,
    sweeps,
)
from gossamer.kernels.sparse import SparseLatents
from gossamer.library import load_model, load_sae, load_saes
from gossamer.models.mlps import MLP
from gossamer.models.model import Model
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.splice import Trace, run
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from gossamer.training.gated import GatedConfig
from gossamer.training.joint import JacobianConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import TrainResult, train
from gossamer.training.relu import ReLUConfig
from gossamer.training.topk import TopKConfig

__all__ = [
    "Ablate",
    "BatchTopKConfig",
    "Card",
    "Corpus",
    "Dashboard",
    "DeadConfig",
    "Density",
    "Detach",
    "Edge",
    "Edges",
    "FormatError",
    "GatedConfig",
    "Generation",
    "GossamerError",
    "Jacobian",
    "JacobianConfig",
    "JacobianReport",
    "JumpReLUConfig",
    "L1",
    "Latents",
    "LogitDifference",
    "Logits",
    "MLP",
    "MeasuredEdge",
    "Model",
    "NewToken",
    "OptimizerConfig",
    "Patch",
    "PromptError",
    "ReLUConfig",
    "Report",
    "RunConfig",
    "SAE",
    "Scale",
    "Set",
    "ShapeError",
    "SiteError",
    "SparseCoder",
    "SparseLatents",
    "StartConfig",
    "Steer",
    "Store",
    "Tokens",
    "TopKConfig",
    "Trace",
    "TrainConfig",
    "TrainResult",
    "as_corpus",
    "as_source",
    "dashboard",
    "edges",
    "evaluate",
    "generate",
    "harvest",
    "jacobian_of_weights",
    "jacobian_over",
    "jacobian_tables",
    "load_model",
    "load_sae",
    "load_saes",
    "measure",
    "measure_jacobian",
    "mlp_jacobian",
    "run",
    "sweeps",
    "train",
]
