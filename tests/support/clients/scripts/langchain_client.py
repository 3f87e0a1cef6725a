"""LangChain against an OpenAI-compatible server. Arguments: address, key, model. Prints one JSON object."""

import asyncio
import json
import sys

import openai
from langchain_openai import ChatOpenAI, OpenAI

address, key, model = sys.argv[1:]
common = {"base_url": address, "model": model, "temperature": 0, "max_tokens": 16, "max_retries": 0}
chat, raw = ChatOpenAI(api_key=key, **common), OpenAI(api_key=key, **common)
schema = {
    "title": "Choice",
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "loud": {"type": "boolean"}},
    "required": ["colour", "loud"],
    "additionalProperties": False,
}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def in_one_loop() -> tuple[str, str]:
    streamed = [str(chunk.content) async for chunk in chat.astream("Sort.")]
    return str((await chat.ainvoke("Sort.")).content), "".join(streamed)


asynchronous, async_streamed = asyncio.run(in_one_loop())
whole = chat.invoke("Sort.")
offered = chat.bind_tools([add]).invoke("Sort.")
structured = ChatOpenAI(api_key=key, **{**common, "max_tokens": 100}).with_structured_output(
    schema, method="json_schema"
)
try:
    ChatOpenAI(api_key="sk-wrong", **common).invoke("Sort.")
    refused = ""
except openai.AuthenticationError as error:
    refused = type(error).__name__
print(
    json.dumps(
        {
            "chat": whole.content,
            "usage": whole.usage_metadata,
            "streamed": "".join(str(chunk.content) for chunk in chat.stream("Sort.")),
            "async": asynchronous,
            "async_streamed": async_streamed,
            "completion": raw.invoke("def f("),
            "batch": raw.generate(["def f(", "class A:"]).generations[1][0].text,
            "structured": structured.invoke("Sort."),
            "tools": offered.content,
            "tool_calls": offered.tool_calls,
            "refused": refused,
        }
    )
)
