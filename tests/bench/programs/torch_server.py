"""The program in the PyTorch image: it runs there, on the image's own Python, and nothing here imports it.

What a model server does before it is ready: imports torch and transformers, builds a model (tiny, with random weights,
on the CPU), generates a few tokens, then answers `GET /`.
"""

import os
import time
from typing import Any

BEGAN = time.monotonic()

import torch  # type: ignore  # noqa: E402
import uvicorn  # type: ignore  # noqa: E402
from fastapi import FastAPI  # type: ignore  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore  # noqa: E402

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
torch.manual_seed(7)
MODEL = LlamaForCausalLM(CONFIG).eval()
TOKENS = torch.arange(3, 19).unsqueeze(0)
with torch.inference_mode():
    MODEL(TOKENS)
IMPORT_S = time.monotonic() - BEGAN

app = FastAPI()


@app.get("/")  # type: ignore
def answer() -> dict[str, Any]:
    """The most likely next token."""
    with torch.inference_mode():
        logits = MODEL(TOKENS).logits
    return {"token": int(logits[0, -1].argmax()), "import_s": round(IMPORT_S, 3)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
