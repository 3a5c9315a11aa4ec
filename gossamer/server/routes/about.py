"""What the server is: health, the model, tokens."""

from importlib.metadata import version

from fastapi import APIRouter, Request

from gossamer.server import answers, wire
from gossamer.server.asking import computed, state_of
from gossamer.server.faults import Answer
from gossamer.server.verbs.runs import tokenize_answer

router = APIRouter(tags=["about"])


@router.get("/health", response_model=answers.Health)
async def health(request: Request) -> Answer:
    """That it is there, and how busy it is."""
    state = state_of(request)
    waiting, running, jobs = state.worker.counts()
    return Answer(
        {
            "status": "ok",
            "version": version("gossamer"),
            "device": str(state.served.model.device),
            "waiting": waiting,
            "running": running,
            "jobs_waiting": jobs,
        }
    )


@router.get("/model", response_model=answers.ModelInfo)
async def model(request: Request) -> Answer:
    """The model, its sites and its SAEs."""
    served = state_of(request).served
    one = served.model
    saes = [
        {
            "site_in": sae.site_in,
            "site_out": sae.site_out,
            "d_sae": getattr(sae, "d_sae", None),
            "has_labels": getattr(sae, "labels", None) is not None,
            "neuronpedia_id": getattr(sae, "metadata", {}).get("neuronpedia_id"),
        }
        for sae in served.saes.values()
    ]
    return Answer(
        {
            "name": one.name,
            "dtype": str(one.dtype).removeprefix("torch."),
            "device": str(one.device),
            "n_layers": one.n_layers,
            "d_model": one.d_model,
            "d_vocab": one.d_vocab,
            "context_length": one.context_length,
            "has_tokenizer": one.tokenizer is not None,
            "sites": list(one.sites),
            "saes": saes,
        }
    )


@router.post("/tokenize", response_model=answers.TokenList)
async def tokenize(request: Request, body: wire.TokenizeRequest) -> Answer:
    """A prompt as token ids and as text."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: tokenize_answer(state, body)))
