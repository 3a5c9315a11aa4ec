"""Bodies of /jobs: what kind of work, and the body of its route."""

from typing import Annotated, Literal

from pydantic import Field

from gossamer.server.wire.graphs import AttributeRequest, VerifyRequest
from gossamer.server.wire.requests import (
    BatchRequest,
    DashboardRequest,
    EdgesRequest,
    GenerateRequest,
    example,
)
from gossamer.server.wire.values import Name, Wire


class _JobRequest(Wire):
    title: Name = ""


class AnalyzeJob(_JobRequest):
    """Analyses as a job."""

    kind: Literal["analyze_batch"]
    request: BatchRequest


class EdgesJob(_JobRequest):
    """Edges as a job."""

    kind: Literal["edges"]
    request: EdgesRequest


class GenerateJob(_JobRequest):
    """Texts as a job."""

    kind: Literal["generate"]
    request: GenerateRequest


class DashboardJob(_JobRequest):
    """A dashboard as a job."""

    model_config = example(
        {
            "kind": "dashboard",
            "request": {"site": "blocks.2.hook_resid_pre", "latents": [0, 1], "n_tokens": 20000},
        }
    )

    kind: Literal["dashboard"]
    request: DashboardRequest


class AttributeJob(_JobRequest):
    """Graphs as a job."""

    kind: Literal["attribute"]
    request: AttributeRequest


class VerifyJob(_JobRequest):
    """A graph's edges checked, as a job."""

    kind: Literal["verify"]
    request: VerifyRequest


JobRequest = Annotated[
    AnalyzeJob | EdgesJob | GenerateJob | DashboardJob | AttributeJob | VerifyJob,
    Field(discriminator="kind"),
]
