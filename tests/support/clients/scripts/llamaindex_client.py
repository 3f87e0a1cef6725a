"""LlamaIndex against an OpenAI-compatible server. Arguments: address, key, model. Prints one JSON object."""

import json
import sys

import openai
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

address, key, model = sys.argv[1:]
common = {"api_base": address, "model": model, "temperature": 0, "max_tokens": 16, "max_retries": 0}
chat = OpenAILike(api_key=key, is_chat_model=True, **common)
raw = OpenAILike(api_key=key, is_chat_model=False, **common)
messages = [ChatMessage(role="user", content="Sort.")]
whole = chat.chat(messages)
try:
    OpenAILike(api_key="sk-wrong", is_chat_model=True, **common).chat(messages)
    refused = ""
except openai.AuthenticationError as error:
    refused = type(error).__name__
print(
    json.dumps(
        {
            "chat": whole.message.content,
            "usage": whole.raw.usage.completion_tokens,
            "streamed": "".join(chunk.delta or "" for chunk in chat.stream_chat(messages)),
            "completion": raw.complete("def f(").text,
            "completion_streamed": "".join(chunk.delta or "" for chunk in raw.stream_complete("def f(")),
            "refused": refused,
        }
    )
)
