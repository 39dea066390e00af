"""OpenAI's embeddings (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
import hashlib
import math
from array import array
from typing import TYPE_CHECKING, Any

from ._dialect import Failure
from ._tokens import compact, count_tokens

if TYPE_CHECKING:
    from ._script import Request

__all__ = ["count_input", "embeddings"]

_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS = 1536


def count_input(request: Request) -> int:
    """Return the tokens of the texts; texts that the client tokenized already count as they are."""
    return sum(count_tokens(text) if isinstance(text, str) else len(text) for text in _texts(request))


def embeddings(request: Request, tokens: int) -> dict[str, Any]:
    """Return the body of the answer: for each text a unit vector, the same for the same text."""
    length = request.body.get("dimensions") or _DIMENSIONS.get(request.model, _USUAL_DIMENSIONS)
    encoded = request.body.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(_texts(request)):
        vector = _vector(text if isinstance(text, str) else compact(text), length)
        value = base64.b64encode(vector.tobytes()).decode() if encoded else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _texts(request: Request) -> list[Any]:
    value = request.body.get("input")
    if not value:
        raise Failure(400, "Missing required parameter: 'input'.")
    single = isinstance(value, str) or isinstance(value[0], int)
    return [value] if single else list(value)


def _vector(text: str, length: int) -> array[float]:
    raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(length)
    norm = math.sqrt(sum((byte - 127.5) ** 2 for byte in raw))
    return array("f", [(byte - 127.5) / norm for byte in raw])
