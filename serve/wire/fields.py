"""Request fields as data: which are harmless and not used, and which are refused with a reason of their own.

A field is harmless when an answer that does not heed it is still the right answer. Everything else that we do not
know is refused: a client that sets a switch has a right to its effect.
"""

from __future__ import annotations

from collections.abc import Mapping

# Field: who sends it, and why the answer is the same without it.
HARMLESS: Mapping[str, str] = {
    "user": "OpenAI SDKs, Continue, guidellm: a name of the end user; identity comes from the key alone",
    "metadata": "OpenAI SDKs: labels of a stored answer; nothing is stored",
    "store": "OpenAI SDKs: nothing is stored",
    "service_tier": "OpenAI SDKs: the key decides who goes first",
    "safety_identifier": "OpenAI SDKs: the newer name of user",
    "prompt_cache_key": "OpenAI SDKs: a hint; prefixes are cached per tenant anyway",
    "prompt_cache_retention": "OpenAI SDKs: a hint on how long a prefix is cached",
    "parallel_tool_calls": "LangChain, agents: no tool is called, one by one or together",
    "keep_alive": "Twinny: how long Ollama keeps a model loaded; here it always is",
    "extra": "Copilot: language and indentation of the file; hints",
    "nwo": "Copilot: the repository's name; a hint",
    "prediction": "OpenAI SDKs: a hint that may make an answer faster, never different",
}

_SERVER = "the server decides this; it is not a client's to set"
_GRAMMAR = "regular expressions and grammars are not served; use response_format with a JSON schema"
_BEAMS = "beam search is not served"
# Field: why it is refused, where "unknown field" would say too little.
REFUSED: Mapping[str, str] = {
    "priority": _SERVER, "cache_salt": _SERVER, "request_id": "send it as the header X-Request-Id",
    "structured_outputs": _GRAMMAR, "guided_regex": _GRAMMAR, "guided_grammar": _GRAMMAR, "guided_choice": _GRAMMAR,
    "guided_json": _GRAMMAR, "use_beam_search": _BEAMS, "length_penalty": _BEAMS,
    "functions": "functions are never called; tools are accepted and not called either",
    "function_call": "functions are never called; tools are accepted and not called either",
    "prompt_logprobs": "use echo with logprobs on /v1/completions",
    "audio": "only text is served", "web_search_options": "this server searches nothing",
    "reasoning_effort": "this server's models do not reason apart from their answer",
    "truncate_prompt_tokens": "nothing is cut silently; a prompt that is too long is refused",
    "prompt_embeds": "only text and token ids are served",
}  # fmt: skip
