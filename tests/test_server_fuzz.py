"""Whatever /openapi.json allows, and much that it does not, is answered as the page says."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from gossamer.server.app import create_app
from gossamer.server.config import ServerConfig
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

schemathesis = pytest.importorskip("schemathesis", reason="a development tool")

SITE = "blocks.1.hook_resid_pre"


# It draws from `random` itself, which hypothesis warns of.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_no_answer_is_a_server_error(tmp_path: Path) -> None:
    """38 routes, a few random requests each; `benchmarks/server_fuzz.py` makes thousands."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error

    model = tiny_model("gpt2")
    saes = {SITE: tiny_sae("topk", SITE, model.d_model)}
    app = create_app(model, saes, tmp_path, ServerConfig(allow_hosts=("testserver",)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/jobs/{job_id}/events":  # does not end while a job runs
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=4,
                database=None,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=st.deferred(lambda: operation.as_strategy(generation_mode=mode)))
            def answered(case: schemathesis.Case) -> None:
                response = case.call()
                tried.append(response.status_code)
                case.validate_response(response, checks=[not_a_server_error])

            with suppress(Unsatisfiable):  # a route that takes nothing has no wrong request
                answered()
    app.state.gossamer.worker.close()
    assert len(tried) > 100 and max(tried) < 500
