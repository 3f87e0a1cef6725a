"""How much a body holds, counted before anything looks at what it says.

To validate a value costs some microseconds and some hundred bytes, and a mistake several times that: where a client
says how many there are, it would say how long other clients wait. Lists of numbers and texts stop at their first
mistake (`Several` in bodies.py), so what is counted here is what may be large and right.
"""

from __future__ import annotations

from typing import Any

from serve.errors import BadRequest
from serve.settings import Caps
from serve.wire.sampling import at_most

MOST_TOOLS = 128  # as many as OpenAI takes
MOST_FIELDS = 32  # of an object inside a body whose fields we know


def count(body: dict[str, Any], caps: Caps) -> None:
    """Raise BadRequest for the first field that holds more than a request may."""
    for name, value in body.items():
        match name, value:
            case "stop", list():
                at_most(len(value), caps.stops, name, "strings")
            case "stop_token_ids", list():
                at_most(len(value), caps.stop_token_ids, name, "tokens")
            case "logit_bias", dict():
                at_most(len(value), caps.logit_bias, name, "tokens")
            case "tools", list():
                at_most(len(value), MOST_TOOLS, name, "tools")
            case "prompt", [first, *_] if not isinstance(first, int):
                at_most(len(value), caps.prompts, name, "prompts")
            case "messages", list():
                _count_messages(value, caps)
            case "options" | "fim" | "stream_options" | "response_format", dict():
                _count_fields(name, value)
                _count_fields(f"{name}.json_schema", value.get("json_schema"))
                if isinstance(stop := value.get("stop"), list):
                    at_most(len(stop), caps.stops, f"{name}.stop", "strings")


def _count_messages(messages: list[Any], caps: Caps) -> None:
    at_most(len(messages), caps.messages, "messages", "messages")
    parts = 0
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        _count_fields(f"messages[{place}]", message)
        if isinstance(content := message.get("content"), list):
            parts += len(content)
            at_most(parts, caps.messages, f"messages[{place}].content", "parts in all messages")
            for part, value in enumerate(content):
                _count_fields(f"messages[{place}].content[{part}]", value)


def _count_fields(where: str, value: Any) -> None:
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        raise BadRequest(f"{where}: has {len(value)} fields; at most {MOST_FIELDS} are known", where)
