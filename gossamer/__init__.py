"""Gossamer finds, measures and verifies sparse circuits in language models."""

from gossamer.activations import Means, Store, as_source, harvest, means
from gossamer.analysis.analyze import Request, analyze, analyze_batch, upstream
from gossamer.analysis.compare import Comparison, compare
from gossamer.analysis.derived import scalars
from gossamer.analysis.directions import (
    KL,
    LogitMinusMean,
    LogProbability,
    NodeValue,
    Probability,
    ResidualDirection,
    Through,
)
from gossamer.analysis.lens import Lens, lens, logit_lens, logit_table
from gossamer.analysis.result import Analysis, ColumnSum, TableRow
from gossamer.analysis.scalars import Scalars
from gossamer.analysis.table import Choice
from gossamer.attribution.attribute import attribute
from gossamer.attribution.contrast import contrast
from gossamer.attribution.edges import edges
from gossamer.attribution.effects import L1, Density, Edge, Edges
from gossamer.attribution.heads.carried import EdgeLoadings, HeadLoadings
from gossamer.attribution.heads.loadings import head_loadings
from gossamer.attribution.heads.pairs import QKAttributions
from gossamer.attribution.heads.scores import qk_attributions
from gossamer.attribution.over.intervals import edge_intervals
from gossamer.attribution.over.over import edges_over
from gossamer.attribution.over.table import EdgeRow, EdgeTable
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.attribution.verify import MeasuredEdge, measure, verify
from gossamer.attribution.verifying.faithfulness import FaithfulnessCurve, faithfulness
from gossamer.attribution.verifying.report import VerifyReport
from gossamer.corpus import Corpus, as_corpus
from gossamer.dashboards import Dashboard, dashboard
from gossamer.edits import Ablate, Detach, Patch, Scale, Set, Steer
from gossamer.errors import FormatError, GossamerError, PromptError, ShapeError, SiteError
from gossamer.evaluation import Card, Report, evaluate
from gossamer.generation.generate import generate
from gossamer.generation.result import Generation, NewToken
from gossamer.graph.difference import GraphDifference, compare_graphs
from gossamer.graph.graph import Graph
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
from gossamer.saes.crosscoder import Crosscoder
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.splice import Trace, run
from gossamer.training.abstopk import AbsTopKConfig
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
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.panneal import PAnnealConfig
from gossamer.training.relu import ReLUConfig
from gossamer.training.topk import TopKConfig

__all__ = [
    "Ablate",
    "AbsTopKConfig",
    "Analysis",
    "BatchTopKConfig",
    "Card",
    "Choice",
    "ColumnSum",
    "Comparison",
    "Corpus",
    "Crosscoder",
    "Dashboard",
    "DeadConfig",
    "Density",
    "Detach",
    "Edge",
    "EdgeLoadings",
    "EdgeRow",
    "EdgeTable",
    "Edges",
    "FaithfulnessCurve",
    "FormatError",
    "GatedConfig",
    "Generation",
    "GossamerError",
    "Graph",
    "GraphDifference",
    "HeadLoadings",
    "Jacobian",
    "JacobianConfig",
    "JacobianReport",
    "JumpReLUConfig",
    "KL",
    "L1",
    "Latents",
    "Lens",
    "LogProbability",
    "LogitDifference",
    "LogitMinusMean",
    "Logits",
    "MLP",
    "MatryoshkaConfig",
    "Means",
    "MeasuredEdge",
    "Model",
    "NewToken",
    "NodeValue",
    "OptimizerConfig",
    "PAnnealConfig",
    "Patch",
    "Probability",
    "PromptError",
    "QKAttributions",
    "ReLUConfig",
    "Report",
    "Request",
    "ResidualDirection",
    "RunConfig",
    "SAE",
    "Scalars",
    "Scale",
    "Set",
    "ShapeError",
    "SiteError",
    "SparseCoder",
    "SparseLatents",
    "StartConfig",
    "Steer",
    "Store",
    "TableRow",
    "Through",
    "Tokens",
    "TopKConfig",
    "Trace",
    "TrainConfig",
    "TrainResult",
    "VerifyReport",
    "analyze",
    "analyze_batch",
    "as_corpus",
    "as_source",
    "attribute",
    "compare",
    "compare_graphs",
    "contrast",
    "dashboard",
    "edge_intervals",
    "edges",
    "edges_over",
    "evaluate",
    "faithfulness",
    "generate",
    "harvest",
    "head_loadings",
    "jacobian_of_weights",
    "jacobian_over",
    "jacobian_tables",
    "lens",
    "load_model",
    "load_sae",
    "load_saes",
    "logit_lens",
    "logit_table",
    "means",
    "measure",
    "measure_jacobian",
    "mlp_jacobian",
    "qk_attributions",
    "run",
    "scalars",
    "sweeps",
    "train",
    "upstream",
    "verify",
]
